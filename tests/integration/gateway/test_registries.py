"""The package routes of a gateway before an index that does what a test says, and what nobody gets through them."""

import asyncio
import base64
import hashlib
import io
import ipaddress
import json
import os
import socket
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from sandbox.contract.packages import Packages
from sandbox.gateway.registries import proxy, source
from sandbox.gateway.registries.address import AddressRefused, is_permitted, networks_of, permitted_address
from sandbox.gateway.registries.config import Index, Places
from sandbox.gateway.registries.fetch import Fetcher, Unavailable, headers_for
from sandbox.inside.loopback import forwarding
from tests.fakes.gateway import wait_until
from tests.fakes.package_index import HERE, Answer, OddIndex, an_index, packaged

SIX = b"a wheel"
SIX_FILE = "six-1.0-py3-none-any.whl"
SIMPLE = "/registry/pip/0/simple/six/"
FILE = f"/registry/pip/0/files/six/{SIX_FILE}"


def pip_of(index: OddIndex, **more: str) -> dict[str, str]:
    return {"PIP_INDEX_URL": f"{index.url}/simple", **more}


def offer_six(index: OddIndex, digest: str = "") -> None:
    digest = digest or hashlib.sha256(SIX).hexdigest()
    index.answers["/simple/six/"] = Answer(f'<a href="/files/{SIX_FILE}#sha256={digest}">x</a>'.encode())
    index.answers[f"/files/{SIX_FILE}"] = Answer(SIX, "application/octet-stream")


def rule_of(body: bytes) -> str:
    return str(json.loads(body)["rule"])


async def test_a_page_is_made_anew_and_its_files_come_through_us(tmp_path: Path):
    """No address of the index is told; the file is fetched from where the index says, once, and then kept."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)

        status, page = await it.get(SIMPLE)
        first = await it.get(FILE)
        second = await it.get(FILE)

        assert status == 200
        assert f'href="../../files/six/{SIX_FILE}#sha256={hashlib.sha256(SIX).hexdigest()}"' in page.decode()
        assert index.url.encode() not in page
        assert first == second == (200, SIX)
        assert index.paths == ["/simple/six/", f"/files/{SIX_FILE}"]
        assert it.routes.fetched.files == (f"pip {SIX_FILE}",)
        assert [report.is_cached for report in it.reports] == [False, False, True]


async def test_head_tells_the_size_and_sends_nothing(tmp_path: Path):
    """GET's companion, which uv asks first."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)

        raw = await it.gateway.raw(f"HEAD {FILE} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n".encode())

        assert raw.startswith(b"HTTP/1.1 200")
        assert f"content-length: {len(SIX)}".encode() in raw.lower()
        assert raw.endswith(b"\r\n\r\n")


async def test_a_stage_without_a_network_is_told_which_rule_it_met(tmp_path: Path):
    """403 with the rule, and no index is asked."""
    async with an_index() as index, packaged(tmp_path, pip_of(index), network="none") as it:
        status, body = await it.get(SIMPLE)

        assert (status, rule_of(body)) == (403, "network")
        assert index.asked == []
        assert "network: none" in it.routes.fetched.refused[0]
        assert await it.routes.environment() == {}


async def test_only_listed_names_are_fetched_in_an_allowlist(tmp_path: Path):
    """The page and the files of another project are refused alike; the listed one is served."""
    async with an_index() as index, packaged(tmp_path, pip_of(index), network="allowlist", packages=Packages(pip=("six",))) as it:
        offer_six(index)

        assert (await it.get(SIMPLE))[0] == 200
        for target in ("/registry/pip/0/simple/attrs/", "/registry/pip/0/files/attrs/attrs-1-py3-none-any.whl", "/registry/npm/six"):
            status, body = await it.get(target)
            assert (status, rule_of(body)) == (403, "packages"), target
        assert index.paths == ["/simple/six/"]


