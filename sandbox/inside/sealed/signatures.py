"""Imports modules of the product and tells what they declare; run by the *user's* Python, with the product in the same process.

So that the product cannot answer for us, this file's names are in no module, it uses copies of built-in functions and C functions it
bound before, it is nowhere on the stack while the product is imported, it looks at objects without running any code of theirs, and
the answer is signed with a key that is gone. Only an audit hook holds it, which nobody can get at. What remains is native code.
"""

from __future__ import annotations

import signal
import sys
import types
import typing
from gc import disable as disable_collector
from hashlib import blake2b
from json import encoder
from os import _exit, write
from sys import _getframe, setswitchinterval
from typing import Any

NAMES_MAX = 2_000
MEMBERS_MAX = 500
DEPTH_MAX = 6
TEXT_CHARS_MAX = 300

_REFUSED = frozenset(
    {
        "gc.get_objects",
        "gc.get_referrers",
        "gc.get_referents",
        "sys._current_frames",
        "sys._current_exceptions",
        "sys.settrace",
        "sys.setprofile",
        "sys.monitoring.register_callback",
        "sys.addaudithook",
    }
)
"""Audit events of what nobody needs to be imported, and what would find this code or hear of its work."""
_SKIPPED = frozenset({"__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__slots__", "__firstlineno__"})
_COROUTINE = 0x80 | 0x100 | 0x200
_HAS_REST, _HAS_NAMED_REST = 0x04, 0x08
_PR_SET_DUMPABLE = 4
_READS_ANNOTATIONS = sys.version_info < (3, 14)
"""From then on they are code of the product, run when somebody looks."""

# Looking at an object through its type's own C descriptors runs no code of the object's.
_code = types.FunctionType.__dict__["__code__"].__get__
_defaults = types.FunctionType.__dict__["__defaults__"].__get__
_named_defaults = types.FunctionType.__dict__["__kwdefaults__"].__get__
_annotations = types.FunctionType.__dict__["__annotations__"].__get__  # noqa: RUF063 - of the type, not of a function
_mro = type.__dict__["__mro__"].__get__
_bases = type.__dict__["__bases__"].__get__
_class_dict = type.__dict__["__dict__"].__get__
_qualname = type.__dict__["__qualname__"].__get__
_module_of = type.__dict__["__module__"].__get__
_module_dict = vars(types.ModuleType)["__dict__"].__get__
_held_static = staticmethod.__dict__["__func__"].__get__
_held_class = classmethod.__dict__["__func__"].__get__
_property = tuple(property.__dict__[name].__get__ for name in ("fget", "fset", "fdel"))
_alias = tuple(types.GenericAlias.__dict__[name].__get__ for name in ("__origin__", "__args__"))
_union = types.UnionType.__dict__["__args__"].__get__ if hasattr(types, "UnionType") else None
_special_name = typing._SpecialForm.__dict__["_name"].__get__
_of_typing = tuple(kind for kind in vars(typing).values() if isinstance(kind, type) and kind.__module__ == "typing")
_plain = (bool, int, float, str, bytes)
_get_attribute = types.GetSetDescriptorType.__get__
_signals = tuple(int(number) for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP))
_set_signal = sys.modules["_signal"].signal
_ignore = int(signal.SIG_IGN)
_thread_id = sys.modules["_thread"].get_ident
_main_thread = _thread_id()


END = "andon.signatures.end"
"""The audit event that asks for the answer."""


