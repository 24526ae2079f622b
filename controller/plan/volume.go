package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// newVolume makes a data volume that lies nowhere yet.
func newVolume(tx resource.Tx, spec VolumeSpec) (*resource.Volume, error) {
	v := &resource.Volume{
		Type: resource.VolumeData, ZoneID: spec.ZoneID, Bytes: spec.Bytes, DiskOfferingID: spec.DiskOfferingID,
		Format: cmp.Or(spec.Format, desired.FormatQCOW2), State: resource.Enabled,
	}
	v.ID, v.Name, v.Description, v.Owner, v.Tags = tx.NewID(), spec.Name, spec.Description, cmp.Or(spec.Owner, tx.Request().Owner()), spec.Tags
	if spec.DiskOfferingID != "" {
		o, err := resource.Get[*resource.DiskOffering](tx, spec.DiskOfferingID)
		if err != nil {
			return nil, inThe(err, "disk_offering_id")
		}
		if o.State != resource.Enabled {
			return nil, resource.Conflict("disk_offering_id", "disk offering %s is disabled", o.Name)
		}
		v.Bytes = cmp.Or(v.Bytes, o.Bytes)
	}
	if v.Bytes == 0 {
		return nil, resource.Invalid("bytes", "must be given, or a disk offering")
	}
	if spec.StorageID != "" {
		s, err := resource.Get[*resource.Storage](tx, spec.StorageID)
		if err != nil {
			return nil, inThe(err, "storage_id")
		}
		if v.ZoneID != "" && v.ZoneID != s.ZoneID {
			return nil, resource.Invalid("storage_id", "storage %s is in another zone", s.Name)
		}
		v.ZoneID = s.ZoneID
	}
	// Its zone may become known only with the VM's host.
	check := *v
	check.ZoneID = cmp.Or(v.ZoneID, "-")
	if err := check.Validate(); err != nil {
		return nil, err
	}
	return v, nil
}

// settle says where a volume lies.
func settle(v *resource.Volume, s *resource.Storage, host string) {
	v.StorageID, v.Path, v.LastHostID = s.ID, volumePath(s, v.ID, v.Format), host
	if !s.Shared() {
		v.HostID = host
	}
}

// CreateVolume makes a detached data volume. Without a storage it takes no room until it is first attached.
func CreateVolume(tx resource.Tx, spec VolumeSpec) (*resource.Volume, error) {
	v, err := newVolume(tx, spec)
	if err != nil {
		return nil, err
	}
	if spec.StorageID != "" {
		s, err := resource.Get[*resource.Storage](tx, spec.StorageID)
		if err != nil {
			return nil, inThe(err, "storage_id")
		}
		if !s.Shared() && spec.HostID == "" {
			return nil, resource.Invalid("host_id", "must be set: storage %s is local to its hosts", s.Name)
		}
		host, err := storageHost(tx, s, spec.HostID, v.Bytes)
		if err != nil {
			return nil, err
		}
		if s.Shared() {
			if spec.HostID != "" {
				return nil, resource.Invalid("host_id", "must not be set: storage %s is shared", s.Name)
			}
			// It lies on no host, and the first one it is attached on makes its file.
			settle(v, s, "")
		} else {
			settle(v, s, host.ID)
		}
	} else if spec.HostID != "" {
		return nil, resource.Invalid("host_id", "must not be set without storage_id")
	}
	if v.ZoneID == "" {
		zones := slices.Collect(resource.All[*resource.Zone](tx))
		if len(zones) != 1 {
			return nil, resource.Invalid("zone_id", "must be given: there are %d zones", len(zones))
		}
		v.ZoneID = zones[0].ID
	}
	return putVolume(tx, v)
}

