#!/bin/sh
# Start the executor of this container: with the credentials file it was given, or in the first free seat of a directory of them.
# usage: start [OPTION of `andon executor`...]      (with --creds it is `andon executor`, and nothing is chosen here)
#
#   ANDON_CREDS             a credentials file NAME.andon.json, or a directory of such files: one for each replica
#   ANDON_EXECUTOR_STATE    the state directory, mounted at the same path as on the host; each replica has a sub-directory of it
#   ANDON_SLOTS             attempts at once (2)
#
# A seat is held by a lock of the kernel: when its holder dies, however, the next one has it, its name and what it left behind.
set -eu
seats=${ANDON_CREDS:-/var/lib/andon/seats}
state=${ANDON_EXECUTOR_STATE:-/var/lib/andon/executors}
say() { printf '%s\n' "andon executor: $*" >&2; }

case " $* " in
*" --creds"[\ =]* | *" --help "*) exec andon executor "$@" ;;
esac
[ -d "$state" ] || { say "$state is not mounted; mount the state directory at the same path as on the host"; exit 2; }

# start_at FILE [OPTION...]: returns if the seat is taken.
start_at() {
	file=$1
	shift
	name=$(basename "$file" .andon.json)
	exec 9>"$state/$name.lock"
	flock --nonblock 9 || return 0
	[ -d "$state/$name" ] || mkdir -m 0700 "$state/$name"
	say "this is $name"
	exec andon executor --creds "$file" --state "$state/$name" --slots "${ANDON_SLOTS:-2}" "$@"
}

[ ! -f "$seats" ] || start_at "$seats" "$@"
if [ -d "$seats" ]; then
	for file in $(printf '%s\n' "$seats"/*.andon.json | sort -V); do
		[ ! -f "$file" ] || start_at "$file" "$@"
	done
fi
say "no seat is free in $seats; admit one more executor, or start fewer"
exit 2
