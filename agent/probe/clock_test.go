package probe

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"shoal/desired"
)

// TestClock: the host's clock is compared when there is a connection, at once when somebody sets it, and told when something is new.
func TestClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var (
			mu        sync.Mutex
			set, late time.Duration // by how much the host's clock was set, how long an answer takes
			away      = true
			asked     int
			told      []desired.Clock
		)
		start := time.Now()
		c := &Clock{
			Log: zerolog.Nop(),
			now: func() reading {
				mu.Lock()
				defer mu.Unlock()
				return reading{wall: time.Now().Add(set).Round(0), ran: time.Since(start)}
			},
			Ask: func(context.Context) (time.Time, error) {
				mu.Lock()
				asked++
				none, wait := away, late
				mu.Unlock()
				if none {
					return time.Time{}, errors.New("not connected")
				}
				now := time.Now().Add(wait / 2)
				time.Sleep(wait)
				return now, nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- c.Run(ctx, func(f desired.Clock) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, f)
			})
		}()
		change := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		after := func(what string, d time.Duration, want ...desired.Clock) {
			t.Helper()
			change(func() { told, asked = nil, 0 })
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(told) != len(want) {
				t.Fatalf("%s: told %v, want %v", what, told, want)
			}
			for i, w := range want {
				if told[i] != w {
					t.Errorf("%s: told %v, want %v", what, told, want)
				}
			}
		}
		after("no connection", time.Minute)
		change(func() { away, late = false, 20*time.Millisecond })
		after("connected", time.Minute, desired.Clock{OffsetMS: 0, ErrorMS: 10})
		after("all is well", time.Hour)
		change(func() {
			if asked == 0 || asked > 40 {
				t.Errorf("asked %d times in an hour", asked)
			}
			set = -90 * time.Second
		})
		after("somebody sets it", 15*time.Second, desired.Clock{OffsetMS: -90000, ErrorMS: 10})
		after("it stays wrong", 5*time.Minute)
		change(func() {
			if asked < 20 {
				t.Errorf("asked %d times in five minutes of a wrong clock", asked)
			}
			set = 0
		})
		after("and sets it back", 15*time.Second, desired.Clock{OffsetMS: 0, ErrorMS: 10})
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestClock_TakesTheQuickestAnswer: one that was held up on its way says little.
func TestClock_TakesTheQuickestAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		waits := []time.Duration{time.Second, 10 * time.Millisecond, 3 * time.Second}
		c := &Clock{now: machineTime, Ask: func(context.Context) (time.Time, error) {
			now := time.Now() // the answer is what takes so long
			time.Sleep(waits[0])
			waits = waits[1:]
			return now, nil
		}}
		got, err := c.compare(t.Context())
		if want := (desired.Clock{OffsetMS: 5, ErrorMS: 5}); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	})
}
