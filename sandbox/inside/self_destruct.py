"""The container's own deadline: the kernel kills the program when it is over, and the container ends with its program.

It needs nobody outside, so it holds when the executor was killed (the fourth of the deadlines of a stage), and nothing
inside can put it off: the signal is SIGKILL, which no process holds back, not even one that another stopped.
"""

import signal

_SIGEV_SIGNAL = 0
_CLOCK_MONOTONIC = 1
_SIGEVENT_BYTES = 64


def arm(seconds: int) -> None:
    """Let the kernel kill this process in `seconds`; called once, from the process whose end is the container's."""
    if not _arm_kill(seconds):
        # A library without POSIX timers: an alarm ends the process too, but not while another has stopped it.
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _arm_kill(seconds: int) -> bool:
    import ctypes

    class Event(ctypes.Structure):
        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signo", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("rest", ctypes.c_char * (_SIGEVENT_BYTES - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int))),
        )

    class Span(ctypes.Structure):
        _fields_ = (("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("first_s", ctypes.c_long), ("first_ns", ctypes.c_long))

    library = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    try:
        made = library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(Event(None, signal.SIGKILL, _SIGEV_SIGNAL)), ctypes.byref(timer))
        return made == 0 and bool(library.timer_settime(timer, 0, ctypes.byref(Span(0, 0, seconds, 0)), None) == 0)
    except AttributeError:
        return False
