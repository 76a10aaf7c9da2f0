"""Keeps the history in SQL beside a leading supervisor; not what is in it (`store/projection.py`), nor whether anybody leads."""

import asyncio
from typing import Final

from sandbox.bus import Connection
from sandbox.log import Log
from supervisor.config import Config, StateDirectory
from supervisor.store.history.projection import HistoryAway, Projection, keep
from supervisor.store.log.jetstream import JetStreamEventLog

log = Log(__name__)

AGAIN_S: Final = 60.0


async def keep_history(config: Config, connection: Connection) -> None:
    """Bring the history up to the event log and keep it there, until cancelled; nothing that goes wrong with it is raised.

    Args:
        config: Says which database: `database_url`, else the state directory's own file.
        connection: Of the leading supervisor.
    """
    while True:
        try:
            with Projection.at(StateDirectory(config.state_directory).history, config.database_url) as database:
                await keep(JetStreamEventLog(connection), database)
        except HistoryAway as error:
            log.warning("history.none", "no history is kept, runs go on without it", error=error)
            return
        except Exception:  # a fault of ours in a copy must not stop the runs it is a copy of
            log.exception("history.broke", "the history stands still")
            await asyncio.sleep(AGAIN_S)
