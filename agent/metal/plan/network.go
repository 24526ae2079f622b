package plan

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"shoal/agent/networkd"
	"shoal/desired/kickstart"
)

// unit is what systemd-networkd is told of one device.
type unit struct {
	name string
	// match finds it; netdev makes it, for what is not a piece of hardware.
	match  []string
	netdev *networkd.Unit
	// network, link, dhcp, ra, routes are the lines of these sections.
	network, link, dhcp, ra []string
	// addressed: a line of the kickstart says what addresses it has.
	addressed bool
	mtu       int
	// under are the devices that this one is made of.
	under []string
	at    kickstart.Pos
}

// network writes the units of systemd-networkd.
func (p *planner) network() {
	p.units = map[string]*unit{}
	made := map[string]bool{}
	for _, n := range p.ks.Networks {
		if n.VLAN > 0 {
			made[n.Name] = true
		}
		if len(n.Bond) > 0 || len(n.Bridge) > 0 {
			made[n.Device] = true
		}
	}
	for _, n := range p.ks.Networks {
		p.device(n, made)
	}
	for _, name := range sortedKeys(p.units) {
		p.raise(name, p.units[name].mtu, 0)
	}
	if len(p.ks.Networks) == 0 {
		p.note(kickstart.Pos{File: p.file()}, "there is no network line: every interface asks for an address by DHCP")
		p.units["default"] = &unit{name: "default", match: []string{"Type=ether", "Kind=!*"}, addressed: true, network: []string{"DHCP=yes"}, dhcp: []string{"ClientIdentifier=mac"}}
	}
	for _, name := range sortedKeys(p.units) {
		p.units[name].write(p)
	}
	p.out.Files = append(p.out.Files, File{Path: "/etc/systemd/networkd.conf.d/shoal.conf", Mode: 0o644, Content: "# Routes and rules that are the agent's stay when networkd starts anew.\n[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"})
}

// get gives the unit of a device: one that the kickstart makes, or an interface of the machine.
func (p *planner) get(name string, made map[string]bool, at kickstart.Pos) *unit {
	u := &unit{name: name, at: at}
	if made[name] && !p.hardware(name) {
		u.match = []string{"Name=" + name}
	} else {
		nic := p.nic(name, at)
		if nic == nil {
			return &unit{name: name}
		}
		u.name, u.match = nic.Name, []string{"Name=" + nic.Name}
		if name != nic.Name {
			// Named by its MAC or found by its cable: it stays this one whatever the kernel calls it. The permanent address is
			// the one that a VLAN or a bond on top does not share.
			u.match = []string{"PermanentMACAddress=" + nic.MAC}
		}
	}
	if have, ok := p.units[u.name]; ok {
		return have
	}
	p.units[u.name] = u
	return u
}

func (p *planner) hardware(name string) bool {
	return name == "link" || name == "bootif" || slices.ContainsFunc(p.m.NICs, func(n NIC) bool { return n.Name == name || n.MAC == strings.ToLower(name) })
}

// nic finds an interface of the machine.
func (p *planner) nic(name string, at kickstart.Pos) *NIC {
	var list []string
	for i := range p.m.NICs {
		n := &p.m.NICs[i]
		if n.Name == name || n.MAC == strings.ToLower(name) || name == "link" && n.Carrier || name == "bootif" && p.m.BootMAC != "" && n.MAC == p.m.BootMAC {
			return n
		}
		s := n.Name + " (" + n.MAC
		if !n.Carrier {
			s += ", no cable"
		}
		list = append(list, s+")")
	}
	have := strings.Join(list, ", ")
	switch {
	case len(list) == 0:
		p.fail(at, "", "network: %s: the machine has no network interface", name)
	case name == "link":
		p.note(at, "network: no interface has a cable; %s is taken", p.m.NICs[0].Name)
		return &p.m.NICs[0]
	case name == "bootif":
		p.fail(at, "use a name, a MAC or link", "network: the machine was not started from the network, so bootif is none of %s", have)
	default:
		p.fail(at, "", "network: there is no interface %s; the machine has %s", name, have)
	}
	return nil
}

