"""Names of modules, and what a process that imported them may answer."""

import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.contract.job import Check
from sandbox.contract.signatures import REPORT_BYTES_MAX, Reading, SignatureReport, ToImport
from sandbox.inside.checks.importing import Place, import_and_read, place_of
from sandbox.inside.paths import Paths
from sandbox.inside.process import CommandNotStarted

MODULE = """
import dataclasses, enum, functools, typing
from collections.abc import Callable

T = typing.TypeVar("T")
LIMIT: int = 3
_hidden = 1

@functools.lru_cache
def cached(n: int, rest: tuple[int, ...] = ()) -> "int": ...

def every(a: int | None, /, b: typing.Optional[T] = None, *c: Callable[[int], str], d: str = "x", **e: typing.Any) -> list[int]: ...

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    async def of(cls, text: str) -> "Point": ...

    @property
    def size(self) -> float: ...

    @size.setter
    def size(self, value: float) -> None: ...
"""


def read(
    directory: Path, files: dict[str, str], *locked: str, others: tuple[str, ...] = (), timeout_s: float = 60
) -> SignatureReport | str:
    """Return the report on files, or what was said instead."""
    paths = Paths.below(str(directory))
    for each in (paths.workspace, paths.out, paths.tmp):
        each.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = paths.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    said: list[bytes] = []
    check = Check(name="signatures", argv=(sys.executable,), report="signatures", to_import=ToImport(locked=tuple(locked), others=others))
    report = import_and_read(check, paths, {"PATH": "/usr/bin:/bin"}, timeout_s, said.append).report
    return SignatureReport.model_validate_json(report) if report is not None else b"".join(said).decode()


@pytest.mark.parametrize(
    ("files", "path", "place"),
    [
        ("", "limit.py", Place("", "limit")),
        ("pkg/__init__.py", "pkg/api.py", Place("", "pkg.api")),
        ("pkg/__init__.py", "pkg/__init__.py", Place("", "pkg")),
        ("src/pkg/__init__.py", "src/pkg/api.py", Place("src", "pkg.api")),
        ("src/pkg/__init__.py src/pkg/sub/__init__.py", "src/pkg/sub/api.py", Place("src", "pkg.sub.api")),
        ("backend/app/__init__.py", "backend/app/api.py", Place("backend", "app.api")),
        ("", "src/limit.py", Place("src", "limit")),
        ("", "src/names/spaced.py", Place("src", "names.spaced")),
        ("", "names/spaced.py", Place("", "names.spaced")),
        ("", "my-scripts/limit.py", Place("my-scripts", "limit")),
    ],
)
def test_a_module_has_the_name_its_packages_give_it(tmp_path: Path, files: str, path: str, place: Place):
    """As pytest and the import system have it."""
    for each in files.split():
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()

    assert place_of(path, tmp_path) == place


def test_what_a_module_declares_is_read(tmp_path: Path):
    """Kinds, parameters with their defaults and annotations, members of classes with what is generated; no private name."""
    report = read(tmp_path / "root", {"src/shapes.py": MODULE}, "src/shapes.py")
    assert isinstance(report, SignatureReport)
    names = report.alone.modules["src/shapes.py"].names

    assert {name: shape.kind for name, shape in names.items() if name in {"T", "LIMIT", "cached", "every", "Colour", "Point"}} == {
        "T": "value",
        "LIMIT": "value",
        "cached": "object",
        "every": "function",
        "Colour": "class",
        "Point": "class",
    }
    assert "_hidden" not in names
    assert names["cached"].inner[0].parameters[1].annotation == "tuple[int, Ellipsis]"
    told = [(each.name, each.kind, each.default, each.annotation) for each in names["every"].parameters]
    assert told == [
        ("a", "positional-only", "", "int | NoneType"),
        ("b", "positional", "None", "Optional[T, NoneType]"),
        ("c", "var-positional", "", "collections.abc.Callable[int, str]"),
        ("d", "keyword-only", "'x'", "str"),
        ("e", "var-keyword", "", "Any" if sys.version_info < (3, 11) else "typing.Any"),
    ]
    assert names["every"].returns == "list[int]"
    assert names["Colour"].bases == ("enum.Enum", "metaclass=enum.EnumType")
    point = names["Point"].members
    assert [each.name for each in point["__init__"].parameters] == ["self", "x", "y"]
    assert (point["of"].kind, point["of"].inner[0].is_async) == ("class method", True)
    assert [each.kind for each in point["size"].inner] == ["function", "function", "value"]


