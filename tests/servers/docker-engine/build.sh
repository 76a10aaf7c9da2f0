#!/bin/sh
# Build the current container engine from Go modules and print the directory its programs are in.
#
# The result is cached outside the tree under the hash of this recipe: a second call costs milliseconds. Every module is
# checked against the committed go.sum. Not for users: their engine comes from a distribution or its vendor.
set -eu
cd "$(dirname "$0")"

recipe=$(cat build.sh go.mod go.sum | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/andon-servers
out=$cache/docker-engine-$recipe
say() { printf '%s\n' "docker-engine: $*" >&2; }

if [ -x "$out/dockerd" ]; then
	printf '%s\n' "$out"
	exit 0
fi

go=$(command -v go || echo /usr/local/go/bin/go)
if ! [ -x "$go" ]; then
	say "no Go tool chain here; install Go $(sed -n 's/^go //p' go.mod) or later to test against the current engine"
	exit 3
fi
if ! pkg-config --exists libseccomp 2>/dev/null; then
	if [ "$(id -u)" != 0 ]; then
		say "libseccomp-dev and pkg-config are missing; install them as root"
		exit 3
	fi
	say "installing libseccomp-dev and pkg-config"
	apt-get install -y -q --no-install-recommends gcc libc6-dev libseccomp-dev pkg-config >&2 ||
		{ apt-get update -q >&2 && apt-get install -y -q --no-install-recommends gcc libc6-dev libseccomp-dev pkg-config >&2; }
fi

mkdir -p "$cache"
exec 9>"$cache/docker-engine.lock"
flock 9
if ! [ -x "$out/dockerd" ]; then
	say "building dockerd, containerd and runc (about four minutes, once)"
	building=$(mktemp -d "$cache/building.XXXXXX")
	trap 'rm -rf "$building"' EXIT
	export GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false -trimpath" GONOSUMDB='*' GOBIN="$building"
	engine=$(sed -n 's,^.*github.com/moby/moby/v2 v\([^ ]*\).*,\1,p' go.mod)
	nice "$go" install -ldflags "-s -w" \
		github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 >&2
	nice "$go" install -ldflags "-s -w -X github.com/moby/moby/v2/dockerversion.Version=$engine" github.com/moby/moby/v2/cmd/dockerd >&2
	nice "$go" install -ldflags "-s -w" -tags seccomp github.com/opencontainers/runc >&2
	chmod 755 "$building"
	mv "$building" "$out"
	trap - EXIT
fi
printf '%s\n' "$out"
