"""The interface lock: what an interface may contain, what a later stage may do to it, and every known way around it."""

import subprocess
import sys
import textwrap

import pytest

from sandbox.contract.interface_lock import InterfaceLock, drift, lock_interface, stubs_left
from sandbox.contract.result import Finding

INTERFACE = textwrap.dedent(
    '''
    """Limits how often a client may call."""

    from abc import ABC, abstractmethod
    from dataclasses import dataclass
    from typing import Protocol, overload

    __all__ = ["Limiter", "check", "Store"]

    WINDOW_S = 60
    """Seconds."""


    class LimitError(Exception):
        """Too many calls."""


    @dataclass(frozen=True)
    class Decision:
        """What the limiter says."""

        allowed: bool
        retry_after_s: int = 0


    class Store(ABC):
        """Keeps counts."""

        @abstractmethod
        def add(self, key: str) -> int:
            """Count one call."""


    class Clock(Protocol):
        def now(self) -> float: ...


    class Limiter:
        """Counts calls per client."""

        limit: int = 100

        def __init__(self, limit: int = 100) -> None:
            """Allow `limit` calls."""
            ...

        @property
        def left(self) -> int:
            raise NotImplementedError

        async def allow(self, client: str, *, cost: int = 1) -> Decision:
            """Return whether the client may call now."""
            raise NotImplementedError("allow")


    class Empty:
        """A class whose constructor takes nothing."""

        def run(self) -> None: ...


    @overload
    def check(value: int) -> int: ...
    @overload
    def check(value: str) -> str: ...
    def check(value: object) -> object:
        pass
    '''
).lstrip()

IMPLEMENTED = (
    INTERFACE.replace('"""Allow `limit` calls."""\n        ...', '"""Allow `limit` calls."""\n        self._limit = limit')
    .replace("raise NotImplementedError\n", "return self._limit\n")
    .replace('raise NotImplementedError("allow")', "return Decision(allowed=True)")
    .replace("def run(self) -> None: ...", "def run(self) -> None:\n        self.ran = True")
    .replace("def check(value: object) -> object:\n    pass", "def check(value: object) -> object:\n    return value")
)


def the_lock(text: str = INTERFACE, base: str | None = None) -> InterfaceLock:
    lock, findings = lock_interface({"app/limits.py": (base.encode() if base is not None else None, text.encode())})
    assert findings == []
    return lock


def the_findings(text: str, base: str | None = None) -> list[Finding]:
    return lock_interface({"a.py": (base.encode() if base is not None else None, textwrap.dedent(text).encode())})[1]


def the_drift(later: str | bytes | None, *extra: str, lock: InterfaceLock | None = None) -> list[Finding]:
    data = later.encode() if isinstance(later, str) else later
    files = {"app/limits.py": data} if data is not None else {}
    return drift(lock or the_lock(), files.get, [*files, *extra])


def edited(old: str, new: str) -> str:
    assert old in IMPLEMENTED, old
    return IMPLEMENTED.replace(old, new, 1)


def test_an_interface_of_declarations_has_no_findings():
    """Types, constants, dataclasses, protocols, overloads, abstract methods and stubs are what an interface is made of."""
    lock = the_lock()

    assert {"Limiter", "Limiter.allow", "Decision.retry_after_s", "WINDOW_S", "__all__", "check"} <= set(
        lock.files["app/limits.py"].symbols
    )


def test_a_faithful_implementation_has_no_drift_and_no_stubs():
    """Filling bodies is what the lock is for."""
    assert the_drift(IMPLEMENTED) == []
    assert stubs_left(the_lock(), {"app/limits.py": IMPLEMENTED.encode()}.get) == []


