"""Which packages a stage may install, and what a package's name is; not how one is fetched (`gateway/registries`)."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sandbox.contract.model import Frozen

Network = Literal["none", "registries", "allowlist"]
"""none: no packages. registries: any package of the indexes of the executor's host. allowlist: only those the pipeline lists."""
Ecosystem = Literal["pip", "npm"]

NAME_CHARS_MAX = 100
PACKAGES_MAX = 1_000
"""Listed in one stage, of each ecosystem."""

_PIP = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_NPM_PART = r"[a-z0-9_~-][a-z0-9._~-]*"
_NPM = re.compile(rf"(?:@{_NPM_PART}/)?{_NPM_PART}", re.ASCII)


def pip_name(text: str) -> str:
    """Return the normal form of a Python project's name (PEP 503).

    Raises:
        ValueError: It is none, or longer than `NAME_CHARS_MAX`.
    """
    if len(text) > NAME_CHARS_MAX or not _PIP.fullmatch(text):
        raise ValueError(
            f"{text[:40]!r} is not the name of a Python project: letters, digits and - . _ between them, at most {NAME_CHARS_MAX}"
        )
    return re.sub(r"[-_.]+", "-", text).lower()


def npm_name(text: str) -> str:
    """Return the name of an npm package, `name` or `@scope/name`, as it is.

    Raises:
        ValueError: It is none, or longer than `NAME_CHARS_MAX`.
    """
    if len(text) > NAME_CHARS_MAX or not _NPM.fullmatch(text):
        raise ValueError(
            f"{text[:40]!r} is not the name of an npm package: a-z, 0-9 and - . _ ~, perhaps after @scope/, at most {NAME_CHARS_MAX}"
        )
    return text


class Packages(Frozen):
    """The names a stage lists, dependencies included; normal forms."""

    pip: tuple[Annotated[str, AfterValidator(pip_name)], ...] = Field((), max_length=PACKAGES_MAX)
    npm: tuple[Annotated[str, AfterValidator(npm_name)], ...] = Field((), max_length=PACKAGES_MAX)

    def __bool__(self) -> bool:
        """Return whether any is listed."""
        return bool(self.pip or self.npm)

    def holds(self, ecosystem: Ecosystem, name: str) -> bool:
        """Return whether a name in its normal form is listed."""
        return name in (self.pip if ecosystem == "pip" else self.npm)


class Fetched(Frozen):
    """What an attempt fetched through the package routes, and what it was refused; counted by the gateway."""

    requests: int = Field(0, ge=0)
    bytes: int = Field(0, ge=0)
    """Of replies, from the cache or not."""
    files: tuple[str, ...] = Field((), max_length=200)
    """`pip six-1.17.0-py2.py3-none-any.whl`, in the order they were first asked for."""
    files_dropped: int = Field(0, ge=0)
    """Further ones that are not named."""
    refused: tuple[str, ...] = Field((), max_length=20)
    """One line each: what was asked for, and the rule."""
    refused_dropped: int = Field(0, ge=0)
