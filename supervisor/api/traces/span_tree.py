"""A run's trace file as a tree a person reads: what took how long, what it cost, what broke, what still runs; made in `run_trace`.

What is not in the file because it has not ended is taken from the run's state: the run itself, and the attempts that are going on.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sandbox.contract.ids import attempt_path, process_span_id, program_span_id, span_id
from supervisor.api.inert import inert_line
from supervisor.api.report import duration
from supervisor.api.traces.span_lines import spans_of
from supervisor.pipeline.run import AttemptState, JobState, RunState

FILE_BYTES_MAX: Final = 256 << 20
LOOSE: Final = "(below something that has not ended)"
DEPTH_MAX: Final = 20
"""Levels; a sandbox may nest spans as deep as it likes, and what is deeper is drawn beside the last one."""
_FEW_S: Final = 0.0005


@dataclass
class Node:
    """One span, ended or not."""

    span_id: str
    name: str
    start: float
    """Unix seconds."""
    end: float | None
    """None: it still goes on."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Its `error.type`; empty: none."""
    children: list["Node"] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Return whether it, or anything in it, still goes on."""
        return self.end is None or any(child.is_open for child in self.children)

    @property
    def nano_usd(self) -> int:
        """Return what the model calls in it cost."""
        own = self.attributes.get("gen_ai.usage.cost.amount", 0.0)
        return round(float(own) * 1e9) + sum(child.nano_usd for child in self.children)

    @property
    def title(self) -> str:
        """Return its name with what tells it from others of that name."""
        said = [self.name]
        attempt, round_ = self.attributes.get("andon.attempt", 1), self.attributes.get("andon.round", 1)
        said += [f"round {round_}"] if round_ > 1 else []
        said += [f"attempt {attempt}"] if attempt > 1 else []
        exit_code = self.attributes.get("process.exit.code", 0)
        said += [f"exit {exit_code}"] if exit_code else []
        return inert_line(", ".join(map(str, said)), 120)


def trace_tree(path: Path, run: RunState) -> Node:
    """Return the root of a run's trace; what a bad disk made unreadable is left out."""
    nodes, parents = {}, {}
    for node, parent in _spans(path):
        nodes[node.span_id] = node
        parents[node.span_id] = parent
    root = nodes.get(span_id(run.run_id)) or Node(span_id(run.run_id), f"RUN {run.pipeline.name}", run.accepted_at, run.ended_at)
    nodes[root.span_id] = root
    for node, parent in _going_on(run, set(parents.values())):
        if nodes.setdefault(node.span_id, node) is node:
            parents[node.span_id] = parent
    loose = Node("", LOOSE, 0.0, None)
    for identity, parent in parents.items():
        if identity != root.span_id:
            nodes.get(parent, loose).children.append(nodes[identity])
    if loose.children:
        loose.start = min(child.start for child in loose.children)
        root.children.append(loose)
    _flatten(root)
    return root


def lines_of(root: Node, *, depth_max: int | None = None, is_open_only: bool = False) -> list[tuple[str, Node]]:
    """Return the tree from the top as lines to print beside figures: branches and title, and the node.

    Args:
        root: Of the tree.
        depth_max: How many levels below the root; None: all.
        is_open_only: Only what has not ended, and what it is in.
    """

    def walk(node: Node, lead: str, depth: int) -> Iterator[tuple[str, Node]]:
        children = [child for child in node.children if child.is_open or not is_open_only]
        if depth_max is not None and depth >= depth_max:
            return
        for child in children:
            is_last = child is children[-1]
            yield f"{lead}{'└─ ' if is_last else '├─ '}{child.title}", child
            yield from walk(child, lead + ("   " if is_last else "│  "), depth + 1)

    return [(root.title, root), *walk(root, "", 0)]


def seconds_of(node: Node, now: float) -> float:
    """Return how long it took, or has taken up to now."""
    return max(0.0, (now if node.end is None else node.end) - node.start)


