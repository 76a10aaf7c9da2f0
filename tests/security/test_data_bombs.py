"""Data files an agent leaves: each stops or misleads a usual parser, and is an error of ours in a moment."""

import time
from collections.abc import Callable

import pytest

from sandbox.contract.errors import ConfigError, Rejected
from sandbox.contract.python_source import parse
from sandbox.contract.result import AttemptResult
from sandbox.gateway.strict_json import parse_strictly
from supervisor.gates.junit import parse_junit
from supervisor.gates.sarif import parse_sarif
from supervisor.gates.spec import parse_spec
from supervisor.pipeline.definition import Stage
from supervisor.stages.quality import checks_for
from tests.fakes.memory_tree import MemoryTree
from tests.security.naive import naive

REFUSALS = (ConfigError, Rejected, ValueError)

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""306 bytes; a thousand million values when they are written out."""
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {n} "{f"&{b};" * 10}">' for b, n in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)

_YAML = "import yaml; value = yaml.safe_load(open(sys.argv[1]).read())"


def a_spec(text: str) -> object:
    return parse_spec(text, "spec.yaml")


def a_report(text: str) -> object:
    return parse_junit(text.encode())


def a_scan(text: str) -> object:
    return parse_sarif(text.encode())


def a_request(text: str) -> object:
    return parse_strictly(text.encode())


def a_result(text: str) -> object:
    return AttemptResult.model_validate_json(text)


def a_module(text: str) -> object:
    return parse(text.encode())


@pytest.mark.abuse("I15")
@pytest.mark.parametrize(
    ("read", "text", "usual", "ends"),
    [
        (a_spec, ALIASES, f"{_YAML}; json.dumps(value)", {"MemoryError", "hangs"}),
        (a_spec, MERGES, _YAML, {"hangs", "MemoryError"}),
        (a_spec, "[" * 100_000, _YAML, {"RecursionError"}),
        (a_scan, "[" * 100_000, "json.load(open(sys.argv[1]))", {"RecursionError"}),
        (a_request, '{"max_tokens": NaN}', "json.load(open(sys.argv[1]))", {"ok"}),
        (a_request, '{"model": "cheap", "model": "dear"}', "json.load(open(sys.argv[1]))", {"ok"}),
        (a_result, '{"cost_nano_usd": NaN}', "json.load(open(sys.argv[1]))", {"ok"}),
        (
            a_module,
            "(" * 50_000,
            "import ast; ast.parse(open(sys.argv[1]).read())",
            {"MemoryError", "SyntaxError", "dies -11", "RecursionError"},
        ),
        (a_module, "-" * 50_000 + "1", "import ast; ast.parse(open(sys.argv[1]).read())", {"MemoryError", "RecursionError", "dies -11"}),
    ],
    ids=["aliases", "merges", "deep-yaml", "deep-json", "nan", "key-twice", "nan-in-a-result", "brackets", "deep-source"],
)
def test_a_bomb_is_an_error_in_a_moment(
    tmp_path_factory: pytest.TempPathFactory, read: Callable[[str], object], text: str, usual: str, ends: set[str]
):
    """With a message; the control: a usual parser hangs, dies, or takes what is none."""
    file = tmp_path_factory.mktemp("bomb") / "bomb"
    file.write_text(text)
    started = time.thread_time()

    with pytest.raises(REFUSALS):
        read(text)

    assert time.thread_time() - started < 2
    assert naive(usual, file) in ends, "the control"


@pytest.mark.abuse("I15")
def test_entities_are_not_written_out():
    """A report with a document type is refused at once. The control: a reader of text replaces one entity by ten, nine times."""
    started = time.thread_time()

    with pytest.raises(REFUSALS):
        a_report(f"{LAUGHS}<testsuites>&i;</testsuites>")

    assert time.thread_time() - started < 2
    text = "&d;"
    for name, before in (("d", "c"), ("c", "b"), ("b", "a")):
        text = text.replace(f"&{name};", f"&{before};" * 10)
    assert text.count("&a;") == 1_000, "the control, three levels deep: the file has eight"


@pytest.mark.abuse("I15")
def test_hostile_toml_is_an_error_of_configuration():
    """As everywhere in `quality.toml`; the control: the standard library's parser breaks on it."""
    text = "[quality_checks]\n" + "a." * 20_000 + "b = 1\n"

    with pytest.raises(ConfigError):
        checks_for(MemoryTree({"quality.toml": text}), Stage(name="validate", role="validate"))
    assert naive("import tomllib; json.dumps(tomllib.loads('a.' * 20_000 + 'b = 1'))") in {"RecursionError", "MemoryError", "hangs"}, (
        "the control"
    )
