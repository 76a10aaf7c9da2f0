"""How an image is looked up, packed and built, whatever is in it; not which images there are (`images`).

An image is found by a tag that ends in the hash of everything it is made of, and used by its id.
"""

import hashlib
import io
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sandbox.contract.errors import EngineError, UsageError
from sandbox.runtime.engine import Engine

CONTEXT_BYTES_MAX = 1 << 30
LABEL_RECIPE = "andon.recipe"
_ERROR_LINES = 15

# Proxies are known to every builder and kept out of the history; the others are declared by `declared`, and stand in it.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "FTP_PROXY", "ALL_PROXY")
_MIRRORS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "NPM_CONFIG_REGISTRY", "GOPROXY")
_CA_BUNDLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_OF_CERTIFICATES = ("PIP_CERT", "NODE_EXTRA_CA_CERTS")
"""Tools that bring certificates of their own unless they are told of the system's."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class BuildNetwork:
    """How a build with a network reaches it: the operator's own proxies, mirrors and certificates (DECISIONS D10)."""

    arguments: Mapping[str, str] = field(default_factory=dict)
    """Build arguments: proxies, which leave no trace, and mirrors without a credential, which stand in the image's history."""
    ca_bundle: Path | None = None
    """PEM file of the certificates this host trusts, when it is not the distribution's."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "BuildNetwork":
        """Take what other programs on this host honour; a mirror whose address holds a credential is left out (DECISIONS D10)."""
        proxies = {name: environment.get(name, "") for name in (*_PROXIES, *(name.lower() for name in _PROXIES))}
        bundle = next((environment[name] for name in _CA_BUNDLES if environment.get(name)), None)
        found = cls({name: value for name, value in proxies.items() if value}, Path(bundle) if bundle else None)
        return found.with_mirrors({name: environment.get(name, "") for name in _MIRRORS})

    def with_mirrors(self, mirrors: Mapping[str, str]) -> "BuildNetwork":
        """Return this network with further arguments; one that is empty, holds a credential, or is there already is left out."""
        told = {name: value for name, value in mirrors.items() if value and "@" not in value}
        certificates = dict.fromkeys(_OF_CERTIFICATES, CERTIFICATES) if self.ca_bundle else {}
        return BuildNetwork({**certificates, **told, **self.arguments}, self.ca_bundle)


DIRECT = BuildNetwork()


def declared(dockerfile: bytes, network: BuildNetwork) -> bytes:
    """Return a Dockerfile whose stages know the network's arguments, without which a builder keeps them from a stage."""
    names = sorted(name for name in network.arguments if name.upper() not in _PROXIES)
    if not names:
        return dockerfile
    lines: list[bytes] = []
    continues = False
    for line in dockerfile.splitlines(keepends=True):
        lines.append(line)
        is_comment = line.lstrip().startswith(b"#")
        is_stage = not continues and re.match(rb"(?i)\s*FROM\s", line) is not None
        continues = line.rstrip().endswith(b"\\") or (continues and is_comment)
        if is_stage and not continues:
            lines += [b"" if line.endswith(b"\n") else b"\n", *(f"ARG {name}\n".encode() for name in names)]
    return b"".join(lines)


def digest(content: Mapping[str, bytes]) -> str:
    """Return the hash of named contents, as it is used in tags."""
    total = hashlib.sha256()
    for name in sorted(content):
        total.update(f"{name}\0{hashlib.sha256(content[name]).hexdigest()}\n".encode())
    return total.hexdigest()[:24]


async def find(engine: Engine, tag: str) -> str | None:
    """Return the id of the image with this tag, or None; an image that others gave our tag is not ours."""
    image = await engine.call(f"cannot look for image {tag}", lambda: engine.image(tag))
    if image is None or (image["Config"].get("Labels") or {}).get(LABEL_RECIPE) != _recipe(tag):
        return None
    return str(image["Id"])


async def build(engine: Engine, tag: str, pack: Callable[[IO[bytes]], None], **options: Any) -> str:
    """Build with the classic builder's words, which every engine still knows; return the image's id.

    Args:
        engine: Where.
        tag: `name:<hash>`; the hash becomes the label `find` looks for.
        pack: Writes the context; runs in the thread that builds.
        options: Of the SDK's `build`: `buildargs`, `dockerfile`, `network_mode`.

    Raises:
        EngineError: It failed; the message ends with the last lines.
    """

    def run() -> None:
        lines: list[str] = []
        with tempfile.TemporaryFile() as packed:
            pack(packed)
            packed.seek(0)
            options.update(fileobj=packed, custom_context=True, tag=tag, labels={LABEL_RECIPE: _recipe(tag)})
            for event in engine.client.build(rm=True, forcerm=True, decode=True, **options):
                lines = [*lines, str(event.get("stream") or "").rstrip()][-_ERROR_LINES:]
                if "error" in event:
                    raise EngineError(f"building {tag} failed: {event['error']}\n" + "\n".join(line for line in lines if line))

    await engine.call(f"building {tag} failed", run)
    image = await find(engine, tag)
    if image is None:
        raise EngineError(f"the engine built {tag} but does not have it; see the engine's log")
    return image


def pack_files(content: Mapping[str, bytes], into: IO[bytes]) -> None:
    """Write a build context from memory, with neutral owners and times: equal content has equal bytes, and caches hold."""
    with tarfile.open(fileobj=into, mode="w") as archive:
        for name in sorted(content):
            _add(archive, name, content[name])


def pack_directory(top: Path, into: IO[bytes], replaced: Mapping[str, bytes] | None = None) -> None:
    """Write the regular files below `top`, some with other content; links and special files are not sent.

    Raises:
        UsageError: It is larger than `CONTEXT_BYTES_MAX`.
    """
    replaced = replaced or {}
    size = 0
    with tarfile.open(fileobj=into, mode="w") as archive:
        for path in sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink()):
            name = path.relative_to(top).as_posix()
            if name in replaced:
                _add(archive, name, replaced[name])
                continue
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            size += entry.size
            if size > CONTEXT_BYTES_MAX:
                raise UsageError(f"the build context is larger than {CONTEXT_BYTES_MAX >> 20} MiB")
            with path.open("rb") as file:
                archive.addfile(entry, file)


def last_lines(output: bytes) -> str:
    """Return the end of a program's output, for an error message."""
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-_ERROR_LINES:])


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _recipe(tag: str) -> str:
    return tag.rpartition(":")[2]
