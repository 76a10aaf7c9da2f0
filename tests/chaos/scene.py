"""What agents do in a chaos run, and what has to be true of the world afterwards: read from the provider's log and from git only.

Every attempt writes files that name it, so that a file tells which attempt wrote it, and the provider's log tells which attempts
had written it: an attempt's next call carries the result of the write.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sandbox.contract.price import shipped_prices
from tests.e2e.watching import every_byte, is_delivered
from tests.fakes.repositories import run_git
from tests.fakes.script import Conversation, Script, Turn, bash, conversation, create, does, submit
from tests.fakes.scripted_model import Logged

ATTEMPTS_MAX = 40
"""Attempts of one job the script knows; a job that needs more fails as the script has nothing to say."""
WRITTEN = {"implement": ("notes_api/chaos.py", "notes_api/chaos_more.py"), "docs": ("docs/chaos.md", "docs/chaos-more.md")}
"""What each agent writes: the first file in its first turn, the second in its third."""
PIPELINE = """\
pipeline:
  name: chaos
  retries_max: 2
  stages:
    - {name: implement, agent: implement}
    - {name: docs, agent: docs}
"""
VALIDATED_PIPELINE = PIPELINE + "    - {name: validate, type: builtin, depends_on: [implement, docs]}\n"


def written_by(stage: str, which: int, round_: int, attempt: int) -> str:
    """Return the text one attempt writes into its first (0) or second (1) file."""
    if stage == "implement":
        return f'"""Chaos, part {which}."""\n\nWRITER = "{stage} {round_} {attempt}"\n'
    return f"# Chaos, part {which}\n\nWritten by {stage} {round_} {attempt}.\n"


def script(*, dawdle_s: float, stream_s: float = 0.4) -> Script:
    """Return the script: each agent writes, dawdles, writes again, submits; the stream of its second turn takes `stream_s`."""
    told = [_told(stage, attempt, dawdle_s, stream_s) for stage in WRITTEN for attempt in range(1, ATTEMPTS_MAX + 1)]
    return Script("scripted: chaos", tuple(told))


def _told(stage: str, attempt: int, dawdle_s: float, stream_s: float) -> Conversation:
    first, second = WRITTEN[stage]
    turns: tuple[Turn, ...] = (
        does(create(first, written_by(stage, 0, 1, attempt))),
        bash(f"sleep {dawdle_s:g}; echo waited", delay_s=stream_s),
        does(create(second, written_by(stage, 1, 1, attempt))),
        submit(f"Wrote two files, attempt {attempt}."),
    )
    return conversation(stage, *turns, attempts={attempt})


@dataclass(frozen=True)
class Before:
    """A repository as it was before a run."""

    repository: Path
    head: str
    bytes: dict[str, str]

    @classmethod
    def of(cls, repository: Path) -> "Before":
        """Look at it."""
        return cls(repository, run_git(repository, "rev-parse", "HEAD"), every_byte(repository))


def problems_of_repository(before: Before, branch: str, *, landed: bool) -> list[str]:
    """Return what is wrong with a user's repository after a run that landed on `branch`, or did not land."""
    repository, found = before.repository, []
    after = every_byte(repository)
    foreign = [name for name in sorted({*before.bytes, *after}) if before.bytes.get(name) != after.get(name) and not is_delivered(name)]
    if foreign:
        found.append(f"the repository is changed beside its new branch: {foreign[:5]}")
    found += [f"left in the repository: {name}" for name in sorted(set(after) - set(before.bytes)) if name.endswith(".lock")]
    branches = [one for one in run_git(repository, "for-each-ref", "--format=%(refname:short)", "refs/heads").split() if one != "main"]
    if branches != ([branch] if landed else []):
        return [*found, f"branches {branches} where there should be {[branch] if landed else 'none'}"]
    return [*found, *_problems_of_commit(before, branch)] if landed else found


def _problems_of_commit(before: Before, branch: str) -> list[str]:
    repository, found = before.repository, []
    count = run_git(repository, "rev-list", "--count", f"{before.head}..{branch}")
    parents = run_git(repository, "log", "-1", "--format=%P", branch)
    if count != "1" or parents != before.head:
        found.append(f"{branch} is {count} commits on its base and has the parents {parents!r}, not one commit on {before.head}")
    expected = {name for names in WRITTEN.values() for name in names}
    changed = set(run_git(repository, "diff", "--name-only", f"main..{branch}").split())
    if changed != expected:
        return [*found, f"{branch} changes {sorted(changed)}, not {sorted(expected)}"]
    for stage, names in WRITTEN.items():
        texts = [run_git(repository, "show", f"{branch}:{name}") for name in names]
        possible = [[written_by(stage, which, 1, attempt).strip() for which in (0, 1)] for attempt in range(1, ATTEMPTS_MAX + 1)]
        if [text.strip() for text in texts] not in possible:
            found.append(f"the files of {stage} are not those of one attempt: {texts}")
    return found


def writes_known(calls: list[Logged], run_id: str) -> set[tuple[str, int, int, int]]:
    """Return (stage, round, attempt, which file) for everything the provider knows to have been written in a run."""
    return {
        (call.stage, call.round, call.attempt, which)
        for call in calls
        if call.run == run_id
        for which, turn in enumerate((1, 3))
        if call.turn >= turn
    }


def problems_of_work(calls: list[Logged], run_id: str, mirror: Path, places: list[str]) -> list[str]:
    """Return what an agent had written and is in none of the commits at `places` nor on a salvage ref of its attempt."""
    found = []
    for stage, round_, attempt, which in sorted(writes_known(calls, run_id)):
        text = written_by(stage, which, round_, attempt).strip()
        refs = [f"refs/andon/salvage/{run_id}/{stage}-{round_}-{attempt}", *places]
        if not any(_file_at(mirror, ref, WRITTEN[stage][which]) == text for ref in refs):
            found.append(f"lost: what attempt {attempt} of {stage} wrote into {WRITTEN[stage][which]} (run {run_id})")
    return found


def _file_at(mirror: Path, ref: str, name: str) -> str | None:
    listed = run_git(mirror, "for-each-ref", "--format=%(objectname)", ref) if ref.startswith("refs/") else ref
    if not listed or not run_git(mirror, "ls-tree", listed, "--", name):
        return None
    return run_git(mirror, "show", f"{listed}:{name}").strip()


def billed_nano_usd(calls: list[Logged], run_id: str) -> int:
    """Return what the provider's log of a run costs by our price table, at the least: cache writes at the cheaper rate."""
    return sum(_nano_usd(call) for call in calls if call.run == run_id)


def _nano_usd(call: Logged) -> int:
    usage = call.usage
    prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]
    rates = shipped_prices().rates(call.request["model"], prompt, date.today())
    return (
        usage["input_tokens"] * rates.input
        + usage["cache_creation_input_tokens"] * rates.cache_write_5m
        + usage["cache_read_input_tokens"] * rates.cache_read
        + usage["output_tokens"] * rates.output
    )


def problems_of_bill(calls: list[Logged], run_id: str, cost_usd: float) -> list[str]:
    """Return a complaint if the provider's log of a run costs more than the run says (DECISIONS G20); a millionth is rounding."""
    billed = billed_nano_usd(calls, run_id)
    return [f"run {run_id} says ${cost_usd:.6f}, the provider's log costs ${billed / 1e9:.6f}"] if billed / 1e9 > cost_usd + 1e-6 else []
