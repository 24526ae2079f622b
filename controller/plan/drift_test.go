package plan_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

// setDrift sets the policies of a host or a cluster.
func setDrift[T resource.Resource](t *testing.T, e *plantest.Example, id string, set func(T)) {
	t.Helper()
	do(t, e, "update", func(tx resource.Tx) error {
		r, err := resource.Get[T](tx, id)
		if err != nil {
			return err
		}
		r = resource.Copy(r)
		set(r)
		_, err = plan.Update(tx, r)
		return err
	})
}

type policies = map[desired.Kind]desired.Policy

func TestDriftPolicy_ComesFromHostThenCluster(t *testing.T) {
	e := plantest.NewExample(1, 3) // h1 and h2 are in c1, h3 in c2
	before := e.View()
	setDrift(t, e, e.IDs["c1"], func(c *resource.Cluster) {
		c.Drift = policies{desired.KindDomain: desired.PolicyAdopt, desired.KindDHCP: desired.PolicyHold}
	})
	setDrift(t, e, e.IDs["h2"], func(h *resource.Host) {
		h.Drift = policies{desired.KindDomain: desired.PolicyHeal, desired.KindPool: desired.PolicyHold}
	})
	after := e.View()
	want := map[string]policies{
		"h1": {desired.KindDomain: desired.PolicyAdopt, desired.KindDHCP: desired.PolicyHold},
		"h2": {desired.KindDHCP: desired.PolicyHold, desired.KindPool: desired.PolicyHold},
		"h3": nil,
	}
	for host, policy := range want {
		_, bits, err := plan.Render(after, e.IDs[host])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(policy, bits.Policy); d != "" {
			t.Errorf("%s: %s", host, d)
		}
	}
	// The publisher looks at the hosts that a change affects, and at no others.
	cluster := func(v resource.Reader) resource.Resource { return v.Get(resource.KindCluster, e.IDs["c1"]) }
	hosts, _ := plan.Affected(cluster(before), cluster(after), before, after)
	if d := cmp.Diff(map[string]struct{}{e.IDs["h1"]: {}, e.IDs["h2"]: {}}, hosts); d != "" {
		t.Error(d)
	}
	host := func(v resource.Reader) resource.Resource { return v.Get(resource.KindHost, e.IDs["h2"]) }
	if hosts, _ = plan.Affected(host(before), host(after), before, after); len(hosts) != 1 {
		t.Errorf("a host's own policies affect %v", hosts)
	}
}

func TestDriftPolicy_MustBeKnown(t *testing.T) {
	e := plantest.NewExample(1, 1)
	for _, bad := range []policies{{"nonsense": desired.PolicyHold}, {desired.KindDomain: "ignore"}} {
		err := e.Do("cluster.update", func(tx resource.Tx) error {
			c, err := resource.Get[*resource.Cluster](tx, e.IDs["c1"])
			if err != nil {
				return err
			}
			c = resource.Copy(c)
			c.Drift = bad
			_, err = plan.Update(tx, c)
			return err
		})
		if err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestAdopt(t *testing.T) {
	type found struct {
		power desired.Power
		cpus  int
	}
	for name, c := range map[string]struct {
		was    desired.Power
		found  found
		policy desired.Policy
		rev    uint64 // 0 for the published one
		want   desired.Power
		wished bool
		cpus   int    // wanted in the end; 0 for what the VM had
		note   string // why it is held
	}{
		"stopped":               {was: desired.PowerOn, found: found{desired.PowerOff, 0}, policy: desired.PolicyAdopt, want: desired.PowerOff},
		"paused":                {was: desired.PowerOn, found: found{desired.PowerPaused, 0}, policy: desired.PolicyAdopt, want: desired.PowerPaused},
		"started":               {was: desired.PowerOff, found: found{desired.PowerOn, 0}, policy: desired.PolicyAdopt, want: desired.PowerOn, wished: true},
		"held":                  {was: desired.PowerOn, found: found{desired.PowerOff, 0}, policy: desired.PolicyHold, want: desired.PowerOn},
		"healed":                {was: desired.PowerOn, found: found{desired.PowerOff, 0}, want: desired.PowerOn},
		"told of an older wish": {was: desired.PowerOn, found: found{desired.PowerOff, 0}, policy: desired.PolicyAdopt, rev: 1, want: desired.PowerOn},
		"larger":                {was: desired.PowerOn, found: found{desired.PowerOn, 7}, policy: desired.PolicyAdopt, want: desired.PowerOn, cpus: 7},
		"larger and stopped":    {was: desired.PowerOn, found: found{desired.PowerOff, 7}, policy: desired.PolicyAdopt, want: desired.PowerOff, cpus: 7},
		"larger than its host":  {was: desired.PowerOn, found: found{desired.PowerOn, 1000}, policy: desired.PolicyAdopt, want: desired.PowerOn, note: "no room for 1000 virtual CPUs"},
		"larger and held":       {was: desired.PowerOn, found: found{desired.PowerOn, 7}, policy: desired.PolicyHold, want: desired.PowerOn},
	} {
		t.Run(name, func(t *testing.T) {
			e := plantest.NewExample(1, 1)
			vm := mustVM(t, e, e.VMSpec("a"))
			if c.policy != "" {
				setDrift(t, e, e.IDs["c1"], func(x *resource.Cluster) { x.Drift = policies{desired.KindDomain: c.policy} })
			}
			settle(t, e)
			if c.was == desired.PowerOff {
				do(t, e, "vm.stop", func(tx resource.Tx) error { _, err := plan.StopVM(tx, vm.ID, plan.StopOptions{}); return err })
				settle(t, e)
			}
			ref := resource.DomainRef(vm.ID)
			var spec desired.Domain
			for _, it := range e.Items(vm.HostID) {
				if it.Ref() == ref {
					d, err := desired.DecodeSpec[desired.Domain](it)
					if err != nil {
						t.Fatal(err)
					}
					spec = d
				}
			}
			spec.Power = c.found.power
			if c.found.cpus > 0 {
				spec.CPUs = c.found.cpus
			}
			b, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			wish := vmOf(t, e, vm.ID).Wish
			e.Report(vm.HostID, ref, desired.Status{
				Rev: c.rev, Phase: desired.PhaseDrifted, Found: b, Drifts: 2, LastDrift: &desired.Drift{At: e.Now.Add(-time.Minute), What: "stopped"},
			}, desired.DomainFacts{State: desired.StateShutoff})
			report := resource.Drifts(e.View())
			if len(report) != 1 || report[0].Resource != "a" || report[0].Count != 2 || report[0].What != "stopped" || !report[0].Since.Equal(e.Now.Add(-time.Minute)) {
				t.Errorf("report %+v", report)
			}
			if report[0].Note != "" != (c.note != "") || !strings.Contains(report[0].Note, c.note) || c.note != "" && report[0].State != resource.DriftHeld {
				t.Errorf("report %+v, want it held: %s", report, c.note)
			}
			if _, err := e.Tick(); err != nil {
				t.Fatal(err)
			}
			now := vmOf(t, e, vm.ID)
			if now.Power != c.want || (now.Wish > wish) != c.wished {
				t.Errorf("power %s, want %s; wish %d, was %d", now.Power, c.want, now.Wish, wish)
			}
			if c.cpus == 0 {
				c.cpus = vm.CPUs
			}
			if now.CPUs != c.cpus {
				t.Errorf("%d CPUs, want %d", now.CPUs, c.cpus)
			}
			if changed, err := e.Tick(); err != nil || changed {
				t.Errorf("decided again: %v %v", changed, err)
			}
		})
	}
}
