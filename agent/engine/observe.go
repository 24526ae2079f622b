package engine

import (
	"context"
	"errors"
	"time"

	"shoal/desired"
)

// driver is a kind with the engine's state of it.
type driver struct {
	adapter
	name  desired.Kind
	stage Stage
	items map[string]*item

	// Observation: observed once it has succeeded; due asks for one, notBefore and gap space them; failures in a row,
	// the first at doubt. gone holds what was removed since the last one began.
	observed  bool
	observing *call
	due       bool
	notBefore time.Time
	gap       *alarm
	failures  int
	err       error
	doubt     uint64
	gone      map[string]uint64

	// Work.
	queues [lanes][]*item
	places int // in use

	// A Flusher's round: calls that collect, those that have, and the Flush. solo says that one item has it alone.
	collecting int
	collected  []*job
	flushing   *call
	flushes    uint64
	solo       bool
}

// doubts says that an item was last seen before the kind could not be observed any more.
func (d *driver) doubts(it *item) bool { return d.failures >= doubtAfter && it.seen <= d.doubt }

// sweep observes everything, now and then again: events get lost.
func (e *Engine) sweep() {
	for _, d := range e.order {
		e.requestObserve(d)
	}
	for _, it := range e.items {
		if it.waits != nil || it.doc == nil && it.final {
			e.park(it, nil)
			it.final = it.final && it.doc != nil
			e.touch(it)
		}
	}
	e.alarms.set(time.Now().Add(jitter(e.cfg.SweepEvery)), e.sweep)
}

// requestObserve has a kind observed soon. Requests during an observation give one more after it.
func (e *Engine) requestObserve(d *driver) { d.due = true }

// startObserve starts an observation that is due.
func (e *Engine) startObserve(ctx context.Context, d *driver) {
	if !d.due || d.observing != nil || d.gap != nil {
		return
	}
	if time.Now().Before(d.notBefore) {
		d.gap = e.alarms.set(d.notBefore, func() { d.gap = nil })
		return
	}
	d.due = false
	c := &call{what: "observe " + string(d.name), timeout: min(d.timeout, observeTimeout), lend: func() {}}
	counted := false
	c.stuck = func() {
		counted = true
		e.observeFailed(d, c.stuckError())
	}
	d.observing = c
	var found map[string]any
	e.begin(ctx, c, func(ctx context.Context) (err error) {
		found, err = d.observe(ctx)
		return err
	}, func(err error) {
		d.observing = nil
		switch {
		case err == nil:
			e.observedAll(d, found, c)
		case !counted:
			e.observeFailed(d, err)
		}
	})
}

// observedAll takes what an observation found. Items that were worked on since it began know better.
func (e *Engine) observedAll(d *driver, found map[string]any, c *call) {
	if d.failures > 0 {
		e.log.Info().Str("kind", string(d.name)).Int("attempt", d.failures).Msg("kind observed again")
	}
	d.notBefore = time.Now().Add(gapAfter(time.Since(c.started)))
	d.failures, d.err = 0, nil
	if !d.observed {
		d.observed = true
		e.moved = true // removals wait for it
	}
	for id, it := range d.items {
		if it.job != nil {
			it.again = it.again || it.job.op != opLook
			continue
		}
		if it.seen > c.seq {
			continue
		}
		it.have, it.known, it.stale = found[id], true, false
		it.seen = e.tick()
		if it.lookFailed {
			e.restart(it)
			it.look = false
		}
		e.touch(it)
	}
	for id, have := range found {
		if d.items[id] != nil || d.gone[id] > c.seq {
			continue
		}
		it := e.add(desired.Ref{Kind: d.name, ID: id})
		it.have, it.known, it.seen = have, true, e.tick()
		it.quiet = d.gone[id] > 0 // removed before, and kept by its kind
		it.approved = it.quiet
		e.touch(it)
	}
	for id, at := range d.gone {
		if _, kept := found[id]; at < c.seq && !kept {
			delete(d.gone, id)
		}
	}
}

// observeFailed takes a failure: nothing is concluded from it, but that what was last seen may not be so any more.
func (e *Engine) observeFailed(d *driver, err error) {
	d.failures++
	d.err = err
	d.due = true
	d.notBefore = time.Now().Add(backoff(d.failures))
	if d.failures == 1 {
		d.doubt = e.tick()
		log := e.log.Warn().Str("kind", string(d.name)).Err(err)
		if panicked, ok := errors.AsType[*PanicError](err); ok {
			log = log.Bytes("stack", panicked.Stack)
		}
		log.Msg("kind can't be observed")
	}
	for _, it := range d.items {
		if d.failures >= doubtAfter && d.one != nil && it.known {
			it.look = true
		}
		if !it.known || d.failures >= doubtAfter {
			e.touch(it)
		}
	}
}

// gapAfter is how long to wait after an observation that took d before the next that an event asks for.
func gapAfter(d time.Duration) time.Duration { return min(max(10*d, observeGapMin), observeGapMax) }

// lookLater puts off looking at an item alone if that was done just now.
func (e *Engine) lookLater(it *item) bool {
	if !time.Now().Before(it.lookAfter) {
		return false
	}
	if it.lookAlarm == nil {
		it.lookAlarm = e.alarms.set(it.lookAfter, func() {
			it.lookAlarm = nil
			e.touch(it)
		})
	}
	return true
}

// lookFailed takes a failed look at one item.
func (e *Engine) lookFailed(it *item, err error, since uint64) {
	if it.doc == nil && !it.known {
		// An event named something that nobody knows; leave it to Observe.
		e.requestObserve(it.driver)
		e.forget(it)
		return
	}
	if it.final {
		return
	}
	it.look, it.lookFailed = true, true
	// Waiting and refusing is for Ensure: a look is tried again.
	e.failed(it, &lookError{it.ref, err}, since)
}

// lookError hides what an error says about going on.
type lookError struct {
	ref desired.Ref
	err error
}

func (e *lookError) Error() string { return "look at " + e.ref.String() + ": " + e.err.Error() }

// As passes on everything but steering.
func (e *lookError) As(target any) bool {
	switch target.(type) {
	case **waitError, **finalError:
		return false
	}
	return errors.As(e.err, target)
}

// Is passes on everything.
func (e *lookError) Is(target error) bool { return errors.Is(e.err, target) }

// events takes what a kind's Watch said.
func (e *Engine) events(d *driver, ids map[string]struct{}) {
	for id := range ids {
		if id == "" || d.one == nil {
			e.requestObserve(d)
			for _, it := range d.items {
				it.again = it.again || it.job != nil && it.job.op != opLook
			}
			continue
		}
		it := d.items[id]
		if it == nil {
			it = e.add(desired.Ref{Kind: d.name, ID: id})
			it.known = false
		}
		it.look = true
		if it.lookFailed {
			e.restart(it)
		}
		e.touch(it)
	}
}

// watch keeps a kind's Watch running.
func (e *Engine) watch(ctx context.Context, d *driver) {
	for n := 1; ; n++ {
		began := time.Now()
		err := d.watch(ctx, func(id string) { e.inbox.event(d, id) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastRetry {
			n = 1
		}
		e.inbox.post(func() {
			log := e.log.Warn().Str("kind", string(d.name)).Int("attempt", n).Err(err)
			if panicked, ok := errors.AsType[*PanicError](err); ok {
				log = log.Bytes("stack", panicked.Stack)
			}
			log.Msg("watch ended")
		})
		timer := time.NewTimer(backoff(n))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		// What happened meanwhile nobody told.
		e.inbox.event(d, "")
	}
}
