package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"shoal/agent/engine"
	"shoal/desired"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs f in a bubble with a fake clock. A goroutine that outlives Run keeps the bubble from ending and fails the test.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newRig(t)) })
}

// chain is a guest with everything it needs.
func chain(t *testing.T, rev uint64) []desired.Item {
	return []desired.Item{
		item(t, base, "net", rev, "1"),
		item(t, disk, "d", rev, "1", ref(base, "net")),
		item(t, rules, "r", rev, "1", ref(base, "net")),
		item(t, guest, "g", rev, "1", ref(disk, "d"), ref(rules, "r")),
	}
}

func wantCalls(t *testing.T, s *script, calls ...string) {
	t.Helper()
	if d := cmp.Diff(calls, s.took(), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("calls of %s: %s", s.name, d)
	}
}

func wantPhases(t *testing.T, r *rig, rf desired.Ref, phases ...desired.Phase) {
	t.Helper()
	if d := cmp.Diff(phases, r.went(rf), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("phases of %s: %s", rf, d)
	}
}

// failing makes calls fail with err while it is set.
func failing(call string, err *box) func(context.Context, string, string) error {
	return func(_ context.Context, op, id string) error {
		if op+" "+id == call {
			return err.get()
		}
		return nil
	}
}

// hanging makes a call hang until its context ends.
func hanging(call string) func(context.Context, string, string) error {
	return func(ctx context.Context, op, id string) error {
		if op+" "+id != call {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestCreate_InTheOrderOfNeeds(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		order := &journal{}
		for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
			s.on(func(_ context.Context, op, id string) error {
				if op == "ensure" || op == "flush" {
					order.add(string(s.name) + " " + op)
					time.Sleep(10 * time.Millisecond)
				}
				return nil
			})
		}
		r.start()
		began := time.Now()
		r.set(chain(t, 1)...)
		r.settle()
		if took := time.Since(began); took != 40*time.Millisecond {
			t.Errorf("took %v: the engine adds time of its own", took)
		}
		slices.Sort(order.lines[1:3])
		if d := cmp.Diff([]string{"base ensure", "disk ensure", "rules ensure", "rules flush", "guest ensure"}, order.lines); d != "" {
			t.Error(d)
		}
		wantPhases(t, r, ref(guest, "g"), desired.PhaseWaiting, desired.PhaseWorking, desired.PhaseReady)
		s := r.status(ref(guest, "g"))
		if s.Rev != 1 || s.Cause != "req-1" || string(s.Facts) != `{"value":"1"}` || !s.Since.Equal(time.Now()) {
			t.Errorf("status %+v", s)
		}
	})
}

func TestReady_WhenItMatchesWhateverItNeeds(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.guest.put("g", "1")
		r.start()
		r.set(item(t, guest, "g", 1, "1", ref(base, "missing")))
		synctest.Wait()
		r.want(ref(guest, "g"), desired.PhaseReady, "")
		wantCalls(t, r.guest)
		// A change of it has to wait.
		r.set(item(t, guest, "g", 2, "2", ref(base, "missing")))
		synctest.Wait()
		r.want(ref(guest, "g"), desired.PhaseWaiting, desired.CodeWaiting)
		if f := r.status(ref(guest, "g")).Fault; f.Ref == nil || *f.Ref != ref(base, "missing") {
			t.Errorf("fault %+v", f)
		}
	})
}

func TestNeeds_AtTheRevisionOfTheSameDocument(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(chain(t, 1)...)
		r.settle()
		gate := make(chan struct{})
		r.rules.on(func(_ context.Context, op, _ string) error {
			if op == "flush" {
				<-gate
			}
			return nil
		})
		r.took()
		items := chain(t, 1)
		items[2] = item(t, rules, "r", 2, "2", ref(base, "net"))
		items[3] = item(t, guest, "g", 2, "2", ref(disk, "d"), ref(rules, "r"))
		r.set(items...)
		time.Sleep(time.Second)
		wantCalls(t, r.guest)
		r.want(ref(guest, "g"), desired.PhaseWaiting, desired.CodeWaiting)
		close(gate)
		r.settle()
		wantCalls(t, r.guest, "ensure g")
	})
}

func (r *rig) took() {
	for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
		s.took()
	}
}

