package plan

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// DefaultStopSeconds is how long a guest has to obey when it is stopped.
const DefaultStopSeconds = 60

// How long the recycle bin keeps things.
const (
	VMKept     = resource.VMKept
	VolumeKept = resource.VolumeKept
)

// CreateVM makes a VM with its volumes, NICs and addresses on a host that has room for all of it.
func CreateVM(tx resource.Tx, spec VMSpec) (*resource.VM, error) {
	vm := &resource.VM{
		OfferingID: spec.OfferingID, ImageID: spec.ImageID, CPUs: spec.CPUs, MemoryMiB: spec.MemoryMiB, Strategy: spec.Strategy,
		Hostname: spec.Hostname, Machine: cmp.Or(spec.Machine, "pc"), CPUMode: cmp.Or(spec.CPUMode, "none"), StopSeconds: DefaultStopSeconds,
		Power: desired.PowerOn, Ran: !spec.Stopped,
	}
	vm.ID, vm.Name, vm.Description, vm.Owner, vm.Tags = tx.NewID(), spec.Name, spec.Description, spec.Owner, spec.Tags
	if vm.Owner == "" {
		vm.Owner = tx.Request().Owner()
	}
	if err := resource.CheckName("name", vm.Name); err != nil {
		return nil, err
	}
	if spec.StopSeconds != nil {
		vm.StopSeconds = *spec.StopSeconds
	}
	vm.Wish = 1
	if spec.Stopped {
		vm.Power, vm.Wish = desired.PowerOff, 0
	}
	if err := sizeOf(tx, vm); err != nil {
		return nil, err
	}
	w := wanted{
		vm: vm.ID, name: vm.Name, zone: spec.ZoneID, cluster: spec.ClusterID, host: spec.HostID, cpus: vm.CPUs, memoryMiB: vm.MemoryMiB, strategy: vm.Strategy,
	}
	if err := scopeOf(tx, &w); err != nil {
		return nil, err
	}
	if len(spec.NICs) > resource.MaxNICs {
		return nil, resource.Invalid("nics", "has %d entries, at most %d are allowed", len(spec.NICs), resource.MaxNICs)
	}
	if len(spec.DataVolumes) > resource.MaxDataVolumes {
		return nil, resource.Invalid("data_volumes", "has %d entries, at most %d are allowed", len(spec.DataVolumes), resource.MaxDataVolumes)
	}
	for i, n := range spec.NICs {
		l3, err := networkIn(tx, n.L3ID, w.zone, fmt.Sprintf("nics[%d].l3_id", i))
		if err != nil {
			return nil, err
		}
		if w.zone == "" {
			w.zone = mustZone(tx, l3)
		}
		w.l3s = append(w.l3s, l3)
	}
	volumes, err := volumesFor(tx, vm, spec, w.zone)
	if err != nil {
		return nil, err
	}
	for i, v := range volumes {
		wv := wantedVolume{name: v.Name, bytes: v.Bytes, root: v.Type == resource.VolumeRoot, storage: v.StorageID, image: v.ImageID, backing: v.Backing}
		if i > 0 || v.Type == resource.VolumeData {
			wv.name = "data volume " + v.Name
		} else {
			wv.name = "the root volume"
		}
		w.volumes = append(w.volumes, wv)
		volumes[i].StorageID = ""
	}
	c, err := place(tx, w)
	if err != nil {
		return nil, err
	}
	cl, err := resource.Get[*resource.Cluster](tx, c.host.ClusterID)
	if err != nil {
		return nil, err
	}
	vm.HostID, vm.ClusterID, vm.ZoneID = c.host.ID, cl.ID, cl.ZoneID
	if err := tx.Put(vm); err != nil {
		return nil, err
	}
	for i, v := range volumes {
		v.ZoneID = cl.ZoneID
		settle(v, c.storages[i], c.host.ID)
		v.VMID, v.Target = vm.ID, target(i+boolInt(volumes[0].Type != resource.VolumeRoot))
		if err := tx.Put(v); err != nil {
			return nil, inField(err, fmt.Sprintf("data_volumes[%d]", i-boolInt(volumes[0].Type == resource.VolumeRoot)), v.Type == resource.VolumeData)
		}
	}
	defaults := 0
	for _, n := range spec.NICs {
		defaults += boolInt(n.Default)
	}
	if defaults > 1 {
		return nil, resource.Invalid("nics", "%d entries are marked default, one can be", defaults)
	}
	for i, n := range spec.NICs {
		n.Default = n.Default || defaults == 0 && i == 0
		if _, err := putNIC(tx, vm, n, i); err != nil {
			return nil, inField(err, fmt.Sprintf("nics[%d]", i), true)
		}
	}
	if _, err := NewTask(tx, resource.KindVM, vm.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.VM](tx, vm.ID)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// inField puts the field of an error below another one.
func inField(err error, field string, nested bool) error {
	var e *resource.Error
	if !nested || !errors.As(err, &e) {
		return err
	}
	c := *e
	if c.Field != "" {
		field += "." + c.Field
	}
	c.Field = field
	return &c
}

// sizeOf takes what is not given from the offering.
func sizeOf(tx resource.Tx, vm *resource.VM) error {
	if vm.OfferingID != "" {
		o, err := resource.Get[*resource.Offering](tx, vm.OfferingID)
		if err != nil {
			return inThe(err, "offering_id")
		}
		if o.State != resource.Enabled {
			return resource.Conflict("offering_id", "offering %s is disabled", o.Name)
		}
		vm.CPUs, vm.MemoryMiB, vm.Strategy = cmp.Or(vm.CPUs, o.CPUs), cmp.Or(vm.MemoryMiB, o.MemoryMiB), cmp.Or(vm.Strategy, o.Strategy)
	}
	vm.Strategy = cmp.Or(vm.Strategy, resource.FewestVMs)
	if vm.Strategy != resource.FewestVMs && vm.Strategy != resource.MostFree {
		return resource.Invalid("strategy", "%q is not one of %s, %s", vm.Strategy, resource.FewestVMs, resource.MostFree)
	}
	if vm.CPUs == 0 {
		return resource.Invalid("cpus", "must be given, or an offering")
	}
	if vm.MemoryMiB == 0 {
		return resource.Invalid("memory_mib", "must be given, or an offering")
	}
	return nil
}

// inThe sets the field that a missing resource was named in.
func inThe(err error, field string) error {
	var e *resource.Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Field = field
	return &c
}

// scopeOf checks that zone, cluster and host are there and lie within each other, and fills in the wider ones.
func scopeOf(tx resource.Tx, w *wanted) error {
	if w.host != "" {
		h, err := resource.Get[*resource.Host](tx, w.host)
		if err != nil {
			return inThe(err, "host_id")
		}
		if w.cluster != "" && w.cluster != h.ClusterID {
			return resource.Invalid("host_id", "host %s is not in the cluster that is asked for", h.Name)
		}
		w.cluster = h.ClusterID
	}
	if w.cluster != "" {
		c, err := resource.Get[*resource.Cluster](tx, w.cluster)
		if err != nil {
			return inThe(err, "cluster_id")
		}
		if w.zone != "" && w.zone != c.ZoneID {
			return resource.Invalid("cluster_id", "cluster %s is not in the zone that is asked for", c.Name)
		}
		w.zone = c.ZoneID
	}
	if w.zone != "" {
		if _, err := resource.Get[*resource.Zone](tx, w.zone); err != nil {
			return inThe(err, "zone_id")
		}
	}
	return nil
}

// networkIn finds a layer 3 network and checks its zone.
func networkIn(tx resource.Tx, id, zone, field string) (*resource.L3, error) {
	if id == "" {
		return nil, resource.Invalid(field, "must be set")
	}
	l3, err := resource.Get[*resource.L3](tx, id)
	if err != nil {
		return nil, inThe(err, field)
	}
	l2, err := resource.Get[*resource.L2](tx, l3.L2ID)
	if err != nil {
		return nil, inThe(err, field)
	}
	if zone != "" && l2.ZoneID != zone {
		return nil, resource.Invalid(field, "network %s is in another zone", l3.Name)
	}
	return l3, nil
}

func mustZone(tx resource.Tx, l3 *resource.L3) string {
	if l2, ok := resource.Find[*resource.L2](tx, l3.L2ID); ok {
		return l2.ZoneID
	}
	return ""
}

// volumesFor makes the volumes of a new VM, root first. StorageID is what is asked for; they are not put yet.
func volumesFor(tx resource.Tx, vm *resource.VM, spec VMSpec, zone string) ([]*resource.Volume, error) {
	var out []*resource.Volume
	root, err := rootVolume(tx, vm, spec)
	if err != nil {
		return nil, err
	}
	if root != nil {
		out = append(out, root)
	}
	for i, d := range spec.DataVolumes {
		if d.Name == "" {
			d.Name = fmt.Sprintf("%s-data-%d", vm.Name, i+1)
			d.Name = d.Name[max(0, len(d.Name)-resource.MaxName):]
		}
		d.ZoneID = cmp.Or(d.ZoneID, zone)
		d.Owner = cmp.Or(d.Owner, vm.Owner)
		v, err := newVolume(tx, d)
		if err != nil {
			return nil, inField(err, fmt.Sprintf("data_volumes[%d]", i), true)
		}
		if d.HostID != "" {
			return nil, resource.Invalid(fmt.Sprintf("data_volumes[%d].host_id", i), "must not be set: the volume lies where the VM does")
		}
		v.StorageID = d.StorageID
		out = append(out, v)
	}
	return out, nil
}

func rootVolume(tx resource.Tx, vm *resource.VM, spec VMSpec) (*resource.Volume, error) {
	bytes := spec.RootBytes
	if spec.RootOfferingID != "" {
		o, err := resource.Get[*resource.DiskOffering](tx, spec.RootOfferingID)
		if err != nil {
			return nil, inThe(err, "root_offering_id")
		}
		if o.State != resource.Enabled {
			return nil, resource.Conflict("root_offering_id", "disk offering %s is disabled", o.Name)
		}
		bytes = cmp.Or(bytes, o.Bytes)
	}
	v := &resource.Volume{
		Type: resource.VolumeRoot, StorageID: spec.RootStorageID, Format: desired.FormatQCOW2, DiskOfferingID: spec.RootOfferingID, State: resource.Enabled,
	}
	if spec.ImageID != "" {
		img, err := resource.Get[*resource.Image](tx, spec.ImageID)
		if err != nil {
			return nil, inThe(err, "image_id")
		}
		switch {
		case img.Stage != resource.ImageReady:
			return nil, resource.Conflict("image_id", "image %s is still being added", img.Name).WithRemedy("wait for it: shoalctl image get %s", img.Name)
		case img.State != resource.Enabled:
			return nil, resource.Conflict("image_id", "image %s is disabled", img.Name)
		case img.Format == desired.FormatISO:
			return nil, resource.Invalid("image_id", "image %s is an ISO: a root volume can't start from it", img.Name).WithRemedy("add a qcow2 or raw image of an installed system")
		}
		least := roundUp(img.VirtualBytes)
		if bytes != 0 && bytes < least {
			return nil, resource.Invalid("root_bytes", "%d is less than the %d bytes of image %s", bytes, least, img.Name)
		}
		bytes = max(bytes, least)
		v.ImageID = img.ID
		v.Backing = &resource.Backing{SHA256: img.SHA256, Bytes: img.Bytes, Format: img.Format}
	}
	if bytes == 0 {
		if spec.RootStorageID != "" {
			return nil, resource.Invalid("root_storage_id", "must not be set without a root volume: give image_id, root_bytes or root_offering_id")
		}
		return nil, nil
	}
	v.Bytes = bytes
	v.ID, v.Owner = tx.NewID(), vm.Owner
	v.Name = vm.Name
	if len(v.Name) <= resource.MaxName-5 {
		v.Name += "-root"
	}
	if spec.RootStorageID != "" {
		if _, err := resource.Get[*resource.Storage](tx, spec.RootStorageID); err != nil {
			return nil, inThe(err, "root_storage_id")
		}
	}
	return v, nil
}

func roundUp(n uint64) uint64 { return max((n+511)/512*512, resource.MinVolumeBytes) }

// target is the name of a VM's n-th disk.
func target(n int) string { return "vd" + string(rune('a'+n)) }

// live finds a VM that is not in the recycle bin.
func live(tx resource.Tx, id string) (*resource.VM, error) {
	vm, err := resource.Get[*resource.VM](tx, id)
	if err != nil {
		return nil, err
	}
	if vm.Expunging {
		return nil, resource.Conflict("vm", "VM %s is being removed for good", vm.Name)
	}
	if !vm.Destroyed.IsZero() {
		return nil, resource.Conflict("vm", "VM %s is in the recycle bin", vm.Name).WithRemedy("recover it first: shoalctl vm recover %s", vm.Name)
	}
	return copyVM(tx, vm), nil
}

// copyVM copies a VM for a change. That it is off, where its host has confirmed it, stays known over the change.
func copyVM(tx resource.Tx, vm *resource.VM) *resource.VM {
	ran := vm.Ran && !resource.ConfirmedOff(tx, vm)
	vm = resource.Copy(vm)
	vm.Ran = ran
	return vm
}

// putVM stores a change with its task.
func putVM(tx resource.Tx, vm *resource.VM) (*resource.VM, error) {
	if err := tx.Put(vm); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindVM, vm.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.VM](tx, vm.ID)
}

