"""A broker's configuration as text: four accounts joined by services (NATS.md §8); not its process (`embedded`), nor its files (`site`).

With one account, a reply subject is not checked against a user's rights, and an executor could write into the job stream.
Across accounts a reply goes back into the asking account only; that is why clients, too, have an account of their own and
are not users of FLEET (docs/adr/0010). Everybody's rights are listed by subject; nobody but its own user may listen on an
inbox prefix. Only public halves of keys are in here.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from sandbox.contract import subjects
from sandbox.contract.blob import input_bucket, output_bucket
from sandbox.contract.credentials import inbox_prefix
from sandbox.contract.ids import ExecutorName, PoolName
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from supervisor.store.broker.certificates import Certificates
from supervisor.store.broker.listen import Listen, bracketed

OBSERVER: Final = "obs"
SYSTEM: Final = "sys"
_PUBLIC_KEY: Final = r"^U[A-Z2-7]{55}$"


class ExecutorUser(Frozen):
    """One executor as the broker knows it."""

    name: ExecutorName
    public_key: str = Field(pattern=_PUBLIC_KEY)
    pools: tuple[PoolName, ...] = Field(min_length=1, max_length=64)
    labels: Labels = Field(default_factory=dict)
    """What it was admitted with; the broker does not look at them."""


class ClientUser(Frozen):
    """One CLI as the broker knows it."""

    name: ExecutorName
    public_key: str = Field(pattern=_PUBLIC_KEY)


class Accounts(Frozen):
    """Public keys of everybody who may connect."""

    supervisor: str
    observer: str
    system: str
    executors: tuple[ExecutorUser, ...] = Field((), max_length=10_000)
    clients: tuple[ClientUser, ...] = Field((), max_length=10_000)


class Cluster(Frozen):
    """How a server meets the other servers of its cluster: over TLS from both ends, with the site's own authority."""

    name: str = "andon"
    port: int = Field(ge=1, le=65_535)
    """Where it listens for the others, on the host of its clients."""
    routes: tuple[str, ...]
    """`HOST:PORT` of all servers' such ports; its own among them does no harm."""


class Server(Frozen):
    """One server: where it is and where it keeps what."""

    directory: Path
    """Absolute; the store, the log and the ports file go there."""
    listen: Listen
    """With the port it shall get; -1 lets the system choose."""
    name: str = "andon"
    log_to_file: bool = True
    """False: somebody else starts it and collects what it says."""
    certificates: Certificates | None = None
    """Set if it listens beyond loopback, or is one of a cluster."""
    cluster: Cluster | None = None


# Between executors and clients directly: what came into FLEET by a service does not go on by a stream (measured, 2.15).
_PROGRESS: Final = "andon.progress.*"
_CONTROLS: Final = "andon.ctl.>"
# What executors may ask of the FLEET account; an executor's own subjects among them are granted to its user alone, and so
# are the buckets of its pools. A pull is answered later and more than once: its threshold has to outlast the longest wait.
_EXECUTOR_SERVICES: Final = (
    ("$JS.API.CONSUMER.MSG.NEXT.JOBS.*", 'response_type: stream, response_threshold: "5m"'),
    ("$JS.ACK.JOBS.>", ""),
    ("andon.rpc.join.*", ""),
    ("andon.rpc.claim.*", ""),
    ("andon.rpc.budget.*", ""),
    ("andon.res.>", ""),
    ("andon.tel.*", ""),
    ("andon.progress.*", ""),
    ("$KV.EXECUTORS.*", ""),
    ("$JS.API.DIRECT.GET.*", 'response_type: stream, response_threshold: "1m"'),
    ("$O.*.C.>", ""),
    ("$O.*.M.>", ""),
)
_EXECUTOR_STREAMS: Final = (_CONTROLS,)
_CLIENT_REQUESTS: Final = (
    subjects.RPC_INTENT,
    subjects.RPC_STOP,
    subjects.RPC_RESUME,
    subjects.RPC_ANSWER,
    subjects.RPC_WHY,
    subjects.RPC_DELIVERED,
)
_CLIENT_READS: Final = (subjects.STREAM_EVENTS, f"KV_{subjects.KV_EXECUTORS}", "OBJ_IN")
_DRAIN: Final = subjects.control("*", "drain")
_CLIENT_SERVICES: Final = (
    *((subject, "") for subject in _CLIENT_REQUESTS),
    ("$O.IN.C.>", ""),
    ("$O.IN.M.>", ""),
    ("$JS.API.DIRECT.GET.*", 'response_type: stream, response_threshold: "1m"'),
)
_CLIENT_STREAMS: Final = ("andon.ev.>",)
# Under their own names the observer's account, which has no JetStream, would answer them itself, and first.
_OBSERVER_API: Final = "$JS.fleet.API"
_OBSERVER_SERVICES: Final = (
    ("$JS.API.STREAM.INFO.*", ""),
    ("$JS.API.CONSUMER.INFO.*.*", ""),
    ("$JS.API.DIRECT.GET.EVENTS.>", ""),
    ("$JS.API.DIRECT.GET.KV_EXECUTORS.>", ""),
)
_OBSERVER_STREAMS: Final = ("andon.ev.>",)
_NOTICES: Final = (("DISCONNECT", subjects.SYS_DISCONNECT), ("CONNECT", subjects.SYS_CONNECT))


