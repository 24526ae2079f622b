package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestStandby_TakesOver: two controllers on one NATS server of its own; the leader is killed, the other goes on with everything.
func TestStandby_TakesOver(t *testing.T) {
	b := &bed{prefix: "e2es", net: "10.80.0", dir: filepath.Join(os.TempDir(), "shoal-e2es")}
	if err := b.fresh(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.down)
	if err := b.box("fabric"); err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(b.dir, "identity")
	conf, err := b.tryProgram("shoal-controller", "nats-config", "--identity", identity, "--listen", b.net+".1:4222", "--store", filepath.Join(b.dir, "nats"),
		"--tls-dir", filepath.Join(b.dir, "nats-tls"))
	if err != nil {
		t.Fatal(err)
	}
	confFile := filepath.Join(b.dir, "nats.conf")
	if err := os.WriteFile(confFile, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := b.fabProcess("nats", filepath.Join(repo, ".cache/bin/nats-server"), "-c", confFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.kill)
	start := func(name string, port int) *process {
		t.Helper()
		p, err := b.fabProcess(name, filepath.Join(repo, "bin/shoal-controller"), "--name", name, "--data", filepath.Join(b.dir, name),
			"--identity", identity, "--nats-url", "tls://"+b.net+".1:4222", "--http", fmt.Sprintf("%s.1:%d", b.net, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		return p
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"nats", "one", "two"} {
				log, _ := os.ReadFile(filepath.Join(b.dir, name+".log"))
				t.Logf("end of the log of %s:\n%s", name, end(log, 5000))
			}
		}
	})
	creds := filepath.Join(b.dir, "controller")
	one := start("one", 8481)
	if err := within(30*time.Second, func() error { return os.Symlink(filepath.Join(b.dir, "one"), creds) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { _, err := b.try("zone", "list"); return err })
	start("two", 8482)
	for i := range 20 {
		b.ctl(t, "zone create z%02d", i)
	}
	one.kill()
	killed := time.Now()
	eventually(t, 30*time.Second, func() error {
		_, err := b.try("zone", "create", "after", "--timeout", "1s")
		return err
	})
	t.Logf("the stand-by answered its first change %s after the leader was killed", time.Since(killed).Round(10*time.Millisecond))
	var zones []struct{ Name string }
	b.get(t, &zones, "zone list --limit 100")
	if len(zones) != 21 {
		t.Errorf("%d zones after the take-over, want the 20 from before and the new one", len(zones))
	}
	// The old leader comes back as a stand-by and takes over in its turn.
	start("one", 8481)
	eventually(t, 30*time.Second, func() error { _, err := b.try("zone", "list"); return err })
}