// guestShutDown reports whether a VM that is wanted on is off because its guest shut itself down. Only a host that is at rest
// with the very document that was published last can say so: before that it may be about to start the VM by a newer wish.
func guestShutDown(r resource.Reader, vm *resource.VM) bool {
	if vm.Power != desired.PowerOn {
		return false
	}
	ref := resource.DomainRef(vm.ID)
	st, ok := resource.Current(r, vm.HostID, ref, vm.Rev)
	if p, _ := r.Observed().Published(vm.HostID, ref); !ok || st.Rev != p.Rev || st.Phase != desired.PhaseReady {
		return false
	}
	f, err := desired.DecodeFacts[desired.DomainFacts](st)
	return err == nil && f.ByGuest && f.State == desired.StateShutoff
}

// StartVM turns a VM on, on hostID or, with "", where it was last if that will do, else on any host that does. On another
// host than before it starts only when the former one has confirmed that it is off, and its volumes can be reached there.
func StartVM(tx resource.Tx, id, hostID string) (*resource.VM, error) {
	vm, err := live(tx, id)
	if err != nil {
		return nil, err
	}
	switch vm.Power {
	case desired.PowerPaused:
		return nil, resource.Conflict("power", "VM %s is paused", vm.Name).WithRemedy("resume it: shoalctl vm resume %s", vm.Name)
	case desired.PowerOn:
		if hostID != "" && hostID != vm.HostID {
			return nil, resource.Conflict("host_id", "VM %s is on already, on another host", vm.Name).WithRemedy("stop it first")
		}
		// Its guest may have shut itself down, known here or not yet.
		vm.Wish++
		return putVM(tx, vm)
	case desired.PowerOff:
	}
	if hostID != "" {
		if _, err := resource.Get[*resource.Host](tx, hostID); err != nil {
			return nil, inThe(err, "host_id")
		}
	}
	w := wanted{vm: vm.ID, name: vm.Name, zone: vm.ZoneID, host: hostID, cpus: vm.CPUs, memoryMiB: vm.MemoryMiB, strategy: vm.Strategy}
	for _, n := range nicsOf(tx, vm.ID) {
		l3, err := resource.Get[*resource.L3](tx, n.L3ID)
		if err != nil {
			return nil, err
		}
		w.l3s = append(w.l3s, l3)
	}
	volumes := volumesOf(tx, vm.ID)
	for _, v := range volumes {
		w.volumes = append(w.volumes, wantedVolume{name: "volume " + v.Name, bytes: v.Bytes, storage: v.StorageID, there: true})
		if v.HostID != "" {
			w.only = v.HostID
			w.onlyWhy = fmt.Sprintf("volume %s lies on host %s", v.Name, hostName(tx, v.HostID))
		}
	}
	if w.only == "" && !resource.ConfirmedOff(tx, vm) {
		w.only = vm.HostID
		w.onlyWhy = fmt.Sprintf("the VM may still run on host %s, which has not confirmed that it is off", hostName(tx, vm.HostID))
	}
	var c choice
	if hostID == "" {
		last := w
		last.host = vm.HostID
		c, err = place(tx, last)
	}
	if hostID != "" || err != nil {
		if c, err = place(tx, w); err != nil {
			return nil, err
		}
	}
	if c.host.ID != vm.HostID {
		vm.HostID, vm.ClusterID = c.host.ID, c.host.ClusterID
		for _, v := range volumes {
			v = resource.Copy(v)
			v.Made = made(tx, v)
			v.LastHostID = c.host.ID
			if err := tx.Put(v); err != nil {
				return nil, err
			}
		}
	}
	vm.Power, vm.Force, vm.Act, vm.Ran = desired.PowerOn, false, nil, true
	vm.Wish++
	return putVM(tx, vm)
}

