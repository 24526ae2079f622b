package layout_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shoal/desired/layout"
)

// TestUnits: systemd takes the units without a complaint.
func TestUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze")
	}
	root := t.TempDir()
	write := func(path, content string, mode os.FileMode) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{filepath.Join(layout.BinDir, layout.Agent), filepath.Join(layout.BinDir, layout.Controller), "/bin/chown"} {
		write(program, "#!/bin/true\n", 0o755)
	}
	// What the units order themselves by.
	for _, unit := range []string{"network.target", "multi-user.target", "sysinit.target", "basic.target", "shutdown.target", "network-pre.target", "local-fs.target"} {
		write("/usr/lib/systemd/system/"+unit, "[Unit]\nDescription="+unit+"\n", 0o644)
	}
	write("/usr/lib/systemd/system/libvirtd.service", "[Service]\nExecStart=/bin/chown\n", 0o644)
	for _, f := range slices.Concat(layout.AgentFiles(), layout.ControllerFiles()) {
		write(f.Path, f.Content, f.Mode)
	}
	for _, unit := range []string{layout.AgentUnit, layout.RollbackUnit, layout.ControllerUnit} {
		out, err := exec.Command(analyze, "verify", "--man=no", "--root="+root, unit).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

func TestHostClock(t *testing.T) {
	t.Parallel()
	f := layout.HostClock([]string{"tls://c1.example:4222", "tls://[2001:db8::1]:4222", "tls://127.0.0.1:4222", "tls://c1.example:4223", "nonsense://%zz"})
	_, sources, _ := strings.Cut(f.Content, "\n")
	if want := "server c1.example iburst\nserver 2001:db8::1 iburst\n"; sources != want {
		t.Errorf("sources:\n%swant\n%s", sources, want)
	}
}
