package domain_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	libvirtxml "github.com/libvirt/libvirt-go-xml"
	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"

	"shoal/agent/domain"
	"shoal/agent/engine"
	"shoal/agent/sim"
	"shoal/desired"
)

// bed is a libvirt and the hands of those who are not the agent.
type bed struct {
	lv      domain.Libvirt
	machine domain.Machine
	// dir holds disks; boot is one whose guest obeys ACPI.
	dir, boot string

	crash, guestOff, suspend, destroy, undefine func(t *testing.T, id string)
	// edit changes a definition as virsh edit does.
	edit    func(t *testing.T, id, from, to string)
	restart func(t *testing.T)
	foreign func(t *testing.T, xml string)
	// loosen takes a device off its bridge.
	loosen func(t *testing.T, dev string)
	image  func(t *testing.T, path string)
}

func simBed() *bed {
	lv := sim.NewLibvirt()
	ports := sim.NewPorts(lv)
	ctx := context.Background()
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return &bed{
		lv: lv, machine: ports, dir: "/pool", boot: "/pool/boot.raw",
		crash:    func(_ *testing.T, id string) { lv.Kill(id) },
		guestOff: func(_ *testing.T, id string) { lv.GuestShutdown(id) },
		suspend:  func(t *testing.T, id string) { must(t, lv.Suspend(ctx, id)) },
		destroy:  func(t *testing.T, id string) { must(t, lv.Destroy(ctx, id)) },
		undefine: func(t *testing.T, id string) { must(t, lv.Undefine(ctx, id)) },
		edit: func(t *testing.T, id, from, to string) {
			text, err := lv.XML(ctx, id, false)
			must(t, err)
			must(t, lv.Define(ctx, strings.ReplaceAll(text, from, to)))
		},
		restart: func(*testing.T) { lv.SetDown(true); lv.SetDown(false) },
		foreign: func(t *testing.T, xml string) { must(t, lv.Define(ctx, xml)) },
		loosen:  func(_ *testing.T, dev string) { ports.Move(dev, "") },
		image:   func(*testing.T, string) {},
	}
}

