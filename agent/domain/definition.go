package domain

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"

	libvirtxml "github.com/libvirt/libvirt-go-xml"

	"shoal/desired"
)

// edition counts changes of what build makes of the same document. A new agent then renews the definitions that an older
// one wrote; they take effect at the next start.
const edition = 1

// The domain types of libvirt.
const (
	virtKVM  = "kvm"
	virtQEMU = "qemu"
)

// Our element in a domain's metadata.
const (
	markSpace  = "urn:shoal:domain:1"
	markPrefix = "shoal"
)

// mark is what our element says. It is what makes a domain ours.
type mark struct {
	XMLName xml.Name `xml:"urn:shoal:domain:1 domain"`
	// ID is the item's id. It must be the domain's UUID, too: a clone that somebody made of a domain of ours carries our
	// element and isn't ours.
	ID string `xml:"id,attr"`
	// Hash is that of the definition when we wrote it.
	Hash string `xml:"hash,attr"`
	// Power is what the domain was last brought to.
	Power markPower `xml:"power,attr"`
	// Wish is the document's when Power was written: a guest that shut itself down did so against this one.
	Wish uint64 `xml:"wish,attr"`
}

// markPower survives restarts of agent, libvirtd and host, unlike libvirt's reason for a domain being off.
type markPower string

const (
	powerOn  markPower = "on"  // started, or to be started
	powerOff markPower = "off" // stopped by us, or being stopped
	// powerGuest is a guest that shut itself down while it was wanted on.
	powerGuest markPower = "guest"
)

// element is the mark as libvirt takes it, without the prefix, which libvirt adds.
func (m mark) element() string {
	return fmt.Sprintf(`<domain id=%q hash=%q power=%q wish="%d"/>`, m.ID, m.Hash, string(m.Power), m.Wish)
}

// metadata is the mark as it stands in a definition.
func (m mark) metadata() string {
	return fmt.Sprintf(`<%s:domain xmlns:%s=%q id=%q hash=%q power=%q wish="%d"/>`, markPrefix, markPrefix, markSpace, m.ID, m.Hash, string(m.Power), m.Wish)
}

// parseMark finds our element among those that others may have put there.
func parseMark(metadata string) (mark, bool) {
	d := xml.NewDecoder(strings.NewReader(metadata))
	for {
		t, err := d.Token()
		if err != nil {
			return mark{}, false
		}
		start, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Space != markSpace || start.Name.Local != "domain" {
			if err := d.Skip(); err != nil {
				return mark{}, false
			}
			continue
		}
		var m mark
		if err := d.DecodeElement(&m, &start); err != nil {
			return mark{}, false
		}
		return m, true
	}
}

// view is the part of a definition that a document decides, in one form for documents and XML.
type view struct {
	CPUs       int
	MemoryMiB  int
	Machine    string
	CPUMode    string
	ConsoleLog string
	Disks      []diskView
	NICs       []nicView
}

type diskView struct {
	Path, Target, Bus, Serial, Cache string
	Raw, CDROM                       bool
	Boot                             int
}

type nicView struct {
	MAC, Tap, Bridge, Model string
	MTU, Boot               int
}

// same reports whether plugging could not make the one of the other: attributes that only a start can change aside.
func (d diskView) same(o diskView) bool {
	return d.Target == o.Target && d.Path == o.Path && d.Bus == o.Bus
}

func (n nicView) same(o nicView) bool {
	return n.MAC == o.MAC && n.Tap == o.Tap && n.Bridge == o.Bridge && n.Model == o.Model
}

// plugs reports whether the disk can come and go while the machine runs.
func (d diskView) plugs() bool { return !d.CDROM && (d.Bus == "virtio" || d.Bus == "scsi") }

// viewOf is what a document wants.
func viewOf(d desired.Domain) view {
	v := view{CPUs: d.CPUs, MemoryMiB: d.MemoryMiB, Machine: d.Machine, CPUMode: d.CPUMode, ConsoleLog: d.ConsoleLog}
	if v.CPUMode == "none" {
		v.CPUMode = ""
	}
	for _, disk := range d.Disks {
		v.Disks = append(v.Disks, diskView{
			Path: disk.Path, Target: disk.Target, Bus: disk.Bus, Serial: disk.Serial, Cache: disk.Cache,
			Raw: disk.Format != desired.FormatQCOW2, CDROM: disk.Format == desired.FormatISO, Boot: disk.Boot,
		})
	}
	for _, nic := range d.NICs {
		v.NICs = append(v.NICs, nicView{MAC: nic.MAC, Tap: nic.Tap, Bridge: nic.Bridge, Model: nic.Model, MTU: nic.MTU, Boot: nic.Boot})
	}
	v.sort()
	return v
}

