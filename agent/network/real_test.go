package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/agent/networkd"
	"shoal/agent/sim/netbox"
)

func static(address string) Addressing {
	return Addressing{Static: []netip.Prefix{netip.MustParsePrefix(address)}}
}

// bed is a machine of namespaces with a real systemd-networkd: lan1 and lan2 are its interfaces, cabled to a switch on which 10.77.0.1 answers.
type bed struct {
	t    *testing.T
	data string
	*Network
}

// newBed starts it. Without udev, networkd takes devices as they are if /sys is read only.
func newBed(t *testing.T) *bed {
	t.Helper()
	netbox.Need(t, "ip", "ping", "busctl", "networkctl", "dbus-daemon")
	const daemon = "/lib/systemd/systemd-networkd"
	if _, err := os.Stat(daemon); err != nil {
		t.Skip("SKIPPED: systemd-networkd is not installed: run scripts/setup")
	}
	units := t.TempDir()
	//nolint:gosec // networkd is not root
	for dir := units; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("20-lan1.network", "# by hand\n[Match]\nName=lan1\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nAddress=10.77.0.2/24\n")
	write("20-lan2.network", "[Match]\nName=lan2\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
	netbox.Run(t, "mkdir -p /run/dbus /run/systemd/network /run/netns "+networkd.Dir+"\nmount --bind "+units+" "+networkd.Dir)
	t.Cleanup(func() { netbox.Run(t, "umount "+networkd.Dir) })
	netbox.Run(t, `ip netns add switch
		ip -n switch link set lo up
		ip -n switch link add sw type bridge
		ip -n switch link set sw up
		ip -n switch address add 10.77.0.1/24 dev sw
		ip link add lan1 address 52:54:00:00:00:01 type veth peer name p1 netns switch
		ip link add lan2 address 52:54:00:00:00:02 type veth peer name p2 netns switch
		ip -n switch link set p1 master sw up
		ip -n switch link set p2 up`)
	t.Cleanup(func() {
		out, _ := netbox.Try("ip -o link show | sed 's/^[0-9]*: //; s/[:@].*//'")
		for name := range strings.FieldsSeq(out) {
			netbox.Try("ip link delete " + name)
		}
		netbox.Run(t, "ip netns delete switch")
	})
	daemonOf(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	until(t, "a system bus", func() error {
		_, err := os.Stat("/run/dbus/system_bus_socket")
		return err
	})
	daemonOf(t, "unshare", "--mount", "sh", "-c", "mount -o remount,ro /sys && exec "+daemon)
	b := &bed{t: t, data: t.TempDir()}
	b.Network = open(b.data, kernel(), detach(b.data))
	until(t, "networkd", func() error { return kernel().Ready(t.Context()) })
	b.answers("lan1")
	return b
}

// daemonOf runs a program until the test ends.
func daemonOf(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", name, log.String())
		}
	})
}

