"""What sandboxes of this host do without: by the host, by its engine, and by what one container of each runtime showed.

All of it stands in the record of each job; a job that is strict is refused for any of it, before a model call.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sandbox.contract.errors import ProtectionMissing
from sandbox.contract.labels import RUNTIME_DEFAULT, offered
from sandbox.executor.place import Surroundings
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, Slot
from sandbox.git import version as git_version
from sandbox.runtime.container_spec import EngineFacts, Runtime
from sandbox.runtime.proof import SHOWN_VERSION, NoSocketError, Place, Relay, prove_engine
from sandbox.runtime.protections import missing_under
from sandbox.runtime.relay import RELAYED
from sandbox.workspace.quota import why_no_quota

GIT_RECOMMENDED = (2, 46)
RUNTIMES_MAX = 8
"""Runtimes an executor tells of, besides the default one."""
NAMES_MAX = 31
_SAID_MAX = 40

Show = Callable[[str, str, Slot], Awaitable[tuple[str, ...]]]
"""What a first container of a runtime, made of an image in a slot, shows to be missing."""


async def nothing_shown(_runtime: str, _image: str, _slot: Slot) -> tuple[str, ...]:
    """Show nothing: for an engine somebody has tried already."""
    return ()


def missing_of_host(
    around: Surroundings, facts: EngineFacts, *, git: tuple[int, ...] | None = None, uid: int | None = None
) -> tuple[str, ...]:
    """Return what no sandbox of this host has, whatever its runtime, as far as it is known beforehand; one line each.

    Args:
        around: Where this executor runs.
        facts: Its engine.
        git: Its git's version, asked unless given.
        uid: Who it is, asked unless given.
    """
    lines = [*facts.missing, *around.missing]
    if around.uid_locks is None:
        lines.append(NO_UID_OF_ITS_OWN)
    quota = around.no_quota or why_no_quota(os.geteuid() if uid is None else uid)
    if quota:
        lines.append(quota if "plain directory" in quota else f"{quota}: the workspace is a plain directory")
    version = git_version() if git is None else git
    if version < GIT_RECOMMENDED:
        lines.append(f"old git ({'.'.join(map(str, version))}): it does not check git bundles itself before 2.46; our own checks do")
    return tuple(dict.fromkeys(lines))


def missing_by_default(of_host: Iterable[str], facts: EngineFacts) -> tuple[str, ...]:
    """Return what a sandbox of the default runtime does without, for the life sign."""
    return tuple(dict.fromkeys((*of_host, *missing_under(facts, RUNTIME_DEFAULT))))


def labels_of(of_host: tuple[str, ...], facts: EngineFacts) -> Mapping[str, str]:
    """Return the labels that say which runtimes this host has, and which of them lack nothing."""
    named = [name for name in facts.runtimes if not name.startswith("io.containerd.") and _is_label(name)]
    others = [name for name in named if name != RUNTIME_DEFAULT][:RUNTIMES_MAX]
    whole = [name for name in (RUNTIME_DEFAULT, *others) if name in facts.runtimes and not of_host and not missing_under(facts, name)]
    return offered(others, whole)


def check_strict(missing: tuple[str, ...]) -> None:
    """Refuse a strict job.

    Raises:
        ProtectionMissing: There is anything in `missing`.
    """
    if missing:
        more = f" (and {len(missing) - _SAID_MAX} more)" if len(missing) > _SAID_MAX else ""
        raise ProtectionMissing("the job is strict, and this host cannot give: " + " · ".join(missing[:_SAID_MAX]) + more)


class Proofs:
    """Tries each runtime once with one container, for each engine and image, and remembers on disk what it showed."""

    def __init__(self, runtime: Runtime, facts: EngineFacts, instance: str, directory: Path, relay: Relay | None = None) -> None:
        """Prepare.

        Args:
            runtime: The engine.
            facts: What it is.
            instance: Label of every container of this executor.
            directory: Where to remember; made if it is absent.
            relay: Carries sockets into sandboxes, tried where the engine does not.
        """
        self._runtime = runtime
        self._facts = facts
        self._instance = instance
        self._directory = directory
        self._relay = relay
        self._trying = asyncio.Lock()

    async def shown(self, name: str, image: str, slot: Slot) -> tuple[str, ...]:
        """Return what a sandbox of runtime `name` does without, trying it in the caller's empty slot if nobody has.

        Raises:
            EngineError: It cannot serve; the message says why.
        """
        if name not in self._facts.runtimes:  # an unknown one is refused at the start, with those there are
            return ()
        async with self._trying:
            path = self._path(name, image)
            with suppress(OSError, ValueError):
                return tuple(str(line) for line in json.loads(path.read_text()))
            try:
                lines = await self._prove(name, image, slot, None)
            except NoSocketError:
                if self._relay is None:
                    raise
                lines = (RELAYED, *await self._prove(name, image, slot, self._relay))
            await asyncio.to_thread(_write, path, json.dumps(lines))
        return lines

    async def _prove(self, name: str, image: str, slot: Slot, relay: Relay | None) -> tuple[str, ...]:
        uid, gid = slot.owner
        place = Place(self._instance, slot.home, slot.sockets, uid, gid, slot.number)
        return await prove_engine(self._runtime, image, place, name=name, relay=relay)

    def _path(self, name: str, image: str) -> Path:
        facts = self._facts
        what = (SHOWN_VERSION, facts.endpoint, facts.version, facts.kernel, *facts.security_options, name, image)
        return self._directory / f"{sha256(json.dumps(what).encode()).hexdigest()[:16]}.json"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _is_label(name: str) -> bool:
    return len(name) <= NAMES_MAX and name[0].isalnum() and name[-1].isalnum() and all(each in _NAME for each in name)


_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
