"""The specification's schema, its criteria by position, and YAML that attacks its reader."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.errors import ConfigError
from supervisor.gates.spec import criteria_of, judge_spec, normalised, parse_spec
from tests.fakes.memory_tree import Link, MemoryTree

PATH = ".andon/features/rate-limit/spec.yaml"
GOOD = """
feature: rate-limit
description: Limits calls.
requirements:
  - id: REQ-001
    description: A client may call 100 times a minute.
    acceptance:
      - Given a client with 99 calls
      - When it calls
      - Then it is answered
      - Given a client with 100 calls, when it calls, then it gets 429
  - id: REQ-002
    description: A refused client is told when to come back.
    acceptance:
      - "Given a refused client"
      - "And a clock"
      - "When it reads the reply"
      - "Then it finds Retry-After: whole seconds"
affected_components: [app.py]
dependencies:
"""


def test_criteria_have_their_position_as_id():
    """A criterion begins at each line that starts with Given; one line may hold all three words."""
    criteria = criteria_of(parse_spec(GOOD, "spec.yaml"))

    assert [(each.id, each.requirement, each.test_prefix) for each in criteria] == [
        ("REQ-001.1", "REQ-001", "test_req_001_1"),
        ("REQ-001.2", "REQ-001", "test_req_001_2"),
        ("REQ-002.1", "REQ-002", "test_req_002_1"),
    ]
    assert criteria[0].text == "Given a client with 99 calls When it calls Then it is answered"


def test_the_host_writes_ids_and_slug_and_doing_it_again_changes_nothing():
    """What lands is a function of the specification alone."""
    once = normalised(parse_spec(GOOD, "spec.yaml"), "rate-limit-2")
    again = normalised(parse_spec(once.decode(), "spec.yaml"), "rate-limit-2")

    assert once == again
    assert b"feature: rate-limit-2" in once
    assert b"REQ-001.2: Given a client with 100 calls" in once
    assert criteria_of(parse_spec(once.decode(), "x")) == criteria_of(parse_spec(GOOD, "x"))


@given(
    st.lists(st.lists(st.sampled_from(["When it calls", "Then it works", "And more", "given nothing"]), max_size=4), min_size=1, max_size=5)
)
def test_there_are_as_many_criteria_as_lines_that_begin_with_given(groups: list[list[str]]):
    """Numbering is by position, whatever stands between."""
    lines = [line for group in groups for line in ["Given a when b then c", *group]]
    text = "feature: x\ndescription: y\nrequirements:\n- id: REQ-001\n  description: z\n  acceptance:\n" + "".join(
        f"  - {line}\n" for line in lines
    )
    if any(line.startswith("given") for line in lines):
        return

    criteria = criteria_of(parse_spec(text, "x"))

    assert [each.id for each in criteria] == [f"REQ-001.{n}" for n in range(1, len(groups) + 1)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("feature: rate-limit\n", "", "feature: field required"),
        ("description: Limits calls.", "description:", "description: field required"),
        ("description: Limits calls.", "description: 3", "description: text is needed"),
        ("id: REQ-001", "id: R1", "requirements.0.id"),
        ("id: REQ-002", "id: REQ-001", "REQ-001 is there twice"),
        ("feature: rate-limit", "feature: rate-limit\nowner: me", "owner: unknown key"),
        ("      - Given a client with 99 calls\n", "", "a criterion begins with Given"),
        ("      - When it calls\n", "", "REQ-001.1 has no When"),
        ("      - Then it is answered\n", "", "REQ-001.1 has no Then"),
        ('"Then it finds Retry-After: whole seconds"', "Then it finds Retry-After: whole seconds", "in quotes"),
        ("affected_components: [app.py]", "affected_components: app.py", "affected_components"),
        ("affected_components: [app.py]", "affected_components: [1]", "affected_components.0: text"),
        ("dependencies:\n", "dependencies: [.nan]\n", "dependencies.0: text"),
        ("feature: rate-limit", "feature: rate-limit\nfeature: other", "twice"),
        ("feature: rate-limit", "feature: !!python/object/apply:os.system ['true']", "not allowed"),
    ],
)
def test_a_wrong_specification_names_file_and_key(old: str, new: str, message: str):
    """The next agent, or a person, can repair it from the message."""
    assert old in GOOD

    with pytest.raises(ConfigError) as raised:
        parse_spec(GOOD.replace(old, new, 1), "spec.yaml")

    assert str(raised.value).startswith("spec.yaml: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "just text", "feature: x\ndescription: y\nrequirements: []\n"])
def test_a_document_without_requirements_is_refused(text: str):
    """Nothing can be tested then."""
    with pytest.raises(ConfigError):
        parse_spec(text, "spec.yaml")


BOMBS = {
    "aliases": "a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)),
    "merge keys": "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a]}}\n" for n in range(20)),
    "flow depth": "feature: " + "[" * 100_000,
    "block depth": "".join(" " * n + "a:\n" for n in range(500)),
    "large": "feature: " + "x" * 300_000,
    "many nodes": "requirements: [" + "a, " * 50_000 + "a]",
    "recursive alias": "feature: &a [*a]\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_in_a_moment(text: str):
    """Size, depth, aliases and nodes are bounded (ABUSE I15)."""
    started = time.perf_counter()

    with pytest.raises(ConfigError):
        parse_spec(text, "spec.yaml")

    assert time.perf_counter() - started < 3.0


def test_a_good_tree_passes_and_gives_the_file_as_it_should_be():
    """The slug of the run is written over what the agent called the feature, and a person is told."""
    said, data = judge_spec(MemoryTree({PATH: GOOD}), PATH, "rate-limit-2")

    assert said.verdict == "pass"
    assert data == normalised(parse_spec(GOOD, "x"), "rate-limit-2")
    assert any("'rate-limit-2' was written instead" in note for note in said.notes)


@pytest.mark.parametrize("content", [None, b"\xff", Link("/etc/passwd"), "feature: x\n", "x" * 300_000])
def test_a_tree_without_a_good_file_fails(content: bytes | str | Link | None):
    """Missing, no text, a link, incomplete, too large."""
    tree = MemoryTree({} if content is None else {PATH: content})

    said, data = judge_spec(tree, PATH, "rate-limit")

    assert (said.verdict, data) == ("fail", None)
    assert said.findings[0].path == PATH
