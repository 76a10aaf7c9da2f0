"""The interface lock: what an interface stage declared, as text that a later tree must still declare; judged by AST alone.

Locked are the symbols an interface added or changed against its base (DECISIONS G7): parameters, defaults, annotations,
decorators, async, bases, class attributes, `__all__`, and the imports their headers mean. A later stage may fill bodies, add
imports, `_private` names and files. What no reading of text can see (a sibling module that patches a class at import) is seen where
the modules are imported (`contract/signatures`, SANDBOX.md §1.7).
"""

import ast
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import PurePosixPath

from pydantic import Field

from sandbox.contract.model import Frozen
from sandbox.contract.python_source import STAR, BadSource, Surface, dotted, is_stub, names_used, parse, surface_of
from sandbox.contract.result import Finding
from sandbox.contract.stub_rules import problems

CHECK_LOCK = "interface-lock"
CHECK_INTERFACE = "interface"
CHECK_STUBS = "implementation"
PYTHON_SUFFIXES = (".py", ".pyi")

_EXTENSIONS = (".so", ".pyd")
_REPLACERS = frozenset({"globals", "exec", "eval"})
"""Calls that can bind a locked name without naming it."""

Read = Callable[[str], bytes | None]
"""Returns a file of the later tree, None if there is none."""


class FileLock(Frozen):
    """What one file declares."""

    symbols: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Every binding of a locked name as canonical text, in order; methods and attributes as `Class.name`."""
    stubs: tuple[str, ...] = ()
    """Locked functions without a body: they have to be filled."""
    owners: tuple[str, ...] = ()
    """Top-level names of locked classes and functions: storing into their attributes replaces what is locked."""
    names: tuple[str, ...] = ()
    """Every name the interface's version binds, so that a new one is known."""
    meant: tuple[str, ...] = ()
    """Names that locked headers use, so that nothing gives them another meaning."""
    loose: tuple[str, ...] = ()
    """Digests of statements and calls that were there already and could replace a name."""


class InterfaceLock(Frozen):
    """Locks by path; equal interfaces give equal locks."""

    version: int = 1
    files: dict[str, FileLock] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Return the digest of the lock."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def as_text(self) -> str:
        """Return the locked headers for a reader, file by file."""
        parts: list[str] = []
        for path, locked in sorted(self.files.items()):
            lines = [
                f"    {line}"
                for name in sorted(locked.symbols)
                for text in locked.symbols[name]
                for line in [f"# {name}", *text.splitlines()]
            ]
            parts.append("\n".join([f"{path}:", *lines]))
        return "\n\n".join(parts) + "\n" if parts else ""


def lock_interface(versions: Mapping[str, tuple[bytes | None, bytes | None]]) -> tuple[InterfaceLock, list[Finding]]:
    """Return the lock of an interface and what is wrong with it.

    Args:
        versions: For every Python path that differs: its bytes at the base (None: new) and in the interface (None: deleted).
    """
    files: dict[str, FileLock] = {}
    findings: list[Finding] = []
    for path, (old, new) in sorted(versions.items()):
        if new is None:
            findings.append(_finding(CHECK_INTERFACE, path, "an interface deletes nothing; leave the file, or let implement remove it"))
            continue
        try:
            module = parse(new)
            surface, base = surface_of(module), _base_surface(old)
            files[path] = _locked(base, surface, module)
            found = list(problems(base, surface))
        except BadSource as error:
            findings.append(_finding(CHECK_INTERFACE, path, str(error)))
        except RecursionError:
            findings.append(_finding(CHECK_INTERFACE, path, "is nested too deeply to be judged"))
        else:
            findings += [_finding(CHECK_INTERFACE, path, f"line {line}: {message}") for line, message in found]
    return InterfaceLock(files=files), findings


