"""Signatures as they were read against locked text and stubs, and the edges of what is believed."""

import hashlib

import pytest
from pydantic import ValidationError

from sandbox.contract.interface_lock import InterfaceLock, lock_interface
from sandbox.contract.job import Check, CheckExit
from sandbox.contract.result import CheckReport
from sandbox.contract.signatures import (
    PATHS_MAX,
    REPORT_BYTES_MAX,
    SHAPES_DEPTH_MAX,
    ModuleShape,
    Parameter,
    Reading,
    Shape,
    SignatureReport,
    ToImport,
)
from supervisor.gates.declared import declared_functions
from supervisor.gates.evidence import CheckEvidence, Evidence, read_evidence
from supervisor.gates.shown import SHOWN_CHARS_MAX, described
from supervisor.gates.signatures import with_signatures, with_stubs
from supervisor.gates.verdict import Judgement, finding, judgement

CHECK = Check(name="signatures", argv=("python",), report="signatures", to_import=ToImport(locked=("limit.py",)))


def lock_of(text: str, path: str = "limit.py") -> InterfaceLock:
    lock, findings = lock_interface({path: (None, text.encode())})
    assert findings == []
    return lock


def evidence_of(report: SignatureReport) -> Evidence:
    return Evidence(checks={"signatures": CheckEvidence(name="signatures", argv=("python",), report="signatures", signatures=report)})


def reading_of(names: dict[str, Shape], path: str = "limit.py") -> Reading:
    return Reading(modules={path: ModuleShape(names=names)})


def a_function(*names: str, **changes: object) -> Shape:
    parameters = tuple(Parameter(name=name, kind="positional") for name in names)
    return Shape.model_validate({"kind": "function", "parameters": parameters, **changes})


def messages(said: Judgement) -> list[str]:
    return [each.message for each in said.findings]


def told(text: str, names: dict[str, Shape], stubs: dict[str, Shape] | None = None) -> list[str]:
    """Return the findings on what was read of `limit.py`."""
    on_stubs = evidence_of(SignatureReport(alone=reading_of(stubs))) if stubs is not None else None
    report = evidence_of(SignatureReport(alone=reading_of(names)))
    return messages(with_signatures(Judgement(), report, on_stubs, [lock_of(text)], is_wanted=True))


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("def f(a, /, b, *c, d=1, **e): ...\n", "a positional-only, b positional, c var-positional, d keyword-only =, e var-keyword"),
        ("async def f(a=1): ...\n", "async a positional ="),
        ("class C:\n    def f(self, __a): ...\n", "self positional, _C__a positional"),
        ("class C:\n    @staticmethod\n    def f(a): ...\n", "static method a positional"),
        ("class C:\n    @property\n    def f(self): ...\n", "property self positional"),
        ("import abc\nclass C(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n", "self positional"),
        ("import functools\n@functools.cache\ndef f(a): ...\n", ""),
        ("import functools\n@functools.total_ordering\nclass C:\n    def f(self): ...\n", ""),
        ("def _f(a): ...\n", ""),
        ("X = 1\n", ""),
    ],
)
def test_a_function_s_text_says_what_it_takes(text: str, parameters: str):
    """Unless a decorator nobody knows could make another thing of it."""
    (locked,) = lock_of(text).files.values()

    found = [
        " ".join(
            [
                *(["async"] if each.is_async else []),
                *([each.kind] if each.kind != "function" else []),
                ", ".join(f"{name} {kind}{' =' if default else ''}" for name, kind, default in each.parameters),
            ]
        )
        for each in declared_functions(locked)
    ]

    assert found == ([parameters] if parameters else [])


def test_without_stubs_a_function_is_compared_with_its_text():
    """Names, kinds and defaults of parameters; what wraps it or claims another signature is not it."""
    text = "def f(a, b=1): ...\n"
    own = Shape(kind="function", parameters=(Parameter(name="a", kind="positional"), Parameter(name="b", kind="positional", default="2")))

    assert told(text, {"f": own}) == []
    assert told(text, {"f": a_function("a", "b")}) == [
        "limit.py: `f` is locked as `def f(a, b=1)`, and after the import it is `def (a, b)`"
    ]
    for other in ({"claims": "inspect.Signature"}, {"inner": (own,)}, {"is_async": True}, {"kind": "object", "type": "a.B"}):
        assert len(told(text, {"f": own.model_copy(update=other)})) == 1, other
    assert told(text, {}) == ["limit.py: `f` is locked and not there after the import"]


def test_with_stubs_all_that_is_locked_and_public_is_compared():
    """Members of classes, too; what is private, and an `__init__` that takes nothing, is the implementation's own."""
    text = "class C:\n    def f(self): ...\n"
    stub = Shape(kind="class", type="limit.C", members={"f": a_function("self")})

    def now(**members: Shape) -> list[str]:
        return told(text, {"C": stub.model_copy(update={"members": {**stub.members, **members}})}, {"C": stub})

    assert now() == now(__init__=a_function("self")) == now(__hash__=a_function("self")) == []
    assert now(__init__=a_function("self", "a")) == ["limit.py: `C.__init__` is bound only at run time"]
    assert now(g=a_function("self")) == ["limit.py: `C.g` is bound only at run time"]
    assert now(f=a_function("self", "a")) == ["limit.py: `C.f` is locked as `def (self)`, and after the import it is `def (self, a)`"]
    assert told(text, {"C": stub, "more": a_function()}, {"C": stub}) == []
    assert told(text, {"C": stub.model_copy(update={"bases": ("a.B",)})}, {"C": stub}) == [
        "limit.py: the bases of `C`, locked: ; after the import: a.B"
    ]