// device reads one line.
func (p *planner) device(n kickstart.Network, made map[string]bool) {
	below := p.get(n.Device, made, n.At)
	if len(n.Bond) > 0 {
		below.netdev = networkd.Bond(below.name, n.BondOptions)
	}
	if len(n.Bridge) > 0 {
		below.netdev = networkd.Bridge(below.name, n.BridgeOptions)
	}
	for kind, members := range map[string][]string{"Bond": n.Bond, "Bridge": n.Bridge} {
		for _, m := range members {
			s := p.get(m, made, n.At)
			s.network = append(s.network, kind+"="+below.name)
			if kind == "Bond" && n.BondOptions["primary"] == m {
				s.network = append(s.network, "PrimarySlave=yes")
			}
			below.under = append(below.under, s.name)
		}
	}
	u := below
	if n.VLAN > 0 {
		u = p.get(n.Name, map[string]bool{n.Name: true}, n.At)
		u.netdev = networkd.VLAN(u.name, n.VLAN)
		u.under = append(u.under, below.name)
		below.network = append(below.network, "VLAN="+u.name)
	}
	u.mtu = n.MTU
	if p.member(u.name) {
		// Addresses of a member are meaningless; they are those of the bond or bridge.
		return
	}
	u.addresses(n)
	p.say("network %s: %s", u.name, describe(n))
}

func (p *planner) member(name string) bool {
	return slices.ContainsFunc(p.ks.Networks, func(n kickstart.Network) bool {
		return slices.Contains(n.Bond, name) || slices.Contains(n.Bridge, name)
	})
}

func describe(n kickstart.Network) string {
	var all []string
	switch {
	case n.Static.IsValid():
		all = append(all, n.Static.String())
	case n.DHCP:
		all = append(all, "DHCP")
	}
	if n.Static6.IsValid() {
		all = append(all, n.Static6.String())
	}
	if len(all) == 0 {
		all = append(all, "no address")
	}
	if len(n.Bond) > 0 {
		all = append(all, "bond of "+strings.Join(n.Bond, ", "))
	}
	if len(n.Bridge) > 0 {
		all = append(all, "bridge of "+strings.Join(n.Bridge, ", "))
	}
	if n.VLAN > 0 {
		all = append(all, fmt.Sprintf("VLAN %d on %s", n.VLAN, n.Device))
	}
	return strings.Join(all, ", ")
}

func (u *unit) addresses(n kickstart.Network) {
	u.addressed = true
	a := networkd.Addressing{DHCP: n.DHCP, Auto6: n.Auto6, NoRoute: n.NoRoute, IgnoreDNS: n.IgnoreDNS, DNS: n.DNS, Search: n.Search}
	for _, p := range []netip.Prefix{n.Static, n.Static6} {
		if p.IsValid() {
			a.Static = append(a.Static, p)
		}
	}
	for _, g := range []netip.Addr{n.Gateway, n.Gateway6} {
		if g.IsValid() {
			a.Gateways = append(a.Gateways, g)
		}
	}
	for _, s := range a.Sections() {
		switch s.Name {
		case "Network":
			u.network = append(u.network, s.Lines...)
		case "DHCPv4":
			u.dhcp = append(u.dhcp, s.Lines...)
		default:
			u.ra = append(u.ra, s.Lines...)
		}
	}
	if n.Down {
		u.link = append(u.link, "ActivationPolicy=down", "RequiredForOnline=no")
	}
}

// raise makes what lies below a device carry at least its frames.
func (p *planner) raise(name string, mtu, depth int) {
	u := p.units[name]
	if u == nil || depth > 8 {
		return
	}
	u.mtu = max(u.mtu, mtu)
	for _, below := range u.under {
		p.raise(below, u.mtu, depth+1)
	}
}

func (u *unit) write(p *planner) {
	if u.netdev != nil {
		p.text(path.Join(networkd.Dir, networkd.NetDevFile(u.name)), u.netdev.String())
	}
	if !u.addressed {
		u.network = append(u.network, networkd.NoAddress()...)
	}
	if u.mtu > 0 {
		u.link = append(u.link, "MTUBytes="+strconv.Itoa(u.mtu))
	}
	network := networkd.Network(u.match, networkd.Section{Name: "Link", Lines: u.link}, networkd.Section{Name: "Network", Lines: u.network},
		networkd.Section{Name: "DHCPv4", Lines: u.dhcp}, networkd.Section{Name: "IPv6AcceptRA", Lines: u.ra})
	p.text(path.Join(networkd.Dir, networkd.NetworkFile(u.name)), network.String())
}
