"""`andon gc`: what may go goes, and nothing else: planted beside it are things of others, of the living, and of the undecided."""

import contextlib
import fcntl
import io
import os
import tarfile
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from hashlib import sha1
from pathlib import Path

import docker
import pytest

from sandbox.executor.inputs import MARKER
from sandbox.executor.state_lock import LOCK_NAME, held_state
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import LABEL_DEADLINE, LABEL_INSTANCE, LABEL_SLOT
from sandbox.runtime.image_build import LABEL_RECIPE
from sandbox.runtime.images import agent_image_key, libraries_image_key
from supervisor.api.run_files import files_of
from supervisor.bootstrap.gc import DAY_S, DAYS, LOOSE_OBJECTS_MAX, Survey, surveyed
from supervisor.config import Config, StateDirectory
from supervisor.delivery import snapshot
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.fold import fold
from supervisor.pipeline.run import FINAL
from tests.fakes.repositories import run_git, sample_repository
from tests.fakes.run_events import AT, conflict, failed, happy, parked_on_budget
from tests.servers.engines import NotHereError, _debian_programs, _private_engine

NO_ENGINE = "unix:///nonexistent/docker.sock"
LONG_AFTER = AT + (DAYS + 1) * DAY_S
OLD_KEY = "0" * 24
LAYERS_MAX = 5


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


@contextlib.asynccontextmanager
async def a_survey(state: StateDirectory, now: float = LONG_AFTER, engine: str = NO_ENGINE) -> AsyncIterator[Survey]:
    """Look at a state directory, with an engine or without."""
    locks = state.root / "uid-locks"  # the host's own are held by whoever else runs executors here
    async with surveyed(Config(docker_host=engine, state_directory=state.root), state, DAYS, now, locks) as survey:
        yield survey


async def gone(state: StateDirectory, now: float = LONG_AFTER, engine: str = NO_ENGINE) -> list[tuple[str, str]]:
    """Remove what is found, and return its kinds and names."""
    async with a_survey(state, now, engine) as survey:
        for found in survey.found:
            await found.remove()
        return [(found.item.kind, found.item.name) for found in survey.found]


def has_run(state: StateDirectory, run_id: str, log: list[AnyEvent]) -> Path:
    """Let a run have happened here, with files of every kind."""
    files = files_of(state, run_id)
    own = [event.model_copy(update={"run_id": run_id} | _job(event, run_id)) for event in log]
    files.append(own)
    files.write_result(fold(own))
    files.write_log("spec", 1, 1, b"log")
    files.trace_path.write_text("{}")
    return files.directory


def _job(event: AnyEvent, run_id: str) -> dict[str, str]:
    return {"job_id": event.job_id.replace(event.run_id, run_id)} if hasattr(event, "job_id") else {}


# Runs


async def test_old_finished_runs_are_reduced_to_their_result(state: StateDirectory) -> None:
    """Landed and failed ones; the result stays, by which the next supervisor knows that the run is over and nothing is missing."""
    has_run(state, "01jd8m6aaa", happy())
    has_run(state, "01jd8m6bbb", failed())

    assert await gone(state) == [("run", "01jd8m6aaa"), ("run", "01jd8m6bbb")]

    for run_id in ("01jd8m6aaa", "01jd8m6bbb"):
        assert [path.name for path in state.run(run_id).iterdir()] == ["result.json"]
        result = files_of(state, run_id).result()
        assert result is not None
        assert result.state in FINAL
    assert await gone(state) == []


async def test_runs_that_may_still_matter_stay(state: StateDirectory) -> None:
    """Young, parked, landed but not delivered, torn, or no run at all; a link is not followed."""
    has_run(state, "01jd8m6aaa", parked_on_budget())
    undelivered = has_run(state, "01jd8m6bbb", conflict())
    torn = has_run(state, "01jd8m6ccc", happy())
    (torn / "result.json").unlink()
    (state.runs / "mine").mkdir()
    (state.runs / "mine" / "file").touch()
    (state.runs / "01jd8m6ddd").symlink_to(undelivered)

    async with a_survey(state) as survey:
        assert [found.item.name for found in survey.found] == []
        assert any("never delivered" in note for note in survey.notes)

    has_run(state, "01jd8m6eee", happy())
    assert await gone(state, now=AT + (DAYS - 1) * DAY_S) == []
    assert (state.run("01jd8m6eee") / "events.jsonl").exists()


