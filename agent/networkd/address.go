package networkd

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Addressing says what addresses a device has.
type Addressing struct {
	// DHCP asks for an IPv4 address, Auto6 takes IPv6 ones from router advertisements.
	DHCP, Auto6 bool
	Static      []netip.Prefix
	// Gateways are those of default routes, one for a family at most.
	Gateways []netip.Addr
	// NoRoute takes no default route from anybody, IgnoreDNS no name servers from DHCP.
	NoRoute, IgnoreDNS bool
	DNS                []netip.Addr
	Search             []string
}

// Sections are the lines that bring it about: [Network], [DHCPv4] and [IPv6AcceptRA], of which some may be empty.
func (a Addressing) Sections() []Section {
	var network, dhcp, ra []string
	add := func(format string, args ...any) { network = append(network, fmt.Sprintf(format, args...)) }
	if a.DHCP {
		add("DHCP=ipv4")
		// The same address after a new installation: the default identifier is made from the machine-id.
		dhcp = append(dhcp, "ClientIdentifier=mac")
		if a.NoRoute {
			dhcp = append(dhcp, "UseGateway=no")
		}
		if a.IgnoreDNS {
			dhcp = append(dhcp, "UseDNS=no")
		}
	}
	if a.Auto6 {
		add("IPv6AcceptRA=yes")
		if a.NoRoute {
			ra = append(ra, "UseGateway=no")
		}
	} else {
		add("IPv6AcceptRA=no")
		if !slices.ContainsFunc(a.Static, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			add("LinkLocalAddressing=no")
		}
	}
	for _, p := range a.Static {
		add("Address=%s", p)
	}
	for _, g := range a.Gateways {
		if !a.NoRoute {
			add("Gateway=%s", g)
		}
	}
	for _, d := range a.DNS {
		add("DNS=%s", d)
	}
	if len(a.Search) > 0 {
		add("Domains=%s", strings.Join(a.Search, " "))
	}
	return []Section{{Name: "Network", Lines: network}, {Name: "DHCPv4", Lines: dhcp}, {Name: "IPv6AcceptRA", Lines: ra}}
}

// The keys of [Network], and the sections, that say what addresses and routes a device has.
func addressKeys() []string {
	return []string{"Address", "Gateway", "DHCP", "DNS", "Domains", "DNSDefaultRoute", "NTP", "IPv6AcceptRA", "LinkLocalAddressing", "IPv6PrivacyExtensions"}
}

func addressSections() []string {
	return []string{"Address", "Route", "RoutingPolicyRule", "DHCPv4", "DHCPv6", "IPv6AcceptRA"}
}

// TakeAddressing removes everything that gives the unit's device addresses and routes, and returns it for PutAddressing.
func (u *Unit) TakeAddressing() []Section {
	var taken []Section
	u.Sections = slices.DeleteFunc(u.Sections, func(s Section) bool {
		if !slices.Contains(addressSections(), s.Name) {
			return false
		}
		taken = append(taken, s)
		return true
	})
	network := Section{Name: "Network"}
	for n := range u.Sections {
		if u.Sections[n].Name != "Network" {
			continue
		}
		u.Sections[n].Lines = slices.DeleteFunc(u.Sections[n].Lines, func(line string) bool {
			key, _, ok := assignment(line)
			mine := ok && slices.Contains(addressKeys(), key)
			if mine {
				network.Lines = append(network.Lines, line)
			}
			return mine
		})
	}
	u.Sections = slices.DeleteFunc(u.Sections, func(s Section) bool { return s.Name == "Network" && len(trimBlank(s.Lines)) == 0 })
	return append([]Section{network}, taken...)
}

// PutAddressing gives the unit's device these addresses and routes, and no others.
func (u *Unit) PutAddressing(sections []Section) {
	u.TakeAddressing()
	for _, s := range sections {
		switch {
		case len(s.Lines) == 0:
		case s.Name == "Network":
			u.lines(s.Name, s.Lines...)
		default:
			u.Sections = append(u.Sections, Section{Name: s.Name, Lines: slices.Clone(s.Lines)})
		}
	}
}

// Addressed reports whether the unit gives its device an address.
func (u *Unit) Addressed() bool {
	if len(u.Addresses()) > 0 {
		return true
	}
	v := strings.ToLower(u.Value("Network", "DHCP"))
	return v != "" && !slices.Contains([]string{"no", "none", "false", "off", "0", "n", "f"}, v)
}

// Addresses are the static addresses of a .network unit. What is no address is left out.
func (u *Unit) Addresses() []netip.Prefix {
	var out []netip.Prefix
	for _, v := range slices.Concat(u.Values("Network", "Address"), u.Values("Address", "Address")) {
		if p, err := netip.ParsePrefix(v); err == nil {
			out = append(out, p)
		}
	}
	return out
}
