"""How a job may install packages: which routes its gateway gets, and how builds of images reach the same indexes (D10)."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sandbox.contract.errors import ConfigError
from sandbox.contract.job import JobSpec
from sandbox.gateway.registries.address import Network, networks_of
from sandbox.gateway.registries.config import Places, read_indexes
from sandbox.gateway.registries.proxy import FetchReport, RegistryRoutes
from sandbox.gateway.registries.source import CACHE_MIB, PackageSource, SourceSettings
from sandbox.runtime.image_build import BuildNetwork

PORT = 8486
"""Of the package routes on a sandbox's own 127.0.0.1."""
NETWORKS = "ANDON_REGISTRY_NETWORKS"
CACHE = "ANDON_REGISTRY_CACHE_MIB"
DIRECTORY = "packages"


def source_settings(state: Path, environment: Mapping[str, str]) -> SourceSettings:
    """Return where packages are kept and where indexes may be.

    Raises:
        ConfigError: A variable makes no sense.
    """
    return SourceSettings(state / DIRECTORY, _cache_mib(environment), _networks(environment))


def routes_for(source: PackageSource | None, job: JobSpec, on_fetch: Callable[[FetchReport], None]) -> RegistryRoutes:
    """Return the package routes of one attempt."""
    return RegistryRoutes(source, job.network, job.packages, base=f"http://127.0.0.1:{PORT}", on_fetch=on_fetch)


def build_network(environment: Mapping[str, str]) -> BuildNetwork:
    """Return how builds of images reach the network: as the environment says, and the host's pip and npm configuration.

    Raises:
        ConfigError: That configuration makes no sense.
    """
    found = read_indexes(environment, Places.of(environment))
    pip = [index.url for index in found.pip if not index.authorization]
    npm = found.npm.url if found.npm and not found.npm.authorization else ""
    mirrors = {"PIP_INDEX_URL": " ".join(pip[:1]), "PIP_EXTRA_INDEX_URL": " ".join(pip[1:]), "NPM_CONFIG_REGISTRY": npm}
    return BuildNetwork.from_environment(environment).with_mirrors(mirrors)


def _cache_mib(environment: Mapping[str, str]) -> int:
    text = environment.get(CACHE) or str(CACHE_MIB)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"{CACHE}={text!r} is not a number of MiB; 0 keeps nothing")
    return int(text)


def _networks(environment: Mapping[str, str]) -> tuple[Network, ...]:
    try:
        return networks_of(environment.get(NETWORKS) or "")
    except ValueError as error:
        raise ConfigError(f"{NETWORKS}: {error}; use e.g. 10.20.0.0/16,fd12::/16") from error
