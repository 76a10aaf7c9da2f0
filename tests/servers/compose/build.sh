#!/bin/sh
# Build `docker compose` from its Go module and print the directory of the CLI plugin: for tests, and for engines without it.
set -eu
cd "$(dirname "$0")"
version=$(sed -n 's,^.*github.com/docker/compose/v5 \(v[^ ]*\).*,\1,p' go.mod | head -n 1)
exec ../go-program.sh "$PWD" docker-compose github.com/docker/compose/v5/cmd "about a minute" \
	"-X github.com/docker/compose/v5/internal.Version=$version"