func TestBackoff_DoublesWithJitterAndANewRevStartsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		fail := newBox(errors.New("no"))
		var at []time.Time
		r.base.on(func(_ context.Context, op, _ string) error {
			if op != "ensure" {
				return nil
			}
			at = append(at, time.Now())
			return fail.get()
		})
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		want := 250 * time.Millisecond
		for i := 1; i < len(at); i++ {
			if got := at[i].Sub(at[i-1]); got < want*8/10 || got > want*12/10 {
				t.Errorf("try %d came after %v, want %v within 20 %%", i+1, got, want)
			}
			want = min(2*want, time.Minute)
		}
		if len(at) < 15 {
			t.Errorf("%d tries in 10 minutes", len(at))
		}
		r.want(ref(base, "a"), desired.PhaseRetrying, desired.CodeInternal)
		if got := len(r.went(ref(base, "a"))); got != 2 {
			t.Errorf("%d phases, want Working and Retrying only", got)
		}
		began := time.Now()
		fail.set(nil)
		r.set(item(t, base, "a", 2, "2"))
		r.settle()
		if time.Since(began) > 0 {
			t.Errorf("new rev took %v", time.Since(began))
		}
	})
}

func TestFinal_IsRefusedUntilTheItemChanges(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		fail := newBox(engine.Final(engine.Fault(desired.CodeConflict, "rename the other", errors.New("that is not ours"))))
		r.base.on(failing("ensure a", fail))
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		r.settle()
		r.want(ref(base, "a"), desired.PhaseRefused, desired.CodeConflict)
		if f := r.status(ref(base, "a")).Fault; f.Remedy != "rename the other" || !strings.Contains(f.Message, "that is not ours") {
			t.Errorf("fault %+v", f)
		}
		time.Sleep(time.Hour)
		wantCalls(t, r.base, "ensure a")
		// A newer rev with the same content is still refused, under its number.
		same := item(t, base, "a", 2, "1")
		r.set(same)
		r.settle()
		if got := r.status(ref(base, "a")).Rev; got != 2 {
			t.Errorf("rev %d, want 2", got)
		}
		fail.set(nil)
		r.Kick(ref(base, "a"))
		synctest.Wait()
		r.want(ref(base, "a"), desired.PhaseReady, "")
	})
}

func TestRefused_WhatCanNotBeRead(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		tooNew := item(t, base, "new", 1, "1")
		tooNew.Spec = []byte(`{"value":"1","colour":"red"}`)
		r.set(tooNew, item(t, base, "bad", 1, ""), item(t, "unheard-of", "x", 1, "1"), item(t, base, "good", 1, "1"))
		r.settle()
		r.want(ref(base, "new"), desired.PhaseRefused, desired.CodeTooNew)
		r.want(ref(base, "bad"), desired.PhaseRefused, desired.CodeInvalid)
		r.want(ref("unheard-of", "x"), desired.PhaseRefused, desired.CodeTooNew)
		r.want(ref(base, "good"), desired.PhaseReady, "")
		wantCalls(t, r.base, "ensure good")
		r.set(item(t, base, "good", 1, "1"))
		r.settle()
		if got := r.Statuses(); len(got) != 1 {
			t.Errorf("statuses %v", got)
		}
	})
}

// TestOrigin_IsOnlyKept: what a document was made from has nothing done, nothing reported, and nothing wait.
func TestOrigin_IsOnlyKept(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, base, "a", 1, "1"), item(t, desired.KindOrigin, "o", 1, "1"))
		r.settle()
		wantCalls(t, r.base, "ensure a")
		for n := uint64(2); n < 4; n++ { // changed, then gone
			items := []desired.Item{item(t, base, "a", 1, "1"), item(t, desired.KindOrigin, "o", n, "2")}
			r.set(items[:4-n]...)
			r.settle()
		}
		wantCalls(t, r.base)
		if got := r.Statuses(); len(got) != 1 {
			t.Errorf("statuses %v", got)
		}
	})
}

