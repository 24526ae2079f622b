package history

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/publish"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// got is what a host really got: the bytes of its bucket at every head.
type got struct {
	mu    sync.Mutex
	items map[string]map[string][]byte            // by host and key, as they stand
	docs  map[string]map[uint64]map[string]string // by host and generation: everything that the head names, and the head
}

func (g *got) take(m *nats.Msg) {
	for host := range g.items {
		key, ok := subjects.BucketKey(subjects.DesiredBucket(host), m.Subject)
		if !ok {
			continue
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if key != subjects.HeadKey {
			g.items[host][key] = m.Data
			return
		}
		head, err := desired.DecodeHead(m.Data)
		if err != nil {
			panic(err)
		}
		doc := map[string]string{subjects.HeadKey: string(m.Data)}
		for ref := range head.Items {
			doc[ref.String()] = string(g.items[host][ref.String()])
		}
		g.docs[host][head.Gen] = doc
		return
	}
}

// TestDocument_IsWhatTheHostGot: over a random history of a whole site, with publishers and controllers that come and go, every
// document that a host ever got is rendered again from the journal, byte for byte.
func TestDocument_IsWhatTheHostGot(t *testing.T) {
	vms, checks := 0, 0
	rapid.Check(t, func(r *rapid.T) {
		// The streams are made for each history; the checks share what t has to clean up.
		t.Run("history", func(t *testing.T) { vms += randomHistory(t, r) })
		if t.Failed() {
			r.FailNow()
		}
		checks++
	})
	if vms < checks {
		t.Errorf("in %d histories there were %d VMs: they show nothing", checks, vms)
	}
}

const exampleHosts = 3

// randomHistory gives the number of VMs at its end.
func randomHistory(t *testing.T, r *rapid.T) int {
	cfg := Config{CheckpointEvery: rapid.SampledFrom([]int{7, 20, 1000}).Draw(r, "checkpoint every"), SegmentRows: 16}
	b := newBench(t, cfg)
	e := plantest.NewExample(1, exampleHosts)
	g := &got{items: map[string]map[string][]byte{}, docs: map[string]map[uint64]map[string]string{}}
	var hosts []string
	for i := range exampleHosts {
		id := e.IDs[fmt.Sprintf("h%d", i+1)]
		hosts = append(hosts, id)
		g.items[id], g.docs[id] = map[string][]byte{}, map[uint64]map[string]string{}
	}
	sub, err := b.nc.Subscribe(subjects.BucketSubject("*", ">"), g.take)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	b.commit("site", "ann", "site.create", func(tx resource.Tx) error {
		for _, kind := range resource.Kinds() {
			for res := range e.View().All(kind) {
				if kind == resource.KindTask {
					continue
				}
				if err := tx.Put(res.Clone()); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for i, id := range hosts {
		room := desired.PoolFacts{TotalBytes: 1 << 40, FreeBytes: 1 << 40}
		b.report(id, desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, desired.PhaseReady, desired.HostFacts{Version: "test", Inventory: plantest.Machine(i + 1)})
		b.report(id, resource.PoolRef(e.IDs["nfs"]), desired.PhaseReady, room)
		b.report(id, resource.PoolRef(e.IDs["local"]), desired.PhaseReady, room)
		b.store.SetConnected(id, true, time.Now())
	}
	b.until("the reports are known", func() bool {
		return !slices.ContainsFunc(hosts, func(id string) bool {
			_, ok := b.store.View().Observed().Status(id, resource.PoolRef(e.IDs["local"]))
			return !ok
		})
	})
	stop := b.publish()
	defer func() { stop() }()
	for i := range rapid.IntRange(5, 40).Draw(r, "steps") {
		b.step(r, i, e, func() { stop(); stop = b.publish() }, cfg)
	}
	b.until("everything is published", func() bool { return b.store.View().Observed().PublishedSeq() == b.store.Seq() })
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	documents := 0
	for _, host := range hosts {
		events, _, err := b.past.Events(b.ctx, host, time.Time{}, time.Time{}, 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		heads := map[uint64]time.Time{}
		for _, ev := range events {
			if ev.Gen != 0 {
				heads[ev.Gen] = ev.At
			}
		}
		for _, gen := range slices.Sorted(maps.Keys(g.docs[host])) {
			at, ok := heads[gen]
			if !ok {
				t.Fatalf("HISTORY has no head of generation %d", gen)
			}
			doc, err := b.past.Document(b.ctx, host, at)
			if err != nil {
				t.Fatalf("document %d of host %s: %v", gen, host, err)
			}
			again := map[string]string{subjects.HeadKey: string(doc.Head)}
			for ref, raw := range doc.Items {
				again[ref] = string(raw)
			}
			if diff := cmp.Diff(g.docs[host][gen], again); diff != "" {
				t.Fatalf("document %d of host %s (-got +replayed):\n%s", gen, host, diff)
			}
			if !doc.Verified {
				t.Fatalf("document %d of host %s is not verified: %v", gen, host, doc.Differs)
			}
			documents++
		}
	}
	if documents < exampleHosts {
		t.Fatalf("%d documents were compared", documents)
	}
	return len(slices.Collect(b.store.View().All(resource.KindVM)))
}

// publish runs a publisher until the returned function is called.
func (b *bench) publish() func() {
	b.t.Helper()
	p, err := publish.New(publish.Config{
		Store: b.store, Conn: b.nc, Stream: func(host string) jetstream.StreamConfig { return Desired(host) }, Log: zerolog.Nop(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx) }()
	return func() { cancel(); <-done }
}

// step does one random thing. What is refused is as good as what is done: it is in the journal, or it is not.
func (b *bench) step(r *rapid.T, i int, e *plantest.Example, republish func(), cfg Config) {
	view := b.store.View()
	vms := slices.SortedFunc(resource.All[*resource.VM](view), func(a, b *resource.VM) int { return resource.ByName(a, b) })
	pick := func() string {
		if len(vms) == 0 {
			return "none"
		}
		return rapid.SampledFrom(vms).Draw(r, "vm").ID
	}
	do := func(op string, fn func(tx resource.Tx) error) {
		_, err := b.store.Commit(b.ctx, resource.Request{ID: rid(i), Caller: "ann", Op: op}, fn)
		if err != nil && resource.HasCode(err, resource.CodeInternal) {
			b.t.Fatalf("%s: %v", op, err)
		}
	}
	switch rapid.IntRange(0, 13).Draw(r, "what") {
	case 0, 1, 2:
		n := rapid.IntRange(1, 3).Draw(r, "nics")
		do("vm.create", func(tx resource.Tx) error {
			spec := plan.VMSpec{Name: fmt.Sprintf("vm%d", i), ZoneID: e.IDs["zone"], OfferingID: e.IDs["small"], RootBytes: 1 << 30}
			for j := range n {
				spec.NICs = append(spec.NICs, plan.NICSpec{L3ID: e.IDs[[]string{"inner", "outer"}[j%2]], AntiSpoof: j == 0, SecGroupIDs: []string{e.IDs[[]string{"web", "db"}[i%2]]}})
			}
			_, err := plan.CreateVM(tx, spec)
			return err
		})
	case 3:
		id := pick()
		do("vm.stop", func(tx resource.Tx) error {
			_, err := plan.StopVM(tx, id, plan.StopOptions{Force: i%2 == 0})
			return err
		})
	case 4:
		id := pick()
		do("vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, id, ""); return err })
	case 5:
		id := pick()
		do("vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, id); return err })
	case 6:
		id := pick()
		do("vm.reboot", func(tx resource.Tx) error { _, err := plan.RebootVM(tx, id); return err })
	case 7:
		do("secrule.create", func(tx resource.Tx) error {
			_, err := plan.Create(tx, &resource.SecRule{GroupID: e.IDs["web"], Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: 1000 + i, ToPort: 1000 + i})
			return err
		})
	case 8:
		do("secrule.delete", func(tx resource.Tx) error {
			for rule := range resource.All[*resource.SecRule](tx) {
				if rule.FromPort >= 1000 {
					_, err := plan.Delete(tx, resource.KindSecRule, rule.ID, plan.DeleteOptions{})
					return err
				}
			}
			return nil
		})
	case 9:
		do("l3.update", func(tx resource.Tx) error {
			l, err := resource.Get[*resource.L3](tx, e.IDs["inner"])
			if err != nil {
				return err
			}
			l = resource.Copy(l)
			l.Domain = fmt.Sprintf("d%d.example.net", i)
			_, err = plan.Update(tx, l)
			return err
		})
	case 10:
		id := pick()
		do("vm.update", func(tx resource.Tx) error {
			vm, err := resource.Get[*resource.VM](tx, id)
			if err != nil {
				return err
			}
			vm = resource.Copy(vm)
			vm.CPUs = 1 + i%4
			_, err = plan.Update(tx, vm)
			return err
		})
	case 11: // a host's flag in the head
		do("host.update", func(tx resource.Tx) error {
			h, err := resource.Get[*resource.Host](tx, e.IDs["h1"])
			if err != nil {
				return err
			}
			h = resource.Copy(h)
			h.Shrink = !h.Shrink
			return tx.Put(h)
		})
	case 12:
		republish()
	case 13:
		b.stop()
		b.open(cfg)
	}
	if rapid.Bool().Draw(r, "wait for the publisher") {
		b.until("it is published", func() bool { return b.store.View().Observed().PublishedSeq() == b.store.Seq() })
	}
}
