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

	"shoal/agent/engine"
	"shoal/desired"
)

func TestRemove_NothingWithoutADocument(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.put("a", "1")
		r.guest.put("g", "1")
		r.start()
		r.guest.event("g")
		time.Sleep(time.Hour)
		wantCalls(t, r.base)
		wantCalls(t, r.guest)
		if got := r.Statuses(); len(got) != 0 {
			t.Errorf("statuses %v", got)
		}
		r.set()
		r.settle()
		if len(r.base.has())+len(r.guest.has()) != 0 {
			t.Error("an empty document removes everything")
		}
	})
}

func TestObserve_AnErrorRemovesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		fail := newBox(errors.New("libvirt is gone"))
		for _, s := range []*script{r.base, r.guest} {
			s.put("a", "1")
			s.on(func(_ context.Context, op, _ string) error {
				if op == "observe" || op == "look" {
					return fail.get()
				}
				return nil
			})
		}
		r.start()
		r.set(item(t, base, "b", 1, "1"), item(t, guest, "g", 1, "1"))
		time.Sleep(time.Hour)
		wantCalls(t, r.base)
		wantCalls(t, r.guest)
		r.want(ref(base, "b"), desired.PhaseRetrying, desired.CodeInternal)
		r.want(ref(guest, "g"), desired.PhaseRetrying, desired.CodeInternal)
		fail.set(nil)
		r.settle()
		if d := cmp.Diff(map[string]string{"b": "1"}, r.base.has()); d != "" {
			t.Error(d)
		}
	})
}

func TestObserve_ThatFailsMakesReadyDoubtful(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		fail := newBox(nil)
		r.base.on(failing("observe ", fail))
		r.guest.on(failing("observe ", fail))
		r.start()
		r.set(item(t, base, "a", 1, "1"), item(t, guest, "g", 1, "1"))
		r.settle()
		fail.set(errors.New("no answer"))
		time.Sleep(2 * time.Minute)
		r.want(ref(base, "a"), desired.PhaseRetrying, desired.CodeInternal)
		r.want(ref(guest, "g"), desired.PhaseReady, "") // looked at alone
		// New work goes on meanwhile, and a foreign change of what can be looked at alone is healed.
		r.guest.drop("g")
		r.set(item(t, base, "a", 1, "1"), item(t, base, "b", 2, "1"), item(t, guest, "g", 1, "1"))
		time.Sleep(3 * time.Minute)
		r.want(ref(base, "b"), desired.PhaseReady, "")
		if len(r.guest.has()) != 1 {
			t.Error("not healed")
		}
		fail.set(nil)
		r.settle()
		if s := r.status(ref(base, "a")); s.Phase != desired.PhaseReady || s.Drifts != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestHungObserve_BlocksNoOtherKindAndFindsNothing(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprint("ignores its context ", deaf), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.base.put("old", "1")
				gate := make(chan struct{})
				r.base.on(func(ctx context.Context, op, _ string) error {
					if op != "observe" {
						return nil
					}
					if deaf {
						<-gate
						return nil
					}
					select {
					case <-gate:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				r.start()
				r.set(item(t, disk, "d", 1, "1"), item(t, base, "a", 1, "1"))
				synctest.Wait()
				r.want(ref(disk, "d"), desired.PhaseReady, "")
				time.Sleep(10 * time.Minute)
				r.want(ref(base, "a"), desired.PhaseRetrying, desired.CodeTimeout)
				wantCalls(t, r.base)
				close(gate)
				r.settle()
				if d := cmp.Diff(map[string]string{"a": "1"}, r.base.has()); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

func TestHungStorage_StopsItsOwnItemsOnly(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		// Observe hangs as a whole, looking at an item only for the dead one.
		r.disk.on(func(ctx context.Context, op, id string) error {
			if op == "observe" || id == "dead" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		r.disk.put("alive", "1")
		r.start()
		r.set(item(t, disk, "dead", 1, "1"), item(t, disk, "alive", 1, "2"), item(t, guest, "g", 1, "1", ref(disk, "alive")))
		time.Sleep(time.Minute)
		r.want(ref(guest, "g"), desired.PhaseReady, "")
		time.Sleep(time.Minute)
		r.want(ref(disk, "dead"), desired.PhaseRetrying, desired.CodeTimeout)
	})
}

func TestDrift_IsHealedAtOnceAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, guest, "g", 1, "1"), item(t, base, "a", 1, "1"))
		r.settle()
		for i := range 20 {
			r.guest.drop("g")
			r.guest.event("g")
			r.base.put("a", "foreign")
			r.base.event("")
			began := time.Now()
			for r.guest.has()["g"] != "1" || r.base.has()["a"] != "1" {
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(began); took > 5*time.Second || i < 5 && took > 10*time.Millisecond {
				t.Errorf("heal %d took %v", i, took)
			}
		}
		r.settle()
		s := r.status(ref(guest, "g"))
		if s.Drifts != 20 || s.LastDrift == nil || s.LastDrift.What != "missing" || s.Phase != desired.PhaseReady {
			t.Errorf("status %+v", s)
		}
		if s := r.status(ref(base, "a")); s.LastDrift == nil || s.LastDrift.What != "value is foreign, not 1" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestDrift_WithoutAnEventIsFoundByTheSweep(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, rules, "r", 1, "1"))
		r.settle()
		r.rules.drop("r")
		time.Sleep(73 * time.Second)
		if len(r.rules.has()) != 1 {
			t.Error("not healed after a sweep")
		}
	})
}

