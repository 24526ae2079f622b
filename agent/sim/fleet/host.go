package fleet

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"shoal/agent"
	"shoal/agent/host"
	"shoal/agent/netdev"
	"shoal/agent/sim"
	"shoal/desired"
)

// Host is a model of a whole host: models of its parts, which are connected as those of a real one are. A guest starts only
// where its bridges and its disks are, its taps are ports of the bridges while it runs, and a power cut leaves what is on disks.
type Host struct {
	Links   *sim.Links
	Filter  *sim.PacketFilter
	DHCP    *sim.DHCPHost
	Storage *sim.Storage
	Libvirt *sim.Libvirt
	// Faults disturbs what the host's agent does.
	Faults Faults

	inventory desired.Inventory
	// boots counts the starts of the machine.
	boots atomic.Int64
	// starting is told of every guest before it starts; an error keeps it from starting.
	starting func(domainXML string) error
}

// Size is a host's hardware.
type Size struct {
	CPUs      int
	MemoryMiB uint64
	DiskBytes uint64
}

// uplink is the network device that every host has.
const uplink = "eth0"

// NewHost is a host of that name that was never used, with an address on its one network device.
func NewHost(name, address string, size Size) *Host {
	h := &Host{
		Links: sim.NewLinks(), Filter: sim.NewPacketFilter(), Storage: sim.NewStorage(size.DiskBytes), Libvirt: sim.NewLibvirt(),
		inventory: desired.Inventory{
			Hostname: name, Arch: "amd64", Kernel: "model", CPUModel: "model", CPUs: size.CPUs, MemoryMiB: size.MemoryMiB, Virt: "kvm",
			Libvirt: "9.0.0", QEMU: "7.2.0", Addresses: map[string][]string{uplink: {address}}, Devices: []string{uplink},
		},
	}
	h.DHCP = sim.NewDHCPHost(h.Links, h.Filter)
	h.Libvirt.Connect(h)
	h.boot()
	return h
}

// OnStart has a function asked before every start of a guest, with the domain's XML; an error keeps it from starting. It is to be
// called before anything else.
func (h *Host) OnStart(f func(domainXML string) error) { h.starting = f }

func (h *Host) boot() {
	h.boots.Add(1)
	h.Links.Reset(netdev.Link{Name: uplink, Type: "device", Up: true, MTU: 9000})
	h.Filter.Reset()
	h.DHCP.Reset()
	h.Storage.Reset()
}

// PowerCut ends everything that runs on the host, and boots it.
func (h *Host) PowerCut() {
	h.Libvirt.PowerCut()
	h.boot()
}

// Machine is the host as an agent sees it, with the host's faults. images may be nil.
func (h *Host) Machine(images *http.Client) agent.Machine {
	return Disturb(agent.Machine{
		Boot: fmt.Sprint("boot ", h.boots.Load()), Run: runner{h}, Links: h.Links, DHCP: h.DHCP, Filter: h.Filter, Mounts: h.Storage, Files: h.Storage, Libvirt: h.Libvirt,
		Ports: ports{h.Links}, Sensor: sensor{h}, Images: images,
	}, &h.Faults)
}

// runner runs the programs that the models know.
type runner struct{ h *Host }

// Run implements host.Runner.
func (r runner) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if c.Name == "qemu-img" {
		return r.h.Storage.Run(ctx, c)
	}
	return r.h.Filter.Run(ctx, c)
}

// sensor knows what the host is.
type sensor struct{ h *Host }

// Virt implements agent.Sensor.
func (s sensor) Virt(context.Context) (string, error) { return s.h.inventory.Virt, nil }

// Run implements agent.Sensor.
func (s sensor) Run(ctx context.Context, report func(desired.Inventory)) error {
	report(s.h.inventory)
	<-ctx.Done()
	return ctx.Err()
}

