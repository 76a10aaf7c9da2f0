"""A supervisor's desk that answers what a test says, for tests of the wire."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, JoinReply, JoinRequest


async def welcome(_request: JoinRequest) -> JoinReply:
    """Let everybody in."""
    return JoinReply(accepted=True)


@dataclass(frozen=True)
class PaperDesk:
    """Implements `contract.wire.Desk` by three functions."""

    claims: Callable[[ClaimRequest], Awaitable[ClaimReply]]
    budgets: Callable[[BudgetRequest], Awaitable[BudgetReply]]
    joins: Callable[[JoinRequest], Awaitable[JoinReply]] = welcome

    async def join(self, request: JoinRequest) -> JoinReply:
        """Answer one introduction."""
        return await self.joins(request)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Answer one claim."""
        return await self.claims(request)

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Answer one request for money."""
        return await self.budgets(request)