// until waits for something to come about.
func until(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// answers waits until the switch answers over a device.
func (b *bed) answers(over string) {
	b.t.Helper()
	until(b.t, "10.77.0.1 over "+over, func() error {
		if out, ok := netbox.Try("ip route get 10.77.0.1 && ping -c 1 -W 1 10.77.0.1"); !ok || !strings.Contains(out, " dev "+over+" ") {
			return errors.New(out)
		}
		return nil
	})
}

func (b *bed) apply(c Change) *Pending {
	b.t.Helper()
	p, err := b.Apply(b.t.Context(), c, Cut{})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// expire has the time of a pending change run out.
func (b *bed) expire(p *Pending) {
	b.t.Helper()
	lock, err := b.lock()
	if err != nil {
		b.t.Fatal(err)
	}
	defer lock.Close()
	now, err := b.Pending()
	if err != nil || now == nil || now.ID != p.ID {
		b.t.Fatalf("%s is not pending any more: %+v, %v", p.Change, now, err)
	}
	now.Deadline = now.Applied
	if err := write(b.path("pending.json"), now); err != nil {
		b.t.Fatal(err)
	}
}

// ended waits for the outcome.
func (b *bed) ended(p *Pending, confirmed bool, why string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	last, err := b.Wait(ctx, p.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	if last.Confirmed != confirmed || !strings.Contains(last.Why, why) {
		b.t.Errorf("it ended otherwise than with %q: %s", why, last.Text())
	}
	if p, err := b.Pending(); p != nil || err != nil {
		b.t.Errorf("still pending: %+v, %v", p, err)
	}
}

// units are all files.
func (b *bed) units() map[string]string {
	b.t.Helper()
	entries, err := os.ReadDir(networkd.Dir)
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(networkd.Dir, e.Name()))
		if err != nil {
			b.t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

func (b *bed) same(want map[string]string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.units()); diff != "" {
		b.t.Errorf("units (-want +got):\n%s", diff)
	}
}

// device waits until a device is as wanted.
func (b *bed) device(name, what string, f func(Device) bool) {
	b.t.Helper()
	until(b.t, name+" "+what, func() error {
		all, err := b.Devices(b.t.Context())
		if err != nil {
			return err
		}
		for _, d := range all {
			if d.Name == name && f(d) {
				return nil
			}
		}
		return fmt.Errorf("it is not so: %+v", all)
	})
}

func (b *bed) none(name string) {
	b.t.Helper()
	if out, ok := netbox.Try("ip link show " + name); ok {
		b.t.Errorf("%s is still there: %s", name, out)
	}
}

// TestReal makes changes with the real networkd, confirms them, and lets others be rolled back by a guard that is a process of its own.
func TestReal(t *testing.T) {
	b := newBed(t)
	before := b.units()

	// What cuts the machine off is rolled back, with nobody there.
	p := b.apply(SetAddress{Device: "lan1", Addressing: static("10.99.0.2/24")})
	if _, err := b.Apply(t.Context(), Delete{Name: "x"}, Cut{}); !errors.Is(err, ErrPending) {
		t.Errorf("a second change meanwhile: %v", err)
	}
	b.expire(p)
	b.ended(p, false, "nobody confirmed")
	b.same(before)
	b.answers("lan1")

	// A bridge takes the address over, and stays once confirmed.
	p = b.apply(MakeBridge{Name: "br0", Ports: []string{"lan1"}})
	b.answers("br0")
	if err := b.Confirm("another", "x"); !errors.Is(err, ErrNothing) {
		t.Errorf("another change is confirmed: %v", err)
	}
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}
	b.ended(p, true, "the test")
	bridged := b.units()

	// A port more, rolled back on the word of the operator, then for good.
	p = b.apply(AddNIC{To: "br0", NICs: []string{"lan2"}})
	b.device("lan2", "in br0", func(d Device) bool { return d.Master == "br0" })
	if err := b.RollBack(t.Context(), "enough"); err != nil {
		t.Fatal(err)
	}
	b.ended(p, false, "enough")
	b.same(bridged)
	b.device("lan2", "in nothing", func(d Device) bool { return d.Master == "" })
	p = b.apply(AddNIC{To: "br0", NICs: []string{"lan2"}})
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}
	p = b.apply(RemoveNIC{From: "br0", NICs: []string{"lan2"}})
	b.device("lan2", "in nothing", func(d Device) bool { return d.Master == "" })
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}

	// A name, with the carrier of the address: back, and for good.
	p = b.apply(Rename{MAC: "52:54:00:00:00:01", Name: "up0"})
	b.answers("br0")
	b.device("up0", "in br0", func(d Device) bool { return d.Master == "br0" && d.File == "20-up0.network" })
	b.expire(p)
	b.ended(p, false, "nobody confirmed")
	b.none("up0")
	b.answers("br0")
	p = b.apply(Rename{MAC: "52:54:00:00:00:02", Name: "storage"})
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}
	b.none("lan2")
	if text := b.units()["10-storage.link"]; !strings.Contains(text, "PermanentMACAddress=52:54:00:00:00:02") {
		t.Errorf("nothing names it at the next start: %q", text)
	}

	// Without the bridge again: first back, then for good; the address is gone, and is given anew.
	kept := b.units()
	p = b.apply(Delete{Name: "br0"})
	b.none("br0")
	b.expire(p)
	b.ended(p, false, "nobody confirmed")
	b.same(kept)
	b.answers("br0")
	p = b.apply(Delete{Name: "br0"})
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}
	p = b.apply(SetAddress{Device: "lan1", Addressing: static("10.77.0.2/24")})
	b.answers("lan1")
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}

	// Refused: nothing is left behind.
	whole := b.units()
	if _, err := b.Apply(t.Context(), AddNIC{To: "br0", NICs: []string{"lan1"}}, Cut{}); err == nil {
		t.Error("a bridge that is gone got a port")
	}
	b.same(whole)
	if p, err := b.Pending(); p != nil || err != nil {
		t.Errorf("refused and pending: %+v, %v", p, err)
	}
}

