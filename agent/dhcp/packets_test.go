package dhcp_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"shoal/agent/dhcp"
	"shoal/agent/host"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

// wire records what reaches a device in a namespace.
type wire struct {
	mu     sync.Mutex
	frames []string
	fd     int
	done   chan struct{}
}

func tap(t *testing.T, namespace string) *wire {
	t.Helper()
	fd, err := netbox.In(namespace, func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
		t.Fatal(err)
	}
	w := &wire{fd: fd, done: make(chan struct{})}
	stop := make(chan struct{})
	go func() {
		defer close(w.done)
		b := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil || n < 42 {
				continue
			}
			if s := tell(b[:n]); s != "" {
				w.mu.Lock()
				w.frames = append(w.frames, s)
				w.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-w.done; unix.Close(fd) })
	return w
}

// tell names DHCP and ARP frames, "" for others.
func tell(b []byte) string {
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		from, _ := netip.AddrFromSlice(b[28:32])
		to, _ := netip.AddrFromSlice(b[38:42])
		return fmt.Sprintf("arp %s %s", from, to)
	case unix.ETH_P_IP:
		if port := binary.BigEndian.Uint16(b[14+int(b[14]&15)*4+2:]); b[23] == unix.IPPROTO_UDP && (port == 67 || port == 68) {
			return "dhcp"
		}
	}
	return ""
}

func (w *wire) saw(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if strings.Contains(f, what) {
			return true
		}
	}
	return false
}

