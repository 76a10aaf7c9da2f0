"""The request that makes a container: every wall of SANDBOX.md §4 as data."""

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.job import Limits
from sandbox.runtime.container_spec import PROGRAM, EngineFacts, SlotSpec
from sandbox.runtime.hardening import create_request, resources, seccomp_profile, security_options

IMAGE = "sha256:" + "a" * 64


def facts(**changes: Any) -> EngineFacts:
    fields: dict[str, Any] = {
        "endpoint": "unix:///run/docker.sock",
        "source": "default",
        "version": "20.10.24",
        "api_version": "1.41",
        "architecture": "x86_64",
        "kernel": "6.1",
        "cgroup_version": "1",
        "storage_driver": "overlay2",
        "default_runtime": "runc",
        "runtimes": ("runc",),
        "security_options": ("name=seccomp,profile=default",),
        "cpus": 2,
        "memory_bytes": 8 << 30,
    }
    return EngineFacts(**fields | changes)


def slot(**changes: Any) -> SlotSpec:
    fields: dict[str, Any] = {
        "instance": "one",
        "slot": 3,
        "uid": 200_003,
        "gid": 200_003,
        "workspace": Path("/s/3/workspace"),
        "task": Path("/s/3/task"),
        "gateway": Path("/t/3"),
        "out": Path("/s/3/out"),
        "limits": Limits(memory_mib=1024, workspace_mib=256, cpus=1.5, pids_max=99),
        "deadline": 1_700_000_000.7,
    }
    return SlotSpec(**fields | changes)


def request(**changes: Any) -> dict[str, Any]:
    return create_request(slot(**changes), IMAGE, facts(), Path("/s/3/hosts"))


def test_a_container_is_named_by_an_image_id_and_constants():
    """Nothing of a repository or an agent chooses program, directory, host name or environment."""
    body = request()

    assert (body["Image"], body["Hostname"], body["WorkingDir"]) == (IMAGE, "sandbox", "/workspace")
    assert [*body["Entrypoint"], *body["Cmd"]] == list(PROGRAM)
    assert body["Env"] == ["HOME=/home/agent", "LANG=C.UTF-8"]
    assert body["Labels"] == {"andon.instance": "one", "andon.slot": "3", "andon.deadline": "1700000000"}
    assert body["User"] == "200003:200003"
    assert body["Healthcheck"] == {"Test": ["NONE"]}


def test_a_container_has_no_network_twice():
    """Without `NetworkDisabled` the engine runs a hook that costs 85 ms; without mode none it would join a bridge (G21)."""
    body = request()

    assert body["NetworkDisabled"] is True
    assert body["HostConfig"]["NetworkMode"] == "none"
    assert "Dns" not in body["HostConfig"]


def test_under_another_runtime_the_engine_raises_loopback_and_tells_no_name_server():
    """gVisor raises nothing by itself, and package routes and tests' own servers need 127.0.0.1; the mode stays none."""
    body = request(runtime="runsc")

    assert body["NetworkDisabled"] is False
    assert body["HostConfig"]["NetworkMode"] == "none"
    assert body["HostConfig"]["Dns"] == ["127.0.0.1"]


def test_a_container_has_no_power():
    """Capabilities, privileges, namespaces, root file system, restart, log: one value each."""
    host = request()["HostConfig"]

    assert {key: host[key] for key in ("CapDrop", "Privileged", "ReadonlyRootfs", "IpcMode", "CgroupnsMode", "Init", "AutoRemove")} == {
        "CapDrop": ["ALL"],
        "Privileged": False,
        "ReadonlyRootfs": True,
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "Init": True,
        "AutoRemove": False,
    }
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"] == {"Type": "none", "Config": {}}
    assert host["OomScoreAdj"] == 500
    assert not {"Devices", "CapAdd", "Binds", "PidMode", "UTSMode", "UsernsMode", "VolumesFrom", "Links", "GroupAdd"} & set(host)


