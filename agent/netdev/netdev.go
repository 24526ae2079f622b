// Package netdev drives the kind netdev: the bridge of a layer 2 network and the device that joins it to other hosts.
//
// # What it guarantees
//
//   - Only links that bear the mark are changed or removed: the alias "shoal netdev <item>". A link of our name without it is a conflict. The
//     one exception is a link of exactly our name and type that is down and has neither alias, address nor port: that is one
//     that we made and could not mark before we were killed.
//   - A device that carries addresses of the host, or is a port of another bridge, is never made a port.
//   - Bridges of ours forward from the first moment, IPv4 and IPv6 (see bridges in kernel.go), and give the host no address
//     in the guests' network.
//   - A VXLAN's remotes are changed one by one, without touching the tunnel.
//   - Guests come back when a bridge was deleted under them: every tap that was seen on a bridge has its name in the tap's
//     alias ("shoal port <bridge>"), which outlives the bridge and the agent, and is put back from there.
//
// # What it leaves to others
//
// Making taps and putting them on bridges is libvirt's work; ports of DHCP servers are agent/dhcp's, who puts them back itself.
package netdev

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/desired"
)

// Link is a network device, as far as this kind cares.
type Link struct {
	Name   string
	Type   string // "bridge", "vxlan", "vlan", "tun", "veth", "device", ...
	Alias  string
	Master string // the bridge or bond it is a port of
	Parent string // with type vlan
	Up     bool
	MTU    int
	// Addresses are those that the host uses, without those that a link gives itself (fe80::/10).
	Addresses []netip.Prefix

	VLAN int
	// VNI, Local and Port are a VXLAN's, Remotes where it sends what it knows no better place for, sorted.
	VNI     int
	Local   netip.Addr
	Port    int
	Remotes []netip.Addr

	// Delay is set where a new port of the bridge would not forward at once, Snooping where the bridge filters multicast.
	Delay, Snooping bool
}

// Links are the network devices of the agent's network namespace.
type Links interface {
	// List gives all of them.
	List(ctx context.Context) ([]Link, error)
	// Add makes a bridge, vxlan or vlan, marked with its alias, down, with no port and no remote.
	Add(ctx context.Context, l Link) error
	// Delete removes a link; absent is success.
	Delete(ctx context.Context, name string) error
	// SetMaster makes a link a port of a bridge, or of none.
	SetMaster(ctx context.Context, name, master string) error
	SetUp(ctx context.Context, name string) error
	SetMTU(ctx context.Context, name string, mtu int) error
	SetAlias(ctx context.Context, name, alias string) error
	// TuneBridge turns off what Delay and Snooping tell.
	TuneBridge(ctx context.Context, name string) error
	AddRemote(ctx context.Context, name string, remote netip.Addr) error
	DeleteRemote(ctx context.Context, name string, remote netip.Addr) error
	// Watch tells of links that came, went or changed, and of remotes, until ctx ends.
	Watch(ctx context.Context, changed func(name string)) error
}

const (
	mark      = "shoal netdev "
	portMark  = "shoal port "
	tapPrefix = "sht"
)

// Kind is the kind netdev.
type Kind struct {
	links Links
	log   zerolog.Logger

	mu sync.Mutex
	// existing are the items whose bridge is the operator's: they bear no mark, and are ours to check only.
	existing map[string]string
}

// New makes the kind.
func New(links Links, log zerolog.Logger) *Kind {
	return &Kind{links: links, log: log, existing: map[string]string{}}
}

// Device is what is there of an item.
type Device struct {
	// Bridge and Uplink are nil when they are not there. Uplink is the device that we made.
	Bridge, Uplink *Link
	// Ports are the names of the bridge's ports, sorted.
	Ports []string
	// Lost are taps that belong to the bridge and are not its ports.
	Lost []string
	// Ours is false for a bridge that the operator made.
	Ours bool
}

