"""Names of runs, jobs, features and spans, and how each is derived; not where they are stored."""

import hashlib
import re
import unicodedata
from typing import Annotated

from pydantic import StringConstraints

from sandbox.contract.errors import UsageError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: sorts like the numbers it writes

RUN_ID_CHARS = 10
SLUG_CHARS_MAX = 48
STAGE_CHARS_MAX = 32

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-hjkmnp-tv-z]{10}$")]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?$")]
StageName = Annotated[str, StringConstraints(pattern=r"^[a-z](?:[a-z0-9_-]{0,30}[a-z0-9])?$")]
ExecutorName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?$")]
PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-hjkmnp-tv-z]{10}-[a-z][a-z0-9_-]{0,31}-[0-9]{1,3}$")]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def run_id(now_ms: int, entropy: bytes) -> str:
    """Return a run id: 7 characters of time (ms since the epoch / 64, ordered), 3 of entropy.

    Args:
        now_ms: Milliseconds since 1970; 35 bits of `now_ms >> 6` wrap after 69 years.
        entropy: At least 2 random bytes.
    """
    time_part = (now_ms >> 6) & ((1 << 35) - 1)
    value = (time_part << 15) | (int.from_bytes(entropy[:2], "big") & 0x7FFF)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(45, -1, -5))


def job_id(run: str, stage: str, round_: int) -> str:
    """Return the id of one stage of one run in one round; the same over attempts."""
    return f"{run}-{stage}-{round_}"


def slug_of(request: str) -> str:
    """Derive a slug from a request: its first words, ASCII, lower case, at most 48 characters; may be empty."""
    ascii_text = unicodedata.normalize("NFKD", request).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", ascii_text.split(":")[0].lower())[:8]
    slug = ""
    for word in words:
        longer = f"{slug}-{word}" if slug else word[:SLUG_CHARS_MAX]
        if len(longer) > SLUG_CHARS_MAX:
            break
        slug = longer
    return slug


def parse_slug(text: str) -> str:
    """Return `text` if it is a slug.

    Raises:
        UsageError: It is not; the message says what a slug is.
    """
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?", text):
        raise UsageError(f"slug {text!r} is not one: use 1 to {SLUG_CHARS_MAX} of a-z, 0-9 and '-', no '-' at an end")
    return text


def trace_id(run: str) -> str:
    """Return the 32 hex digits of a run's trace (TRACING.md §0.1)."""
    return hashlib.sha256(b"andon.trace\0" + run.encode()).hexdigest()[:32]


def span_id(path: str) -> str:
    """Return the 16 hex digits of a derived span; `path` is run[/stage[/round/attempt]] (DECISIONS D8)."""
    return hashlib.sha256(b"andon.span\0" + path.encode()).hexdigest()[:16]


def process_span_id(path: str) -> str:
    """Return the derived span of an attempt at its executor, so that whoever outlives the executor can end it; `path` as `attempt_path`."""
    return span_id(f"{path}#process")


def program_span_id(path: str) -> str:
    """Return the derived span of an attempt's program in the container."""
    return span_id(f"{path}#program")


def check_span_id(program: str, name: str) -> str:
    """Return the derived span of a check; `program` is its program's span id, so that runner and host name the same one."""
    return span_id(f"{program}#check#{name}")


def sandbox_span_id(program: str, sender: str, given: str) -> str:
    """Return the span that is made for one of a sandbox: no id it gives, of 16 hex digits, is the id of a span of ours.

    Args:
        program: Span id of the program in that sandbox.
        sender: Who made it: `program`, or `user` for whatever runs in a tool or a check.
        given: The id it came with.
    """
    return span_id(f"{program}#{sender}#{given}")


def queue_span_id(path: str) -> str:
    """Return the derived span of the wait before a job's first attempt."""
    return span_id(f"{path}#queue")


def attempt_path(run: str, stage: str, round_: int, attempt: int) -> str:
    """Return the path that names one attempt in traces and in the object store."""
    return f"{run}/{stage}/{round_}/{attempt}"
