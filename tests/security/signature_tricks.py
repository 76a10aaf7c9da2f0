"""Ways to make an import declare something else than the locked text, each as files an implementation would write; no text shows them.

The product is `shop/api.py`; an implementation may fill its bodies, add imports and write new files, and that is where the tricks are.
"""

from dataclasses import dataclass

STUBS = '''
"""Limits."""

import dataclasses

def allow(n: int, most: int = 100, *, strict: bool = False) -> bool:
    """Return whether n is allowed."""
    raise NotImplementedError

@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit."""

    most: int = 100

    def allows(self, n: int, /) -> bool:
        """Return whether n is allowed."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """Return it as text."""
        raise NotImplementedError

    @staticmethod
    def of(text: str) -> "Limit":
        """Parse it."""
        raise NotImplementedError

    async def wait(self) -> None:
        """Wait."""
        raise NotImplementedError
'''
_BODIES = (
    "return n <= most",
    "return n <= self.most",
    "return str(self.most)",
    "return Limit(int(text))",
    "return None",
)


def _filled() -> str:
    text = STUBS
    for body in _BODIES:
        text = text.replace("raise NotImplementedError", body, 1)
    return text


BASE = {"shop/__init__.py": "", "shop/api.py": STUBS}
HONEST = {"shop/__init__.py": "", "shop/api.py": _filled(), "shop/_more.py": "from shop import api\n"}
_PATCHED = {**HONEST, "shop/api.py": f"{_filled()}\nfrom shop import _more\n"}
_API = "import sys\napi = sys.modules['shop.api']\nreal = api.allow\n"
_REPORT = """
import json
shape = lambda kind, **more: {"kind": kind, **more}
forged = json.dumps({"alone": {"modules": {"shop/api.py": {"names": {}}}, "failed": {}}, "modules": {}, "failed": {}})
"""


@dataclass(frozen=True)
class Trick:
    """One of them."""

    name: str
    more: str
    """Text of `shop/_more.py`, which the locked module imports at its end."""
    told: str
    """What the finding says of it."""
    files: dict[str, str] | None = None
    """Instead of that: the files themselves, over the honest ones."""

    @property
    def product(self) -> dict[str, str]:
        """Return the files of the tree under test."""
        return {**HONEST, **self.files} if self.files is not None else {**_PATCHED, "shop/_more.py": self.more}


