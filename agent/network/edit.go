package network

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"shoal/agent/networkd"
)

// Device is a network device of the machine as it is.
type Device struct {
	Name     string   `json:"name"`
	AltNames []string `json:"alt_names,omitempty"`
	// NIC tells an interface from what is made of software. A veth counts as one: it is what a machine in a namespace has.
	NIC bool `json:"nic"`
	// Kind is that of the kernel's driver: bond, bridge, vlan and so on, "" for hardware.
	Kind string `json:"kind,omitempty"`
	MAC  string `json:"mac,omitempty"`
	// PermanentMAC is the hardware's own, which members of a bond keep under the bond's; "" where there is none.
	PermanentMAC string `json:"permanent_mac,omitempty"`
	// Master is the bond or bridge that it is in, Parent the device that a VLAN is on.
	Master string `json:"master,omitempty"`
	Parent string `json:"parent,omitempty"`
	VLAN   int    `json:"vlan,omitempty"`
	// Mode is a bond's.
	Mode    string `json:"mode,omitempty"`
	Up      bool   `json:"up"`
	Carrier bool   `json:"carrier"`
	// Speed is in Mbit/s, 0 where it is not known.
	Speed     int            `json:"speed_mbps,omitempty"`
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Shoal is what the agent made it for, "" for all that is not the agent's.
	Shoal string `json:"shoal,omitempty"`
	// Controller: what goes to the controller goes over it.
	Controller bool `json:"controller,omitempty"`
	// Failed: networkd has given it up.
	Failed bool `json:"failed,omitempty"`
	// File is the unit that is in force for it.
	File string `json:"file,omitempty"`
}

// whose says that a device is not the operator's, if so.
func (d Device) whose() string {
	if d.Shoal != "" {
		return " (it is the agent's: " + d.Shoal + ")"
	}
	return ""
}

func (d Device) match() networkd.Device {
	m := networkd.Device{Name: d.Name, AltNames: d.AltNames, MAC: d.MAC, PermanentMAC: d.PermanentMAC, Kind: d.Kind}
	return m
}

type rename struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// edit is a change in the making: units before and after, and what the machine must be told beside them.
type edit struct {
	before, after networkd.Config
	devices       []Device
	renames       []rename
	deletes       []string
	// touched are devices whose traffic is interrupted.
	touched []string
}

// makeEdit works a change out. Nothing is done.
func makeEdit(c Change, config networkd.Config, devices []Device) (*edit, error) {
	e := &edit{before: config, after: config.Clone(), devices: devices}
	if err := c.edit(e); err != nil {
		return nil, err
	}
	return e, nil
}

// files are those that differ, with their new content, nil for those that go.
func (e *edit) files() map[string]*string {
	out := map[string]*string{}
	for name, u := range e.after {
		text := u.String()
		if old, ok := e.before[name]; !ok || old.String() != text {
			out[name] = &text
		}
	}
	for name := range e.before {
		if _, ok := e.after[name]; !ok {
			out[name] = nil
		}
	}
	return out
}

func (e *edit) touch(name string) {
	if !slices.Contains(e.touched, name) {
		e.touched = append(e.touched, name)
	}
}

func (e *edit) device(name string) (Device, bool) {
	for _, d := range e.devices {
		if d.Name == name {
			return d, true
		}
	}
	return Device{}, false
}

// match is what units see of a device, also of one that is still to come.
func (e *edit) match(name string) networkd.Device {
	if d, ok := e.device(name); ok {
		return d.match()
	}
	m := networkd.Device{Name: name}
	if file := e.after.NetDevOf(name); file != "" {
		m.Kind = e.after[file].Value("NetDev", "Kind")
	}
	return m
}

func (e *edit) byMAC(mac string) (Device, error) {
	want := strings.ToLower(strings.ReplaceAll(mac, "-", ":"))
	octets := strings.Split(want, ":")
	if len(octets) != 6 || slices.ContainsFunc(octets, func(o string) bool { return len(o) != 2 || strings.Trim(o, "0123456789abcdef") != "" }) {
		return Device{}, fmt.Errorf("mac: %q is not one such as 52:54:00:aa:00:01", mac)
	}
	var list []string
	for _, d := range e.devices {
		if !d.NIC || d.Shoal != "" {
			continue
		}
		own := d.PermanentMAC
		if own == "" {
			own = d.MAC
		}
		if strings.ToLower(own) == want {
			return d, nil
		}
		list = append(list, d.Name+" ("+own+")")
	}
	return Device{}, fmt.Errorf("mac: no interface has %s; there are %s", want, orNobody(list))
}

