"""What pip, uv and npm in a sandbox have to be told so that they ask us; no address but our own, no credential, ever."""

from sandbox.contract.packages import Network

WAIT_S = 300
"""A file comes when all of it is here and its digest was checked; until then the tool waits."""


def tool_environment(base: str, network: Network, pip_indexes: int) -> dict[str, str]:
    """Return the environment of tools and checks.

    Args:
        base: How the package routes are reached, e.g. `http://127.0.0.1:8486`.
        network: The stage's; `none` tells them nothing.
        pip_indexes: How many indexes pip's configuration on the host names.
    """
    if network == "none":
        return {}
    first, *others = [f"{base}/registry/pip/{number}/simple/" for number in range(max(1, pip_indexes))]
    extra = {"PIP_EXTRA_INDEX_URL": " ".join(others), "UV_INDEX": " ".join(others)} if others else {}
    return {
        "PIP_INDEX_URL": first,
        "PIP_DEFAULT_TIMEOUT": str(WAIT_S),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",  # the home directory is small
        "PIP_NO_INPUT": "1",
        "UV_DEFAULT_INDEX": first,
        "UV_HTTP_TIMEOUT": str(WAIT_S),
        "UV_NO_CACHE": "1",
        **extra,
        "NPM_CONFIG_REGISTRY": f"{base}/registry/npm/",
        "NPM_CONFIG_FETCH_TIMEOUT": str(WAIT_S * 1_000),
        "NPM_CONFIG_CACHE": "/tmp/npm-cache",  # noqa: S108 - inside the sandbox, which is one user's
        # A lock file of a public registry is followed to us, and one that is written holds no address of ours.
        "NPM_CONFIG_REPLACE_REGISTRY_HOST": "always",
        "NPM_CONFIG_OMIT_LOCKFILE_REGISTRY_RESOLVED": "true",
        "NPM_CONFIG_AUDIT": "false",
        "NPM_CONFIG_FUND": "false",
        "NPM_CONFIG_UPDATE_NOTIFIER": "false",
    }
