"""Which modules of a change can be imported to see what they declare, and by which Python; pure. Who imports them is in the sandbox.

A file that is made to be run does its work when it is imported, so `__main__.py` and its like are left out.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from sandbox.contract.scope import WriteScope
from supervisor.stages.path_classes import DOCS, OF_THE_TESTS

_RUN = frozenset({"__main__.py", "setup.py", "manage.py", "noxfile.py", "wsgi.py", "asgi.py", "gunicorn.conf.py"})
_ELSEWHERE = WriteScope(patterns=(*OF_THE_TESTS, *DOCS))
_PYTEST = ("pytest", "py.test")


def importable(paths: Iterable[str]) -> list[str]:
    """Return the paths of product modules that can be imported, sorted and each once."""
    return sorted({path for path in paths if _is_importable(path)})


def python_of(tests: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words that start the Python a command of pytest runs in; `python` alone where they do not say.

    Args:
        tests: The command, e.g. `uv run pytest -q` or `python -X dev -m pytest`.
    """
    names = [PurePosixPath(word).name for word in tests]
    if "-m" in tests and any(name.startswith("python") for name in names[: tests.index("-m")]):
        return tests[: tests.index("-m")]
    at = next((at for at, name in enumerate(names) if name in _PYTEST), None)
    if at is None or (at == 0 and tests[0] in _PYTEST):
        return ("python",)
    if at == 0:
        return (str(PurePosixPath(tests[0]).with_name("python")),)
    return (*tests[:at], "python") if tests[at - 1] != "-m" else ("python",)


def _is_importable(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(".py") and name.count(".") == 1 and name not in _RUN and not _ELSEWHERE.allows(path)