// sort makes views comparable; libvirt orders devices as it likes.
func (v *view) sort() {
	slices.SortFunc(v.Disks, func(a, b diskView) int { return strings.Compare(a.Target, b.Target) })
	slices.SortFunc(v.NICs, func(a, b nicView) int { return strings.Compare(a.MAC, b.MAC) })
}

// hash is what the mark keeps of a definition.
func (v view) hash(d desired.Domain) (string, error) {
	b, err := desired.Canonical(struct {
		Edition     int
		Name, Title string
		View        view
	}{edition, d.Name, d.Title, v})
	if err != nil {
		return "", err
	}
	return desired.Hash(b), nil
}

// differences names the fields in which two views differ, in the words of the document. A domain that can't use a CPU
// mode, because its host only emulates, has none.
func (v view) differences(o view, emulated bool) []string {
	var fields []string
	add := func(differs bool, format string, args ...any) {
		if differs {
			fields = append(fields, fmt.Sprintf(format, args...))
		}
	}
	add(v.CPUs != o.CPUs, "cpus")
	add(v.MemoryMiB != o.MemoryMiB, "memory_mib")
	add(v.Machine != o.Machine, "machine")
	add(!emulated && v.CPUMode != o.CPUMode, "cpu_mode")
	add(v.ConsoleLog != o.ConsoleLog, "console_log")
	for _, d := range v.Disks {
		i := slices.IndexFunc(o.Disks, func(x diskView) bool { return x.Target == d.Target })
		add(i < 0 || o.Disks[i] != d, "disk %s", d.Target)
	}
	for _, d := range o.Disks {
		add(!slices.ContainsFunc(v.Disks, func(x diskView) bool { return x.Target == d.Target }), "disk %s", d.Target)
	}
	for _, n := range v.NICs {
		i := slices.IndexFunc(o.NICs, func(x nicView) bool { return x.MAC == n.MAC })
		add(i < 0 || o.NICs[i] != n, "nic %s", n.MAC)
	}
	for _, n := range o.NICs {
		add(!slices.ContainsFunc(v.NICs, func(x nicView) bool { return x.MAC == n.MAC }), "nic %s", n.MAC)
	}
	return fields
}

// parsed is a definition as libvirt gives it.
type parsed struct {
	xml    string
	domain libvirtxml.Domain
	view   view
	mark   mark
	marked bool
	vnc    string
}

// emulated reports whether the domain runs without KVM.
func (p *parsed) emulated() bool { return p.domain.Type != virtKVM }

// parse reads a definition.
func parse(text string) (*parsed, error) {
	p := &parsed{xml: text}
	if err := p.domain.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("parse domain XML: %w", err)
	}
	d := &p.domain
	if d.Metadata != nil {
		p.mark, p.marked = parseMark(d.Metadata.XML)
		p.marked = p.marked && p.mark.ID == d.UUID
	}
	v := &p.view
	if d.VCPU != nil {
		v.CPUs = int(d.VCPU.Value)
		if d.VCPU.Current != 0 {
			v.CPUs = int(d.VCPU.Current)
		}
	}
	if d.Memory != nil {
		v.MemoryMiB = int(bytesOf(d.Memory.Value, d.Memory.Unit) >> 20)
	}
	if d.OS != nil && d.OS.Type != nil {
		v.Machine = machineOf(d.OS.Type.Machine)
	}
	if d.CPU != nil && (d.CPU.Mode == "host-model" || d.CPU.Mode == "host-passthrough") {
		v.CPUMode = d.CPU.Mode
	}
	if d.Devices == nil {
		return p, nil
	}
	for _, s := range d.Devices.Serials {
		if s.Log != nil && (s.Target == nil || s.Target.Port == nil || *s.Target.Port == 0) {
			v.ConsoleLog = s.Log.File
		}
	}
	for i := range d.Devices.Disks {
		v.Disks = append(v.Disks, viewDisk(&d.Devices.Disks[i]))
	}
	for i := range d.Devices.Interfaces {
		v.NICs = append(v.NICs, viewNIC(&d.Devices.Interfaces[i]))
	}
	v.sort()
	for _, g := range d.Devices.Graphics {
		if g.VNC != nil && g.VNC.Port > 0 {
			p.vnc = g.VNC.Listen + ":" + strconv.Itoa(g.VNC.Port)
		}
	}
	return p, nil
}

