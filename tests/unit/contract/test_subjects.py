"""Which subjects are a delivered job's."""

import pytest

from sandbox.contract.subjects import pool_of_ack


def test_an_ack_subject_names_its_pool() -> None:
    """The broker's own form, of any pool."""
    assert pool_of_ack("$JS.ACK.JOBS.gpu-a100_2.3.17.5.1795390524118545592.0") == "gpu-a100_2"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "andon.job.gpu",
        "$JS.ACK.JOBS.gpu",
        "$JS.ACK.JOBS.gpu.1.1.1.1",
        "$JS.ACK.JOBS.gpu.1.1.1.1.1.1",
        "$JS.ACK.JOBS.gpu.1.1.1.1.0\n",
        "$JS.ACK.JOBS.gpu.1.1.1.1.0 x",
        "$JS.ACK.JOBS.*.1.1.1.1.0",
        "$JS.ACK.JOBS.gpu.1.1.1.1.>",
        "$JS.ACK.RESULTS.sup.1.1.1.1.0",
        "$JS.ACK.JOBS.GPU.1.1.1.1.0",
        "$JS.ACK.JOBS.gpu.-1.1.1.1.0",
        "$JS.ACK.JOBS.gpu.\u0661.1.1.1.0",
    ],
)
def test_anything_else_is_no_jobs(subject: str) -> None:
    """The supervisor publishes on what an executor sent: only the exact form passes."""
    assert pool_of_ack(subject) is None
