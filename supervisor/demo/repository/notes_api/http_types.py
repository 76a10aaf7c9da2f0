"""What goes into the application and what comes out, without sockets."""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    body: bytes = b""
    client_ip: str = "127.0.0.1"


@dataclass(frozen=True)
class Response:
    """One reply."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_response(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    """Return a reply whose body is `value` as JSON."""
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return a reply that says what is wrong."""
    return json_response(status, {"error": message}, headers)
