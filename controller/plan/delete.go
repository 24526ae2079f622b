package plan

import (
	"fmt"
	"slices"
	"strings"

	"shoal/controller/resource"
)

// inUse is the refusal of a deletion with what stands against it.
func inUse(what string, users []resource.Reason) *resource.Error {
	slices.SortFunc(users, func(a, b resource.Reason) int {
		if c := strings.Compare(string(a.Kind), string(b.Kind)); c != 0 {
			return c
		}
		return strings.Compare(a.Name+a.ID, b.Name+b.ID)
	})
	return &resource.Error{Code: resource.CodeInUse, Message: what + " is in use", Reasons: users}
}

// deletion collects what goes before anything does.
type deletion struct {
	tx     resource.Tx
	opt    DeleteOptions
	out    []Deleted
	doomed map[ref]resource.Resource
	order  []ref // parents before what belongs to them
	links  []link
	forget map[ref]bool
}

type ref struct {
	kind resource.Kind
	id   string
}

type link struct {
	from   ref
	target ref
}

func of(r resource.Resource) ref { return ref{r.Kind(), r.Base().ID} }

// Delete takes a resource out with all that belongs to it, and says what that was; with a transaction that is thrown
// away it is a dry run. What needs the resource stands in the way; so does, without Cascade, anything that belongs to it
// but the parts that make no sense alone (a group's rules, a network's ranges). VMs and data volumes go to the
// recycle bin. Deleting a host, when it is not connected, deletes records and never data.
func Delete(tx resource.Tx, kind resource.Kind, id string, opt DeleteOptions) ([]Deleted, error) {
	r := tx.Get(kind, id)
	if r == nil {
		return nil, resource.NotFound(kind, id)
	}
	one := func(action DeleteAction) []Deleted { return []Deleted{{kind, id, r.Base().Name, action}} }
	switch x := r.(type) {
	case *resource.VM:
		_, err := DestroyVM(tx, id)
		return one(ActionRecycle), err
	case *resource.Volume:
		_, err := DestroyVolume(tx, id)
		return one(ActionRecycle), err
	case *resource.NIC:
		return one(ActionDelete), DetachNIC(tx, id)
	case *resource.Account:
		return deleteAccount(tx, x, opt)
	case *resource.IPRange:
		return one(ActionDelete), removeIPRange(tx, x)
	case *resource.SecRule:
		if err := tx.Delete(kind, id); err != nil {
			return nil, err
		}
		_, err := NewTask(tx, resource.KindSecGroup, x.GroupID)
		return one(ActionDelete), err
	case *resource.Task:
		if x.State == resource.TaskRunning {
			return nil, resource.Conflict("task", "the task is running")
		}
		return one(ActionDelete), tx.Delete(kind, id)
	}
	d := &deletion{tx: tx, opt: opt, doomed: map[ref]resource.Resource{}, forget: map[ref]bool{}}
	if err := d.collect(r); err != nil {
		return nil, err
	}
	if err := d.check(r); err != nil {
		return nil, err
	}
	return d.out, d.run()
}

// collect walks down what belongs to a resource.
func (d *deletion) collect(r resource.Resource) error {
	if _, ok := d.doomed[of(r)]; ok {
		return nil
	}
	d.doomed[of(r)] = r
	d.order = append(d.order, of(r))
	switch x := r.(type) {
	case *resource.Host:
		if err := d.host(x); err != nil {
			return err
		}
	case *resource.Storage:
		// What is being removed has no user any more. Without the storage nobody can remove it: its data stays.
		for v := range resource.Referrers[*resource.Volume](d.tx, resource.KindStorage, x.ID) {
			if v.Expunging && d.opt.Cascade {
				d.forget[of(v)] = true
				if err := d.collect(v); err != nil {
					return err
				}
			}
		}
	case *resource.Image:
		if err := imageNeeded(d.tx, x); err != nil {
			return err
		}
	}
	for _, kind := range resource.Kinds() {
		for user := range d.tx.Referrers(kind, r.Kind(), r.Base().ID) {
			for _, rf := range user.Refs() {
				if rf.Kind != r.Kind() || rf.ID != r.Base().ID {
					continue
				}
				switch rf.Mode {
				case resource.Parent:
					if err := d.collect(user); err != nil {
						return err
					}
				case resource.Link:
					d.links = append(d.links, link{of(user), of(r)})
				case resource.Needs, resource.Weak:
				}
			}
		}
	}
	return nil
}

