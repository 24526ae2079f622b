package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// state wants a VM to be shown in a state, and libvirt to agree.
func (b *bed) state(t *testing.T, name, shown, libvirt string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		v := b.vm(t, name)
		if v.Status.State != shown {
			return fmt.Errorf("VM %s is shown as %q, want %q (fault %v)", name, v.Status.State, shown, v.Status.Fault)
		}
		out, err := b.tryIn(b.boxOf(t, v), "sh", "-c", "virsh domstate shoal-"+v.ID)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(out); got != libvirt {
			return fmt.Errorf("libvirt says %q of VM %s, want %q", got, name, libvirt)
		}
		return nil
	})
}

// TestVM_LifeCycle walks through every power state, the recycle bin and the end.
func TestVM_LifeCycle(t *testing.T) {
	b := theBed(t)
	v := b.createVM(t, "life", "--image tiny --offering tiny --network net1")
	b.booted(t, v)
	b.state(t, "life", "Running", "running")

	b.ctl(t, "vm pause life --wait")
	b.state(t, "life", "Paused", "paused")
	b.ctl(t, "vm resume life --wait")
	b.state(t, "life", "Running", "running")

	// ACPI: the guest is asked, and goes by itself.
	b.ctl(t, "vm stop life --wait")
	b.state(t, "life", "Stopped", "shut off")
	if log := b.in(t, b.boxOf(t, v), "cat /var/lib/shoal/console/%s.log", v.ID); !strings.Contains(log, "POWER-BUTTON") {
		t.Error("the guest was not asked by ACPI before it was stopped")
	}
	b.ctl(t, "vm start life --wait")
	b.booted(t, v)

	// Reboot happens once.
	boots := func() int {
		return strings.Count(b.in(t, b.boxOf(t, v), "cat /var/lib/shoal/console/%s.log", v.ID), "NIC eth0")
	}
	before := boots()
	b.ctl(t, "vm reboot life --wait")
	eventually(t, 60*time.Second, func() error {
		if n := boots(); n != before+1 {
			return fmt.Errorf("the guest has booted %d times after the reboot, want 1", n-before)
		}
		return nil
	})
	b.booted(t, v)

	b.ctl(t, "vm poweroff life --wait")
	b.state(t, "life", "Stopped", "shut off")
	b.ctl(t, "vm start life --wait")
	b.booted(t, v)
	// A guest that shuts itself down stays down, and is shown so.
	_, _ = b.guest(t, v, "poweroff -f &")
	b.state(t, "life", "Stopped", "shut off")

	b.ctl(t, "vm destroy life --wait")
	eventually(t, 20*time.Second, func() error {
		if s := b.vm(t, "life").Status.State; s != "Destroyed" {
			return fmt.Errorf("a destroyed VM is shown as %q", s)
		}
		return nil
	})
	b.ctl(t, "vm recover life --wait")
	b.state(t, "life", "Stopped", "shut off")
	b.ctl(t, "vm start life --wait")
	b.booted(t, v)

	box := b.boxOf(t, v)
	b.ctl(t, "vm destroy life --wait")
	b.ctl(t, "vm expunge life --wait")
	eventually(t, 20*time.Second, func() error {
		left := b.in(t, box, "virsh list --all --name | grep %s; ls /var/lib/shoal/storage/volumes | grep -v '^lost' || true", v.ID)
		if strings.Contains(left, v.ID) {
			return fmt.Errorf("left on the host: %s", left)
		}
		var volumes []struct{ ID string }
		if err := b.tryJSON(&volumes, "volume", "list", "--where", "vm_id="+v.ID); err != nil {
			return err
		}
		if len(volumes) > 0 {
			return fmt.Errorf("%d volumes are left", len(volumes))
		}
		return nil
	})
	if e := b.refused(t, "vm get life"); e.code != 3 {
		t.Errorf("get of an expunged VM: %v, want exit status 3", e)
	}
}

// TestVM_HotPlug attaches and detaches a data volume and a NIC while the guest runs and watches.
func TestVM_HotPlug(t *testing.T) {
	b := theBed(t)
	v := b.createVM(t, "plug", "--image tiny --offering tiny --network net1")
	b.booted(t, v)
	sees := func(word string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			log := b.in(t, b.boxOf(t, v), "cat /var/lib/shoal/console/%s.log", v.ID)
			if !strings.Contains(log, word) {
				return fmt.Errorf("the guest has not seen %q", word)
			}
			return nil
		})
	}
	b.ctl(t, "volume create plug-data --diskoffering d64 --zone z1")
	t.Cleanup(func() {
		_, _ = b.try("volume", "destroy", "plug-data", "--wait")
		_, _ = b.try("volume", "expunge", "plug-data", "--wait")
	})
	b.ctl(t, "volume attach plug-data --vm plug --wait")
	sees("DISK vdb 65536 KiB")
	if _, err := b.guest(t, v, "echo precious | dd of=/dev/vdb bs=512 conv=sync,fsync 2>/dev/null"); err != nil {
		t.Fatal(err)
	}
	b.ctl(t, "volume detach plug-data --wait")
	sees("GONE vdb")
	b.ctl(t, "volume attach plug-data --vm plug --wait")
	eventually(t, 30*time.Second, func() error {
		out, err := b.guest(t, v, "dd if=/dev/vdb bs=512 count=1 2>/dev/null | tr -d '\\000'")
		if err == nil && !strings.Contains(out, "precious") {
			err = fmt.Errorf("the volume holds %q, want what was written before it was detached", out)
		}
		return err
	})
	b.ctl(t, "volume detach plug-data --wait")

	var nic struct{ Resource struct{ ID, IP string } }
	b.get(t, &nic, "nic attach --vm plug --network net1 --wait")
	sees("NIC eth1")
	eventually(t, 60*time.Second, func() error {
		out, err := b.guest(t, v, "ip -4 -o addr show dev eth1")
		if err == nil && !strings.Contains(out, " "+nic.Resource.IP+"/") {
			err = fmt.Errorf("the new NIC has no address %s yet: %q", nic.Resource.IP, out)
		}
		return err
	})
	b.ctl(t, "nic detach %s --wait", nic.Resource.ID)
	sees("GONE eth1")
}

// TestVM_FiftyAtOnce: fifty creates on one host at the same time, every one succeeds.
func TestVM_FiftyAtOnce(t *testing.T) {
	b := theBed(t)
	const n = 50
	var wg sync.WaitGroup
	errs := make([]error, n)
	names := make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("fifty-%02d", i)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				_, _ = b.try("vm", "destroy", name, "--force")
				_, _ = b.try("vm", "expunge", name)
			})
		}
		wg.Wait()
		eventually(t, 2*time.Minute, func() error {
			var left []struct{ Name string }
			if err := b.tryJSON(&left, "vm", "list", "--where", "name~=fifty-%"); err != nil {
				return err
			}
			if len(left) > 0 {
				return fmt.Errorf("%d of them are left", len(left))
			}
			return nil
		})
	})
	for i, name := range names {
		wg.Go(func() {
			_, errs[i] = b.try("vm", "create", name, "--diskless", "--offering", "micro", "--network", "net1", "--host", "h2")
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	eventually(t, 4*time.Minute, func() error {
		var vms []vm
		if err := b.tryJSON(&vms, "vm", "list", "--where", "name~=fifty-%", "--limit", "100"); err != nil {
			return err
		}
		running := 0
		for _, v := range vms {
			if v.Status.State == "Running" {
				running++
			}
		}
		if running != n {
			return fmt.Errorf("%d of %d run", running, n)
		}
		return nil
	})
}
