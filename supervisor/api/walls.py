"""What `andon doctor --prove` shows of the sandboxes' walls; not how they are attacked (`sandbox.executor.prove`)."""

from sandbox.contract.model import Frozen


class WallProof(Frozen):
    """One line of `andon doctor --prove`; made in `bootstrap.prove`."""

    id: str
    promise: str
    """With its number in SECURITY.md."""
    tried: str
    held: bool
    """What was tried failed in a sandbox."""
    control: bool
    """The same succeeded where the wall is absent; otherwise `held` proves nothing here, and `detail` says why."""
    detail: str
