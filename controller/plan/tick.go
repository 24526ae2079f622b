package plan

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// decision is one follow-up, decided on the view that it is taken on.
type decision func(tx resource.Tx) error

// TickLimit is how many decisions one Tick takes, so that its transaction stays small whatever has piled up.
const TickLimit = 256

// Due reports whether Tick would do anything at that time. It takes no transaction, so that the caller can look often.
func Due(r resource.Reader, now time.Time) bool {
	due := false
	decide(r, r.Seq(), now, func(resource.Kind, string, decision) bool {
		due = true
		return false
	})
	return due
}

// Tick takes the decisions that follow from what hosts report and from time that passes: tunnel addresses of hosts, guests
// that shut themselves down, volumes that were let go, the steps of expunging, the end of the recycle bin, the end of tasks.
// It is idempotent: a Tick with nothing due does nothing. changed says whether it did something; then there may be more to do.
//
// One decision that can't be stored fails the whole of it; see Pending and Follow for taking them one by one.
func Tick(tx resource.Tx) (changed bool, err error) {
	var all []decision
	decide(tx, tx.Seq()-1, tx.Now(), func(_ resource.Kind, _ string, d decision) bool {
		all = append(all, d)
		return len(all) < TickLimit
	})
	for _, d := range all {
		if err := d(tx); err != nil {
			return true, err
		}
	}
	return len(all) > 0, nil
}

// Pending names the resources that something is due for, in the order of Tick.
func Pending(r resource.Reader, now time.Time) []resource.Ref {
	var out []resource.Ref
	decide(r, r.Seq(), now, func(kind resource.Kind, id string, _ decision) bool {
		out = append(out, resource.Ref{Kind: kind, ID: id})
		return true
	})
	return out
}

// Follow takes what is due for one resource, if anything is by now.
func Follow(tx resource.Tx, kind resource.Kind, id string) (changed bool, err error) {
	r := tx.Get(kind, id)
	if r == nil {
		return false, nil
	}
	d := decideOne(tx, tx.Seq()-1, tx.Now(), r)
	if d == nil {
		return false, nil
	}
	return true, d(tx)
}

// decide finds what is due and yields it until yield says that it is enough. end is where the journal ends: a transaction's own sequence is
// beyond it.
func decide(r resource.Reader, end uint64, now time.Time, yield func(resource.Kind, string, decision) bool) {
	for _, kind := range []resource.Kind{
		resource.KindHost, resource.KindVM, resource.KindVolume, resource.KindTask, resource.KindAccount, resource.KindSession, resource.KindHostToken, resource.KindEnrolment,
		resource.KindRevocation, resource.KindPlan, resource.KindRollout,
	} {
		for x := range r.All(kind) {
			if d := decideOne(r, end, now, x); d != nil && !yield(kind, x.Base().ID, d) {
				return
			}
		}
	}
}

func decideOne(r resource.Reader, end uint64, now time.Time, x resource.Resource) decision {
	switch x := x.(type) {
	case *resource.Host:
		return decideHost(r, end, now, x)
	case *resource.VM:
		return decideVM(r, now, x)
	case *resource.Volume:
		return decideVolume(r, now, x)
	case *resource.Task:
		return decideTask(r, now, x)
	case *resource.Account:
		return decideAccount(r, x)
	case *resource.Session, *resource.HostToken, *resource.Enrolment, *resource.Revocation:
		return decideExpiry(x, now)
	case *resource.Rollout:
		return decideRollout(r, now, x)
	case *resource.Plan:
		if now.Before(x.Created.Add(resource.PlanKept)) {
			return nil
		}
		return func(tx resource.Tx) error { return tx.Delete(resource.KindPlan, x.ID) }
	default:
		return nil
	}
}

func decideHost(r resource.Reader, end uint64, now time.Time, h *resource.Host) decision {
	if h.Hold == nil && beyond(r, h.ID) > end {
		return func(tx resource.Tx) error {
			gen, end := beyond(tx, h.ID), tx.Seq()-1
			if gen <= end {
				return nil
			}
			h := resource.Copy(h)
			h.Hold = &resource.HostHold{Since: now, Seq: end, Why: fmt.Sprintf("it was told generation %d, and the journal ends at %d", gen, end)}
			return tx.Put(h)
		}
	}
	v, differs := vteps(r, h)
	if !differs {
		return nil
	}
	return func(tx resource.Tx) error {
		h := resource.Copy(h)
		h.VTEPs = v
		return tx.Put(h)
	}
}

// beyond is the highest generation that a host was told, by its own word or by what its bucket holds. A generation is a sequence of
// the journal, so that one above the journal's end stems from messages that are lost: the host is held then, see resource.HostHold.
func beyond(r resource.Reader, host string) uint64 {
	o := r.Observed()
	return max(o.Host(host).Facts.Gen, o.PublishedGen(host))
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
	}
	if d := adoptVM(r, vm); d != nil {
		return d
	}
	if vm.Power != desired.PowerOn {
		return nil
	}
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
	case !v.Made && made(r, v):
		return func(tx resource.Tx) error {
			v, ok := resource.Find[*resource.Volume](tx, v.ID)
			if !ok {
				return nil
			}
			v = resource.Copy(v)
			v.Made = true
			return tx.Put(v)
		}
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

// made reports whether a volume's file has been there: it is known, or the host that has it or had it last says so. Whatever
// gives a volume to another host keeps this first, for the report goes with the item.
func made(r resource.Reader, v *resource.Volume) bool {
	if v.Made {
		return true
	}
	for _, host := range []string{resource.VolumeHost(r, v), v.LastHostID} {
		if host == "" {
			continue
		}
		st, ok := r.Observed().Status(host, resource.VolumeRef(v.ID))
		if !ok || st.Phase != desired.PhaseReady {
			continue
		}
		if f, err := desired.DecodeFacts[desired.VolumeFacts](st); err == nil && !f.Absent {
			return true
		}
	}
	return false
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