@pytest.mark.abuse("W13")
@pytest.mark.parametrize("line", ["CONNECT 169.254.169.254:80", "CONNECT /registry/pip/0/simple/six/", "GET http://169.254.169.254/latest"])
async def test_there_is_no_generic_proxy(tmp_path: Path, line: str):
    """CONNECT is 405 or a refused method, an absolute form is no route; a plain GET of a project is served."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)

        answer = await it.gateway.raw(f"{line} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n".encode())

        assert int(answer.split(b" ", 2)[1]) in {403, 404, 405}
        assert index.asked == []
        assert (await it.get(SIMPLE))[0] == 200


@pytest.mark.abuse("W13")
async def test_control_a_generic_proxy_goes_wherever_it_is_told():
    """What the rows are about: before a proxy that takes CONNECT, the client names the host."""
    async with an_index() as index:
        index.answers["/secret"] = Answer(b"inner")
        inner = index.url.removeprefix("http://")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].split(b":")
            far_reader, far_writer = await asyncio.open_connection(host.decode(), int(port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            far_writer.write(await reader.readuntil(b"\r\n\r\n"))
            writer.write(await far_reader.read())
            far_writer.close()
            writer.close()

        async with await asyncio.start_server(relay, "127.0.0.1", 0) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
            writer.write(f"CONNECT {inner} HTTP/1.1\r\n\r\n".encode() + b"GET /secret HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()

        assert answer.endswith(b"inner")


ODD_ADDRESSES = [
    "127.0.0.1", "10.1.2.3", "169.254.169.254", "168.63.129.16", "224.0.0.1", "192.0.0.8", "100.64.0.1", "::1", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "fe80::1", "fd00::1", "ff02::1", "2001:0:7f00:1::1",
]  # fmt: skip


@pytest.mark.abuse("W14")
@pytest.mark.parametrize("address", ODD_ADDRESSES)
async def test_an_address_that_is_not_global_is_refused(address: str):
    """However it is written; one the operator permits is taken, so is a global one."""
    with pytest.raises(AddressRefused, match="not a global address"):
        await permitted_address(address, 443, ())

    assert await permitted_address("1.1.1.1", 443, ()) == "1.1.1.1"
    assert await permitted_address("10.1.2.3", 443, networks_of("10.0.0.0/8")) == "10.1.2.3"


@pytest.mark.abuse("W14")
@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
async def test_an_address_written_oddly_is_refused_wherever_it_leads(host: str):
    """Also where the operator permits the place. Positive control: the C library takes every one of them for 127.0.0.1."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 80, type=socket.SOCK_STREAM)
    assert {entry[4][0] for entry in found} == {"127.0.0.1"}

    with pytest.raises(AddressRefused, match="as it is written today"):
        await permitted_address(host, 443, HERE)


@pytest.mark.abuse("W14")
async def test_a_name_for_an_inner_address_is_refused():
    """What it resolves to decides; permitted, it is taken."""
    with pytest.raises(AddressRefused, match="not a global address"):
        await permitted_address("localhost", 443, ())

    assert await permitted_address("localhost", 443, HERE) == "127.0.0.1"


@pytest.mark.abuse("W14")
def test_control_python_calls_some_inner_addresses_global():
    """So `is_global` alone would let them through."""
    told = {text: ipaddress.ip_address(text).is_global for text in ("64:ff9b::a9fe:a9fe", "168.63.129.16", "224.0.0.1")}

    assert any(told.values())
    assert not any(is_permitted(ipaddress.ip_address(text), ()) for text in told)


@pytest.mark.abuse("W14")
async def test_the_connection_goes_to_the_address_that_was_judged(tmp_path: Path):
    """A second answer of the DNS changes nothing: the request is made to an address, with the name in its header."""
    async with an_index() as index, packaged(tmp_path, {"PIP_INDEX_URL": f"{index.url.replace('127.0.0.1', 'localhost')}/simple"}) as it:
        offer_six(index)

        assert (await it.get(SIMPLE))[0] == 200
        assert index.asked[0][2]["host"] == index.url.removeprefix("http://").replace("127.0.0.1", "localhost")


@pytest.mark.abuse("W15")
@pytest.mark.parametrize(
    "host", ["registry.example\0.evil.example", "evil%00.registry.example", "registry.example@evil.example", "①②⑦.⓪.⓪.①"]
)
async def test_a_page_cannot_send_us_to_a_host_written_to_deceive(tmp_path: Path, host: str):
    """What an index gives as a file's place is judged as an address, never as a string that ends well."""
    async with an_index() as index, packaged(tmp_path, pip_of(index), permitted=HERE) as it:
        index.answers["/simple/six/"] = Answer(
            json.dumps({"files": [{"filename": SIX_FILE, "url": f"https://{host}/{SIX_FILE}", "hashes": {}}]}).encode(),
            "application/vnd.pypi.simple.v1+json",
        )

        status, body = await it.get(FILE)

        assert (status, rule_of(body)) == (403, "addresses")