// TestIsolationOverVXLAN has two hosts with one network: this one, and one in a namespace with a server of the same address and
// other reservations.
func TestIsolationOverVXLAN(t *testing.T) {
	netbox.Need(t, "ip", "bridge", "ebtables", "dnsmasq", "busybox", "nsenter", "arping", "ping")
	clean := func() {
		netbox.Try("for p in $(pgrep -x dnsmasq); do kill -9 $p; done") // this pid namespace is the test's own
		for _, l := range []string{"shtguest", "shtother", port, bridge, "shxvx", "under0"} {
			netbox.Try("ip link del " + l)
		}
		for _, ns := range []string{"host2", "guest", "other", "guest2", spaced} {
			netbox.Try("ip netns del " + ns)
		}
		netbox.Run(t, "ebtables -F\nebtables -X")
	}
	clean()
	t.Cleanup(clean)
	netbox.Run(t, `ip netns add host2
		ip link add under0 type veth peer name under1 netns host2
		ip addr add 192.168.9.1/24 dev under0
		ip link set under0 up
		ip -n host2 addr add 192.168.9.2/24 dev under1
		ip -n host2 link set under1 up
		ip -n host2 link set lo up
		ip link add `+bridge+` type bridge forward_delay 0 mcast_snooping 0
		ip link set `+bridge+` up
		ip link add shxvx type vxlan id 9 local 192.168.9.1 dstport 4789
		bridge fdb append 00:00:00:00:00:00 dev shxvx dst 192.168.9.2
		ip link set shxvx master `+bridge+` up
		ip -n host2 link add br2 type bridge forward_delay 0 mcast_snooping 0
		ip -n host2 link set br2 up
		ip -n host2 link add vx2 type vxlan id 9 local 192.168.9.2 dstport 4789
		bridge -n host2 fdb append 00:00:00:00:00:00 dev vx2 dst 192.168.9.1
		ip -n host2 link set vx2 master br2 up
		ip -n host2 addr add 10.5.0.2/24 dev br2`)
	guest(t, "guest", "shtguest", bridge)
	guest(t, "other", "shtother", bridge)
	// The other host's server is a rogue one: not isolated, and it would answer anyone.
	dir := t.TempDir()
	netbox.Run(t, "nsenter --net=/run/netns/host2 dnsmasq --conf-file=/dev/null --user=root --port=0 --interface=br2 --bind-interfaces --no-ping --dhcp-authoritative --dhcp-range=10.5.0.200,10.5.0.220,1h --dhcp-leasefile="+dir+"/leases --pid-file="+dir+"/pid")

	// The rogue works, as long as nothing of ours is there: the wire is whole.
	if ip, err := udhcpc("guest", mac(1)); err != nil || !strings.HasPrefix(ip.String(), "10.5.0.2") {
		t.Fatalf("without isolation: %s %v", ip, err)
	}
	r := &rig{run: host.Machine{}, machine: dhcp.Linux{Run: host.Machine{}}, dir: t.TempDir()}
	w := wanted()
	w.Entries = append(w.Entries, desired.DHCPEntry{MAC: mac(2), IP: netip.MustParseAddr("10.5.0.12"), Hostname: "vm-2"})
	bring(t, r, w)
	outside := tap(t, "host2")

	out, err := lease("guest", mac(1), 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ip=10.5.0.11", "subnet=255.255.255.0", "router=10.5.0.1", "dns=8.8.8.8", "domain=a.example", "mtu=1450",
		"serverid=10.5.0.2", "staticroutes=0.0.0.0/0 10.5.0.1 10.6.0.0/16 10.5.0.3", "hostname=vm-1",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest was not told %s:\n%s", want, out)
		}
	}
	// Whom nobody knows gets nothing, from neither side.
	if ip, err := udhcpc("guest", mac(7)); err == nil {
		t.Errorf("an unknown guest got %s", ip)
	}
	// ARP for the server ends at our server; ARP between guests crosses the wire.
	netbox.Run(t, "ip -n guest link set eth0 address "+mac(1)+"\nip -n guest addr add 10.5.0.11/24 dev eth0\nip -n other addr add 10.5.0.12/24 dev eth0")
	server := strings.TrimSpace(netbox.Run(t, "ip netns exec "+spaced+" cat /sys/class/net/"+dhcp.Inner+"/address"))
	if out, _ := netbox.Try("nsenter --net=/run/netns/guest arping -c 3 -w 3 -I eth0 10.5.0.2"); !strings.Contains(strings.ToLower(out), server) ||
		strings.Count(out, "reply from") != strings.Count(strings.ToLower(out), server) {
		t.Errorf("who answers for the server: %s (ours is %s)", out, server)
	}
	if _, ok := netbox.Try("nsenter --net=/run/netns/guest ping -n -c 3 -W 1 10.5.0.2"); !ok {
		t.Error("a guest does not reach its server")
	}
	if _, ok := netbox.Try("nsenter --net=/run/netns/guest ping -n -c 3 -W 1 10.5.0.12"); !ok {
		t.Error("guests of one host don't reach each other")
	}
	netbox.Run(t, "ip -n host2 addr add 10.5.0.99/24 dev br2")
	if _, ok := netbox.Try("nsenter --net=/run/netns/guest ping -n -c 3 -W 1 10.5.0.99"); !ok {
		t.Error("a guest does not reach the other host: the isolation takes too much")
	}
	// From the other side: our server is not there.
	if out, ok := netbox.Try("nsenter --net=/run/netns/host2 busybox udhcpc -i br2 -f -q -n -t 2 -T 1 -s /bin/true -r 10.5.0.11"); ok {
		t.Errorf("our server answered another host: %s", out)
	}
	netbox.Run(t, "ip -n host2 addr del 10.5.0.2/24 dev br2")
	if out, ok := netbox.Try("nsenter --net=/run/netns/host2 arping -c 2 -w 2 -I br2 -s 10.5.0.99 10.5.0.2"); ok {
		t.Errorf("our server answered another host's ARP: %s", out)
	}
	if !outside.saw("arp 10.5.0.11 10.5.0.99") {
		t.Error("the recorder saw nothing: the rest of this test says nothing")
	}
	// The other host's own frames are on its wire; ours must not be.
	for _, f := range []string{"arp 10.5.0.11 10.5.0.2", "arp 10.5.0.2 10.5.0.11"} {
		for _, seen := range outside.frames {
			if strings.HasSuffix(seen, f) || seen == f {
				t.Errorf("%s left the host", f)
			}
		}
	}
}

