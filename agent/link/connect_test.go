package link

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/agent/sim/gate"
	"shoal/desired"
)

// doorway is a link to a gate over TLS, with what it told.
type doorway struct {
	t      *testing.T
	g      *gate.Gate
	key    nkeys.KeyPair
	public string
	creds  string
	l      *Link

	mu     sync.Mutex
	log    bytes.Buffer
	states []State
	bundle string
}

func (d *doorway) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(p)
}

func (d *doorway) logged(s string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Contains(d.log.String(), s)
}

// has reports whether some state was told.
func (d *doorway) has(ok func(State) bool) func() bool {
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.ContainsFunc(d.states, ok)
	}
}

func (d *doorway) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.states = nil
	d.log.Reset()
}

func (d *doorway) trust(pem string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bundle = pem
}

// issue puts new credentials in place, at once.
func (d *doorway) issue(ttl time.Duration) {
	d.t.Helper()
	d.g.SetTTL(ttl)
	seed, err := d.key.Seed()
	if err != nil {
		d.t.Fatal(err)
	}
	b, err := jwt.FormatUserConfig(d.g.Credentials(d.public).JWT, seed)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.creds+".new", b, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(d.creds+".new", d.creds); err != nil {
		d.t.Fatal(err)
	}
}

func connected(s State) bool { return s.Connected }
func refused(s State) bool   { return s.Refused }

func newDoorway(t *testing.T, url string, ttl time.Duration, opts ...gate.Option) *doorway {
	t.Helper()
	d := &doorway{t: t, g: gate.New(t, opts...), creds: filepath.Join(t.TempDir(), "creds")}
	d.bundle = d.g.Authority.PEM
	var err error
	if d.key, err = nkeys.CreateUser(); err != nil {
		t.Fatal(err)
	}
	if d.public, err = d.key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	d.issue(ttl)
	if url == "" {
		url = d.g.URL()
	}
	d.l, err = New(Config{
		URL: url, Creds: d.creds, Host: "h1", Log: zerolog.New(d), OnDocument: func(desired.Document) error { return nil },
		Roots: func() (*x509.CertPool, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM([]byte(d.bundle)) {
				return nil, errors.New("the bundle is empty")
			}
			return pool, nil
		},
		OnState: func(s State) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.states = append(d.states, s)
		},
		ReconnectWait: 10 * time.Millisecond, ReconnectJitter: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *doorway) await(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.t.Fatalf("waited in vain: %s; states %v, log\n%s", what, d.states, &d.log)
		}
	}
}

// TestConnect_RotatedBundle refuses a server that the bundle does not vouch for, says so, and takes it when the bundle does.
func TestConnect_RotatedBundle(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "", time.Hour)
	d.await("a connection", d.has(connected))
	next := gate.NewAuthority(t)
	d.g.SetCertificate(next.Certificate(t, "127.0.0.1"))
	d.g.Stop()
	d.forget()
	d.g.Start()
	d.await("a line about the certificate", func() bool { return d.logged("unknown authority") })
	if d.has(connected)() {
		t.Error("connected to a server that nobody vouches for")
	}
	d.trust(d.g.Authority.PEM + next.PEM)
	d.await("a connection", d.has(connected))
}

// TestConnect_Expiry loses the connection when the credentials expire, says that they were refused, and takes newer ones at once after
// Redial, however long it would have waited.
func TestConnect_Expiry(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "", 2*time.Second)
	d.await("a connection", d.has(connected))
	d.await("a refusal", d.has(refused))
	d.await("waits that grow", func() bool { return d.l.refusals.Load() > 7 })
	d.issue(time.Hour)
	d.forget()
	d.l.Redial()
	d.await("a connection", d.has(connected))
}

