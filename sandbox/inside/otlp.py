"""Leads spans of the user's own code to the gateway: the variables its SDK reads, and where it sends them; not what becomes of them there.

A listener waits from the start. The process that forwards is begun by the first connection: who does not trace pays nothing.
"""

import os
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.contract.ids import check_span_id
from sandbox.inside.loopback import HOST, listening, start_forwarder

TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@contextmanager
def taking_spans(gateway: Path) -> Iterator[dict[str, str]]:
    """Listen while the context is open; yields the variables by which an OpenTelemetry SDK sends its spans there.

    Where nothing can listen, there are none: a trace stands in nobody's way.

    Args:
        gateway: The gateway's socket.
    """
    try:
        listener = listening(0)
    except OSError:
        yield {}
        return
    port = listener.getsockname()[1]
    waiting = _Waiting(listener, gateway)
    try:
        yield {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
    finally:
        waiting.end()


class _Waiting:
    """A thread that waits for the first connection, starts the forwarder, and is done."""

    def __init__(self, listener: socket.socket, gateway: Path) -> None:
        self._listener = listener
        self._gateway = gateway
        self._end_forwarder: Callable[[], None] | None = None
        self._told, self._tell = os.pipe()
        self._thread = threading.Thread(target=self._wait, name="spans", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        waits = select.poll()
        waits.register(self._listener, select.POLLIN)
        waits.register(self._told, select.POLLIN | select.POLLHUP)
        ready = {file for file, _ in waits.poll()}
        with self._listener, suppress(OSError):  # no room for another process: then who connected is turned away
            if self._told not in ready:
                self._end_forwarder = start_forwarder(self._listener, self._gateway)

    def end(self) -> None:
        """Stop listening; the forwarder, if there is one, ends at once."""
        os.close(self._tell)
        self._thread.join()
        os.close(self._told)
        if self._end_forwarder is not None:
            self._end_forwarder()


def below(traceparent: str, span: str) -> str:
    """Return the context of another span of the same trace, 16 hex digits, with the same flags; empty if there is no trace."""
    found = TRACEPARENT.fullmatch(traceparent)
    return f"00-{found[1]}-{span}-{found[3]}" if found else ""


def below_check(traceparent: str, name: str) -> str:
    """Return the context of a check's span, which the host makes when the check is over; empty if there is no trace."""
    found = TRACEPARENT.fullmatch(traceparent)
    return below(traceparent, check_span_id(found[2], name)) if found else ""
