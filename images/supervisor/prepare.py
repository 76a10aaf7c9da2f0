"""Makes the broker of `compose.yaml` ready: keys, certificate, configuration, a seat for each executor, the key of a CLI outside.

Run by the service `init` before the others; what is there already stays. It is not the broker, and admits nobody later:
`andon fleet add` does.
"""

import asyncio
import sys
from pathlib import Path

from sandbox.contract.credentials import FILE_SUFFIX, Credentials, write_credentials
from supervisor.store.broker.admission import Listen, admit_client, admit_executor, admitted, admitted_clients, prepare

ROOT = Path("/var/lib/andon")
NAME = "nats"
"""By what every container of the stack reaches the broker; processes of the host reach it by 127.0.0.1, which the certificate names too."""
PORT = 4222
CLIENT = "outside"
SEATS_MAX = 64
"""More executors on one host than any host has use for."""


async def make_ready(root: Path, seats: int) -> None:
    """Make what is missing below `root`.

    Args:
        root: With `broker`, for the broker and the supervisor, and `seats`, for the executors.
        seats: How many executors may join.
    """
    broker = root / "broker"
    prepare(broker, Listen(host="0.0.0.0", port=PORT, advertise=NAME))  # noqa: S104  (of its container; the host publishes it on loopback)
    known = {user.name for user in admitted(broker)}
    for number in range(1, seats + 1):
        name = f"ex{number}"
        file = root / "seats" / f"{name}{FILE_SUFFIX}"
        if name not in known or not file.exists():
            write_credentials(file, await admit_executor(broker, name, replace=True))
    outside = broker / f"{CLIENT}{FILE_SUFFIX}"
    if CLIENT not in {user.name for user in admitted_clients(broker)} or not outside.exists():
        credentials: Credentials = await admit_client(broker, CLIENT, replace=True)
        write_credentials(outside, credentials.model_copy(update={"url": f"tls://127.0.0.1:{PORT}"}))


def main(arguments: list[str]) -> int:
    """`prepare.py SEATS`."""
    if len(arguments) != 1 or not arguments[0].isdecimal() or not 1 <= int(arguments[0]) <= SEATS_MAX:
        sys.stderr.write(f"andon init: say how many executors may join, 1 to {SEATS_MAX} (ANDON_SEATS)\n")
        return 2
    asyncio.run(make_ready(ROOT, int(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