func TestDrift_ThatComesBackForEverDoesNotSpin(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.guest.on(func(_ context.Context, op, id string) error {
			switch op {
			case "look":
				r.guest.put(id, "foreign")
			case "ensure":
				r.guest.event(id) // its own call makes an event, as libvirt does
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		r.start()
		r.set(item(t, guest, "g", 1, "1"))
		for range 600 {
			r.guest.event("g")
			time.Sleep(100 * time.Millisecond)
		}
		if n := r.guest.count("ensure g"); n < 20 || n > 45 {
			t.Errorf("%d heals in a minute", n)
		}
	})
}

func TestDrift_HoldAndAdoptTouchNothing(t *testing.T) {
	for policy, code := range map[desired.Policy]desired.Code{desired.PolicyHold: desired.CodeHeld, desired.PolicyAdopt: desired.CodeHeld} {
		t.Run(string(policy), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.start()
				set := func(rev uint64, value string, p desired.Policy) {
					doc := r.document(item(t, guest, "g", rev, value))
					doc.Head.Policy = map[desired.Kind]desired.Policy{guest: p}
					r.Set(doc)
					r.settle()
				}
				set(1, "1", policy)
				r.guest.put("g", "foreign")
				r.guest.event("g")
				time.Sleep(10 * time.Minute)
				wantCalls(t, r.guest, "ensure g")
				r.want(ref(guest, "g"), desired.PhaseDrifted, code)
				s := r.status(ref(guest, "g"))
				if string(s.Facts) != `{"value":"foreign"}` || s.Drifts != 1 || s.LastDrift.What != "value is foreign, not 1" {
					t.Errorf("status %+v", s)
				}
				// It may come back by itself, and go again.
				r.guest.put("g", "1")
				r.guest.event("g")
				time.Sleep(time.Second)
				r.want(ref(guest, "g"), desired.PhaseReady, "")
				r.guest.put("g", "foreign")
				r.guest.event("g")
				time.Sleep(time.Second)
				r.want(ref(guest, "g"), desired.PhaseDrifted, code)
				// A new content is a new order.
				set(2, "2", policy)
				wantCalls(t, r.guest, "ensure g")
				r.guest.put("g", "foreign")
				r.guest.event("g")
				time.Sleep(time.Second)
				// And so is another policy.
				set(2, "2", desired.PolicyHeal)
				wantCalls(t, r.guest, "ensure g")
				r.want(ref(guest, "g"), desired.PhaseReady, "")
			})
		})
	}
}

