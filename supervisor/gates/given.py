"""A specification a person gave as the files of a commit: made at intake, and made again where its commit is missing."""

from supervisor.gates.spec import Spec, normalised
from supervisor.pipeline.definition import Pipeline
from supervisor.stages.contract import spec_path


def given_files(spec: Spec, pipeline: Pipeline, slug: str) -> dict[str, bytes]:
    """Return the files that hold a given specification, by path."""
    return {spec_path(pipeline, slug): normalised(spec, slug)}


def given_message(slug: str) -> str:
    """Return the message of their commit."""
    return f"Specification of {slug}, as given\n"
