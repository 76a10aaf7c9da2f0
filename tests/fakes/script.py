"""What the scripted model says, as data: stages, turns, calls and faults; not how it is served (`scripted_model`).

A turn may hold `{feature}`: the server puts the feature's slug there, read from `.andon/features/<slug>/` in the first
message. Text that holds braces otherwise stays as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Cut = Literal["reset", "clean"]
"""How a stream is cut in its middle: reset drops the connection, clean ends the reply as if it were whole."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the first `times` calls of a turn, before the turn is told."""

    status: int = 0
    """An error reply of this status; 0: a stream that is cut."""
    kind: str = "overloaded_error"
    retry_after_s: float | None = None
    cut: Cut = "reset"
    times: int = 1


RATE_LIMITED = Fault(status=429, kind="rate_limit_error", retry_after_s=0.05)
OVERLOADED = Fault(status=529)
CUT = Fault(cut="reset")
CUT_CLEANLY = Fault(cut="clean")


@dataclass(frozen=True)
class Call:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One reply."""

    calls: tuple[Call, ...] = ()
    text: str = ""
    thinking: str = ""
    stop_reason: str = ""
    """"": tool_use if there are calls, else end_turn."""
    category: str = ""
    """Of a refusal."""
    output_tokens: int | None = None
    """None: by length."""
    input_tokens: int | None = None
    """Uncached input as it is reported; None: by length and cache markers."""
    cut_call: bool = False
    """The last call's arguments break off in the middle, as they do at max_tokens."""
    delay_s: float = 0.0
    """Between the first event and the rest."""
    fault: Fault | None = None

    @property
    def ends_with(self) -> str:
        """Return the stop reason."""
        return self.stop_reason or ("tool_use" if self.calls else "end_turn")


@dataclass(frozen=True)
class Conversation:
    """The turns of a stage, for the rounds and attempts it is meant for."""

    stage: str
    turns: tuple[Turn, ...]
    rounds: frozenset[int] | None = None
    """None: every round."""
    attempts: frozenset[int] | None = None
    endless: bool = False
    """After the last turn the last one is told again, without end."""

    def fits(self, stage: str, round_: int, attempt: int) -> bool:
        """Return whether this is what is told in that attempt."""
        return (
            stage == self.stage and (self.rounds is None or round_ in self.rounds) and (self.attempts is None or attempt in self.attempts)
        )

    def turn(self, number: int) -> Turn | None:
        """Return a turn, counted from 0; None if the script has no more."""
        if number < len(self.turns):
            return self.turns[number]
        return self.turns[-1] if self.endless else None


@dataclass(frozen=True)
class Script:
    """Everything the scripted model says; the first conversation that fits is told."""

    name: str
    conversations: tuple[Conversation, ...]
    feature: str = "feature"
    """The slug where the first message names none."""
    aliases: Mapping[str, str] = field(default_factory=lambda: {"implementation": "implement", "tests": "test"})

    def conversation(self, stage: str, round_: int, attempt: int) -> Conversation | None:
        """Return what is told in one attempt."""
        stage = self.aliases.get(stage, stage)
        return next((one for one in self.conversations if one.fits(stage, round_, attempt)), None)

    def with_first(self, name: str, *conversations: Conversation) -> "Script":
        """Return a script in which these conversations come before the others."""
        return replace(self, name=name, conversations=(*conversations, *self.conversations))


def bash(command: str, **turn: Any) -> Turn:
    """Return a turn that runs one command."""
    return Turn((Call("bash", {"command": command}),), **turn)


def create(path: str, text: str) -> Call:
    """Return the call that writes a whole file."""
    return Call("str_replace_based_edit_tool", {"command": "create", "path": f"/workspace/{path}", "file_text": text})


def replace_text(path: str, old: str, new: str) -> Call:
    """Return the call that replaces one piece of text."""
    arguments = {"command": "str_replace", "path": f"/workspace/{path}", "old_str": old, "new_str": new}
    return Call("str_replace_based_edit_tool", arguments)


def does(*calls: Call, **turn: Any) -> Turn:
    """Return a turn of several calls."""
    return Turn(calls, **turn)


def submit(summary: str, status: str = "done") -> Turn:
    """Return the turn that ends a conversation."""
    return Turn((Call("submit", {"status": status, "summary": summary}),))


def conversation(
    stage: str, *turns: Turn, rounds: Iterable[int] | None = None, attempts: Iterable[int] | None = None, endless: bool = False
) -> Conversation:
    """Return a stage's turns."""
    return Conversation(
        stage,
        turns,
        None if rounds is None else frozenset(rounds),
        None if attempts is None else frozenset(attempts),
        endless,
    )


def single(*turns: Turn, stage: str = "implement", endless: bool = False) -> Script:
    """Return a script of one stage, for tests of the agent alone."""
    return Script("single", (Conversation(stage, turns, endless=endless),))
