"""The embedded stack: nats-server, supervisor and executor as processes of one parent, per user and state directory (DECISIONS G9).

The stack is a process of its own (`python -m supervisor.stack`): runs attach to it by holding a shared lock on `stack.clients`, the last
one out stops it unless `andon up` keeps it, and its children die with it, not with a CLI. Locks are the kernel's, so that a
kill -9 of anything leaves nothing to tidy by hand.
"""

from supervisor.stack.client import Say, attached, keep_up, presence, shut_down
from supervisor.stack.file import StackFile, read_stack

__all__ = ["Say", "StackFile", "attached", "keep_up", "presence", "read_stack", "shut_down"]
