"""What each container of the proof does: its first argument is the role, its second the role's arguments in JSON."""

import contextlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from . import bombs, gateway, kernel, neighbour, network, plants, power, search
from .attempts import report

SECRET_SHAPE = "sk-ant-prove-[0-9a-f]{32}"


def main(arguments: list[str]) -> None:
    """Play one role; the last line says that it was played to its end."""
    role = arguments[0]
    for place in ("/workspace", "/home/agent"):  # an image has none; in a sandbox they are there
        os.makedirs(place, exist_ok=True)
    _ROLES[role](json.loads(arguments[1]))
    report(f"role.{role}", True, platform.release())


def _alone(given: dict[str, Any]) -> None:
    """A sandbox that attacks what is around it."""
    gateway.replace_socket()
    _around(given)
    plants.plant(Path("/workspace"), Path("/out"), Path(given["canary"]), given["secret"])
    gateway.race(given["model"], given["calls"], given["tokens"])
    gateway.forge_spans(given["trace_id"])


def _alone_control(given: dict[str, Any]) -> None:
    """The same under an engine's default flags."""
    _around(given)
    canary = Path("/tmp/prove-canary")
    plants.plant(Path("/workspace"), Path("/tmp"), canary, given["secret"])
    plants.use_plain_git(Path("/workspace") / plants.GIT_TREE, canary)
    gateway.attack_process(_a_child())
    gateway.race(given["model"], given["calls"], given["tokens"])
    gateway.forge_spans(given["trace_id"])
    gateway.call_as_owner(given["model"], given["tokens"])
    gateway.replace_socket()


def _around(given: dict[str, Any]) -> None:
    network.run(given["host"], given["tcp_port"], given["udp_port"])
    kernel.run()
    power.run()
    power.look_for_sockets()
    search.run("key", _wanted(given))


def _wall_less(given: dict[str, Any]) -> None:
    """What the engine's default flags may stop too, with every wall taken down."""
    kernel.run()
    power.run()
    search.search_memory("key", _wanted(given))
    gateway.attack_process(_a_child())


def _kernel(_given: dict[str, Any]) -> None:
    """System calls alone."""
    kernel.run()


def _tool(given: dict[str, Any]) -> None:
    """A tool of the agent's; its report goes to a file, because the agent takes what it prints."""
    with open("/out/tool.txt", "w") as file, contextlib.redirect_stdout(file):
        gateway.attack_agent(given["model"], given["tokens"], _wanted(given))


def _bombs(given: dict[str, Any]) -> None:
    bombs.run(given["limits"], given["done"])


def _hold(given: dict[str, Any]) -> None:
    neighbour.hold(given["mark"], given["places"], limits=given["limits"])


def _visit(given: dict[str, Any]) -> None:
    neighbour.visit(given["address"], _wanted(given), limits=given["limits"])


def _wanted(given: dict[str, Any]) -> search.Wanted:
    return search.Wanted(given.get("shape", SECRET_SHAPE), given["digest"], given["born"])


def _a_child() -> int:
    """Return a process of ours that waits: it stands for an agent that protects itself from nobody."""
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    return pid


_ROLES = {
    "alone": _alone,
    "alone-control": _alone_control,
    "wall-less": _wall_less,
    "kernel": _kernel,
    "tool": _tool,
    "bombs": _bombs,
    "hold": _hold,
    "visit": _visit,
}
