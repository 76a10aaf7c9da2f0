"""Events out of a byte stream."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.gateway.sse import EVENT_BYTES_MAX, EventSplitter

STREAM = b"event: message_start\ndata: {}\n\nevent: content_block_delta\ndata: x\n\nevent: ping\r\ndata: 1\r\ndata:2\r\n\r\n: hello\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_do_not_depend_on_how_the_network_cuts_them(cuts: list[int]):
    """Any cutting gives the same events and loses no byte."""
    edges = [0, *sorted(cuts), len(STREAM)]
    splitter = EventSplitter()

    events = [event for start, end in pairwise(edges) for event in splitter.feed(STREAM[start:end])]

    assert [event.name for event in events] == ["message_start", "content_block_delta", "ping", ""]
    assert [event.data for event in events[:3]] == [b"{}", b"", b"1\n2"]
    assert b"".join(event.raw for event in events) == STREAM


def test_an_unfinished_event_is_kept_back():
    """Only whole events are passed on."""
    assert EventSplitter().feed(b"event: ping\ndata: {}\n") == []


def test_an_event_without_end_is_refused():
    """A stream that never ends its event must not fill the memory."""
    splitter = EventSplitter()
    splitter.feed(b"x" * EVENT_BYTES_MAX)

    with pytest.raises(ValueError, match="more than"):
        splitter.feed(b"x")