// TestNoGateway has a guest whose default NIC is in another network: of this one it gets its address and routes, and no more.
func TestNoGateway(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		w := wanted()
		w.Entries = append(w.Entries, desired.DHCPEntry{MAC: mac(2), IP: netip.MustParseAddr("10.5.0.12"), NoGateway: true})
		bring(t, r, w)
		asks(t, r, 1, "10.5.0.11")
		asks(t, r, 2, "10.5.0.12")
		if _, ok := r.machine.(dhcp.Linux); !ok {
			return // The model's answers are addresses only.
		}
		dir := filepath.Join(r.dir, id)
		_, before, err := r.machine.Daemon(t.Context(), dir, spaced)
		if err != nil {
			t.Fatal(err)
		}
		told := func(n int, want, unwanted []string) {
			t.Helper()
			out, err := lease("guest", mac(n), 5)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range want {
				if !strings.Contains(out, "\n"+s+"\n") {
					t.Errorf("guest %d was not told %s:\n%s", n, s, out)
				}
			}
			for _, s := range unwanted {
				if strings.Contains(out, "\n"+s+"=") {
					t.Errorf("guest %d was told a %s:\n%s", n, s, out)
				}
			}
		}
		common := []string{"subnet=255.255.255.0", "mtu=1450"}
		given := append(common, "router=10.5.0.1", "dns=8.8.8.8", "domain=a.example", "staticroutes=0.0.0.0/0 10.5.0.1 10.6.0.0/16 10.5.0.3")
		withheld := []string{"router", "dns", "domain", "hostname"}
		told(1, given, nil)
		told(2, append(common, "staticroutes=10.6.0.0/16 10.5.0.3"), withheld)

		// A reservation more is read without a restart.
		w.Entries = append(w.Entries, desired.DHCPEntry{MAC: mac(3), IP: netip.MustParseAddr("10.5.0.13"), Hostname: "vm-3"})
		bring(t, r, w)
		asks(t, r, 3, "10.5.0.13")
		if _, after, err := r.machine.Daemon(t.Context(), dir, spaced); err != nil || after != before {
			t.Errorf("the server was restarted: %d, %d, %v", before, after, err)
		}

		// The default NIC changes, and guests learn it when they ask again.
		w.Entries[0].NoGateway, w.Entries[0].Hostname, w.Entries[1].NoGateway = true, "", false
		bring(t, r, w)
		told(1, append(common, "staticroutes=10.6.0.0/16 10.5.0.3"), withheld)
		told(2, given, nil)

		// Where the server's own address would be told instead, and without routes.
		w.DNS, w.Routes = nil, nil
		bring(t, r, w)
		told(1, common, append(withheld, "staticroutes"))
		told(2, append(common, "router=10.5.0.1", "dns=10.5.0.2"), []string{"staticroutes"})
	})
}

// TestNothingOnTheWire counts DHCP frames on an uplink while guests ask.
func TestNothingOnTheWire(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if _, ok := r.machine.(dhcp.Linux); !ok {
			t.Skip("the model has no wire")
		}
		netbox.Run(t, "ip netns add shoal-foreign\nip link set pup0 netns shoal-foreign\nip -n shoal-foreign link set pup0 up")
		outside := tap(t, "shoal-foreign")
		w := wanted()
		w.DNS = nil
		bring(t, r, w)
		asks(t, r, 1, "10.5.0.11")
		asks(t, r, 2, "")
		if outside.saw("dhcp") {
			t.Errorf("DHCP left the host: %v", outside.frames)
		}
		// Without a list of servers, names are served here.
		netbox.Run(t, "ip -n guest addr add 10.5.0.11/24 dev eth0\nip -n guest link set eth0 address "+mac(1))
		for _, name := range []string{"vm-1", "vm-1.a.example"} {
			out, ok := netbox.Try("nsenter --net=/run/netns/guest busybox nslookup -type=a " + name + " 10.5.0.2")
			if !ok || !strings.Contains(out, "10.5.0.11") {
				t.Errorf("resolve %s: %s", name, out)
			}
		}
		// Asked again once the rules are gone, the wire shows it: the recorder works.
		r.hand["flush"]()
		asks(t, r, 2, "")
		if !outside.saw("dhcp") {
			t.Error("the recorder saw nothing without rules")
		}
	})
}

// TestRestartedAgentChangesNothing also for one whose pid file is lost.
func TestRestartedAgentChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		w := wanted()
		bring(t, r, w)
		dir := filepath.Join(r.dir, id)
		_, before, err := r.machine.Daemon(t.Context(), dir, spaced)
		if err != nil || before == 0 {
			t.Fatal(before, err)
		}
		bring(t, r, w)
		if _, after, _ := r.machine.Daemon(t.Context(), dir, spaced); after != before {
			t.Errorf("another server runs: %d, %d", before, after)
		}
		if err := os.Remove(filepath.Join(dir, "pid")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		bring(t, r, w)
		asks(t, r, 1, "10.5.0.11")
	})
}
