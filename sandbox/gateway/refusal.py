"""A reply that says no, in the shape every Messages client understands; not who decides to say it."""

import json


class Refusal(Exception):
    """A request is answered with an error; the message is ours, and safe to show to an agent."""

    def __init__(self, status: int, kind: str, message: str, *, retry: bool | None = None, come_again_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        """`error.type` of the Messages API, e.g. invalid_request_error."""
        self.message = message
        self.retry = retry
        """Sent as `x-should-retry`, which overrides a client's own rules; None: not sent."""
        self.come_again_s = come_again_s
        """Sent as `retry-after`; None: not sent."""

    def body(self) -> bytes:
        """Return the reply's JSON."""
        return json.dumps({"type": "error", "error": {"type": self.kind, "message": self.message}}).encode()

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers beyond content type and length."""
        headers = [] if self.retry is None else [("x-should-retry", "true" if self.retry else "false")]
        return headers if self.come_again_s is None else [*headers, ("retry-after", str(self.come_again_s))]

    def event(self) -> bytes:
        """Return the refusal as a server-sent event, for a reply that has begun."""
        return b"event: error\ndata: " + self.body() + b"\n\n"


class ClientGone(Exception):
    """The client closed its connection or stopped reading; what was started for it is finished without it."""
