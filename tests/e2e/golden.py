"""The span tree of the sample's replay as text: what a trace says, without what differs from run to run. `make golden` writes it anew."""

import difflib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.e2e.line import Line
from tests.fakes.traces import SeenSpan, SeenTrace

FILE: Final = Path(__file__).with_name("replayed_run.trace.txt")
KINDS: Final = ("", "internal", "server", "client", "producer", "consumer")
STAGES: Final = ("baseline", "spec", "interface", "test", "implement", "red-check", "validate", "docs")
"""In this order whichever of two at once began first."""
VARYING: Final = frozenset(
    {
        "andon.call.waited_s",
        "andon.container.waited_s",
        "andon.queue.unpublished_s",
        "andon.run.id",
        "andon.tool.output.bytes",
        "cicd.pipeline.run.id",
        "cicd.pipeline.run.url.full",
        "cicd.pipeline.task.run.id",
        "cicd.pipeline.task.run.url.full",
        "cicd.worker.id",
        "container.id",
        "container.image.id",
        "gen_ai.conversation.id",
        "gen_ai.response.time_to_first_chunk",
        "gen_ai.tool.call.id",
        "messaging.message.id",
        "vcs.ref.head.revision",
    }
)
"""Attributes whose presence is kept, and whose value is an id, a time, or follows from one."""


def told(trace: SeenTrace) -> str:
    """Return every span as a line, its attributes below it, its children deeper, siblings by stage and start."""
    children: dict[str, list[SeenSpan]] = {}
    for span in sorted(trace.spans, key=_order):
        children.setdefault(span.parent_id, []).append(span)

    def lines(span: SeenSpan, depth: int) -> Iterator[str]:
        lead = "    " * depth
        links = f", {len(span.links)} link" if span.links else ""
        yield f"{lead}{span.name} ({span.service}, {KINDS[span.kind]}{links}{', error' if span.is_error else ''})"
        yield from (f"{lead}  . {key} = {_value(key, span)}" for key in sorted(span.attributes))
        for child in children.get(span.span_id, ()):
            yield from lines(child, depth + 1)

    return "".join(f"{line}\n" for root in children.get("", ()) for line in lines(root, 0))


def _order(span: SeenSpan) -> tuple[int, float, str]:
    kind, stage = span.name.split()[0], span.attributes.get("andon.stage.name")
    of_stage = STAGES.index(stage) if kind in {"dispatch", "stage", "merge"} and stage in STAGES else -1
    return len(STAGES) if kind == "commit" else of_stage, span.start, span.name


def _value(key: str, span: SeenSpan) -> str:
    return "…" if key in VARYING else repr(span.attributes[key])


def difference(trace: SeenTrace) -> str:
    """Return in what a trace differs from the kept one, as a diff a person reads; empty if in nothing."""
    kept, now = FILE.read_text().splitlines(), told(trace).splitlines()
    return "\n".join(difflib.unified_diff(kept, now, "kept (make golden writes it anew)", "this run", lineterm="", n=4))


def replayed(home: Path) -> SeenTrace:
    """Replay the sample on a stack of its own and return the trace."""
    line = Line(home, {})
    done = line.run(timeout_s=600)
    if done.exit_code != 0:
        raise RuntimeError(done.stderr)
    return SeenTrace.of_file(line.state / "runs" / done.result["run_id"] / "trace.otlp.jsonl")


def main() -> int:
    """Write the file anew."""
    with tempfile.TemporaryDirectory(prefix="andon-golden-") as home:
        trace = replayed(Path(home))
    FILE.write_text(told(trace))
    sys.stdout.write(f"{FILE.name}: {len(trace.spans)} spans; look at the diff before you commit it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