def test_what_cannot_be_imported_fails_and_says_if_the_stubs_could_not_either():
    """Then the Python may be the wrong one, and a person has to name another."""
    lock, broken = lock_of("def f(): ...\n"), Reading(modules={"limit.py": ModuleShape(problem="could not be imported: ImportError: x")})
    report = evidence_of(SignatureReport(alone=broken))

    first = with_signatures(Judgement(), report, None, [lock], is_wanted=True)
    both = with_signatures(Judgement(), report, report, [lock], is_wanted=True)

    assert messages(first) == ["limit.py: could not be imported: ImportError: x"]
    assert messages(both) == ["limit.py: could not be imported: ImportError: x; nor could the stubs be (docs/checks.md, `signatures`)"]


def test_stubs_that_tests_reach_and_nobody_can_import_are_the_repository_s_fault():
    """Known at the red-check, before anything is implemented; tests that are wrong themselves are reworked first."""
    lock, broken = lock_of("def f(): ...\n"), Reading(modules={"limit.py": ModuleShape(problem="could not be imported: ImportError: x")})
    fine, wrong = (evidence_of(SignatureReport(alone=each)) for each in (reading_of({"f": a_function()}), broken))
    dead = Evidence(checks={"signatures": CheckEvidence(name="signatures", argv=("python",), report="signatures", output_tail="it ends")})
    red = judgement([finding("red-check", "no test is red")])

    assert with_stubs(Judgement(), fine, [lock]) == with_stubs(Judgement(), Evidence(), [lock]) == Judgement()
    assert with_stubs(red, wrong, [lock]) == red
    for evidence, why in ((wrong, "limit.py: could not be imported: ImportError: x"), (dead, "limit.py: no answer")):
        said = with_stubs(Judgement(), evidence, [lock])
        assert (said.verdict, said.usage_error) == ("fail", True)
        assert why in messages(said)[0]
        assert "signatures = false" in messages(said)[0]
    assert messages(with_stubs(Judgement(), dead, [lock]))[0].endswith("it ends")


def test_a_locked_module_nobody_looked_at_fails():
    """As if there were no report."""
    report = evidence_of(SignatureReport(alone=Reading()))

    said = with_signatures(Judgement(), report, None, [lock_of("def f(): ...\n")], is_wanted=True)

    assert messages(said) == [f"limit.py: was not imported: at most {PATHS_MAX} modules are"]


def test_other_modules_that_cannot_be_imported_are_a_note():
    """They may need what this Python has not; the locked ones are judged."""
    shape = {"f": Shape(kind="function")}
    others = Reading(modules=reading_of(shape).modules, failed={f"m{number}.py": "ImportError: x" for number in range(7)})
    report = evidence_of(SignatureReport(alone=reading_of(shape), with_others=others))

    said = with_signatures(
        Judgement(), report, evidence_of(SignatureReport(alone=reading_of(shape))), [lock_of("def f(): ...\n")], is_wanted=True
    )

    assert said.verdict == "pass"
    (note,) = said.notes
    assert note.startswith("signatures: 7 other changed modules cannot be imported: m0.py (ImportError: x); ")


def a_nest(depth: int) -> dict[str, object]:
    """Return a report of shapes in shapes."""
    shape = Shape(kind="value")
    for _ in range(depth - 1):
        shape = Shape(kind="object", inner=(shape,))
    return {"alone": reading_of({"f": shape}).model_dump()}


def test_a_report_s_shapes_are_not_deeper_than_any_that_are_read():
    """Twelve in each other are taken, thirteen are not."""
    SignatureReport.model_validate(a_nest(SHAPES_DEPTH_MAX))

    with pytest.raises(ValidationError, match="nested deeper than 12"):
        SignatureReport.model_validate(a_nest(SHAPES_DEPTH_MAX + 1))


def test_a_report_of_4_mib_is_read_and_a_larger_one_is_not():
    """Whoever stored it."""
    text = SignatureReport(alone=reading_of({"f": a_function("a")})).model_dump_json().encode()

    def problem(size_bytes: int) -> str:
        data = text + b" " * (size_bytes - len(text))
        ended = CheckExit(name="signatures", exit_code=0, duration_s=1, report_sha256=hashlib.sha256(data).hexdigest())
        return read_evidence([CHECK], [CheckReport(name="signatures", exit=ended)], {"signatures": data}).checks["signatures"].problem

    assert problem(REPORT_BYTES_MAX) == ""
    assert problem(REPORT_BYTES_MAX + 1) == f"the report has {REPORT_BYTES_MAX + 1} bytes; at most {REPORT_BYTES_MAX}"


def test_at_most_500_modules_are_asked_for():
    """Of each sort."""
    paths = tuple(f"m{number}.py" for number in range(PATHS_MAX + 1))

    assert len(ToImport(locked=paths[:-1], others=paths[:-1]).others) == PATHS_MAX
    with pytest.raises(ValidationError):
        ToImport(locked=paths)


def test_a_shape_is_told_in_at_most_300_characters():
    """However much a module declares."""
    shape = Shape(
        kind="function",
        is_async=True,
        parameters=(
            Parameter(name="a", kind="positional-only", annotation="int"),
            Parameter(name="b", kind="positional", default="1"),
            Parameter(name="c", kind="keyword-only"),
            Parameter(name="d", kind="var-keyword"),
        ),
        returns="str",
    )

    assert described(shape) == "async def (a: int, /, b = 1, *, c, **d) -> str"
    assert len(described(a_function(*(f"parameter_{number}" for number in range(60))))) == SHOWN_CHARS_MAX