func hostName(r resource.Reader, id string) string {
	if h, ok := resource.Find[*resource.Host](r, id); ok {
		return h.Name
	}
	return id
}

// onHost says which host stands in the way.
func onHost(r resource.Reader, e *resource.Error, id, why string) *resource.Error {
	if h, ok := resource.Find[*resource.Host](r, id); ok {
		return e.Because(h, "%s", why)
	}
	return e
}

// StopVM turns a VM off: its guest is asked first, and after a while, or at once with Force, the power is cut. A paused
// guest can't obey, so its power is cut.
func StopVM(tx resource.Tx, id string, opt StopOptions) (*resource.VM, error) {
	vm, err := live(tx, id)
	if err != nil {
		return nil, err
	}
	if opt.Seconds < 0 || opt.Seconds > 3600 {
		return nil, resource.Invalid("seconds", "%d is not within 0..3600", opt.Seconds)
	}
	vm.Force = opt.Force || vm.Power == desired.PowerPaused || vm.Power == desired.PowerOff && vm.Force
	vm.Power, vm.Act = desired.PowerOff, nil
	if opt.Seconds > 0 {
		vm.StopSeconds = opt.Seconds
	}
	return putVM(tx, vm)
}

// RebootVM stops and starts a VM, with its current definition.
func RebootVM(tx resource.Tx, id string) (*resource.VM, error) {
	return act(tx, id, desired.VerbReboot)
}

