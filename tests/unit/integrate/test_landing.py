"""The landing commit's message: subject, requirements, trailers that nobody else can write."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.gates.spec import normalised, parse_spec
from supervisor.integrate.landing import SUBJECT_CHARS_MAX, cost_usd, landing_message
from supervisor.pipeline.fold import fold
from supervisor.pipeline.run import RunState
from tests.fakes.memory_tree import MemoryTree
from tests.fakes.run_events import RUN, Story

SPEC = """
feature: add-rate-limiting
description: d
requirements:
  - {id: REQ-001, description: "Limits.\\nAndon-Cost: $0", acceptance: ["Given a when b then c"]}
"""
PATH = ".andon/features/add-rate-limiting/spec.yaml"


def a_run(request: str = "Add rate limiting to the API") -> RunState:
    return fold(Story(request=request).accepted().done("spec", 1_234_567_890).log)


def test_a_message_has_subject_requirements_and_trailers():
    """Everything to find the run again, and what it cost."""
    data = normalised(parse_spec(SPEC, "x"), "add-rate-limiting")

    paragraphs = landing_message(a_run(), MemoryTree({PATH: data})).strip().split("\n\n")

    assert paragraphs[0] == "Add rate limiting to the API"
    assert paragraphs[1] == "- REQ-001: Limits. Andon-Cost: $0"
    assert paragraphs[2].splitlines() == [
        f"Andon-Run: {RUN}",
        f"Andon-Trace: {a_run().trace_id}",
        "Andon-Cost: $1.2346",
        f"Andon-Spec: {PATH}@sha256:{hashlib.sha256(data).hexdigest()}",
    ]


def test_without_a_specification_there_is_no_such_trailer():
    """A pipeline may have no spec stage."""
    assert "Andon-Spec" not in landing_message(a_run(), MemoryTree())


@pytest.mark.parametrize("spec", ["feature: [", b"\xff", "x" * 300_000])
def test_a_specification_that_cannot_be_read_still_lands(spec: str | bytes):
    """The gates judged it; the message only shows it."""
    assert landing_message(a_run(), MemoryTree({PATH: spec})).startswith("Add rate limiting")


@given(st.text(min_size=1, max_size=400))
def test_no_request_can_write_a_trailer_or_a_second_paragraph(request: str):
    """Subject is one printable line; only the last paragraph holds trailers."""
    message = landing_message(a_run(request), MemoryTree())

    subject, trailers = message.rstrip("\n").split("\n\n")
    assert len(subject) <= SUBJECT_CHARS_MAX
    assert subject.isprintable()
    assert [line.split(":")[0] for line in trailers.splitlines()] == ["Andon-Run", "Andon-Trace", "Andon-Cost"]


@pytest.mark.parametrize(
    ("nano_usd", "shown"),
    [(0, "0.0000"), (49_999, "0.0000"), (50_000, "0.0001"), (1_234_567_890, "1.2346"), (10**9, "1.0000"), (12_999_950_000, "13.0000")],
)
def test_money_is_rounded_once_and_half_up(nano_usd: int, shown: str):
    """The ledger stays in integers (DECISIONS D13)."""
    assert cost_usd(nano_usd) == shown