@pytest.mark.abuse("W15")
async def test_a_credential_goes_to_the_very_origin_it_is_for_and_never_inside(tmp_path: Path):
    """A host, or a port, that only resembles the index gets none; the sandbox sees it nowhere."""
    async with an_index() as index, an_index() as other:
        offer_six(index)
        index.answers["/simple/six/"] = Answer(f'<a href="{other.url}/files/{SIX_FILE}">x</a><a href="/files/y-1.zip">y</a>'.encode())
        index.answers["/files/y-1.zip"] = Answer(b"y")
        url = index.url.replace("http://", "http://reader:canary-7f3a@")
        async with packaged(tmp_path, {"PIP_INDEX_URL": f"{url}/simple"}) as it:
            _, page = await it.get(SIMPLE)
            elsewhere, body = await it.get(FILE)
            at_index = await it.get("/registry/pip/0/files/six/y-1.zip")
            environment = await it.routes.environment()

        expected = "Basic " + base64.b64encode(b"reader:canary-7f3a").decode()
        assert [headers.get("authorization") for _, _, headers in index.asked] == [expected, expected]
        assert (elsewhere, at_index) == (403, (200, b"y"))  # another origin without TLS is not even asked
        assert other.asked == []
        assert "canary" not in f"{page!r}{body!r}{environment}{it.routes.fetched}{it.reports}"


@pytest.mark.abuse("W15")
@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("https://r.example/files/x", True),
        ("https://r.example:443/", True),
        ("https://r.example:8443/", False),
        ("http://r.example/", False),
        ("https://evilr.example/", False),
        ("https://r.example.evil.example/", False),
    ],
)
def test_only_the_same_scheme_host_and_port_get_the_credential(url: str, is_sent: bool):
    """A port that is the scheme's own may be written or not."""
    headers = dict(headers_for(Index("pip", "https://r.example/simple", "Bearer canary"), urlsplit(url), "*/*"))

    assert ("authorization" in headers) is is_sent


@pytest.mark.abuse("W15")
def test_control_a_string_that_ends_well_deceives():
    """The naive allow-list takes both hosts the row names."""
    assert "evilregistry.example".endswith("registry.example")
    assert "evil\0.registry.example".endswith("registry.example")


@pytest.mark.abuse("W16")
@pytest.mark.parametrize(
    ("method", "target", "rule"),
    [
        ("POST", "/registry/pip/0/legacy/", "methods"),
        ("POST", SIMPLE, "methods"),
        ("PUT", "/registry/npm/left-pad", "methods"),
        ("PUT", "/registry/npm/-/user/org.couchdb.user:x", "methods"),
        ("DELETE", FILE, "methods"),
        ("GET", "/registry/pip/0/simple/", "routes"),
        ("GET", "/registry/npm/-/v1/search?text=secret", "routes"),
        ("GET", f"{SIMPLE}?secret=1", "routes"),
        ("GET", "/registry/pip/0/simple/../../x/", "routes"),
        ("GET", "/registry/pip/0/simple/%2e%2e/", "names"),
        ("GET", "/registry/pip/0/simple/Six/", "names"),
        ("GET", f"/registry/pip/0/simple/{'a' * 101}/", "names"),
        ("GET", "/registry/npm/%2e%2e%2fx", "routes"),
        ("GET", "/registry/pip/7/simple/six/", "indexes"),
        ("GET", "/registry/npm/left-pad", "indexes"),
    ],
)
async def test_an_index_is_no_way_out(tmp_path: Path, method: str, target: str, rule: str):
    """Reading, of names in normal form, and nothing else; each refusal names its rule and reaches no index."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        status, body = await it.get(target, method)

        assert (status, rule_of(body)) == (403, rule)
        assert index.asked == []
        assert it.reports[0].rule == rule


@pytest.mark.abuse("W16")
async def test_a_name_of_a_hundred_characters_is_still_one(tmp_path: Path):
    """The bound's inner edge: the index is asked, and has none."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        assert (await it.get(f"/registry/pip/0/simple/{'a' * 100}/"))[0] == 404
        assert len(index.asked) == 1