func TestWait_WokenByTheOtherNotByTime(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		wait := newBox(engine.Wait(ref(disk, "d"), "the disk is in use"))
		r.guest.on(failing("ensure g", wait))
		r.start()
		r.set(item(t, disk, "d", 1, "1"), item(t, guest, "g", 1, "1"))
		synctest.Wait()
		r.want(ref(guest, "g"), desired.PhaseWaiting, desired.CodeWaiting)
		r.guest.took()
		time.Sleep(20 * time.Second)
		wantCalls(t, r.guest)
		wait.set(nil)
		r.set(item(t, disk, "d", 2, "2"), item(t, guest, "g", 1, "1"))
		synctest.Wait()
		r.want(ref(guest, "g"), desired.PhaseReady, "")
	})
}

func TestWait_ForAnItemThatChangedDuringTheCall(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		first := true
		r.guest.on(func(_ context.Context, op, _ string) error {
			if op == "ensure" && first {
				first = false
				time.Sleep(time.Second) // meanwhile the disk becomes Ready
				return engine.Wait(ref(disk, "d"), "the disk is not there")
			}
			return nil
		})
		r.disk.on(func(_ context.Context, op, _ string) error {
			if op == "ensure" {
				time.Sleep(100 * time.Millisecond)
			}
			return nil
		})
		r.start()
		r.set(item(t, disk, "d", 1, "1"), item(t, guest, "g", 1, "1"))
		time.Sleep(1001 * time.Millisecond)
		r.want(ref(guest, "g"), desired.PhaseReady, "")
	})
}

func TestAfter_SetsTheTimeOfTheNextTry(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var at []time.Duration
		began := time.Now()
		r.guest.on(func(_ context.Context, op, _ string) error {
			if op != "ensure" {
				return nil
			}
			at = append(at, time.Since(began))
			if len(at) < 4 {
				return engine.After(3*time.Second, errors.New("the guest shuts down"))
			}
			return nil
		})
		r.start()
		r.set(item(t, guest, "g", 1, "1"))
		r.settle()
		if d := cmp.Diff([]time.Duration{0, 3 * time.Second, 6 * time.Second, 9 * time.Second}, at); d != "" {
			t.Error(d)
		}
	})
}

func TestBusy_StaysWorkingUntilAnEventOrItsTime(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		busy := newBox(engine.Busy(3*time.Second, "the guest shuts down"))
		r.guest.on(failing("ensure g", busy))
		r.start()
		r.set(item(t, guest, "g", 1, "off"))
		time.Sleep(10 * time.Second)
		wantPhases(t, r, ref(guest, "g"), desired.PhaseWorking)
		wantCalls(t, r.guest, "ensure g", "ensure g", "ensure g", "ensure g")
		// The guest is off: no other call is needed.
		r.guest.put("g", "off")
		r.guest.event("g")
		synctest.Wait()
		wantPhases(t, r, ref(guest, "g"), desired.PhaseReady)
		wantCalls(t, r.guest)
	})
}

func TestNeed_ThatComesBackEndsTheBackoff(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		fail := newBox(errors.New("storage is gone"))
		r.base.put("pool", "1")
		r.guest.on(failing("ensure g", fail))
		r.start()
		pool, g := item(t, base, "pool", 1, "1"), item(t, guest, "g", 1, "1", ref(base, "pool"))
		r.set(pool, g)
		time.Sleep(2 * time.Minute)
		r.want(ref(guest, "g"), desired.PhaseRetrying, desired.CodeInternal)
		fail.set(nil)
		r.base.put("pool", "broken")
		r.base.event("pool")
		time.Sleep(10 * time.Millisecond)
		r.want(ref(guest, "g"), desired.PhaseReady, "")
	})
}

func TestPanic_IsAnErrorOfItsItem(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.on(func(_ context.Context, op, id string) error {
			if op == "ensure" && id == "a" {
				panic("boom")
			}
			return nil
		})
		r.start()
		r.base.put("c", "1")
		r.set(item(t, base, "a", 1, "1"), item(t, base, "b", 1, "1"), item(t, base, "c", 1, "panic"))
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		r.want(ref(base, "a"), desired.PhaseRetrying, desired.CodeInternal)
		r.want(ref(base, "b"), desired.PhaseReady, "")
		r.want(ref(base, "c"), desired.PhaseRetrying, desired.CodeInternal)
		if f := r.status(ref(base, "a")).Fault; !strings.Contains(f.Message, "boom") {
			t.Errorf("fault %+v", f)
		}
	})
}

