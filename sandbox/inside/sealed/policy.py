"""What the two processes are told by the runner of checks, as one JSON file; not how it is made (`sandbox/inside/checks/sealing`)."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

from . import walls

POLICY_VARIABLE = "ANDON_SEALED_POLICY"
"""Names the policy's file in the environment of a sealed run."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/proc", "/sys")


class Policy(NamedTuple):
    """Where things are for a sealed run."""

    workspace: str
    product: tuple[str, ...]
    """Files and directories that hold no test, absolute: what the product may read of the workspace."""
    own: str
    """Directory of the product's process: its temporary files, its output, its compiled modules."""
    scratch: str
    """Directory both may write: pytest's `tmp_path`."""

    @classmethod
    def load(cls, path: str) -> Policy:
        """Read the policy at `path`."""
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - every module more makes each start slower
            fields = json.load(file)
        return cls(fields["workspace"], tuple(fields["product"]), fields["own"], fields["scratch"])

    def is_product(self, path: str) -> bool:
        """Return whether a file is the product's, by its real path."""
        real = os.path.realpath(path)
        return any(real == entry or real.startswith(entry + os.sep) for entry in self.product)

    def enclose(self) -> None:
        """Confine this process and its children to what the product may do.

        Raises:
            OSError: The kernel refuses.
        """
        libraries = [path for path in (*sys.path, sys.prefix, sys.base_prefix) if path and not self._is_inside(path)]
        rules = [(os.path.realpath(path), walls.READ) for path in (*_SYSTEM, *libraries)]
        rules += [("/dev", walls.READ | 2), ("/dev/shm", walls.ALL)]  # noqa: S108 - 2: write files, /dev/null above all
        rules += [(self.workspace, walls.LIST), *((path, walls.READ) for path in self.product)]
        walls.enclose([*rules, (self.own, walls.ALL), (self.scratch, walls.ALL)])

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.workspace or real.startswith(self.workspace + os.sep) or self.workspace.startswith(real + os.sep)
