# shellcheck shell=bash
# Source this to work with the running demo: `. scripts/demo/env.bash`, then shoalctl, nats, look, box and guest are commands
# of the demo. They are functions because its controller listens in a network namespace, not on the machine.

demo_repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
demo_dir=$demo_repo/.cache/demo
demo_net=10.77.0

export BOX_PREFIX=shoaldemo BOX_NET=$demo_net BOX_SHARED=$demo_dir/shared
export SHOAL_SERVER=tls://$demo_net.1:4222 SHOAL_CREDS=$demo_dir/controller/admin.creds SHOAL_CA=$demo_dir/controller/ca.pem

box() { "$demo_repo/scripts/box/box" "$@"; }

shoalctl() { box fab "$demo_repo/bin/shoalctl" "$@"; }

# nats: the plain NATS client with the administrator's credentials.
nats() { box fab "$demo_repo/.cache/bin/nats" --no-context -s "$SHOAL_SERVER" --tlsca "$SHOAL_CA" --creds "$SHOAL_CREDS" --inbox-prefix _INBOX_admin "$@"; }

# look: the same with an inspector's credentials, which are made at the first use.
look() {
	local creds=$demo_dir/look.creds
	[[ -e $creds ]] || "$demo_repo/bin/shoal-controller" creds --identity "$demo_dir/controller/identity" --role inspector --name look --out "$creds" || return
	box fab "$demo_repo/.cache/bin/nats" --no-context -s "$SHOAL_SERVER" --tlsca "$SHOAL_CA" --creds "$creds" --inbox-prefix _INBOX_inspector-look "$@"
}

# guest VM CMD...: run a command in a guest, over the serial console of the host that it is on.
guest() {
	local vm id host
	vm=$(shoalctl vm get "$1" -o json) || return
	id=$(jq -r .id <<<"$vm")
	host=$(jq -r .status.host <<<"$vm")
	shift
	box exec "$host" /shared/run "shoal-$id" "$*"
}
