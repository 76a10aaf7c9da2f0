"""YAML within bounds: what a hostile document costs, and what an honest one may hold."""

import time

import pytest

from sandbox.contract.errors import ConfigError
from supervisor.pipeline.bounded_yaml import load_yaml


def test_an_honest_document_loads():
    """Aliases, numbers, booleans and null are what they look like."""
    text = "a: &limits {cpus: 2, on_fail: true}\nb: *limits\nc: [1.5, null, 'x']\n"

    assert load_yaml(text, "x") == {"a": {"cpus": 2, "on_fail": True}, "b": {"cpus": 2, "on_fail": True}, "c": [1.5, None, "x"]}


@pytest.mark.parametrize("depth", [32, 33])
def test_depth_is_bounded(depth: int):
    """32 levels load, 33 do not."""
    text = "[" * depth + "]" * depth

    if depth == 32:
        load_yaml(text, "x")
    else:
        with pytest.raises(ConfigError, match="nested deeper than 32"):
            load_yaml(text, "x")


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 6)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested deeper"),
        (_BOMB, "aliases are written out"),
        ("a: &a [*a]", "nested deeper"),
        ("a: &a 1\nb: [" + ",".join(["*a"] * 51) + "]", "more than 50 aliases"),
        ("x: [" + "1," * 30_000 + "]", "more than 20000 entries"),
        ("x: " + "y" * (257 << 10), "larger than 256 KiB"),
        ("a: 1\na: 2", "line 2: key 'a' is there twice"),
        ("a: {<<: {b: 1}}", "merge key"),
        ("a: !!python/object/apply:os.system [x]", "python/object/apply:os.system is not allowed"),
        ("a: 2020-01-01", "a timestamp is not allowed here"),
        ("1: a", "a key has to be text"),
        ("a: [b", "line 1: not YAML"),
        ("a: \x00", "not YAML"),
        ("--- 1\n--- 2", "not YAML"),
        ("a: !!int x", "not YAML"),
        ("a: \udc80", "not YAML"),
    ],
    ids=range(16),
)
def test_a_hostile_document_is_refused_quickly(text: str, says: str):
    """Under a second, with a message that names file and, where there is one, the line."""
    started = time.monotonic()

    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "f.yaml")

    assert str(caught.value).startswith("f.yaml: ")
    assert says in str(caught.value)
    assert time.monotonic() - started < 5
