package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// only wants a VM to exist exactly once: one domain, one process of QEMU, one file of each of its volumes.
func (b *bed) only(t *testing.T, v vm) {
	t.Helper()
	domains, processes := 0, 0
	for box := range b.hosts {
		domains += strings.Count(b.in(t, box, "virsh list --all --uuid"), v.ID)
		n := b.in(t, box, "pgrep -c -f 'uuid %s' || true", v.ID)
		var k int
		if _, err := fmt.Sscan(n, &k); err != nil {
			t.Fatal(err)
		}
		processes += k
	}
	// The shell that asks has the id in its own command line.
	processes -= len(b.hosts)
	if domains != 1 || processes != 1 {
		t.Errorf("VM %s: %d domains and %d processes of QEMU, want one of each", v.Name, domains, processes)
	}
}

// TestAgent_KilledAtEachStageOfACreate kills the agent at growing delays after the create was acknowledged, so that every
// stage gets hit, and wants the VM up once each time.
func TestAgent_KilledAtEachStageOfACreate(t *testing.T) {
	b := theBed(t)
	for _, ms := range []int{0, 20, 60, 120, 250, 400, 700, 1200} {
		delay := time.Duration(ms) * time.Millisecond
		name := fmt.Sprintf("killed-%d", ms)
		b.removeVM(t, name)
		b.ctl(t, "vm create %s --image tiny --offering tiny --network net1 --host h1", name)
		time.Sleep(delay) // the moment of the blow, not a wait
		b.killAgent(t, "h1")
		b.state(t, name, "Running", "running")
		b.only(t, b.vm(t, name))
		b.ctl(t, "vm poweroff %s", name)
	}
	b.noHalfVolumes(t, "h1")
}

// noHalfVolumes wants no temporary file left beside the volumes.
func (b *bed) noHalfVolumes(t *testing.T, box string) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		left := b.in(t, box, "cd /var/lib/shoal/storage && find volumes images -type f | grep -vE '^volumes/[0-9a-f-]{36}\\.qcow2$|^images/[0-9a-f-]{36}(\\.json)?$' || true")
		if left != "" {
			return fmt.Errorf("left on %s: %s", box, left)
		}
		return nil
	})
}

// TestController_KilledInTheMiddleOf100Creates: each VM is whole or absent afterwards, and no acknowledged one is missing.
func TestController_KilledInTheMiddleOf100Creates(t *testing.T) {
	b := theBed(t)
	const n = 100
	acked := make([]bool, n)
	var done sync.WaitGroup
	slots := make(chan struct{}, 4)
	reached := make(chan struct{})
	var count int
	var mu sync.Mutex
	for i := range n {
		done.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			_, err := b.try("vm", "create", fmt.Sprintf("mass-%03d", i), "--image", "tiny", "--offering", "tiny", "--network", "net1", "--stopped", "--timeout", "5s")
			mu.Lock()
			defer mu.Unlock()
			acked[i] = err == nil
			if count++; count == n/2 {
				close(reached)
			}
		})
	}
	<-reached
	b.controller.kill()
	if err := b.startController(); err != nil {
		t.Fatal(err)
	}
	done.Wait()
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				name := fmt.Sprintf("mass-%03d", i)
				_, _ = b.try("vm", "destroy", name, "--force")
				_, _ = b.try("vm", "expunge", name)
			})
		}
		wg.Wait()
	})
	var vms []struct{ ID, Name string }
	b.get(t, &vms, "vm list --where name~=mass-%% --limit 200")
	there := map[string]string{}
	for _, v := range vms {
		there[v.Name] = v.ID
	}
	got := 0
	for i, ok := range acked {
		name := fmt.Sprintf("mass-%03d", i)
		if _, exists := there[name]; ok && !exists {
			t.Errorf("%s was acknowledged and is missing", name)
		}
		if ok {
			got++
		}
	}
	t.Logf("%d of %d creates were acknowledged, %d VMs are there", got, n, len(vms))
	if got == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
	var nics, volumes []struct {
		VMID string `json:"vm_id"`
	}
	b.get(t, &nics, "nic list --where vm.name~=mass-%% --limit 500")
	b.get(t, &volumes, "volume list --where vm.name~=mass-%% --limit 500")
	parts := map[string][2]int{}
	for _, x := range nics {
		p := parts[x.VMID]
		p[0]++
		parts[x.VMID] = p
	}
	for _, x := range volumes {
		p := parts[x.VMID]
		p[1]++
		parts[x.VMID] = p
	}
	for name, id := range there {
		if parts[id] != [2]int{1, 1} {
			t.Errorf("%s has %d NICs and %d volumes, want one of each", name, parts[id][0], parts[id][1])
		}
		delete(parts, id)
	}
	if len(parts) > 0 {
		t.Errorf("parts of VMs that are not there: %v", parts)
	}
}

