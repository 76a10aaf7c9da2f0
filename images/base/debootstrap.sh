#!/bin/sh
# Make the base image's root file system from Debian packages, for a host that reaches no registry.
# usage: debootstrap.sh OUT.tar   (as root; takes a minute or two; says what it does on standard error)
#
# Mirror and proxy are the host's own: those of its apt. A host of another release uses debootstrap's default mirror.
set -eu
out=$1
recipe=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
packages=ca-certificates,git,make,patch,procps,python3,ripgrep

if ! command -v debootstrap >/dev/null; then
	echo "debootstrap is missing and needed once; installing it" >&2
	apt-get install -y -q --no-install-recommends debootstrap >&2 ||
		{ apt-get update -q >&2 && apt-get install -y -q --no-install-recommends debootstrap >&2; }
fi

mirror=
if command -v apt-get >/dev/null; then
	# shellcheck disable=SC2016  # the dollar signs are apt's
	mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(SITE)' 'Created-By: Packages' 2>/dev/null |
		sed -n "s/^$suite main //p" | head -n 1)
	eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
	[ -z "${http_proxy:-}" ] || export http_proxy
	[ -z "${https_proxy:-}" ] || export https_proxy
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/andon-base.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
root=$work/root

# shellcheck disable=SC2086  # an empty mirror is no argument
debootstrap --variant=minbase --include="$packages" "$suite" "$root" $mirror >&2 || {
	tail -n 20 "$root/debootstrap/debootstrap.log" >&2 2>/dev/null || true
	exit 1
}

cat >"$root/etc/dpkg/dpkg.cfg.d/andon-slim" <<'SLIM'
path-exclude /usr/share/doc/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/usr/share/man/* \
	"$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/apt/lists/* "$root"/var/log/*
cp "$recipe/finish.sh" "$root/finish.sh"
chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh /finish.sh >&2
rm "$root/finish.sh"

# What the host's debootstrap copied in from the host; the engine writes its own.
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
tar --numeric-owner --xattrs --sort=name -C "$root" -cf "$out" .
