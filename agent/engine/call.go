package engine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// call is one call into a kind, in a goroutine of its own.
type call struct {
	what    string // "ensure domain.web-1"
	timeout time.Duration
	seq     uint64 // the engine's clock at its start
	started time.Time
	cancel  context.CancelFunc

	// lend is called when the call was silent for lendAfter, stuck when it did not end although its context did.
	lend, stuck func()
	lent        bool
	expired     bool
	dog         *alarm

	alive    atomic.Int64 // when it last reported progress, in ns after started
	returned atomic.Bool
}

// timeoutError is an error of a call whose time was up.
type timeoutError struct {
	after time.Duration
	err   error
}

func (e *timeoutError) Error() string   { return fmt.Sprintf("no end after %v: %v", e.after, e.err) }
func (e *timeoutError) Unwrap() []error { return []error{context.DeadlineExceeded, e.err} }

// begin runs f in a goroutine, bounded by c's timeout, and then done in Run's goroutine.
func (e *Engine) begin(ctx context.Context, c *call, f func(context.Context) error, done func(error)) {
	ctx, c.cancel = context.WithCancel(ctx)
	c.seq, c.started = e.tick(), time.Now()
	e.running[c] = struct{}{}
	e.watchdog(c)
	e.calls.Go(func() {
		err := f(ctx)
		c.returned.Store(true)
		e.inbox.post(func() {
			delete(e.running, c)
			e.alarms.stop(c.dog)
			c.cancel()
			if c.expired && err != nil {
				err = &timeoutError{c.timeout, err}
			}
			done(err)
		})
	})
}

// watchdog lends out a silent call's place, ends it when its time is up, and says so when that does not help.
func (e *Engine) watchdog(c *call) {
	now := time.Now()
	silent := now.Sub(c.started) - time.Duration(c.alive.Load())
	var next time.Duration
	switch {
	case c.expired:
		c.stuck()
		return
	case silent >= c.timeout:
		c.expired = true
		c.cancel()
		next = grace
	case !c.lent && silent >= lendAfter:
		c.lent = true
		c.lend()
		next = c.timeout - silent
	case !c.lent:
		next = min(lendAfter, c.timeout) - silent
	default:
		next = c.timeout - silent
	}
	c.dog = e.alarms.set(now.Add(next), func() { e.watchdog(c) })
}

// stuckError is what an item shows whose call does not end.
func (c *call) stuckError() error {
	return &timeoutError{c.timeout, fmt.Errorf("%s still runs", c.what)}
}