// ResetVM restarts a VM at once, without asking its guest.
func ResetVM(tx resource.Tx, id string) (*resource.VM, error) { return act(tx, id, desired.VerbReset) }

func act(tx resource.Tx, id string, verb desired.Verb) (*resource.VM, error) {
	vm, err := live(tx, id)
	if err != nil {
		return nil, err
	}
	if vm.Power != desired.PowerOn {
		state := map[desired.Power]string{desired.PowerOff: "off", desired.PowerPaused: "paused"}[vm.Power]
		return nil, resource.Conflict("power", "VM %s is %s: a %s needs it running", vm.Name, state, verb).
			WithRemedy("start it: shoalctl vm start %s", vm.Name)
	}
	vm.ActSeq++
	vm.Act = &desired.Act{Seq: vm.ActSeq, Verb: verb}
	vm.Wish++
	return putVM(tx, vm)
}

// PauseVM halts a running VM's processors. Its memory stays taken.
func PauseVM(tx resource.Tx, id string) (*resource.VM, error) {
	return power(tx, id, desired.PowerOn, desired.PowerPaused, "running")
}

// ResumeVM lets a paused VM go on.
func ResumeVM(tx resource.Tx, id string) (*resource.VM, error) {
	return power(tx, id, desired.PowerPaused, desired.PowerOn, "paused")
}

