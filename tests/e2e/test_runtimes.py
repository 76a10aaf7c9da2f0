"""The line under other runtimes and engines: gVisor, one that maps users, a rootless one; and runs no host may serve."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.runtime.images import BASE, LIBRARIES, base_image_key, libraries_image_key
from sandbox.runtime.relay import RELAYED
from sandbox.runtime.users import NOT_MAPPED
from tests.e2e.line import Line, Provider
from tests.e2e.people import Person
from tests.e2e.watching import a_sample, events_of
from tests.fakes.repositories import run_git, sample_repository
from tests.fakes.scripts.any_repository import ANY_REPOSITORY, CREATED, FEATURE, PIPELINE, REQUEST
from tests.servers.engines import DEFAULT_URL, NotHereError, TestEngine, copy_images, rootless_engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@contextmanager
def a_stack(
    home: Path, provider: Provider, url: str, environment: Mapping[str, str] | None = None, command: tuple[str, ...] = ()
) -> Iterator[Line]:
    """A stack of its own on an engine, for one test."""
    line = Line(home, {**(environment or {}), **provider.server.environment(), "DOCKER_HOST": url}, command)
    up = line.andon("up", timeout_s=900)
    assert up.exit_code == 0, up.stderr
    try:
        yield line
    finally:
        assert line.andon("down").exit_code == 0


def it_lands(line: Line, provider: Provider, repository: Path, pipeline: str = PIPELINE) -> list[tuple[str, ...]]:
    """Run the short line to its landing and return what each attempt's record says is missing."""
    (line.home / "short.yaml").write_text(pipeline)
    (line.home / "short.yaml").chmod(0o644)
    provider.says(ANY_REPOSITORY)

    done = line.run(REQUEST, "--repo", str(repository), "--pipeline", str(line.home / "short.yaml"), timeout_s=400)

    assert done.exit_code == 0, done.stderr
    assert provider.server.violations == []
    files = run_git(repository, "-c", "safe.directory=*", "ls-tree", "-r", "--name-only", f"refs/heads/andon/{FEATURE}").split()
    assert set(CREATED) <= set(files)
    return [tuple(event["missing"]) for event in events_of(line, done.result["run_id"]) if event["type"] == "attempt_ended"]


def under(runtime: str, *, strict: bool = False) -> str:
    """Return the short pipeline with every stage under a runtime."""
    return PIPELINE.replace("  stages:", f"  defaults: {{runtime: {runtime}, strict: {str(strict).lower()}}}\n  stages:")


def test_a_runtime_nobody_has_is_refused_before_anything_is_spent(line: Line, provider: Provider, tmp_path: Path):
    """One line that names the stage, the runtime and those there are; no run is opened and no model is called."""
    (tmp_path / "kata.yaml").write_text(under("kata"))

    done = line.run(REQUEST, "--repo", str(a_sample(tmp_path / "notes")), "--pipeline", str(tmp_path / "kata.yaml"))

    assert done.exit_code == 2
    assert "stage implement: no executor of pool default has runtime 'kata'" in done.stderr
    assert "has runc" in done.stderr
    assert done.result["run_id"] is None
    assert provider.server.log == []


def test_a_strict_run_is_refused_for_what_is_missing(line: Line, provider: Provider, tmp_path: Path):
    """A protection this host cannot give is named; the same by the pipeline and by the person's configuration."""
    lacking = [line for line in line.andon("doctor").stdout.splitlines() if "no AppArmor" in line or "older than" in line]
    (tmp_path / "strict.yaml").write_text(under("runc", strict=True))
    strictly = Line(line.home, {**line.environment, "ANDON_STRICT": "yes"}, line.command)
    repository = a_sample(tmp_path / "notes")
    assert lacking, "this host lacks nothing: strict runs are not refused here"

    by_pipeline = line.run(REQUEST, "--repo", str(repository), "--pipeline", str(tmp_path / "strict.yaml"))
    by_person = strictly.run(REQUEST, "--repo", str(repository))

    for done in (by_pipeline, by_person):
        assert done.exit_code == 2, done.stderr
        assert "is strict, and no executor of pool default gives every protection under runc" in done.stderr
        assert "no AppArmor" in done.stderr or "old git" in done.stderr
    assert provider.server.log == []


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("engine", ["runsc"], indirect=True)
def test_the_line_passes_under_gvisor_and_the_record_says_what_differs(
    engine: TestEngine, agent_image: str, provider: Provider, tmp_path: Path
):
    """Two agents, a join, validate, land; every attempt's record names the pin, and no filter is missing."""
    with a_stack(tmp_path, provider, engine.url) as line:
        missing = it_lands(line, provider, sample_repository(tmp_path / "place", "everything"), under("runsc"))

    assert len(missing) == 4
    for lines in missing:
        assert [each for each in lines if each.startswith("no agent pin: under runsc")]
        assert not [each for each in lines if each.startswith(("no seccomp", "runc "))]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("engine", ["userns", "userns-debian"], indirect=True)
def test_the_line_passes_where_the_engine_maps_users(engine: TestEngine, agent_image: str, provider: Provider, tmp_path: Path):
    """As root each slot has a user the engine maps, so that nothing is given up."""
    with a_stack(tmp_path, provider, engine.url) as line:
        missing = it_lands(line, provider, sample_repository(tmp_path / "place", "everything"))

    assert len(missing) == 4
    assert all(NOT_MAPPED not in lines for lines in missing)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("engine", ["apart"], indirect=True)
def test_the_line_passes_where_the_engine_carries_no_sockets(engine: TestEngine, agent_image: str, provider: Provider, tmp_path: Path):
    """As in a virtual machine: each attempt's gateway is reached through a container beside its sandbox, and the record says so."""
    with a_stack(tmp_path, provider, engine.url) as line:
        missing = it_lands(line, provider, sample_repository(tmp_path / "place", "everything"))

    assert len(missing) == 4
    for lines in missing:
        assert RELAYED in lines
        assert [each for each in lines if each.startswith("no agent pin")]


@pytest.fixture
def rootless(request: pytest.FixtureRequest, member: Person, agent_image: str) -> Iterator[str]:
    """An engine the person runs without root; it has what the agent image is made of."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(rootless_engine(member.as_user, member.home))
        except NotHereError as error:
            if request.config.getoption("--require-all"):
                raise
            pytest.skip(str(error))
        copy_images(DEFAULT_URL, url, [f"{LIBRARIES}:{libraries_image_key()}", f"{BASE}:{base_image_key()}"])
        yield url


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("engine", ["debian"], indirect=True)
def test_the_line_passes_for_a_person_with_a_rootless_engine(
    provider: Provider, member: Person, rootless: str, engine: TestEngine, tmp_path: Path
):
    """No root anywhere: the sandbox's user is the person. What such an engine cannot limit is said, and root is told to go away."""
    home, place = member.home / "rootless-line", member.home / "rootless-place"
    home.mkdir(mode=0o700)
    repository = sample_repository(place, "everything")
    environment = {**(member.environment or {}), "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    for each in (home, place):
        member.owns(each)

    with a_stack(home, provider, rootless, environment, member.andon) as line:
        missing = it_lands(line, provider, repository)
        doctor = line.andon("doctor")
    with contextlib.suppress(OSError):  # another stack of this person may be up
        Path(f"/tmp/andon-{member.uid}").rmdir()
    of_root = Line(tmp_path, {"DOCKER_HOST": rootless}).andon("doctor")

    assert len(missing) == 4
    assert doctor.exit_code == 0, doctor.stdout
    assert "no uid per slot" in doctor.stdout
    assert "is rootless and belongs to uid" in of_root.stdout + of_root.stderr
