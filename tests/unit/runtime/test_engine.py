"""How the engine is found and what is read from it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.errors import EngineError
from sandbox.runtime.engine import DEFAULT_ENDPOINT, Endpoint, find_endpoint, read_facts


def configure(directory: Path, current: str | None, **contexts: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"currentContext": current} if current else {}))
    for name, host in contexts.items():
        meta = directory / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    return directory


def test_docker_host_beats_every_context(tmp_path: Path):
    """The order of the docker command (DECISIONS G15)."""
    config = configure(tmp_path, "mine", mine="unix:///mine.sock")

    assert find_endpoint("unix:///given.sock", "mine", config) == Endpoint("unix:///given.sock", "DOCKER_HOST")


def test_the_current_context_beats_the_default(tmp_path: Path):
    """The SDK's own `from_env` ignores contexts."""
    config = configure(tmp_path, "mine", mine="unix:///mine.sock")

    assert find_endpoint(None, None, config) == Endpoint("unix:///mine.sock", "context mine")


def test_a_context_named_in_the_environment_beats_the_current_one(tmp_path: Path):
    """DOCKER_CONTEXT, as the docker command reads it."""
    config = configure(tmp_path, "mine", mine="unix:///mine.sock", other="unix:///other.sock")

    assert find_endpoint(None, "other", config).url == "unix:///other.sock"
    assert find_endpoint(None, "default", config) == Endpoint(DEFAULT_ENDPOINT, "default")


@pytest.mark.parametrize("config", ["{}", "", "not json", "[]", '{"currentContext": ""}'])
def test_without_a_choice_it_is_the_default_socket(tmp_path: Path, config: str):
    """A configuration that cannot be read chooses nothing."""
    (tmp_path / "config.json").write_text(config)

    assert find_endpoint(None, None, tmp_path) == Endpoint(DEFAULT_ENDPOINT, "default")
    assert find_endpoint("", "", tmp_path / "absent") == Endpoint(DEFAULT_ENDPOINT, "default")


def test_a_context_that_is_not_configured_is_named(tmp_path: Path):
    """Falling back to another engine would run things where nobody asked for it."""
    with pytest.raises(EngineError, match="context 'gone' is not configured"):
        find_endpoint(None, None, configure(tmp_path, "gone"))


def info(**changes: Any) -> dict[str, Any]:
    good = {"MemoryLimit": True, "SwapLimit": True, "PidsLimit": True, "CpuCfsQuota": True, "Runtimes": {"runc": {}}}
    return good | {"SecurityOptions": ["name=seccomp,profile=default", "name=apparmor"]} | changes


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"SwapLimit": False}, "no swap limit"),
        ({"PidsLimit": False}, "no pids limit"),
        ({"MemoryLimit": False}, "no memory limit"),
        ({"CpuCfsQuota": False}, "no cpu quota"),
        ({"SecurityOptions": ["name=apparmor"]}, "no seccomp"),
        ({"SecurityOptions": ["name=seccomp"]}, "no AppArmor"),
        ({"SecurityOptions": ["name=seccomp", "name=selinux"]}, "no SELinux confinement"),
    ],
)
def test_what_an_engine_lacks_is_said(changes: dict[str, Any], line: str):
    """Each is one line of the job's record (SANDBOX.md P28)."""
    missing = read_facts(Endpoint("unix:///x", "default"), info(**changes), {}).missing

    assert len(missing) == 1
    assert missing[0].startswith(line)


def test_an_engine_that_has_everything_lacks_nothing():
    """The companion of the above."""
    assert read_facts(Endpoint("unix:///x", "default"), info(), {}).missing == ()


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ("1.1.5+ds1", True),
        ("1.2.7", True),
        ("1.2.8", False),
        ("1.3.2", True),
        ("1.3.3", False),
        ("1.5.2", False),
        ("2.0.0", False),
        ("", False),
    ],
)
def test_an_old_runc_is_warned_of(version: str, warned: bool):
    """Two branches have the fix; a version that cannot be read says nothing."""
    facts = read_facts(Endpoint("unix:///x", "default"), info(), {"Components": [{"Name": "runc", "Version": version}]})

    assert bool(facts.warnings) is warned