def test_what_was_compiled_before_is_not_believed(tmp_path: Path):
    """A compiled module in the tree may be of another source; the control: Python itself takes it."""
    other = tmp_path / "other.py"
    other.write_text("def b(): ...\n")
    unchecked = py_compile.compile(str(other), str(tmp_path / "other.pyc"), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    root = tmp_path / "root"
    compiled = root / "workspace" / "__pycache__" / f"a.{sys.implementation.cache_tag}.pyc"
    (root / "workspace").mkdir(parents=True)
    compiled.parent.mkdir()
    compiled.write_bytes(Path(str(unchecked)).read_bytes())

    report = read(root, {"a.py": "def a(): ...\n"}, "a.py")
    plain = subprocess.run([sys.executable, "-c", "import a; print(a.b)"], cwd=root / "workspace", capture_output=True, check=False)

    assert plain.returncode == 0, plain.stderr  # control
    assert isinstance(report, SignatureReport)
    assert list(report.alone.modules["a.py"].names) == ["a"]


def test_scripts_find_their_neighbours(tmp_path: Path):
    """A directory without packages is on the path of what is in it, as it is when a test puts it there."""
    files = {"tools/limit.py": "import numbers_of\n", "tools/numbers_of.py": "x = 1\n"}

    report = read(tmp_path / "root", files, "tools/limit.py")

    assert isinstance(report, SignatureReport)
    assert report.alone.modules["tools/limit.py"].problem == ""


def test_what_else_cannot_be_imported_is_named(tmp_path: Path):
    """A changed module that needs what is not there is no fault of the locked ones."""
    report = read(tmp_path / "root", {"a.py": "def a(): ...\n", "b.py": "import no_such_module\n"}, "a.py", others=("b.py",))

    assert isinstance(report, SignatureReport)
    assert report.with_others == Reading(
        modules=report.alone.modules, failed={"b.py": "ModuleNotFoundError: No module named 'no_such_module'"}
    )


def test_what_a_module_prints_does_not_matter(tmp_path: Path):
    """Its output is for people; and it finds the arguments a program has that is given none."""
    report = read(tmp_path / "root", {"a.py": "import sys\nprint('{}')\nprint(len(sys.argv), file=sys.stderr)\ndef a(): ...\n"}, "a.py")

    assert isinstance(report, SignatureReport)
    assert list(report.alone.modules["a.py"].names) == ["a"]


def test_more_than_is_read_is_no_evidence(tmp_path: Path):
    """A report has an end: names, members and texts are bounded, and all of it together."""
    default = "'" + "x" * 300 + "'"
    parameters = ", ".join(f"p{number}={default}" for number in range(200))
    functions = "\n".join(f"def f{number}({parameters}): ..." for number in range(80))

    said = read(tmp_path / "root", {"a.py": functions}, "a.py")

    assert len(functions) > REPORT_BYTES_MAX
    assert said == f"signatures: the modules declare more than {REPORT_BYTES_MAX >> 20} MiB\n"


def test_a_python_that_is_not_there_is_told(tmp_path: Path):
    """Through the runner it is a check that could not be started."""
    paths = Paths.below(str(tmp_path))
    for each in (paths.workspace, paths.tmp):
        each.mkdir(parents=True)
    check = Check(name="signatures", argv=("/no/python",), report="signatures", to_import=ToImport(locked=("a.py",)))

    with pytest.raises(CommandNotStarted, match="/no/python"):
        import_and_read(check, paths, {}, 10, lambda _: None)
