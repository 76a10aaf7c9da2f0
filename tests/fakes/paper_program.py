"""What runs in a paper sandbox: asks the gateway what to do and does it, as the real program does, but without its SDK.

It is started as text (`python -I -S -c`), with the workspace as its directory, and so imports the standard library only. Tools: `bash`
and the editor's `create`; that is all a chaos script uses. Usage: `-c TEXT GATEWAY_FD UID GID`; root becomes the slot's user first.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ANSWER_S = 120.0
TRIES_MAX = 8
NOT_YET = (204, 408, 503)
BUSY = (429, 500, 502, 503, 529)


class GaveUp(Exception):
    """The gateway refused; the submission says how."""


class _Socket(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(f"/proc/self/fd/{sys.argv[1]}/gateway.sock")


def ask(method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """Make one request of the gateway."""
    connection = _Socket("gateway")
    try:
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def assignment() -> dict[str, Any]:
    """Return what this sandbox is for."""
    while True:
        status, body = ask("GET", "/andon/assignment")
        if status == 200:
            return dict(json.loads(body))
        if status not in NOT_YET:
            raise GaveUp(f"error: the gateway answered {status}")
        time.sleep(0.05)


def said(agent: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one model call and return the blocks of the reply."""
    call = {"model": agent["model"], "max_tokens": agent["output_tokens_max"], "stream": True, "messages": messages}
    if agent["system"]:
        call["system"] = agent["system"]
    for number in range(TRIES_MAX):
        status, body = ask("POST", "/v1/messages", call)
        if status == 200 and b"event: message_stop" in body:
            return _blocks(body)
        if status not in (200, *BUSY):
            raise GaveUp(f"{'budget' if b'budget' in body else 'error'}: {status} {body[:300]!r}")
        time.sleep(min(2.0, 0.1 * 2**number))
    raise GaveUp("error: no whole answer")


def _blocks(body: bytes) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for line in body.decode().splitlines():
        event = json.loads(line[6:]) if line.startswith("data: ") else {}
        if event.get("type") == "content_block_start":
            blocks.append({**event["content_block"], "_": ""})
        elif event.get("type") == "content_block_delta":
            blocks[-1]["_"] += event["delta"].get("text", event["delta"].get("partial_json", ""))
    for block in blocks:
        told = block.pop("_")
        block["text" if block["type"] == "text" else "input"] = told if block["type"] == "text" else json.loads(told or "{}")
    return blocks


def done(call: dict[str, Any]) -> str:
    """Do one tool call and return what it says."""
    arguments = call["input"]
    if call["name"] == "bash":
        ran = subprocess.run(["/bin/sh", "-c", arguments["command"]], capture_output=True, text=True, timeout=60, check=False)
        return ran.stdout[-1000:] or "nothing"
    path = Path(os.path.relpath(arguments["path"], "/workspace"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(arguments["file_text"])
    return "written"


def work(agent: dict[str, Any]) -> dict[str, Any]:
    """Go on until the model submits; return the submission."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": agent["prompt"]}]
    for step in range(1, agent["steps_max"] + 1):
        blocks = said(agent, messages)
        calls = [block for block in blocks if block["type"] == "tool_use"]
        for call in calls:
            if call["name"] == "submit":
                return {"status": call["input"]["status"], "summary": call["input"]["summary"], "steps": step}
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": done(call)} for call in calls]
        messages += [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    return {"status": "step_limit", "steps": agent["steps_max"]}


def main() -> int:
    """Run one attempt; returns the exit code."""
    if os.getuid() == 0:  # only now: this Python may lie where the slot's user cannot read
        os.setgroups([])
        os.setgid(int(sys.argv[3]))
        os.setuid(int(sys.argv[2]))
    try:
        submission = work(assignment()["agent"])
    except GaveUp as error:
        status, _, summary = str(error).partition(": ")
        submission = {"status": status, "summary": summary[:1000]}
    answer, _ = ask("POST", "/andon/submit", submission)
    return 0 if 200 <= answer < 300 else 1


if __name__ == "__main__":
    sys.exit(main())
