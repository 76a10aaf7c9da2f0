"""What the agent of a rework is told of the round before: findings, failures, its own difference; not who decides on a rework."""

from dataclasses import dataclass, field

from sandbox.contract.result import Finding
from supervisor.knowledge.repository import quoted

FINDINGS_SHOWN = 20
FAILURES_SHOWN = 12
FAILURE_LINES = 60
FAILURE_CHARS_MAX = 3_000
DIFFERENCE_CHARS_MAX = 6_000
TEXT_CHARS_MAX = 20_000


@dataclass(frozen=True)
class Feedback:
    """Why a stage works again."""

    round: int
    """The round that begins now: 2 is the first rework."""
    judged_by: str
    """The stage whose verdict sent it back."""
    findings: tuple[Finding, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    """Last lines of the output of each failed test, by id."""
    difference: str = ""
    """What this stage itself has changed so far, as a patch; never another stage's work."""
    summary: str = ""
    """What the agent of the round before said."""


def feedback_text(feedback: Feedback) -> str:
    """Return `feedback.md`: at most 20,000 characters, everything from the sandbox quoted."""
    parts = [
        f"# Round {feedback.round}: what `{feedback.judged_by}` found\n\n"
        "Your work of the round before is in /workspace. Find the cause, repair it, and look for the same mistake elsewhere.",
        "\n".join(f"- {_indented(each.message[:600])}" for each in feedback.findings[:FINDINGS_SHOWN]),
    ]
    if len(feedback.findings) > FINDINGS_SHOWN:
        parts.append(f"… and {len(feedback.findings) - FINDINGS_SHOWN} more findings.")
    for id_, tail in list(feedback.failures.items())[:FAILURES_SHOWN]:
        lines = "\n".join(tail.splitlines()[-FAILURE_LINES:])[-FAILURE_CHARS_MAX:]
        parts.append(f"## {id_}\n\n{quoted(lines)}")
    if feedback.summary:
        parts.append(f"## What you said in the round before\n\n{quoted(feedback.summary[:1_500])}")
    if feedback.difference:
        shown = feedback.difference[:DIFFERENCE_CHARS_MAX]
        more = "\n\nThe whole difference is in /task/previous.diff." if len(shown) < len(feedback.difference) else ""
        parts.append(f"## What you have changed so far\n\n{quoted(shown)}{more}")
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[:TEXT_CHARS_MAX]}\n[cut here]"


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
