package certificate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"shoal/controller/certificate"
	"shoal/controller/identity"
)

// bed is an installation and a machine with names that change.
type bed struct {
	id  *identity.Identity
	cfg certificate.Config

	mu    sync.Mutex
	names []string
}

func newBed(t *testing.T) *bed {
	t.Helper()
	dir := t.TempDir()
	id, err := identity.Open(filepath.Join(dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{id: id, names: []string{"127.0.0.1", "ctl"}}
	b.cfg = certificate.Config{
		Identity: id, Dir: filepath.Join(dir, "tls"), Bundle: filepath.Join(dir, "ca.pem"), Log: zerolog.New(zerolog.NewTestWriter(t)),
		Names: func() ([]string, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.names, nil
		},
	}
	return b
}

func (b *bed) start(t *testing.T) *certificate.Service {
	t.Helper()
	s, err := certificate.New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// presented is the chain that a client sees now, in a real handshake that trusts what clients are told to trust.
func presented(t *testing.T, s *certificate.Service, name string) []*x509.Certificate {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Server(a, s.Server()).Handshake() }()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.CABundle())) {
		t.Fatal("nothing to trust")
	}
	c := tls.Client(b, &tls.Config{ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS13, Time: time.Now})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates
}

func TestCertificateIsKeptAndMadeAnew(t *testing.T) {
	b := newBed(t)
	s := b.start(t)
	first := presented(t, s, "ctl")
	if s.Pin() != identity.Pin(first[len(first)-1]) {
		t.Error("the pin is not that of the chain's last certificate")
	}
	if got, err := os.ReadFile(b.cfg.Bundle); err != nil || string(got) != s.CABundle() {
		t.Errorf("the file for clients: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(b.cfg.Dir, "server.pem")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", fi, err)
	}
	if again := presented(t, b.start(t), "ctl"); !again[0].Equal(first[0]) {
		t.Error("a restart makes another certificate")
	}
	for what, change := range map[string]func(){
		"another name": func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.names = append(b.names, "fd00::7", "new")
		},
		"another authority": func() {
			if _, err := b.id.RotateCA(time.Now()); err != nil {
				t.Error(err)
			}
			if _, err := b.id.ActivateCA(time.Now(), true); err != nil {
				t.Error(err)
			}
		},
	} {
		before := presented(t, s, "ctl")
		change()
		if err := s.Refresh(); err != nil {
			t.Fatal(err)
		}
		after := presented(t, s, "ctl")
		if after[0].Equal(before[0]) {
			t.Errorf("%s: the certificate is the same", what)
		}
		if err := s.Refresh(); err != nil {
			t.Fatal(err)
		}
		if again := presented(t, s, "ctl"); !again[0].Equal(after[0]) {
			t.Errorf("%s: the certificate changes without a reason", what)
		}
	}
	presented(t, s, "new")
	// A name that went is no reason: a machine's addresses come and go.
	before := presented(t, s, "ctl")
	b.mu.Lock()
	b.names = b.names[:2]
	b.mu.Unlock()
	if err := s.Refresh(); err != nil {
		t.Fatal(err)
	}
	if !presented(t, s, "ctl")[0].Equal(before[0]) {
		t.Error("a name that is gone makes another certificate")
	}
	// A damaged file is replaced.
	if err := os.WriteFile(filepath.Join(b.cfg.Dir, "server.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	presented(t, b.start(t), "ctl")
}

// A certificate is replaced at half of its life, by Run, and not before.
func TestCertificateIsRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		s := b.start(t)
		first := presented(t, s, "ctl")[0]
		time.Sleep(45*24*time.Hour - 2*time.Hour)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Hour)
		if !presented(t, s, "ctl")[0].Equal(first) {
			t.Error("the certificate is replaced too early")
		}
		time.Sleep(2 * time.Hour)
		if presented(t, s, "ctl")[0].Equal(first) {
			t.Error("the certificate is not replaced at half of its life")
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// give writes a certificate by an authority of its own to files, and gives that authority.
func give(t *testing.T, cert, key string) identity.CA {
	t.Helper()
	id, err := identity.Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := id.CA()
	if err != nil {
		t.Fatal(err)
	}
	chain, private, err := ca.Issue([]string{"ctl"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{cert: chain, key: private} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca
}

func TestGivenCertificate(t *testing.T) {
	b := newBed(t)
	b.cfg.Cert, b.cfg.Key = filepath.Join(t.TempDir(), "c.pem"), filepath.Join(t.TempDir(), "k.pem")
	if _, err := certificate.New(b.cfg); err == nil || !strings.Contains(err.Error(), "--tls-cert") {
		t.Errorf("without a file: %v", err)
	}
	ca := give(t, b.cfg.Cert, b.cfg.Key)
	s := b.start(t)
	if s.Pin() != identity.Pin(ca.Active()) || !strings.HasPrefix(s.CABundle(), ca.Bundle()) {
		t.Error("pin or bundle is not the given chain's")
	}
	// An external NATS server may have its certificate from the installation's own authority.
	own, err := b.id.CA()
	if err != nil || !strings.Contains(s.CABundle(), own.Bundle()) {
		t.Errorf("the bundle does not hold the installation's own authority (%v)", err)
	}
	first := presented(t, s, "ctl")[0]
	// In the middle of being replaced: the new key, and the old certificate.
	keep := b.cfg.Key + ".old"
	if err := os.Rename(b.cfg.Key, keep); err != nil {
		t.Fatal(err)
	}
	if err := s.Refresh(); err == nil {
		t.Error("a missing key is no error")
	}
	give(t, filepath.Join(t.TempDir(), "unused"), b.cfg.Key)
	if err := s.Refresh(); err == nil {
		t.Error("a key of another certificate is no error")
	}
	if !presented(t, s, "ctl")[0].Equal(first) {
		t.Error("the certificate is not the last good one")
	}
	next := give(t, b.cfg.Cert, b.cfg.Key)
	if err := s.Refresh(); err != nil {
		t.Fatal(err)
	}
	if presented(t, s, "ctl")[0].Equal(first) || s.Pin() != identity.Pin(next.Active()) {
		t.Error("the new files are not taken over")
	}
	b.cfg.Key = ""
	if _, err := certificate.New(b.cfg); err == nil {
		t.Error("a certificate without a key is accepted")
	}
}

// A certificate that is replaced drops no connection, and new ones get the new one.
func TestHTTPSurvivesRotation(t *testing.T) {
	b := newBed(t)
	s := b.start(t)
	slow, served := make(chan struct{}), make(chan struct{})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{TLSConfig: s.Server(), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "begun ")
		_ = http.NewResponseController(w).Flush()
		close(served)
		<-slow
		_, _ = io.WriteString(w, "done")
	})}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.CABundle()))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-served
	before := res.TLS.PeerCertificates[0]
	b.mu.Lock()
	b.names = append(b.names, "another")
	b.mu.Unlock()
	if err := s.Refresh(); err != nil {
		t.Fatal(err)
	}
	after, err := (&tls.Dialer{Config: s.Client()}).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if after.(*tls.Conn).ConnectionState().PeerCertificates[0].Equal(before) {
		t.Error("a new connection gets the old certificate")
	}
	close(slow)
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "begun done" {
		t.Errorf("the download that was under way ended with %q, %v", body, err)
	}
}

