package netdev_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/agent/netdev"
	"shoal/agent/sim"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

const (
	id     = "0b6f3f0e-0000-4000-8000-000000000001"
	bridge = "shb0b6f3f0e0000"
	uplink = "shx0b6f3f0e0000"
)

// rig is the links, with what an operator can do to them.
type rig struct {
	netdev.Links
	device func(l netdev.Link)
}

func each(t *testing.T, test func(t *testing.T, r rig)) {
	t.Run("sim", func(t *testing.T) {
		s := sim.NewLinks()
		test(t, rig{s, func(l netdev.Link) {
			l.Type = "veth"
			if err := s.Add(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}})
	})
	t.Run("real", func(t *testing.T) {
		netbox.Need(t, "ip", "bridge")
		clean := func() {
			links, err := netdev.Kernel{}.List(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				if l.Name != "lo" {
					netbox.Try("ip link del " + l.Name)
				}
			}
		}
		clean()
		t.Cleanup(clean)
		test(t, rig{netdev.Kernel{}, func(l netdev.Link) {
			// This kernel has no dummy devices: a veth's other end stays loose.
			netbox.Run(t, "ip link add "+l.Name+" type veth peer name p"+l.Name)
			for _, a := range l.Addresses {
				netbox.Run(t, "ip addr add "+a.String()+" dev "+l.Name)
			}
			if l.Master != "" {
				netbox.Run(t, "ip link set "+l.Name+" master "+l.Master)
			}
			if l.Up {
				netbox.Run(t, "ip link set "+l.Name+" up\nip link set p"+l.Name+" up")
			}
		}})
	})
}

func newKind(r rig) *netdev.Kind { return netdev.New(r.Links, zerolog.Nop()) }

// bring ensures an item, and checks that a kind that knows nothing else finds nothing to do.
func bring(t *testing.T, r rig, w desired.NetDev) netdev.Device {
	t.Helper()
	if err := w.Validate(); err != nil {
		t.Fatal(err)
	}
	k := newKind(r)
	found, err := k.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var have *netdev.Device
	if d, ok := found[id]; ok {
		have = &d
	}
	got, err := k.Ensure(t.Context(), id, w, have)
	if err != nil {
		t.Fatal(err)
	}
	if d := k.Diff(id, w, got); d != "" {
		t.Fatalf("after Ensure: %s", d)
	}
	if w.Type != desired.NetDevExisting {
		k = newKind(r)
	}
	found, err = k.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := k.Diff(id, w, found[id]); d != "" {
		t.Fatalf("not settled: %s", d)
	}
	return found[id]
}

func get(t *testing.T, r rig, name string) *netdev.Link {
	t.Helper()
	links, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(links, func(l netdev.Link) bool { return l.Name == name }); i >= 0 {
		return &links[i]
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func vxlan() desired.NetDev {
	return desired.NetDev{Type: desired.NetDevVXLAN, Bridge: bridge, Uplink: uplink, MTU: 1450, VXLAN: &desired.VXLAN{
		VNI: 77, Local: netip.MustParseAddr("10.9.0.1"), Port: 4789, Remotes: []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.3")},
	}}
}

func TestVXLAN(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		w := vxlan()
		d := bring(t, r, w)
		if d.Bridge.Alias != "shoal netdev "+id || d.Bridge.MTU != 1450 || d.Uplink.MTU != 1450 || len(d.Bridge.Addresses) != 0 {
			t.Errorf("made %+v %+v", d.Bridge, d.Uplink)
		}
		// Remotes are changed as differences, and by hand is drift.
		w.VXLAN.Remotes = []netip.Addr{netip.MustParseAddr("10.9.0.3"), netip.MustParseAddr("10.9.0.4")}
		d = bring(t, r, w)
		if diff := cmp.Diff(w.VXLAN.Remotes, d.Uplink.Remotes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		must(t, r.DeleteRemote(t.Context(), uplink, netip.MustParseAddr("10.9.0.3")))
		must(t, r.AddRemote(t.Context(), uplink, netip.MustParseAddr("10.9.0.9")))
		bring(t, r, w)
		// Another VNI needs another device; guests stay on the bridge.
		r.device(netdev.Link{Name: "sht1", Master: bridge, Up: true})
		w.VXLAN.VNI = 78
		d = bring(t, r, w)
		if !slices.Equal(d.Ports, []string{"sht1", uplink}) {
			t.Errorf("ports %v", d.Ports)
		}
		k := newKind(r)
		var fault *desired.Fault
		if err := k.Remove(t.Context(), id, d); !errors.As(err, &fault) || fault.Code != desired.CodeInUse {
			t.Errorf("Remove under a guest: %v", err)
		}
		must(t, r.Delete(t.Context(), "sht1"))
		for range 2 {
			must(t, k.Remove(t.Context(), id, d))
		}
		if get(t, r, bridge) != nil || get(t, r, uplink) != nil {
			t.Error("a link is left")
		}
	})
}

func TestDeletedBridgeGetsItsGuestsBack(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		w := vxlan()
		bring(t, r, w)
		r.device(netdev.Link{Name: "sht1", Master: bridge, Up: true})
		bring(t, r, w) // the tap is noted
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		told, done := make(chan struct{}, 1), make(chan error, 1)
		k := newKind(r)
		go func() {
			done <- k.Watch(ctx, func(string) {
				select {
				case told <- struct{}{}:
				default:
				}
			})
		}()
		for told := told; told != nil; {
			// Until the watch is on, nothing is told: delete again.
			must(t, r.Delete(ctx, bridge))
			select {
			case <-told:
				told = nil
			case <-time.After(100 * time.Millisecond):
				bring(t, r, w)
			case <-ctx.Done():
				t.Fatal("a deleted bridge was not told")
			}
		}
		cancel()
		<-done
		must(t, r.Delete(t.Context(), bridge))
		d := bring(t, r, w)
		if !slices.Equal(d.Ports, []string{"sht1", uplink}) {
			t.Errorf("ports %v", d.Ports)
		}
	})
}

