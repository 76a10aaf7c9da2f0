"""What a container printed last, said again in the executor's log; all of it is kept with the result (`outputs`)."""

from sandbox.log import Log
from sandbox.runtime.container_spec import LastWords

log = Log(__name__)

LINES_MAX = 20
"""Of each stream, the last ones."""
LINE_CHARS_MAX = 500


def retell(words: LastWords, *, is_needed: bool) -> None:
    """Say the last lines of each stream: as warnings if nothing else tells why it ended, else only to who wants to know everything.

    They are text of what ran there, so where the program said itself how it went they stay out of the log: a test's output,
    or what a program of others shows of its model's words, is not for it.
    """
    for stream, last in words.items():
        lines = [line for line in last.decode("utf-8", "replace").splitlines() if line.strip()]
        for line in lines[-LINES_MAX:]:
            if is_needed:
                log.warning("container.output", f"| {line[:LINE_CHARS_MAX]}", stream=stream)
            else:
                log.debug("container.output", f"| {line[:LINE_CHARS_MAX]}", stream=stream)
