package engine_test

import (
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/desired"
)

// notes is a memory that outlives engines.
type notes struct {
	mu       sync.Mutex
	marks    map[desired.Ref]engine.Mark
	kept     int
	rebooted bool
}

func (n *notes) Recall() (map[desired.Ref]engine.Mark, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.marks), n.rebooted
}

func (n *notes) Keep(marks map[desired.Ref]engine.Mark) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks, n.kept = marks, n.kept+1
}

// adopting is a kind that can say in a spec what it found, unless that is "strange".
type adopting struct{ one }

func (adopting) Adopt(_ string, _ spec, have thing) (spec, bool) {
	return spec(have), have.Value != "strange"
}

// after is a rig with the memory and the host of an earlier one: the next agent's.
func (r *rig) after(t *testing.T, n *notes) *rig {
	t.Helper()
	next := newRig(t)
	next.Engine = engine.New(engine.Config{Reporter: next, Log: zerolog.Nop(), Memory: n})
	engine.Add(next.Engine, engine.StageDomain, guest, adopting{one{next.guest}})
	if r != nil {
		for id, value := range r.guest.has() {
			next.guest.put(id, value)
		}
		next.gen = r.gen
	}
	return next
}

func (r *rig) hold(p desired.Policy, items ...desired.Item) {
	r.t.Helper()
	doc := r.document(items...)
	doc.Head.Policy = map[desired.Kind]desired.Policy{guest: p}
	r.Set(doc)
	r.settle()
}

func TestDrift_HeldIsHeldByTheNextAgent(t *testing.T) {
	for name, c := range map[string]struct {
		// before is what is there when the first agent ends, seen by it or not; then what the second one finds.
		before, then string
		seen         bool
		rebooted     bool
		phase        desired.Phase
		code         desired.Code
	}{
		"held":                                {before: "foreign", then: "foreign", seen: true, phase: desired.PhaseDrifted, code: desired.CodeHeld},
		"held, and changed again":             {before: "foreign", then: "other", seen: true, phase: desired.PhaseDrifted, code: desired.CodeHeld},
		"held, and put right":                 {before: "foreign", then: "1", seen: true, phase: desired.PhaseReady},
		"changed while no agent ran":          {before: "1", then: "foreign", phase: desired.PhaseDrifted, code: desired.CodeHeld},
		"held over a start of the machine":    {before: "foreign", then: "foreign", seen: true, rebooted: true, phase: desired.PhaseDrifted, code: desired.CodeHeld},
		"taken away by a machine's start":     {before: "1", then: "", rebooted: true, phase: desired.PhaseReady},
		"held, taken away by a machine start": {before: "foreign", then: "", seen: true, rebooted: true, phase: desired.PhaseReady},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, _ *rig) {
				n := &notes{}
				r := (*rig)(nil).after(t, n)
				r.start()
				it := item(t, guest, "g", 1, "1")
				r.hold(desired.PolicyHold, it)
				if c.seen {
					r.guest.put("g", c.before)
					r.guest.event("g")
					time.Sleep(time.Second)
				}
				n.rebooted = c.rebooted
				next := r.after(t, n)
				if next.guest.drop("g"); c.then != "" {
					next.guest.put("g", c.then)
				}
				next.start()
				next.hold(desired.PolicyHold, it)
				next.want(ref(guest, "g"), c.phase, c.code)
				if c.phase == desired.PhaseDrifted {
					wantCalls(t, next.guest)
				}
			})
		})
	}
}

func TestDrift_MarksAreKeptForWhatIsNotHealedOnly(t *testing.T) {
	bubble(t, func(t *testing.T, _ *rig) {
		n := &notes{}
		r := (*rig)(nil).after(t, n)
		r.start()
		a, b := item(t, guest, "a", 1, "1"), item(t, guest, "b", 1, "1")
		r.hold(desired.PolicyHeal, a, b)
		if n.kept != 0 {
			t.Errorf("kept %d times although everything is healed", n.kept)
		}
		r.hold(desired.PolicyHold, a, b)
		want := map[desired.Ref]engine.Mark{ref(guest, "a"): {Rev: 1}, ref(guest, "b"): {Rev: 1}}
		if d := cmp.Diff(want, n.marks); d != "" {
			t.Error(d)
		}
		kept := n.kept
		time.Sleep(10 * time.Minute) // sweeps change nothing
		if n.kept != kept {
			t.Errorf("kept %d times more without a change", n.kept-kept)
		}
		r.hold(desired.PolicyHold, a)
		if d := cmp.Diff(map[desired.Ref]engine.Mark{ref(guest, "a"): {Rev: 1}}, n.marks); d != "" {
			t.Error(d)
		}
		r.hold(desired.PolicyHeal, a)
		if len(n.marks) != 0 {
			t.Errorf("kept %v", n.marks)
		}
	})
}

func TestDrift_AdoptSaysWhatWouldFit(t *testing.T) {
	bubble(t, func(t *testing.T, _ *rig) {
		r := (*rig)(nil).after(t, &notes{})
		r.start()
		it := item(t, guest, "g", 1, "1")
		r.hold(desired.PolicyAdopt, it)
		r.guest.took()
		change := func(value string) desired.Status {
			r.guest.put("g", value)
			r.guest.event("g")
			time.Sleep(time.Second)
			return r.status(ref(guest, "g"))
		}
		s := change("2")
		if s.Phase != desired.PhaseDrifted || s.Fault != nil || string(s.Found) != `{"value":"2"}` {
			t.Errorf("status %+v", s)
		}
		s = change("strange")
		if s.Phase != desired.PhaseDrifted || s.Fault == nil || s.Fault.Code != desired.CodeHeld || s.Found != nil {
			t.Errorf("status %+v", s)
		}
		change("2")
		// What the controller makes of it is what is there.
		r.hold(desired.PolicyAdopt, item(t, guest, "g", 2, "2"))
		r.want(ref(guest, "g"), desired.PhaseReady, "")
		wantCalls(t, r.guest)
		if s := r.status(ref(guest, "g")); s.Found != nil {
			t.Errorf("status %+v", s)
		}
	})
}

func TestStatus_BeganIsWhenTheWorkWasTakenUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, guest, "g", 1, "1"))
		r.settle()
		time.Sleep(time.Minute)
		began := time.Now()
		r.set(item(t, guest, "g", 2, "2"))
		r.settle()
		if s := r.status(ref(guest, "g")); !s.Began.Equal(began) || s.Since.Before(began) {
			t.Errorf("began %s, not %s; ready since %s", s.Began, began, s.Since)
		}
		time.Sleep(time.Minute)
		found := time.Now()
		r.guest.put("g", "foreign")
		r.guest.event("g")
		r.settle()
		if s := r.status(ref(guest, "g")); s.Began.Before(found) || s.Drifts != 1 {
			t.Errorf("status %+v", s)
		}
	})
}