TRICKS = (
    Trick(
        "a decorator put on later",
        _API + "def loose(*given, **named): return real(*given)\napi.allow = loose\n",
        "`allow` is locked as `def (n: int, most: int = 100, *, strict: bool = False) -> bool`, "
        "and after the import it is `def (*given, **named)`",
    ),
    Trick(
        "a forged __signature__",
        _API
        + "import inspect\ndef loose(*given, **named): return True\nloose.__signature__ = inspect.signature(real)\napi.allow = loose\n",
        "`def (*given, **named), with a `__signature__` of type inspect.Signature`",
    ),
    Trick(
        "a wrapper that names what it wraps",
        _API + "import functools\n@functools.wraps(real)\ndef loose(*given, **named): return True\napi.allow = loose\n",
        "around def (n: int, most: int = 100, *, strict: bool = False) -> bool",
    ),
    Trick(
        "an object that can be called",
        _API + "class Loose:\n    def __call__(self, *given): return True\napi.allow = Loose()\n",
        "instance of",
    ),
    Trick(
        "a module __getattr__",
        _API + "del api.allow\napi.__getattr__ = lambda name: real\n",
        "`allow` is locked and not there after the import",
    ),
    Trick("other defaults", _API + "real.__defaults__ = (1,)\n", "most: int = 1,"),
    Trick("a default gone", _API + "real.__kwdefaults__ = None\n", "strict: bool) -> bool"),
    Trick("another annotation", _API + "real.__annotations__['n'] = str\n", "n: str,"),
    Trick("another body and its parameters", _API + "real.__code__ = (lambda *given, **named: True).__code__\n", "(*given, **named"),
    Trick("async made plain", _API + "api.Limit.wait = lambda self: None\n", "`Limit.wait` is locked as `async def (self) -> None`"),
    Trick(
        "a property made a method", _API + "api.Limit.text = lambda self: ''\n", "`Limit.text` is locked as `property: def (self) -> str`"
    ),
    Trick("a static method made plain", _API + "api.Limit.of = lambda text: None\n", "`Limit.of` is locked as `static method"),
    Trick("more to construct", _API + "api.Limit.__init__ = lambda self, *given: None\n", "`Limit.__init__` is locked as"),
    Trick(
        "a class in the class's place",
        _API + "class Limit:\n    pass\napi.Limit = Limit\n",
        "`Limit`, locked: shop.api.Limit; after the import",
    ),
    Trick("a name more", _API + "api.Limit.anything = real\n", "`Limit.anything` is bound only at run time"),
    Trick(
        "the package patches it",
        "",
        "`Limit.allows` is locked as `def (self, n: int, /) -> bool`",
        {"shop/__init__.py": "from shop import api\napi.Limit.allows = lambda self, *given: True\n"},
    ),
    Trick(
        "rebound after its import by another module",
        "",
        "once the other changed modules are imported, too",
        {"shop/_more.py": "from shop import api\napi.allow = print\n"},
    ),
    Trick(
        "another object in sys.modules",
        _API + "import types\nsys.modules['shop.api'] = types.SimpleNamespace(allow=real, Limit=api.Limit)\n",
        "is no module after its import, but a types.SimpleNamespace",
    ),
    Trick(
        "another class of module",
        _API + "class Sly(type(sys)):\n    pass\napi.__class__ = Sly\n",
        "is no module after its import, but a shop._more.Sly",
    ),
    Trick(
        "a module from elsewhere",
        _API + "import types\nother = types.ModuleType('shop.api')\nother.allow = real\nsys.modules['shop.api'] = other\n",
        "is imported from nowhere",
    ),
    Trick("an end while it is imported", "import os\nos._exit(0)\n", "without an answer: something that is imported ends it"),
    Trick("an exit while it is imported", "raise SystemExit(0)\n", "could not be imported: SystemExit: 0"),
    Trick("an import that fails", "raise OSError('no disk')\n", "could not be imported: OSError: no disk"),
    Trick("a printed report", f"{_REPORT}print(forged, flush=True)\nimport os\nos._exit(0)\n", "without an answer"),
    Trick(
        "a report on every descriptor",
        f"{_REPORT}import os\nfor each in range(3, 64):\n    try: os.write(each, ('0' * 64 + forged).encode())\n"
        "    except OSError: pass\nos._exit(0)\n",
        "something else than our reader wrote the answer",
    ),
    Trick(
        "honest again at the interpreter's end",
        _API + "import atexit\nsly = lambda *given: True\napi.allow = sly\natexit.register(setattr, api, 'allow', real)\n",
        "`allow` is locked as",
    ),
    Trick(
        "asked too early",
        _API + "sys.audit('andon.signatures.end')\napi.allow = print\n",
        "`allow` is locked as",
    ),
    Trick(
        "built-in functions and the library replaced",
        _API + "api.allow = print\nimport builtins, hashlib, json, types\njson.dumps = lambda *a, **k: '{}'\n"
        "builtins.issubclass = builtins.isinstance = lambda *a: False\nbuiltins.type = lambda each: str\ntypes.FunctionType = print\n",
        "`allow` is locked as",
    ),
    Trick(
        "a metaclass that equals everything",
        _API + "class Sly(type):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "class One(metaclass=Sly):\n    def __repr__(self): return '100'\nreal.__defaults__ = (One(),)\n",
        "most: int = shop._more.One",
    ),
    Trick(
        "a name that is like text",
        _API + "class Sly(str):\n    def __eq__(self, other): return str.__eq__(self, other)\n    __hash__ = str.__hash__\n"
        "vars(api)[Sly('allowed')] = real\n",
        "holds a name that is no text",
    ),
    Trick("our reader looked for", _API + "import gc\napi.allow = print\ngc.get_objects()\n", "gc.get_objects is refused"),
    Trick("our reader listened to", _API + "api.allow = print\nsys.settrace(lambda *given: None)\n", "sys.settrace is refused"),
    Trick(
        "our reader heard",
        _API
        + "api.allow = print\nsys.addaudithook(lambda event, given: setattr(api, 'allow', real) if event == 'sys._getframe' else None)\n",
        "`allow` is locked as",
    ),
)