// lateKind looks, and answers a second later; what it ensures takes a second, too.
type lateKind struct{ *script }

func (l *lateKind) Observe(ctx context.Context) (map[string]thing, error) {
	found, err := l.script.Observe(ctx)
	time.Sleep(time.Second)
	return found, err
}

func (l *lateKind) Ensure(ctx context.Context, id string, want spec, have *thing) (thing, error) {
	h, err := l.script.Ensure(ctx, id, want, have)
	if want.Value == "slow" {
		time.Sleep(time.Second)
	}
	return h, err
}

func TestObserve_OlderThanACallIsNotBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		late := &lateKind{newScript("late")}
		engine.Add(r.Engine, engine.StageBase, "late", late)
		r.start()
		r.set(item(t, "late", "a", 1, "1"), item(t, "late", "b", 1, "1"))
		r.settle()
		time.Sleep(5 * time.Second)
		late.event("")
		time.Sleep(500 * time.Millisecond) // it has looked and not answered
		r.set(item(t, "late", "a", 2, "2"))
		time.Sleep(5 * time.Second)
		r.settle()
		if s := r.status(ref("late", "a")); s.Drifts != 0 || s.Phase != desired.PhaseReady {
			t.Errorf("status %+v", s)
		}
		if n := late.count("remove b"); n != 1 {
			t.Errorf("b was removed %d times", n)
		}
		wantPhases(t, r, ref("late", "b"), desired.PhaseWorking, desired.PhaseReady, desired.PhaseRemoving, "gone")
	})
}

func TestDrift_DuringEnsureIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		late := &lateKind{newScript("late")}
		engine.Add(r.Engine, engine.StageBase, "late", late)
		r.start()
		time.Sleep(5 * time.Second)
		r.set(item(t, "late", "a", 1, "slow"))
		time.Sleep(500 * time.Millisecond)
		late.put("a", "foreign") // the call has done its work and not returned
		late.event("")
		time.Sleep(10 * time.Second)
		if got := late.has()["a"]; got != "slow" {
			t.Errorf("a is %q", got)
		}
		if s := r.status(ref("late", "a")); s.Drifts != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestEnsure_ThatLeavesADifferenceHasFailed(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		liar := &liarKind{newScript("liar")}
		engine.Add(r.Engine, engine.StageBase, "liar", liar)
		r.start()
		r.set(item(t, "liar", "a", 1, "1"))
		time.Sleep(time.Minute)
		r.want(ref("liar", "a"), desired.PhaseRetrying, desired.CodeInternal)
		if n := len(liar.took()); n > 10 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}

// liarKind does nothing and says so.
type liarKind struct{ *script }

func (l *liarKind) Ensure(ctx context.Context, id string, _ spec, _ *thing) (thing, error) {
	leave, err := l.enter(ctx, "ensure", id)
	defer leave()
	return thing{"0"}, err
}

func TestRemove_StagesDownwards(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint("restarted ", restarted), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				order := &journal{}
				for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
					s.on(func(_ context.Context, op, id string) error {
						if op == "remove" {
							order.add(string(s.name))
							time.Sleep(time.Second)
						}
						return nil
					})
				}
				if restarted {
					r.base.put("net", "1")
					r.disk.put("d", "1")
					r.rules.put("r", "1")
					r.guest.put("g", "1")
				}
				r.start()
				if !restarted {
					r.set(chain(t, 1)...)
					r.settle()
				}
				r.set()
				synctest.Wait()
				r.want(ref(base, "net"), desired.PhaseRemoving, desired.CodeWaiting)
				r.settle()
				slices.Sort(order.lines[1:3])
				if d := cmp.Diff([]string{"guest", "disk", "rules", "base"}, order.lines); d != "" {
					t.Error(d)
				}
				if got := r.Statuses(); len(got) != 0 {
					t.Errorf("statuses %v", got)
				}
				wantPhases(t, r, ref(guest, "g"), slices.DeleteFunc([]desired.Phase{
					desired.PhaseWaiting, desired.PhaseWorking, desired.PhaseReady, desired.PhaseRemoving, "gone",
				}, func(p desired.Phase) bool { return restarted && p != desired.PhaseRemoving && p != "gone" })...)
			})
		})
	}
}

