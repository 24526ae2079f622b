package resource

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"shoal/desired"
)

// ItemState is an item that a task waits for.
type ItemState struct {
	HostID   string         `json:"host_id"`
	Host     string         `json:"host"`
	Ref      desired.Ref    `json:"ref"`
	Phase    desired.Phase  `json:"phase,omitempty"`
	Fault    *desired.Fault `json:"fault,omitempty"`
	Progress int            `json:"progress,omitempty"`
	// Why says in a few words what is missing.
	Why string `json:"why"`
}

// Convergence is how far the effect of a call is.
type Convergence struct {
	Done   bool `json:"done"`
	Failed bool `json:"failed"`
	// Percent is 100 when done.
	Percent int `json:"percent"`
	// Waiting are the items that are not there yet, ordered by host and name.
	Waiting []ItemState `json:"waiting,omitempty"`
	// Error says why it failed.
	Error *Error `json:"error,omitempty"`
}

// HostItem is an item of a host.
type HostItem struct {
	Host string
	Ref  desired.Ref
}

// itemSet collects items, each once.
type itemSet map[HostItem]struct{}

func (s itemSet) add(host string, refs ...desired.Ref) {
	if host == "" {
		return
	}
	for _, ref := range refs {
		s[HostItem{host, ref}] = struct{}{}
	}
}

func (s itemSet) nic(r Reader, host string, n *NIC) {
	if l3, ok := Find[*L3](r, n.L3ID); ok {
		s.add(host, SecGroupRef(n.ID), DHCPRef(n.L3ID), NetDevRef(l3.L2ID))
	}
}

func (s itemSet) vm(r Reader, vm *VM) {
	s.add(vm.HostID, DomainRef(vm.ID))
	// What a VM stands on need not be well for it to be off.
	if vm.Power == desired.PowerOff {
		return
	}
	for n := range Referrers[*NIC](r, KindVM, vm.ID) {
		s.nic(r, vm.HostID, n)
	}
	for v := range Referrers[*Volume](r, KindVM, vm.ID) {
		if v.VMID == vm.ID {
			s.volume(r, v)
		}
	}
}

func (s itemSet) volume(r Reader, v *Volume) {
	host := VolumeHost(r, v)
	s.add(host, VolumeRef(v.ID))
	if v.Backing != nil && !v.Expunging {
		s.add(host, ImageRef(v.StorageID, v.ImageID))
	}
}

// l3 has the hosts on which VMs are in a network.
func hostsOfL3(r Reader, l3 string) map[string]struct{} {
	out := map[string]struct{}{}
	for n := range Referrers[*NIC](r, KindL3, l3) {
		if vm, ok := Find[*VM](r, n.VMID); ok {
			out[vm.HostID] = struct{}{}
		}
	}
	return out
}

func (s itemSet) l3(r Reader, l3 *L3) {
	for h := range hostsOfL3(r, l3.ID) {
		s.add(h, DHCPRef(l3.ID), NetDevRef(l3.L2ID))
	}
}

func (s itemSet) group(r Reader, id string) {
	naming := map[string]struct{}{id: {}}
	for rule := range Referrers[*SecRule](r, KindSecGroup, id) {
		naming[rule.GroupID] = struct{}{}
	}
	for g := range naming {
		for n := range Referrers[*NIC](r, KindSecGroup, g) {
			vm, ok := Find[*VM](r, n.VMID)
			if !ok || !vm.Destroyed.IsZero() {
				continue
			}
			if g == id {
				s.add(vm.HostID, SecGroupRef(n.ID))
			}
			s.add(vm.HostID, AddrSetRef(id))
		}
	}
}

// effects are the items that show what a call on a resource did.
func effects(r Reader, res Resource) itemSet {
	s := itemSet{}
	switch x := res.(type) {
	case *VM:
		s.vm(r, x)
	case *NIC:
		if vm, ok := Find[*VM](r, x.VMID); ok {
			s.add(vm.HostID, DomainRef(vm.ID))
			s.nic(r, vm.HostID, x)
		}
	case *Volume:
		s.volume(r, x)
		for _, id := range []string{x.VMID, x.LeavingVMID} {
			if vm, ok := Find[*VM](r, id); ok {
				s.add(vm.HostID, DomainRef(vm.ID))
			}
		}
	case *SecGroup:
		s.group(r, x.ID)
	case *SecRule:
		s.group(r, x.GroupID)
		if x.RemoteGroupID != "" {
			s.group(r, x.RemoteGroupID)
		}
	case *L3:
		s.l3(r, x)
	case *IPRange:
		if l3, ok := Find[*L3](r, x.L3ID); ok {
			s.l3(r, l3)
		}
	case *L2:
		for l3 := range Referrers[*L3](r, KindL2, x.ID) {
			for h := range hostsOfL3(r, l3.ID) {
				s.add(h, NetDevRef(x.ID))
			}
		}
	case *Storage:
		for _, c := range x.ClusterIDs {
			for h := range Referrers[*Host](r, KindCluster, c) {
				s.add(h.ID, PoolRef(x.ID))
			}
		}
	case *Host:
		for st := range Referrers[*Storage](r, KindCluster, x.ClusterID) {
			s.add(x.ID, PoolRef(st.ID))
		}
	}
	return s
}

