"""The file of a cassette."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.cassette import Cassette, CassetteHeader, CassetteRecord, dump_recording, load_recording
from sandbox.contract.errors import UsageError
from sandbox.contract.result import Usage

DIGEST = "0" * 64


def a_record(turn: int = 1, *, stage: str = "spec", sse: str = "event: ping\n\n") -> CassetteRecord:
    return CassetteRecord(
        stage=stage,
        round=1,
        turn=turn,
        compared=DIGEST,
        tool_output=DIGEST,
        model="m",
        sse=sse,
        usage=Usage(input_tokens=3),
        cost_nano_usd=7,
    )


def a_cassette(*records: CassetteRecord) -> Cassette:
    return Cassette(header=CassetteHeader(made_by="scripted", matches={"request": "abc"}), records=records)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_read_again(sse: str):
    """Any text survives, line breaks and NUL included."""
    cassette = a_cassette(a_record(1, sse=sse), a_record(2))

    assert Cassette.load(cassette.dump()) == cassette


def test_the_first_line_says_who_made_it():
    """A person who opens the file sees it at once."""
    first = a_cassette(a_record()).dump().split(b"\n")[0]

    assert b'"made_by":"scripted"' in first


def test_a_recording_is_a_cassette_without_its_header():
    """What attempts send back is put together by appending."""
    records = (a_record(1), a_record(2))

    assert load_recording(dump_recording(records)) == records
    assert a_cassette().dump() + dump_recording(records) == a_cassette(*records).dump()


def test_records_are_found_by_stage_round_and_turn():
    """A stage is covered if any of its turns was recorded."""
    cassette = a_cassette(a_record(1), a_record(2))

    assert cassette.find("spec", 1, 2) == a_record(2)
    assert cassette.find("spec", 2, 1) is None
    assert cassette.covers("spec", 1)
    assert not cassette.covers("docs", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1"),
        (b"{}\n", "line 1"),
        (a_cassette().dump().replace(b'"version":1', b'"version":2'), "line 1"),
        (a_cassette(a_record()).dump() + b"{}\n", "line 3"),
        (a_cassette(a_record()).dump() * 1 + dump_recording([a_record()]), "line 3 repeats stage spec, round 1, turn 1"),
        (a_cassette().dump() + b"\xff\n", "line 2"),
    ],
    ids=["empty", "no header", "newer", "no record", "twice", "no utf-8"],
)
def test_what_is_no_cassette_is_refused_by_line(data: bytes, message: str):
    """A person can find the fault."""
    with pytest.raises(UsageError, match=message):
        Cassette.load(data, "file.jsonl")
