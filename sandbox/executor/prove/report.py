"""What the attacks said of themselves, read from a container's output; and what one probe comes to. It attacks nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from sandbox.contract.model import Frozen
from sandbox.executor.prove.attack.attempts import MARK

LINES_MAX = 1_000
DETAIL_CHARS_MAX = 400
_SILENT = "did not report"


class Said(Frozen):
    """How one attack went."""

    won: bool
    said: str
    """What it gained, or how it was stopped."""
    made: bool = True
    """False: it was not made to its end, which shows nothing."""


Report = Mapping[str, Said]
"""By the attack's name."""


class Proof(Frozen):
    """What one probe showed."""

    id: str
    promise: str
    """In a line, with its number in SECURITY.md."""
    tried: str
    held: bool
    """Every attack of it was made in a sandbox, and failed."""
    control: bool
    """The same attacks succeeded where the wall is absent; otherwise `held` proves nothing, and `detail` says why."""
    detail: str


@dataclass(frozen=True)
class Probe:
    """Attacks that belong together, and what they would break."""

    id: str
    promise: str
    tried: str
    attacks: tuple[str, ...]
    may_lack: frozenset[str] = frozenset()
    """Attacks some kernels or engines have no place for: without a control of their own they are named, and others count."""
    about: Literal["", "kernel", "peers"] = ""
    """What another runtime may do differently: a kernel of its own may allow it, for it is not this host's; or it names no peers."""


@dataclass(frozen=True)
class Guest:
    """What the sandboxes' runtime is, as far as it changes what an attack means."""

    kernel: str = ""
    """The kernel's release as a sandbox sees it, if it is another than the host's; empty: they share it."""
    names_peers: bool = True
    """The gateway sees which process is at the other end of its socket (DECISIONS D18)."""

    def difference(self, probe: Probe) -> str:
        """Return why an attack of a probe that succeeds under this runtime breaks no promise; empty: it does."""
        if probe.about == "kernel" and self.kernel:
            return f"it is the runtime's own kernel ({self.kernel}), not this host's"
        if probe.about == "peers" and not self.names_peers:
            return "this runtime shows no process behind a socket; every job's record says so"
        return ""


def read_lines(output: bytes) -> dict[str, Said]:
    """Return what a container reported; other output is passed over."""
    found: dict[str, Said] = {}
    for line in output.decode(errors="replace").splitlines():
        if not line.startswith(MARK) or len(found) >= LINES_MAX:
            continue
        try:
            told = json.loads(line.removeprefix(MARK))
            found[str(told["name"])] = Said(won=told["won"], said=told["said"], made=told.get("made", True))
        except (ValueError, KeyError, TypeError, ValidationError):
            continue
    return found


def judged(probe: Probe, inside: Report, control: Report, guest: Guest) -> Proof:
    """Return what a probe came to: held if every attack was stopped, controlled if every one succeeded without the wall."""
    seen = {name: inside.get(name, Said(won=False, said=_SILENT, made=False)) for name in probe.attacks}
    won = {name: said for name, said in seen.items() if said.won}
    silent = {name: said for name, said in seen.items() if not said.made}
    differs = guest.difference(probe) if won and not silent else ""
    without = {name: control.get(name, Said(won=False, said=_SILENT)) for name in probe.attacks}
    lost = {name: said for name, said in without.items() if not said.won}
    is_controlled = lost.keys() <= probe.may_lack and len(lost) < len(without)
    if differs:
        detail = f"differs: {_listed(won)}: {differs}"
    elif won:
        detail = f"succeeded: {_listed(won)}"
    elif silent:
        detail = f"not shown: {_listed(silent)}"
    else:
        detail = f"stopped: {_listed(seen)}"
    if lost:
        detail += f"; without a control here: {_listed(lost)}"
    if is_controlled:
        detail += f"; control: {_listed({name: said for name, said in without.items() if said.won})}"
    return Proof(
        id=probe.id,
        promise=probe.promise,
        tried=probe.tried,
        held=bool(differs) or not (won or silent),
        control=is_controlled,
        detail=detail[:DETAIL_CHARS_MAX],
    )


def _listed(told: Mapping[str, Said]) -> str:
    """Return attacks and what they said, those that said the same together."""
    by_words: dict[str, list[str]] = {}
    for name, said in told.items():
        by_words.setdefault(said.said, []).append(name.partition(".")[2])
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in by_words.items())
