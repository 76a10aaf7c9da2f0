"""The command line: one file per command, each imported only when it is called; talks to the supervisor through `client.Client` alone."""

from supervisor.cli.entry import main

__all__ = ["main"]
