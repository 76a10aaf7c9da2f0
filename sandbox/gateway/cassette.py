"""Answers model calls from a cassette, and makes the records of one; the file's format is `contract/cassette`.

Replayed calls take the same way as live ones: judged, reserved, streamed, settled at what they once cost. Nothing is
ever written to a cassette while it is replayed (ABUSE W18).
"""

import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sandbox.contract.cassette import Cassette, CassetteRecord
from sandbox.contract.result import Usage
from sandbox.gateway.policy import Judged
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.reservation import Hold
from sandbox.gateway.sse import Event, EventSplitter
from sandbox.gateway.tally import Failure, Tally
from sandbox.gateway.upstream import Call, Fault, Reply

_VOLATILE = re.compile(r"\b\d+(?:\.\d+)?\s?(?:s|ms|seconds)\b|0x[0-9a-f]+", re.ASCII)
"""What differs between two equal runs of a tool: durations and addresses."""


class Replay:
    """A cassette, at one stage and round."""

    def __init__(self, cassette: Cassette, stage: str, round_: int) -> None:
        self.cassette = cassette
        self.stage = stage
        self.round = round_


class CassetteSource:
    """A `Source` that answers from a cassette; a record may be asked for again, as by a client that lost its connection."""

    is_replay = True

    def __init__(self, replay: Replay, tally: Tally) -> None:
        self._replay = replay
        self._tally = tally
        self._counted: set[int] = set()

    @asynccontextmanager
    async def open(self, call: Call, held: Hold) -> AsyncIterator[Reply]:
        """Answer with the record of this stage, round and turn."""
        record = self._record(call.judged)
        held.send()
        yield _RecordedReply(record)

    async def count_tokens(self, call: Call) -> int:
        """Refuse: counts are not recorded."""
        raise Refusal(400, "invalid_request_error", f"no count of tokens of turn {call.judged.turn} was recorded", retry=False)

    def leaks(self, _data: bytes, /) -> bool:
        """Return False: no key is at hand in a replay."""
        return False

    def _record(self, judged: Judged) -> CassetteRecord:
        replay = self._replay
        record = replay.cassette.find(replay.stage, replay.round, judged.turn)
        place = f"stage {replay.stage}, round {replay.round}, turn {judged.turn}"
        if record is None and not replay.cassette.covers(replay.stage, replay.round):
            raise _miss(Failure(kind="no_record", message=f"the cassette ends before stage {replay.stage}, round {replay.round}"))
        if record is None or record.compared != compared_digest(judged.document, judged.volatile):
            what = "has no such turn" if record is None else "answers another conversation"
            raise _miss(Failure(kind="stale_cassette", message=f"the cassette is stale at {place}: it {what}; make cassette"))
        if record.tool_output != tool_output_digest(judged.document) and judged.turn not in self._counted:
            self._counted.add(judged.turn)
            self._tally.divergences += 1
        return record


class _RecordedReply:
    """The events of one record."""

    def __init__(self, record: CassetteRecord) -> None:
        self.priced: tuple[Usage, int] | None = (record.usage, record.cost_nano_usd)
        self._sse = record.sse.encode()

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """Yield one event at a time, as a provider that is in no hurry."""
        for event in EventSplitter().feed(self._sse):
            yield [event]


def record_of(call: Call, stage: str, round_: int, sse: bytes, priced: tuple[Usage, int]) -> CassetteRecord:
    """Return the record of a call that was answered and settled."""
    return CassetteRecord(
        stage=stage,
        round=round_,
        turn=call.judged.turn,
        compared=compared_digest(call.judged.document, call.judged.volatile),
        tool_output=tool_output_digest(call.judged.document),
        model=call.judged.model,
        sse=sse.decode("utf-8", "replace"),
        usage=priced[0],
        cost_nano_usd=priced[1],
    )


def compared_digest(request: Mapping[str, Any], volatile: Sequence[str] = ()) -> str:
    """Return the digest of what must be the same in a replay: model, system, tools and assistant turns, without cache markers.

    What matches a pattern of `volatile` in their canonical JSON is not compared either.
    """
    assistant = [message["content"] for message in request["messages"] if message["role"] == "assistant"]
    compared = {
        "model": request["model"],
        "system": _unmarked(request.get("system", "")),
        "tools": _unmarked(request.get("tools", [])),
        "assistant": [_unmarked(content) for content in assistant],
    }
    text = _canonical(compared)
    for pattern in volatile:
        text = re.sub(pattern, "~", text)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tool_output_digest(request: Mapping[str, Any]) -> str:
    """Return the digest of what the tools gave in the last message, without durations and addresses."""
    content = request["messages"][-1]["content"] if request["messages"] else ""
    blocks = content if isinstance(content, list) else []
    results = [_unmarked([block])[0] for block in blocks if block["type"] == "tool_result"]
    return hashlib.sha256(_VOLATILE.sub("~", _canonical(results)).encode("utf-8", "surrogatepass")).hexdigest()


def _unmarked(content: object) -> Any:
    """Return blocks or tools without their cache markers, which move from turn to turn; nested content included."""
    if not isinstance(content, list):
        return content
    return [
        {key: _unmarked(value) if key == "content" else value for key, value in item.items() if key != "cache_control"}
        if isinstance(item, dict)
        else item
        for item in content
    ]


def _canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _miss(failure: Failure) -> Fault:
    # 400, not 404: some clients read 404 as "no such model" and try again with other parameters.
    return Fault(400, "invalid_request_error", failure.message, failure=failure)
