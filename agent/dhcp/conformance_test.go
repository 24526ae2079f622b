package dhcp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/dhcp"
	"shoal/agent/host"
	"shoal/agent/netdev"
	"shoal/agent/sim"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

const (
	id     = "0b6f3f0e-0000-4000-8000-000000000001"
	bridge = "shb0b6f3f0e0000"
	port   = "shd0b6f3f0e0000"
	spaced = "shoal-" + id
)

// rig is a host.
type rig struct {
	run     host.Runner
	machine dhcp.Machine
	dir     string
	// ask is a guest's question on the bridge; an error means that nobody answered.
	ask func(mac string) (netip.Addr, error)
	// hand does to the host what an operator or an accident does.
	hand map[string]func()
}

func wanted() desired.DHCP {
	return desired.DHCP{
		Bridge: bridge, Namespace: spaced, Port: port, Server: netip.MustParsePrefix("10.5.0.2/24"),
		Gateway: netip.MustParseAddr("10.5.0.1"), DNS: []netip.Addr{netip.MustParseAddr("8.8.8.8")}, Domain: "a.example", MTU: 1450,
		Routes:  []desired.Route{{To: netip.MustParsePrefix("10.6.0.0/16"), Via: netip.MustParseAddr("10.5.0.3")}},
		Entries: []desired.DHCPEntry{{MAC: mac(1), IP: netip.MustParseAddr("10.5.0.11"), Hostname: "vm-1"}},
	}
}

func mac(n int) string { return fmt.Sprintf("52:54:00:05:00:%02x", n) }

func each(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Run("sim", func(t *testing.T) {
		links := sim.NewLinks(netdev.Link{Name: bridge, Type: "bridge", Up: true}, netdev.Link{Name: "up0", Type: "veth", Up: true, Master: bridge})
		filter := sim.NewPacketFilter()
		m := sim.NewDHCPHost(links, filter)
		ctx := context.Background()
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		test(t, &rig{
			run: filter, machine: m, dir: t.TempDir(),
			ask: func(mac string) (netip.Addr, error) { return m.Ask(ctx, bridge, mac) },
			hand: map[string]func(){
				"kill":        m.Kill,
				"netns":       func() { m.DeleteNamespace(spaced) },
				"port":        func() { must(links.Delete(ctx, port)) },
				"port-off":    func() { must(links.SetMaster(ctx, port, "")) },
				"flush":       func() { _, err := filter.Run(ctx, host.Command{Name: "ebtables", Args: []string{"-F"}}); must(err) },
				"new-port":    func() { must(links.Add(ctx, netdev.Link{Name: "up1", Type: "veth", Master: bridge})) },
				"alias-taken": func() { must(links.Add(ctx, netdev.Link{Name: "shdtaken", Type: "veth", Alias: "someone's"})) },
			},
		})
	})
	t.Run("real", func(t *testing.T) {
		netbox.Need(t, "ip", "ebtables", "dnsmasq", "busybox", "nsenter")
		m := dhcp.Linux{Run: host.Machine{}}
		r := &rig{run: host.Machine{}, machine: m, dir: t.TempDir()}
		// As it is on a host: the server is nobody.
		if err := os.Chmod(filepath.Dir(r.dir), 0o755); err != nil {
			t.Fatal(err)
		}
		clean := func() {
			netbox.Try("for p in $(pgrep -x dnsmasq); do kill -9 $p; done") // this pid namespace is the test's own
			for _, ns := range []string{spaced, "guest", "shoal-foreign"} {
				netbox.Try("ip netns del " + ns)
			}
			for _, l := range []string{bridge, port, "up0", "up1", "shdtaken", "shtguest"} {
				netbox.Try("ip link del " + l)
			}
			netbox.Run(t, "ebtables -F\nebtables -X")
		}
		clean()
		t.Cleanup(clean)
		netbox.Run(t, "ip link add "+bridge+" type bridge forward_delay 0\nip link set "+bridge+" up\nip link add up0 type veth peer name pup0\nip link set up0 master "+bridge+" up\nip link set pup0 up")
		guest(t, "guest", "shtguest", bridge)
		r.ask = func(mac string) (netip.Addr, error) { return udhcpc("guest", mac) }
		r.hand = map[string]func(){
			"kill":        func() { netbox.Run(t, "kill -9 $(pgrep -x dnsmasq)") },
			"netns":       func() { netbox.Run(t, "ip netns del "+spaced) },
			"port":        func() { netbox.Run(t, "ip link del "+port) },
			"port-off":    func() { netbox.Run(t, "ip link set "+port+" nomaster") },
			"flush":       func() { netbox.Run(t, "ebtables -F") },
			"new-port":    func() { netbox.Run(t, "ip link add up1 type veth peer name pup1\nip link set up1 master "+bridge) },
			"alias-taken": func() { netbox.Run(t, "ip link add shdtaken type bridge\nip link set shdtaken alias someones") },
		}
		test(t, r)
	})
}