// fingerprint is what must not change on a host: processes of guests and DHCP servers, leases and rules.
func (b *bed) fingerprint(t *testing.T, box string) string {
	t.Helper()
	return b.in(t, box, "pgrep -x qemu-system-x86 | sort; pgrep -x dnsmasq | sort; iptables-save | grep -v '^#' | sed 's/\\[.*\\]//'; ipset save | sort; ip -o link | sed 's/ state .*//' | sort; ls /run/netns")
}

// TestHost_LivesOnAlone: NATS and controller gone for a minute, agents restarted meanwhile, nothing on the hosts changes.
// Then a power cut without them: everything comes back from the ledger.
func TestHost_LivesOnAlone(t *testing.T) {
	b := theBed(t)
	b.ctl(t, "secgroup create sg-alone")
	t.Cleanup(func() { _, _ = b.try("secgroup", "delete", "sg-alone", "--cascade") })
	b.ctl(t, "secrule create --secgroup sg-alone --direction ingress --protocol icmp --wait")
	one := b.createVM(t, "alone-a", "--image tiny --offering tiny --network net1 --host h1 --secgroup sg-alone")
	two := b.createVM(t, "alone-b", "--image tiny --offering tiny --network net1 --host h2 --secgroup sg-alone")
	b.booted(t, one)
	b.booted(t, two)

	b.controller.kill()
	restored := false
	restore := func() {
		if restored {
			return
		}
		restored = true
		if err := b.startController(); err != nil {
			t.Error(err)
		}
	}
	defer restore()

	before := map[string]string{}
	for box := range b.hosts {
		before[box] = b.fingerprint(t, box)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		for box := range b.hosts {
			b.killAgent(t, box)
		}
		time.Sleep(10 * time.Second) // the length of the outage is the test
		for box, want := range before {
			if got := b.fingerprint(t, box); got != want {
				t.Fatalf("%s has changed while the controller was away:\nbefore:\n%s\nnow:\n%s", box, want, got)
			}
		}
	}
	if _, err := b.guest(t, one, "ping -c 1 -W 2 %s", two.ip()); err != nil {
		t.Error(err)
	}

	if err := b.box("off", "h1"); err != nil {
		t.Fatal(err)
	}
	if err := b.box("on", "h1"); err != nil {
		t.Fatal(err)
	}
	b.booted(t, one)
	eventually(t, 30*time.Second, func() error {
		_, err := b.guest(t, two, "ping -c 1 -W 2 %s", one.ip())
		return err
	})
	if rules := b.in(t, "h1", "iptables-save"); !strings.Contains(rules, "shc-") {
		t.Errorf("the rules are not back:\n%s", rules)
	}
	restore()
	b.state(t, "alone-a", "Running", "running")
}