def test_the_lock_of_the_interface_itself_has_no_drift_but_stubs():
    """Abstract methods, overloads and protocol methods may stay empty; the others may not."""
    left = stubs_left(the_lock(), {"app/limits.py": INTERFACE.encode()}.get)

    assert the_drift(INTERFACE) == []
    assert [finding.message for finding in left] == [
        f"app/limits.py: `{name}` still has no body" for name in ("Empty.run", "Limiter.__init__", "Limiter.allow", "Limiter.left", "check")
    ]


@pytest.mark.parametrize(
    "later",
    [
        "import math\nimport os.path\n" + IMPLEMENTED,
        IMPLEMENTED + "\n_CACHE: dict[str, int] = {}\n_lock = object()\n",
        IMPLEMENTED + "\ndef _helper(x: int) -> int:\n    return x\n\n\nclass _Bucket:\n    count = 0\n",
        edited("    limit: int = 100\n", "    limit: int = 100\n    _hits = 0\n"),
        edited("        self.ran = True", "        self.ran = True\n\n    def _more(self) -> None:\n        self.ran = False"),
        edited("    def run(self)", "    def __init__(self) -> None:\n        self.ran = False\n\n    def run(self)"),
        edited("    retry_after_s: int = 0\n", "    retry_after_s: int = 0\n\n    def __post_init__(self) -> None:\n        pass\n"),
        edited('"""Counts calls per client."""', '"""Another docstring."""'),
        edited("client: str, *, cost: int = 1", "\n        client : str,  # a comment\n        *,  cost : int=1"),
        edited("        self._limit = limit", "        self._limit = limit\n        self.visible = 1\n        Limiter._made = True"),
        edited("from dataclasses import dataclass\n", "from dataclasses import dataclass\nfrom collections import deque as Queue\n"),
        edited("        self._limit = limit", '        self._limit = limit\n        setattr(self, "x", 1)'),
        "from __future__ import annotations\n" + IMPLEMENTED.split('"""\n', 1)[1],
    ],
)
def test_what_an_implementation_may_add_is_no_drift(later: str):
    """Imports, `_private` names, formatting, docstrings and attributes of instances are free (DECISIONS G7)."""
    assert the_drift(later) == []


