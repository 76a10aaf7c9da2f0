"""A cassette answers the request it was recorded for, however that is spelled, and no other."""

import pytest

from sandbox.contract.cassette import Cassette, CassetteHeader
from supervisor.cli.recording import check_answers, digest_of
from supervisor.errors import UsageError


def a_cassette(**matches: str) -> Cassette:
    return Cassette(header=CassetteHeader(made_by="scripted", matches=matches))


@pytest.mark.parametrize("request_", ["Add  rate limiting.", "add rate limiting", "ADD RATE\nLIMITING!"])
def test_spacing_case_and_a_final_stop_make_no_other_request(request_: str):
    """People type the same request in many ways."""
    check_answers(a_cassette(request=digest_of("Add rate limiting")), request_, "c.jsonl")


def test_another_request_is_refused_and_the_file_named():
    """Otherwise a person would get somebody else's feature."""
    with pytest.raises(UsageError, match=r"c\.jsonl answers another request"):
        check_answers(a_cassette(request=digest_of("Add rate limiting")), "Add paging", "c.jsonl")


def test_a_cassette_that_does_not_say_is_compared_call_by_call_only():
    """Older files and hand-made ones have no digest."""
    check_answers(a_cassette(), "anything", "c.jsonl")
