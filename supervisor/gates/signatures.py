"""What the locked interface declares when it is imported: as on the stubs, and as its text says; not the text itself (`implement`).

The same modules were imported on the stubs (red-check) and in the tree under test (validate), each by a process of the sandbox. Where
no red-check imported the stubs, functions are compared with the locked text, and what only an import shows is said to be open.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sandbox.contract.interface_lock import FileLock, InterfaceLock
from sandbox.contract.result import Finding
from sandbox.contract.signatures import PATHS_MAX, ModuleShape, Reading, Shape, SignatureReport
from supervisor.gates.declared import Declared, declared_functions
from supervisor.gates.evidence import Evidence
from supervisor.gates.shown import described
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.stages.importable import importable
from supervisor.stages.quality import SIGNATURES

CHECK = "signatures"
NAMED_MAX = 5

_EMPTY = Shape(kind="value", type="nothing")


def with_signatures(
    said: Judgement, evidence: Evidence, on_stubs: Evidence | None, locks: Sequence[InterfaceLock], *, is_wanted: bool
) -> Judgement:
    """Return the verdict on a tree with what its import shows of the locked interfaces.

    Args:
        said: What the other reports say.
        evidence: What the checks left on it.
        on_stubs: What the red-check left on the stubs; None: there was none.
        locks: Of the interfaces before the stage; none: nothing is owed.
        is_wanted: False if the base commit's `quality.toml` says that nothing is imported.
    """
    modules = importable(path for lock in locks for path in lock.files)
    if not modules:
        note = ["signatures: no Python module is locked, so nothing was compared at run time"] if locks else []
        return _added(said, [], note)
    check = evidence.checks.get(SIGNATURES)
    if check is None:
        if not is_wanted:
            return _added(said, [], ["signatures: compared as text only, because quality.toml says `signatures = false`"])
        missing = "the locked modules were not imported, so nobody saw what they declare at run time"
        return _added(said, [finding(CHECK, missing)], [])
    if check.signatures is None:
        return said  # why is told with the other checks that left no report
    stubs = on_stubs.checks.get(SIGNATURES) if on_stubs is not None else None
    return _compared(said, check.signatures, stubs.signatures if stubs is not None else None, locks, modules)


def with_stubs(said: Judgement, evidence: Evidence, locks: Sequence[InterfaceLock]) -> Judgement:
    """Return the verdict on new tests, which fails as the repository's fault if they reach the stubs and our Python cannot import them.

    No rework would help: `quality.toml` has to name another Python, and it is better to know before anything is implemented.

    Args:
        said: What the reports of the tests say.
        evidence: What the checks left on the stubs.
        locks: Of the interfaces before the validate stage.
    """
    check = evidence.checks.get(SIGNATURES)
    if check is None or said.findings:
        return said
    read = check.signatures.alone.modules if check.signatures is not None else {}
    paths = importable(path for lock in locks for path in lock.files)[:PATHS_MAX]
    wrong = [f"{path}: {_problem(read.get(path))}" for path in paths if _problem(read.get(path))]
    if not wrong:
        return said
    command, tail = " ".join(check.argv), check.output_tail.strip()[-500:] if check.signatures is None else ""
    message = (
        f"tests reach the stubs, but `{command}` cannot import them to read their signatures: {'; '.join(wrong[:NAMED_MAX])}. "
        'Say in quality.toml of the base commit how, e.g. `signatures = "env NAME=value python"`, or `signatures = false` '
        f"(docs/checks.md). {tail}"
    )
    return said.model_copy(update={"findings": (finding(CHECK, message.strip()),), "usage_error": True})


def _problem(module: ModuleShape | None) -> str:
    return "no answer" if module is None else module.problem


def _compared(
    said: Judgement, report: SignatureReport, stubs: SignatureReport | None, locks: Sequence[InterfaceLock], modules: Sequence[str]
) -> Judgement:
    expected = stubs.alone.modules if stubs is not None else {}
    findings = list(_differences(report.alone, expected, locks, modules, ""))
    if report.with_others is not None and not findings:
        when = " once the other changed modules are imported, too"
        findings = list(_differences(report.with_others, expected, locks, modules, when))
    return _added(said, findings, _notes(report, expected, modules))


def _differences(
    reading: Reading, expected: Mapping[str, ModuleShape], locks: Sequence[InterfaceLock], modules: Sequence[str], when: str
) -> Iterator[Finding]:
    for path in modules:
        found, stub = reading.modules.get(path), expected.get(path)
        if found is None or found.problem:
            why = found.problem if found is not None else f"was not imported: at most {PATHS_MAX} modules are"
            neither = "; nor could the stubs be (docs/checks.md, `signatures`)" if stub is not None and stub.problem else ""
            yield finding(CHECK, f"{path}: {why}{neither}{when}", path)
            continue
        for lock in locks:
            if path in lock.files:
                messages = _of_module(lock.files[path], found, stub if stub is not None and not stub.problem else None)
                yield from (finding(CHECK, f"{path}: {message}{when}", path) for message in dict.fromkeys(messages))


def _of_module(locked: FileLock, found: ModuleShape, stub: ModuleShape | None) -> Iterator[str]:
    names = {name.split(".")[0] for name in locked.symbols}
    if stub is None:
        for declared in declared_functions(locked):
            yield from _unlike_its_text(declared, found)
        return
    for name in sorted(name for name in names if not name.startswith("_")):
        yield from _unlike(name, stub.names.get(name), found.names.get(name))


def _unlike(name: str, stub: Shape | None, found: Shape | None) -> Iterator[str]:
    """Yield how what a name is bound to differs from what the stubs bind it to."""
    if stub == found:
        return
    if stub is None or found is None:
        yield f"`{name}` is bound only at run time" if stub is None else f"`{name}` is locked and not there after the import"
    elif stub.kind == found.kind == "class":
        yield from _unlike_class(name, stub, found)
    else:
        yield f"`{name}` is locked as `{described(stub)}`, and after the import it is `{described(found)}`"


def _unlike_class(name: str, stub: Shape, found: Shape) -> Iterator[str]:
    for what, before, after in (
        ("the class", stub.type, found.type),
        ("the bases", ", ".join(stub.bases), ", ".join(found.bases)),
        ("`__signature__`", stub.claims or "absent", found.claims or "absent"),
    ):
        if before != after:
            yield f"{what} of `{name}`, locked: {before}; after the import: {after}"
    members, now = _members(stub), _members(found)
    for key in sorted(members.keys() | now.keys()):
        if key in members or not key.startswith("_") or key in {"__init__", "__new__"}:
            yield from _unlike(f"{name}.{key}", members.get(key), now.get(key))


def _members(shape: Shape) -> dict[str, Shape]:
    """Return a class's members; an `__init__` without parameters is what every class has."""
    return {key: each for key, each in shape.members.items() if key not in {"__init__", "__new__"} or len(each.parameters) != 1}


