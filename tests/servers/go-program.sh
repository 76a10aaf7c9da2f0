#!/bin/sh
# Build one program from the Go modules a recipe pins, and print the directory it is in.
# usage: go-program.sh RECIPE_DIRECTORY PROGRAM PACKAGE TAKES [LINKER_FLAGS]
#
# The result is cached outside the tree under the hash of its recipe: a second call costs milliseconds. Every module is
# checked against the committed go.sum, so that no checksum database is asked.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$1"
program=$2
package=$3
takes=$4
flags="-s -w ${5-}"

name=$(basename "$PWD")
recipe=$(cat build.sh go.mod go.sum "$here/go-program.sh" | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/andon-servers
out=$cache/$name-$recipe
say() { printf '%s\n' "$name: $*" >&2; }

if [ -x "$out/$program" ]; then
	printf '%s\n' "$out"
	exit 0
fi

go=$(command -v go || echo /usr/local/go/bin/go)
if ! [ -x "$go" ]; then
	say "no Go tool chain here; install Go $(sed -n 's/^go //p' go.mod) or later to build $program"
	exit 3
fi

mkdir -p "$cache"
exec 9>"$cache/$name.lock"
flock 9
if ! [ -x "$out/$program" ]; then
	say "building $program ($takes, once)"
	building=$(mktemp -d "$cache/building.XXXXXX")
	trap 'rm -rf "$building"' EXIT
	export GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false -trimpath" CGO_ENABLED=0
	nice "$go" build -ldflags "$flags" -o "$building/$program" "$package" >&2
	chmod 755 "$building"
	mv "$building" "$out"
	trap - EXIT
fi
printf '%s\n' "$out"
