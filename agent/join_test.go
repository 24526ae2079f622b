package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/network"
	"shoal/agent/sim/gate"
	"shoal/agent/sim/netbox"
)

// TestJoin is a host's life: it waits, gets a token, joins, is away while its credentials expire, comes back, is removed, and lives on.
func TestJoin(t *testing.T) {
	netbox.Need(t, "ip", "ebtables", "dnsmasq", "qemu-img", "qemu-system-x86_64", "nsenter")
	g := gate.New(t)
	data := filepath.Join(t.TempDir(), "data")
	var log gate.Log
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, agent.Config{Data: data, Libvirt: filepath.Join(filepath.Dir(data), "none"), Version: "test", Log: zerolog.New(&log)})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), gate.Secret) {
			t.Errorf("the log holds the secret:\n%s", &log)
		}
	}()
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s\n%s", what, &log)
			}
		}
	}
	state := func() install.Status {
		s, err := install.Look(data, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	connected := func() bool { c := state().Connection; return c != nil && c.Connected }

	await("a line that says how to join", func() bool { return strings.Contains(log.String(), "shoal-agent join TOKEN") })
	g.SetTTL(3 * time.Second)
	g.SetClock(time.Hour)
	if err := os.MkdirAll(filepath.Join(data, "identity"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(install.TokenFile(data), []byte(g.Token("iso", gate.Token{Uses: 1})), 0o600); err != nil {
		t.Fatal(err)
	}
	await("a connection", connected)
	if _, err := os.Stat(install.TokenFile(data)); !os.IsNotExist(err) {
		t.Errorf("the token's file: %v", err)
	}
	await("a clock that is wrong", func() bool { return strings.Contains(log.String(), `"clock":"1h0m0s behind"`) })
	g.Stop()
	await("a server that is away", func() bool { return !connected() })
	await("expiry", func() bool { return state().Expires.Before(time.Now()) })
	g.SetTTL(time.Hour)
	g.Start()
	await("a connection with new credentials", func() bool { return connected() && state().Expires.After(time.Now().Add(time.Minute)) })
	if r := g.Renewals(); len(r) == 0 || !r[len(r)-1].Guest {
		t.Errorf("renewals %+v", r)
	}
	// A change of the host's network is seen to work, since the controller answers after it.
	change := pendingChange(t, data)
	await("a change that is confirmed", func() bool {
		own, err := agent.Network(agent.Config{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		last, err := own.Last()
		return err == nil && last != nil && last.ID == change && last.Confirmed && last.Why == "the agent reached "+g.URL()
	})

	var public string
	for key := range g.Hosts() {
		public = key
	}
	g.Remove(public)
	await("the last word", func() bool {
		return strings.Contains(log.String(), "no longer one of the controller's") && !connected()
	})
	if n := strings.Count(log.String(), "no longer one of the controller's"); n != 1 {
		t.Errorf("said %d times", n)
	}
	select {
	case err := <-done:
		t.Fatalf("the agent of a removed host ended: %v", err)
	default:
	}
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		b, readErr := os.ReadFile(path)
		if readErr == nil && bytes.Contains(b, []byte(gate.Secret)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pendingChange notes a change that was just made, of nothing, and returns its id.
func pendingChange(t *testing.T, data string) string {
	t.Helper()
	up, err := network.Kernel{}.Uptime()
	if err != nil {
		t.Fatal(err)
	}
	boot, err := network.Kernel{}.Boot()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(network.Pending{ID: "c1", Change: "nothing", Boot: boot, Applied: up, Deadline: up + time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(data, "network"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := host.WriteFile(filepath.Join(data, "network", "pending.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return "c1"
}