def _unlike_its_text(declared: Declared, found: ModuleShape) -> Iterator[str]:
    """Yield how a function differs from its locked text."""
    shape = _at(found.names, declared.name)
    if shape is None:
        yield f"`{declared.name}` is locked and not there after the import"
        return
    inner = (shape.inner or (_EMPTY,))[0] if shape.kind == declared.kind != "function" else shape
    if shape.kind != declared.kind or inner.kind != "function" or inner.inner or inner.claims or not declared.fits(inner):
        yield f"`{declared.name}` is locked as `{declared.text}`, and after the import it is `{described(shape)}`"


def _at(names: Mapping[str, Shape], dotted: str) -> Shape | None:
    head, _, rest = dotted.partition(".")
    shape = names.get(head)
    return shape if shape is None or not rest else _at(shape.members, rest)


def _notes(report: SignatureReport, expected: Mapping[str, ModuleShape], modules: Sequence[str]) -> list[str]:
    notes = []
    alone = [path for path in modules if path not in expected or expected[path].problem]
    if alone:
        notes.append(f"signatures: compared with the text only, because nobody imported the stubs: {_named(alone)}")
    failed = report.with_others.failed if report.with_others is not None else {}
    if failed:
        told = "; ".join(f"{path} ({why[:100]})" for path, why in sorted(failed.items())[:NAMED_MAX])
        notes.append(f"signatures: {len(failed)} other changed modules cannot be imported: {told}")
    return notes


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED_MAX} more" if len(paths) > NAMED_MAX else ""
    return ", ".join(paths[:NAMED_MAX]) + more


def _added(said: Judgement, findings: Iterable[Finding], notes: Sequence[str]) -> Judgement:
    """Return a verdict with our findings first: red tests may be their consequence."""
    return judgement(
        [*findings, *said.findings],
        [*said.notes, *notes],
        tests=said.tests,
        assurance=said.assurance,
        evidence=said.evidence,
        usage_error=said.usage_error,
    )
