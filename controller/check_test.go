package controller_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shoal/controller"
	"shoal/controller/identity"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	good := func() controller.Config {
		return controller.Config{Version: "v1", Data: t.TempDir(), Listen: "127.0.0.1:4222", HTTP: "127.0.0.1:8480"}
	}
	cfg := good()
	p, err := controller.Check(cfg)
	if want := (controller.Plan{Version: "v1", Data: cfg.Data, Listen: "127.0.0.1:4222", HTTP: "127.0.0.1:8480"}); err != nil || p != want {
		t.Errorf("%+v, %v; want %+v", p, err, want)
	}
	if left, err := os.ReadDir(cfg.Data); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	keys := filepath.Join(cfg.Data, "identity")
	if _, err := identity.Open(keys); err != nil {
		t.Fatal(err)
	}
	if _, err := controller.Check(cfg); err != nil {
		t.Errorf("good keys: %v", err)
	}
	for name, test := range map[string]struct {
		spoil func(*controller.Config)
		want  string
	}{
		"an address":      {func(c *controller.Config) { c.Listen = "4222" }, "--listen"},
		"half of TLS":     {func(c *controller.Config) { c.TLSCert = "x" }, "--tls-key"},
		"no certificate":  {func(c *controller.Config) { c.TLSCert, c.TLSKey = "/nowhere", "/nowhere" }, "/nowhere"},
		"a backup place":  {func(c *controller.Config) { c.Backup.To = "sftp://nobody" }, "sftp"},
		"keys of a later": {func(c *controller.Config) { c.Data = later(t) }, "it has version 99"},
	} {
		cfg := good()
		test.spoil(&cfg)
		if _, err := controller.Check(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

// later is the directory of a controller that is newer than this one.
func later(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	keys := filepath.Join(data, "identity")
	if _, err := identity.Open(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keys, "layout.json"), []byte(`{"version":99,"since":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return data
}
