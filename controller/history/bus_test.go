package history

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

// bench is a NATS server with the streams that the past is read from, a leading store, and a History on it.
type bench struct {
	t     testing.TB
	ctx   context.Context
	srv   *server.Server
	nc    *nats.Conn
	js    jetstream.JetStream
	book  *journal.Journal
	store *store.Store
	past  *History
	dir   string
	stop  func()
}

func newBench(t testing.TB, cfg Config) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	t.Cleanup(cancel)
	b := &bench{t: t, ctx: ctx, dir: t.TempDir()}
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, DisableJetStreamBanner: true, JetStreamMaxStore: 40 << 30, JetStreamMaxMemory: 1 << 28,
	})
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
	// As controller/site makes them, but for limits.
	source := &jetstream.StreamSource{Name: subjects.BucketStream(subjects.ObservedBucket)}
	for _, k := range desired.Kinds() {
		source.SubjectTransforms = append(source.SubjectTransforms, jetstream.SubjectTransformConfig{
			Source:      subjects.BucketSubject(subjects.ObservedBucket, "*."+string(k)+".*"),
			Destination: subjects.HistorySubject("{{wildcard(1)}}", string(k)+".{{wildcard(2)}}"),
		})
	}
	observed := Desired("observed")
	observed.Name, observed.Subjects = subjects.BucketStream(subjects.ObservedBucket), []string{subjects.BucketSubject(subjects.ObservedBucket, ">")}
	for _, c := range []jetstream.StreamConfig{
		journal.Config(), observed,
		{Name: subjects.HistoryStream, Subjects: []string{subjects.HistoryAll}, AllowDirect: true, Sources: []*jetstream.StreamSource{source}},
	} {
		if _, err := b.js.CreateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if b.book, err = journal.Open(ctx, b.js, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	b.lead()
	b.open(cfg)
	t.Cleanup(func() {
		b.stop()
		b.nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	return b
}

// Desired is like the bucket of a host in controller/site.
func Desired(host string) jetstream.StreamConfig {
	name := subjects.DesiredBucket(host)
	return jetstream.StreamConfig{
		Name: subjects.BucketStream(name), Subjects: []string{subjects.BucketSubject(name, ">")}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
		AllowRollup: true, AllowDirect: true, AllowMsgTTL: true, DenyDelete: true,
	}
}

// lead makes a new store lead.
func (b *bench) lead() {
	b.t.Helper()
	var err error
	if b.store, err = store.New(store.Config{Journal: b.book, Log: zerolog.Nop()}); err != nil {
		b.t.Fatal(err)
	}
	if err := b.store.Load(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.store.Lead(ctx)
	}()
	go func() { _ = b.store.Watch(ctx, b.js) }()
	b.t.Cleanup(func() { cancel(); <-ended })
	b.until("the store leads", b.store.Leading)
}

// open starts a History on the directory.
func (b *bench) open(cfg Config) {
	b.t.Helper()
	cfg.Dir, cfg.Journal, cfg.Store, cfg.JS = b.dir, b.book, b.store, b.js
	if cfg.Log.GetLevel() == zerolog.TraceLevel {
		cfg.Log = zerolog.Nop()
	}
	var err error
	if b.past, err = New(cfg); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan struct{})
	past := b.past
	go func() {
		defer close(done)
		_ = past.Run(ctx)
	}()
	b.stop = func() { cancel(); <-done }
}

func (b *bench) until(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// commit makes a request of a caller.
func (b *bench) commit(id, caller, op string, fn func(tx resource.Tx) error) uint64 {
	b.t.Helper()
	seq, err := b.store.Commit(b.ctx, resource.Request{ID: id, Caller: caller, Op: op, From: "10.0.0.1", Started: time.Now().UTC()}, fn)
	if err != nil {
		b.t.Fatalf("%s: %v", id, err)
	}
	return seq
}

func zone(id, name string) *resource.Zone {
	return &resource.Zone{Meta: resource.Meta{ID: id, Name: name}, State: resource.Enabled}
}

func put(r resource.Resource) func(resource.Tx) error {
	return func(tx resource.Tx) error { return tx.Put(r.Clone()) }
}

func (b *bench) calls(f Filter) []string {
	b.t.Helper()
	if f.Limit == 0 {
		f.Limit = 1000
	}
	got, err := b.past.Calls(b.ctx, f, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	ids := []string{}
	for _, c := range got.Items {
		ids = append(ids, c.ID)
	}
	if got.Total < len(ids) {
		b.t.Errorf("the total is %d, with %d calls", got.Total, len(ids))
	}
	return ids
}

func rid(i int) string { return fmt.Sprintf("r%d", i) }

// openStore is another store on the same journal.
func openStore(t testing.TB, b *bench) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{Journal: b.book, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(b.ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// report writes a status as an agent does; "" for an item that is gone.
func (b *bench) report(host string, ref desired.Ref, phase desired.Phase, facts any) {
	b.t.Helper()
	m := nats.NewMsg(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(host, string(ref.Kind), ref.ID)))
	if phase == "" {
		m.Header.Set("KV-Operation", "PURGE")
		m.Header.Set("Nats-Rollup", "sub")
	} else {
		st := desired.Status{Rev: 1, Phase: phase, Since: time.Now().UTC()}
		var err error
		if facts != nil {
			if st.Facts, err = desired.Canonical(facts); err != nil {
				b.t.Fatal(err)
			}
		}
		data, err := desired.Canonical(st)
		if err != nil {
			b.t.Fatal(err)
		}
		m.Data = data
	}
	if _, err := b.js.PublishMsg(b.ctx, m); err != nil {
		b.t.Fatal(err)
	}
}

// reload makes a store that knows the journal, and leads nothing.
func (b *bench) reload() error {
	s, err := store.New(store.Config{Journal: b.book, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	b.store = s
	return s.Load(b.ctx)
}

// indexed waits until the index has everything.
func (b *bench) indexed() {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Minute); b.past.position().Seq < b.store.Seq(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("the journal is not indexed")
		}
	}
}
