package plan_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

// undoing is what happened between two views.
func undoing(before, after resource.Reader) []plan.Undoing {
	var out []plan.Undoing
	for _, kind := range resource.Kinds() {
		seen := map[string]bool{}
		for _, r := range []resource.Reader{before, after} {
			for x := range r.All(kind) {
				id := x.Base().ID
				u := plan.Undoing{Kind: kind, ID: id, Before: before.Get(kind, id), After: after.Get(kind, id)}
				if !seen[id] && u.Before != u.After {
					out = append(out, u)
				}
				seen[id] = true
			}
		}
	}
	return out
}

// contents are all resources but tasks, without what every change changes.
func contents(r resource.Reader) map[string]string {
	out := map[string]string{}
	for _, kind := range resource.Kinds() {
		for x := range r.All(kind) {
			if kind == resource.KindTask {
				continue
			}
			c := x.Clone()
			b := c.Base()
			b.Created, b.Updated, b.Rev, b.Cause = time.Time{}, time.Time{}, 0, ""
			switch v := c.(type) {
			case *resource.VM: // counters go on, and a VM that may have run may have run
				v.Wish, v.ActSeq, v.Act, v.Ran, v.Force = 0, 0, nil, false, false
			case *resource.Volume:
				v.Made, v.LastHostID, v.LeavingVMID = false, "", ""
			}
			text, err := desired.Canonical(c)
			if err != nil {
				panic(err)
			}
			out[string(kind)+" "+b.Name+" "+b.ID] = string(text)
		}
	}
	return out
}

func undo(e *plantest.Example, what []plan.Undoing) (plan.Undone, error) {
	var out plan.Undone
	err := e.Do("audit.undo", func(tx resource.Tx) (err error) {
		out, err = plan.Undo(tx, "r", what)
		return err
	})
	return out, err
}

