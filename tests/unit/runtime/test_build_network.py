"""What a build with a network is told of the host's."""

from pathlib import Path

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.executor.packages import CACHE, NETWORKS, build_network, source_settings
from sandbox.runtime.image_build import CERTIFICATES, BuildNetwork, declared


def test_mirrors_of_the_configuration_files_reach_a_build(tmp_path: Path):
    """As well as those of the environment, which come first."""
    (tmp_path / ".npmrc").write_text("registry=https://n.example/npm\n")
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://file.example/s\nextra-index-url = https://more.example/s\n"
    )
    home = {"HOME": str(tmp_path)}

    of_files = build_network(home).arguments
    of_both = build_network({**home, "PIP_INDEX_URL": "https://env.example/s", "HTTPS_PROXY": "http://p:1"}).arguments

    assert of_files == {
        "PIP_INDEX_URL": "https://file.example/s",
        "PIP_EXTRA_INDEX_URL": "https://more.example/s",
        "NPM_CONFIG_REGISTRY": "https://n.example/npm",
    }
    assert of_both == {**of_files, "PIP_INDEX_URL": "https://env.example/s", "HTTPS_PROXY": "http://p:1"}


def test_a_credential_of_a_mirror_never_reaches_a_build(tmp_path: Path):
    """An argument stands in the image's history; one of a proxy does not, so it may hold one."""
    (tmp_path / ".npmrc").write_text("registry=https://n.example/\n//n.example/:_authToken=canary\n")
    environment = {
        "HOME": str(tmp_path),
        "PIP_INDEX_URL": "https://u:canary@p.example/s",
        "GOPROXY": "https://u:canary@g.example",
        "HTTPS_PROXY": "http://u:pw@p:1",
    }

    assert build_network(environment).arguments == {"HTTPS_PROXY": "http://u:pw@p:1"}


def test_tools_with_certificates_of_their_own_are_told_of_the_systems():
    """Only where the host trusts others than the distribution does."""
    told = BuildNetwork.from_environment({"SSL_CERT_FILE": "/x.pem"}).arguments

    assert told == {"PIP_CERT": CERTIFICATES, "NODE_EXTRA_CA_CERTS": CERTIFICATES}
    assert BuildNetwork.from_environment({}).arguments == {}


def test_every_stage_declares_the_arguments_and_nothing_else_changes():
    """Proxies need no declaration; a FROM within another instruction or a comment is no stage."""
    network = BuildNetwork({"PIP_INDEX_URL": "https://a", "NPM_CONFIG_REGISTRY": "https://n", "https_proxy": "http://p"})
    ours = b"ARG NPM_CONFIG_REGISTRY\nARG PIP_INDEX_URL\n"
    text = b'# FROM x\nfrom a AS one\nRUN psql -c "SELECT 1 \\\n# a comment\nFROM x"\nFROM b'

    assert declared(text, network) == (
        b"# FROM x\nfrom a AS one\n" + ours + b'RUN psql -c "SELECT 1 \\\n# a comment\nFROM x"\nFROM b\n' + ours
    )
    assert declared(text, BuildNetwork()) == text


@pytest.mark.parametrize(("name", "value"), [(CACHE, "much"), (CACHE, "-1"), (NETWORKS, "10.0.0.0/99"), (NETWORKS, "mirror.example")])
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, name: str, value: str):
    """Before an executor joins."""
    with pytest.raises(ConfigError, match=name):
        source_settings(tmp_path, {name: value})


def test_settings_have_defaults(tmp_path: Path):
    """Nothing that is not global, and a GiB."""
    plain = source_settings(tmp_path, {})
    told = source_settings(tmp_path, {NETWORKS: "10.20.0.0/16, fd12::/16", CACHE: "0"})

    assert (plain.permitted, plain.cache_mib, plain.directory) == ((), 1024, tmp_path / "packages")
    assert ([str(each) for each in told.permitted], told.cache_mib) == (["10.20.0.0/16", "fd12::/16"], 0)
