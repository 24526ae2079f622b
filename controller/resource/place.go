package resource

import (
	"cmp"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"shoal/desired"
)

// Zone is the largest scope. Resources of different zones can't be combined.
type Zone struct {
	Meta
	State State `json:"state"`
}

// Kind implements Resource.
func (*Zone) Kind() Kind { return KindZone }

// Clone implements Resource.
func (z *Zone) Clone() Resource { c := *z; return &c }

// Validate implements Resource.
func (z *Zone) Validate() error {
	if err := z.validateMeta(); err != nil {
		return err
	}
	return z.State.validate()
}

// Cluster is a set of hosts that share storages and networks.
type Cluster struct {
	Meta
	ZoneID string `json:"zone_id"`
	State  State  `json:"state"`
	// Arch that hosts must have, "amd64" or "arm64"; empty for any.
	Arch string `json:"arch,omitempty"`
	// CPUOvercommit is how many virtual CPUs each processor of a host may carry, up to 1000; 0 for DefaultCPUOvercommit.
	CPUOvercommit int `json:"cpu_overcommit,omitempty"`
	// Drift is what hosts do about foreign changes, by kind of item; a host may differ. What is not named is healed.
	Drift map[desired.Kind]desired.Policy `json:"drift,omitempty"`
}

// Kind implements Resource.
func (*Cluster) Kind() Kind { return KindCluster }

// Clone implements Resource.
func (c *Cluster) Clone() Resource { d := *c; return &d }

// Refs implements Resource.
func (c *Cluster) Refs() []Ref { return refs(Ref{KindZone, c.ZoneID, Parent, "zone_id"}) }

// Validate implements Resource.
func (c *Cluster) Validate() error {
	if err := c.validateMeta(); err != nil {
		return err
	}
	if c.ZoneID == "" {
		return Invalid("zone_id", "must be set")
	}
	if c.Arch != "" && c.Arch != "amd64" && c.Arch != "arm64" {
		return Invalid("arch", "%q is neither amd64 nor arm64", c.Arch)
	}
	if c.CPUOvercommit < 0 || c.CPUOvercommit > 1000 {
		return Invalid("cpu_overcommit", "%d is not within 1..1000", c.CPUOvercommit)
	}
	if err := validateDrift(c.Drift); err != nil {
		return err
	}
	return c.State.validate()
}

// Overcommit is how many virtual CPUs each processor of a host may carry.
func (c *Cluster) Overcommit() int { return cmp.Or(c.CPUOvercommit, DefaultCPUOvercommit) }

// Host is a machine that runs VMs.
type Host struct {
	Meta
	ClusterID string `json:"cluster_id"`
	State     State  `json:"state"`
	// PublicKey is the agent's user nkey, "U…": it is the host's identity.
	PublicKey string `json:"public_key"`
	// VTEPs are the host's tunnel addresses by VXLAN pool, chosen from its inventory when it first reported one that lies
	// in the pool's CIDR for its cluster.
	VTEPs map[string]netip.Addr `json:"vteps,omitempty"`
	// Shrink lets the host's next documents remove more running domains than the guard lets pass.
	Shrink bool `json:"shrink,omitempty"`
	// Hold keeps its documents back, so that the host stays as it is; nil in normal times.
	Hold *HostHold `json:"hold,omitempty"`
	// Drift is what the host does about foreign changes, by kind of item, where that is not what its cluster says.
	Drift map[desired.Kind]desired.Policy `json:"drift,omitempty"`
	// ReleaseID is the release of the agent that it is to run; empty for whatever it runs. ReleaseTry counts how often it was told the same
	// again, TrialSeconds is how long a new one may take to be well.
	ReleaseID    string `json:"release_id,omitempty"`
	ReleaseTry   int    `json:"release_try,omitempty"`
	TrialSeconds int    `json:"trial_seconds,omitempty"`
}

// HostHold says why a host's documents are kept back: the journal went back, by a restored backup, and what the host was told
// in between is not in it. It ends when the host is found to be no newer than the journal, or by a decision.
type HostHold struct {
	Since time.Time `json:"since"`
	// Seq is the last message of the journal that the state stems from.
	Seq uint64 `json:"seq"`
	Why string `json:"why"`
}

// Kind implements Resource.
func (*Host) Kind() Kind { return KindHost }

// Clone implements Resource.
func (h *Host) Clone() Resource { c := *h; return &c }

// Refs implements Resource.
func (h *Host) Refs() []Ref {
	return refs(Ref{KindCluster, h.ClusterID, Parent, "cluster_id"}, Ref{KindRelease, h.ReleaseID, Needs, "release_id"})
}

// Unique implements Resource: a name and a key belong to one host.
func (h *Host) Unique() []string { return []string{"host/name/" + h.Name, "host/key/" + h.PublicKey} }

