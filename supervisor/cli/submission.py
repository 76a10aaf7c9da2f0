"""What `andon run` asks for, from options and files: the request, live or replay, consent, the base; not the conversation about it."""

import hashlib
import importlib.resources
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.blob import BlobRef
from sandbox.contract.cassette import CASSETTE_BYTES_MAX, Cassette
from sandbox.contract.ids import parse_slug
from supervisor import demo
from supervisor.api.submitted import Submitted, given_file
from supervisor.cli.arguments import text_of
from supervisor.cli.client import Client, Say
from supervisor.cli.recording import check_answers, normalised
from supervisor.config import Config, StateDirectory
from supervisor.delivery import Snapshot, snapshot
from supervisor.errors import ConfigError, ConsentMissing, NoProviderKey, UsageError
from supervisor.pipeline.bounded_yaml import load_yaml
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.submit import SubmitRequest

REQUEST_CHARS_MAX = 64_000
FILE_CHARS_MAX = 256_000
SHIPPED_CASSETTE = "cassette.jsonl"
"""In the package `supervisor.demo`."""


@dataclass(frozen=True)
class Options:
    """The options of `andon run`, as they were typed; the manual is `docs/cli.md`."""

    request: str | None = None
    repo: Path | None = None
    spec: Path | None = None
    pipeline: Path | None = None
    base: str | None = None
    slug: str | None = None
    record: Path | None = None
    replay: Path | None = None
    yes: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Wanted:
    """What a person asked for, read and checked before anything is started."""

    request: str
    spec_text: str | None
    pipeline_yaml: str | None
    pipeline_source: str
    slug: str | None
    cassette: bytes | None
    """Set if and only if the run is a replay."""


def read_wanted(options: Options, config: Config, say: Say) -> Wanted:
    """Read every file an option names and decide between live and replay; starts nothing.

    Raises:
        UsageError: An option or a file is wrong, there is no request, or it needs a key and there is none.
    """
    if options.record and options.replay:
        raise UsageError("--record and --replay exclude each other")
    if options.record and not options.record.parent.is_dir():
        raise UsageError(f"--record {options.record}: its directory does not exist")
    spec_text = text_of(options.spec, FILE_CHARS_MAX, "--spec") if options.spec else None
    pipeline = text_of(options.pipeline, FILE_CHARS_MAX, "--pipeline") if options.pipeline else None
    if pipeline is not None:
        load_pipeline(pipeline, str(options.pipeline))
    return Wanted(
        request=_request(options, spec_text),
        spec_text=spec_text,
        pipeline_yaml=pipeline,
        pipeline_source=str(options.pipeline or ""),
        slug=parse_slug(options.slug) if options.slug is not None else None,
        cassette=_cassette(options, config, _request(options, spec_text), say),
    )


async def repository_of(options: Options, state: StateDirectory) -> Path:
    """Return the repository to work on: the one that was named, else a new copy of the sample."""
    if options.repo is not None:
        return options.repo.absolute()
    state.samples.mkdir(mode=0o700, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="notes-api-", dir=state.samples))
    await demo.create_sample_repository(path)
    return path


async def base_of(options: Options, repository: Path, state: StateDirectory) -> Snapshot:
    """Read the base commit out of the repository, and see to the consent its own image needs (DECISIONS D11).

    Raises:
        UsageError: Not a repository, no commits, no such revision.
        ConsentMissing: The base commit has an `.andon/Dockerfile` nobody agreed to.
    """
    base = await snapshot(repository, options.base)
    digest = base.dockerfile_sha256
    if digest is None:
        return base
    if options.yes:
        state.trust(digest, f"{repository} at {base.commit}, by --yes")
    elif not state.trusts(digest):
        raise ConsentMissing(
            f"{repository} brings its own image, .andon/Dockerfile, whose build runs its commands with network access: read it, then "
            f"`andon trust --repo {repository}`, or run again with --yes"
        )
    return base


