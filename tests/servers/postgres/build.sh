#!/bin/sh
# See to a PostgreSQL server from Debian's packages and print the directory its programs are in. Nothing is started, no cluster is made.
set -eu
say() { printf '%s\n' "postgres: $*" >&2; }
newest() { find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }

programs=$(newest)
if [ -z "$programs" ]; then
	if [ "$(id -u)" != 0 ]; then
		say "there is no PostgreSQL server here; install the package postgresql as root"
		exit 3
	fi
	say "installing postgresql"
	# The package would make a cluster of its own and start it; ours are private, and the machine's owner did not ask for one.
	mkdir -p /etc/postgresql-common
	[ -e /etc/postgresql-common/createcluster.conf ] || printf 'create_main_cluster = false\n' >/etc/postgresql-common/createcluster.conf
	export DEBIAN_FRONTEND=noninteractive
	install() { apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold postgresql >&2; }
	install || { apt-get update -q >&2 && install; }
	programs=$(newest)
fi
[ -x "$programs/postgres" ] || { say "no server in $programs"; exit 3; }
printf '%s\n' "$programs"
