"""The graph of a pipeline, mostly as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.pipeline.definition import Pipeline, Stage
from supervisor.pipeline.graph import ancestors, find_cycle, groups, in_order, nearest, sinks

NAMES = [f"s{number}" for number in range(8)]


@st.composite
def acyclic(draw: st.DrawFn) -> Pipeline:
    """Draw stages that depend on earlier ones only, in a shuffled file."""
    count = draw(st.integers(1, len(NAMES)))
    stages = [
        Stage(name=NAMES[at], role="docs", depends_on=tuple(draw(st.lists(st.sampled_from(NAMES[:at]), unique=True)) if at else ()))
        for at in range(count)
    ]
    return Pipeline(stages=tuple(draw(st.permutations(stages))))


@given(acyclic())
def test_a_group_depends_on_earlier_groups_only(pipeline: Pipeline):
    """And every stage is in the earliest group it can be in."""
    level = {stage.name: number for number, group in enumerate(groups(pipeline.stages)) for stage in group}

    assert set(level) == {stage.name for stage in pipeline.stages}
    for stage in pipeline.stages:
        assert level[stage.name] == max((level[name] + 1 for name in stage.depends_on), default=0)


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4)))
def test_a_cycle_is_found_if_and_only_if_no_order_exists(depends_on: dict[str, list[str]]):
    """What is found is a cycle, and without one the stages have an order."""
    known = {name: [other for other in others if other in depends_on] for name, others in depends_on.items()}

    cycle = find_cycle(known)

    stages = [Stage(name=name, role="docs", depends_on=tuple(others)) for name, others in known.items()]
    if cycle is None:
        groups(stages)
    else:
        assert all(after in known[name] for name, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        with pytest.raises(ValueError, match="wait for each other"):
            groups(stages)


@given(acyclic())
def test_nearest_leaves_out_what_is_reached_anyway(pipeline: Pipeline):
    """It reaches the same ancestors, and none of it is an ancestor of another."""
    for stage in in_order(pipeline):
        near = nearest(pipeline, stage.name)
        reached = {far for one in near for far in (one, *ancestors(pipeline, one))}

        assert reached == ancestors(pipeline, stage.name)
        assert not any(one in ancestors(pipeline, other) for one in near for other in near)


@given(acyclic())
def test_everything_leads_to_a_sink(pipeline: Pipeline):
    """A sink has no stage after it, and all sinks together have every stage before them."""
    ends = sinks(pipeline.stages)

    assert not any(end in stage.depends_on for end in ends for stage in pipeline.stages)
    assert {name for end in ends for name in (end, *ancestors(pipeline, end))} == {stage.name for stage in pipeline.stages}