func TestNames(t *testing.T) {
	names, err := certificate.Names([]string{"10.9.8.7", "Ctl.Example"}, []string{"extra.example", "fd00::0:1"})
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	all := " " + strings.Join(names, " ") + " "
	for _, want := range []string{"localhost", "127.0.0.1", "10.9.8.7", "ctl.example", "extra.example", "fd00::1", strings.ToLower(host)} {
		if !strings.Contains(all, " "+want+" ") {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	for _, bad := range []string{"", "a b", "*.example", "-.", "a..b", "http://x"} {
		if _, err := certificate.Names(nil, []string{bad}); err == nil {
			t.Errorf("the name %q is accepted", bad)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	everywhere, err := certificate.Names([]string{"0.0.0.0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; !ip.IsLinkLocalUnicast() && !strings.Contains(" "+strings.Join(everywhere, " ")+" ", " "+ip.String()+" ") {
			t.Errorf("%s is not among %v", ip, everywhere)
		}
	}
}

func FuzzParsePair(f *testing.F) {
	id, err := identity.Open(filepath.Join(f.TempDir(), "identity"))
	if err != nil {
		f.Fatal(err)
	}
	ca, err := id.CA()
	if err != nil {
		f.Fatal(err)
	}
	chain, key, err := ca.Issue([]string{"ctl"}, time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(chain, key...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := certificate.ParsePair(b); err == nil && len(b) == 0 {
			t.Error("nothing is a certificate")
		}
	})
}
