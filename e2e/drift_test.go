package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// drift is what tests read of a foreign change.
type drift struct {
	Ref, State, Policy, What string
	Resource                 string
	Count                    int
}

func (b *bed) drift(t *testing.T, v vm) (drift, error) {
	t.Helper()
	var all []drift
	b.get(t, &all, "drift --host %s --kind domain", v.HostID)
	for _, d := range all {
		if d.Resource == v.Name {
			return d, nil
		}
	}
	return drift{}, fmt.Errorf("no drift of VM %s is reported: %v", v.Name, all)
}

// TestDrift_Policies: an operator works on a guest with virsh, and the host holds what he did, also through a kill of the agent, or
// takes it over, or puts it right, as its policy says.
func TestDrift_Policies(t *testing.T) {
	b := theBed(t)
	v := b.createVM(t, "drifter", "--image tiny --offering tiny --network net1")
	box := b.boxOf(t, v)
	t.Cleanup(func() { b.ctl(t, "host update %s --drift domain=default", v.HostID) })
	virsh := func(verb string) {
		t.Helper()
		b.in(t, box, "virsh %s shoal-%s", verb, v.ID)
	}
	state := func(want string) error {
		d, err := b.drift(t, v)
		if err == nil && d.State != want {
			err = fmt.Errorf("the drift is %+v, want %s", d, want)
		}
		return err
	}

	b.ctl(t, "host update %s --drift domain=hold", v.HostID)
	eventually(t, 10*time.Second, func() error { // the host has heard of it, and noted what must be as it is
		if marks := b.in(t, box, "cat /var/lib/shoal-agent/ledger/drift.json 2>/dev/null || true"); !strings.Contains(marks, v.ID) {
			return fmt.Errorf("the agent does not remember the VM: %s", marks)
		}
		return nil
	})
	virsh("destroy")
	eventually(t, 30*time.Second, func() error { return state("held") })
	b.state(t, "drifter", "Stopped", "shut off")
	if why := b.ctl(t, "why vm drifter"); !strings.Contains(why, "held as it is") {
		t.Errorf("why is it off: %s", why)
	}

	// The next agent knows, and looks at everything when it starts.
	starts := func() int {
		return strings.Count(b.in(t, box, "cat /var/log/shoal-agent.log"), "document in force from the ledger")
	}
	before := starts()
	b.killAgent(t, box)
	eventually(t, 30*time.Second, func() error {
		if n := starts(); n <= before {
			return fmt.Errorf("the agent has started %d times, as before", n)
		}
		return nil
	})
	virsh("start") // somebody else's hand again, which the new agent sees as such
	eventually(t, 60*time.Second, func() error {
		if d, err := b.drift(t, v); err == nil && d.State == "held" {
			return fmt.Errorf("still %+v", d)
		}
		return nil
	})
	virsh("destroy")
	eventually(t, 30*time.Second, func() error { return state("held") })
	b.state(t, "drifter", "Stopped", "shut off")

	// What is there becomes the wish.
	power := func(want string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if p := b.vm(t, "drifter").Power; p != want {
				return fmt.Errorf("the VM is to be %s, want %s", p, want)
			}
			return nil
		})
	}
	b.ctl(t, "host update %s --drift domain=adopt", v.HostID)
	power("off")
	b.state(t, "drifter", "Stopped", "shut off")
	virsh("start")
	power("on")
	b.state(t, "drifter", "Running", "running")
	virsh("suspend")
	power("paused")
	b.state(t, "drifter", "Paused", "paused")

	virsh("resume")
	power("on")
	pid := b.pid(t, box, v.ID)
	// As virsh edit does, of which libvirt tells; setvcpus --config is only seen when the host looks at everything again.
	edit := func(from, to string) {
		t.Helper()
		b.in(t, box, "virsh dumpxml --inactive shoal-%s | sed 's|%s|%s|' >/tmp/edited.xml && virsh define /tmp/edited.xml", v.ID, from, to)
	}
	edit("<vcpu .*</vcpu>", "<vcpu placement=\"static\">2</vcpu>")
	eventually(t, 30*time.Second, func() error {
		var size struct{ CPUs int }
		if b.get(t, &size, "vm get drifter"); size.CPUs != 2 {
			return fmt.Errorf("the VM is to have %d CPUs, want 2", size.CPUs)
		}
		return nil
	})
	b.state(t, "drifter", "Running", "running")
	if now := b.pid(t, box, v.ID); now != pid {
		t.Errorf("the QEMU was process %s and is %s", pid, now)
	}
	// More than the host has is no wish.
	edit("<memory .*</memory>", "<memory unit=\"TiB\">8</memory>")
	eventually(t, 30*time.Second, func() error { return state("held") })
	if d := b.ctl(t, "drift --host %s -o yaml", v.HostID); !strings.Contains(d, "no room for") {
		t.Errorf("it does not say why it is held: %s", d)
	}

	// And by default it is put right.
	b.ctl(t, "host update %s --drift domain=default", v.HostID)
	eventually(t, 30*time.Second, func() error { return state("healed") })
	b.ctl(t, "vm pause drifter --wait")
	b.ctl(t, "vm resume drifter --wait --request e2e-resume-drifter")
	virsh("destroy")
	eventually(t, 30*time.Second, func() error { return state("healed") })
	b.state(t, "drifter", "Running", "running")

	var trace struct {
		State string
		Hosts []struct {
			Documents []struct {
				Ref, State string
				Actions    []struct{ Phase string }
			}
		}
	}
	b.get(t, &trace, "trace e2e-resume-drifter")
	if trace.State != "done" || len(trace.Hosts) != 1 || trace.Hosts[0].Documents[0].Ref != "domain."+v.ID || len(trace.Hosts[0].Documents[0].Actions) == 0 {
		t.Errorf("trace %+v", trace)
	}
	if why := b.ctl(t, "why %s domain.drifter", box); !strings.Contains(why, "request e2e-resume-drifter") {
		t.Errorf("what made it so: %s", why)
	}
}
