"""The specification: parsed within bounds, checked against its schema, its criteria numbered by position; not how it is written."""

import re

import yaml
from pydantic import ConfigDict, Field, ValidationError

from sandbox.contract.errors import ConfigError, Rejected
from sandbox.contract.model import Frozen
from sandbox.contract.tree import Tree
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.pipeline.bounded_yaml import BYTES_MAX, load_yaml

CHECK = "spec"
HEADER = "# Written by the spec stage; `feature` and `criteria` by Andon. A test's name carries its criterion: test_req_001_1_…\n"


class _Strict(Frozen):
    model_config = ConfigDict(strict=True)


class Requirement(_Strict):
    """One thing the feature has to do."""

    id: str = Field(pattern=r"^REQ-[0-9]{3}$")
    description: str = Field(min_length=1, max_length=4_000)
    acceptance: list[str] = Field(min_length=1, max_length=200)
    """Lines; a criterion begins at each that starts with Given (DECISIONS G7)."""
    criteria: dict[str, str] = Field(default_factory=dict, max_length=200)
    """Written by the host, ignored when read: ids come from positions."""


class Spec(_Strict):
    """What a feature is."""

    feature: str = Field(min_length=1, max_length=200)
    description: str = Field(min_length=1, max_length=16_000)
    requirements: list[Requirement] = Field(min_length=1, max_length=100)
    affected_components: list[str] = Field(default_factory=list, max_length=200)
    dependencies: list[str] = Field(default_factory=list, max_length=200)


class Criterion(Frozen):
    """One acceptance criterion, by its position."""

    id: str
    """`REQ-001.1`."""
    requirement: str
    text: str

    @property
    def test_prefix(self) -> str:
        """Return how the name of its tests begins: `test_req_001_1`."""
        return f"test_{self.id.lower().replace('-', '_').replace('.', '_')}"


def parse_spec(text: str, source: str) -> Spec:
    """Return the specification in `text`.

    Args:
        text: YAML of at most 256 KiB.
        source: How to name it in an error.

    Raises:
        ConfigError: Not YAML within the bounds, a key that is missing, wrong or unknown, an id twice, a criterion without
            When or Then; the message names file and key.
    """
    document = load_yaml(text, source)
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: a mapping with feature, description and requirements is needed")
    given = {key: value for key, value in document.items() if value is not None}
    try:
        spec = Spec.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from error
    ids = [requirement.id for requirement in spec.requirements]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice:
        raise ConfigError(f"{source}: requirement id {twice} is there twice; ids are unique")
    for requirement in spec.requirements:
        _check_lines(requirement, source)
    return spec


def criteria_of(spec: Spec) -> list[Criterion]:
    """Return every acceptance criterion in order, its id from its position."""
    return [criterion for requirement in spec.requirements for criterion in _criteria(requirement)]


def normalised(spec: Spec, feature: str) -> bytes:
    """Return the file as it lands: the run's slug, every criterion with its id; equal specifications give equal bytes."""
    document = {
        "feature": feature,
        "description": spec.description,
        "requirements": [
            {
                "id": requirement.id,
                "description": requirement.description,
                "acceptance": requirement.acceptance,
                "criteria": {each.id: each.text for each in _criteria(requirement)},
            }
            for requirement in spec.requirements
        ],
        "affected_components": spec.affected_components,
        "dependencies": spec.dependencies,
    }
    return (HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)).encode()


def read_spec(tree: Tree, path: str) -> Spec:
    """Return the specification of a tree.

    Raises:
        ConfigError: It is not there, is no regular UTF-8 file within the bounds, or is wrong.
    """
    try:
        data = tree.read(path, BYTES_MAX)
    except KeyError as error:
        raise ConfigError(f"{path}: there is no such file; the spec stage has to write it") from error
    except Rejected as error:
        raise ConfigError(f"{path}: larger than {BYTES_MAX >> 10} KiB") from error
    try:
        return parse_spec(data.decode(), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error


def judge_spec(tree: Tree, path: str, feature: str) -> tuple[Judgement, bytes | None]:
    """Return the verdict on a spec stage's tree, and the file's bytes as they should be if it passed.

    Args:
        tree: The stage's result.
        path: Where the specification has to be.
        feature: The run's slug.
    """
    try:
        spec = read_spec(tree, path)
    except ConfigError as error:
        return judgement([finding(CHECK, str(error), path)]), None
    notes = [f"{len(spec.requirements)} requirements, {len(criteria_of(spec))} acceptance criteria"]
    if spec.feature != feature:
        notes.append(f"the specification calls the feature {spec.feature!r}; the run's slug {feature!r} was written instead")
    data = normalised(spec, feature)
    if len(data) > BYTES_MAX:
        return judgement([finding(CHECK, f"{path}: larger than {BYTES_MAX >> 10} KiB with its criteria numbered", path)]), None
    return judgement([], notes), data


def _criteria(requirement: Requirement) -> list[Criterion]:
    grouped: list[list[str]] = []
    for line in requirement.acceptance:
        if _begins(line):
            grouped.append([])
        grouped[-1].append(" ".join(line.split()))
    return [
        Criterion(id=f"{requirement.id}.{number}", requirement=requirement.id, text=" ".join(lines))
        for number, lines in enumerate(grouped, start=1)
    ]


def _begins(line: str) -> bool:
    return re.match(r"\s*given\b", line, re.IGNORECASE) is not None


def _check_lines(requirement: Requirement, source: str) -> None:
    where = f"{source}: {requirement.id}: acceptance"
    if not _begins(requirement.acceptance[0]):
        raise ConfigError(f"{where}: the first line starts with {requirement.acceptance[0][:60]!r}; a criterion begins with Given")
    if any(len(line) > 2_000 for line in requirement.acceptance):
        raise ConfigError(f"{where}: a line has more than 2000 characters")
    for criterion in _criteria(requirement):
        for word in ("When", "Then"):
            if re.search(rf"\b{word}\b", criterion.text, re.IGNORECASE) is None:
                raise ConfigError(f"{where}: criterion {criterion.id} has no {word}: {criterion.text[:100]!r}")


def _first_problem(error: ValidationError) -> str:
    """Return one problem in words; an unknown key first, it often explains the others."""
    problems = error.errors(include_url=False)
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; known are feature, description, requirements, affected_components, dependencies"
    if problem["type"] == "string_type":
        return f"{key}: text is needed here; put a line that holds ': ' or begins with a special character in quotes"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
