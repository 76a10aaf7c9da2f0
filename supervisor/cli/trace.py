"""`andon trace [RUN]`: the run's trace as a tree in the terminal, from its file; starts nothing and needs no Jaeger."""

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.api.traces.span_tree import Node

BAR_CHARS = 24
SHARES_SHOWN_MAX = 6
_TITLE_CHARS_MIN = 24
_FIGURES_CHARS = 30
"""Of time, cost and the space between the columns."""


@click.command()
@run_argument(required=False)
@click.option("--depth", type=click.IntRange(1, 64), help="How many levels.  [default: all]")
@click.option("--open", "is_open", is_flag=True, help="Only what is running now, and since when.")
@click.option("--json", "as_json", is_flag=True, help="Print the tree as one JSON object.")
@click.pass_obj
def command(app: App, run_id: str | None, depth: int | None, is_open: bool, as_json: bool) -> None:
    """Show the trace of a run as a tree: time, cost, errors. Without RUN: the newest.

    The bars show when in the run each part was. The file opens in the upload tab of Jaeger, too.
    """
    from supervisor.api.inert import inert_line
    from supervisor.api.traces.critical_path import own_seconds
    from supervisor.api.traces.span_tree import lines_of, trace_tree, unended
    from supervisor.errors import UsageError

    files = files_named(app, run_id)
    run = files.run()
    if files.is_afar and not files.trace_path.exists():
        raise UsageError(f"the trace of run {run.run_id} is on its supervisor's host; look there, or at {run.trace_url or run.trace_id}")
    if not run.sampled and not is_open:
        click.echo(f"run {run.run_id} has no trace: it was not sampled (OTEL_TRACES_SAMPLER)", err=True)
        return
    root, now = trace_tree(files.trace_path, run), app.now()
    if is_open and not unended(root):
        click.echo(f"nothing of run {run.run_id} is running: it is {run.state}", err=True)
        return
    if as_json:
        click.echo(json.dumps(_object(root, now, own_seconds(root, now), is_open_only=is_open), indent=2))
        return
    _print(lines_of(root, depth_max=depth, is_open_only=is_open), root, now, no_color=app.config().no_color)
    if is_open:
        _say_what_it_does(app, run.run_id)
    else:
        _say_where_the_time_went(root, now)
        click.echo(f"\ntrace {run.trace_id}, {files.trace_path}")
        if run.trace_url:
            click.echo(inert_line(run.trace_url, 300))


def _print(lines: "list[tuple[str, Node]]", root: "Node", now: float, *, no_color: bool) -> None:
    from supervisor.api.traces.span_tree import bar_of, time_of, widest

    room = shutil.get_terminal_size((120, 24)).columns - _FIGURES_CHARS
    bar = BAR_CHARS if room - BAR_CHARS >= min(widest(lines), 2 * _TITLE_CHARS_MIN) else 0
    titles = max(_TITLE_CHARS_MIN, min(widest(lines), room - bar))
    for text, node in lines:
        shown = text if len(text) <= titles else f"{text[: titles - 1]}…"
        cost = f"${node.nano_usd / 1e9:.4f}" if node.nano_usd else ""
        said = f"{shown:<{titles}} {time_of(node, now):>10} {cost:>10}"
        said += f"  {bar_of(node, root, now, bar)}" if bar else ""
        said += f"  {node.error}" if node.error else "  running" if node.end is None else ""
        colour = "red" if node.error else "cyan" if node.end is None else None
        click.echo(said.rstrip() if no_color or colour is None else click.style(said.rstrip(), fg=colour))


def _say_where_the_time_went(root: "Node", now: float) -> None:
    """Add what was longest on the critical path: what would have to be quicker for the run to be."""
    from supervisor.api.traces.critical_path import shares
    from supervisor.api.traces.span_tree import seconds_of, words_of

    whole = seconds_of(root, now) or 1.0
    found = shares(root, now)
    rest = sum(share.seconds for share in found[SHARES_SHOWN_MAX:])
    found = found[:SHARES_SHOWN_MAX]
    widths = [max((len(text) for text in column), default=0) for column in zip(*((each.what, each.part) for each in found), strict=True)]
    click.echo("\nwhere the time went (critical path):")
    for each in found:
        times = f"  ×{each.times}" if each.times > 1 else ""
        line = f"  {words_of(each.seconds):>10}  {each.seconds / whole:>4.0%}  {each.what:<{widths[0]}}  {each.part:<{widths[1]}}{times}"
        click.echo(line.rstrip())
    if rest:
        click.echo(f"  {words_of(rest):>10}  {rest / whole:>4.0%}  all else")


def _say_what_it_does(app: App, run_id: str) -> None:
    """Add what the supervisor knows of each attempt: which tool, on which host, since when."""
    from supervisor.api.inert import inert_line
    from supervisor.cli.why import asked

    _, reply = asyncio.run(asked(app, run_id))
    for reason in reply.reasons:
        if reason.kind in {"running", "throttled"}:
            click.echo(f"  {inert_line(reason.text, 200)}")


def _object(node: "Node", now: float, own: "Mapping[int, float]", *, is_open_only: bool) -> dict[str, Any]:
    from supervisor.api.traces.span_tree import seconds_of

    children = [child for child in node.children if child.is_open or not is_open_only]
    return {
        "name": node.name,
        "span_id": node.span_id,
        "started_at": node.start,
        "seconds": round(seconds_of(node, now), 6),
        "critical_seconds": round(own.get(id(node), 0.0), 6),
        "running": node.end is None,
        "error": node.error,
        "nano_usd": node.nano_usd,
        "attributes": dict(node.attributes),
        "children": [_object(child, now, own, is_open_only=is_open_only) for child in children],
    }
