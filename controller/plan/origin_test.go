package plan_test

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

// document is what the agent of a host has in its ledger.
func document(t tester, r resource.Reader, host string) desired.Document {
	t.Helper()
	items, _, err := plan.Render(r, host)
	if err != nil {
		t.Fatalf("render %s: %v", host, err)
	}
	doc := desired.Document{Head: desired.Head{Host: host, Gen: r.Seq(), Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	for _, it := range items {
		it.Rev = r.Seq()
		doc.Items[it.Ref()] = it
	}
	return doc
}

// rebuild makes a new site of nothing but documents.
func rebuild(t tester, docs []desired.Document, keys map[string]string) *plantest.Site {
	t.Helper()
	s := plantest.New(99)
	step := func(what string, fn func(tx resource.Tx) error) {
		t.Helper()
		if err := s.Do("ahead.adopt", fn); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for range 2 { // a repetition changes nothing
		for _, d := range docs {
			step("add host", func(tx resource.Tx) error { return plan.AdoptHost(tx, d, keys[d.Head.Host]) })
		}
		for _, d := range docs {
			a := plan.Adoption{Host: d.Head.Host, Doc: d}
			for n := range a.Steps() {
				step("take over", func(tx resource.Tx) error { return a.Step(tx, n) })
			}
		}
	}
	for _, d := range docs {
		step("release", func(tx resource.Tx) error { return plan.Release(tx, d.Head.Host) })
	}
	return s
}

// checkRebuild makes a site of the documents of another's hosts, which then tells each host just what it had been told, byte by
// byte, and has everything that documents were made from under the same ids, names and owners.
func checkRebuild(t tester, e *plantest.Example) {
	t.Helper()
	keys := map[string]string{}
	var docs []desired.Document
	for h := range resource.All[*resource.Host](e.View()) {
		keys[h.ID] = h.PublicKey
		docs = append(docs, document(t, e.View(), h.ID))
	}
	s := rebuild(t, docs, keys)
	for _, d := range docs {
		now := document(t, s.View(), d.Head.Host)
		for ref := range now.Items {
			if _, ok := d.Items[ref]; !ok {
				t.Errorf("host %s: %s is new", d.Head.Host, ref)
			}
		}
		for ref, old := range d.Items {
			it := now.Items[ref]
			it.Rev, it.Cause = old.Rev, old.Cause
			was, err := old.Encode()
			if err != nil {
				t.Fatalf("%v", err)
			}
			is, err := it.Encode()
			if err != nil {
				t.Fatalf("%v", err)
			}
			if !bytes.Equal(was, is) {
				t.Errorf("host %s: %s is not what it was:\n%s\n%s", d.Head.Host, ref, was, is)
			}
		}
	}
	for _, kind := range resource.Kinds() {
		for got := range s.View().All(kind) {
			want := e.View().Get(kind, got.Base().ID)
			if want == nil {
				t.Errorf("%s %s was made up", kind, got.Base().Name)
				continue
			}
			if diff := cmp.Diff(want.Base(), got.Base(), cmpopts.IgnoreFields(resource.Meta{}, "Created", "Updated", "Rev", "Cause")); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", kind, got.Base().ID, diff)
			}
		}
	}
	for vm := range resource.All[*resource.VM](e.View()) {
		got, ok := resource.Find[*resource.VM](s.View(), vm.ID)
		if !ok {
			if !vm.Undefine {
				t.Errorf("VM %s is lost", vm.Name)
			}
			continue
		}
		if diff := cmp.Diff(vm, got, cmpopts.IgnoreFields(resource.VM{}, "Meta", "Ran", "ActSeq", "Expunging"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("VM %s (-want +got):\n%s", vm.Name, diff)
		}
	}
	for n := range resource.All[*resource.NIC](e.View()) {
		got, ok := resource.Find[*resource.NIC](s.View(), n.ID)
		if diff := cmp.Diff(n, got, cmpopts.IgnoreFields(resource.NIC{}, "Meta"), cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); ok && diff != "" {
			t.Errorf("NIC %s (-want +got):\n%s", n.MAC, diff)
		}
	}
	for a := range resource.All[*resource.Account](s.View()) {
		if a.Password != "" || a.Quotas[resource.QuotaVMs] != 7 {
			t.Errorf("account %s came back as %+v", a.Name, a)
		}
	}
}

// TestOrigin_SaysNoSecrets holds records to fields that hosts may know. A field that a resource gets is not told of by itself.
func TestOrigin_SaysNoSecrets(t *testing.T) {
	e := full(t)
	const url = "https://ann:hunter2@example.net/debian.qcow2?token=hunter2#hunter2"
	must(t, e.Do("secrets", func(tx resource.Tx) error {
		img, err := resource.Get[*resource.Image](tx, e.IDs["image"])
		if err != nil {
			return err
		}
		img = resource.Copy(img)
		img.URL = url
		if err := tx.Put(img); err != nil {
			return err
		}
		return tx.Put(&resource.Account{Meta: resource.Meta{ID: "ann", Name: "ann"}, State: resource.Enabled, Password: "hunter2"})
	}))
	told := false
	for _, it := range ledgerOf(t, e.View(), e.IDs["h1"], 1).Items {
		if bytes.Contains(it.Spec, []byte("hunter2")) {
			t.Errorf("%s tells a secret: %s", it.Ref(), it.Spec)
		}
		told = told || strings.Contains(string(it.Spec), `"https://example.net/debian.qcow2"`) && it.Kind == desired.KindOrigin
	}
	if !told {
		t.Error("no document says where the image came from")
	}
	for _, kind := range resource.Kinds() {
		if _, secretive := resource.New(kind).(resource.Secretive); secretive && kind != resource.KindAccount {
			typ := reflect.TypeOf(resource.New(kind)).Elem().Name()
			for _, it := range ledgerOf(t, e.View(), e.IDs["h1"], 1).Items {
				if bytes.Contains(it.Spec, []byte(`"kind":"`+string(kind)+`"`)) {
					t.Errorf("a document tells of a %s, which has secrets", typ)
				}
			}
		}
	}
}

// TestOrigin_DescriptionAloneAsksNothing: a change of names and tags reaches the ledger and nothing else.
func TestOrigin_DescriptionAloneAsksNothing(t *testing.T) {
	e := full(t)
	before := e.View()
	must(t, e.Do("vm.update", func(tx resource.Tx) error {
		for vm := range resource.All[*resource.VM](tx) {
			vm = resource.Copy(vm)
			vm.Tags, vm.Description = []string{"prod"}, "changed"
			if err := tx.Put(vm); err != nil {
				return err
			}
		}
		return nil
	}))
	d, err := plan.DocumentDiff(before, e.View())
	if err != nil || len(d) != 0 {
		t.Errorf("a dry run shows %v, %v", d, err)
	}
	for _, h := range []string{"h1", "h2"} {
		was, is := ledgerOf(t, before, e.IDs[h], 1), ledgerOf(t, e.View(), e.IDs[h], 2)
		changed := 0
		for ref, it := range is.Items {
			if !it.SameContent(was.Items[ref]) {
				if changed++; ref.Kind != desired.KindOrigin {
					t.Errorf("%s of host %s changed", ref, h)
				}
			}
		}
		if changed != 2 {
			t.Errorf("%d items of host %s changed, want those of its 2 VMs", changed, h)
		}
	}
}
