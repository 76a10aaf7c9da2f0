"""`make chaos`: at least 300 faults over real runs, 60 of them over real containers; prints its seed, its progress and a table.

`python -m tests.chaos [--seed N] [--real N] [--paper N]`: how many faults of each level; ANDON_CHAOS_SEED gives the seed too.
"""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import scene
from tests.chaos.faults import SEED_VARIABLE, VICTIMS, Plan, Tally, Victim
from tests.chaos.paper_site import PaperSite
from tests.chaos.real_site import RealSite
from tests.e2e.line import Provider

REAL_FAULTS = 66
PAPER_FAULTS = 240
PAPER_SHARES: dict[Victim, int] = {"supervisor": 2, "executor": 8, "container": 8, "broker": 2}
"""Of each 20 faults; a broker may die four times a minute, a supervisor's successor needs the lease's six seconds."""
PEOPLE = 3
SITE_FAULTS = 9
"""Faults of one site: a stack gives up on a child it had to start again ten times."""


def main(arguments: list[str]) -> int:
    """Run it; 1 when something that must be true was not."""
    options = _options(arguments)
    seed = options.seed if options.seed is not None else int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**9))
    _say(f"seed {seed}: `{SEED_VARIABLE}={seed} make chaos` draws the same faults again")
    tally = Tally()
    scratch = Path(tempfile.mkdtemp(prefix="andon-chaos-", dir="/tmp"))
    problems = on_paper(scratch / "paper", seed, options.paper, tally) if options.paper else []
    problems += over_real(scratch / "real", seed, options.real, tally)
    print(tally.table())
    for problem in problems:
        print(f"WRONG: {problem}")
    _say(f"{tally.total} faults, {len(problems)} things wrong, seed {seed}" + (f"; everything is kept in {scratch}" if problems else ""))
    if not problems:
        shutil.rmtree(scratch)
    return 1 if problems else 0


def on_paper(home: Path, seed: int, faults: int, tally: Tally) -> list[str]:
    """Make `faults` faults over a fleet of bare processes."""
    parts = sum(PAPER_SHARES.values())
    shares = {victim: -(-faults * share // parts) for victim, share in PAPER_SHARES.items()}
    with Provider() as provider:
        provider.says(scene.script(dawdle_s=0.8))
        found = asyncio.run(PaperSite(home, provider, _say).run(Plan(seed, shares, pause_s_mean=0.8), tally))
        found += [f"the provider refused: {one}" for one in provider.server.violations[:3]]
    for problem in found:
        _say(f"WRONG on paper: {problem}")
    return [f"paper: {problem}" for problem in found]


def over_real(top: Path, seed: int, faults: int, tally: Tally) -> list[str]:
    """Make `faults` faults over real containers, an equal share for each kind of victim, some at each of several sites."""
    problems: list[str] = []
    for number, shares in enumerate(_dealt(faults, seed)):
        with Provider() as provider:
            provider.says(scene.script(dawdle_s=1.5))
            site = RealSite(top / str(number), provider, people=PEOPLE, validated=number % 3 == 0, say=_say)
            found = site.run(Plan(seed * 1_000 + number, shares), tally)
            found += [f"the provider refused: {one}" for one in provider.server.violations[:3]]
        problems += [f"real site {number}: {problem}" for problem in found]
        for problem in found:
            _say(f"WRONG at real site {number}: {problem}")
        _say(f"real site {number}: {tally.total} faults so far, {len(found)} things wrong")
    return problems


def _dealt(faults: int, seed: int) -> list[dict[Victim, int]]:
    """Deal the victims of `faults` faults over sites, each kind as often as the others."""
    deck: list[Victim] = [VICTIMS[number % len(VICTIMS)] for number in range(faults)]
    random.Random(seed).shuffle(deck)
    hands = [deck[at : at + SITE_FAULTS] for at in range(0, len(deck), SITE_FAULTS)]
    return [{victim: hand.count(victim) for victim in VICTIMS} for hand in hands]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break things at random and look at what became of the runs."
    )
    parser.add_argument("--seed", type=int, help="of an earlier run")
    parser.add_argument("--real", type=int, default=REAL_FAULTS, help="faults over real containers")
    parser.add_argument("--paper", type=int, default=PAPER_FAULTS, help="faults over bare processes instead of containers")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
