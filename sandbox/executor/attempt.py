"""One try at a job, as a story: slot, inputs, gateway, sandbox, lease; watch it, read what it left, say how it ended.

Everything it composes cleans up after itself, also when this is cancelled. New behaviour enters through a collaborator.
"""

import time

from sandbox.contract.errors import AndonError
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.account import Account
from sandbox.executor.config import Host
from sandbox.executor.ending import Cancel, Ending, watch
from sandbox.executor.inputs import prepared
from sandbox.executor.outputs import collect
from sandbox.executor.rescue import remembered
from sandbox.executor.sandboxed import assignment_for, gateway, held_lease, running_sandbox
from sandbox.executor.slots import Slot


async def run_attempt(host: Host, slot: Slot, delivery: Delivery, grant: ClaimReply, cancel: Cancel) -> AttemptResult:
    """Run one granted attempt to its end and return its result, which is not published yet.

    Whatever breaks around it is an outcome too (`lost`, retried by the supervisor, and not for ever); only our own bugs raise.
    """
    job, account = delivery.job, Account(host, delivery, grant, slot)
    deadline = time.monotonic() + grant.wall_left_s
    try:
        with account.trace.processing():
            async with account.trace.timed("workspace prepare", prepared(host, job, slot), "workspace remove") as inputs:
                with account.trace.span("image resolve"):
                    image = await host.image_of(job)
                async with (
                    account.trace.timed("gateway open", gateway(host, job, grant, slot, account, image), "gateway close") as session,
                    running_sandbox(host, job, slot, image, account) as box,
                    held_lease(host, delivery, grant, box, session, account) as lease,
                    remembered(host, slot, delivery, grant, inputs.manifest, box) as note,
                    account.reporting(session),
                ):
                    account.started(box, image, inputs.missing)
                    with account.trace.invoking(box, session) as traceparent:
                        session.assign(assignment_for(host, job, grant, traceparent, await session.tool_environment()))
                        ending = await watch(job, box, session, lease, cancel, deadline - time.monotonic())
                        account.exited(await box.wait(), await box.last_words(), ending)
                    account.sealing()
                    with account.trace.span("workspace seal"):
                        outputs = await collect(host, job, grant.attempt, slot, inputs, box, session)
                    account.trace.checks(outputs.reports)
                    await note.settle(account.draft(ending, outputs, session))
            return await account.result(ending, outputs, session)
    except (AndonError, OSError) as broken:
        return await account.result(Ending.of(broken))