// guest makes a namespace with a device whose other end is on the bridge.
func guest(t *testing.T, ns, tap, bridge string) {
	t.Helper()
	netbox.Run(t, "ip netns add "+ns+"\nip link add "+tap+" type veth peer name eth0 netns "+ns+"\nip link set "+tap+" master "+bridge+" up\nip -n "+ns+" link set eth0 up\nip -n "+ns+" link set lo up")
}

// udhcpc asks like a real guest; the script's output has what it was given.
func udhcpc(ns, mac string) (netip.Addr, error) {
	out, err := lease(ns, mac, 3)
	if err != nil {
		return netip.Addr{}, err
	}
	for line := range strings.Lines(out) {
		if ip, ok := strings.CutPrefix(strings.TrimSpace(line), "ip="); ok {
			return netip.ParseAddr(ip)
		}
	}
	return netip.Addr{}, fmt.Errorf("no address in %q", out)
}

func lease(ns, mac string, tries int) (string, error) {
	dir, err := os.MkdirTemp("", "udhcpc")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && set\nexit 0\n"), 0o755); err != nil {
		return "", err
	}
	out, ok := netbox.Try(fmt.Sprintf("ip -n %s link set eth0 address %s && nsenter --net=/run/netns/%s busybox udhcpc -i eth0 -f -q -n -t %d -T 1 -O 121 -O mtu -O search -O domain -s %s",
		ns, mac, ns, tries, script))
	if !ok {
		return "", fmt.Errorf("udhcpc: %s", out)
	}
	return strings.ReplaceAll(out, "'", ""), nil
}

