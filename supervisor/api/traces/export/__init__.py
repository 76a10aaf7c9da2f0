"""Spans of runs to an OTLP/HTTP collector, through a buffer that outlives supervisor and collector; never in a run's way (ADR 28).

trace files -> backlog -> stream EXPORT -> delivery -> collector
"""

from supervisor.api.traces.export.exporter import Exporter, exporting

__all__ = ["Exporter", "exporting"]
