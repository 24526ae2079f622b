// Package probe finds out what the host is: its inventory, whether KVM works on it, and how its clock stands.
//
// Whether KVM works is found by booting a machine of a few instructions with it, since a /dev/kvm that is there may hang or
// be slower than emulation. The verdict is kept until the host boots or QEMU changes.
//
// It reports on change only. Loads and counters are not inventory.
package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"shoal/agent/host"
	"shoal/desired"
)

// Config is what New needs.
type Config struct {
	// Data is the agent's data directory.
	Data string
	Run  host.Runner
	// Versions are those of libvirt and QEMU as libvirt tells them; nil for none.
	Versions func(ctx context.Context) (libvirt, qemu string, err error)
	Log      zerolog.Logger
}

// Probe watches what the host is.
type Probe struct {
	cfg Config
	log zerolog.Logger

	once  sync.Mutex // held while virt is being found
	mu    sync.Mutex
	virt  *virt
	known chan struct{} // closed when virt is known
}

// New makes a probe.
func New(cfg Config) (*Probe, error) {
	if cfg.Data == "" || cfg.Run == nil {
		return nil, errors.New("make probe: Data and Run must be set")
	}
	return &Probe{cfg: cfg, log: cfg.Log, known: make(chan struct{})}, nil
}

// Virt is the domain type that works here, "kvm" or "qemu". The first call finds out, which takes a few seconds where KVM
// hangs.
func (p *Probe) Virt(ctx context.Context) (string, error) {
	p.once.Lock()
	defer p.once.Unlock()
	if v := p.verdict(); v != nil {
		return v.Virt, nil
	}
	v, err := findVirt(ctx, p.cfg.Run, p.cfg.Data)
	if err != nil {
		return "", fmt.Errorf("find out whether KVM works: %w", err)
	}
	p.mu.Lock()
	p.virt = &v
	p.mu.Unlock()
	close(p.known)
	p.log.Info().Str("virt", v.Virt).Str("note", v.Note).Msg("virtualization found")
	return v.Virt, nil
}

func (p *Probe) verdict() *virt {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.virt
}

// Inventory is what the host is now, as far as known.
func (p *Probe) Inventory(ctx context.Context) (desired.Inventory, error) {
	inv := desired.Inventory{Arch: runtime.GOARCH, CPUs: runtime.NumCPU()}
	var err error
	if inv.Hostname, err = os.Hostname(); err != nil {
		return inv, fmt.Errorf("read host name: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		inv.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		inv.CPUModel, inv.CPUs = parseCPUInfo(f, inv.CPUs)
		_ = f.Close()
	}
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return inv, err
	}
	inv.MemoryMiB, err = parseMemInfo(f)
	_ = f.Close()
	if err != nil {
		return inv, err
	}
	if v := p.verdict(); v != nil {
		inv.Virt, inv.VirtNote, inv.QEMU = v.Virt, v.Note, shortVersion(v.Version)
	}
	if p.cfg.Versions != nil {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		libvirt, qemu, err := p.cfg.Versions(short)
		cancel()
		// That libvirt is away is for domains to say.
		if err == nil {
			inv.Libvirt, inv.QEMU = libvirt, qemu
		}
	}
	inv.Addresses, inv.Devices, err = network()
	return inv, err
}

// parseCPUInfo finds the model and counts the processors, of which runtime only knows those it may use.
func parseCPUInfo(r io.Reader, cpus int) (string, int) {
	model, n := "", 0
	s := bufio.NewScanner(r)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), ":")
		switch strings.TrimSpace(key) {
		case "processor":
			n++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	if n == 0 {
		n = cpus
	}
	return model, n
}

func parseMemInfo(r io.Reader) (uint64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse MemTotal: %w", err)
			}
			return kib >> 10, nil
		}
	}
	return 0, errors.New("parse /proc/meminfo: no MemTotal")
}

// network lists the host's own addresses and the devices that a layer 2 network could use.
func network() (map[string][]string, []string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	names := map[int]string{}
	var devices []string
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || ours(a.Name, a.Alias) {
			continue
		}
		names[a.Index] = a.Name
		if usable(l.Type()) {
			devices = append(devices, a.Name)
		}
	}
	addresses := map[string][]string{}
	for _, a := range addrs {
		// Addresses that come and go by themselves are no inventory, nor are those that say nothing.
		if name, ok := names[a.LinkIndex]; ok && !a.IP.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_TENTATIVE) == 0 {
			addresses[name] = append(addresses[name], a.IPNet.String())
		}
	}
	for _, list := range addresses {
		slices.Sort(list)
	}
	slices.Sort(devices)
	return addresses, devices, nil
}

// ours reports whether Shoal made a device: by its alias, or by the form of its name, for the moment before it has one.
func ours(name, alias string) bool {
	if strings.HasPrefix(alias, "shoal ") {
		return true
	}
	for _, prefix := range []string{"shb", "shx", "sht", "shd"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && len(rest) == 12 && strings.Trim(rest, "0123456789abcdef") == "" {
			return true
		}
	}
	return false
}

// usable leaves out devices that belong to something else: a guest's tap, a tunnel, one end of a container.
func usable(kind string) bool {
	switch kind {
	case "device", "bond", "bridge", "vlan", "veth", "team":
		return true
	default:
		return false
	}
}

// How often the inventory is read where nothing tells of a change: libvirt's upgrade, a new name.
const refresh = 5 * time.Minute

// settle is how long changes of addresses are gathered.
const settle = 200 * time.Millisecond

// Run reports the inventory now and whenever it changes, until ctx ends.
func (p *Probe) Run(ctx context.Context, report func(desired.Inventory)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		for backoff := time.Second; ; backoff = min(2*backoff, time.Minute) {
			_, err := p.Virt(ctx)
			if err == nil || ctx.Err() != nil {
				return
			}
			p.log.Warn().Err(err).Msg("find virtualization")
			select {
			case <-time.After(backoff):
			case <-ctx.Done():
				return
			}
		}
	})

	var last *desired.Inventory
	for {
		err := p.watch(ctx, func(inv desired.Inventory) {
			if last == nil || !reflect.DeepEqual(*last, inv) {
				last = &inv
				report(inv)
			}
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The kernel ends a subscription that can't keep up, such as when hundreds of taps come at once.
		p.log.Warn().Err(err).Msg("network events lost")
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch reads the inventory now and after each change, until ctx ends or changes can no longer be seen.
func (p *Probe) watch(ctx context.Context, found func(desired.Inventory)) error {
	done := make(chan struct{})
	defer close(done)
	addrs := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(links, done); err != nil {
		return fmt.Errorf("subscribe to devices: %w", err)
	}
	known := p.known
	ticker := time.NewTicker(refresh)
	defer ticker.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-addrs:
			if !ok {
				return errors.New("read addresses: subscription lost")
			}
			due.Reset(settle)
		case _, ok := <-links:
			if !ok {
				return errors.New("read devices: subscription lost")
			}
			due.Reset(settle)
		case <-known:
			known = nil
			due.Reset(0)
		case <-ticker.C:
			due.Reset(0)
		case <-due.C:
			inv, err := p.Inventory(ctx)
			if err != nil {
				if ctx.Err() == nil {
					p.log.Warn().Err(err).Msg("read inventory")
				}
				due.Reset(settle * 10)
				continue
			}
			found(inv)
		}
	}
}
