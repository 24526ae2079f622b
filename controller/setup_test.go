package controller_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"

	"shoal/controller"
	"shoal/controller/identity"
)

func TestMakeCreds(t *testing.T) {
	dir := t.TempDir()
	keys, out := filepath.Join(dir, "identity"), filepath.Join(dir, "out.creds")
	if err := controller.MakeCreds(keys, "viewer", "ann", 0, out); err == nil || !strings.Contains(err.Error(), "identity") {
		t.Errorf("without keys: %v", err)
	}
	if _, err := identity.Open(keys); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ role, name, says string }{{"controller", "ann", "role"}, {"", "ann", "role"}, {"viewer", "a.b", "name"}, {"viewer", "", "name"}} {
		if err := controller.MakeCreds(keys, c.role, c.name, 0, out); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := controller.MakeCreds(keys, "viewer", "ann", 0, out); err != nil {
		t.Fatal(err)
	}
	creds, err := identity.ReadCreds(out)
	if err != nil || creds.Role != identity.RoleViewer || creds.Name != "ann" {
		t.Errorf("got %v, %v", creds, err)
	}
	before, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := controller.MakeCreds(keys, "admin", "eve", 0, out); err == nil {
		t.Error("a file that was there is written over")
	}
	if after, err := os.ReadFile(out); err != nil || string(after) != string(before) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestNATSConfig(t *testing.T) {
	dir := t.TempDir()
	keys, store, certs := filepath.Join(dir, "identity"), filepath.Join(dir, "store"), filepath.Join(dir, "tls")
	for _, c := range []struct{ listen, store, tls, name, says string }{
		{"4222", store, certs, "nats", "listen"},
		{"127.0.0.1:4222", "", certs, "nats", "store"},
		{"127.0.0.1:4222", store, "", "nats", "tls-dir"},
		{"127.0.0.1:4222", store, certs, "no name", "--tls-name"},
	} {
		if _, err := controller.NATSConfig(keys, c.listen, c.store, c.tls, []string{c.name}); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	var before []byte
	for range 2 { // the second time renews
		text, err := controller.NATSConfig(keys, "127.0.0.1:4333", store, certs, []string{"nats.example"})
		if err != nil {
			t.Fatal(err)
		}
		conf := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := server.ProcessConfigFile(conf)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if o.Host != "127.0.0.1" || o.Port != 4333 || o.StoreDir != filepath.Join(store, "jetstream") || o.DefaultSentinel == "" {
			t.Errorf("host %s, port %d, store %s, guests %q", o.Host, o.Port, o.StoreDir, o.DefaultSentinel)
		}
		if o.TLSConfig == nil || o.TLSConfig.MinVersion != tls.VersionTLS13 || len(o.TLSConfig.Certificates) != 1 {
			t.Fatalf("TLS: %+v", o.TLSConfig)
		}
		leaf, err := x509.ParseCertificate(o.TLSConfig.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"nats.example", "127.0.0.1"} {
			if err := leaf.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		if string(leaf.Raw) == string(before) {
			t.Error("the certificate is not made anew")
		}
		before = leaf.Raw
		if fi, err := os.Stat(filepath.Join(certs, "server.key")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("the key's file: %v, %v", fi, err)
		}
	}
}

func TestChangeCA(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "identity")
	if _, err := controller.ChangeCA(keys, "rotate", false); err == nil {
		t.Error("an authority was replaced where there are no keys")
	}
	if _, err := os.Stat(keys); err == nil {
		t.Error("keys were made in a directory that was mistyped")
	}
	if _, err := identity.Open(keys); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		step   string
		force  bool
		says   string
		count  int
		active int
	}{
		{"retire", false, "only authority", 1, 0},
		{"activate", false, "active already", 1, 0},
		{"rotate", false, "shoal-controller ca activate", 2, 0},
		{"rotate", false, "second authority", 2, 0},
		{"activate", false, "too young", 2, 0},
		{"activate", true, "shoal-controller ca retire", 2, 0},
		{"activate", true, "active already", 2, 0},
		{"retire", false, "is dropped", 1, 0},
		{"renew", false, "not one of rotate, activate, retire", 1, 0},
	} {
		text, err := controller.ChangeCA(keys, c.step, c.force)
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.says) {
			t.Errorf("%s: %q, want it to say %q", c.step, text, c.says)
		}
		list, err := controller.ListCA(keys)
		if err != nil || len(list) != c.count || !list[c.active].Active {
			t.Errorf("%s: %+v, %v, want %d authorities", c.step, list, err, c.count)
		}
	}
}

// Every port of a controller speaks TLS and nothing else, and what it writes for its clients lets them in.
func TestPortsSpeakTLS(t *testing.T) {
	dir := t.TempDir()
	probe, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	_ = probe.Close()
	ctx, stop := context.WithCancel(t.Context())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- controller.Run(ctx, controller.Config{
			Data: dir, Name: "test", Listen: "127.0.0.1:0", HTTP: addr, Version: "test", Log: zerolog.Nop(), Ready: func(url string) { ready <- url },
		})
	}()
	select {
	case url := <-ready:
		if !strings.HasPrefix(url, "tls://") {
			t.Errorf("clients are told %s", url)
		}
	case err := <-done:
		t.Fatal(err)
	}
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	b, err := os.ReadFile(filepath.Join(dir, controller.CABundle))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b)
	get := func(scheme string, cfg *tls.Config) (string, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return string(b), err
	}
	if body, err := get("https", &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}); err != nil || !strings.Contains(body, " at ") {
		t.Errorf("a client that trusts the authority gets %q, %v", body, err)
	}
	for name, cfg := range map[string]*tls.Config{"system's authorities": {MinVersion: tls.VersionTLS13}, "TLS 1.2": {RootCAs: roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}} {
		if body, err := get("https", cfg); err == nil {
			t.Errorf("%s: got %q", name, body)
		}
	}
	if body, err := get("http", nil); err == nil && strings.Contains(body, " at ") {
		t.Errorf("without TLS the port answers %q", body)
	}
}
