package domain_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"shoal/agent/domain"
	"shoal/agent/engine"
	"shoal/agent/sim"
	"shoal/desired"
)

// simAgent is an agent on a model, in a bubble of synctest.
func simAgent(t *testing.T) (*agent, *sim.Libvirt) {
	b := simBed()
	return newAgent(t, b, newActs()), b.lv.(*sim.Libvirt)
}

func small(id string) desired.Domain {
	return desired.Domain{Name: "shoal-" + id, Power: desired.PowerOn, StopSeconds: 60, CPUs: 1, MemoryMiB: 16, Machine: "pc"}
}

func TestMachineThatDiesAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		id := uuid.NewString()
		want := small(id)
		starts := 0
		for range 20 {
			if _, err := a.Ensure(t.Context(), id, want, nil); err != nil {
				if code(err) != desired.CodeLibvirt || !strings.Contains(err.Error(), "ended 5 times") {
					t.Fatalf("ensure: %v", err)
				}
				break
			}
			starts++
			lv.Kill(id)
		}
		if starts != 5 {
			t.Errorf("started %d times", starts)
		}
		time.Sleep(time.Minute + time.Second)
		a.must(id, want)
	})
}

func TestDiskErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		id := uuid.NewString()
		want := small(id)
		a.must(id, want)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Watch(ctx, func(string) {}) }()
		synctest.Wait()
		lv.PauseByError(id, "enospc")
		a.wantDiff(id, want, "paused by a disk's error")

		// The storage is still full: the machine stops again as soon as it goes on.
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					lv.PauseByError(id, "enospc")
				}
			}
		}()
		_, err := a.Ensure(t.Context(), id, want, nil)
		if code(err) != desired.CodeNoSpace {
			t.Errorf("ensure: %v", err)
		}
		close(stop)
		time.Sleep(time.Second)
		if f := a.must(id, want); f.State != desired.StateRunning {
			t.Errorf("facts: %+v", f)
		}
		cancel()
		<-done
	})
}

func TestLibvirtIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		id := uuid.NewString()
		want := small(id)
		a.must(id, want)
		lv.Calls()
		lv.SetDown(true)
		if _, err := a.Observe(t.Context()); code(err) != desired.CodeLibvirt {
			t.Errorf("observe: %v", err)
		}
		if _, err := a.Ensure(t.Context(), id, want, nil); code(err) != desired.CodeLibvirt {
			t.Errorf("ensure: %v", err)
		}
		if err := a.Remove(t.Context(), id, domain.Have{}); code(err) != desired.CodeLibvirt {
			t.Errorf("remove: %v", err)
		}
		lv.SetDown(false)
		a.must(id, want)
		if calls := lv.Calls(); calls != nil {
			t.Errorf("a restart of libvirtd made the agent do %v", calls)
		}
	})
}

// After a power cut of the host everything that is wanted on is started, and a guest that had shut itself down is not.
func TestPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		on, quiet := uuid.NewString(), uuid.NewString()
		a.must(on, small(on))
		a.must(quiet, small(quiet))
		lv.GuestShutdown(quiet)
		a.wantDiff(quiet, small(quiet), "") // it has been seen
		lv.PowerCut()
		lv.SetDown(true)
		lv.SetDown(false)
		b := newAgent(t, a.bed, a.acts)
		b.wantDiff(on, small(on), "stopped")
		b.wantDiff(quiet, small(quiet), "")
		if f := b.must(on, small(on)); f.State != desired.StateRunning {
			t.Errorf("facts: %+v", f)
		}
	})
}

// A guest that obeys a stop which was called off is started again.
func TestObedienceToWhatNoLongerStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		id := uuid.NewString()
		want := small(id)
		a.must(id, want)
		lv.Deaf(true)
		off := want
		off.Power = desired.PowerOff
		if _, err := a.Ensure(t.Context(), id, off, nil); !engine.IsBusy(err) {
			t.Fatalf("stop: %v", err)
		}
		a.must(id, want)
		time.Sleep(10 * time.Second)
		lv.GuestShutdown(id)
		a.wantDiff(id, want, "stopped")
		a.must(id, want)
		// Much later it is the guest's own will.
		time.Sleep(time.Hour)
		lv.GuestShutdown(id)
		if h := a.see(id); !h.ByGuest {
			t.Error("a guest's own shutdown is not taken for one")
		}
	})
}

// A start that fails, or is cut off, is not taken for a guest that shut itself down once more.
func TestFailedStartIsNotTheGuestsWill(t *testing.T) {
	for name, off := range map[string]func(t *testing.T, a *agent, lv *sim.Libvirt, id string){
		"after a stop": func(_ *testing.T, a *agent, _ *sim.Libvirt, id string) {
			d := small(id)
			d.Power = desired.PowerOff
			a.must(id, d)
		},
		"after the guest's shutdown": func(_ *testing.T, a *agent, lv *sim.Libvirt, id string) {
			lv.GuestShutdown(id)
			a.wantDiff(id, small(id), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, lv := simAgent(t)
			id := uuid.NewString()
			a.must(id, small(id))
			off(t, a, lv, id)
			want := small(id)
			want.Wish, want.CPUs = 1, 2
			for _, why := range []error{fmt.Errorf("%w: no answer", domain.ErrUnreachable), nil} {
				lv.Fail("start", why)
				_, err := a.Ensure(t.Context(), id, want, nil)
				if (err == nil) != (why == nil) {
					t.Fatalf("ensure: %v", err)
				}
				a = newAgent(t, a.bed, a.acts)
				if why != nil && a.diff(id, want) == "" {
					t.Fatal("the start is lost")
				}
			}
			a.wantDiff(id, want, "")
			if h := a.see(id); !h.Info.Active() {
				t.Error("it does not run")
			}
		})
	}
}

