"""What is kept of a container's output."""

from hypothesis import given
from hypothesis import strategies as st

from sandbox.runtime.container_spec import LAST_WORDS_BYTES_MAX
from sandbox.runtime.output import AttachedOutput, HeadAndTail


def frame(data: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def test_output_below_the_bound_is_kept_whole():
    """Nothing is added to it."""
    kept = HeadAndTail(10)

    kept.feed(b"01234")
    kept.feed(b"56789")

    assert kept.value() == b"0123456789"
    assert kept.dropped == 0


def test_output_beyond_the_bound_keeps_both_ends_and_says_what_is_gone():
    """The first and the last half of the bound."""
    kept = HeadAndTail(10)

    kept.feed(b"0123456789abc")

    assert kept.value() == b"01234\n[andon: 3 bytes of output dropped here]\n89abc"


@given(st.lists(st.binary(max_size=40), max_size=40), st.integers(min_value=2, max_value=100))
def test_however_it_arrives_what_is_kept_is_the_same(parts: list[bytes], bytes_max: int):
    """Head, tail and the count depend on the bytes, not on how they were cut."""
    kept = HeadAndTail(bytes_max)
    whole = b"".join(parts)
    half = bytes_max // 2

    for part in parts:
        kept.feed(part)
    value = kept.value()

    assert value.startswith(whole[:half])
    assert value.endswith(whole[half:][-half:])
    assert kept.dropped == max(0, len(whole) - 2 * half)
    if kept.dropped == 0:
        assert value == whole


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=30)), max_size=20), st.integers(min_value=1, max_value=50))
def test_frames_are_read_wherever_the_stream_is_cut(frames: list[tuple[int, bytes]], step: int):
    """Both streams in their order, empty frames included."""
    stream = b"".join(frame(data, kind) for kind, data in frames)
    output = AttachedOutput(10_000)

    for start in range(0, len(stream), step):
        output.data_received(stream[start : start + step])

    assert output.kept.value() == b"".join(data for _, data in frames)


def test_the_end_of_the_stream_is_heard():
    """Whoever waits for the container waits for this first."""
    output = AttachedOutput(10)

    output.connection_lost(None)

    assert output.ended.is_set()


def test_the_last_of_each_stream_is_kept_by_itself():
    """For the executor's own log; a stream that said nothing is not there."""
    output = AttachedOutput(10)

    output.data_received(frame(b"out\n") + frame(b"err\n", 2) + frame(b"more\n"))

    assert output.last_words == {"stdout": b"out\nmore\n", "stderr": b"err\n"}
    assert AttachedOutput(10).last_words == {}


@given(st.lists(st.integers(min_value=1, max_value=3 * LAST_WORDS_BYTES_MAX), min_size=1, max_size=6))
def test_however_it_arrives_the_last_words_are_the_end_of_it(sizes: list[int]):
    """Bounded, whatever the frames' sizes."""
    output = AttachedOutput(2)
    whole = b""

    for number, size in enumerate(sizes):
        part = bytes([97 + number]) * size
        output.data_received(frame(part))
        whole += part

    assert output.last_words == {"stdout": whole[-LAST_WORDS_BYTES_MAX:]}
