package netdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the links of the network namespace that the agent runs in.
type Kernel struct{}

// List implements Links.
func (Kernel) List(context.Context) ([]Link, error) {
	all, err := again(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	names := map[int]string{}
	tunnels := false
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
		tunnels = tunnels || l.Type() == "vxlan"
	}
	var fdb []netlink.Neigh
	if tunnels {
		if fdb, err = again(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) }); err != nil {
			return nil, fmt.Errorf("list remotes of tunnels: %w", err)
		}
	}
	delays, err := forwardDelays()
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	links := make([]Link, 0, len(all))
	for _, l := range all {
		a := l.Attrs()
		link := Link{
			Name: a.Name, Type: l.Type(), Alias: a.Alias, Master: names[a.MasterIndex], Parent: names[a.ParentIndex],
			Up: a.Flags&net.FlagUp != 0, MTU: a.MTU,
		}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			if ones, _ := addr.Mask.Size(); ok && addr.LinkIndex == a.Index && !ip.Unmap().IsLinkLocalUnicast() {
				link.Addresses = append(link.Addresses, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		switch l := l.(type) {
		case *netlink.Bridge:
			link.Snooping = l.MulticastSnooping != nil && *l.MulticastSnooping
			link.Delay = delays[a.Index] != 0
		case *netlink.Vlan:
			link.VLAN = l.VlanId
		case *netlink.Vxlan:
			link.VNI, link.Port = l.VxlanId, l.Port
			if ip, ok := netip.AddrFromSlice(l.SrcAddr); ok {
				link.Local = ip.Unmap()
			}
			for _, n := range fdb {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && n.LinkIndex == a.Index && zero(n.HardwareAddr) {
					link.Remotes = append(link.Remotes, ip.Unmap())
				}
			}
			slices.SortFunc(link.Remotes, netip.Addr.Compare)
		}
		links = append(links, link)
	}
	return links, nil
}

// again repeats a dump that a change interrupted.
func again[T any](dump func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func zero(mac net.HardwareAddr) bool {
	return len(mac) == 6 && !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 })
}

// forwardDelays reads what the netlink library does not: each bridge's forward delay, by index.
func forwardDelays() (map[int]uint32, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	req.AddData(info) // the kernel's filter
	msgs, err := again(func() ([][]byte, error) { return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK) })
	if err != nil {
		return nil, err
	}
	delays := map[int]uint32{}
	for _, m := range msgs {
		msg := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type&^unix.NLA_F_NESTED != unix.IFLA_LINKINFO {
				continue
			}
			if err := delayOf(a.Value, func(v uint32) { delays[int(msg.Index)] = v }); err != nil {
				return nil, err
			}
		}
	}
	return delays, nil
}

func delayOf(linkInfo []byte, found func(uint32)) error {
	parts, err := nl.ParseRouteAttr(linkInfo)
	if err != nil {
		return err
	}
	bridge := false
	for _, p := range parts {
		switch p.Attr.Type &^ unix.NLA_F_NESTED {
		case nl.IFLA_INFO_KIND:
			bridge = strings.TrimRight(string(p.Value), "\x00") == "bridge"
		case nl.IFLA_INFO_DATA:
			if !bridge {
				continue
			}
			data, err := nl.ParseRouteAttr(p.Value)
			if err != nil {
				return err
			}
			for _, d := range data {
				if d.Attr.Type == nl.IFLA_BR_FORWARD_DELAY && len(d.Value) == 4 {
					found(nl.NativeEndian().Uint32(d.Value))
				}
			}
		}
	}
	return nil
}

// Add implements Links.
func (k Kernel) Add(ctx context.Context, l Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.Name
	var link netlink.Link
	switch l.Type {
	case "bridge":
		link = &netlink.Bridge{LinkAttrs: attrs}
	case "vlan":
		parent, err := netlink.LinkByName(l.Parent)
		if err != nil {
			return fmt.Errorf("add %s: find %s: %w", l.Name, l.Parent, err)
		}
		attrs.ParentIndex = parent.Attrs().Index
		link = &netlink.Vlan{LinkAttrs: attrs, VlanId: l.VLAN}
	case "vxlan":
		// Learning keeps the places of guests; whom nobody has heard of is asked for at every remote.
		link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: l.VNI, SrcAddr: l.Local.AsSlice(), Port: l.Port, Learning: true}
	default:
		return fmt.Errorf("add %s: type %q is not one of bridge, vlan, vxlan", l.Name, l.Type)
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add %s of type %s: %w", l.Name, l.Type, err)
	}
	// The guests' networks are not the host's: no address of the link, no router's word.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+l.Name+"/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("add %s: turn off IPv6 of the host: %w", l.Name, err)
	}
	return k.SetAlias(ctx, l.Name, l.Alias)
}

