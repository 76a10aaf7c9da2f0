"""The product's process: imports what tests ask for and calls it, behind the wall; nothing it says is believed but as a value.

Started by the tests' process with one socket and the policy's path. It serves one request at a time; a test that calls the
product from several threads is served in turn.
"""

from __future__ import annotations

import importlib
import inspect
import os
import socket
import sys
import traceback
from typing import Any

from .channel import Broken, Channel
from .policy import Policy
from .values import Malformed, decode, encode

HANDLES_MAX = 1_000_000
TRACEBACK_CHARS_MAX = 8_000


class Handles:
    """Objects the tests may name by a number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []

    def keep(self, value: Any) -> int:
        """Return the number of an object."""
        if len(self._objects) >= HANDLES_MAX:
            raise RuntimeError(f"the tests hold {HANDLES_MAX} objects of the product")
        self._objects.append(value)
        return len(self._objects) - 1

    def get(self, number: Any) -> Any:
        """Return the object with a number."""
        return self._objects[number]


class Server:
    """Answers requests until the tests' process hangs up."""

    def __init__(self, channel: Channel, own: str) -> None:
        self._own = own
        self._channel = channel
        self._handles = Handles()
        self._imported: set[str] = set()
        self._loop: Any = None

    def serve(self) -> None:
        """Answer every request; the end of the channel is the end."""
        while True:
            try:
                request = self._channel.receive()
            except Broken:
                return
            self._channel.send(self._answer(request))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._take_on(request)
            reply: dict[str, Any] = getattr(self, "_do_" + request["do"])(request)
        except (KeyboardInterrupt, GeneratorExit) as error:
            return self._failure(RuntimeError(f"the product raised {type(error).__name__}"))
        except BaseException as error:  # noqa: BLE001 - whatever the product raises is an answer
            return self._failure(error)
        return reply

    def _take_on(self, request: dict[str, Any]) -> None:
        """Take on what a test may have changed of its process: environment, directory, path of modules."""
        if "environment" in request:
            os.environ.clear()
            os.environ.update(request["environment"])
            os.environ["TMPDIR"] = self._own
        if "directory" in request:
            os.chdir(request["directory"])
        if "path" in request:
            sys.path[:] = request["path"]

    def _do_import(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        if name in self._imported:  # the test imports it anew: so do we
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        self._imported.add(name)
        return {"value": ["module", self._handles.keep(module)]}

    def _do_get(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"value": self._encoded(getattr(self._handles.get(request["object"]), request["name"]))}

    def _do_call(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = [self._decoded(each) for each in request["arguments"]]
        named = {name: self._decoded(each) for name, each in request["named"].items()}
        before = [self._shape(each) for each in arguments]
        target = self._handles.get(request["object"])
        result = (getattr(target, request["name"]) if request["name"] else target)(*arguments, **named)
        changed = {str(at): self._encoded(each) for at, each in enumerate(arguments) if self._shape(each) != before[at]}
        return {"value": self._encoded(result), "changed": changed}

    def _do_await(self, request: dict[str, Any]) -> dict[str, Any]:
        import asyncio  # slow to import, and few products need it

        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def finish() -> Any:
            return await self._handles.get(request["object"])

        return {"value": self._encoded(self._loop.run_until_complete(finish()))}

    def _shape(self, value: Any) -> Any:
        """Return what tells whether a callee changed a list, dict or set in place."""
        return encode(value, lambda other: ["is", id(other)]) if type(value) in (list, dict, set) else None

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._tagged)

    def _tagged(self, value: Any) -> list[Any]:
        if inspect.isclass(value) and issubclass(value, BaseException):
            return ["exception", self._handles.keep(value), _lineage(value)]
        kind = "module" if inspect.ismodule(value) else "awaitable" if inspect.isawaitable(value) else "object"
        return [kind, self._handles.keep(value), f"{type(value).__module__}.{type(value).__qualname__}"]

    def _decoded(self, data: Any) -> Any:
        return decode(data, self._untagged)

    def _untagged(self, tag: str, data: list[Any]) -> Any:
        if tag == "object":
            return self._handles.get(data[1])
        if tag == "callback":
            return self._callback(data[1])
        raise Malformed(f"unknown value {tag!r}")

    def _callback(self, number: int) -> Any:
        def of_the_tests(*arguments: Any, **named: Any) -> Any:
            self._channel.send(
                {
                    "callback": number,
                    "arguments": [self._encoded(each) for each in arguments],
                    "named": {name: self._encoded(each) for name, each in named.items()},
                }
            )
            while True:
                message = self._channel.receive()
                if "do" in message:  # what the callback itself asked of the product
                    self._channel.send(self._answer(message))
                elif "error" in message:
                    raise RuntimeError(f"a function of the tests raised {message['error']}")
                else:
                    return self._decoded(message["value"])

        return of_the_tests

    def _failure(self, error: BaseException) -> dict[str, Any]:
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))[-TRACEBACK_CHARS_MAX:]
        try:
            arguments = self._encoded(tuple(error.args))
        except Exception:  # noqa: BLE001 - arguments that cannot be told are left out
            arguments = ["tuple", []]
        return {
            "error": _lineage(type(error)),
            "object": self._handles.keep(error),
            "arguments": arguments,
            "text": _text(error),
            "traceback": told,
        }


def _lineage(kind: type) -> list[list[str]]:
    return [[each.__module__, each.__qualname__] for each in kind.__mro__ if each is not object][:32]


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TRACEBACK_CHARS_MAX]
    except Exception as broken:  # noqa: BLE001 - the product's own text may break
        return f"<{type(broken).__name__} when it was told>"


def main(descriptor: int, policy_path: str) -> None:
    """Enclose this process and serve on an inherited socket."""
    policy = Policy.load(policy_path)
    policy.enclose()
    sys.pycache_prefix = f"{policy.own}/compiled"
    with socket.socket(fileno=descriptor) as end:
        Server(Channel(end), policy.own).serve()