EVASIONS = {
    "a default changes": edited("cost: int = 1", "cost: int = 0"),
    "a default is dropped": edited("cost: int = 1", "cost: int"),
    "an annotation changes": edited("client: str", "client: object"),
    "a return annotation changes": edited("-> Decision", "-> object"),
    "a parameter is renamed": edited("client: str", "caller: str"),
    "a parameter is added": edited("cost: int = 1", "cost: int = 1, force: bool = False"),
    "a keyword becomes positional": edited("client: str, *, cost", "client: str, cost"),
    "a decorator is added": edited("    async def allow", "    @staticmethod\n    async def allow"),
    "a decorator is removed": edited("@dataclass(frozen=True)\n", ""),
    "a decorator's argument changes": edited("frozen=True", "frozen=False"),
    "async goes": edited("async def allow", "def allow"),
    "a base is added": edited("class Limiter:", "class Limiter(dict):"),
    "a base is replaced": edited("class LimitError(Exception)", "class LimitError(BaseException)"),
    "a metaclass is added": edited("class Limiter:", "class Limiter(metaclass=type):"),
    "a class attribute changes": edited("    limit: int = 100", "    limit: int = 10_000"),
    "a class attribute gets a default": edited("    allowed: bool\n", "    allowed: bool = True\n"),
    "a class attribute is added": edited("    limit: int = 100\n", "    limit: int = 100\n    burst: int = 5\n"),
    "a public method is added": edited(
        "        self.ran = True", "        self.ran = True\n\n    def stop(self) -> None:\n        return None"
    ),
    "a special method is added": edited(
        "        self.ran = True", "        self.ran = True\n\n    def __eq__(self, other: object) -> bool:\n        return True"
    ),
    "a constructor with parameters is added": edited(
        "    def run(self)", "    def __init__(self, x: int) -> None:\n        pass\n\n    def run(self)"
    ),
    "__all__ changes": edited('"check", "Store"]', '"check"]'),
    "__all__ grows": IMPLEMENTED + "\n__all__ += ['more']\n",
    "__all__ is appended to": IMPLEMENTED + "\n__all__.append('more')\n",
    "a constant changes": edited("WINDOW_S = 60", "WINDOW_S = 61"),
    "a constant is computed": edited("WINDOW_S = 60", "WINDOW_S = int('60')"),
    "a symbol is removed": edited("WINDOW_S = 60\n", ""),
    "a function is defined again": IMPLEMENTED + "\ndef check(value: object, extra: int = 0) -> object:\n    return value\n",
    "a class is defined again": IMPLEMENTED + "\nclass Limiter:\n    pass\n",
    "a name is assigned again": IMPLEMENTED + "\ncheck = lambda *a: True\n",
    "a name is bound by unpacking": IMPLEMENTED + "\ncheck, _x = print, 1\n",
    "a name is bound by an import": IMPLEMENTED + "\nfrom os import path as Limiter\n",
    "a name is bound by import as": IMPLEMENTED + "\nimport json as check\n",
    "a name is bound by a walrus": IMPLEMENTED + "\n_x = (check := print)\n",
    "a name is bound by a walrus in a default": IMPLEMENTED + "\ndef _f(a=(check := print)):\n    return a\n",
    "a name is bound by a walrus in a decorator": IMPLEMENTED + "\n@(check := staticmethod)\ndef _f():\n    return 1\n",
    "a name is bound by for": IMPLEMENTED + "\nfor check in [print]:\n    pass\n",
    "a name is bound by with": IMPLEMENTED + "\nwith open('/dev/null') as check:\n    pass\n",
    "a name is bound by except": IMPLEMENTED + "\ntry:\n    pass\nexcept OSError as check:\n    pass\n",
    "a name is bound by match": IMPLEMENTED + "\nmatch 1:\n    case check:\n        pass\n",
    "a name is deleted": IMPLEMENTED + "\ndel check\n",
    "a star import": IMPLEMENTED + "\nfrom os.path import *\n",
    "a conditional definition": IMPLEMENTED + "\nif True:\n    def check(value: object) -> object:\n        return 1\n",
    "a definition under try": IMPLEMENTED + "\ntry:\n    class Limiter:\n        pass\nfinally:\n    pass\n",
    "the definition moves under if": edited("class Limiter:", "if True:\n  class Limiter:\n    x = 1\nclass _Gone:"),
    "global in a function": IMPLEMENTED + "\ndef _f():\n    global check\n    check = print\n",
    "an attribute is stored": IMPLEMENTED + "\nLimiter.allow = print\n",
    "an attribute is stored in a function": IMPLEMENTED + "\ndef _f():\n    Limiter.allow = print\n",
    "an attribute is stored in a private assignment": IMPLEMENTED + "\n_x = Limiter.allow = print\n",
    "an attribute is deleted": IMPLEMENTED + "\ndef _f():\n    del Limiter.allow\n",
    "setattr": IMPLEMENTED + "\nsetattr(Limiter, 'allow', print)\n",
    "setattr in a private assignment": IMPLEMENTED + "\n_x = setattr(Limiter, 'allow', print)\n",
    "setattr in a class body": edited("    limit: int = 100\n", "    limit: int = 100\n    _x = setattr(Store, 'add', print)\n"),
    "globals": IMPLEMENTED + "\nglobals()['check'] = print\n",
    "globals in a private assignment": IMPLEMENTED + "\n_x = globals().update(check=print)\n",
    "exec": IMPLEMENTED + "\n_x = exec('check = print')\n",
    "exec in a class body": edited("    limit: int = 100\n", "    limit: int = 100\n    exec('limit = 5')\n"),
    "a loop in a class body": edited("    limit: int = 100\n", "    limit: int = 100\n    for limit in [5]:\n        pass\n"),
    "sys.modules": IMPLEMENTED + "\nimport sys\n_x = sys.modules.pop('x', None)\n",
    "a module __getattr__": IMPLEMENTED + "\ndef __getattr__(name):\n    return print\n",
    "a public function": IMPLEMENTED + "\ndef extra() -> None:\n    return None\n",
    "a public constant": IMPLEMENTED + "\nEXTRA = 1\n",
    "a public class": IMPLEMENTED + "\nclass Extra:\n    x = 1\n",
    "an import that means a type": edited("from abc import", "from os import PathLike as str\nfrom abc import"),
    "an import is replaced": edited("from dataclasses import dataclass", "from app.fake import dataclass"),
    "an import is gone": edited("from dataclasses import dataclass\n", ""),
    "code at import": IMPLEMENTED + "\nprint('hello')\n",
    "a utf-7 cookie": b"# -*- coding: utf-7 -*-\n" + IMPLEMENTED.encode(),
    "a latin-1 cookie": b"# -*- coding: latin-1 -*-\n" + IMPLEMENTED.encode(),
    "not UTF-8": IMPLEMENTED.encode() + b"\n# \xff\n",
    "a NUL": IMPLEMENTED.encode() + b"\n\0\n",
    "a syntax error": IMPLEMENTED + "\ndef (\n",
    "the file is gone": None,
}


