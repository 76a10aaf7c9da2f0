"""How one attempt of an attack is made and reported: by a child that may be killed for it."""

import hashlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from sandbox.executor.prove.attack.attempts import MARK, Stopped, attempt, attempt_here
from sandbox.executor.prove.attack.search import Wanted


def said(capfd: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capfd.readouterr().out.removeprefix(MARK))
    return found


def test_what_an_attempt_gained_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """It is a success of the attacker's."""
    attempt("a.b", lambda: "a socket")

    assert said(capfd) == {"name": "a.b", "won": True, "said": "a socket", "made": True}


def test_how_an_attempt_was_stopped_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """By the error's name; or in words; or by the signal."""

    def refused() -> str:
        raise PermissionError(1, "no")

    def given_up() -> str:
        raise Stopped("not there")

    def killed() -> str:
        os.kill(os.getpid(), signal.SIGSYS)
        return "alive"

    reports = []
    for way in (refused, given_up, killed):
        attempt("a.b", way)
        reports.append(said(capfd))

    assert [report["said"] for report in reports] == ["EPERM", "not there", "killed by SIGSYS"]
    assert {report["won"] for report in reports} == {False}


def children() -> str:
    """Return the processes we have, zombies included; other tests of the session may have started some."""
    return Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text()


def test_an_attempt_that_hangs_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    """Its process is gone, too."""

    def hangs() -> str:
        signal.pause()
        return "woken"

    before = children()
    attempt("a.b", hangs, limit_s=0.1)

    assert said(capfd) == {"name": "a.b", "won": False, "said": "did not end in 0.1 s", "made": False}
    assert children() == before


def test_an_attempt_of_this_process_is_reported_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """For what has to be this process, such as the owner of a connection."""
    attempt_here("a.b", lambda: str(os.getpid()))

    assert said(capfd)["said"] == str(os.getpid())


def test_a_secret_is_known_by_its_digest() -> None:
    """Also across the border of two reads; another one of the same shape is not it."""
    secret = b"mark-0123456789"
    wanted = Wanted("mark-[0-9]{10}", hashlib.sha256(secret).hexdigest(), 0.0)

    assert wanted.is_in(b"xx" + secret + b"yy")
    assert not wanted.is_in(b"mark-9999999999")
    assert wanted.is_in_any(iter([b"x" * 500 + secret[:7], secret[7:] + b"y" * 500]))
    assert not wanted.is_in_any(iter([b"x" * 500, b"y" * 500]))
