package secgroup

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"shoal/agent/xtables"
	"shoal/desired"
)

// Chains that all NICs share. See the package comment.
const (
	chainForward = xtables.OwnPrefix + "FWD"
	chainHost    = xtables.OwnPrefix + "HOST"
	chainARP     = xtables.OwnPrefix + "ARP"
	chainEgress  = xtables.OwnPrefix + "E-"
	chainIngress = xtables.OwnPrefix + "I-"
)

// Suffixes of a NIC's chains.
const (
	suffixIngress = "-i" // to the guest
	suffixEgress  = "-e" // from the guest
	suffixSource  = "-s" // addresses that the guest may send from
	suffixARP     = "-a" // ebtables: MAC and ARP that the guest may send
)

// Names of devices as documents have them.
const (
	anyTap  = "sht+" // guests of this host
	anyDHCP = "shd+" // ports of our DHCP servers
)

// comment marks a chain as ours and tells whose it is.
const comment = "shoal:"

// tools are the packet filters in the order in which they are changed.
var tools = [...]xtables.Tool{xtables.IPv4, xtables.IPv6, xtables.Ethernet}

// hooksOf are the ways into our chains. Bridged packets of guests are filtered in FORWARD. What a guest sends to the host itself is not
// bridged any more when iptables sees it, hence INPUT, with only the guest's egress rules.
func hooksOf(tool xtables.Tool) []xtables.Hook {
	if tool == xtables.Ethernet {
		return []xtables.Hook{
			{Chain: "FORWARD", Rule: "-j " + chainARP},
			{Chain: "INPUT", Rule: "-j " + chainARP},
		}
	}
	return []xtables.Hook{
		{Chain: "FORWARD", Rule: "-m physdev --physdev-is-bridged -j " + chainForward},
		{Chain: "INPUT", Rule: "-m physdev --physdev-in " + anyTap + " -j " + chainHost},
	}
}

// bucketOf spreads NICs over some 16 chains, so that a packet meets 32 + 2*NICs/16 rules in place of 2*NICs: names of taps go on with a
// random hex digit.
func bucketOf(tap string) string { return tap[:min(4, len(tap))] }

// line is the rule that leads a NIC's packets into its chain.
func egressLine(tap, base string) string {
	return "-m physdev --physdev-in " + tap + " -j " + base + suffixEgress
}

func ingressLine(tap, base string) string {
	return "-m physdev --physdev-out " + tap + " --physdev-is-bridged -j " + base + suffixIngress
}

func arpLine(tap, base string) string { return "-i " + tap + " -j " + base + suffixARP }

// forwardRules dispatch bridged packets into the buckets. A packet between two guests of this host passes both: the sender's egress and
// the receiver's ingress. Hence no rule of a NIC accepts; it returns, and what no NIC dropped is accepted at the end: a host's own
// policy for routed traffic (Docker sets DROP) must not cut off guests.
func forwardRules(keys []string) []string {
	var rules, accept []string
	for _, dir := range []struct{ option, chain string }{{"--physdev-in", chainEgress}, {"--physdev-out", chainIngress}} {
		for _, k := range keys {
			rules = append(rules, fmt.Sprintf("-m physdev %s %s+ --physdev-is-bridged -j %s%s", dir.option, k, dir.chain, k))
			a := fmt.Sprintf("-m physdev %s %s+ --physdev-is-bridged -j ACCEPT", dir.option, k[:min(3, len(k))])
			if !slices.Contains(accept, a) {
				accept = append(accept, a)
			}
		}
	}
	return append(rules, accept...)
}

// hostRules dispatch what guests send to the host. They only forbid: what is left meets the host's own rules.
func hostRules(keys []string) []string {
	var rules []string
	for _, k := range keys {
		rules = append(rules, fmt.Sprintf("-m physdev --physdev-in %s+ -j %s%s", k, chainEgress, k))
	}
	return rules
}

// content is rules by tool and chain.
type content map[xtables.Tool]map[string][]string

func (c content) set(tool xtables.Tool, chain string, rules []string) {
	if c[tool] == nil {
		c[tool] = map[string][]string{}
	}
	c[tool][chain] = rules
}

// normal is the content in the form that a table is read in.
func (c content) normal() content {
	n := content{}
	for tool, chains := range c {
		for chain, rules := range chains {
			lines := make([]string, len(rules))
			for i, r := range rules {
				lines[i] = xtables.Normal(r)
			}
			n.set(tool, chain, lines)
		}
	}
	return n
}

// render is the chains of one NIC.
func render(id string, w desired.SecGroup) content {
	c := content{}
	for _, tool := range []xtables.Tool{xtables.IPv4, xtables.IPv6} {
		c.set(tool, w.Chain+suffixIngress, ingress(tool, id, w))
		c.set(tool, w.Chain+suffixEgress, egress(tool, id, w))
		if w.AntiSpoof {
			c.set(tool, w.Chain+suffixSource, sources(tool, w))
		}
	}
	if w.AntiSpoof {
		c.set(xtables.Ethernet, w.Chain+suffixARP, arp(w))
	}
	return c
}

func ingress(tool xtables.Tool, id string, w desired.SecGroup) []string {
	rules := []string{established(id)}
	// Answers of the DHCP server to broadcasts belong to no connection that was seen. They come from our own server's port or,
	// in networks that we don't serve, from elsewhere, but never from another guest of this host.
	if tool == xtables.IPv4 {
		rules = append(rules, "-p udp -m physdev ! --physdev-in "+anyTap+" -m udp --sport 67 --dport 68 -j RETURN")
	} else {
		rules = append(rules, "-p udp -m physdev ! --physdev-in "+anyTap+" -m udp --sport 547 --dport 546 -j RETURN",
			// IPv6 does not work without: multicast listener queries, neighbour solicitation and advertisement from all; router
			// advertisements from no guest of this host.
			icmp6(130), icmp6(135), icmp6(136),
			"-p ipv6-icmp -m physdev ! --physdev-in "+anyTap+" -m icmp6 --icmpv6-type 134 -j RETURN")
	}
	rules = append(rules, "-m conntrack --ctstate INVALID -j DROP")
	for _, r := range w.Ingress {
		rules = appendRule(rules, tool, r, "-s", "src")
	}
	return append(rules, policy(w.IngressPolicy))
}

