package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

// bench is a leading store on a NATS server, and documents that are easily changed: a host has a pool for each of its tags, and
// one for each tag of its cluster.
type bench struct {
	t       *testing.T
	dir     string
	srv     *server.Server
	nc      *nats.Conn
	js      jetstream.JetStream
	store   *store.Store
	cluster string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	srv, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: b.dir, NoSigs: true, NoLog: true, DisableJetStreamBanner: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	b.srv = srv
	if b.nc, err = nats.Connect("", nats.InProcessServer(srv)); err != nil {
		t.Fatal(err)
	}
	if b.js, err = jetstream.New(b.nc); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, c := range []jetstream.StreamConfig{
		journal.Config(),
		{Name: subjects.HistoryStream, Subjects: []string{subjects.HistoryAll}},
		{Name: subjects.BucketStream(subjects.ObservedBucket), Subjects: []string{subjects.BucketSubject(subjects.ObservedBucket, ">")}, MaxMsgsPerSubject: 1},
	} {
		if _, err := b.js.CreateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	book, err := journal.Open(ctx, b.js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if b.store, err = store.New(store.Config{Journal: book, Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	if err := b.store.Load(ctx); err != nil {
		t.Fatal(err)
	}
	lead, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.store.Lead(lead)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		b.nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	b.until("the store leads", b.store.Leading)
	b.commit("zone.create", func(tx resource.Tx) error {
		zone := &resource.Zone{Meta: resource.Meta{ID: tx.NewID(), Name: "z"}, State: resource.Enabled}
		if err := tx.Put(zone); err != nil {
			return err
		}
		b.cluster = tx.NewID()
		return tx.Put(&resource.Cluster{Meta: resource.Meta{ID: b.cluster, Name: "c"}, ZoneID: zone.ID, State: resource.Enabled})
	})
	return b
}

func (b *bench) until(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// commit gives the request's id and its sequence.
func (b *bench) commit(op string, fn func(tx resource.Tx) error) (string, uint64) {
	b.t.Helper()
	req := resource.Request{ID: uuid.NewString(), Caller: "test", Op: op}
	seq, err := b.store.Commit(b.t.Context(), req, fn)
	if err != nil {
		b.t.Fatal(err)
	}
	return req.ID, seq
}

func (b *bench) addHost(name string, tags ...string) string {
	b.t.Helper()
	var id string
	b.commit("host.create", func(tx resource.Tx) error {
		id = tx.NewID()
		return tx.Put(&resource.Host{
			Meta: resource.Meta{ID: id, Name: name, Tags: tags}, ClusterID: b.cluster, State: resource.Enabled,
			PublicKey: "U" + strings.Repeat("A", 55-len(name)) + strings.ToUpper(name),
		})
	})
	return id
}

func (b *bench) tag(host string, tags ...string) (string, uint64) {
	b.t.Helper()
	return b.commit("host.update", func(tx resource.Tx) error {
		h, err := resource.Get[*resource.Host](tx, host)
		if err != nil {
			return err
		}
		h = resource.Copy(h)
		h.Tags = tags
		return tx.Put(h)
	})
}

func renderTags(r resource.Reader) RenderFunc {
	return func(host string) ([]desired.Item, plan.HeadBits, error) {
		h, err := resource.Get[*resource.Host](r, host)
		if err != nil {
			return nil, plan.HeadBits{}, err
		}
		c, err := resource.Get[*resource.Cluster](r, h.ClusterID)
		if err != nil {
			return nil, plan.HeadBits{}, err
		}
		var items []desired.Item
		for _, tag := range slices.Concat(h.Tags, c.Tags) {
			name, path, _ := strings.Cut(tag, "=")
			it, err := desired.NewItem(desired.KindPool, name, desired.Pool{Type: desired.PoolLocal, Path: "/srv/" + name + path})
			if err != nil {
				return nil, plan.HeadBits{}, err
			}
			it.Cause = h.Cause
			items = append(items, it)
		}
		return items, plan.HeadBits{Shrink: h.Shrink}, nil
	}
}

func affectedHosts(old, changed resource.Resource, _, _ resource.Reader) (map[string]struct{}, bool) {
	r := changed
	if r == nil {
		r = old
	}
	switch r.Kind() {
	case resource.KindHost:
		return map[string]struct{}{r.Base().ID: {}}, false
	case resource.KindCluster:
		return nil, true
	default:
		return nil, false
	}
}

func bucketConfig(host string) jetstream.StreamConfig {
	name := subjects.DesiredBucket(host)
	return jetstream.StreamConfig{
		Name: subjects.BucketStream(name), Subjects: []string{subjects.BucketSubject(name, ">")}, MaxMsgsPerSubject: 1,
		AllowDirect: true, AllowRollup: true, AllowMsgTTL: true, Discard: jetstream.DiscardNew,
	}
}

// publish runs a publisher until stop is called, or the test ends.
func (b *bench) publish() (stop func()) {
	b.t.Helper()
	p, err := New(Config{
		Store: b.store, Conn: b.nc, Stream: bucketConfig, Renderer: renderTags, Affected: affectedHosts, CheckEvery: 50 * time.Millisecond, Log: zerolog.Nop(),
		Touch: func(ctx context.Context, host string) error {
			_, err := b.store.Commit(ctx, resource.Request{ID: uuid.NewString(), Caller: "test", Op: "host.touch"}, func(tx resource.Tx) error {
				h, err := resource.Get[*resource.Host](tx, host)
				if err != nil {
					return err
				}
				return tx.Put(resource.Copy(h))
			})
			return err
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); ctx.Err() == nil {
			b.t.Errorf("publisher: %v", err)
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
		}
	}
	b.t.Cleanup(stop)
	return stop
}

// document reads what an agent would, from the bucket's stream; ok is false where it is not whole.
func (b *bench) document(host string) (doc desired.Document, ok bool) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	name := subjects.DesiredBucket(host)
	s, err := b.js.Stream(ctx, subjects.BucketStream(name))
	if err != nil {
		return doc, false
	}
	raw, err := s.GetLastMsgForSubject(ctx, subjects.BucketSubject(name, subjects.HeadKey))
	if err != nil {
		return doc, false
	}
	if doc.Head, err = desired.DecodeHead(raw.Data); err != nil {
		return doc, false
	}
	doc.Items = map[desired.Ref]desired.Item{}
	for ref, hash := range doc.Head.Items {
		raw, err := s.GetLastMsgForSubject(ctx, subjects.BucketSubject(name, ref.String()))
		if err != nil || desired.Hash(raw.Data) != hash {
			return doc, false
		}
		if doc.Items[ref], err = desired.DecodeItem(raw.Data); err != nil {
			return doc, false
		}
	}
	return doc, true
}

// published waits until everything up to a sequence is written, and reads the host's document.
func (b *bench) published(host string, seq uint64) desired.Document {
	b.t.Helper()
	b.until(fmt.Sprintf("everything up to %d is written", seq), func() bool { return b.store.View().Observed().PublishedSeq() >= seq })
	doc, ok := b.document(host)
	if !ok {
		b.t.Fatal("the document is not whole")
	}
	return doc
}

func pool(id string) desired.Ref { return desired.Ref{Kind: desired.KindPool, ID: id} }

func TestPublish_OnlyWhatChanged(t *testing.T) {
	b := newBench(t)
	one, two := b.addHost("A", "a", "b"), b.addHost("B", "x")
	stop := b.publish()
	first := b.published(one, b.store.Seq())
	if len(first.Items) != 2 || first.Head.Gen != b.store.Seq() {
		t.Fatalf("first document: %+v", first)
	}
	other := b.published(two, b.store.Seq())

	request, seq := b.tag(one, "a", "b=2", "c")
	doc := b.published(one, seq)
	if doc.Head.Gen != seq {
		t.Errorf("generation %d, want the commit's sequence %d", doc.Head.Gen, seq)
	}
	for id, want := range map[string]struct {
		rev   uint64
		cause string
	}{
		"a": {first.Items[pool("a")].Rev, first.Items[pool("a")].Cause}, "b": {seq, request}, "c": {seq, request},
	} {
		if it := doc.Items[pool(id)]; it.Rev != want.rev || it.Cause != want.cause {
			t.Errorf("item %s has Rev %d and Cause %q, want %d and %q", id, it.Rev, it.Cause, want.rev, want.cause)
		}
		if p, ok := b.store.View().Observed().Published(one, pool(id)); !ok || p.Rev != want.rev {
			t.Errorf("the store has item %s published as %+v, want Rev %d", id, p, want.rev)
		}
	}
	if diff := cmp.Diff(other, b.published(two, seq)); diff != "" {
		t.Errorf("the other host's document changed (-was +is):\n%s", diff)
	}

	// What is gone is not in the head any more, and then purged.
	_, seq = b.tag(one, "c")
	if doc = b.published(one, seq); len(doc.Items) != 1 {
		t.Errorf("items: %v, want c only", doc.Refs())
	}
	// A change that changes no document is none; a new publisher finds everything as it is.
	_, seq = b.tag(one, "c")
	if again := b.published(one, seq); again.Head.Gen != doc.Head.Gen {
		t.Errorf("generation %d for the same content, want %d", again.Head.Gen, doc.Head.Gen)
	}
	stop()
	b.publish()
	_, seq = b.tag(two, "x", "y")
	b.published(two, seq)
	if diff := cmp.Diff(doc, b.published(one, seq)); diff != "" {
		t.Errorf("document after a restart of the publisher (-was +is):\n%s", diff)
	}
	// HISTORY has every change of the item, in order.
	s, err := b.js.Stream(t.Context(), subjects.HistoryStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subjects.HistorySubject(one, ">")))
	if err != nil {
		t.Fatal(err)
	}
	if n := info.State.Subjects[subjects.HistorySubject(one, "pool.b")]; n != 3 { // made, changed, removed
		t.Errorf("HISTORY has %d entries of the item, want 3", n)
	}
}

func TestPublish_ClusterChangeReachesAllHosts(t *testing.T) {
	b := newBench(t)
	hosts := []string{b.addHost("A"), b.addHost("B"), b.addHost("C")}
	b.publish()
	_, seq := b.commit("cluster.update", func(tx resource.Tx) error {
		c, err := resource.Get[*resource.Cluster](tx, b.cluster)
		if err != nil {
			return err
		}
		c = resource.Copy(c)
		c.Tags = []string{"common"}
		return tx.Put(c)
	})
	for _, h := range hosts {
		if doc := b.published(h, seq); len(doc.Items) != 1 {
			t.Errorf("host %s has items %v, want the common one", h, doc.Refs())
		}
	}
}

func TestPublish_CompletesWhatAnotherLeftHalfDone(t *testing.T) {
	b := newBench(t)
	host := b.addHost("A", "a", "b")
	stop := b.publish()
	b.published(host, b.store.Seq())
	stop()
	// One item of a new document is written, then the publisher dies; and one that nobody wants is left over.
	name := subjects.DesiredBucket(host)
	half, err := desired.NewItem(desired.KindPool, "a", desired.Pool{Type: desired.PoolLocal, Path: "/srv/half"})
	if err != nil {
		t.Fatal(err)
	}
	half.Rev = b.store.Seq() + 1
	raw, err := half.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for key, data := range map[string][]byte{"pool.a": raw, "pool.left": []byte("not an item")} {
		if _, err := b.js.Publish(t.Context(), subjects.BucketSubject(name, key), data); err != nil {
			t.Fatal(err)
		}
	}
	_, seq := b.tag(host, "a", "b", "c")
	b.publish()
	doc := b.published(host, seq)
	if len(doc.Items) != 3 || doc.Head.Gen != seq {
		t.Errorf("document: generation %d, items %v", doc.Head.Gen, doc.Refs())
	}
	s, err := b.js.Stream(t.Context(), subjects.BucketStream(name))
	if err != nil {
		t.Fatal(err)
	}
	b.until("the left-over item is purged", func() bool {
		m, err := s.GetLastMsgForSubject(t.Context(), subjects.BucketSubject(name, "pool.left"))
		return err != nil || m.Header.Get("KV-Operation") == "PURGE"
	})
}

func TestPublish_LostBucketComesBackWithANewGeneration(t *testing.T) {
	b := newBench(t)
	host := b.addHost("A", "a")
	b.publish()
	doc := b.published(host, b.store.Seq())
	// The agent has read it.
	facts, err := desired.Canonical(desired.HostFacts{Gen: doc.Head.Gen})
	if err != nil {
		t.Fatal(err)
	}
	b.store.SetObserved(host, desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, &desired.Status{Phase: desired.PhaseReady, Facts: facts})
	if err := b.js.DeleteStream(t.Context(), subjects.BucketStream(subjects.DesiredBucket(host))); err != nil {
		t.Fatal(err)
	}
	b.until("the document is back with a higher generation", func() bool {
		again, ok := b.document(host)
		return ok && again.Head.Gen > doc.Head.Gen && again.Items[pool("a")].SameContent(doc.Items[pool("a")])
	})
}

// TestPublish_AgentAheadOfItsBucketIsOvertaken: the bucket has gone back, and neither the journal nor the agent has. What the bucket
// holds is what is wanted, so nothing but the agent's report tells.
func TestPublish_AgentAheadOfItsBucketIsOvertaken(t *testing.T) {
	t.Run("of a higher generation", func(t *testing.T) { testOvertaken(t, 3, false) })
	t.Run("another document of the same", func(t *testing.T) { testOvertaken(t, 0, true) })
}

func testOvertaken(t *testing.T, by int, ahead bool) {
	b := newBench(t)
	host := b.addHost("A", "a")
	b.publish()
	doc := b.published(host, b.store.Seq())
	for range by {
		b.addHost(uuid.NewString(), "b")
	}
	gen := doc.Head.Gen + uint64(by)
	facts, err := desired.Canonical(desired.HostFacts{Gen: gen, Ahead: ahead})
	if err != nil {
		t.Fatal(err)
	}
	b.store.SetObserved(host, desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, &desired.Status{Phase: desired.PhaseReady, Facts: facts})
	b.until("the document has a generation that the agent has not seen", func() bool {
		again, ok := b.document(host)
		return ok && again.Head.Gen > gen && again.Items[pool("a")].SameContent(doc.Items[pool("a")])
	})
}

// TestPublish_BucketAheadIsLeftAlone: a bucket that the journal has not got to is told of, so that its host is held, and is not
// written while it is, also when the journal has grown beyond it by what concerned others.
func TestPublish_BucketAheadIsLeftAlone(t *testing.T) {
	b := newBench(t)
	ahead, fine := b.addHost("A", "a"), b.addHost("B", "b")
	if _, err := b.js.CreateStream(t.Context(), bucketConfig(ahead)); err != nil {
		t.Fatal(err)
	}
	gen := b.store.Seq() + 100
	head, err := desired.Head{Host: ahead, Gen: gen}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.Publish(t.Context(), subjects.BucketSubject(subjects.DesiredBucket(ahead), subjects.HeadKey), head); err != nil {
		t.Fatal(err)
	}
	b.publish()
	// The other host is served, and who waits is not held up for ever.
	_, seq := b.tag(fine, "b", "c")
	if doc := b.published(fine, seq); len(doc.Items) != 2 {
		t.Errorf("items of the other host: %v", doc.Refs())
	}
	b.until("what the bucket holds is known", func() bool { return b.store.View().Observed().PublishedGen(ahead) == gen })
	hold := func(hold *resource.HostHold) {
		b.commit("hold", func(tx resource.Tx) error {
			h, err := resource.Get[*resource.Host](tx, ahead)
			if err != nil {
				return err
			}
			h = resource.Copy(h)
			h.Hold = hold
			return tx.Put(h)
		})
	}
	hold(&resource.HostHold{Why: "test"})
	for b.store.Seq() <= gen {
		_, seq = b.tag(fine, "b", "c")
	}
	b.published(fine, seq)
	b.until("nobody waits for the host", func() bool { return b.store.View().Observed().PublishedSeq() >= seq })
	if doc, _ := b.document(ahead); doc.Head.Gen != gen {
		t.Errorf("the bucket that was ahead is at generation %d, want it left at %d", doc.Head.Gen, gen)
	}
	hold(nil)
	b.until("it is written after the decision", func() bool {
		doc, ok := b.document(ahead)
		return ok && doc.Head.Gen > gen
	})
}

// TestPublish_BucketPassedMeanwhile: a bucket that another publisher wrote from a later snapshot is written with what is wanted now, once
// this one has come to that, though nothing concerns the host any more.
func TestPublish_BucketPassedMeanwhile(t *testing.T) {
	b := newBench(t)
	host, other := b.addHost("A", "a"), b.addHost("B", "b")
	if _, err := b.js.CreateStream(t.Context(), bucketConfig(host)); err != nil {
		t.Fatal(err)
	}
	gen := b.store.Seq() + 3
	head, err := desired.Head{Host: host, Gen: gen}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.Publish(t.Context(), subjects.BucketSubject(subjects.DesiredBucket(host), subjects.HeadKey), head); err != nil {
		t.Fatal(err)
	}
	b.publish()
	b.until("the bucket was looked at", func() bool { return b.store.View().Observed().PublishedGen(host) == gen })
	for b.store.Seq() <= gen {
		b.tag(other, "b", "c")
	}
	b.until("the bucket is written", func() bool {
		doc, ok := b.document(host)
		return ok && doc.Head.Gen > gen && len(doc.Items) == 1
	})
}

func TestPublish_RemovedHost(t *testing.T) {
	b := newBench(t)
	host, orphan := b.addHost("A", "a"), b.addHost("B", "b")
	stop := b.publish()
	b.published(host, b.store.Seq())
	key := subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(host, "pool", "a"))
	if _, err := b.js.Publish(t.Context(), key, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	remove := func(id string) {
		b.commit("host.delete", func(tx resource.Tx) error { return tx.Delete(resource.KindHost, id) })
	}
	gone := func(id string) func() bool {
		return func() bool {
			_, err := b.js.Stream(t.Context(), subjects.BucketStream(subjects.DesiredBucket(id)))
			return errors.Is(err, jetstream.ErrStreamNotFound)
		}
	}
	remove(host)
	b.until("the bucket is gone", gone(host))
	b.until("what the host reported is gone", func() bool {
		s, err := b.js.Stream(t.Context(), subjects.BucketStream(subjects.ObservedBucket))
		if err != nil {
			return false
		}
		_, err = s.GetLastMsgForSubject(t.Context(), key)
		return errors.Is(err, jetstream.ErrMsgNotFound)
	})
	// A host that goes while nobody publishes is found by the next publisher.
	stop()
	remove(orphan)
	b.publish()
	b.until("the orphaned bucket is gone", gone(orphan))
}

// TestPublish_HostAheadIsNotRunAfter: a host that was told more than the journal knows gets no document, and the journal does not
// run after it until it takes an old one for newer.
func TestPublish_HostAheadIsNotRunAfter(t *testing.T) {
	b := newBench(t)
	host := b.addHost("h1", "a")
	other := b.addHost("h2", "a")
	facts, err := desired.Canonical(desired.HostFacts{Gen: b.store.Seq() + 5})
	if err != nil {
		t.Fatal(err)
	}
	b.store.SetObserved(host, desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, &desired.Status{Phase: desired.PhaseReady, Facts: facts})
	before := b.store.Seq()
	b.publish()
	b.until("the other host is told, and nobody waits for this one", func() bool {
		_, ok := b.document(other)
		return ok && b.store.View().Observed().PublishedSeq() >= before
	})
	if _, ok := b.document(host); ok || b.store.Seq() != before {
		t.Errorf("told %t, the journal went from %d to %d", ok, before, b.store.Seq())
	}
	// One that is held gets nothing either, until it is not any more.
	b.commit("hold", func(tx resource.Tx) error {
		h, err := resource.Get[*resource.Host](tx, other)
		if err != nil {
			return err
		}
		h = resource.Copy(h)
		h.Hold, h.Tags = &resource.HostHold{Why: "test"}, []string{"b"}
		return tx.Put(h)
	})
	held, _ := b.document(other)
	third := b.addHost("h3", "a")
	b.until("the third host is told", func() bool { _, ok := b.document(third); return ok })
	if now, _ := b.document(other); now.Head.Gen != held.Head.Gen {
		t.Errorf("a host that is held was told generation %d after %d", now.Head.Gen, held.Head.Gen)
	}
	_, seq := b.commit("release", func(tx resource.Tx) error {
		h, err := resource.Get[*resource.Host](tx, other)
		if err != nil {
			return err
		}
		h = resource.Copy(h)
		h.Hold = nil
		return tx.Put(h)
	})
	b.until("it is told on", func() bool { now, _ := b.document(other); return now.Head.Gen >= seq })
}
