package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"shoal/agent/domain"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/ledger"
	"shoal/agent/network"
	"shoal/desired"
)

// Node is what can be seen of a machine without asking anybody else.
type Node struct {
	At       time.Time
	Hostname string
	Kernel   string
	Uptime   time.Duration
	// Who it is, and how its agent is connected.
	Status install.Status
	CPUs   int
	// Busy is the part of the processors' time since the last look that was used, 0 to 1; below 0 for the first look.
	Busy float64
	// Load is that of 1, 5 and 15 minutes.
	Load [3]string
	// Memory and MemoryUsed are in bytes. What the kernel would give up at once counts as free.
	Memory, MemoryUsed uint64
	Disks              []Disk
	FileSystems        []FileSystem
	NICs               []network.Device
	// Pending is a change of the network that is not confirmed, Left how long it has still, Last how the one before ended.
	Pending  *network.Pending
	Left     time.Duration
	Last     *network.Outcome
	VMs      []VM
	Services []Service
	// Notes say what could not be read, and why.
	Notes []string
}

// Disk is a disk of the machine.
type Disk struct {
	Name, Model string
	Bytes       uint64
}

// FileSystem is one of the machine's own that is mounted.
type FileSystem struct {
	Path        string
	Bytes, Used uint64
}

// VM is a guest that the host's document has, or libvirt.
type VM struct {
	Name, State string
	CPUs        int
	MemoryMiB   int
}

// Service is a unit of systemd, with what systemctl is-active says of it.
type Service struct{ Name, State string }

// Services are the units that the console shows and restarts, where the machine has them.
func services() []string {
	return []string{"shoal-agent", "shoal-controller", "libvirtd", "systemd-networkd", "nfs-server", "chrony", "ssh"}
}

// Machine reads a Node of the machine that this process runs on, and does what the console asks for. See Actions.
type Machine struct {
	// Data is the agent's directory, Libvirt libvirtd's socket.
	Data, Libvirt string
	Run           host.Runner
	Network       *network.Network
	// Archives is where Backup and Bundle put their files.
	Archives string

	mu sync.Mutex
	// libvirt stays connected from one look to the next, since libvirtd logs an error at the end of each connection.
	libvirt *domain.Socket
	// busy and total are the processors' ticks at the last look.
	busy, total uint64
}

// How long one look may wait for libvirtd or systemd.
const lookTimeout = 3 * time.Second

// Look reads everything, of which any part may be missing.
func (m *Machine) Look(ctx context.Context) Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := Node{At: time.Now()}
	note := func(what string, err error) {
		if err != nil {
			n.Notes = append(n.Notes, fmt.Sprintf("%s: %v", what, err))
		}
	}
	var err error
	n.Hostname, err = os.Hostname()
	note("host name", err)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		n.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	n.Uptime, err = network.Kernel{}.Uptime()
	note("uptime", err)
	n.Status, err = install.Look(m.Data, nil)
	note("identity", err)
	note("processors", m.processors(&n))
	b, err := os.ReadFile("/proc/meminfo")
	note("memory", err)
	n.Memory, n.MemoryUsed = memory(string(b))
	n.Disks = disks("/sys/block")
	mounts, err := os.ReadFile("/proc/self/mounts")
	note("mounts", err)
	n.FileSystems = fileSystems(string(mounts))
	n.NICs, err = m.Network.Devices(ctx)
	note("network", err)
	if n.Pending, err = m.Network.Pending(); n.Pending != nil {
		n.Left = m.Network.Left(n.Pending)
	}
	note("change of the network", err)
	n.Last, err = m.Network.Last()
	note("last change of the network", err)
	note("VMs", m.vms(ctx, &n))
	n.Services = m.services(ctx)
	return n
}

// processors compares the counters of the kernel with those of the last look.
func (m *Machine) processors(n *Node) error {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return err
	}
	busy, total, cpus, err := ticks(string(stat))
	if err != nil {
		return err
	}
	n.CPUs, n.Busy = cpus, -1
	if m.total > 0 && total > m.total && busy >= m.busy {
		n.Busy = float64(busy-m.busy) / float64(total-m.total)
	}
	m.busy, m.total = busy, total
	load, err := os.ReadFile("/proc/loadavg")
	copy(n.Load[:], strings.Fields(string(load)))
	return err
}

// ticks reads proc_stat(5): what the processors worked and all there was, since the start, and their number.
func ticks(stat string) (busy, total uint64, cpus int, err error) {
	for line := range strings.Lines(stat) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		// Time of guests, the 9th and 10th, is in that of user and nice already.
		for i, s := range f[1:9] {
			v, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return 0, 0, 0, fmt.Errorf("read /proc/stat: %w", err)
			}
			total += v
			if i != 3 && i != 4 { // idle and iowait
				busy += v
			}
		}
	}
	if total == 0 {
		return 0, 0, 0, errors.New("read /proc/stat: no line of all processors")
	}
	return busy, total, cpus, nil
}

