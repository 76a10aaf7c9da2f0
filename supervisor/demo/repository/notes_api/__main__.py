"""Serve the API: `python -m notes_api --port 8080`."""

import argparse

from notes_api.server import make_server


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="notes_api", description="A small HTTP API that keeps short notes in memory.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with make_server(options.host, options.port) as server:
        print(f"http://{options.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
