"""What an interface may consist of: which statements and values are declarations, and which are code that runs; not what it locks.

This keeps implementations out of the interface stage. It is no wall: whatever runs, runs in a sandbox.
"""

import ast
from collections.abc import Iterator

from sandbox.contract.python_source import Function, Surface, body_text, dotted, is_stub, is_type_checking_imports

_TYPE_MAKERS = frozenset(
    {
        "TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "namedtuple", "NamedTuple", "TypedDict", "Enum", "IntEnum", "StrEnum", "Flag",
        "frozenset", "set", "dict", "list", "tuple", "object", "Decimal", "timedelta", "Path", "PurePosixPath", "MappingProxyType",
        "ConfigDict", "SettingsConfigDict", "TypeAdapter", "Literal", "cast",
    }
)  # fmt: skip
"""Calls that make a constant or a type at module level; in a class body any declarative call is accepted."""
_RUNNERS = frozenset(
    {
        "exec",
        "eval",
        "compile",
        "setattr",
        "delattr",
        "getattr",
        "globals",
        "locals",
        "vars",
        "__import__",
        "open",
        "input",
        "print",
        "breakpoint",
    }
)
_RUNNING_MODULES = frozenset({"os", "sys", "subprocess", "importlib", "builtins", "ctypes", "socket", "shutil", "runpy"})


def problems(base: Surface, new: Surface) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) for everything an interface added or changed that is more than a declaration."""
    yield from _bodies(base, new)
    known = {ast.dump(statement) for statement in base.loose}
    for statement in new.loose:
        if ast.dump(statement) not in known and not is_type_checking_imports(statement):
            yield statement.lineno, f"`{_first_line(statement)}` is code that runs; an interface only declares"
    before = {(prefix, ast.dump(statement)) for prefix, statement in base.assigns}
    for prefix, statement in new.assigns:
        if (prefix, ast.dump(statement)) in before:
            continue
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) else None
        if value is not None and not _is_declaration(value, in_class=bool(prefix)):
            yield statement.lineno, f"`{_first_line(statement)}` computes its value; an interface assigns constants and types only"


def _bodies(base: Surface, new: Surface) -> Iterator[tuple[int, str]]:
    for name, nodes in new.functions.items():
        old = {body_text(node) for node in base.functions.get(name, [])}
        for node in nodes:
            if not is_stub(node) and body_text(node) not in old:
                yield node.lineno, f"`{name}` has a body; leave its docstring and `...`, the implement stage fills it"
            for value in _hidden_code(node):
                yield node.lineno, f"`{name}` runs `{_clip(ast.unparse(value))}` when it is defined; an interface only declares"


def _hidden_code(node: Function) -> Iterator[ast.expr]:
    defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]
    for expression in (*defaults, *node.decorator_list):
        for each in ast.walk(expression):
            if isinstance(each, ast.Lambda | ast.NamedExpr | ast.Await) or (isinstance(each, ast.Call) and _is_runner(each)):
                yield expression
                break


def _is_declaration(value: ast.expr, *, in_class: bool) -> bool:
    """Return whether a value is a constant, a type, or a declarative call on such values."""
    match value:
        case ast.Constant() | ast.Name():
            return True
        case ast.Attribute():
            return dotted(value) is not None
        case ast.Tuple() | ast.List() | ast.Set():
            return all(_is_declaration(each, in_class=in_class) for each in value.elts)
        case ast.Dict():
            return all(key is not None and _is_declaration(key, in_class=in_class) for key in value.keys) and all(
                _is_declaration(each, in_class=in_class) for each in value.values
            )
        case ast.UnaryOp():
            return _is_declaration(value.operand, in_class=in_class)
        case ast.BinOp():
            return _is_declaration(value.left, in_class=in_class) and _is_declaration(value.right, in_class=in_class)
        case ast.Subscript():
            return _is_declaration(value.value, in_class=in_class) and _is_declaration(value.slice, in_class=in_class)
        case ast.Starred():
            return _is_declaration(value.value, in_class=in_class)
        case ast.Call():
            arguments = [*value.args, *(keyword.value for keyword in value.keywords)]
            return _may_be_called(value, in_class=in_class) and all(_is_declaration(each, in_class=in_class) for each in arguments)
        case _:
            return False


def _may_be_called(call: ast.Call, *, in_class: bool) -> bool:
    name = dotted(call.func)
    if name is None or _is_runner(call):
        return False
    return in_class or name.rsplit(".", 1)[-1] in _TYPE_MAKERS


def _is_runner(call: ast.Call) -> bool:
    name = dotted(call.func) or ""
    return name.rsplit(".", 1)[-1] in _RUNNERS or name.split(".")[0] in _RUNNING_MODULES


def _first_line(statement: ast.stmt) -> str:
    return _clip(ast.unparse(statement).splitlines()[0])


def _clip(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "…"
