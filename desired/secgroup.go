package desired

import (
	"fmt"
	"net/netip"
)

// AddrSet is the set of addresses of a security group's members. Its item's id is the group's.
// The agent keeps it as two ipsets, one for each family, whose names start with Name.
type AddrSet struct {
	// Name is the ipsets' name without the family's suffix, at most 27 bytes.
	Name string `json:"name"`
	// Addrs are the members, sorted, without doubles.
	Addrs []netip.Addr `json:"addrs,omitempty"`
}

// Validate names the first field that is wrong.
func (a *AddrSet) Validate() error {
	if !validName(a.Name) || len(a.Name) > 27 {
		return fmt.Errorf("name: %q is not a set name of 1 to 27 bytes of [A-Za-z0-9_.-]", a.Name)
	}
	for i, addr := range a.Addrs {
		if !addr.IsValid() {
			return fmt.Errorf("addrs[%d]: not an address", i)
		}
	}
	return nil
}

// SecGroup is the stateful packet filter of one NIC: the union of the rules of its groups. Its item's id is the NIC's.
// What no rule accepts meets the default of its direction.
type SecGroup struct {
	// Tap is the NIC's device on the host.
	Tap string `json:"tap"`
	// Chain is the chains' name without the direction's suffix, at most 25 bytes.
	Chain string `json:"chain"`
	// MAC and IPs are what the NIC may send from, when AntiSpoof is on.
	MAC       string       `json:"mac"`
	IPs       []netip.Addr `json:"ips,omitempty"`
	AntiSpoof bool         `json:"anti_spoof,omitempty"`
	// Ingress is traffic to the guest, Egress from it. Sorted, without doubles.
	Ingress       []Rule  `json:"ingress,omitempty"`
	Egress        []Rule  `json:"egress,omitempty"`
	IngressPolicy Verdict `json:"ingress_policy"`
	EgressPolicy  Verdict `json:"egress_policy"`
}

// Verdict is what becomes of a packet.
type Verdict string

// The verdicts.
const (
	Accept Verdict = "accept"
	Drop   Verdict = "drop"
)

// Protocol is what a rule matches.
type Protocol string

// The protocols. ICMP matches ICMPv6 in rules of the other family.
const (
	ProtoAll  Protocol = "all"
	ProtoTCP  Protocol = "tcp"
	ProtoUDP  Protocol = "udp"
	ProtoICMP Protocol = "icmp"
)

// Rule accepts packets that match all its fields.
type Rule struct {
	Protocol Protocol `json:"protocol"`
	// Ports are the destination ports, inclusive, with tcp and udp; 0-0 for all.
	FromPort int `json:"from_port,omitempty"`
	ToPort   int `json:"to_port,omitempty"`
	// CIDR is the other side: source with ingress, destination with egress. Invalid for any address of both families.
	CIDR netip.Prefix `json:"cidr,omitzero"`
	// Set is the Name of an AddrSet that the other side must be in, too; empty for any.
	Set string `json:"set,omitempty"`
}

// Validate names the first field that is wrong.
func (s *SecGroup) Validate() error {
	if err := checkLinkName("tap", s.Tap); err != nil {
		return err
	}
	if !validName(s.Chain) || len(s.Chain) > 25 {
		return fmt.Errorf("chain: %q is not a chain name of 1 to 25 bytes of [A-Za-z0-9_.-]", s.Chain)
	}
	if err := checkMAC(s.MAC); err != nil {
		return fmt.Errorf("mac: %w", err)
	}
	for _, v := range []struct {
		field string
		v     Verdict
	}{{"ingress_policy", s.IngressPolicy}, {"egress_policy", s.EgressPolicy}} {
		if v.v != Accept && v.v != Drop {
			return fmt.Errorf("%s: %q is neither accept nor drop", v.field, v.v)
		}
	}
	for _, dir := range []struct {
		field string
		rules []Rule
	}{{"ingress", s.Ingress}, {"egress", s.Egress}} {
		for i, r := range dir.rules {
			if err := r.validate(); err != nil {
				return fmt.Errorf("%s[%d].%w", dir.field, i, err)
			}
		}
	}
	return nil
}

func (r Rule) validate() error {
	switch r.Protocol {
	case ProtoTCP, ProtoUDP:
		if r.FromPort < 0 || r.ToPort > 65535 || r.FromPort > r.ToPort {
			return fmt.Errorf("from_port: %d-%d is not a range within 0..65535", r.FromPort, r.ToPort)
		}
	case ProtoAll, ProtoICMP:
		if r.FromPort != 0 || r.ToPort != 0 {
			return fmt.Errorf("from_port: protocol %s has no ports", r.Protocol)
		}
	default:
		return fmt.Errorf("protocol: %q is not one of all, tcp, udp, icmp", r.Protocol)
	}
	if r.Set != "" && !validName(r.Set) {
		return fmt.Errorf("set: %q is not a set name", r.Set)
	}
	return nil
}
