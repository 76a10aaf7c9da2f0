"""Streams, consumers and buckets as data (NATS.md §1), and how the supervisor brings the broker to them; no traffic."""

from typing import Any, Final

from sandbox.bus.connection import Connection
from sandbox.bus.messages import ApiError
from sandbox.contract import subjects
from sandbox.contract.blob import Bucket
from sandbox.contract.wire import LEASE_S
from sandbox.log import Log

logger = Log(__name__)

MIB: Final = 1 << 20
GIB: Final = 1 << 30
SECOND: Final = 1_000_000_000  # JetStream counts durations in nanoseconds
DAY: Final = 86_400 * SECOND
DEDUPE_S: Final = 600
CONFIRM_S: Final = 30.0
"""A result the supervisor took and did not confirm comes again after this."""
SUPERVISOR: Final = "sup"
"""Name of the supervisor's consumers of RESULTS and TEL."""
POOL_WAITING_MAX: Final = 4096
"""Waiting pulls of a pool: one for each free slot of each of its executors."""
EXPORT_BYTES_MAX: Final = 256 * MIB
EXPORT_DEDUPE_S: Final = 3_600
"""A supervisor that takes over on another host makes the spans of open runs again; theirs are in the buffer already, or delivered."""
EXPORT_TURN_S: Final = 30
"""How long a supervisor may take to deliver what it took before it, or another one, is given it again."""

REPLICAS: Final = 3
"""Copies of a stream in a cluster: one server may be lost."""

_NAME_IS_TAKEN: Final = 10058
_TOO_FEW_SERVERS: Final = frozenset({10005, 10023, 10074})
_LIMITS: Final[dict[str, Any]] = {"retention": "limits", "storage": "file", "discard": "old"}


BUCKET_BYTES_MAX: Final = 4 * GIB
"""Of each bucket; reserved: the sum over all pools and executors has to fit the broker's store."""


def _bucket(name: str) -> dict[str, Any]:
    return {
        **_LIMITS,
        "name": f"OBJ_{name}",
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "discard": "new",
        "max_age": 7 * DAY,
        "max_bytes": BUCKET_BYTES_MAX,
        "allow_direct": True,
    }


# Every bound below is on purpose: an executor can flood what it may write to, but not the jobs, nor another's results.
_STREAMS: Final[tuple[dict[str, Any], ...]] = (
    {
        **_LIMITS,
        "name": subjects.STREAM_JOBS,
        "subjects": ["andon.job.*"],
        "retention": "workqueue",
        "discard": "new",
        "max_msgs": 10_000,
        "duplicate_window": DEDUPE_S * SECOND,
    },
    {
        **_LIMITS,
        "name": subjects.STREAM_RESULTS,
        "subjects": ["andon.res.*.*"],
        "discard": "new",
        "max_age": 14 * DAY,
        "max_bytes": 4 * GIB,
        "max_msgs_per_subject": 1000,  # one flooding executor pushes out its own results first
        "duplicate_window": DEDUPE_S * SECOND,
    },
    {
        **_LIMITS,
        "name": subjects.STREAM_EVENTS,
        "subjects": ["andon.ev.*"],
        "discard": "new",
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "duplicate_window": 120 * SECOND,
    },
    {**_LIMITS, "name": subjects.STREAM_TEL, "subjects": ["andon.tel.*"], "max_age": 7 * DAY, "max_bytes": GIB},
    # Buckets: no rollup, because `Nats-Rollup: all` on its own subject would let one executor empty a whole bucket, and
    # no delete markers, which would need it.
    {
        **_LIMITS,
        "name": f"KV_{subjects.KV_EXECUTORS}",
        "subjects": [f"$KV.{subjects.KV_EXECUTORS}.*"],
        "storage": "memory",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msg_size": 16 << 10,
        "max_bytes": 16 * MIB,
        "max_age": 60 * SECOND,  # for a life sign without its own, shorter, time to live
        "allow_msg_ttl": True,
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": 60 * SECOND,
    },
    {
        **_LIMITS,
        "name": f"KV_{subjects.KV_LEASES}",
        "subjects": [f"$KV.{subjects.KV_LEASES}.*"],
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msg_size": 16 << 10,
        "allow_msg_ttl": True,
        "allow_direct": True,
        "deny_delete": True,
    },
    _bucket("IN"),
)


