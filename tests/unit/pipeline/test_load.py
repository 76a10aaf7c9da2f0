"""Pipeline files: what loads, and how an error is said."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from sandbox.contract.errors import ConfigError
from sandbox.contract.labels import Labels, needed
from supervisor.pipeline.load import default_pipeline, load_pipeline

FIRST_SOURCE = Path(__file__).parents[2] / "fixtures" / "assembly_line.yaml"


def test_the_shipped_line_is_the_one_of_the_design():
    """spec, interface, implement beside test, validate, docs, land, with the limits of DECISIONS G3 and G4."""
    line = default_pipeline()

    assert [(stage.name, stage.depends_on) for stage in line.stages] == [
        ("spec", ()),
        ("interface", ("spec",)),
        ("implement", ("interface",)),
        ("test", ("interface",)),
        ("validate", ("implement", "test")),
        ("docs", ("validate",)),
        ("land", ("docs",)),
    ]
    assert {stage.name: stage.steps_max for stage in line.stages if stage.agent} == {
        "spec": 25,
        "interface": 25,
        "implement": 60,
        "test": 60,
        "docs": 25,
    }
    assert {(stage.limits.wall_s, stage.limits.memory_mib, stage.limits.cpus) for stage in line.stages} == {(1800, 2048, 2.0)}
    assert {stage.model for stage in line.stages if stage.agent} == {"claude-sonnet-5-5"}
    assert (line.rework_max, line.test_rework_max, line.retries_max) == (3, 2, 3)


def test_the_first_sources_file_loads_as_it_is():
    """Agents are aliases of ours, roles follow from them, `land` is added last."""
    line = load_pipeline(FIRST_SOURCE.read_text(), "assembly_line.yaml")

    assert [(stage.name, stage.role, stage.agent) for stage in line.stages] == [
        ("spec", "spec", "spec"),
        ("interface", "interface", "interface"),
        ("implementation", "implement", "implement"),
        ("test", "test", "test"),
        ("validate", "validate", None),
        ("docs", "docs", "docs"),
        ("land", "land", None),
    ]
    assert line.stages[0].output == ".andon/features/{feature_slug}/spec.yaml"
    assert line.stages[2].model == "functiongemma-impl-v1"
    assert line.stages[4].command == "pytest"
    assert line.stages[6].depends_on == ("docs",)
    assert line.rework_max == 3


def test_land_waits_for_every_end_of_the_line():
    """Two stages that nothing depends on are both waited for."""
    line = load_pipeline("pipeline: {stages: [{name: spec}, {name: docs, depends_on: [spec]}, {name: test, depends_on: [spec]}]}", "x")

    assert line.stages[-1].depends_on == ("docs", "test")


def test_a_stages_own_limits_beat_the_defaults():
    """Both beat what the contract says."""
    defaults = "{timeout_s: 60, no_progress_s: 30, cpus: 1}"
    text = f"pipeline: {{defaults: {defaults}, stages: [{{name: spec, timeout_s: 9, budget_usd: 2.5, scope: [a.toml]}}]}}"
    stage = load_pipeline(text, "x").stages[0]

    limits = stage.limits
    assert (limits.wall_s, limits.no_progress_s, limits.cpus, limits.memory_mib) == (9, 30, 1.0, 2048)
    assert (stage.budget_usd, stage.allow) == ("2.5", ("a.toml",))


def test_no_rework_is_a_valid_policy():
    """`max_retries: 0` stops the line at the first red validate."""
    assert load_pipeline("assembly_line: {stages: [{name: spec}], on_test_failure: {max_retries: 0}}", "x").rework_max == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pipeline: {stages: [{name: spec, agnt: x}]}", "f.yaml: stage 'spec': unknown key 'agnt'; did you mean 'agent'?"),
        ("pipeline: {stges: []}", "f.yaml: pipeline: unknown key 'stges'; did you mean 'stages'?"),
        ("pipeline: {defaults: {modl: x}, stages: [{name: spec}]}", "f.yaml: pipeline: unknown key 'defaults.modl'; did you mean 'model'?"),
        (
            "pipeline: {stages: [{name: spec, depends_on: [spex]}]}",
            "f.yaml: stage 'spec': depends_on: there is no stage 'spex'; did you mean",
        ),
        ("pipeline: {stages: [{name: spec}, {name: spec}]}", "f.yaml: stage 'spec': name: there are 2 stages of this name"),
        (
            "pipeline: {stages: [{name: docs, depends_on: [test]}, {name: test, depends_on: [docs]}]}",
            "f.yaml: stage 'docs': depends_on: a cycle: docs → test → docs",
        ),
        ("pipeline: {stages: [{name: spec, depends_on: [spec]}]}", "a cycle: spec → spec"),
        ("pipeline: {stages: [{name: baseline, role: test}]}", "stage 'baseline': name: 'baseline' is reserved"),
        ("pipeline: {stages: [{name: review}]}", "stage 'review': role: agent None says nothing of the stage's role"),
        ("pipeline: {stages: [{name: spec, cpus: yes}]}", "stage 'spec': cpus: "),
        ("pipeline: {stages: [{name: spec, budget_usd: -1}]}", "stage 'spec': budget_usd: '-1' is not an amount"),
        ("pipeline: {stages: [{name: spec, command: ls}]}", "stage 'spec': command: only a validate stage has one"),
        ("pipeline: {stages: [{name: land, type: builtin, command: ls}]}", "stage 'land': command: only a validate stage has one"),
        ("pipeline: {stages: [{name: spec, needs_model: false}]}", "stage 'spec': needs_model: a stage of role spec needs a model"),
        ("pipeline: {stages: [{name: v, command: ls, agent: docs}]}", "stage 'v': command: only a validate stage has one"),
        ("pipeline: {stages: [{name: validate, agent: x}]}", "stage 'validate': agent: a stage of role validate runs no agent"),
        ("pipeline: {stages: [{name: spec, type: builtin, role: spec}]}", "stage 'spec': type: a stage of role spec runs an agent"),
        ("pipeline: {stages: [{name: spec, allow: ['../x']}]}", "stage 'spec': allow: '../x' is not a glob relative"),
        ("pipeline: {stages: [{name: Spec}]}", "stage 'Spec': name: "),
        ("pipeline: {stages: [{name: spec, labels: {mem: 16}}]}", "stage 'spec': labels.mem: labels are names of a-z"),
        ("pipeline: {stages: [{name: spec, labels: {Mem: '16'}}]}", "stage 'spec': labels.Mem: labels are names of a-z"),
        ("pipeline: {stages: [{name: spec, labels: [gpu]}]}", "stage 'spec': labels: labels are names of a-z"),
        ("pipeline: {defaults: {labels: {gpu: ''}}, stages: [{name: spec}]}", "pipeline: defaults.labels.gpu: labels are names"),
        ("pipeline: {stages: [{name: spec, priority: 11}]}", "stage 'spec': priority: input should be less than or equal to 10"),
        ("pipeline: {stages: [{name: spec, priority: 0}]}", "stage 'spec': priority: input should be greater than or equal to 1"),
        ("pipeline: {stages: [{name: spec, pool: 'a b'}]}", "stage 'spec': pool: "),
        ("pipeline: {stages: [{name: spec, label: {gpu: '1'}}]}", "stage 'spec': unknown key 'label'; did you mean 'labels'?"),
        ("pipeline: {stages: [3]}", "f.yaml: stage number 1: a mapping of keys is needed here"),
        ("pipeline: {stages: []}", "pipeline: stages: "),
        ("pipeline: 3", "f.yaml: pipeline: a mapping of keys is needed here"),
        ("stages: []", "exactly one key at its top"),
        ("pipeline: {}\nassembly_line: {}", "exactly one key at its top"),
        ("assembly_line: {stages: [{name: spec}], on_test_failure: {strategy: hope}}", "assembly_line: on_test_failure.strategy: "),
        ("pipeline: {stages: [{name: land, type: builtin}, {name: spec}]}", "stage 'land': depends_on: it lands without waiting for spec"),
        ("pipeline: {stages: [{name: a, role: land}, {name: b, role: land, depends_on: [a]}]}", "exactly one stage lands, here 2 do"),
        ("", "exactly one key at its top"),
    ],
)
def test_an_error_names_file_stage_and_key(text: str, says: str):
    """Every mistake is one `ConfigError`, exit 2, that says where it is."""
    with pytest.raises(ConfigError) as caught:
        load_pipeline(text, "f.yaml")

    assert str(caught.value).startswith("f.yaml: ")
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_stage_says_where_and_how_urgently_its_jobs_run():
    """Labels, pool and priority of a stage beat the defaults; what neither says is left to the run."""
    text = """
    pipeline:
      defaults: {labels: {arch: "amd64"}, priority: 3}
      stages:
        - {name: spec}
        - {name: implement, depends_on: [spec], labels: {mem: ">=16"}, pool: big, priority: 10}
    """

    spec, implement, land = load_pipeline(text, "f.yaml").stages

    assert (spec.labels, spec.pool, spec.priority) == ({"arch": "amd64"}, "default", 3)
    assert (implement.labels, implement.pool, implement.priority) == ({"mem": ">=16"}, "big", 10)
    assert land.priority is None


def test_a_file_without_stages_changes_the_shipped_line():
    """So that one line is enough to run it under another runtime; what it does not say stays, and a stage's own word still wins."""
    shipped = default_pipeline()

    changed = load_pipeline("pipeline: {rework_max: 1, defaults: {runtime: runsc, steps_max: 7}}", "p.yaml")

    assert [stage.name for stage in changed.stages] == [stage.name for stage in shipped.stages]
    assert {stage.runtime for stage in changed.stages} == {"runsc"}
    assert (changed.rework_max, changed.test_rework_max) == (1, shipped.test_rework_max)
    assert {stage.name: stage.steps_max for stage in changed.stages if stage.role in ("spec", "implement")} == {"spec": 7, "implement": 60}
    assert [stage.limits for stage in changed.stages] == [stage.limits for stage in shipped.stages]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pipeline: {stages: []}", "stages: list should have at least 1 item"),
        ("pipeline: {defaults: [runsc]}", "defaults: a mapping of keys is needed here"),
        ("pipeline: {defaults: {runtme: runsc}}", "unknown key 'defaults.runtme'; did you mean 'runtime'?"),
        ("pipeline: {stage: []}", "unknown key 'stage'; did you mean 'stages'?"),
        ("pipeline:", "p.yaml: pipeline: "),
        ("assembly_line: {defaults: {runtime: runsc}}", "stages: field required"),
    ],
)
def test_a_mistake_is_not_taken_for_the_shipped_line(text: str, says: str):
    """No stages is not the same as an empty list, a misspelt key, or nothing at all."""
    with pytest.raises(ConfigError) as caught:
        load_pipeline(text, "p.yaml")

    assert says in str(caught.value)


