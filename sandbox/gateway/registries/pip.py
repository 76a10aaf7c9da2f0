"""A project's page of a Python index (PEP 503 and 691), read and written anew so that its files lead to us; no network."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from sandbox.gateway.registries.project import ALGORITHMS, PIP_FILE, BadDocument, Digest, Project, ProjectFile, digest_of

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.5, text/html;q=0.4"
FILES_MAX = 50_000
CONTENT_TYPE = "text/html; charset=utf-8"
_JSON = "application/vnd.pypi.simple.v1+json"
_PYTHON = re.compile(r"[0-9A-Za-z.,<>=!~* ]{1,200}", re.ASCII)


def read_page(data: bytes, content_type: str, url: str, name: str) -> Project:
    """Return the project a page describes; files of odd names or kinds are left out.

    Args:
        data: The page.
        content_type: Its media type, without parameters.
        url: Where it came from.
        name: The project, in normal form; the addresses in the new page hold it.

    Raises:
        BadDocument: It is neither form of page.
    """
    entries = _json_entries(data) if content_type == _JSON else _html_entries(data, url)
    files: dict[str, ProjectFile] = {}
    lines = []
    for number, entry in enumerate(entries):
        if number >= FILES_MAX:
            raise BadDocument(f"a page of more than {FILES_MAX} files")
        file = _file(entry, url)
        if file is None or file.name in files:
            continue
        files[file.name] = file
        if (metadata := _metadata_digest(entry)) is not None:
            files[f"{file.name}.metadata"] = ProjectFile(f"{file.name}.metadata", f"{file.url}.metadata", metadata)
        lines.append(_anchor(file, entry, metadata, name))
    head = '<!DOCTYPE html>\n<html><head><meta name="pypi:repository-version" content="1.0"></head><body>\n'
    return Project((head + "".join(lines) + "</body></html>\n").encode("utf-8", "replace"), CONTENT_TYPE, files)


def _file(entry: Mapping[str, Any], base: str) -> ProjectFile | None:
    name, address = entry.get("filename"), entry.get("url")
    if not isinstance(name, str) or not isinstance(address, str) or not PIP_FILE.fullmatch(name):
        return None
    try:
        return ProjectFile(name, urljoin(base, address), _best(entry.get("hashes")))
    except ValueError:  # no address at all, e.g. half an IPv6 one
        return None


def _best(hashes: object) -> Digest | None:
    if not isinstance(hashes, dict):
        return None
    found = (digest_of(each, hashes[each]) for each in ALGORITHMS if isinstance(hashes.get(each), str))
    return next((digest for digest in found if digest), None)


def _metadata_digest(entry: Mapping[str, Any]) -> Digest | None:
    """Return the digest of a wheel's metadata beside it (PEP 658); without one it is not offered."""
    return _best(entry.get("core-metadata", entry.get("dist-info-metadata")))


def _anchor(file: ProjectFile, entry: Mapping[str, Any], metadata: Digest | None, name: str) -> str:
    attributes = {"href": f"../../files/{name}/{file.name}"}
    if file.digest:
        attributes["href"] += f"#{file.digest.algorithm}={file.digest.hexadecimal}"
    python = entry.get("requires-python")
    if isinstance(python, str) and _PYTHON.fullmatch(python):
        attributes["data-requires-python"] = python
    if metadata:
        told = f"{metadata.algorithm}={metadata.hexadecimal}"
        attributes |= {"data-core-metadata": told, "data-dist-info-metadata": told}
    yanked = entry.get("yanked")
    if yanked is True or isinstance(yanked, str):  # an empty reason is one
        attributes["data-yanked"] = yanked[:200] if isinstance(yanked, str) else ""
    told = " ".join(f'{key}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<a {told}>{file.name}</a><br>\n"


def _json_entries(data: bytes) -> Iterator[Mapping[str, Any]]:
    try:
        files = json.loads(data)["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadDocument("not a page of an index") from error
    if not isinstance(files, list):
        raise BadDocument("not a page of an index")
    yield from (each for each in files if isinstance(each, dict))


def _html_entries(data: bytes, url: str) -> Iterator[Mapping[str, Any]]:
    page = _Page(url)
    page.feed(data.decode("utf-8", errors="replace"))
    yield from page.entries


class _Page(HTMLParser):
    """Takes the anchors of a page."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.entries: list[dict[str, Any]] = []
        self._base = url

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take one anchor, or the base of the following ones."""
        told = {name: value or "" for name, value in attrs}
        if tag == "base" and told.get("href"):
            with suppress(ValueError):
                self._base = urljoin(self._base, told["href"])
        if tag != "a" or not told.get("href"):
            return
        try:
            parts = urlsplit(urljoin(self._base, told["href"]))
        except ValueError:
            return
        entry: dict[str, Any] = {
            "filename": unquote(parts.path.rpartition("/")[2]),
            "url": parts._replace(fragment="").geturl(),
            "hashes": _pair(parts.fragment),
        }
        if "data-requires-python" in told:
            entry["requires-python"] = told["data-requires-python"]
        if "data-yanked" in told:
            entry["yanked"] = told["data-yanked"]
        entry["core-metadata"] = _pair(told.get("data-core-metadata") or told.get("data-dist-info-metadata") or "")
        self.entries.append(entry)


def _pair(text: str) -> dict[str, str]:
    algorithm, equals, value = text.partition("=")
    return {algorithm: value} if equals else {}
