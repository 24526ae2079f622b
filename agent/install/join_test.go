package install_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/agent/install"
	"shoal/agent/sim/gate"
	"shoal/desired"
)

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// holds are the files below dir that hold a text, by their names.
func holds(t *testing.T, dir, text string) (in []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			in = append(in, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// private checks that nobody else can read what is in dir.
func private(t *testing.T, data string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(data, "identity"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// user is the public key of a user that nobody has.
func user(t *testing.T) string {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func join(t *testing.T, g *gate.Gate, data string) install.Joined {
	t.Helper()
	j, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: g.Token("auto", gate.Token{Uses: 1}), Name: "h-one", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJoin(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data := filepath.Join(t.TempDir(), "deep", "data")
	j := join(t, g, data)
	i, err := install.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	asked := g.Enrols()
	if len(asked) != 1 || asked[0].Name != "h-one" || asked[0].Version != "v1" || asked[0].Machine.CPUs == 0 || asked[0].Machine.MemoryMiB == 0 || asked[0].Machine.Hostname == "" {
		t.Errorf("asked %+v", asked)
	}
	if i.Host() != g.Hosts()[i.PublicKey()] || i.Name() != "name-of-h1" || !slices.Equal(i.URLs(), []string{g.URL()}) || !i.Private() {
		t.Errorf("identity: host %q, name %q, servers %q", i.Host(), i.Name(), i.URLs())
	}
	if j.Host != i.Host() || j.Fingerprint != desired.Fingerprint(i.PublicKey()) || j.Expires.IsZero() {
		t.Errorf("joined %+v", j)
	}
	if in := holds(t, data, gate.Secret); len(in) > 0 {
		t.Errorf("the token's secret is in %q", in)
	}
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("data directory: %v %v", info, err)
	}
	private(t, data)

	_, err = install.Join(t.Context(), install.JoinConfig{Data: data, Token: g.Token("auto", gate.Token{Uses: 1})})
	if !errors.Is(err, install.ErrJoined) || len(g.Enrols()) != 1 {
		t.Errorf("joined again: %v", err)
	}
	s, err := install.Look(data, nil)
	if err != nil || !s.Joined || s.Host != "h1" || s.Agent != 0 || !slices.Equal(s.Servers, i.URLs()) || s.Expires.IsZero() {
		t.Errorf("status %+v, %v", s, err)
	}
}

// TestJoin_OnlyTheController has nobody else see a token.
func TestJoin_OnlyTheController(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	open := gate.New(t, func(o *server.Options) { o.TLS, o.TLSConfig = false, nil })
	old := gate.New(t, func(o *server.Options) {
		c := o.TLSConfig.Clone()
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		o.TLSConfig = c
	})
	elsewhere := gate.New(t)
	elsewhere.SetCertificate(elsewhere.Authority.Certificate(t, "127.0.0.2"))
	// A stranger shows the pinned certificate, which is no secret, behind one of its own.
	stranger := gate.New(t)
	shown := stranger.Authority.Certificate(t, "127.0.0.1")
	shown.Certificate = append(shown.Certificate, g.Authority.Certificate(t, "127.0.0.1").Certificate[1])
	stranger.SetCertificate(shown)

	other := strings.Repeat("ab", 32)
	for _, c := range []struct {
		name, token string
		asked       *gate.Gate
		want        []string
		pin         bool
	}{
		{"wrong pin", g.TokenFor("auto", other), g, []string{other, g.Authority.Pin, "nothing was sent", "shoalctl host token create"}, true},
		{"no pin", g.TokenFor("auto", ""), g, []string{"unknown authority"}, false},
		{"another name", elsewhere.Token("auto", gate.Token{Uses: 9}), elsewhere, []string{"127.0.0.2", "does not hold"}, true},
		{"chain leads elsewhere", stranger.TokenFor("auto", g.Authority.Pin), stranger, []string{g.Authority.Pin, "does not hold"}, true},
		{"no TLS", open.TokenFor("auto", open.Authority.Pin), open, []string{"offers no TLS"}, false},
		{"TLS 1.2", old.TokenFor("auto", old.Authority.Pin), old, []string{"protocol version"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.Token("auto", gate.Token{Uses: 9})
			_, err := install.Join(t.Context(), install.JoinConfig{Data: t.TempDir(), Token: c.token})
			if err == nil {
				t.Fatal("the host joined")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q says nothing of %q", err, w)
				}
			}
			if _, pin := errors.AsType[*install.PinError](err); pin != c.pin {
				t.Errorf("%T", err)
			}
			if strings.Contains(err.Error(), gate.Secret) {
				t.Errorf("%q holds the secret", err)
			}
			if n := len(c.asked.Enrols()); n != 0 {
				t.Errorf("the server was asked %d times", n)
			}
		})
	}
}

func TestJoin_Refused(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	for name, c := range map[string]struct {
		refusal *gate.Refusal
		gone    bool
	}{
		"final":   {&gate.Refusal{Number: 403, Code: "forbidden", Field: "token", Message: "the token has expired", Remedy: "make another with shoalctl host token create"}, true},
		"passing": {&gate.Refusal{Number: 503, Code: "not-leader", Message: "this controller does not lead", Remedy: "ask again"}, false},
		"busy":    {&gate.Refusal{Number: 429, Code: "busy", Message: "too many ask", Remedy: "ask again later"}, false},
	} {
		data := t.TempDir()
		g.Refuse(c.refusal)
		_, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: g.Token("auto", gate.Token{Uses: 1})})
		if err == nil || !strings.Contains(err.Error(), c.refusal.Message) || !strings.Contains(err.Error(), c.refusal.Remedy) || strings.Contains(err.Error(), gate.Secret) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(install.TokenFile(data)); errors.Is(err, fs.ErrNotExist) != c.gone {
			t.Errorf("%s: the token's file: %v", name, err)
		}
		private(t, data)
	}
}

// TestJoin_Pending is let in by an administrator, after its process was ended and another went on.
func TestJoin_Pending(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data := t.TempDir()
	token := g.Token("manual", gate.Token{Uses: 1, Manual: true})
	ctx, cancel := context.WithCancel(t.Context())
	var shown install.Pending
	_, err := install.Join(ctx, install.JoinConfig{Data: data, Token: token, Name: "h-two", Pending: func(p install.Pending) {
		shown = p
		cancel()
	}})
	if !errors.Is(err, context.Canceled) || shown.Name != "h-two" || shown.Again <= 0 {
		t.Fatalf("%v, shown %+v", err, shown)
	}
	j, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: token, NoWait: true})
	if err != nil || j.State != desired.EnrolPending || j.Fingerprint != shown.Fingerprint {
		t.Fatalf("%+v, %v", j, err)
	}
	if s, err := install.Look(data, nil); err != nil || s.Joined || !s.Joining || s.Fingerprint != shown.Fingerprint {
		t.Errorf("status %+v, %v", s, err)
	}
	public := g.Enrols()[0].PublicKey
	if desired.Fingerprint(public) != shown.Fingerprint {
		t.Errorf("the fingerprint of %s was shown as %s", public, shown.Fingerprint)
	}
	time.AfterFunc(50*time.Millisecond, func() { g.Approve(public) })
	var log gate.Log
	i, lock, err := install.Await(t.Context(), install.AwaitConfig{Data: data, Log: zerolog.New(&log)})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, e := range g.Enrols() {
		if e.PublicKey != public || e.Name != "h-two" {
			t.Errorf("asked as %s, %s", e.Name, e.PublicKey)
		}
	}
	if i.PublicKey() != public || len(holds(t, data, gate.Secret)) > 0 || strings.Contains(log.String(), gate.Secret) {
		t.Errorf("key %s, log %s", i.PublicKey(), &log)
	}
	if s, err := install.Look(data, nil); err != nil || s.Agent != os.Getpid() {
		t.Errorf("status %+v, %v", s, err)
	}
	if _, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: token, Force: true}); !errors.Is(err, install.ErrLocked) {
		t.Errorf("joined beside an agent that runs: %v", err)
	}
}

