"""The host's own pip and npm configuration, read as those tools read it."""

import base64
import os
from pathlib import Path

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.gateway.registries.config import FILE_BYTES_MAX, INDEXES_MAX, Indexes, Places, read_indexes


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Return places with nothing in them."""
    return Places(tmp_path / "home", tmp_path / "root", tmp_path / "site")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def urls(indexes: Indexes) -> list[str]:
    return [index.url for index in indexes.pip]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_host_that_configures_nothing_uses_the_tools_own(places: Places):
    """What pip and npm say of themselves; nothing, if they say nothing."""
    assert read_indexes({}, places) == Indexes()

    found = read_indexes({}, places, pip_default="https://p.example/simple", npm_default="https://n.example/")

    assert urls(found) == ["https://p.example/simple"]
    assert found.npm is not None
    assert found.npm.url == "https://n.example"


def test_pips_files_give_way_to_each_other_in_pips_order(places: Places):
    """System, person, environment of Andon, named file, variable; a section of `install` beats `global` of any file."""
    write(places.root / "etc/pip.conf", "[global]\nindex-url = https://system.example/s\n")
    assert urls(read_indexes({}, places)) == ["https://system.example/s"]
    write(places.home / ".config/pip/pip.conf", "[global]\nindex_url = https://person.example/s/\n")
    assert urls(read_indexes({}, places)) == ["https://person.example/s"]
    write(places.site / "pip.conf", "[global]\nindex-url = https://site.example/s\n")
    assert urls(read_indexes({}, places)) == ["https://site.example/s"]
    write(places.root / "etc/pip.conf", "[install]\nindex-url = https://install.example/s\n")
    assert urls(read_indexes({}, places)) == ["https://install.example/s"]
    assert urls(read_indexes({"PIP_INDEX_URL": "https://variable.example"}, places)) == ["https://variable.example"]
    assert urls(read_indexes({"PIP_CONFIG_FILE": os.devnull}, places)) == []


def test_extra_indexes_follow_the_first_one_and_each_is_there_once(places: Places):
    """Written on several lines, as pip's documentation does."""
    write(
        places.root / "etc/pip.conf",
        "[global]\nindex-url = https://a.example\nextra-index-url =\n    https://b.example\n    https://a.example\n",
    )

    assert urls(read_indexes({}, places)) == ["https://a.example", "https://b.example"]


def test_no_index_means_none(places: Places):
    """A host that installs from wheels alone has no index to offer."""
    assert urls(read_indexes({"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "https://a.example"}, places)) == []


@pytest.mark.parametrize("count", [INDEXES_MAX, INDEXES_MAX + 1])
def test_so_many_indexes_and_no_more(places: Places, count: int):
    """At the bound all are taken, beyond it the configuration is refused."""
    environment = {"PIP_INDEX_URL": "https://i0.example", "PIP_EXTRA_INDEX_URL": " ".join(f"https://i{n}.example" for n in range(1, count))}
    if count > INDEXES_MAX:
        with pytest.raises(ConfigError, match="at most 8"):
            read_indexes(environment, places)
    else:
        assert len(read_indexes(environment, places).pip) == count


def test_credentials_leave_the_address_and_become_a_header(places: Places):
    """From the address, from netrc; neither is in what is printed."""
    write(places.home / ".netrc", "machine n.example login ann password canary-2\n")
    environment = {"PIP_INDEX_URL": "https://us%40er:canary-1@a.example:8443/s", "PIP_EXTRA_INDEX_URL": "https://n.example"}

    first, second = read_indexes(environment, places).pip

    assert (first.url, first.authorization) == ("https://a.example:8443/s", basic("us@er:canary-1"))
    assert (second.url, second.authorization) == ("https://n.example", basic("ann:canary-2"))
    assert "canary" not in f"{first}{second}"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("//n.example/:_authToken=t1", "Bearer t1"),
        ("//n.example/npm/:_authToken=${TOKEN}", "Bearer from-environment"),
        ("//n.example/npm/:_authToken=${UNSET}", "Bearer ${UNSET}"),
        ("//n.example/:_auth=YTpi", "Basic YTpi"),
        (f"//n.example/:username=ann\n//n.example/:_password={base64.b64encode(b'pw').decode()}", basic("ann:pw")),
        ("//other.example/:_authToken=t1", ""),
        ("//n.example/npm/deeper/:_authToken=t1", ""),
        ("; //n.example/:_authToken=t1", ""),
    ],
)
def test_npms_credentials_are_those_of_the_place_the_registry_is_below(places: Places, lines: str, expected: str):
    """A token of another host, or of a deeper path, is not sent."""
    write(places.home / ".npmrc", f'registry = "https://n.example/npm/"\n{lines}\n')

    npm = read_indexes({"TOKEN": "from-environment"}, places).npm

    assert npm is not None
    assert (npm.url, npm.authorization) == ("https://n.example/npm", expected)


def test_npms_variable_beats_the_persons_file_which_beats_the_systems(places: Places):
    """In either case of letters; a scope's registry is taken along."""
    write(places.root / "etc/npmrc", "registry=https://system.example\n@corp:registry=https://corp.example/npm\n")
    write(places.home / ".npmrc", "registry=https://person.example\n")

    of_files = read_indexes({}, places)
    of_variable = read_indexes({"npm_config_registry": "https://v.example"}, places)

    assert of_files.npm is not None
    assert of_variable.npm is not None
    assert (of_files.npm.url, of_variable.npm.url) == ("https://person.example", "https://v.example")
    scoped = of_files.npm_of("@corp/x")
    assert scoped is not None
    assert scoped.url == "https://corp.example/npm"
    assert of_files.npm_of("@other/x") == of_files.npm


def test_each_tools_own_proxy_comes_before_the_general_one(places: Places):
    """And NO_PROXY counts for both."""
    environment = {"HTTPS_PROXY": "http://general:1", "NO_PROXY": "inner.example", "PIP_INDEX_URL": "https://a.example"}
    assert read_indexes(environment, places).pip[0].proxy == "http://general:1"
    assert read_indexes({**environment, "PIP_PROXY": "http://own:1"}, places).pip[0].proxy == "http://own:1"
    assert read_indexes({**environment, "PIP_INDEX_URL": "https://inner.example"}, places).pip[0].proxy is None


@pytest.mark.parametrize(
    "url", ["ftp://a.example", "https://", "https://a.example/?x=1", "https://a\0.example/", "https://a.example:x/", "nonsense"]
)
def test_an_address_that_is_none_is_refused_without_its_secret(places: Places, url: str):
    """The message names the tool, never what was written."""
    with pytest.raises(ConfigError) as refused:
        read_indexes({"PIP_INDEX_URL": url.replace("://", "://u:canary@")}, places)

    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("size", [FILE_BYTES_MAX, FILE_BYTES_MAX + 1])
def test_a_file_has_a_largest_size(places: Places, size: int):
    """At the bound it is read, beyond it is refused by its name."""
    write(places.home / ".npmrc", "registry=https://n.example\n".ljust(size, "#"))
    if size > FILE_BYTES_MAX:
        with pytest.raises(ConfigError, match="larger than"):
            read_indexes({}, places)
    else:
        assert read_indexes({}, places).npm is not None


def test_a_file_pip_could_not_read_either_is_named(places: Places):
    """So a person finds it."""
    write(places.root / "etc/pip.conf", "index-url = https://a.example\n")

    with pytest.raises(ConfigError, match=r"etc/pip\.conf is not in pip's format"):
        read_indexes({}, places)
