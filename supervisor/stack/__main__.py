"""Starts the stack's process: `python -m supervisor.stack`."""

import sys

from supervisor.stack.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
