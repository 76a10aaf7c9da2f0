"""The place a proof happens in: directories and slots like an executor's, the attacks as a task bundle, a secret to look for."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sandbox.contract.ids import job_id, run_id
from sandbox.contract.job import Limits
from sandbox.contract.task_bundle import TaskBundle
from sandbox.executor.place import Surroundings, surroundings
from sandbox.executor.prove.sweeper import INSTANCE_FILE, sweep_others, swept
from sandbox.executor.sandboxed import spec_of
from sandbox.executor.slots import UID_BASE, Slot, SlotPool, private_directory
from sandbox.executor.state_lock import held_state
from sandbox.gateway.reservation import BudgetLedger, BudgetLink
from sandbox.git import ANDON, Git, commit_tree, in_thread
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import PROGRAM, SlotSpec
from sandbox.runtime.docker import DockerRuntime

MODEL = "claude-sonnet-5-5"
"""Any with a price: nothing of a proof leaves this host."""
OUTPUT_TOKENS = 1_000
LIMITS = Limits(wall_s=60, memory_mib=256, cpus=1.0, pids_max=128, workspace_mib=32, workspace_inodes_max=1_000)
"""A job's, small: what is over them is soon reached, and so is the host's own memory not."""
LIFE_S = 900.0
"""After which a janitor may remove a container of a proof."""
STAGE = "prove"
_SLOTS = 3
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_LAUNCHER = "import sys\n\nsys.path.insert(0, '/task')\nfrom attack.main import main\n\nmain(sys.argv[1:])\n"

LinkFor = Callable[[int], BudgetLink]
"""Makes the supervisor's ledger with a budget in nano-USD."""


@dataclass(frozen=True)
class Scene:
    """What the parts of one proof share."""

    runtime: DockerRuntime
    image: str
    oci_runtime: str
    instance: str
    home: Path
    sockets: Path
    slots: tuple[Slot, ...]
    mirror: Mirror
    base: str
    """A commit without files."""
    around: Surroundings
    link_for: LinkFor
    key: str
    """The provider's key of this proof; it opens nothing."""
    born: float
    """When it was made, Unix seconds."""

    @property
    def deadline(self) -> float:
        """Return when whatever is left may be removed by anybody."""
        return self.born + LIFE_S

    @property
    def canary(self) -> Path:
        """Return a file that exists only if a plant was executed."""
        return self.home / "canary" / "executed"

    @property
    def secret_file(self) -> Path:
        """Return a file of the host's that links point at."""
        return self.home / "host-secret"

    @property
    def shared(self) -> Path:
        """Return a directory for controls that share one."""
        return self.home / "shared"

    def wanted(self, secret: str) -> dict[str, Any]:
        """Return what to tell an attack that looks for a secret: all but the secret."""
        return {"digest": hashlib.sha256(secret.encode()).hexdigest(), "born": self.born}

    def spec(self, slot: Slot, role: str | None = None, arguments: Mapping[str, Any] | None = None) -> SlotSpec:
        """Return the specification of a job's sandbox, with a role's program in place of the agent's; None: the agent's own."""
        spec = spec_of(slot, self.instance, LIMITS, runtime=self.oci_runtime, deadline=self.deadline)
        return spec if role is None else spec.model_copy(update={"command": command(role, arguments or {})})

    def ledger(self, budget_nano_usd: int) -> BudgetLedger:
        """Return a client of the supervisor's ledger, as an attempt's gateway has one."""
        run = run_id(int(self.born * 1_000), os.urandom(2))
        link = self.link_for(budget_nano_usd)
        return BudgetLedger(link, executor="prove", run_id=run, job_id=job_id(run, STAGE, 1), attempt=1, token=self.instance)


def command(role: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how a role is played in a container."""
    return (*PROGRAM[:2], "/task/run.py", role, json.dumps(arguments))


def task_bundle() -> TaskBundle:
    """Return the attacks as the bundle of a task."""
    sources = files("sandbox.executor.prove.attack")
    names = [each.name for each in sources.iterdir() if each.name.endswith(".py")]
    return TaskBundle(files={"run.py": _LAUNCHER} | {f"attack/{name}": sources.joinpath(name).read_text() for name in names})


@asynccontextmanager
async def staged(
    runtime: DockerRuntime,
    image: str,
    *,
    state: Path,
    oci_runtime: str,
    link_for: LinkFor,
    uid: int,
    around: Surroundings | None = None,
) -> AsyncIterator[Scene]:
    """Make the place; nothing of it is left, also if this process is killed. `around` is found out unless given."""
    proofs = state / "prove"
    await sweep_others(runtime, proofs)
    instance = f"prove-{secrets.token_hex(4)}"
    home = proofs / instance
    with ExitStack() as stack:
        stack.enter_context(held_state(home))
        around = around or await surroundings(home, runtime.has_container, uid=uid)
        sockets = around.sockets(instance)
        (home / INSTANCE_FILE).write_text(f"{sockets}\n{instance}")
        async with swept(runtime, home, sockets, instance):
            if not around.is_container:
                private_directory(sockets.parent)
            sockets.mkdir(mode=0o711, exist_ok=True)
            uid_base = (await runtime.facts()).users.slots_from(UID_BASE)
            slots = SlotPool.lease(_SLOTS, state=home, sockets=sockets, locks=around.uid_locks, uid_base=uid_base)
            stack.callback(slots.close)
            mirror = await Mirror.open(home / "mirror.git")
            for directory in ("canary", "shared", "control"):
                (home / directory).mkdir(mode=0o755)
            (home / "shared").chmod(0o777)
            scene = Scene(
                runtime=runtime,
                image=image,
                oci_runtime=oci_runtime,
                instance=instance,
                home=home,
                sockets=sockets,
                slots=slots.slots,
                mirror=mirror,
                base=await in_thread(_base, mirror.git),
                around=around,
                link_for=link_for,
                key=f"sk-ant-prove-{secrets.token_hex(16)}",
                born=time.time(),
            )
            scene.secret_file.write_text(secrets.token_hex(16))
            yield scene


def _base(git: Git) -> str:
    return commit_tree(git, _EMPTY_TREE, [], message="nothing yet", author=ANDON, committer=ANDON, at=0)