// TestUndo_RestoresEverything: after the undo all is as it was, whatever was done.
func TestUndo_RestoresEverything(t *testing.T) {
	for name, do := range map[string]func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error{
		"update a VM": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			vm = resource.Copy(vm)
			vm.Name, vm.CPUs, vm.Tags, vm.Description = "other", 2, []string{"x"}, "d"
			_, err := plan.Update(tx, vm)
			return err
		},
		"stop a VM": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			_, err := plan.StopVM(tx, vm.ID, plan.StopOptions{})
			return err
		},
		"pause a VM": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			_, err := plan.PauseVM(tx, vm.ID)
			return err
		},
		"destroy a VM with a data volume": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			_, err := plan.DestroyVM(tx, vm.ID)
			return err
		},
		"detach a volume": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			for v := range resource.Referrers[*resource.Volume](tx, resource.KindVM, vm.ID) {
				if v.Type == resource.VolumeData {
					_, err := plan.DetachVolume(tx, v.ID)
					return err
				}
			}
			return nil
		},
		"detach the default NIC": func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			for n := range resource.Referrers[*resource.NIC](tx, resource.KindVM, vm.ID) {
				if n.Default {
					return plan.DetachNIC(tx, n.ID)
				}
			}
			return nil
		},
		"attach a NIC": func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error {
			_, err := plan.AttachNIC(tx, vm.ID, plan.NICSpec{L3ID: e.IDs["outer"], Default: true})
			return err
		},
		"delete a group with its rules": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			_, err := plan.Delete(tx, resource.KindSecGroup, e.IDs["web"], plan.DeleteOptions{Cascade: true})
			return err
		},
		"delete a rule": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			_, err := plan.Delete(tx, resource.KindSecRule, e.IDs["web-http"], plan.DeleteOptions{})
			return err
		},
		"delete an offering": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			_, err := plan.Delete(tx, resource.KindOffering, e.IDs["small"], plan.DeleteOptions{})
			return err
		},
		"add a range and a rule": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			if _, err := plan.Create(tx, &resource.IPRange{
				L3ID: e.IDs["inner"], Start: netip.MustParseAddr("192.168.0.220"), End: netip.MustParseAddr("192.168.0.230"), Bits: 24, Gateway: netip.MustParseAddr("192.168.0.1"),
			}); err != nil {
				return err
			}
			_, err := plan.Create(tx, &resource.SecRule{GroupID: e.IDs["db"], Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: 1, ToPort: 2})
			return err
		},
		"change a network": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			l, err := resource.Get[*resource.L3](tx, e.IDs["inner"])
			if err != nil {
				return err
			}
			l = resource.Copy(l)
			l.DNS, l.Domain, l.MTU = nil, "", 1400
			_, err = plan.Update(tx, l)
			return err
		},
		"take a storage from a cluster": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			_, err := plan.DetachStorage(tx, e.IDs["nfs"], e.IDs["c2"])
			return err
		},
		"take a pool from a cluster": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			_, err := plan.DetachVXLANPool(tx, e.IDs["pool"], e.IDs["c2"])
			return err
		},
		"disable a host": func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
			h, err := resource.Get[*resource.Host](tx, e.IDs["h3"])
			if err != nil {
				return err
			}
			h = resource.Copy(h)
			h.State = resource.Disabled
			_, err = plan.Update(tx, h)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := plantest.NewExample(1, 3)
			spec := e.VMSpec("web1")
			spec.HostID = e.IDs["h1"]
			spec.DataVolumes = []plan.VolumeSpec{{Name: "data", Bytes: 1 << 30}}
			vm, err := e.CreateVM(spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Settle(); err != nil {
				t.Fatal(err)
			}
			before := e.View()
			now, err := resource.Get[*resource.VM](before, vm.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Do("test", func(tx resource.Tx) error { return do(e, tx, now) }); err != nil {
				t.Fatal(err)
			}
			what := undoing(before, e.View())
			if len(what) == 0 || cmp.Equal(contents(before), contents(e.View())) {
				t.Fatal("nothing was done")
			}
			if _, err := undo(e, what); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(contents(before), contents(e.View())); diff != "" {
				t.Errorf("after the undo (-before +after):\n%s", diff)
			}
			if _, err := undo(e, what); err == nil || !strings.Contains(err.Error(), "nothing that request") {
				t.Errorf("undone twice: %v", err)
			}
		})
	}
}

