"""What comes back becomes commits and verdicts (`integrator`), and at the end one commit (`landing`); not when each is due."""

from supervisor.integrate.integrator import BUNDLE_BYTES_MAX, Integrator
from supervisor.integrate.restore import Restorer

__all__ = ["BUNDLE_BYTES_MAX", "Integrator", "Restorer"]
