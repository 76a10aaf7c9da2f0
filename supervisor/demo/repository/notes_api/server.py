"""Serves the application over HTTP."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from notes_api.app import Application
from notes_api.http_types import Request
from notes_api.store import NoteStore

BODY_BYTES_MAX = 64 * 1024


def make_server(host: str, port: int) -> ThreadingHTTPServer:
    """Return a server of a new, empty application; port 0 takes a free one."""
    application = Application(NoteStore())

    class Handler(BaseHTTPRequestHandler):
        """Turns HTTP into the application's types and back."""

        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            """Answer a GET."""
            self._answer()

        def do_POST(self) -> None:
            """Answer a POST."""
            self._answer()

        def do_DELETE(self) -> None:
            """Answer a DELETE."""
            self._answer()

        def _answer(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
                self.close_connection = True
                self.send_error(413)
                return
            body = self.rfile.read(int(length))
            response = application.handle(Request(self.command, self.path, body, self.client_address[0]))
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if response.status != 204:
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:
            """Write no access log."""

    return ThreadingHTTPServer((host, port), Handler)