func TestDrift(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		w := vxlan()
		bring(t, r, w)
		for name, hand := range map[string]func() error{
			"uplink gone": func() error { return r.Delete(t.Context(), uplink) },
			"off bridge":  func() error { return r.SetMaster(t.Context(), uplink, "") },
			"mtu":         func() error { return r.SetMTU(t.Context(), bridge, 1400) },
			"bridge gone": func() error { return r.Delete(t.Context(), bridge) },
		} {
			must(t, hand())
			k := newKind(r)
			found, err := k.Observe(t.Context())
			must(t, err)
			if k.Diff(id, w, found[id]) == "" {
				t.Errorf("%s: nobody saw it", name)
			}
			bring(t, r, w)
		}
	})
}

func TestForeign(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		refused := func(w desired.NetDev, code desired.Code, text string) {
			t.Helper()
			_, err := newKind(r).Ensure(t.Context(), id, w, nil)
			var fault *desired.Fault
			if !errors.As(err, &fault) || fault.Code != code || fault.Remedy == "" || !strings.Contains(err.Error(), text) {
				t.Errorf("%s over %s: %v", w.Type, text, err)
			}
		}
		r.device(netdev.Link{Name: "eth7", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.1.1/24")}, Up: true})
		r.device(netdev.Link{Name: "eth8", Up: true})
		r.device(netdev.Link{Name: "eth9", Up: true})
		must(t, r.Add(t.Context(), netdev.Link{Name: "br0", Type: "bridge", Alias: "mine"}))
		must(t, r.SetMaster(t.Context(), "eth9", "br0"))
		no := func(device string) desired.NetDev {
			return desired.NetDev{Type: desired.NetDevNoVLAN, Bridge: bridge, Device: device}
		}
		refused(no("eth6"), desired.CodeMissing, "eth6")
		refused(no("eth7"), desired.CodeConflict, "10.1.1.1")
		refused(no("eth9"), desired.CodeConflict, "br0")
		big := no("eth8")
		big.MTU = 9000
		refused(big, desired.CodeConflict, "MTU")
		refused(desired.NetDev{Type: desired.NetDevExisting, Bridge: "br7"}, desired.CodeMissing, "br7")
		refused(desired.NetDev{Type: desired.NetDevExisting, Bridge: "eth8"}, desired.CodeConflict, "eth8")
		refused(desired.NetDev{Type: desired.NetDevExisting, Bridge: "br0"}, desired.CodeMissing, "down")
		refused(desired.NetDev{Type: desired.NetDevVLAN, Bridge: bridge, Device: "eth6", VLAN: 5, Uplink: uplink}, desired.CodeMissing, "eth6")
		if get(t, r, bridge) != nil {
			t.Error("a refused network left a bridge")
		}

		// The operator's bridge is used and never changed.
		must(t, r.SetUp(t.Context(), "br0"))
		before := *get(t, r, "br0")
		d := bring(t, r, desired.NetDev{Type: desired.NetDevExisting, Bridge: "br0", MTU: 1400})
		must(t, newKind(r).Remove(t.Context(), id, d))
		if diff := cmp.Diff(before, *get(t, r, "br0"), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("the operator's bridge changed: %s", diff)
		}

		// A free device is given to us, and given back.
		d = bring(t, r, no("eth8"))
		if !slices.Equal(d.Ports, []string{"eth8"}) {
			t.Errorf("ports %v", d.Ports)
		}
		must(t, newKind(r).Remove(t.Context(), id, d))
		if l := get(t, r, "eth8"); l == nil || l.Master != "" {
			t.Errorf("eth8 afterwards: %+v", l)
		}

		// Something of our name.
		must(t, r.Add(t.Context(), netdev.Link{Name: bridge, Type: "bridge", Alias: "someone's"}))
		refused(vxlan(), desired.CodeConflict, bridge)
		must(t, r.SetAlias(t.Context(), bridge, ""))
		must(t, r.SetUp(t.Context(), bridge))
		refused(vxlan(), desired.CodeConflict, bridge)
		must(t, r.Delete(t.Context(), bridge))
		// One that we made and could not mark.
		must(t, r.Add(t.Context(), netdev.Link{Name: bridge, Type: "bridge"}))
		bring(t, r, vxlan())
		// Another network of the same VNI.
		w := vxlan()
		w.Bridge, w.Uplink = "shbother", "shxother"
		_, err := newKind(r).Ensure(t.Context(), "other", w, nil)
		var fault *desired.Fault
		if !errors.As(err, &fault) || fault.Code != desired.CodeConflict {
			t.Errorf("same VNI: %v", err)
		}
	})
}

