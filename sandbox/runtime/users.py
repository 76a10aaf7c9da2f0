"""Which user of a container is which user of the host: engines that map users, and what follows for a slot; pure.

Three kinds of engine. One that maps nobody: 200007 inside is 200007 outside. One with `userns-remap`: 7 inside is `first_uid` + 7
outside, and nobody outside that range exists inside. A rootless one: 0 inside is the person who runs the engine.
"""

from typing import Any, Literal

from sandbox.contract.model import Frozen

MAPPED_MAX = 65_536
"""Users of one mapping: what `useradd` and engines write into /etc/subuid."""
SLOTS_FROM = 60_000
"""The first slot's user inside a mapping: above every user of an image, below `nobody`."""
NOT_MAPPED = "no user mapping: the engine's userns-remap is switched off for this sandbox, because it does not map your own user"


class UserMap(Frozen):
    """How an engine maps users."""

    kind: Literal["same", "remapped", "rootless"] = "same"
    first_uid: int = 0
    """Outside, of the mapping's user 0; remapped only."""
    first_gid: int = 0

    def maps(self, uid: int, gid: int) -> bool:
        """Return whether the host's user can be a user of a container, as the engine is set up."""
        if self.kind != "remapped":
            return True
        is_known = self.first_uid > 0 and self.first_gid > 0
        return is_known and 0 < uid - self.first_uid < MAPPED_MAX and 0 < gid - self.first_gid < MAPPED_MAX

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what the host's user and group are in a container; a user the engine does not map is itself, see `mode`."""
        if self.kind == "rootless":
            return 0, 0  # without a capability, and outside it is who runs the engine
        if self.kind == "remapped" and self.maps(uid, gid):
            return uid - self.first_uid, gid - self.first_gid
        return uid, gid

    def mode(self, uid: int, gid: int) -> dict[str, str]:
        """Return the engine's setting for a container of this user: one that is not mapped needs a container that is not either."""
        return {} if self.maps(uid, gid) else {"UsernsMode": "host"}

    def missing(self, uid: int, gid: int) -> tuple[str, ...]:
        """Return the protection a container of this user does without, if so."""
        return () if self.maps(uid, gid) else (NOT_MAPPED,)

    def slots_from(self, default: int) -> int:
        """Return the host's user of slot 0, where root gives each slot one of its own."""
        return self.first_uid + SLOTS_FROM if self.kind == "remapped" else default


def read_users(info: dict[str, Any]) -> UserMap:
    """Return how an engine maps users, by its `info`."""
    options = {str(option).split(",", 1)[0] for option in info.get("SecurityOptions") or ()}
    if "name=rootless" in options:
        return UserMap(kind="rootless")
    if "name=userns" not in options:
        return UserMap()
    # The engine keeps the images of a mapping in a directory named after it; nothing else in its API says which one it is.
    first_uid, dot, first_gid = str(info.get("DockerRootDir", "")).rpartition("/")[2].partition(".")
    if not (dot and first_uid.isascii() and first_uid.isdigit() and first_gid.isascii() and first_gid.isdigit()):
        return UserMap(kind="remapped")  # maps nobody we know of: sandboxes do without it, and say so
    return UserMap(kind="remapped", first_uid=int(first_uid), first_gid=int(first_gid))
