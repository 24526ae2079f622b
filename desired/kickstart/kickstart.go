package kickstart

import (
	"net/netip"
	"strings"
)

// Kickstart is what a kickstart file asks for. Sizes are MiB. Whatever is empty was not said.
type Kickstart struct {
	Lang, Keyboard, Timezone string
	// LocalClock: the hardware clock runs in local time.
	LocalClock bool
	// NTP are servers, and pools with a leading "pool ".
	NTP   []string
	NoNTP bool

	Root   *Account
	Users  []Account
	Groups []Group
	Keys   []Key

	Hostname string
	Networks []Network

	Disks    Disks
	Parts    []Part
	Arrays   []Array
	Volumes  []VolumeGroup
	Logicals []Logical
	Auto     *Auto
	// Require: make the partitions that the firmware needs; AddBoot: and a /boot.
	Require, AddBoot bool

	Boot         Boot
	Services     Services
	Firewall     *Firewall
	Packages     Packages
	Certificates []Certificate
	Scripts      []Script

	End End

	Notes []Note
}

// Account is root or another user. Root has no name.
type Account struct {
	At    Pos
	Name  string
	Gecos string
	// Groups beside the own one.
	Groups []string
	Home   string
	Shell  string
	// UID and GID are 0 when the system may choose.
	UID, GID int
	Password string
	// Crypted: the password is a hash of crypt(3).
	Crypted bool
	Lock    bool
	// SSHPassword allows root to log in by password over SSH.
	SSHPassword bool
}

// Group is a group of users; GID 0 lets the system choose.
type Group struct {
	At   Pos
	Name string
	GID  int
}

// Key is a public key that may log in as a user.
type Key struct {
	At         Pos
	User, Line string
}

// Network is one network line that configures a device.
type Network struct {
	At Pos
	// Device is a name, a MAC, link (the first with a cable) or bootif (the one that the machine started from).
	Device string
	// Name is what the configured device is called: a VLAN's own name, else the device.
	Name   string
	DHCP   bool
	Static netip.Prefix
	// Static6 and Auto6 say what IPv6 is to be; neither is no IPv6.
	Static6  netip.Prefix
	Auto6    bool
	Gateway  netip.Addr
	Gateway6 netip.Addr
	NoRoute  bool
	// IgnoreDNS: take no name servers from DHCP.
	IgnoreDNS bool
	DNS       []netip.Addr
	Search    []string
	MTU       int
	// Down: configure it, but leave it down at the start.
	Down        bool
	Bond        []string
	BondOptions map[string]string
	// VLAN is 0 without one.
	VLAN          int
	Bridge        []string
	BridgeOptions map[string]string
}

// Disks says which disks may be used, and which may lose what they hold.
type Disks struct {
	OnlyUse, Ignore []string
	OnlyUseAt       Pos
	IgnoreAt        Pos
	// Clear is empty (nothing is cleared) or the line that tells to.
	ClearAll   bool
	ClearAt    Pos
	ClearDisks []string
	// ZeroMBR: also what is no partition table of a known kind may be overwritten.
	ZeroMBR bool
}

// Space is how large something shall be, in MiB.
type Space struct {
	Size, Max int
	Grow      bool
	// Recommended: as much swap as fits the memory.
	Recommended bool
	// Percent of the volume group, for logical volumes.
	Percent int
}

// Format is what is made on a device.
type Format struct {
	// Mount is an absolute path, swap, biosboot, pv.ID or raid.ID.
	Mount string
	// Type is a file system; empty is the installer's choice.
	Type, Options, Label string
}

// Part is a new partition.
type Part struct {
	At Pos
	Format
	Space
	// Disk is empty when the installer chooses.
	Disk string
}

// Array is a new software RAID.
type Array struct {
	At Pos
	Format
	// Level is 0, 1, 4, 5, 6 or 10.
	Level   int
	Device  string
	Members []string
	Spares  int
	// Chunk in KiB, 0 for mdadm's choice.
	Chunk int
}

// VolumeGroup is a new LVM volume group.
type VolumeGroup struct {
	At      Pos
	Name    string
	Members []string
	// Extent in KiB, 0 for LVM's choice.
	Extent int
	// Reserve keeps that many MiB, or that percentage, free.
	Reserve, ReservePercent int
}

// Logical is a new logical volume.
type Logical struct {
	At Pos
	Format
	Space
	Group, Name string
}

// Auto is autopart: the installer's choice of partitions.
type Auto struct {
	At     Pos
	LVM    bool
	Type   string
	NoHome bool
	NoBoot bool
	NoSwap bool
}

// Boot is the boot loader.
type Boot struct {
	At     Pos
	Append string
	Disk   string
	// Timeout of the menu in seconds, -1 for the installer's choice.
	Timeout  int
	Password string
	// None leaves the boot loader out.
	None bool
	// KeepOrder leaves the firmware's boot order as it is.
	KeepOrder bool
}

// Named is a name with the line that it is from.
type Named struct {
	Name string
	At   Pos
}

// Services are units to switch on and off.
type Services struct {
	Enabled, Disabled []Named
}

// Firewall is the packet filter of the host itself.
type Firewall struct {
	At       Pos
	Enabled  bool
	Ports    []Port
	Services []string
	Trust    []string
}

// Port is a port range of tcp, udp, sctp or dccp.
type Port struct {
	First, Last uint16
	Protocol    string
}

// Packages is the list of the %packages section.
type Packages struct {
	Install, Exclude, Groups []Named
	IgnoreMissing            bool
}

// Certificate is a certificate authority that the system shall trust.
type Certificate struct {
	Name, PEM string
}

// Stage is when a script runs.
type Stage string

// The stages of scripts.
const (
	Pre        Stage = "pre"
	PreInstall Stage = "pre-install"
	Post       Stage = "post"
	OnError    Stage = "onerror"
)

// Script is a script of the file.
type Script struct {
	At          Pos
	Stage       Stage
	Interpreter string
	StopOnError bool
	NoChroot    bool
	Log         string
	Body        string
}

// End is what happens when all is done.
type End string

// The ends of an installation.
const (
	Reboot   End = "reboot"
	PowerOff End = "poweroff"
	Halt     End = "halt"
)

// ScriptsOf are the scripts of a stage, in the order of the file.
func (k *Kickstart) ScriptsOf(stage Stage) []Script {
	var out []Script
	for _, s := range k.Scripts {
		if s.Stage == stage {
			out = append(out, s)
		}
	}
	return out
}

// IsPV and IsRAID tell of a Mount whether it is a member of something larger.
func (f Format) IsPV() bool { return strings.HasPrefix(f.Mount, "pv.") }

// IsRAID tells whether this is a member of an array.
func (f Format) IsRAID() bool { return strings.HasPrefix(f.Mount, "raid.") }
