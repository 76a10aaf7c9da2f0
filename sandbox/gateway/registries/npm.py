"""What an npm registry says of a package, read and written anew so that its files lead to us; no network."""

import base64
import binascii
import json
from typing import Any
from urllib.parse import unquote, urlsplit

from sandbox.gateway.registries.project import ALGORITHMS, NPM_FILE, BadDocument, Digest, Project, ProjectFile, digest_of

ACCEPT = "application/vnd.npm.install-v1+json, application/json;q=0.5"
CONTENT_TYPE = "application/vnd.npm.install-v1+json"
VERSIONS_MAX = 50_000

_OF_VERSION = (
    "name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
    "bundledDependencies", "peerDependencies", "peerDependenciesMeta", "bin", "directories", "engines", "os", "cpu", "libc", "funding",
    "hasInstallScript", "_hasShrinkwrap",
)  # fmt: skip
_OF_DIST = ("shasum", "integrity", "fileCount", "unpackedSize")


def read_packument(data: bytes, name: str, base: str) -> Project:
    """Return the package a document describes; a version whose file has an odd name is left out.

    Args:
        data: The registry's document, whole or abbreviated.
        name: The package.
        base: Our own address of the registry, with a slash at its end.

    Raises:
        BadDocument: It is none, or of another package.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDocument("not a document of a registry") from error
    if not isinstance(document, dict) or document.get("name") != name or not isinstance(document.get("versions"), dict):
        raise BadDocument("not a document of this package")
    if len(document["versions"]) > VERSIONS_MAX:
        raise BadDocument(f"a document of more than {VERSIONS_MAX} versions")
    files: dict[str, ProjectFile] = {}
    versions = {}
    for number, version in document["versions"].items():
        file = _file(version)
        if file is None:
            continue
        files.setdefault(file.name, file)
        kept = {key: version[key] for key in _OF_VERSION if key in version}
        dist = {key: version["dist"][key] for key in _OF_DIST if key in version["dist"]}
        versions[number] = kept | {"dist": dist | {"tarball": f"{base}{name}/-/{file.name}"}}
    tags = document.get("dist-tags")
    known = tags.items() if isinstance(tags, dict) else ()
    kept_tags = {tag: number for tag, number in known if isinstance(number, str) and number in versions}
    told = {"name": name, "modified": document.get("modified"), "dist-tags": kept_tags, "versions": versions}
    return Project(json.dumps(told, separators=(",", ":")).encode(), CONTENT_TYPE, files)


def _file(version: object) -> ProjectFile | None:
    dist = version.get("dist") if isinstance(version, dict) else None
    address = dist.get("tarball") if isinstance(dist, dict) else None
    if not isinstance(dist, dict) or not isinstance(address, str):
        return None
    try:
        name = unquote(urlsplit(address).path.rpartition("/")[2])
    except ValueError:
        return None
    return ProjectFile(name, address, _digest(dist)) if NPM_FILE.fullmatch(name) else None


def _digest(dist: dict[str, Any]) -> Digest | None:
    """Return the strongest digest: of `integrity` (Subresource Integrity), else `shasum`."""
    found: dict[str, Digest] = {}
    integrity = dist.get("integrity")
    for each in integrity.split() if isinstance(integrity, str) else ():
        algorithm, _, value = each.partition("-")
        try:
            digest = digest_of(algorithm, base64.b64decode(value.partition("?")[0], validate=True).hex())
        except (binascii.Error, ValueError):
            continue
        if digest:
            found[algorithm] = digest
    shasum = dist.get("shasum")
    if isinstance(shasum, str) and (digest := digest_of("sha1", shasum)):
        found.setdefault("sha1", digest)
    return next((found[each] for each in ALGORITHMS if each in found), None)
