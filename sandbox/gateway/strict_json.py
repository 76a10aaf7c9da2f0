"""JSON that reads the same for every parser: no duplicate keys, no NaN, no BOM, bounded depth and size; not what the values mean."""

import json
import math
from collections import Counter
from typing import NoReturn

DEPTH_MAX = 64
VALUES_MAX = 1_000_000
"""Values in one document; it bounds how long the C parser holds the interpreter (0.1 to 0.2 s on a slow machine)."""


def parse_strictly(data: bytes, *, values_max: int = VALUES_MAX) -> object:
    """Return the document in `data`.

    Raises:
        ValueError: Not UTF-8, not JSON, a key twice in one object, NaN or an infinity (also as `1e999`), nested deeper
            than 64, or too many values. The message quotes at most a key.
    """
    # Separators inside strings count too: a bound, not a count, and cheap enough to come before the parser.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > values_max:
        raise ValueError(f"more than {values_max} values")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH_MAX}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    _check_depth(value)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        # In one pass: to count each name by itself takes an hour for the largest body that is allowed.
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice[:80]!r} twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _check_depth(document: object) -> None:
    level = [document]
    for _ in range(DEPTH_MAX):
        level = [
            child for value in level if isinstance(value, dict | list) for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEPTH_MAX}")
