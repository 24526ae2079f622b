package resource

import (
	"fmt"
	"time"

	"shoal/desired"
)

// Limits of what a VM can be given.
const (
	MinMemoryMiB = 16
	MaxMemoryMiB = 16 << 20
	MaxCPUs      = 1024
	// MaxVolumeBytes is 64 TiB.
	MaxVolumeBytes = 64 << 40
	// MinVolumeBytes is 1 MiB.
	MinVolumeBytes = 1 << 20
	// MaxDataVolumes of one VM.
	MaxDataVolumes = 24
	// MaxNICs of one VM.
	MaxNICs = 16
)

// AllocationStrategy is how a host is picked among those that fit.
type AllocationStrategy string

// The strategies.
const (
	FewestVMs AllocationStrategy = "fewest-vms" // the host with the fewest running VMs
	MostFree  AllocationStrategy = "most-free"  // the host with the largest share of memory left
)

// Offering is a size of VMs. Changing it changes no VM.
type Offering struct {
	Meta
	State     State `json:"state"`
	CPUs      int   `json:"cpus"`
	MemoryMiB int   `json:"memory_mib"`
	// Strategy picks the host.
	Strategy AllocationStrategy `json:"strategy"`
}

// Kind implements Resource.
func (*Offering) Kind() Kind { return KindOffering }

// Clone implements Resource.
func (o *Offering) Clone() Resource { c := *o; return &c }

// Validate implements Resource.
func (o *Offering) Validate() error {
	if err := o.validateMeta(); err != nil {
		return err
	}
	if err := checkSize(o.CPUs, o.MemoryMiB); err != nil {
		return err
	}
	if o.Strategy != FewestVMs && o.Strategy != MostFree {
		return Invalid("strategy", "%q is not one of %s, %s", o.Strategy, FewestVMs, MostFree)
	}
	return o.State.validate()
}

func checkSize(cpus, memoryMiB int) error {
	if cpus < 1 || cpus > MaxCPUs {
		return Invalid("cpus", "%d is not within 1..%d", cpus, MaxCPUs)
	}
	if memoryMiB < MinMemoryMiB || memoryMiB > MaxMemoryMiB {
		return Invalid("memory_mib", "%d is not within %d..%d", memoryMiB, MinMemoryMiB, MaxMemoryMiB)
	}
	return nil
}

// DiskOffering is a size of volumes.
type DiskOffering struct {
	Meta
	State State  `json:"state"`
	Bytes uint64 `json:"bytes"`
}

// Kind implements Resource.
func (*DiskOffering) Kind() Kind { return KindDiskOffering }

// Clone implements Resource.
func (o *DiskOffering) Clone() Resource { c := *o; return &c }

// Validate implements Resource.
func (o *DiskOffering) Validate() error {
	if err := o.validateMeta(); err != nil {
		return err
	}
	if err := checkVolumeBytes(o.Bytes); err != nil {
		return err
	}
	return o.State.validate()
}

func checkVolumeBytes(n uint64) error {
	if n < MinVolumeBytes || n > MaxVolumeBytes || n%512 != 0 {
		return Invalid("bytes", "%d is not a multiple of 512 within %d..%d", n, MinVolumeBytes, uint64(MaxVolumeBytes))
	}
	return nil
}

// ImageState is how far an image is.
type ImageState string

// The states. An image whose addition fails is taken out again; its task says why.
const (
	ImageAdding ImageState = "adding"
	ImageReady  ImageState = "ready"
)

// Image is what root volumes start from.
type Image struct {
	Meta
	State State `json:"state"`
	// URL is where it was added from: http, https, or file on the controller.
	URL string `json:"url"`
	// Checksum is what the content must have, "sha256:<hex>"; empty for no check.
	Checksum string `json:"checksum,omitempty"`
	// Stage is how far it is; the rest is known once it is ready.
	Stage ImageState `json:"stage"`
	// SHA256 of the content in hex, Bytes its length, VirtualBytes what a guest sees, Format found by looking into it.
	SHA256       string         `json:"sha256,omitempty"`
	Bytes        uint64         `json:"bytes,omitempty"`
	VirtualBytes uint64         `json:"virtual_bytes,omitempty"`
	Format       desired.Format `json:"format,omitempty"`
	// Servers are the base addresses of the controllers that have its file.
	Servers []string `json:"servers,omitempty"`
}

// Kind implements Resource.
func (*Image) Kind() Kind { return KindImage }

// Clone implements Resource.
func (i *Image) Clone() Resource { c := *i; return &c }

// Validate implements Resource.
func (i *Image) Validate() error {
	if err := i.validateMeta(); err != nil {
		return err
	}
	if i.Stage != ImageAdding && i.Stage != ImageReady {
		return Invalid("stage", "%q is neither adding nor ready", i.Stage)
	}
	if i.Stage == ImageReady && (len(i.SHA256) != 64 || i.Bytes == 0 || i.VirtualBytes == 0 || i.Format == "") {
		return Invalid("stage", "a ready image must have sha256, bytes, virtual_bytes and format")
	}
	return i.State.validate()
}