// newName checks a name for a device that is to come; except is a device that may have it.
func (e *edit) newName(name, except string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	switch {
	// IFNAMSIZ of linux/if.h, with the zero at the end.
	case name == "" || len(name) > 15:
		return fmt.Errorf("name: %q has not 1 to 15 characters", name)
	case strings.Trim(name, letters+"._-") != "" || !strings.ContainsRune(letters, rune(name[0])) || strings.Trim(name, "0123456789") == "":
		return fmt.Errorf("name: %q is not a name: letters, digits and . _ - , beginning with a letter or digit, not all digits", name)
	case slices.Contains([]string{"lo", "all", "default", "link", "bootif", "none", "dhcp"}, name):
		return fmt.Errorf("name: %s means something else", name)
	case slices.ContainsFunc([]string{"shb", "shx", "sht", "shd"}, func(p string) bool { return strings.HasPrefix(name, p) }):
		return fmt.Errorf("name: what begins with %s is the agent's", name[:3])
	}
	for _, d := range e.devices {
		if d.Name != except && (d.Name == name || slices.Contains(d.AltNames, name)) {
			return fmt.Errorf("name: %s is there already (%s)", name, d.Name)
		}
	}
	if file := e.after.NetDevOf(name); file != "" {
		return fmt.Errorf("name: %s is made by %s already", name, path.Join(networkd.Dir, file))
	}
	for _, file := range []string{networkd.NetDevFile(name), networkd.NetworkFile(name)} {
		if _, ok := e.after[file]; ok {
			return fmt.Errorf("name: %s is there already: remove it, or choose another name", path.Join(networkd.Dir, file))
		}
	}
	return nil
}

// existing finds a device that the operator may work on.
func (e *edit) existing(field, name string) (Device, error) {
	d, ok := e.device(name)
	switch {
	case !ok:
		var have []string
		for _, d := range e.devices {
			if d.Shoal == "" {
				have = append(have, d.Name)
			}
		}
		return d, fmt.Errorf("%s: there is no device %q; there are %s", field, name, orNobody(have))
	case d.Shoal != "":
		return d, fmt.Errorf("%s: %s is the agent's: %s", field, name, d.Shoal)
	}
	return d, nil
}

// master finds a bond or bridge that units make, and the key that its members name it by.
func (e *edit) master(field, name string) (string, error) {
	d, err := e.existing(field, name)
	file := e.after.NetDevOf(name)
	if file == "" {
		if err != nil {
			return "", err
		}
		if d.Kind == "bond" || d.Kind == "bridge" {
			return "", fmt.Errorf("%s: %s is not made by a unit in %s: change it where it was made", field, name, networkd.Dir)
		}
		return "", fmt.Errorf("%s: %s is neither a bond nor a bridge", field, name)
	}
	switch kind := e.after[file].Value("NetDev", "Kind"); kind {
	case "bond":
		return "Bond", nil
	case "bridge":
		return "Bridge", nil
	default:
		return "", fmt.Errorf("%s: %s is a %s, neither a bond nor a bridge", field, name, kind)
	}
}

// masterKeys are the keys of [Network] that put a device into another.
func masterKeys() []string { return []string{"Bond", "Bridge"} }

// masterOf is the bond or bridge that units put a device into, and which of both.
func (e *edit) masterOf(name string) (master, key string) {
	file, err := e.after.NetworkOf(e.match(name))
	if err != nil || file == "" {
		return "", ""
	}
	for _, key := range masterKeys() {
		if m := e.after[file].Value("Network", key); m != "" {
			return m, key
		}
	}
	return "", ""
}

// members are the devices that units put into a bond or bridge, in order.
func (e *edit) members(master string) []string {
	var out []string
	for _, d := range e.devices {
		if m, _ := e.masterOf(d.Name); m == master {
			out = append(out, d.Name)
		}
	}
	return out
}