func power(tx resource.Tx, id string, from, to desired.Power, name string) (*resource.VM, error) {
	vm, err := live(tx, id)
	if err != nil {
		return nil, err
	}
	if vm.Power != from && vm.Power != to {
		return nil, resource.Conflict("power", "VM %s is not %s but wanted %s", vm.Name, name, vm.Power)
	}
	vm.Power, vm.Act = to, nil
	if to == desired.PowerOn {
		vm.Wish++
	}
	return putVM(tx, vm)
}

// DestroyVM powers a VM off and puts it into the recycle bin. Its data volumes are detached and stay; its root volume
// and its addresses are kept until it is expunged.
func DestroyVM(tx resource.Tx, id string) (*resource.VM, error) {
	vm, err := live(tx, id)
	if err != nil {
		return nil, err
	}
	for _, v := range volumesOf(tx, vm.ID) {
		if v.Type == resource.VolumeData {
			if err := release(tx, v, vm); err != nil {
				return nil, err
			}
		}
	}
	vm.Power, vm.Force, vm.Act, vm.Destroyed = desired.PowerOff, true, nil, tx.Now()
	return putVM(tx, vm)
}

// RecoverVM takes a VM out of the recycle bin, stopped.
func RecoverVM(tx resource.Tx, id string) (*resource.VM, error) {
	vm, err := resource.Get[*resource.VM](tx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case vm.Expunging:
		return nil, resource.Conflict("vm", "VM %s is being removed for good", vm.Name)
	case vm.Destroyed.IsZero():
		return nil, resource.Conflict("vm", "VM %s is not in the recycle bin", vm.Name)
	}
	vm = copyVM(tx, vm)
	vm.Destroyed = time.Time{}
	return putVM(tx, vm)
}

