package resource

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"shoal/desired"
)

// ItemFault is a fault with the place where it is.
type ItemFault struct {
	Host    string       `json:"host"`
	Item    string       `json:"item"`
	Code    desired.Code `json:"code"`
	Message string       `json:"message"`
	Remedy  string       `json:"remedy,omitempty"`
}

// VMState is what a VM does, as far as is known.
type VMState string

// The states.
const (
	VMStarting  VMState = "Starting"
	VMRunning   VMState = "Running"
	VMStopping  VMState = "Stopping"
	VMStopped   VMState = "Stopped"
	VMRebooting VMState = "Rebooting"
	VMPausing   VMState = "Pausing"
	VMPaused    VMState = "Paused"
	VMResuming  VMState = "Resuming"
	VMCrashed   VMState = "Crashed"
	VMDestroyed VMState = "Destroyed"
	VMExpunging VMState = "Expunging"
	// VMFaulty is a VM that should run and can't: Fault says why.
	VMFaulty VMState = "Faulty"
	// VMUnknown is a VM whose host is not heard of. It is not the same as stopped.
	VMUnknown VMState = "Unknown"
)

// VMStatus is the derived state of a VM.
type VMStatus struct {
	State VMState `json:"state"`
	// Host is the name of the host it is on, HostConnected whether that is heard of.
	Host          string        `json:"host"`
	HostConnected bool          `json:"host_connected"`
	Phase         desired.Phase `json:"phase,omitempty"`
	IPs           []netip.Addr  `json:"ips,omitempty"`
	Fault         *ItemFault    `json:"fault,omitempty"`
	Progress      int           `json:"progress,omitempty"`
	// Pending lists the fields that take effect at the next start only.
	Pending   []string       `json:"pending,omitempty"`
	VNC       string         `json:"vnc,omitempty"`
	Started   time.Time      `json:"started,omitzero"`
	Acted     *desired.Acted `json:"acted,omitempty"`
	Drifts    int            `json:"drifts,omitempty"`
	LastDrift *desired.Drift `json:"last_drift,omitempty"`
	// ExpungeAt is when a VM in the recycle bin will be removed for good.
	ExpungeAt time.Time `json:"expunge_at,omitzero"`
}

// How long the recycle bin keeps things.
const (
	VMKept     = 86400 * time.Second
	VolumeKept = 864000 * time.Second
)

// itemFault is what keeps an item from being as wanted. Of an item that waits for another it is that one's fault, which
// is what somebody can do something about.
func itemFault(r Reader, host string, ref desired.Ref, st desired.Status) *ItemFault {
	if st.Fault == nil || st.Phase == desired.PhaseReady {
		return nil
	}
	for range 4 {
		if st.Phase != desired.PhaseWaiting || st.Fault.Ref == nil {
			break
		}
		next, ok := r.Observed().Status(host, *st.Fault.Ref)
		if !ok || next.Fault == nil || next.Phase == desired.PhaseReady {
			break
		}
		ref, st = *st.Fault.Ref, next
	}
	return &ItemFault{
		Host: hostName(r, host), Item: ref.String(), Code: st.Fault.Code, Message: st.Fault.Message,
		Remedy: cmp.Or(st.Fault.Remedy, st.Fault.Code.Remedy()),
	}
}

func hostName(r Reader, id string) string {
	if h, ok := Find[*Host](r, id); ok {
		return h.Name
	}
	return id
}

func vmStatus(r Reader, vm *VM) VMStatus {
	ref := DomainRef(vm.ID)
	o := r.Observed()
	s := VMStatus{Host: hostName(r, vm.HostID), HostConnected: o.Host(vm.HostID).Connected}
	nics := slices.SortedFunc(Referrers[*NIC](r, KindVM, vm.ID), func(a, b *NIC) int { return cmp.Compare(a.Index, b.Index) })
	for _, n := range nics {
		if n.IP.IsValid() {
			s.IPs = append(s.IPs, n.IP)
		}
	}
	st, seen := o.Status(vm.HostID, ref)
	f, err := desired.DecodeFacts[desired.DomainFacts](st)
	seen = seen && err == nil
	_, fresh := Current(r, vm.HostID, ref, vm.Rev)
	s.Phase, s.Fault, s.Progress = st.Phase, itemFault(r, vm.HostID, ref, st), st.Progress
	s.Pending, s.VNC, s.Started, s.Acted, s.Drifts, s.LastDrift = f.Pending, f.VNC, f.Started, f.Acted, st.Drifts, st.LastDrift
	if !vm.Destroyed.IsZero() && !vm.Expunging {
		s.ExpungeAt = vm.Destroyed.Add(VMKept)
	}
	s.State = vmState(r, vm, f, st.Phase, seen, fresh, s.HostConnected)
	if s.State == VMUnknown {
		s.VNC = ""
	}
	return s
}

