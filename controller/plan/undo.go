package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// Undoing is what a request did to one resource.
type Undoing struct {
	Kind resource.Kind
	ID   string
	// Before is the resource as it was before the request, nil where the request made it; After as it was right after it, nil where it
	// was deleted.
	Before, After resource.Resource
	// Later are the changes since, oldest first.
	Later []LaterChange
}

// LaterChange is a change of a resource after a request that is to be undone.
type LaterChange struct {
	Request, Caller, Op string
	Fields              []string
}

// Undone is what an undo brought about: what was restored, and a line about each resource, restored or deleted.
type Undone struct {
	Restored []resource.Resource
	Deleted  []Deleted
}

// Undo takes back what a request did: what it made is deleted, what it deleted is made again under its own id, and fields that
// it changed become what they were. It goes the ways that users go, so everything that is refused to them is refused here. Where the world has
// moved on (later changes of the same fields, data that is gone, keys that are taken) it is refused whole, with a
// reason for each resource.
func Undo(tx resource.Tx, request string, what []Undoing) (Undone, error) {
	u := &undo{tx: tx, at: map[ref]Undoing{}}
	rank := map[resource.Kind]int{}
	for i, k := range resource.Kinds() {
		rank[k] = i
	}
	what = slices.DeleteFunc(slices.Clone(what), func(x Undoing) bool { return x.Kind == resource.KindTask })
	slices.SortStableFunc(what, func(a, b Undoing) int { return rank[a.Kind] - rank[b.Kind] })
	for _, x := range what {
		u.at[ref{x.Kind, x.ID}] = x
	}
	// What was deleted comes back first, parents before children, for the rest may name it. Then what was made goes, VMs first because
	// they hold volumes, the rest children first. Fields come last: some of them follow by themselves.
	for _, x := range what {
		if x.After == nil {
			u.note(x, u.recreate(x))
		}
	}
	made := slices.DeleteFunc(slices.Clone(what), func(x Undoing) bool { return x.Before != nil })
	slices.Reverse(made)
	slices.SortStableFunc(made, func(a, b Undoing) int { return boolInt(b.Kind == resource.KindVM) - boolInt(a.Kind == resource.KindVM) })
	for _, x := range made {
		if x.After != nil {
			u.note(x, u.remove(x))
		}
	}
	for _, x := range what {
		if x.Before != nil && x.After != nil {
			u.note(x, u.restore(x))
		}
	}
	if len(u.reasons) > 0 {
		return Undone{}, &resource.Error{
			Code: resource.CodeConflict, Field: "request", Message: "request " + request + " can't be undone any more", Reasons: u.reasons,
			Remedy: "undo the later requests first, or bring about by hand what you want",
		}
	}
	if len(u.out.Restored) == 0 && len(u.out.Deleted) == 0 {
		return Undone{}, resource.Conflict("request", "nothing that request %s did is left to be undone", request)
	}
	return u.out, nil
}

type undo struct {
	tx      resource.Tx
	at      map[ref]Undoing
	out     Undone
	reasons []resource.Reason
}

func (x Undoing) name() string {
	if x.After != nil {
		return x.After.Base().Name
	}
	return x.Before.Base().Name
}

// note keeps why something can't be undone.
func (u *undo) note(x Undoing, err error) {
	if err == nil {
		return
	}
	u.reasons = append(u.reasons, resource.Reason{Kind: x.Kind, ID: x.ID, Name: x.name(), Why: err.Error()})
	if e, ok := errors.AsType[*resource.Error](err); ok && len(e.Reasons) > 0 {
		last := &u.reasons[len(u.reasons)-1]
		last.Why = e.Message
		u.reasons = append(u.reasons, e.Reasons...)
	}
}

func (u *undo) restored(r resource.Resource) {
	u.out.Restored = append(u.out.Restored, r)
	u.out.Deleted = append(u.out.Deleted, Deleted{r.Kind(), r.Base().ID, r.Base().Name, ActionRestore})
}

