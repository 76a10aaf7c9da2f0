#!/bin/sh
# Build gVisor's runsc from its Go module and print the directory it is in. Not for users: theirs comes from gVisor's own packages.
set -eu
cd "$(dirname "$0")"
exec ../go-program.sh "$PWD" runsc gvisor.dev/gvisor/runsc "about two minutes" \
	"-X gvisor.dev/gvisor/runsc/version.version=release-20260224.0"