func TestVLAN(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		r.device(netdev.Link{Name: "eth5", Up: true})
		if _, ok := r.Links.(netdev.Kernel); ok {
			if out, err := exec.Command("ip", "link", "add", "link", "eth5", "name", "try5", "type", "vlan", "id", "5").CombinedOutput(); err != nil {
				t.Skipf("SKIPPED: this kernel makes no VLAN devices (module 8021q): %s", strings.TrimSpace(string(out)))
			}
			netbox.Run(t, "ip link del try5")
		}
		w := desired.NetDev{Type: desired.NetDevVLAN, Bridge: bridge, Device: "eth5", VLAN: 5, Uplink: uplink, MTU: 1400}
		d := bring(t, r, w)
		if d.Uplink.VLAN != 5 || d.Uplink.Parent != "eth5" {
			t.Errorf("uplink %+v", d.Uplink)
		}
		w.VLAN = 6
		d = bring(t, r, w)
		must(t, newKind(r).Remove(t.Context(), id, d))
		if get(t, r, uplink) != nil || get(t, r, "eth5") == nil {
			t.Error("removal took too much or too little")
		}
	})
}

func TestHostHasNoAddressInGuestsNetwork(t *testing.T) {
	netbox.Need(t, "ip")
	each(t, func(t *testing.T, r rig) {
		if _, ok := r.Links.(netdev.Kernel); !ok {
			t.Skip("the model has no such setting")
		}
		bring(t, r, vxlan())
		for _, name := range []string{bridge, uplink} {
			b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
			if err != nil || strings.TrimSpace(string(b)) != "1" {
				t.Errorf("IPv6 of %s: %q %v", name, b, err)
			}
		}
	})
}

// TestFramesCrossTheTunnel joins this host to one in a namespace, by remotes alone.
func TestFramesCrossTheTunnel(t *testing.T) {
	netbox.Need(t, "ip", "bridge", "ping", "nsenter")
	clean := func() {
		for _, l := range []string{"sht1", "under0", bridge, uplink} {
			netbox.Try("ip link del " + l)
		}
		netbox.Try("ip netns del host2")
		netbox.Try("ip netns del guest1")
	}
	clean()
	t.Cleanup(clean)
	netbox.Run(t, `ip netns add host2
		ip netns add guest1
		ip link add under0 type veth peer name under1 netns host2
		ip addr add 10.9.0.1/24 dev under0
		ip link set under0 up
		ip -n host2 addr add 10.9.0.2/24 dev under1
		ip -n host2 link set under1 up
		ip -n host2 link add vx2 type vxlan id 77 local 10.9.0.2 dstport 4789
		bridge -n host2 fdb append 00:00:00:00:00:00 dev vx2 dst 10.9.0.1
		ip -n host2 addr add 172.16.0.2/24 dev vx2
		ip -n host2 link set vx2 up`)
	r := rig{Links: netdev.Kernel{}}
	w := vxlan()
	w.VXLAN.Remotes = nil
	bring(t, r, w)
	netbox.Run(t, `ip link add sht1 type veth peer name eth0 netns guest1
		ip link set sht1 master `+bridge+` up
		ip -n guest1 link set eth0 up
		ip -n guest1 addr add 172.16.0.1/24 dev eth0`)
	ping := func() bool {
		for range 3 {
			if _, ok := netbox.Try("nsenter --net=/run/netns/guest1 ping -n -c 1 -W 1 172.16.0.2"); ok {
				return true
			}
		}
		return false
	}
	if ping() {
		t.Error("a host that is no remote was reached")
	}
	w.VXLAN.Remotes = []netip.Addr{netip.MustParseAddr("10.9.0.2")}
	bring(t, r, w)
	if !ping() {
		t.Error("the remote was not reached")
	}
	// Deleted and made again, the guest is back on it.
	netbox.Run(t, "ip link del "+bridge)
	bring(t, r, w)
	if !ping() {
		t.Error("the remote was not reached after the bridge came back")
	}
}