func TestRemove_WaitsForTheFailingRemovalOfItsUser(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(append(chain(t, 1), item(t, base, "other", 1, "1"))...)
		r.settle()
		fail := newBox(errors.New("device is busy"))
		r.guest.on(failing("remove g", fail))
		r.set()
		time.Sleep(time.Minute)
		r.want(ref(guest, "g"), desired.PhaseRemoving, desired.CodeInternal)
		r.want(ref(disk, "d"), desired.PhaseRemoving, desired.CodeWaiting)
		if d := cmp.Diff(map[string]string{"net": "1"}, r.base.has()); d != "" {
			t.Errorf("what the guest does not use must go: %s", d)
		}
		fail.set(nil)
		r.settle()
	})
}

func TestRemove_WaitsUntilAWantedUserLetsGo(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(chain(t, 1)...)
		r.settle()
		// The guest loses its disk, but fails to detach it.
		fail := newBox(errors.New("the guest does not answer"))
		r.guest.on(failing("ensure g", fail))
		items := slices.DeleteFunc(chain(t, 1), func(it desired.Item) bool { return it.Kind == disk || it.Kind == guest })
		items = append(items, item(t, guest, "g", 2, "2", ref(rules, "r")))
		r.set(items...)
		time.Sleep(time.Minute)
		r.want(ref(disk, "d"), desired.PhaseRemoving, desired.CodeWaiting)
		if f := r.status(ref(disk, "d")).Fault; f.Ref == nil || *f.Ref != ref(guest, "g") {
			t.Errorf("fault %+v", f)
		}
		fail.set(nil)
		r.settle()
		if len(r.disk.has()) != 0 {
			t.Error("disk is still there")
		}
	})
}

func TestRemove_BreaksTheRingOfANewItemThatNeedsAnOldOnesPlace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, base, "old", 1, "1"), item(t, disk, "d", 1, "1"), item(t, guest, "g", 1, "1", ref(base, "old"), ref(disk, "d")))
		r.settle()
		// The new network can't be while the old one has its number; the guest waits for the new one and uses the old one.
		r.base.on(func(_ context.Context, op, id string) error {
			if _, ok := r.base.has()["old"]; ok && op == "ensure" && id == "new" {
				return errors.New("number is taken")
			}
			return nil
		})
		r.disk.on(func(_ context.Context, op, _ string) error {
			if op == "remove" && r.guest.has()["g"] != "2" {
				t.Error("the disk is of another kind: it must stay until the guest lets go")
			}
			return nil
		})
		r.set(item(t, base, "new", 2, "1"), item(t, guest, "g", 2, "2", ref(base, "new")))
		began := time.Now()
		r.settle()
		if time.Since(began) > 0 {
			t.Errorf("took %v: a removal has to wake what it was in the way of", time.Since(began))
		}
	})
}

func TestRemove_AfterARestartAFailingItemBlocksNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.base.put("net", "1")
		r.guest.put("g", "1")
		fail := newBox(errors.New("no"))
		r.guest.on(failing("ensure g", fail))
		r.start()
		r.set(item(t, guest, "g", 1, "2"))
		time.Sleep(time.Second)
		r.want(ref(guest, "g"), desired.PhaseRetrying, desired.CodeInternal)
		if len(r.base.has()) != 0 {
			t.Error("net is still there")
		}
	})
}

