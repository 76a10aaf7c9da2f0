"""The errors both planes share, as one tree; not the outcomes of an agent, which are data (`result.Outcome`).

AndonError
├── UsageError            exit 2: a person gave something wrong; the message says what, which and what to do
│   └── ConfigError       exit 2: a file of configuration is wrong; the message names file and key
├── ConflictError         exit 6: a branch moved or is taken
├── InfrastructureError   exit 5, retryable: engine, broker, disk, provider
│   ├── EngineError       the container engine is absent, refuses, or broke
│   ├── BrokerError       NATS is unreachable or refused
│   │   └── BrokerRefused it knows no such key, or is another one: trying again does not help
│   ├── GitError          git itself failed (not: a tree was refused)
│   └── ProviderError     the model's provider is down or capped, after retries
├── ProtectionMissing     exit 2: a strict job, and this host cannot give every protection
├── Rejected              untrusted input was refused; never retried; the message is safe to show
│   ├── UnsafePath        a path is absolute, climbs, or touches `.git`
│   ├── RejectedTree      a tree an agent wrote is outside the published limits
│   └── RejectedBundle    a git bundle from an executor failed quarantine
├── LeaseLost             this executor no longer owns the attempt
└── BudgetExhausted       exit 4: a reservation would pass the budget
"""

from typing import ClassVar


class AndonError(Exception):
    """Root of every error Andon raises on purpose; `exit_code` is what a CLI ends with."""

    exit_code: ClassVar[int] = 5


class UsageError(AndonError):
    """A person gave something wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A file of configuration is wrong."""


class ConflictError(AndonError):
    """A branch moved or is taken."""

    exit_code = 6


class InfrastructureError(AndonError):
    """Something outside the agent's control broke; retrying may help."""


class EngineError(InfrastructureError):
    """The container engine is absent, refuses, or broke."""


class BrokerError(InfrastructureError):
    """NATS is unreachable or refused."""


class BrokerRefused(BrokerError):
    """The broker knows no such key, e.g. a revoked one, or is not the one the credentials vouch for; trying again does not help."""


class GitError(InfrastructureError):
    """Git itself failed."""


class ProviderError(InfrastructureError):
    """The model's provider is down, or its spend cap is reached, after retries."""


class ProtectionMissing(AndonError):
    """A job is strict and a protection is missing on the host it came to; the message says which."""

    exit_code = 2


class Rejected(AndonError):
    """Untrusted input was refused; the message is safe to show."""

    exit_code = 1


class UnsafePath(Rejected):
    """A path is absolute, climbs, or touches `.git`."""


class RejectedTree(Rejected):
    """A tree an agent wrote is outside the published limits."""


class RejectedBundle(Rejected):
    """A git bundle from an executor failed quarantine."""


class LeaseLost(AndonError):
    """This executor no longer owns the attempt."""


class BudgetExhausted(AndonError):
    """A reservation would pass the budget."""

    exit_code = 4