// storageHost finds a host on which a storage works and has room for bytes more: a given one, or any.
func storageHost(tx resource.Tx, s *resource.Storage, host string, bytes uint64) (*resource.Host, error) {
	p := &placer{tx: tx, use: map[string]resource.StorageUse{}}
	var reasons []resource.Reason
	if host != "" {
		if _, err := resource.Get[*resource.Host](tx, host); err != nil {
			return nil, inThe(err, "host_id")
		}
	}
	for h := range resource.All[*resource.Host](tx) {
		if host != "" && h.ID != host {
			continue
		}
		why := "it is not connected"
		if tx.Observed().Host(h.ID).Connected {
			why = p.storage(h, s, wantedVolume{bytes: bytes}, map[string]resource.StorageUse{})
			if why == "" {
				return h, nil
			}
			why = fmt.Sprintf("storage %s %s", s.Name, why)
		}
		reasons = append(reasons, resource.Reason{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: why})
	}
	return nil, &resource.Error{
		Code: resource.CodeCapacity, Field: "storage_id", Message: fmt.Sprintf("storage %s can't take %s", s.Name, size(int64(bytes))), Reasons: reasons,
		Remedy: "see shoalctl storage get " + s.Name,
	}
}

func putVolume(tx resource.Tx, v *resource.Volume) (*resource.Volume, error) {
	if err := tx.Put(v); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindVolume, v.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Volume](tx, v.ID)
}

// liveVolume finds a volume that is not in the recycle bin.
func liveVolume(tx resource.Tx, id string) (*resource.Volume, error) {
	v, err := resource.Get[*resource.Volume](tx, id)
	if err != nil {
		return nil, err
	}
	if v.Expunging {
		return nil, resource.Conflict("volume", "volume %s is being removed for good", v.Name)
	}
	if !v.Destroyed.IsZero() {
		return nil, resource.Conflict("volume", "volume %s is in the recycle bin", v.Name).WithRemedy("recover it first: shoalctl volume recover %s", v.Name)
	}
	return resource.Copy(v), nil
}

// AttachVolume gives a data volume to a VM, also while it runs. A volume that lies nowhere yet gets its place now.
func AttachVolume(tx resource.Tx, id, vmID string) (*resource.Volume, error) {
	v, err := liveVolume(tx, id)
	if err != nil {
		return nil, err
	}
	vm, err := live(tx, vmID)
	if err != nil {
		return nil, err
	}
	switch {
	case v.Type != resource.VolumeData:
		return nil, resource.Conflict("volume", "volume %s is a root volume", v.Name)
	case v.State != resource.Enabled:
		return nil, resource.Conflict("volume", "volume %s is disabled", v.Name)
	case v.ZoneID != vm.ZoneID:
		return nil, resource.Conflict("vm_id", "VM %s is in another zone", vm.Name)
	case v.VMID == vm.ID:
		return putVolume(tx, v)
	case v.VMID != "":
		return nil, resource.Conflict("volume", "volume %s is attached to VM %s", v.Name, vmName(tx, v.VMID)).WithRemedy("detach it first: shoalctl volume detach %s", v.Name)
	}
	if former, ok := resource.Find[*resource.VM](tx, v.LeavingVMID); ok && former.ID != vm.ID {
		return nil, onHost(tx, resource.Conflict("volume", "volume %s is still being detached from VM %s", v.Name, former.Name), former.HostID, "it has not confirmed it").
			WithRemedy("wait until shoalctl volume get %s no longer shows Detaching", v.Name)
	}
	taken := map[string]bool{}
	data := 0
	for _, o := range volumesOf(tx, vm.ID) {
		taken[o.Target] = true
		data += boolInt(o.Type == resource.VolumeData)
	}
	if data >= resource.MaxDataVolumes {
		return nil, resource.Conflict("vm_id", "VM %s has %d data volumes, at most %d are allowed", vm.Name, data, resource.MaxDataVolumes)
	}
	h, err := resource.Get[*resource.Host](tx, vm.HostID)
	if err != nil {
		return nil, err
	}
	p := &placer{tx: tx, use: map[string]resource.StorageUse{}}
	want := wantedVolume{name: "volume " + v.Name, bytes: v.Bytes, storage: v.StorageID}
	if v.StorageID == "" {
		storages, why := p.storages(h, []wantedVolume{want})
		if why != "" {
			return nil, &resource.Error{
				Code: resource.CodeCapacity, Field: "vm_id", Message: fmt.Sprintf("the host of VM %s can't take volume %s", vm.Name, v.Name),
				Reasons: []resource.Reason{{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: why}},
			}
		}
		settle(v, storages[0], h.ID)
	} else {
		s, err := resource.Get[*resource.Storage](tx, v.StorageID)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(s.ClusterIDs, vm.ClusterID) {
			return nil, resource.Conflict("vm_id", "the storage of volume %s is not attached to the cluster of VM %s", v.Name, vm.Name).Because(s, "the volume lies on it")
		}
		if v.HostID != "" && v.HostID != vm.HostID {
			return nil, onHost(tx, resource.Conflict("vm_id", "volume %s and VM %s are on different hosts", v.Name, vm.Name), v.HostID, "the volume lies on it").
				Because(h, "the VM is on it").WithRemedy("attach it to a VM of the volume's host")
		}
		v.Made = made(tx, v)
		v.LastHostID = vm.HostID
	}
	for i := 1; ; i++ {
		if t := target(i); !taken[t] {
			v.Target = t
			break
		}
	}
	v.VMID, v.LeavingVMID = vm.ID, ""
	return putVolume(tx, v)
}

