package plan

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// decision is one follow-up: what Tick will do. It looks again before it acts, for an earlier one may have changed things.
type decision func(tx resource.Tx) error

// Due reports whether Tick would do anything at that time. It takes no transaction, so that the caller can look often.
func Due(r resource.Reader, now time.Time) bool {
	due := false
	decide(r, now, func(decision) bool {
		due = true
		return false
	})
	return due
}

// Tick takes the decisions that follow from what hosts report and from time that passes: tunnel addresses of hosts, guests
// that shut themselves down, volumes that were let go, the steps of expunging, the end of the recycle bin, the end of tasks.
// It is idempotent: a second Tick on the same view does nothing. changed says whether the first did.
func Tick(tx resource.Tx) (changed bool, err error) {
	var all []decision
	decide(tx, tx.Now(), func(d decision) bool {
		all = append(all, d)
		return true
	})
	for _, d := range all {
		if err := d(tx); err != nil {
			return true, err
		}
	}
	return len(all) > 0, nil
}

// decide finds what is due and yields it until yield says that it is enough.
func decide(r resource.Reader, now time.Time, yield func(decision) bool) {
	for h := range resource.All[*resource.Host](r) {
		if v, differs := vteps(r, h); differs {
			if !yield(func(tx resource.Tx) error {
				h := resource.Copy(h)
				h.VTEPs = v
				return tx.Put(h)
			}) {
				return
			}
		}
	}
	for vm := range resource.All[*resource.VM](r) {
		if d := decideVM(r, now, vm); d != nil && !yield(d) {
			return
		}
	}
	for v := range resource.All[*resource.Volume](r) {
		if d := decideVolume(r, now, v); d != nil && !yield(d) {
			return
		}
	}
	for t := range resource.All[*resource.Task](r) {
		if d := decideTask(r, now, t); d != nil && !yield(d) {
			return
		}
	}
}

// setVTEPs brings the tunnel addresses of all hosts up to date.
func setVTEPs(tx resource.Tx) error {
	for _, h := range slices.Collect(resource.All[*resource.Host](tx)) {
		if v, differs := vteps(tx, h); differs {
			h = resource.Copy(h)
			h.VTEPs = v
			if err := tx.Put(h); err != nil {
				return err
			}
		}
	}
	return nil
}

// vteps are the tunnel addresses that a host should have: for every pool of its cluster the one it has if that is still
// right, else the lowest of its own in the pool's network. An address that its host no longer reports is kept until there is
// another, for a host that is looked at while it sets up its network must not lose its tunnels.
func vteps(r resource.Reader, h *resource.Host) (map[string]netip.Addr, bool) {
	want := map[string]netip.Addr{}
	ob := r.Observed().Host(h.ID)
	for p := range resource.Referrers[*resource.VXLANPool](r, resource.KindCluster, h.ClusterID) {
		i := slices.IndexFunc(p.Clusters, func(c resource.ClusterVTEP) bool { return c.ClusterID == h.ClusterID })
		if i < 0 {
			continue
		}
		cidr, have := p.Clusters[i].CIDR, h.VTEPs[p.ID]
		var found []netip.Addr
		if ob.Reported {
			for _, addrs := range ob.Facts.Inventory.Addresses {
				for _, s := range addrs {
					if a, err := netip.ParsePrefix(s); err == nil && cidr.Contains(a.Addr()) {
						found = append(found, a.Addr())
					}
				}
			}
		}
		slices.SortFunc(found, netip.Addr.Compare)
		switch {
		case slices.Contains(found, have):
			want[p.ID] = have
		case len(found) > 0:
			want[p.ID] = found[0]
		case have.IsValid() && cidr.Contains(have):
			want[p.ID] = have
		}
	}
	return want, !maps.Equal(want, h.VTEPs)
}

func decideVM(r resource.Reader, now time.Time, vm *resource.VM) decision {
	switch {
	case vm.Undefine:
		if !resource.Gone(r, vm.HostID, resource.DomainRef(vm.ID), vm.Rev) {
			return nil
		}
		return func(tx resource.Tx) error { return removeVM(tx, vm) }
	case vm.Ran && resource.ConfirmedOff(r, vm):
		// Kept, for it stays true whatever becomes of the record and of what is observed.
		return func(tx resource.Tx) error {
			vm := resource.Copy(vm)
			vm.Ran, vm.Undefine = false, vm.Expunging
			return tx.Put(vm)
		}
	case vm.Expunging:
		if !resource.ConfirmedOff(r, vm) && !neverThere(r, vm) {
			return nil
		}
		return func(tx resource.Tx) error {
			vm := resource.Copy(vm)
			vm.Undefine = true
			return tx.Put(vm)
		}
	case !vm.Destroyed.IsZero():
		if now.Before(vm.Destroyed.Add(VMKept)) {
			return nil
		}
		return func(tx resource.Tx) error {
			vm := resource.Copy(vm)
			vm.Expunging = true
			return tx.Put(vm)
		}
	case vm.Power == desired.PowerOn:
		// Looking for the word is much cheaper than decoding the facts of every VM.
		st, ok := r.Observed().Status(vm.HostID, resource.DomainRef(vm.ID))
		if !ok || !bytes.Contains(st.Facts, []byte(`"by_guest":true`)) || !guestShutDown(r, vm) {
			return nil
		}
		return func(tx resource.Tx) error {
			vm := resource.Copy(vm)
			vm.Power, vm.Force, vm.Act = desired.PowerOff, false, nil
			return tx.Put(vm)
		}
	default:
		return nil
	}
}