@pytest.mark.abuse("W16")
async def test_messages_in_the_shape_of_names_end_soon(tmp_path: Path):
    """So many guesses are answered, then nothing is any more, not even what the index has; all are in the record."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)
        told = [await it.get(f"/registry/pip/0/simple/secret-{number}/") for number in range(proxy.UNKNOWN_MAX + 1)]

        assert [status for status, _ in told] == [404] * proxy.UNKNOWN_MAX + [403]
        assert rule_of((await it.get(SIMPLE))[1]) == "bounds"
        assert any("bounds" in line for line in it.routes.fetched.refused)


@pytest.mark.abuse("W16")
async def test_control_without_the_proxy_the_index_gets_whatever_is_posted():
    """A client that reaches an index itself uploads to it."""
    async with an_index() as index, httpx2.AsyncClient() as client:
        index.answers["/legacy/"] = Answer(b"taken")

        answer = await client.post(f"{index.url}/legacy/", content=b"the secret")

        assert (answer.content, index.asked[0][0]) == (b"taken", "POST")


@pytest.mark.abuse("W17")
@pytest.mark.parametrize(
    "where", ["http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/", "https://10.0.0.1/x", "file:///etc/passwd"]
)
async def test_a_redirect_to_an_inner_address_is_not_followed(tmp_path: Path, where: str):
    """Each hop is judged like the first address."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        index.answers["/simple/six/"] = Answer(status=302, headers={"location": where})

        status, body = await it.get(SIMPLE)

        assert (status, rule_of(body)) == (403, "addresses")


@pytest.mark.abuse("W17")
async def test_redirects_at_the_index_itself_are_followed_three_times(tmp_path: Path):
    """Three are followed, four are too many."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)
        for number in range(1, 5):
            target = "/simple/six/" if number == 1 else f"/simple/r{number - 1}/"
            index.answers[f"/simple/r{number}/"] = Answer(status=302, headers={"location": target})

        assert (await it.get("/registry/pip/0/simple/r3/"))[0] == 200
        assert (await it.get("/registry/pip/0/simple/r4/"))[0] == 502


@pytest.mark.abuse("W17")
async def test_control_a_client_that_follows_redirects_goes_inside():
    """The same answer leads a plain client to the inner address."""
    async with an_index() as index, an_index() as inner, httpx2.AsyncClient(follow_redirects=True) as client:
        inner.answers["/secret"] = Answer(b"inner")
        index.answers["/simple/six/"] = Answer(status=302, headers={"location": f"{inner.url}/secret"})

        assert (await client.get(f"{index.url}/simple/six/")).content == b"inner"


async def test_a_file_that_is_not_the_one_the_index_names_is_neither_given_nor_kept(tmp_path: Path):
    """Its digest decides, before a byte reaches the sandbox."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index, digest="0" * 64)

        status, body = await it.get(FILE)

        assert status == 502
        assert b"digest" in body
        assert [path for path in (tmp_path / "cache").iterdir() if path.is_file()] == []