func viewDisk(d *libvirtxml.DomainDisk) diskView {
	v := diskView{Serial: d.Serial, CDROM: d.Device == "cdrom", Raw: true}
	if d.Target != nil {
		v.Target, v.Bus = d.Target.Dev, d.Target.Bus
	}
	if d.Source != nil && d.Source.File != nil {
		v.Path = d.Source.File.File
	}
	if d.Driver != nil {
		v.Cache, v.Raw = d.Driver.Cache, d.Driver.Type != string(desired.FormatQCOW2)
	}
	if d.Boot != nil {
		v.Boot = int(d.Boot.Order)
	}
	return v
}

func viewNIC(n *libvirtxml.DomainInterface) nicView {
	var v nicView
	if n.MAC != nil {
		v.MAC = strings.ToLower(n.MAC.Address)
	}
	if n.Target != nil {
		v.Tap = n.Target.Dev
	}
	if n.Source != nil && n.Source.Bridge != nil {
		v.Bridge = n.Source.Bridge.Bridge
	}
	if n.Model != nil {
		v.Model = n.Model.Type
	}
	if n.MTU != nil {
		v.MTU = int(n.MTU.Size)
	}
	if n.Boot != nil {
		v.Boot = int(n.Boot.Order)
	}
	return v
}

// machineOf undoes libvirt's expansion of "pc" to "pc-i440fx-7.2".
func machineOf(s string) string {
	switch {
	case strings.HasPrefix(s, "pc-q35"):
		return "q35"
	case strings.HasPrefix(s, "pc-"):
		return "pc"
	default:
		return s
	}
}

// bytesOf converts libvirt's sizes; KiB is its default unit.
func bytesOf(n uint, unit string) uint64 {
	v := uint64(n)
	switch strings.ToLower(unit) {
	case "b", "bytes":
		return v
	case "kb":
		return v * 1000
	case "mb":
		return v * 1000 * 1000
	case "gb":
		return v * 1000 * 1000 * 1000
	case "m", "mib":
		return v << 20
	case "g", "gib":
		return v << 30
	case "t", "tib":
		return v << 40
	default:
		return v << 10
	}
}

// build is the definition of a domain. Where old is given, devices that stay keep their addresses: a guest must find its
// NIC and its disk in the same slot at the next boot, whatever was plugged in between.
func build(id string, d desired.Domain, virt string, m mark, old *parsed) (string, error) {
	v := viewOf(d)
	zero := uint(0)
	def := libvirtxml.Domain{
		Type: virt, Name: d.Name, UUID: id, Title: d.Title,
		Metadata:   &libvirtxml.DomainMetadata{XML: m.metadata()},
		Memory:     &libvirtxml.DomainMemory{Value: uint(d.MemoryMiB), Unit: "MiB"},
		VCPU:       &libvirtxml.DomainVCPU{Placement: "static", Value: uint(d.CPUs)},
		OS:         &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: d.Machine, Type: "hvm"}},
		Features:   &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "restart",
		// Not "preserve": a dead machine that keeps its memory helps nobody, and a destroyed one is started again.
		OnCrash: "destroy",
		PM: &libvirtxml.DomainPM{
			SuspendToMem: &libvirtxml.DomainPMPolicy{Enabled: "no"}, SuspendToDisk: &libvirtxml.DomainPMPolicy{Enabled: "no"},
		},
		Devices: &libvirtxml.DomainDeviceList{
			Controllers: []libvirtxml.DomainController{{Type: "scsi", Index: &zero, Model: "virtio-scsi"}},
			Serials: []libvirtxml.DomainSerial{{
				Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
				Target: &libvirtxml.DomainSerialTarget{Port: &zero},
			}},
			Channels: []libvirtxml.DomainChannel{{
				Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind"}},
				Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
			}},
			Graphics: []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{
				Port: -1, AutoPort: "yes",
				Listeners: []libvirtxml.DomainGraphicListener{{Address: &libvirtxml.DomainGraphicListenerAddress{Address: "127.0.0.1"}}},
			}}},
			Videos:     []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "vga", Heads: 1, VRam: 16384}}},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio"},
			RNGs: []libvirtxml.DomainRNG{{
				Model:   "virtio",
				Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			}},
		},
	}
	if v.ConsoleLog != "" {
		def.Devices.Serials[0].Log = &libvirtxml.DomainChardevLog{File: v.ConsoleLog, Append: "on"}
	}
	if virt == virtKVM {
		if v.CPUMode != "" {
			def.CPU = &libvirtxml.DomainCPU{Mode: v.CPUMode}
		}
		def.Clock.Timer = []libvirtxml.DomainTimer{
			{Name: "rtc", TickPolicy: "catchup"}, {Name: "pit", TickPolicy: "delay"}, {Name: "hpet", Present: "no"},
		}
	}
	for _, disk := range v.Disks {
		def.Devices.Disks = append(def.Devices.Disks, buildDisk(disk))
	}
	for _, nic := range v.NICs {
		def.Devices.Interfaces = append(def.Devices.Interfaces, buildNIC(nic))
	}
	if d.Machine == "q35" {
		// A device is plugged into a root port that is free when the machine starts; libvirt makes only those in use.
		for i := range uint(rootPorts) {
			index := i + 1
			def.Devices.Controllers = append(def.Devices.Controllers,
				libvirtxml.DomainController{Type: "pci", Index: &index, Model: "pcie-root-port"})
		}
	}
	if old != nil && old.view.Machine == d.Machine {
		keepAddresses(&def, &old.domain)
	}
	text, err := def.Marshal()
	if err != nil {
		return "", fmt.Errorf("build domain XML: %w", err)
	}
	return text, nil
}