func realBed(t *testing.T) *bed {
	dir := t.TempDir()
	socket := domain.NewSocket(libvirtSocket)
	t.Cleanup(func() { _ = socket.Close() })
	define := func(t *testing.T, text string) {
		t.Helper()
		file := filepath.Join(dir, "foreign.xml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		virsh(t, "define", file)
	}
	return &bed{
		lv: socket, machine: domain.Host{}, dir: dir, boot: bootDisk(t, dir, obedientGuest()),
		crash: func(t *testing.T, id string) {
			if err := syscall.Kill(qemuPID(t, "shoal-"+id), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		guestOff: func(t *testing.T, id string) {
			// The guest decides; it is asked by the only means there is, until it has booted and hears.
			eventually(t, "guest obeys the power button", func() bool {
				_, _ = exec.Command("virsh", "-q", "-c", "qemu:///system", "shutdown", "--mode", "acpi", id).CombinedOutput()
				return strings.Contains(virsh(t, "domstate", id), "shut off")
			})
		},
		suspend:  func(t *testing.T, id string) { virsh(t, "suspend", id) },
		destroy:  func(t *testing.T, id string) { virsh(t, "destroy", id) },
		undefine: func(t *testing.T, id string) { virsh(t, "undefine", id) },
		edit: func(t *testing.T, id, from, to string) {
			text := virsh(t, "dumpxml", "--inactive", id)
			if !strings.Contains(text, from) {
				t.Fatalf("no %q in %s", from, text)
			}
			define(t, strings.ReplaceAll(text, from, to))
		},
		restart: restartLibvirtd,
		foreign: define,
		loosen: func(t *testing.T, dev string) {
			link, err := netlink.LinkByName(dev)
			if err == nil {
				err = netlink.LinkSetNoMaster(link)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		image: func(t *testing.T, path string) {
			if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
				t.Fatalf("qemu-img: %v: %s", err, out)
			}
		},
	}
}

// agent is a kind and the memory that outlives it.
type agent struct {
	*domain.Kind
	t    *testing.T
	bed  *bed
	acts *acts
}

func newAgent(t *testing.T, b *bed, a *acts) *agent {
	t.Helper()
	kind, err := domain.New(domain.Config{
		Libvirt: b.lv, Virt: func(context.Context) (string, error) { return "qemu", nil },
		Acts: a, Machine: b.machine, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &agent{kind, t, b, a}
}

// settle does what the engine does with one item, until there is nothing to do.
func (a *agent) settle(id string, want desired.Domain) (domain.Have, error) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		h, err := a.Ensure(ctx, id, want, nil)
		if engine.IsBusy(err) {
			continue
		}
		if err == nil {
			if d := a.Diff(id, want, h); d != "" {
				a.t.Fatalf("Ensure succeeded and left: %s", d)
			}
		}
		return h, err
	}
}

func (a *agent) must(id string, want desired.Domain) desired.DomainFacts {
	a.t.Helper()
	h, err := a.settle(id, want)
	if err != nil {
		a.t.Fatalf("ensure: %v", err)
	}
	return a.facts(id, h)
}

func (a *agent) facts(id string, h domain.Have) desired.DomainFacts {
	return a.Facts(id, h).(desired.DomainFacts)
}

// see is what Observe finds of a domain.
func (a *agent) see(id string) *domain.Have {
	a.t.Helper()
	all, err := a.Observe(context.Background())
	if err != nil {
		a.t.Fatalf("observe: %v", err)
	}
	h, ok := all[id]
	if !ok {
		return nil
	}
	return &h
}

// diff is how the domain differs now; "absent" when it is not there.
func (a *agent) diff(id string, want desired.Domain) string {
	a.t.Helper()
	h := a.see(id)
	if h == nil {
		return "absent"
	}
	return a.Diff(id, want, *h)
}

func (a *agent) wantDiff(id string, want desired.Domain, diff string) {
	a.t.Helper()
	if got := a.diff(id, want); got != diff {
		a.t.Fatalf("diff is %q, want %q", got, diff)
	}
}

// vm is a document of a small guest, and removes it in the end.
func (a *agent) vm(power desired.Power) (string, desired.Domain) {
	id := uuid.NewString()
	a.t.Cleanup(func() {
		if err := a.Remove(context.Background(), id, domain.Have{}); err != nil {
			a.t.Errorf("remove: %v", err)
		}
		if h := a.see(id); h != nil {
			a.t.Errorf("domain is still there after Remove")
		}
	})
	return id, desired.Domain{
		Name: "shoal-" + id, Title: `a "VM" & more`, Power: power, StopSeconds: 30, CPUs: 1, MemoryMiB: 32, Machine: "pc",
		ConsoleLog: filepath.Join(a.bed.dir, "log", id+".log"),
	}
}

// bootable adds a disk whose guest obeys.
func (a *agent) bootable(d desired.Domain) desired.Domain {
	d.Disks = append(slices.Clone(d.Disks), desired.Disk{
		Volume: "root", Path: a.bed.boot, Format: desired.FormatRaw, Target: "vda", Bus: "virtio", Boot: 1,
	})
	return d
}

func code(err error) desired.Code {
	if err == nil {
		return ""
	}
	return engine.FaultOf(err).Code
}

func TestConformance(t *testing.T) {
	name, newBed := "sim", func(*testing.T) *bed { return simBed() }
	if inside() {
		name, newBed = "libvirt", realBed
	}
	for _, c := range conformance() {
		t.Run(name+"/"+c.name, func(t *testing.T) { c.run(t, newAgent(t, newBed(t), newActs())) })
	}
}

type conformanceTest struct {
	name string
	run  func(t *testing.T, a *agent)
}

func conformance() []conformanceTest {
	return []conformanceTest{
		{"create, idle, stop, remove", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			f := a.must(id, want)
			if f.State != desired.StateRunning || f.VNC == "" || f.Started.IsZero() || f.Pending != nil {
				t.Errorf("facts: %+v", f)
			}
			a.wantDiff(id, want, "")
			want.Power, want.Force = desired.PowerOff, true
			a.wantDiff(id, want, "running")
			if f = a.must(id, want); f.State != desired.StateShutoff || f.ByGuest || f.VNC != "" {
				t.Errorf("facts when off: %+v", f)
			}
			want.Power = desired.PowerOn
			a.wantDiff(id, want, "stopped")
			if f = a.must(id, want); f.State != desired.StateRunning {
				t.Errorf("facts when on again: %+v", f)
			}
		}},
		{"created stopped, then paused, then on", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOff)
			if f := a.must(id, want); f.State != desired.StateShutoff {
				t.Errorf("facts: %+v", f)
			}
			want.Power = desired.PowerPaused
			if f := a.must(id, want); f.State != desired.StatePaused {
				t.Errorf("facts: %+v", f)
			}
			want.Power = desired.PowerOn
			if f := a.must(id, want); f.State != desired.StateRunning {
				t.Errorf("facts: %+v", f)
			}
			want.Power = desired.PowerPaused
			if f := a.must(id, want); f.State != desired.StatePaused {
				t.Errorf("facts: %+v", f)
			}
		}},
		{"foreign changes of state are healed", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			a.bed.destroy(t, id)
			a.wantDiff(id, want, "stopped")
			a.must(id, want)
			a.bed.suspend(t, id)
			a.wantDiff(id, want, "paused")
			a.must(id, want)
			a.bed.crash(t, id)
			eventually(t, "libvirt sees the end of QEMU", func() bool { return a.diff(id, want) == "crashed" })
			a.must(id, want)
			a.bed.undefine(t, id)
			a.wantDiff(id, want, "not defined")
			before := a.see(id).Info
			a.must(id, want)
			after := a.see(id).Info
			before.Persistent = true
			if d := cmp.Diff(before, after); d != "" {
				t.Errorf("more than the definition changed: %s", d)
			}
		}},
		{"what crashed and is not wanted any more is off", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			a.bed.crash(t, id)
			eventually(t, "libvirt sees the end of QEMU", func() bool { return a.diff(id, want) == "crashed" })
			if f := a.facts(id, *a.see(id)); f.State != desired.StateCrashed {
				t.Errorf("facts of a guest that crashed: %+v", f)
			}
			want.Power = desired.PowerOff
			a.must(id, want)
			a.wantDiff(id, want, "")
			if f := a.facts(id, *a.see(id)); f.State != desired.StateShutoff {
				t.Errorf("facts of a guest that crashed and is wanted off: %+v", f)
			}
		}},
		{"foreign changes of the definition are healed", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOff)
			a.must(id, want)
			a.bed.edit(t, id, "</vcpu>", "1</vcpu>")
			a.wantDiff(id, want, "cpus")
			a.must(id, want)
			a.wantDiff(id, want, "")
		}},
		{"a guest that obeys ACPI is stopped in peace", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want = a.bootable(want)
			want.StopSeconds = 60
			a.must(id, want)
			want.Power = desired.PowerOff
			a.must(id, want)
			if h := a.see(id); h.Info.Reason != domain.ShutoffShutdown || h.ByGuest {
				t.Errorf("after stop: %+v", h.Info)
			}
			want.Power = desired.PowerOn
			a.wantDiff(id, want, "stopped")
			if f := a.must(id, want); f.State != desired.StateRunning {
				t.Errorf("facts: %+v", f)
			}
		}},
		{"a deaf guest is destroyed in the end", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want.StopSeconds = 2
			a.must(id, want)
			if lv, ok := a.bed.lv.(*sim.Libvirt); ok {
				lv.Deaf(true)
			}
			want.Power = desired.PowerOff
			if _, err := a.Ensure(t.Context(), id, want, nil); !engine.IsBusy(err) {
				t.Errorf("first Ensure: %v, want busy", err)
			}
			a.must(id, want)
			if h := a.see(id); h.Info.Reason != domain.ShutoffDestroyed {
				t.Errorf("after stop: %+v", h.Info)
			}
		}},
		{"what others did about its running can be taken over", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			adopt := func(power desired.Power, can bool) {
				t.Helper()
				found, ok := a.Adopt(id, want, *a.see(id))
				if ok != can || ok && found.Power != power {
					t.Fatalf("found %s, %v; want %s, %v", found.Power, ok, power, can)
				}
				if !ok {
					return
				}
				// Once it is wanted, there is nothing to be done to the guest.
				before := a.see(id).Info.ID
				want = found
				a.must(id, want)
				if after := a.see(id).Info.ID; after != before {
					t.Fatalf("the guest was %s, and is %s", before, after)
				}
			}
			adopt(desired.PowerOn, false) // nothing has changed
			if err := a.bed.lv.Suspend(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			adopt(desired.PowerPaused, true)
			if err := a.bed.lv.Resume(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			adopt(desired.PowerOn, true)
			if err := a.bed.lv.Destroy(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			more := want
			more.Machine = "q35"
			if found, ok := a.Adopt(id, more, *a.see(id)); ok {
				t.Errorf("its machine differs too, and it is taken over as %+v", found)
			}
			adopt(desired.PowerOff, true)
		}},
		{"what others did about its size can be taken over", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			edit := func(change func(*libvirtxml.Domain)) {
				t.Helper()
				text, err := a.bed.lv.XML(t.Context(), id, false)
				if err != nil {
					t.Fatal(err)
				}
				var d libvirtxml.Domain
				if err := d.Unmarshal(text); err != nil {
					t.Fatal(err)
				}
				change(&d)
				if text, err = d.Marshal(); err != nil {
					t.Fatal(err)
				}
				if err := a.bed.lv.Define(t.Context(), text); err != nil {
					t.Fatal(err)
				}
			}
			before := a.see(id).Info.ID
			edit(func(d *libvirtxml.Domain) {
				d.VCPU = &libvirtxml.DomainVCPU{Placement: "static", Value: 4, Current: 3}
				d.Memory = &libvirtxml.DomainMemory{Value: uint(want.MemoryMiB+32) << 10, Unit: "KiB"}
			})
			a.wantDiff(id, want, "cpus, memory_mib")
			found, ok := a.Adopt(id, want, *a.see(id))
			if !ok || found.CPUs != 3 || found.MemoryMiB != want.MemoryMiB+32 || found.Power != desired.PowerOn {
				t.Fatalf("found %+v, %v", found, ok)
			}
			f := a.must(id, found)
			if !slices.Contains(f.Pending, "cpus") || !slices.Contains(f.Pending, "memory_mib") {
				t.Errorf("what comes with the next start: %v", f.Pending)
			}
			a.wantDiff(id, found, "")
			if after := a.see(id).Info.ID; after != before {
				t.Errorf("the guest was %s, and is %s", before, after)
			}
			edit(func(d *libvirtxml.Domain) { d.VCPU, d.Devices.Serials[0].Log = &libvirtxml.DomainVCPU{Value: 1}, nil })
			if found, ok := a.Adopt(id, found, *a.see(id)); ok {
				t.Errorf("its console differs too, and it is taken over as %+v", found)
			}
		}},
		{"a stop that is called off", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want.StopSeconds = 600
			a.must(id, want)
			if lv, ok := a.bed.lv.(*sim.Libvirt); ok {
				lv.Deaf(true)
			}
			off := want
			off.Power = desired.PowerOff
			if _, err := a.Ensure(t.Context(), id, off, nil); !engine.IsBusy(err) {
				t.Fatalf("stop: %v, want busy", err)
			}
			a.wantDiff(id, want, "being stopped")
			if f := a.must(id, want); f.State != desired.StateRunning {
				t.Errorf("facts: %+v", f)
			}
		}},
		{"a guest that shuts itself down stays off, over restarts", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want = a.bootable(want)
			a.must(id, want)
			a.bed.guestOff(t, id)
			eventually(t, "guest is off", func() bool { return !a.see(id).Info.Active() })
			f := a.facts(id, *a.see(id))
			if f.State != desired.StateShutoff || !f.ByGuest {
				t.Errorf("facts: %+v", f)
			}
			a.wantDiff(id, want, "")
			a.bed.restart(t)
			b := newAgent(t, a.bed, a.acts)
			eventually(t, "libvirt is back", func() bool { _, err := b.Observe(t.Context()); return err == nil })
			b.wantDiff(id, want, "")
			if f := b.must(id, want); !f.ByGuest || f.State != desired.StateShutoff {
				t.Errorf("facts after restart: %+v", f)
			}
			// The controller takes it over, and the user starts it.
			off := want
			off.Power = desired.PowerOff
			b.wantDiff(id, off, "off without being stopped")
			b.must(id, off)
			if f := b.must(id, want); f.State != desired.StateRunning {
				t.Errorf("facts after start: %+v", f)
			}
		}},
		{"a newer wish starts what its guest shut down", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want = a.bootable(want)
			want.Wish = 1
			a.must(id, want)
			guestOff := func() {
				t.Helper()
				a.bed.guestOff(t, id)
				eventually(t, "guest is off", func() bool { return !a.see(id).Info.Active() })
			}
			// The guest goes off first. That the user turned it off and on again is known by the wish alone.
			guestOff()
			a.wantDiff(id, want, "")
			want.Wish = 3
			a.bed.restart(t)
			b := newAgent(t, a.bed, a.acts)
			eventually(t, "libvirt is back", func() bool { _, err := b.Observe(t.Context()); return err == nil })
			b.wantDiff(id, want, "off by its guest and asked to run again")
			if f := b.must(id, want); f.State != desired.StateRunning || f.ByGuest {
				t.Fatalf("facts after a newer wish: %+v", f)
			}

			// The wish comes first, while it runs. What the guest does after that is its own will.
			want.Wish = 4
			b.wantDiff(id, want, "wish not noted")
			started := b.see(id).Started
			b.must(id, want)
			if h := b.see(id); !h.Started.Equal(started) {
				t.Error("a wish for what runs started it anew")
			}
			guestOff()
			b.wantDiff(id, want, "")
			if f := b.must(id, want); f.State != desired.StateShutoff || !f.ByGuest {
				t.Errorf("facts: %+v", f)
			}
			// A reboot asks for it to run, too, and is done by the start.
			want.Wish, want.Act = 5, &desired.Act{Seq: 1, Verb: desired.VerbReboot}
			if f := b.must(id, want); f.State != desired.StateRunning || f.Acted == nil || f.Acted.Seq != 1 || f.Acted.Error != "" {
				t.Errorf("facts after reboot: %+v, %+v", f, f.Acted)
			}
		}},
		{"restarts of libvirt and agent change nothing", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			before := a.see(id)
			a.bed.restart(t)
			b := newAgent(t, a.bed, a.acts)
			eventually(t, "libvirt is back", func() bool { _, err := b.Observe(t.Context()); return err == nil })
			b.wantDiff(id, want, "")
			after := b.see(id)
			before.Info.Reason, after.Info.Reason = 0, 0 // libvirt tells another one after its restart
			if d := cmp.Diff(before.Info, after.Info); d != "" {
				t.Errorf("changed: %s", d)
			}
		}},
		{"foreign domains are not touched", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOff)
			a.must(id, want)
			mine, err := a.bed.lv.XML(t.Context(), id, false)
			if err != nil {
				t.Fatal(err)
			}
			// A clone of a domain of ours, with our element.
			clone := uuid.NewString()
			text := strings.ReplaceAll(mine, "<uuid>"+id, "<uuid>"+clone)
			text = strings.ReplaceAll(text, "<name>shoal-"+id, "<name>clone-"+clone)
			a.bed.foreign(t, text)
			// A stranger with the UUID and one with the name of a VM to come.
			taken, takenWant := uuid.NewString(), want
			takenWant.Name = "shoal-" + taken
			a.bed.foreign(t, fmt.Sprintf(`<domain type="qemu"><name>other-%s</name><uuid>%s</uuid><memory unit="MiB">32</memory>`+
				`<os><type arch="x86_64" machine="pc">hvm</type></os></domain>`, taken, taken))
			named, namedWant := uuid.NewString(), want
			namedWant.Name = "other-" + taken
			t.Cleanup(func() {
				for _, foreign := range []string{clone, taken} {
					if err := a.bed.lv.Undefine(context.Background(), foreign); err != nil {
						t.Errorf("a foreign domain is gone: %v", err)
					}
				}
			})
			before, err := a.bed.lv.XML(t.Context(), taken, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, foreign := range []string{clone, taken} {
				if a.see(foreign) != nil {
					t.Errorf("%s is taken for ours", foreign)
				}
				if h, err := a.ObserveOne(t.Context(), foreign); h != nil || err != nil {
					t.Errorf("%s is taken for ours: %v", foreign, err)
				}
				if err := a.Remove(t.Context(), foreign, domain.Have{}); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if _, err := a.settle(taken, takenWant); code(err) != desired.CodeConflict {
				t.Errorf("define over a foreign UUID: %v", err)
			}
			if _, err := a.settle(named, namedWant); code(err) != desired.CodeConflict {
				t.Errorf("define over a foreign name: %v", err)
			}
			if after, err := a.bed.lv.XML(t.Context(), taken, false); err != nil || before != after {
				t.Errorf("foreign domain changed: %v\n%s", err, cmp.Diff(before, after))
			}
		}},
		{"pending changes", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			want.CPUs, want.MemoryMiB = 2, 48
			a.wantDiff(id, want, "cpus, memory_mib")
			f := a.must(id, want)
			if d := cmp.Diff([]string{"cpus", "memory_mib"}, f.Pending); d != "" {
				t.Errorf("pending: %s", d)
			}
			off := want
			off.Power, off.Force = desired.PowerOff, true
			a.must(id, off)
			if f := a.must(id, want); f.Pending != nil {
				t.Errorf("pending after start: %v", f.Pending)
			}
		}},
		{"disks and nics are plugged", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want = a.bootable(want)
			a.must(id, want)
			path := filepath.Join(a.bed.dir, "data.qcow2")
			a.bed.image(t, path)
			tap := "sht" + strings.ReplaceAll(id, "-", "")[:12]
			more := want
			more.Disks = append(slices.Clone(want.Disks), desired.Disk{
				Volume: "data", Path: path, Format: desired.FormatQCOW2, Target: "vdb", Bus: "virtio", Serial: "data",
			})
			more.NICs = []desired.DomainNIC{{ID: "nic", MAC: "52:54:00:00:00:01", Tap: tap, Bridge: "shbr0", Model: "virtio", MTU: 1450}}
			if f := a.must(id, more); f.Pending != nil {
				t.Errorf("pending: %v", f.Pending)
			}
			if bridge, exists, err := a.bed.machine.Bridge(tap); err != nil || !exists || bridge != "shbr0" {
				t.Errorf("tap is on %q, exists %v: %v", bridge, exists, err)
			}
			live, err := a.bed.lv.XML(t.Context(), id, true)
			if err != nil || !strings.Contains(live, path) || !strings.Contains(live, tap) {
				t.Errorf("not plugged in: %v\n%s", err, live)
			}

			a.bed.loosen(t, tap)
			a.wantDiff(id, more, "nic 52:54:00:00:00:01 is not on its bridge")
			a.must(id, more)
			if bridge, _, err := a.bed.machine.Bridge(tap); err != nil || bridge != "shbr0" {
				t.Errorf("tap is on %q: %v", bridge, err)
			}

			// The guest may still be booting, and hears only then.
			eventually(t, "unplugged", func() bool { _, err := a.settle(id, want); return err == nil })
			if f := a.must(id, want); f.Pending != nil {
				t.Errorf("pending after unplugging: %v", f.Pending)
			}
			if live, err = a.bed.lv.XML(t.Context(), id, true); err != nil || strings.Contains(live, path) || strings.Contains(live, tap) {
				t.Errorf("not unplugged: %v\n%s", err, live)
			}
		}},
		{"q35 takes devices while it runs", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want.Machine = "q35"
			a.must(id, want)
			for i := range 6 {
				path := filepath.Join(a.bed.dir, fmt.Sprintf("data%d.qcow2", i))
				a.bed.image(t, path)
				target := fmt.Sprintf("vd%c", 'a'+i)
				want.Disks = append(want.Disks, desired.Disk{Volume: target, Path: path, Format: desired.FormatQCOW2, Target: target, Bus: "virtio"})
				if f := a.must(id, want); f.Pending != nil {
					t.Fatalf("pending with %d disks: %v", i+1, f.Pending)
				}
			}
			off := want
			off.Power, off.Force = desired.PowerOff, true
			a.must(id, off)
			if f := a.must(id, want); f.State != desired.StateRunning || f.Pending != nil {
				t.Errorf("facts after start: %+v", f)
			}
		}},
		{"a guest that keeps its disk", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			path := filepath.Join(a.bed.dir, "kept.qcow2")
			a.bed.image(t, path)
			more := want
			more.Disks = []desired.Disk{{Volume: "data", Path: path, Format: desired.FormatQCOW2, Target: "vdb", Bus: "virtio"}}
			a.must(id, more)
			if lv, ok := a.bed.lv.(*sim.Libvirt); ok {
				lv.Gripped(true)
			}
			h, err := a.settle(id, want)
			if code(err) != desired.CodeTimeout || !strings.Contains(err.Error(), "vdb") {
				t.Errorf("unplug: %v", err)
			}
			if d := cmp.Diff([]string{"disk vdb"}, a.facts(id, h).Pending); d != "" {
				t.Errorf("pending: %s", d)
			}
			off := want
			off.Power, off.Force = desired.PowerOff, true
			a.must(id, off)
			if f := a.must(id, want); f.Pending != nil {
				t.Errorf("pending after start: %v", f.Pending)
			}
		}},
		{"acts happen once", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			want.StopSeconds = 1
			want.Act = &desired.Act{Seq: 3, Verb: desired.VerbReboot}
			if f := a.must(id, want); f.Acted == nil || f.Acted.Seq != 3 || f.Acted.Error != "" {
				t.Errorf("a new domain adopts the act: %+v", f.Acted)
			}
			first := a.see(id).Started
			want.Act = &desired.Act{Seq: 4, Verb: desired.VerbReset}
			a.wantDiff(id, want, "act due")
			if f := a.must(id, want); f.Acted == nil || f.Acted.Seq != 4 || f.Acted.Error != "" || f.Acted.At.IsZero() {
				t.Errorf("reset: %+v", f.Acted)
			}
			if h := a.see(id); !h.Started.Equal(first) {
				t.Errorf("reset started the domain anew")
			}
			want.Act = &desired.Act{Seq: 5, Verb: desired.VerbReboot}
			want.CPUs = 2
			if f := a.must(id, want); f.Acted == nil || f.Acted.Seq != 5 || f.Acted.Error != "" || f.State != desired.StateRunning || f.Pending != nil {
				t.Errorf("reboot: %+v %+v", f, f.Acted)
			}
			second := a.see(id).Started
			if second.Equal(first) {
				t.Errorf("reboot did not start the domain anew")
			}
			a.wantDiff(id, want, "")
			a.must(id, want)
			if h := a.see(id); !h.Started.Equal(second) {
				t.Errorf("reboot happened twice")
			}

			// The agent dies in the middle of the next one.
			if err := a.acts.Begin(id, 6); err != nil {
				t.Fatal(err)
			}
			want.Act = &desired.Act{Seq: 6, Verb: desired.VerbReset}
			b := newAgent(t, a.bed, a.acts)
			_, err := b.settle(id, want)
			if code(err) != desired.CodeUnknownOutcome {
				t.Errorf("act that was cut off: %v", err)
			}
			f := b.must(id, want)
			if f.Acted == nil || f.Acted.Seq != 6 || !strings.HasPrefix(f.Acted.Error, "UnknownOutcome") {
				t.Errorf("act that was cut off: %+v", f.Acted)
			}

			off := want
			off.Power, off.Force, off.Act = desired.PowerOff, true, &desired.Act{Seq: 7, Verb: desired.VerbReset}
			if f := b.must(id, off); f.State != desired.StateShutoff || f.Acted.Seq != 7 || f.Acted.Error == "" {
				t.Errorf("act on a VM that is to be off: %+v %+v", f, f.Acted)
			}
		}},
		{"events", func(t *testing.T, a *agent) {
			id, want := a.vm(desired.PowerOn)
			a.must(id, want)
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan string, 1000)
			done := make(chan error, 1)
			go func() { done <- a.Watch(ctx, func(id string) { seen <- id }) }()
			await := func(want string) {
				t.Helper()
				limit := time.After(time.Minute)
				for {
					select {
					case got := <-seen:
						if got == want {
							return
						}
					case <-limit:
						t.Fatalf("no event for %q", want)
					}
				}
			}
			await("")
			a.bed.destroy(t, id)
			await(id)
			a.bed.restart(t)
			await("") // it is gone
			await("") // it is back
			a.must(id, want)
			await(id)
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("watch: %v", err)
			}
		}},
	}
}