func egress(tool xtables.Tool, id string, w desired.SecGroup) []string {
	var rules []string
	if w.AntiSpoof {
		rules = append(rules, "-j "+w.Chain+suffixSource)
	}
	rules = append(rules, established(id),
		// Our DHCP server and what else its port serves (names) are reachable whatever the policy.
		"-m physdev --physdev-out "+anyDHCP+" --physdev-is-bridged -j RETURN")
	if tool == xtables.IPv4 {
		rules = append(rules, "-p udp -m udp --sport 68 --dport 67 -j RETURN")
	} else {
		rules = append(rules, "-p udp -m udp --sport 546 --dport 547 -j RETURN",
			icmp6(131), icmp6(132), icmp6(133), icmp6(135), icmp6(136), icmp6(143))
	}
	rules = append(rules, "-m conntrack --ctstate INVALID -j DROP")
	for _, r := range w.Egress {
		rules = appendRule(rules, tool, r, "-d", "dst")
	}
	return append(rules, policy(w.EgressPolicy))
}

// established comes first: most packets go no further. A connection that was accepted stays so when rules change.
func established(id string) string {
	return "-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"" + comment + id + "\" -j RETURN"
}

func icmp6(kind int) string {
	return fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d -j RETURN", kind)
}

func policy(v desired.Verdict) string {
	if v == desired.Accept {
		return "-j RETURN"
	}
	return "-j DROP"
}

// appendRule adds what a rule is in one family, which may be nothing.
func appendRule(rules []string, tool xtables.Tool, r desired.Rule, address, direction string) []string {
	var b strings.Builder
	if r.CIDR.IsValid() {
		if r.CIDR.Addr().Is4() != (tool == xtables.IPv4) {
			return rules
		}
		// A range of all addresses is not printed back.
		if r.CIDR.Bits() > 0 {
			fmt.Fprintf(&b, "%s %s ", address, r.CIDR.Masked())
		}
	}
	switch r.Protocol {
	case desired.ProtoTCP, desired.ProtoUDP:
		fmt.Fprintf(&b, "-p %s ", r.Protocol)
		switch {
		case r.FromPort == 0 && r.ToPort == 0, r.FromPort == 0 && r.ToPort == 65535:
		case r.FromPort == r.ToPort:
			fmt.Fprintf(&b, "-m %s --dport %d ", r.Protocol, r.FromPort)
		default:
			fmt.Fprintf(&b, "-m %s --dport %d:%d ", r.Protocol, r.FromPort, r.ToPort)
		}
	case desired.ProtoICMP:
		if tool == xtables.IPv4 {
			b.WriteString("-p icmp ")
		} else {
			b.WriteString("-p ipv6-icmp ")
		}
	default: // every protocol
	}
	if r.Set != "" {
		fmt.Fprintf(&b, "-m set --match-set %s %s ", setName(r.Set, tool == xtables.IPv4), direction)
	}
	return append(rules, b.String()+"-j RETURN")
}

// sources are what a guest may send, in one family.
func sources(tool xtables.Tool, w desired.SecGroup) []string {
	rules := []string{"-m mac ! --mac-source " + w.MAC + " -j DROP"}
	if tool == xtables.IPv4 {
		// Nobody but us serves DHCP here; a guest without an address may ask.
		rules = append(rules, "-p udp -m udp --sport 67 --dport 68 -j DROP",
			"-s 0.0.0.0/32 -p udp -m udp --sport 68 --dport 67 -j RETURN")
	} else {
		rules = append(rules, "-p udp -m udp --sport 547 --dport 546 -j DROP",
			"-p ipv6-icmp -m icmp6 --icmpv6-type 134 -j DROP",
			// Duplicate address detection, and addresses of the link, which guests choose themselves.
			"-s ::/128 -p ipv6-icmp -j RETURN", "-s fe80::/10 -j RETURN")
	}
	for _, ip := range w.IPs {
		if ip.Is4() == (tool == xtables.IPv4) {
			rules = append(rules, "-s "+netip.PrefixFrom(ip, ip.BitLen()).String()+" -j RETURN")
		}
	}
	return append(rules, "-j DROP")
}

// arp is what a guest may send below IP: frames from its own MAC, and ARP that claims nothing but its own addresses.
func arp(w desired.SecGroup) []string {
	rules := []string{
		"-s ! " + w.MAC + " -j DROP",
		"-p ARP --arp-mac-src ! " + w.MAC + " -j DROP",
		// Probes for duplicate addresses (RFC 5227) have no sender's address.
		"-p ARP --arp-ip-src 0.0.0.0 -j RETURN",
	}
	for _, ip := range w.IPs {
		if ip.Is4() {
			rules = append(rules, "-p ARP --arp-ip-src "+ip.String()+" -j RETURN")
		}
	}
	return append(rules, "-p ARP -j DROP")
}

// baseOf takes a NIC's chain's suffix off; ok is false for other chains.
func baseOf(chain string) (base string, ok bool) {
	for _, s := range []string{suffixIngress, suffixEgress, suffixSource, suffixARP} {
		if b, ok := strings.CutSuffix(chain, s); ok && b != "" {
			return b, true
		}
	}
	return "", false
}