@pytest.mark.parametrize(("size", "status"), [(source.FILE_BYTES_MAX, 200), (source.FILE_BYTES_MAX + 1, 502)])
async def test_a_file_has_a_largest_size(tmp_path: Path, size: int, status: int):
    """At the bound it is given, one byte beyond it is not."""
    data = bytes(size)
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        index.answers["/simple/six/"] = Answer(f'<a href="/{SIX_FILE}">x</a>'.encode())
        index.answers[f"/{SIX_FILE}"] = Answer(data)

        reader, writer = await asyncio.open_unix_connection(str(it.gateway.socket))
        writer.write(f"HEAD {FILE} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()

        assert int(answer.split(b" ", 2)[1]) == status


async def test_two_who_want_the_same_file_fetch_it_once(tmp_path: Path):
    """The second one waits for the first."""
    async with an_index() as index, packaged(tmp_path, pip_of(index)) as it:
        offer_six(index)

        answers = await asyncio.gather(*(it.get(FILE) for _ in range(6)))

        assert answers == [(200, SIX)] * 6
        assert sorted(index.paths) == [f"/files/{SIX_FILE}", "/simple/six/"]


async def test_an_index_that_hangs_does_not_hold_the_end_of_an_attempt(tmp_path: Path):
    """What is being fetched is dropped when the session ends."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    asked = asyncio.Event()
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as silent:
        url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        loop = asyncio.get_running_loop()
        async with packaged(tmp_path, {"PIP_INDEX_URL": url}) as it:
            waiting = asyncio.create_task(it.gateway.get(SIMPLE))
            await asyncio.wait_for(asked.wait(), 10)
            began = loop.time()
        assert loop.time() - began < 3
        await waiting
    await wait_until(lambda: it.reports != [], "the request is told")


async def test_npm_is_told_of_one_registry_ours_and_scopes_go_to_theirs(tmp_path: Path):
    """The document is made anew, a scope's registry and token are the host's, a file comes from where the document says."""
    tarball = b"a tarball"
    async with an_index() as index, an_index() as scoped:
        for place, name, file in ((index, "left-pad", "left-pad-1.0.0.tgz"), (scoped, "@corp/x", "x-1.0.0.tgz")):
            dist = {"tarball": f"{place.url}/{name}/-/{file}", "integrity": sri(tarball), "signatures": ["dropped"]}
            document = {
                "name": name,
                "dist-tags": {"latest": "1.0.0"},
                "versions": {"1.0.0": {"name": name, "version": "1.0.0", "dist": dist}},
            }
            place.answers[f"/{name.replace('/', '%2f')}"] = Answer(json.dumps(document).encode(), "application/json")
            place.answers[f"/{name}/-/{file}"] = Answer(tarball)
        host = scoped.url.removeprefix("http:")
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".npmrc").write_text(f"@corp:registry={scoped.url}\n{host}/:_authToken=${{TOKEN}}\n")
        async with packaged(tmp_path, {"NPM_CONFIG_REGISTRY": index.url, "TOKEN": "canary-7f3a"}) as it:
            _, plain = await it.get("/registry/npm/left-pad")
            _, corp = await it.get("/registry/npm/@corp%2fx")
            files = [await it.get(path) for path in ("/registry/npm/left-pad/-/left-pad-1.0.0.tgz", "/registry/npm/@corp/x/-/x-1.0.0.tgz")]

        assert files == [(200, tarball)] * 2
        dist = json.loads(corp)["versions"]["1.0.0"]["dist"]
        assert dist == {"integrity": sri(tarball), "tarball": "http://127.0.0.1:8486/registry/npm/@corp/x/-/x-1.0.0.tgz"}
        assert index.url.encode() not in plain
        assert {headers.get("authorization") for _, _, headers in scoped.asked} == {"Bearer canary-7f3a"}
        assert {headers.get("authorization") for _, _, headers in index.asked} == {None}
        assert b"canary" not in plain + corp


def sri(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


async def test_certificates_are_checked_against_the_name_not_the_address(tmp_path: Path):
    """TLS to the judged address still asks for the host's own name; one nobody vouches for is refused."""
    async with Fetcher(HERE) as fetcher, an_index() as index:
        url = index.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(Unavailable, match="cannot be reached"):
            async with fetcher.get(Index("pip", url), f"{url}/x", "*/*"):
                pass


async def test_real_pip_installs_through_the_forwarder(tmp_path: Path):
    """From the odd index, by the environment a sandbox gets, on a port of its own."""
    wheel = a_wheel("six", "1.0")
    async with an_index() as index:
        index.answers["/simple/six/"] = Answer(f'<a href="/f/{SIX_FILE}#sha256={hashlib.sha256(wheel).hexdigest()}">x</a>'.encode())
        index.answers[f"/f/{SIX_FILE}"] = Answer(wheel)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with packaged(tmp_path, pip_of(index), base=f"http://127.0.0.1:{port}") as it:
            with forwarding(it.gateway.socket, port):
                environment = {
                    "PATH": os.environ["PATH"],
                    "HOME": str(tmp_path),
                    "PIP_CONFIG_FILE": os.devnull,
                    **await it.routes.environment(),
                }
                command = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "t"), "six")
                process = await asyncio.create_subprocess_exec(*command, env=environment)
                assert await asyncio.wait_for(process.wait(), 60) == 0

        assert (tmp_path / "t" / "six.py").read_bytes() == b"x = 1\n"


def a_wheel(name: str, version: str) -> bytes:
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": b"x = 1\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return packed.getvalue()


def test_places_are_the_persons_own(tmp_path: Path):
    """HOME of the executor's environment, not of whoever runs the tests."""
    assert Places.of({"HOME": str(tmp_path)}).home == tmp_path