async def test_a_run_that_goes_on_meanwhile_stays(state: StateDirectory) -> None:
    """What was found is looked at again before it is removed."""
    directory = has_run(state, "01jd8m6aaa", failed())

    async with a_survey(state) as survey:
        (directory / "result.json").unlink()
        await survey.found[0].remove()

    assert (directory / "events.jsonl").exists()


# The mirror


async def test_refs_go_with_their_run_and_salvaged_work_later(state: StateDirectory, tmp_path: Path) -> None:
    """What landed goes with the run; salvaged work only when it is three times as old, and never of a run that is not over."""
    mirror, work = await _a_mirror(state, tmp_path)
    for run_id, log in (("01jd8m6aaa", happy()), ("01jd8m6bbb", parked_on_budget())):
        has_run(state, run_id, log)
        await mirror.update_ref(f"refs/andon/landed/{run_id}", work, None)
        await mirror.update_ref(f"refs/andon/salvage/{run_id}/implement-1-1", work, None)

    first = await gone(state)
    before = await mirror.list_refs("refs/andon")
    last = await gone(state, now=AT + (3 * DAYS + 1) * DAY_S)
    after = await mirror.list_refs("refs/andon")

    assert first == [("run", "01jd8m6aaa"), ("ref", "refs/andon/landed/01jd8m6aaa")]
    assert "refs/andon/salvage/01jd8m6aaa/implement-1-1" in before
    assert last == [("ref", "refs/andon/salvage/01jd8m6aaa/implement-1-1")]
    assert {"refs/andon/landed/01jd8m6bbb", "refs/andon/salvage/01jd8m6bbb/implement-1-1"} <= set(after)


async def test_packing_a_mirror_loses_no_object(state: StateDirectory, tmp_path: Path) -> None:
    """Also none that no ref points at: commits of open runs have none."""
    mirror, work = await _a_mirror(state, tmp_path)
    loose = [_loose_object(state.mirror, f"{number}".encode()) for number in range(LOOSE_OBJECTS_MAX)]

    found = await gone(state)

    assert found == [("mirror", str(state.mirror))]
    assert len(list((state.mirror / "objects").glob("??/*"))) == 0
    assert run_git(state.mirror, "cat-file", "-t", work) == "commit"
    listing = run_git(state.mirror, "cat-file", "--batch-check=%(objecttype)", stdin="\n".join(loose).encode())
    assert listing.split("\n") == ["blob"] * LOOSE_OBJECTS_MAX
    assert "missing" not in run_git(state.mirror, "fsck", "--connectivity-only")
    assert await mirror.read_ref("refs/andon/landed/none") is None


async def _a_mirror(state: StateDirectory, tmp_path: Path) -> tuple[Mirror, str]:
    state.mirrors.mkdir(exist_ok=True)
    mirror = await Mirror.open(state.mirror)
    taken = await snapshot(sample_repository(tmp_path / "theirs"), None)
    await mirror.import_base(taken.commit, taken.pack)
    work = await mirror.commit_files(taken.commit, {"x": b"x"}, message="x", author=ANDON, committer=ANDON, at=int(AT))
    return mirror, work


def _loose_object(git_dir: Path, data: bytes) -> str:
    whole = b"blob %d\0%s" % (len(data), data)
    name = sha1(whole).hexdigest()
    path = git_dir / "objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(whole))
    return name


# Slots and files