// TestUndo_Create: what was made goes to where deletion leads.
func TestUndo_Create(t *testing.T) {
	e := plantest.NewExample(1, 3)
	before := e.View()
	spec := e.VMSpec("web1")
	spec.DataVolumes = []plan.VolumeSpec{{Name: "data", Bytes: 1 << 30}}
	vm, err := e.CreateVM(spec)
	if err != nil {
		t.Fatal(err)
	}
	what := undoing(before, e.View())
	if err := e.Settle(); err != nil { // the controller's own changes stand in nobody's way
		t.Fatal(err)
	}
	done, err := undo(e, what)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, d := range done.Deleted {
		lines = append(lines, string(d.Kind)+" "+d.Name+" "+string(d.Action))
	}
	if diff := cmp.Diff([]string{"vm web1 recycle", "volume data recycle"}, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	now, err := resource.Get[*resource.VM](e.View(), vm.ID)
	if err != nil || now.Destroyed.IsZero() || now.Power != desired.PowerOff {
		t.Errorf("the VM is %+v, %v", now, err)
	}
}

// TestUndo_Refuses: where the world has moved on it says for each resource why, and changes nothing.
func TestUndo_Refuses(t *testing.T) {
	later := func(fields ...string) []plan.LaterChange {
		return []plan.LaterChange{{Request: "r2", Caller: "bob", Op: "x.update", Fields: fields}}
	}
	for _, c := range []struct {
		name  string
		do    func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error
		then  func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error
		later []plan.LaterChange
		says  string
	}{
		{
			"the same field changed again",
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				vm = resource.Copy(vm)
				vm.CPUs = 2
				_, err := plan.Update(tx, vm)
				return err
			},
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				vm = resource.Copy(tx.Get(resource.KindVM, vm.ID).(*resource.VM))
				vm.CPUs = 3
				_, err := plan.Update(tx, vm)
				return err
			},
			later("cpus"), "cpus was changed again by request r2 (bob, x.update)",
		},
		{
			"a dependent came",
			func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
				_, err := plan.Create(tx, &resource.SecGroup{Meta: resource.Meta{ID: "g", Name: "g"}})
				return err
			},
			func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				for n := range resource.Referrers[*resource.NIC](tx, resource.KindVM, vm.ID) {
					if _, err := plan.SetNICGroups(tx, n.ID, []string{"g"}, nil); err != nil {
						return err
					}
				}
				return nil
			},
			nil, "is in use",
		},
		{
			"an address was taken",
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				for n := range resource.Referrers[*resource.NIC](tx, resource.KindVM, vm.ID) {
					return plan.DetachNIC(tx, n.ID)
				}
				return nil
			},
			func(e *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				_, err := plan.AttachNIC(tx, vm.ID, plan.NICSpec{L3ID: e.IDs["inner"], IP: netip.MustParseAddr("192.168.0.77")})
				return err
			},
			nil, "192.168.0.77 is taken",
		},
		{
			"its target is gone",
			func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
				_, err := plan.Delete(tx, resource.KindSecRule, e.IDs["web-http"], plan.DeleteOptions{})
				return err
			},
			func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
				_, err := plan.Delete(tx, resource.KindSecGroup, e.IDs["web"], plan.DeleteOptions{Cascade: true})
				return err
			},
			nil, "no secgroup",
		},
		{
			"a restart",
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				_, err := plan.RebootVM(tx, vm.ID)
				return err
			},
			nil, nil, "can't be taken back",
		},
		{
			"data is going",
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				_, err := plan.DestroyVM(tx, vm.ID)
				return err
			},
			func(_ *plantest.Example, tx resource.Tx, vm *resource.VM) error {
				_, err := plan.ExpungeVM(tx, vm.ID)
				return err
			},
			later("expunging"), "being removed for good",
		},
		{
			"it was deleted",
			func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
				o, err := resource.Get[*resource.Offering](tx, e.IDs["small"])
				if err != nil {
					return err
				}
				o = resource.Copy(o)
				o.CPUs = 3
				_, err = plan.Update(tx, o)
				return err
			},
			func(e *plantest.Example, tx resource.Tx, _ *resource.VM) error {
				_, err := plan.Delete(tx, resource.KindOffering, e.IDs["small"], plan.DeleteOptions{})
				return err
			},
			later("id"), "it was deleted by request r2",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := plantest.NewExample(1, 3)
			spec := e.VMSpec("web1")
			spec.NICs = []plan.NICSpec{{L3ID: e.IDs["inner"], IP: netip.MustParseAddr("192.168.0.77")}}
			vm, err := e.CreateVM(spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Settle(); err != nil {
				t.Fatal(err)
			}
			before := e.View()
			now, err := resource.Get[*resource.VM](before, vm.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Do("test", func(tx resource.Tx) error { return c.do(e, tx, now) }); err != nil {
				t.Fatal(err)
			}
			what := undoing(before, e.View())
			for i := range what {
				what[i].Later = c.later
			}
			if c.then != nil {
				if err := e.Do("then", func(tx resource.Tx) error { return c.then(e, tx, now) }); err != nil {
					t.Fatal(err)
				}
			}
			was := contents(e.View())
			_, err = undo(e, what)
			if !resource.HasCode(err, resource.CodeConflict) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a conflict that says %q", err, c.says)
			}
			if diff := cmp.Diff(was, contents(e.View())); diff != "" {
				t.Errorf("a refused undo changed (-before +after):\n%s", diff)
			}
		})
	}
}