@pytest.mark.parametrize("later", EVASIONS.values(), ids=EVASIONS.keys())
def test_every_known_evasion_is_drift(later: str | bytes | None):
    """Each way to keep the text of a signature while changing what a caller gets is found (ABUSE S10)."""
    findings = the_drift(later)

    assert findings
    assert all(finding.check == "interface-lock" and finding.path == "app/limits.py" for finding in findings)


@pytest.mark.parametrize(
    "shadow", ["app/limits/__init__.py", "app/limits/__init__.pyc", "app/limits.cpython-311-x86_64-linux-gnu.so", "app/limits.pyd"]
)
def test_a_file_that_is_imported_instead_is_drift(shadow: str):
    """A package or a compiled module of the same name wins over the locked file."""
    (finding,) = the_drift(IMPLEMENTED, shadow)

    assert finding.path == shadow


def test_a_neighbour_is_no_shadow():
    """A directory without `__init__` and a longer name do not replace a module."""
    assert the_drift(IMPLEMENTED, "app/limits/data.json", "app/limits_more.py", "app/limits.pyi") == []


def test_the_message_says_what_was_locked_and_what_is_there():
    """A person and the next agent read the difference, not a hash."""
    (finding,) = the_drift(edited("cost: int = 1", "cost: int = 0"))

    assert finding.message == (
        "app/limits.py: `Limiter.allow` is locked as `async def allow(self, client: str, *, cost: int=1) -> Decision`, "
        "not `async def allow(self, client: str, *, cost: int=0) -> Decision`"
    )


EXISTING = """import os

app = os.environ.copy()
app.update(x='1')


def old(a: int) -> int:
    return a


class Old:
    def run(self) -> int:
        return 1
"""


def test_only_what_an_interface_adds_or_changes_is_judged_and_locked():
    """Existing modules keep their bodies and their code that runs at import."""
    added = EXISTING + "\n\ndef new(a: int) -> int: ...\n"
    lock, findings = lock_interface({"app/limits.py": (EXISTING.encode(), added.encode())})

    assert findings == []
    assert set(lock.files["app/limits.py"].symbols) == {"new"}
    later = added.replace("return a\n", "return a + 1\n").replace("-> int: ...", "-> int:\n    return a")
    assert the_drift(later, lock=lock) == []
    assert the_drift(later.replace("app.update(x='1')\n", ""), lock=lock) == []
    assert the_drift(later + "\napp.update(x='1')\n", lock=lock) != []


