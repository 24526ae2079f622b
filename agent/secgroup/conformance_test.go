package secgroup_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-iptables/iptables"
	"github.com/rs/zerolog"

	"shoal/agent/host"
	"shoal/agent/secgroup"
	"shoal/agent/sim"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

// rig is a table with what it works on.
type rig struct {
	run    host.Runner
	kernel secgroup.Kernel
	dir    string
	*secgroup.Table
}

// restart is what an agent's restart is to the table.
func (r *rig) restart(t testing.TB) {
	t.Helper()
	table, err := secgroup.New(r.run, r.kernel, r.dir, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	r.Table = table
}

// hand runs a command as an operator would.
func (r *rig) hand(t testing.TB, line string) {
	t.Helper()
	w := strings.Fields(line)
	if _, err := r.run.Run(t.Context(), host.Command{Name: w[0], Args: w[1:]}); err != nil {
		t.Fatal(err)
	}
}

// each runs a test on the model and on the real tools.
func each(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Run("sim", func(t *testing.T) {
		p := sim.NewPacketFilter()
		r := &rig{run: p, kernel: p, dir: t.TempDir()}
		r.restart(t)
		test(t, r)
	})
	t.Run("real", func(t *testing.T) {
		r := realRig(t)
		test(t, r)
	})
}

func realRig(t testing.TB) *rig {
	t.Helper()
	netbox.Need(t, "iptables", "ip6tables", "ebtables", "ipset", "ip")
	r := &rig{run: host.Machine{}, kernel: secgroup.Machine{Run: host.Machine{}}, dir: t.TempDir()}
	clean := func() {
		for _, tool := range []string{"iptables", "ip6tables", "ebtables"} {
			netbox.Run(t, tool+" -F\n"+tool+" -X")
		}
		netbox.Run(t, "ipset destroy")
	}
	clean()
	t.Cleanup(clean)
	r.restart(t)
	return r
}

// item is what the tests want of a NIC.
func item(n int, change func(*desired.SecGroup)) (string, desired.SecGroup) {
	w := desired.SecGroup{
		Tap: fmt.Sprintf("sht%012x", n), Chain: fmt.Sprintf("shc-%012x", n), MAC: fmt.Sprintf("52:54:00:00:00:%02x", n),
		IPs:           []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", n)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", n))},
		IngressPolicy: desired.Drop, EgressPolicy: desired.Accept,
	}
	if change != nil {
		change(&w)
	}
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", n), w
}

// pass does what the engine does with the items of both kinds, and gives what was wrong.
func pass(t testing.TB, r *rig, sets map[string]desired.AddrSet, nics map[string]desired.SecGroup) []string {
	t.Helper()
	ctx := t.Context()
	var drift []string
	seen, err := r.Sets().Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for id, w := range sets {
		have, ok := seen[id]
		p := &have
		if !ok {
			p = nil
		} else if d := r.Sets().Diff(id, w, have); d == "" {
			continue
		} else {
			drift = append(drift, d)
		}
		got, err := r.Sets().Ensure(ctx, id, w, p)
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Sets().Diff(id, w, got); d != "" {
			t.Fatalf("set %s after Ensure: %s", id, d)
		}
	}
	if err := r.Sets().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	found, err := r.Chains().Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for id, have := range found {
		if _, ok := nics[id]; !ok {
			if err := r.Chains().Remove(ctx, id, have); err != nil {
				t.Fatal(err)
			}
		}
	}
	for id, w := range nics {
		have, ok := found[id]
		p := &have
		if !ok {
			p = nil
		} else if d := r.Chains().Diff(id, w, have); d == "" {
			continue
		} else {
			drift = append(drift, d)
		}
		got, err := r.Chains().Ensure(ctx, id, w, p)
		if err != nil {
			t.Fatal(err)
		}
		if d := r.Chains().Diff(id, w, got); d != "" {
			t.Fatalf("NIC %s after Ensure: %s", id, d)
		}
	}
	if err := r.Chains().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	seen, err = r.Sets().Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for id, have := range seen {
		if _, ok := sets[id]; !ok {
			if err := r.Sets().Remove(ctx, id, have); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.Sets().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	return drift
}

// settled fails unless a pass finds nothing to do, also for an agent that was just started.
func settled(t testing.TB, r *rig, sets map[string]desired.AddrSet, nics map[string]desired.SecGroup) {
	t.Helper()
	for range 2 {
		found, err := r.Chains().Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != len(nics) {
			t.Fatalf("found %d NICs, want %d", len(found), len(nics))
		}
		seen, err := r.Sets().Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) != len(sets) {
			t.Fatalf("found %d sets, want %d", len(seen), len(sets))
		}
		if d := pass(t, r, sets, nics); len(d) > 0 {
			t.Fatalf("not settled: %s", d)
		}
		r.restart(t)
	}
}

func everything() (map[string]desired.AddrSet, map[string]desired.SecGroup) {
	sets := map[string]desired.AddrSet{"group-1": {Name: "shs-0123456789ab", Addrs: []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1"),
	}}}
	nics := map[string]desired.SecGroup{}
	for n := range 3 {
		id, w := item(n+1, func(w *desired.SecGroup) {
			w.Ingress = []desired.Rule{
				{Protocol: desired.ProtoAll, Set: "shs-0123456789ab"},
				{Protocol: desired.ProtoICMP},
				{Protocol: desired.ProtoTCP, FromPort: 22, ToPort: 22, CIDR: netip.MustParsePrefix("10.1.2.3/8")},
				{Protocol: desired.ProtoTCP, FromPort: 80, ToPort: 90, CIDR: netip.MustParsePrefix("fd01::/64"), Set: "shs-0123456789ab"},
				{Protocol: desired.ProtoUDP, CIDR: netip.MustParsePrefix("0.0.0.0/0")},
				{Protocol: desired.ProtoUDP, FromPort: 0, ToPort: 7, CIDR: netip.MustParsePrefix("10.0.0.9/32")},
			}
			w.Egress = []desired.Rule{{Protocol: desired.ProtoTCP}, {Protocol: desired.ProtoICMP, CIDR: netip.MustParsePrefix("::/0")}}
			w.EgressPolicy = desired.Drop
			w.AntiSpoof = n == 0
		})
		nics[id] = w
	}
	return sets, nics
}

