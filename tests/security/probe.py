"""Runs inside a container and prints, as JSON, what the kernel lets it do; knows nothing of what it should be allowed.

Standard library only, x86-64 numbers, no guard around `main`: it is handed to `python -c`.
Every attempt runs in a child of its own: one may be killed for it.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
PAGE = mmap.PAGESIZE
MAP_32BIT = 0x40
KEPT: list[ctypes.Array[ctypes.c_char]] = []


def syscall(number: int, *arguments: int) -> int:
    result: int = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def buffer(size: int = 256, data: bytes = b"") -> int:
    KEPT.append(ctypes.create_string_buffer(data, size))
    return ctypes.addressof(KEPT[-1])


def open_socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def socketcall_32bit() -> None:
    """Open AF_VSOCK by `int 0x80`, the way a filter for 64-bit calls never sees."""
    LIBC.mmap.restype = ctypes.c_void_p
    page = LIBC.mmap(None, PAGE, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, -1, 0)
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


def clone3() -> None:
    # struct clone_args with exit_signal only; without it clone3 is refused for another reason.
    result = syscall(435, buffer(88, struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)), 64)
    if result == 0:
        os._exit(0)
    os.waitpid(result, 0)


PROBES: dict[str, Callable[[], object]] = {
    # what must not work
    "vsock": lambda: open_socket(40),
    "vsock by 32-bit socketcall": socketcall_32bit,
    "alg": lambda: open_socket(38, socket.SOCK_SEQPACKET),
    "packet": lambda: open_socket(17, socket.SOCK_DGRAM),
    "netlink audit": lambda: open_socket(16, socket.SOCK_RAW, 9),
    "netlink netfilter": lambda: open_socket(16, socket.SOCK_RAW, 12),
    "io_uring": lambda: syscall(425, 1, buffer()),
    "ptrace": lambda: syscall(101, 0, 0, 0, 0),
    "process_vm_readv": lambda: syscall(310, os.getpid(), 0, 0, 0, 0, 0),
    "pidfd_getfd": lambda: syscall(438, os.pidfd_open(os.getpid()), 0, 0),
    "userfaultfd": lambda: syscall(323, 1),
    "keyctl": lambda: syscall(250, 0, 0xFFFFFFFD, 0),
    "bpf": lambda: syscall(321, 0, buffer(), 48),
    "perf_event_open": lambda: syscall(298, buffer(120, struct.pack("<IIQ", 1, 120, 0)), 0, -1, -1, 0),
    "unshare user": lambda: syscall(272, CLONE_NEWUSER),
    "mount": lambda: syscall(165, buffer(8, b"none"), buffer(8, b"/tmp"), buffer(8, b"tmpfs"), 0, 0),
    "chroot": lambda: os.chroot("/tmp"),
    "message queue": lambda: syscall(240, buffer(8, b"q"), 0o102, 0o600, 0),
    "shared memory": lambda: syscall(29, 0, 4096, 0o1600),
    "semaphores": lambda: syscall(64, 0, 1, 0o1600),
    "device node": lambda: os.mknod("/tmp/device", 0o060600, os.makedev(8, 0)),
    "clone3": clone3,
    # what programs need
    "unix": lambda: open_socket(1),
    "inet": lambda: open_socket(2),
    "inet6": lambda: open_socket(10),
    "netlink route": lambda: open_socket(16, socket.SOCK_RAW, 0),
    "memfd_create": lambda: os.close(os.memfd_create("x")),
    "landlock version": lambda: syscall(444, 0, 0, 1),
    "fifo": lambda: os.mkfifo("/tmp/fifo"),
}


def attempt(probe: Callable[[], object]) -> str:
    """Return `ok`, the error's name, or the signal that ended the attempt."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            probe()
            said = "ok"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error.errno))
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 64).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return said or signal.Signals(os.WTERMSIG(status)).name


def status_field(name: str) -> str:
    return next(line.split(":")[1].strip() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))


def readable(path: Path) -> int | str:
    """Return how many bytes or entries are seen, or why none."""
    try:
        return len(list(path.iterdir())) if path.is_dir() else len(path.read_bytes())
    except OSError as error:
        return error.strerror or ""


def sockets_on_disk() -> list[str]:
    found = []
    for top, directories, names in os.walk("/"):
        directories[:] = [name for name in directories if f"{top}{name}" not in ("/proc", "/sys")]
        found += [f"{top}/{name}" for name in names if stat.S_ISSOCK((Path(top) / name).lstat().st_mode)]
    return found


def main() -> None:
    print(
        json.dumps(
            {
                "attempts": {name: attempt(probe) for name, probe in PROBES.items()},
                "status": {
                    name: status_field(name) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
                },
                "uid": os.getuid(),
                "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
                "environment": dict(os.environ),
                "host name": socket.gethostname(),
                "localhost": socket.gethostbyname("localhost"),
                "masked": {path: readable(Path(path)) for path in sys.argv[1:]},
                "sockets": sockets_on_disk(),
                "routes": len(Path("/proc/net/route").read_text().splitlines()) - 1,
            }
        )
    )


main()