// ExpungeVM removes a VM of the recycle bin for good; see the package's comment for the steps.
func ExpungeVM(tx resource.Tx, id string) (*resource.VM, error) {
	vm, err := resource.Get[*resource.VM](tx, id)
	if err != nil {
		return nil, err
	}
	if vm.Destroyed.IsZero() {
		return nil, resource.Conflict("vm", "VM %s is not in the recycle bin", vm.Name).WithRemedy("destroy it first: shoalctl vm destroy %s", vm.Name)
	}
	vm = copyVM(tx, vm)
	vm.Expunging = true
	return putVM(tx, vm)
}

// UpdateVM changes a VM's own settings: name, description, owner, tags, hostname, CPUs, memory, strategy, machine, CPU mode
// and stop_seconds. What a running VM can't take at once takes effect at its next start.
func UpdateVM(tx resource.Tx, changed *resource.VM) (*resource.VM, error) {
	vm, err := live(tx, changed.ID)
	if err != nil {
		return nil, err
	}
	more := *vm
	vm.Name, vm.Description, vm.Owner, vm.Tags = changed.Name, changed.Description, changed.Owner, changed.Tags
	vm.Hostname, vm.CPUs, vm.MemoryMiB, vm.Strategy = changed.Hostname, changed.CPUs, changed.MemoryMiB, changed.Strategy
	vm.Machine, vm.CPUMode, vm.StopSeconds = changed.Machine, changed.CPUMode, changed.StopSeconds
	if vm.Strategy != resource.FewestVMs && vm.Strategy != resource.MostFree {
		return nil, resource.Invalid("strategy", "%q is not one of %s, %s", vm.Strategy, resource.FewestVMs, resource.MostFree)
	}
	if err := vm.Validate(); err != nil {
		return nil, err
	}
	if vm.Power != desired.PowerOff && (vm.CPUs > more.CPUs || vm.MemoryMiB > more.MemoryMiB) {
		ob := tx.Observed().Host(vm.HostID)
		if !ob.Reported {
			return nil, onHost(tx, resource.Conflict("host_id", "the host of the VM has not reported what it is: it is not known whether it has room"), vm.HostID, "it has not reported").
				WithRemedy("stop the VM first, or wait for the host")
		}
		h, err := resource.Get[*resource.Host](tx, vm.HostID)
		if err != nil {
			return nil, err
		}
		cpus, mem := resource.HostRoom(tx, h, ob.Facts.Inventory, resource.UseOfHost(tx, vm.HostID))
		if d := int64(vm.MemoryMiB - more.MemoryMiB); d > 0 && d > mem {
			return nil, &resource.Error{
				Code: resource.CodeCapacity, Field: "memory_mib", Message: fmt.Sprintf("the VM's host has no room for %d MiB more", d),
				Reasons: []resource.Reason{{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: fmt.Sprintf("%d MiB are free", max(mem, 0))}},
				Remedy:  "stop the VM first: it is placed anew when it starts",
			}
		}
		if d := vm.CPUs - more.CPUs; d > 0 && d > cpus {
			return nil, &resource.Error{
				Code: resource.CodeCapacity, Field: "cpus", Message: fmt.Sprintf("the VM's host has no room for %d virtual CPUs more", d),
				Reasons: []resource.Reason{{Kind: resource.KindHost, ID: h.ID, Name: h.Name, Why: fmt.Sprintf("%d are free", max(cpus, 0))}},
				Remedy:  "stop the VM first: it is placed anew when it starts",
			}
		}
	}
	return putVM(tx, vm)
}