func TestPanic_InObserveIsAFailedObservation(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.put("x", "1")
		boom := newBox(errors.New("boom"))
		r.base.on(func(_ context.Context, op, _ string) error {
			if err := boom.get(); op == "observe" && err != nil {
				panic(err)
			}
			return nil
		})
		r.start()
		r.set()
		time.Sleep(time.Second)
		if len(r.base.has()) != 1 {
			t.Error("removed without an observation")
		}
		boom.set(nil)
		r.settle()
		if len(r.base.has()) != 0 {
			t.Error("not removed")
		}
	})
}

func TestHungEnsure_BlocksItsOwnItemOnly(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.disk.on(func(ctx context.Context, op, id string) error {
			if op == "ensure" && strings.HasPrefix(id, "dead") {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		r.start()
		var items []desired.Item
		for i := range 30 { // more than there are places
			items = append(items, item(t, disk, fmt.Sprint("dead", i), 1, "1"))
		}
		items = append(items, item(t, disk, "alive", 1, "1"), item(t, guest, "g", 1, "1", ref(disk, "alive")))
		r.set(items...)
		time.Sleep(8 * time.Second) // four rounds of 2 s give all places back
		r.want(ref(guest, "g"), desired.PhaseReady, "")
		r.want(ref(disk, "dead0"), desired.PhaseWorking, "")
		// New documents go on at once.
		items = append(items, item(t, disk, "later", 2, "1"))
		r.set(items...)
		synctest.Wait()
		r.want(ref(disk, "later"), desired.PhaseReady, "")
		time.Sleep(5 * time.Minute)
		r.want(ref(disk, "dead0"), desired.PhaseRetrying, desired.CodeTimeout)
	})
}

func TestHungEnsure_ThatIgnoresItsContextIsShown(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.base.on(func(_ context.Context, op, id string) error {
			if op == "ensure" && id == "a" {
				<-gate
			}
			return nil
		})
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		time.Sleep(5*time.Minute + 4*time.Second)
		r.want(ref(base, "a"), desired.PhaseWorking, "")
		time.Sleep(2 * time.Second)
		r.want(ref(base, "a"), desired.PhaseRetrying, desired.CodeTimeout)
		time.Sleep(time.Hour)
		wantCalls(t, r.base, "ensure a")
		close(gate)
		r.settle()
		r.want(ref(base, "a"), desired.PhaseReady, "")
	})
}

func TestRun_NamesCallsThatDoNotEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.base.on(func(_ context.Context, op, _ string) error {
			if op == "ensure" {
				<-gate
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		r.set(item(t, base, "a", 1, "1"))
		synctest.Wait()
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "ensure base.a") {
			t.Errorf("Run: %v", err)
		}
		close(gate)
		if err := r.Run(t.Context()); err == nil {
			t.Error("ran twice")
		}
	})
}

func TestRun_ReportsNothingOfItsOwnEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.on(hanging("ensure a"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		r.set(item(t, base, "a", 1, "1"))
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.want(ref(base, "a"), desired.PhaseWorking, "")
	})
}

func TestProgress_IsReportedAndKeepsACallAlive(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		slow := &slowKind{newScript("slow")}
		engine.Add(r.Engine, engine.StageShared, "slow", slow)
		r.start()
		r.set(item(t, "slow", "a", 1, "1"))
		synctest.Wait()
		r.set(item(t, "slow", "a", 1, "1"), item(t, "slow", "b", 1, "1"), item(t, "slow", "c", 1, "1"))
		time.Sleep(11 * time.Minute)
		if s := r.status(ref("slow", "a")); s.Progress != 18 || s.Phase != desired.PhaseWorking {
			t.Errorf("status %+v", s)
		}
		if n := slow.count("ensure a") + slow.count("ensure b") + slow.count("ensure c"); n != 1 {
			t.Errorf("%d calls run, one may", n)
		}
		time.Sleep(49*time.Minute + time.Second)
		if s := r.status(ref("slow", "a")); s.Progress != 0 || s.Phase != desired.PhaseReady {
			t.Errorf("status %+v", s)
		}
		r.settle()
	})
}

// slowKind takes an hour for an item, one at a time, and tells how far it is.
type slowKind struct{ *script }

func (s *slowKind) Parallel() int { return 1 }

