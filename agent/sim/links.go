package sim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"shoal/agent/netdev"
)

// Links is a model of the network devices of a host: netdev's backend.
type Links struct {
	mu    sync.Mutex
	links []netdev.Link
	wake  []chan string
}

// NewLinks is a host with these devices.
func NewLinks(links ...netdev.Link) *Links {
	for i := range links {
		if links[i].MTU == 0 {
			links[i].MTU = 1500
		}
	}
	return &Links{links: links}
}

// Change is what an operator or a guest does by hand.
func (s *Links) Change(name string, change func(*netdev.Link)) error {
	return s.change(name, func(l *netdev.Link) error { change(l); return nil })
}

// Reset leaves nothing but these devices, as a boot of the host does.
func (s *Links) Reset(links ...netdev.Link) {
	fresh := NewLinks(links...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = fresh.links
	s.tell("")
}

func (s *Links) tell(name string) {
	for _, c := range s.wake {
		select {
		case c <- name:
		default:
		}
	}
}

func (s *Links) change(name string, change func(*netdev.Link) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.links {
		if s.links[i].Name == name {
			if err := change(&s.links[i]); err != nil {
				return fmt.Errorf("change %s: %w", name, err)
			}
			s.tell(name)
			return nil
		}
	}
	return fmt.Errorf("change %s: link not found", name)
}

// List implements netdev.Links.
func (s *Links) List(ctx context.Context) ([]netdev.Link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := slices.Clone(s.links)
	for i := range links {
		links[i].Remotes = slices.Clone(links[i].Remotes)
		links[i].Addresses = slices.Clone(links[i].Addresses)
	}
	return links, ctx.Err()
}

// Add implements netdev.Links, and makes taps and other devices by hand.
func (s *Links) Add(_ context.Context, l netdev.Link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.links {
		if other.Name == l.Name || l.Type == "vxlan" && other.Type == "vxlan" && other.VNI == l.VNI && other.Port == l.Port {
			return fmt.Errorf("add %s: file exists", l.Name)
		}
	}
	if l.MTU == 0 {
		l.MTU = 1500
	}
	if l.Type == "bridge" {
		l.Delay, l.Snooping = true, true
	}
	s.links = append(s.links, l)
	s.tell(l.Name)
	return nil
}

// Delete implements netdev.Links. What was a port of a bridge stays without one.
func (s *Links) Delete(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = slices.DeleteFunc(s.links, func(l netdev.Link) bool { return l.Name == name || l.Type == "vlan" && l.Parent == name })
	for i := range s.links {
		if s.links[i].Master == name {
			s.links[i].Master = ""
		}
	}
	s.tell(name)
	return nil
}

// SetMaster implements netdev.Links.
func (s *Links) SetMaster(ctx context.Context, name, master string) error {
	if master != "" {
		links, err := s.List(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(links, func(l netdev.Link) bool { return l.Name == master && l.Type == "bridge" }) {
			return fmt.Errorf("attach %s to %s: no such bridge", name, master)
		}
	}
	return s.Change(name, func(l *netdev.Link) { l.Master = master })
}

// SetUp implements netdev.Links.
func (s *Links) SetUp(_ context.Context, name string) error {
	return s.Change(name, func(l *netdev.Link) { l.Up = true })
}

// SetMTU implements netdev.Links.
func (s *Links) SetMTU(_ context.Context, name string, mtu int) error {
	return s.Change(name, func(l *netdev.Link) { l.MTU = mtu })
}

// SetAlias implements netdev.Links.
func (s *Links) SetAlias(_ context.Context, name, alias string) error {
	return s.Change(name, func(l *netdev.Link) { l.Alias = alias })
}

// TuneBridge implements netdev.Links.
func (s *Links) TuneBridge(_ context.Context, name string) error {
	return s.Change(name, func(l *netdev.Link) { l.Delay, l.Snooping = false, false })
}

// AddRemote implements netdev.Links.
func (s *Links) AddRemote(_ context.Context, name string, remote netip.Addr) error {
	return s.Change(name, func(l *netdev.Link) {
		if !slices.Contains(l.Remotes, remote) {
			l.Remotes = append(l.Remotes, remote)
			slices.SortFunc(l.Remotes, netip.Addr.Compare)
		}
	})
}

// DeleteRemote implements netdev.Links.
func (s *Links) DeleteRemote(_ context.Context, name string, remote netip.Addr) error {
	return s.Change(name, func(l *netdev.Link) {
		l.Remotes = slices.DeleteFunc(l.Remotes, func(r netip.Addr) bool { return r == remote })
	})
}

// Watch implements netdev.Links.
func (s *Links) Watch(ctx context.Context, changed func(string)) error {
	c := make(chan string, 64)
	s.mu.Lock()
	s.wake = append(s.wake, c)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wake = slices.DeleteFunc(s.wake, func(o chan string) bool { return o == c })
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case name := <-c:
			changed(name)
		}
	}
}
