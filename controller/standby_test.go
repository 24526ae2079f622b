package controller_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/identity"
	"shoal/controller/resource"
	"shoal/desired"
)

// external runs a NATS server from the configuration that we print.
func external(t *testing.T, keys string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := controller.NATSConfig(keys, "127.0.0.1:4222", filepath.Join(dir, "store"), filepath.Join(dir, "tls"), nil)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	o.Port, o.NoLog, o.NoSigs, o.ServerName, o.SyncAlways = server.RANDOM_PORT, true, true, "outside", false
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}

// beside runs a controller beside an external server, until it is stopped.
func beside(t *testing.T, name, url, data, keys string, change ...func(*controller.Config)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	cfg := controller.Config{
		Data: data, Name: name, Identity: keys, NATSURL: url, HTTP: "127.0.0.1:0", Version: "test", Log: zerolog.Nop(), Ready: func(url string) { ready <- url },
	}
	for _, c := range change {
		c(&cfg)
	}
	go func() { done <- controller.Run(ctx, cfg) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller %s ended with %v", name, err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("controller %s did not start: %v", name, err)
	case <-time.After(60 * time.Second):
		t.Fatalf("controller %s did not start in time", name)
	}
	return stop
}

// A leader that dies between a host's deletion and the revocation of its key leaves that to the next one. Here the first one's
// revocation goes to a copy of the keys, as if it had never been kept.
func TestNextLeaderRevokes(t *testing.T) {
	dir := t.TempDir()
	keys, lost := filepath.Join(dir, "identity"), filepath.Join(dir, "lost")
	if _, err := identity.Open(keys); err != nil {
		t.Fatal(err)
	}
	url := external(t, keys)
	if err := os.CopyFS(lost, os.DirFS(keys)); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(lost)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Chmod(filepath.Join(lost, f.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := beside(t, "one", url, filepath.Join(dir, "one"), lost)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := api.Dial(ctx, api.ClientConfig{
		Server: url, Creds: filepath.Join(dir, "one", controller.AdminCreds), CA: filepath.Join(dir, "one", controller.CABundle), Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	registry := api.NewRegistry()
	call := func(kind resource.Kind, verb string, params map[string]any) {
		t.Helper()
		params["request"] = string(kind) + verb
		b, err := json.Marshal(params)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Call(ctx, registry.Find(kind, verb), b); err != nil {
			t.Fatalf("%s %s: %v", kind, verb, err)
		}
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	key, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	call(resource.KindZone, "create", map[string]any{"name": "z"})
	call(resource.KindCluster, "create", map[string]any{"name": "c", "zone": "z"})
	call(resource.KindHost, "add", map[string]any{"name": "h", "cluster": "c", "public_key": key})
	beside(t, "two", url, filepath.Join(dir, "two"), keys)
	call(resource.KindHost, "delete", map[string]any{"id": "h"})
	first()
	id, err := identity.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	for {
		token, err := id.AccountJWT(identity.AGT)
		if err != nil {
			t.Fatal(err)
		}
		c, err := jwt.DecodeAccountClaims(token)
		if err != nil {
			t.Fatal(err)
		}
		if c.Revocations[key] != 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the next leader has not revoked the key")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A join token pins what the NATS server presents, which may be signed by others than the controller's own certificate.
func TestTokenPinsTheServer(t *testing.T) {
	dir := t.TempDir()
	keys := filepath.Join(dir, "identity")
	url := external(t, keys)
	own, err := controller.ListCA(keys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := controller.NATSConfig(filepath.Join(dir, "other"), "127.0.0.1:0", dir, dir, nil); err != nil { // a certificate by another authority
		t.Fatal(err)
	}
	data := filepath.Join(dir, "one")
	beside(t, "one", url, data, keys, func(c *controller.Config) {
		c.TLSCert, c.TLSKey = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := api.Dial(ctx, api.ClientConfig{
		Server: url, Creds: filepath.Join(data, controller.AdminCreds), CA: filepath.Join(data, controller.CABundle), Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	registry := api.NewRegistry()
	var reply api.Reply
	for _, c := range []struct {
		kind resource.Kind
		body string
	}{
		{resource.KindZone, `{"name":"z","request":"1"}`},
		{resource.KindCluster, `{"name":"c","zone":"z","request":"2"}`},
		{resource.KindHostToken, `{"cluster":"c","request":"3"}`},
	} {
		raw, err := client.Call(ctx, registry.Find(c.kind, "create"), []byte(c.body))
		if err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		reply = api.Reply{}
		if err := json.Unmarshal(raw, &reply); err != nil {
			t.Fatal(err)
		}
	}
	token, err := desired.ParseJoinToken(reply.Token)
	if err != nil {
		t.Fatal(err)
	}
	if token.Pin != own[0].Pin {
		t.Errorf("the token pins %s, the server presents %s", token.Pin, own[0].Pin)
	}
}
