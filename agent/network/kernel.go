package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"shoal/agent/host"
)

// Kernel is the network namespace that this process runs in, kept by the systemd-networkd that its system bus leads to.
type Kernel struct {
	Run host.Runner
	// Servers are the controllers' URLs; nil where there is none.
	Servers func() []string
}

// How long networkd may take to answer, and a name server.
const (
	answerTimeout = 20 * time.Second
	lookupTimeout = 2 * time.Second
)

// Ready implements Machine.
func (k Kernel) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := k.Run.Run(ctx, host.Command{Name: "busctl", Args: []string{
		"--system", "--auto-start=no", "--timeout=10", "call", "org.freedesktop.network1", "/org/freedesktop/network1", "org.freedesktop.DBus.Peer", "Ping",
	}}); err != nil {
		return fmt.Errorf("systemd-networkd does not answer here, and the networks of hosts are kept by it: systemctl enable --now systemd-networkd, "+
			"or change the network with what keeps it: %w", err)
	}
	if made, err := filepath.Glob("/run/systemd/network/*.net*"); err == nil && len(made) > 0 {
		return fmt.Errorf("%s is made by another tool, such as netplan, at each start: change the network with that", made[0])
	}
	files, err := filepath.Glob("/etc/network/interfaces.d/*")
	if err != nil {
		return err
	}
	for _, file := range append(files, "/etc/network/interfaces") {
		if name := ifupdown(file); name != "" {
			return fmt.Errorf("%s has %s: ifupdown keeps the network here, change it with that, or move it to systemd-networkd first", file, name)
		}
	}
	return nil
}

// ifupdown is an interface that a file of interfaces(5) configures, "" for none but the loopback.
func ifupdown(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == "iface" && w[1] != "lo" {
			return w[1]
		}
	}
	return ""
}

// dump repeats a listing that the kernel could not make whole.
func dump[T any](f func() (T, error)) (T, error) {
	v, err := f()
	for range 10 {
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
		v, err = f()
	}
	return v, err
}

