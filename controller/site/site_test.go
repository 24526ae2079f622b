package site_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/controller/certificate"
	"shoal/controller/identity"
	"shoal/controller/site"
	"shoal/desired"
	"shoal/subjects"
)

// patience bounds waits for things that normally take milliseconds.
const patience = 30 * time.Second

func open(t *testing.T, cfg site.Config) *site.Site {
	t.Helper()
	if cfg.Identity == nil {
		cfg.Identity = keys(t)
	}
	if cfg.Dir == "" && cfg.URL == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Name == "" {
		cfg.Name = "c1"
	}
	cfg.MaxStore, cfg.MaxHistory = 1<<30, 1<<20
	s, err := site.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func keys(t *testing.T) *identity.Identity {
	t.Helper()
	id, err := identity.Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// as connects as a user of that role.
func as(t *testing.T, s *site.Site, id *identity.Identity, role identity.Role, name string) *nats.Conn {
	t.Helper()
	c, err := id.Creds(role, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	inbox := name
	if role == identity.RoleInspector {
		inbox = subjects.InspectorInbox + name
	}
	nc, err := nats.Connect("", nats.InProcessServer(s.Server()), nats.UserJWTAndSeed(c.JWT, string(c.Seed)), nats.CustomInboxPrefix(subjects.Inbox(inbox)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// trust is the certificate of a controller on the loopback.
func trust(t *testing.T, id *identity.Identity) *certificate.Service {
	t.Helper()
	s, err := certificate.New(certificate.Config{
		Identity: id, Dir: t.TempDir(), Names: func() ([]string, error) { return []string{"127.0.0.1"}, nil }, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// session connects as somebody who has logged in.
func session(t *testing.T, s *site.Site, id *identity.Identity, role identity.Role, name, account string) *nats.Conn {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	token, err := id.IssueSession(role, name, account, pub, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("", nats.InProcessServer(s.Server()), nats.CustomInboxPrefix(subjects.Inbox(name)),
		nats.UserJWT(func() (string, error) { return token, nil }, k.Sign), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// guest connects with no credentials at all, over the port.
func guest(t *testing.T, url string, roots *x509.CertPool, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append(opts, nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}),
		nats.CustomInboxPrefix(subjects.Inbox(subjects.GuestName)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestStreamsAreMadeAndOpenIsRepeatable(t *testing.T) {
	dir, id := t.TempDir(), keys(t)
	for range 2 {
		s := open(t, site.Config{Dir: dir, Identity: id})
		js := s.JetStream()
		for name, async := range map[string]bool{
			"JOURNAL": false, "HISTORY": true, "KV_resources": true, "KV_observed": true, "KV_lease": false, "OBJ_artifacts": false,
		} {
			st, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(name, err)
			}
			if got := st.CachedInfo().Config.PersistMode == jetstream.AsyncPersistMode; got != async {
				t.Errorf("%s: async %t, want %t", name, got, async)
			}
		}
		st, err := js.CreateOrUpdateStream(t.Context(), site.Desired("h1"))
		if err != nil {
			t.Fatal(err)
		}
		if c := st.CachedInfo().Config; c.RePublish == nil || !c.RePublish.HeadersOnly || !c.AllowDirect || !c.AllowMsgTTL {
			t.Errorf("desired bucket is %+v", c)
		}
		if _, err := js.ObjectStore(t.Context(), subjects.ArtifactsBucket); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// TestHistory_TakesNewKinds: an installation of an older version, whose history does not know a kind, has it recorded from now on.
func TestHistory_TakesNewKinds(t *testing.T) {
	dir, id := t.TempDir(), keys(t)
	s := open(t, site.Config{Dir: dir, Identity: id})
	st, err := s.JetStream().Stream(t.Context(), subjects.HistoryStream)
	if err != nil {
		t.Fatal(err)
	}
	older := st.CachedInfo().Config
	all := len(older.Sources[0].SubjectTransforms)
	older.Sources[0].SubjectTransforms = slices.DeleteFunc(slices.Clone(older.Sources[0].SubjectTransforms), func(c jetstream.SubjectTransformConfig) bool {
		return strings.Contains(c.Source, ".agent.") || strings.Contains(c.Source, "*.agent.")
	})
	if len(older.Sources[0].SubjectTransforms) != all-1 {
		t.Fatalf("no such transform in %+v", older.Sources[0])
	}
	if _, err := s.JetStream().UpdateStream(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, site.Config{Dir: dir, Identity: id})
	if _, err := s.JetStream().Publish(t.Context(), subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey("h1", "agent", "self")), []byte(`{"rev":1}`)); err != nil {
		t.Fatal(err)
	}
	wait(t, func() error {
		st, err := s.JetStream().Stream(t.Context(), subjects.HistoryStream)
		if err != nil {
			return err
		}
		_, err = st.GetLastMsgForSubject(t.Context(), subjects.HistorySubject("h1", "agent.self"))
		return err
	})
}

// TestPermissions holds every role to its list, on a real server with all five accounts.
func TestPermissions(t *testing.T) {
	id := keys(t)
	certs := trust(t, id)
	s := open(t, site.Config{Identity: id, Listen: "127.0.0.1:0", TLS: certs.Server()})
	ctx, js := t.Context(), s.JetStream()
	for _, h := range []string{"h1", "h2"} {
		if _, err := js.CreateOrUpdateStream(ctx, site.Desired(h)); err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(ctx, subjects.BucketSubject(subjects.DesiredBucket(h), subjects.HeadKey), []byte(h)); err != nil {
			t.Fatal(err)
		}
	}
	for _, subj := range []string{subjects.APIAll, subjects.AgentAPIAll, subjects.GuestAll} {
		if _, err := s.Conn().Subscribe(subj, func(m *nats.Msg) {
			_ = m.Respond([]byte(m.Header.Get("Nats-Request-Info")))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Conn().Flush(); err != nil {
		t.Fatal(err)
	}
	conns := map[string]*nats.Conn{
		"agent":   as(t, s, id, identity.RoleAgent, "h1"),
		"admin":   as(t, s, id, identity.RoleAdmin, "ann"),
		"viewer":  as(t, s, id, identity.RoleViewer, "bob"),
		"looker":  as(t, s, id, identity.RoleInspector, "lou"),
		"manager": session(t, s, id, identity.RoleManager, "max", "root"),
		"user":    session(t, s, id, identity.RoleUser, "eve", "acc-a"),
		"guest":   guest(t, s.ClientURL(), certs.Roots()),
	}
	last := `{"last_by_subj":"$KV.desired_h1.>"}`
	var asked sync.WaitGroup // all at once: a refusal has no answer to wait for
	for _, c := range []struct {
		who, subject, body string
		ok                 bool
	}{
		{"agent", subjects.DirectGet("desired_h1"), last, true},
		{"agent", subjects.DirectGet("desired_h2"), `{"last_by_subj":"$KV.desired_h2.>"}`, false},
		{"agent", subjects.DirectGet("observed"), `{"last_by_subj":"$KV.observed.>"}`, false},
		{"agent", subjects.BucketSubject("observed", "h1.domain.x"), `{}`, true},
		{"agent", subjects.BucketSubject("observed", "h2.domain.x"), `{}`, false},
		{"agent", subjects.BucketSubject("desired_h1", "head"), `{}`, false},
		{"agent", subjects.BucketSubject("desired_h2", "head"), `{}`, false},
		{"agent", subjects.JournalSubject, `{}`, false},
		{"agent", subjects.AgentAPI("h1", "image-url"), ``, true},
		{"agent", subjects.AgentAPI("h2", "image-url"), ``, false},
		{"agent", subjects.API("h1", "vm", "list"), ``, false},
		{"agent", "$JS.API.STREAM.INFO.KV_desired_h1", ``, false},
		{"agent", "$JS.API.STREAM.DELETE.KV_desired_h2", ``, false},
		{"agent", subjects.Guest(subjects.GuestEnrol), ``, false},
		{"admin", subjects.API("ann", "vm", "create"), ``, true},
		{"admin", subjects.API("bob", "vm", "create"), ``, false},
		{"admin", "$JS.API.STREAM.INFO.KV_desired_h1", ``, true},
		{"admin", "$JS.API.STREAM.DELETE.KV_desired_h1", ``, false},
		{"admin", "$JS.API.CONSUMER.CREATE.JOURNAL", `{}`, false},
		{"admin", subjects.BucketSubject("observed", "h1.domain.x"), `{}`, false},
		{"admin", subjects.JournalSubject, `{}`, false},
		{"viewer", subjects.API("bob", "vm", "list"), ``, true},
		{"viewer", subjects.API("bob", "vm", "create"), ``, false},
		{"viewer", subjects.API("ann", "vm", "list"), ``, false},
		{"viewer", subjects.DirectGet("desired_h1"), last, true},
		{"viewer", subjects.Guest(subjects.GuestLogin), ``, false},
		{"looker", "$JS.API.STREAM.INFO.KV_desired_h1", ``, true},
		{"looker", "$JS.API.STREAM.MSG.GET.JOURNAL", `{"seq":1}`, true},
		{"looker", "$JS.API.CONSUMER.CREATE.JOURNAL", `{"stream_name":"JOURNAL","config":{"ack_policy":"none"}}`, true},
		{"looker", "$JS.API.STREAM.DELETE.KV_desired_h1", ``, false},
		{"looker", "$JS.API.STREAM.PURGE.JOURNAL", ``, false},
		{"looker", "$JS.API.STREAM.UPDATE.JOURNAL", `{}`, false},
		{"looker", subjects.API("lou", "vm", "list"), ``, false},
		{"looker", subjects.API("ann", "vm", "list"), ``, false},
		{"looker", subjects.AgentAPI("h1", "renew"), ``, false},
		{"looker", subjects.BucketSubject("observed", "h1.domain.x"), `{}`, false},
		{"looker", subjects.BucketSubject("desired_h1", "head"), `{}`, false},
		{"looker", subjects.JournalSubject, `{}`, false},
		{"manager", subjects.API("max", "vm", "create"), ``, true},
		{"manager", subjects.API("ann", "vm", "create"), ``, false},
		{"manager", "$JS.API.STREAM.INFO.KV_desired_h1", ``, true},
		{"manager", "$JS.API.STREAM.DELETE.KV_desired_h1", ``, false},
		{"manager", subjects.JournalSubject, `{}`, false},
		{"user", subjects.API("eve", "vm", "create"), ``, true},
		{"user", subjects.API("max", "vm", "list"), ``, false},
		{"user", "$JS.API.INFO", ``, false},
		{"user", "$JS.API.STREAM.NAMES", ``, false},
		{"user", "$JS.API.STREAM.INFO.KV_resources", ``, false},
		{"user", "$JS.API.STREAM.MSG.GET.JOURNAL", `{"seq":1}`, false},
		{"user", "$JS.API.CONSUMER.CREATE.JOURNAL", `{}`, false},
		{"user", subjects.DirectGet("resources"), `{"last_by_subj":"$KV.resources.>"}`, false},
		{"user", subjects.DirectGet("desired_h1"), last, false},
		{"user", subjects.DirectGet("desired_h1") + ".$KV.desired_h1.head", ``, false},
		{"user", subjects.BucketSubject("observed", "h1.domain.x"), `{}`, false},
		{"user", subjects.AgentAPI("h1", "renew"), ``, false},
		{"user", subjects.Guest(subjects.GuestLogin), ``, false},
		{"guest", subjects.Guest(subjects.GuestLogin), ``, true},
		{"guest", subjects.Guest(subjects.GuestEnrol), ``, true},
		{"guest", subjects.Guest(subjects.GuestRenew), ``, true},
		{"guest", subjects.Guest(subjects.GuestTime), ``, true},
		{"guest", subjects.Guest("other"), ``, false},
		{"guest", subjects.API("guest", "vm", "list"), ``, false},
		{"guest", subjects.API("max", "vm", "list"), ``, false},
		{"guest", subjects.AgentAPI("h1", "renew"), ``, false},
		{"guest", "$JS.API.INFO", ``, false},
		{"guest", "$SRV.PING", ``, false},
		{"guest", "$SYS.REQ.USER.INFO", ``, false},
		{"guest", subjects.DirectGet("desired_h1"), last, false},
		{"guest", subjects.BucketSubject("observed", "h1.domain.x"), `{}`, false},
		{"guest", subjects.JournalSubject, `{}`, false},
	} {
		asked.Go(func() {
			wait := patience
			if !c.ok {
				wait = 500 * time.Millisecond
			}
			m, err := conns[c.who].Request(c.subject, []byte(c.body), wait)
			if ok := err == nil && len(m.Data) > 0; ok != c.ok {
				t.Errorf("%s on %s: answered %t (%v), want %t", c.who, c.subject, ok, err, c.ok)
			}
		})
	}
	asked.Wait()
	// Who asks is told to the controller by the server, not by the asker.
	for who, want := range map[string]struct {
		subject, name string
		role          identity.Role
		account       identity.Account
	}{
		"guest":   {subjects.Guest(subjects.GuestLogin), subjects.GuestName, identity.RoleGuest, identity.ENROLL},
		"user":    {subjects.API("eve", "vm", "list"), "eve", identity.RoleUser, identity.USR},
		"manager": {subjects.API("max", "vm", "list"), "max", identity.RoleManager, identity.USR},
		"admin":   {subjects.API("ann", "vm", "list"), "ann", identity.RoleAdmin, identity.USR},
		"agent":   {subjects.AgentAPI("h1", "renew"), "h1", identity.RoleAgent, identity.AGT},
	} {
		forged := nats.NewMsg(want.subject)
		forged.Header.Set("Nats-Request-Info", `{"host":"6.6.6.6","name_tag":"evil"}`)
		m, err := conns[who].RequestMsg(forged, patience)
		if err != nil {
			t.Fatal(who, err)
		}
		var info server.ClientInfo
		if err := json.Unmarshal(m.Data, &info); err != nil {
			t.Fatal(who, err)
		}
		if info.NameTag != want.name || info.IssuerKey != id.SigningKey(want.role) || info.Account != id.AccountID(want.account) {
			t.Errorf("%s: the server says %s", who, m.Data)
		}
		if who == "guest" && info.Host != "127.0.0.1" {
			t.Errorf("a guest's address is %q", info.Host)
		}
	}
	if err := conns["guest"].Publish(subjects.Guest(subjects.GuestLogin), make([]byte, 17<<10)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a guest's large request: %v", err)
	}
	// What could not be written really was not.
	if m, err := js.Stream(ctx, "KV_desired_h2"); err != nil || m.CachedInfo().State.LastSeq != 1 {
		t.Errorf("another host's bucket was touched: %v", err)
	}
}

// A reply subject that names another host's document is the classic way around subject permissions.
func TestReflectionIsHarmless(t *testing.T) {
	id := keys(t)
	s := open(t, site.Config{Identity: id})
	ctx, js := t.Context(), s.JetStream()
	for _, h := range []string{"h1", "h2"} {
		if _, err := js.CreateOrUpdateStream(ctx, site.Desired(h)); err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(ctx, subjects.BucketSubject(subjects.DesiredBucket(h), subjects.HeadKey), []byte(h)); err != nil {
			t.Fatal(err)
		}
	}
	agent := as(t, s, id, identity.RoleAgent, "h1")
	for _, target := range []string{"$KV.desired_h2.head", "$KV.observed.h2.domain.x", subjects.JournalSubject} {
		for _, subj := range []string{subjects.DirectGet("desired_h1"), "$KV.observed.h1.domain.x"} {
			if err := agent.PublishRequest(subj, target, []byte(`{"last_by_subj":"$KV.desired_h1.>"}`)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The answer to this one comes after all the others have been dealt with.
	if _, err := agent.Request(subjects.DirectGet("desired_h1"), []byte(`{"last_by_subj":"$KV.desired_h1.>"}`), patience); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{"KV_desired_h2": 1, "JOURNAL": 0} {
		st, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.CachedInfo().State.LastSeq; got != want {
			t.Errorf("%s has sequence %d, want %d", name, got, want)
		}
	}
}

func TestHistoryHoldsObservedItemsButNoHeartbeats(t *testing.T) {
	s := open(t, site.Config{})
	ctx, js := t.Context(), s.JetStream()
	put := func(key, val string, opts ...jetstream.PublishOpt) {
		t.Helper()
		if _, err := js.Publish(ctx, subjects.BucketSubject(subjects.ObservedBucket, key), []byte(val), opts...); err != nil {
			t.Fatal(err)
		}
	}
	put(subjects.ObservedKey("h1", string(desired.KindHost), desired.HostStatusID), "heartbeat")
	put(subjects.ObservedKey("h1", string(desired.KindDomain), "v1"), "status", jetstream.WithMsgTTL(time.Hour))
	h, err := js.Stream(ctx, subjects.HistoryStream)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, func() error {
		m, err := h.GetLastMsgForSubject(ctx, subjects.HistorySubject("h1", "domain.v1"))
		if err != nil {
			return err
		}
		if string(m.Data) != "status" {
			return fmt.Errorf("history holds %q", m.Data)
		}
		return nil
	})
	// The mark of an item that is gone rolls its bucket up, and goes by itself; the record keeps what was before.
	gone := nats.NewMsg(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey("h1", string(desired.KindDomain), "v1")))
	gone.Header.Set("KV-Operation", "PURGE")
	gone.Header.Set("Nats-Rollup", "sub")
	if _, err := js.PublishMsg(ctx, gone, jetstream.WithMsgTTL(time.Hour)); err != nil {
		t.Fatal(err)
	}
	put(subjects.ObservedKey("h1", string(desired.KindVolume), "d1"), "after")
	wait(t, func() error {
		_, err := h.GetLastMsgForSubject(ctx, subjects.HistorySubject("h1", "volume.d1"))
		return err
	})
	info, err := h.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 3 {
		t.Errorf("history holds %d messages, want the status, its end and the other status", info.State.Msgs)
	}
}

// wait polls for a value; it does not measure time.
func wait(t *testing.T, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestLeaseHandsOver(t *testing.T) {
	s := open(t, site.Config{})
	type turn struct {
		name string
		ctx  context.Context
	}
	turns := make(chan turn, 10)
	campaign := func(name string) context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = site.NewLease(s.JetStream(), name, zerolog.Nop()).Campaign(ctx, func(ctx context.Context) error {
				turns <- turn{name, ctx}
				<-ctx.Done()
				return nil
			})
		}()
		stop := func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop
	}
	stopA := campaign("a")
	first := <-turns
	stopB := campaign("b")
	if h, ok, err := site.NewLease(s.JetStream(), "x", zerolog.Nop()).Leader(t.Context()); err != nil || !ok || h.Name != "a" {
		t.Fatalf("leader is %+v, %t, %v", h, ok, err)
	}
	if first.ctx.Err() != nil || len(turns) != 0 {
		t.Fatal("two leaders at once")
	}
	stopA()
	if second := <-turns; second.name != "b" || first.ctx.Err() == nil {
		t.Fatalf("after a stopped %s leads, a's context says %v", second.name, first.ctx.Err())
	}
	// A lease that is taken away ends the leader's turn, and nothing of it stays.
	kv, err := s.JetStream().KeyValue(t.Context(), subjects.LeaseBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), subjects.LeaderKey, []byte(`{"name":"killed"}`)); err != nil {
		t.Fatal(err)
	}
	again := <-turns // only after the lease of "killed" has run out
	if again.name != "b" {
		t.Fatalf("%s leads", again.name)
	}
	stopB()
	if !errors.Is(context.Cause(again.ctx), context.Canceled) {
		t.Errorf("the context ended with %v", context.Cause(again.ctx))
	}
	if _, ok, err := site.NewLease(s.JetStream(), "x", zerolog.Nop()).Leader(t.Context()); err != nil || ok {
		t.Errorf("a lease is left: %t, %v", ok, err)
	}
}

func TestPresence(t *testing.T) {
	id := keys(t)
	s := open(t, site.Config{Identity: id})
	early := as(t, s, id, identity.RoleAgent, "early")
	ctx, cancel := context.WithCancel(t.Context())
	type word struct {
		host string
		on   bool
	}
	words, done := make(chan word, 100), make(chan error, 1)
	go func() {
		done <- s.Presence(ctx, func(h string, on bool, at time.Time) {
			if at.IsZero() {
				t.Errorf("%s: no time", h)
			}
			words <- word{h, on}
		})
	}()
	expect := func(want word) {
		t.Helper()
		select {
		case got := <-words:
			if got != want {
				t.Fatalf("got %v, want %v", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("not told of %v", want)
		}
	}
	expect(word{"early", true})
	late := as(t, s, id, identity.RoleAgent, "late")
	expect(word{"late", true})
	second := as(t, s, id, identity.RoleAgent, "late") // the same host twice, as after a lost network
	if err := second.Flush(); err != nil {
		t.Fatal(err)
	}
	as(t, s, id, identity.RoleAdmin, "ann") // people are no hosts
	late.Close()
	early.Close()
	expect(word{"early", false})
	second.Close()
	expect(word{"late", false})
	// Revoked credentials cut a live connection.
	c, err := id.Creds(identity.RoleAgent, "bad", 0)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := nats.Connect("", nats.InProcessServer(s.Server()), nats.UserJWTAndSeed(c.JWT, string(c.Seed)), nats.MaxReconnects(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bad.Close)
	expect(word{"bad", true})
	a, err := id.Revoke(identity.RoleAgent, c.PublicKey, time.Now().Add(time.Second), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateAccount(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	expect(word{"bad", false})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Presence = %v", err)
	}
}

// Hints of an account's resources reach its own users, and those who may see everything.
func TestEventsStayInTheirAccount(t *testing.T) {
	id := keys(t)
	s := open(t, site.Config{Identity: id})
	heard := map[string]chan string{}
	for name, c := range map[string]*nats.Conn{
		"a": session(t, s, id, identity.RoleUser, "eve", "acc-a"), "b": session(t, s, id, identity.RoleUser, "bob", "acc-b"),
		"manager": session(t, s, id, identity.RoleManager, "max", "root"),
	} {
		ch := make(chan string, 100)
		heard[name] = ch
		// Refused but for those that the user may have.
		for _, subj := range []string{subjects.EventAll, subjects.EventsOf("acc-a"), subjects.EventsOf("acc-b"), subjects.Event("*", "vm", "*"), "shoal.>", ">", "shoal.hint.>"} {
			if _, err := c.Subscribe(subj, func(m *nats.Msg) { ch <- m.Subject }); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, func() error {
		for _, subj := range []string{subjects.Event("acc-a", "vm", "1"), subjects.Event("acc-b", "vm", "2"), "shoal.hint.h1.head"} {
			if err := s.Conn().Publish(subj, nil); err != nil {
				return err
			}
		}
		if len(heard["a"]) < 10 || len(heard["b"]) < 10 || len(heard["manager"]) < 10 {
			return fmt.Errorf("heard %d, %d, %d hints", len(heard["a"]), len(heard["b"]), len(heard["manager"]))
		}
		return nil
	})
	for name, want := range map[string]string{"a": subjects.Event("acc-a", "vm", "1"), "b": subjects.Event("acc-b", "vm", "2")} {
		for range 10 {
			if got := <-heard[name]; got != want {
				t.Errorf("a user of account %s hears %s", name, got)
			}
		}
	}
}

// Credentials that are revoked cut a live connection at once, also where many have been.
func TestRevocationCutsAtOnce(t *testing.T) {
	id := keys(t)
	certs := trust(t, id)
	s := open(t, site.Config{Identity: id, Listen: "127.0.0.1:0", TLS: certs.Server()})
	var list []identity.Revocation
	for range 1000 {
		k, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []identity.Role{identity.RoleAgent, identity.RoleUser} {
			list = append(list, identity.Revocation{Role: r, PublicKey: pub, At: time.Now(), Until: time.Now().Add(identity.HostTTL)})
		}
	}
	if _, err := id.RevokeAll(list); err != nil {
		t.Fatal(err)
	}
	for _, a := range []identity.Account{identity.AGT, identity.USR} {
		if err := s.UpdateAccount(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		role identity.Role
		name string
	}{{identity.RoleAgent, "h1"}, {identity.RoleUser, "eve"}, {identity.RoleManager, "max"}} {
		k, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		seed, err := k.Seed()
		if err != nil {
			t.Fatal(err)
		}
		expires := time.Now().Add(time.Hour)
		var token string
		if c.role == identity.RoleAgent {
			token, expires, err = id.IssueHost(c.name, pub)
		} else {
			token, err = id.IssueSession(c.role, c.name, "acc-a", pub, expires)
		}
		if err != nil {
			t.Fatal(err)
		}
		cut := make(chan struct{})
		connect := func(opts ...nats.Option) (*nats.Conn, error) {
			return nats.Connect(s.ClientURL(), append(opts, nats.Secure(certs.Client()), nats.UserJWTAndSeed(token, string(seed)), nats.NoReconnect())...)
		}
		nc, err := connect(nats.ClosedHandler(func(*nats.Conn) { close(cut) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		other := session(t, s, id, identity.RoleUser, "other", "acc-b")
		begin := time.Now()
		a, err := id.Revoke(c.role, pub, time.Now(), expires)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.UpdateAccount(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		select {
		case <-cut:
		case <-time.After(patience):
			t.Fatalf("%s is still connected", c.name)
		}
		took := time.Since(begin)
		t.Logf("%s is cut off %s after the revocation, among 1,000 others", c.name, took.Round(100*time.Microsecond))
		if took > time.Second {
			t.Errorf("%s was cut off after %s", c.name, took)
		}
		if _, err := connect(); err == nil {
			t.Errorf("%s connects again", c.name)
		}
		if err := other.FlushTimeout(patience); err != nil {
			t.Errorf("another user was cut off, too: %v", err)
		}
	}
}

// The port speaks TLS 1.3 only, and a certificate that is replaced drops nobody.
func TestListenSpeaksTLS(t *testing.T) {
	id := keys(t)
	certs := trust(t, id)
	s := open(t, site.Config{Identity: id, Listen: "127.0.0.1:0", TLS: certs.Server()})
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.2": {RootCAs: certs.Roots(), MaxVersion: tls.VersionTLS12, MinVersion: tls.VersionTLS12}, "another authority": {RootCAs: trust(t, keys(t)).Roots()},
	} {
		if c, err := nats.Connect(s.ClientURL(), nats.Secure(cfg)); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		}
	}
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Server().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write([]byte("CONNECT {\"verbose\":true}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(raw); strings.Contains(string(said), "PONG") || !strings.HasPrefix(string(said), "INFO ") {
		t.Errorf("without TLS the server says %q, %v", said, err)
	}
	leaf := func(c *nats.Conn) *x509.Certificate {
		t.Helper()
		state, err := c.TLSConnectionState()
		if err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0]
	}
	lost := make(chan struct{}, 1)
	old := guest(t, s.ClientURL(), certs.Roots(), nats.DisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} }))
	before := leaf(old)
	if _, err := id.RotateCA(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := certs.Refresh(); err != nil {
		t.Fatal(err)
	}
	both := certs.Roots()
	if _, err := id.ActivateCA(time.Now(), true); err != nil {
		t.Fatal(err)
	}
	if err := certs.Refresh(); err != nil {
		t.Fatal(err)
	}
	if leaf(guest(t, s.ClientURL(), both)).Equal(before) {
		t.Error("a new connection gets the old certificate")
	}
	if err := old.FlushTimeout(patience); err != nil || len(lost) != 0 || !leaf(old).Equal(before) {
		t.Errorf("the old connection was dropped (%v)", err)
	}
}

// A controller beside a server that runs from the configuration we print uses it like its own: it makes the streams,
// keeps the accounts up to date and sees hosts come and go.
func TestExternal(t *testing.T) {
	id, dir := keys(t), t.TempDir()
	certs := trust(t, id)
	ca, err := id.CA()
	if err != nil {
		t.Fatal(err)
	}
	chain, key, err := ca.Issue([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ext := identity.ExternalServer{Listen: "127.0.0.1:4222", Dir: dir, Cert: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server.key")}
	for path, b := range map[string][]byte{ext.Cert: chain, ext.Key: key} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := id.ServerConfig(ext)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "nats-server.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o.Host, o.Port, o.NoLog, o.NoSigs, o.ServerName = "127.0.0.1", server.RANDOM_PORT, true, true, "outside"
	outside, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	outside.Start()
	t.Cleanup(func() { outside.Shutdown(); outside.WaitForShutdown() })
	if !outside.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	creds, err := id.Creds(identity.RoleController, "c2", 0)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "controller.creds")
	if err := creds.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	s := open(t, site.Config{Identity: id, URL: outside.ClientURL(), Creds: file, Name: "c2", Roots: certs.Roots})
	if _, err := s.Conn().Subscribe(subjects.GuestAll, func(m *nats.Msg) { _ = m.Respond([]byte(m.Header.Get("Nats-Request-Info"))) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Conn().Flush(); err != nil {
		t.Fatal(err)
	}
	if seen, err := s.Presented(); err != nil || len(seen) != 2 || identity.Pin(seen[1]) != certs.Pin() {
		t.Errorf("the server presents %v, %v", seen, err)
	}
	visitor := guest(t, outside.ClientURL(), certs.Roots())
	var info server.ClientInfo
	if m, err := visitor.Request(subjects.Guest(subjects.GuestEnrol), nil, patience); err != nil || json.Unmarshal(m.Data, &info) != nil {
		t.Fatalf("a guest's request: %v", err)
	}
	if info.Host != "127.0.0.1" || info.NameTag != subjects.GuestName || info.IssuerKey != id.SigningKey(identity.RoleGuest) {
		t.Errorf("of a guest the server says %+v", info)
	}
	if _, err := visitor.Request(subjects.API("guest", "vm", "list"), nil, 150*time.Millisecond); err == nil {
		t.Error("a guest may ask for more")
	}
	if _, err := s.JetStream().Publish(t.Context(), subjects.BucketSubject(subjects.ObservedBucket, "h1.domain.x"), nil); err != nil {
		t.Fatal(err)
	}
	agent, err := id.Creds(identity.RoleAgent, "h1", 0)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(outside.ClientURL(), nats.Secure(certs.Client()), nats.UserJWTAndSeed(agent.JWT, string(agent.Seed)), nats.MaxReconnects(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	ctx, cancel := context.WithCancel(t.Context())
	words, done := make(chan bool, 10), make(chan error, 1)
	go func() {
		done <- s.Presence(ctx, func(_ string, on bool, _ time.Time) { words <- on })
	}()
	if on := <-words; !on {
		t.Fatal("h1 is not connected")
	}
	a, err := id.Revoke(identity.RoleAgent, agent.PublicKey, time.Now().Add(time.Second), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateAccount(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if on := <-words; on {
		t.Fatal("h1 is still connected after its credentials were revoked")
	}
	cancel()
	<-done
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []site.Config{
		{Name: "a.b"},
		{Name: "a", Listen: "nonsense"},
		{Name: "a", Listen: "127.0.0.1:99999"},
		{Name: "a", Listen: "127.0.0.1:0"},        // nothing is served without TLS
		{Name: "a", URL: "nats://127.0.0.1:4222"}, // nobody is trusted without roots
	} {
		c.Dir, c.Identity = t.TempDir(), keys(t)
		if s, err := site.Open(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("Open(%+v) succeeded", c)
		}
	}
}

// The answer to a renewal may get lost: the lease is then held under a revision that its holder has not heard of.
func TestLeaseSurvivesALostAnswer(t *testing.T) {
	s := open(t, site.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	turns, done := make(chan context.Context, 10), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.NewLease().Campaign(ctx, func(ctx context.Context) error {
			turns <- ctx
			<-ctx.Done()
			return nil
		})
	}()
	turn := <-turns
	kv, err := s.JetStream().KeyValue(ctx, subjects.LeaseBucket)
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(ctx, subjects.LeaderKey)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := kv.Put(ctx, subjects.LeaderKey, e.Value())
	if err != nil {
		t.Fatal(err)
	}
	wait(t, func() error {
		e, err := kv.Get(ctx, subjects.LeaderKey)
		if err == nil && e.Revision() <= rev {
			err = errors.New("not renewed")
		}
		return err
	})
	if turn.Err() != nil || len(turns) != 0 {
		t.Error("the leader gave up a lease that it held")
	}
	cancel()
	<-done
}

// An error of the leader's work hands the lease on; the campaign goes on.
func TestLeaseAfterAnError(t *testing.T) {
	s := open(t, site.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	turns, done := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		done <- s.NewLease().Campaign(ctx, func(context.Context) error {
			turns <- struct{}{}
			return errors.New("broken")
		})
	}()
	<-turns
	<-turns
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Campaign = %v", err)
	}
}