func vmName(r resource.Reader, id string) string {
	if vm, ok := resource.Find[*resource.VM](r, id); ok {
		return vm.Name
	}
	return id
}

// release takes a volume from its VM. Until the VM's host has confirmed that, no other VM gets it: two guests that write
// to one file system would destroy it.
func release(tx resource.Tx, v *resource.Volume, vm *resource.VM) error {
	v = resource.Copy(v)
	v.Made = made(tx, v)
	v.VMID, v.Target = "", ""
	if !resource.ConfirmedOff(tx, vm) {
		v.LeavingVMID = vm.ID
	}
	return tx.Put(v)
}

// DetachVolume takes a data volume from its VM, also while it runs.
func DetachVolume(tx resource.Tx, id string) (*resource.Volume, error) {
	v, err := liveVolume(tx, id)
	if err != nil {
		return nil, err
	}
	if v.Type != resource.VolumeData {
		return nil, resource.Conflict("volume", "volume %s is a root volume", v.Name)
	}
	if v.VMID == "" {
		return nil, resource.Conflict("volume", "volume %s is not attached", v.Name)
	}
	vm, err := resource.Get[*resource.VM](tx, v.VMID)
	if err != nil {
		return nil, err
	}
	if err := release(tx, v, vm); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindVolume, v.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Volume](tx, v.ID)
}

// ResizeVolume enlarges a volume. It never shrinks one.
func ResizeVolume(tx resource.Tx, id string, bytes uint64) (*resource.Volume, error) {
	v, err := liveVolume(tx, id)
	if err != nil {
		return nil, err
	}
	if bytes < v.Bytes {
		return nil, resource.Invalid("bytes", "%d is less than the volume's %d: a volume only ever grows", bytes, v.Bytes)
	}
	more := bytes - v.Bytes
	v.Bytes = bytes
	if err := v.Validate(); err != nil {
		return nil, err
	}
	if v.StorageID != "" && more > 0 {
		s, err := resource.Get[*resource.Storage](tx, v.StorageID)
		if err != nil {
			return nil, err
		}
		if _, err := storageHost(tx, s, resource.VolumeHost(tx, v), more); err != nil {
			return nil, err
		}
	}
	return putVolume(tx, v)
}

// DestroyVolume puts a detached data volume into the recycle bin.
func DestroyVolume(tx resource.Tx, id string) (*resource.Volume, error) {
	v, err := liveVolume(tx, id)
	if err != nil {
		return nil, err
	}
	if v.Type != resource.VolumeData {
		return nil, resource.Conflict("volume", "volume %s is a root volume: it goes with its VM", v.Name)
	}
	if v.VMID != "" {
		return nil, inUse("volume "+v.Name, []resource.Reason{{Kind: resource.KindVM, ID: v.VMID, Name: vmName(tx, v.VMID), Why: "it is attached"}}).
			WithRemedy("detach it first: shoalctl volume detach %s", v.Name)
	}
	v.Destroyed = tx.Now()
	return putVolume(tx, v)
}

