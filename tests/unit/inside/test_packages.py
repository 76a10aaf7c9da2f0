"""The Python environment that packages are installed into."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.contract.job import Assignment
from sandbox.inside.packages import installing, writable_venv
from sandbox.inside.paths import Paths


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image's environment, made by Python itself, with one module in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "image")], check=True)
    (packages_of(tmp_path / "image") / "shipped.py").write_text("value = 'of the image'\n")
    return tmp_path / "image"


def packages_of(venv: Path) -> Path:
    return next((venv / "lib").glob("python3.*")) / "site-packages"


def run(program: Path, code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([str(program), "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_it_sees_the_images_packages_and_its_own_come_first(tmp_path: Path, image: Path):
    """For its own interpreter, and for the image's, with which the image's programs run."""
    at = tmp_path / "workspace" / ".venv"
    environment = writable_venv(at, image, "/usr/bin")
    look = "import shipped, sys; print(shipped.value, sys.prefix)"
    before = run(at / "bin/python", look, environment)
    (packages_of(at) / "shipped.py").write_text("value = 'installed'\n")

    assert before == f"of the image {at}"
    assert run(at / "bin/python", look, environment) == f"installed {at}"
    assert run(image / "bin/python", look, environment) == f"installed {image}"
    assert environment["PATH"] == f"{at}/bin:/usr/bin"
    assert environment["VIRTUAL_ENV"] == str(at)


def test_one_of_the_repositorys_own_is_left_alone(tmp_path: Path, image: Path):
    """Nothing of the base is written over."""
    (tmp_path / ".venv").mkdir()

    assert writable_venv(tmp_path / ".venv", image, "") == {}
    assert list((tmp_path / ".venv").iterdir()) == []


def test_an_image_without_an_environment_gets_none(tmp_path: Path):
    """A repository's own image may have another way."""
    assert writable_venv(tmp_path / ".venv", tmp_path / "nothing", "") == {}
    assert not (tmp_path / ".venv").exists()


def test_a_stage_without_a_network_is_given_nothing(tmp_path: Path):
    """No port is opened, no environment made, nothing changes."""
    assignment = Assignment(
        job_id="0123456789-x-1", stage="x", round=1, attempt=1, kind="checks", traceparent="", wall_s=1, packages_port=1
    )
    (tmp_path / "workspace").mkdir()

    with installing(assignment, Paths.below(str(tmp_path)), {"A": "b"}) as environment:
        assert environment == {"A": "b"}
        assert list((tmp_path / "workspace").iterdir()) == []