// crashes ends a life before its nth step.
type crashes struct {
	after int
	steps []string
}

var errCrash = errors.New("the power is gone")

func (c *crashes) step(name string) error {
	if c.after == 0 {
		return errCrash
	}
	c.after--
	c.steps = append(c.steps, name)
	return nil
}

// TestJoin_CutAnywhere loses power before each step, once the answer, too, and goes on with what is on the disk.
func TestJoin_CutAnywhere(t *testing.T) {
	t.Parallel()
	for after := 0; ; after++ {
		g := gate.New(t)
		g.Drop(after % 2)
		data := t.TempDir()
		token := g.Token("once", gate.Token{Uses: 1})
		c := &crashes{after: after}
		cfg := install.JoinConfig{Data: data, Token: token, Name: "h-one"}
		cfg.CrashAt(c.step)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if after%2 == 1 {
			// Whoever got no answer is cut off before it stops waiting.
			go func() {
				await(t, "the request", func() bool { return len(g.Enrols()) > 0 || ctx.Err() != nil })
				cancel()
			}()
		}
		_, err := install.Join(ctx, cfg)
		cancel()
		if err == nil {
			if len(c.steps) < 10 {
				t.Errorf("a life has the steps %q only", c.steps)
			}
			g.Stop()
			g.Start()
			return
		}
		g.Drop(0)
		// The next life is an agent's, with the token's file if it got that far, with the command repeated if not.
		if _, err := os.Stat(install.TokenFile(data)); errors.Is(err, fs.ErrNotExist) {
			if _, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: token, Name: "h-one"}); err != nil && !errors.Is(err, install.ErrJoined) {
				t.Fatalf("after %q: repeated: %v", c.steps, err)
			}
		}
		i, lock, err := install.Await(t.Context(), install.AwaitConfig{Data: data, Log: zerolog.Nop()})
		if err != nil {
			t.Fatalf("after %q: %v", c.steps, err)
		}
		_ = lock.Close()
		if hosts := g.Hosts(); len(hosts) != 1 || hosts[i.PublicKey()] != i.Host() {
			t.Errorf("after %q: hosts %v, and this is %s", c.steps, hosts, i.PublicKey())
		}
		if _, err := i.Roots(); err != nil || len(i.URLs()) == 0 {
			t.Errorf("after %q: servers %q, %v", c.steps, i.URLs(), err)
		}
		if in := holds(t, data, gate.Secret); len(in) > 0 {
			t.Errorf("after %q: the secret is in %q", c.steps, in)
		}
		if entries, err := os.ReadDir(filepath.Join(data, "identity")); err != nil || len(entries) != 4 {
			t.Errorf("after %q: files %v, %v", c.steps, entries, err)
		}
		private(t, data)
	}
}

