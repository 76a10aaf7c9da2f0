"""A short line for repositories that only share `src/app/core.py` and a runnable pytest: one new module, one changed, one new test."""

from tests.fakes.script import Script, bash, conversation, create, does, replace_text, submit

REQUEST = "Greet people by name"
FEATURE = "greet-people-by-name"
CREATED = ("src/app/greeting.py", "tests/test_greeting.py")
MODIFIED = ("src/app/core.py",)

PIPELINE = """\
pipeline:
  name: short
  rework_max: 0
  stages:
    - {name: implement, agent: implement}
    - {name: test, agent: test}
    - {name: validate, type: builtin, depends_on: [implement, test]}
"""
"""Two agents side by side, their results joined, everything validated, landed: what a repository's shape can upset, and no more."""

GREETING = '''\
"""Greetings."""

from app.core import answer


def greet(name: str) -> str:
    """Return a greeting for a person, with the answer."""
    return f"Hello, {name}: {answer()}"
'''
TEST = '''\
"""Greetings."""

from app.greeting import greet


def test_a_person_is_greeted_by_name():
    """By name, and with the answer of the changed module."""
    assert greet("Ada") == "Hello, Ada: 42"
'''

LOOK = "git status --porcelain --untracked-files=all; git log --oneline | wc -l; git diff --stat"
"""Prints `1` and nothing else where the agent's private `.git` matches the workspace it was made from."""

ANY_REPOSITORY = Script(
    "scripted: a greeting",
    (
        conversation(
            "implement",
            bash(LOOK),
            does(create(CREATED[0], GREETING), replace_text(MODIFIED[0], "    return 42\n", "    return 6 * 7\n")),
            submit("Added greet, and the answer says how it comes about."),
        ),
        conversation("test", does(create(CREATED[1], TEST)), submit("One test of greet.")),
    ),
    feature=FEATURE,
)
