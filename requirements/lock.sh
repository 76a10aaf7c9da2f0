#!/bin/sh
# Resolve every environment's lock file anew: hashes of every file, no address of an index. Needs uv.
# usage: requirements/lock.sh [--upgrade]
set -eu
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .venv/bin/uv)
[ -x "$uv" ] || { echo "uv is not installed; it is needed for this only" >&2; exit 2; }
upgrade=${1:-}

lock() {
	out=$1
	shift
	# shellcheck disable=SC2086  # nothing or one option
	"$uv" pip compile "$@" $upgrade --quiet --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate --output-file "$out"
}

# The host's: any Python from 3.11 on.
lock requirements/andon.lock pyproject.toml --universal
lock requirements/dev.lock pyproject.toml --group pyproject.toml:dev --constraint requirements/andon.lock --universal
lock requirements/build.lock --group pyproject.toml:build --constraint requirements/dev.lock --universal
# The image's: one Python, one C library.
lock images/agent/agent.lock --group pyproject.toml:agent --constraint requirements/dev.lock --python-platform x86_64-manylinux_2_36
lock images/agent/world.lock --group pyproject.toml:world --constraint requirements/dev.lock --python-platform x86_64-manylinux_2_36