// network is the unit of a device for editing: its own, or one that is made from what held for it among others.
func (e *edit) network(name string) (*networkd.Unit, error) {
	d := e.match(name)
	file, err := e.after.NetworkOf(d)
	if err != nil {
		return nil, err
	}
	if file != "" && e.after[file].Only(d) {
		return e.after[file], nil
	}
	u := networkd.Network([]string{"Name=" + name})
	if file != "" {
		u = e.after[file].Clone()
		u.Head = nil
		u.Drop("Match")
		u.Sections = append([]networkd.Section{{Name: "Match", Lines: []string{"Name=" + name}}}, u.Sections...)
	}
	// The first that matches wins, so it must come before what held so far.
	for _, own := range []string{networkd.NetworkFile(name), "10-" + name + ".network", "00-" + name + ".network"} {
		if _, ok := e.after[own]; ok {
			continue
		}
		e.after[own] = u
		if now, err := e.after.NetworkOf(d); err == nil && now == own {
			return u, nil
		}
		delete(e.after, own)
	}
	return nil, fmt.Errorf("%s: it comes before every name that a unit of %s alone could have: rename it to something later", path.Join(networkd.Dir, file), name)
}

// had is what addresses a device was given; own tells a unit of its own from one that it shared.
type had struct {
	addresses []networkd.Section
	own       bool
}

// enslave puts a device into a bond or bridge, and returns what addresses it had, nil for none.
func (e *edit) enslave(key, master, name string) (*had, error) {
	d, ok := e.device(name)
	if !ok || d.Shoal != "" {
		if _, err := e.existing("nic", name); err != nil {
			return nil, err
		}
	}
	switch {
	case name == master:
		return nil, fmt.Errorf("nic: %s can't be in itself", name)
	case key == "Bond" && !d.NIC:
		return nil, fmt.Errorf("nic: %s is a %s; a bond is made of interfaces", name, d.Kind)
	case key == "Bridge" && d.Kind == "bridge":
		return nil, fmt.Errorf("nic: %s is a bridge itself", name)
	case e.over(name, master, 0):
		return nil, fmt.Errorf("nic: %s lies on %s: that would be a loop", name, master)
	}
	if m, of := e.masterOf(name); m == master {
		return nil, fmt.Errorf("nic: %s is in %s already", name, m)
	} else if m != "" {
		return nil, fmt.Errorf("nic: %s is in %s %s: take it out first with net remove-nic", name, strings.ToLower(of), m)
	}
	if d.Master != "" {
		whose := ", which no unit says: take it out where it was put in"
		if m, ok := e.device(d.Master); ok && m.Shoal != "" {
			whose = ", a network of Shoal's (" + m.Shoal + "): give that another device first"
		}
		return nil, fmt.Errorf("nic: %s is in %s%s", name, d.Master, whose)
	}
	file, err := e.after.NetworkOf(e.match(name))
	if err != nil {
		return nil, err
	}
	own := file != "" && e.after[file].Only(e.match(name))
	u, err := e.network(name)
	if err != nil {
		return nil, err
	}
	if on := u.Words("Network", "VLAN"); len(on) > 0 && key == "Bond" {
		return nil, fmt.Errorf("nic: %s has %s on it, which would hear nothing any more: delete it first, and make it on %s", name, strings.Join(on, ", "), master)
	}
	addressed := u.Addressed()
	taken := u.TakeAddressing()
	u.Add("Network", key, master)
	for _, line := range networkd.NoAddress() {
		k, v, _ := strings.Cut(line, "=")
		u.Add("Network", k, v)
	}
	e.touch(name)
	if !addressed {
		return nil, nil //nolint:nilnil // it had none
	}
	return &had{taken, own}, nil
}

// over reports whether a device lies, by VLANs, bonds and bridges, on another one.
func (e *edit) over(name, below string, depth int) bool {
	if depth > 16 {
		return true
	}
	if name == below {
		return depth > 0
	}
	for _, d := range e.devices {
		file, err := e.after.NetworkOf(d.match())
		on := d.Master == name || err == nil && file != "" && (slices.Contains(e.after[file].Words("Network", "VLAN"), name) ||
			e.after[file].Value("Network", "Bond") == name || e.after[file].Value("Network", "Bridge") == name)
		if v, ok := e.device(name); ok && v.Parent == d.Name {
			on = true
		}
		if on && d.Name != name && e.over(d.Name, below, depth+1) {
			return true
		}
	}
	return false
}

