package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/desired"
	"shoal/subjects"
)

const hostID = "h1"

// bench is a NATS server with the two buckets that a link uses, and a client with all rights.
type bench struct {
	t    *testing.T
	dir  string
	port int
	srv  *server.Server
	nc   *nats.Conn
	js   jetstream.JetStream
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir(), port: -1}
	b.start()
	t.Cleanup(func() { b.stop() })
	b.buckets()
	return b
}

func (b *bench) start() {
	b.t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: b.port, JetStream: true, StoreDir: b.dir, NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		b.t.Fatal("the server does not start")
	}
	b.srv = srv
	if b.port == -1 {
		b.port = srv.Addr().(*net.TCPAddr).Port
	}
	if b.nc, err = nats.Connect("", nats.InProcessServer(srv)); err != nil {
		b.t.Fatal(err)
	}
	if b.js, err = jetstream.New(b.nc); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) stop() {
	b.nc.Close()
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
}

// desiredConfig is a host's bucket; with hints unless the test wants them lost.
func desiredConfig(hints bool) jetstream.StreamConfig {
	bucket := subjects.DesiredBucket(hostID)
	c := jetstream.StreamConfig{
		Name: subjects.BucketStream(bucket), Subjects: []string{subjects.BucketSubject(bucket, ">")}, MaxMsgsPerSubject: 1,
		AllowDirect: true, AllowRollup: true, Discard: jetstream.DiscardNew,
	}
	if hints {
		c.RePublish = &jetstream.RePublish{Source: subjects.BucketSubject(bucket, ">"), Destination: subjects.Hint(hostID, ">"), HeadersOnly: true}
	}
	return c
}

func (b *bench) buckets() {
	b.t.Helper()
	b.must(b.js.CreateOrUpdateStream(b.t.Context(), desiredConfig(true)))
	b.must(b.js.CreateOrUpdateStream(b.t.Context(), observedConfig()))
}

func observedConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: subjects.BucketStream(subjects.ObservedBucket), Subjects: []string{subjects.BucketSubject(subjects.ObservedBucket, ">")},
		MaxMsgsPerSubject: 1, AllowDirect: true, AllowRollup: true, AllowMsgTTL: true, Discard: jetstream.DiscardNew,
	}
}

