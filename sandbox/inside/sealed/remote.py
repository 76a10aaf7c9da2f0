"""The product as tests see it: modules, functions and objects that live in the other process; not how they are found (`oracle`).

A value that came is compared by *our* `==`. An object that is no plain value is never compared and has no truth: the
product would be the one to answer.
"""

from __future__ import annotations

import builtins
import os
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .channel import Broken, Channel
from .values import Malformed, decode, encode

CALLBACKS_MAX = 1_000_000


class NotSealed(TypeError):
    """A test does with the product what cannot be done across processes; run such tests with `sealed = false`."""


class ProductFault(RuntimeError):
    """The product's process ended, or spoke nonsense."""


class Product:
    """The connection to the product's process."""

    def __init__(self, channel: Channel, last_words: Callable[[], str]) -> None:
        self._channel = channel
        self._last_words = last_words
        self._lock = threading.RLock()
        self._told: dict[str, Any] = {}
        self._callbacks: list[Callable[..., Any]] = []
        self._exceptions: dict[tuple[str, str], type[BaseException]] = {}

    def load(self, name: str, path: list[str]) -> int:
        """Import a module over there, anew if it was asked for before, and return its number."""
        reply = self._ask({"do": "import", "name": name, "path": path})
        tagged = reply.get("value")
        if type(tagged) is not list or len(tagged) < 2 or type(tagged[1]) is not int:
            raise ProductFault("the product's process spoke nonsense: no module")
        return int(tagged[1])

    def get(self, number: int, name: str) -> Any:
        """Return an attribute of an object."""
        return self._decoded(self._ask({"do": "get", "object": number, "name": name}).get("value"))

    def call(self, number: int, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call an object, or its method `name`; lists, dicts and sets it changed in place are changed here too."""
        reply = self._ask(
            {
                "do": "call",
                "object": number,
                "name": name,
                "arguments": [self._encoded(each) for each in arguments],
                "named": {key: self._encoded(each) for key, each in named.items()},
            }
        )
        changed = reply.get("changed", {})
        for at, each in enumerate(arguments):
            if type(changed) is dict and str(at) in changed:
                _replace(each, self._decoded(changed[str(at)]))
        return self._decoded(reply.get("value"))

    def wait(self, number: int) -> Any:
        """Return what an awaitable of the product comes to."""
        return self._decoded(self._ask({"do": "await", "object": number}).get("value"))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                self._channel.send({**request, **self._news()})
                reply = self._channel.receive()
                while "callback" in reply:
                    self._channel.send(self._called_back(reply))
                    reply = self._channel.receive()
            except Broken as error:
                self._channel.close()  # what comes after nonsense is nonsense
                raise ProductFault(f"{error}; it said: {self._last_words()}") from None
        if "error" in reply:
            raise self._raised(reply)
        return reply

    def _news(self) -> dict[str, Any]:
        """Return what a test changed of its process since the last request."""
        now: dict[str, Any] = {"environment": dict(os.environ), "directory": str(Path.cwd())}
        news = {key: value for key, value in now.items() if self._told.get(key) != value}
        self._told = now
        return news

    def _called_back(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._callbacks[message["callback"]]
            arguments = [self._decoded(each) for each in message["arguments"]]
            named = {str(key): self._decoded(each) for key, each in message["named"].items()}
            return {"value": self._encoded(function(*arguments, **named))}
        except Exception as error:  # noqa: BLE001 - it belongs to the test, which gets it back as the product's
            return {"error": f"{type(error).__name__}: {error}"[:2_000]}

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._tagged)

    def _tagged(self, value: Any) -> list[Any]:
        number = getattr(value, "_andon_number", None) if isinstance(value, (Remote, RemoteModule)) else None
        if number is not None:
            return ["object", number]
        if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
            if len(self._callbacks) >= CALLBACKS_MAX:
                raise NotSealed(f"more than {CALLBACKS_MAX} functions were handed to the product")
            self._callbacks.append(value)
            return ["callback", len(self._callbacks) - 1]
        raise NotSealed(
            f"a {type(value).__qualname__} cannot be handed to a product in another process; hand it plain values or a function"
        )

    def _decoded(self, data: Any) -> Any:
        try:
            return decode(data, self._untagged)
        except Malformed as error:
            raise ProductFault(f"the product's process spoke nonsense: {error}") from None

    def _untagged(self, tag: str, data: list[Any]) -> Any:
        if len(data) < 3 or type(data[1]) is not int:
            raise Malformed(f"{tag!r} without a number")
        if tag == "exception":
            return self._exception(data[2])
        if tag in {"object", "module", "awaitable"}:
            return (RemoteAwaitable if tag == "awaitable" else Remote)(self, data[1], str(data[2]))
        raise Malformed(f"unknown value {tag!r}")

    def _raised(self, reply: dict[str, Any]) -> BaseException:
        kind = self._exception(reply.get("error"))
        arguments = self._decoded(reply.get("arguments"))
        try:
            error = kind(*arguments) if type(arguments) is tuple else kind()
        except Exception:  # noqa: BLE001 - a built-in one that wants other arguments
            error = ProductFault(f"{kind.__name__}: {reply.get('text')}")
        if isinstance(error, _Foreign):
            error._andon = (self, reply.get("object"), str(reply.get("text")))
        error.add_note(f"in the product's process:\n{reply.get('traceback')}")
        return error

    def _exception(self, lineage: Any) -> type[BaseException]:
        """Return the built-in exception, or one of our own making with the product's name and the nearest built-in base."""
        if type(lineage) is not list or not lineage or not all(type(one) is list and len(one) == 2 for one in lineage):
            raise ProductFault("the product's process spoke nonsense: an exception without a type")
        module, name = str(lineage[0][0]), str(lineage[0][1])
        if module == "builtins":
            return _builtin(name)
        if (module, name) not in self._exceptions:
            base = self._exception(lineage[1:]) if len(lineage) > 1 else Exception
            bases = (base,) if issubclass(base, _Foreign) else (_Foreign, base)
            self._exceptions[module, name] = type(name.rpartition(".")[2], bases, {"__module__": module})
        return self._exceptions[module, name]


class _Foreign:
    """What exceptions of the product's own types have in common here."""

    _andon: tuple[Product, Any, str] | None = None

    def __str__(self) -> str:
        return self._andon[2] if self._andon else super().__str__()

    def __getattr__(self, name: str) -> Any:
        if self._andon is None or type(self._andon[1]) is not int or name.startswith("__"):
            raise AttributeError(name)
        return self._andon[0].get(self._andon[1], name)


class Remote:
    """An object of the product that is no plain value: called and looked into over there."""

    def __init__(self, product: Product, number: int, kind: str) -> None:
        object.__setattr__(self, "_andon_product", product)
        object.__setattr__(self, "_andon_number", number)
        object.__setattr__(self, "_andon_kind", kind)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # pytest and the interpreter look for many
        return self._andon_product.get(self._andon_number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse(f"{name} of an object of the product", "set")

    def __delattr__(self, name: str) -> None:
        _refuse(f"{name} of an object of the product", "deleted")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it over there."""
        return self._andon_product.call(self._andon_number, "", arguments, named)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return _refuse(f"an object of the product ({self._andon_kind}); compare its plain values", "compared")

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return _refuse(f"an object of the product ({self._andon_kind}); look at its plain values", "asked for its truth")

    def __repr__(self) -> str:
        return f"<{self._andon_kind} of the product>"

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return self._andon_product.call(self._andon_number, "__exit__", (None, None, None), {})


def _refuse(what: str, done: str) -> NoReturn:
    raise NotSealed(f"{what} cannot be {done} across processes")


def _special(name: str) -> Callable[..., Any]:
    def call(self: Remote, *arguments: Any) -> Any:
        try:
            return self._andon_product.call(self._andon_number, name, arguments, {})
        except AttributeError as error:
            raise TypeError(f"{error}") from error  # as the interpreter says it of an object that lacks the method

    return call


for _name in ("len", "getitem", "iter", "next", "contains", "str", "enter", "int", "float", "index"):
    setattr(Remote, f"__{_name}__", _special(f"__{_name}__"))


class RemoteAwaitable(Remote):
    """A coroutine of the product: awaited here, run over there."""

    def __await__(self) -> Any:
        return self._andon_product.wait(self._andon_number)
        yield


class RemoteModule(types.ModuleType):
    """A module of the product; the import system may set what it sets, a test may not."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in {"__all__", "__version__"}:
            raise AttributeError(name)
        product, number = self.__dict__["_andon_product"], self.__dict__["_andon_number"]
        return product.get(number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not isinstance(value, types.ModuleType):
            _refuse(f"{name} of the product's module {self.__name__}", "replaced")
        super().__setattr__(name, value)


def _replace(old: Any, new: Any) -> None:
    """Give a list, dict or set the content it got over there."""
    if type(old) is list and type(new) is list:
        old[:] = new
    elif type(old) in (dict, set) and type(new) is type(old):
        old.clear()
        old.update(new)


def _builtin(name: str) -> type[BaseException]:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and (issubclass(kind, Exception) or kind is SystemExit):
        return kind
    return RuntimeError