func newKind(t testing.TB, r *rig) *dhcp.Kind {
	t.Helper()
	k, err := dhcp.New(r.run, r.machine, r.dir, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// bring ensures an item and checks that an agent that was just started finds nothing to do.
func bring(t *testing.T, r *rig, w desired.DHCP) {
	t.Helper()
	if err := w.Validate(); err != nil {
		t.Fatal(err)
	}
	k := newKind(t, r)
	found, err := k.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var have *dhcp.Server
	if s, ok := found[id]; ok {
		have = &s
	}
	got, err := k.Ensure(t.Context(), id, w, have)
	if err != nil {
		t.Fatal(err)
	}
	if d := k.Diff(id, w, got); d != "" {
		t.Fatalf("after Ensure: %s", d)
	}
	if d := drift(t, r, w); d != "" {
		t.Fatalf("not settled: %s", d)
	}
}

func drift(t *testing.T, r *rig, w desired.DHCP) string {
	t.Helper()
	k := newKind(t, r)
	found, err := k.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, ok := found[id]
	if !ok {
		return "is gone"
	}
	return k.Diff(id, w, s)
}

func asks(t *testing.T, r *rig, n int, want string) {
	t.Helper()
	ip, err := r.ask(mac(n))
	switch {
	case want == "" && err == nil:
		t.Errorf("guest %d got %s", n, ip)
	case want != "" && (err != nil || ip.String() != want):
		t.Errorf("guest %d got %s (%v), want %s", n, ip, err, want)
	}
}

func TestLifeCycle(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		w := wanted()
		bring(t, r, w)
		asks(t, r, 1, "10.5.0.11")
		asks(t, r, 2, "")

		// A reservation more, without a restart.
		_, before, err := r.machine.Daemon(t.Context(), filepath.Join(r.dir, id), spaced)
		if err != nil {
			t.Fatal(err)
		}
		w.Entries = append(w.Entries, desired.DHCPEntry{MAC: mac(2), IP: netip.MustParseAddr("10.5.0.12")})
		bring(t, r, w)
		asks(t, r, 2, "10.5.0.12")
		if _, after, err := r.machine.Daemon(t.Context(), filepath.Join(r.dir, id), spaced); err != nil || after != before {
			t.Errorf("the server was restarted: %d, %d, %v", before, after, err)
		}
		k := newKind(t, r)
		found, err := k.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		facts := k.Facts(id, found[id]).(desired.DHCPFacts)
		if len(facts.Leases) != 2 || facts.Leases[mac(2)].String() != "10.5.0.12" {
			t.Errorf("leases %v", facts.Leases)
		}

		// An address goes to another guest while the first one's lease runs.
		w.Entries = []desired.DHCPEntry{{MAC: mac(3), IP: netip.MustParseAddr("10.5.0.11")}, w.Entries[1]}
		bring(t, r, w)
		asks(t, r, 3, "10.5.0.11")
		asks(t, r, 1, "")

		// Other options, another address of the server.
		w.Gateway, w.Routes = netip.Addr{}, nil
		bring(t, r, w)
		w.Server = netip.MustParsePrefix("10.5.0.3/24")
		bring(t, r, w)
		asks(t, r, 2, "10.5.0.12")

		found, err = newKind(t, r).Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := newKind(t, r).Remove(t.Context(), id, found[id]); err != nil {
				t.Fatal(err)
			}
		}
		asks(t, r, 2, "")
		if d := drift(t, r, w); d != "is gone" {
			t.Errorf("after removal it %s", d)
		}
		if there, err := r.machine.HasNamespace(t.Context(), spaced); there || err != nil {
			t.Errorf("namespace is left: %v", err)
		}
		if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 0 {
			t.Errorf("files are left: %v %v", entries, err)
		}
		out, err := r.run.Run(t.Context(), host.Command{Name: "ebtables-save"})
		if err != nil || strings.Contains(string(out), "SHOAL") {
			t.Errorf("rules are left: %s %v", out, err)
		}
	})
}

func TestHealing(t *testing.T) {
	for _, hand := range []string{"kill", "netns", "port", "port-off", "flush", "new-port"} {
		t.Run(hand, func(t *testing.T) {
			each(t, func(t *testing.T, r *rig) {
				w := wanted()
				bring(t, r, w)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				told, done := make(chan string, 64), make(chan error, 1)
				k := newKind(t, r)
				go func() { done <- k.Watch(ctx, func(id string) { told <- id }) }()
				wait := func() {
					select {
					case <-told:
					case <-ctx.Done():
						t.Error("nobody was told")
					}
				}
				// The first look of a watch tells always, and is what it compares with.
				wait()
				r.hand[hand]()
				wait()
				cancel()
				<-done
				if drift(t, r, w) == "" {
					t.Error("nobody saw it")
				}
				bring(t, r, w)
				asks(t, r, 1, "10.5.0.11")
			})
		})
	}
}

func TestBadInput(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		refused := func(id string, w desired.DHCP, code desired.Code, text string) {
			t.Helper()
			_, err := newKind(t, r).Ensure(t.Context(), id, w, nil)
			var fault *desired.Fault
			if !errors.As(err, &fault) || fault.Code != code || !strings.Contains(err.Error(), text) {
				t.Errorf("want %s about %s, got %v", code, text, err)
			}
		}
		w := wanted()
		w.Bridge = "none"
		refused(id, w, desired.CodeMissing, "none")
		w = wanted()
		w.Entries[0].IP = netip.MustParseAddr("10.7.0.1")
		refused(id, w, desired.CodeInvalid, "entries[0].ip")
		refused("../x", wanted(), desired.CodeInvalid, "id")
		r.hand["alias-taken"]()
		w = wanted()
		w.Port = "shdtaken"
		refused(id, w, desired.CodeConflict, "shdtaken")
	})
}