// Hardware is a domain's devices as far as they are connected with something.
type Hardware struct {
	NICs []struct {
		MAC struct {
			Address string `xml:"address,attr"`
		} `xml:"mac"`
		Source struct {
			Bridge string `xml:"bridge,attr"`
		} `xml:"source"`
		Target struct {
			Dev string `xml:"dev,attr"`
		} `xml:"target"`
	} `xml:"interface"`
	Disks []struct {
		Source struct {
			File string `xml:"file,attr"`
		} `xml:"source"`
	} `xml:"disk"`
}

// ParseHardware reads a definition or a single device.
func ParseHardware(text string) (Hardware, error) {
	var whole struct {
		Devices Hardware `xml:"devices"`
	}
	var err error
	if strings.Contains(text, "<devices>") {
		err = xml.Unmarshal([]byte(text), &whole)
	} else {
		err = xml.Unmarshal([]byte("<domain><devices>"+text+"</devices></domain>"), &whole)
	}
	if err != nil {
		return Hardware{}, fmt.Errorf("XML error: %w", err)
	}
	return whole.Devices, nil
}

// Plug implements sim.Devices.
func (h *Host) Plug(devices string) error {
	if h.starting != nil && strings.Contains(devices, "<devices>") {
		if err := h.starting(devices); err != nil {
			return err
		}
	}
	hw, err := ParseHardware(devices)
	if err != nil {
		return err
	}
	for _, d := range hw.Disks {
		if d.Source.File != "" && !h.Storage.Has(d.Source.File) {
			return fmt.Errorf("cannot access storage file '%s': No such file or directory", d.Source.File)
		}
	}
	ctx := context.Background()
	for i, n := range hw.NICs {
		err := h.Links.Add(ctx, netdev.Link{Name: n.Target.Dev, Type: "tun", Up: true})
		if err == nil {
			if err = h.Links.SetMaster(ctx, n.Target.Dev, n.Source.Bridge); err != nil {
				err = errors.Join(err, h.Links.Delete(ctx, n.Target.Dev))
			}
		}
		if err != nil {
			for _, n := range hw.NICs[:i] {
				err = errors.Join(err, h.Links.Delete(ctx, n.Target.Dev))
			}
			return fmt.Errorf("create tap device: %w", err)
		}
	}
	for _, d := range hw.Disks {
		if d.Source.File != "" {
			h.Storage.SetUsed(d.Source.File, true)
		}
	}
	return nil
}

// Unplug implements sim.Devices.
func (h *Host) Unplug(devices string) {
	hw, err := ParseHardware(devices)
	if err != nil {
		return // it was plugged, so it can be parsed
	}
	for _, n := range hw.NICs {
		_ = h.Links.Delete(context.Background(), n.Target.Dev) // the model's own never fails
	}
	for _, d := range hw.Disks {
		h.Storage.SetUsed(d.Source.File, false)
	}
}

// ports is the domain kind's view of the host's links.
type ports struct{ links *sim.Links }

func (p ports) find(ctx context.Context, dev string) (l netdev.Link, ok bool, err error) {
	links, err := p.links.List(ctx)
	if err != nil {
		return l, false, err
	}
	if i := slices.IndexFunc(links, func(l netdev.Link) bool { return l.Name == dev }); i >= 0 {
		return links[i], true, nil
	}
	return l, false, nil
}

// Bridge implements domain.Machine.
func (p ports) Bridge(dev string) (string, bool, error) {
	l, ok, err := p.find(context.Background(), dev)
	return l.Master, ok, err
}

// SetBridge implements domain.Machine.
func (p ports) SetBridge(dev, bridge string) error {
	return p.links.SetMaster(context.Background(), dev, bridge)
}

// WatchPorts implements domain.Machine.
func (p ports) WatchPorts(ctx context.Context, lost func(dev string)) error {
	return p.links.Watch(ctx, func(name string) {
		if l, ok, err := p.find(ctx, name); err == nil && (!ok || l.Master == "") {
			lost(name)
		}
	})
}

// MkdirAll implements domain.Machine.
func (ports) MkdirAll(string) error { return nil }

// RemoveLog implements domain.Machine.
func (ports) RemoveLog(string) error { return nil }