// Observe implements engine.Kind. On the way it notes on every tap of a guest which bridge it is a port of.
func (k *Kind) Observe(ctx context.Context) (map[string]Device, error) {
	links, err := k.links.List(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]Device{}
	for i := range links {
		l := &links[i]
		id, ok := strings.CutPrefix(l.Alias, mark)
		if !ok {
			continue
		}
		d := found[id]
		d.Ours = true
		if l.Type == "bridge" {
			d.Bridge = l
		} else {
			d.Uplink = l
		}
		found[id] = d
	}
	k.mu.Lock()
	for id, bridge := range k.existing {
		if i := index(links, bridge); i >= 0 && found[id].Bridge == nil {
			found[id] = Device{Bridge: &links[i]}
		}
	}
	k.mu.Unlock()
	for id, d := range found {
		if d.Bridge == nil {
			continue
		}
		for _, l := range links {
			switch {
			case l.Master == d.Bridge.Name:
				d.Ports = append(d.Ports, l.Name)
				if strings.HasPrefix(l.Name, tapPrefix) && l.Alias != portMark+l.Master {
					// A tap that went in the meantime takes its note along.
					if err := k.links.SetAlias(ctx, l.Name, portMark+l.Master); err != nil {
						k.log.Debug().Err(err).Str("kind", string(desired.KindNetDev)).Str("id", id).Msg("tap not noted")
					}
				}
			case l.Master == "" && l.Alias == portMark+d.Bridge.Name && strings.HasPrefix(l.Name, tapPrefix):
				d.Lost = append(d.Lost, l.Name)
			}
		}
		slices.Sort(d.Ports)
		slices.Sort(d.Lost)
		found[id] = d
	}
	return found, nil
}

func index(links []Link, name string) int {
	return slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
}

// uplinkOf is the device that has to be a port of the bridge, "" for none.
func uplinkOf(w desired.NetDev) string {
	switch w.Type {
	case desired.NetDevNoVLAN:
		return w.Device
	case desired.NetDevVLAN, desired.NetDevVXLAN:
		return w.Uplink
	default:
		return ""
	}
}

// Diff implements engine.Kind.
func (k *Kind) Diff(_ string, w desired.NetDev, have Device) string {
	b := have.Bridge
	switch {
	case b == nil:
		return "bridge " + w.Bridge + " is missing"
	case b.Name != w.Bridge:
		return "bridge is called " + b.Name
	case b.Type != "bridge":
		return w.Bridge + " is not a bridge"
	case have.Ours != (w.Type != desired.NetDevExisting):
		return "bridge " + w.Bridge + " has changed hands"
	case !b.Up:
		return "bridge " + w.Bridge + " is down"
	case len(have.Lost) > 0:
		return fmt.Sprintf("guests' devices are off bridge %s: %s", w.Bridge, strings.Join(have.Lost, ", "))
	}
	if w.Type == desired.NetDevExisting {
		return ""
	}
	switch {
	case w.MTU != 0 && b.MTU != w.MTU:
		return fmt.Sprintf("MTU of %s is %d and not %d", b.Name, b.MTU, w.MTU)
	case b.Delay || b.Snooping:
		return "bridge " + b.Name + " delays ports or filters multicast"
	}
	if u := have.Uplink; u != nil {
		if d := diffUplink(w, *u); d != "" {
			return d
		}
		switch {
		case !u.Up:
			return u.Name + " is down"
		case w.MTU != 0 && u.MTU != w.MTU:
			return fmt.Sprintf("MTU of %s is %d and not %d", u.Name, u.MTU, w.MTU)
		}
		if w.VXLAN != nil && !slices.Equal(u.Remotes, remotes(w)) {
			return fmt.Sprintf("%s has remotes %v and not %v", u.Name, u.Remotes, remotes(w))
		}
	} else if w.Type != desired.NetDevNoVLAN {
		return w.Uplink + " is missing"
	}
	if name := uplinkOf(w); !slices.Contains(have.Ports, name) {
		return name + " is not a port of " + w.Bridge
	}
	return ""
}

func remotes(w desired.NetDev) []netip.Addr {
	r := slices.Clone(w.VXLAN.Remotes)
	slices.SortFunc(r, netip.Addr.Compare)
	return slices.Compact(r)
}

// diffUplink compares what can't be changed on a device that is there.
func diffUplink(w desired.NetDev, u Link) string {
	switch {
	case w.Type == desired.NetDevNoVLAN || u.Name != w.Uplink:
		return u.Name + " is not wanted any more"
	case u.Type != string(w.Type):
		return fmt.Sprintf("%s is of type %s and not %s", u.Name, u.Type, w.Type)
	case w.Type == desired.NetDevVLAN && (u.VLAN != w.VLAN || u.Parent != w.Device):
		return fmt.Sprintf("%s is VLAN %d of %s and not VLAN %d of %s", u.Name, u.VLAN, u.Parent, w.VLAN, w.Device)
	case w.Type == desired.NetDevVXLAN && (u.VNI != w.VXLAN.VNI || u.Local != w.VXLAN.Local || u.Port != w.VXLAN.Port):
		return fmt.Sprintf("%s is VNI %d from %s:%d and not VNI %d from %s:%d", u.Name, u.VNI, u.Local, u.Port, w.VXLAN.VNI, w.VXLAN.Local, w.VXLAN.Port)
	}
	return ""
}

