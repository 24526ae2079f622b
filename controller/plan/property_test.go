package plan_test

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

type tester interface {
	Helper()
	Errorf(string, ...any)
	Fatalf(string, ...any)
}

type documents map[string]map[desired.Ref]desired.Item

func renderHost(t tester, d *plan.Renderer, host string) map[desired.Ref]desired.Item {
	t.Helper()
	items, _, err := d.Render(host)
	if err != nil {
		t.Fatalf("render %s: %v", host, err)
	}
	out := map[desired.Ref]desired.Item{}
	for i, it := range items {
		if i > 0 && items[i-1].Ref().Compare(it.Ref()) >= 0 {
			t.Errorf("items of %s are not in order", host)
		}
		checkItem(t, it)
		out[it.Ref()] = it
	}
	for _, it := range items {
		for _, n := range it.Needs {
			if _, ok := out[n]; !ok {
				t.Errorf("%s of %s needs %s, which is not there", it.Ref(), host, n)
			}
		}
	}
	return out
}

func renderAll(t tester, r resource.Reader) documents {
	t.Helper()
	d := plan.NewRenderer(r)
	out := documents{}
	for h := range r.All(resource.KindHost) {
		out[h.Base().ID] = renderHost(t, d, h.Base().ID)
	}
	return out
}

// same compares what is content, which the cause is not.
func same(a, b map[desired.Ref]desired.Item) bool {
	return maps.EqualFunc(a, b, desired.Item.SameContent)
}

// affectedBy is the union over all changes between two views.
func affectedBy(before, after resource.Reader) map[string]struct{} {
	hosts := map[string]struct{}{}
	for _, kind := range resource.Kinds() {
		old := map[string]resource.Resource{}
		for r := range before.All(kind) {
			old[r.Base().ID] = r
		}
		add := func(a, b resource.Resource) {
			some, all := plan.Affected(a, b, before, after)
			maps.Copy(hosts, some)
			for h := range after.All(resource.KindHost) {
				if all {
					hosts[h.Base().ID] = struct{}{}
				}
			}
		}
		for r := range after.All(kind) {
			o := old[r.Base().ID]
			delete(old, r.Base().ID)
			if o != r {
				add(o, r)
			}
		}
		for _, o := range old {
			add(o, nil)
		}
	}
	return hosts
}

// reversed gives everything whose order is not promised the other way round.
type reversed struct{ resource.Reader }

func (r reversed) Referrers(from, kind resource.Kind, id string) iter.Seq[resource.Resource] {
	all := slices.Collect(r.Reader.Referrers(from, kind, id))
	slices.Reverse(all)
	return slices.Values(all)
}

