#!/bin/sh
# The last step of both bases, run inside: what every sandbox relies on, so that the two cannot drift apart.
set -eu

# Sandboxes run without privilege gain, so these are inert; without them there is nothing to discuss.
find / -xdev -type f -perm /6000 -exec chmod a-s {} +

# The root file system is read-only at run time: a module without a .pyc would be compiled anew in every sandbox.
stdlib=$(python3.11 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
python3.11 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$stdlib" >/dev/null || true

# The mount points of every sandbox; made here, not at each start.
mkdir -p /workspace /task /gw /out /home/agent