// TestDrift_IsHealed breaks one thing after the other behind the agent's back.
func TestDrift_IsHealed(t *testing.T) {
	b := theBed(t)
	b.ctl(t, "secgroup create sg-drift")
	t.Cleanup(func() { _, _ = b.try("secgroup", "delete", "sg-drift", "--cascade") })
	v := b.createVM(t, "drift", "--image tiny --offering tiny --network net1 --host h1 --secgroup sg-drift")
	b.booted(t, v)
	name := "shoal-" + v.ID

	// Foreign things of the same sorts, which must be as they are at the end.
	b.in(t, "h1", "ip link show foreign0 >/dev/null 2>&1 || ip link add foreign0 type bridge; iptables -N FOREIGN 2>/dev/null; iptables -F FOREIGN; iptables -A FOREIGN -s 192.0.2.1 -j DROP; ipset create foreign hash:ip -exist")
	b.in(t, "h1", `virsh dominfo foreign >/dev/null 2>&1 || virsh define /dev/stdin <<X
<domain type='qemu'><name>foreign</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type></os></domain>
X`)
	b.in(t, "h1", "echo keep > /var/lib/shoal/storage/volumes/foreign.txt")
	t.Cleanup(func() {
		_, _ = b.tryIn("h1", "sh", "-c", "virsh undefine foreign; ip link del foreign0; iptables -F FOREIGN; iptables -X FOREIGN; ipset destroy foreign; rm -f /var/lib/shoal/storage/volumes/foreign.txt")
	})

	bridge := b.in(t, "h1", "virsh domiflist %s | awk '/bridge/{print $3}'", name)
	pid := b.in(t, "h1", "pgrep -x dnsmasq | head -n 1")
	const rules = "iptables-save | grep -e '-A shc-' -e SHOAL | grep -v '^:' | sort | md5sum"
	sameRules := "test \"$(" + rules + ")\" = '" + b.in(t, "h1", "%s", rules) + "'"
	for _, d := range []struct{ what, breakIt, healed string }{
		{"virsh destroy", "virsh destroy " + name, "virsh domstate " + name + " | grep -q running"},
		{"virsh suspend", "virsh suspend " + name, "virsh domstate " + name + " | grep -q running"},
		{"iptables -F", "iptables -F; iptables -A FOREIGN -s 192.0.2.1 -j DROP", sameRules},
		{"a rule deleted in the middle", "c=$(iptables -S | sed -n 's/^-N \\(shc-.*-i\\)$/\\1/p' | head -n 1); iptables -D $c 1", sameRules},
		{"dnsmasq killed", "kill -9 " + pid, "pgrep -x dnsmasq | grep -qv '^" + pid + "$'"},
		{"bridge deleted", "ip link del " + bridge, "ip link show " + bridge + " >/dev/null 2>&1 && test $(ls /sys/class/net/" + bridge + "/brif | wc -l) -ge 3"},
	} {
		b.in(t, "h1", "%s", d.breakIt)
		start := time.Now()
		eventually(t, 30*time.Second, func() error {
			if _, err := b.tryIn("h1", "sh", "-c", d.healed); err != nil {
				return fmt.Errorf("%s is not healed: %w", d.what, err)
			}
			return nil
		})
		t.Logf("%s: healed within %s", d.what, time.Since(start).Round(10*time.Millisecond))
	}
	b.booted(t, v)
	var out struct {
		Status struct{ Drifts int }
	}
	eventually(t, 10*time.Second, func() error {
		if err := b.tryJSON(&out, "vm", "get", "drift"); err != nil {
			return err
		}
		if out.Status.Drifts < 2 {
			return fmt.Errorf("the VM shows %d drifts, want the two that were made", out.Status.Drifts)
		}
		return nil
	})
	b.in(t, "h1", "ip link show foreign0 && iptables -S FOREIGN | grep -q 192.0.2.1 && ipset list -n foreign && virsh dominfo foreign && grep -q keep /var/lib/shoal/storage/volumes/foreign.txt")
}

// TestStorage_HungStopsOnlyItsOwnVMs: an NFS server that does not answer any more.
func TestStorage_HungStopsOnlyItsOwnVMs(t *testing.T) {
	b := theBed(t)
	export := filepath.Join(b.dir, "export")
	if err := b.nfs("start", export); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.nfs("resume")
		_, _ = b.try("storage", "delete", "nfs", "--cascade")
		eventually(t, 30*time.Second, func() error {
			_, err := b.tryIn("h1", "sh", "-c", "! grep -q ':/export' /proc/mounts")
			return err
		})
		_ = b.nfs("stop")
	})
	b.ctl(t, "storage create nfs --zone z1 --type nfs --source %s.1:/export --cluster c1 --wait", b.net)
	on := b.createVM(t, "hung-nfs", "--image tiny --offering tiny --network net1 --host h1 --storage nfs")
	b.booted(t, on)
	if err := b.nfs("hang"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, func() error {
		var s struct {
			Status struct {
				State string
				Fault *struct{ Code string }
			}
		}
		if err := b.tryJSON(&s, "storage", "get", "nfs"); err != nil {
			return err
		}
		if s.Status.State == "Connected" || s.Status.State == "Ready" {
			return fmt.Errorf("the hung storage is shown as %s", s.Status.State)
		}
		return nil
	})
	// Everything else goes on.
	other := b.createVM(t, "hung-local", "--image tiny --offering tiny --network net1 --host h1 --storage local")
	b.booted(t, other)
	b.ctl(t, "vm stop hung-local --wait")
	if err := b.nfs("resume"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func() error {
		_, err := b.guest(t, on, "dd if=/dev/vda of=/dev/null bs=512 count=8 iflag=direct 2>/dev/null || dd if=/dev/vda of=/dev/null bs=512 count=8 2>/dev/null")
		return err
	})
	b.state(t, "hung-nfs", "Running", "running")
}