func (s *slowKind) Ensure(ctx context.Context, id string, want spec, have *thing) (thing, error) {
	s.mu.Lock()
	s.calls = append(s.calls, "ensure "+id)
	s.mu.Unlock()
	if id == "a" {
		for i := range 60 * 60 {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				return thing{}, ctx.Err()
			}
			engine.Progress(ctx, i*100/3600)
		}
	}
	s.put(id, want.Value)
	return thing(want), nil
}

func TestUnwanted_EnsureIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.on(hanging("ensure a"))
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		synctest.Wait()
		r.set()
		r.settle()
		wantPhases(t, r, ref(base, "a"), desired.PhaseWorking, "gone")
	})
}

func TestReplaced_DuringEnsure(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.base.on(func(_ context.Context, op, _ string) error {
			if op == "ensure" {
				<-gate
			}
			return nil
		})
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		synctest.Wait()
		r.set(item(t, base, "a", 2, "2"), item(t, disk, "b", 2, "1"))
		synctest.Wait()
		r.want(ref(disk, "b"), desired.PhaseReady, "")
		r.set(item(t, base, "a", 3, "3"))
		close(gate)
		r.settle()
		wantCalls(t, r.base, "ensure a", "ensure a")
		if got := r.base.has()["a"]; got != "3" {
			t.Errorf("a is %q", got)
		}
		if s := r.status(ref(base, "a")); s.Drifts != 0 || s.Rev != 3 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestSet_OlderGenerationIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.gen = 5
		r.set(item(t, base, "a", 6, "1"))
		r.settle()
		r.Set(document(3))
		synctest.Wait()
		r.want(ref(base, "a"), desired.PhaseReady, "")
	})
}

func TestSettled_EndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Settled(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestIdle_NothingIsCalledOrReportedBetweenSweeps(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(chain(t, 1)...)
		r.settle()
		for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
			s.mu.Lock()
			s.calls = nil
			s.mu.Unlock()
		}
		r.went(ref(guest, "g"))
		time.Sleep(time.Hour)
		for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
			if n := s.count("observe "); n < 50 || n > 75 {
				t.Errorf("%s was observed %d times in an hour", s.name, n)
			}
			wantCalls(t, s)
		}
		wantPhases(t, r, ref(guest, "g"))
	})
}

func TestEvents_AStormIsBoundedAndSeen(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		for _, s := range []*script{r.base, r.guest} {
			s.on(func(_ context.Context, op, _ string) error {
				if op == "observe" || op == "look" {
					time.Sleep(10 * time.Millisecond)
				}
				return nil
			})
		}
		r.start()
		r.set(item(t, base, "a", 1, "1"), item(t, guest, "g", 1, "1"))
		r.settle()
		time.Sleep(time.Second)
		before := []int{r.base.count("observe "), r.guest.count("look g")}
		for range 10_000 {
			r.base.event("a")
			r.guest.event("g")
			time.Sleep(time.Millisecond)
		}
		r.base.put("a", "foreign")
		r.base.event("a")
		for i, n := range []int{r.base.count("observe "), r.guest.count("look g")} {
			if n -= before[i]; n < 20 || n > 120 {
				t.Errorf("%d observations of 10 ms in a storm of 10 s", n)
			}
		}
		time.Sleep(time.Second)
		if got := r.base.has()["a"]; got != "1" {
			t.Errorf("a is %q", got)
		}
	})
}

func TestWatch_IsStartedAnewAndWhatItMissedIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		w := &deafKind{script: newScript("deaf")}
		engine.Add(r.Engine, engine.StageBase, "deaf", w)
		r.start()
		r.set(item(t, "deaf", "a", 1, "1"))
		r.settle()
		w.put("a", "foreign")
		time.Sleep(time.Second)
		if got := w.has()["a"]; got != "1" {
			t.Errorf("a is %q", got)
		}
	})
}

// deafKind has a Watch that fails.
type deafKind struct{ *script }

func (*deafKind) Watch(context.Context, func(string)) error { return errors.New("connection lost") }

func TestAdd_MistakesPanic(t *testing.T) {
	e := engine.New(engine.Config{Log: zerolog.Nop()})
	engine.Add(e, engine.StageBase, base, newScript(base))
	for name, f := range map[string]func(){
		"twice": func() { engine.Add(e, engine.StageBase, base, newScript(base)) },
		"late": func() {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_ = e.Run(ctx)
			engine.Add(e, engine.StageBase, disk, newScript(disk))
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