// Ensure implements engine.Kind.
func (k *Kind) Ensure(ctx context.Context, id string, w desired.NetDev, have *Device) (Device, error) {
	if err := k.ensure(ctx, id, w, have); err != nil {
		return Device{}, fmt.Errorf("make network %s: %w", w.Bridge, err)
	}
	found, err := k.Observe(ctx)
	if err != nil {
		return Device{}, err
	}
	return found[id], nil
}

func (k *Kind) ensure(ctx context.Context, id string, w desired.NetDev, have *Device) error {
	links, err := k.links.List(ctx)
	if err != nil {
		return err
	}
	get := func(name string) *Link {
		if i := index(links, name); i >= 0 {
			return &links[i]
		}
		return nil
	}
	alias := mark + id
	// What the item was before.
	if have != nil && have.Ours {
		if u := have.Uplink; u != nil && diffUplink(w, *u) != "" {
			if err := k.links.Delete(ctx, u.Name); err != nil {
				return err
			}
			links = slices.DeleteFunc(links, func(l Link) bool { return l.Name == u.Name })
		}
		if b := have.Bridge; b != nil && b.Name != w.Bridge {
			if err := k.removeBridge(ctx, *b, links); err != nil {
				return err
			}
		}
	}
	bridge := get(w.Bridge)
	if w.Type == desired.NetDevExisting {
		return k.ensureExisting(ctx, id, w, bridge, links)
	}
	k.mu.Lock()
	delete(k.existing, id)
	k.mu.Unlock()

	device := get(w.Device)
	if w.Device != "" && device == nil {
		return engine.Fault(desired.CodeMissing, fmt.Sprintf("connect or name the device %s on this host, or correct the network's device", w.Device),
			fmt.Errorf("device %s is not there", w.Device))
	}
	if w.Type == desired.NetDevNoVLAN {
		switch {
		case len(device.Addresses) > 0:
			return engine.Fault(desired.CodeConflict, fmt.Sprintf(
				"make a bridge on the host with %s as its port, move the addresses to the bridge, and give the network that bridge with type existing", w.Device),
				fmt.Errorf("device %s carries the host's own address %s: as a port it would cut the host off", w.Device, device.Addresses[0]))
		case device.Master != "" && device.Master != w.Bridge:
			return engine.Fault(desired.CodeConflict, fmt.Sprintf("give the network the bridge %s with type existing, or take %s out of it", device.Master, w.Device),
				fmt.Errorf("device %s is a port of %s", w.Device, device.Master))
		case w.MTU > device.MTU:
			return engine.Fault(desired.CodeConflict, fmt.Sprintf("raise the MTU of %s on the host, or lower the network's", w.Device),
				fmt.Errorf("device %s has MTU %d, less than the network's %d", w.Device, device.MTU, w.MTU))
		}
	}
	if err := k.own(ctx, bridge, Link{Name: w.Bridge, Type: "bridge", Alias: alias}, links); err != nil {
		return err
	}
	if bridge == nil || bridge.Delay || bridge.Snooping {
		if err := k.links.TuneBridge(ctx, w.Bridge); err != nil {
			return err
		}
	}
	uplink := uplinkOf(w)
	up := get(uplink)
	switch w.Type {
	case desired.NetDevVLAN:
		err = k.own(ctx, up, Link{Name: uplink, Type: "vlan", Alias: alias, Parent: w.Device, VLAN: w.VLAN}, links)
	case desired.NetDevVXLAN:
		// The kernel has one VXLAN of a VNI on a port. One that we made for another network, and that has not gone yet, is waited for.
		for _, l := range links {
			if l.Type == "vxlan" && l.Name != uplink && l.VNI == w.VXLAN.VNI && l.Port == w.VXLAN.Port {
				return engine.Fault(desired.CodeConflict, fmt.Sprintf("remove %s from the host, or take another VNI", l.Name),
					fmt.Errorf("VNI %d on port %d is taken by %s", l.VNI, l.Port, l.Name))
			}
		}
		err = k.own(ctx, up, Link{Name: uplink, Type: "vxlan", Alias: alias, VNI: w.VXLAN.VNI, Local: w.VXLAN.Local, Port: w.VXLAN.Port}, links)
	default: // has no uplink that we make
	}
	if err != nil {
		return err
	}
	if w.Type == desired.NetDevVXLAN {
		var now []netip.Addr
		if up != nil {
			now = up.Remotes
		}
		for _, r := range remotes(w) {
			if !slices.Contains(now, r) {
				if err := k.links.AddRemote(ctx, uplink, r); err != nil {
					return err
				}
			}
		}
		for _, r := range now {
			if !slices.Contains(w.VXLAN.Remotes, r) {
				if err := k.links.DeleteRemote(ctx, uplink, r); err != nil {
					return err
				}
			}
		}
	}
	// A VLAN can't have a larger MTU than its device.
	if w.Type == desired.NetDevVLAN && w.MTU > device.MTU {
		return engine.Fault(desired.CodeConflict, fmt.Sprintf("raise the MTU of %s on the host, or lower the network's", w.Device),
			fmt.Errorf("device %s has MTU %d, less than the network's %d", w.Device, device.MTU, w.MTU))
	}
	if w.MTU != 0 {
		if w.Type != desired.NetDevNoVLAN {
			if err := k.links.SetMTU(ctx, uplink, w.MTU); err != nil {
				return err
			}
		}
		if err := k.links.SetMTU(ctx, w.Bridge, w.MTU); err != nil {
			return err
		}
	}
	if up == nil || up.Master != w.Bridge {
		if err := k.links.SetMaster(ctx, uplink, w.Bridge); err != nil {
			return err
		}
	}
	// An unused physical device is often left down at boot: it was given to us for this.
	for _, name := range []string{w.Device, uplink, w.Bridge} {
		if name != "" {
			if err := k.links.SetUp(ctx, name); err != nil {
				return err
			}
		}
	}
	return k.reattach(ctx, w.Bridge, links)
}

