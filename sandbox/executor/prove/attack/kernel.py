"""Attempts at system calls an agent does not need, and at those programs cannot do without; not which are which (`catalogue`)."""

import ctypes
import mmap
import os
import platform
import signal
import socket
import struct
from collections.abc import Callable

from .attempts import Attempt, Stopped, attempt

_LIBC = ctypes.CDLL(None, use_errno=True)
_KEPT: list[ctypes.Array[ctypes.c_char]] = []
_NUMBERS = {
    "x86_64": {
        "shmget": 29, "semget": 64, "ptrace": 101, "mount": 165, "mq_open": 240, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "process_vm_readv": 310, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438,
        "landlock_create_ruleset": 444,
    },
    "aarch64": {
        "shmget": 194, "semget": 190, "ptrace": 117, "mount": 40, "mq_open": 180, "keyctl": 219, "unshare": 97, "perf_event_open": 241,
        "process_vm_readv": 270, "bpf": 280, "userfaultfd": 282, "io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438,
        "landlock_create_ruleset": 444,
    },
}  # fmt: skip
"""Of the kernel's own tables; other machines have no entry, and then nothing is reported."""
_CLONE_NEWUSER = 0x10000000
_MAP_32BIT = 0x40
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17


def syscall(name: str, *arguments: int) -> int:
    """Make a system call by name.

    Raises:
        OSError: What the kernel said.
    """
    number = _NUMBERS[platform.machine()][name]
    result: int = _LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def buffer(size: int = 256, data: bytes = b"") -> int:
    """Return the address of memory that stays."""
    _KEPT.append(ctypes.create_string_buffer(data, size))
    return ctypes.addressof(_KEPT[-1])


def ptrace_attach(pid: int) -> str:
    """Become the tracer of another process, for a moment."""
    syscall("ptrace", _PTRACE_ATTACH, pid, 0, 0)
    os.waitpid(pid, getattr(os, "__WALL", 0x40000000))
    syscall("ptrace", _PTRACE_DETACH, pid, 0, 0)
    return f"attached to process {pid}"


def run() -> None:
    """Make every attempt this machine has a number for."""
    if platform.machine() not in _NUMBERS:
        return
    for name, way in _ATTEMPTS.items():
        attempt(name, way)
    if platform.machine() == "x86_64":
        attempt("vsock.socketcall", _socketcall_32bit)


def _opened(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> Attempt:
    def way() -> str:
        socket.socket(family, kind, protocol).close()
        return "a socket"

    return way


def _called(name: str, *arguments: "int | Callable[[], int]") -> Attempt:
    def way() -> str:
        syscall(name, *(argument() if callable(argument) else argument for argument in arguments))
        return f"{name} went through"

    return way


def _socketcall_32bit() -> str:
    """Open AF_VSOCK by `int 0x80`, the way a filter for 64-bit calls never sees."""
    _LIBC.mmap.restype = ctypes.c_void_p
    page = _LIBC.mmap(None, mmap.PAGESIZE, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT, -1, 0)
    arguments = page + 256
    ctypes.memmove(arguments, struct.pack("<III", 40, 1, 0), 12)
    # push rbx; mov eax, 102 (socketcall); mov ebx, 1 (SYS_SOCKET); mov ecx, arguments; int 0x80; pop rbx; ret
    code = (
        b"\x53\xb8" + struct.pack("<I", 102) + b"\xbb" + struct.pack("<I", 1) + b"\xb9" + struct.pack("<I", arguments) + b"\xcd\x80\x5b\xc3"
    )
    ctypes.memmove(page, code, len(code))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(page)()
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return "a socket"


def _ptrace() -> str:
    """Trace a child of one's own, which is no secret to us: the call itself is what counts."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return ptrace_attach(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _process_vm_readv() -> str:
    there = buffer(16, b"read by another")
    here = buffer(16)
    wanted, place = buffer(16, struct.pack("<QQ", there, 15)), buffer(16, struct.pack("<QQ", here, 15))
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        read = syscall("process_vm_readv", pid, place, 1, wanted, 1, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if ctypes.string_at(here, read) != b"read by another":
        raise Stopped("it read something else")
    return "another process's memory"


def _clone3() -> str:
    # struct clone_args with exit_signal only; without it clone3 is refused for another reason.
    result = syscall("clone3", buffer(88, struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)), 64)
    if result == 0:
        os._exit(0)
    os.waitpid(result, 0)
    return "a process"


def _chroot() -> str:
    os.chroot("/tmp")
    return "another root"


def _memfd() -> str:
    os.close(os.memfd_create("x"))
    return "a file in memory"


def _fifo() -> str:
    os.mkfifo("/tmp/prove-fifo")
    os.unlink("/tmp/prove-fifo")
    return "a FIFO"


_ATTEMPTS: dict[str, Attempt] = {
    "vsock.socket": _opened(40),
    "vsock.datagram": _opened(40, socket.SOCK_DGRAM),
    "io_uring.setup": _called("io_uring_setup", 1, buffer),
    "ptrace.attach": _ptrace,
    "ptrace.process_vm_readv": _process_vm_readv,
    "ptrace.pidfd_getfd": _called("pidfd_getfd", lambda: os.pidfd_open(os.getpid()), 0, 0),
    "surface.alg": _opened(38, socket.SOCK_SEQPACKET),
    "surface.packet": _opened(17, socket.SOCK_DGRAM),
    "surface.netlink_audit": _opened(16, socket.SOCK_RAW, 9),
    "surface.netlink_netfilter": _opened(16, socket.SOCK_RAW, 12),
    "surface.userfaultfd": _called("userfaultfd", 1),
    "surface.keyctl": _called("keyctl", 0, 0xFFFFFFFD, 0),
    "surface.bpf": _called("bpf", 0, lambda: buffer(128, struct.pack("<IIII", 2, 4, 4, 1)), 48),
    "surface.perf_event_open": _called("perf_event_open", lambda: buffer(120, struct.pack("<IIQ", 1, 120, 0)), 0, -1, -1, 0),
    "surface.unshare_user": _called("unshare", _CLONE_NEWUSER),
    "surface.mount": _called("mount", lambda: buffer(8, b"none"), lambda: buffer(8, b"/tmp"), lambda: buffer(8, b"tmpfs"), 0, 0),
    "surface.chroot": _chroot,
    "surface.clone3": _clone3,
    "ipc.message_queue": _called("mq_open", lambda: buffer(8, b"q"), 0o102, 0o600, 0),
    "ipc.shared_memory": _called("shmget", 0, 4096, 0o1600),
    "ipc.semaphores": _called("semget", 0, 1, 0o1600),
    "needed.unix": _opened(1),
    "needed.inet": _opened(2),
    "needed.inet6": _opened(10),
    "needed.netlink_route": _opened(16, socket.SOCK_RAW, 0),
    "needed.memfd": _memfd,
    "needed.fifo": _fifo,
    "needed.landlock": _called("landlock_create_ruleset", 0, 0, 1),
}
