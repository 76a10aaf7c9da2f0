"""Python text nobody trusts, parsed within bounds, and the names its scopes bind; it is never imported, compiled or run."""

import ast
import io
import threading
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SOURCE_BYTES_MAX = 512 << 10
NUMBER_BITS_MAX = 8_192

Function = ast.FunctionDef | ast.AsyncFunctionDef
STAR = "*"
_NEWER_FIELDS = ("type_params",)
"""Fields that definitions have from Python 3.12 on."""

# CPython 3.11 counts the depth of a tree it builds for all threads together: two that parse at once fail with a `SystemError` of its
# own. The filter of warnings is the process's, too.
_one_at_a_time = threading.Lock()


class BadSource(ValueError):
    """The text is no Python we would judge; the message says why and is safe to show."""


@dataclass
class Surface:
    """What one module binds, by qualified name, each binding as canonical text in the order it happens.

    Canonical text is `ast.unparse` of the header: no comments, no formatting, no docstrings, no bodies.
    """

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    functions: dict[str, list[Function]] = field(default_factory=lambda: defaultdict(list))
    classes: dict[str, list[ast.ClassDef]] = field(default_factory=lambda: defaultdict(list))
    imports: set[str] = field(default_factory=set)
    """Names that only imports bind."""
    loose: list[ast.stmt] = field(default_factory=list)
    """Statements of a module or class body that are neither definition, import, assignment to a name, nor text."""
    assigns: list[tuple[str, ast.stmt]] = field(default_factory=list)
    """Assignments to names, with the prefix of their scope."""


def parse(data: bytes) -> ast.Module:
    """Return the syntax tree of UTF-8 source.

    Raises:
        BadSource: Too large, another encoding than UTF-8 is declared or used, not Python, or nested too deeply.
    """
    if len(data) > SOURCE_BYTES_MAX:
        raise BadSource(f"{len(data)} bytes; at most {SOURCE_BYTES_MAX} can be judged")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding not in {"utf-8", "utf-8-sig"}:
            # In utf-7 and its like, text that looks like a comment is code.
            raise BadSource(f"declares the encoding {encoding}; only UTF-8 is accepted")
        text = data.decode(encoding)
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in their text is not our warning
            module = ast.parse(text)
    except SyntaxError as error:
        raise BadSource(f"is not Python: {error.msg} (line {error.lineno or 1})") from error
    except (RecursionError, MemoryError) as error:
        raise BadSource("is nested too deeply to be judged") from error
    except UnicodeDecodeError as error:
        raise BadSource("is not UTF-8") from error
    except ValueError as error:
        if isinstance(error, BadSource):
            raise
        raise BadSource(f"is not Python: {error}") from error
    if any(_is_unprintable(node) for node in ast.walk(module)):
        raise BadSource(f"holds a number of more than {NUMBER_BITS_MAX} bits")
    return module


def _is_unprintable(node: ast.AST) -> bool:
    """Return whether `ast.unparse` would fail: Python writes no integer of more than 4,300 digits."""
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value.bit_length() > NUMBER_BITS_MAX


def surface_of(module: ast.Module) -> Surface:
    """Return what a module binds.

    Raises:
        BadSource: Nested too deeply.
    """
    surface = Surface()
    try:
        _collect(module.body, "", surface)
    except RecursionError as error:
        raise BadSource("is nested too deeply to be judged") from error
    return surface


def header(node: Function | ast.ClassDef) -> str:
    """Return the canonical text of a definition without its body."""
    body: list[ast.stmt] = [ast.Expr(ast.Constant(...))]
    bare: Function | ast.ClassDef
    if isinstance(node, ast.ClassDef):
        bare = ast.ClassDef(name=node.name, bases=node.bases, keywords=node.keywords, body=body, decorator_list=node.decorator_list)
    else:
        make = ast.AsyncFunctionDef if isinstance(node, ast.AsyncFunctionDef) else ast.FunctionDef
        bare = make(name=node.name, args=node.args, body=body, decorator_list=node.decorator_list, returns=node.returns)
    for newer in _NEWER_FIELDS:
        if hasattr(node, newer):
            setattr(bare, newer, getattr(node, newer))
    return ast.unparse(ast.copy_location(bare, node)).rsplit(":", 1)[0]


def body_text(node: Function) -> str:
    """Return the canonical text of a function's body without its docstring."""
    return "\n".join(ast.unparse(statement) for statement in without_docstring(node.body))


def without_docstring(body: Sequence[ast.stmt]) -> Sequence[ast.stmt]:
    """Return a body without its leading string."""
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
        return body[1:]
    return body


