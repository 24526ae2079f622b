package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/controller/identity"
)

func authority(t *testing.T, id *identity.Identity) identity.CA {
	t.Helper()
	ca, err := id.CA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func pool(t *testing.T, bundle string) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(bundle)) {
		t.Fatalf("no certificate in %q", bundle)
	}
	return p
}

// shake makes a real handshake with a server that presents a new certificate, and gives what the client saw.
func shake(t *testing.T, ca identity.CA, names []string, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	chain, key, err := ca.Issue(names, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := tls.Server(a, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
	go func() {
		_ = server.Handshake()
		_ = a.Close()
	}()
	c := tls.Client(b, client)
	err = c.Handshake()
	return c.ConnectionState(), err
}

func TestIssuedCertificates(t *testing.T) {
	id, other := open(t, filepath.Join(t.TempDir(), "identity")), open(t, filepath.Join(t.TempDir(), "identity"))
	ca := authority(t, id)
	names := []string{"ctl.example", "10.0.0.1", "fd00::1"}
	for _, c := range []struct {
		name, trust string
		ok          bool
	}{
		{"ctl.example", ca.Bundle(), true},
		{"10.0.0.1", ca.Bundle(), true},
		{"fd00::1", ca.Bundle(), true},
		{"10.0.0.2", ca.Bundle(), false},
		{"other.example", ca.Bundle(), false},
		{"ctl.example", authority(t, other).Bundle(), false},
	} {
		state, err := shake(t, ca, names, &tls.Config{ServerName: c.name, RootCAs: pool(t, c.trust)})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, want success %t", c.name, err, c.ok)
		}
		if err == nil && state.Version != tls.VersionTLS13 {
			t.Errorf("%s: version %x", c.name, state.Version)
		}
	}
	// Who knows the pin only finds it in the chain, and can check the server's certificate by it.
	state, err := shake(t, ca, names, &tls.Config{ServerName: "10.0.0.1", InsecureSkipVerify: true}) //nolint:gosec // it is a joiner's view
	if err != nil {
		t.Fatal(err)
	}
	last := state.PeerCertificates[len(state.PeerCertificates)-1]
	if identity.Pin(last) != identity.Pin(ca.Active()) {
		t.Error("the pinned certificate is not in the chain")
	}
	roots := x509.NewCertPool()
	roots.AddCert(last)
	if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.0.0.1"}); err != nil {
		t.Error(err)
	}
	if _, _, err := ca.Issue(nil, time.Now(), time.Hour); err == nil {
		t.Error("a certificate for no name was issued")
	}
}

// The steps of replacing the authority: at each of them, who has taken part so far is not locked out.
func TestReplaceAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	id := open(t, dir)
	names, now := []string{"ctl"}, time.Now()
	old := authority(t, id)
	works := func(what, bundle string, want bool) {
		t.Helper()
		if _, err := shake(t, authority(t, id), names, &tls.Config{ServerName: "ctl", RootCAs: pool(t, bundle)}); (err == nil) != want {
			t.Errorf("%s: %v, want success %t", what, err, want)
		}
	}
	refused := func(what string, err error, says string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, says)
		}
	}
	_, err := id.RetireCA()
	refused("retire the only one", err, "only authority")
	_, err = id.ActivateCA(now, false)
	refused("activate nothing", err, "active already")
	if _, err := id.RotateCA(now); err != nil {
		t.Fatal(err)
	}
	_, err = id.RotateCA(now)
	refused("rotate twice", err, "second authority")
	both := authority(t, id)
	if strings.Count(both.Bundle(), "BEGIN CERTIFICATE") != 2 || identity.Pin(both.Active()) != identity.Pin(old.Active()) {
		t.Errorf("after rotate the bundle is\n%s", both.Bundle())
	}
	works("a client of before, after rotate", old.Bundle(), true)
	works("a client with both, after rotate", both.Bundle(), true)
	_, err = id.ActivateCA(now.Add(identity.CASettle-2*time.Hour), false)
	refused("activate too early", err, "too young")
	refused("activate too early", err, "--force")
	if _, err := id.ActivateCA(now.Add(identity.CASettle+time.Hour), false); err != nil {
		t.Fatal(err)
	}
	works("a client of before, after activate", old.Bundle(), false)
	works("a client with both, after activate", both.Bundle(), true)
	if gone, err := id.RetireCA(); err != nil || len(gone) != 1 || identity.Pin(gone[0]) != identity.Pin(old.Active()) {
		t.Errorf("retired %v, %v", gone, err)
	}
	works("a client with both, after retire", both.Bundle(), true)
	works("a new client", authority(t, id).Bundle(), true)
	if fi, err := os.Stat(filepath.Join(dir, "ca.pem")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file of the authorities: %v, %v", fi, err)
	}
	if strings.Contains(both.Bundle(), "PRIVATE") {
		t.Error("the bundle holds a key")
	}
	// A rotation that is thought better of.
	if _, err := id.RotateCA(now); err != nil {
		t.Fatal(err)
	}
	if _, err := id.ActivateCA(now, true); err != nil {
		t.Errorf("forced: %v", err)
	}
}