func vmState(r Reader, vm *VM, f desired.DomainFacts, phase desired.Phase, seen, fresh, connected bool) VMState {
	// A host that said of an older revision that it is off as wanted has not been asked to run it since.
	off := ConfirmedOff(r, vm) || vm.Power == desired.PowerOff && connected && seen && phase == desired.PhaseReady && f.State == desired.StateShutoff && !f.ByGuest
	switch {
	case vm.Expunging:
		return VMExpunging
	case off && !vm.Destroyed.IsZero():
		return VMDestroyed
	case off && !vm.Ran:
		return VMStopped
	case !connected:
		return VMUnknown
	}
	// From here on the host is connected, so that what it said is true, though perhaps of an older revision.
	if vm.Power == desired.PowerOff {
		if off {
			return VMStopped
		}
		return VMStopping
	}
	if fresh && phase == desired.PhaseRefused && f.State != desired.StateRunning && f.State != desired.StatePaused {
		return VMFaulty
	}
	if !seen {
		return VMStarting
	}
	if fresh && phase == desired.PhaseDrifted {
		// Others have done it, and by policy it is left so.
		switch f.State {
		case desired.StateShutoff:
			return VMStopped
		case desired.StatePaused:
			return VMPaused
		case desired.StateRunning, desired.StateCrashed:
		}
	}
	switch f.State {
	case desired.StateRunning:
		if vm.Power == desired.PowerPaused {
			return VMPausing
		}
		if vm.Act != nil && (f.Acted == nil || f.Acted.Seq < vm.Act.Seq) {
			return VMRebooting
		}
		return VMRunning
	case desired.StatePaused:
		if vm.Power == desired.PowerPaused {
			return VMPaused
		}
		return VMResuming
	case desired.StateCrashed:
		return VMCrashed
	case desired.StateShutoff:
		// Before it is at rest, a newer wish may be about to start it.
		if f.ByGuest && fresh && phase == desired.PhaseReady {
			return VMStopped
		}
		if vm.Act != nil && (f.Acted == nil || f.Acted.Seq < vm.Act.Seq) {
			return VMRebooting
		}
	}
	if phase == desired.PhaseRetrying && fresh {
		return VMFaulty
	}
	return VMStarting
}

// HostState is how a host is reached.
type HostState string

// The states.
const (
	HostConnected    HostState = "Connected"
	HostConnecting   HostState = "Connecting" // connected, and has not told what it is
	HostDisconnected HostState = "Disconnected"
)

// HostStatus is the derived state of a host.
type HostStatus struct {
	State HostState `json:"state"`
	// Since is when that last changed.
	Since time.Time `json:"since,omitzero"`
	// VMs belong to it, Running of them run or may be running.
	VMs     int `json:"vms"`
	Running int `json:"running"`
	// CPUs are the processors; UsedCPUs and FreeCPUs count virtual ones, of which each processor carries the cluster's CPUOvercommit.
	CPUs          int    `json:"cpus"`
	UsedCPUs      int    `json:"used_cpus"`
	FreeCPUs      int    `json:"free_cpus"`
	MemoryMiB     uint64 `json:"memory_mib"`
	UsedMemoryMiB uint64 `json:"used_memory_mib"`
	FreeMemoryMiB int64  `json:"free_memory_mib"`
	// Gen is the generation that the agent has accepted, PublishedGen the newest for it; Behind says that they differ.
	Gen          uint64 `json:"gen"`
	PublishedGen uint64 `json:"published_gen"`
	Behind       bool   `json:"behind"`
	// Ahead says that the agent holds a newer document than the controller ever published: the controller lost data.
	Ahead   bool   `json:"ahead,omitempty"`
	Version string `json:"version,omitempty"`
	// Agent is what keeps its agent from being as wanted.
	Agent     *ItemFault          `json:"agent,omitempty"`
	Started   time.Time           `json:"started,omitzero"`
	Hostname  string              `json:"hostname,omitempty"`
	Arch      string              `json:"arch,omitempty"`
	Kernel    string              `json:"kernel,omitempty"`
	CPUModel  string              `json:"cpu_model,omitempty"`
	Virt      string              `json:"virt,omitempty"`
	VirtNote  string              `json:"virt_note,omitempty"`
	Libvirt   string              `json:"libvirt,omitempty"`
	QEMU      string              `json:"qemu,omitempty"`
	Addresses map[string][]string `json:"addresses,omitempty"`
	Devices   []string            `json:"devices,omitempty"`
	// Clock is how the host's clock stands against the controllers'.
	Clock *desired.Clock `json:"clock,omitempty"`
	// Fault is what is wrong with the host itself.
	Fault *ItemFault `json:"fault,omitempty"`
}

