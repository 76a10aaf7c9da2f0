"""JSON that every parser reads alike."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.gateway.strict_json import DEPTH_MAX, parse_strictly

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_plain_json_is_read_as_it_is(value: object):
    """Strictness costs nothing that is legal."""
    assert parse_strictly(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"model": "a", "model": "b"}', "'model' twice"),
        (b'{"model": "a", "\\u006dodel": "b"}', "'model' twice"),
        (b'[{"x": {"a": 1, "a": 1}}]', "'a' twice"),
        (b'{"cost": NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"\xff", "not UTF-8"),
        ("[1]".encode("utf-16"), "not"),
        (b"\xef\xbb\xbf[1]", "not JSON"),
        (b"[1] [2]", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b"[" + b"9" * 5_000 + b"]", "limit"),
    ],
)
def test_what_parsers_read_differently_is_refused(data: bytes, why: str):
    """Each of these has two readings, or none."""
    with pytest.raises(ValueError, match=why):
        parse_strictly(data)


def test_the_deepest_allowed_document_passes():
    """The companion: 64 levels."""
    assert parse_strictly(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX) is not None


def test_a_document_of_very_many_values_is_refused_before_it_is_parsed():
    """32 MiB of commas must not hold the interpreter."""
    data = b"[" + b"1," * (16 << 20) + b"1]"
    started = time.perf_counter()

    with pytest.raises(ValueError, match="more than"):
        parse_strictly(data)

    assert time.perf_counter() - started < 1.0
