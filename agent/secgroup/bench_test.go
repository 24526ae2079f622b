package secgroup_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"shoal/agent/host"
	"shoal/desired"
)

// recorder keeps what goes into the restore programs.
type recorder struct {
	host.Runner
	scripts []host.Command
}

func (r *recorder) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if len(c.Stdin) > 0 {
		c.Stdin = bytes.Clone(c.Stdin)
		r.scripts = append(r.scripts, c)
	}
	return r.Runner.Run(ctx, c)
}

// BenchmarkRulesFromNothing applies 1,000 rules on 100 NICs to empty tables, and then the same texts by the bare tools in the same
// tables. "ratio" is ours to theirs; "bare-ms" is theirs.
func BenchmarkRulesFromNothing(b *testing.B) {
	r := realRig(b)
	rec := &recorder{Runner: r.run}
	r.run = rec
	r.restart(b)
	nics := map[string]desired.SecGroup{}
	for n := range 100 {
		id, w := item(n+1, func(w *desired.SecGroup) {
			w.Tap, w.Chain = fmt.Sprintf("sht%x%011x", n%16, n), fmt.Sprintf("shc-%012x", n)
			for i := range 10 {
				w.Ingress = append(w.Ingress, desired.Rule{Protocol: desired.ProtoTCP, FromPort: 1000 + i, ToPort: 1000 + i, CIDR: netip.MustParsePrefix("10.0.0.0/8")})
			}
		})
		nics[id] = w
	}
	empty := func() {
		for _, tool := range []string{"iptables", "ip6tables"} {
			for _, flag := range []string{"-F", "-X"} {
				r.hand(b, tool+" "+flag)
			}
		}
		if _, err := r.Chains().Observe(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	var ours, bare time.Duration
	for b.Loop() {
		empty()
		rec.scripts = nil
		start := time.Now()
		for id, w := range nics {
			if _, err := r.Chains().Ensure(b.Context(), id, w, nil); err != nil {
				b.Fatal(err)
			}
		}
		if err := r.Chains().Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		empty()
		start = time.Now()
		for _, c := range rec.scripts {
			if _, err := (host.Machine{}).Run(b.Context(), c); err != nil {
				b.Fatal(err)
			}
		}
		bare += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
	b.ReportMetric(float64(bare.Microseconds())/1000/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000/float64(b.N), "ours-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkMemberOf10000 adds one member to a group of 10,000: everything that the kind does for it, looking included. "bare-ms" is one
// "ipset add" by hand.
func BenchmarkMemberOf10000(b *testing.B) {
	r := realRig(b)
	w := desired.AddrSet{Name: "shs-big"}
	for i := range 10000 {
		w.Addrs = append(w.Addrs, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	one := func() {
		have, err := r.Sets().ObserveOne(b.Context(), "big")
		if err != nil {
			b.Fatal(err)
		}
		if have != nil && r.Sets().Diff("big", w, *have) == "" {
			b.Fatal("nothing to do")
		}
		if _, err := r.Sets().Ensure(b.Context(), "big", w, have); err != nil {
			b.Fatal(err)
		}
		if err := r.Sets().Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	one()
	var ours, bare time.Duration
	n := 0
	for b.Loop() {
		n++
		w.Addrs = append(w.Addrs, netip.AddrFrom4([4]byte{11, byte(n >> 16), byte(n >> 8), byte(n)}))
		start := time.Now()
		one()
		ours += time.Since(start)
		start = time.Now()
		r.hand(b, fmt.Sprintf("ipset add -exist shs-big-4 11.%d.%d.%d", n>>16&255, n>>8&255, n&255))
		bare += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
	b.ReportMetric(float64(bare.Microseconds())/1000/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000/float64(b.N), "ours-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleLook is what a sweep costs when nothing has changed: 50 NICs with 20 rules each.
func BenchmarkIdleLook(b *testing.B) {
	r := realRig(b)
	nics := map[string]desired.SecGroup{}
	for n := range 50 {
		id, w := item(n+1, func(w *desired.SecGroup) {
			for i := range 20 {
				w.Ingress = append(w.Ingress, desired.Rule{Protocol: desired.ProtoTCP, FromPort: 1000 + i, ToPort: 1000 + i})
			}
		})
		nics[id] = w
	}
	pass(b, r, nil, nics)
	for b.Loop() {
		found, err := r.Chains().Observe(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for id, w := range nics {
			if d := r.Chains().Diff(id, w, found[id]); d != "" {
				b.Fatal(d)
			}
		}
	}
}