def drift(lock: InterfaceLock, read: Read, paths: Collection[str]) -> list[Finding]:
    """Return how a later tree differs from the lock.

    Args:
        lock: Of the interface the later tree was built on.
        read: Reads the later tree.
        paths: Every path of the later tree.
    """
    findings: list[Finding] = []
    for path, locked in sorted(lock.files.items()):
        data = read(path)
        if data is None:
            findings.append(_finding(CHECK_LOCK, path, "the file is locked and gone; put it back"))
            continue
        try:
            module = parse(data)
            surface = surface_of(module)
            found = [*_changed(locked, surface), *_new_names(locked, surface), *_replacements(locked, module, surface)]
        except BadSource as error:
            findings.append(_finding(CHECK_LOCK, path, str(error)))
        except RecursionError:
            findings.append(_finding(CHECK_LOCK, path, "is nested too deeply to be judged"))
        else:
            findings += [_finding(CHECK_LOCK, path, message) for message in found]
        findings += [_finding(CHECK_LOCK, shadow, f"would be imported instead of the locked {path}") for shadow in _shadows(path, paths)]
    return findings


def stubs_left(lock: InterfaceLock, read: Read) -> list[Finding]:
    """Return the locked functions of a later tree that still have no body."""
    findings: list[Finding] = []
    for path, locked in sorted(lock.files.items()):
        data = read(path)
        if data is None or path.endswith(".pyi"):
            continue
        try:
            surface = surface_of(parse(data))
        except BadSource:
            continue  # drift says so
        findings += [_finding(CHECK_STUBS, path, f"`{name}` still has no body") for name in locked.stubs if _is_left(name, surface)]
    return findings


def _base_surface(old: bytes | None) -> Surface:
    """Return what the base declared; a base that is no Python declared nothing."""
    try:
        return surface_of(parse(old)) if old is not None else Surface()
    except BadSource:
        return Surface()


def _locked(base: Surface, new: Surface, module: ast.Module) -> FileLock:
    changed = {name for name, texts in new.names.items() if texts != base.names.get(name)}
    emptied = {
        name for name, nodes in new.functions.items() if any(map(is_stub, nodes)) and not any(map(is_stub, base.functions.get(name, [])))
    }
    locked = changed | emptied | ({"__all__"} & set(new.names))
    for name in tuple(locked):
        parts = name.split(".")
        locked |= {".".join(parts[:end]) for end in range(1, len(parts))}
    meant = _meant(new, locked)
    locked |= meant & set(new.names)
    return FileLock(
        symbols={name: tuple(new.names[name]) for name in sorted(locked) if name in new.names},
        stubs=tuple(sorted(name for name in locked if any(map(is_stub, new.functions.get(name, []))))),
        owners=tuple(sorted({name.split(".")[0] for name in locked if name in new.functions or name in new.classes})),
        names=tuple(sorted(new.names)),
        meant=tuple(sorted(meant)),
        loose=tuple(sorted(_digest(text) for text in _loose_texts(module, new))),
    )


def _meant(surface: Surface, locked: Collection[str]) -> set[str]:
    """Return the names locked headers and attributes refer to."""
    nodes: list[ast.AST] = []
    for name in locked:
        for function in surface.functions.get(name, []):
            nodes += [function.args, *function.decorator_list, *([function.returns] if function.returns else [])]
        for class_ in surface.classes.get(name, []):
            nodes += [*class_.bases, *class_.keywords, *class_.decorator_list]
    nodes += [statement for prefix, statement in surface.assigns if any(f"{prefix}{each}" in locked for each in _targets(statement))]
    return names_used(iter(nodes))


