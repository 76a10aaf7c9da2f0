"""SARIF from a sandbox, read within bounds: what a scanner found and whether it scanned at all; not whether that is good (`checks`)."""

import json
from typing import Any, NoReturn

from sandbox.contract.model import Frozen

REPORT_BYTES_MAX = 16 << 20
RESULTS_MAX = 20_000
_SILENT_LEVELS = ("none", "note")
"""What is no finding; a level of another kind, or none SARIF knows, counts."""


class BadSarif(ValueError):
    """The file is no SARIF log we would believe; the message says why."""


class Scan(Frozen):
    """What one log says."""

    results: dict[str, int]
    """Findings, but for levels none and note, by `rule path: message`, with how often each is there; without line numbers."""
    suppressed: int = 0
    """Findings the scanner was told to be silent about."""
    problems: tuple[str, ...] = ()
    """Why the scan is no evidence: a failed invocation, errors of the tool, nothing scanned."""


def parse_sarif(data: bytes) -> Scan:
    """Return what a SARIF 2.1 log says.

    Raises:
        BadSarif: Larger than 16 MiB, not strict JSON, too deep, or without a run.
    """
    if len(data) > REPORT_BYTES_MAX:
        raise BadSarif(f"{len(data)} bytes; at most {REPORT_BYTES_MAX}")
    document = _loaded(data)
    runs = document.get("runs") if isinstance(document, dict) else None
    if not isinstance(runs, list) or not runs:
        raise BadSarif("has no run: it is no SARIF log, or nothing was scanned")
    results: dict[str, int] = {}
    problems: list[str] = []
    suppressed = 0
    for run in runs:
        run = _mapping(run)
        problems += _problems(run)
        for result in _sequence(run.get("results"))[:RESULTS_MAX]:
            result = _mapping(result)
            if _sequence(result.get("suppressions")):
                suppressed += 1
            elif result.get("level", "warning") not in _SILENT_LEVELS:
                key = _key(result)
                results[key] = results.get(key, 0) + 1
    return Scan(results=results, suppressed=suppressed, problems=tuple(problems[:20]))


def _loaded(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except BadSarif:
        raise
    except (ValueError, RecursionError) as error:
        raise BadSarif(f"is not JSON: {str(error)[:200]}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise BadSarif(f"holds {name}, which is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise BadSarif("has a key twice")
    return document


def _problems(run: dict[str, Any]) -> list[str]:
    problems = []
    for invocation in _sequence(run.get("invocations")):
        invocation = _mapping(invocation)
        if invocation.get("executionSuccessful") is False:
            problems.append("the scanner says that it did not finish")
        notices = [*_sequence(invocation.get("toolExecutionNotifications")), *_sequence(invocation.get("toolConfigurationNotifications"))]
        problems += [
            f"the scanner reports an error: {_message(_mapping(each))}" for each in notices if _mapping(each).get("level") == "error"
        ]
    if run.get("artifacts") == []:
        problems.append("the scanner looked at no file")
    return problems


def _key(result: dict[str, Any]) -> str:
    locations = _sequence(result.get("locations"))
    physical = _mapping(_mapping(locations[0] if locations else None).get("physicalLocation"))
    where = _mapping(physical.get("artifactLocation")).get("uri", "")
    return _storable(f"{result.get('ruleId', '')} {where}: {_message(result)}"[:500])


def _message(holder: dict[str, Any]) -> str:
    return _storable(" ".join(str(_mapping(holder.get("message")).get("text", "")).split())[:300])


def _storable(text: str) -> str:
    """Replace lone surrogates: JSON can hold them, an object of the store cannot."""
    return text.encode("utf-8", "replace").decode()


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