// TestJoin_LeftoverIsDestroyed finds what a file's writing leaves behind when it is cut.
func TestJoin_LeftoverIsDestroyed(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data := t.TempDir()
	if err := os.Mkdir(filepath.Join(data, "identity"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "identity", ".token.123"), []byte(gate.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	join(t, g, data)
	if in := holds(t, data, gate.Secret); len(in) > 0 {
		t.Errorf("the secret is in %q", in)
	}
	private(t, data)
}

// TestJoin_Force stays who it is until it is let in, whenever it is cut.
func TestJoin_Force(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	for after := 0; ; after++ {
		data := t.TempDir()
		join(t, g, data)
		before, err := install.Open(data)
		if err != nil {
			t.Fatal(err)
		}
		if after == 0 {
			if _, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: g.TokenFor("unknown", g.Authority.Pin), Force: true}); err == nil {
				t.Error("joined with an unknown token")
			}
			if i, err := install.Open(data); err != nil || i.PublicKey() != before.PublicKey() {
				t.Errorf("a refused host is not who it was: %v", err)
			}
		}
		cfg := install.JoinConfig{Data: data, Token: g.Token("auto", gate.Token{Uses: 1}), Force: true}
		c := &crashes{after: after}
		cfg.CrashAt(c.step)
		j, err := install.Join(t.Context(), cfg)
		if err != nil && !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		i, lock, awaitErr := install.Await(t.Context(), install.AwaitConfig{Data: data, Log: zerolog.Nop()})
		if awaitErr != nil {
			t.Fatalf("after %q: %v", c.steps, awaitErr)
		}
		_ = lock.Close()
		old, globErr := filepath.Glob(filepath.Join(data, "identity.replaced-*", "host.creds"))
		if changed := i.PublicKey() != before.PublicKey(); globErr != nil || changed != (len(old) == 1) {
			t.Errorf("after %q: changed %t, kept %q", c.steps, changed, old)
		}
		if err == nil {
			if i.Host() != j.Host || j.Replaced == "" || i.PublicKey() == before.PublicKey() {
				t.Errorf("joined %+v as %s", j, i.Host())
			}
			if in := holds(t, data, gate.Secret); len(in) > 0 {
				t.Errorf("the secret is in %q", in)
			}
			return
		}
	}
}

