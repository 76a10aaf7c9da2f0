"""An executor tells what was said only if its operator asked for it, and knows the secrets it must not tell."""

import json
from pathlib import Path

from sandbox.executor.said import capture_of
from sandbox.gateway.content import SWITCH
from sandbox.gateway.registries.config import Places
from sandbox.gateway.registries.source import PackageSource, SourceSettings
from sandbox.gateway.upstream import Upstream

ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "plain-words-as-a-key",
    "PIP_INDEX_URL": "https://ada:index-password@pip.example/simple",
    "DEPLOY_TOKEN": "deploy-it-now",
}


async def test_nobody_asked(tmp_path: Path):
    """Whatever else is set."""
    async with PackageSource(SourceSettings(tmp_path), ENVIRONMENT, places=nowhere(tmp_path)) as packages:
        assert await capture_of(ENVIRONMENT, None, packages) is None


async def test_every_secret_of_the_host_is_known(tmp_path: Path):
    """The provider's key, what the environment calls secret, an index's credential as it is sent and as it was written."""
    environment = ENVIRONMENT | {SWITCH: "true", "HOME": str(tmp_path)}
    (tmp_path / ".npmrc").write_text("registry=https://npm.example/\n//npm.example/:_authToken=token-of-the-registry\n")
    places = Places(tmp_path, tmp_path / "root", tmp_path / "site")
    async with PackageSource(SourceSettings(tmp_path / "cache"), environment, places=places) as packages:
        capture = await capture_of(environment, Upstream.from_environment(environment), packages)
    assert capture is not None

    texts = ["plain-words-as-a-key", "deploy-it-now", "index-password", "token-of-the-registry", "YWRhOmluZGV4LXBhc3N3b3Jk"]
    found = capture.of({"messages": [{"role": "user", "content": text} for text in (*texts, "kept")]}, b"")

    said = [message["parts"][0]["content"] for message in json.loads(found["gen_ai.input.messages"])]
    assert said == [*["[secret]"] * len(texts), "kept"]


def nowhere(directory: Path) -> Places:
    return Places(directory / "home", directory / "root", directory / "site")
