// Package plan decides what an installation does to a machine: from a kickstart file and from what the machine has, a list of
// commands, mounts and files. It is pure: it looks at nothing and changes nothing, so that every decision can be tested as a table.
//
// It guarantees that a disk is in a plan only if the kickstart names it, or if it is the machine's only disk and the kickstart names
// none; that a disk which holds anything is in it only if clearpart covers it (and zerombr, where there is no partition table to be cleared); and that
// everything that can be known to fail fails here, with the line of the kickstart, before anything is written. A disk with an unfinished
// installation of ours counts as blank, so that an installation can be repeated after a power cut.
//
// Disks are taken whole. Each gets a GPT; disks that the machine starts from get a BIOS boot partition and an EFI system partition both, so that
// the machine starts either way. The first partition of each disk is called Unfinished until all is done.
package plan

import (
	"fmt"
	"slices"
	"strings"

	"shoal/agent/host"
	"shoal/desired/kickstart"
)

// Unfinished is the name of the first partition of each disk while the installation runs.
const Unfinished = "shoal-unfinished"

// Finished is its name afterwards; id is that of the installation medium.
func Finished(id string) string { return "shoal-" + id }

// Machine is what the installer found.
type Machine struct {
	Disks []Disk
	NICs  []NIC
	// EFI: the machine was started by UEFI.
	EFI bool
	// Memory and Image, what the unpacked system takes, in MiB.
	Memory, Image int
	// Packages, Units, Locales and Zones are what the image has.
	Packages, Units, Locales, Zones []string
	// BootMAC is the interface that the machine was started from over the network, if it was.
	BootMAC string
}

// Disk is a disk of the machine.
type Disk struct {
	// Name is the kernel's, such as sda; Path is its node.
	Name, Path string
	// Links are other paths of it, below /dev/disk.
	Links         []string
	Size          int64
	Model, Serial string
	Removable     bool
	ReadOnly      bool
	// InUse says what uses it, such as "it is the installation medium"; empty if nothing does.
	InUse string
	// Table is the kind of its partition table, empty without one.
	Table string
	// Content is what is on it, as one would tell it; empty on a blank disk.
	Content []Content
	// Holders are devices that the kernel has made out of it, the topmost first.
	Holders []Holder
}

// Content is a partition or a signature.
type Content struct {
	// Path is the partition, or the disk itself.
	Path string
	// Type is a file system, LVM2_member, linux_raid_member and so on; "data" for what is not known; empty for nothing.
	Type, Label string
	// Name is the partition's name in the GPT.
	Name string
}

// Holder is a volume or an array.
type Holder struct {
	Path string
	// Kind is lvm, raid or crypt.
	Kind string
	// Name tells one volume or array from another, on all disks that it lies on.
	Name string
}

// NIC is a network interface.
type NIC struct {
	Name, MAC string
	// Carrier: a cable is plugged in.
	Carrier bool
}

// Options are what else a plan depends on.
type Options struct {
	// ID is that of the medium: its kickstart and image.
	ID string
	// Seed makes the UUIDs of this installation.
	Seed string
	// Reinstall allows a disk that was installed from this very medium.
	Reinstall bool
	// Consoles are kernel arguments that the installer was started with, for the installed system too.
	Consoles []string
}

// Plan is all that will be done.
type Plan struct {
	// Summary tells it to people.
	Summary []string
	Notes   []kickstart.Note
	// Steps prepare the disks; they are run in order.
	Steps []Step
	// Mounts are made in order, below the target.
	Mounts []Mount
	// Loader is where the boot loader goes.
	Loader Loader
	// Files are written into the target, and Inside is run in it then.
	Files  []File
	Inside []Step
	// Finish marks the disks as done.
	Finish []Step
}

// Step is one command.
type Step struct {
	// Say is what it does.
	Say     string
	Command host.Command
	// Nodes are devices that must be there afterwards.
	Nodes []string
}

// Mount is a file system of the target.
type Mount struct {
	Device, Path, Type, Options string
}

// Loader says how the machine starts.
type Loader struct {
	// Disks get GRUB for BIOS; ESPs get it for UEFI, the first is mounted at /boot/efi.
	Disks, ESPs []string
	None        bool
	// KeepOrder: make no entry in the firmware.
	KeepOrder bool
}