// Devices implements Machine.
func (k Kernel) Devices(ctx context.Context) ([]Device, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var out []Device
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.EncapType != "ether" {
			continue
		}
		d := Device{
			Name: a.Name, AltNames: a.AltNames, MAC: a.HardwareAddr.String(), PermanentMAC: a.PermHWAddr.String(), Master: names[a.MasterIndex], MTU: a.MTU,
			Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, Shoal: purpose(a.Name, a.Alias),
			Failed: failed(a.Index),
		}
		switch kind := l.Type(); kind {
		case "device":
			d.NIC = true
		case "veth":
			d.NIC, d.Kind = true, kind
		default:
			d.Kind = kind
		}
		switch l := l.(type) {
		case *netlink.Vlan:
			d.Parent, d.VLAN = names[a.ParentIndex], l.VlanId
		case *netlink.Bond:
			d.Mode = l.Mode.String()
		}
		if d.Up && d.NIC {
			d.Speed = speed(a.Name)
		}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			if ones, _ := addr.Mask.Size(); ok && addr.LinkIndex == a.Index && !ip.Unmap().IsLinkLocalUnicast() {
				d.Addresses = append(d.Addresses, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	k.carriers(ctx, out, names)
	return out, nil
}

// purpose is what the agent made a device for: its alias says it, and its name for the moment before it has one.
func purpose(name, alias string) string {
	if rest, ok := strings.CutPrefix(alias, "shoal "); ok {
		return rest
	}
	for prefix, what := range map[string]string{"shb": "bridge of a network", "shx": "tunnel of a network", "sht": "a guest's interface", "shd": "port of a DHCP server"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && len(rest) == 12 && strings.Trim(rest, "0123456789abcdef") == "" {
			return what
		}
	}
	return ""
}

// speed is what sysfs says, in Mbit/s; 0 where it is not known, which the kernel says with -1 or an error.
func speed(name string) int {
	b, err := os.ReadFile("/sys/class/net/" + name + "/speed")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// failed is whether networkd has given a device up, as it notes for sd-network(3).
func failed(index int) bool {
	b, err := os.ReadFile("/run/systemd/netif/links/" + strconv.Itoa(index))
	return err == nil && slices.Contains(strings.Split(string(b), "\n"), "ADMIN_STATE=failed")
}

// carriers marks the devices that what goes to a controller goes over: that of the route and all below it. Where a controller's name can't be
// looked up now, the default route stands for its.
func (k Kernel) carriers(ctx context.Context, devices []Device, names map[int]string) {
	if k.Servers == nil {
		return
	}
	for _, server := range k.Servers() {
		for _, ip := range addressesOf(ctx, server) {
			routes, err := netlink.RouteGet(ip.AsSlice())
			if err != nil {
				continue
			}
			for _, r := range routes {
				mark(devices, names[r.LinkIndex], 0)
			}
		}
	}
}

// mark marks a device and what it is made of.
func mark(devices []Device, name string, depth int) {
	for i := range devices {
		d := &devices[i]
		if d.Name == name && d.Parent != "" && depth < 16 {
			mark(devices, d.Parent, depth+1)
		}
		if d.Name == name || d.Master == name && name != "" {
			d.Controller = true
		}
		if d.Master == name && name != "" && depth < 16 && d.Kind != "veth" && !d.NIC {
			mark(devices, d.Name, depth+1)
		}
	}
}

func addressesOf(ctx context.Context, server string) []netip.Addr {
	u, err := url.Parse(server)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil || len(found) == 0 {
		// Addresses of documentation (RFC 5737, RFC 3849), which are nobody's: their route is the default one.
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found
}

// Rename implements Machine. Older kernels rename only what is down.
func (Kernel) Rename(_ context.Context, from, to string) error {
	l, err := netlink.LinkByName(from)
	if err == nil && l.Attrs().Name != from {
		err = netlink.LinkNotFoundError{} // an alternative name of one that has another by now
	}
	if missing(err) {
		if now, lookErr := netlink.LinkByName(to); lookErr == nil && now.Attrs().Name == to {
			return nil
		}
		err = ErrNoDevice
	}
	if err != nil {
		return fmt.Errorf("rename %s: %w", from, err)
	}
	up := l.Attrs().Flags&net.FlagUp != 0
	if slices.Contains(l.Attrs().AltNames, to) {
		if err := netlink.LinkDelAltName(l, to); err != nil {
			return fmt.Errorf("rename %s: free the name %s: %w", from, to, err)
		}
	}
	if up {
		if err := netlink.LinkSetDown(l); err != nil {
			return fmt.Errorf("rename %s: set down: %w", from, err)
		}
	}
	err = netlink.LinkSetName(l, to)
	if err != nil {
		err = fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	if up {
		// By its index, whatever its name is.
		if upErr := netlink.LinkSetUp(l); upErr != nil {
			err = errors.Join(err, fmt.Errorf("rename %s: set up: %w", from, upErr))
		}
	}
	return err
}

func missing(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok || errors.Is(err, unix.ENODEV)
}

func on(what, name string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = f(l)
	}
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

// Release implements Machine.
func (Kernel) Release(_ context.Context, name string) error {
	return on("release", name, netlink.LinkSetNoMaster)
}

// Delete implements Machine.
func (Kernel) Delete(_ context.Context, name string) error {
	return on("delete", name, netlink.LinkDel)
}

// Clear implements Machine.
func (Kernel) Clear(_ context.Context, name string) error {
	return on("clear", name, func(l netlink.Link) error {
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
		}
		return nil
	})
}

// Reload implements Machine.
func (k Kernel) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := k.Run.Run(ctx, host.Command{Name: "networkctl", Args: []string{"reload"}})
	return err
}

// Reconfigure implements Machine.
func (k Kernel) Reconfigure(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := k.Run.Run(ctx, host.Command{Name: "networkctl", Args: []string{"reconfigure", name}})
	return err
}

// Uptime implements Machine. It counts while the machine sleeps.
func (Kernel) Uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the time since the start: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// Boot implements Machine.
func (Kernel) Boot() (string, error) { return host.Boot() }
