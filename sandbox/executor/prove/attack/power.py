"""Attempts to become more than the sandbox's user, to reach the host's devices and settings, and to learn what the host is."""

import contextlib
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

from .attempts import Stopped, attempt
from .kernel import buffer, syscall

WORKSPACE = "/workspace"
_NOBODY = 65_534
_SET_UID = 0o4755
_SET_UID_PROGRAMS = ("/usr/bin/passwd", "/usr/bin/su", "/usr/bin/newgrp", "/usr/bin/mount")
_MS_REMOUNT, _MS_BIND = 32, 4096
_HOST_FACTS = ("/proc/cmdline", "/proc/partitions", "/proc/diskstats", "/proc/kallsyms", "/proc/modules", "/proc/interrupts")
_EXPECTED_SOCKETS = {"/gw/gateway.sock"}


def run() -> None:
    """Make every attempt."""
    attempt("setuid.made", _make_set_uid)
    attempt("setuid.used", _use_set_uid)
    attempt("setuid.capabilities", _capabilities)
    attempt("devices.made", _make_device)
    attempt("settings.core_pattern", lambda: _writable("/proc/sys", "/proc/sys/kernel/core_pattern"))
    attempt("settings.sysrq", lambda: _writable("/proc/sysrq-trigger", "/proc/sysrq-trigger"))
    attempt("settings.cgroup", _mount_cgroup)
    attempt("root.written", _write_root)
    attempt("facts.read", _read_facts)


def look_for_sockets() -> None:
    """Look for the engine's socket on the whole disk."""
    attempt("engine.socket", _find_sockets)


def _make_set_uid() -> str:
    """Make a program that runs as root whoever starts it, then start it as nobody."""
    program = Path(WORKSPACE) / "prove-id"
    shutil.copy("/usr/bin/id", program)
    try:
        os.chown(program, 0, 0)
        program.chmod(_SET_UID)
        user = _effective_user([str(program), "-u"])
    finally:
        program.unlink()
    if user != "0":
        raise Stopped(f"it ran as uid {user}")
    return "a program of ours ran as root for another user"


def _effective_user(command: list[str]) -> str:
    """Start a program as somebody who is not root and return what it says."""
    done = subprocess.run(_as_nobody(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=5, cwd="/", check=False)
    return done.stdout.decode(errors="replace").strip()


def _as_nobody(command: list[str]) -> list[str]:
    if os.getuid():
        return command
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *command]


def _use_set_uid() -> str:
    """Start the image's own set-uid programs as somebody who is not root, and see whether one of them was root."""
    programs = [path for path in _SET_UID_PROGRAMS if os.path.exists(path) and os.stat(path).st_mode & stat.S_ISUID]
    if not programs:
        raise Stopped("the image has none")
    for program in programs:
        uids = _uids_of(program)
        if "0" in uids:
            return f"{program} had the uids {' '.join(uids)}"
    raise Stopped(f"{len(programs)} programs stayed uid {' '.join(sorted(set(uids)))}")


def _uids_of(program: str) -> list[str]:
    null = subprocess.DEVNULL
    with subprocess.Popen(_as_nobody([program]), cwd="/", stdin=null, stdout=null, stderr=null) as one:
        # Dead and not yet reaped, it still says whose it was.
        deadline = time.monotonic() + 2
        while os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        uids = next(line.split()[1:] for line in Path(f"/proc/{one.pid}/status").read_text().splitlines() if line.startswith("Uid:"))
        one.kill()
    return uids


def _capabilities() -> str:
    fields = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    held = {name: fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd") if int(fields[name], 16)}
    if held:
        return " ".join(f"{name} {value}" for name, value in held.items())
    raise Stopped("CapEff, CapPrm and CapBnd are 0")


def _make_device() -> str:
    path = f"{WORKSPACE}/prove-device"
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    os.unlink(path)
    return "a node of block device 8:0"


def _writable(mounted: str, path: str) -> str:
    """Open a setting of the host's kernel for writing; nothing is written to it."""
    with contextlib.suppress(OSError):  # it may be writable without
        syscall("mount", buffer(8, b"none"), buffer(64, mounted.encode()), 0, _MS_REMOUNT | _MS_BIND, 0)
    os.close(os.open(path, os.O_WRONLY))
    return f"{path} may be written"


def _mount_cgroup() -> str:
    """Mount the control groups; with them, release_agent and other groups' limits are in reach."""
    place = "/tmp/prove-cgroup"
    os.makedirs(place, exist_ok=True)
    kinds = ((b"cgroup2", b""), (b"cgroup", b"rdma"), (b"cgroup", b"memory"))
    for number, (kind, options) in enumerate(kinds):
        try:
            syscall("mount", buffer(8, b"none"), buffer(64, place.encode()), buffer(16, kind), 0, buffer(16, options))
        except OSError:
            if number == len(kinds) - 1:
                raise
            continue
        subprocess.run(["umount", place], capture_output=True, timeout=5)
        return f"{kind.decode()} is mounted"
    raise Stopped("nothing was mounted")


def _write_root() -> str:
    path = "/usr/bin/prove-planted"
    Path(path).write_text("#!/bin/sh\n")
    os.unlink(path)
    return "the image's programs may be replaced"


def _read_facts() -> str:
    read = []
    for path in _HOST_FACTS:
        try:
            with open(path, "rb") as file:
                if file.read(16):
                    read.append(path)
        except OSError:
            continue
    if not read:
        raise Stopped(f"{len(_HOST_FACTS)} files are empty or absent")
    return f"{', '.join(read)} can be read"


def _find_sockets() -> str:
    """Look for sockets on the whole disk, but the one that is ours."""
    found = []
    for top, directories, names in os.walk("/"):
        directories[:] = [name for name in directories if f"{top}{name}" not in ("/proc", "/sys")]
        for name in names:
            path = os.path.join(top, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    found.append(path)
            except OSError:
                continue
    others = sorted(set(found) - _EXPECTED_SOCKETS)
    if others:
        return f"sockets: {', '.join(others)}"
    raise Stopped("none but the gateway's")
