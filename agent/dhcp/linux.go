package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"shoal/agent/host"
	"shoal/agent/xtables"
)

// Linux is the machine that the agent runs on.
type Linux struct {
	Run host.Runner
}

// runNetns is where "ip netns" keeps namespaces.
const runNetns = "/run/netns/"

// Generation implements Machine.
func (Linux) Generation() (uint32, error) { return xtables.Generation() }

// Links implements Machine.
func (Linux) Links(context.Context) ([]Link, error) {
	var all []netlink.Link
	var err error
	for range 5 {
		// A change while the kernel tells interrupts it.
		if all, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	links := make([]Link, 0, len(all))
	for _, l := range all {
		a := l.Attrs()
		links = append(links, Link{Name: a.Name, Alias: a.Alias, Master: names[a.MasterIndex], Type: l.Type(), Up: a.Flags&net.FlagUp != 0, MTU: a.MTU})
	}
	return links, nil
}

// HasNamespace implements Machine.
func (Linux) HasNamespace(_ context.Context, name string) (bool, error) {
	_, err := os.Stat(runNetns + name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// inside runs f with a netlink handle in a namespace; ok is false when there is none of that name.
func inside(name string, f func(*netlink.Handle) error) (ok bool, err error) {
	ns, err := netns.GetFromPath(runNetns + name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open namespace %s: %w", name, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if errors.Is(err, unix.EINVAL) {
		return false, nil // the file is there, but no namespace is mounted on it
	}
	if err != nil {
		return false, fmt.Errorf("enter namespace %s: %w", name, err)
	}
	defer h.Close()
	return true, f(h)
}

// Inside implements Machine.
func (Linux) Inside(_ context.Context, namespace string) (addrs []netip.Prefix, up bool, err error) {
	ok, err := inside(namespace, func(h *netlink.Handle) error {
		l, err := h.LinkByName(Inner)
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			return nil
		}
		if err != nil {
			return err
		}
		up = l.Attrs().Flags&net.FlagUp != 0
		all, err := h.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				ones, _ := a.Mask.Size()
				addrs = append(addrs, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		return err
	})
	return addrs, ok && up, err
}

// Plumb implements Machine.
func (m Linux) Plumb(ctx context.Context, p Place, alias string, mtu int) error {
	ok, err := inside(p.Namespace, func(*netlink.Handle) error { return nil })
	if err != nil {
		return err
	}
	if !ok {
		// A file on which nothing is mounted, left by a crash, would be in the way.
		if err := os.Remove(runNetns + p.Namespace); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make namespace %s: %w", p.Namespace, err)
		}
		if _, err := m.Run.Run(ctx, host.Command{Name: "ip", Args: []string{"netns", "add", p.Namespace}}); err != nil {
			return err
		}
	}
	whole := false
	if _, err := inside(p.Namespace, func(h *netlink.Handle) error {
		l, err := h.LinkByName(Inner)
		if err != nil {
			return nil //nolint:nilerr // made below
		}
		// The peer's index tells whether it is the other end of the port that is there.
		port, err := netlink.LinkByName(p.Port)
		whole = err == nil && port.Attrs().ParentIndex == l.Attrs().Index && port.Type() == "veth" && port.Attrs().Alias == alias
		return nil
	}); err != nil {
		return err
	}
	if !whole {
		if err := m.makePair(p, mtu); err != nil {
			return err
		}
	}
	ok, err = inside(p.Namespace, func(h *netlink.Handle) error { return setUpInner(h, p.Server) })
	if err != nil || !ok {
		return fmt.Errorf("set up %s in %s: %w", Inner, p.Namespace, err)
	}
	if err := within(p.Namespace, noOffload); err != nil {
		return fmt.Errorf("turn off offloading of %s in %s: %w", Inner, p.Namespace, err)
	}
	port, err := netlink.LinkByName(p.Port)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.Port, err)
	}
	bridge, err := netlink.LinkByName(p.Bridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.Bridge, err)
	}
	// The host has no business in the guests' network. Absent where the kernel has no IPv6.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+p.Port+"/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("turn off IPv6 of %s: %w", p.Port, err)
	}
	if err := netlink.LinkSetAlias(port, alias); err != nil {
		return fmt.Errorf("mark %s: %w", p.Port, err)
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("attach %s to %s: %w", p.Port, p.Bridge, err)
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return fmt.Errorf("set up %s: %w", p.Port, err)
	}
	return nil
}

