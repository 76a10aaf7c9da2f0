"""The wall around the product: what its process may open, by Landlock; not what the whole sandbox may (`sandbox/runtime`).

A process that is not root cannot take another uid, so the wall is a Landlock domain (landlock(7)): the product reads no
test, writes no report, and cannot look into, or (from ABI 6 on) signal, a process outside its domain. Children inherit it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_DUMPABLE = 4

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_13 = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1, 2

READ = _EXECUTE | _READ_FILE | _READ_DIR
LIST = _READ_DIR
ALL = (1 << 16) - 1


def landlock_abi() -> int:
    """Return the version of Landlock this kernel offers; 0 if none."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))))


def forbid_inspection() -> None:
    """Make this process non-dumpable: nobody of the same uid opens its memory, environment or descriptors."""
    _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def enclose(rules: Iterable[tuple[str, int]]) -> None:
    """Confine this process and all its children for ever to `rules`, paths with what may be done at and below them.

    Raises:
        OSError: The kernel has no Landlock, or refuses.
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError("this kernel has no Landlock")
    handled = _FIRST_13 | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    scoped = _SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL if abi >= 6 else 0
    attributes = struct.pack("QQQ", handled, 0, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _checked(_libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_libc().syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        where = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # what is not there needs no right
    try:
        if not os.path.isdir(f"/proc/self/fd/{where}"):  # noqa: PTH112 - every module more makes each start slower
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, where)
        _checked(_libc().syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)))
    finally:
        os.close(where)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