// groupsOf checks the security groups of a NIC; the result is sorted, without doubles.
func groupsOf(tx resource.Tx, ids []string) ([]string, error) {
	out := slices.Clone(ids)
	slices.Sort(out)
	out = slices.Compact(out)
	for _, id := range out {
		if _, err := resource.Get[*resource.SecGroup](tx, id); err != nil {
			return nil, inThe(err, "secgroup_ids")
		}
	}
	return out, nil
}

// putNIC makes a NIC of a VM.
func putNIC(tx resource.Tx, vm *resource.VM, spec NICSpec, index int) (*resource.NIC, error) {
	l3, err := networkIn(tx, spec.L3ID, vm.ZoneID, "l3_id")
	if err != nil {
		return nil, err
	}
	n := &resource.NIC{VMID: vm.ID, L3ID: l3.ID, IP: spec.IP.Unmap(), MAC: spec.MAC, Index: index, Model: cmp.Or(spec.Model, "virtio"), Default: spec.Default, AntiSpoof: spec.AntiSpoof}
	n.ID, n.Owner = tx.NewID(), vm.Owner
	n.Name = fmt.Sprintf("nic%d", index)
	if n.SecGroupIDs, err = groupsOf(tx, spec.SecGroupIDs); err != nil {
		return nil, err
	}
	switch {
	case n.IP.IsValid():
		if err := checkAddress(tx, l3, n.IP); err != nil {
			return nil, err
		}
	case l3.NoDHCP && len(rangesOf(tx, l3.ID)) == 0:
		// The network leaves addresses to the guests.
	default:
		if n.IP, err = freeAddress(tx, l3); err != nil {
			return nil, err
		}
	}
	if n.MAC == "" {
		if n.MAC, err = freeMAC(tx); err != nil {
			return nil, err
		}
	} else if h := tx.Holder("mac/" + n.MAC); h != nil {
		return nil, heldBy(tx, resource.Conflict("mac", "%s is taken", n.MAC), h)
	}
	if err := tx.Put(n); err != nil {
		return nil, err
	}
	return resource.Get[*resource.NIC](tx, n.ID)
}

