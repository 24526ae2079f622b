package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"shoal/desired"
)

// op is what a call does with an item.
type op string

const (
	opNone   op = ""
	opLook   op = "look at"
	opEnsure op = "ensure"
	opRemove op = "remove"
)

// lane is a queue of a driver. Lanes are served in order: tries after a failure last, so that items on a dead storage
// don't take the places of the others again and again.
type lane int

const (
	laneNone lane = iota
	laneLook
	laneRemove
	laneFirst
	laneAgain
	lanes
)

// enqueue puts an item in the lane that its op belongs to. A place that it has in another lane becomes void.
func (it *item) enqueue() {
	to := laneNone
	switch {
	case it.op == opLook:
		to = laneLook
	case it.op != opNone && it.attempts > 0:
		to = laneAgain
	case it.op == opRemove:
		to = laneRemove
	case it.op == opEnsure:
		to = laneFirst
	}
	if it.lane == to {
		return
	}
	it.lane = to
	if to != laneNone {
		it.driver.queues[to] = append(it.driver.queues[to], it)
	}
}

// job is a call that works on an item.
type job struct {
	call
	it  *item
	op  op
	rev uint64
	// collected says that the call has ended well and waits for Flush; flushes is the driver's count at its start.
	collected bool
	have      any
	flushes   uint64
}

// startQueued starts what is queued, as far as there are places.
func (e *Engine) startQueued(ctx context.Context, d *driver) {
	for l := laneLook; l < lanes; l++ {
		q := d.queues[l]
		for len(q) > 0 && d.places < d.parallel {
			it := q[0]
			if it.lane != l {
				q = q[1:]
				continue
			}
			if l != laneLook && !d.admits(it) {
				break
			}
			q = q[1:]
			it.lane = laneNone
			if it.op == opEnsure {
				if _, why := e.unmet(it); why != "" {
					e.touch(it)
					continue
				}
			}
			e.start(ctx, it)
		}
		if len(q) == 0 {
			q = nil
		}
		d.queues[l] = q
	}
}

// start begins an item's op.
func (e *Engine) start(ctx context.Context, it *item) {
	d, id, want, have := it.driver, it.ref.ID, it.want, it.have
	j := &job{it: it, op: it.op, rev: it.rev, flushes: d.flushes}
	j.what = string(j.op) + " " + it.ref.String()
	j.timeout = d.timeout
	j.lend = func() { d.leave(j) }
	j.stuck = func() { e.stuck(it, j) }
	it.job, it.op, it.progress = j, opNone, 0
	d.places++
	if d.flush != nil && j.op != opLook {
		d.collecting++
		d.solo = it.solo
	}
	var f func(context.Context) error
	switch j.op {
	case opLook:
		it.look, it.lookFailed = false, false
		j.timeout = min(d.timeout, observeTimeout)
		f = func(ctx context.Context) (err error) {
			j.have, err = d.one(ctx, id)
			return err
		}
	case opEnsure:
		it.willUse()
		if it.attempts == 0 {
			e.show(it, desired.PhaseWorking, nil)
		}
		f = func(ctx context.Context) (err error) {
			j.have, err = d.ensure(context.WithValue(ctx, progressKey{}, e.progress(j)), id, want, have)
			return err
		}
	case opRemove:
		if it.attempts == 0 {
			e.show(it, desired.PhaseRemoving, nil)
		}
		f = func(ctx context.Context) error { return d.remove(ctx, id, have) }
	case opNone:
		panic("engine: start of nothing")
	}
	e.begin(ctx, &j.call, f, func(err error) { e.ended(j, err) })
}

// progress is what Progress calls for j.
func (e *Engine) progress(j *job) func(int) {
	last := 0
	return func(percent int) {
		j.alive.Store(int64(time.Since(j.started)))
		percent = min(max(percent, 0), 100)
		if percent == last {
			return
		}
		last = percent
		e.inbox.post(func() {
			if it := j.it; it.job == j && it.shown {
				it.progress = percent
				e.show(it, it.status.Phase, it.status.Fault)
			}
		})
	}
}

// leave gives a job's place to others.
func (d *driver) leave(j *job) {
	d.places--
	if d.flush != nil && j.op != opLook {
		d.collecting--
		d.solo = d.solo && d.collecting > 0
	}
}

// stuck shows that a call does not end. The item can't be worked on until it does.
func (e *Engine) stuck(it *item, j *job) {
	e.log.Error().Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Err(j.stuckError()).Msg("call is stuck")
	phase := desired.PhaseRetrying
	if it.doc == nil {
		phase = desired.PhaseRemoving
	}
	e.show(it, phase, FaultOf(j.stuckError()))
}

