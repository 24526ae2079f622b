package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"shoal/agent/networkd"
)

// Change is one thing that an operator does to the host's own network.
type Change interface {
	// String tells it to people.
	String() string
	// edit makes it in e, or says what stands against it, by the name of the field.
	edit(e *edit) error
}

// Rename calls the interface with a MAC, its permanent one, by a name, now and at each start.
type Rename struct{ MAC, Name string }

// MakeBond makes a bond of interfaces, and moves the addresses of the one that has any to it.
type MakeBond struct {
	Name string
	// Mode is lacp (802.3ad; the switch must do the same) or active-backup.
	Mode string
	NICs []string
	// Address, if it is given, takes the place of what the interfaces had.
	Address *Addressing
}

// MakeBridge makes a bridge with ports: interfaces, bonds, VLANs. Their addresses move as to a bond.
type MakeBridge struct {
	Name    string
	Ports   []string
	Address *Addressing
}

// MakeVLAN makes the device for a VLAN id on another device.
type MakeVLAN struct {
	Device string
	ID     int
	// Name is DEVICE.ID unless it is given.
	Name    string
	Address *Addressing
}

// AddNIC puts interfaces into a bond, or ports into a bridge.
type AddNIC struct {
	To   string
	NICs []string
}

// RemoveNIC takes interfaces out of a bond, or ports out of a bridge. They have no address afterwards.
type RemoveNIC struct {
	From string
	NICs []string
}

// SetAddress says what addresses a device has, instead of those that it had.
type SetAddress struct {
	Device string
	Addressing
}

// Delete removes a bond, bridge or VLAN with its addresses. What it was made of stays, without an address.
type Delete struct{ Name string }

// Addressing is what addresses a device has: from DHCP, static ones, or none.
type Addressing struct {
	DHCP   bool
	Static []netip.Prefix
	// Gateway is that of the default routes, one for a family at most.
	Gateway []netip.Addr
	DNS     []netip.Addr
}

// ParseAddressing reads what an operator writes: "dhcp", "none", or addresses as 10.0.0.5/24, with gateways and name servers.
func ParseAddressing(address, gateways, dns []string) (Addressing, error) {
	var a Addressing
	none := false
	for _, s := range address {
		switch s {
		case "dhcp":
			a.DHCP = true
		case "none":
			none = true
		default:
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return a, fmt.Errorf("address: %q is none of dhcp, none, and an address with its prefix length such as 10.0.0.5/24", s)
			}
			a.Static = append(a.Static, p)
		}
	}
	switch {
	case len(address) == 0:
		return a, errors.New("address: give dhcp, none, or addresses such as 10.0.0.5/24")
	case none && len(address) > 1:
		return a, errors.New("address: none goes with nothing else")
	}
	for _, list := range []struct {
		field string
		text  []string
		to    *[]netip.Addr
	}{{"gateway", gateways, &a.Gateway}, {"dns", dns, &a.DNS}} {
		for _, s := range list.text {
			ip, err := netip.ParseAddr(s)
			if err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
				return a, fmt.Errorf("%s: %q is not the address of a machine", list.field, s)
			}
			*list.to = append(*list.to, ip)
		}
	}
	return a, a.check()
}

// String tells it to people.
func (a Addressing) String() string {
	var all []string
	if a.DHCP {
		all = append(all, "DHCP")
	}
	for _, p := range a.Static {
		all = append(all, p.String())
	}
	if len(all) == 0 {
		return "no address"
	}
	for _, g := range a.Gateway {
		all = append(all, "gateway "+g.String())
	}
	for _, d := range a.DNS {
		all = append(all, "DNS "+d.String())
	}
	return strings.Join(all, ", ")
}

