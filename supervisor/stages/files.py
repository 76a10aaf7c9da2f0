"""Text files of a committed tree, as configuration is read from one; not what they mean."""

from sandbox.contract.errors import ConfigError
from sandbox.contract.tree import Tree

TEXT_BYTES_MAX = 256 << 10


def text_at(tree: Tree, path: str, bytes_max: int = TEXT_BYTES_MAX) -> str | None:
    """Return a file of a tree as text, None if there is no regular file at `path`.

    Raises:
        ConfigError: It is not UTF-8.
        Rejected: It is larger than `bytes_max`.
    """
    try:
        return tree.read(path, bytes_max).decode()
    except KeyError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8") from error
