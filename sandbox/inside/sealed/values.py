"""What crosses between tests and product: plain values by copy, everything else by a number; not how it is sent (`channel`).

A value is copied only if it is *exactly* of a plain type: an instance of a subclass, whose `==` the product could define,
never becomes an object in the tests' process (SANDBOX.md §6.3, the cheat "always equal").
"""

from __future__ import annotations

import datetime
import decimal
import pathlib
from collections.abc import Callable
from typing import Any

VALUES_DEPTH_MAX = 64

_SCALARS = (type(None), bool, int, float, str)
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TEXTS: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "path": (type(pathlib.Path()), str, pathlib.Path),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "seconds": (datetime.timedelta, lambda value: repr(value.total_seconds()), lambda text: datetime.timedelta(seconds=float(text))),
}


class Malformed(ValueError):
    """What came is none of our values."""


def encode(value: Any, other: Callable[[Any], list[Any]], depth: int = 0) -> Any:
    """Return `value` as JSON can carry it.

    Args:
        value: Anything.
        other: Makes a tagged list of what has no plain type, or raises.
        depth: Of the containers around it.
    """
    if depth > VALUES_DEPTH_MAX:
        raise Malformed(f"a value is nested deeper than {VALUES_DEPTH_MAX}")
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return ["dict", [[encode(key, other, depth + 1), encode(one, other, depth + 1)] for key, one in value.items()]]
    for tag, sequence in _SEQUENCES.items():
        if kind is sequence:
            return [tag, [encode(one, other, depth + 1) for one in value]]
    for tag, (plain, to_text, _) in _TEXTS.items():
        if kind is plain:
            return [tag, to_text(value)]
    return other(value)


def decode(data: Any, other: Callable[[str, list[Any]], Any], depth: int = 0) -> Any:
    """Return the value `data` carries.

    Args:
        data: What `encode` made, parsed from JSON.
        other: Makes something of a tag that is not a plain type's, or raises `Malformed`.
        depth: Of the containers around it.

    Raises:
        Malformed: It is no value of ours.
    """
    if depth > VALUES_DEPTH_MAX:
        raise Malformed(f"a value is nested deeper than {VALUES_DEPTH_MAX}")
    if type(data) in _SCALARS:
        return data
    if type(data) is not list or len(data) < 2 or type(data[0]) is not str:
        raise Malformed("a value is neither plain nor tagged")
    tag, body = data[0], data[1]
    if tag == "dict" and type(body) is list:
        pairs = [_pair(each) for each in body]
        return {_key(decode(key, other, depth + 1)): decode(one, other, depth + 1) for key, one in pairs}
    if tag in _SEQUENCES and type(body) is list:
        items = [decode(one, other, depth + 1) for one in body]
        return _SEQUENCES[tag](map(_key, items) if tag in {"set", "frozenset"} else items)
    if tag in _TEXTS and type(body) is str:
        try:
            return _TEXTS[tag][2](body)
        except (ValueError, ArithmeticError, OverflowError) as error:
            raise Malformed(f"{tag}: {error}") from error
    return other(tag, data)


def _pair(data: Any) -> tuple[Any, Any]:
    if type(data) is not list or len(data) != 2:
        raise Malformed("an entry of a dict is no pair")
    return data[0], data[1]


def _key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise Malformed("a key cannot be hashed") from error
    return value