// rootPorts is how many PCIe root ports a q35 machine has: 24 data volumes, some NICs and what every machine has.
const rootPorts = 40

func buildDisk(v diskView) libvirtxml.DomainDisk {
	disk := libvirtxml.DomainDisk{
		Device: "disk",
		// Stop on any error: the guest then never sees one, and goes on when the storage is back.
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2", Cache: v.Cache, ErrorPolicy: "stop", Discard: "unmap"},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: v.Path}},
		Target: &libvirtxml.DomainDiskTarget{Dev: v.Target, Bus: v.Bus},
		Serial: v.Serial,
	}
	if v.Raw {
		disk.Driver.Type = "raw"
	}
	if v.CDROM {
		disk.Device, disk.Driver.ErrorPolicy, disk.Driver.Discard = "cdrom", "", ""
		disk.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	if v.Boot > 0 {
		disk.Boot = &libvirtxml.DomainDeviceBoot{Order: uint(v.Boot)}
	}
	return disk
}

func buildNIC(v nicView) libvirtxml.DomainInterface {
	nic := libvirtxml.DomainInterface{
		MAC:    &libvirtxml.DomainInterfaceMAC{Address: v.MAC},
		Source: &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: v.Bridge}},
		Target: &libvirtxml.DomainInterfaceTarget{Dev: v.Tap},
		Model:  &libvirtxml.DomainInterfaceModel{Type: v.Model},
	}
	if v.MTU > 0 {
		nic.MTU = &libvirtxml.DomainInterfaceMTU{Size: uint(v.MTU)}
	}
	if v.Boot > 0 {
		nic.Boot = &libvirtxml.DomainDeviceBoot{Order: uint(v.Boot)}
	}
	return nic
}

// keepAddresses gives devices of a new definition the places that they have in the old one. What is new has none, and
// libvirt finds it a free one.
func keepAddresses(def, old *libvirtxml.Domain) {
	if old.Devices == nil {
		return
	}
	for i := range def.Devices.Disks {
		disk := &def.Devices.Disks[i]
		for _, o := range old.Devices.Disks {
			if o.Target != nil && *disk.Target == (libvirtxml.DomainDiskTarget{Dev: o.Target.Dev, Bus: o.Target.Bus}) && o.Device == disk.Device {
				disk.Address = o.Address
			}
		}
	}
	for i := range def.Devices.Interfaces {
		nic := &def.Devices.Interfaces[i]
		for _, o := range old.Devices.Interfaces {
			if o.MAC != nil && strings.EqualFold(o.MAC.Address, nic.MAC.Address) && o.Model != nil && o.Model.Type == nic.Model.Type {
				nic.Address = o.Address
			}
		}
	}
	for _, o := range old.Devices.Controllers {
		if o.Index == nil {
			continue
		}
		o.Alias = nil
		i := slices.IndexFunc(def.Devices.Controllers, func(c libvirtxml.DomainController) bool {
			return c.Type == o.Type && *c.Index == *o.Index
		})
		if i < 0 {
			def.Devices.Controllers = append(def.Devices.Controllers, o)
		} else if def.Devices.Controllers[i].Model == o.Model {
			def.Devices.Controllers[i] = o
		}
	}
	if len(old.Devices.Videos) == 1 && old.Devices.Videos[0].Model.Type == def.Devices.Videos[0].Model.Type {
		def.Devices.Videos[0].Address = old.Devices.Videos[0].Address
	}
	if b := old.Devices.MemBalloon; b != nil && b.Model == def.Devices.MemBalloon.Model {
		def.Devices.MemBalloon.Address = b.Address
	}
	if len(old.Devices.RNGs) == 1 {
		def.Devices.RNGs[0].Address = old.Devices.RNGs[0].Address
	}
}