// TestConnect_RefusedFromTheStart is refused at the first attempt, and at once wherever it gets new credentials.
func TestConnect_RefusedFromTheStart(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "", time.Second)
	d.g.Stop()
	d.await("a server that is away", d.has(func(s State) bool { return !s.Connected && !s.Refused }))
	select { // credentials expire by the second
	case <-time.After(2 * time.Second):
	case <-t.Context().Done():
	}
	d.forget()
	d.g.Start()
	d.await("a refusal", d.has(refused))
	d.issue(time.Hour)
	d.l.Redial()
	d.await("a connection", d.has(connected))
}

// TestConnect_NoTLS gives nothing to a server that can't prove who it is.
func TestConnect_NoTLS(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "", time.Hour, func(o *server.Options) { o.TLS, o.TLSConfig = false, nil })
	d.await("a failure", d.has(func(s State) bool { return s.Err != nil }))
	if d.has(connected)() || !d.logged("secure connection not available") {
		t.Errorf("states %v, log\n%s", d.states, &d.log)
	}
}

// TestConnect_OtherServers goes where it is sent, before the first connection and after.
func TestConnect_OtherServers(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "tls://127.0.0.1:1", time.Hour)
	d.await("a failure", d.has(func(s State) bool { return s.Err != nil }))
	if err := d.l.SetServers([]string{d.g.URL()}); err != nil {
		t.Fatal(err)
	}
	d.await("a connection", d.has(connected))
	if err := d.l.SetServers([]string{"tls://127.0.0.1:1", d.g.URL()}); err != nil {
		t.Fatal(err)
	}
	d.g.Stop()
	d.forget()
	d.g.Start()
	d.await("a connection", d.has(connected))
}

// stalling is a way to a server that can be made to swallow what its connections carry.
type stalling struct {
	net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
	stall chan struct{}
}

func newStalling(t *testing.T, to string) *stalling {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stalling{Listener: l, to: to, stall: make(chan struct{})}
	t.Cleanup(func() {
		s.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			s.mu.Lock()
			s.conns = append(s.conns, c, out)
			stall := s.stall
			s.mu.Unlock()
			for _, pair := range [][2]net.Conn{{c, out}, {out, c}} {
				go func() {
					b := make([]byte, 4096)
					for {
						n, err := pair[0].Read(b)
						if err != nil {
							pair[1].Close()
							return
						}
						select {
						case <-stall:
						default:
							_, _ = pair[1].Write(b[:n])
						}
					}
				}()
			}
		}
	}()
	return s
}

// Stall has the connections that there are carry nothing any more. New ones do.
func (s *stalling) Stall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.stall)
	s.stall = make(chan struct{})
}

// TestReach: a connection that looks alive and carries nothing is no sign of life, and is given up for one that is.
func TestReach(t *testing.T) {
	t.Parallel()
	d := newDoorway(t, "tls://127.0.0.1:1", time.Hour)
	if _, err := d.l.Reach(t.Context()); err == nil {
		t.Error("reached nobody")
	}
	way := newStalling(t, strings.TrimPrefix(d.g.URL(), "tls://"))
	if err := d.l.SetServers([]string{"tls://" + way.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	reached := func() bool {
		who, err := d.l.Reach(t.Context())
		return err == nil && who == "tls://"+way.Addr().String()
	}
	d.await("a sign of life", reached)
	way.Stall()
	if _, err := d.l.Reach(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection that carries nothing gave a sign of life: %v", err)
	}
	d.await("a sign of life on a new connection", reached)
}

func TestWait_Refused(t *testing.T) {
	l, err := New(Config{URL: "x", Host: "h1", OnDocument: func(desired.Document) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	for refusals, want := range map[int32][2]time.Duration{
		0: {2 * time.Second, 5 * time.Second}, 1: {2 * time.Second, 5 * time.Second}, 5: {32 * time.Second, 35 * time.Second},
		1000: {45 * time.Minute, time.Hour},
	} {
		l.refusals.Store(refusals)
		if got := l.wait(0); got < want[0] || got > want[1] {
			t.Errorf("after %d refusals %s, want between %s", refusals, got, want)
		}
	}
}
