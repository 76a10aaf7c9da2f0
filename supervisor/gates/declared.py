"""What the locked text of a function says of its parameters, where nothing but the function itself decides them; pure.

A decorator or a second binding can make of a function what its text does not say: those are not listed here.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sandbox.contract.interface_lock import FileLock
from sandbox.contract.python_source import BadSource, dotted, parse
from sandbox.contract.signatures import Parameter, ParameterKind, Shape, ShapeKind

_KINDS: dict[str, ShapeKind] = {"staticmethod": "static method", "classmethod": "class method", "property": "property"}
_ADDS_NOTHING = frozenset({"abstractmethod", "override", "final"})


class Declared(NamedTuple):
    """A function as its text has it."""

    name: str
    """Dotted, from the module on."""
    text: str
    kind: ShapeKind
    is_async: bool
    parameters: tuple[tuple[str, ParameterKind, bool], ...]
    """Name, kind and whether it has a default."""

    def fits(self, shape: Shape) -> bool:
        """Return whether a function has these parameters."""
        return shape.is_async == self.is_async and tuple(map(_told, shape.parameters)) == self.parameters


def declared_functions(locked: FileLock) -> Iterator[Declared]:
    """Yield the public functions and methods of a locked file that their text decides."""
    for name, texts in locked.symbols.items():
        owner = name.rpartition(".")[0]
        if len(texts) != 1 or any(part.startswith("_") for part in name.split(".")) or (owner and not _is_plain(owner, locked)):
            continue
        declared = _declared(name, texts[0])
        if declared is not None:
            yield declared


def _is_plain(owner: str, locked: FileLock) -> bool:
    """Return whether a class, and every class it is in, is bound once and not decorated."""
    parts = owner.split(".")
    texts = [locked.symbols.get(".".join(parts[: end + 1]), ()) for end in range(len(parts))]
    return all(len(each) == 1 and each[0].startswith("class ") for each in texts)


def _declared(name: str, text: str) -> Declared | None:
    try:
        body = parse(f"{text}: ...".encode("utf-8", "surrogatepass")).body
    except BadSource:
        return None
    node = body[0] if len(body) == 1 else None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    kind = _kind(node.decorator_list)
    if kind is None:
        return None
    return Declared(name, text.splitlines()[-1], kind, isinstance(node, ast.AsyncFunctionDef), tuple(_parameters(node.args, name)))


def _kind(decorators: Sequence[ast.expr]) -> ShapeKind | None:
    kinds: list[ShapeKind] = []
    for each in decorators:
        last = (dotted(each) or "?").rsplit(".", 1)[-1]
        if last in _KINDS:
            kinds.append(_KINDS[last])
        elif last not in _ADDS_NOTHING:
            return None
    return None if len(kinds) > 1 else kinds[0] if kinds else "function"


def _parameters(given: ast.arguments, name: str) -> Iterator[tuple[str, ParameterKind, bool]]:
    positional = [*given.posonlyargs, *given.args]
    without = len(positional) - len(given.defaults)
    for at, each in enumerate(positional):
        yield _mangled(each.arg, name), "positional-only" if at < len(given.posonlyargs) else "positional", at >= without
    if given.vararg is not None:
        yield _mangled(given.vararg.arg, name), "var-positional", False
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _mangled(each.arg, name), "keyword-only", default is not None
    if given.kwarg is not None:
        yield _mangled(given.kwarg.arg, name), "var-keyword", False


def _mangled(parameter: str, name: str) -> str:
    """Return what Python makes of a private parameter in a class."""
    owner = name.split(".")[-2].lstrip("_") if "." in name else ""
    return f"_{owner}{parameter}" if owner and parameter.startswith("__") and not parameter.endswith("__") else parameter


def _told(parameter: Parameter) -> tuple[str, ParameterKind, bool]:
    return parameter.name, parameter.kind, bool(parameter.default)