func TestRemove_WantedAgainDuringRemoval(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.set(item(t, base, "a", 1, "1"))
		r.settle()
		gate := make(chan struct{})
		r.base.on(func(_ context.Context, op, _ string) error {
			if op == "remove" {
				<-gate
			}
			return nil
		})
		r.set()
		synctest.Wait()
		r.set(item(t, base, "a", 3, "1"))
		close(gate)
		r.settle()
		wantCalls(t, r.base, "ensure a", "remove a", "ensure a")
		r.want(ref(base, "a"), desired.PhaseReady, "")
	})
}

func TestRemove_KeptByItsKindIsNotShownAgain(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		k := &keeperKind{newScript("keeper")}
		engine.Add(r.Engine, engine.StageItem, "keeper", k)
		r.start()
		r.set(item(t, "keeper", "a", 1, "1"))
		r.settle()
		r.set()
		time.Sleep(10 * time.Minute)
		wantPhases(t, r, ref("keeper", "a"), desired.PhaseWorking, desired.PhaseReady, desired.PhaseRemoving, "gone")
		r.set(item(t, "keeper", "a", 9, "1"))
		r.settle()
		wantPhases(t, r, ref("keeper", "a"), desired.PhaseWorking, desired.PhaseReady)
	})
}

// keeperKind keeps its things, as volumes do.
type keeperKind struct{ *script }

func (*keeperKind) Remove(context.Context, string, thing) error { return nil }

func TestGuard(t *testing.T) {
	for name, tt := range map[string]struct {
		running, off, gone int
		shrink, held       bool
	}{
		"3 of 3 pass":                      {running: 3, gone: 3},
		"4 of 4 are held":                  {running: 4, gone: 4, held: true},
		"4 of 20 pass":                     {running: 20, gone: 4},
		"5 of 20 are held":                 {running: 20, gone: 5, held: true},
		"5 of 20 pass with Shrink":         {running: 20, gone: 5, shrink: true},
		"20 that don't count pass":         {running: 1, off: 20, gone: 0},
		"4 of 4 are held, the off with it": {running: 4, off: 2, gone: 4, held: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, restarted := range []bool{false, true} {
				bubble(t, func(t *testing.T, r *rig) {
					var all, stay []desired.Item
					for i := range tt.running {
						it := item(t, guest, fmt.Sprint("on", i), 1, "1")
						all = append(all, it)
						r.guest.put(it.ID, "1")
						if i >= tt.gone {
							stay = append(stay, it)
						}
					}
					for i := range tt.off {
						it := item(t, guest, fmt.Sprint("off", i), 1, "off")
						all = append(all, it)
						r.guest.put(it.ID, "off")
					}
					r.start()
					if !restarted {
						r.set(all...)
						r.settle()
					}
					doc := r.document(append(stay, item(t, disk, "new", 2, "1"))...)
					doc.Head.Shrink = tt.shrink
					r.Set(doc)
					r.settle()
					r.want(ref(disk, "new"), desired.PhaseReady, "") // the rest goes on
					want := len(stay)
					if tt.held {
						want = len(all)
						r.want(ref(guest, "on0"), desired.PhaseRemoving, desired.CodeHeld)
					}
					if got := len(r.guest.has()); got != want {
						t.Fatalf("%d guests are left, want %d", got, want)
					}
					if !tt.held {
						return
					}
					// Held stays held, even if fewer run later; confirmed it goes.
					r.guest.put("on0", "off")
					r.guest.event("on0")
					time.Sleep(time.Hour)
					if got := len(r.guest.has()); got != want {
						t.Errorf("%d guests are left, want %d", got, want)
					}
					doc = r.document(append(stay, item(t, disk, "new", 2, "1"))...)
					doc.Head.Shrink = true
					r.Set(doc)
					r.settle()
					if got := len(r.guest.has()); got != len(stay) {
						t.Errorf("%d guests are left, want %d", got, len(stay))
					}
				})
			}
		})
	}
}

