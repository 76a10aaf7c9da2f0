"""YAML from a person or a repository, parsed within bounds (ABUSE A01, I15); not what the parsed values mean.

Only what JSON has: mappings with text keys, sequences, text, numbers, booleans, null. A key twice, a merge key, a tag,
too many aliases, too deep or too large a document are errors that name the file and the line.
"""

import yaml

from sandbox.contract.errors import ConfigError

BYTES_MAX = 256 << 10
DEPTH_MAX = 32
ALIASES_MAX = 50
NODES_MAX = 20_000
"""Nodes of the document with every alias written out."""
NUMBER_CHARS_MAX = 100
"""A longer number is a trick: Python refuses to print it, and one in base 60 takes time that grows with the square of its length."""

_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}


def load_yaml(text: str, source: str) -> object:
    """Return the one document in `text` as plain values.

    Args:
        text: At most 256 KiB, depth 32, 50 aliases, 20,000 nodes with aliases written out.
        source: How to name the text in an error.

    Raises:
        ConfigError: It is outside the bounds or is not YAML.
    """
    if len(text.encode(errors="surrogatepass")) > BYTES_MAX:
        raise ConfigError(f"{source}: larger than {BYTES_MAX >> 10} KiB")
    try:
        _scan(text, source)
        # The pure Python loader: the C one overflows the stack on nesting it has not refused yet.
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, source, 0, {}, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}:" if mark is not None else ""
        raise ConfigError(f"{source}:{where} not YAML: {error.problem or error.context or 'cannot be read'}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a timestamp or number that is none
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0]}") from error


def _scan(text: str, source: str) -> None:
    """Bound depth, aliases and events on the stream, before anything recursive sees it."""
    depth = aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if depth > DEPTH_MAX:
            raise ConfigError(f"{source}: line {line}: nested deeper than {DEPTH_MAX}")
        if aliases > ALIASES_MAX:
            raise ConfigError(f"{source}: line {line}: more than {ALIASES_MAX} aliases")
        if count > NODES_MAX:
            raise ConfigError(f"{source}: line {line}: more than {NODES_MAX} entries")


def _measure(node: yaml.Node, source: str, depth: int, sizes: dict[int, int], path: set[int]) -> int:
    """Return how many nodes `node` is with its aliases written out, refusing what JSON has not."""
    line = _line(node)
    if id(node) in path or depth > DEPTH_MAX:
        raise ConfigError(f"{source}: line {line}: nested deeper than {DEPTH_MAX}")
    if id(node) in sizes:
        return sizes[id(node)]
    if isinstance(node, yaml.ScalarNode):
        if node.tag not in _SCALARS:
            raise ConfigError(f"{source}: line {line}: {_name_of(node.tag)} is not allowed here; write it as text in quotes")
        if node.tag in _NUMBERS and len(node.value) > NUMBER_CHARS_MAX:
            raise ConfigError(f"{source}: line {line}: a number of more than {NUMBER_CHARS_MAX} characters")
        return 1
    path.add(id(node))
    size = 1 + sum(_measure(child, source, depth + 1, sizes, path) for child in _children(node, source))
    path.discard(id(node))
    if size > NODES_MAX:
        raise ConfigError(f"{source}: line {line}: more than {NODES_MAX} entries when its aliases are written out")
    sizes[id(node)] = size
    return size


def _children(node: yaml.Node, source: str) -> list[yaml.Node]:
    line = _line(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return list(node.value)
    if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
        raise ConfigError(f"{source}: line {line}: {_name_of(node.tag)} is not allowed")
    seen: set[str] = set()
    for key, _ in node.value:
        at = _line(key)
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{source}: line {at}: a key has to be text, not {_name_of(key.tag)}")
        if key.value in seen:
            raise ConfigError(f"{source}: line {at}: key {key.value!r} is there twice")
        seen.add(key.value)
    return [value for _, value in node.value]


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark is not None else 0


def _name_of(tag: str) -> str:
    short = tag.removeprefix("tag:yaml.org,2002:")
    return "a merge key `<<`" if short == "merge" else f"a {short}"