def time_of(node: Node, now: float) -> str:
    """Return the same for a person."""
    return words_of(seconds_of(node, now))


def words_of(seconds: float) -> str:
    """Return a span of time for a person: milliseconds below a second."""
    if seconds < _FEW_S:
        return "0"
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.9995 else duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def bar_of(node: Node, root: Node, now: float, width: int) -> str:
    """Return where in the run's time it lies, as `width` characters; the smallest is one character."""
    whole = seconds_of(root, now) or 1.0
    begin = min(width - 1, max(0, int((node.start - root.start) / whole * width)))
    end = (now if node.end is None else node.end) - root.start
    filled = max(1, min(width, round(end / whole * width)) - begin)
    return f"{' ' * begin}{'█' * filled}{' ' * (width - begin - filled)}"


def unended(root: Node) -> list[Node]:
    """Return what goes on at this moment, outermost first."""
    found, left = [], [root]
    while left:
        node = left.pop(0)
        found += [node] if node.end is None else []
        left += node.children
    return found


def _going_on(run: RunState, named: Collection[str]) -> Iterator[tuple[Node, str]]:
    """Yield what has not ended, with its parent's id; of an attempt's insides only what a span that has ended names as its parent."""
    for job in run.jobs.values():
        for attempt in job.attempts:
            if attempt.ended is None and run.ended_at is None:
                yield from _attempt(run, job, attempt, named)


def _attempt(run: RunState, job: JobState, attempt: AttemptState, named: Collection[str]) -> Iterator[tuple[Node, str]]:
    path = attempt_path(run.run_id, job.stage, job.round, attempt.attempt)
    about = {"andon.attempt": attempt.attempt, "andon.round": job.round, "cicd.worker.id": attempt.executor}
    start = job.dispatched_at if attempt.attempt == 1 else attempt.started_at
    yield Node(span_id(path), f"stage {job.stage}", start, None, about), span_id(run.run_id)
    stage = next((each for each in run.pipeline.stages if each.name == job.stage), None)
    process, program = process_span_id(path), program_span_id(path)
    if {process, program} & set(named):
        yield Node(process, f"process andon.job.{stage.pool if stage else 'default'}", attempt.started_at, None), span_id(path)
    if program in named:
        name = f"invoke_agent {stage.agent or stage.name}" if stage and job.kind == "agent" else f"run {job.stage} checks"
        yield Node(program, name, attempt.started_at, None), process


def _flatten(root: Node) -> None:
    """Put siblings in the order they began, and what is deeper than `DEPTH_MAX` on that level."""
    left = [(root, 0)]
    while left:
        node, depth = left.pop()
        if depth == DEPTH_MAX - 1:
            for child in node.children:  # grows while it is read
                node.children += child.children
                child.children = []
        node.children.sort(key=lambda child: (child.start, child.name))
        left += [(child, depth + 1) for child in node.children]


def _spans(path: Path) -> Iterator[tuple[Node, str]]:
    """Yield the spans of a file with their parents' ids; one that is none is passed over."""
    for span in spans_of(_beginning(path)):
        try:
            yield _node(span)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return b""


def _node(span: Mapping[str, Any]) -> tuple[Node, str]:
    attributes = {each["key"]: _value(each["value"]) for each in span.get("attributes", ())}
    start, end = (int(span[key]) / 1e9 for key in ("startTimeUnixNano", "endTimeUnixNano"))
    is_error = span.get("status", {}).get("code") == 2
    error = str(attributes.get("error.type", "error")) if is_error else ""
    return Node(str(span["spanId"]), str(span["name"]), start, end, attributes, error), str(span.get("parentSpanId", ""))


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(each) for each in content.get("values", ())]
    return int(content) if kind == "intValue" else content


def widest(lines: Sequence[tuple[str, Node]]) -> int:
    """Return the width of the longest title with its branches."""
    return max(len(text) for text, _ in lines)