// makeMaster makes a bond or bridge with its members.
func (e *edit) makeMaster(key, name string, netdev *networkd.Unit, members []string, given *Addressing) error {
	e.after[networkd.NetDevFile(name)] = netdev
	// A unit that many share, such as the installer's that asks for DHCP everywhere, counts where nobody has one of its own.
	var moved *had
	from := ""
	for n, m := range members {
		if slices.Contains(members[:n], m) {
			return fmt.Errorf("nic: %s is there twice", m)
		}
		h, err := e.enslave(key, name, m)
		switch {
		case err != nil:
			return err
		case h == nil || given != nil:
		case moved == nil || h.own && !moved.own:
			moved, from = h, m
		case h.own && moved.own:
			return fmt.Errorf("address: %s and %s both have one: say with --address which %s shall have", from, m, name)
		}
	}
	if moved == nil {
		return e.address(name, orNone(given))
	}
	u, err := e.network(name)
	if err != nil {
		return err
	}
	u.PutAddressing(moved.addresses)
	return nil
}

// address gives a device addresses that nothing else has.
func (e *edit) address(name string, a Addressing) error {
	if err := a.check(); err != nil {
		return err
	}
	for _, p := range a.Static {
		for _, d := range e.devices {
			same := func(q netip.Prefix) bool { return q.Addr() == p.Addr() }
			if d.Name == name || slices.Contains(e.touched, d.Name) {
				continue
			}
			if slices.ContainsFunc(d.Addresses, same) {
				return fmt.Errorf("address: %s is %s's already", p.Addr(), d.Name)
			}
			file, err := e.after.NetworkOf(d.match())
			if err == nil && file != "" && slices.ContainsFunc(e.after[file].Addresses(), same) {
				return fmt.Errorf("address: %s is %s's already, by %s", p.Addr(), d.Name, path.Join(networkd.Dir, file))
			}
		}
	}
	u, err := e.network(name)
	if err != nil {
		return err
	}
	u.PutAddressing(a.sections())
	return nil
}

// Cut are explicit words: what the operator knows will be interrupted.
type Cut struct {
	// Controller: the way to the controller. Guests: networks of guests.
	Controller, Guests bool
}

// ErrCut refuses a change that interrupts what the operator did not name.
var ErrCut = errors.New("refused without an explicit word")

// check refuses what interrupts more than was said.
func (c Cut) check(e *edit) error {
	for _, name := range e.touched {
		d, ok := e.device(name)
		if !ok {
			continue
		}
		if d.Controller && !c.Controller {
			return fmt.Errorf("%w: what goes to the controller goes over %s, and is interrupted, for good if the change is wrong: give --cut-controller", ErrCut, name)
		}
		if c.Guests {
			continue
		}
		for _, g := range e.devices {
			if g.Shoal != "" && (g.Name == d.Master || g.Parent == name) {
				return fmt.Errorf("%w: guests use %s by %s (%s), and are interrupted: give --cut-guests", ErrCut, name, g.Name, g.Shoal)
			}
		}
	}
	return nil
}

// What is its kind in a word: nic, or the driver's name, with a bond's mode and a VLAN's id.
func (d Device) What() string {
	switch {
	case d.NIC:
		return "nic"
	case d.Kind == "bond":
		return "bond " + d.Mode
	case d.Kind == "vlan":
		return fmt.Sprintf("vlan %d on %s", d.VLAN, d.Parent)
	}
	return d.Kind
}

// Link is its state in a word or two: failed, off, no cable, or up with its speed.
func (d Device) Link() string {
	switch {
	case d.Failed:
		return "failed"
	case !d.Up:
		return "off"
	case !d.Carrier:
		return "no cable"
	case d.Speed > 0:
		return fmt.Sprintf("up %d Mbit/s", d.Speed)
	}
	return "up"
}
