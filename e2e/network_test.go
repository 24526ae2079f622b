package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestNetwork_LeaseAndPingAcrossHosts: two guests on two hosts have the addresses that the controller chose, from the
// DHCP server of their own host, and reach each other through VXLAN.
func TestNetwork_LeaseAndPingAcrossHosts(t *testing.T) {
	b := theBed(t)
	one := b.createVM(t, "net-a", "--image tiny --offering tiny --network net1 --host h1")
	two := b.createVM(t, "net-b", "--image tiny --offering tiny --network net1 --host h2")
	b.booted(t, one)
	b.booted(t, two)
	for _, p := range []struct{ from, to vm }{{one, two}, {two, one}} {
		eventually(t, 20*time.Second, func() error {
			_, err := b.guest(t, p.from, "ping -c 1 -W 2 %s", p.to.ip())
			return err
		})
	}
	// Each guest's answer came from its own host, and its host's server knows nobody else.
	for _, p := range []struct{ own, other vm }{{one, two}, {two, one}} {
		conf := b.in(t, b.boxOf(t, p.own), "cat /var/lib/shoal-agent/dhcp/*/* 2>/dev/null")
		if !strings.Contains(conf, p.own.ip()) || strings.Contains(conf, p.other.ip()) {
			t.Errorf("the DHCP server on the host of %s must know %s and not %s:\n%s", p.own.Name, p.own.ip(), p.other.ip(), conf)
		}
	}
	var nics []struct {
		VMID   string `json:"vm_id"`
		IP     string
		Status struct{ Lease string }
	}
	eventually(t, 20*time.Second, func() error {
		if err := b.tryJSON(&nics, "nic", "list", "--where", "vm.name in net-a,net-b"); err != nil {
			return err
		}
		if len(nics) != 2 {
			return fmt.Errorf("%d NICs, want 2", len(nics))
		}
		for _, n := range nics {
			if n.Status.Lease != n.IP {
				return fmt.Errorf("NIC %s shows lease %q", n.IP, n.Status.Lease)
			}
		}
		return nil
	})
}

// TestSecurityGroup_BothWaysAndLive: what no rule lets in stays out, established traffic passes, and rules and members act at once.
func TestSecurityGroup_BothWaysAndLive(t *testing.T) {
	b := theBed(t)
	for _, g := range []string{"sg-server", "sg-client"} {
		b.ctl(t, "secgroup create %s --no-default-rules", g)
		t.Cleanup(func() { _, _ = b.try("secgroup", "delete", g, "--cascade") })
	}
	server := b.createVM(t, "sg-a", "--image tiny --offering tiny --network net1 --host h1 --secgroup sg-server")
	client := b.createVM(t, "sg-b", "--image tiny --offering tiny --network net1 --host h2")
	b.booted(t, server)
	b.booted(t, client)
	if _, err := b.guest(t, server, "netcheck serve tcp 2000 >/dev/null 2>&1 & netcheck serve udp 2001 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.guest(t, client, "netcheck serve tcp 2002 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	reach := func(from, to vm, proto string, port int) error {
		_, err := b.guest(t, from, "netcheck probe %s %s %d", proto, to.ip(), port)
		return err
	}
	open := func(what string, f func() error) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if err := f(); err != nil {
				return fmt.Errorf("%s must pass: %w", what, err)
			}
			return nil
		})
	}
	closed := func(what string, f func() error) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if f() == nil {
				return fmt.Errorf("%s passes, must not", what)
			}
			return nil
		})
	}

	// No rules: in is closed, out is open, and answers come back.
	closed("tcp to the server without rules", func() error { return reach(client, server, "tcp", 2000) })
	closed("ping to the server without rules", func() error { _, err := b.guest(t, client, "ping -c 1 -W 2 %s", server.ip()); return err })
	open("tcp from the server", func() error { return reach(server, client, "tcp", 2002) })

	// A rule for a group without the client lets nobody in; the client as a member gets in; and out again.
	b.ctl(t, "secrule create --secgroup sg-server --direction ingress --protocol tcp --port 2000 --remote sg-client --wait")
	closed("tcp from outside of the group", func() error { return reach(client, server, "tcp", 2000) })
	nic := b.nicOf(t, client)
	b.ctl(t, "nic set-groups %s --add sg-client --wait", nic)
	open("tcp from the member", func() error { return reach(client, server, "tcp", 2000) })
	closed("udp from the member", func() error { return reach(client, server, "udp", 2001) })
	b.ctl(t, "secrule create --secgroup sg-server --direction ingress --protocol udp --port 2001 --cidr %s/32 --wait", client.ip())
	open("udp from the address", func() error { return reach(client, server, "udp", 2001) })
	b.ctl(t, "nic set-groups %s --remove sg-client --wait", nic)
	closed("tcp from the former member", func() error { return reach(client, server, "tcp", 2000) })

	// Egress: once there is a rule for it, only that passes.
	b.ctl(t, "nic set-groups %s --add sg-client --wait", nic)
	b.ctl(t, "secrule create --secgroup sg-client --direction egress --protocol udp --port 2001 --wait")
	open("udp by the egress rule", func() error { return reach(client, server, "udp", 2001) })
	closed("tcp that the egress rules don't name", func() error { return reach(client, server, "tcp", 2000) })
}

// nicOf is the id of a VM's only NIC.
func (b *bed) nicOf(t *testing.T, v vm) string {
	t.Helper()
	var nics []struct{ ID string }
	b.get(t, &nics, "nic list --where vm_id=%s", v.ID)
	if len(nics) != 1 {
		t.Fatalf("VM %s has %d NICs, want 1", v.Name, len(nics))
	}
	return nics[0].ID
}
