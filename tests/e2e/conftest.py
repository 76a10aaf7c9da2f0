"""The whole line as a person uses it: the `andon` command, a stack of its own, real containers, and the scripted model."""

from collections.abc import Iterator

import pytest

from tests.e2e.line import Line, Provider
from tests.e2e.people import Person, ordinary_member, sets_up
from tests.fakes.scripts.rate_limit import HAPPY


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """The scripted model, one for all end-to-end tests."""
    with Provider() as running:
        yield running


@pytest.fixture(scope="session")
def line(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A stack that stays up for all end-to-end tests, as `andon up` keeps it; live against the scripted model."""
    made = Line(tmp_path_factory.mktemp("line"), provider.server.environment())
    up = made.andon("up", timeout_s=900)
    assert up.exit_code == 0, up.stderr
    yield made
    down = made.andon("down")
    assert down.exit_code == 0, down.stderr


@pytest.fixture(scope="session")
def member() -> Iterator[Person]:
    """An ordinary member of the group `docker` with a clone of their own, set up by `make setup`."""
    with ordinary_member() as person:
        sets_up(person)
        yield person


@pytest.fixture(autouse=True)
def happy_again(provider: Provider) -> None:
    """Every test starts with the happy script and an empty log."""
    provider.says(HAPPY)