// checkInvariants holds a site to what must be true at any moment.
func checkInvariants(t tester, e *plantest.Example) {
	t.Helper()
	v := e.View()
	docs := renderAll(t, v)
	for host, doc := range renderAll(t, reversed{v}) {
		if !same(docs[host], doc) || !maps.EqualFunc(docs[host], doc, func(a, b desired.Item) bool { return a.Cause == b.Cause }) {
			t.Errorf("the document of %s depends on order:\n%s", host, cmp.Diff(docs[host], doc))
		}
	}
	domains, macs, volumes := map[string]string{}, map[string]string{}, map[string]string{}
	for host, doc := range docs {
		for ref, it := range doc {
			switch ref.Kind {
			case desired.KindDomain:
				if other, ok := domains[ref.ID]; ok {
					t.Errorf("VM %s is on %s and %s", ref.ID, other, host)
				}
				domains[ref.ID] = host
				d, err := desired.DecodeSpec[desired.Domain](it)
				if err != nil {
					t.Fatalf("%v", err)
				}
				for _, n := range d.NICs {
					if other, ok := macs[n.MAC]; ok {
						t.Errorf("MAC %s is of %s and %s", n.MAC, other, ref.ID)
					}
					macs[n.MAC] = ref.ID
				}
				for _, disk := range d.Disks {
					if other, ok := volumes[disk.Path+disk.Volume]; ok {
						t.Errorf("volume %s is of %s and %s", disk.Volume, other, ref.ID)
					}
					volumes[disk.Path+disk.Volume] = ref.ID
					if vol, ok := doc[resource.VolumeRef(disk.Volume)]; !ok {
						t.Errorf("disk %s of %s has no volume on %s", disk.Volume, ref.ID, host)
					} else if s, _ := desired.DecodeSpec[desired.Volume](vol); s.Absent {
						t.Errorf("disk %s of %s is a tombstone", disk.Volume, ref.ID)
					}
				}
			default:
			}
		}
	}
	type onWire struct {
		l2 string
		ip netip.Addr
	}
	ips := map[onWire]string{}
	for n := range resource.All[*resource.NIC](v) {
		l3, _ := resource.Find[*resource.L3](v, n.L3ID)
		if !n.IP.IsValid() {
			continue
		}
		k := onWire{l3.L2ID, n.IP}
		if other, ok := ips[k]; ok {
			t.Errorf("%s is of %s and %s", n.IP, other, n.ID)
		}
		ips[k] = n.ID
	}
	for h := range resource.All[*resource.Host](v) {
		var u resource.HostUse
		for vm := range resource.Referrers[*resource.VM](v, resource.KindHost, h.ID) {
			if vm.Power != desired.PowerOff {
				u.CPUs += vm.CPUs
				u.MemoryMiB += uint64(vm.MemoryMiB)
			}
		}
		if ob := v.Observed().Host(h.ID); ob.Reported {
			if cpus, mem := resource.HostRoom(v, h, ob.Facts.Inventory, u); cpus < 0 || mem < 0 {
				t.Errorf("host %s is over its capacity: %d CPUs, %d MiB left", h.Name, cpus, mem)
			}
		}
	}
}

// anyOf draws one resource of a kind; ok is false when there is none.
func anyOf[T resource.Resource](t *rapid.T, r resource.Reader, label string) (T, bool) {
	all := slices.Collect(resource.All[T](r))
	if len(all) == 0 {
		var zero T
		return zero, false
	}
	return all[rapid.IntRange(0, len(all)-1).Draw(t, label)], true
}