def broker_config(accounts: Accounts, server: Server) -> str:
    """Return the configuration of one server."""
    return f"""\
# Written by Andon at every start and change; edits are lost.
{_place(server)}
max_payload: 1MB
ping_interval: "20s"
ping_max: 2
write_deadline: "10s"
# The store's size is what streams may reserve, not what there is: supervisor and executors watch the disk's floor.
# Every acknowledged write is on disk: with the default a power cut loses the last two minutes (NATS.md §4).
jetstream {{
  store_dir: {json.dumps(str(server.directory / "store"))}
  sync_interval: always
  max_memory_store: 64MB
  max_file_store: 64TB
}}
feature_flags {{ js_ack_fc_v2: false }}
authorization {{ timeout: 5 }}
{accounts_config(accounts)}"""


def accounts_config(accounts: Accounts) -> str:
    """Return who may connect and do what; also what a person gives a cluster of their own."""
    return f"""\
system_account: SYS
accounts {{
  SYS {{
    users: [ {{ nkey: {accounts.system} }} ]
    exports: [ {", ".join(f'{{ stream: "$SYS.ACCOUNT.EXEC.{event}", accounts: [FLEET] }}' for event, _ in _NOTICES)} ]
  }}
  FLEET {{
    jetstream: enabled
    users: [ {{ nkey: {accounts.supervisor} }} ]
    imports: [
{_lines(f'{{ stream: {{ account: SYS, subject: "$SYS.ACCOUNT.EXEC.{event}" }}, to: {json.dumps(to)} }}' for event, to in _NOTICES)}
    ]
    exports: [
{_exports()}
    ]
  }}
  EXEC {{
    users: [
{_lines(executor_entry(user) for user in accounts.executors)}
    ]
    exports: [ {{ stream: "{_PROGRESS}", accounts: [CLIENT] }} ]
    imports: [
{_imports(_EXECUTOR_SERVICES, _EXECUTOR_STREAMS)}
      {{ stream: {{ account: CLIENT, subject: "{_CONTROLS}" }} }}
    ]
  }}
  CLIENT {{
    users: [
{_lines(client_entry(user, accounts.executors) for user in accounts.clients)}
    ]
    exports: [ {{ stream: "{_CONTROLS}", accounts: [EXEC] }} ]
    imports: [
{_imports(_CLIENT_SERVICES, _CLIENT_STREAMS)}
      {{ stream: {{ account: EXEC, subject: "{_PROGRESS}" }} }}
    ]
  }}
  OBS {{
    users: [
{_lines([_user(accounts.observer, [f"{_OBSERVER_API}.>"], [f"{inbox_prefix(OBSERVER)}.>", *_OBSERVER_STREAMS])])}
    ]
    imports: [
{_imports(_OBSERVER_SERVICES, _OBSERVER_STREAMS, api=_OBSERVER_API)}
    ]
  }}
}}
"""


def executor_entry(user: ExecutorUser) -> str:
    """Return an executor's line in the EXEC account."""
    lanes = [subjects.lane(pool, whose) for pool in user.pools for whose in ("", user.name)]
    publish = [
        *(f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM_JOBS}.{lane}" for lane in lanes),
        *(f"$JS.ACK.{subjects.STREAM_JOBS}.{lane}.>" for lane in lanes),
        subjects.join(user.name),
        subjects.claim(user.name),
        subjects.budget(user.name),
        subjects.result(user.name),
        subjects.telemetry(user.name),
        subjects.progress(user.name),
        subjects.life_sign(user.name),
        *(f"$JS.API.DIRECT.GET.OBJ_{bucket}" for bucket in map(input_bucket, user.pools)),
        *(f"$O.{output_bucket(user.name)}.{part}.>" for part in "CM"),
    ]
    return _user(user.public_key, publish, [f"{inbox_prefix(user.name)}.>", f"andon.ctl.{user.name}.>", "andon.ctl.all.>"])


