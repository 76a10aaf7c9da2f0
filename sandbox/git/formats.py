"""How git writes names, people and messages; nothing runs here."""

import hashlib
import re

from pydantic import field_validator

from sandbox.contract.errors import GitError
from sandbox.contract.model import Frozen

IDENTITY_CHARS_MAX = 200

_SHA = re.compile(r"[0-9a-f]{40}")


class Identity(Frozen):
    """A person or program in a commit; characters that git's format has no room for are removed."""

    name: str
    email: str

    @field_validator("name", "email")
    @classmethod
    def _fits_the_format(cls, value: str) -> str:
        kept = "".join(char for char in value if char.isprintable() and char not in "<>")
        return kept.strip(" .,:;\"'\\")[:IDENTITY_CHARS_MAX].encode("utf-8", "ignore").decode() or "unknown"


ANDON = Identity(name="andon", email="andon@localhost")


def is_sha(text: str) -> bool:
    """Return whether `text` is a full SHA-1 object name."""
    return _SHA.fullmatch(text) is not None


def checked_sha(text: str) -> str:
    """Return `text` if it is a full object name.

    Raises:
        GitError: It is not: our bug, or a hostile peer's trick.
    """
    if not is_sha(text):
        raise GitError(f"{text[:80]!r} is not an object name")
    return text


def blob_sha(data: bytes) -> str:
    """Return the object name git gives to a file of these bytes."""
    digest = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


def quoted(path: str) -> bytes:
    """Return a path in git's C-style quotes, for streams and lists of directories."""
    raw = path.encode("utf-8", "surrogateescape")
    return b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def clean_message(message: str) -> bytes:
    """Return a commit message as git takes it: UTF-8, no NUL, one final newline."""
    return message.replace("\0", "").encode("utf-8", "replace").rstrip(b"\n") + b"\n"


def identity_variables(role: str, who: Identity, at: int) -> dict[str, str]:
    """Return the environment that names the AUTHOR or COMMITTER of a commit; `at` in seconds since 1970."""
    return {f"GIT_{role}_NAME": who.name, f"GIT_{role}_EMAIL": who.email, f"GIT_{role}_DATE": f"@{at} +0000"}