// AttachNIC gives a VM a NIC, also while it runs.
func AttachNIC(tx resource.Tx, vmID string, spec NICSpec) (*resource.NIC, error) {
	vm, err := live(tx, vmID)
	if err != nil {
		return nil, err
	}
	nics := nicsOf(tx, vm.ID)
	if len(nics) >= resource.MaxNICs {
		return nil, resource.Conflict("vm_id", "VM %s has %d NICs, at most %d are allowed", vm.Name, len(nics), resource.MaxNICs)
	}
	l3, err := networkIn(tx, spec.L3ID, vm.ZoneID, "l3_id")
	if err != nil {
		return nil, err
	}
	h, err := resource.Get[*resource.Host](tx, vm.HostID)
	if err != nil {
		return nil, err
	}
	if vm.Power != desired.PowerOff {
		if why := (&placer{tx: tx}).network(h, tx.Observed().Host(h.ID).Facts.Inventory, l3); why != "" {
			return nil, resource.Conflict("l3_id", "the host of VM %s can't have the network", vm.Name).Because(h, "%s", why)
		}
	}
	index := 0
	for _, n := range nics {
		index = max(index, n.Index+1)
	}
	if len(nics) == 0 {
		spec.Default = true
	}
	if spec.Default {
		for _, n := range nics {
			if n.Default {
				n = resource.Copy(n)
				n.Default = false
				if err := tx.Put(n); err != nil {
					return nil, err
				}
			}
		}
	}
	n, err := putNIC(tx, vm, spec, index)
	if err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindNIC, n.ID); err != nil {
		return nil, err
	}
	return n, nil
}

// DetachNIC takes a NIC from its VM, also while it runs. If it was the default one, the first that is left becomes it.
func DetachNIC(tx resource.Tx, nicID string) error {
	n, err := resource.Get[*resource.NIC](tx, nicID)
	if err != nil {
		return err
	}
	vm, err := live(tx, n.VMID)
	if err != nil {
		return err
	}
	if err := tx.Delete(resource.KindNIC, n.ID); err != nil {
		return err
	}
	if rest := nicsOf(tx, vm.ID); n.Default && len(rest) > 0 {
		first := resource.Copy(rest[0])
		first.Default = true
		if err := tx.Put(first); err != nil {
			return err
		}
	}
	_, err = NewTask(tx, resource.KindVM, vm.ID)
	return err
}

// SetNICGroups adds a NIC to security groups and takes it out of others.
func SetNICGroups(tx resource.Tx, nicID string, add, remove []string) (*resource.NIC, error) {
	n, err := resource.Get[*resource.NIC](tx, nicID)
	if err != nil {
		return nil, err
	}
	ids := slices.DeleteFunc(slices.Concat(n.SecGroupIDs, add), func(id string) bool { return slices.Contains(remove, id) })
	n = resource.Copy(n)
	if n.SecGroupIDs, err = groupsOf(tx, ids); err != nil {
		return nil, err
	}
	if err := tx.Put(n); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindNIC, n.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.NIC](tx, n.ID)
}

// UpdateNIC changes a NIC's name, description, tags, anti-spoofing, default mark and security groups.
func UpdateNIC(tx resource.Tx, changed *resource.NIC) (*resource.NIC, error) {
	n, err := resource.Get[*resource.NIC](tx, changed.ID)
	if err != nil {
		return nil, err
	}
	if n.Default && !changed.Default {
		return nil, resource.Invalid("default", "can't be taken away: mark another NIC as default instead")
	}
	if changed.Default && !n.Default {
		for _, o := range nicsOf(tx, n.VMID) {
			if o.Default {
				o = resource.Copy(o)
				o.Default = false
				if err := tx.Put(o); err != nil {
					return nil, err
				}
			}
		}
	}
	n = resource.Copy(n)
	n.Name, n.Description, n.Owner, n.Tags, n.AntiSpoof, n.Default = changed.Name, changed.Description, changed.Owner, changed.Tags, changed.AntiSpoof, changed.Default
	if n.SecGroupIDs, err = groupsOf(tx, changed.SecGroupIDs); err != nil {
		return nil, err
	}
	if err := tx.Put(n); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindNIC, n.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.NIC](tx, n.ID)
}
