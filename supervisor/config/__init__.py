"""What a process is configured with (`settings`) and where its state lies (`state`); nothing else reads the environment."""

from supervisor.config.sampling import is_sampled
from supervisor.config.settings import ENVIRONMENT, PROVIDER_ENVIRONMENT, Config, load, nano_usd, parse_usd, process_environment
from supervisor.config.state import StateDirectory, is_run_id, write_atomically

__all__ = [
    "ENVIRONMENT",
    "PROVIDER_ENVIRONMENT",
    "Config",
    "StateDirectory",
    "is_run_id",
    "is_sampled",
    "load",
    "nano_usd",
    "parse_usd",
    "process_environment",
    "write_atomically",
]
