"""What the containers of compose.yaml do at their start: a seat for each executor, keys made once."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from images.supervisor.prepare import main, make_ready
from sandbox.contract.credentials import ExecutorCredentials, SupervisorCredentials, read_credentials
from sandbox.contract.release import RELEASE
from supervisor.store.broker.admission import admitted

ROOT = Path(__file__).resolve().parents[3]
START = ROOT / "images" / "executor" / "start.sh"
WAIT_S = 10


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory with a state directory, two seats, and an `andon` that says how it was called and then stays."""
    (tmp_path / "state").mkdir()
    (tmp_path / "seats").mkdir()
    for name in ("ex2", "ex10"):
        (tmp_path / "seats" / f"{name}.andon.json").touch(mode=0o600)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "andon"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\nexec sleep 60\n')
    program.chmod(0o755)
    return tmp_path


def _environment(host: Path, **changes: str) -> dict[str, str]:
    return {
        "PATH": f"{host}/bin:{os.environ['PATH']}",
        "ANDON_CREDS": f"{host}/seats",
        "ANDON_EXECUTOR_STATE": f"{host}/state",
        **changes,
    }


@contextmanager
def _started(host: Path, **changes: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        ["/bin/sh", START, "--label", "gpu=none"],
        env=_environment(host, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _called(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_replica_has_a_seat_of_its_own(host: Path):
    """In the order a person counts; the state directory and the options follow."""
    with _started(host) as first, _started(host, ANDON_SLOTS="4") as second:
        calls = sorted([_called(first), _called(second)])

    told = [f"executor --creds {host}/seats/{name}.andon.json --state {host}/state/{name} --slots" for name in ("ex10", "ex2")]
    assert [call.rsplit(" ", 3)[0] for call in calls] == told
    assert all(call.endswith("--label gpu=none") for call in calls)
    assert (host / "state" / "ex2").stat().st_mode & 0o777 == 0o700


def test_a_replica_too_many_is_told_so(host: Path):
    """It ends, and says what to do."""
    with _started(host) as first, _started(host) as second:
        assert _called(first)
        assert _called(second)
        third = subprocess.run(["/bin/sh", START], env=_environment(host), capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert third.returncode == 2
    assert "no seat is free" in third.stderr


def test_a_killed_replica_leaves_its_seat(host: Path):
    """The lock is the kernel's, so the next one has the name, and what was left behind."""
    with _started(host) as first:
        before = _called(first)

    with _started(host) as second:
        assert _called(second) == before


def test_one_credentials_file_is_one_seat(host: Path):
    """An executor on a host of its own gets the file that `andon fleet add` wrote."""
    with _started(host, ANDON_CREDS=f"{host}/seats/ex10.andon.json") as process:
        assert f"--state {host}/state/ex10" in _called(process)


@pytest.mark.parametrize("options", [["--creds", "/x.andon.json"], ["--creds=/x.andon.json", "--slots", "1"], ["--help"]])
def test_a_person_may_say_it_all(host: Path, options: list[str]):
    """`docker run andon/executor --creds FILE …` is `andon executor --creds FILE …`."""
    (host / "bin" / "andon").write_text('#!/bin/sh\nprintf "%s " "$@"\n')

    done = subprocess.run(["/bin/sh", START, *options], env=_environment(host), capture_output=True, text=True, timeout=WAIT_S, check=True)

    assert done.stdout.split() == ["executor", *options]


def test_a_state_directory_that_is_not_mounted_is_refused(host: Path):
    """Otherwise sandboxes would be given directories of the host that are not there."""
    done = subprocess.run(
        ["/bin/sh", START], env=_environment(host, ANDON_EXECUTOR_STATE=f"{host}/none"), capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "is not mounted" in done.stderr


async def test_the_broker_is_made_ready_once(tmp_path: Path):
    """A second start admits who is new and changes nobody's key."""
    (tmp_path / "seats").mkdir()
    await make_ready(tmp_path, 2)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*/*.andon.json")}

    await make_ready(tmp_path, 3)

    second = {path.name: path.read_bytes() for path in tmp_path.glob("*/*.andon.json")}
    assert second.items() >= first.items()
    assert second.keys() - first.keys() == {"ex3.andon.json"}
    assert [user.name for user in admitted(tmp_path / "broker")] == ["ex1", "ex2", "ex3"]
    assert read_credentials(tmp_path / "seats" / "ex3.andon.json", ExecutorCredentials).url == "tls://nats:4222"
    outside = read_credentials(tmp_path / "broker" / "outside.andon.json", SupervisorCredentials)
    assert (outside.url, outside.client) == ("tls://127.0.0.1:4222", "outside")
    assert outside.ca is not None


@pytest.mark.parametrize("arguments", [[], ["0"], ["65"], ["three"], ["1", "2"]])
def test_a_number_of_seats_that_is_none_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    """It comes from a person's environment."""
    assert main(arguments) == 2
    assert "ANDON_SEATS" in capsys.readouterr().err


def test_our_images_carry_our_release():
    """An older fleet's images stay beside the newer ones."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]

    ours = {service["image"] for service in services.values() if service["image"].startswith("andon/")}

    assert ours == {f"andon/supervisor:{RELEASE}", f"andon/executor:{RELEASE}"}
