#!/bin/sh
# Install what tests of unusual engines need from Debian and print the directory the programs are in.
set -eu
for program in bindfs rootlesskit newuidmap; do
	command -v "$program" >/dev/null || missing=1
done
if [ -n "${missing-}" ]; then
	[ "$(id -u)" = 0 ] || { echo "debian-tools: bindfs, rootlesskit or uidmap is missing; install them as root" >&2; exit 3; }
	packages="bindfs fuse3 rootlesskit uidmap"
	apt-get install -y -q --no-install-recommends $packages >&2 ||
		{ apt-get update -q >&2 && apt-get install -y -q --no-install-recommends $packages >&2; }
fi
echo /usr/bin