// subjectOfHead stands for the whole document where a fault is about that.
const subjectOfHead = "head"

func hostStatus(r Reader, h *Host) HostStatus {
	o := r.Observed()
	ob := o.Host(h.ID)
	inv := ob.Facts.Inventory
	u := UseOfHost(r, h.ID)
	s := HostStatus{
		State: HostDisconnected, Since: ob.Since, VMs: u.VMs, Running: u.Running, UsedCPUs: u.CPUs, UsedMemoryMiB: u.MemoryMiB,
		CPUs: inv.CPUs, MemoryMiB: inv.MemoryMiB, Gen: ob.Facts.Gen, PublishedGen: o.PublishedGen(h.ID), Ahead: ob.Facts.Ahead,
		Version: ob.Facts.Version, Started: ob.Facts.Started, Hostname: inv.Hostname, Arch: inv.Arch, Kernel: inv.Kernel, CPUModel: inv.CPUModel,
		Virt: inv.Virt, VirtNote: inv.VirtNote, Libvirt: inv.Libvirt, QEMU: inv.QEMU, Addresses: inv.Addresses, Devices: inv.Devices, Clock: ob.Facts.Clock,
	}
	if s.Clock != nil && s.Clock.Beyond(desired.ClockTolerance) {
		s.Fault = &ItemFault{
			Host: h.Name, Item: string(desired.KindHost) + "." + desired.HostStatusID, Code: desired.CodeClock,
			Message: "the clock is " + s.Clock.String() + " of the controllers'", Remedy: desired.CodeClock.Remedy(),
		}
	}
	s.Behind = s.Gen < s.PublishedGen
	if st, ok := o.Status(h.ID, AgentRef()); ok {
		s.Agent = itemFault(r, h.ID, AgentRef(), st)
	}
	if ob.Facts.TooNew != "" {
		s.Agent = &ItemFault{Host: h.Name, Item: subjectOfHead, Code: desired.CodeTooNew, Message: ob.Facts.TooNew, Remedy: desired.CodeTooNew.Remedy()}
	}
	if ob.Reported {
		s.FreeCPUs, s.FreeMemoryMiB = HostRoom(r, h, inv, u)
	}
	switch {
	case ob.Connected && ob.Reported:
		s.State = HostConnected
	case ob.Connected:
		s.State = HostConnecting
	}
	return s
}

// StorageState is how well a storage works over all hosts of its clusters.
type StorageState string

// The states.
const (
	StorageUnused  StorageState = "Unused"  // no cluster with a host has it
	StorageReady   StorageState = "Ready"   // on all connected hosts
	StoragePartial StorageState = "Partial" // on some
	StorageDown    StorageState = "Down"    // on none
)

// StorageOnHost is a storage as one host sees it.
type StorageOnHost struct {
	HostID     string        `json:"host_id"`
	Host       string        `json:"host"`
	Phase      desired.Phase `json:"phase,omitempty"`
	TotalBytes uint64        `json:"total_bytes"`
	FreeBytes  uint64        `json:"free_bytes"`
	Fault      *ItemFault    `json:"fault,omitempty"`
}

