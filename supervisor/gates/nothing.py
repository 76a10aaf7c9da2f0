"""The gate of a stage that changed nothing: where a reason is enough, and where it is a failure (DECISIONS G7); not its other rules."""

from sandbox.contract.job import Submission
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.stages.contract import contract_for

CHECK = "empty"
REASON_CHARS_MIN = 10


def judge_empty(role: str, stage: str, submission: Submission | None, wanted: str = "") -> Judgement:
    """Return the verdict on a stage that changed nothing.

    Args:
        role: What the stage is for.
        stage: Its name.
        submission: What the agent said; its summary is the reason.
        wanted: What a rework was to put right, so that a person need not look for it.
    """
    reason = " ".join((submission.summary if submission else "").split())
    if contract_for(role).empty == "refused":
        return judgement([finding(CHECK, f"stage {stage} changed nothing; {wanted or f'the role {role} has to leave something'}")])
    if len(reason) < REASON_CHARS_MIN:
        return judgement(
            [finding(CHECK, f"stage {stage} changed nothing and gave no reason; the summary has to say why nothing is needed")]
        )
    return judgement([], [f"stage {stage} changed nothing: {reason[:300]}"])
