"""Jobs out: `dispatcher` prepares them, `queue` releases them in `order` to a `placement`; none decides anything about a run."""

from supervisor.dispatch.dispatcher import Briefs, Dispatcher
from supervisor.dispatch.placement import obstacle
from supervisor.dispatch.queue import QUEUE_MAX, JobQueue

__all__ = ["QUEUE_MAX", "Briefs", "Dispatcher", "JobQueue", "obstacle"]
