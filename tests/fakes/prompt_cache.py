"""Simulates the provider's prompt cache, so that wrong markers show in the usage; not its expiry (AGENT.md §1, §3).

Rules: at most four markers; a marker writes the prefix that ends at it; it reads the longest written prefix that ends at
it or at one of the 20 blocks before it.
"""

import hashlib
import json
from typing import Any, NamedTuple

LOOK_BACK_BLOCKS = 20
MARKERS_MAX = 4
CHARS_PER_TOKEN = 4


class InputUsage(NamedTuple):
    """How the input of one call is billed."""

    uncached: int
    written: int
    read: int


class PromptCache:
    """Prefixes one organisation has written."""

    def __init__(self) -> None:
        self._written: set[str] = set()

    def charge(self, request: dict[str, Any]) -> InputUsage:
        """Return the usage of a request and remember what it writes.

        Raises:
            ValueError: More than four markers.
        """
        digests, tokens, markers = _prefixes(request)
        if len(markers) > MARKERS_MAX:
            raise ValueError(f"{len(markers)} blocks have cache_control; at most {MARKERS_MAX}")
        read = 0
        for marker in markers:
            for at in range(marker, max(-1, marker - LOOK_BACK_BLOCKS - 1), -1):
                if digests[at] in self._written:
                    read = max(read, tokens[at])
                    break
        self._written.update(digests[marker] for marker in markers)
        upto_last_marker = tokens[markers[-1]] if markers else 0
        return InputUsage(tokens[-1] - max(upto_last_marker, read), max(0, upto_last_marker - read), read)


def _prefixes(request: dict[str, Any]) -> tuple[list[str], list[int], list[int]]:
    """Return the digest and the tokens of the prefix that ends at each block, and which blocks are marked."""
    digest = hashlib.sha256(str(request.get("model")).encode())
    digests: list[str] = []
    tokens: list[int] = []
    markers: list[int] = []
    chars = 0
    for block in _blocks(request):
        if "cache_control" in block:
            markers.append(len(digests))
        data = json.dumps({key: value for key, value in block.items() if key != "cache_control"}, sort_keys=True)
        digest.update(data.encode())
        chars += len(data)
        digests.append(digest.hexdigest())
        tokens.append(chars // CHARS_PER_TOKEN)
    return digests, tokens, markers


def _blocks(request: dict[str, Any]) -> list[dict[str, Any]]:
    system = request.get("system") or []
    blocks = [*request.get("tools", []), *(_as_blocks(system))]
    for message in request["messages"]:
        blocks += [{"role": message["role"], **block} for block in _as_blocks(message["content"])]
    return blocks


def _as_blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