// ended takes the end of a call. What waits for a Flush stays in work until that.
func (e *Engine) ended(j *job, err error) {
	d := j.it.driver
	solo := d.solo
	if !j.lent {
		d.leave(j)
	}
	if d.flush == nil || j.op == opLook || err != nil {
		e.finish(j, err)
		return
	}
	if j.flushes != d.flushes || d.flushing != nil {
		// A Flush ran while this call did: whether it took the call's work along, nobody knows.
		j.it.job = nil
		e.touch(j.it)
		return
	}
	d.solo = solo
	j.collected = true
	d.collected = append(d.collected, j)
}

// finish applies the outcome of a job to its item.
func (e *Engine) finish(j *job, err error) {
	it, d := j.it, j.it.driver
	it.job, it.progress = nil, 0
	it.seen = e.tick()
	e.touch(it)
	superseded := (it.doc == nil) != (j.op == opRemove) || it.rev != j.rev
	switch j.op {
	case opLook:
		it.lookAfter = time.Now().Add(gapAfter(time.Since(j.started)))
		if err != nil {
			e.lookFailed(it, err, j.seq)
			break
		}
		it.have, it.known, it.stale = j.have, true, false
	case opEnsure:
		if err == nil {
			it.have, it.known, it.stale = j.have, true, false
			if !superseded {
				err = it.differs()
			}
			if err == nil && !superseded {
				// At once: were a look to come first, what it finds would not count as drift, and
				// an item that is changed again and again would be ensured without pause.
				e.becomeReady(it)
			}
		} else {
			e.unsure(it)
		}
		if err != nil && !superseded {
			e.failed(it, fmt.Errorf("ensure %s: %w", it.ref, err), j.seq)
		}
	case opRemove:
		if err != nil {
			e.unsure(it)
			if !superseded {
				e.failed(it, fmt.Errorf("remove %s: %w", it.ref, err), j.seq)
			}
			break
		}
		it.have, it.stale = nil, false
		it.approved, it.held = false, false
		d.gone[it.ref.ID] = it.seen
		// What stood in the way of others of its kind is gone.
		for _, o := range d.items {
			if o.doc != nil && o.job == nil && o.retry != nil && !o.drifted && !o.lookFailed {
				e.restart(o)
				e.touch(o)
			}
		}
	case opNone:
	}
	if it.again {
		it.again = false
		e.lookAgain(it)
	}
}

// unsure takes note that a failed call may have changed what is here.
func (e *Engine) unsure(it *item) {
	it.stale = true
	e.lookAgain(it)
}

// lookAgain has an item observed, alone where its kind can.
func (e *Engine) lookAgain(it *item) {
	if it.driver.one != nil {
		it.look = true
		e.touch(it)
		return
	}
	e.requestObserve(it.driver)
}

// differs is an error if an item is not what it should be right after Ensure brought it about. Without it a kind whose
// Ensure and Diff disagree would be called again and again without pause.
func (it *item) differs() error {
	if it.have == nil {
		return errors.New("nothing is there after it was ensured")
	}
	diff, err := it.diff()
	if err == nil && diff != "" {
		err = fmt.Errorf("still differs after it was ensured: %s", diff)
	}
	return err
}

// admits says whether a call that collects for Flush may start now.
func (d *driver) admits(it *item) bool {
	if d.flush == nil {
		return true
	}
	if d.flushing != nil || d.solo {
		return false
	}
	return !it.solo || d.collecting+len(d.collected) == 0
}

// startFlush flushes what is collected, once no more is being collected.
func (e *Engine) startFlush(ctx context.Context, d *driver) {
	if d.flush == nil || d.flushing != nil || d.collecting > 0 || len(d.collected) == 0 {
		return
	}
	batch := d.collected
	c := &call{what: "flush " + string(d.name), timeout: d.timeout, lend: func() {}}
	c.stuck = func() {
		for _, j := range batch {
			e.stuck(j.it, &job{call: call{what: c.what, timeout: c.timeout}, it: j.it})
		}
	}
	d.collected, d.flushing, d.solo = nil, c, false
	e.begin(ctx, c, d.flush, func(err error) {
		d.flushing = nil
		d.flushes++
		for _, j := range batch {
			if err != nil {
				// One bad item must not fail the others for ever: each is tried alone.
				j.it.solo = len(batch) > 1
				e.finish(j, fmt.Errorf("flush %s: %w", d.name, err))
				continue
			}
			e.finish(j, nil)
		}
	})
}
