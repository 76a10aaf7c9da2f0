"""The embedded broker's configuration as text: three accounts joined by services (NATS.md §8); not its process (`embedded`).

With one account, a reply subject is not checked against a user's rights, and an executor could write into the job stream.
Across accounts a reply goes back into the asking account only. Every executor's rights are listed by subject; nobody but
its own user may listen on an inbox prefix. Only public halves of keys are in here.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from sandbox.bus.connection import inbox_prefix
from sandbox.contract import subjects
from sandbox.contract.ids import ExecutorName, PoolName
from sandbox.contract.model import Frozen

OBSERVER: Final = "obs"
SYSTEM: Final = "sys"


class ExecutorUser(Frozen):
    """One executor as the broker knows it."""

    name: ExecutorName
    public_key: str = Field(pattern=r"^U[A-Z2-7]{55}$")
    pools: tuple[PoolName, ...] = Field(min_length=1, max_length=64)


class Accounts(Frozen):
    """Public keys of everybody who may connect."""

    supervisor: str
    observer: str
    system: str
    executors: tuple[ExecutorUser, ...] = Field((), max_length=10_000)


# What executors may ask of the FLEET account; an executor's own subjects among them are granted to its user alone.
# A pull is answered later and more than once: its response threshold has to be longer than the longest wait.
_EXECUTOR_SERVICES: Final = (
    ("$JS.API.CONSUMER.MSG.NEXT.JOBS.*", 'response_type: stream, response_threshold: "5m"'),
    ("$JS.ACK.JOBS.>", ""),
    ("andon.rpc.join.*", ""),
    ("andon.rpc.claim.*", ""),
    ("andon.rpc.budget.*", ""),
    ("andon.res.>", ""),
    ("andon.log.>", ""),
    ("andon.tel.*", ""),
    ("andon.progress.*", ""),
    ("$KV.EXECUTORS.*", ""),
    ("$JS.API.DIRECT.GET.OBJ_IN.>", ""),
    ("$JS.API.DIRECT.GET.OBJ_IN", 'response_type: stream, response_threshold: "1m"'),
    ("$O.OUT.C.>", ""),
    ("$O.OUT.M.>", ""),
)
_EXECUTOR_STREAMS: Final = ("andon.ctl.>",)
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


def broker_config(accounts: Accounts, *, directory: Path, port: int, host: str = "127.0.0.1") -> str:
    """Return the configuration of a broker that keeps everything under `directory`.

    Args:
        accounts: Who may connect.
        directory: Absolute; the store, the log and the ports file go there.
        port: To listen on; -1 lets the system choose.
        host: Address to listen on.
    """
    return f"""\
# Written by Andon at every start and change; edits are lost.
listen: {json.dumps(f"{host}:{port}")}
server_name: "andon"
ports_file_dir: {json.dumps(str(directory / "ports"))}
log_file: {json.dumps(str(directory / "nats.log"))}
logfile_size_limit: 10MB
logfile_max_num: 3
max_payload: 1MB
ping_interval: "20s"
ping_max: 2
write_deadline: "10s"
# Every acknowledged write is on disk: with the default a power cut loses the last two minutes (NATS.md §4).
jetstream {{ store_dir: {json.dumps(str(directory / "store"))}, sync_interval: always, max_memory_store: 64MB, max_file_store: 1TB }}
feature_flags {{ js_ack_fc_v2: false }}
authorization {{ timeout: 5 }}
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
{_exports("EXEC", _EXECUTOR_SERVICES, _EXECUTOR_STREAMS)}
{_exports("OBS", _OBSERVER_SERVICES, _OBSERVER_STREAMS)}
    ]
  }}
  EXEC {{
    users: [
{_lines(_executor(user) for user in accounts.executors)}
    ]
    imports: [
{_imports(_EXECUTOR_SERVICES, _EXECUTOR_STREAMS)}
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


def _executor(user: ExecutorUser) -> str:
    lanes = [subjects.lane(pool, whose) for pool in user.pools for whose in ("", user.name)]
    publish = [
        *(f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM_JOBS}.{lane}" for lane in lanes),
        *(f"$JS.ACK.{subjects.STREAM_JOBS}.{lane}.>" for lane in lanes),
        subjects.join(user.name),
        subjects.claim(user.name),
        subjects.budget(user.name),
        f"andon.res.{user.name}.>",
        f"andon.log.{user.name}.>",
        subjects.telemetry(user.name),
        subjects.progress(user.name),
        subjects.life_sign(user.name),
        "$JS.API.DIRECT.GET.OBJ_IN",
        "$JS.API.DIRECT.GET.OBJ_IN.>",
        "$O.OUT.C.>",
        "$O.OUT.M.>",
    ]
    return _user(user.public_key, publish, [f"{inbox_prefix(user.name)}.>", f"andon.ctl.{user.name}.>", "andon.ctl.all.>"])


def _user(public_key: str, publish: Sequence[str], subscribe: Sequence[str]) -> str:
    rights = f"publish: {{ allow: {json.dumps(list(publish))} }}, subscribe: {{ allow: {json.dumps(list(subscribe))} }}"
    return f"{{ nkey: {public_key}, permissions: {{ {rights} }} }}"


def _exports(account: str, services: Sequence[tuple[str, str]], streams: Sequence[str]) -> str:
    return _lines(
        [
            *(
                f"{{ service: {json.dumps(subject)}, accounts: [{account}]{', ' + options if options else ''} }}"
                for subject, options in services
            ),
            *(f"{{ stream: {json.dumps(subject)}, accounts: [{account}] }}" for subject in streams),
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