// managed are the fields that plan sets by itself and that follow from others.
func managed(kind resource.Kind, field string) bool {
	switch field {
	case "created", "updated", "rev", "cause":
		return true
	}
	switch kind {
	case resource.KindVM:
		return slices.Contains([]string{"wish", "act", "act_seq", "ran", "force", "undefine"}, field)
	case resource.KindVolume:
		return slices.Contains([]string{"made", "last_host_id", "leaving_vm_id", "target", "path", "host_id", "storage_id", "tombstone_host_id"}, field)
	case resource.KindHost:
		return field == "vteps"
	case resource.KindL3:
		return field == "dhcp_server"
	case resource.KindImage:
		return slices.Contains([]string{"stage", "sha256", "bytes", "virtual_bytes", "format"}, field)
	default:
		return false
	}
}

// by says who changed a field last.
func (x Undoing) by(field string) string {
	for _, l := range slices.Backward(x.Later) {
		if field == "" || slices.Contains(l.Fields, field) {
			return fmt.Sprintf("by request %s (%s, %s)", l.Request, l.Caller, l.Op)
		}
	}
	return "since"
}

// remove deletes what the request made.
func (u *undo) remove(x Undoing) error {
	now := u.tx.Get(x.Kind, x.ID)
	if now == nil {
		return nil // with what it belonged to, or before
	}
	// What belongs to a VM goes with the VM.
	switch r := now.(type) {
	case *resource.NIC:
		if vm, ok := u.at[ref{resource.KindVM, r.VMID}]; ok && vm.Before == nil {
			return nil
		}
	case *resource.Volume:
		if vm, ok := u.at[ref{resource.KindVM, r.VMID}]; ok && vm.Before == nil && r.Type == resource.VolumeRoot {
			return nil
		}
		if !r.Destroyed.IsZero() || r.Expunging {
			return nil
		}
	case *resource.VM:
		if !r.Destroyed.IsZero() || r.Expunging {
			return nil
		}
	}
	// What somebody has changed since would be lost; what was changed and changed back would not.
	then, err := fields(x.After)
	if err != nil {
		return err
	}
	cur, err := fields(now)
	if err != nil {
		return err
	}
	differs := func(f string) bool { return !managed(x.Kind, f) && !bytes.Equal(then[f], cur[f]) }
	for _, l := range slices.Backward(x.Later) {
		if i := slices.IndexFunc(l.Fields, differs); i >= 0 && l.Caller != resource.CallerController {
			return resource.Conflict("", "%s of it was changed %s", l.Fields[i], x.by(l.Fields[i]))
		}
	}
	out, err := Delete(u.tx, x.Kind, x.ID, DeleteOptions{})
	if err != nil {
		return err
	}
	u.out.Deleted = append(u.out.Deleted, out...)
	return nil
}

// recreate makes again what the request deleted.
func (u *undo) recreate(x Undoing) error {
	if u.tx.Get(x.Kind, x.ID) != nil {
		return nil
	}
	old := x.Before.Clone()
	var r resource.Resource
	var err error
	switch n := old.(type) {
	case *resource.VM:
		return resource.Conflict("", "its disks are gone")
	case *resource.Volume:
		return resource.Conflict("", "its data is gone")
	case *resource.Host:
		return resource.Conflict("", "its key was taken from it: add the host anew")
	case *resource.Image:
		return resource.Conflict("", "its file is gone: add the image anew")
	case *resource.Session, *resource.Revocation, *resource.HostToken, *resource.Enrolment:
		return resource.Conflict("", "what lets somebody in is not brought back: let them in again")
	case *resource.NIC:
		r, err = put(u.reattach(n))
	case *resource.SecGroup:
		// Its rules have entries of their own.
		if r, err = put(CreateSecGroup(u.tx, n, true)); err == nil {
			r, err = u.state(r, n.State)
		}
	default:
		r, err = Create(u.tx, old)
	}
	if err != nil {
		return err
	}
	u.restored(r)
	return nil
}

// state puts back that a group was disabled.
func (u *undo) state(r resource.Resource, want resource.State) (resource.Resource, error) {
	g := resource.Copy(r.(*resource.SecGroup))
	if g.State == want {
		return r, nil
	}
	g.State = want
	return Update(u.tx, g)
}

