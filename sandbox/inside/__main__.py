"""The program of every sandbox: ask the gateway what to do, do it, say how it ended. Not what is done (`program`).

Its first instruction connects to the gateway and asks; everything slow is imported while the answer is on its way.
"""

import os
import sys
import time

from sandbox.inside import gateway_client

_PR_SET_DUMPABLE = 4


def main(root: str = "/") -> None:
    """Run one attempt and end the process; never returns.

    Args:
        root: Directory that holds `gw`, `workspace`, `task`, `out` and `tmp`; `/` in a sandbox, elsewhere in tests.
    """
    status = 1
    try:
        pending = gateway_client.ask_assignment(os.path.join(root, "gw/gateway.sock"))  # noqa: PTH118 - pathlib costs start time
        asked_ns = time.time_ns()
        forbid_inspection()
        from sandbox.inside.program import run  # pydantic: imported while the gateway answers

        status = run(root, pending, asked_ns)
    except gateway_client.GatewayError as error:
        sys.stderr.write(f"andon: {error}\n")
    except BaseException:  # noqa: BLE001 - the last frame: whatever it was, it has to be in the log before os._exit
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal interpreter exit costs 360 ms after importing the SDK (PERFORMANCE 4).
    os._exit(status)


def forbid_inspection() -> None:
    """Make this process non-dumpable, so that no tool process of the same uid can trace it or open its memory (D18)."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) was refused")


if __name__ == "__main__":
    main()
