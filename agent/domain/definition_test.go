package domain

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/desired"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testID = "0f0e0d0c-0b0a-4908-8706-050403020100"

// full is a document with everything in it.
func full() desired.Domain {
	return desired.Domain{
		Name: "shoal-" + testID, Title: `web & "db" <1>`, Power: desired.PowerOn, StopSeconds: 60, CPUs: 2, MemoryMiB: 1024,
		Machine: "pc", CPUMode: "host-model", ConsoleLog: "/var/log/shoal/console/" + testID + ".log",
		Disks: []desired.Disk{
			{Volume: "r", Path: "/p/volumes/r.qcow2", Format: desired.FormatQCOW2, Target: "vda", Bus: "virtio", Serial: "root", Boot: 1},
			{Volume: "d", Path: `/p/volumes/d & "e".raw`, Format: desired.FormatRaw, Target: "sda", Bus: "scsi", Cache: "none"},
			{Volume: "i", Path: "/p/images/i.iso", Format: desired.FormatISO, Target: "hdc", Bus: "ide", Boot: 2},
		},
		NICs: []desired.DomainNIC{
			{ID: "n1", MAC: "52:54:00:00:00:02", Tap: "sht000000000002", Bridge: "shb000000000001", Model: "virtio", MTU: 1450, Boot: 3},
			{ID: "n2", MAC: "52:54:00:00:00:01", Tap: "sht000000000001", Bridge: "shb000000000001", Model: "e1000"},
		},
	}
}