// reattach gives a VM its NIC back, with the same MAC and address.
func (u *undo) reattach(n *resource.NIC) (*resource.NIC, error) {
	vm, err := live(u.tx, n.VMID)
	if err != nil {
		return nil, err
	}
	back, err := AttachNIC(u.tx, vm.ID, NICSpec{
		L3ID: n.L3ID, IP: n.IP, MAC: n.MAC, Model: n.Model, Default: n.Default, AntiSpoof: n.AntiSpoof, SecGroupIDs: n.SecGroupIDs,
	})
	if err != nil {
		return nil, err
	}
	// Under its own id, which is what names it on hosts and in scripts.
	again := resource.Copy(back)
	if err := u.tx.Delete(resource.KindNIC, back.ID); err != nil {
		return nil, err
	}
	again.ID, again.Name, again.Description, again.Owner, again.Tags = n.ID, n.Name, n.Description, n.Owner, n.Tags
	if !slices.ContainsFunc(nicsOf(u.tx, vm.ID), func(o *resource.NIC) bool { return o.Index == n.Index }) {
		again.Index = n.Index
	}
	if err := u.tx.Put(again); err != nil {
		return nil, err
	}
	// The task was made for the id that is gone.
	if t := TaskOf(u.tx, u.tx.Request().ID); t != nil && t.ResourceID == back.ID {
		t = resource.Copy(t)
		t.ResourceID = n.ID
		if err := u.tx.Put(t); err != nil {
			return nil, err
		}
	}
	return resource.Get[*resource.NIC](u.tx, n.ID)
}

// fields are a resource's own, by name.
func fields(r resource.Resource) (map[string]json.RawMessage, error) {
	b, err := desired.Canonical(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", r.Kind(), r.Base().ID, err)
	}
	var m map[string]json.RawMessage
	return m, json.Unmarshal(b, &m)
}

// restore puts the fields back that the request changed, unless they have changed since.
func (u *undo) restore(x Undoing) error {
	now := u.tx.Get(x.Kind, x.ID)
	if now == nil {
		return resource.Conflict("", "it was deleted %s", x.by(""))
	}
	before, err := fields(x.Before)
	if err != nil {
		return err
	}
	after, err := fields(x.After)
	if err != nil {
		return err
	}
	cur, err := fields(now)
	if err != nil {
		return err
	}
	var todo, moved []string
	acted := false
	for _, f := range keysOf(before, after) {
		if bytes.Equal(before[f], after[f]) {
			continue
		}
		if managed(x.Kind, f) {
			acted = acted || f == "act_seq"
			continue
		}
		switch {
		case bytes.Equal(cur[f], before[f]):
		case bytes.Equal(cur[f], after[f]):
			todo = append(todo, f)
		default:
			moved = append(moved, fmt.Sprintf("%s was changed again %s", f, x.by(f)))
		}
	}
	if len(moved) > 0 {
		return resource.Conflict("", "%s", strings.Join(moved, "; "))
	}
	if len(todo) == 0 {
		if acted {
			return resource.Conflict("", "a restart of its guest can't be taken back")
		}
		return nil
	}
	r, err := u.put(x, now, before, todo)
	if err != nil {
		return err
	}
	u.restored(r)
	return nil
}

