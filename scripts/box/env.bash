# shellcheck shell=bash disable=SC2034
# Sourced by box and nfs: where a bed (a fabric and its boxes) keeps its state, and what both need to find it.

: "${BOX_PREFIX:=shoal}"                    # names network namespaces and cgroups: one bed, one prefix
: "${BOX_DIR:=/run/shoal-box/$BOX_PREFIX}"  # state of this bed
: "${BOX_NET:=}"                            # first three bytes of the fabric's net
: "${BOX_SHARED:=}"                         # a directory that every box sees as /shared
: "${BOX_DISK:=4g}"                         # upper limit of what a box can write to its disk

self=${0##*/}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache
fab_ns=$BOX_PREFIX-fab

die() { echo "$self: $*" >&2; exit 1; }

# A dash would let the prefix "a" claim what the prefix "a-b" made.
[[ $BOX_PREFIX =~ ^[a-z][a-z0-9]{0,14}$ ]] || die "BOX_PREFIX=$BOX_PREFIX: want lower-case letters and digits, 15 at most"

# The net is settled when the fabric is made, so that later commands need not repeat it.
if [[ -e $BOX_DIR/net ]]; then
	net=$(<"$BOX_DIR/net")
	[[ -z $BOX_NET || $BOX_NET == "$net" ]] || die "BOX_NET=$BOX_NET, but the fabric in $BOX_DIR is on $net.0/24"
else
	net=${BOX_NET:-10.77.0}
fi
[[ $net =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "BOX_NET=$net: want the first three bytes of a net, such as 10.77.0"

if [[ $BOX_SHARED ]]; then
	[[ -d $BOX_SHARED ]] || die "BOX_SHARED=$BOX_SHARED is no directory"
	BOX_SHARED=$(cd "$BOX_SHARED" && pwd)
fi

fabric_up() { [[ -e /run/netns/$fab_ns ]]; }

# `ip netns exec` would remount /sys and hide the cgroups, hence nsenter.
in_fabric() { nsenter --net="/run/netns/$fab_ns" "$@"; }

# until_ok SECONDS CMD...: retry a command until it succeeds.
until_ok() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.05
	done
}
