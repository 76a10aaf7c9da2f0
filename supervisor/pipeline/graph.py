"""The graph of a pipeline: order, groups, ancestors, cycles; not what a run does with it (`survey`)."""

from collections.abc import Iterable, Mapping, Sequence

from supervisor.pipeline.definition import Pipeline, Stage


def find_cycle(depends_on: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """Return one cycle as its nodes in order, the first not repeated; None if there is none.

    Names that are not keys are ignored.
    """
    done: set[str] = set()
    for start in depends_on:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                done.add(name)
                continue
            if name in on_path:
                return tuple(path[path.index(name) :])
            if name in done or name not in depends_on:
                continue
            path.append(name)
            on_path.add(name)
            stack.append((name, True))
            stack.extend((other, False) for other in depends_on[name])
    return None


def groups(stages: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """Return the stages in groups: all a stage depends on is in an earlier group, each is in the earliest it can be.

    Raises:
        ValueError: There is a cycle, or a dependency that is no stage.
    """
    level: dict[str, int] = {}
    left = list(stages)
    result: list[tuple[Stage, ...]] = []
    while left:
        ready = tuple(stage for stage in left if all(name in level for name in stage.depends_on))
        if not ready:
            raise ValueError(f"stages {', '.join(stage.name for stage in left)} wait for each other or for no stage")
        level.update({stage.name: len(result) for stage in ready})
        result.append(ready)
        left = [stage for stage in left if stage.name not in level]
    return result


def in_order(pipeline: Pipeline) -> list[Stage]:
    """Return the stages so that each comes after all it depends on; otherwise as in the file."""
    return [stage for group in groups(pipeline.stages) for stage in group]


def ancestors(pipeline: Pipeline, name: str) -> frozenset[str]:
    """Return every stage that `name` depends on, directly or not; without `name`."""
    by_name = {stage.name: stage for stage in pipeline.stages}
    found: set[str] = set()
    frontier = list(by_name[name].depends_on)
    while frontier:
        one = frontier.pop()
        if one not in found:
            found.add(one)
            frontier.extend(by_name[one].depends_on)
    return frozenset(found)


def sinks(stages: Iterable[Stage]) -> list[str]:
    """Return the names of the stages no other stage depends on, as in the file."""
    stages = list(stages)
    needed = {name for stage in stages for name in stage.depends_on}
    return [stage.name for stage in stages if stage.name not in needed]


def nearest(pipeline: Pipeline, name: str) -> tuple[str, ...]:
    """Return what `name` depends on, without what one of the others depends on already, as in the file."""
    depends_on = dict.fromkeys(next(stage for stage in pipeline.stages if stage.name == name).depends_on)
    beyond = {far for one in depends_on for far in ancestors(pipeline, one)}
    return tuple(one for one in depends_on if one not in beyond)
