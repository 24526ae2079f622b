package sim

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"shoal/agent/dhcp"
	"shoal/agent/netdev"
)

// DHCPHost is a model of the namespaces, ports and dnsmasq processes of a host: dhcp's machine. Its daemons read the configuration and
// reservations that the kind wrote, when a real one would.
type DHCPHost struct {
	links  *Links
	filter *PacketFilter

	mu         sync.Mutex
	namespaces map[string]*namespace
	daemons    map[int]*daemon
	pid        int
}

type namespace struct {
	port  string
	addrs []netip.Prefix
	up    bool
}

type daemon struct {
	conf, dir string
	ns        *namespace
	hosts     map[string]netip.Addr // by MAC
}

// NewDHCPHost is a host without servers, whose ports are among these links.
func NewDHCPHost(links *Links, filter *PacketFilter) *DHCPHost {
	return &DHCPHost{links: links, filter: filter, namespaces: map[string]*namespace{}, daemons: map[int]*daemon{}, pid: 100}
}

// Links implements dhcp.Machine.
func (s *DHCPHost) Links(ctx context.Context) ([]dhcp.Link, error) {
	all, err := s.links.List(ctx)
	if err != nil {
		return nil, err
	}
	links := make([]dhcp.Link, len(all))
	for i, l := range all {
		links[i] = dhcp.Link{Name: l.Name, Alias: l.Alias, Master: l.Master, Type: l.Type, Up: l.Up, MTU: l.MTU}
	}
	return links, nil
}

// Inside implements dhcp.Machine.
func (s *DHCPHost) Inside(_ context.Context, name string) ([]netip.Prefix, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.namespaces[name]
	if ns == nil || !ns.up {
		return nil, false, nil
	}
	return slices.Clone(ns.addrs), true, nil
}

// HasNamespace implements dhcp.Machine.
func (s *DHCPHost) HasNamespace(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[name] != nil, nil
}

// Plumb implements dhcp.Machine.
func (s *DHCPHost) Plumb(ctx context.Context, p dhcp.Place, alias string, mtu int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.namespaces[p.Namespace]
	if ns == nil {
		ns = &namespace{}
		s.namespaces[p.Namespace] = ns
	}
	links, err := s.links.List(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(links, func(l netdev.Link) bool { return l.Name == p.Port }); i < 0 || ns.port != p.Port || links[i].Alias != alias {
		if err := s.links.Delete(ctx, p.Port); err != nil {
			return err
		}
		if err := s.links.Add(ctx, netdev.Link{Name: p.Port, Type: "veth", Alias: alias, MTU: mtu}); err != nil {
			return err
		}
	}
	ns.port, ns.addrs, ns.up = p.Port, []netip.Prefix{p.Server}, true
	if err := s.links.SetMaster(ctx, p.Port, p.Bridge); err != nil {
		return err
	}
	return s.links.SetUp(ctx, p.Port)
}

// Unplumb implements dhcp.Machine.
func (s *DHCPHost) Unplumb(ctx context.Context, p dhcp.Place) error {
	s.DeleteNamespace(p.Namespace)
	return s.links.Delete(ctx, p.Port)
}

// DeleteNamespace is "ip netns del": what runs in it goes on where nobody finds it.
func (s *DHCPHost) DeleteNamespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.namespaces, name)
}

// Kill ends every daemon.
func (s *DHCPHost) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.daemons)
}

// Reset ends every daemon and namespace, as a boot of the host does.
func (s *DHCPHost) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.daemons)
	clear(s.namespaces)
}

// Serves reports whether a daemon that runs has a reservation for a MAC.
func (s *DHCPHost) Serves(mac string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.daemons {
		if _, ok := d.hosts[mac]; ok {
			return true
		}
	}
	return false
}

// Daemon implements dhcp.Machine.
func (s *DHCPHost) Daemon(_ context.Context, dir, name string) (string, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid, d := range s.daemons {
		if d.dir == dir && d.ns == s.namespaces[name] {
			return d.conf, pid, nil
		}
	}
	return "", 0, nil
}

// Start implements dhcp.Machine.
func (s *DHCPHost) Start(_ context.Context, dir, name, conf string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.namespaces[name]
	if ns == nil {
		return fmt.Errorf("start dnsmasq: no namespace %s", name)
	}
	for _, d := range s.daemons {
		if d.ns == ns {
			return fmt.Errorf("start dnsmasq: address already in use")
		}
	}
	if _, err := os.Stat(conf); err != nil {
		return err
	}
	s.pid++
	d := &daemon{conf: conf, dir: dir, ns: ns}
	s.daemons[s.pid] = d
	return d.read()
}

func (d *daemon) read() error {
	b, err := os.ReadFile(filepath.Join(d.dir, "hosts"))
	if err != nil {
		return err
	}
	d.hosts = map[string]netip.Addr{}
	for line := range strings.Lines(string(b)) {
		w := strings.Split(strings.TrimSpace(line), ",")
		ip, err := netip.ParseAddr(strings.Trim(w[1], "[]"))
		if err != nil {
			return err
		}
		d.hosts[w[0]] = ip
	}
	return nil
}

// Reload implements dhcp.Machine.
func (s *DHCPHost) Reload(_ context.Context, pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.daemons[pid]
	if d == nil {
		return fmt.Errorf("reload dnsmasq %d: no such process", pid)
	}
	return d.read()
}

// Stop implements dhcp.Machine.
func (s *DHCPHost) Stop(_ context.Context, dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid, d := range s.daemons {
		if d.dir == dir {
			delete(s.daemons, pid)
		}
	}
	return nil
}

// Generation implements dhcp.Machine.
func (s *DHCPHost) Generation() (uint32, error) { return s.filter.Generation() }

// Ask is a guest that asks for its address through a port: it gets one when a server on the same bridge has a reservation for
// its MAC, and the lease is written where dnsmasq writes it.
func (s *DHCPHost) Ask(ctx context.Context, bridge, mac string) (netip.Addr, error) {
	links, err := s.links.List(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.daemons {
		on := slices.ContainsFunc(links, func(l netdev.Link) bool { return l.Name == d.ns.port && l.Master == bridge && l.Up })
		ip, known := d.hosts[mac]
		if !on || !known || !d.ns.up {
			continue
		}
		file := filepath.Join(d.dir, "leases")
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return netip.Addr{}, err
		}
		for _, l := range dhcp.ParseLeases(b) {
			if l.IP == ip && l.MAC != mac {
				return netip.Addr{}, fmt.Errorf("ask for an address: %s is leased to %s", ip, l.MAC)
			}
		}
		line := fmt.Sprintf("%d %s %s * *\n", time.Now().Add(24*time.Hour).Unix(), mac, ip)
		return ip, os.WriteFile(file, append(b, line...), 0o644)
	}
	return netip.Addr{}, fmt.Errorf("ask for an address: nobody answers %s on %s", mac, bridge)
}
