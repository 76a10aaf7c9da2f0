"""Images of ours that no job of this version would run in; not when it is safe to remove them (`bootstrap/gc`).

Ours is what carries a tag of our builder, `andon/NAME:<hash>`, and that hash as its label: an image somebody else tagged so, or
built on ours, is not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sandbox.contract.model import Frozen
from sandbox.runtime.engine import Engine
from sandbox.runtime.image_build import LABEL_RECIPE
from sandbox.runtime.images import AGENT, LIBRARIES, REPOSITORY, agent_image_key, libraries_image_key

_TAG = re.compile(rf"(?P<name>{AGENT}|{AGENT}-trusting|{LIBRARIES}|{REPOSITORY}):(?P<key>[0-9a-f]{{24}})")


class Superseded(Frozen):
    """One tag."""

    tag: str
    image_id: str
    own_bytes: int
    """What no other image shares: at least so much is freed."""


async def superseded(engine: Engine) -> list[Superseded]:
    """Return the images of ours of other versions that no container uses, running or not.

    Raises:
        EngineError: The engine does not answer.
    """
    usage = await engine.call("cannot list images", engine.client.df)
    images = usage.get("Images") or []
    containers = await engine.call("cannot list containers", partial(engine.client.containers, all=True))
    used = {str(container["ImageID"]) for container in containers}
    current = [await _layers(engine, f"{AGENT}:{agent_image_key()}")]
    found = []
    for image, tag in _ours(images):
        name, key = tag.rsplit(":", 1)
        if str(image["Id"]) in used or (name, key) in {(AGENT, agent_image_key()), (LIBRARIES, libraries_image_key())}:
            continue
        # An image that a repository brought, or that trusts a host's certificates, is as old as the agent image it is built on.
        layers = await _layers(engine, str(image["Id"]))
        if name not in {AGENT, LIBRARIES} and any(base and layers[: len(base)] == base for base in current):
            continue
        found.append(
            Superseded(tag=tag, image_id=str(image["Id"]), own_bytes=max(0, int(image["Size"]) - int(image.get("SharedSize") or 0)))
        )
    return sorted(found, key=lambda image: image.tag)


async def forget(engine: Engine, image: Superseded) -> None:
    """Remove a tag, and its image if that was its last; one that a container uses by now stays.

    Raises:
        EngineError: The engine refused.
    """
    await engine.call(f"cannot remove image {image.tag}", partial(_remove, engine, image))


def _remove(engine: Engine, image: Superseded) -> None:
    now = engine.image(image.tag)
    if now is not None and str(now["Id"]) == image.image_id:
        engine.client.remove_image(image.tag)


def _ours(images: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for image in images:
        for tag in image.get("RepoTags") or ():
            parts = _TAG.fullmatch(tag)
            if parts is not None and (image.get("Labels") or {}).get(LABEL_RECIPE) == parts["key"]:
                yield image, tag


async def _layers(engine: Engine, name: str) -> list[str]:
    image = await engine.call(f"cannot look at image {name[:19]}", partial(engine.image, name))
    return list((image or {}).get("RootFS", {}).get("Layers") or ())