func TestGuard_HeldGuestsKeepWhatTheyUse(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		var items []desired.Item
		items = append(items, item(t, base, "net", 1, "1"))
		for i := range 5 {
			items = append(items, item(t, guest, fmt.Sprint(i), 1, "1", ref(base, "net")))
		}
		r.set(items...)
		r.settle()
		r.set()
		time.Sleep(time.Hour)
		if len(r.base.has()) != 1 || len(r.guest.has()) != 5 {
			t.Error("removed something that held guests use")
		}
		r.want(ref(base, "net"), desired.PhaseRemoving, desired.CodeWaiting)
		// The document was wrong; all is well again without a call.
		r.took()
		r.set(items...)
		r.settle()
		wantCalls(t, r.guest)
	})
}

func TestFlush_OneForAllThatIsDirty(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.rules.put("old", "1")
		r.start()
		var items []desired.Item
		for i := range 20 {
			items = append(items, item(t, rules, fmt.Sprint("r", i), 1, "1"))
		}
		r.set(items...)
		r.settle()
		flushes := slices.DeleteFunc(r.rules.took(), func(c string) bool { return !strings.HasPrefix(c, "flush") })
		if len(flushes) != 1 {
			t.Errorf("flushes: %v", flushes)
		}
		if got := r.rules.has(); len(got) != 20 || got["old"] != "" {
			t.Errorf("rules %v", got)
		}
	})
}

func TestFlush_ReadyAndGoneOnlyAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.rules.put("old", "1")
		gate := make(chan struct{})
		r.rules.on(func(_ context.Context, op, _ string) error {
			if op == "flush" {
				<-gate
			}
			return nil
		})
		r.start()
		r.set(item(t, rules, "a", 1, "1"))
		time.Sleep(time.Second)
		r.want(ref(rules, "a"), desired.PhaseWorking, "")
		r.want(ref(rules, "old"), desired.PhaseRemoving, "")
		// What comes meanwhile goes with the next.
		r.set(item(t, rules, "a", 1, "1"), item(t, rules, "b", 2, "1"))
		time.Sleep(time.Second)
		if n := r.rules.count("ensure b"); n != 0 {
			t.Error("collected while a flush ran")
		}
		close(gate)
		r.settle()
		if d := cmp.Diff(map[string]string{"a": "1", "b": "1"}, r.rules.has()); d != "" {
			t.Error(d)
		}
	})
}

func TestFlush_OneBadItemFailsTheOthersOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.rules.on(func(_ context.Context, op, ids string) error {
			if op == "flush" && strings.Contains(ids, "bad") {
				// All are due again at the same moment.
				return engine.After(100*time.Millisecond, errors.New("line 3: no such chain"))
			}
			return nil
		})
		r.start()
		items := []desired.Item{item(t, rules, "bad", 1, "1")}
		for i := range 20 {
			items = append(items, item(t, rules, fmt.Sprint("r", i), 1, "1"))
		}
		r.set(items...)
		synctest.Wait()
		r.want(ref(rules, "r3"), desired.PhaseRetrying, desired.CodeInternal)
		time.Sleep(time.Second)
		for i := range 20 {
			r.want(ref(rules, fmt.Sprint("r", i)), desired.PhaseReady, "")
		}
		r.want(ref(rules, "bad"), desired.PhaseRetrying, desired.CodeInternal)
		flushes := 0
		for _, c := range r.rules.took() {
			if !strings.HasPrefix(c, "flush") {
				continue
			}
			if flushes++; flushes > 1 && strings.Contains(strings.TrimPrefix(c, "flush "), " ") {
				t.Errorf("%s: after a failure each has to be tried alone", c)
			}
		}
	})
}

func TestFlush_HungCollectingHoldsUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.rules.on(hanging("ensure hung"))
		r.start()
		r.set(item(t, rules, "hung", 1, "1"), item(t, rules, "a", 1, "1"))
		time.Sleep(3 * time.Second)
		r.want(ref(rules, "a"), desired.PhaseReady, "")
	})
}