// File is a file of the target.
type File struct {
	Path    string
	Mode    uint32
	Content string
	// Link makes it a symbolic link instead.
	Link string
}

// Make plans the installation, or says everything that stands against it.
func Make(ks *kickstart.Kickstart, m Machine, o Options) (*Plan, error) {
	p := &planner{ks: ks, m: m, o: o, out: &Plan{Notes: slices.Clone(ks.Notes)}, on: map[string][]*slot{}, uuids: map[string]string{}}
	p.choose()
	p.software()
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	p.partitions()
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	p.build()
	p.network()
	p.system()
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return p.out, nil
}

type planner struct {
	ks   *kickstart.Kickstart
	m    Machine
	o    Options
	out  *Plan
	errs kickstart.Errors
	// pool are the disks that may be used.
	pool []*Disk
	// on are the partitions of a disk, by its name, and used are the disks that have any.
	on    map[string][]*slot
	parts []*slot
	boot  []*Disk
	uuids map[string]string
	fstab []string
	units map[string]*unit
}

func (p *planner) fail(at kickstart.Pos, remedy, format string, args ...any) {
	p.errs = append(p.errs, &kickstart.Error{At: at, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (p *planner) note(at kickstart.Pos, format string, args ...any) {
	p.out.Notes = append(p.out.Notes, kickstart.Note{At: at, Text: fmt.Sprintf(format, args...)})
}

func (p *planner) say(format string, args ...any) {
	p.out.Summary = append(p.out.Summary, fmt.Sprintf(format, args...))
}

func (p *planner) step(say string, nodes []string, name string, args ...string) {
	p.out.Steps = append(p.out.Steps, Step{Say: say, Command: host.Command{Name: name, Args: args}, Nodes: nodes})
}

// software checks what the kickstart wants of the image.
func (p *planner) software() {
	for _, pkg := range p.ks.Packages.Install {
		if !slices.Contains(p.m.Packages, pkg.Name) {
			if p.ks.Packages.IgnoreMissing {
				p.note(pkg.At, "package %s is not in this image and is left out", pkg.Name)
				continue
			}
			p.fail(pkg.At, "take it out, or add --ignoremissing to %packages and install it from your own source in %post", "package %s is not in this image", pkg.Name)
		}
	}
	for _, pkg := range p.ks.Packages.Exclude {
		if slices.Contains(p.m.Packages, pkg.Name) {
			p.note(pkg.At, "package %s is part of the image and stays", pkg.Name)
		}
	}
	for _, s := range p.ks.Services.Enabled {
		if _, ok := p.unit(s.Name); !ok {
			p.fail(s.At, "take it out, or enable it in %post after installing it", "the image has no service %s", s.Name)
		}
	}
}

// debian are services that the RHEL family names otherwise. It is read only.
var debian = map[string]string{
	"sshd": "ssh", "chronyd": "chrony", "iscsid": "open-iscsi", "multipathd": "multipath-tools", "smartd": "smartmontools", "nfs-server": "nfs-kernel-server", "virtqemud": "libvirtd",
}

// unit finds the unit of a service in the image.
func (p *planner) unit(name string) (string, bool) {
	base, suffix := name, ".service"
	if i := strings.LastIndexByte(name, '.'); i > 0 && slices.Contains([]string{".service", ".socket", ".timer", ".target", ".path"}, name[i:]) {
		base, suffix = name[:i], name[i:]
	}
	for _, try := range []string{debian[base], base} {
		if try != "" && slices.Contains(p.m.Units, try+suffix) {
			return try + suffix, true
		}
	}
	return "", false
}

// Units are the services of the kickstart by the names of the image: those to switch on, and those to switch off.
func Units(ks *kickstart.Kickstart, m Machine) (on, off []string) {
	p := &planner{m: m}
	for _, s := range ks.Services.Enabled {
		if u, ok := p.unit(s.Name); ok {
			on = append(on, u)
		}
	}
	for _, s := range ks.Services.Disabled {
		// What is not there is off already.
		if u, ok := p.unit(s.Name); ok {
			off = append(off, u)
		}
	}
	return on, off
}