def test_an_existing_function_may_lose_its_body_to_be_filled_again():
    """An interface that empties a function locks it; one that writes a new body is refused."""
    emptied = EXISTING.replace("    return a\n", "    ...\n")
    lock, findings = lock_interface({"app/limits.py": (EXISTING.encode(), emptied.encode())})

    assert findings == []
    assert lock.files["app/limits.py"].stubs == ("old",)
    assert the_findings(EXISTING.replace("return a\n", "return a * 2\n"), EXISTING)


def test_an_existing_function_may_change_its_signature_and_keep_its_body():
    """No new body is no new body; the new signature is locked."""
    changed = EXISTING.replace("def old(a: int)", "def old(a: int, b: int = 0)")
    lock, findings = lock_interface({"app/limits.py": (EXISTING.encode(), changed.encode())})

    assert findings == []
    assert the_drift(changed, lock=lock) == []
    assert the_drift(EXISTING, lock=lock) != []


def test_a_method_added_to_an_existing_class_locks_the_class_s_header():
    """What a method means depends on the bases of its class."""
    changed = EXISTING + "\n    def stop(self) -> None: ...\n"
    lock, _ = lock_interface({"app/limits.py": (EXISTING.encode(), changed.encode())})

    assert set(lock.files["app/limits.py"].symbols) == {"Old", "Old.stop"}
    assert the_drift(changed.replace("class Old:", "class Old(dict):"), lock=lock) != []


def test_a_constant_that_a_locked_signature_uses_is_locked_with_it():
    """A default is only as fixed as the name it is taken from."""
    base = "LIMIT = 5\n"
    text = base + "\n\ndef check(limit: int = LIMIT) -> None: ...\n"
    lock, _ = lock_interface({"app/limits.py": (base.encode(), text.encode())})

    assert the_drift(text.replace("LIMIT = 5", "LIMIT = 6"), lock=lock) != []


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: int) -> int:\n    return x\n",
        "def f() -> None:\n    ...\n    print(1)\n",
        "def f() -> None:\n    raise NotImplementedError(f'{open(0)}')\n",
        "def f() -> None:\n    raise ValueError\n",
        "class A:\n    def f(self) -> int:\n        return 1\n",
        "f = lambda x: x\n",
        "X = [i for i in range(3)]\n",
        "X = open('/etc/passwd').read()\n",
        "X = compute()\n",
        "X = __import__('os')\n",
        "class A:\n    x = setattr(int, 'a', 1)\n",
        "class A:\n    x: int = os.getpid()\n",
        "class A:\n    for i in range(3):\n        pass\n",
        "class A:\n    x = (lambda: 1)()\n",
        "if True:\n    def f() -> None: ...\n",
        "try:\n    import x\nexcept ImportError:\n    x = None\n",
        "print(1)\n",
        "for i in []:\n    pass\n",
        "def f(x=(lambda: 1)) -> None: ...\n",
        "def f(x=exec('1')) -> None: ...\n",
        "@eval('1')\ndef f() -> None: ...\n",
        "X = 1 if True else 2\n",
        "X = f'{1}'\n",
        "A.b = 1\n",
        "def (\n",
        "# coding: utf-7\n",
    ],
)
def test_an_interface_that_runs_code_is_refused(text: str):
    """No bodies, and nothing that computes: an interface only declares."""
    assert the_findings(text)


