"""Whether this executor takes jobs now, and if not, why; not who finds out (`membership`, `disk`, a person's drain)."""

import asyncio

HELD_CHARS_MAX = 400


class Readiness:
    """Reasons to take no job; without one the executor takes jobs."""

    def __init__(self) -> None:
        """Begin ready."""
        self._reasons: dict[str, str] = {}
        self._may_go = asyncio.Event()
        self._may_go.set()
        self._must_wait = asyncio.Event()
        self.has_ended = False
        """No job will be taken any more."""

    @property
    def held(self) -> str:
        """Return why no job is taken, for the life sign; empty: jobs are taken."""
        return "; ".join(self._reasons.values())[:HELD_CHARS_MAX]

    def hold(self, what: str, reason: str) -> bool:
        """Take no job until `free(what)`; return whether that is new."""
        is_new = what not in self._reasons
        self._reasons[what] = reason
        self._must_wait.set()
        if not self.has_ended:
            self._may_go.clear()
        return is_new

    def free(self, what: str) -> bool:
        """Drop one reason; return whether there was one."""
        was_held = self._reasons.pop(what, None) is not None
        if not self._reasons:
            self._must_wait.clear()
            self._may_go.set()
        return was_held

    def end(self, reason: str) -> None:
        """Take no job ever again."""
        self.has_ended = True
        self.hold("end", reason)
        self._may_go.set()

    async def wait_free(self) -> None:
        """Wait until jobs may be taken, or never again."""
        await self._may_go.wait()

    async def wait_held(self) -> None:
        """Wait until no job may be taken."""
        await self._must_wait.wait()