def begin(asked: dict[str, Any], answer: int) -> tuple[list[str], list[list[str]]]:
    """Arrange for the answer; return the names to import and a list for what went wrong with them.

    Args:
        asked: `key` in hex, `path` to look for modules first, `names`, `locked` with path, file and name of each, `end`, the line of
            the caller's caller that raises `END`.
        answer: Descriptor of a file: a signature of 64 hex digits goes there, then JSON.
    """
    signature = blake2b(key=bytes.fromhex(asked.pop("key")), digest_size=32)
    as_json = vars(encoder)["c_make_encoder"]({}, _refuse, encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    failures: list[list[str]] = []
    main, modules = _getframe(2).f_code, sys.modules

    def heard(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in _REFUSED:
            raise RuntimeError(f"{event} is refused while signatures are read")
        if event == END and _is_called_by(main, asked["end"]):
            _answer({"modules": _modules(modules, asked["locked"]), "failed": _plain_failures(failures)}, as_json, signature, answer)

    _hide()
    sys.path[:0] = asked["path"]
    sys.addaudithook(heard)
    return asked["names"], failures


def _hide() -> None:
    """Make this process non-dumpable, so that neither it nor another opens its memory as a file."""
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _is_called_by(main: types.CodeType, line: int) -> bool:
    """Return whether the end is where it should be: the product could raise the event too, and change its mind after."""
    for number in _signals:
        _set_signal(number, _ignore)
    disable_collector()
    setswitchinterval(1_000_000.0)
    frame = _getframe(2)
    return frame.f_code is main and frame.f_lineno == line and frame.f_back is None and _thread_id() == _main_thread


def _answer(told: dict[str, Any], as_json: Any, signature: Any, answer: int) -> None:
    """Answer and end the process, before anything that the product left for its end."""
    data = "".join(as_json(told, 0)).encode("ascii")
    signature.update(data)
    out = signature.hexdigest().encode("ascii") + data
    while out:
        out = out[write(answer, out) :]
    _exit(0)


def _modules(modules: dict[str, Any], locked: list[list[str]]) -> dict[str, Any]:
    return {path: _module(modules, file, name) for path, file, name in locked}


def _plain_failures(failures: list[list[str]]) -> dict[str, str]:
    found = {}
    for each in failures[:NAMES_MAX]:
        if type(each) is list and len(each) == 2:
            found[_text(each[0])] = _text(each[1])
    return found


def _refuse(_value: Any) -> Any:
    raise TypeError("not plain")


def _module(modules: dict[str, Any], file: str, name: str) -> dict[str, Any]:
    module = _looked_up(modules, name)
    if module is None:
        return {"problem": "could not be imported"}
    if type(module) is not types.ModuleType:
        return {"problem": f"is no module after its import, but a {_type_name(type(module))}"}
    own = _module_dict(module)
    found: dict[str, Any] = {}
    came_from = ""
    for key, value in own.items():
        if type(key) is not str:
            return {"problem": "holds a name that is no text"}
        if key == "__file__":
            came_from = _text(value)
        if key[:1] != "_" and type(value) is not types.ModuleType and len(found) < NAMES_MAX:
            found[key] = shape_of(value, name)
    if came_from != file:
        return {"problem": f"is imported from {came_from or 'nowhere'}"}
    return {"names": found}


def _looked_up(found: Any, name: str) -> Any:
    """Return what a dict holds for a name, without comparing it with keys that are not exactly text."""
    for key, value in found.items():
        if type(key) is str and key == name:
            return value
    return None


def shape_of(value: Any, home: str, depth: int = 0) -> dict[str, Any]:
    """Return the shape of a value, as `sandbox.contract.signatures` has it; no code of the value runs.

    Args:
        value: Anything.
        home: Name of the module it is read in: classes of others are not looked into.
        depth: Of what it is in.
    """
    kind = type(value)
    if depth > DEPTH_MAX:
        return {"kind": "value", "type": "nested too deeply"}
    if kind is types.FunctionType:
        return _function(value, home, depth)
    if kind is staticmethod:
        return {"kind": "static method", "inner": [shape_of(_held_static(value), home, depth + 1)]}
    if kind is classmethod:
        return {"kind": "class method", "inner": [shape_of(_held_class(value), home, depth + 1)]}
    if kind is property:
        return {"kind": "property", "inner": [_accessor(get(value), home, depth) for get in _property]}
    if issubclass(kind, type):
        return _class(value, home, depth)
    return _object(value, kind, home, depth)


def _accessor(value: Any, home: str, depth: int) -> dict[str, Any]:
    return {"kind": "value", "type": "NoneType"} if value is None else shape_of(value, home, depth + 1)


def _function(value: Any, home: str, depth: int) -> dict[str, Any]:
    code, own = _code(value), _instance_dict(value)
    told = {
        "kind": "function",
        "is_async": bool(code.co_flags & _COROUTINE),
        "parameters": _parameters(value, code),
        "claims": _claims(own),
        "returns": _annotated(value).get("return", ""),
    }
    return _with_wrapped(told, own, home, depth)


def _parameters(value: Any, code: Any) -> list[dict[str, str]]:
    names, given = code.co_varnames, code.co_argcount
    annotated = _annotated(value)
    kinds = [(name, "positional-only" if at < code.co_posonlyargcount else "positional") for at, name in enumerate(names[:given])]
    named = [(name, "keyword-only") for name in names[given : given + code.co_kwonlyargcount]]
    at = given + code.co_kwonlyargcount
    if code.co_flags & _HAS_REST:
        kinds.append((names[at], "var-positional"))
        at += 1
    if code.co_flags & _HAS_NAMED_REST:
        named.append((names[at], "var-keyword"))
    defaults = _default_texts(value, names[:given])
    return [
        {"name": name, "kind": kind, "default": defaults.get(name, ""), "annotation": annotated.get(name, "")}
        for name, kind in [*kinds, *named]
    ]


def _default_texts(value: Any, positional: tuple[str, ...]) -> dict[str, str]:
    given, named = _defaults(value), _named_defaults(value)
    if given is not None and type(given) is not tuple:
        return dict.fromkeys(positional, "unusual")
    texts = {name: _value_text(one) for name, one in zip(positional[len(positional) - len(given or ()) :], given or ())}  # noqa: B905 - 3.9
    if type(named) is dict:
        texts.update({key: _value_text(one) for key, one in named.items() if type(key) is str})
    return texts


def _value_text(value: Any) -> str:
    kind = type(value)
    if kind is int and value.bit_length() > 64:
        return "int"
    if value is None or _is_one(kind, _plain):
        return repr(value)[:TEXT_CHARS_MAX]
    return _type_name(kind)


def _annotated(value: Any) -> dict[str, str]:
    found = _annotations(value) if _READS_ANNOTATIONS else None
    if type(found) is not dict:
        return {}
    return {key: _annotation(one, 0)[:TEXT_CHARS_MAX] for key, one in found.items() if type(key) is str}


def _annotation(value: Any, depth: int) -> str:
    kind = type(value)
    if depth > DEPTH_MAX:
        return "…"
    if kind is str:
        return value  # type: ignore[no-any-return]  # mypy does not follow the test
    if value is None or value is ... or kind is bool or (kind is int and value.bit_length() <= 64) or kind is bytes:
        return repr(value)
    if kind is tuple or kind is list:
        return f"[{_joined(value, depth)}]"
    if issubclass(kind, type):
        return _type_name(value)
    if issubclass(kind, types.GenericAlias):
        origin, arguments = (get(value) for get in _alias)
        return f"{_annotation(origin, depth + 1)}[{_joined(arguments, depth)}]"
    if _union is not None and kind is types.UnionType:
        return _joined(_union(value), depth, " | ")
    return _of_typing_text(value, kind, depth)


def _of_typing_text(value: Any, kind: type, depth: int) -> str:
    if kind is typing._SpecialForm:
        return _text(_special_name(value))
    if not _is_one(kind, _of_typing):
        return _type_name(kind)
    own = _instance_dict(value)
    name = _text(own.get("_name")) or _text(own.get("__name__")) or _text(own.get("__forward_arg__"))
    origin, arguments = own.get("__origin__"), own.get("__args__")
    head = name or (_annotation(origin, depth + 1) if origin is not None else _type_name(kind))
    return f"{head}[{_joined(arguments, depth)}]" if type(arguments) is tuple else head


def _joined(values: Any, depth: int, between: str = ", ") -> str:
    return between.join([_annotation(each, depth + 1) for each in values[:50]]) if type(values) is tuple or type(values) is list else "…"


def _class(value: Any, home: str, depth: int) -> dict[str, Any]:
    own = _class_dict(value)
    bases = [_type_name(each) for each in _bases(value)]
    if type(value) is not type:
        bases.append(f"metaclass={_type_name(type(value))}")
    told: dict[str, Any] = {"kind": "class", "type": _type_name(value), "bases": bases}
    if _text(_module_of(value)) != home:
        return told
    members: dict[str, Any] = {}
    for key, each in own.items():
        if type(key) is str and key not in _SKIPPED and (key[:1] != "_" or _is_special(key, each)) and len(members) < MEMBERS_MAX:
            members[key] = shape_of(each, home, depth + 1)
    for key in ("__init__", "__new__"):
        found = _inherited(value, key)
        if key not in members and found is not None:
            members[key] = shape_of(found, home, depth + 1)
    told["members"] = members
    told["claims"] = _claims(own)
    return told


def _is_special(key: str, value: Any) -> bool:
    return key[:2] == "__" and key[-2:] == "__" and _is_one(type(value), (types.FunctionType, property, staticmethod, classmethod))


def _inherited(kind: type, name: str) -> Any:
    """Return what Python code of a class or its bases binds to a name."""
    for each in _mro(kind):
        value = _looked_up(_class_dict(each), name)
        if value is not None:
            return value if type(value) is types.FunctionType or type(value) is staticmethod else None
    return None


def _object(value: Any, kind: type, home: str, depth: int) -> dict[str, Any]:
    own = _instance_dict(value)
    call = _inherited(kind, "__call__")
    told: dict[str, Any] = {"kind": "value", "type": _type_name(kind)}
    if call is not None or _is_one(kind, (types.BuiltinFunctionType, types.MethodType)) or "__wrapped__" in own:
        told = {"kind": "object", "type": _type_name(kind), "claims": _claims(own)}
    if call is not None and type(call) is types.FunctionType:
        told["parameters"] = _parameters(call, _code(call))
    return _with_wrapped(told, own, home, depth)


def _with_wrapped(told: dict[str, Any], own: dict[str, Any], home: str, depth: int) -> dict[str, Any]:
    if "__wrapped__" in own:
        told["inner"] = [shape_of(own["__wrapped__"], home, depth + 1)]
    return told


def _claims(own: Any) -> str:
    """Return the type of a `__signature__`, which is believed by whoever asks and need not be true; empty if there is none."""
    value = _looked_up(own, "__signature__")
    return _type_name(type(value)) if value is not None else ""


def _instance_dict(value: Any) -> dict[str, Any]:
    """Return a plain copy of an object's own attributes."""
    for each in _mro(type(value)):
        descriptor = _looked_up(_class_dict(each), "__dict__")
        if descriptor is not None:
            own = _get_attribute(descriptor, value, type(value)) if type(descriptor) is types.GetSetDescriptorType else None
            return {name: one for name, one in own.items() if type(name) is str} if type(own) is dict else {}
    return {}


def _is_one(kind: type, kinds: tuple[type, ...]) -> bool:
    """Return whether a type is one of several, without asking a metaclass whether it is equal."""
    return any(kind is each for each in kinds)


def _type_name(kind: type) -> str:
    module = _text(_module_of(kind))
    return _text(_qualname(kind)) if module == "builtins" else f"{module}.{_text(_qualname(kind))}"


def _text(value: Any) -> str:
    return str.__str__(value)[:TEXT_CHARS_MAX] if issubclass(type(value), str) else ""
