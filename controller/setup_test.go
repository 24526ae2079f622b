package controller_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	for _, c := range []struct{ listen, store, says string }{{"4222", "/srv/nats", "listen"}, {"127.0.0.1:4222", "", "store"}} {
		if _, err := controller.NATSConfig(filepath.Join(dir, "identity"), c.listen, c.store); err == nil || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	text, err := controller.NATSConfig(filepath.Join(dir, "identity"), "127.0.0.1:4333", "/srv/nats")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, "\nlisten:") != 1 || !strings.Contains(text, `listen: "127.0.0.1:4333"`) || !strings.Contains(text, "/srv/nats") {
		t.Errorf("the configuration does not listen there, once:\n%.300s", text)
	}
}