@pytest.mark.parametrize(
    "text",
    [
        '"""Doc."""\nfrom __future__ import annotations\nimport os\n',
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import PathLike\n",
        "import typing as t\nif t.TYPE_CHECKING:\n    import os\n",
        "T = TypeVar('T', bound='A')\nJson = dict[str, 'Json'] | list | None\n",
        "LIMIT = 60 * 60\nNAMES = frozenset({'a', 'b'})\nOFFSET: int = -1\nMODES = {'a': (1, 2)}\n",
        "class S(BaseSettings):\n    model_config = SettingsConfigDict(env_prefix='X_')\n    limit: int = Field(100, ge=1, alias='L')\n",
        "class E(Enum):\n    A = auto()\n    B = 'b'\n",
        "@dataclass\nclass D:\n    tags: list[str] = field(default_factory=list)\n",
        "class Empty(Exception):\n    '''Nothing.'''\n",
        "class Pass:\n    pass\n",
        "async def f(*a: int, **k: str) -> None:\n    '''Doc.'''\n    raise NotImplementedError('later')\n",
        "@app.get('/x')\ndef f(q: str = Query('a')) -> None: ...\n",
    ],
)
def test_an_interface_of_ordinary_declarations_is_accepted(text: str):
    """Configuration models, enums, dataclasses, type variables and route stubs are declarations."""
    assert the_findings(text) == []


def test_an_interface_deletes_nothing():
    """Removing a module is not declaring one."""
    lock, findings = lock_interface({"a.py": (b"x = 1\n", None)})

    assert lock.files == {}
    assert "deletes nothing" in findings[0].message


def test_a_base_that_is_no_python_is_judged_as_new():
    """A file that could not be parsed before declared nothing before."""
    assert lock_interface({"a.py": (b"def (", b"def f() -> None: ...\n")})[1] == []


BOMBS = {
    "parentheses": "x = " + "(" * 50_000 + ")" * 50_000,
    "lists": "x = " + "[" * 100_000,
    "minus": "x = " + "-" * 200_000 + "1",
    "attributes": "x = a" + ".a" * 100_000,
    "calls": "x = a" + "()" * 100_000,
    "binary": "x = 1" + "+1" * 100_000,
    "not": "x = " + "not " * 100_000 + "1",
    "classes": "\n".join(" " * depth + "class A:" for depth in range(95)),
    "ifs": "if 1: pass\n" + "elif 1: pass\n" * 30_000,
    "subscripts": "x = a" + "[a" * 50_000,
    "large": "#" * 600_000,
    "f-strings": "x = " + "f'{" * 200 + "1" + "}'" * 200,
    "lambdas": "x = " + "lambda: " * 50_000 + "1",
    "decorators": "@a\n" * 50_000 + "def f(): ...",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_a_finding_and_never_a_crash(text: str):
    """Parser and walkers are bounded: the process survives and says something, both as interface and as later tree."""
    program = (
        "import sys\n"
        "from sandbox.contract.interface_lock import drift, lock_interface, stubs_left\n"
        "data = sys.stdin.buffer.read()\n"
        "_, findings = lock_interface({'a.py': (b'', data)})\n"
        "lock, _ = lock_interface({'a.py': (None, b'def f() -> None: ...')})\n"
        "later = drift(lock, {'a.py': data}.get, ['a.py'])\n"
        "stubs_left(lock, {'a.py': data}.get)\n"
        "print('judged', bool(findings), bool(later))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], input=text.encode(), capture_output=True, timeout=60)

    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout.startswith(b"judged")
    assert done.stdout.endswith(b"True\n")


def test_equal_interfaces_have_equal_locks_whatever_their_format():
    """The lock is of meaning, not of text."""
    spaced = INTERFACE.replace("client: str, *, cost: int = 1", "client : str, * , cost:int=1").replace("# ", "#  ")

    assert the_lock(spaced).sha256 == the_lock().sha256
    assert the_lock(INTERFACE.replace("cost: int = 1", "cost: int = 2")).sha256 != the_lock().sha256


def test_a_lock_survives_its_own_json():
    """It is evidence, stored and read again."""
    lock = the_lock()

    assert InterfaceLock.model_validate_json(lock.model_dump_json()) == lock


def test_the_text_of_a_lock_shows_each_header():
    """The test stage reads signatures from it."""
    text = the_lock().as_text()

    assert text.startswith("app/limits.py:\n")
    assert "async def allow(self, client: str, *, cost: int=1) -> Decision" in text
