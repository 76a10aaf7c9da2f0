"""Whether the hosts that are there can run a pipeline."""

import pytest

from sandbox.contract.labels import needed, offered
from sandbox.contract.wire import Heartbeat
from supervisor.pipeline.definition import Pipeline, Role, Stage
from supervisor.pipeline.hosts import asks_of_hosts, unserved


def beat(
    name: str, *, pool: str = "default", missing: tuple[str, ...] = (), runtimes: tuple[str, ...] = (), whole: tuple[str, ...] = ()
) -> Heartbeat:
    labels = offered(runtimes, whole)
    return Heartbeat(executor=name, release="1", pools=(pool,), labels=labels, slots=1, busy=0, model="none", missing=missing)


def line(runtime: str = "runc", *, strict: bool = False, pool: str = "default", role: Role = "implement") -> Pipeline:
    return Pipeline(stages=(Stage(name="work", role=role, runtime=runtime, strict=strict, pool=pool),))


def test_the_default_runtime_asks_for_nothing():
    """So that a pipeline without special wishes waits for nobody."""
    assert needed("runc", strict=False) == {}
    assert asks_of_hosts(line()) == set()
    assert unserved(line(), [beat("one", missing=("no swap limit",))]) == ""


@pytest.mark.parametrize(
    ("pipeline", "executors"),
    [
        (line("runsc"), [beat("one"), beat("two", runtimes=("runsc",))]),
        (line(strict=True), [beat("one", missing=("x",)), beat("two", whole=("runc",))]),
        (line("runsc", strict=True), [beat("one", runtimes=("runsc",), whole=("runc", "runsc"))]),
        (line("runsc"), []),
        (line("runsc", pool="big"), [beat("one")]),
        (line("runsc", role="land"), [beat("one")]),
    ],
)
def test_one_host_that_could_is_enough_and_nobody_proves_nothing(pipeline: Pipeline, executors: list[Heartbeat]):
    """A pool without any executor may get one later; landing runs on none."""
    assert unserved(pipeline, executors) == ""


@pytest.mark.parametrize(
    ("pipeline", "executors", "says"),
    [
        (
            line("kata"),
            [beat("one"), beat("two", runtimes=("crun", "runsc"))],
            ["stage work", "pool default", "runtime 'kata'", "one has runc;", "two has runc, crun, runsc"],
        ),
        (line(strict=True), [beat("one", missing=("no swap limit",))], ["stage work is strict", "one: no swap limit"]),
        (line(strict=True), [beat("one", missing=tuple("abcdefg"))], ["a · b · c · d · e · 2 more"]),
        (line("runsc", strict=True), [beat("one", runtimes=("runsc",), whole=("runc",))], ["under runsc", "one: runsc cannot give one"]),
    ],
)
def test_what_nobody_could_run_is_said_with_what_there_is(pipeline: Pipeline, executors: list[Heartbeat], says: list[str]):
    """One line: the stage, what it asks for, and what each host has or lacks."""
    told = unserved(pipeline, executors)

    assert "\n" not in told
    for words in says:
        assert words in told