func TestStopAsksAgainAndThenDestroys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lv := simAgent(t)
		id := uuid.NewString()
		want := small(id)
		a.must(id, want)
		lv.Deaf(true)
		lv.Calls()
		want.Power, want.StopSeconds = desired.PowerOff, 25
		start := time.Now()
		for {
			_, err := a.Ensure(t.Context(), id, want, nil)
			if err == nil {
				break
			}
			if !engine.IsBusy(err) {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		if took := time.Since(start).Round(time.Second); took != 25*time.Second {
			t.Errorf("took %s", took)
		}
		ask := "shutdown " + id
		if d := cmp.Diff([]string{ask, ask, ask, ask, ask, "destroy " + id}, lv.Calls()); d != "" {
			t.Errorf("calls: %s", d)
		}
	})
}

// A domain that can't be looked at is not absent.
func TestOneHangingDomain(t *testing.T) {
	a, lv := simAgent(t)
	id := uuid.NewString()
	a.must(id, small(id))
	lv.Fail("list", fmt.Errorf("%w: no answer", domain.ErrBusy))
	if a.see(id) == nil {
		t.Error("domain is absent when libvirt's list hangs")
	}
	lv.Fail("xml", fmt.Errorf("%w: no answer", domain.ErrBusy))
	h := a.see(id)
	if h == nil || h.Err == nil || !a.Counts(*h) || !strings.Contains(a.Diff(id, small(id), *h), "can't be looked at") {
		t.Errorf("domain that hangs: %+v", h)
	}
	lv.Fail("lookup", fmt.Errorf("%w: no answer", domain.ErrBusy))
	if _, err := a.Observe(t.Context()); err == nil {
		t.Error("libvirt that answers nothing counts as empty")
	}
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]desired.Code{
		"internal error: qemu unexpectedly closed the monitor: ... No space left on device":        desired.CodeNoSpace,
		"Cannot access storage file '/p/v' (as uid:0, gid:0): No such file or directory":           desired.CodeMissing,
		`Failed to get "write" lock\nIs another process using the image [/p/v]?`:                   desired.CodeInUse,
		"Failed to terminate process 7 with SIGKILL: Device or resource busy":                      desired.CodeStorageUnreachable,
		"Cannot get interface MTU on 'shb0': No such device":                                       desired.CodeMissing,
		"unsupported configuration: IDE controllers are unsupported for this QEMU or machine type": desired.CodeLibvirt,
	} {
		a, lv := simAgent(t)
		id := uuid.NewString()
		lv.Fail("start", fmt.Errorf("libvirt: %s", text))
		_, err := a.Ensure(t.Context(), id, small(id), nil)
		if code(err) != want || !strings.Contains(err.Error(), text) {
			t.Errorf("%q becomes %v, want %s", text, err, want)
		}
		lv.Fail("start", nil)
		if f := a.must(id, small(id)); f.State != desired.StateRunning {
			t.Errorf("after %q: %+v", text, f)
		}
	}
}

// An idle look does nothing, and a create is one define and one start.
func TestCalls(t *testing.T) {
	a, lv := simAgent(t)
	id := uuid.NewString()
	a.must(id, small(id))
	if d := cmp.Diff([]string{"define " + id, "start " + id}, lv.Calls()); d != "" {
		t.Errorf("create: %s", d)
	}
	a.wantDiff(id, small(id), "")
	a.must(id, small(id))
	if calls := lv.Calls(); calls != nil {
		t.Errorf("idle: %v", calls)
	}
}

// Many at once all succeed on the real libvirt, and so do their removals.
func TestManyAtOnce(t *testing.T) {
	b, n := simBed(), 50
	if inside() {
		b, n = realBed(t), 12
	}
	a := newAgent(t, b, newActs())
	ids := make([]string, n)
	each := func(f func(id string) error) {
		t.Helper()
		slots := make(chan struct{}, a.Parallel())
		var wg sync.WaitGroup
		for _, id := range ids {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				if err := f(id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	defer each(func(id string) error { return a.Remove(context.Background(), id, domain.Have{}) })
	each(func(id string) error {
		_, err := a.Ensure(t.Context(), id, small(id), nil)
		return err
	})
	all, err := a.Observe(t.Context())
	if err != nil || len(all) != n {
		t.Errorf("%d of %d are there: %v", len(all), n, err)
	}
	for id, h := range all {
		if d := a.Diff(id, small(id), h); d != "" {
			t.Errorf("%s: %s", id, d)
		}
	}
}

// TestCreateCost compares a create by the kind with the same two calls to a bare libvirt, side by side. It tells and judges
// nothing: times are not for tests.
func TestCreateCost(t *testing.T) {
	if !inside() {
		t.Skip("is run by hand: SHOAL_DOMAIN_TEST_RUN=TestCreateCost go test -run TestReal -v ./agent/domain")
	}
	b := realBed(t)
	a := newAgent(t, b, newActs())
	ctx := t.Context()
	var kind, bare []time.Duration
	for range 9 {
		id := uuid.NewString()
		start := time.Now()
		if _, err := a.Ensure(ctx, id, small(id), nil); err != nil {
			t.Fatal(err)
		}
		kind = append(kind, time.Since(start))
		text, err := b.lv.XML(ctx, id, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Remove(ctx, id, domain.Have{}); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := b.lv.Define(ctx, text); err != nil {
			t.Fatal(err)
		}
		if err := b.lv.Start(ctx, id, false); err != nil {
			t.Fatal(err)
		}
		bare = append(bare, time.Since(start))
		if err := a.Remove(ctx, id, domain.Have{}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(kind)
	slices.Sort(bare)
	t.Logf("median of %d creates: kind %s, bare libvirt %s", len(kind), kind[len(kind)/2], bare[len(bare)/2])
}