// neverThere reports whether a host says that a VM that is to be off can't even be defined there and is not.
func neverThere(r resource.Reader, vm *resource.VM) bool {
	st, ok := resource.Current(r, vm.HostID, resource.DomainRef(vm.ID), vm.Rev)
	if !ok || st.Phase != desired.PhaseRefused {
		return false
	}
	f, err := desired.DecodeFacts[desired.DomainFacts](st)
	return err == nil && (f.State == "" || f.State == desired.StateShutoff)
}

// removeVM takes out the record of a VM whose domain is gone. What it was made of goes too: root volumes become
// tombstones, NICs give their addresses back.
func removeVM(tx resource.Tx, vm *resource.VM) error {
	for _, v := range volumesOf(tx, vm.ID) {
		if v.Type == resource.VolumeRoot {
			if _, err := bury(tx, v); err != nil {
				return err
			}
			continue
		}
		v = resource.Copy(v)
		v.VMID, v.Target, v.LeavingVMID = "", "", ""
		if err := tx.Put(v); err != nil {
			return err
		}
	}
	for _, n := range nicsOf(tx, vm.ID) {
		if err := tx.Delete(resource.KindNIC, n.ID); err != nil {
			return err
		}
	}
	return tx.Delete(resource.KindVM, vm.ID)
}

func decideVolume(r resource.Reader, now time.Time, v *resource.Volume) decision {
	switch {
	case v.Expunging:
		return decideTombstone(r, v)
	case v.LeavingVMID != "":
		if !letGo(r, v) {
			return nil
		}
		return func(tx resource.Tx) error {
			// The volume may have changed by an earlier decision: the newest is what counts.
			v, ok := resource.Find[*resource.Volume](tx, v.ID)
			if !ok {
				return nil
			}
			v = resource.Copy(v)
			v.LeavingVMID = ""
			return tx.Put(v)
		}
	case !v.Destroyed.IsZero() && !now.Before(v.Destroyed.Add(VolumeKept)):
		return func(tx resource.Tx) error {
			v, ok := resource.Find[*resource.Volume](tx, v.ID)
			if !ok {
				return nil
			}
			_, err := bury(tx, v)
			return err
		}
	default:
		return nil
	}
}

// letGo reports whether the VM that a volume was taken from has confirmed that it no longer has it.
func letGo(r resource.Reader, v *resource.Volume) bool {
	vm, ok := resource.Find[*resource.VM](r, v.LeavingVMID)
	if !ok || resource.ConfirmedOff(r, vm) {
		return true
	}
	st, ok := resource.Current(r, vm.HostID, resource.DomainRef(vm.ID), max(vm.Rev, v.Rev))
	return ok && st.Phase == desired.PhaseReady
}

func decideTombstone(r resource.Reader, v *resource.Volume) decision {
	remove := func(tx resource.Tx) error { return tx.Delete(resource.KindVolume, v.ID) }
	_, known := resource.Find[*resource.Host](r, v.TombstoneHostID)
	if v.HostID != "" && !known {
		// Its host, and its file, were taken out of the site.
		return remove
	}
	if st, ok := resource.Current(r, v.TombstoneHostID, resource.VolumeRef(v.ID), v.Rev); ok && st.Phase == desired.PhaseReady {
		if f, err := desired.DecodeFacts[desired.VolumeFacts](st); err == nil && f.Absent {
			return remove
		}
	}
	if known && r.Observed().Host(v.TombstoneHostID).Connected {
		return nil
	}
	to := gravedigger(r, v)
	if to == v.TombstoneHostID {
		return nil
	}
	return func(tx resource.Tx) error {
		v := resource.Copy(v)
		v.TombstoneHostID = to
		return tx.Put(v)
	}
}

func decideTask(r resource.Reader, now time.Time, t *resource.Task) decision {
	if t.State != resource.TaskRunning {
		if now.Before(t.Finished.Add(resource.TaskKept)) {
			return nil
		}
		return func(tx resource.Tx) error { return tx.Delete(resource.KindTask, t.ID) }
	}
	c := resource.Converge(r, t)
	if !c.Done && !c.Failed {
		return nil
	}
	return func(tx resource.Tx) error {
		t := resource.Copy(t)
		if t.Seq == 0 {
			t.Seq = t.Rev
		}
		t.State, t.Finished, t.Error = resource.TaskDone, tx.Now(), c.Error
		if c.Failed {
			t.State = resource.TaskFailed
		}
		return tx.Put(t)
	}
}
