package plan

import (
	"net/netip"

	"shoal/controller/resource"
	"shoal/desired"
)

// VMSpec is what a VM is asked to be. Fields that are not set are chosen.
type VMSpec struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Owner       string   `json:"owner,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	// ZoneID, ClusterID and HostID restrict where it may be put.
	ZoneID    string `json:"zone_id,omitempty"`
	ClusterID string `json:"cluster_id,omitempty"`
	HostID    string `json:"host_id,omitempty"`
	// OfferingID gives CPUs, memory and strategy, which may also be given one by one.
	OfferingID string                      `json:"offering_id,omitempty"`
	CPUs       int                         `json:"cpus,omitempty"`
	MemoryMiB  int                         `json:"memory_mib,omitempty"`
	Strategy   resource.AllocationStrategy `json:"strategy,omitempty"`
	// ImageID is what the root volume starts from; without it the root volume is empty, and without root_bytes and
	// root_offering_id as well there is none.
	ImageID string `json:"image_id,omitempty"`
	// RootBytes, or RootOfferingID's, is the size of the root volume, at least the image's; 0 for the image's.
	RootBytes      uint64 `json:"root_bytes,omitempty"`
	RootOfferingID string `json:"root_offering_id,omitempty"`
	RootStorageID  string `json:"root_storage_id,omitempty"`
	// DataVolumes are made and attached with it.
	DataVolumes []VolumeSpec `json:"data_volumes,omitempty"`
	NICs        []NICSpec    `json:"nics,omitempty"`
	Hostname    string       `json:"hostname,omitempty"`
	Machine     string       `json:"machine,omitempty"`
	CPUMode     string       `json:"cpu_mode,omitempty"`
	// StopSeconds is how long the guest has to obey when it is stopped; nil for DefaultStopSeconds.
	StopSeconds *int `json:"stop_seconds,omitempty"`
	// Stopped leaves it off.
	Stopped bool `json:"stopped,omitempty"`
}

// NICSpec is what a NIC is asked to be.
type NICSpec struct {
	L3ID string `json:"l3_id"`
	// IP and MAC are chosen where not given.
	IP    netip.Addr `json:"ip,omitzero"`
	MAC   string     `json:"mac,omitempty"`
	Model string     `json:"model,omitempty"`
	// Default makes it the VM's default NIC; the first one is, where none is marked.
	Default     bool     `json:"default,omitempty"`
	AntiSpoof   bool     `json:"anti_spoof,omitempty"`
	SecGroupIDs []string `json:"secgroup_ids,omitempty"`
}

// VolumeSpec is what a data volume is asked to be.
type VolumeSpec struct {
	Name        string   `json:"name,omitempty"`
	Description string   `json:"description,omitempty"`
	Owner       string   `json:"owner,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	ZoneID      string   `json:"zone_id,omitempty"`
	// Bytes or DiskOfferingID give the size.
	Bytes          uint64 `json:"bytes,omitempty"`
	DiskOfferingID string `json:"disk_offering_id,omitempty"`
	// StorageID is where to put it; without it, that is chosen when it is first attached. With a local storage a host
	// is needed too.
	StorageID string         `json:"storage_id,omitempty"`
	HostID    string         `json:"host_id,omitempty"`
	Format    desired.Format `json:"format,omitempty"`
}

// StopOptions say how a VM is stopped.
type StopOptions struct {
	// Force powers off at once.
	Force bool `json:"force,omitempty"`
	// Seconds is how long the guest has to obey; 0 for the VM's own setting.
	Seconds int `json:"seconds,omitempty"`
}

// DeleteOptions say how far a deletion goes.
type DeleteOptions struct {
	// Cascade also deletes what belongs to the resource; without it a resource that has anything is refused.
	Cascade bool `json:"cascade,omitempty"`
}

// DeleteAction is what a deletion does with one resource.
type DeleteAction string

// The actions.
const (
	ActionDelete  DeleteAction = "delete"  // its record goes
	ActionUnlink  DeleteAction = "unlink"  // it stays, without its reference
	ActionRecycle DeleteAction = "recycle" // it goes to the recycle bin
	ActionForget  DeleteAction = "forget"  // its record goes, its data stays where it is
	ActionRestore DeleteAction = "restore" // it becomes what it was: an undo does that
)

// Deleted is one resource that a deletion touches.
type Deleted struct {
	Kind   resource.Kind `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Action DeleteAction  `json:"action"`
}

// ItemState and Convergence tell how far the effect of a call is.
type (
	ItemState   = resource.ItemState
	Convergence = resource.Convergence
)

// HeadBits are the parts of a document's head that Render decides; the publisher knows the rest.
type HeadBits struct {
	Shrink bool                            `json:"shrink,omitempty"`
	Policy map[desired.Kind]desired.Policy `json:"policy,omitempty"`
}