// check is what can be said of addresses without a machine.
func (a Addressing) check() error {
	for n, p := range a.Static {
		ip := p.Addr()
		switch {
		case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLoopback(), ip.Is4In6():
			return fmt.Errorf("address: %s is not the address of a machine", p)
		case ip.Is4() && p.Bits() < 31 && (ip == p.Masked().Addr() || ip == broadcast(p)):
			return fmt.Errorf("address: %s is the network's or its broadcast address, not that of a machine", p)
		case slices.ContainsFunc(a.Static[:n], func(q netip.Prefix) bool { return q.Addr() == ip }):
			return fmt.Errorf("address: %s is there twice", ip)
		case a.DHCP && ip.Is4():
			return fmt.Errorf("address: dhcp and %s are two ways to an IPv4 address: give one", p)
		}
	}
	families := map[bool]bool{}
	for _, g := range a.Gateway {
		switch {
		case families[g.Is4()]:
			return fmt.Errorf("gateway: %s is a second one for its family", g)
		case a.DHCP && g.Is4():
			return fmt.Errorf("gateway: dhcp brings its own, %s has no place beside it", g)
		case !g.IsLinkLocalUnicast() && !slices.ContainsFunc(a.Static, func(p netip.Prefix) bool { return p.Contains(g) }):
			return fmt.Errorf("gateway: %s is in the network of none of the addresses", g)
		case slices.ContainsFunc(a.Static, func(p netip.Prefix) bool { return p.Addr() == g }):
			return fmt.Errorf("gateway: %s is the device's own address", g)
		}
		families[g.Is4()] = true
	}
	return nil
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func (a Addressing) sections() []networkd.Section {
	if !a.DHCP && len(a.Static) == 0 {
		return []networkd.Section{{Name: "Network", Lines: networkd.NoAddress()}}
	}
	return networkd.Addressing{DHCP: a.DHCP, Static: a.Static, Gateways: a.Gateway, DNS: a.DNS}.Sections()
}

func (c Rename) String() string { return fmt.Sprintf("rename %s to %s", c.MAC, c.Name) }

func (c Rename) edit(e *edit) error {
	d, err := e.byMAC(c.MAC)
	if err != nil {
		return err
	}
	if d.Name == c.Name {
		return fmt.Errorf("name: %s is its name already", c.Name)
	}
	if err := e.newName(c.Name, d.Name); err != nil {
		return err
	}
	if strings.HasPrefix(c.Name, "eth") && strings.Trim(c.Name[3:], "0123456789") == "" {
		return fmt.Errorf("name: the kernel gives %s to interfaces itself, in any order: choose another, such as lan0 (systemd.link(5))", c.Name)
	}
	e.touch(d.Name)
	mac := d.PermanentMAC
	if mac == "" {
		mac = d.MAC
	}
	if file := e.after.LinkOf(mac); file != "" {
		delete(e.after, file)
	}
	link := networkd.LinkFile(c.Name)
	if _, ok := e.after[link]; ok {
		return fmt.Errorf("name: %s is there and is not of %s: move it away", link, mac)
	}
	e.after[link] = networkd.Link(mac, c.Name)
	file, err := e.after.NetworkOf(d.match())
	if err != nil {
		return err
	}
	if file != "" && e.after[file].Only(d.match()) {
		u := e.after[file].Clone()
		if u.Value("Match", "Name") == d.Name {
			u.Set("Match", "Name", c.Name)
		}
		if file == networkd.NetworkFile(d.Name) {
			delete(e.after, file)
			file = networkd.NetworkFile(c.Name)
		}
		e.after[file] = u
	}
	e.renames = append(e.renames, rename{From: d.Name, To: c.Name})
	// What was its own by name must be so by the new one, and nothing else must be.
	renamed := d.match()
	renamed.Name = c.Name
	now, err := e.after.NetworkOf(renamed)
	if err == nil && now != file {
		err = fmt.Errorf("name: a device %s would be configured by %q instead of %q: choose a name that no [Match] takes", c.Name, now, file)
	}
	return err
}

func (c MakeBond) String() string {
	return fmt.Sprintf("make bond %s (%s) of %s", c.Name, c.Mode, strings.Join(c.NICs, ", "))
}

func (c MakeBond) edit(e *edit) error {
	options := map[string]string{"miimon": "100"}
	switch c.Mode {
	case "lacp", "802.3ad":
		options["mode"], options["lacp_rate"], options["xmit_hash_policy"] = "802.3ad", "fast", "layer3+4"
	case "active-backup":
		options["mode"] = "active-backup"
	default:
		return fmt.Errorf("mode: %q is none of lacp, active-backup", c.Mode)
	}
	if err := e.newName(c.Name, ""); err != nil {
		return err
	}
	if len(c.NICs) == 0 {
		return errors.New("nic: a bond needs at least one interface")
	}
	return e.makeMaster("Bond", c.Name, networkd.Bond(c.Name, options), c.NICs, c.Address)
}

func (c MakeBridge) String() string {
	if len(c.Ports) == 0 {
		return "make bridge " + c.Name
	}
	return fmt.Sprintf("make bridge %s of %s", c.Name, strings.Join(c.Ports, ", "))
}

func (c MakeBridge) edit(e *edit) error {
	if err := e.newName(c.Name, ""); err != nil {
		return err
	}
	return e.makeMaster("Bridge", c.Name, networkd.Bridge(c.Name, nil), c.Ports, c.Address)
}

func (c MakeVLAN) name() string {
	if c.Name != "" {
		return c.Name
	}
	return fmt.Sprintf("%s.%d", c.Device, c.ID)
}

func (c MakeVLAN) String() string {
	return fmt.Sprintf("make VLAN %d on %s, called %s", c.ID, c.Device, c.name())
}

func (c MakeVLAN) edit(e *edit) error {
	if c.ID < 1 || c.ID > 4094 {
		return fmt.Errorf("id: %d is not within 1 to 4094", c.ID)
	}
	if _, err := e.existing("device", c.Device); err != nil {
		return err
	}
	if m, of := e.masterOf(c.Device); m != "" && of == "Bond" {
		return fmt.Errorf("device: %s is in bond %s: make the VLAN on that", c.Device, m)
	}
	if err := e.newName(c.name(), ""); err != nil {
		if c.Name == "" {
			return fmt.Errorf("%w; give another with --name", err)
		}
		return err
	}
	below, err := e.network(c.Device)
	if err != nil {
		return err
	}
	for _, v := range below.Words("Network", "VLAN") {
		if file := e.after.NetDevOf(v); file != "" && e.after[file].Value("VLAN", "Id") == fmt.Sprint(c.ID) {
			return fmt.Errorf("id: %s is VLAN %d on %s already", v, c.ID, c.Device)
		}
	}
	for _, d := range e.devices {
		if d.Kind == "vlan" && d.Parent == c.Device && d.VLAN == c.ID {
			return fmt.Errorf("id: %s is VLAN %d on %s already%s", d.Name, c.ID, c.Device, d.whose())
		}
	}
	below.Add("Network", "VLAN", c.name())
	if len(below.Keys("Network")) == 1 {
		// It had no unit before: without these lines networkd would give it addresses of its own.
		below.PutAddressing([]networkd.Section{{Name: "Network", Lines: networkd.NoAddress()}})
	}
	e.after[networkd.NetDevFile(c.name())] = networkd.VLAN(c.name(), c.ID)
	return e.address(c.name(), orNone(c.Address))
}

func (c AddNIC) String() string { return fmt.Sprintf("add %s to %s", strings.Join(c.NICs, ", "), c.To) }

func (c AddNIC) edit(e *edit) error {
	kind, err := e.master("to", c.To)
	if err != nil {
		return err
	}
	if len(c.NICs) == 0 {
		return errors.New("nic: give at least one")
	}
	for _, n := range c.NICs {
		if _, err := e.enslave(kind, c.To, n); err != nil {
			return err
		}
	}
	return nil
}

func (c RemoveNIC) String() string {
	return fmt.Sprintf("remove %s from %s", strings.Join(c.NICs, ", "), c.From)
}

func (c RemoveNIC) edit(e *edit) error {
	kind, err := e.master("from", c.From)
	if err != nil {
		return err
	}
	if len(c.NICs) == 0 {
		return errors.New("nic: give at least one")
	}
	for _, n := range c.NICs {
		if m, of := e.masterOf(n); m != c.From || of != kind {
			return fmt.Errorf("nic: %s is not in %s, which has %s", n, c.From, orNobody(e.members(c.From)))
		}
		u, err := e.network(n)
		if err != nil {
			return err
		}
		u.Set("Network", kind)
		u.Set("Network", "PrimarySlave")
		u.PutAddressing([]networkd.Section{{Name: "Network", Lines: networkd.NoAddress()}})
	}
	left := e.members(c.From)
	if kind == "Bond" && len(left) == 0 {
		return fmt.Errorf("nic: nothing would be left of bond %s: delete it, or add another interface first", c.From)
	}
	// What works on without them is cut from nothing.
	alive := slices.ContainsFunc(left, func(n string) bool { d, ok := e.device(n); return ok && d.Carrier })
	for _, n := range c.NICs {
		if kind == "Bridge" || !alive {
			e.touch(n)
		}
	}
	return nil
}

func (c SetAddress) String() string { return fmt.Sprintf("give %s %s", c.Device, c.Addressing) }

func (c SetAddress) edit(e *edit) error {
	if _, err := e.existing("device", c.Device); err != nil {
		return err
	}
	if m, of := e.masterOf(c.Device); m != "" {
		return fmt.Errorf("device: %s is in %s %s, and addresses are that one's", c.Device, strings.ToLower(of), m)
	}
	e.touch(c.Device)
	return e.address(c.Device, c.Addressing)
}

func (c Delete) String() string { return "delete " + c.Name }

func (c Delete) edit(e *edit) error {
	file := e.after.NetDevOf(c.Name)
	if file == "" {
		if d, ok := e.device(c.Name); ok {
			return fmt.Errorf("name: %s is not made by a unit in %s%s", c.Name, networkd.Dir, d.whose())
		}
		return fmt.Errorf("name: there is no %s", c.Name)
	}
	if m, of := e.masterOf(c.Name); m != "" {
		return fmt.Errorf("name: %s is in %s %s: remove it from that first", c.Name, strings.ToLower(of), m)
	}
	own, err := e.after.NetworkOf(e.match(c.Name))
	if err != nil {
		return err
	}
	if own != "" {
		if on := e.after[own].Words("Network", "VLAN"); len(on) > 0 {
			return fmt.Errorf("name: %s has %s on it: delete that first", c.Name, strings.Join(on, ", "))
		}
		if e.after[own].Only(e.match(c.Name)) {
			delete(e.after, own)
		}
	}
	e.touch(c.Name)
	for _, key := range masterKeys() {
		for _, n := range e.members(c.Name) {
			u, err := e.network(n)
			if err != nil {
				return err
			}
			if u.Value("Network", key) == c.Name {
				u.Set("Network", key)
				u.Set("Network", "PrimarySlave")
				u.PutAddressing([]networkd.Section{{Name: "Network", Lines: networkd.NoAddress()}})
			}
		}
	}
	for _, u := range e.after {
		if vlans := u.Values("Network", "VLAN"); slices.Contains(vlans, c.Name) {
			u.Set("Network", "VLAN", slices.DeleteFunc(vlans, func(v string) bool { return v == c.Name })...)
		}
	}
	delete(e.after, file)
	e.deletes = append(e.deletes, c.Name)
	return nil
}

func orNone(a *Addressing) Addressing {
	if a == nil {
		return Addressing{}
	}
	return *a
}

func orNobody(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