def _targets(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _changed(locked: FileLock, later: Surface) -> Iterator[str]:
    for name, texts in locked.symbols.items():
        now = tuple(later.names.get(name, ()))
        if now == texts:
            continue
        if not now:
            yield f"`{name}` is locked and gone; it was `{_clip(texts[0])}`"
        elif len(now) > len(texts):
            yield f"`{name}` is locked and bound again by `{_clip(next((text for text in now if text not in texts), now[-1]))}`"
        else:
            before, after = next((pair for pair in zip(texts, now, strict=False) if pair[0] != pair[1]), (texts[-1], "nothing"))
            yield f"`{name}` is locked as `{_clip(before)}`, not `{_clip(after)}`"


def _new_names(locked: FileLock, later: Surface) -> Iterator[str]:
    known = set(locked.names)
    for name in later.names:
        if name in known:
            continue
        last = name.rsplit(".", 1)[-1]
        if last == STAR:
            yield f"`{later.names[name][0]}` can replace a locked name; import what you need by name"
        elif name in locked.meant:
            yield f"`{_clip(later.names[name][0])}` gives `{name}` another meaning in a locked signature"
        elif name not in later.imports and not any(map(_is_private, name.split("."))) and not _is_harmless(name, later):
            yield f"`{name}` is a new public name in a locked file; begin it with an underscore or put it into a new file"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _is_harmless(name: str, later: Surface) -> bool:
    """Return whether a new special method changes nothing for a caller.

    `__post_init__` is a hook of dataclasses; `__init__(self)` of a class without bases and decorators is what object gives it.
    """
    owner, _, last = name.rpartition(".")
    if last == "__post_init__":
        return True
    classes = later.classes.get(owner, [])
    bare = bool(classes) and not any(class_.bases or class_.keywords or class_.decorator_list for class_ in classes)
    return bare and last == "__init__" and set(later.names[name]) <= {"def __init__(self)", "def __init__(self) -> None"}


def _replacements(locked: FileLock, module: ast.Module, later: Surface) -> Iterator[str]:
    """Yield what could replace a locked name without binding it by name."""
    known = list(locked.loose)
    for statement in later.loose:
        digest = _digest(ast.unparse(statement))
        if digest in known:
            known.remove(digest)
        else:
            first_line = ast.unparse(statement).splitlines()[0]
            yield f"`{_clip(first_line)}` runs when the locked file is imported; put it into a function or a new file"
    owners = set(locked.owners)
    for node in ast.walk(module):
        text = _replacing(node, owners)
        if text is not None and _digest(text) not in locked.loose:
            yield f"`{_clip(text)}` can replace a locked name"


def _replacing(node: ast.AST, owners: set[str]) -> str | None:
    match node:
        case ast.Global() if owners & set(node.names):
            return ast.unparse(node)
        case ast.Attribute(ctx=ast.Store() | ast.Del()) if not _is_private(node.attr) and (dotted(node) or "").split(".")[0] in owners:
            return ast.unparse(node)
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[first, *_]) if (dotted(first) or "").split(".")[0] in owners:
            return ast.unparse(node)
        case ast.Call(func=ast.Name(id=name)) if name in _REPLACERS:
            return ast.unparse(node)
        case ast.Attribute(attr="modules", value=ast.Name(id="sys")):
            return "sys.modules"
        case _:
            return None


def _loose_texts(module: ast.Module, surface: Surface) -> Iterator[str]:
    for statement in surface.loose:
        yield ast.unparse(statement)
    owners = {name.split(".")[0] for name in surface.names}
    for node in ast.walk(module):
        text = _replacing(node, owners)
        if text is not None:
            yield text


def _is_left(name: str, surface: Surface) -> bool:
    return any(is_stub(node) and not _may_stay_empty(name, node, surface) for node in surface.functions.get(name, []))


def _may_stay_empty(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, surface: Surface) -> bool:
    """Return whether a body is empty by nature: abstract, an overload, or a protocol's."""
    decorators = {(dotted(each) or "").rsplit(".", 1)[-1] for each in node.decorator_list}
    if decorators & {"abstractmethod", "abstractproperty", "overload"}:
        return True
    owners = surface.classes.get(name.rpartition(".")[0], [])
    bases = [base.value if isinstance(base, ast.Subscript) else base for owner in owners for base in owner.bases]
    return any((dotted(base) or "").rsplit(".", 1)[-1] == "Protocol" for base in bases)


def _shadows(path: str, paths: Collection[str]) -> Iterator[str]:
    """Yield paths that the import system prefers to a locked module: a package, or a compiled module, of its name."""
    module = PurePosixPath(path)
    if module.suffix != ".py" or module.stem == "__init__":
        return
    package = str(module.with_suffix("") / "__init__.")
    compiled = f"{module.with_suffix('')}."
    for other in sorted(paths):
        if other.startswith(package) or (other.startswith(compiled) and other.endswith(_EXTENSIONS)):
            yield other


def _finding(check: str, path: str, message: str) -> Finding:
    return Finding(check=check, message=f"{path}: {message}"[:8_000], path=path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:157] + "…"