func TestLifeCycle(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		sets, nics := everything()
		if d := pass(t, r, sets, nics); len(d) > 0 {
			t.Errorf("a first pass found drift: %s", d)
		}
		settled(t, r, sets, nics)

		// A changed rule, a member more, spoofing allowed, a NIC and later everything gone.
		s := sets["group-1"]
		s.Addrs = append([]netip.Addr{netip.MustParseAddr("10.0.0.0")}, s.Addrs[1:]...)
		sets["group-1"] = s
		id, _ := item(1, nil)
		w := nics[id]
		w.Ingress, w.AntiSpoof = w.Ingress[:2], false
		nics[id] = w
		id, _ = item(2, nil)
		delete(nics, id)
		pass(t, r, sets, nics)
		settled(t, r, sets, nics)

		pass(t, r, nil, nil)
		settled(t, r, nil, nil)
		for _, tool := range []string{"iptables", "ip6tables", "ebtables"} {
			out, err := r.run.Run(t.Context(), host.Command{Name: tool + "-save"})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(out), "SHOAL") || strings.Contains(string(out), "sh") && strings.Contains(string(out), "shc-") {
				t.Errorf("%s keeps a trace:\n%s", tool, out)
			}
		}
	})
}

func TestDriftIsHealed(t *testing.T) {
	for _, hand := range []string{
		"iptables -F",
		"iptables -F FORWARD",
		"ip6tables -F",
		"ebtables -F",
		"iptables -I FORWARD 1 -j ACCEPT",
		"iptables -A shc-000000000001-i -j ACCEPT",
		"iptables -I shc-000000000001-i 1 -p udp -j ACCEPT",
		"iptables -D shc-000000000002-i -j DROP",
		"iptables -I SHOAL-FWD 1 -j ACCEPT",
		"iptables -I SHOAL-I-sht0 1 -j ACCEPT",
		"iptables -F SHOAL-HOST",
		"ipset flush shs-0123456789ab-4",
		"ipset add shs-0123456789ab-4 10.9.9.9",
	} {
		t.Run(strings.ReplaceAll(hand, " ", "_"), func(t *testing.T) {
			each(t, func(t *testing.T, r *rig) {
				sets, nics := everything()
				pass(t, r, sets, nics)
				r.hand(t, hand)
				if d := pass(t, r, sets, nics); len(d) == 0 {
					t.Error("nobody saw it")
				}
				settled(t, r, sets, nics)
				r.hand(t, hand)
				r.restart(t)
				if d := pass(t, r, sets, nics); len(d) == 0 {
					t.Error("an agent that had just started did not see it")
				}
				settled(t, r, sets, nics)
			})
		})
	}
}

func TestForeignIsLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		for _, line := range []string{
			"iptables -N shc-foreign-i", "iptables -A shc-foreign-i -p tcp -j ACCEPT", "iptables -A FORWARD -j shc-foreign-i",
			"iptables -A INPUT -p tcp -j ACCEPT", "ip6tables -N other", "ebtables -N foo-a", "ebtables -A foo-a -p ARP -j ACCEPT",
			"ipset create shs-foreign-4 hash:ip family inet", "ipset add shs-foreign-4 10.3.3.3",
		} {
			r.hand(t, line)
		}
		before := foreign(t, r)
		sets, nics := everything()
		pass(t, r, sets, nics)
		settled(t, r, sets, nics)
		if after := foreign(t, r); after != before {
			t.Errorf("foreign rules changed\nfrom:\n%s\nto:\n%s", before, after)
		}
		pass(t, r, nil, nil)
		if after := foreign(t, r); after != before {
			t.Errorf("foreign rules changed on removal\nfrom:\n%s\nto:\n%s", before, after)
		}
		// A chain of exactly our name that is someone else's.
		id, w := item(7, nil)
		r.hand(t, "iptables -N "+w.Chain+"-i")
		r.hand(t, "iptables -A "+w.Chain+"-i -p tcp -j ACCEPT")
		if _, err := r.Chains().Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := r.Chains().Ensure(t.Context(), id, w, nil)
		var fault *desired.Fault
		if !errors.As(err, &fault) || fault.Code != desired.CodeConflict || fault.Remedy == "" {
			t.Errorf("Ensure over a foreign chain: %v", err)
		}
		// It holds up nobody else.
		sets, nics = everything()
		pass(t, r, sets, nics)
		if d := pass(t, r, sets, nics); len(d) > 0 {
			t.Errorf("not settled beside a foreign chain: %s", d)
		}
	})
}

// foreign is everything that is not ours, without counters.
func foreign(t *testing.T, r *rig) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []host.Command{{Name: "iptables-save"}, {Name: "ip6tables-save"}, {Name: "ebtables-save"}, {Name: "ipset", Args: []string{"save"}}} {
		out, err := r.run.Run(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") && !strings.Contains(line, "shc-foreign") ||
				strings.Contains(line, "SHOAL") || strings.Contains(line, "shc-0000") || strings.Contains(line, "shs-0123") {
				continue
			}
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestMissingSetIsRefusedAlone(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		id, w := item(1, func(w *desired.SecGroup) { w.Ingress = []desired.Rule{{Protocol: desired.ProtoAll, Set: "shs-none"}} })
		_, err := r.Chains().Ensure(t.Context(), id, w, nil)
		var fault *desired.Fault
		if !errors.As(err, &fault) || fault.Code != desired.CodeMissing || !strings.Contains(err.Error(), "ingress[0].set") {
			t.Errorf("Ensure: %v", err)
		}
		id, w = item(2, nil)
		nics := map[string]desired.SecGroup{id: w}
		pass(t, r, nil, nics)
		settled(t, r, nil, nics)
	})
}

func TestWatchSeesAFlush(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		sets, nics := everything()
		pass(t, r, sets, nics)
		settled(t, r, sets, nics)
		pass(t, r, sets, nics)
		for _, c := range []struct {
			hand  string
			watch func(context.Context, func(string)) error
		}{{"iptables -F", r.Chains().Watch}, {"ebtables -F", r.Chains().Watch}, {"ipset flush shs-0123456789ab-6", r.Sets().Watch}} {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			told := make(chan string, 16)
			done := make(chan error, 1)
			go func() { done <- c.watch(ctx, func(id string) { told <- id }) }()
			r.hand(t, c.hand)
			select {
			case <-told:
			case <-ctx.Done():
				t.Errorf("%s was not told", c.hand)
			}
			cancel()
			<-done
			pass(t, r, sets, nics)
		}
	})
}

// TestSecondOpinion reads the result with another library than the one that the kind uses.
func TestSecondOpinion(t *testing.T) {
	r := realRig(t)
	sets, nics := everything()
	pass(t, r, sets, nics)
	for _, proto := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		ipt, err := iptables.NewWithProtocol(proto)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range nics {
			for _, suffix := range []string{"-i", "-e"} {
				if ok, err := ipt.ChainExists("filter", w.Chain+suffix); err != nil || !ok {
					t.Errorf("chain %s%s: %v %v", w.Chain, suffix, ok, err)
				}
			}
		}
		rules, err := ipt.List("filter", "FORWARD")
		if err != nil || len(rules) < 2 || !strings.Contains(rules[1], "SHOAL-FWD") {
			t.Errorf("FORWARD: %q %v", rules, err)
		}
	}
}
