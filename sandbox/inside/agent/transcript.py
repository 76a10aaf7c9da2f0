"""The conversation, append-only; cache markers are put on a copy of its wire form (AGENT.md §0.1, §3). Not the model call.

Current models bind their thinking to the exact conversation they saw: a turn that was sent is never changed, shortened
or left out. Four markers are allowed and four are used: system, task text, and the last block of the last two user
turns. A look-back of 20 blocks starts at each marker, so the last two always connect, whatever a turn adds.
"""

from collections.abc import Sequence
from typing import Any

from sandbox.contract.agent_spec import CacheTtl

Block = dict[str, Any]
Message = dict[str, Any]

MARKED_USER_TURNS = 2


class Transcript:
    """Turns in the order they were said."""

    def __init__(self, system: str, task_text: str, prompt: str, cache_ttl: CacheTtl) -> None:
        self._system = system
        self._cache_ttl = cache_ttl
        self._has_task_text = bool(task_text)
        first = [text_block(task_text)] if task_text else []
        self._messages: list[Message] = [{"role": "user", "content": [*first, text_block(prompt)]}]

    def add_assistant(self, content: Sequence[Block]) -> None:
        """Append what the model said, exactly as it came; an empty reply is left out, since the API refuses one."""
        if content:
            self._messages.append({"role": "assistant", "content": list(content)})

    def add_user(self, content: Sequence[Block]) -> None:
        """Append one user turn: all results of a turn's calls, in their order, and any text after them."""
        self._messages.append({"role": "user", "content": list(content)})

    def wire(self) -> tuple[list[Block], list[Message]]:
        """Return system blocks and messages as they go to the model, markers on copies."""
        messages = list(self._messages)
        user_turns = [at for at, message in enumerate(messages) if message["role"] == "user"]
        for at in user_turns[-MARKED_USER_TURNS:]:
            messages[at] = self._marked(messages[at], -1)
        if self._has_task_text:
            messages[0] = self._marked(messages[0], 0)
        return [{**text_block(self._system), "cache_control": self._marker()}], messages

    def _marked(self, message: Message, block_at: int) -> Message:
        content = list(message["content"])
        content[block_at] = {**content[block_at], "cache_control": self._marker()}
        return {**message, "content": content}

    def _marker(self) -> Block:
        # 5m is the API's default and not spelled out: the plain form is understood by every compatible server.
        return {"type": "ephemeral"} if self._cache_ttl == "5m" else {"type": "ephemeral", "ttl": self._cache_ttl}


def text_block(text: str) -> Block:
    """Return a text block."""
    return {"type": "text", "text": text}


def result_block(tool_use_id: str, text: str, *, is_error: bool) -> Block:
    """Return the answer to one tool call."""
    block: Block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": text}
    return {**block, "is_error": True} if is_error else block
