package domain_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests against the real libvirt run in the test binary started again on a machine of its own (testdata/bed). Nothing
// of it is left when it ends.
const insideEnv = "SHOAL_DOMAIN_TEST_INSIDE"

// realTools is why there can't be a real libvirt here, or "".
func realTools() string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	for _, tool := range []string{"libvirtd", "virtlogd", "qemu-system-x86_64", "ip", "bash", "virsh", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "needs " + tool + ": run scripts/setup"
		}
	}
	return ""
}

func inside() bool { return os.Getenv(insideEnv) != "" }

// TestReal runs the conformance suite again, on a machine of its own.
func TestReal(t *testing.T) {
	if inside() {
		t.Skip("is inside already")
	}
	if why := realTools(); why != "" {
		t.Skip("NOT TESTED against the real libvirt: " + why)
	}
	pattern := os.Getenv("SHOAL_DOMAIN_TEST_RUN")
	if pattern == "" {
		pattern = "^(TestConformance|TestManyAtOnce)$"
	}
	scratch := t.TempDir()
	// The end of the context is bash's, which is pid 1, and so everybody's.
	cmd := exec.CommandContext(t.Context(), "bash", "testdata/bed", os.Args[0],
		"-test.v=true", "-test.count=1", "-test.run="+pattern, "-test.timeout=10m")
	cmd.Env = append(os.Environ(), insideEnv+"=1", "SCRATCH="+scratch, "TMPDIR="+scratch)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	report(t, string(out))
	if err != nil && !t.Failed() {
		t.Errorf("run on a machine of its own: %v\n%s", err, out)
	}
}

// report makes the inner tests' results those of this test.
func report(t *testing.T, out string) {
	for line := range strings.Lines(out) {
		s := strings.TrimSpace(line)
		if strings.Contains(s, "median of") {
			t.Log(s)
		}
		if strings.HasPrefix(s, "--- ") {
			t.Log(s)
			if strings.HasPrefix(s, "--- FAIL") {
				t.Fail()
			}
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

const libvirtSocket = "/run/libvirt/libvirt-sock"

// virsh is an operator's hand.
func virsh(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// restartLibvirtd ends libvirtd and starts it again; guests run on.
func restartLibvirtd(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("/run/libvirtd.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(b))
	if out, err := exec.Command("kill", pid).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v: %s", err, out)
	}
	eventually(t, "libvirtd ends", func() bool {
		_, err := os.Stat("/proc/" + pid)
		return os.IsNotExist(err)
	})
	if out, err := exec.Command("libvirtd", "--daemon").CombinedOutput(); err != nil {
		t.Fatalf("start libvirtd: %v: %s", err, out)
	}
}

// qemuPID is a guest's QEMU.
func qemuPID(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/run/libvirt/qemu/" + name + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// eventually waits for a value. The limit is for failures only.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// obedientGuest is a boot sector that halts, turns itself off when the power button is pressed, and lets go of every PCI
// device that it is asked to: the PIIX4's ACPI registers are at 0x600, its hot-plug registers at 0xae00
// (docs/specs/acpi_pci_hotplug.rst of QEMU).
func obedientGuest() []byte {
	return []byte{
		0xBA, 0x02, 0x06, // mov dx, 0x602: PM1 enable
		0xB8, 0x00, 0x01, // mov ax, 0x100: power button
		0xEF,             // out dx, ax
		0xFB,             // loop: sti
		0xF4,             // hlt, until the next timer tick
		0xBA, 0x00, 0x06, // mov dx, 0x600: PM1 status
		0xED,             // in ax, dx
		0xF6, 0xC4, 0x01, // test ah, 1
		0x75, 0x19, // jnz off
		0xBA, 0x10, 0xAE, // mov dx, 0xae10: bus selector
		0x66, 0x31, 0xC0, // xor eax, eax
		0x66, 0xEF, // out dx, eax
		0xBA, 0x04, 0xAE, // mov dx, 0xae04: slots to let go of
		0x66, 0xED, // in eax, dx
		0x66, 0x85, 0xC0, // test eax, eax
		0x74, 0xE3, // jz loop
		0xBA, 0x08, 0xAE, // mov dx, 0xae08: eject
		0x66, 0xEF, // out dx, eax
		0xEB, 0xDC, // jmp loop
		0xBA, 0x04, 0x06, // off: mov dx, 0x604: PM1 control
		0xB8, 0x00, 0x20, // mov ax, 0x2000: sleep, type S5
		0xEF,       // out dx, ax
		0xF4,       // hlt
		0xEB, 0xFD, // jmp to the halt
	}
}

// bootDisk writes a raw disk that boots code.
func bootDisk(t *testing.T, dir string, code []byte) string {
	t.Helper()
	b := make([]byte, 1<<20)
	copy(b, code)
	b[510], b[511] = 0x55, 0xAA
	path := filepath.Join(dir, "boot.raw")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// acts is a durable memory for tests: it outlives the kinds that use it.
type acts struct {
	mu   sync.Mutex
	last map[string]act
}

type act struct {
	seq  uint64
	done bool
	err  string
}

func newActs() *acts { return &acts{last: map[string]act{}} }

func (a *acts) Last(id string) (uint64, bool, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.last[id]
	return l.seq, l.done, l.err
}

func (a *acts) Begin(id string, seq uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last[id] = act{seq: seq}
	return nil
}

func (a *acts) End(id string, seq uint64, errText string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last[id].seq != seq {
		return fmt.Errorf("act %d ends, but %d was begun", seq, a.last[id].seq)
	}
	a.last[id] = act{seq, true, errText}
	return nil
}
