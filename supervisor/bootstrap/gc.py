"""What may go from this host, found by label and marker, and its removal; nothing that is not Andon's, nothing that is in use.

A finding is looked at again when it is removed, since runs and executors go on meanwhile. Work that nobody salvaged is left where
it is, with a note. Not what a living executor tidies by itself (`sandbox/executor/janitor.py`).
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Final

from sandbox.contract.errors import AndonError, GitError
from sandbox.contract.model import Frozen
from sandbox.executor.janitor import empty, is_slot_of_ours
from sandbox.executor.options import instance_of
from sandbox.executor.place import UID_LOCKS
from sandbox.executor.slots import Slot
from sandbox.executor.state_lock import LOCK_NAME, held_state, is_state_free
from sandbox.git import Git, in_thread
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import FoundContainer
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.superseded import forget, superseded
from supervisor import stack
from supervisor.api.run_files import files_of
from supervisor.api.views import last_at
from supervisor.bootstrap.salvage import REFS as SALVAGE_REFS
from supervisor.config import Config, StateDirectory, process_environment
from supervisor.pipeline.run import FINAL, RunState

DAY_S: Final = 86_400.0
DAYS: Final = 30
SALVAGE_FACTOR: Final = 3
"""Salvaged work is kept so many times longer than the run it is of."""
LOOSE_OBJECTS_MAX: Final = 1_000
"""A mirror with more of them is packed."""
PACK_S: Final = 600.0
_LANDED = "refs/andon/landed"
_PART = re.compile(r"\.[A-Za-z0-9_.-]+\.[a-z0-9_]{8}")
"""What `write_atomically` leaves when it is killed."""


class Item(Frozen):
    """One thing that may go."""

    kind: str
    """container, slot, image, run, ref, mirror, file."""
    name: str
    why: str
    frees_bytes: int = 0
    """On disk, as far as that can be told before."""


@dataclass(frozen=True)
class Found:
    """A thing and how it goes."""

    item: Item
    remove: Callable[[], Awaitable[None]]


@dataclass
class Survey:
    """Everything that may go, and what is left for a reason."""

    found: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, item: Item, remove: Callable[[], Awaitable[None]]) -> None:
        """Note one thing that may go."""
        self.found.append(Found(item, remove))


@contextlib.asynccontextmanager
async def surveyed(config: Config, state: StateDirectory, days: float, now: float, uid_locks: Path = UID_LOCKS) -> AsyncIterator[Survey]:
    """Look at this host; the findings may be removed as long as the block lasts.

    Args:
        config: Says which engine.
        state: The state directory; other ones are looked at only where a container names them.
        days: Finished runs older than this go.
        now: Unix seconds.
        uid_locks: Where executors that run as root hold their slots, whatever state directory they have.
    """
    survey = Survey()
    try:
        runtime = await DockerRuntime.connect(config.docker_host, process_environment().get("DOCKER_CONTEXT"))
    except AndonError as error:
        survey.notes.append(f"containers and images are not looked at: {error}")
        runtime = None
    try:
        if runtime is not None:
            try:
                await _containers_and_images(survey, runtime, state, now, uid_locks)
            except AndonError as error:
                survey.notes.append(f"containers and images are not all looked at: {error}")
        _slots(survey, state)
        await in_thread(_runs, survey, state, days, now)
        await _refs(survey, state, days, now)
        _mirrors(survey, state)
        _files(survey, state, days, now)
        yield survey
    finally:
        if runtime is not None:
            runtime.close()


async def _containers_and_images(survey: Survey, runtime: DockerRuntime, state: StateDirectory, now: float, uid_locks: Path) -> None:
    living = []
    for container in await runtime.containers():
        if not _is_dead(container, now):
            living.append(container)
            continue
        item = Item(
            kind="container", name=container.container_id[:12], why=f"its executor {container.instance} is gone, its deadline passed"
        )
        survey.add(item, partial(_remove_container, runtime, container))
    at_work = bool(living) or _is_any_executor_alive(state, uid_locks)
    for image in await superseded(runtime.engine):
        if at_work:
            # An executor of another version knows its image by id and may be about to use it.
            survey.notes.append("images of other versions are left: an executor may be at work on this engine")
            break
        item = Item(kind="image", name=image.tag, why="of another version of andon", frees_bytes=image.own_bytes)
        survey.add(item, partial(forget, runtime.engine, image))


def _is_any_executor_alive(state: StateDirectory, uid_locks: Path) -> bool:
    """Return whether an executor of this user, or one of root's, runs on this host; also one that has no container now."""
    ours = [executor for executor in _executors(state) if (executor / LOCK_NAME).exists() and not is_state_free(executor)]
    return bool(ours) or stack.read_stack(state) is not None or any(map(_is_held, uid_locks.glob("slot-*")))


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _is_dead(container: FoundContainer, now: float) -> bool:
    workspace = container.workspace
    is_late = 0 < container.deadline < now
    if not is_late or workspace is None or workspace.name != "workspace" or workspace.parents[1].name != "slots":
        return False
    return is_state_free(workspace.parents[2])


