"""The single writer of every run: an event in, `machine.decide`, effects out; no rule of the line is here (`pipeline/machine.py`)."""

from supervisor.orchestrator.ports import Ports
from supervisor.orchestrator.service import Orchestrator

__all__ = ["Orchestrator", "Ports"]