// TestReal_Killed: the operator's command is killed with its whole session right after the change; the guard lives on.
func TestReal_Killed(t *testing.T) {
	b := newBed(t)
	before := b.units()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	operator := exec.Command(self)
	operator.Env = append(os.Environ(), operatorEnv+"="+b.data)
	operator.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	operator.Stderr = os.Stderr
	out, err := operator.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := operator.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil || !strings.HasPrefix(string(line[:n]), "applied") {
		t.Fatalf("%q, %v", line[:n], err)
	}
	p, err := b.Pending()
	if err != nil || p == nil {
		t.Fatalf("nothing is pending: %v", err)
	}
	if err := syscall.Kill(-operator.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = operator.Wait()
	b.expire(p)
	b.ended(p, false, "nobody confirmed")
	b.same(before)
	b.answers("lan1")
}

// nextBoot is the machine at its next start.
type nextBoot struct{ Kernel }

func (nextBoot) Boot() (string, error) { return "the next", nil }

// TestReal_PowerCut: a change whose guard is gone with the power is rolled back at the next start, before its time is over.
func TestReal_PowerCut(t *testing.T) {
	b := newBed(t)
	before := b.units()
	b.cfg.Guard = func(context.Context) error { return nil }
	p := b.apply(MakeBridge{Name: "br0", Ports: []string{"lan1", "lan2"}})
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := b.Pending(); now == nil || err != nil {
		t.Fatalf("a change of this start is rolled back: %v", err)
	}
	after := open(b.data, nextBoot{kernel()}, nil)
	if err := after.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.ended(p, false, "the machine was started")
	b.same(before)
	b.none("br0")
	b.answers("lan1")
	if err := after.Recover(t.Context()); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

// failing is a machine on which one step does not work.
type failing struct {
	Kernel
	left *int
}

func (f failing) Reload(ctx context.Context) error {
	if *f.left--; *f.left == 0 {
		return errors.New("networkd is busy")
	}
	return f.Kernel.Reload(ctx)
}

// TestReal_Fails: a change that can't be made whole is taken back at once.
func TestReal_Fails(t *testing.T) {
	b := newBed(t)
	before := b.units()
	left := 1
	b.cfg.Machine = failing{kernel(), &left}
	if _, err := b.Apply(t.Context(), MakeBridge{Name: "br0", Ports: []string{"lan1"}}, Cut{}); err == nil || !strings.Contains(err.Error(), "networkd is busy") {
		t.Fatal(err)
	}
	b.same(before)
	b.none("br0")
	b.answers("lan1")
	if last, err := b.Last(); err != nil || last == nil || last.Confirmed || !strings.Contains(last.Why, "networkd is busy") {
		t.Errorf("%+v, %v", last, err)
	}
}

// TestReal_BondAndVLAN needs the kernel's drivers.
func TestReal_BondAndVLAN(t *testing.T) {
	netbox.Need(t, "ip")
	for _, kind := range []string{"link add probe0 type bond", "link add link probe1 name probe0 type vlan id 5"} {
		netbox.Try("ip link add probe1 type veth peer name probe2")
		out, ok := netbox.Try("ip " + kind)
		netbox.Try("ip link delete probe0")
		netbox.Try("ip link delete probe1")
		if !ok {
			t.Skipf("SKIPPED: this kernel has no %s: %s", strings.Fields(kind)[len(strings.Fields(kind))-1], out)
		}
	}
	b := newBed(t)
	p := b.apply(MakeBond{Name: "bond0", Mode: "active-backup", NICs: []string{"lan1", "lan2"}})
	b.answers("bond0")
	b.expire(p)
	b.ended(p, false, "nobody confirmed")
	b.none("bond0")
	b.answers("lan1")
	p = b.apply(MakeBond{Name: "bond0", Mode: "active-backup", NICs: []string{"lan1"}})
	b.answers("bond0")
	if err := b.Confirm(p.ID, "the test"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Change{
		AddNIC{To: "bond0", NICs: []string{"lan2"}}, RemoveNIC{From: "bond0", NICs: []string{"lan2"}}, MakeVLAN{Device: "bond0", ID: 7}, Delete{Name: "bond0.7"},
	} {
		p = b.apply(c)
		b.answers("bond0")
		if err := b.Confirm(p.ID, "the test"); err != nil {
			t.Fatal(err)
		}
	}
}
