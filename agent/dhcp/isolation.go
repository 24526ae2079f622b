package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"shoal/agent/host"
	"shoal/agent/xtables"
)

// Every host has a server with the same address in each network, and the uplink joins them to one wire. What keeps them apart are
// rules of ebtables in the chain SHOAL-DHCP, which comes first in FORWARD, INPUT and OUTPUT:
//
//	from a server's port:   only to guests of this host
//	to a server's port:     only from guests of this host
//	between a guest and each other port of a served bridge (its uplinks, whatever they are): no DHCP, and no ARP that asks for
//	the server's address or claims it
//
// The last part names each port: bridges can't be told apart otherwise by kernels without nft's ibrname, and other networks on the
// host may use the same address. Ports that come later are seen by Watch. Traffic between ports that are no guests', and in
// networks that we don't serve, is not looked at.
const chain = xtables.OwnPrefix + "DHCP"

const (
	guests  = "sht+"
	servers = "shd+"
)

// hooks are the ways into the chain.
func hooks() []xtables.Hook {
	var all []xtables.Hook
	for _, c := range []string{"FORWARD", "INPUT", "OUTPUT"} {
		all = append(all, xtables.Hook{Chain: c, Rule: "-j " + chain})
	}
	return all
}

// Isolation is the content of the chain for servers at these places and these links.
func Isolation(places map[string]Place, links []Link) []string {
	rules := []string{
		"-i " + servers + " -o " + guests + " -j RETURN",
		"-i " + servers + " -j DROP",
		"-i " + guests + " -o " + servers + " -j RETURN",
		"-o " + servers + " -j DROP",
	}
	var outside []string
	for _, id := range slices.Sorted(maps.Keys(places)) {
		p := places[id]
		for _, l := range links {
			if l.Master != p.Bridge || p.Bridge == "" || strings.HasPrefix(l.Name, guests[:3]) || strings.HasPrefix(l.Name, servers[:3]) {
				continue
			}
			for _, way := range []string{"-i " + guests + " -o " + l.Name, "-i " + l.Name + " -o " + guests} {
				addr := p.Server.Addr()
				if addr.Is4() {
					outside = append(outside,
						"-p IPv4 "+way+" --ip-proto udp --ip-dport 67:68 -j DROP",
						"-p ARP "+way+" --arp-ip-dst "+addr.String()+" -j DROP",
						"-p ARP "+way+" --arp-ip-src "+addr.String()+" -j DROP")
				} else {
					outside = append(outside, "-p IPv6 "+way+" --ip6-proto udp --ip6-dport 546:547 -j DROP")
				}
			}
		}
	}
	slices.Sort(outside)
	return append(rules, slices.Compact(outside)...)
}

// read gives ebtables' table. turn is held.
func (k *Kind) read(ctx context.Context) (xtables.Table, error) {
	if !k.known {
		out, err := k.run.Run(ctx, host.Command{Name: "ebtables", Args: []string{"--version"}})
		if err != nil {
			return nil, fmt.Errorf("find ebtables: %w", err)
		}
		k.nft, k.known = bytes.Contains(out, []byte("nf_tables")), true
	}
	gen, err := k.machine.Generation()
	exact := err == nil && k.nft
	if exact && k.table != nil && gen == k.gen {
		return k.table, nil
	}
	t, err := xtables.Read(ctx, k.run, xtables.Ethernet)
	if err != nil {
		return nil, err
	}
	k.table = nil
	if after, err := k.machine.Generation(); exact && err == nil && after == gen {
		k.table, k.gen = t, gen
	}
	return t, nil
}

// exposed says what is wrong with the rules.
func (k *Kind) exposed(ctx context.Context, links []Link) (string, error) {
	if err := k.turn.Take(ctx); err != nil {
		return "", err
	}
	defer k.turn.Give()
	places := k.all()
	if len(places) == 0 {
		return "", nil
	}
	t, err := k.read(ctx)
	if err != nil {
		return "", err
	}
	for _, h := range hooks() {
		if !t.Hooked(h) {
			return fmt.Sprintf("ebtables %s does not lead to %s first", h.Chain, chain), nil
		}
	}
	if !same(t[chain], Isolation(places, links)) {
		return "ebtables chain " + chain + " has not its rules", nil
	}
	return "", nil
}

func same(normal, rules []string) bool {
	return slices.EqualFunc(normal, rules, func(n, r string) bool { return n == xtables.Normal(r) })
}

// isolate puts the rules in force for all places, or takes them away with the last.
func (k *Kind) isolate(ctx context.Context, links []Link) error {
	if err := k.turn.Take(ctx); err != nil {
		return err
	}
	defer k.turn.Give()
	places := k.all()
	t, err := k.read(ctx)
	if err != nil {
		return err
	}
	s := xtables.NewScript(xtables.Ethernet, t)
	if len(places) == 0 {
		for _, h := range hooks() {
			s.Unhook(h)
		}
		s.Drop(chain)
	} else {
		rules := Isolation(places, links)
		if now, ok := t[chain]; !ok || !same(now, rules) {
			s.Chain(chain, rules)
		}
		for _, h := range hooks() {
			s.Hook(h)
		}
	}
	if s.Empty() {
		return nil
	}
	k.table = nil
	return s.Apply(ctx, k.run)
}
