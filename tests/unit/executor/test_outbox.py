"""Finished results survive the process that made them."""

from pathlib import Path

from sandbox.contract.result import AttemptResult, Outcome
from sandbox.executor.outbox import Outbox


def a_result(attempt: int = 1) -> AttemptResult:
    return AttemptResult(
        job_id="0123456789-spec-1",
        run_id="0123456789",
        stage="spec",
        round=1,
        attempt=attempt,
        token="t",
        executor="one",
        outcome=Outcome.SUBMITTED,
        started_at=1.0,
        ended_at=2.0,
    )


async def test_a_kept_result_is_left_for_the_next_process(tmp_path: Path):
    """What was kept and not dropped is found again, whole."""
    await Outbox(tmp_path).keep(a_result())

    assert await Outbox(tmp_path).left() == [a_result()]


async def test_a_dropped_result_is_delivered_no_more(tmp_path: Path):
    """Dropping one attempt leaves the others."""
    outbox = Outbox(tmp_path)
    await outbox.keep(a_result(1))
    await outbox.keep(a_result(2))

    await outbox.drop(a_result(1))

    assert await outbox.left() == [a_result(2)]


async def test_a_half_written_result_is_not_read(tmp_path: Path):
    """A crash in the middle of writing leaves a .part file, never a result."""
    (tmp_path / "0123456789-spec-1.1.part").write_text('{"job_id":')

    assert await Outbox(tmp_path).left() == []