async def _remove_container(runtime: DockerRuntime, container: FoundContainer) -> None:
    if _is_dead(container, time.time()):
        await runtime.discard(container.container_id)


def _executors(state: StateDirectory) -> list[Path]:
    """Return the state directories of this user's executors: the embedded one's, and those of fleets."""
    return [state.executor, *sorted(path for path in (state.root / "executors").glob("*") if path.is_dir() and not path.is_symlink())]


def _slots(survey: Survey, state: StateDirectory) -> None:
    """Find slots of dead executors, with their mounts; those with work wait for the next executor there."""
    for executor in filter(is_state_free, _executors(state)):
        for home in sorted(path for path in (executor / "slots").glob("*") if path.name.isdecimal()):
            slot = Slot(int(home.name), None, home, _sockets(executor) / home.name)
            if not is_slot_of_ours(slot) or not any(part.exists() for part in (slot.workspace, slot.out, slot.task)):
                continue
            if slot.has_work():
                survey.notes.append(f"{home} holds work that is not salvaged; its executor does that when it starts again")
                continue
            item = Item(kind="slot", name=str(home), why="its executor is gone", frees_bytes=_bytes_below(home))
            survey.add(item, partial(in_thread, _empty, executor, slot))


def _sockets(executor: Path) -> Path:
    return Path("/tmp") / f"andon-{os.getuid()}" / instance_of(executor)  # noqa: S108 - `empty` removes one name there, a socket of ours


def _empty(executor: Path, slot: Slot) -> None:
    with held_state(executor):
        if is_slot_of_ours(slot) and not slot.has_work():
            empty(slot)


def _runs(survey: Survey, state: StateDirectory, days: float, now: float) -> None:
    kept = 0
    for run_id in state.run_ids():
        run = _finished(state, run_id)
        if run is None or now - last_at(run) <= days * DAY_S:
            continue
        if run.state == "landed" and not run.delivered:
            kept += 1
            continue
        files = [path for path in _below(state.run(run_id)) if path != state.run(run_id) / "result.json"]
        size = sum(path.lstat().st_size for path in files)
        item = Item(kind="run", name=run_id, why=f"{run.state} {_age(now - last_at(run))} ago", frees_bytes=size)
        survey.add(item, partial(in_thread, _remove_run, state, run_id))
    if kept:
        survey.notes.append(f"{kept} old run(s) landed but were never delivered and are left: andon apply RUN")


def _finished(state: StateDirectory, run_id: str) -> RunState | None:
    """Return a run that is over, in its files and in its result; None also if its files are gone or not whole."""
    files = files_of(state, run_id)
    try:
        run = files.run()
    except AndonError:
        return None
    result = files.result()
    return run if run.state in FINAL and result is not None and result.state in FINAL else None


def _remove_run(state: StateDirectory, run_id: str) -> None:
    """Remove a run's files but the result, by which the next supervisor knows that nothing is missing."""
    run = _finished(state, run_id)
    directory = state.run(run_id)
    if run is None or directory.is_symlink():
        return
    for path in sorted(directory.iterdir(), key=lambda each: each.name == "events.jsonl"):
        if path.name == "result.json":
            continue
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink()


