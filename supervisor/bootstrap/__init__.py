"""The composition root: the one place that knows every real part; what a CLI or a supervisor process is made of."""

from supervisor.bootstrap.client import connect, look
from supervisor.bootstrap.host import down, ensure_host, up
from supervisor.bootstrap.probes import doctor_probes
from supervisor.bootstrap.supervise import supervise

__all__ = ["connect", "doctor_probes", "down", "ensure_host", "look", "supervise", "up"]