// StorageStatus is the derived state of a storage. With a local storage the numbers are the sum over the hosts.
type StorageStatus struct {
	State StorageState `json:"state"`
	// TotalBytes, FreeBytes and UsedBytes are those of the file systems.
	TotalBytes uint64 `json:"total_bytes"`
	FreeBytes  uint64 `json:"free_bytes"`
	UsedBytes  uint64 `json:"used_bytes"`
	// PromisedBytes is what volumes may grow to, CacheBytes what images take, AvailableBytes what can still be promised.
	PromisedBytes  uint64          `json:"promised_bytes"`
	CacheBytes     uint64          `json:"cache_bytes"`
	AvailableBytes int64           `json:"available_bytes"`
	Volumes        int             `json:"volumes"`
	Hosts          []StorageOnHost `json:"hosts,omitempty"`
	Fault          *ItemFault      `json:"fault,omitempty"`
}

func storageStatus(r Reader, s *Storage) StorageStatus {
	out := StorageStatus{State: StorageUnused}
	o := r.Observed()
	ready, connected := 0, 0
	for _, c := range s.ClusterIDs {
		for h := range Referrers[*Host](r, KindCluster, c) {
			st, _ := o.Status(h.ID, PoolRef(s.ID))
			f, _, ok := PoolFacts(r, h.ID, s.ID)
			on := StorageOnHost{HostID: h.ID, Host: h.Name, Phase: st.Phase, TotalBytes: f.TotalBytes, FreeBytes: f.FreeBytes, Fault: itemFault(r, h.ID, PoolRef(s.ID), st)}
			out.Hosts = append(out.Hosts, on)
			if !o.Host(h.ID).Connected {
				continue
			}
			connected++
			if !ok {
				if out.Fault == nil {
					out.Fault = on.Fault
				}
				continue
			}
			ready++
			if !s.Shared() {
				out.TotalBytes += f.TotalBytes
				out.FreeBytes += f.FreeBytes
				out.AvailableBytes += max(StorageRoom(s, f.TotalBytes, UseOfStorage(r, s, h.ID)), 0)
			} else if out.TotalBytes == 0 || f.FreeBytes < out.FreeBytes {
				out.TotalBytes, out.FreeBytes = f.TotalBytes, f.FreeBytes
			}
		}
	}
	slices.SortFunc(out.Hosts, func(a, b StorageOnHost) int { return strings.Compare(a.Host, b.Host) })
	out.UsedBytes = out.TotalBytes - out.FreeBytes
	u := UseOfStorage(r, s, "")
	out.PromisedBytes, out.CacheBytes, out.Volumes = u.VolumeBytes, u.CacheBytes(), u.Volumes
	if s.Shared() && out.TotalBytes > 0 {
		out.AvailableBytes = StorageRoom(s, out.TotalBytes, u)
	}
	switch {
	case len(out.Hosts) == 0:
	case ready == 0:
		out.State = StorageDown
	case ready < connected:
		out.State = StoragePartial
	default:
		out.State = StorageReady
	}
	return out
}

// VolumeState is how a volume stands.
type VolumeState string

// The states.
const (
	VolumeNotInstantiated VolumeState = "NotInstantiated" // no host has made it yet
	VolumeCreating        VolumeState = "Creating"
	VolumeReady           VolumeState = "Ready"
	VolumeDetaching       VolumeState = "Detaching"
	VolumeFaulty          VolumeState = "Faulty"
	VolumeUnknown         VolumeState = "Unknown"
	VolumeDestroyed       VolumeState = "Destroyed"
	VolumeExpunging       VolumeState = "Expunging"
)

// VolumeStatus is the derived state of a volume.
type VolumeStatus struct {
	State VolumeState `json:"state"`
	// Host is the host that has it in its document now.
	Host         string    `json:"host,omitempty"`
	VirtualBytes uint64    `json:"virtual_bytes,omitempty"`
	ActualBytes  uint64    `json:"actual_bytes,omitempty"`
	Progress     int       `json:"progress,omitempty"`
	ExpungeAt    time.Time `json:"expunge_at,omitzero"`
	// Fault is the volume's, or that of the image or pool that it waits for.
	Fault *ItemFault `json:"fault,omitempty"`
}