// VM is a virtual machine.
type VM struct {
	Meta
	ZoneID string `json:"zone_id"`
	// HostID is where it runs or last ran. Only this host's document names the VM.
	HostID string `json:"host_id"`
	// ClusterID is the host's.
	ClusterID  string `json:"cluster_id"`
	OfferingID string `json:"offering_id,omitempty"`
	ImageID    string `json:"image_id,omitempty"`
	CPUs       int    `json:"cpus"`
	MemoryMiB  int    `json:"memory_mib"`
	// Strategy picks a host when it is started.
	Strategy AllocationStrategy `json:"strategy"`
	// Hostname that the guest is told by DHCP.
	Hostname string `json:"hostname,omitempty"`
	Machine  string `json:"machine"`
	CPUMode  string `json:"cpu_mode,omitempty"`
	// Power is what is wanted of it; Force goes to off without asking the guest, which otherwise gets StopSeconds.
	Power       desired.Power `json:"power"`
	Force       bool          `json:"force,omitempty"`
	StopSeconds int           `json:"stop_seconds"`
	// Wish counts how often somebody asked it to run, so that a host that has missed all in between starts it.
	Wish uint64 `json:"wish,omitempty"`
	// Act is the last one-shot verb since it was started. ActSeq counts all acts of its life, so that a number is never
	// used twice.
	Act    *desired.Act `json:"act,omitempty"`
	ActSeq uint64       `json:"act_seq,omitempty"`
	// Ran says that the document of HostID has wanted it on and that host has not confirmed since that it is off: it may
	// be running there.
	Ran bool `json:"ran,omitempty"`
	// Destroyed is when it went to the recycle bin; zero for a VM that is there.
	Destroyed time.Time `json:"destroyed,omitzero"`
	// Expunging: it is being removed for good; the record goes when its host has confirmed.
	Expunging bool `json:"expunging,omitempty"`
	// Undefine is the second step of expunging, taken once its host has confirmed that it is off: the host's document no
	// longer has it.
	Undefine bool `json:"undefine,omitempty"`
}

// Kind implements Resource.
func (*VM) Kind() Kind { return KindVM }

// Clone implements Resource.
func (v *VM) Clone() Resource { c := *v; return &c }

// Refs implements Resource.
func (v *VM) Refs() []Ref {
	return refs(Ref{KindZone, v.ZoneID, Needs, "zone_id"}, Ref{KindCluster, v.ClusterID, Needs, "cluster_id"}, Ref{KindHost, v.HostID, Needs, "host_id"},
		Ref{KindOffering, v.OfferingID, Weak, "offering_id"}, Ref{KindImage, v.ImageID, Weak, "image_id"})
}

// Validate implements Resource.
func (v *VM) Validate() error {
	if err := v.validateMeta(); err != nil {
		return err
	}
	if v.ZoneID == "" || v.ClusterID == "" || v.HostID == "" {
		return Invalid("host_id", "zone_id, cluster_id and host_id must be set")
	}
	if err := checkSize(v.CPUs, v.MemoryMiB); err != nil {
		return err
	}
	if v.Hostname != "" {
		if err := CheckHostname("hostname", v.Hostname); err != nil {
			return err
		}
	}
	switch v.Power {
	case desired.PowerOn, desired.PowerOff, desired.PowerPaused:
	default:
		return Invalid("power", "%q is not one of on, off, paused", v.Power)
	}
	if v.StopSeconds < 0 || v.StopSeconds > 3600 {
		return Invalid("stop_seconds", "%d is not within 0..3600", v.StopSeconds)
	}
	if v.Machine != "pc" && v.Machine != "q35" {
		return Invalid("machine", "%q is neither pc nor q35", v.Machine)
	}
	switch v.CPUMode {
	case "", "none", "host-model", "host-passthrough":
		return nil
	default:
		return Invalid("cpu_mode", "%q is not one of none, host-model, host-passthrough", v.CPUMode)
	}
}

// VolumeType is what a volume is for.
type VolumeType string

// The types.
const (
	VolumeRoot VolumeType = "root"
	VolumeData VolumeType = "data"
)

// Volume is a virtual disk.
type Volume struct {
	Meta
	Type   VolumeType `json:"type"`
	ZoneID string     `json:"zone_id"`
	// StorageID and Path are where it lies, HostID on which host with a local storage. A data volume has none of them
	// before it is attached for the first time.
	StorageID string `json:"storage_id,omitempty"`
	HostID    string `json:"host_id,omitempty"`
	Path      string `json:"path,omitempty"`
	// LastHostID is the host whose document named it last; empty for a volume that no host has made yet.
	LastHostID string `json:"last_host_id,omitempty"`
	// Made is set once a host has reported its file: from then on no host makes it anew, wherever the volume goes.
	Made bool `json:"made,omitempty"`
	// VMID is the VM that has it; empty for a detached data volume.
	VMID string `json:"vm_id,omitempty"`
	// LeavingVMID is the VM that it was taken from, until that VM's host has confirmed that it let go.
	LeavingVMID string `json:"leaving_vm_id,omitempty"`
	// Target is the disk's name in the guest while attached, "vda".
	Target  string         `json:"target,omitempty"`
	Bytes   uint64         `json:"bytes"`
	Format  desired.Format `json:"format"`
	ImageID string         `json:"image_id,omitempty"`
	// Backing is what is needed of the image for as long as the volume stands on it, whatever becomes of the image.
	Backing        *Backing `json:"backing,omitempty"`
	DiskOfferingID string   `json:"disk_offering_id,omitempty"`
	State          State    `json:"state"`
	// Destroyed is when it went to the recycle bin.
	Destroyed time.Time `json:"destroyed,omitzero"`
	// Expunging: its file is being removed; the record goes when the host TombstoneHostID has confirmed.
	Expunging       bool   `json:"expunging,omitempty"`
	TombstoneHostID string `json:"tombstone_host_id,omitempty"`
}