async def _refs(survey: Survey, state: StateDirectory, days: float, now: float) -> None:
    """Find what the mirror keeps of runs that go, and salvaged work that is `SALVAGE_FACTOR` times as old."""
    if not state.mirror.is_dir():
        return
    going = {found.item.name for found in survey.found if found.item.kind == "run"}
    mirror = Mirror(state.mirror)
    try:
        landed, kept = await mirror.list_refs(_LANDED), await mirror.list_refs(SALVAGE_REFS)
    except GitError as error:
        survey.notes.append(f"the mirror is not looked at: {error}")
        return
    for ref, commit in landed.items():
        if ref.rsplit("/", 1)[1] in going:
            survey.add(Item(kind="ref", name=ref, why="its run goes"), partial(in_thread, _remove_ref, mirror.git, ref, commit))
    limit_s = SALVAGE_FACTOR * days * DAY_S
    for ref, commit in kept.items():
        age = now - await in_thread(_commit_time, mirror.git, commit)
        run = await in_thread(_finished, state, ref.split("/")[3])
        is_over = run is not None or _is_collected(state, ref.split("/")[3])
        if age > limit_s and is_over:
            item = Item(kind="ref", name=ref, why=f"salvaged {_age(age)} ago")
            survey.add(item, partial(in_thread, _remove_ref, mirror.git, ref, commit))


def _is_collected(state: StateDirectory, run_id: str) -> bool:
    files = files_of(state, run_id)
    result = files.result()
    return not files.events_path.exists() and result is not None and result.state in FINAL


def _remove_ref(git: Git, ref: str, commit: str) -> None:
    git.run("update-ref", "--no-deref", "-d", "--end-of-options", ref, commit)


def _commit_time(git: Git, commit: str) -> float:
    return float(git.text("rev-list", "--no-walk", "--timestamp", "--end-of-options", commit).split()[0])


def _mirrors(survey: Survey, state: StateDirectory) -> None:
    """Find mirrors with many loose objects; packing drops none, also not what nothing points at: open runs need it."""
    of_executors = [(path, executor) for executor in _executors(state) for path in sorted((executor / "mirrors").glob("*.git"))]
    for path, executor in [(state.mirror, None), *of_executors]:
        loose = [file for file in _below(path / "objects") if len(file.parent.name) == 2]
        if len(loose) <= LOOSE_OBJECTS_MAX:
            continue
        if stack.read_stack(state) is not None or (executor is not None and not is_state_free(executor)):
            survey.notes.append(f"{path} is not packed while the stack is up: andon down")
            continue
        size = sum(file.lstat().st_size for file in loose)
        item = Item(kind="mirror", name=str(path), why=f"{len(loose):,} loose objects ({size >> 10:,} KiB) to pack")
        survey.add(item, partial(in_thread, _pack, path))


def _pack(path: Path) -> None:
    Git(path).run("repack", "-a", "-d", "-k", "-q", timeout_s=PACK_S)


def _files(survey: Survey, state: StateDirectory, days: float, now: float) -> None:
    """Find halves of files whose writer was killed a day ago or more, and an old history that could not be read."""
    places = [state.root, *(state.run(run_id) for run_id in state.run_ids())]
    for path in (each for place in places for each in sorted(place.glob(".*")) if _PART.fullmatch(each.name)):
        if path.is_file() and not path.is_symlink() and now - path.lstat().st_mtime > DAY_S:
            survey.add(_file(path, "half written, its writer is gone"), partial(in_thread, path.unlink))
    broken = state.history.with_name(f"{state.history.name}.broken")
    if broken.is_file() and not broken.is_symlink() and now - broken.lstat().st_mtime > days * DAY_S:
        survey.add(_file(broken, "a history that could not be read; it was made anew since"), partial(in_thread, broken.unlink))


def _file(path: Path, why: str) -> Item:
    return Item(kind="file", name=str(path), why=why, frees_bytes=path.lstat().st_size)


def _bytes_below(path: Path) -> int:
    return sum(file.lstat().st_size for file in _below(path))


def _below(path: Path) -> Iterator[Path]:
    """Yield the files below a directory; links are not followed."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _below(entry)
        else:
            yield entry


def _age(seconds: float) -> str:
    return f"{int(seconds // DAY_S)} days"