// makePair makes the port and its other end, in place of what is left of them.
func (m Linux) makePair(p Place, mtu int) error {
	if err := deleteLink(p.Port); err != nil {
		return err
	}
	if _, err := inside(p.Namespace, func(h *netlink.Handle) error {
		if l, err := h.LinkByName(Inner); err == nil {
			return h.LinkDel(l)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("remove %s in %s: %w", Inner, p.Namespace, err)
	}
	ns, err := netns.GetFromPath(runNetns + p.Namespace)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", p.Namespace, err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.Port, mtu
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: Inner, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(mtu)}); err != nil {
		return fmt.Errorf("add %s: %w", p.Port, err)
	}
	return nil
}

func setUpInner(h *netlink.Handle, server netip.Prefix) error {
	if lo, err := h.LinkByName("lo"); err == nil {
		if err := h.LinkSetUp(lo); err != nil {
			return err
		}
	}
	l, err := h.LinkByName(Inner)
	if err != nil {
		return err
	}
	all, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	want := &net.IPNet{IP: server.Addr().AsSlice(), Mask: net.CIDRMask(server.Bits(), server.Addr().BitLen())}
	there := false
	for _, a := range all {
		switch {
		case a.IPNet.String() == want.String():
			there = true
		case !a.IP.IsLinkLocalUnicast():
			if err := h.AddrDel(l, &a); err != nil {
				return err
			}
		}
	}
	if !there {
		addr := &netlink.Addr{IPNet: want}
		if server.Addr().Is6() {
			// Other hosts have the same address: it is no duplicate.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return h.LinkSetUp(l)
}

// within runs f on a thread that is in a namespace.
func within(namespace string, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine: it is never unlocked.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(runNetns + namespace)
		if err == nil {
			defer ns.Close()
			if err = netns.Set(ns); err == nil {
				err = f()
			}
		}
		failed <- err
	}()
	return <-failed
}

// noOffload makes the kernel compute the checksums of what the server sends, and take no router's word. Between a veth and a tap nobody
// would, and clients that look at raw packets drop DHCP answers without.
func noOffload() error {
	for _, s := range []string{"accept_ra", "autoconf"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+Inner+"/"+s, []byte("0"), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct ethtool_value and the ioctl's struct ifreq.
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], Inner)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	var none netlink.LinkNotFoundError
	if err == nil || errors.As(err, &none) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", name, err)
}

// Unplumb implements Machine.
func (m Linux) Unplumb(ctx context.Context, p Place) error {
	if err := deleteLink(p.Port); err != nil {
		return err
	}
	if there, err := m.HasNamespace(ctx, p.Namespace); err != nil || !there {
		return err
	}
	_, err := m.Run.Run(ctx, host.Command{Name: "ip", Args: []string{"netns", "del", p.Namespace}})
	return err
}

// confOf is the configuration file of a process, when it is a dnsmasq with one in dir.
func confOf(pid int, dir string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := strings.Split(string(b), "\x00")
	if filepath.Base(args[0]) != "dnsmasq" {
		return ""
	}
	for _, a := range args[1:] {
		if conf, ok := strings.CutPrefix(a, "--conf-file="); ok && filepath.Dir(conf) == dir {
			return conf
		}
	}
	return ""
}

// Daemon implements Machine.
func (Linux) Daemon(_ context.Context, dir, namespace string) (string, int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if pid <= 1 { // a file that a crash has cut off is as good as none
		return "", 0, nil
	}
	conf := confOf(pid, dir)
	if conf == "" {
		return "", 0, nil
	}
	// In a namespace that was deleted and made anew the old process serves nobody.
	var mine, named unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &mine) != nil || unix.Stat(runNetns+namespace, &named) != nil ||
		mine.Ino != named.Ino || mine.Dev != named.Dev {
		return "", 0, nil //nolint:nilerr // either is gone, so it serves nobody
	}
	return conf, pid, nil
}

// Start implements Machine.
func (m Linux) Start(ctx context.Context, _, namespace, conf string) error {
	// It goes to the background, with a session of its own, once it listens; before that it tells what is wrong.
	_, err := m.Run.Run(ctx, host.Command{Name: "dnsmasq", Args: []string{"--conf-file=" + conf}, Netns: namespace})
	return err
}

// Reload implements Machine.
func (Linux) Reload(_ context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("reload dnsmasq %d: %w", pid, err)
	}
	return nil
}

// Stop implements Machine. The processes are found by the path of their configuration, also without pid file.
func (Linux) Stop(ctx context.Context, dir string) error {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("find dnsmasq: %w", err)
	}
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || confOf(pid, dir) == "" {
			continue
		}
		if err := end(ctx, pid, dir); err != nil {
			return fmt.Errorf("stop dnsmasq %d: %w", pid, err)
		}
	}
	return nil
}

// end stops one process and waits for its end. The pidfd makes sure that it is no other's that got the number.
func end(ctx context.Context, pid int, dir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if confOf(pid, dir) == "" {
		return nil
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if n > 0 {
				return nil
			}
		}
	}
	return errors.New("it does not end")
}
