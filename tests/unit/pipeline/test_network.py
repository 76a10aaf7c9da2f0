"""What a pipeline says of a stage's packages."""

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.contract.packages import NAME_CHARS_MAX, PACKAGES_MAX, Packages, npm_name, pip_name
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.load import load_pipeline


def stage_of(keys: str, defaults: str = "{}") -> Stage:
    return load_pipeline(f"pipeline:\n  defaults: {defaults}\n  stages:\n    - {{name: implement, {keys}}}\n", "p.yaml").stages[0]


def test_a_stage_has_no_network_unless_it_says_so():
    """The default survives everything but the key itself."""
    assert (stage_of("timeout_s: 60").network, stage_of("network: registries").network) == ("none", "registries")
    assert stage_of("network: none", "{network: registries}").network == "none"


def test_a_list_is_taken_in_normal_form():
    """As the indexes write the names."""
    stage = stage_of('network: allowlist, packages: {pip: [Zope.Interface], npm: ["@types/node", left-pad]}')

    assert stage.packages == Packages(pip=("zope-interface",), npm=("@types/node", "left-pad"))


def test_a_list_of_the_defaults_is_for_the_stages_with_an_allowlist():
    """The others are not held up by it."""
    defaults = "{packages: {pip: [six]}}"

    assert stage_of("network: allowlist", defaults).packages == Packages(pip=("six",))
    assert stage_of("network: registries", defaults).packages == Packages()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("network: public", "network"),
        ("network: allowlist", "needs a list"),
        ("network: allowlist, packages: {pip: []}", "needs a list"),
        ("packages: {pip: [six]}", "`network: allowlist` alone"),
        ("network: registries, packages: {pip: [six]}", "here it is registries"),
        ("network: allowlist, packages: {pip: ['six==1.0']}", "'six==1.0' is not the name of a Python project"),
        ("network: allowlist, packages: {npm: [Left-Pad]}", "'Left-Pad' is not the name of an npm package"),
        ("network: allowlist, packages: {cargo: [serde]}", "unknown key 'packages.cargo'"),
    ],
)
def test_what_makes_no_sense_is_named(keys: str, says: str):
    """Stage, key, and what would."""
    with pytest.raises(ConfigError) as refused:
        stage_of(keys)

    assert "stage 'implement'" in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize("count", [PACKAGES_MAX, PACKAGES_MAX + 1])
def test_a_list_has_a_greatest_length(count: int):
    """At the bound it is taken, one name more is refused."""
    keys = f"network: allowlist, packages: {{pip: [{', '.join(f'p{n}' for n in range(count))}]}}"
    if count > PACKAGES_MAX:
        with pytest.raises(ConfigError, match="at most 1000"):
            stage_of(keys)
    else:
        assert len(stage_of(keys).packages.pip) == count


@pytest.mark.parametrize("name", ["a" * NAME_CHARS_MAX, "A.b_c-d", "0"])
def test_names_of_projects(name: str):
    """What PEP 508 allows, to the bound."""
    assert pip_name(name) == name.lower().replace(".", "-").replace("_", "-")


@pytest.mark.parametrize("name", ["", "a" * (NAME_CHARS_MAX + 1), "-a", "a-", "a/b", "..", "a\n", "é", "a b", "a%2f"])
def test_what_is_no_name_of_either(name: str):
    """A newline at the end included."""
    with pytest.raises(ValueError, match="is not the name"):
        pip_name(name)
    if name != "a-":  # npm's business
        with pytest.raises(ValueError, match="is not the name"):
            npm_name(name if name != "-a" else "@x")
