#!/bin/sh
# Set this checkout up: its own environment in .venv, a container engine, and the images; says what it does, repeats nothing.
# usage: images/setup.sh [dev] [engine] [images]      (the environment always; `dev` adds what tests and checks need)
#
# Exit codes: 0 ready · 2 something is missing that this user cannot install · 5 the engine or an image failed.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
packages="docker.io iptables debootstrap"
engine_log=/var/log/andon-dockerd.log
engine_wait_s=60

say() { printf '%s\n' "andon: $*" >&2; }
fail() { say "$1"; exit "$2"; }
is_root() { [ "$(id -u)" = 0 ]; }

main() {
	dev=
	for word in "$@"; do
		case $word in
		dev) dev=dev ;;
		engine | images) ;;
		*) fail "unknown word $word; use dev, engine, images" 2 ;;
		esac
	done
	# shellcheck disable=SC2086  # a word or none
	environment $dev
	for word in "$@"; do
		case $word in
		engine) engine ;;
		images) ask images || exit 5 ;;
		esac
	done
}

# --- the environment ------------------------------------------------------------------------------------------------

# environment [dev]
environment() {
	kind=${1:-run}
	set -- requirements/build.lock requirements/andon.lock
	[ "$kind" = run ] || set -- "$@" requirements/dev.lock
	# What was installed is stamped by content, so that a second call costs one hash.
	stamp=$venv/.andon-$kind
	wanted=$({ pwd -P; cat pyproject.toml images/setup.sh "$@"; } | sha256sum)
	if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x $venv/bin/python ]; then
		return
	fi
	if ! [ -x $venv/bin/python ]; then
		make_environment
	fi
	say "installing Andon into $venv ($kind)"
	for lock in "$@"; do
		shift
		set -- "$@" --requirement "$lock"
	done
	if command -v uv >/dev/null; then
		uv pip install --quiet --python $venv/bin/python --require-hashes "$@"
		uv pip install --quiet --python $venv/bin/python --no-deps --no-build-isolation --editable .
	else
		$venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes "$@"
		$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	fi
	printf '%s\n' "$wanted" >"$stamp"
}

make_environment() {
	rm -rf $venv
	python=$(find_python)
	if [ -z "$python" ]; then
		install_as_root "Python 3.11 or later" python3 python3-venv
		python=$(find_python)
		[ -n "$python" ] || fail "Andon needs Python 3.11 or later; set PYTHON to one" 2
	fi
	say "making $venv with $("$python" --version)"
	if command -v uv >/dev/null; then
		uv venv --quiet --python "$python" $venv
		return
	fi
	if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
		install_as_root "Python's venv module" python3-venv
	fi
	"$python" -m venv $venv
}

find_python() {
	for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			printf '%s\n' "$candidate"
			return
		fi
	done
}

# --- the engine -----------------------------------------------------------------------------------------------------

# Ask about the engine; the answer's meaning is in sandbox/runtime/__main__.py.
ask() { $venv/bin/python -m sandbox.runtime "$1" "${DOCKER_HOST:-}" "${DOCKER_CONTEXT:-}"; }

engine() {
	code=0
	answer=$(ask knock 2>&1) || code=$?
	[ $code != 0 ] || return 0
	# 3: the default engine is not there. Anything else is somebody's choice or refusal, and not ours to change.
	[ $code = 3 ] || { printf '%s\n' "$answer" >&2; exit 5; }
	is_root || fail "no container engine is running; ask root to run \`make setup\` once, and to add you to the docker group" 5
	if ! command -v dockerd >/dev/null; then
		# shellcheck disable=SC2086  # a list
		install_as_root "a container engine" $packages
	fi
	answer=$(ask knock 2>&1) || start_engine
}

start_engine() {
	if [ -d /run/systemd/system ]; then
		say "starting the container engine (systemd)"
		systemctl enable --now --quiet docker
	else
		say "starting the container engine; its log is $engine_log"
		setsid dockerd >"$engine_log" 2>&1 </dev/null &
	fi
	waited_s=0
	until ask knock 2>/dev/null; do
		[ $waited_s -lt $engine_wait_s ] || fail "the container engine does not come up; see $engine_log or its journal" 5
		waited_s=$((waited_s + 1))
		sleep 1
	done
}

# --- packages -------------------------------------------------------------------------------------------------------

# install_as_root WHAT PACKAGE...: Debian and its kin only, after saying so; otherwise one line that names the packages.
install_as_root() {
	what=$1
	shift
	if ! is_root || ! command -v apt-get >/dev/null; then
		fail "$what is missing; install it first (Debian, Ubuntu: sudo apt-get install $*)" 2
	fi
	say "installing $what: $*"
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	{ apt-get install -y -q --no-install-recommends "$@" || { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }; } \
		>"$log" 2>&1 || { tail -n 20 "$log" >&2; rm -f "$log"; fail "installing $* failed" 5; }
	rm -f "$log"
}

main "$@"
