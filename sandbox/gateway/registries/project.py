"""What an index says of one project, in the form both ecosystems share: its files, where they are and what their digests are."""

import hashlib
import re
from dataclasses import dataclass, field

PIP_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}\.(?:whl|tar\.gz|zip|tar\.bz2|tgz)", re.ASCII)
NPM_FILE = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._+~@-]{0,250}\.(?:tgz|tar\.gz)", re.ASCII)
ALGORITHMS = ("sha512", "sha384", "sha256", "sha1")
"""Strongest first; a digest of another kind is as good as none."""


@dataclass(frozen=True)
class Digest:
    """What a file has to hash to."""

    algorithm: str
    hexadecimal: str

    @property
    def key(self) -> str:
        """Return the digest as one word."""
        return f"{self.algorithm}-{self.hexadecimal}"

    def new(self) -> "hashlib._Hash":
        """Return a hash to be filled with the file."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


@dataclass(frozen=True)
class ProjectFile:
    """One file, as the index names it."""

    name: str
    url: str
    """Where it is; judged when it is asked for."""
    digest: Digest | None


@dataclass(frozen=True)
class Project:
    """One project of an index."""

    document: bytes
    """What a client is told of it: made anew, every address in it leads to us."""
    content_type: str
    files: dict[str, ProjectFile] = field(default_factory=dict)
    """By name."""


class BadDocument(Exception):
    """What an index says of a project makes no sense."""


def digest_of(algorithm: str, hexadecimal: str) -> Digest | None:
    """Return a digest, None if it is not well-formed or of a kind we do not take."""
    bits = {"sha512": 512, "sha384": 384, "sha256": 256, "sha1": 160}.get(algorithm, 0)
    if not bits or not re.fullmatch(r"[0-9a-f]+", hexadecimal.lower()) or len(hexadecimal) != bits // 4:
        return None
    return Digest(algorithm, hexadecimal.lower())
