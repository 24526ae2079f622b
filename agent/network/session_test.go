package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFromNetwork: what counts is when the nearest SSH server's process was started.
func TestFromNetwork(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	for pid, p := range map[int]struct {
		name          string
		parent, ticks int
	}{
		1: {"systemd", 0, 1}, 10: {"sshd", 1, 100}, 11: {"sshd", 10, 5000}, 12: {"ba) (sh", 11, 5001}, 21: {"sshd-session", 10, 9000}, 22: {"bash", 21, 9001},
		30: {"tmux: server", 1, 9500}, 31: {"bash", 30, 9501},
	} {
		dir := filepath.Join(proc, fmt.Sprint(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stat := fmt.Sprintf("%d (%s) S %d 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 %d 1 1\n", pid, p.name, p.parent, p.ticks)
		if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &Pending{Applied: 80 * time.Second}
	for pid, ok := range map[int]bool{12: false, 22: true, 31: false, 1: false} {
		if err := FromNetwork(proc, pid, p); (err == nil) != ok || err != nil && !errors.Is(err, ErrNotFromNetwork) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if FromNetwork(proc, 22, &Pending{}) == nil {
		t.Error("a change that is still being made can be confirmed")
	}
	// The real thing: this test was not started by an SSH server after a change that is yet to come.
	up, err := Kernel{}.Uptime()
	if err != nil {
		t.Fatal(err)
	}
	if err := FromNetwork("/proc", os.Getpid(), &Pending{Applied: up + time.Hour}); !errors.Is(err, ErrNotFromNetwork) {
		t.Error(err)
	}
}
