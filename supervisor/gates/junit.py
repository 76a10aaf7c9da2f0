"""JUnit XML from a sandbox, read within bounds: which tests there were and how each ended; not whether that is good (`checks`).

Written for pytest's files first, and for any other writer of the same form. Entities and document types are refused before
anything is expanded.
"""

import re
from typing import Literal
from xml.parsers import expat

from pydantic import Field

from sandbox.contract.model import Frozen

REPORT_BYTES_MAX = 16 << 20
CASES_MAX = 100_000
DEPTH_MAX = 16
ATTRIBUTES_MAX = 64
ID_CHARS_MAX = 1_000
TEXT_CHARS_MAX = 256 << 10
"""Kept of one case's traceback while it is read."""
TAIL_LINES = 60
TAIL_CHARS_MAX = 8_000

CaseOutcome = Literal["passed", "skipped", "failed", "error"]
_RANK: dict[CaseOutcome, int] = {"passed": 0, "skipped": 1, "failed": 2, "error": 3}
_CHILDREN: dict[str, CaseOutcome] = {"failure": "failed", "error": "error", "skipped": "skipped"}


class BadReport(ValueError):
    """The file is no JUnit report we would believe; the message says why."""


class Case(Frozen):
    """How one test ended."""

    id: str
    """`<classname>::<name>`, e.g. `tests.test_app.TestLimit::test_x[1]`."""
    outcome: CaseOutcome = "passed"
    kind: str = ""
    """Type of the exception, without its module; `xfail` for an expected failure."""
    message: str = Field("", max_length=1_000)
    tail: str = ""
    """Last 60 lines of the traceback."""
    crashed_in: str = ""
    """File that raised, as the traceback names it."""
    is_collection: bool = False
    """No test, but a file that could not be collected."""
    hits_stub: bool = False
    """`NotImplementedError` is somewhere in the traceback."""

    @property
    def is_red(self) -> bool:
        """Return whether it failed or broke."""
        return _RANK[self.outcome] >= _RANK["failed"]

    @property
    def name(self) -> str:
        """Return the test's own name."""
        return self.id.rpartition("::")[2]


def parse_junit(data: bytes) -> dict[str, Case]:
    """Return every case by id; of two with one id the worse counts, of two red ones the first.

    Raises:
        BadReport: Larger than 16 MiB, not XML, with a document type, too deep, or with too many cases.
    """
    if len(data) > REPORT_BYTES_MAX:
        raise BadReport(f"{len(data)} bytes; at most {REPORT_BYTES_MAX}")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: it names an encoding that does not exist
        raise BadReport(f"is not XML: {error}") from error
    if not reader.seen_suite:
        raise BadReport("is XML without a test suite")
    return reader.cases


class _Reader:
    """Collects cases from the events of one parse."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.seen_suite = False
        self._depth = 0
        self._case: dict[str, str] | None = None
        self._ends: list[tuple[CaseOutcome, dict[str, str], str]] = []
        self._child: tuple[CaseOutcome, dict[str, str]] | None = None
        self._text: list[str] = []
        self._room = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX or len(attributes) > ATTRIBUTES_MAX:
            raise BadReport(f"is nested deeper than {DEPTH_MAX}, or has an element with more than {ATTRIBUTES_MAX} attributes")
        if tag in {"testsuites", "testsuite"}:
            self.seen_suite = True
        elif tag == "testcase":
            if self._case is not None:
                raise BadReport("has a case inside a case")
            if len(self.cases) >= CASES_MAX:
                raise BadReport(f"has more than {CASES_MAX} cases")
            self._case, self._ends = attributes, []
        elif tag in _CHILDREN and self._case is not None and self._child is None:
            self._child, self._text, self._room = (_CHILDREN[tag], attributes), [], TEXT_CHARS_MAX

    def text(self, data: str) -> None:
        if self._child is not None and self._room > 0:
            self._text.append(data[: self._room])
            self._room -= len(data)

    def end(self, tag: str) -> None:
        self._depth -= 1
        if self._child is not None and _CHILDREN.get(tag) == self._child[0]:
            self._ends.append((*self._child, "".join(self._text)))
            self._child = None
        elif tag == "testcase" and self._case is not None:
            self._add(_case(self._case, self._ends))
            self._case = None

    def _add(self, case: Case) -> None:
        other = self.cases.get(case.id)
        # Of a failure and the broken teardown after it the failure says more, and it comes first.
        if other is None or (not other.is_red and _RANK[case.outcome] > _RANK[other.outcome]):
            self.cases[case.id] = case


def _refuse(*_: object) -> None:
    raise BadReport("declares a document type or an entity; a report needs none")


def _case(attributes: dict[str, str], ends: list[tuple[CaseOutcome, dict[str, str], str]]) -> Case:
    name, owner = attributes.get("name", ""), attributes.get("classname", "")
    id_ = f"{owner}::{name}" if owner else f"::{name}"
    if not name or len(id_) > ID_CHARS_MAX:
        raise BadReport(f"has a case without a name, or with one of more than {ID_CHARS_MAX} characters")
    if not ends:
        return Case(id=id_)
    outcome, about, text = max(ends, key=lambda end: _RANK[end[0]])
    message = about.get("message", "")
    return Case(
        id=id_,
        outcome=outcome,
        kind=_kind(outcome, about, message, text),
        message=message[:1_000],
        tail=tail_of(text),
        crashed_in=_crash(text)[0],
        is_collection=message == "collection failure",
        hits_stub="NotImplementedError" in text or "NotImplementedError" in message,
    )


def tail_of(text: str) -> str:
    """Return the last 60 lines, at most 8,000 characters."""
    return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])[-TAIL_CHARS_MAX:]


_NAMED = re.compile(r'(?:failed on (?:setup|teardown) with ")?((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?=:|"|$|\n)')
_CRASH = re.compile(r"([^\s:][^\n:]{0,400}):([0-9]{1,7}): ((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)$")
_RAISED = re.compile(r"^E {3}((?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?::|$)")


def _kind(outcome: CaseOutcome, about: dict[str, str], message: str, text: str) -> str:
    """Return the exception's type: from the traceback's last line, its `E` lines, the message, or the attribute some writers give."""
    if outcome == "skipped":
        return "xfail" if about.get("type") == "pytest.xfail" else "skip"
    if re.search(r"^E? *fixture '[^']*' not found", text[-20_000:], re.MULTILINE) or "recursive dependency involving fixture" in message:
        return "FixtureLookupError"
    crash = _crash(text)[1]
    if crash:
        return crash
    raised = [match.group(1) for line in text[-20_000:].splitlines() if (match := _RAISED.match(line[:400]))]
    if raised:
        return _short(raised[-1])
    if message.removeprefix('failed on setup with "').startswith("assert "):
        return "AssertionError"
    named = _NAMED.match(message[:400])
    if named and (named.group(1)[0].isupper() or "." in named.group(1)):
        return _short(named.group(1))
    return _short(about.get("type", ""))


def _crash(text: str) -> tuple[str, str]:
    """Return file and exception type of the last line pytest writes under a traceback, `path:12: KeyError`."""
    for line in reversed(text.rstrip().splitlines()[-3:]):
        match = _CRASH.match(line.strip()[:600])
        if match:
            return match.group(1), _short(match.group(3))
    return "", ""


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1][:100]
