"""What a Python module declares when it is imported, as a process in the sandbox read it; not whether that is right (`gates/signatures`).

The text of a locked interface is compared on the host (`interface_lock`). What no text shows, because another module changes it at
import, is read here: kinds, parameters and defaults of what is really bound.
"""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from sandbox.contract.model import Frozen

REPORT_BYTES_MAX = 4 << 20
PATHS_MAX = 500
"""Modules of each sort that one check imports."""

SHAPES_DEPTH_MAX = 12
"""Shapes in shapes: what is read is never deeper, and what is forged would be compared and stored by recursion."""

ShapeKind = Literal["function", "class", "property", "static method", "class method", "object", "value"]
ParameterKind = Literal["positional-only", "positional", "var-positional", "keyword-only", "var-keyword"]


class ToImport(Frozen):
    """What one check imports, as paths in the workspace."""

    locked: tuple[str, ...] = Field(min_length=1, max_length=PATHS_MAX)
    """Modules of the locked interfaces: what they declare is read."""
    others: tuple[str, ...] = Field((), max_length=PATHS_MAX)
    """Changed modules, imported after them in a second process: they may change what the locked ones declare."""


class Parameter(Frozen):
    """One parameter of a function."""

    name: str
    kind: ParameterKind
    default: str = ""
    """Its text, or its type's name; empty: it has none."""
    annotation: str = ""


class Shape(Frozen):
    """What a name is bound to."""

    kind: ShapeKind
    type: str = ""
    """Full name of the type of an object or a value; for a class, its own."""
    is_async: bool = False
    parameters: tuple[Parameter, ...] = ()
    """Of a function; of a class, what it is called with, its own self included."""
    returns: str = ""
    claims: str = ""
    """Set if it says of itself what its signature is (`__signature__`), whatever is true."""
    inner: tuple["Shape", ...] = Field((), max_length=8)
    """What it wraps: a decorated function; what a method object holds; how a property is read, written and deleted, in this order."""
    bases: tuple[str, ...] = ()
    members: dict[str, "Shape"] = Field(default_factory=dict)
    """Of a class: what it binds itself, without names that begin with one underscore."""


class ModuleShape(Frozen):
    """What one module declares after its import."""

    problem: str = Field("", max_length=2_000)
    """Why it could not be read."""
    names: dict[str, Shape] = Field(default_factory=dict)


class Reading(Frozen):
    """One process's look at all locked modules, by path."""

    modules: dict[str, ModuleShape] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)
    """Other modules that could not be imported, and why."""


class SignatureReport(Frozen):
    """The report of a check that imports: with the locked modules alone, then with the other changed ones."""

    version: Literal[1] = 1
    alone: Reading
    with_others: Reading | None = None
    """None: there was no other module."""

    @model_validator(mode="after")
    def _is_shallow(self) -> Self:
        shapes = list(self._outermost())
        for _ in range(SHAPES_DEPTH_MAX):
            shapes = [inner for shape in shapes for inner in (*shape.inner, *shape.members.values())]
        if shapes:
            raise ValueError(f"shapes are nested deeper than {SHAPES_DEPTH_MAX}")
        return self

    def _outermost(self) -> Iterator[Shape]:
        for reading in (self.alone, self.with_others):
            for module in reading.modules.values() if reading is not None else ():
                yield from module.names.values()
