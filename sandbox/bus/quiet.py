"""Keeps one line of noise out of every process's stderr: what asyncio says when the client library ends a TLS connection."""

import logging


def hush_ends_of_tls() -> None:
    """Drop that line and no other; again is harmless."""
    logging.getLogger("asyncio").addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return "eof_received() has no effect" not in record.getMessage()
