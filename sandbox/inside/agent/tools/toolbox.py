"""The tools an agent has, by name: their wire definitions and their calls; not when a call is allowed (`loop`)."""

from collections.abc import Sequence
from typing import Any

from sandbox.inside.agent.tools.call import MalformedCall, Tool, ToolResult
from sandbox.inside.agent.tools.submit import SUBMIT_DEFINITION


class Toolbox:
    """Tools by the name the model calls them by; `submit` is defined here but answered by the loop."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """Return what goes into a request's `tools`, always in the same order."""
        return [*(tool.definition for tool in self._tools.values()), SUBMIT_DEFINITION]

    def call(self, name: str, arguments: object, timeout_s: float, traceparent: str = "") -> ToolResult:
        """Run one call, its processes in the trace context `traceparent`.

        Never raises: a call that makes no sense is answered by what is wrong with it.
        """
        tool = self._tools.get(name)
        if tool is None:
            known = ", ".join([*self._tools, "submit"])
            return ToolResult(f"there is no tool {name!r}; there are: {known}", is_error=True, is_malformed=True)
        if not isinstance(arguments, dict):
            return ToolResult("the input of a call is an object", is_error=True, is_malformed=True)
        try:
            return tool.run(arguments, timeout_s, traceparent)
        except MalformedCall as error:
            return ToolResult(str(error), is_error=True, is_malformed=True)