func volumeStatus(r Reader, v *Volume) VolumeStatus {
	host := VolumeHost(r, v)
	out := VolumeStatus{}
	if !v.Destroyed.IsZero() && !v.Expunging {
		out.ExpungeAt = v.Destroyed.Add(VolumeKept)
	}
	var st desired.Status
	var fresh bool
	if host != "" {
		out.Host = hostName(r, host)
		st, _ = r.Observed().Status(host, VolumeRef(v.ID))
		_, fresh = Current(r, host, VolumeRef(v.ID), v.Rev)
		if f, err := desired.DecodeFacts[desired.VolumeFacts](st); err == nil {
			out.VirtualBytes, out.ActualBytes = f.VirtualBytes, f.ActualBytes
		}
		out.Progress, out.Fault = st.Progress, itemFault(r, host, VolumeRef(v.ID), st)
		if v.Backing != nil && st.Phase != desired.PhaseReady {
			ref := ImageRef(v.StorageID, v.ImageID)
			if ist, ok := r.Observed().Status(host, ref); ok && ist.Phase != desired.PhaseReady {
				out.Progress = ist.Progress
				if f := itemFault(r, host, ref, ist); f != nil {
					out.Fault = f
				}
			}
		}
	}
	_, leaving := Find[*VM](r, v.LeavingVMID)
	switch {
	case v.Expunging:
		out.State = VolumeExpunging
	case !v.Destroyed.IsZero():
		out.State = VolumeDestroyed
	case v.LastHostID == "":
		out.State = VolumeNotInstantiated
	case leaving:
		out.State = VolumeDetaching
	case host == "":
		out.State = VolumeReady
	case !r.Observed().Host(host).Connected:
		out.State = VolumeUnknown
	case fresh && st.Phase == desired.PhaseReady:
		out.State = VolumeReady
	case fresh && (st.Phase == desired.PhaseRefused || st.Phase == desired.PhaseRetrying):
		out.State = VolumeFaulty
	case out.ActualBytes > 0 || out.VirtualBytes > 0:
		out.State = VolumeReady
	default:
		out.State = VolumeCreating
	}
	return out
}

// ImageCopy is an image in a storage's cache as one host sees it.
type ImageCopy struct {
	StorageID string        `json:"storage_id"`
	Storage   string        `json:"storage"`
	HostID    string        `json:"host_id"`
	Host      string        `json:"host"`
	Phase     desired.Phase `json:"phase,omitempty"`
	Progress  int           `json:"progress,omitempty"`
	Fault     *ItemFault    `json:"fault,omitempty"`
}

// ImageStatus is the derived state of an image.
type ImageStatus struct {
	State ImageState `json:"state"`
	// Volumes stand on it.
	Volumes int `json:"volumes"`
	// Cached are its copies on storages.
	Cached []ImageCopy `json:"cached,omitempty"`
}

func imageStatus(r Reader, i *Image) ImageStatus {
	out := ImageStatus{State: i.Stage}
	seen := map[HostItem]bool{}
	for v := range Referrers[*Volume](r, KindImage, i.ID) {
		if v.Backing == nil || v.Expunging {
			continue
		}
		out.Volumes++
		at := HostItem{VolumeHost(r, v), ImageRef(v.StorageID, i.ID)}
		if at.Host == "" || seen[at] {
			continue
		}
		seen[at] = true
		st, _ := r.Observed().Status(at.Host, at.Ref)
		name := v.StorageID
		if s, ok := Find[*Storage](r, v.StorageID); ok {
			name = s.Name
		}
		out.Cached = append(out.Cached, ImageCopy{v.StorageID, name, at.Host, hostName(r, at.Host), st.Phase, st.Progress, itemFault(r, at.Host, at.Ref, st)})
	}
	slices.SortFunc(out.Cached, func(a, b ImageCopy) int {
		return cmp.Or(strings.Compare(a.Storage, b.Storage), strings.Compare(a.Host, b.Host), strings.Compare(a.HostID, b.HostID))
	})
	return out
}

// AddressUse counts addresses.
type AddressUse struct {
	Total uint64 `json:"total"`
	Used  uint64 `json:"used"`
	Free  uint64 `json:"free"`
}

// AddressesUsed counts the addresses of a range that are taken.
func AddressesUsed(r Reader, rg *IPRange) AddressUse {
	u := AddressUse{Total: rg.Size()}
	end := AddressKey(rg.L3ID, rg.End)
	for key := range r.HoldersFrom(AddressPrefix(rg.L3ID), AddressKey(rg.L3ID, rg.Start)) {
		if key > end {
			break
		}
		u.Used++
	}
	u.Free = u.Total - u.Used
	return u
}

