"""Documents of a repository or an agent: YAML, TOML, Markdown, Python source, patterns, names, cassettes."""

import json
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files

from sandbox.contract.cassette import Cassette, dump_recording, load_recording
from sandbox.contract.errors import ConfigError, UnsafePath, UsageError
from sandbox.contract.ids import parse_slug, slug_of
from sandbox.contract.interface_lock import drift, lock_interface, stubs_left
from sandbox.contract.scope import WriteScope, checked_path, matches, offending_paths
from supervisor.gates.spec import criteria_of, normalised, parse_spec
from supervisor.pipeline.bounded_yaml import BYTES_MAX, load_yaml
from supervisor.pipeline.definition import Pipeline, Stage
from supervisor.pipeline.load import load_pipeline
from supervisor.stages.agents import parse_agent, shipped_agents
from supervisor.stages.quality import checks_for
from tests.fakes.memory_tree import MemoryTree
from tests.fuzz.target import Target

_SPEC = {
    "feature": "limits",
    "description": "Requests are limited.",
    "requirements": [
        {"id": "REQ-001", "description": "It limits.", "acceptance": ["Given a caller", "When it asks twice", "Then it is refused"]}
    ],
    "affected_components": ["api"],
    "dependencies": [],
}
_PIPELINE = {
    "pipeline": {
        "name": "feature",
        "rework_max": 2,
        "defaults": {"model": "claude-sonnet-5-5", "timeout_s": 60, "cpus": 1.5, "labels": {"arch": "arm64"}, "network": "none"},
        "stages": [
            {"name": "spec", "agent": "spec-agent", "budget_usd": 2.5, "priority": 3, "pool": "default"},
            {"name": "implement", "depends_on": ["spec"], "allow": ["src/**"], "memory_mib": 512, "output": "src/", "max_tokens": 4_000},
            {"name": "validate", "type": "builtin", "depends_on": ["implement"], "command": "pytest -q"},
        ],
    }
}
_QUALITY = b"""[quality_checks]
tests = "pytest -q"
lint = {command = "ruff check .", report = "sarif", path = "/out/ruff.sarif", blocking = false}
types = "mypy --strict 'a b'"
"""
_SOURCE = b'''"""A module."""

from dataclasses import dataclass
import os, sys

__all__ = ["Limit", "limit"]
LIMIT: int = 3


@dataclass(frozen=True)
class Limit:
    """A limit."""

    count: int = 1

    def left(self, used: int, /, *more: int, key: str = f"{LIMIT!r:>{10}}") -> int:
        raise NotImplementedError


async def limit(request, *, at=lambda x: (yield)) -> "Limit":
    try:
        match request:
            case {"a": [1, *rest], **others} if (found := rest):
                ...
    except* ValueError as error:
        pass
'''
_YAML_WORDS: tuple[bytes, ...] = (
    b"- ",
    b": ",
    b"? ",
    b"| ",
    b">-\n",
    b"---\n",
    b"...\n",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object:os.system ",
    b"!!binary ",
)
_YAML_WORDS += (b"2001-01-01", b"1:30", b"0o17", b"0x", b"~", b"%YAML 1.1\n", b"\n  ", b"# ", b"budget_usd", b"name", b"stages")
_PYTHON_WORDS: tuple[bytes, ...] = (
    b"def f(",
    b"class A(",
    b"lambda:",
    b"async ",
    b"await ",
    b"yield ",
    b"match x:\n case ",
    b"global a\n",
    b"setattr(",
)
_PYTHON_WORDS += (b"f'{", b"'''", b'"""', b"@", b"*", b"**", b":=", b"->", b"\n    ", b"\\\n", b"# -*- coding: utf-7 -*-\n", b"not ", b"-")
_PYTHON_WORDS += (b"sys.modules", b"exec(", b"globals()", b"__all__", b"import *", b"b''", b"1j", b"del a", b"a.b = 1\n")


def _yaml(data: bytes) -> None:
    """What is read can be written as JSON, and shown."""
    with suppress(ConfigError):
        json.dumps(load_yaml(data.decode("utf-8", "surrogateescape"), "fuzz"), allow_nan=True)


def _pipeline(data: bytes) -> None:
    """What is taken crosses the event log unchanged."""
    with suppress(ConfigError):
        pipeline = load_pipeline(data.decode("utf-8", "replace"), "fuzz")
        assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline


def _spec(data: bytes) -> None:
    """What is taken and written as it lands is read again as the same specification."""
    with suppress(ConfigError):
        spec = parse_spec(data.decode("utf-8", "replace"), "fuzz")
        written = normalised(spec, "limits")
        if len(written) <= BYTES_MAX:
            again = parse_spec(written.decode(), "again")
            assert criteria_of(again) == criteria_of(spec)


def _agent(data: bytes) -> None:
    with suppress(ConfigError):
        parse_agent(data.decode("utf-8", "replace"), "fuzz").model_dump_json()


def _quality(data: bytes) -> None:
    with suppress(ConfigError):
        for check in checks_for(MemoryTree({"quality.toml": data}), Stage(name="validate", role="validate")):
            check.model_dump_json()


def _interface(data: bytes) -> None:
    """A file does not drift from itself, and its lock crosses the object store."""
    old, _, new = data.partition(b"\n#### interface\n")
    lock, findings = lock_interface({"a.py": (old, new or old)})
    lock.model_dump_json()
    for finding in findings:
        finding.model_dump_json()
    if not findings:
        assert drift(lock, lambda _: new or old, ["a.py"]) == []
        stubs_left(lock, lambda _: new or old)


def _scope(data: bytes) -> None:
    """The first line is a pattern, the others paths (ABUSE A07)."""
    pattern, *paths = data.decode("utf-8", "surrogateescape").split("\n")
    for path in paths:
        with suppress(UnsafePath):
            checked_path(path)
            matches(path, pattern)
    with suppress(UnsafePath):
        offending_paths(paths, WriteScope.model_construct(patterns=(pattern,)))


def _slug(data: bytes) -> None:
    """What is derived from a request is a slug, or nothing; what is taken is one line of plain characters."""
    text = data.decode("utf-8", "surrogateescape")
    if derived := slug_of(text):
        assert parse_slug(derived) == derived
    with suppress(UsageError):
        assert parse_slug(text).replace("-", "").isalnum()
        assert text.isascii()


def _cassette(data: bytes) -> None:
    with suppress(UsageError):
        cassette = Cassette.load(data)
        assert Cassette.load(cassette.dump()) == cassette
    with suppress(UsageError):
        assert load_recording(dump_recording(load_recording(data))) == load_recording(data)


def _as_json(document: object, *others: bytes) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(document).encode(), *others]


def _agents() -> list[bytes]:
    front = {"name": "spec", "model": "m", "tools": ["bash"], "steps": 3, "cache_ttl": "1h"}
    return [*(text.encode() for text in shipped_agents().values()), f"---\n{json.dumps(front)}\n---\nYou write.\n".encode()]


def _recorded() -> list[bytes]:
    lines = files("supervisor.demo").joinpath("cassette.jsonl").read_bytes().split(b"\n")
    return [b"\n".join(lines[:2]), lines[1]]


def _default_pipeline() -> bytes:
    return files("supervisor.pipeline").joinpath("default.yaml").read_bytes()


TARGETS = (
    Target("yaml", _yaml, _as_json(_SPEC, b"a: &x [1, 0x1f, 1:30, ~]\nb: *x\n? c\n: |\n  text\n"), _YAML_WORDS),
    Target("pipeline", _pipeline, lambda: [json.dumps(_PIPELINE).encode(), _default_pipeline()], _YAML_WORDS),
    Target("spec", _spec, _as_json(_SPEC), (*_YAML_WORDS, b"Given ", b"When ", b"Then ", b"\xe2\x80\xa8", b"\xc2\x85")),
    Target("agent", _agent, _agents, (*_YAML_WORDS, b"---\n", b"system: ", b"tools: ")),
    Target(
        "quality", _quality, lambda: [_QUALITY], (b"[a]\n", b"[[a]]\n", b"a.b.c = ", b'"""', b"'''", b"1979-05-27T07:32:00Z", b"0x", b"&&")
    ),
    Target("interface", _interface, lambda: [_SOURCE, _SOURCE + b"\n#### interface\n" + _SOURCE + b"\nX = 1\n"], _PYTHON_WORDS),
    Target(
        "scope",
        _scope,
        lambda: [b"src/**/*.py\nsrc/a/b.py\nREADME", b"a*b*c*d*?[a-z]/**/x\naaaaaaaaaa/b"],
        (b"**/", b"*", b"?", b"[!a]", b"(a+)+$", b"a" * 200),
    ),
    Target("slug", _slug, lambda: [b"add-rate-limiting", b"Add rate limiting: to the API"], (b"-", b"\n", b"*", b">", b".x", b"\xc3\xa9")),
    Target("cassette", _cassette, _recorded),
)
