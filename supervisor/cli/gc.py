"""`andon gc`: say what may go from this host and how much that frees, then remove it."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.app import App, say

if TYPE_CHECKING:
    from supervisor.bootstrap.gc import Found, Survey


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say it.")
@click.option("--older-than", type=click.IntRange(0, 36_500), default=30, show_default=True, metavar="DAYS", help="Age of finished runs.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object; needs --yes or --dry-run.")
@click.pass_obj
def command(app: App, dry_run: bool, older_than: int, yes: bool, as_json: bool) -> int:
    """Remove what nobody needs any more: old runs, leftovers of dead executors, images of other versions.

    Only what Andon made, and nothing that is in use. Salvaged work is kept three times as long as runs.
    """
    from supervisor.errors import ExitCode, UsageError

    if as_json and not (dry_run or yes):
        raise UsageError("--json does not ask: say --yes to remove, or --dry-run to look")
    failed = asyncio.run(_collect(app, older_than, is_dry=dry_run, is_sure=yes, as_json=as_json))
    return ExitCode.INFRASTRUCTURE if failed else ExitCode.DONE


async def _collect(app: App, days: int, *, is_dry: bool, is_sure: bool, as_json: bool) -> bool:
    """Return whether something could not be removed."""
    from supervisor.bootstrap.gc import surveyed

    async with surveyed(app.config(), app.reading(), days, app.now()) as survey:
        if not as_json:
            _show(survey)
        wanted = bool(survey.found) and not is_dry and (is_sure or _agreed())
        errors = {id(found): await _removed(found) for found in survey.found} if wanted else {}
        if as_json:
            click.echo(json.dumps(_object(survey, errors, is_removed=wanted), indent=2))
        elif wanted:
            gone = sum(not error for error in errors.values())
            click.echo(f"removed {gone} of {len(survey.found)}")
    for error in filter(None, errors.values()):
        say(error)
    return any(errors.values())


def _agreed() -> bool:
    from supervisor.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: say --yes to remove this, or --dry-run to look")
    return click.confirm("remove this?", default=False)


async def _removed(found: "Found") -> str:
    """Remove one thing and return why that failed, empty if it did not."""
    from supervisor.errors import AndonError

    try:
        await found.remove()
    except (AndonError, OSError) as error:
        return f"{found.item.kind} {found.item.name}: {error}"
    return ""


def _show(survey: "Survey") -> None:
    from supervisor.api.inert import inert_line

    items = [found.item for found in survey.found]
    width = max((len(item.kind) for item in items), default=0)
    for item in items:
        size = _size(item.frees_bytes) if item.frees_bytes else ""
        click.echo(f"{item.kind:<{width}}  {size:>9}  {inert_line(item.name, 200)}  {inert_line(item.why, 200)}")
    for note in survey.notes:
        say(note)
    total = sum(item.frees_bytes for item in items)
    click.echo(f"{len(items)} to remove, {_size(total)} at least" if items else "nothing to remove")


def _size(count: int) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _object(survey: "Survey", errors: dict[int, str], *, is_removed: bool) -> dict[str, Any]:
    items = [
        found.item.model_dump() | {"removed": is_removed and not errors.get(id(found)), "error": errors.get(id(found)) or None}
        for found in survey.found
    ]
    return {"items": items, "notes": survey.notes, "frees_bytes": sum(found.item.frees_bytes for found in survey.found)}