// Validate implements Resource.
func (h *Host) Validate() error {
	if err := h.validateMeta(); err != nil {
		return err
	}
	if h.ClusterID == "" {
		return Invalid("cluster_id", "must be set")
	}
	if len(h.PublicKey) != 56 || h.PublicKey[0] != 'U' {
		return Invalid("public_key", "%q is not a user nkey (56 characters, starting with U)", h.PublicKey)
	}
	if err := validateDrift(h.Drift); err != nil {
		return err
	}
	return h.State.validate()
}

// StorageType is the sort of a primary storage.
type StorageType string

// The types.
const (
	StorageLocal       StorageType = "local"       // a directory of every host
	StorageSharedMount StorageType = "sharedmount" // a mount that is there on every host
	StorageNFS         StorageType = "nfs"         // mounted by the agents
)

// Storage is a primary storage.
type Storage struct {
	Meta
	ZoneID string      `json:"zone_id"`
	Type   StorageType `json:"type"`
	// Path is the directory on the hosts. With type nfs it is chosen when the storage is created.
	Path string `json:"path"`
	// Source is "server:/export", with type nfs.
	Source string `json:"source,omitempty"`
	// MountOptions are given to mount, with type nfs.
	MountOptions string `json:"mount_options,omitempty"`
	State        State  `json:"state"`
	// Overprovision is how many times the capacity may be promised to volumes, 1 to 1000.
	Overprovision float64 `json:"overprovision"`
	// ReservedBytes are never promised.
	ReservedBytes uint64 `json:"reserved_bytes"`
	// ClusterIDs are the clusters whose hosts use it, sorted.
	ClusterIDs []string `json:"cluster_ids,omitempty"`
}

// Kind implements Resource.
func (*Storage) Kind() Kind { return KindStorage }

// Clone implements Resource.
func (s *Storage) Clone() Resource { c := *s; return &c }

// Refs implements Resource.
func (s *Storage) Refs() []Ref {
	return refs(append(linkAll(KindCluster, "cluster_ids", s.ClusterIDs), Ref{KindZone, s.ZoneID, Parent, "zone_id"})...)
}

// Unlink implements Unlinker.
func (s *Storage) Unlink(_ Kind, id string) Resource {
	c := *s
	c.ClusterIDs = without(s.ClusterIDs, id)
	return &c
}

// Shared reports whether every host sees the same files.
func (s *Storage) Shared() bool { return s.Type != StorageLocal }

// systemPaths hold no storage: what is put there would break the host, or vanish at its next start.
var systemPaths = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/var/lib",
	"/var/log", "/var/run",
}

// nestedSystemPaths hold no storage at any depth.
var nestedSystemPaths = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run"}

// Validate implements Resource.
func (s *Storage) Validate() error {
	if err := s.validateMeta(); err != nil {
		return err
	}
	if s.ZoneID == "" {
		return Invalid("zone_id", "must be set")
	}
	switch s.Type {
	case StorageLocal, StorageSharedMount:
		if s.Source != "" || s.MountOptions != "" {
			return Invalid("source", "storages of type %s have no source and no mount options", s.Type)
		}
	case StorageNFS:
		server, export, ok := strings.Cut(s.Source, ":/")
		if !ok || server == "" || strings.HasPrefix(server, "-") || strings.ContainsAny(s.Source, " \t\n") || path.Clean("/"+export) != "/"+export {
			return Invalid("source", "%q is not server:/export", s.Source)
		}
		if strings.ContainsAny(s.MountOptions, " \t\n") || strings.HasPrefix(s.MountOptions, "-") {
			return Invalid("mount_options", "%q is not a comma-separated list", s.MountOptions)
		}
	default:
		return Invalid("type", "%q is not one of local, sharedmount, nfs", s.Type)
	}
	if !path.IsAbs(s.Path) || path.Clean(s.Path) != s.Path || len(s.Path) > 512 {
		return Invalid("path", "%q is not an absolute, clean path", s.Path)
	}
	if strings.ContainsFunc(s.Path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ',' }) {
		return Invalid("path", "%q holds a control character, a comma or a backslash", s.Path)
	}
	if slices.Contains(systemPaths, s.Path) || slices.ContainsFunc(nestedSystemPaths, func(p string) bool { return strings.HasPrefix(s.Path, p+"/") }) {
		return Invalid("path", "%s belongs to the host's system", s.Path).WithRemedy("choose a directory of its own, such as /var/lib/shoal/storage")
	}
	if s.Overprovision < 1 || s.Overprovision > 1000 {
		return Invalid("overprovision", "%v is not within 1..1000", s.Overprovision)
	}
	return s.State.validate()
}
