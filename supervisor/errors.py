"""The errors of the control plane and the exit code of each; not how they are shown (`cli/entry.py`).

AndonError              (`sandbox.contract.errors`, which draws the tree both planes share)
├── UsageError          exit 2
│   ├── ConfigError     exit 2: a file of configuration is wrong
│   ├── UnknownRun      exit 2: no run, or several, begin with what was given
│   ├── NoProviderKey   exit 2: the request needs a model and there is no key
│   ├── ConsentMissing  exit 2: the repository's own image has not been agreed to
│   └── NewerState      exit 2: the state on disk was written by a newer release
├── Interrupted         exit 130: a person pressed Ctrl-C
└── …                   InfrastructureError 5, ConflictError 6, Rejected 1, BudgetExhausted 4
"""

from enum import IntEnum
from typing import ClassVar

from sandbox.contract.errors import (
    AndonError,
    BrokerError,
    BudgetExhausted,
    ConfigError,
    ConflictError,
    EngineError,
    GitError,
    InfrastructureError,
    ProviderError,
    Rejected,
    UsageError,
)


class ExitCode(IntEnum):
    """What a command ends with; the cause, not the severity."""

    DONE = 0
    GATE_FAILED = 1
    USAGE = 2
    WAITING = 3
    """A person has to approve something."""
    BUDGET = 4
    """The budget is exhausted; everything written is kept."""
    INFRASTRUCTURE = 5
    CONFLICT = 6
    DEADLINE = 124
    """The run's own deadline passed."""
    INTERRUPTED = 130


class UnknownRun(UsageError):
    """No run begins with what was given, or several do."""


class NoProviderKey(UsageError):
    """The request needs a model and no key is set."""


class ConsentMissing(UsageError):
    """The repository's own image has not been agreed to (DECISIONS D11)."""


class NewerState(UsageError):
    """The state directory was written by a newer release (DECISIONS G10)."""


class Interrupted(AndonError):
    """A person pressed Ctrl-C."""

    exit_code: ClassVar[int] = 130


def error_for(exit_code: int, message: str) -> AndonError:
    """Return the error that a supervisor's refusal stands for."""
    kinds: dict[int, type[AndonError]] = {
        ExitCode.GATE_FAILED: Rejected,
        ExitCode.USAGE: UsageError,
        ExitCode.BUDGET: BudgetExhausted,
        ExitCode.CONFLICT: ConflictError,
    }
    return kinds.get(exit_code, InfrastructureError)(message)


def exit_code_of(error: BaseException) -> int:
    """Return what a command ends with that fails with `error`; a bug of ours counts as infrastructure."""
    cause = root_cause(error)
    if isinstance(cause, AndonError):
        return cause.exit_code
    return ExitCode.INTERRUPTED if isinstance(cause, KeyboardInterrupt) else ExitCode.INFRASTRUCTURE


def root_cause(error: BaseException) -> BaseException:
    """Return the first `AndonError` or `KeyboardInterrupt` inside nested exception groups, else the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(each) for each in error.exceptions]
    return next((each for each in causes if isinstance(each, AndonError | KeyboardInterrupt)), causes[0])


__all__ = [
    "AndonError",
    "BrokerError",
    "BudgetExhausted",
    "ConfigError",
    "ConflictError",
    "ConsentMissing",
    "EngineError",
    "ExitCode",
    "GitError",
    "InfrastructureError",
    "Interrupted",
    "NewerState",
    "NoProviderKey",
    "ProviderError",
    "Rejected",
    "UnknownRun",
    "UsageError",
    "error_for",
    "exit_code_of",
    "root_cause",
]
