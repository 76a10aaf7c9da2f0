"""Keeps the history in SQL beside a leading supervisor; not what is in it (`store/projection.py`), nor whether anybody leads."""

import logging

from sandbox.bus import Connection
from supervisor.config import Config, StateDirectory
from supervisor.store.jetstream import JetStreamEventLog
from supervisor.store.projection import HistoryAway, Projection, keep

log = logging.getLogger(__name__)


async def keep_history(config: Config, connection: Connection) -> None:
    """Bring the history up to the event log and keep it there, until cancelled; nothing that goes wrong with it is raised.

    Args:
        config: Says which database: `database_url`, else the state directory's own file.
        connection: Of the leading supervisor.
    """
    try:
        with Projection.at(StateDirectory(config.state_directory).history, config.database_url) as database:
            await keep(JetStreamEventLog(connection), database)
    except HistoryAway as error:
        log.warning("no history is kept, runs go on without it: %s", error)
