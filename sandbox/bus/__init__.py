"""The wire over NATS JetStream: both ends, and the connection below them; not what is said over it (`sandbox/contract`).

`nats` is imported by `client` alone. JetStream is transport and log here, neither scheduler nor lock (NATS.md §0).
"""

from sandbox.bus.connection import Connection, Stored
from sandbox.bus.executor_link import NatsExecutorLink
from sandbox.bus.keys import UserKey, new_user_key, public_key
from sandbox.bus.messages import ApiError, Interrupted, Message, NoAnswer, Subscription, Superseded
from sandbox.bus.supervisor_link import NatsSupervisorLink

__all__ = [
    "ApiError",
    "Connection",
    "Interrupted",
    "Message",
    "NatsExecutorLink",
    "NatsSupervisorLink",
    "NoAnswer",
    "Stored",
    "Subscription",
    "Superseded",
    "UserKey",
    "new_user_key",
    "public_key",
]