def test_runtime_and_strictness_of_a_stage_beat_the_defaults():
    """Neither said: the default runtime, not strict."""
    text = """\
    pipeline:
      defaults: {runtime: runsc, strict: true}
      stages:
        - {name: spec}
        - {name: implement, depends_on: [spec], runtime: io.containerd.kata.v2, strict: false}
    """
    spec, implement, _ = load_pipeline(text, "f.yaml").stages
    (plain, _) = load_pipeline("pipeline: {stages: [{name: spec}]}", "f.yaml").stages

    assert (spec.runtime, spec.strict) == ("runsc", True)
    assert (implement.runtime, implement.strict) == ("io.containerd.kata.v2", False)
    assert (plain.runtime, plain.strict) == ("runc", False)


@pytest.mark.parametrize("name", ["a", "a" * 31, "kata-qemu", "io.containerd.kata.v2"])
def test_a_runtimes_name_can_be_a_label(name: str):
    """Executors say in a label that they have it, so a name has to fit into one."""
    stage = load_pipeline(f"pipeline: {{stages: [{{name: spec, runtime: {name}}}]}}", "f.yaml").stages[0]

    assert TypeAdapter(Labels).validate_python(needed(stage.runtime, strict=True)) == {f"runtime.{name}": "yes", f"strict.{name}": "yes"}


@pytest.mark.parametrize("name", ["a" * 32, "-kata", "kata.", "Kata", "../runc", "a/b"])
def test_a_name_that_no_engine_should_have_is_refused(name: str):
    """At the file, by its key."""
    with pytest.raises(ConfigError, match="runtime"):
        load_pipeline(f"pipeline: {{stages: [{{name: spec, runtime: '{name}'}}]}}", "f.yaml")