// own makes a link, or sees that the one that is there is ours.
func (k *Kind) own(ctx context.Context, now *Link, want Link, links []Link) error {
	if now == nil {
		return k.links.Add(ctx, want)
	}
	if now.Alias == want.Alias && now.Type == want.Type {
		return nil
	}
	ports := slices.ContainsFunc(links, func(l Link) bool { return l.Master == now.Name })
	if now.Type == want.Type && now.Alias == "" && !now.Up && !ports && now.Master == "" && len(now.Addresses) == 0 {
		// Made and not marked before we were killed. Made anew, for it may lack more than the mark.
		if err := k.links.Delete(ctx, now.Name); err != nil {
			return err
		}
		return k.links.Add(ctx, want)
	}
	return engine.Fault(desired.CodeConflict, fmt.Sprintf("rename or remove %s on the host", now.Name),
		fmt.Errorf("%s is there and not ours (type %s, alias %q)", now.Name, now.Type, now.Alias))
}

func (k *Kind) ensureExisting(ctx context.Context, id string, w desired.NetDev, bridge *Link, links []Link) error {
	switch {
	case bridge == nil:
		return engine.Fault(desired.CodeMissing, fmt.Sprintf("make the bridge %s on this host, or correct the network's bridge", w.Bridge),
			fmt.Errorf("bridge %s is not there", w.Bridge))
	case bridge.Type != "bridge":
		return engine.Fault(desired.CodeConflict, "give the network a Linux bridge",
			fmt.Errorf("%s is not a bridge but of type %s", w.Bridge, bridge.Type))
	case !bridge.Up:
		return engine.Fault(desired.CodeMissing, "ip link set "+w.Bridge+" up", fmt.Errorf("bridge %s is down", w.Bridge))
	}
	k.mu.Lock()
	k.existing[id] = w.Bridge
	k.mu.Unlock()
	return k.reattach(ctx, w.Bridge, links)
}

// reattach puts guests' taps that lost their bridge back on it.
func (k *Kind) reattach(ctx context.Context, bridge string, links []Link) error {
	for _, l := range links {
		if l.Alias != portMark+bridge || l.Master != "" || !strings.HasPrefix(l.Name, tapPrefix) {
			continue
		}
		if err := k.links.SetMaster(ctx, l.Name, bridge); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements engine.Kind.
func (k *Kind) Remove(ctx context.Context, id string, have Device) error {
	k.mu.Lock()
	delete(k.existing, id)
	k.mu.Unlock()
	if !have.Ours {
		return nil
	}
	links, err := k.links.List(ctx)
	if err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	for _, l := range links {
		if l.Alias != mark+id {
			continue
		}
		if l.Type == "bridge" {
			err = k.removeBridge(ctx, l, links)
		} else {
			err = k.links.Delete(ctx, l.Name)
		}
		if err != nil {
			return fmt.Errorf("remove network %s: %w", id, err)
		}
	}
	return nil
}

// removeBridge removes a bridge that no guest uses.
func (k *Kind) removeBridge(ctx context.Context, b Link, links []Link) error {
	for _, l := range links {
		if l.Master == b.Name && strings.HasPrefix(l.Name, tapPrefix) {
			return engine.Fault(desired.CodeInUse, "stop the VM or detach its NIC", fmt.Errorf("guest's device %s is a port of %s", l.Name, b.Name))
		}
	}
	return k.links.Delete(ctx, b.Name)
}

// Watch implements engine.Watcher.
func (k *Kind) Watch(ctx context.Context, changed func(string)) error {
	return k.links.Watch(ctx, func(string) { changed("") })
}
