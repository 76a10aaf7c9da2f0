"""The lines a process would log, as they are written, for a test that asks what was said."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sandbox.log import JsonLines


class Lines(logging.Handler):
    """Keeps each line as text and as its fields."""

    def __init__(self, service: str) -> None:
        """Say of which service they are."""
        super().__init__(logging.DEBUG)
        self._formatter = JsonLines(service)
        self.text = ""
        self.said: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line at once: whose it is, only the block knows that says it."""
        line = self._formatter.format(record)
        self.text += f"{line}\n"
        self.said.append(json.loads(line))


@contextmanager
def listening(name: str, service: str) -> Iterator[Lines]:
    """Hear what the modules below `name` say in a block, at every level."""
    logger, handler = logging.getLogger(name), Lines(service)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
