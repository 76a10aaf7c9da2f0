"""The message of the one commit that lands: subject, requirements, trailers; not the landing itself (`integrator`)."""

import hashlib

from sandbox.contract.errors import ConfigError, Rejected
from sandbox.contract.tree import Tree
from supervisor.gates.spec import parse_spec
from supervisor.pipeline.bounded_yaml import BYTES_MAX
from supervisor.pipeline.run import RunState
from supervisor.stages.contract import spec_path

SUBJECT_CHARS_MAX = 72
_LINE_CHARS_MAX = 200
_REQUIREMENTS_MAX = 30


def landing_message(run: RunState, tree: Tree) -> str:
    """Return the commit message of a run's work.

    Nothing of it but the trailers stands in its last paragraph, so no text of a person or an agent can pass for one.

    Args:
        run: For request, cost and ids.
        tree: What lands.
    """
    path = spec_path(run.pipeline, run.intent.feature)
    data = _read(tree, path)
    trailers = [
        f"Andon-Run: {run.run_id}",
        f"Andon-Trace: {run.trace_id}",
        f"Andon-Cost: ${cost_usd(run.budget.settled_nano_usd)}",
    ]
    if data is not None:
        trailers.append(f"Andon-Spec: {path}@sha256:{hashlib.sha256(data).hexdigest()}")
    paragraphs = [_subject(run), *(["\n".join(told)] if (told := _requirements(data, path)) else []), "\n".join(trailers)]
    return "\n\n".join(paragraphs) + "\n"


def cost_usd(nano_usd: int) -> str:
    """Return an amount in dollars with four decimals, rounded half up, once (DECISIONS D13)."""
    tenths_of_mills = (nano_usd + 50_000) // 100_000
    return f"{tenths_of_mills // 10_000}.{tenths_of_mills % 10_000:04d}"


def _subject(run: RunState) -> str:
    first = next((line for line in run.intent.request.splitlines() if line.strip()), run.intent.feature)
    line = _one_line(first)
    if len(line) <= SUBJECT_CHARS_MAX:
        return line or run.intent.feature
    cut = line[: SUBJECT_CHARS_MAX - 1].rsplit(" ", 1)[0]
    return f"{cut}…"


def _requirements(data: bytes | None, path: str) -> list[str]:
    if data is None:
        return []
    try:
        spec = parse_spec(data.decode(), path)
    except (ConfigError, UnicodeDecodeError):
        return []
    lines = [_one_line(f"- {requirement.id}: {requirement.description}")[:_LINE_CHARS_MAX] for requirement in spec.requirements]
    return lines[:_REQUIREMENTS_MAX]


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _read(tree: Tree, path: str) -> bytes | None:
    try:
        return tree.read(path, BYTES_MAX)
    except (KeyError, Rejected):
        return None