// memory reads proc_meminfo(5): the machine's memory and what of it is used, in bytes.
func memory(meminfo string) (total, used uint64) {
	values := map[string]uint64{}
	for line := range strings.Lines(meminfo) {
		if f := strings.Fields(line); len(f) > 1 {
			if kib, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				values[f[0]] = kib << 10
			}
		}
	}
	total = values["MemTotal:"]
	return total, total - min(total, values["MemAvailable:"])
}

// disks are the block devices that are hardware.
func disks(sys string) []Disk {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil
	}
	var out []Disk
	for _, e := range entries {
		read := func(file string) string {
			b, err := os.ReadFile(filepath.Join(sys, e.Name(), file))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(b))
		}
		// Sizes are in sectors of 512 bytes, whatever those of the disk are.
		sectors, err := strconv.ParseUint(read("size"), 10, 64)
		if _, soft := os.Stat(filepath.Join(sys, e.Name(), "device")); soft != nil || err != nil || sectors == 0 || strings.HasPrefix(e.Name(), "sr") {
			continue
		}
		out = append(out, Disk{Name: e.Name(), Model: read("device/model"), Bytes: sectors * 512})
	}
	return out
}

// fileSystems are those on devices of this machine: one elsewhere might hang.
func fileSystems(mounts string) []FileSystem {
	var out []FileSystem
	seen := map[string]bool{}
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "/dev/") || strings.HasPrefix(f[0], "/dev/loop") || seen[f[0]] || f[2] == "fuse" || f[2] == "squashfs" {
			continue
		}
		seen[f[0]] = true
		path := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(f[1])
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err != nil || s.Blocks == 0 {
			continue
		}
		size := uint64(s.Frsize) //nolint:gosec // it is a size
		out = append(out, FileSystem{Path: path, Bytes: s.Blocks * size, Used: (s.Blocks - s.Bfree) * size})
	}
	return out
}

// vms joins the document in the ledger with what libvirt says, of which either may be missing.
func (m *Machine) vms(ctx context.Context, n *Node) error {
	doc, _, err := ledger.Read(filepath.Join(m.Data, "ledger"))
	vms := map[string]*VM{}
	for ref, item := range doc.Items {
		var d desired.Domain
		if ref.Kind != desired.KindDomain {
			continue
		}
		if jsonErr := json.Unmarshal(item.Spec, &d); jsonErr != nil {
			err = errors.Join(err, fmt.Errorf("domain %s: %w", ref.ID, jsonErr))
			continue
		}
		vms[ref.ID] = &VM{Name: cmp.Or(d.Title, d.Name), State: "not defined", CPUs: d.CPUs, MemoryMiB: d.MemoryMiB}
	}
	infos, libvirtErr := m.domains(ctx)
	for _, info := range infos {
		vm := vms[info.ID]
		if vm == nil {
			vm = &VM{Name: info.Name}
			vms[info.ID] = vm
		}
		vm.State = stateName(info.State)
	}
	for _, vm := range vms {
		if libvirtErr != nil {
			vm.State = "unknown"
		}
		n.VMs = append(n.VMs, *vm)
	}
	slices.SortFunc(n.VMs, func(a, b VM) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.State, b.State)) })
	if libvirtErr != nil && errors.Is(libvirtErr, fs.ErrNotExist) && len(vms) == 0 {
		libvirtErr = nil // a machine without guests needs no libvirtd
	}
	return errors.Join(err, libvirtErr)
}

// domains are libvirt's. The caller holds the lock.
func (m *Machine) domains(ctx context.Context) ([]domain.Info, error) {
	if _, err := os.Stat(m.Libvirt); err != nil {
		return nil, fmt.Errorf("libvirtd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if m.libvirt == nil {
		m.libvirt = domain.NewSocket(m.Libvirt)
	}
	infos, err := m.libvirt.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("libvirtd: %w", err)
	}
	return infos, nil
}

func stateName(s domain.State) string {
	switch s {
	case domain.Running, domain.Blocked:
		return "running"
	case domain.Paused, domain.PMSuspended:
		return "paused"
	case domain.ShuttingOff:
		return "shutting off"
	case domain.Shutoff:
		return "off"
	case domain.Crashed:
		return "crashed"
	case domain.NoState:
	}
	return "unknown"
}

// services asks systemd.
func (m *Machine) services(ctx context.Context) []Service {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	text, err := m.Run.Run(ctx, host.Command{Name: "systemctl", Args: append([]string{"show", "--property=Id,LoadState,ActiveState"}, units()...)})
	if err != nil {
		return nil
	}
	return unitStates(string(text))
}

// unitStates reads what systemctl show prints: assignments, with a blank line between units.
func unitStates(text string) []Service {
	var out []Service
	for block := range strings.SplitSeq(text, "\n\n") {
		v := map[string]string{}
		for line := range strings.Lines(block) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				v[key] = value
			}
		}
		if v["LoadState"] == "loaded" {
			out = append(out, Service{Name: strings.TrimSuffix(v["Id"], ".service"), State: v["ActiveState"]})
		}
	}
	return out
}

func units() []string {
	out := services()
	for i := range out {
		out[i] += ".service"
	}
	return out
}
