"""Which protections an engine and its runtimes cannot give, as the engine itself says; pure. Not what a container shows (`proof`)."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sandbox.runtime.container_spec import EngineFacts

RUNC = "runc"
NO_PIN = "no agent pin: under {runtime} every process of a sandbox looks the same from outside, so its tools reach the model route too"
NO_FILTER = "no seccomp: {runtime} does not apply our system call filter (gVisor: register it with --oci-seccomp)"
NO_LANDLOCK = "no Landlock: under {runtime} the tests and the product of a sealed check run in one process (Linux 5.13 or later has it)"
_RUNC_FIXED = ((1, 2, 8), (1, 3, 3))
_LIMITS = {
    "MemoryLimit": "no memory limit: the kernel's memory cgroup is off, or a rootless engine may not use it",
    "SwapLimit": "no swap limit: a sandbox may use swap beyond its memory (boot with swapaccount=1)",
    "PidsLimit": "no pids limit: the kernel's pids cgroup is off, or a rootless engine may not use it",
    "CpuCfsQuota": "no cpu quota: the kernel has no CFS bandwidth control, or a rootless engine may not use it",
}


def missing_in(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the engine's `info` says it cannot give, whatever the runtime."""
    security = [str(option) for option in info.get("SecurityOptions") or ()]
    lines = [line for key, line in _LIMITS.items() if info.get(key) is False]
    if info.get("CgroupDriver") == "none":
        lines.append("no freezer: a sandbox whose lease is in doubt works on, without the gateway, until it is clear whose it is")
    if not any("seccomp" in option for option in security):
        lines.append("no seccomp: the engine cannot filter system calls")
    if any("selinux" in option for option in security):
        lines.append("no SELinux confinement: a labelled container may not use the gateway socket")
    elif not any("apparmor" in option for option in security):
        lines.append("no AppArmor: the kernel has no mandatory access control for containers")
    return tuple(lines)


def warnings_of(version: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is old in the engine's `version`: it is missing in every sandbox that runc starts."""
    found = next((str(part.get("Version", "")) for part in version.get("Components") or () if part.get("Name") == RUNC), "")
    numbers = _numbers(found)
    fixed = any(numbers[:2] == fix[:2] and numbers >= fix for fix in _RUNC_FIXED) or numbers > _RUNC_FIXED[-1]
    if not numbers or fixed:
        return ()
    return (
        f"runc {found} is older than 1.2.8 and 1.3.3, which fix CVE-2025-31133, -52565, -52881; see that your distribution has the fixes",
    )


def gvisor_runtimes(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the runtimes that are gVisor, by the program or the shim the engine has for each."""
    runtimes = info.get("Runtimes") or {}
    return tuple(sorted(name for name, about in runtimes.items() if _is_gvisor(about if isinstance(about, dict) else {})))


def missing_under(facts: EngineFacts, runtime: str) -> tuple[str, ...]:
    """Return what a sandbox of this runtime does without, before any was started."""
    lines = list(facts.missing)
    if runtime == RUNC:
        lines += facts.warnings
    if runtime in facts.gvisor:
        lines.append(NO_PIN.format(runtime=runtime))
    return tuple(lines)


def _is_gvisor(about: Mapping[str, Any]) -> bool:
    return PurePosixPath(str(about.get("path", ""))).name.startswith("runsc") or "runsc" in str(about.get("runtimeType", ""))


def _numbers(version: str) -> tuple[int, ...]:
    digits = version.split("+")[0].split("-")[0].split("~")[0].split(".")
    return tuple(int(part) for part in digits) if all(part.isdigit() for part in digits) else ()
