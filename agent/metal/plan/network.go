package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"shoal/desired/kickstart"
)

// unit is what systemd-networkd is told of one device.
type unit struct {
	name string
	// match finds it; netdev makes it, for what is not a piece of hardware.
	match  string
	netdev string
	// network, link, dhcp, ra, routes are the lines of these sections.
	network, link, dhcp, ra []string
	// addressed: a line of the kickstart says what addresses it has.
	addressed bool
	mtu       int
	// under are the devices that this one is made of.
	under []string
	at    kickstart.Pos
}

// bondModes are the numbers of the bonding driver. It is read only.
var bondModes = []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

// bondKeys name options of the driver the way systemd.netdev(5) does, and say what their number counts. It is read only.
var bondKeys = map[string][2]string{
	"miimon": {"MIIMonitorSec", "ms"}, "updelay": {"UpDelaySec", "ms"}, "downdelay": {"DownDelaySec", "ms"}, "xmit_hash_policy": {"TransmitHashPolicy"}, "min_links": {"MinLinks"},
	"ad_select": {"AdSelect"}, "primary_reselect": {"PrimaryReselectPolicy"}, "fail_over_mac": {"FailOverMACPolicy"},
}

var bridgeKeys = map[string][2]string{
	"priority": {"Priority"}, "forward-delay": {"ForwardDelaySec"}, "hello-time": {"HelloTimeSec"}, "max-age": {"MaxAgeSec"}, "ageing-time": {"AgeingTimeSec"},
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
		p.units["default"] = &unit{name: "default", match: "Type=ether\nKind=!*\n", addressed: true, network: []string{"DHCP=yes"}, dhcp: []string{"ClientIdentifier=mac"}}
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
		u.match = "Name=" + name + "\n"
	} else {
		nic := p.nic(name, at)
		if nic == nil {
			return &unit{name: name}
		}
		u.name, u.match = nic.Name, "Name="+nic.Name+"\n"
		if name != nic.Name {
			// Named by its MAC or found by its cable: it stays this one whatever the kernel calls it. The permanent address is
			// the one that a VLAN or a bond on top does not share.
			u.match = "PermanentMACAddress=" + nic.MAC + "\n"
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
		below.netdev = "Kind=bond\n\n[Bond]\n" + bond(n.BondOptions)
	}
	if len(n.Bridge) > 0 {
		below.netdev = "Kind=bridge\n\n[Bridge]\n" + bridge(n.BridgeOptions)
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
		u.netdev = "Kind=vlan\n\n[VLAN]\nId=" + strconv.Itoa(n.VLAN) + "\n"
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
	add := func(format string, args ...any) { u.network = append(u.network, fmt.Sprintf(format, args...)) }
	if n.DHCP {
		add("DHCP=ipv4")
		// The same address after a new installation: the default identifier is made from the machine-id.
		u.dhcp = append(u.dhcp, "ClientIdentifier=mac")
		if n.NoRoute {
			u.dhcp = append(u.dhcp, "UseGateway=no")
		}
		if n.IgnoreDNS {
			u.dhcp = append(u.dhcp, "UseDNS=no")
		}
	}
	if n.Auto6 {
		add("IPv6AcceptRA=yes")
		if n.NoRoute {
			u.ra = append(u.ra, "UseGateway=no")
		}
	} else {
		add("IPv6AcceptRA=no")
		if !n.Static6.IsValid() {
			add("LinkLocalAddressing=no")
		}
	}
	for _, a := range []netip.Prefix{n.Static, n.Static6} {
		if a.IsValid() {
			add("Address=%s", a)
		}
	}
	for _, g := range []netip.Addr{n.Gateway, n.Gateway6} {
		if g.IsValid() && !n.NoRoute {
			add("Gateway=%s", g)
		}
	}
	for _, d := range n.DNS {
		add("DNS=%s", d)
	}
	if len(n.Search) > 0 {
		add("Domains=%s", strings.Join(n.Search, " "))
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
	if u.netdev != "" {
		p.out.Files = append(p.out.Files, File{Path: "/etc/systemd/network/10-" + u.name + ".netdev", Mode: 0o644, Content: "[NetDev]\nName=" + u.name + "\n" + u.netdev})
	}
	if !u.addressed {
		u.network = append(u.network, "LinkLocalAddressing=no", "IPv6AcceptRA=no")
	}
	if u.mtu > 0 {
		u.link = append(u.link, "MTUBytes="+strconv.Itoa(u.mtu))
	}
	var content strings.Builder
	content.WriteString("[Match]\n" + u.match)
	for _, s := range []struct {
		name  string
		lines []string
	}{{"Link", u.link}, {"Network", u.network}, {"DHCPv4", u.dhcp}, {"IPv6AcceptRA", u.ra}} {
		if len(s.lines) > 0 {
			fmt.Fprintf(&content, "\n[%s]\n%s\n", s.name, strings.Join(s.lines, "\n"))
		}
	}
	p.out.Files = append(p.out.Files, File{Path: "/etc/systemd/network/20-" + u.name + ".network", Mode: 0o644, Content: content.String()})
}

func bond(o map[string]string) string {
	mode := o["mode"]
	if n, err := strconv.Atoi(mode); err == nil && n < len(bondModes) {
		mode = bondModes[n]
	}
	if mode == "" {
		// The driver's own default.
		mode = "balance-rr"
	}
	lines := []string{"Mode=" + mode}
	if o["miimon"] == "" {
		lines = append(lines, "MIIMonitorSec=100ms")
	}
	for _, k := range sortedKeys(o) {
		if key, ok := bondKeys[k]; ok {
			lines = append(lines, key[0]+"="+o[k]+key[1])
		}
	}
	if r := o["lacp_rate"]; r != "" {
		lines = append(lines, "LACPTransmitRate="+map[string]string{"0": "slow", "1": "fast", "slow": "slow", "fast": "fast"}[r])
	}
	return strings.Join(lines, "\n") + "\n"
}

func bridge(o map[string]string) string {
	stp := "no"
	if v := o["stp"]; v == "yes" || v == "on" || v == "true" {
		stp = "yes"
	}
	lines := []string{"STP=" + stp}
	for _, k := range sortedKeys(o) {
		if key, ok := bridgeKeys[k]; ok {
			lines = append(lines, key[0]+"="+o[k])
		}
	}
	return strings.Join(lines, "\n") + "\n"
}
