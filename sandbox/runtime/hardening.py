"""Every wall of a sandbox as one request to the engine, pure; not who sends it (`docker`). Reasons: SANDBOX.md §4.

Nothing an agent or a repository wrote reaches this request: paths are the slot's, the image is an id, command, working
directory, host name and environment are constants.
"""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sandbox.contract.labels import RUNTIME_DEFAULT
from sandbox.runtime.container_spec import (
    GATEWAY,
    HOME,
    LABEL_DEADLINE,
    LABEL_INSTANCE,
    LABEL_SLOT,
    OUT,
    TASK,
    WORKSPACE,
    EngineFacts,
    SlotSpec,
)

HOSTS = "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n"
"""With `NetworkDisabled` the engine writes an empty file and `localhost` does not resolve (DECISIONS D9)."""
TMP_MIB = 128
TMP_INODES_MAX = 20_000
SHM_MIB = 64
HOME_MIB = 16
FILE_BYTES_MAX = 64 << 20
CPU_PERIOD_US = 100_000

# The engine's own lists, repeated because naming one replaces it, and after them what tells about the host.
# /sys/class stays readable: tools break without it.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/modules",
    "/proc/partitions",
    "/sys/block",
    "/sys/fs/cgroup",
    "/sys/kernel",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

NO_SELINUX = "no SELinux label: an unlabelled container may use the gateway socket, a labelled one may not"


def create_request(slot: SlotSpec, image_id: str, facts: EngineFacts, hosts: Path) -> dict[str, Any]:
    """Return the body of the engine's container-create call, the same on API 1.41 and later.

    Args:
        slot: Where and with which limits.
        image_id: The image's id, `sha256:…`; a tag could move between check and use.
        facts: What the engine is; only what an engine refuses to be asked differs by it.
        hosts: A file of the host that holds `HOSTS`.
    """
    return {
        "Image": image_id,
        "Hostname": "sandbox",
        "User": ":".join(map(str, facts.users.inside(slot.uid, slot.gid))),
        "Entrypoint": [slot.command[0]],
        "Cmd": list(slot.command[1:]),
        "Env": [f"HOME={HOME}", "LANG=C.UTF-8"],
        "WorkingDir": WORKSPACE,
        "NetworkDisabled": _raises_loopback(slot.runtime),
        "AttachStdout": True,
        "AttachStderr": True,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {
            LABEL_INSTANCE: slot.instance,
            LABEL_SLOT: str(slot.slot),
            LABEL_DEADLINE: str(int(slot.deadline)),
        },
        "HostConfig": _host_config(slot, facts, hosts),
    }


def _host_config(slot: SlotSpec, facts: EngineFacts, hosts: Path) -> dict[str, Any]:
    uid, gid = facts.users.inside(slot.uid, slot.gid)
    return {
        **facts.users.mode(slot.uid, slot.gid),
        "NetworkMode": "none",
        # An engine that makes the (empty) network itself would hand on the name servers of the host.
        **({} if _raises_loopback(slot.runtime) else {"Dns": ["127.0.0.1"], "DnsSearch": ["."]}),
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "Privileged": False,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": security_options(facts, slot.runtime),
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READONLY_PATHS),
        "Mounts": [
            _bind(slot.workspace, WORKSPACE),
            _bind(slot.out, OUT),
            _bind(slot.task, TASK, read_only=True),
            *([] if slot.gateway_from else [_bind(slot.gateway, GATEWAY, read_only=True)]),
            _bind(hosts, "/etc/hosts", read_only=True),
        ],
        **({"VolumesFrom": [f"{slot.gateway_from}:ro"]} if slot.gateway_from else {}),
        "Tmpfs": {
            "/tmp": f"rw,exec,nosuid,nodev,size={TMP_MIB}m,nr_inodes={TMP_INODES_MAX},mode=1777",  # noqa: S108 (inside)
            # IPC mode none takes /dev/shm away, and multiprocessing.Lock needs it.
            "/dev/shm": f"rw,noexec,nosuid,nodev,size={SHM_MIB}m,nr_inodes=1024,mode=1777",  # noqa: S108 (inside)
            HOME: f"rw,exec,nosuid,nodev,size={HOME_MIB}m,nr_inodes=4096,mode=0700,uid={uid},gid={gid}",
        },
        **resources(slot, facts),
        "CpuShares": 512,
        "OomScoreAdj": 500,
        # No nproc: it is counted per uid over the whole host; the pids limit is the cgroup's (SANDBOX.md §0.5).
        "Ulimits": [
            _ulimit("nofile", 1024),
            _ulimit("core", 0),
            _ulimit("fsize", FILE_BYTES_MAX),
            _ulimit("memlock", 64 << 10),
            _ulimit("msgqueue", 0),
        ],
        "Init": True,
        "Runtime": slot.runtime,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {"Type": "none", "Config": {}},
    }


def _raises_loopback(runtime: str) -> bool:
    """Return whether a runtime raises 127.0.0.1 by itself; for gVisor, and whichever we do not know, the engine has to, in 85 ms."""
    return runtime == RUNTIME_DEFAULT


def resources(slot: SlotSpec, facts: EngineFacts) -> dict[str, Any]:
    """Return the limits of a cgroup; all but swappiness may be changed while the container runs.

    The workspace's tmpfs is added to the memory of the job: what a sandbox writes there is charged to it (DECISIONS G4).
    CPU is period and quota, not `NanoCpus`, because the latter cannot be updated through every engine.
    """
    limits = slot.limits
    memory = (limits.memory_mib + limits.workspace_mib) << 20
    return {
        "Memory": memory,
        "MemorySwap": memory,
        # Known to cgroup v1 only; others refuse or warn.
        **({"MemorySwappiness": 0} if facts.cgroup_version == "1" else {}),
        "CpuPeriod": CPU_PERIOD_US,
        "CpuQuota": max(1_000, int(limits.cpus * CPU_PERIOD_US)),
        "PidsLimit": limits.pids_max,
    }


def security_options(facts: EngineFacts, runtime: str = "runc") -> list[str]:
    """Return the options of the hardening; AppArmor's default profile needs none, SELinux cannot serve the socket."""
    options = ["no-new-privileges:true", f"seccomp={seccomp_profile(for_gvisor=runtime in facts.gvisor)}"]
    return [*options, "label=disable"] if facts.has_selinux else options


@cache
def seccomp_profile(*, for_gvisor: bool = False) -> str:
    """Return our system call filter, compact: the engine takes the content, not a path (DECISIONS D21).

    gVisor answers whatever a filter refuses with EPERM, so that its C library would not fall back from clone3, and no thread would
    start: there the call is allowed. A user namespace made by it is one of gVisor's own kernel, not of the host's.
    """
    profile = json.loads(files("sandbox.runtime").joinpath("seccomp.json").read_text())
    if for_gvisor:
        rules = [rule for rule in profile["syscalls"] if rule["names"] != ["clone3"]]
        profile["syscalls"] = [*rules, {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}]
    return json.dumps(profile, separators=(",", ":"))


def _bind(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    # `Mounts`, not `Binds`: a missing source is an error instead of a directory made by root.
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _ulimit(name: str, limit: int) -> dict[str, Any]:
    return {"Name": name, "Soft": limit, "Hard": limit}