// TestAwait waits for a token, says so once, joins by it when it comes, and destroys it.
func TestAwait(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	g.Refuse(&gate.Refusal{Number: 503, Code: "not-leader", Message: "this controller does not lead"})
	data := filepath.Join(t.TempDir(), "data")
	file := filepath.Join(t.TempDir(), "token")
	var log gate.Log
	found := make(chan *install.Identity, 1)
	go func() {
		i, lock, err := install.Await(t.Context(), install.AwaitConfig{Data: data, Token: file, Version: "v1", Log: zerolog.New(&log)})
		if err != nil {
			t.Error(err)
		} else if lock != nil {
			_ = lock.Close()
		}
		found <- i
	}()
	await(t, "a line that says what to do", func() bool { return strings.Contains(log.String(), "shoal-agent join TOKEN") })
	if err := os.WriteFile(file, []byte(g.Token("auto", gate.Token{Uses: 1})), 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, "a refusal in the log", func() bool { return strings.Contains(log.String(), "does not lead") })
	g.Refuse(nil)
	select {
	case i := <-found:
		if i == nil || i.Host() != "h1" {
			t.Errorf("joined as %v", i)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not joined:\n%s", &log)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token's file: %v", err)
	}
	if n := strings.Count(log.String(), "shoal-agent join TOKEN"); n != 1 {
		t.Errorf("the way to join was logged %d times", n)
	}
	if in := holds(t, data, gate.Secret); len(in) > 0 || strings.Contains(log.String(), gate.Secret) {
		t.Errorf("the secret is in %q and the log\n%s", in, &log)
	}
}

// TestAwait_JoinFromOutside finds the host that shoal-agent join made.
func TestAwait_JoinFromOutside(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data := t.TempDir()
	var log gate.Log
	found := make(chan *install.Identity, 1)
	go func() {
		i, lock, err := install.Await(t.Context(), install.AwaitConfig{Data: data, Log: zerolog.New(&log)})
		if err != nil {
			t.Error(err)
		} else if lock != nil {
			_ = lock.Close()
		}
		found <- i
	}()
	await(t, "a line that says what to do", func() bool { return strings.Contains(log.String(), "shoal-agent join TOKEN") })
	j := join(t, g, data)
	if i := <-found; i == nil || i.Host() != j.Host {
		t.Errorf("found %v, joined %v", i, j)
	}
}