func (b *bench) must(_ jetstream.Stream, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// write puts a document into the bucket, items first.
func (b *bench) write(doc desired.Document) {
	b.t.Helper()
	for _, it := range doc.Items {
		b.writeItem(it)
	}
	b.writeHead(doc)
}

func (b *bench) writeItem(it desired.Item) {
	b.t.Helper()
	raw, err := it.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.put(subjects.ItemKey(string(it.Kind), it.ID), raw)
}

func (b *bench) writeHead(doc desired.Document) {
	b.t.Helper()
	raw, err := doc.Head.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.put(subjects.HeadKey, raw)
}

func (b *bench) put(key string, raw []byte) {
	b.t.Helper()
	if _, err := b.js.Publish(b.t.Context(), subjects.BucketSubject(subjects.DesiredBucket(hostID), key), raw); err != nil {
		b.t.Fatal(err)
	}
}

// doc is a document with n pools, whose content follows from the generation.
func doc(t *testing.T, gen uint64, n int) desired.Document {
	t.Helper()
	d := desired.Document{Head: desired.Head{Host: hostID, Gen: gen, Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	for i := range n {
		it, err := desired.NewItem(desired.KindPool, fmt.Sprintf("p%d", i), desired.Pool{Type: desired.PoolLocal, Path: fmt.Sprintf("/srv/%d/%d", gen, i)})
		if err != nil {
			t.Fatal(err)
		}
		it.Rev = gen
		raw, err := it.Encode()
		if err != nil {
			t.Fatal(err)
		}
		d.Items[it.Ref()] = it
		d.Head.Items[it.Ref()] = desired.Hash(raw)
	}
	return d
}

// credsFile makes credentials that a server without accounts ignores.
func credsFile(t *testing.T) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewUserClaims(pub)
	claims.Name = hostID
	token, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent.creds")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// linked runs a link against the bench until the test ends.
func linked(t *testing.T, b *bench, change func(*Config)) (*Link, <-chan desired.Document, <-chan bool) {
	t.Helper()
	docs, ahead := make(chan desired.Document, 64), make(chan bool, 1024)
	cfg := Config{
		URL: fmt.Sprintf("nats://127.0.0.1:%d", b.port), Creds: credsFile(t), Host: hostID, Log: zerolog.Nop(),
		OnDocument: func(d desired.Document) error { docs <- d; return nil }, OnAhead: func(a bool) { ahead <- a },
		ReconnectWait: 10 * time.Millisecond, ReconnectJitter: 10 * time.Millisecond, Spread: 10 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l, docs, ahead
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came within 20 s")
		panic("unreachable")
	}
}

func TestDocument_WholeAndInOrder(t *testing.T) {
	b := newBench(t)
	b.write(doc(t, 5, 3))
	_, docs, _ := linked(t, b, nil)
	if diff := cmp.Diff(doc(t, 5, 3), receive(t, docs)); diff != "" {
		t.Errorf("first document (-want +got):\n%s", diff)
	}
	// More than a page of items, fewer later: what the head does not list is not in the document.
	b.write(doc(t, 6, pageSize+10))
	if got := receive(t, docs); got.Head.Gen != 6 || len(got.Items) != pageSize+10 {
		t.Errorf("got generation %d with %d items, want 6 with %d", got.Head.Gen, len(got.Items), pageSize+10)
	}
	b.write(doc(t, 7, 1))
	if diff := cmp.Diff(doc(t, 7, 1), receive(t, docs)); diff != "" {
		t.Errorf("last document (-want +got):\n%s", diff)
	}
}

func TestDocument_TornIsNotHandedOn(t *testing.T) {
	b := newBench(t)
	_, docs, _ := linked(t, b, nil)
	d := doc(t, 3, 2)
	b.writeItem(d.Items[desired.Ref{Kind: desired.KindPool, ID: "p0"}])
	b.writeHead(d)
	// A second, whole one of a host that is not ours, and one that is no JSON, are not for us either.
	foreign := doc(t, 9, 0)
	foreign.Head.Host = "h2"
	b.writeHead(foreign)
	b.put(subjects.HeadKey, []byte("{"))
	b.writeHead(d)
	b.writeItem(d.Items[desired.Ref{Kind: desired.KindPool, ID: "p1"}])
	if diff := cmp.Diff(d, receive(t, docs)); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
	if len(docs) > 0 {
		t.Errorf("another document came: %v", <-docs)
	}
}

// TestDocument_TooNew: a controller speaks a schema that this agent does not, and then one that it does.
func TestDocument_TooNew(t *testing.T) {
	b := newBench(t)
	told := make(chan error, 64)
	_, docs, _ := linked(t, b, func(c *Config) { c.OnTooNew = func(err error) { told <- err } })
	b.put(subjects.HeadKey, []byte(`{"schema":1,"colour":"blue","host":"`+hostID+`","gen":9,"items":{}}`))
	for {
		err := receive(t, told)
		if err == nil {
			continue // the bucket was empty
		}
		if fault, ok := errors.AsType[*desired.Fault](err); !ok || fault.Code != desired.CodeTooNew {
			t.Errorf("told %v, want a fault TooNew", err)
		}
		break
	}
	d := doc(t, 10, 2)
	b.write(d)
	if diff := cmp.Diff(d, receive(t, docs)); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
	for receive(t, told) != nil {
		// until it is told that all is well again
	}
}

func TestDocument_OlderIsToldAsAhead(t *testing.T) { testAhead(t, 8) }

// TestDocument_OtherOfTheSameGenerationIsToldAsAhead: a journal that was rolled back has come to the same sequence by another way.
func TestDocument_OtherOfTheSameGenerationIsToldAsAhead(t *testing.T) { testAhead(t, 5) }

func testAhead(t *testing.T, gen uint64) {
	b := newBench(t)
	b.write(doc(t, 5, 1))
	var l *Link
	ahead := make(chan bool, 64)
	l, err := New(Config{
		URL: fmt.Sprintf("nats://127.0.0.1:%d", b.port), Creds: credsFile(t), Host: hostID, Log: zerolog.Nop(),
		OnDocument: func(d desired.Document) error { t.Errorf("generation %d was handed on", d.Head.Gen); return nil }, OnAhead: func(a bool) { ahead <- a },
	})
	if err != nil {
		t.Fatal(err)
	}
	l.Accepted(desired.Head{Host: hostID, Gen: gen})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if !receive(t, ahead) {
		t.Error("the bucket is behind, and that was not told")
	}
}

func TestDocument_NotTakenComesAgain(t *testing.T) {
	b := newBench(t)
	b.write(doc(t, 4, 1))
	tries := 0
	_, docs, _ := linked(t, b, func(c *Config) {
		take := c.OnDocument
		c.OnDocument = func(d desired.Document) error {
			if tries++; tries < 3 {
				return errors.New("the disk is full")
			}
			return take(d)
		}
	})
	if got := receive(t, docs); got.Head.Gen != 4 {
		t.Errorf("got generation %d, want 4", got.Head.Gen)
	}
}

func TestDocument_LostHintsAreFoundByTheProbe(t *testing.T) {
	b := newBench(t)
	b.write(doc(t, 1, 1))
	_, docs, _ := linked(t, b, func(c *Config) { c.ProbeEvery = 20 * time.Millisecond })
	receive(t, docs)
	b.must(b.js.UpdateStream(t.Context(), desiredConfig(false)))
	b.write(doc(t, 2, 1))
	if got := receive(t, docs); got.Head.Gen != 2 {
		t.Errorf("got generation %d, want 2", got.Head.Gen)
	}
}

func TestDocument_BucketMadeAnew(t *testing.T) {
	b := newBench(t)
	for gen := uint64(1); gen <= 20; gen++ {
		b.write(doc(t, gen, 2))
	}
	_, docs, _ := linked(t, b, func(c *Config) { c.ProbeEvery = 20 * time.Millisecond })
	for receive(t, docs).Head.Gen != 20 {
	}
	if err := b.js.DeleteStream(t.Context(), subjects.BucketStream(subjects.DesiredBucket(hostID))); err != nil {
		t.Fatal(err)
	}
	// Its sequences start over and end below those that were seen.
	b.must(b.js.CreateOrUpdateStream(t.Context(), desiredConfig(true)))
	b.write(doc(t, 21, 2))
	if diff := cmp.Diff(doc(t, 21, 2), receive(t, docs)); diff != "" {
		t.Errorf("document after the bucket was made anew (-want +got):\n%s", diff)
	}
}

// dropping is a network that can lose everything that the agent sends, without a word.
type dropping struct {
	lose  atomic.Bool
	conns chan net.Conn
}

type droppingConn struct {
	net.Conn
	d *dropping
}

func (c droppingConn) Write(b []byte) (int, error) {
	if c.d.lose.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (d *dropping) Dial(network, addr string) (net.Conn, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	d.conns <- c
	return droppingConn{c, d}, nil
}

// TestDocument_LostProbe: a probe gets lost with its connection. Whoever waited for the answer for good read no document ever after.
func TestDocument_LostProbe(t *testing.T) {
	b := newBench(t)
	net := &dropping{conns: make(chan net.Conn, 16)}
	_, docs, _ := linked(t, b, func(c *Config) {
		c.ProbeEvery, c.ProbeWait = 20*time.Millisecond, 200*time.Millisecond
		c.Options = []nats.Option{nats.SetCustomDialer(net)}
	})
	b.write(doc(t, 1, 1))
	receive(t, docs)
	net.lose.Store(true)
	time.Sleep(100 * time.Millisecond) // a probe or two
	net.lose.Store(false)
	for len(net.conns) > 0 {
		(<-net.conns).Close()
	}
	b.write(doc(t, 2, 1))
	if got := receive(t, docs); got.Head.Gen != 2 {
		t.Errorf("generation %d", got.Head.Gen)
	}
}

func TestDocument_ServerRestart(t *testing.T) {
	b := newBench(t)
	b.write(doc(t, 1, 1))
	_, docs, _ := linked(t, b, nil)
	receive(t, docs)
	b.stop()
	b.start()
	b.write(doc(t, 2, 1))
	if got := receive(t, docs); got.Head.Gen != 2 {
		t.Errorf("got generation %d, want 2", got.Head.Gen)
	}
}

// observed reads a status back; ok is false where there is none.
func (b *bench) observed(ref desired.Ref) (st desired.Status, ok bool) {
	s, err := b.js.Stream(b.t.Context(), subjects.BucketStream(subjects.ObservedBucket))
	if err != nil {
		return st, false
	}
	m, err := s.GetLastMsgForSubject(b.t.Context(), subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(hostID, string(ref.Kind), ref.ID)))
	if err != nil || m.Header.Get("KV-Operation") != "" {
		return st, false
	}
	st, err = desired.DecodeStatus(m.Data)
	return st, err == nil
}

func (b *bench) until(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestReport_NewestWinsAndComesBack(t *testing.T) {
	b := newBench(t)
	l, _, _ := linked(t, b, nil)
	one, two := desired.Ref{Kind: desired.KindPool, ID: "p1"}, desired.Ref{Kind: desired.KindDomain, ID: "d1"}
	for rev := uint64(1); rev <= 500; rev++ {
		l.Report(one, &desired.Status{Rev: rev, Phase: desired.PhaseReady})
	}
	l.Report(two, &desired.Status{Rev: 1, Phase: desired.PhaseWorking})
	newest := func() bool { st, ok := b.observed(one); return ok && st.Rev == 500 }
	b.until("the newest status is there", newest)
	b.until("the other too", func() bool { _, ok := b.observed(two); return ok })

	l.Report(two, nil)
	b.until("what is gone is purged", func() bool { _, ok := b.observed(two); return !ok })

	// The server loses what it had acknowledged: after the next connection everything is there again, bar what is gone.
	if err := b.js.DeleteStream(t.Context(), subjects.BucketStream(subjects.ObservedBucket)); err != nil {
		t.Fatal(err)
	}
	l.Report(one, &desired.Status{Rev: 501, Phase: desired.PhaseReady})
	b.stop()
	b.start()
	b.must(b.js.CreateOrUpdateStream(t.Context(), observedConfig()))
	b.until("the newest status is back", func() bool { st, ok := b.observed(one); return ok && st.Rev == 501 })
	if _, ok := b.observed(two); ok {
		t.Error("what was gone is back")
	}
}

// TestReport_BucketMadeAnew: nobody is disconnected when a bucket is made anew. The next report tells, also if it was refused while there
// was no bucket, and if others have filled the new one beyond where the old one was.
func TestReport_BucketMadeAnew(t *testing.T) {
	for name, tc := range map[string]struct{ refused, filled bool }{
		"at once": {}, "refused meanwhile": {refused: true}, "filled by others": {filled: true}, "refused and filled": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l, _, _ := linked(t, b, nil)
			var refs []desired.Ref
			for i := range 20 {
				refs = append(refs, desired.Ref{Kind: desired.KindPool, ID: fmt.Sprintf("p%d", i)})
				l.Report(refs[i], &desired.Status{Rev: 1, Phase: desired.PhaseReady})
			}
			all := func() bool {
				for _, ref := range refs {
					if _, ok := b.observed(ref); !ok {
						return false
					}
				}
				return true
			}
			b.until("everything is reported", all)
			if err := b.js.DeleteStream(t.Context(), subjects.BucketStream(subjects.ObservedBucket)); err != nil {
				t.Fatal(err)
			}
			if tc.refused {
				l.Report(refs[0], &desired.Status{Rev: 2, Phase: desired.PhaseReady})
				b.until("it is refused", func() bool {
					l.report.mu.Lock()
					defer l.report.mu.Unlock()
					return l.report.sending[refs[0]]
				})
			}
			b.must(b.js.CreateOrUpdateStream(t.Context(), observedConfig()))
			if tc.filled {
				for i := range 100 {
					if _, err := b.js.Publish(t.Context(), subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey("other", "pool", fmt.Sprint(i))), nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if !tc.refused {
				l.Report(refs[0], &desired.Status{Rev: 2, Phase: desired.PhaseReady})
			}
			b.until("everything is reported again", all)
		})
	}
}

// TestReport_ForgottenIsPurged: a process reports and dies before it can say that the item is gone.
func TestReport_ForgottenIsPurged(t *testing.T) {
	b := newBench(t)
	names := filepath.Join(t.TempDir(), "names.json")
	gone, stays := desired.Ref{Kind: desired.KindPool, ID: "p1"}, desired.Ref{Kind: desired.KindPool, ID: "p2"}
	t.Run("first process", func(t *testing.T) {
		l, _, _ := linked(t, b, func(c *Config) { c.Names = names })
		for _, ref := range []desired.Ref{gone, stays} {
			l.Report(ref, &desired.Status{Rev: 1, Phase: desired.PhaseReady})
			b.until("the status is there", func() bool { _, ok := b.observed(ref); return ok })
		}
	})
	l, _, _ := linked(t, b, func(c *Config) { c.Names, c.ForgetAfter = names, 100*time.Millisecond })
	l.Report(stays, &desired.Status{Rev: 2, Phase: desired.PhaseReady})
	b.until("what nobody reported again is purged", func() bool { _, ok := b.observed(gone); return !ok })
	b.until("what was reported again is newer", func() bool { st, ok := b.observed(stays); return ok && st.Rev == 2 })
}

func TestReport_NoServerAtTheStart(t *testing.T) {
	b := newBench(t)
	b.stop()
	l, docs, _ := linked(t, b, nil)
	ref := desired.Ref{Kind: desired.KindPool, ID: "p1"}
	l.Report(ref, &desired.Status{Rev: 7, Phase: desired.PhaseReady})
	if _, err := l.URLs(t.Context(), "i1"); err == nil {
		t.Error("a request without a server was answered")
	}
	b.start()
	b.write(doc(t, 1, 1))
	receive(t, docs)
	b.until("the status from before the connection is there", func() bool { st, ok := b.observed(ref); return ok && st.Rev == 7 })
}

// TestDocument_IsHandedOver: the controller gets the ledger's document whole, page by page, and is told where there is none.
func TestDocument_IsHandedOver(t *testing.T) {
	b := newBench(t)
	want := doc(t, 5, 3)
	var has atomic.Bool
	linked(t, b, func(c *Config) {
		c.Document = func() (desired.Document, bool) { return want, has.Load() }
	})
	ask := func(body []byte) *nats.Msg {
		t.Helper()
		m, err := b.nc.Request(subjects.Agent(hostID, subjects.AgentVerbDocument), body, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	b.until("the agent serves requests", func() bool {
		_, err := b.nc.Request(subjects.Agent(hostID, subjects.AgentVerbDocument), []byte("{}"), 50*time.Millisecond)
		return err == nil
	})
	for _, body := range []string{`{}`, `nonsense`} {
		if m := ask([]byte(body)); m.Header.Get("Nats-Service-Error") == "" || len(m.Data) > 0 {
			t.Errorf("%s is answered with %q", body, m.Data)
		}
	}
	has.Store(true)
	var a desired.Assembly
	for {
		body, err := json.Marshal(a.Next())
		if err != nil {
			t.Fatal(err)
		}
		var p desired.DocumentPage
		if err := json.Unmarshal(ask(body).Data, &p); err != nil {
			t.Fatal(err)
		}
		got, whole, err := a.Add(p)
		if err != nil {
			t.Fatal(err)
		}
		if whole {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			return
		}
	}
}