def client_entry(user: ClientUser, executors: Sequence[ExecutorUser]) -> str:
    """Return a client's line in the CLIENT account; it reads logs and recordings in the buckets of these executors."""
    reads = [*_CLIENT_READS, *(f"OBJ_{output_bucket(executor.name)}" for executor in executors)]
    publish = [*_CLIENT_REQUESTS, _DRAIN, "$O.IN.C.>", "$O.IN.M.>", *(f"$JS.API.DIRECT.GET.{stream}" for stream in reads)]
    return _user(user.public_key, publish, [f"{inbox_prefix(user.name)}.>", *_CLIENT_STREAMS, _PROGRESS])


def _place(server: Server) -> str:
    listen = server.listen
    lines = [
        f"listen: {json.dumps(f'{bracketed(listen.host)}:{listen.port}')}",
        f"server_name: {json.dumps(server.name)}",
        f"ports_file_dir: {json.dumps(str(server.directory / 'ports'))}",
    ]
    if server.log_to_file:
        lines += [f"log_file: {json.dumps(str(server.directory / 'nats.log'))}", "logfile_size_limit: 10MB", "logfile_max_num: 3"]
    files = ""
    if server.certificates is not None:
        certificates = server.certificates
        files = f"cert_file: {json.dumps(str(certificates.certificate))}, key_file: {json.dumps(str(certificates.key))}, timeout: 5"
        if not listen.is_loopback:
            lines.append(f"tls {{ {files} }}")
    if server.cluster is not None and server.certificates is not None:
        cluster = server.cluster
        routes = ", ".join(json.dumps(f"nats-route://{route}") for route in cluster.routes)
        authority = f"ca_file: {json.dumps(str(server.certificates.authority))}"
        lines += [
            f"client_advertise: {json.dumps(listen.url(listen.port).split('://')[1])}",
            f"cluster {{ name: {json.dumps(cluster.name)}, listen: {json.dumps(f'{bracketed(listen.host)}:{cluster.port}')}, "
            f"tls {{ {files}, {authority} }}, routes: [{routes}] }}",
        ]
    return "\n".join(lines)


def _user(public_key: str, publish: Sequence[str], subscribe: Sequence[str]) -> str:
    rights = f"publish: {{ allow: {json.dumps(list(publish))} }}, subscribe: {{ allow: {json.dumps(list(subscribe))} }}"
    return f"{{ nkey: {public_key}, permissions: {{ {rights} }} }}"


def _exports() -> str:
    """Return what FLEET offers the other accounts; a subject is exported once, to all that may have it."""
    services: dict[tuple[str, str], list[str]] = {}
    streams: dict[str, list[str]] = {}
    for account, offered, told in (
        ("EXEC", _EXECUTOR_SERVICES, _EXECUTOR_STREAMS),
        ("CLIENT", _CLIENT_SERVICES, _CLIENT_STREAMS),
        ("OBS", _OBSERVER_SERVICES, _OBSERVER_STREAMS),
    ):
        for service in offered:
            services.setdefault(service, []).append(account)
        for stream in told:
            streams.setdefault(stream, []).append(account)
    return _lines(
        [
            *(
                f"{{ service: {json.dumps(subject)}, accounts: [{', '.join(to)}]{', ' + options if options else ''} }}"
                for (subject, options), to in services.items()
            ),
            *(f"{{ stream: {json.dumps(subject)}, accounts: [{', '.join(to)}] }}" for subject, to in streams.items()),
        ]
    )


def _imports(services: Sequence[tuple[str, str]], streams: Sequence[str], *, api: str | None = None) -> str:
    """Return imports of the FLEET account; with `api`, JetStream's subjects are asked under that prefix."""
    local = {subject: f", to: {json.dumps(subject.replace('$JS.API', api))}" if api else "" for subject, _ in services}
    return _lines(
        [
            *(f"{{ service: {{ account: FLEET, subject: {json.dumps(subject)} }}{to} }}" for subject, to in local.items()),
            *(f"{{ stream: {{ account: FLEET, subject: {json.dumps(subject)} }} }}" for subject in streams),
        ]
    )


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"      {item}" for item in items)
