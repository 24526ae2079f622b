package probe

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"shoal/agent/host"
	"shoal/desired"
)

func TestParse(t *testing.T) {
	model, n := parseCPUInfo(strings.NewReader("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n"), 1)
	if model != "AMD EPYC" || n != 2 {
		t.Errorf("cpuinfo: %q, %d", model, n)
	}
	if mib, err := parseMemInfo(strings.NewReader("MemTotal:       24684096 kB\nMemFree: 1 kB\n")); err != nil || mib != 24105 {
		t.Errorf("meminfo: %d, %v", mib, err)
	}
	if _, err := parseMemInfo(strings.NewReader("nothing")); err == nil {
		t.Error("meminfo without MemTotal is accepted")
	}
	if v := shortVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"); v != "7.2.22" {
		t.Errorf("version: %q", v)
	}
}

func TestOurs(t *testing.T) {
	for name, want := range map[string]bool{
		"sht0123456789ab": true, "shb0123456789ab": true, "shx0123456789ab": true, "shd0123456789ab": true,
		"eth0": false, "shbr0": false, "sht0123456789xy": false, "sht0123": false,
	} {
		if got := ours(name, ""); got != want {
			t.Errorf("ours(%q) is %v", name, got)
		}
	}
	if !ours("br7", "shoal netdev 1") {
		t.Error("an alias is not heeded")
	}
}

// runner counts what is run, and answers for QEMU.
type runner struct {
	version string
	exit    int // of a machine with KVM
	runs    []string
}

func (r *runner) Run(_ context.Context, c host.Command) ([]byte, error) {
	r.runs = append(r.runs, c.String())
	if slices.Contains(c.Args, "--version") {
		return []byte(r.version + "\nCopyright\n"), nil
	}
	exit := payloadExit
	if strings.Contains(c.String(), "accel=kvm") {
		exit = r.exit
	}
	return nil, &host.ExitError{Command: c.String(), Code: exit, Err: errors.New("exit status")}
}

func TestVirtIsCached(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil || runtime.GOARCH != "amd64" {
		t.Skip("NOT TESTED: needs a /dev/kvm, working or not")
	}
	dir := t.TempDir()
	r := &runner{version: "QEMU emulator version 1.0", exit: payloadExit}
	find := func() string {
		t.Helper()
		v, err := findVirt(t.Context(), r, dir)
		if err != nil {
			t.Fatal(err)
		}
		return v.Virt
	}
	if got := find(); got != virtKVM {
		t.Errorf("verdict %q", got)
	}
	r.exit = 1
	if got := find(); got != virtKVM || len(r.runs) != 4 {
		t.Errorf("second verdict %q after %q", got, r.runs)
	}
	r.version = "QEMU emulator version 2.0"
	if got := find(); got != virtQEMU {
		t.Errorf("verdict on another QEMU: %q", got)
	}
	v, err := findVirt(t.Context(), r, dir)
	if err != nil || !strings.Contains(v.Note, "does not work") {
		t.Errorf("note %q, %v", v.Note, err)
	}
}

// The payload must run under the real QEMU; that it does under emulation shows that it is right.
func TestPayloadRuns(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("NOT TESTED: needs qemu-system-x86_64: run scripts/setup")
	}
	if _, err := tryVirt(t.Context(), host.Machine{}, "tcg", t.TempDir(), tryLimit); err != nil {
		t.Errorf("payload under emulation: %v", err)
	}
	if _, err := tryVirt(t.Context(), host.Machine{}, "nonsense", t.TempDir(), tryLimit); err == nil {
		t.Error("payload runs with an accelerator that does not exist")
	}
}

// Run tells of addresses that come and go, in a namespace of its own.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "shb0123456789ab"}},
	} {
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	address := func(dev, addr string) {
		t.Helper()
		link, err := netlink.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
	address("eth0", "10.1.0.5/24")
	address("shb0123456789ab", "10.2.0.5/24")

	// network reads the namespace of its thread, which is this one.
	addresses, devices, err := network()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string][]string{"eth0": {"10.1.0.5/24"}}, addresses); d != "" {
		t.Errorf("addresses: %s", d)
	}
	if d := cmp.Diff([]string{"eth0", "eth1"}, devices); d != "" {
		t.Errorf("devices: %s", d)
	}

	p, err := New(Config{Data: t.TempDir(), Run: &runner{version: "QEMU emulator version 1.0", exit: 1}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The veths are there, so the first report has them; Run must stay on this thread, hence no goroutine for it.
	stop := time.AfterFunc(time.Minute, cancel)
	defer stop.Stop()
	var reports []desired.Inventory
	err = p.Run(ctx, func(inv desired.Inventory) {
		reports = append(reports, inv)
		if inv.Virt == "" {
			return
		}
		if len(inv.Addresses["eth1"]) == 0 {
			address("eth1", "10.3.0.5/24")
			return
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) || len(reports) == 0 {
		t.Fatalf("run: %v after %d reports", err, len(reports))
	}
	last := reports[len(reports)-1]
	want := map[string][]string{"eth0": {"10.1.0.5/24"}, "eth1": {"10.3.0.5/24"}}
	if d := cmp.Diff(want, last.Addresses); d != "" {
		t.Errorf("last report: %s", d)
	}
	if last.Virt == "" || last.MemoryMiB == 0 || last.CPUs == 0 || last.Hostname == "" || last.QEMU != "1.0" {
		t.Errorf("last report: %+v", last)
	}
	for i := 1; i < len(reports); i++ {
		if cmp.Equal(reports[i-1], reports[i]) {
			t.Errorf("reported twice: %+v", reports[i])
		}
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Data, "virt.json")); err != nil {
		t.Error(err)
	}
}

// What the machine that runs the tests really has; the verdict must come in time even where /dev/kvm hangs.
func TestVirtHere(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("NOT TESTED: needs qemu-system-x86_64: run scripts/setup")
	}
	v, err := findVirt(t.Context(), host.Machine{}, t.TempDir())
	if err != nil || (v.Virt != virtKVM && v.Virt != virtQEMU) || (v.Virt == virtQEMU) == (v.Note == "") {
		t.Errorf("verdict %+v: %v", v, err)
	}
	t.Logf("verdict: %+v", v)
}