func keysOf(maps ...map[string]json.RawMessage) []string {
	var out []string
	for _, m := range maps {
		for k := range m {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// put brings fields to what they were: each kind by the ways that lead there.
func (u *undo) put(x Undoing, now resource.Resource, before map[string]json.RawMessage, todo []string) (resource.Resource, error) {
	take := func(names ...string) bool {
		n := len(todo)
		todo = slices.DeleteFunc(todo, func(f string) bool { return slices.Contains(names, f) })
		return len(todo) < n
	}
	var err error
	switch old := x.Before.(type) {
	case *resource.VM:
		moved := take("host_id", "cluster_id")
		binned, powered := take("destroyed"), take("power")
		if moved && !powered {
			return nil, resource.Conflict("host_id", "it was brought to another host")
		}
		if take("expunging") {
			return nil, resource.Conflict("", "it is being removed for good")
		}
		if err = u.vm(old, binned, powered); err != nil {
			return nil, err
		}
	case *resource.Volume:
		if err = u.volume(old, now.(*resource.Volume), take); err != nil {
			return nil, err
		}
	case *resource.Storage:
		if take("cluster_ids") {
			err = clusters(old.ClusterIDs, now.(*resource.Storage).ClusterIDs,
				func(c string) error { _, err := AttachStorage(u.tx, x.ID, c); return err }, func(c string) error { _, err := DetachStorage(u.tx, x.ID, c); return err })
		}
	case *resource.L2:
		if take("cluster_ids") {
			err = clusters(old.ClusterIDs, now.(*resource.L2).ClusterIDs,
				func(c string) error { _, err := AttachL2(u.tx, x.ID, c); return err }, func(c string) error { _, err := DetachL2(u.tx, x.ID, c); return err })
		}
	case *resource.VXLANPool:
		if take("clusters") {
			err = u.pool(old, now.(*resource.VXLANPool))
		}
	case *resource.NIC:
		if !old.Default {
			take("default") // the NIC that was the default one before takes it back
		}
	}
	if err != nil {
		return nil, err
	}
	if len(todo) > 0 {
		cur, err := fields(u.tx.Get(x.Kind, x.ID))
		if err != nil {
			return nil, err
		}
		for _, f := range todo {
			delete(cur, f)
			if v, ok := before[f]; ok {
				cur[f] = v
			}
		}
		b, err := desired.Canonical(cur)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", x.Kind, x.ID, err)
		}
		changed, err := resource.Decode(x.Kind, b)
		if err != nil {
			return nil, err
		}
		if _, err := Update(u.tx, changed); err != nil {
			return nil, err
		}
	}
	return u.tx.Get(x.Kind, x.ID), nil
}

// vm brings a VM back from the recycle bin, and its power to what it was.
func (u *undo) vm(old *resource.VM, binned, powered bool) error {
	if binned {
		if old.Destroyed.IsZero() {
			if _, err := RecoverVM(u.tx, old.ID); err != nil {
				return err
			}
		} else if _, err := DestroyVM(u.tx, old.ID); err != nil {
			return err
		}
	}
	if !powered {
		return nil
	}
	now, err := resource.Get[*resource.VM](u.tx, old.ID)
	if err != nil || now.Power == old.Power {
		return err
	}
	switch {
	case old.Power == desired.PowerOff:
		_, err = StopVM(u.tx, old.ID, StopOptions{})
	case old.Power == desired.PowerPaused && now.Power == desired.PowerOn:
		_, err = PauseVM(u.tx, old.ID)
	case old.Power == desired.PowerPaused:
		err = resource.Conflict("power", "what was in its memory while it was paused is gone")
	case now.Power == desired.PowerPaused:
		_, err = ResumeVM(u.tx, old.ID)
	default:
		_, err = StartVM(u.tx, old.ID, "")
	}
	return err
}

// volume brings a volume back from the recycle bin, and to the VM that had it.
func (u *undo) volume(old, now *resource.Volume, take func(...string) bool) error {
	if take("expunging") {
		return resource.Conflict("", "its data is being removed")
	}
	if take("bytes") {
		return resource.Conflict("", "a volume can't be made smaller")
	}
	if take("destroyed") {
		if !old.Destroyed.IsZero() {
			_, err := DestroyVolume(u.tx, old.ID)
			return err
		}
		if _, err := RecoverVolume(u.tx, old.ID); err != nil {
			return err
		}
	}
	if !take("vm_id") {
		return nil
	}
	if now.VMID != "" {
		if _, err := DetachVolume(u.tx, old.ID); err != nil {
			return err
		}
	}
	if old.VMID != "" {
		if _, err := AttachVolume(u.tx, old.ID, old.VMID); err != nil {
			return err
		}
	}
	return nil
}

// clusters attaches and detaches what differs.
func clusters(old, now []string, attach, detach func(string) error) error {
	for _, c := range old {
		if !slices.Contains(now, c) {
			if err := attach(c); err != nil {
				return err
			}
		}
	}
	for _, c := range now {
		if !slices.Contains(old, c) {
			if err := detach(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *undo) pool(old, now *resource.VXLANPool) error {
	for _, c := range old.Clusters {
		if !slices.Contains(now.Clusters, c) {
			if _, err := AttachVXLANPool(u.tx, old.ID, c.ClusterID, c.CIDR); err != nil {
				return err
			}
		}
	}
	for _, c := range now.Clusters {
		if !slices.ContainsFunc(old.Clusters, func(o resource.ClusterVTEP) bool { return o.ClusterID == c.ClusterID }) {
			if _, err := DetachVXLANPool(u.tx, old.ID, c.ClusterID); err != nil {
				return err
			}
		}
	}
	return nil
}
