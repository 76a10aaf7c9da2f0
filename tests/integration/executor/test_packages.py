"""Packages in a sandbox without a network, from this machine's own indexes: real pip, real npm, checks and an agent's tools."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.contract.job import Check, Limits
from sandbox.contract.packages import Packages
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.scope import WriteScope
from sandbox.executor.config import Pace
from sandbox.gateway.registries.source import PackageSource, SourceSettings
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.images import DOCKERFILE
from tests.fakes.package_index import NODE_FROM_PIP, permitted_here
from tests.fakes.script import bash, single, submit
from tests.integration.executor.fleet import a_fleet, an_executor
from tests.servers.engines import Engines, TestEngine
from tests.servers.images import repository_image_on

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture
async def packages(tmp_path: Path) -> AsyncIterator[PackageSource]:
    """This machine's indexes."""
    settings = SourceSettings(tmp_path / "packages", permitted=await asyncio.to_thread(permitted_here))
    async with PackageSource(settings, os.environ) as source:
        yield source


def a_check(name: str, *argv: str) -> Check:
    return Check(name=name, argv=argv, timeout_s=200)


def exits(result: AttemptResult) -> dict[str, tuple[int | None, str]]:
    assert result.submission is not None, result.reason
    return {each.name: (each.exit_code, each.output_tail) for each in result.submission.exits}


async def test_checks_install_with_pip_and_use_what_they_installed(
    tmp_path: Path, docker_runtime: DockerRuntime, agent_image: str, packages: PackageSource
):
    """Also a program of the image finds it, `registries` being the stage's network; without it the same command fails."""
    checks = (
        a_check("install", "pip", "install", "--retries", "0", "six"),
        a_check("use", "python", "-c", "import six; print('six at', six.__file__)"),
        a_check("image", "pytest", "--collect-only", "-q", "-p", "six"),
        a_check("out", "python", "-c", "import socket; socket.create_connection(('1.1.1.1', 443), 3)"),
    )
    async with a_fleet(tmp_path, single(submit("done"))) as fleet, an_executor(fleet, docker_runtime, agent_image, Pace(), packages):
        of_checks = {"kind": "checks", "agent": None, "scope": WriteScope(), "role": "validate", "checks": checks}
        await fleet.link.publish_job(fleet.job(**of_checks, network="registries"), "with")
        result = await fleet.result(240)
        await fleet.link.publish_job(fleet.job(**of_checks, round=2, job_id=f"{fleet.job().run_id}-implement-2"), "without")
        control = await fleet.result(240)

    ended = exits(result)
    assert ended["install"][0] == 0, ended["install"]
    assert ended["use"] == (0, "six at /workspace/.venv/lib/python3.11/site-packages/six.py\n")
    assert "no module named 'six'" not in ended["image"][1].lower()
    assert ended["out"][0] == 1, "packages are no way to the network"
    assert [line.split("-")[0] for line in result.fetched.files] == ["pip six"]
    assert result.fetched.refused == ()
    assert result.commit is None
    assert exits(control)["install"][0] != 0, "positive control: there is no other way to a package"
    assert control.fetched.requests == 0


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("engine", ["runsc"], indirect=True)
async def test_checks_install_with_pip_under_gvisor(
    tmp_path: Path, docker_runtime: DockerRuntime, agent_image: str, packages: PackageSource
):
    """The way to the package routes is a socket on 127.0.0.1, which a sandbox of gVisor has too."""
    install = a_check("install", "pip", "install", "--retries", "0", "six")
    async with a_fleet(tmp_path, single(submit("done"))) as fleet, an_executor(fleet, docker_runtime, agent_image, Pace(), packages):
        of_checks = {"kind": "checks", "agent": None, "scope": WriteScope(), "role": "validate", "checks": (install,)}
        await fleet.link.publish_job(fleet.job(**of_checks, network="registries", runtime="runsc"), "job")
        result = await fleet.result(240)

    assert exits(result)["install"][0] == 0, exits(result)
    assert [line.split("-")[0] for line in result.fetched.files] == ["pip six"]
    assert any(line.startswith("no agent pin: under runsc") for line in result.sandbox.missing), "positive control: it ran under gVisor"


async def test_an_agents_tool_installs_what_is_listed_and_nothing_else(
    tmp_path: Path, docker_runtime: DockerRuntime, agent_image: str, packages: PackageSource
):
    """`allowlist`: the refusal names its rule in the attempt's record, the environment is no part of the result."""
    command = "pip install six && python -c 'import six' && echo installed > a.txt; pip install attrs || echo refused > b.txt"
    script = single(bash(command), submit("done"))
    async with a_fleet(tmp_path, script) as fleet, an_executor(fleet, docker_runtime, agent_image, Pace(), packages):
        await fleet.link.publish_job(fleet.job(network="allowlist", packages=Packages(pip=("six",))), "job")
        result = await fleet.result(240)

    assert result.outcome is Outcome.SUBMITTED, result.reason
    assert result.commit is not None
    assert result.fetched.refused == ("pip attrs: rule packages: pip package attrs is not on the stage's list: add it to `packages`",)
    assert [line.split("-")[0] for line in result.fetched.files] == ["pip six"]


@pytest.mark.slow
async def test_checks_install_with_npm(
    tmp_path: Path, docker_runtime: DockerRuntime, engine: TestEngine, engines: Engines, packages: PackageSource
):
    """In a repository's own image, which its build made with npm's program from the host's own index."""
    dockerfile = tmp_path / "context" / DOCKERFILE
    dockerfile.parent.mkdir(parents=True)
    dockerfile.write_text(NODE_FROM_PIP)
    image = await repository_image_on(engine, engines, tmp_path / "context")
    checks = (
        a_check("install", "npm", "install", "--no-save", "left-pad", "@types/ms"),
        a_check("use", "node", "-p", "require('left-pad')('1', 3, 0)"),
        a_check("publish", "npm", "ping"),
    )
    async with a_fleet(tmp_path, single(submit("done"))) as fleet, an_executor(fleet, docker_runtime, image, Pace(), packages):
        job = fleet.job(
            kind="checks", agent=None, scope=WriteScope(), role="validate", checks=checks, network="registries", limits=Limits(wall_s=300)
        )
        await fleet.link.publish_job(job, "job")
        result = await fleet.result(300)

    ended = exits(result)
    assert ended["install"][0] == 0, ended["install"]
    assert ended["use"] == (0, "001\n")
    assert ended["publish"][0] != 0
    assert sorted(line.split("-")[0] for line in result.fetched.files) == ["npm left", "npm ms"]
