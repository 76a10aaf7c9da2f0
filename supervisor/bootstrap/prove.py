"""`andon doctor --prove`: puts the executor's proof together with the supervisor's ledger, on this host's engine."""

import os
from collections.abc import Sequence

from sandbox.contract.errors import UsageError
from sandbox.contract.wire import BudgetReply, BudgetRequest
from sandbox.executor.prove.proof import prove
from sandbox.log import set_level
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.image_build import BuildNetwork
from sandbox.runtime.images import ensure_agent_image
from supervisor.api.walls import WallProof
from supervisor.config import Config, StateDirectory, process_environment
from supervisor.pipeline import budget
from supervisor.pipeline.events import BudgetReserved, BudgetSettled
from supervisor.pipeline.run import BudgetState
from supervisor.stack import Say


class LedgerOfOne:
    """The supervisor's rules about money (`pipeline.budget`), for one run that is not written down."""

    def __init__(self, budget_nano_usd: int) -> None:
        self._state = BudgetState(limit_nano_usd=budget_nano_usd)

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Reserve, extend or settle, as the supervisor would."""
        key = budget.call_key(request.job_id, request.attempt, request.call_id)
        ruling = budget.rule(self._state, key, request.op, request.nano_usd)
        if ruling.append:
            self._append(request)
        return BudgetReply(granted=ruling.granted, remaining_nano_usd=self._state.remaining_nano_usd, reason=ruling.reason)

    def _append(self, request: BudgetRequest) -> None:
        call = {"job_id": request.job_id, "attempt": request.attempt, "call_id": request.call_id, "nano_usd": request.nano_usd}
        if request.op == "settle":
            self._state = budget.settled(self._state, BudgetSettled.model_validate({**call, "run_id": request.run_id, "at": 0.0}))
        else:
            self._state = budget.reserved(self._state, BudgetReserved.model_validate({**call, "run_id": request.run_id, "at": 0.0}))


async def prove_here(config: Config, oci_runtime: str | None, say: Say) -> Sequence[WallProof]:
    """Prove the walls of this host's engine.

    Args:
        config: Says where the engine and the state directory are; a fleet elsewhere is not looked at.
        oci_runtime: Another runtime than the engine's default for jobs, by the engine's name.
        say: Told in a line what goes on.

    Raises:
        UsageError: The engine does not know that runtime.
        EngineError: There is no engine, or it refused a container.
    """
    # A sandbox's uid has to reach its directories: modes are what the code says (as in `executor.__main__`).
    os.umask(0o022)
    # What the gateway warns of is what the attacks do.
    set_level("error", "sandbox.gateway")
    environment = process_environment()
    runtime = await DockerRuntime.connect(config.docker_host, environment.get("DOCKER_CONTEXT"))
    try:
        known = (await runtime.facts()).runtimes
        name = oci_runtime or "runc"
        if name not in known:
            raise UsageError(
                f"the engine has no runtime {name!r}; it has {', '.join(known)}. Register it with the engine, see docs/engines.md"
            )
        image = await ensure_agent_image(runtime.engine, say, BuildNetwork.from_environment(environment))
        state = StateDirectory.open(config.state_directory).root
        proofs = await prove(runtime, image, state=state, oci_runtime=name, link_for=LedgerOfOne, uid=os.getuid(), say=say)
        return [WallProof.model_validate(proof.model_dump()) for proof in proofs]
    finally:
        runtime.close()