func TestRandomOperations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := plantest.NewExample(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 3).Draw(t, "hosts"))
		for _, id := range []string{"acme", "emca"} {
			a := &resource.Account{Meta: resource.Meta{ID: id, Name: id}, State: resource.Enabled, Password: "secret-hash", Quotas: map[resource.Quota]uint64{resource.QuotaVMs: 7}}
			if err := e.Do("account.create", func(tx resource.Tx) error { return tx.Put(a) }); err != nil {
				t.Fatalf("%v", err)
			}
		}
		docs := renderAll(t, e.View())
		last := e.View()
		// follow renders what changed since the last call and compares it with everything rendered anew.
		follow := func() {
			now := e.View()
			d := plan.NewRenderer(now)
			hosts := affectedBy(last, now)
			for h := range hosts {
				if now.Get(resource.KindHost, h) == nil {
					delete(docs, h)
					continue
				}
				docs[h] = renderHost(t, d, h)
			}
			for h, full := range renderAll(t, now) {
				if !same(full, docs[h]) {
					t.Fatalf("host %s: the incremental document differs from the full one (-full +incremental):\n%s", h, cmp.Diff(full, docs[h]))
				}
			}
			last = now
		}
		try := func(op string, fn func(tx resource.Tx) error) {
			err := e.Do(op, fn)
			if err != nil {
				if e := (*resource.Error)(nil); !errors.As(err, &e) {
					t.Fatalf("%s: %v is not an error for users", op, err)
				}
				if resource.HasCode(err, resource.CodeInternal) {
					t.Fatalf("%s: %v", op, err)
				}
			}
			follow()
		}
		onVM := func(op string, fn func(resource.Tx, string) (*resource.VM, error)) func(*rapid.T) {
			return func(t *rapid.T) {
				if vm, ok := anyOf[*resource.VM](t, e.View(), "vm"); ok {
					try(op, func(tx resource.Tx) error { _, err := fn(tx, vm.ID); return err })
				}
			}
		}
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				n++
				spec := e.VMSpec(fmt.Sprintf("v%d", n))
				spec.NICs[0].L3ID = e.IDs[rapid.SampledFrom([]string{"inner", "outer"}).Draw(t, "l3")]
				spec.NICs[0].SecGroupIDs = rapid.SampledFrom([][]string{nil, {e.IDs["web"]}, {e.IDs["db"]}, {e.IDs["db"], e.IDs["web"]}}).Draw(t, "groups")
				spec.Stopped = rapid.Bool().Draw(t, "stopped")
				if rapid.Bool().Draw(t, "shared") {
					spec.RootStorageID = e.IDs["nfs"]
				}
				if rapid.Bool().Draw(t, "data") {
					spec.DataVolumes = []plan.VolumeSpec{{Bytes: 1 << 30}}
				}
				spec.MemoryMiB = rapid.SampledFrom([]int{512, 4096, 8192}).Draw(t, "memory")
				try("vm.create", func(tx resource.Tx) error { _, err := plan.CreateVM(tx, spec); return err })
			},
			"start": func(t *rapid.T) {
				vm, ok := anyOf[*resource.VM](t, e.View(), "vm")
				if !ok {
					return
				}
				host := ""
				if h, ok := anyOf[*resource.Host](t, e.View(), "host"); ok && rapid.Bool().Draw(t, "chosen") {
					host = h.ID
				}
				try("vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, vm.ID, host); return err })
			},
			"stop":    onVM("vm.stop", func(tx resource.Tx, id string) (*resource.VM, error) { return plan.StopVM(tx, id, plan.StopOptions{}) }),
			"reboot":  onVM("vm.reboot", plan.RebootVM),
			"pause":   onVM("vm.pause", plan.PauseVM),
			"resume":  onVM("vm.resume", plan.ResumeVM),
			"destroy": onVM("vm.destroy", plan.DestroyVM),
			"recover": onVM("vm.recover", plan.RecoverVM),
			"expunge": onVM("vm.expunge", plan.ExpungeVM),
			"attach nic": func(t *rapid.T) {
				if vm, ok := anyOf[*resource.VM](t, e.View(), "vm"); ok {
					spec := plan.NICSpec{L3ID: e.IDs[rapid.SampledFrom([]string{"inner", "outer"}).Draw(t, "l3")], AntiSpoof: rapid.Bool().Draw(t, "spoof"), Default: rapid.Bool().Draw(t, "default")}
					try("nic.attach", func(tx resource.Tx) error { _, err := plan.AttachNIC(tx, vm.ID, spec); return err })
				}
			},
			"detach nic": func(t *rapid.T) {
				if nic, ok := anyOf[*resource.NIC](t, e.View(), "nic"); ok {
					try("nic.detach", func(tx resource.Tx) error { return plan.DetachNIC(tx, nic.ID) })
				}
			},
			"groups": func(t *rapid.T) {
				nic, ok := anyOf[*resource.NIC](t, e.View(), "nic")
				g, ok2 := anyOf[*resource.SecGroup](t, e.View(), "group")
				if !ok || !ok2 {
					return
				}
				add, remove := []string{g.ID}, []string(nil)
				if rapid.Bool().Draw(t, "remove") {
					add, remove = remove, add
				}
				try("nic.groups", func(tx resource.Tx) error { _, err := plan.SetNICGroups(tx, nic.ID, add, remove); return err })
			},
			"group state": func(t *rapid.T) {
				if g, ok := anyOf[*resource.SecGroup](t, e.View(), "group"); ok {
					g = resource.Copy(g)
					g.State = rapid.SampledFrom([]resource.State{resource.Enabled, resource.Disabled}).Draw(t, "state")
					try("secgroup.update", func(tx resource.Tx) error { _, err := plan.Update(tx, g); return err })
				}
			},
			"rule": func(t *rapid.T) {
				g, ok := anyOf[*resource.SecGroup](t, e.View(), "group")
				if !ok {
					return
				}
				rule := &resource.SecRule{
					GroupID: g.ID, Direction: rapid.SampledFrom([]resource.Direction{resource.Ingress, resource.Egress}).Draw(t, "direction"), Protocol: desired.ProtoTCP,
					FromPort: 22, ToPort: rapid.IntRange(22, 25).Draw(t, "port"),
				}
				if remote, ok := anyOf[*resource.SecGroup](t, e.View(), "remote"); ok && rapid.Bool().Draw(t, "has remote") {
					rule.RemoteGroupID = remote.ID
				}
				try("secrule.create", func(tx resource.Tx) error { _, err := plan.Create(tx, rule); return err })
			},
			"mtu": func(t *rapid.T) {
				if l3, ok := anyOf[*resource.L3](t, e.View(), "l3"); ok {
					l3 = resource.Copy(l3)
					l3.MTU = rapid.SampledFrom([]int{0, 1400, 9000}).Draw(t, "mtu")
					l3.NoDHCP = rapid.Bool().Draw(t, "no dhcp")
					try("l3.update", func(tx resource.Tx) error { _, err := plan.Update(tx, l3); return err })
				}
			},
			"describe": func(t *rapid.T) {
				kind := rapid.SampledFrom(resource.Kinds()).Draw(t, "kind")
				all := slices.Collect(e.View().All(kind))
				if len(all) == 0 {
					return
				}
				r := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")].Clone()
				n++
				m := r.Base()
				m.Name, m.Description, m.Tags = fmt.Sprintf("n%d", n), "was changed", []string{"prod", m.Name}
				m.Owner = rapid.SampledFrom([]string{"acme", "emca", "nobody", resource.AdminAccount, ""}).Draw(t, "owner")
				try(string(kind)+".update", func(tx resource.Tx) error { return tx.Put(r) })
			},
			"volume": func(t *rapid.T) {
				try("volume.create", func(tx resource.Tx) error {
					_, err := plan.CreateVolume(tx, plan.VolumeSpec{Name: "d", Bytes: 1 << 30})
					return err
				})
			},
			"attach volume": func(t *rapid.T) {
				v, ok := anyOf[*resource.Volume](t, e.View(), "volume")
				vm, ok2 := anyOf[*resource.VM](t, e.View(), "vm")
				if ok && ok2 {
					try("volume.attach", func(tx resource.Tx) error { _, err := plan.AttachVolume(tx, v.ID, vm.ID); return err })
				}
			},
			"change volume": func(t *rapid.T) {
				v, ok := anyOf[*resource.Volume](t, e.View(), "volume")
				if !ok {
					return
				}
				fn := rapid.SampledFrom([]func(resource.Tx, string) (*resource.Volume, error){
					plan.DetachVolume, plan.DestroyVolume, plan.RecoverVolume, plan.ExpungeVolume,
					func(tx resource.Tx, id string) (*resource.Volume, error) {
						return plan.ResizeVolume(tx, id, v.Bytes+1<<20)
					},
				}).Draw(t, "change")
				try("volume.change", func(tx resource.Tx) error { _, err := fn(tx, v.ID); return err })
			},
			"delete": func(t *rapid.T) {
				kind := rapid.SampledFrom([]resource.Kind{
					resource.KindHost, resource.KindSecGroup, resource.KindSecRule, resource.KindL3, resource.KindL2, resource.KindIPRange, resource.KindStorage, resource.KindImage,
				}).Draw(t, "kind")
				// Mostly not: a site without networks is a dull one.
				if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
					return
				}
				all := slices.Collect(e.View().All(kind))
				if len(all) == 0 {
					return
				}
				r := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
				cascade := rapid.Bool().Draw(t, "cascade")
				try(string(kind)+".delete", func(tx resource.Tx) error {
					_, err := plan.Delete(tx, kind, r.Base().ID, plan.DeleteOptions{Cascade: cascade})
					return err
				})
			},
			"cable": func(t *rapid.T) {
				if h, ok := anyOf[*resource.Host](t, e.View(), "host"); ok {
					e.SetConnected(h.ID, rapid.Bool().Draw(t, "connected"))
				}
			},
			"address of a host": func(t *rapid.T) {
				if h, ok := anyOf[*resource.Host](t, e.View(), "host"); ok {
					e.Connect(h.ID, plantest.Machine(rapid.IntRange(1, 100).Draw(t, "address")))
				}
			},
			"publish": func(t *rapid.T) {
				if err := e.Publish(); err != nil {
					t.Fatalf("publish: %v", err)
				}
			},
			"work": func(*rapid.T) { e.Work() },
			"tick": func(t *rapid.T) {
				if _, err := e.Tick(); err != nil {
					t.Fatalf("tick: %v", err)
				}
				follow()
			},
			"a day passes": func(*rapid.T) { e.Now = e.Now.Add(plan.VMKept) },
			"look":         func(t *rapid.T) { checkInvariants(t, e) },
		})
		// Once all hosts are there and have done their work, everything that was asked for has come to an end.
		for h := range resource.All[*resource.Host](e.View()) {
			e.SetConnected(h.ID, true)
		}
		if err := e.Settle(); err != nil {
			t.Fatalf("settle: %v", err)
		}
		follow()
		checkInvariants(t, e)
		if plan.Due(e.View(), e.Now) {
			t.Errorf("something is still due")
		}
		checkRebuild(t, e)
		for vm := range resource.All[*resource.VM](e.View()) {
			if vm.Expunging {
				t.Errorf("VM %s is still being expunged", vm.Name)
			}
			if vm.Power == desired.PowerOn {
				if st := resource.Derive(e.View(), vm).(resource.VMStatus); st.State != resource.VMRunning {
					t.Errorf("VM %s is %s", vm.Name, st.State)
				}
			}
		}
		for v := range resource.All[*resource.Volume](e.View()) {
			// Somebody must be left to remove it.
			hosts := len(slices.Collect(e.View().All(resource.KindHost)))
			if v.Expunging && hosts > 0 || v.LeavingVMID != "" {
				t.Errorf("volume %s is still on its way: %+v", v.Name, v)
			}
		}
		for task := range resource.All[*resource.Task](e.View()) {
			if task.State == resource.TaskRunning {
				t.Errorf("task %s is still running: %+v", task.Op, plan.Converge(e.View(), task))
			}
		}
	})
}