// Backing is an image as a volume stands on it.
type Backing struct {
	SHA256 string         `json:"sha256"`
	Bytes  uint64         `json:"bytes"`
	Format desired.Format `json:"format"`
}

// Kind implements Resource.
func (*Volume) Kind() Kind { return KindVolume }

// Clone implements Resource.
func (v *Volume) Clone() Resource { c := *v; return &c }

// Refs implements Resource. A data volume outlives its VM; what happens to it then is decided, not cascaded. The image
// of a root volume stays in the storage's cache as long as the volume needs it, whatever becomes of the image's record.
func (v *Volume) Refs() []Ref {
	return refs(Ref{KindZone, v.ZoneID, Needs, "zone_id"}, Ref{KindStorage, v.StorageID, Needs, "storage_id"}, Ref{KindHost, v.HostID, Needs, "host_id"},
		Ref{KindHost, v.TombstoneHostID, Weak, "tombstone_host_id"}, Ref{KindHost, v.LastHostID, Weak, "last_host_id"},
		Ref{KindVM, v.VMID, Needs, "vm_id"}, Ref{KindVM, v.LeavingVMID, Weak, "leaving_vm_id"},
		Ref{KindImage, v.ImageID, Weak, "image_id"}, Ref{KindDiskOffering, v.DiskOfferingID, Weak, "disk_offering_id"})
}

// TargetKey is the unique key of a disk's name in a VM.
func TargetKey(vm, target string) string { return fmt.Sprintf("target/%s/%s", vm, target) }

// Unique implements Resource.
func (v *Volume) Unique() []string {
	if v.VMID == "" {
		return nil
	}
	return []string{TargetKey(v.VMID, v.Target)}
}

// Validate implements Resource.
func (v *Volume) Validate() error {
	if err := v.validateMeta(); err != nil {
		return err
	}
	if v.Type != VolumeRoot && v.Type != VolumeData {
		return Invalid("type", "%q is neither root nor data", v.Type)
	}
	if v.ZoneID == "" {
		return Invalid("zone_id", "must be set")
	}
	if err := checkVolumeBytes(v.Bytes); err != nil {
		return err
	}
	if (v.StorageID == "") != (v.Path == "") {
		return Invalid("storage_id", "storage_id and path must be set together")
	}
	if v.VMID != "" && (v.StorageID == "" || v.Target == "") {
		return Invalid("vm_id", "an attached volume must have a storage and a target")
	}
	if v.Format != desired.FormatQCOW2 && v.Format != desired.FormatRaw {
		return Invalid("format", "%q is neither qcow2 nor raw", v.Format)
	}
	return v.State.validate()
}

// TaskState is how a task stands.
type TaskState string

// The states.
const (
	TaskRunning   TaskState = "running"
	TaskDone      TaskState = "done"
	TaskFailed    TaskState = "failed"
	TaskCancelled TaskState = "cancelled"
)

// Task is the user's record of a call whose effect takes time. It narrates; it drives nothing.
type Task struct {
	Meta
	State TaskState `json:"state"`
	// Op is "<kind>.<verb>", RequestID the call, Seq its journal sequence, Caller who made it.
	Op        string `json:"op"`
	RequestID string `json:"request_id"`
	Seq       uint64 `json:"seq"`
	Caller    string `json:"caller"`
	// ResourceKind and ResourceID are what the call was about.
	ResourceKind Kind   `json:"resource_kind"`
	ResourceID   string `json:"resource_id"`
	// Error says why it failed.
	Error *Error `json:"error,omitempty"`
	// Finished is when it ended. Its record is kept for TaskKept after that.
	Finished time.Time `json:"finished,omitzero"`
}

// TaskKept is how long the record of an ended task is kept.
const TaskKept = 24 * time.Hour

// Kind implements Resource.
func (*Task) Kind() Kind { return KindTask }

// Clone implements Resource.
func (t *Task) Clone() Resource { c := *t; return &c }

// Unique implements Resource: a call has one task.
func (t *Task) Unique() []string { return []string{"task/" + t.RequestID} }

// Validate implements Resource.
func (t *Task) Validate() error {
	if err := t.validateMeta(); err != nil {
		return err
	}
	switch t.State {
	case TaskRunning, TaskDone, TaskFailed, TaskCancelled:
		return nil
	default:
		return Invalid("state", "%q is not the state of a task", t.State)
	}
}
