"""The systemd unit: systemd accepts it, and it keeps to what an executor needs of its host."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path("images/executor/andon-executor.service")
OWN_MOUNTS = {
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateMounts",
    "PrivateDevices",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "BindPaths",
}


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_systemd_accepts_it(tmp_path: Path):
    """With a program that is there, and a stand-in for the engine's unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text().replace("/opt/andon/.venv/bin/andon", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")

    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / UNIT.name)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_has_no_view_of_the_file_system_of_its_own(unit: configparser.ConfigParser):
    """What it mounts, and its sockets in /tmp, have to be those the engine sees."""
    assert OWN_MOUNTS & set(unit["Service"]) == set()


def test_stopping_drains_and_a_refusal_is_not_tried_again(unit: configparser.ConfigParser):
    """SIGTERM drains; there is time for a stage of 30 minutes; exit code 2 is final."""
    service = unit["Service"]

    assert (service["KillSignal"], service["KillMode"], service["TimeoutStopSec"]) == ("SIGTERM", "mixed", "35min")
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