// RecoverVolume takes a data volume out of the recycle bin.
func RecoverVolume(tx resource.Tx, id string) (*resource.Volume, error) {
	v, err := resource.Get[*resource.Volume](tx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case v.Expunging:
		return nil, resource.Conflict("volume", "volume %s is being removed for good", v.Name)
	case v.Destroyed.IsZero():
		return nil, resource.Conflict("volume", "volume %s is not in the recycle bin", v.Name)
	}
	v = resource.Copy(v)
	v.Destroyed = time.Time{}
	return putVolume(tx, v)
}

// ExpungeVolume removes a data volume of the recycle bin, and its data, for good.
func ExpungeVolume(tx resource.Tx, id string) (*resource.Volume, error) {
	v, err := resource.Get[*resource.Volume](tx, id)
	if err != nil {
		return nil, err
	}
	if v.Expunging {
		return v, nil
	}
	if v.Destroyed.IsZero() {
		return nil, resource.Conflict("volume", "volume %s is not in the recycle bin", v.Name).WithRemedy("destroy it first: shoalctl volume destroy %s", v.Name)
	}
	if former, ok := resource.Find[*resource.VM](tx, v.LeavingVMID); ok {
		return nil, onHost(tx, resource.Conflict("volume", "volume %s is still being detached from VM %s", v.Name, former.Name), former.HostID, "it has not confirmed it").
			WithRemedy("try again once it has")
	}
	if _, err := NewTask(tx, resource.KindVolume, v.ID); err != nil {
		return nil, err
	}
	return bury(tx, v)
}

// bury turns a volume into a tombstone, or, where no host ever made a file of it, takes its record out.
func bury(tx resource.Tx, v *resource.Volume) (*resource.Volume, error) {
	if v.LastHostID == "" {
		return v, tx.Delete(resource.KindVolume, v.ID)
	}
	v = resource.Copy(v)
	v.Expunging, v.VMID, v.Target, v.LeavingVMID = true, "", "", ""
	v.TombstoneHostID = gravedigger(tx, v)
	if err := tx.Put(v); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Volume](tx, v.ID)
}

// gravedigger is the host that is to remove a volume's file: the one it lies on or, with a shared storage, its last host,
// or any other that is connected and sees the storage.
func gravedigger(r resource.Reader, v *resource.Volume) string {
	if v.HostID != "" {
		return v.HostID
	}
	s, ok := resource.Find[*resource.Storage](r, v.StorageID)
	if !ok {
		return ""
	}
	able := func(id string) bool {
		h, ok := resource.Find[*resource.Host](r, id)
		if !ok || !slices.Contains(s.ClusterIDs, h.ClusterID) || !r.Observed().Host(id).Connected {
			return false
		}
		_, _, ready := resource.PoolFacts(r, id, s.ID)
		return ready
	}
	for _, id := range []string{v.TombstoneHostID, v.LastHostID} {
		if able(id) {
			return id
		}
	}
	for _, c := range s.ClusterIDs {
		for _, h := range slices.SortedFunc(resource.Referrers[*resource.Host](r, resource.KindCluster, c), byID) {
			if able(h.ID) {
				return h.ID
			}
		}
	}
	// Nobody can now. Whom it was left to keeps it until somebody else can.
	if _, ok := resource.Find[*resource.Host](r, v.TombstoneHostID); ok {
		return v.TombstoneHostID
	}
	if _, ok := resource.Find[*resource.Host](r, v.LastHostID); ok {
		return v.LastHostID
	}
	return ""
}

// UpdateVolume changes a volume's name, description, owner, tags, state and size.
func UpdateVolume(tx resource.Tx, changed *resource.Volume) (*resource.Volume, error) {
	v, err := liveVolume(tx, changed.ID)
	if err != nil {
		return nil, err
	}
	if changed.Bytes != v.Bytes {
		if v, err = ResizeVolume(tx, v.ID, changed.Bytes); err != nil {
			return nil, err
		}
		v = resource.Copy(v)
	}
	v.Name, v.Description, v.Owner, v.Tags, v.State = changed.Name, changed.Description, changed.Owner, changed.Tags, changed.State
	return putVolume(tx, v)
}
