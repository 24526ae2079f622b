package plan_test

import (
	"strings"
	"testing"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

// TestWhyVM: one answer, from whatever it is that stands in the way, with what is at the bottom of it.
func TestWhyVM(t *testing.T) {
	shutoff := desired.DomainFacts{State: desired.StateShutoff}
	for name, c := range map[string]struct {
		do       func(t *testing.T, e *plantest.Example, vm *resource.VM)
		asWanted bool
		answer   string
		because  int
		remedy   string
	}{
		"runs": {func(*testing.T, *plantest.Example, *resource.VM) {}, true, "it runs on host h1", 0, ""},
		"off": {func(t *testing.T, e *plantest.Example, vm *resource.VM) {
			do(t, e, "vm.stop", func(tx resource.Tx) error { _, err := plan.StopVM(tx, vm.ID, plan.StopOptions{}); return err })
			settle(t, e)
		}, true, "it was asked to be off", 0, "shoalctl vm start a"},
		"in the recycle bin": {func(t *testing.T, e *plantest.Example, vm *resource.VM) {
			do(t, e, "vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, vm.ID); return err })
			settle(t, e)
		}, true, "it is in the recycle bin since 2026-11-23 12:00:00", 0, "shoalctl vm recover a"},
		"host away": {
			func(_ *testing.T, e *plantest.Example, vm *resource.VM) { e.SetConnected(vm.HostID, false) },
			false, "its host h1 is not heard of since 2026-11-23 12:00:00, so nobody knows whether it runs", 1, "look at host h1",
		},
		"not published": {func(t *testing.T, e *plantest.Example, vm *resource.VM) {
			do(t, e, "vm.reboot", func(tx resource.Tx) error { _, err := plan.RebootVM(tx, vm.ID); return err })
		}, false, "the documents of hosts are being written", 0, ""},
		"not got to": {func(t *testing.T, e *plantest.Example, vm *resource.VM) {
			do(t, e, "vm.reboot", func(tx resource.Tx) error { _, err := plan.RebootVM(tx, vm.ID); return err })
			if err := e.Publish(); err != nil {
				t.Fatal(err)
			}
		}, false, "host h1 has not got to it yet: it was told generation", 1, ""},
		"waits for what fails": {func(_ *testing.T, e *plantest.Example, vm *resource.VM) {
			volume, pool := resource.Ref{}, resource.PoolRef(e.IDs["local"])
			for v := range resource.Referrers[*resource.Volume](e.View(), resource.KindVM, vm.ID) {
				volume.ID = v.ID
			}
			wait := func(ref desired.Ref) *desired.Fault {
				return &desired.Fault{Code: desired.CodeWaiting, Message: ref.String() + " is not ready", Ref: &ref}
			}
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseWaiting, Fault: wait(resource.VolumeRef(volume.ID))}, shutoff)
			e.Report(vm.HostID, resource.VolumeRef(volume.ID), desired.Status{Phase: desired.PhaseWaiting, Fault: wait(pool)}, nil)
			e.Report(vm.HostID, pool, desired.Status{Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeReadOnly, Message: "the file system is read-only"}}, nil)
		}, false, "host h1 can't start it before something that it needs is there: the file system is read-only", 3, desired.CodeReadOnly.Remedy()},
		"refused": {func(_ *testing.T, e *plantest.Example, vm *resource.VM) {
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseRefused, Fault: &desired.Fault{Code: desired.CodeLibvirt, Message: "no such machine type", Remedy: "another one"}}, shutoff)
		}, false, "host h1 refuses to start it: no such machine type", 1, "another one"},
		"can't be changed": {func(_ *testing.T, e *plantest.Example, vm *resource.VM) {
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeLibvirt, Message: "busy"}}, desired.DomainFacts{State: desired.StateRunning})
		}, false, "host h1 has tried to change it and failed; it tries again: busy", 1, desired.CodeLibvirt.Remedy()},
		"shut down by its guest": {func(_ *testing.T, e *plantest.Example, vm *resource.VM) {
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseReady}, desired.DomainFacts{State: desired.StateShutoff, ByGuest: true})
		}, true, "its guest has shut itself down", 0, "shoalctl vm start a"},
		"held": {func(_ *testing.T, e *plantest.Example, vm *resource.VM) {
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseDrifted, LastDrift: &desired.Drift{What: "stopped"}}, shutoff)
		}, false, "somebody has changed it on host h1: stopped; it is held as it is", 0, "put it right on the host"},
	} {
		t.Run(name, func(t *testing.T) {
			e := plantest.NewExample(1, 1)
			vm := mustVM(t, e, e.VMSpec("a"))
			settle(t, e)
			c.do(t, e, vm)
			a := resource.WhyVM(e.View(), vmOf(t, e, vm.ID))
			if a.AsWanted != c.asWanted || !strings.HasPrefix(a.Answer, c.answer) || len(a.Because) != c.because || !strings.HasPrefix(a.Remedy, c.remedy) {
				t.Errorf("answer %+v", a)
			}
		})
	}
}