// Converge tells how far a running task is: its effect is there when everything up to its journal sequence has been
// published, and every item that its resource shows in has been acted on at that sequence or the item's newest revision
// and is Ready. A resource that is gone has nothing left to wait for.
func Converge(r Reader, t *Task) Convergence {
	switch t.State {
	case TaskDone:
		return Convergence{Done: true, Percent: 100}
	case TaskFailed, TaskCancelled:
		e := t.Error
		if e == nil {
			e = &Error{Code: CodeConflict, Message: fmt.Sprintf("the task was %s", t.State)}
		}
		return Convergence{Failed: true, Error: e}
	case TaskRunning:
	}
	if t.ResourceKind == KindBackup || t.ResourceKind == KindSite || t.ResourceKind == KindAhead {
		return Convergence{Waiting: []ItemState{{Why: "the controller is working on it"}}}
	}
	seq := cmp.Or(t.Seq, t.Rev)
	if r.Observed().PublishedSeq() < seq {
		return Convergence{Waiting: []ItemState{{Why: "the documents of the hosts are being written"}}}
	}
	res := r.Get(t.ResourceKind, t.ResourceID)
	if res == nil {
		return Convergence{Done: true, Percent: 100}
	}
	items := effects(r, res)
	c := Convergence{}
	// sum is in hundredths of items.
	sum, total := 0, 0
	for it := range items {
		state, expected := itemState(r, res, it, seq)
		if !expected {
			continue
		}
		total++
		if state == nil {
			sum += 100
			continue
		}
		sum += min(state.Progress, 99)
		if h, ok := Find[*Host](r, it.Host); ok {
			state.Host = h.Name
		}
		c.Waiting = append(c.Waiting, *state)
	}
	slices.SortFunc(c.Waiting, func(a, b ItemState) int { return cmp.Or(strings.Compare(a.HostID, b.HostID), a.Ref.Compare(b.Ref)) })
	if why := unfinished(r, res); why != "" && len(c.Waiting) == 0 {
		c.Waiting = []ItemState{{Why: why}}
		total++
	}
	if len(c.Waiting) == 0 {
		c.Done, c.Percent = true, 100
		return c
	}
	c.Percent = min(5+sum*95/(100*max(total, 1)), 99)
	for _, w := range c.Waiting {
		if w.Phase == desired.PhaseRefused && w.Fault != nil {
			c.Failed = true
			c.Error = &Error{
				Code: CodeConflict, Message: "a host refuses it: " + w.Fault.Message, Remedy: cmp.Or(w.Fault.Remedy, w.Fault.Code.Remedy()),
				Reasons: []Reason{{Kind: KindHost, ID: w.HostID, Name: cmp.Or(w.Host, w.HostID), Why: "it refuses " + w.Ref.String()}},
			}
			break
		}
	}
	return c
}

// itemState is nil when the item is as wanted; expected is false for an item that is not in the host's document.
func itemState(r Reader, res Resource, it HostItem, seq uint64) (_ *ItemState, expected bool) {
	o := r.Observed()
	pub, ok := o.Published(it.Host, it.Ref)
	w := &ItemState{HostID: it.Host, Ref: it.Ref}
	if !ok {
		if vm, isVM := res.(*VM); isVM && it.Ref == DomainRef(vm.ID) && !vm.Undefine {
			w.Why = "it is not in the host's document yet"
			return w, true
		}
		return nil, false
	}
	away := !o.Host(it.Host).Connected
	st, ok := o.Status(it.Host, it.Ref)
	if !ok || st.Rev < min(pub.Rev, seq) {
		w.Why = "the agent has not got to it yet"
		if away {
			w.Why = "the host is not connected"
		}
		return w, true
	}
	w.Phase, w.Fault, w.Progress = st.Phase, st.Fault, st.Progress
	if st.Phase != desired.PhaseReady {
		if w.Phase == desired.PhaseRefused && st.Rev < pub.Rev {
			// It refused what it was; what it is now has not been looked at.
			w.Phase = desired.PhaseWorking
		}
		w.Why = strings.ToLower(string(st.Phase))
		if st.Fault != nil {
			w.Why = st.Fault.Message
		}
		if away {
			w.Why = "the host is not connected; it last said: " + w.Why
		}
		return w, true
	}
	vm, ok := res.(*VM)
	if !ok || it.Ref != DomainRef(vm.ID) {
		return nil, true
	}
	f, err := desired.DecodeFacts[desired.DomainFacts](st)
	if err != nil {
		w.Why = err.Error()
		return w, true
	}
	if a := vm.Act; a != nil {
		switch {
		case f.Acted == nil || f.Acted.Seq < a.Seq:
			w.Why = string(a.Verb) + " is not done yet"
			return w, true
		case f.Acted.Seq == a.Seq && f.Acted.Error != "":
			w.Phase, w.Why = desired.PhaseRefused, f.Acted.Error
			w.Fault = &desired.Fault{Code: desired.CodeLibvirt, Message: fmt.Sprintf("%s: %s", a.Verb, f.Acted.Error)}
			return w, true
		}
	}
	want := map[desired.Power]desired.DomainState{
		desired.PowerOn: desired.StateRunning, desired.PowerOff: desired.StateShutoff, desired.PowerPaused: desired.StatePaused,
	}[vm.Power]
	if f.State != want && !(f.ByGuest && vm.Power == desired.PowerOn) {
		w.Why = fmt.Sprintf("it is %s, not %s", cmp.Or(string(f.State), "not there"), want)
		return w, true
	}
	return nil, true
}

// unfinished says what a resource still waits for beside its items.
func unfinished(r Reader, res Resource) string {
	switch x := res.(type) {
	case *Image:
		if x.Stage != ImageReady {
			return "the image is being added"
		}
	case *Account:
		if x.Deleting {
			return "what it owns is being removed from hosts"
		}
	case *VM:
		if x.Expunging {
			return "the host is taking it off"
		}
	case *Volume:
		if x.Expunging {
			return "the host is removing its file"
		}
		if vm, ok := Find[*VM](r, x.LeavingVMID); ok {
			return fmt.Sprintf("VM %s is letting go of it", vm.Name)
		}
	}
	return ""
}
