package desired

import (
	"fmt"
	"time"
)

// Power is what a domain is wanted to do.
type Power string

// The power states. Exactly one host's document says On or Paused for a VM.
const (
	PowerOn     Power = "on"
	PowerOff    Power = "off"
	PowerPaused Power = "paused"
)

// Domain is a libvirt domain. Its item's id is the VM's and the domain's UUID.
type Domain struct {
	// Name is the domain's name in libvirt; Title is the VM's.
	Name  string `json:"name"`
	Title string `json:"title,omitempty"`
	Power Power  `json:"power"`
	// Wish grows each time somebody asks the VM to run. A guest that shut itself down stays off only for the wish that it was
	// running by: a newer one starts it, whatever was missed in between.
	Wish uint64 `json:"wish,omitempty"`
	// Force goes to off without asking the guest; otherwise the guest gets StopSeconds to obey ACPI first.
	Force       bool `json:"force,omitempty"`
	StopSeconds int  `json:"stop_seconds,omitempty"`
	CPUs        int  `json:"cpus"`
	MemoryMiB   int  `json:"memory_mib"`
	// Machine is the machine type, "pc" or "q35".
	Machine string `json:"machine"`
	// CPUMode is "none", "host-model" or "host-passthrough". Where the host can only emulate it is ignored.
	CPUMode string      `json:"cpu_mode,omitempty"`
	Disks   []Disk      `json:"disks,omitempty"`
	NICs    []DomainNIC `json:"nics,omitempty"`
	// ConsoleLog is the file that keeps what the guest writes to its first serial port; empty for none.
	ConsoleLog string `json:"console_log,omitempty"`
	// Act is the last one-shot verb.
	Act *Act `json:"act,omitempty"`
}

// Disk is a disk of a domain.
type Disk struct {
	// Volume is the id of the volume's item.
	Volume string `json:"volume"`
	Path   string `json:"path"`
	Format Format `json:"format"`
	// Target is the name in the guest, "vda"; it is stable for the life of the attachment.
	Target string `json:"target"`
	// Bus is "virtio", "scsi", "ide" or "sata".
	Bus string `json:"bus"`
	// Serial is what the guest reads as the disk's serial number.
	Serial string `json:"serial,omitempty"`
	// Boot is the place in the boot order, 1 first; 0 for none.
	Boot  int    `json:"boot,omitempty"`
	Cache string `json:"cache,omitempty"`
}

// DomainNIC is a NIC of a domain.
type DomainNIC struct {
	// ID is the NIC's.
	ID  string `json:"id"`
	MAC string `json:"mac"`
	// Tap is the device on the host, at most 15 bytes.
	Tap    string `json:"tap"`
	Bridge string `json:"bridge"`
	// Model is "virtio", "e1000" or "rtl8139".
	Model string `json:"model"`
	MTU   int    `json:"mtu,omitempty"`
	Boot  int    `json:"boot,omitempty"`
}

// Verb is a one-shot act on a domain.
type Verb string

// The verbs.
const (
	VerbReboot Verb = "reboot" // stop as with Power off (ACPI, then by force after StopSeconds), then start with the current definition
	VerbReset  Verb = "reset"  // at once, without asking the guest
)

// Act is a verb that happens once. Seq grows by one with every act of the VM; an agent does an act at most once.
type Act struct {
	Seq  uint64 `json:"seq"`
	Verb Verb   `json:"verb"`
}

// DomainState is what libvirt says a domain is.
type DomainState string

// The states.
const (
	StateRunning DomainState = "running"
	StatePaused  DomainState = "paused"
	StateShutoff DomainState = "shutoff"
	StateCrashed DomainState = "crashed"
)

// DomainFacts is what is known of a domain.
type DomainFacts struct {
	State DomainState `json:"state"`
	// ByGuest is true when the domain is off because its guest shut itself down, although Power says on. The agent
	// leaves it so until Wish grows: whether it is to be off is the controller's to decide.
	ByGuest bool `json:"by_guest,omitempty"`
	// Started is when the running domain was started; zero when it is off or was started before the agent knew it.
	Started time.Time `json:"started,omitzero"`
	// Acted is the last act that was done.
	Acted *Acted `json:"acted,omitempty"`
	// Pending lists the fields of the definition that take effect at the next start only.
	Pending []string `json:"pending,omitempty"`
	// VNC is where the console listens on the host, "127.0.0.1:5900"; empty when off.
	VNC string `json:"vnc,omitempty"`
}

// Acted is an act's outcome.
type Acted struct {
	Seq uint64    `json:"seq"`
	At  time.Time `json:"at"`
	// Error is empty when it went well.
	Error string `json:"error,omitempty"`
}

// Validate names the first field that is wrong.
func (d *Domain) Validate() error {
	if !validName(d.Name) {
		return fmt.Errorf("name: %q is not a name of [A-Za-z0-9_.-]", d.Name)
	}
	switch d.Power {
	case PowerOn, PowerOff, PowerPaused:
	default:
		return fmt.Errorf("power: %q is not one of on, off, paused", d.Power)
	}
	if d.CPUs < 1 || d.CPUs > 1024 {
		return fmt.Errorf("cpus: %d is not within 1..1024", d.CPUs)
	}
	if d.MemoryMiB < 16 {
		return fmt.Errorf("memory_mib: %d is less than 16", d.MemoryMiB)
	}
	switch d.Machine {
	case "pc", "q35":
	default:
		return fmt.Errorf("machine: %q is not pc or q35", d.Machine)
	}
	switch d.CPUMode {
	case "", "none", "host-model", "host-passthrough":
	default:
		return fmt.Errorf("cpu_mode: %q is not one of none, host-model, host-passthrough", d.CPUMode)
	}
	targets := map[string]bool{}
	for i, disk := range d.Disks {
		if err := checkPath(fmt.Sprintf("disks[%d].path", i), disk.Path); err != nil {
			return err
		}
		if disk.Volume == "" || !validName(disk.Target) || targets[disk.Target] {
			return fmt.Errorf("disks[%d]: volume must be set, and target %q a name of its own", i, disk.Target)
		}
		targets[disk.Target] = true
		switch disk.Bus {
		case "virtio", "scsi", "ide", "sata":
		default:
			return fmt.Errorf("disks[%d].bus: %q is not one of virtio, scsi, ide, sata", i, disk.Bus)
		}
	}
	for i, nic := range d.NICs {
		if err := checkMAC(nic.MAC); err != nil {
			return fmt.Errorf("nics[%d].mac: %w", i, err)
		}
		if err := checkLinkName(fmt.Sprintf("nics[%d].tap", i), nic.Tap); err != nil {
			return err
		}
		if err := checkLinkName(fmt.Sprintf("nics[%d].bridge", i), nic.Bridge); err != nil {
			return err
		}
		switch nic.Model {
		case "virtio", "e1000", "rtl8139":
		default:
			return fmt.Errorf("nics[%d].model: %q is not one of virtio, e1000, rtl8139", i, nic.Model)
		}
	}
	if d.Act != nil && (d.Act.Seq == 0 || (d.Act.Verb != VerbReboot && d.Act.Verb != VerbReset)) {
		return fmt.Errorf("act: seq must be set and verb one of reboot, reset")
	}
	return nil
}
