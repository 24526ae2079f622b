package engine_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"shoal/desired"
)

// TestQuiet_WorldEqualsDocument throws documents, failures, delays, events and foreign changes at an engine. When they stop,
// every item is Ready or Refused, the host is what the last document says, and nothing was worked on twice at once.
func TestQuiet_WorldEqualsDocument(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Draws happen outside of the bubble's goroutines.
		type step struct {
			items   map[desired.Ref]string
			pause   time.Duration
			foreign []desired.Ref
		}
		ids := []string{"a", "b", "c", "d"}
		kinds := []desired.Kind{base, disk, rules, guest}
		steps := make([]step, rapid.IntRange(1, 8).Draw(rt, "steps"))
		for i := range steps {
			steps[i].items = map[desired.Ref]string{}
			for _, k := range kinds {
				for _, id := range ids {
					switch rapid.IntRange(0, 4).Draw(rt, fmt.Sprint(i, k, id)) {
					case 0, 1:
						steps[i].items[ref(k, id)] = rapid.SampledFrom([]string{"1", "2", "off"}).Draw(rt, "value")
					case 2:
						steps[i].foreign = append(steps[i].foreign, ref(k, id))
					}
				}
			}
			steps[i].pause = time.Duration(rapid.IntRange(0, 5000).Draw(rt, "pause")) * time.Millisecond
		}
		seed := rapid.Uint64().Draw(rt, "seed")
		failures := rapid.IntRange(0, 6).Draw(rt, "failures of 10")

		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			scripts := map[desired.Kind]*script{base: r.base, disk: r.disk, rules: r.rules.script, guest: r.guest}
			rand := &lcg{seed: seed}
			var quiet atomic.Bool
			for _, s := range scripts {
				s.put("old", "1")
				s.on(func(ctx context.Context, op, id string) error {
					if quiet.Load() {
						return nil
					}
					select {
					case <-time.After(time.Duration(rand.n(300)) * time.Millisecond):
					case <-ctx.Done():
						return ctx.Err()
					}
					if rand.n(10) < failures {
						return errors.New("scripted failure")
					}
					return nil
				})
			}
			r.start()
			var last step
			for i, st := range steps {
				last = st
				var items []desired.Item
				for rf, value := range st.items {
					var needs []desired.Ref
					if rf.Kind != base {
						for o := range st.items {
							if o.Kind == base || rf.Kind == guest && o.Kind != guest {
								needs = append(needs, o)
							}
						}
					}
					// A rev changes with the content only, as the publisher's do; here it is enough that it grows.
					items = append(items, item(t, rf.Kind, rf.ID, uint64(i+1), value, needs...))
				}
				doc := r.document(items...)
				doc.Head.Shrink = true
				r.Set(doc)
				time.Sleep(st.pause)
				for _, rf := range st.foreign {
					if rand.n(2) == 0 {
						scripts[rf.Kind].drop(rf.ID)
					} else {
						scripts[rf.Kind].put(rf.ID, "foreign")
					}
					if rand.n(2) == 0 {
						scripts[rf.Kind].event(rf.ID)
					}
				}
			}
			quiet.Store(true)
			time.Sleep(5 * time.Minute) // sweeps find what no event told
			r.settle()
			for rf := range last.items {
				if s := r.status(rf); s.Phase != desired.PhaseReady {
					rt.Errorf("%s is %s: %v", rf, s.Phase, s.Fault)
				}
			}
			if n := len(r.Statuses()); n != len(last.items) {
				rt.Errorf("%d statuses of %d items: %v", n, len(last.items), r.Statuses())
			}
			for k, s := range scripts {
				has := s.has()
				for id, v := range has {
					if last.items[ref(k, id)] != v {
						rt.Errorf("%s.%s is %q, want %q", k, id, v, last.items[ref(k, id)])
					}
				}
				for rf, v := range last.items {
					if rf.Kind == k && has[rf.ID] != v {
						rt.Errorf("%s is %q, want %q", rf, has[rf.ID], v)
					}
				}
			}
		})
	})
}

// lcg is a seeded source that scripted calls share under their kinds' own order; the bubble makes it repeatable enough.
type lcg struct {
	mu   sync.Mutex
	seed uint64
}

func (l *lcg) n(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seed = l.seed*6364136223846793005 + 1442695040888963407
	return int(l.seed>>33) % n
}
