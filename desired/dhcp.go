package desired

import (
	"fmt"
	"net"
	"net/netip"
)

// DHCP is the DHCP and DNS server of one layer 3 network on one host. It answers the VMs of this host only, and neither
// its answers nor its guests' questions leave the host. Its item's id is the layer 3 network's.
type DHCP struct {
	// Bridge is the bridge of the layer 2 network.
	Bridge string `json:"bridge"`
	// Namespace is the network namespace that the server runs in.
	Namespace string `json:"namespace"`
	// Port is the server's port on the bridge, at most 15 bytes.
	Port string `json:"port"`
	// Server is the server's own address with the network's prefix length. Every host has the same one.
	Server netip.Prefix `json:"server"`
	// Gateway is the default route that guests get; invalid for none.
	Gateway netip.Addr   `json:"gateway,omitzero"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Domain  string       `json:"domain,omitempty"`
	// MTU that guests are told; 0 for none.
	MTU int `json:"mtu,omitempty"`
	// Routes are static routes that guests are told.
	Routes []Route `json:"routes,omitempty"`
	// Entries are this host's NICs in the network, sorted by MAC.
	Entries []DHCPEntry `json:"entries,omitempty"`
}

// Route is a static route.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// DHCPEntry is a reservation.
type DHCPEntry struct {
	MAC      string     `json:"mac"`
	IP       netip.Addr `json:"ip"`
	Hostname string     `json:"hostname,omitempty"`
	// NoGateway is for a NIC that is not its guest's default one: it is told no default route and no DNS servers, which are
	// the default NIC's network's to give.
	NoGateway bool `json:"no_gateway,omitempty"`
}

// DHCPFacts is what is known of a DHCP server.
type DHCPFacts struct {
	// Leases are the addresses that guests have taken, by MAC.
	Leases map[string]netip.Addr `json:"leases,omitempty"`
}

// Validate names the first field that is wrong.
func (d *DHCP) Validate() error {
	if err := checkLinkName("bridge", d.Bridge); err != nil {
		return err
	}
	if err := checkLinkName("port", d.Port); err != nil {
		return err
	}
	if !validName(d.Namespace) {
		return fmt.Errorf("namespace: %q is not a name of 1 to 64 bytes of [A-Za-z0-9_.-]", d.Namespace)
	}
	if !d.Server.IsValid() {
		return fmt.Errorf("server: must be an address with prefix length")
	}
	if d.Domain != "" && !validName(d.Domain) {
		return fmt.Errorf("domain: %q is not a domain name", d.Domain)
	}
	for i, e := range d.Entries {
		if err := checkMAC(e.MAC); err != nil {
			return fmt.Errorf("entries[%d].mac: %w", i, err)
		}
		if !e.IP.IsValid() {
			return fmt.Errorf("entries[%d].ip: must be set", i)
		}
		if e.Hostname != "" && !validName(e.Hostname) {
			return fmt.Errorf("entries[%d].hostname: %q is not a host name", i, e.Hostname)
		}
	}
	return nil
}

// validName accepts what host names, domains and our own file and namespace names are made of. It is deliberately
// narrow: these strings end up in configuration files and command lines.
func validName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// checkMAC wants the canonical lower-case form of a unicast MAC: it is compared as text.
func checkMAC(s string) error {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m.String() != s || m[0]&1 != 0 {
		return fmt.Errorf("%q is not a unicast MAC like 52:54:00:12:34:56", s)
	}
	return nil
}
