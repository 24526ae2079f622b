package secgroup_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"shoal/agent/sim/netbox"
	"shoal/desired"
)

// network is a bridge with guests 1 and 2 of this host, and guest 9 behind an uplink.
func network(t *testing.T) {
	t.Helper()
	clean := func() {
		for _, n := range []int{1, 2, 9} {
			// Namespaces end later than the command that deletes them: the devices first.
			netbox.Try(fmt.Sprintf("ip link del sht%012x", n))
			netbox.Try(fmt.Sprintf("ip netns del g%d", n))
		}
		netbox.Try("ip link del shxuplink")
		netbox.Try("ip link del shbnet")
	}
	clean()
	t.Cleanup(clean)
	netbox.Run(t, "ip link add shbnet type bridge forward_delay 0 mcast_snooping 0\nip link set shbnet up")
	for _, n := range []int{1, 2, 9} {
		tap := fmt.Sprintf("sht%012x", n)
		if n == 9 {
			tap = "shxuplink"
		}
		netbox.Run(t, fmt.Sprintf(`ip netns add g%[1]d
			ip link add %[2]s type veth peer name eth0 netns g%[1]d
			ip link set %[2]s master shbnet up
			ip -n g%[1]d link set eth0 address 52:54:00:00:00:%02[1]x
			ip -n g%[1]d link set lo up
			ip -n g%[1]d link set eth0 up
			ip -n g%[1]d addr add 10.0.0.%[1]d/24 dev eth0
			ip -n g%[1]d addr add fd00::%[1]d/64 dev eth0 nodad`, n, tap))
	}
}

// listen answers every connection with what it gets.
func listen(t *testing.T, guest, addr string) {
	t.Helper()
	l, err := netbox.In(guest, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 16)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// dial opens a connection from a guest. Blocked packets are dropped, so no answer within a while means blocked.
func dial(guest, addr string, timeout time.Duration) (net.Conn, error) {
	return netbox.In(guest, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, timeout) })
}

func reach(t *testing.T, guest, addr string, want bool) {
	t.Helper()
	timeout := 10 * time.Second
	if !want {
		timeout = 700 * time.Millisecond
	}
	c, err := dial(guest, addr, timeout)
	if err == nil {
		c.Close()
	}
	if (err == nil) != want {
		t.Errorf("%s to %s: %v, want reached %v", guest, addr, err, want)
	}
}

// echo says whether a connection still works.
func echo(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatalf("the connection is cut: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the connection is cut: %v", err)
	}
}

func ping(t *testing.T, guest, addr string, want bool) {
	t.Helper()
	for range 5 {
		if _, ok := netbox.Try(fmt.Sprintf("nsenter --net=/run/netns/%s ping -n -c 1 -W 1 %s", guest, addr)); ok == want {
			return
		}
		if !want {
			break
		}
	}
	t.Errorf("%s pings %s: want %v", guest, addr, want)
}

