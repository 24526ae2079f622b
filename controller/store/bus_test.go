package store

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// bus is an embedded NATS server with fsync, which can be stopped and started again on its directory.
type bus struct {
	t    testing.TB
	dir  string
	port int
	srv  *server.Server
}

func newBus(t testing.TB) *bus {
	t.Helper()
	b := &bus{t: t, dir: t.TempDir(), port: -1}
	b.start()
	t.Cleanup(b.stop)
	js := b.connect()
	for _, cfg := range []jetstream.StreamConfig{journal.Config(), bucket(subjects.ResourcesBucket), bucket(subjects.ObservedBucket)} {
		if _, err := js.CreateStream(context.Background(), cfg); err != nil {
			t.Fatalf("make stream: %v", err)
		}
	}
	return b
}

// bucket is like those of controller/site.
func bucket(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: subjects.BucketStream(name), Subjects: []string{subjects.BucketSubject(name, ">")}, MaxMsgsPerSubject: 1,
		Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, DenyDelete: true, AllowRollup: true, AllowDirect: true, AllowMsgTTL: true,
		PersistMode: jetstream.AsyncPersistMode,
	}
}

func (b *bus) start() {
	b.t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: b.port, JetStream: true, StoreDir: b.dir, SyncAlways: true, NoSigs: true, NoLog: true,
	})
	if err != nil {
		b.t.Fatalf("make server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(30 * time.Second) {
		b.t.Fatal("the server does not start")
	}
	b.srv, b.port = srv, srv.Addr().(*net.TCPAddr).Port
}

func (b *bus) stop() {
	if b.srv != nil {
		b.srv.Shutdown()
		b.srv.WaitForShutdown()
		b.srv = nil
	}
}

func (b *bus) connect(opts ...nats.Option) jetstream.JetStream {
	b.t.Helper()
	nc, err := nats.Connect(b.srv.ClientURL(), append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1),
	}, opts...)...)
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	b.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.t.Fatalf("make JetStream client: %v", err)
	}
	return js
}

// store makes a store of its own connection and loads it.
func (b *bus) store(ctx context.Context, js jetstream.JetStream) *Store {
	b.t.Helper()
	j, err := journal.Open(ctx, js, zerolog.Nop())
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := New(Config{Journal: j, JS: js, Log: zerolog.New(zerolog.NewTestWriter(b.t)).Level(zerolog.WarnLevel)})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := s.Load(ctx); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// term is a store that leads.
type term struct {
	t     testing.TB
	stop  context.CancelFunc
	ended chan struct{}
	err   error
}

// lead makes a store lead and waits until it does.
func lead(ctx context.Context, t testing.TB, s *Store) *term {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	m := &term{t: t, stop: cancel, ended: make(chan struct{})}
	go func() {
		m.err = s.Lead(ctx)
		close(m.ended)
	}()
	t.Cleanup(func() { m.end() })
	for !s.Leading() {
		select {
		case <-m.ended:
			t.Fatalf("the store does not lead: %v", m.err)
		case <-time.After(time.Millisecond):
		}
	}
	return m
}

// end ends the term and returns why it ended.
func (m *term) end() error {
	m.stop()
	<-m.ended
	return m.err
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func request(id string) resource.Request {
	return resource.Request{ID: id, Caller: "ann", Op: "test.run"}
}

func commit(ctx context.Context, t testing.TB, s *Store, id string, fn func(resource.Tx) error) uint64 {
	t.Helper()
	seq, err := s.Commit(ctx, request(id), fn)
	if err != nil {
		t.Fatalf("commit %s: %v", id, err)
	}
	return seq
}

func zone(id string) *resource.Zone {
	return &resource.Zone{Meta: resource.Meta{ID: id, Name: id}, State: resource.Enabled}
}

func putZone(id string) func(resource.Tx) error {
	return func(tx resource.Tx) error { return tx.Put(zone(id)) }
}

func isCode(err error, code resource.ErrorCode) bool {
	var e *resource.Error
	return errors.As(err, &e) && e.Code == code
}