// host adds a host's VMs and the volumes on it: they are forgotten with it, if the caller says so and the host can't
// contradict.
func (d *deletion) host(h *resource.Host) error {
	if !d.opt.Cascade || d.tx.Observed().Host(h.ID).Connected {
		return nil
	}
	for vm := range resource.Referrers[*resource.VM](d.tx, resource.KindHost, h.ID) {
		if vm.HostID != h.ID {
			continue
		}
		d.forget[of(vm)] = true
		if err := d.collect(vm); err != nil {
			return err
		}
		for _, v := range volumesOf(d.tx, vm.ID) {
			if v.Type == resource.VolumeRoot || v.HostID == h.ID {
				d.forget[of(v)] = true
				if err := d.collect(v); err != nil {
					return err
				}
			}
		}
	}
	for v := range resource.Referrers[*resource.Volume](d.tx, resource.KindHost, h.ID) {
		if v.HostID == h.ID {
			d.forget[of(v)] = true
			if err := d.collect(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// imageNeeded refuses to delete an image that a volume is still being made from.
func imageNeeded(tx resource.Tx, i *resource.Image) error {
	var users []resource.Reason
	for v := range resource.Referrers[*resource.Volume](tx, resource.KindImage, i.ID) {
		if v.Backing == nil || v.Expunging {
			continue
		}
		st, ok := tx.Observed().Status(resource.VolumeHost(tx, v), resource.VolumeRef(v.ID))
		if !ok || st.Phase != "Ready" {
			users = append(users, resource.Reason{Kind: resource.KindVolume, ID: v.ID, Name: v.Name, Why: "it is not known to be made from the image yet"})
		}
	}
	if len(users) > 0 {
		return inUse("image "+i.Name, users)
	}
	return nil
}

func hostMayGo(tx resource.Tx, h *resource.Host) error {
	if h.State == resource.Enabled && tx.Observed().Host(h.ID).Connected {
		return resource.Conflict("host", "host %s is connected and enabled", h.Name).WithRemedy("disable it first, or stop its agent")
	}
	return nil
}

// check finds what stands in the way.
func (d *deletion) check(root resource.Resource) error {
	what := fmt.Sprintf("%s %s", root.Kind(), root.Base().Name)
	if h, ok := root.(*resource.Host); ok {
		if err := hostMayGo(d.tx, h); err != nil {
			return err
		}
	}
	var users []resource.Reason
	for _, r := range d.order {
		target := d.doomed[r]
		for _, kind := range resource.Kinds() {
			for user := range d.tx.Referrers(kind, r.kind, r.id) {
				if _, goes := d.doomed[of(user)]; goes {
					continue
				}
				for _, rf := range user.Refs() {
					if rf.Kind != r.kind || rf.ID != r.id || rf.Mode != resource.Needs {
						continue
					}
					if v, ok := user.(*resource.Volume); ok && rf.Field == "vm_id" && d.forget[r] && v.Type == resource.VolumeData {
						continue // detached below
					}
					users = append(users, resource.Reason{
						Kind: kind, ID: user.Base().ID, Name: user.Base().Name, Why: fmt.Sprintf("its %s is %s %s", rf.Field, r.kind, target.Base().Name),
					})
				}
			}
		}
	}
	if len(users) > 0 {
		return inUse(what, users).WithRemedy("remove or move what uses it first")
	}
	for _, r := range d.order {
		if h, ok := d.doomed[r].(*resource.Host); ok {
			if err := hostMayGo(d.tx, h); err != nil {
				return err
			}
		}
	}
	if d.opt.Cascade {
		return nil
	}
	for _, r := range d.order[1:] {
		switch r.kind {
		case resource.KindSecRule, resource.KindIPRange, resource.KindShare, resource.KindSession, resource.KindHostToken, resource.KindEnrolment:
		default:
			users = append(users, resource.Reason{Kind: r.kind, ID: r.id, Name: d.doomed[r].Base().Name, Why: "it would go with it"})
		}
	}
	for _, l := range d.links {
		switch n := d.tx.Get(l.from.kind, l.from.id).(type) {
		case *resource.NIC:
			users = append(users, resource.Reason{Kind: l.from.kind, ID: n.ID, Name: n.Name, Why: "it is a member: " + holderName(d.tx, n)})
		case *resource.User, *resource.Group:
			users = append(users, resource.Reason{Kind: l.from.kind, ID: n.Base().ID, Name: n.Base().Name, Why: "it would lose it"})
		}
	}
	if len(users) > 0 {
		return inUse(what, users).WithRemedy("delete these first, or all of it with --cascade (--dry-run shows what goes)")
	}
	return nil
}

// run makes it so: links first, then children before parents.
func (d *deletion) run() error {
	tx := d.tx
	for _, l := range d.links {
		if _, goes := d.doomed[l.from]; goes {
			continue
		}
		user := tx.Get(l.from.kind, l.from.id)
		u, ok := user.(resource.Unlinker)
		if !ok {
			return fmt.Errorf("unlink %s %s: it can't let go of %s %s", l.from.kind, l.from.id, l.target.kind, l.target.id)
		}
		if err := tx.Put(u.Unlink(l.target.kind, l.target.id)); err != nil {
			return err
		}
		d.out = append(d.out, Deleted{l.from.kind, l.from.id, user.Base().Name, ActionUnlink})
	}
	for r := range d.forget {
		if r.kind != resource.KindVM {
			continue
		}
		for _, v := range volumesOf(tx, r.id) {
			if _, goes := d.doomed[of(v)]; goes {
				continue
			}
			v = resource.Copy(v)
			v.VMID, v.Target = "", ""
			if err := tx.Put(v); err != nil {
				return err
			}
			d.out = append(d.out, Deleted{resource.KindVolume, v.ID, v.Name, ActionUnlink})
		}
	}
	slices.SortFunc(d.out, func(a, b Deleted) int { return strings.Compare(string(a.Kind)+a.ID, string(b.Kind)+b.ID) })
	rank := map[resource.Kind]int{}
	for i, k := range resource.Kinds() {
		rank[k] = i
	}
	slices.SortFunc(d.order, func(a, b ref) int {
		if c := rank[b.kind] - rank[a.kind]; c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	for _, r := range d.order {
		var err error
		switch x := d.doomed[r].(type) {
		case *resource.Session:
			err = endSession(tx, x)
		case *resource.Host:
			if err = tx.Delete(r.kind, r.id); err == nil {
				err = revokeHost(tx, x)
			}
		default:
			err = tx.Delete(r.kind, r.id)
		}
		if err != nil {
			return err
		}
		action := ActionDelete
		if d.forget[r] {
			action = ActionForget
		}
		d.out = append(d.out, Deleted{r.kind, r.id, d.doomed[r].Base().Name, action})
	}
	return nil
}