// TestTake replaces everything or nothing that matters.
func TestTake(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data := t.TempDir()
	join(t, g, data)
	i, err := install.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	read := func() string {
		b, err := os.ReadFile(i.Creds())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := read()
	g.SetTTL(60 * 24 * time.Hour)
	fresh := *g.Credentials(i.PublicKey())
	for name, change := range map[string]func(*desired.Credentials){
		"another key":    func(c *desired.Credentials) { c.JWT = g.Credentials(user(t)).JWT },
		"another host":   func(c *desired.Credentials) { c.Host = "h9" },
		"no JWT":         func(c *desired.Credentials) { c.JWT = "" },
		"no certificate": func(c *desired.Credentials) { c.CA = "certificate" },
		"no server":      func(c *desired.Credentials) { c.URLs = []string{"http://127.0.0.1"} },
	} {
		bad := fresh
		change(&bad)
		if err := i.Take(bad); err == nil || read() != before {
			t.Errorf("%s: %v", name, err)
		}
	}
	fresh.URLs = []string{"tls://127.0.0.1:1", g.URL()}
	fresh.CA += gate.NewAuthority(t).PEM
	for _, step := range []string{"certificates", "servers", "credentials"} {
		i.CrashAt(func(s string) error {
			if s == step {
				return errors.New("no space left on device")
			}
			return nil
		})
		if err := i.Take(fresh); err == nil || !strings.Contains(err.Error(), "no space left") || read() != before {
			t.Errorf("cut before %s: %v", step, err)
		}
		if again, err := install.Open(data); err != nil || again.Host() != i.Host() {
			t.Errorf("cut before %s: %v", step, err)
		}
	}
	i.CrashAt(func(string) error { return nil })
	if err := i.Take(fresh); err != nil || read() == before || !slices.Equal(i.URLs(), fresh.URLs) {
		t.Errorf("taken: %v, servers %q", err, i.URLs())
	}
	if until, err := i.Expires(); err != nil || !until.Equal(fresh.Expires) {
		t.Errorf("expires %s, want %s: %v", until, fresh.Expires, err)
	}
	// One that the system's authorities vouch for from now on.
	fresh.CA = ""
	if err := i.Take(fresh); err != nil {
		t.Fatal(err)
	}
	if pool, err := i.Roots(); err != nil || pool != nil {
		t.Errorf("roots %v, %v", pool, err)
	}
}

// TestGiven renews in the file that was given, and keeps newer certificates beside the given ones.
func TestGiven(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	data, other := t.TempDir(), t.TempDir()
	join(t, g, data)
	creds, ca := filepath.Join(other, "h1.creds"), filepath.Join(other, "ca.pem")
	for from, to := range map[string]string{"host.creds": creds, "ca.pem": ca} {
		b, err := os.ReadFile(filepath.Join(data, "identity", from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i, err := install.Given(install.GivenConfig{Creds: creds, CA: ca, URLs: g.URL(), Data: data})
	if err != nil || !i.Private() {
		t.Fatal(err)
	}
	next := gate.NewAuthority(t)
	fresh := *g.Credentials(i.PublicKey())
	fresh.CA, fresh.URLs = next.PEM, []string{"tls://127.0.0.1:1"}
	if err := i.Take(fresh); err != nil {
		t.Fatal(err)
	}
	if in := holds(t, other, fresh.JWT); !slices.Equal(in, []string{creds}) {
		t.Errorf("the JWT is in %q", in)
	}
	if b, err := os.ReadFile(ca); err != nil || string(b) != g.Authority.PEM {
		t.Errorf("the given bundle was changed: %v", err)
	}
	if !slices.Equal(i.URLs(), []string{g.URL()}) {
		t.Errorf("servers %q", i.URLs())
	}
	pool, err := i.Roots()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*gate.Authority{g.Authority, next} {
		c, err := x509.ParseCertificate(a.Certificate(t, "127.0.0.1").Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool, DNSName: "127.0.0.1"}); err != nil {
			t.Error(err)
		}
	}
}

// TestHTTPClient trusts what the bundle says now.
func TestHTTPClient(t *testing.T) {
	t.Parallel()
	a := gate.NewAuthority(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{a.Certificate(t, "127.0.0.1")}}
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	client := install.HTTPClient(func() (*x509.CertPool, error) { return pool, nil })
	if _, err := client.Get(srv.URL); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("an unknown server: %v", err)
	}
	pool.AppendCertsFromPEM([]byte(a.PEM))
	resp, err := client.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	client.CloseIdleConnections()
}

// TestCompareClock: a machine that can't join yet learns how wrong its clock is, and only from the controller of its token.
func TestCompareClock(t *testing.T) {
	t.Parallel()
	g := gate.New(t)
	g.SetClock(10 * time.Minute)
	tok, err := desired.ParseJoinToken(g.Token("t", gate.Token{Uses: 1}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := install.CompareClock(t.Context(), tok)
	if err != nil || !c.Beyond(9*time.Minute) || c.OffsetMS > 0 {
		t.Errorf("%s, %v; want some 10 minutes behind", c, err)
	}
	tok.Pin = strings.Repeat("0", 64)
	if _, err := install.CompareClock(t.Context(), tok); err == nil {
		t.Error("another server was believed")
	} else if _, ok := errors.AsType[*install.PinError](err); !ok {
		t.Errorf("another server: %v", err)
	}
}