_EXPORT: Final[dict[str, Any]] = {
    **_LIMITS,
    "name": subjects.STREAM_EXPORT,
    "subjects": [subjects.EXPORT],
    "retention": "workqueue",
    "discard": "new",  # what finds no room stays in its run's file, and is put later (ADR 28)
    "max_bytes": EXPORT_BYTES_MAX,
    "duplicate_window": EXPORT_DEDUPE_S * SECOND,
}


async def ensure_streams(connection: Connection) -> None:
    """Create what is missing and bring the rest to this release's configuration.

    Raises:
        BrokerError: The broker refused, e.g. for want of space; the message names the stream.
    """
    for config in _STREAMS:
        await _ensure_stream(connection, config)


async def ensure_bucket(connection: Connection, bucket: Bucket) -> None:
    """Create a bucket of a pool or an executor, or bring it to this release's configuration.

    Raises:
        BrokerError: The broker refused, e.g. because too many buckets have reserved its store.
    """
    await _ensure_stream(connection, _bucket(bucket))


async def ensure_lane(connection: Connection, lane: str, *, lease_s: float = LEASE_S) -> None:
    """Create or update the one consumer from which a pool's executors, or one of them, pull.

    Attempts are counted by the supervisor at the claim, so deliveries are unlimited; `backoff` would replace the lease.
    """
    await _ensure_consumer(
        connection,
        subjects.STREAM_JOBS,
        lane,
        filter_subject=subjects.job(lane),
        ack_wait=int(lease_s * SECOND),
        max_ack_pending=1000,
        max_waiting=POOL_WAITING_MAX,
    )


async def ensure_supervisor_consumers(connection: Connection, *, confirm_s: float = CONFIRM_S) -> None:
    """Create or update the consumers the supervisor reads results and telemetry from."""
    for stream, subject in ((subjects.STREAM_RESULTS, "andon.res.*.done"), (subjects.STREAM_TEL, "andon.tel.*")):
        await _ensure_consumer(connection, stream, SUPERVISOR, filter_subject=subject, ack_wait=int(confirm_s * SECOND))


async def ensure_export(connection: Connection) -> None:
    """Create or update the buffer of what is exported; only supervisors that export ask for it.

    Raises:
        BrokerError: The broker refused, or is away.
    """
    await _ensure_stream(connection, _EXPORT)
    turn = {"ack_wait": EXPORT_TURN_S * SECOND, "max_ack_pending": 1_000}
    await _ensure_consumer(connection, subjects.STREAM_EXPORT, SUPERVISOR, filter_subject=subjects.EXPORT, **turn)


async def _ensure_stream(connection: Connection, config: dict[str, Any]) -> None:
    """Create or update a stream: with three copies in a cluster, with one elsewhere; copies it has are never taken away."""
    name, wanted = config["name"], REPLICAS if connection.is_clustered else 1
    try:
        await _create(connection, {**config, "num_replicas": wanted})
    except ApiError as error:
        if error.code != _NAME_IS_TAKEN:
            raise ApiError(error.code, f"stream {name}: {error}") from error
        there = int((await connection.api(f"STREAM.INFO.{name}"))["config"]["num_replicas"])
        try:
            await connection.api(f"STREAM.UPDATE.{name}", {**config, "num_replicas": max(wanted, there)})
        except ApiError as refused:
            if refused.code not in _TOO_FEW_SERVERS or there >= wanted:
                raise
            await connection.api(f"STREAM.UPDATE.{name}", {**config, "num_replicas": there})


async def _create(connection: Connection, config: dict[str, Any]) -> None:
    try:
        await connection.api(f"STREAM.CREATE.{config['name']}", config)
    except ApiError as error:
        if error.code not in _TOO_FEW_SERVERS or config["num_replicas"] == 1:
            raise
        logger.warning("stream.one_copy", "the cluster has too few servers for three copies; one is kept", stream=config["name"])
        await connection.api(f"STREAM.CREATE.{config['name']}", {**config, "num_replicas": 1})


async def _ensure_consumer(connection: Connection, stream: str, name: str, **config: Any) -> None:
    common = {"durable_name": name, "name": name, "ack_policy": "explicit", "deliver_policy": "all", "max_deliver": -1}
    query = {"stream_name": stream, "config": {**common, "replay_policy": "instant", **config}}
    await connection.api(f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", query)
