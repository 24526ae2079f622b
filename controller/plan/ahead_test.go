package plan_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

// ledgerOf is the document of a host as its agent would have it.
func ledgerOf(t *testing.T, r resource.Reader, host string, gen uint64) desired.Document {
	t.Helper()
	items, _, err := plan.Render(r, host)
	if err != nil {
		t.Fatal(err)
	}
	doc := desired.Document{Head: desired.Head{Host: host, Gen: gen, Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	for _, it := range items {
		it.Rev = gen
		doc.Items[it.Ref()] = it
	}
	return doc
}

// sameDocument holds what a host would be told now against what it had been told: by content, since only that touches guests.
func sameDocument(t *testing.T, r resource.Reader, doc desired.Document) {
	t.Helper()
	a, err := plan.NewRenderer(r).Ledger(doc.Head.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range a.Diff.Items {
		t.Errorf("host %s: %s is %s: %s -> %s", doc.Head.Host, it.Ref, it.Change, it.Old, it.New)
	}
}

// untold is a document of an older controller's, which did not say what documents are made from.
func untold(doc desired.Document) desired.Document {
	for ref := range doc.Items {
		if ref.Kind == desired.KindOrigin {
			delete(doc.Items, ref)
		}
	}
	return doc
}

func adopt(t *testing.T, s *plantest.Site, a plan.Adoption) {
	t.Helper()
	for range 2 { // a repetition changes nothing
		for n := range a.Steps() {
			if err := s.Do("ahead.adopt", func(tx resource.Tx) error { return a.Step(tx, n) }); err != nil {
				t.Fatalf("step %d: %v", n, err)
			}
		}
	}
}

// full is an example with VMs of all sorts on its hosts.
func full(t *testing.T) *plantest.Example {
	t.Helper()
	e := plantest.NewExample(7, 2)
	for i, name := range []string{"a", "b", "c", "d"} {
		spec := e.VMSpec(name)
		spec.HostID = e.IDs[[]string{"h1", "h2"}[i%2]]
		spec.Hostname = name + "-host"
		if name == "b" || name == "c" {
			spec.NICs = append(spec.NICs, plan.NICSpec{L3ID: e.IDs["outer"], SecGroupIDs: []string{e.IDs["db"]}})
		}
		spec.DataVolumes = []plan.VolumeSpec{{Name: name + "-data", Bytes: 1 << 30}}
		if _, err := e.CreateVM(spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Settle(); err != nil {
		t.Fatal(err)
	}
	return e
}

// bare is a site that has lost everything but its hosts' enrolment.
func bare(t *testing.T, e *plantest.Example, hold bool) *plantest.Site {
	t.Helper()
	s := plantest.New(99)
	for _, name := range []string{"h1", "h2"} {
		h, err := resource.Get[*resource.Host](e.View(), e.IDs[name])
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Do("host.create", func(tx resource.Tx) error {
			if tx.Get(resource.KindZone, e.IDs["zone"]) == nil {
				if err := tx.Put(&resource.Zone{Meta: resource.Meta{ID: e.IDs["zone"], Name: "zone"}, State: resource.Enabled}); err != nil {
					return err
				}
				if err := tx.Put(&resource.Cluster{Meta: resource.Meta{ID: e.IDs["c1"], Name: "c1"}, ZoneID: e.IDs["zone"], State: resource.Enabled}); err != nil {
					return err
				}
			}
			n := &resource.Host{Meta: resource.Meta{ID: h.ID, Name: h.Name}, ClusterID: h.ClusterID, State: resource.Enabled, PublicKey: h.PublicKey}
			if hold {
				n = plan.Hold(n, resource.HostHold{Since: tx.Now(), Why: "test"})
			}
			return tx.Put(n)
		}); err != nil {
			t.Fatal(err)
		}
		s.Connect(h.ID, plantest.Machine(map[string]int{"h1": 1, "h2": 2}[name]))
	}
	return s
}

// TestAdopt_FromNothing: all that is left are the hosts' ledgers, of documents that told nothing beside. What is made of them
// tells each host just what it had been told, so that no guest is touched. Documents that tell more: see checkRebuild.
func TestAdopt_FromNothing(t *testing.T) {
	e := full(t)
	docs := []desired.Document{untold(ledgerOf(t, e.View(), e.IDs["h1"], 500)), untold(ledgerOf(t, e.View(), e.IDs["h2"], 501))}
	s := bare(t, e, true)
	for _, d := range docs {
		before, err := plan.NewRenderer(s.View()).Ledger(d.Head.Host, d)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(before.OnlyHost); n != 6 || before.Same() {
			t.Errorf("host %s: %d VMs and volumes are only there, want 2 and 4: %v", d.Head.Host, n, before.OnlyHost)
		}
		adopt(t, s, plan.Adoption{Host: d.Head.Host, Doc: d})
	}
	must(t, s.Do("ahead.adopt", func(tx resource.Tx) error {
		return errors.Join(plan.Release(tx, docs[0].Head.Host), plan.Release(tx, docs[1].Head.Host))
	}))
	for _, d := range docs {
		sameDocument(t, s.View(), d)
		if h, err := resource.Get[*resource.Host](s.View(), d.Head.Host); err != nil || h.Hold != nil {
			t.Errorf("host %s is still held: %v", d.Head.Host, err)
		}
	}
	for vm := range resource.All[*resource.VM](e.View()) {
		got, err := resource.Get[*resource.VM](s.View(), vm.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := resource.Copy(vm)
		for _, v := range []*resource.VM{want, got} {
			v.Meta = resource.Meta{ID: v.ID, Name: v.Name}
			v.OfferingID, v.ImageID = "", "" // hosts don't know what they came from
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("VM %s (-want +got):\n%s", vm.Name, diff)
		}
	}
	for n := range resource.All[*resource.NIC](e.View()) {
		got, err := resource.Get[*resource.NIC](s.View(), n.ID)
		if err != nil || got.IP != n.IP || got.MAC != n.MAC || got.L3ID != n.L3ID || got.Default != n.Default {
			t.Errorf("NIC %s became %+v, %v", n.MAC, got, err)
		}
	}
	for v := range resource.All[*resource.Volume](e.View()) {
		got, err := resource.Get[*resource.Volume](s.View(), v.ID)
		if err != nil || got.Path != v.Path || got.Type != v.Type || got.VMID != v.VMID || got.HostID != v.HostID || !cmp.Equal(got.Backing, v.Backing) {
			t.Errorf("volume %s became %+v, %v", v.Name, got, err)
		}
	}
	// Nothing that was given out is given out again.
	var held []netip.Addr
	for n := range resource.All[*resource.NIC](s.View()) {
		held = append(held, n.IP)
	}
	slices.SortFunc(held, netip.Addr.Compare)
	if got := slices.Compact(slices.Clone(held)); len(got) != len(held) {
		t.Errorf("addresses %v", held)
	}
}

// TestAdopt_AfterAnOldBackup: one VM was made, one moved into the bin for good, one changed since the state was backed up.
func TestAdopt_AfterAnOldBackup(t *testing.T) {
	for name, onlyNew := range map[string]bool{"adopt": false, "override": true} {
		t.Run(name, func(t *testing.T) {
			e := full(t)
			h1 := e.IDs["h1"]
			// The state that is restored: h1 held, as it was before what follows.
			old := e.Site
			newer := full(t) // the same again: everything in the example follows from its seed
			spec := newer.VMSpec("late")
			spec.HostID = h1
			late, err := newer.CreateVM(spec)
			if err != nil {
				t.Fatal(err)
			}
			ids := map[string]string{}
			for vm := range resource.All[*resource.VM](newer.View()) {
				ids[vm.Name] = vm.ID
			}
			must(t, newer.Do("vm.update", func(tx resource.Tx) error {
				vm, err := resource.Get[*resource.VM](tx, ids["a"])
				if err != nil {
					return err
				}
				vm = resource.Copy(vm)
				vm.MemoryMiB, vm.Name = 1024, "a2"
				return tx.Put(vm)
			}))
			must(t, newer.Do("secrule.create", func(tx resource.Tx) error {
				_, err := plan.Create(tx, &resource.SecRule{GroupID: newer.IDs["web"], Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: 8443, ToPort: 8443})
				return err
			}))
			doc := ledgerOf(t, newer.View(), h1, 900)
			for ref := range doc.Items { // c is gone from the host
				if ref == resource.DomainRef(ids["c"]) {
					delete(doc.Items, ref)
				}
			}
			must(t, old.Do("hold", func(tx resource.Tx) error {
				h, err := resource.Get[*resource.Host](tx, h1)
				if err != nil {
					return err
				}
				return tx.Put(plan.Hold(h, resource.HostHold{Since: tx.Now(), Seq: tx.Seq() - 1, Why: "restored"}))
			}))
			a, err := plan.NewRenderer(old.View()).Ledger(h1, doc)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.OnlyHost) != 2 || a.OnlyHost[0].Name != "late" || len(a.OnlyState) != 1 || a.OnlyState[0].Name != "c" || a.Same() {
				t.Fatalf("compared: %+v", a)
			}
			if !slices.Contains(a.Diff.Stops, "late") {
				t.Errorf("writing the state's document would stop %v, want late among them", a.Diff.Stops)
			}
			adopt(t, old, plan.Adoption{Host: h1, Doc: doc, OnlyNew: onlyNew})
			if vm, err := resource.Get[*resource.VM](old.View(), late.ID); err != nil || vm.Name != "late" || vm.HostID != h1 || vm.Power != desired.PowerOn {
				t.Errorf("the VM that only the host had is %+v, %v", vm, err)
			}
			// What other hosts share is the state's, whatever one host was told of it.
			for rule := range resource.Referrers[*resource.SecRule](old.View(), resource.KindSecGroup, e.IDs["web"]) {
				if rule.GroupID == e.IDs["web"] && rule.FromPort == 8443 {
					t.Errorf("a rule came into a known group")
				}
			}
			va, _ := resource.Get[*resource.VM](old.View(), ids["a"])
			vc, _ := resource.Get[*resource.VM](old.View(), ids["c"])
			if onlyNew {
				if va.Name != "a" || va.MemoryMiB != 512 || !vc.Destroyed.IsZero() {
					t.Errorf("what the state knew was changed: %+v, %+v", va, vc)
				}
				return
			}
			if va.Name != "a2" || va.MemoryMiB != 1024 || vc.Destroyed.IsZero() || vc.Power != desired.PowerOff {
				t.Errorf("the host's word does not count: %+v, %+v", va, vc)
			}
			// Of the document only c, in the recycle bin and off, may differ.
			b, err := plan.NewRenderer(old.View()).Ledger(h1, doc)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range b.Diff.Items {
				if n, ok := resource.Find[*resource.NIC](old.View(), it.Ref.ID); ok && n.VMID == ids["c"] {
					continue // its filter is the state's
				}
				if it.Ref != resource.DomainRef(ids["c"]) && !strings.HasPrefix(it.Ref.String(), "dhcp.") && !strings.HasPrefix(it.Ref.String(), "addrset.") {
					t.Errorf("%s is %s: %s -> %s", it.Ref, it.Change, it.Old, it.New)
				}
			}
			if len(b.Diff.Stops)+len(b.Diff.Starts)+len(b.Diff.Restarts)+len(b.Diff.Erases) > 0 {
				t.Errorf("guests or data are touched: %+v", b.Diff)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHold_EndOfTheJournalDecides: a host is held for what the journal does not have, in its hands or in its bucket, and for nothing else.
func TestHold_EndOfTheJournalDecides(t *testing.T) {
	for name, tc := range map[string]struct {
		set  func(e *plantest.Example, host string, gen uint64)
		by   uint64
		held bool
	}{
		"host at the end":      {func(e *plantest.Example, h string, gen uint64) { e.SetGen(h, gen) }, 0, false},
		"host beyond it":       {func(e *plantest.Example, h string, gen uint64) { e.SetGen(h, gen) }, 1, true},
		"host away, beyond it": {func(e *plantest.Example, h string, gen uint64) { e.SetGen(h, gen); e.SetConnected(h, false) }, 1, true},
		"bucket at the end":    {func(e *plantest.Example, h string, gen uint64) { e.SetPublishedGen(h, gen) }, 0, false},
		"bucket beyond it":     {func(e *plantest.Example, h string, gen uint64) { e.SetPublishedGen(h, gen) }, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := plantest.NewExample(1, 1)
			for plan.Due(e.View(), e.Now) {
				if _, err := e.Tick(); err != nil {
					t.Fatal(err)
				}
			}
			host, end := e.IDs["h1"], e.View().Seq()
			tc.set(e, host, end+tc.by)
			if plan.Due(e.View(), e.Now) != tc.held {
				t.Errorf("due: %t, want %t", !tc.held, tc.held)
			}
			if tc.held {
				if _, err := e.Tick(); err != nil {
					t.Fatal(err)
				}
			}
			h, err := resource.Get[*resource.Host](e.View(), host)
			if err != nil {
				t.Fatal(err)
			}
			if held := h.Hold != nil && h.Hold.Seq == end; held != tc.held {
				t.Errorf("hold: %+v at end %d, want held %t", h.Hold, end, tc.held)
			}
		})
	}
}

// TestHold_NothingIsPlaced: a host that is held gets nothing new, and one that is ahead of the journal is held by itself.
func TestHold_NothingIsPlaced(t *testing.T) {
	e := plantest.NewExample(1, 1)
	h := e.IDs["h1"]
	e.SetGen(h, e.View().Seq()+50)
	for plan.Due(e.View(), e.Now) {
		if _, err := e.Tick(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := resource.Get[*resource.Host](e.View(), h)
	if err != nil || got.Hold == nil {
		t.Fatalf("a host that is ahead is %+v, %v", got, err)
	}
	_, err = e.CreateVM(e.VMSpec("x"))
	if err == nil || !strings.Contains(err.Error(), "held back") {
		t.Errorf("placed on a host that is held: %v", err)
	}
}