async def request_for(client: Client, config: Config, options: Options, wanted: Wanted, base: Snapshot, repository: Path) -> SubmitRequest:
    """Store the base (and the cassette) as objects and return the request that names them."""
    name = f"intent-{secrets.token_hex(8)}"
    pack = await _stored(client, f"{name}/base", base.pack)
    cassette = await _stored(client, f"{name}/cassette", wanted.cassette) if wanted.cassette is not None else None
    return SubmitRequest(
        request=wanted.request,
        slug=wanted.slug,
        repository=str(repository),
        base_name=base.base_name,
        base_commit=base.commit,
        base_pack=pack,
        branches=base.branches,
        author_name=base.author_name,
        author_email=base.author_email,
        pipeline_yaml=wanted.pipeline_yaml,
        pipeline_source=wanted.pipeline_source,
        spec_text=wanted.spec_text,
        mode="replay" if cassette else "live",
        cassette=cassette,
        record=options.record is not None,
        parallel=config.mode == "parallel",
        baseline=config.baseline,
        budget_nano_usd=config.budget_nano_usd,
        warn_nano_usd=config.warn_nano_usd,
        dockerfile_sha256=base.dockerfile_sha256,
        traceparent=config.traceparent or "",
        strict=config.strict,
        priority=config.priority,
        delivery="client" if config.is_remote else "supervisor",
        request_id=secrets.token_hex(16),
    )


def submitted_as(request: SubmitRequest, options: Options, fleet: str) -> Submitted:
    """Return what this host remembers of a submission; `fleet` is the broker's address if it is elsewhere, else empty."""
    given = (("--spec", options.spec, request.spec_text), ("--pipeline", options.pipeline, request.pipeline_yaml))
    files = tuple(given_file(option, path, text) for option, path, text in given if path is not None and text is not None)
    return Submitted(request_id=request.request_id, repository=request.repository, fleet=fleet, given=files)


async def _stored(client: Client, name: str, data: bytes) -> BlobRef:
    return await client.put_blob(f"{name}-{hashlib.sha256(data).hexdigest()}", data)


def _request(options: Options, spec_text: str | None) -> str:
    text = options.request
    if text == "-":
        text = _standard_input()
    elif text is None and spec_text is not None:
        text = _description(spec_text, str(options.spec))
    elif text is None and options.repo is None:
        text = demo.SAMPLE_REQUEST
    elif text is None:
        raise UsageError('say what you want: andon run "Add ..." --repo PATH, or `-` to read it from standard input, or --spec FILE')
    # Bytes of the command line that are no UTF-8 arrive as surrogates, which no JSON carries.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "").strip()
    if not text:
        raise UsageError("the request is empty")
    if len(text) > REQUEST_CHARS_MAX:
        raise UsageError(f"the request has {len(text):,} characters; at most {REQUEST_CHARS_MAX:,}: put what is longer into --spec FILE")
    return text


def _standard_input() -> str:
    return sys.stdin.buffer.read(4 * REQUEST_CHARS_MAX + 1).decode("utf-8", "surrogateescape")


def _description(spec_text: str, source: str) -> str:
    """Return a specification's own words for the request."""
    content = load_yaml(spec_text, source)
    if isinstance(content, dict):
        for key in ("description", "feature"):
            value = content.get(key)
            if isinstance(value, str) and value.strip():
                return value
    raise ConfigError(f"{source}: has no `description`; give the request beside --spec")


def _cassette(options: Options, config: Config, request: str, say: Say) -> bytes | None:
    """Decide between live (None) and replay (the cassette): a key and nothing else makes a run live (DECISIONS D14)."""
    if options.replay is not None:
        data = _bytes_of(options.replay)
        check_answers(Cassette.load(data, f"--replay {options.replay}"), request, f"--replay {options.replay}")
        return data
    if config.has_provider_key or config.is_remote:  # a fleet's executors have their own keys; its supervisor refuses if none has
        return None
    is_sample = options.repo is None and options.spec is None and options.pipeline is None and options.record is None
    if is_sample and normalised(request) == normalised(demo.SAMPLE_REQUEST):
        say("no ANTHROPIC_API_KEY is set: this is a replay of a recorded run on the sample repository; nothing is billed")
        return _shipped_cassette()
    raise NoProviderKey(
        "no ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) is set, and only the shipped sample feature can be replayed without one: "
        "set a key, or start `andon run` alone to see the sample"
    )


def _shipped_cassette() -> bytes:
    try:
        return importlib.resources.files("supervisor.demo").joinpath(SHIPPED_CASSETTE).read_bytes()
    except FileNotFoundError:
        raise UsageError("this installation ships no cassette; set ANTHROPIC_API_KEY, or make one: make cassette") from None


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(CASSETTE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"--replay {path}: {error.strerror}") from error
