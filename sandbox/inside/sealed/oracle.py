"""The pytest plugin of the tests' process: the product is never run in it, whatever a test imports or starts.

Loaded with `-p andon_sealed.oracle` before any test or configuration of the repository. Product modules become proxies, commands
start behind the wall, and code of the product that would run here anyway (`runpy`, `exec`) is refused by an audit hook.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import multiprocessing.util
import os
import socket
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import walls
from .channel import Channel
from .policy import POLICY_VARIABLE, Policy
from .remote import NotSealed, Product, RemoteModule

LAST_WORDS_CHARS_MAX = 2_000

_OURS = (POLICY_VARIABLE, "PYTEST_ADDOPTS", "PYTHONSAFEPATH", "PYTHONPATH")
_STARTERS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.startfile"})


class Finder:
    """Finds the product's modules, before anybody else does."""

    def __init__(self, policy: Policy, product: Product) -> None:
        self._policy = policy
        self._product = product

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a spec whose module lives in the product's process, or None if the module is not the product's."""
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is None:
            return None
        places = list(found.submodule_search_locations or ())
        if not self._policy.is_product(found.origin or (places[0] if places else "")):
            return None
        spec = importlib.util.spec_from_loader(name, self, origin=found.origin, is_package=bool(places))  # type: ignore[arg-type]  # a finder is a loader, too
        if spec is not None and places:
            spec.submodule_search_locations = places
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return an empty proxy."""
        module = RemoteModule(spec.name)
        module.__dict__["_andon_product"] = self._product
        if spec.origin:
            module.__dict__["__file__"] = spec.origin
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Import the module over there."""
        module.__dict__["_andon_number"] = self._product.load(module.__name__, list(sys.path))


def start(policy_path: str) -> None:
    """Part this process from the product for good."""
    policy = Policy.load(policy_path)
    walls.forbid_inspection()
    # Not resolved: the package has its name there by a link.
    plugins, entries = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(entry for entry in entries if entry and entry != plugins)
    for name in _OURS:
        os.environ.pop(name, None)
    if kept:
        os.environ["PYTHONPATH"] = kept
    # As `python -m pytest` would have it, but at the end: nothing of the repository hides a module of ours or of Python's.
    sys.path.append(policy.workspace)
    product = Product(Channel(_product_process(policy, policy_path, plugins)), lambda: _last_words(policy))
    sys.meta_path.insert(0, Finder(policy, product))
    _enclose_commands(policy_path, plugins)
    sys.addaudithook(_Refusal(policy).heard)


def _product_process(policy: Policy, policy_path: str, plugins: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    words = os.open(Path(policy.own, "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    code = "from andon_sealed.product import main; main(int(sys.argv[1]), sys.argv[2])"
    command = [*_python(plugins, code), str(theirs.fileno()), policy_path]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=words, stderr=words)
    os.close(words)
    theirs.close()
    return ours


def _python(plugins: str, code: str) -> list[str]:
    """Return a command that runs a piece of our code with this Python, and nothing of the repository on its path."""
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {plugins!r}); {code}"]


def _last_words(policy: Policy) -> str:
    try:
        with Path(policy.own, "output").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS_CHARS_MAX))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _enclose_commands(policy_path: str, plugins: str) -> None:
    """Make every command a test starts run behind the wall."""
    begin = subprocess.Popen.__init__
    head = [*_python(plugins, "from andon_sealed.command import run; run(sys.argv[1], sys.argv[2:])"), policy_path]

    def enclosed(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        if rest or options.get("executable"):
            raise NotSealed("a command is started with its options by name and without `executable` in a sealed run")
        words = [os.fsdecode(args)] if isinstance(args, (str, bytes, os.PathLike)) else [os.fsdecode(each) for each in args]
        if options.pop("shell", False):
            words = ["/bin/sh", "-c", *words]
        begin(self, [*head, *words], **options)

    subprocess.Popen.__init__ = enclosed  # type: ignore[method-assign]  # the wall itself
    setattr(subprocess, "_USE_POSIX_SPAWN", False)  # noqa: B010 - final; it would be refused below
    multiprocessing.util.spawnv_passfds = _refuse_spawn  # type: ignore[assignment]  # it never returns


def _refuse_spawn(*_: Any) -> int:
    raise NotSealed("a fresh process by multiprocessing would run the product beside the tests; fork, or start a command")


class _Refusal:
    """Hears of code about to run in this process."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise if the code is the product's, or a program would start beside the wall."""
        if event in _STARTERS:
            raise NotSealed(f"{event} would start a program beside the wall; use subprocess")
        if event == "exec" and arguments and isinstance(arguments[0], types.CodeType):
            name = arguments[0].co_filename
            if not name.startswith("<") and self._policy.is_product(name):
                raise NotSealed(f"{name} is the product's and runs in its own process only; import it")


start(os.environ[POLICY_VARIABLE])