// L3Status is the derived state of a layer 3 network.
type L3Status struct {
	AddressUse
	Ranges     int          `json:"ranges"`
	NICs       int          `json:"nics"`
	CIDR       netip.Prefix `json:"cidr,omitzero"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	DHCPServer netip.Addr   `json:"dhcp_server,omitzero"`
	Faults     []ItemFault  `json:"faults,omitempty"`
}

func l3Status(r Reader, l *L3) L3Status {
	out := L3Status{DHCPServer: l.DHCPServer}
	for rg := range Referrers[*IPRange](r, KindL3, l.ID) {
		u := AddressesUsed(r, rg)
		out.Ranges++
		out.Total, out.Used, out.Free = out.Total+u.Total, out.Used+u.Used, out.Free+u.Free
		out.CIDR, out.Gateway = rg.Prefix(), rg.Gateway
	}
	hosts := map[string]struct{}{}
	for n := range Referrers[*NIC](r, KindL3, l.ID) {
		out.NICs++
		if vm, ok := Find[*VM](r, n.VMID); ok {
			hosts[vm.HostID] = struct{}{}
		}
	}
	for h := range hosts {
		for _, ref := range []desired.Ref{DHCPRef(l.ID), NetDevRef(l.L2ID)} {
			if st, ok := r.Observed().Status(h, ref); ok {
				if f := itemFault(r, h, ref, st); f != nil {
					out.Faults = append(out.Faults, *f)
				}
			}
		}
	}
	slices.SortFunc(out.Faults, func(a, b ItemFault) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Item, b.Item))
	})
	return out
}

// L2Status is the derived state of a layer 2 network.
type L2Status struct {
	NICs int `json:"nics"`
	// Hosts have it now.
	Hosts  int         `json:"hosts"`
	Faults []ItemFault `json:"faults,omitempty"`
}

func l2Status(r Reader, l *L2) L2Status {
	out := L2Status{}
	hosts := map[string]struct{}{}
	for l3 := range Referrers[*L3](r, KindL2, l.ID) {
		for n := range Referrers[*NIC](r, KindL3, l3.ID) {
			out.NICs++
			if vm, ok := Find[*VM](r, n.VMID); ok {
				hosts[vm.HostID] = struct{}{}
			}
		}
	}
	out.Hosts = len(hosts)
	for h := range hosts {
		if st, ok := r.Observed().Status(h, NetDevRef(l.ID)); ok {
			if f := itemFault(r, h, NetDevRef(l.ID), st); f != nil {
				out.Faults = append(out.Faults, *f)
			}
		}
	}
	slices.SortFunc(out.Faults, func(a, b ItemFault) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// NICStatus is the derived state of a NIC.
type NICStatus struct {
	// Lease is the address that the guest has taken by DHCP.
	Lease netip.Addr `json:"lease,omitzero"`
	// VM and Host are names.
	VM   string `json:"vm"`
	Host string `json:"host"`
	// Filtered says that the packet filter of its security groups is in force as they stand; a NIC without groups has none.
	Filtered bool       `json:"filtered"`
	Fault    *ItemFault `json:"fault,omitempty"`
}

func nicStatus(r Reader, n *NIC) NICStatus {
	out := NICStatus{}
	vm, ok := Find[*VM](r, n.VMID)
	if !ok {
		return out
	}
	out.VM, out.Host = vm.Name, hostName(r, vm.HostID)
	refs := []desired.Ref{SecGroupRef(n.ID), DHCPRef(n.L3ID)}
	if l3, ok := Find[*L3](r, n.L3ID); ok {
		refs = append(refs, NetDevRef(l3.L2ID))
	}
	for _, ref := range refs {
		st, ok := r.Observed().Status(vm.HostID, ref)
		if !ok {
			continue
		}
		if f := itemFault(r, vm.HostID, ref, st); f != nil && out.Fault == nil {
			out.Fault = f
		}
		switch ref.Kind {
		case desired.KindDHCP:
			if f, err := desired.DecodeFacts[desired.DHCPFacts](st); err == nil {
				out.Lease = f.Leases[n.MAC]
			}
		case desired.KindSecGroup:
			_, fresh := Current(r, vm.HostID, ref, n.Rev)
			out.Filtered = fresh && st.Phase == desired.PhaseReady
		default:
			// Of the others only the fault is of interest.
		}
	}
	return out
}

// SecGroupStatus is the derived state of a security group.
type SecGroupStatus struct {
	Members int `json:"members"`
	Rules   int `json:"rules"`
	// Applied says that every host has the group as it stands; Waiting counts the items of hosts that do not.
	Applied bool        `json:"applied"`
	Waiting int         `json:"waiting"`
	Faults  []ItemFault `json:"faults,omitempty"`
}

func secGroupStatus(r Reader, g *SecGroup) SecGroupStatus {
	out := SecGroupStatus{}
	for rule := range Referrers[*SecRule](r, KindSecGroup, g.ID) {
		if rule.GroupID == g.ID {
			out.Rules++
		}
	}
	for range Referrers[*NIC](r, KindSecGroup, g.ID) {
		out.Members++
	}
	o := r.Observed()
	s := itemSet{}
	s.group(r, g.ID)
	for it := range s {
		pub, ok := o.Published(it.Host, it.Ref)
		if !ok {
			continue
		}
		st, ok := o.Status(it.Host, it.Ref)
		if !ok || st.Rev < pub.Rev || st.Phase != desired.PhaseReady {
			out.Waiting++
			if f := itemFault(r, it.Host, it.Ref, st); f != nil {
				out.Faults = append(out.Faults, *f)
			}
		}
	}
	slices.SortFunc(out.Faults, func(a, b ItemFault) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Item, b.Item))
	})
	out.Applied = out.Waiting == 0 && o.PublishedSeq() >= g.Rev
	return out
}

// ClusterStatus is the derived state of a cluster.
type ClusterStatus struct {
	Hosts     int `json:"hosts"`
	Connected int `json:"connected"`
	VMs       int `json:"vms"`
}

func clusterStatus(r Reader, id string) ClusterStatus {
	out := ClusterStatus{}
	for h := range Referrers[*Host](r, KindCluster, id) {
		out.Hosts++
		if r.Observed().Host(h.ID).Connected {
			out.Connected++
		}
	}
	for range Referrers[*VM](r, KindCluster, id) {
		out.VMs++
	}
	return out
}

// ZoneStatus is the derived state of a zone.
type ZoneStatus struct {
	Clusters int `json:"clusters"`
	ClusterStatus
}

func zoneStatus(r Reader, z *Zone) ZoneStatus {
	out := ZoneStatus{}
	for c := range Referrers[*Cluster](r, KindZone, z.ID) {
		s := clusterStatus(r, c.ID)
		out.Clusters++
		out.Hosts, out.Connected, out.VMs = out.Hosts+s.Hosts, out.Connected+s.Connected, out.VMs+s.VMs
	}
	return out
}

// VXLANPoolStatus is the derived state of a VXLAN pool: how many of its identifiers are taken.
type VXLANPoolStatus struct {
	Total int `json:"total"`
	Used  int `json:"used"`
}

func vxlanPoolStatus(r Reader, p *VXLANPool) VXLANPoolStatus {
	out := VXLANPoolStatus{}
	for _, rg := range p.Ranges {
		out.Total += rg.To - rg.From + 1
	}
	for range Referrers[*L2](r, KindVXLANPool, p.ID) {
		out.Used++
	}
	return out
}

// Deriver is a reader that shows less than there is, and works statuses out from all of it.
type Deriver interface {
	Derive(res Resource) any
}

// Derive is the status of a resource as it stands now: joined from intent and observation, never stored. It is nil for
// kinds that have none.
func Derive(r Reader, res Resource) any {
	if d, ok := r.(Deriver); ok {
		return d.Derive(res)
	}
	switch x := res.(type) {
	case *Zone:
		return zoneStatus(r, x)
	case *Cluster:
		return clusterStatus(r, x.ID)
	case *Host:
		return hostStatus(r, x)
	case *Storage:
		return storageStatus(r, x)
	case *Image:
		return imageStatus(r, x)
	case *VXLANPool:
		return vxlanPoolStatus(r, x)
	case *L2:
		return l2Status(r, x)
	case *L3:
		return l3Status(r, x)
	case *IPRange:
		return AddressesUsed(r, x)
	case *SecGroup:
		return secGroupStatus(r, x)
	case *VM:
		return vmStatus(r, x)
	case *NIC:
		return nicStatus(r, x)
	case *Volume:
		return volumeStatus(r, x)
	case *Task:
		return Converge(r, x)
	case *Release:
		return releaseStatus(r, x)
	case *Rollout:
		return rolloutStatus(r, x)
	case *HostToken:
		return HostTokenStatus{Used: len(x.Keys), Left: x.Uses - len(x.Keys)}
	default:
		return nil
	}
}