def test_only_workspace_and_out_are_bound_writable():
    """Task, socket directory and hosts are read-only; no mount is below another (ABUSE.md D18)."""
    mounts = request()["HostConfig"]["Mounts"]

    assert {mount["Target"]: (mount["Source"], mount["ReadOnly"]) for mount in mounts} == {
        "/workspace": ("/s/3/workspace", False),
        "/out": ("/s/3/out", False),
        "/task": ("/s/3/task", True),
        "/gw": ("/t/3", True),
        "/etc/hosts": ("/s/3/hosts", True),
    }
    assert all(mount["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True} for mount in mounts)


def test_every_writable_place_in_memory_has_a_size():
    """A tmpfs without one takes half of the machine's memory (SANDBOX.md §1.3)."""
    tmpfs = request()["HostConfig"]["Tmpfs"]

    assert sorted(tmpfs) == ["/dev/shm", "/home/agent", "/tmp"]
    for options in tmpfs.values():
        assert {"nosuid", "nodev"} <= set(options.split(","))
        assert "size=" in options
        assert "nr_inodes=" in options
    assert "uid=200003,gid=200003" in tmpfs["/home/agent"]


def test_memory_is_the_jobs_and_the_workspaces():
    """The workspace is memory that is charged to the container when the container writes it (G4); there is no swap."""
    limits = resources(slot(), facts())

    assert limits["Memory"] == limits["MemorySwap"] == (1024 + 256) << 20
    assert (limits["CpuQuota"], limits["CpuPeriod"], limits["PidsLimit"]) == (150_000, 100_000, 99)


@pytest.mark.parametrize(("version", "asked"), [("1", True), ("2", False)])
def test_swappiness_is_asked_of_the_first_cgroups_only(version: str, asked: bool):
    """The second kind knows no swappiness, and an engine warns or refuses."""
    assert ("MemorySwappiness" in resources(slot(), facts(cgroup_version=version))) is asked


def test_ulimits_are_of_the_process_never_of_the_user():
    """`nproc` is counted over every container of a uid, so that one job could starve another (SANDBOX.md §0.5)."""
    ulimits = {each["Name"]: each["Hard"] for each in request()["HostConfig"]["Ulimits"]}

    assert ulimits == {"nofile": 1024, "core": 0, "fsize": 64 << 20, "memlock": 64 << 10, "msgqueue": 0}


def test_selinux_is_set_aside_only_where_it_is():
    """A labelled container may not connect to our socket; elsewhere the option is not sent."""
    assert "label=disable" not in security_options(facts())
    assert "label=disable" in security_options(facts(security_options=("name=seccomp", "name=selinux")))
    assert "no-new-privileges:true" in security_options(facts())


def test_the_filter_travels_as_content():
    """The engine may be unable to read our files; it gets the profile itself."""
    option = next(option for option in security_options(facts()) if option.startswith("seccomp="))

    assert json.loads(option.removeprefix("seccomp="))["defaultAction"] == "SCMP_ACT_ERRNO"


def test_the_filter_knows_the_native_architecture_only():
    """With 32-bit calls allowed, `int 0x80` opens what the filter denies (DECISIONS D21)."""
    profile = json.loads(seccomp_profile())

    assert "architectures" not in profile
    assert [each["subArchitectures"] for each in profile["archMap"]] == [[], []]


def test_the_filter_allows_nothing_it_must_not():
    """The names of SANDBOX.md §4, and no unconditional call that creates sockets or namespaces."""
    profile = json.loads(seccomp_profile())
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]}

    forbidden = {
        *("io_uring_setup", "io_uring_enter", "io_uring_register", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
        *("keyctl", "add_key", "request_key", "userfaultfd", "chroot", "mount", "umount2", "pivot_root", "bpf", "perf_event_open"),
        *("mq_open", "shmget", "semget", "msgget", "ipc", "socketcall", "socket", "socketpair", "clone", "clone3", "unshare", "setns"),
        *("open_by_handle_at", "kexec_load", "init_module", "finit_module", "reboot", "swapon", "acct", "settimeofday", "personality"),
    }
    assert allowed & forbidden == set()
    assert {"openat", "read", "write", "execve", "futex", "exit_group", "connect"} <= allowed


def test_the_filter_names_each_rule_once():
    """A second entry by name alone would undo a condition (PERFORMANCE.md 1)."""
    rules = json.loads(seccomp_profile())["syscalls"]
    conditional = {name for rule in rules if "args" in rule or rule["action"] != "SCMP_ACT_ALLOW" for name in rule["names"]}
    unconditional = [name for rule in rules if "args" not in rule and rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]]

    assert len(unconditional) == len(set(unconditional))
    assert conditional & set(unconditional) == set()
    assert next(rule for rule in rules if rule["names"] == ["clone3"])["errnoRet"] == 38


@pytest.mark.parametrize("changes", [{"uid": 0}, {"gid": 0}, {"instance": "a,b"}, {"instance": ""}, {"runtime": "../x"}, {"command": ()}])
def test_a_slot_that_breaks_a_wall_cannot_be_described(changes: dict[str, Any]):
    """Root, a label that could match another's, a runtime that is a path: refused before the engine is asked."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        slot(**changes)


def test_gvisor_alone_may_use_clone3():
    """It would answer EPERM where our list says ENOSYS, and no thread would start; for every other runtime the list is as it is."""
    ours, for_gvisor = (json.loads(seccomp_profile(for_gvisor=is_gvisor))["syscalls"] for is_gvisor in (False, True))
    told = facts(runtimes=("runc", "runsc"), gvisor=("runsc",))

    assert [rule["action"] for rule in ours if "clone3" in rule["names"]] == ["SCMP_ACT_ERRNO"]
    assert [rule["action"] for rule in for_gvisor if "clone3" in rule["names"]] == ["SCMP_ACT_ALLOW"]
    assert [rule for rule in ours if rule["names"] != ["clone3"]] == [rule for rule in for_gvisor if rule["names"] != ["clone3"]]
    assert security_options(told, "runsc")[1] == f"seccomp={seccomp_profile(for_gvisor=True)}"
    assert security_options(told, "runc")[1] == f"seccomp={seccomp_profile()}"
