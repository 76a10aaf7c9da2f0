"""What an agent is told of packages: the truth of its stage, briefly."""

from sandbox.contract.packages import PACKAGES_MAX, Network, Packages
from supervisor.pipeline.definition import Stage
from supervisor.stages.packages import NAMES_SHOWN_MAX, packages_in_words


def a_stage(network: Network, **lists: tuple[str, ...]) -> Stage:
    return Stage(name="implement", role="implement", network=network, packages=Packages(**lists))


def test_a_stage_without_a_network_is_told_nothing():
    """The agent's own rules say already that there is none."""
    assert packages_in_words(a_stage("none")) == ()


def test_a_stage_that_may_install_anything_is_told_how():
    """And that the rest of the network stays closed."""
    (rule,) = packages_in_words(a_stage("registries"))

    assert "`pip install NAME`" in rule
    assert "Nothing else reaches a network" in rule


def test_a_stage_with_a_list_is_told_its_names_of_both_kinds():
    """By the tool that installs them; a tool without names is not mentioned."""
    (both,) = packages_in_words(a_stage("allowlist", pip=("six", "attrs"), npm=("left-pad",)))
    (one,) = packages_in_words(a_stage("allowlist", pip=("six",)))

    assert "no other: with pip `six`, `attrs`; with npm `left-pad`. " in both
    assert "npm" not in one


def test_a_long_list_is_cut_and_counted():
    """The longest list a pipeline may have does not fill the task; one that just fits is shown whole."""
    names = tuple(f"package-{number}" for number in range(PACKAGES_MAX))

    (long,) = packages_in_words(a_stage("allowlist", pip=names))
    (whole,) = packages_in_words(a_stage("allowlist", pip=names[:NAMES_SHOWN_MAX]))

    assert f"and {PACKAGES_MAX - NAMES_SHOWN_MAX} more" in long
    assert len(long) < 2_000
    assert "more" not in whole
