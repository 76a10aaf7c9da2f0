"""Pages of indexes and documents of registries, read and made anew."""

import base64
import hashlib
import json
from typing import Any

import pytest

from sandbox.gateway.registries.npm import read_packument
from sandbox.gateway.registries.pip import read_page
from sandbox.gateway.registries.project import BadDocument, Digest

URL = "https://i.example/simple/six/"
JSON = "application/vnd.pypi.simple.v1+json"
SHA = "a" * 64


def page_of(*files: dict[str, Any]) -> bytes:
    return json.dumps({"files": list(files)}).encode()


def a_file(name: str = "six-1.0.tar.gz", **more: Any) -> dict[str, Any]:
    return {"filename": name, "url": f"https://f.example/{name}", "hashes": {"sha256": SHA}, **more}


def test_both_forms_of_a_page_give_the_same():
    """JSON (PEP 691) and HTML (PEP 503): files, digests, what they need, what was withdrawn."""
    about: dict[str, Any] = {"requires-python": ">=3.8", "yanked": "broken <b>", "core-metadata": {"sha256": "b" * 64}}
    as_json = page_of(a_file(**about))
    as_html = (
        f'<html><a href="https://f.example/six-1.0.tar.gz#sha256={SHA}" data-requires-python="&gt;=3.8" data-yanked="broken &lt;b&gt;" '
        f'data-core-metadata="sha256={"b" * 64}">six-1.0.tar.gz</a></html>'
    ).encode()

    first, second = read_page(as_json, JSON, URL, "six"), read_page(as_html, "text/html", URL, "six")

    assert first == second
    assert b'data-requires-python="&gt;=3.8"' in first.document
    assert b'data-yanked="broken &lt;b&gt;"' in first.document
    assert first.files["six-1.0.tar.gz.metadata"].url == "https://f.example/six-1.0.tar.gz.metadata"


def test_an_address_is_relative_to_the_page_or_its_base():
    """As a browser would take it."""
    assert (
        read_page(b'<a href="../../f/six-1.zip">x</a>', "text/html", URL, "six").files["six-1.zip"].url == "https://i.example/f/six-1.zip"
    )
    based = b'<base href="https://b.example/x/"><a href="six-1.zip">x</a>'
    assert read_page(based, "text/html", URL, "six").files["six-1.zip"].url == "https://b.example/x/six-1.zip"


@pytest.mark.parametrize("name", ["../six-1.zip", "six.exe", "six 1.zip", '"><script>.zip', "", "x" * 260 + ".zip", "-six.zip"])
def test_a_file_of_an_odd_name_is_left_out(name: str):
    """It is neither listed nor served; the one beside it is."""
    project = read_page(page_of(a_file(name), a_file()), JSON, URL, "six")

    assert list(project.files) == ["six-1.0.tar.gz"]
    assert b"script" not in project.document


@pytest.mark.parametrize("data", [b"", b"[]", b'{"files": 1}', b"[" * 100_000, b'{"files": {"a": 1}}'])
def test_what_is_no_page_is_refused(data: bytes):
    """Whatever its media type promised."""
    with pytest.raises(BadDocument):
        read_page(data, JSON, URL, "six")


@pytest.mark.parametrize("hashes", [{"md5": "a" * 32}, {"sha256": "zz"}, {"sha256": 5}, [], None])
def test_a_digest_that_is_none_counts_as_none(hashes: object):
    """The file is still served, and never kept."""
    assert read_page(page_of(a_file(hashes=hashes)), JSON, URL, "six").files["six-1.0.tar.gz"].digest is None


def a_document(**dist: Any) -> dict[str, Any]:
    version = {
        "name": "x",
        "version": "1.0.0",
        "scripts": {"install": "x"},
        "dependencies": {"y": "1"},
        "dist": {"tarball": "https://n.example/x-1.0.0.tgz", **dist},
    }
    return {"name": "x", "dist-tags": {"latest": "1.0.0", "gone": "9"}, "versions": {"1.0.0": version}, "readme": "long", "maintainers": []}


def test_a_document_keeps_what_an_installation_needs_and_leads_to_us():
    """Its file's address is ours, the tag of a version that is not there goes."""
    project = read_packument(json.dumps(a_document(shasum="c" * 40)).encode(), "x", "http://127.0.0.1:8486/registry/npm/")

    told = json.loads(project.document)
    assert told["versions"]["1.0.0"]["dist"] == {"shasum": "c" * 40, "tarball": "http://127.0.0.1:8486/registry/npm/x/-/x-1.0.0.tgz"}
    assert told["versions"]["1.0.0"]["dependencies"] == {"y": "1"}
    assert told["dist-tags"] == {"latest": "1.0.0"}
    assert "readme" not in told
    assert project.files["x-1.0.0.tgz"].digest == Digest("sha1", "c" * 40)


def test_the_strongest_digest_counts():
    """Of `integrity` and `shasum`; a broken one does not."""
    strong = base64.b64encode(hashlib.sha512(b"x").digest()).decode()

    def digest(**dist: Any) -> Digest | None:
        return read_packument(json.dumps(a_document(**dist)).encode(), "x", "b/").files["x-1.0.0.tgz"].digest

    assert digest(integrity=f"sha1-AAAA sha512-{strong}", shasum="c" * 40) == Digest("sha512", hashlib.sha512(b"x").hexdigest())
    assert digest(integrity="sha512-!!", shasum="c" * 40) == Digest("sha1", "c" * 40)
    assert digest(integrity=7) is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", json.dumps({"name": "y", "versions": {}}).encode(), b'{"name": "x", "versions": []}', b"[" * 100_000]
)
def test_what_is_no_document_of_the_package_is_refused(data: bytes):
    """Also the document of another package."""
    with pytest.raises(BadDocument):
        read_packument(data, "x", "b/")


@pytest.mark.parametrize(
    "tarball", ["https://n.example/a/../", "https://n.example/x.exe", 5, "https://n.example/%2e%2e%2f.tgz", "http://[::1"]
)
def test_a_version_whose_file_has_an_odd_name_is_left_out(tarball: object):
    """npm does not hear of it."""
    assert json.loads(read_packument(json.dumps(a_document(tarball=tarball)).encode(), "x", "b/").document)["versions"] == {}
