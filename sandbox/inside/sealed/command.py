"""A command of the product, started by a test: behind the wall first, then the program in this process's place."""

from __future__ import annotations

import os
import sys

from .policy import Policy


def run(policy_path: str, argv: list[str]) -> None:
    """Enclose this process and become `argv`; does not return."""
    Policy.load(policy_path).enclose()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - argv of the tests, no shell
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        os._exit(127)