def a_slot(executor: Path, number: int) -> Path:
    """Make what a killed executor leaves in a slot."""
    home = executor / "slots" / str(number)
    for name in ("workspace", "task", "out"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text("x")
    (home / MARKER).touch()
    (executor / LOCK_NAME).touch()
    return home


@pytest.mark.parametrize("place", ["executor", "executors/ex1"])
async def test_slots_of_a_dead_executor_are_emptied(state: StateDirectory, place: str) -> None:
    """With a marker, without work; a slot with a lease holds what nobody salvaged, one without a marker is not ours, nor is a link."""
    executor = state.root / place
    stale, working, foreign = (a_slot(executor, number) for number in (1, 2, 3))
    (working / "lease.json").write_text("{}")
    (foreign / MARKER).unlink()
    (executor / "slots" / "4").symlink_to(foreign)

    async with a_survey(state) as survey:
        assert [found.item.name for found in survey.found] == [str(stale)]
        assert any(f"{working} holds work" in note for note in survey.notes)
        for found in survey.found:
            await found.remove()

    assert sorted(path.name for path in stale.iterdir()) == [MARKER]
    assert (working / "workspace" / "file").exists()
    assert (foreign / "workspace" / "file").exists()


async def test_slots_of_a_living_executor_are_its_own(state: StateDirectory) -> None:
    """Its lock says that it lives; also if it starts between the look and the removal."""
    home = a_slot(state.executor, 1)
    with held_state(state.executor):
        assert await gone(state) == []

    async with a_survey(state) as survey:
        (found,) = survey.found
        with held_state(state.executor), pytest.raises(Exception, match="another executor"):
            await found.remove()

    assert (home / "workspace" / "file").exists()


async def test_halves_of_files_go_after_a_day(state: StateDirectory) -> None:
    """What a killed writer left; other hidden files, links and fresh ones stay."""
    half, fresh, other = (state.root / name for name in (".stack.json.ab12cd_x", ".stack.json.zz12cd_x", ".keep"))
    link = state.root / ".stack.json.ln12cd_x"
    for path in (half, fresh, other):
        path.touch()
    link.symlink_to(other)
    for path in (half, other):
        os.utime(path, (AT, AT))
    os.utime(fresh, (LONG_AFTER, LONG_AFTER))

    assert await gone(state) == [("file", str(half))]

    assert (half.exists(), fresh.exists(), other.exists(), link.is_symlink()) == (False, True, True, True)


# Containers and images, on an engine of our own: on the machine's one are others'


@pytest.fixture(scope="module")
def private_engine() -> Iterator[str]:
    """An engine nobody else uses: what `gc` removes there is nobody's."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(_private_engine("gc", _debian_programs()))


@pytest.fixture
def dockerd(request: pytest.FixtureRequest) -> Iterator[docker.APIClient]:
    """Return a client of that engine, which holds nothing."""
    try:
        url = request.getfixturevalue("private_engine")
    except NotHereError as error:
        if request.config.getoption("--require-all"):
            raise
        pytest.skip(str(error))
    with contextlib.closing(docker.APIClient(url, timeout=60)) as client:
        _wipe(client)
        yield client
        _wipe(client)


def _wipe(client: docker.APIClient) -> None:
    for container in client.containers(all=True):
        client.remove_container(container["Id"], force=True)
    for _ in range(LAYERS_MAX):  # one that others are made of goes after them, in whatever order they are listed
        for image in client.images():
            with contextlib.suppress(docker.errors.APIError):
                client.remove_image(image["Id"], force=True)
    assert client.images() == []


def an_image(client: docker.APIClient, name: str, tag: str, label: str = "") -> str:
    """Import an image of one file; `label` is what our builder would have noted."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"{name.replace('/', '-')}-{tag}"))
    client.import_image_from_data(data.getvalue(), repository=name, tag=tag, changes=[f"LABEL {LABEL_RECIPE}={label}"] if label else None)
    return str(client.inspect_image(f"{name}:{tag}")["Id"])  # type: ignore[no-untyped-call]


def a_container(client: docker.APIClient, image: str, labels: dict[str, str], workspace: Path | None = None) -> str:
    """Create a container that never runs."""
    binds = [f"{workspace}:/workspace"] if workspace else []
    body = {"Image": image, "Cmd": ["x"], "Labels": labels, "HostConfig": {"Binds": binds, "NetworkMode": "none"}}
    return str(client.create_container_from_config(body)["Id"])  # type: ignore[no-untyped-call]


def ours(deadline: float) -> dict[str, str]:
    return {LABEL_INSTANCE: "ex1-0", LABEL_SLOT: "1", LABEL_DEADLINE: str(int(deadline))}


@pytest.mark.root
@pytest.mark.docker
async def test_containers_of_dead_executors_go_after_their_deadline(
    state: StateDirectory, dockerd: docker.APIClient, private_engine: str, tmp_path: Path
) -> None:
    """Others' stay: without our label, within its deadline, of a living executor, of one whose state directory we cannot see."""
    now = time.time()
    dead, living = a_slot(tmp_path / "dead", 1), a_slot(tmp_path / "living", 1)
    image = an_image(dockerd, "someones/image", "1")
    overdue = a_container(dockerd, image, ours(now - 60), dead / "workspace")
    others = {
        a_container(dockerd, image, {}, dead / "workspace"),
        a_container(dockerd, image, ours(now + 600), dead / "workspace"),
        a_container(dockerd, image, ours(now - 60), living / "workspace"),
        a_container(dockerd, image, ours(now - 60), tmp_path / "elsewhere" / "slots" / "1" / "workspace"),
        a_container(dockerd, image, ours(now - 60)),
    }

    with held_state(tmp_path / "living"):
        found = await gone(state, now, private_engine)

    assert found == [("container", overdue[:12])]
    assert {container["Id"] for container in dockerd.containers(all=True)} == others


@pytest.mark.root
@pytest.mark.docker
async def test_images_of_other_versions_go(state: StateDirectory, dockerd: docker.APIClient, private_engine: str) -> None:
    """By our tag and our label together: this version's, those in use, and whatever others tagged or built stay."""
    an_image(dockerd, "andon/agent", OLD_KEY, OLD_KEY)
    an_image(dockerd, "andon/libraries", OLD_KEY, OLD_KEY)
    an_image(dockerd, "andon/repository", "1" * 24, "1" * 24)
    used = an_image(dockerd, "andon/agent", "2" * 24, "2" * 24)
    a_container(dockerd, used, {})
    kept = [
        ("andon/agent", agent_image_key(), agent_image_key()),
        ("andon/libraries", libraries_image_key(), libraries_image_key()),
        ("andon/agent", "mine", OLD_KEY),
        ("andon/agent", "3" * 24, ""),
        ("andon/agent", "4" * 24, OLD_KEY),
        ("andon/base", "5" * 24, "5" * 24),
        ("someones/agent", OLD_KEY, OLD_KEY),
    ]
    for name, tag, label in kept:
        an_image(dockerd, name, tag, label)
    current = dockerd.inspect_image(f"andon/agent:{agent_image_key()}")["Id"]  # type: ignore[no-untyped-call]
    repository = dockerd.commit(a_container(dockerd, current, {}), "andon/repository", "6" * 24, changes=f"LABEL {LABEL_RECIPE}={'6' * 24}")
    assert repository

    found = await gone(state, engine=private_engine)

    tags = {tag for image in dockerd.images() for tag in image["RepoTags"] or ()}
    assert found == [("image", tag) for tag in (f"andon/agent:{OLD_KEY}", f"andon/libraries:{OLD_KEY}", f"andon/repository:{'1' * 24}")]
    assert tags == {f"{name}:{tag}" for name, tag, _ in kept} | {f"andon/agent:{'2' * 24}", f"andon/repository:{'6' * 24}"}


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.parametrize("sign", ["a container", "a slot of root's", "an executor of ours"])
async def test_images_stay_while_an_executor_may_be_at_work(
    state: StateDirectory, dockerd: docker.APIClient, private_engine: str, tmp_path: Path, sign: str
) -> None:
    """An executor of another version knows its image by id; that it lives is seen by its container or by the locks it holds."""
    an_image(dockerd, "andon/agent", OLD_KEY, OLD_KEY)
    with contextlib.ExitStack() as alive:
        if sign == "a container":
            home = a_slot(tmp_path / "living", 1)
            a_container(dockerd, an_image(dockerd, "someones/image", "1"), ours(time.time() + 600), home / "workspace")
        elif sign == "a slot of root's":
            (state.root / "uid-locks").mkdir()
            fcntl.flock(alive.enter_context((state.root / "uid-locks" / "slot-3").open("w")), fcntl.LOCK_EX)
        else:
            alive.enter_context(held_state(state.root / "executors" / "ex1"))

        async with a_survey(state, engine=private_engine) as survey:
            assert survey.found == []
            assert any("images of other versions are left" in note for note in survey.notes)

    if sign != "a container":
        assert await gone(state, engine=private_engine) == [("image", f"andon/agent:{OLD_KEY}")]