def is_stub(node: Function) -> bool:
    """Return whether a body is a docstring and at most one of `...`, `pass`, `raise NotImplementedError`."""
    rest = without_docstring(node.body)
    return not rest or (len(rest) == 1 and _is_placeholder(rest[0]))


def dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` for a plain dotted name, None for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def is_type_checking_imports(statement: ast.stmt) -> bool:
    """Return whether a statement is `if TYPE_CHECKING:` over nothing but imports."""
    return (
        isinstance(statement, ast.If)
        and (dotted(statement.test) or "").rsplit(".", 1)[-1] == "TYPE_CHECKING"
        and not statement.orelse
        and all(isinstance(each, ast.Import | ast.ImportFrom) for each in statement.body)
    )


def names_used(nodes: Iterator[ast.AST]) -> set[str]:
    """Return every plain name that appears in the given nodes, string annotations included."""
    used: set[str] = set()
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                used.add(each.id)
            elif isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isidentifier():
                used.add(each.value)
    return used


def _is_placeholder(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and statement.value.value is ...
    if not isinstance(statement, ast.Raise) or statement.cause is not None:
        return False
    raised = statement.exc
    if isinstance(raised, ast.Call):
        if raised.keywords or not all(isinstance(argument, ast.Constant) for argument in raised.args):
            return False
        raised = raised.func
    return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"


def _collect(body: Sequence[ast.stmt], prefix: str, surface: Surface) -> None:
    for statement in without_docstring(body):
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _bind(surface, prefix + statement.name, header(statement))
                surface.functions[prefix + statement.name].append(statement)
                _bind_all(surface, prefix, _walrus_names(_executed(statement)), statement)
            case ast.ClassDef():
                _bind(surface, prefix + statement.name, header(statement))
                surface.classes[prefix + statement.name].append(statement)
                _bind_all(surface, prefix, _walrus_names(_executed(statement)), statement)
                _collect(statement.body, f"{prefix}{statement.name}.", surface)
            case ast.Import() | ast.ImportFrom():
                _bind_import(surface, prefix, statement)
            case ast.If() if is_type_checking_imports(statement):
                _collect(statement.body, prefix, surface)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() if _assigns_names(statement):
                _bind_all(surface, prefix, _stored_names([statement]), statement)
                surface.assigns.append((prefix, statement))
            case ast.Pass():
                pass
            case ast.Expr(value=ast.Constant()):
                pass
            case _:
                surface.loose.append(statement)
                _bind_all(surface, prefix, _stored_names([statement]), statement)


def _bind(surface: Surface, name: str, text: str, *, imported: bool = False) -> None:
    known = name in surface.names
    surface.names[name].append(text)
    if imported and (not known or name in surface.imports):
        surface.imports.add(name)
    else:
        surface.imports.discard(name)


def _bind_all(surface: Surface, prefix: str, names: set[str], statement: ast.stmt) -> None:
    if names:
        text = ast.unparse(statement)
        for name in sorted(names):
            _bind(surface, prefix + name, text)


def _bind_import(surface: Surface, prefix: str, statement: ast.Import | ast.ImportFrom) -> None:
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            origin = "." * statement.level + (statement.module or "")
            _bind(surface, prefix + (alias.asname or alias.name), f"from {origin} import {alias.name}", imported=True)
        elif alias.asname:
            _bind(surface, prefix + alias.asname, f"import {alias.name} as {alias.asname}", imported=True)
        else:
            top = alias.name.split(".")[0]
            if f"import {top}" not in surface.names.get(prefix + top, ()):  # `import a.b` after `import a` binds the same package
                _bind(surface, prefix + top, f"import {top}", imported=True)


def _assigns_names(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return all(
        isinstance(target, ast.Name)
        or (isinstance(target, ast.Tuple | ast.List) and all(isinstance(each, ast.Name) for each in target.elts))
        for target in targets
    )


def _executed(node: Function | ast.ClassDef) -> list[ast.AST]:
    """Return the expressions of a definition that run when it is reached: decorators, defaults, annotations, bases."""
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords]
    return [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]


def _walrus_names(nodes: Sequence[ast.AST]) -> set[str]:
    return {
        each.target.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.NamedExpr) and isinstance(each.target, ast.Name)
    }


def _stored_names(statements: Sequence[ast.AST]) -> set[str]:
    """Return the names that statements of one scope bind, without looking into the bodies of functions and classes."""
    names: set[str] = set()
    pending = list(statements)
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
                pending.extend(_executed(node))
                continue
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names.add(node.id)
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar() if node.name:
                names.add(node.name)
            case ast.MatchMapping() if node.rest:
                names.add(node.rest)
            case ast.Import() | ast.ImportFrom():
                names.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
            case _:
                pass
        pending.extend(ast.iter_child_nodes(node))
    return names