// find gets a link by name.
func find(verb, name string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = do(l)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}

// Delete implements Links.
func (Kernel) Delete(_ context.Context, name string) error {
	err := find("delete", name, netlink.LinkDel)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// SetMaster implements Links.
func (Kernel) SetMaster(_ context.Context, name, master string) error {
	if master == "" {
		return find("release", name, netlink.LinkSetNoMaster)
	}
	return find("attach", name, func(l netlink.Link) error {
		b, err := netlink.LinkByName(master)
		if err != nil {
			return fmt.Errorf("to %s: %w", master, err)
		}
		return netlink.LinkSetMaster(l, b)
	})
}

// SetUp implements Links.
func (Kernel) SetUp(_ context.Context, name string) error {
	return find("set up", name, netlink.LinkSetUp)
}

// SetMTU implements Links.
func (Kernel) SetMTU(_ context.Context, name string, mtu int) error {
	return find(fmt.Sprintf("set MTU %d of", mtu), name, func(l netlink.Link) error {
		if l.Attrs().MTU == mtu {
			return nil
		}
		return netlink.LinkSetMTU(l, mtu)
	})
}

// SetAlias implements Links.
func (Kernel) SetAlias(_ context.Context, name, alias string) error {
	return find("mark", name, func(l netlink.Link) error { return netlink.LinkSetAlias(l, alias) })
}

// TuneBridge implements Links.
//
// The forward delay of 15 s holds back each new port's frames, also with the spanning tree off: a guest's first DHCP questions would be lost.
// Snooping forwards multicast only to who joined a group by MLD or IGMP; without a querier on the wire, or after a guest has
// moved here, IPv6's neighbour discovery and DHCPv6 would go nowhere.
func (Kernel) TuneBridge(_ context.Context, name string) error {
	return find("tune", name, func(l netlink.Link) error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(l.Attrs().Index)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		// The spanning tree first: with it on, the kernel wants a delay of at least 2 s.
		data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
		data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
		data.AddRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0))
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// remote is the forwarding entry for frames to whom the tunnel does not know.
func remote(l netlink.Link, ip netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP | netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: ip.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
	}
}

// AddRemote implements Links.
func (Kernel) AddRemote(_ context.Context, name string, ip netip.Addr) error {
	return find(fmt.Sprintf("add remote %s of", ip), name, func(l netlink.Link) error {
		if err := netlink.NeighAppend(remote(l, ip)); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	})
}

// DeleteRemote implements Links.
func (Kernel) DeleteRemote(_ context.Context, name string, ip netip.Addr) error {
	return find(fmt.Sprintf("delete remote %s of", ip), name, func(l netlink.Link) error {
		if err := netlink.NeighDel(remote(l, ip)); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

// Watch implements Links. A burst of events is one call, 50 ms after its first.
func (Kernel) Watch(ctx context.Context, changed func(string)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	failed := make(chan error, 2)
	note := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links, neighs := make(chan netlink.LinkUpdate, 64), make(chan netlink.NeighUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: note}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	if err := netlink.NeighSubscribeWithOptions(neighs, ctx.Done(), netlink.NeighSubscribeOptions{ErrorCallback: note}); err != nil {
		return fmt.Errorf("watch tunnels: %w", err)
	}
	// The library's goroutines block on their channels until they are read to the end.
	defer func() {
		stop()
		go func() {
			for range links {
			}
		}()
		go func() {
			for range neighs {
			}
		}()
	}()
	var burst <-chan time.Time
	name := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return fmt.Errorf("watch links: %w", err)
		case u, ok := <-links:
			if !ok {
				return errors.New("watch links: the kernel's events ended")
			}
			name = u.Attrs().Name
			if burst == nil {
				burst = time.After(50 * time.Millisecond)
			}
		case n, ok := <-neighs:
			if !ok {
				return errors.New("watch tunnels: the kernel's events ended")
			}
			// Addresses that a tunnel or bridge has learned come and go all the time.
			if n.Family == unix.AF_BRIDGE && zero(n.HardwareAddr) && burst == nil {
				burst = time.After(50 * time.Millisecond)
			}
		case <-burst:
			burst = nil
			changed(name)
		}
	}
}
