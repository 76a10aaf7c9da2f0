"""Inputs made from right ones by hypothesis: bytes changed, repeated and spliced, and values of JSON documents replaced."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import INPUT_BYTES_MAX

EDITS_MAX = 5
REPEATS = (2, 17, 300, 5_000)
COMMON: tuple[bytes, ...] = (
    *(b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u202e\u200d".encode(), b"\r", b"\n", b"\r\n\r\n", b"\t", b"\\", b'"', b"'"),
    *(b"[", b"{", b"]", b"}", b"[]", b"{}", b"()", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5"),
    *(b"9" * 5_000, b"0x" + b"f" * 5_000, b"9" * 20, b"\\ud800", b"\\u0000", b"%00", b"..", b"/", b"*", b"<<: *a", b"&a [*a]", b"!!x "),
)
CROWD = b"{" + b",".join(b'"%x":0' % number for number in range(5_000)) + b',"1387":1}'
"""Many keys, and only the last is there twice."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, 2**64, 10**300, 1e308, "", "x", "\0", "\ud800", "\u202e", "../x", "x" * 5_000, "REQ-001"),
    *([], {}, [[]], [None], {"": None}, {"type": []}, {"a": {"a": {"a": 1}}}, ["x"] * 300, float("nan"), float("inf")),
)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Draw an input: a seed after one to five edits, of at most 64 KiB."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, EDITS_MAX))):
        if draw(st.booleans()) and (document := _document(data)) is not None:
            data = _with_value(draw, document[0])
        else:
            data = _with_bytes(draw, data, seeds, words)
        data = data[:INPUT_BYTES_MAX]
    return data


def _with_bytes(draw: st.DrawFn, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    at = draw(st.integers(0, len(data)))
    end = min(len(data), at + draw(st.sampled_from((0, 0, 1, 2, 8, 64, 1_000))))
    kind = draw(st.sampled_from(("put", "put", "repeat", "splice", "noise", "step")))
    if kind == "put":
        is_of_format = draw(st.booleans())
        pool: Sequence[bytes] = words if words and is_of_format else (*COMMON, CROWD)
        return data[:at] + draw(st.sampled_from(pool)) + data[end:]
    if kind == "step":  # one digit of a number or a name for the next one
        return data[:at] + bytes((byte + 1) % 256 for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == "repeat":
        return data[:end] + data[at:end] * draw(st.sampled_from(REPEATS)) + data[end:]
    if kind == "splice":
        other = draw(st.sampled_from(seeds))
        return data[:at] + other[draw(st.integers(0, len(other))) :]
    return data[:at] + draw(st.binary(max_size=8)) + data[end:]


def _document(data: bytes) -> tuple[Any] | None:
    """Return the JSON document in `data`, in a tuple: null is one too."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return (json.loads(data),)
    except (ValueError, RecursionError):
        return None


def _with_value(draw: st.DrawFn, document: Any) -> bytes:
    """Replace, remove, double or rename one value anywhere in a document."""
    places = list(_places(document))
    if places:
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("value", "value", "remove", "nest", "rename")))
        if kind == "remove":
            del holder[key]
        elif kind == "nest":
            holder[key] = [holder[key]] * draw(st.sampled_from((1, 2, 100)))
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "x", "type", "id", "name", "\ud800", "__proto__")))] = holder.pop(key)
        else:
            holder[key] = draw(st.sampled_from(VALUES))
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return b"[]"


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key or index), the outer ones first; without recursion, documents are deep."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending and len(found) < 2_000:
        node = pending.pop(0)
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            found += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
    return found