func TestBuildGolden(t *testing.T) {
	small := desired.Domain{Name: "shoal-" + testID, Power: desired.PowerOn, CPUs: 1, MemoryMiB: 16, Machine: "pc"}
	q35 := full()
	q35.Machine, q35.Disks = "q35", q35.Disks[:2]
	for name, c := range map[string]struct {
		d    desired.Domain
		virt string
	}{"small-qemu": {small, virtQEMU}, "full-kvm": {full(), virtKVM}, "full-qemu": {full(), virtQEMU}, "q35-kvm": {q35, virtKVM}} {
		t.Run(name, func(t *testing.T) {
			got, err := build(testID, c.d, c.virt, mark{ID: testID, Hash: "abc", Power: powerOn}, nil)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".xml")
			if *update {
				if err := os.WriteFile(file, []byte(got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got+"\n"); d != "" {
				t.Errorf("%s (-update rewrites it): %s", file, d)
			}
		})
	}
}

// What is built is read back as what was wanted.
func TestBuildAndParseAgree(t *testing.T) {
	names := rapid.StringMatching(`[A-Za-z0-9 &<>"'._-]{1,20}`)
	rapid.Check(t, func(t *rapid.T) {
		d := desired.Domain{
			Name: "shoal-x", Title: names.Draw(t, "title"), CPUs: rapid.IntRange(1, 1024).Draw(t, "cpus"),
			MemoryMiB: rapid.IntRange(16, 1<<22).Draw(t, "memory"), Machine: rapid.SampledFrom([]string{"pc", "q35"}).Draw(t, "machine"),
			CPUMode: rapid.SampledFrom([]string{"", "none", "host-model", "host-passthrough"}).Draw(t, "cpu mode"),
		}
		if rapid.Bool().Draw(t, "log") {
			d.ConsoleLog = "/log/" + names.Draw(t, "log name")
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "disks") {
			d.Disks = append(d.Disks, desired.Disk{
				Path: "/p/" + names.Draw(t, "path"), Target: "vd" + string(rune('a'+i)), Serial: names.Draw(t, "serial"),
				Format: rapid.SampledFrom([]desired.Format{desired.FormatQCOW2, desired.FormatRaw, desired.FormatISO}).Draw(t, "format"),
				Bus:    rapid.SampledFrom([]string{"virtio", "scsi", "ide", "sata"}).Draw(t, "bus"), Boot: rapid.IntRange(0, 3).Draw(t, "boot"),
			})
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "nics") {
			d.NICs = append(d.NICs, desired.DomainNIC{
				MAC: "52:54:00:00:00:0" + string(rune('0'+i)), Tap: "tap" + string(rune('0'+i)), Bridge: "br0", Model: "virtio",
				MTU: rapid.SampledFrom([]int{0, 1450}).Draw(t, "mtu"),
			})
		}
		m := mark{ID: testID, Hash: "h", Power: powerGuest}
		text, err := build(testID, d, virtKVM, m, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(viewOf(d), p.view); diff != "" {
			t.Fatalf("view: %s\n%s", diff, text)
		}
		p.mark.XMLName.Local, p.mark.XMLName.Space = "", ""
		if !p.marked || p.mark != m {
			t.Fatalf("mark %+v, %v", p.mark, p.marked)
		}
		if fields := p.view.differences(viewOf(d), false); fields != nil {
			t.Fatalf("differences: %v", fields)
		}
	})
}

// Devices keep their places when others come and go.
func TestAddressesAreKept(t *testing.T) {
	old, err := parse(`<domain type="qemu"><uuid>` + testID + `</uuid><os><type machine="pc-i440fx-7.2">hvm</type></os><devices>
		<disk type="file" device="disk"><source file="/p/volumes/r.qcow2"/><target dev="vda" bus="virtio"/>
			<address type="pci" domain="0x0000" bus="0x00" slot="0x07" function="0x0"/></disk>
		<interface type="bridge"><mac address="52:54:00:00:00:02"/><model type="virtio"/>
			<address type="pci" domain="0x0000" bus="0x00" slot="0x09" function="0x0"/></interface>
		<controller type="usb" index="0" model="piix3-uhci"><alias name="usb"/>
			<address type="pci" domain="0x0000" bus="0x00" slot="0x01" function="0x2"/></controller>
		<memballoon model="virtio"><address type="pci" domain="0x0000" bus="0x00" slot="0x0b" function="0x0"/></memballoon>
		</devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	slots := func(d desired.Domain) map[string]uint {
		t.Helper()
		text, err := build(testID, d, virtQEMU, mark{ID: testID}, old)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint{}
		for _, x := range p.domain.Devices.Disks {
			if x.Address != nil {
				got[x.Target.Dev] = *x.Address.PCI.Slot
			}
		}
		for _, x := range p.domain.Devices.Interfaces {
			if x.Address != nil {
				got[x.MAC.Address] = *x.Address.PCI.Slot
			}
		}
		for _, x := range p.domain.Devices.Controllers {
			if x.Address != nil {
				got[x.Type] = *x.Address.PCI.Slot
			}
		}
		if b := p.domain.Devices.MemBalloon; b.Address != nil {
			got["balloon"] = *b.Address.PCI.Slot
		}
		return got
	}
	if d := cmp.Diff(map[string]uint{"vda": 7, "52:54:00:00:00:02": 9, "usb": 1, "balloon": 11}, slots(full())); d != "" {
		t.Errorf("same machine: %s", d)
	}
	q35 := full()
	q35.Machine = "q35"
	if d := cmp.Diff(map[string]uint{}, slots(q35)); d != "" {
		t.Errorf("another machine: %s", d)
	}
}

func TestMark(t *testing.T) {
	m := mark{ID: testID, Hash: "abc", Power: powerOff}
	for text, want := range map[string]bool{
		m.metadata(): true,
		`<a:other xmlns:a="urn:a"><a:domain id="x"/></a:other>` + m.metadata():        true,
		`<domain xmlns="urn:shoal:domain:1" id="` + testID + `" hash="" power="on"/>`: true,
		`<domain id="` + testID + `" hash="" power="on"/>`:                            false,
		`<x:domain xmlns:x="urn:shoal:domain:2" id="` + testID + `"/>`:                false,
		"": false, "<": false, "text": false,
	} {
		got, ok := parseMark(text)
		if ok != want || ok && got.ID != testID {
			t.Errorf("%q: %v, %+v", text, ok, got)
		}
	}
	if !strings.HasPrefix(m.element(), "<domain ") {
		t.Errorf("element: %s", m.element())
	}
}

func FuzzParse(f *testing.F) {
	for _, virt := range []string{virtKVM, virtQEMU} {
		text, err := build(testID, full(), virt, mark{ID: testID}, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add(`<domain><devices><disk/><interface/><serial/><graphics type="vnc" port="5900"/></devices><vcpu/><memory/><os/></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parse(text)
		if err == nil {
			_ = p.view.differences(viewOf(full()), p.emulated())
		}
	})
}
