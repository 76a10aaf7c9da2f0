"""Whether this host puts what was said in model calls into spans, and which secrets it takes out before; not how (`gateway/content`)."""

from collections.abc import Mapping

from sandbox.gateway.content import SWITCH, Capture, is_wanted
from sandbox.gateway.registries.source import PackageSource
from sandbox.gateway.upstream import Upstream
from sandbox.log import Log
from sandbox.scrub import Scrub, secrets_of

log = Log(__name__)


async def capture_of(environment: Mapping[str, str], upstream: Upstream | None, packages: PackageSource) -> Capture | None:
    """Return what makes the attributes if the host's operator opted in, None otherwise; it knows every secret of the host.

    Raises:
        ConfigError: The configuration of a package index makes no sense.
    """
    if not is_wanted(environment):
        return None
    log.warning("content.captured", f"{SWITCH} is set: prompts, answers and tool output go into traces")
    key = {upstream.credential} if upstream is not None else set()
    return Capture(Scrub(key | secrets_of(environment) | (await packages.indexes()).secrets))