func TestUnrelatedResourcesChangeNothing(t *testing.T) {
	e := plantest.NewExample(1, 3)
	spec := e.VMSpec("a")
	spec.HostID = e.IDs["h1"]
	mustVM(t, e, spec)
	settle(t, e)
	unchanged := func(what string, before documents, except ...string) {
		t.Helper()
		for h, doc := range renderAll(t, e.View()) {
			if old, ok := before[h]; ok && !slices.Contains(except, h) {
				if !same(old, doc) {
					t.Errorf("%s changed the document of %s:\n%s", what, h, cmp.Diff(old, doc))
				}
			}
		}
	}
	before := renderAll(t, e.View())
	var lan *resource.VM
	do(t, e, "many", func(tx resource.Tx) error {
		for _, r := range []resource.Resource{
			&resource.Zone{Meta: resource.Meta{Name: "z2"}}, &resource.Offering{Meta: resource.Meta{Name: "o2"}, CPUs: 1, MemoryMiB: 64},
			&resource.SecGroup{Meta: resource.Meta{Name: "g2"}}, &resource.Host{Meta: resource.Meta{Name: "h9"}, ClusterID: e.IDs["c1"], PublicKey: plantest.Key(99)},
			&resource.SecRule{GroupID: e.IDs["db"], Direction: resource.Ingress, Protocol: desired.ProtoICMP},
		} {
			if _, err := plan.Create(tx, r); err != nil {
				return err
			}
		}
		spec := e.VMSpec("lan")
		spec.HostID = e.IDs["h2"]
		spec.NICs = []plan.NICSpec{{L3ID: e.IDs["outer"]}}
		var err error
		lan, err = plan.CreateVM(tx, spec)
		return err
	})
	unchanged("an unrelated resource", before, e.IDs["h2"])
	settle(t, e)
	do(t, e, "vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, lan.ID); return err })
	do(t, e, "vm.expunge", func(tx resource.Tx) error { _, err := plan.ExpungeVM(tx, lan.ID); return err })
	settle(t, e)
	unchanged("what came and went", before)
}

// bigSite has a host h1 with 100 VMs, and 99 more with 9 each, all in one group of 1,000 rules.
func bigSite(b *testing.B) (e *plantest.Example, spec plan.VMSpec) {
	b.Helper()
	e = plantest.NewExample(1, 100)
	err := e.Do("fill", func(tx resource.Tx) error {
		l3, err := plan.Create(tx, &resource.L3{Meta: resource.Meta{Name: "wide"}, L2ID: e.IDs["vx"]})
		if err != nil {
			return err
		}
		if _, err := plan.AddIPRange(tx, &resource.IPRange{
			L3ID: l3.Base().ID, Start: netip.MustParseAddr("10.128.0.2"), End: netip.MustParseAddr("10.128.255.254"), Bits: 16, Gateway: netip.MustParseAddr("10.128.0.1"),
		}); err != nil {
			return err
		}
		for i := range 1000 {
			r := &resource.SecRule{GroupID: e.IDs["web"], Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: i + 1, ToPort: i + 1, CIDR: netip.MustParsePrefix("10.0.0.0/8")}
			if _, err := plan.Create(tx, r); err != nil {
				return err
			}
		}
		spec = e.VMSpec("v")
		spec.OfferingID, spec.CPUs, spec.MemoryMiB, spec.NICs[0].L3ID = "", 1, 16, l3.Base().ID
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	inv := plantest.Machine(1)
	inv.CPUs = 64
	e.Connect(e.IDs["h1"], inv)
	if err := e.Do("fill", func(tx resource.Tx) error {
		for h := range 100 {
			n := 9
			if h == 0 {
				n = 100
			}
			for range n {
				spec.HostID = e.IDs[fmt.Sprintf("h%d", h+1)]
				if _, err := plan.CreateVM(tx, spec); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return e, spec
}

func BenchmarkRenderHost(b *testing.B) {
	e, _ := bigSite(b)
	for b.Loop() {
		if _, _, err := plan.Render(e.View(), e.IDs["h1"]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenderSite(b *testing.B) {
	e, _ := bigSite(b)
	for b.Loop() {
		d := plan.NewRenderer(e.View())
		for h := range e.View().All(resource.KindHost) {
			if _, _, err := d.Render(h.Base().ID); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkAffectedByMember(b *testing.B) {
	e, spec := bigSite(b)
	before, after, err := e.DryRun(e.Request("vm.create"), func(tx resource.Tx) error { _, err := plan.CreateVM(tx, spec); return err })
	if err != nil {
		b.Fatal(err)
	}
	var nic resource.Resource
	for n := range resource.All[*resource.NIC](after) {
		if before.Get(resource.KindNIC, n.ID) == nil {
			nic = n
		}
	}
	for b.Loop() {
		if hosts, _ := plan.Affected(nil, nic, before, after); len(hosts) == 0 {
			b.Fatal("nobody is affected")
		}
	}
}

func BenchmarkCreateVM(b *testing.B) {
	e, spec := bigSite(b)
	spec.HostID = ""
	var err error
	if _, _, err = e.DryRun(e.Request("vm.create"), func(tx resource.Tx) error {
		for b.Loop() {
			if _, err := plan.CreateVM(tx, spec); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkDueWithNothingToDo(b *testing.B) {
	e, _ := bigSite(b)
	if err := e.Settle(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if plan.Due(e.View(), e.Now) {
			b.Fatal("something is due")
		}
	}
}
