#!/bin/sh
# Start the executor of this container: with the credentials file it was given, or in the first free place of a directory of them.
# usage: start [OPTION of `andon executor`...]
#
#   ANDON_PLACES            a credentials file NAME.andon.json, or a directory of such files: one for each replica
#   ANDON_EXECUTOR_STATE    the state directory, mounted at the same path as on the host; each replica has a sub-directory of it
#   ANDON_SLOTS             attempts at once (2)
#
# A place is held by a lock of the kernel: when its holder dies, however, the next one has it, its name and what it left behind.
set -eu
places=${ANDON_PLACES:-/var/lib/andon/places}
state=${ANDON_EXECUTOR_STATE:-/var/lib/andon/executors}
sockets=/tmp/andon-0
say() { printf '%s\n' "andon executor: $*" >&2; }

[ -d "$state" ] || { say "$state is not mounted; mount the state directory at the same path as on the host"; exit 2; }
# The engine makes a missing directory of the host for everybody; what is in this one is ours.
[ ! -d $sockets ] || chmod 0700 $sockets

# start_at FILE [OPTION...]: returns if the place is taken.
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

[ ! -f "$places" ] || start_at "$places" "$@"
if [ -d "$places" ]; then
	for file in $(printf '%s\n' "$places"/*.andon.json | sort -V); do
		[ ! -f "$file" ] || start_at "$file" "$@"
	done
fi
say "no place is free in $places; admit one more executor, or start fewer"
exit 2