func TestPackets(t *testing.T) {
	r := realRig(t)
	netbox.Need(t, "ping", "nsenter")
	network(t)
	for _, a := range []string{"10.0.0.1:80", "[fd00::1]:80", "10.0.0.1:81"} {
		listen(t, "g1", a)
	}
	listen(t, "g2", "10.0.0.2:80")
	listen(t, "g9", "10.0.0.9:80")

	// Nothing of ours yet: everything passes.
	reach(t, "g9", "10.0.0.1:80", true)

	id1, nic1 := item(1, nil)
	id2, nic2 := item(2, nil)
	set := desired.AddrSet{Name: "shs-members", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.100")}}
	sets := map[string]desired.AddrSet{"group": set}
	nics := map[string]desired.SecGroup{id1: nic1, id2: nic2}
	pass(t, r, sets, nics)

	// No rules: nothing in, everything out, answers come back, also between guests of one host, which meet both filters.
	reach(t, "g9", "10.0.0.1:80", false)
	reach(t, "g2", "10.0.0.1:80", false)
	ping(t, "g9", "10.0.0.1", false)
	ping(t, "g9", "fd00::1", false)
	reach(t, "g1", "10.0.0.9:80", true)
	ping(t, "g1", "10.0.0.9", true)
	ping(t, "g1", "fd00::9", true)

	// Rules by port, by protocol and by group, in both families.
	nic1.Ingress = []desired.Rule{
		{Protocol: desired.ProtoTCP, FromPort: 80, ToPort: 80, Set: "shs-members"},
		{Protocol: desired.ProtoICMP, CIDR: netip.MustParsePrefix("fd00::/64")},
	}
	nics[id1] = nic1
	pass(t, r, sets, nics)
	ping(t, "g9", "fd00::1", true)
	ping(t, "g9", "10.0.0.1", false)
	reach(t, "g9", "10.0.0.1:80", false)

	// Members come live, each in its family.
	set.Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00::2")}
	sets["group"] = set
	pass(t, r, sets, nics)
	reach(t, "g9", "10.0.0.1:80", true)
	reach(t, "g9", "10.0.0.1:81", false)
	reach(t, "g2", "10.0.0.1:80", false)
	reach(t, "g2", "[fd00::1]:80", true)

	// A connection outlives the rule that let it in, and a rewrite of everything. New ones don't come in.
	c, err := dial("g9", "10.0.0.1:80", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo(t, c)
	nic1.Ingress = nil
	nics[id1] = nic1
	pass(t, r, sets, nics)
	echo(t, c)
	reach(t, "g9", "10.0.0.1:80", false)
	netbox.Run(t, "iptables -F")
	pass(t, r, sets, nics)
	echo(t, c)

	// Egress.
	nic1.EgressPolicy = desired.Drop
	nic1.Egress = []desired.Rule{{Protocol: desired.ProtoTCP, FromPort: 80, ToPort: 80, CIDR: netip.MustParsePrefix("10.0.0.9/32")}}
	nics[id1] = nic1
	nic2.IngressPolicy = desired.Accept
	nics[id2] = nic2
	pass(t, r, sets, nics)
	reach(t, "g1", "10.0.0.9:80", true)
	reach(t, "g1", "10.0.0.2:80", false)
	ping(t, "g1", "10.0.0.9", false)
	reach(t, "g9", "10.0.0.2:80", true)

	// The host itself is behind the guest's egress rules, too.
	netbox.Run(t, "ip addr add 10.0.0.254/24 dev shbnet")
	ping(t, "g1", "10.0.0.254", false)
	ping(t, "g2", "10.0.0.254", true)

	// Everything gone: everything passes.
	pass(t, r, nil, nil)
	reach(t, "g9", "10.0.0.1:80", true)
}

func TestAntiSpoof(t *testing.T) {
	r := realRig(t)
	netbox.Need(t, "ping", "nsenter", "arping")
	network(t)
	id, nic := item(1, func(w *desired.SecGroup) { w.AntiSpoof = true })
	pass(t, r, nil, map[string]desired.SecGroup{id: nic})
	ping(t, "g1", "10.0.0.9", true)
	ping(t, "g1", "fd00::9", true)

	// Another address of IP: neither its ARP nor its packets pass.
	netbox.Run(t, "ip -n g1 addr add 10.0.0.66/24 dev eth0")
	if out, ok := netbox.Try("nsenter --net=/run/netns/g1 arping -c 2 -w 2 -I eth0 -s 10.0.0.66 10.0.0.9"); ok {
		t.Errorf("ARP of another's address was answered: %s", out)
	}
	if out, ok := netbox.Try("nsenter --net=/run/netns/g1 arping -c 2 -w 5 -I eth0 -s 10.0.0.1 10.0.0.9"); !ok {
		t.Errorf("ARP of its own address was not answered: %s", out)
	}
	// With its neighbours known no ARP is needed.
	mac9 := "52:54:00:00:00:09"
	netbox.Run(t, "ip -n g1 neigh replace 10.0.0.9 lladdr "+mac9+" dev eth0\nip -n g9 neigh replace 10.0.0.66 lladdr 52:54:00:00:00:01 dev eth0")
	if _, ok := netbox.Try("nsenter --net=/run/netns/g1 ping -n -c 1 -W 1 -I 10.0.0.66 10.0.0.9"); ok {
		t.Error("a packet from another's address passed")
	}
	netbox.Run(t, "ip -n g1 addr add fd00::66/64 dev eth0 nodad\nip -n g1 neigh replace fd00::9 lladdr "+mac9+" dev eth0\nip -n g9 neigh replace fd00::66 lladdr 52:54:00:00:00:01 dev eth0")
	if _, ok := netbox.Try("nsenter --net=/run/netns/g1 ping -n -c 1 -W 1 -I fd00::66 fd00::9"); ok {
		t.Error("an IPv6 packet from another's address passed")
	}
	ping(t, "g1", "10.0.0.9", true)

	// Another MAC.
	netbox.Run(t, "ip -n g1 link set eth0 down\nip -n g1 link set eth0 address 52:54:00:00:00:77\nip -n g1 link set eth0 up\nip -n g1 neigh replace 10.0.0.9 lladdr "+mac9+" dev eth0\nip -n g9 neigh replace 10.0.0.1 lladdr 52:54:00:00:00:77 dev eth0")
	ping(t, "g1", "10.0.0.9", false)
	// Allowed again.
	nic.AntiSpoof = false
	pass(t, r, nil, map[string]desired.SecGroup{id: nic})
	ping(t, "g1", "10.0.0.9", true)
}
