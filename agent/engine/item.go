package engine

import (
	"bytes"
	"errors"
	"time"

	"shoal/desired"
)

// item is one thing that is wanted, or here, or both.
type item struct {
	ref    desired.Ref
	driver *driver // nil for a kind that this agent does not know

	// What is wanted: doc is nil when nothing is. rev and cause outlive it, for the status of the removal.
	doc   *desired.Item
	want  any
	bad   error // why doc can't be read
	rev   uint64
	cause string

	// What is here: have is nil for absent, and means nothing unless known. stale says that a failed call may have
	// changed it since. seen is when it was found.
	have  any
	known bool
	stale bool
	seen  uint64

	// Looking at this item alone: look asks for it, lookFailed says that the last one failed and is to be retried.
	look       bool
	lookFailed bool
	lookAfter  time.Time
	lookAlarm  *alarm
	again      bool // an observation was of no use because the item was being worked on

	// How it goes at this rev.
	ready    bool   // has been Ready: a difference is a foreign change
	drifted  bool   // such a change was found and is not healed
	final    bool   // no use to try again
	attempts int    // failed tries in a row
	retry    *alarm // the next try
	waits    *desired.Ref
	heals    bucket
	drifts   int
	drift    *desired.Drift
	// foundSpec is what the kind makes of a foreign change, while it is shown.
	foundSpec []byte

	// What it is known to have needed when it was last Ready.
	uses      []desired.Ref
	usesKnown bool

	// Removal: approved or held by the shrink guard. A quiet item was removed before and its kind still lists it.
	approved, held, quiet bool

	// Work: lane is the queue it stands in for op; solo has it flushed alone.
	dirty   bool
	op      op
	lane    lane
	job     *job
	solo    bool
	working time.Time // since when it is on its way to Ready, for the log
	began   time.Time // when what it last is on its way to was taken up

	status   desired.Status
	shown    bool
	progress int
	changed  uint64 // when phase or rev last changed
}

// isReady says that the item is Ready as its document wants it now.
func (it *item) isReady() bool {
	return it.doc != nil && it.shown && it.status.Phase == desired.PhaseReady && it.status.Rev == it.doc.Rev
}

// fails says that the item's last try failed.
func (it *item) fails() bool {
	return it.shown && (it.status.Phase == desired.PhaseRetrying || it.status.Phase == desired.PhaseRefused)
}

// show makes phase and fault the item's status and reports it, if that changes anything.
func (e *Engine) show(it *item, phase desired.Phase, fault *desired.Fault) {
	if it.quiet && fault == nil {
		return
	}
	now := time.Now().UTC()
	s := desired.Status{
		Rev: it.rev, Phase: phase, Fault: fault, Facts: e.factsOf(it), Progress: it.progress,
		Since: it.status.Since, Began: it.began.UTC(), Cause: it.cause, Drifts: it.drifts, LastDrift: it.drift, Found: it.foundSpec,
	}
	entered := !it.shown || it.status.Phase != phase
	if entered {
		s.Since = now
	}
	if it.shown && sameStatus(s, it.status) {
		return
	}
	was, wasShown := it.status, it.shown
	wasReady := wasShown && was.Phase == desired.PhaseReady
	it.status, it.shown = s, true
	e.report(it.ref, &s)
	if entered || was.Rev != s.Rev || !sameFault(was.Fault, s.Fault) {
		e.logStatus(it, now)
	}
	if !entered && was.Rev == s.Rev {
		return
	}
	it.changed = e.tick()
	e.moved = true
	e.wakeWaiting(it.ref)
	if phase != desired.PhaseReady {
		return
	}
	for dep := range e.dependents[it.ref] {
		// What it needed came back: whatever failed for lack of it is worth a try now.
		if !wasReady && dep.retry != nil && !dep.drifted {
			e.restart(dep)
		}
		e.touch(dep)
	}
}

// forget takes an item out that is neither wanted nor here.
func (e *Engine) forget(it *item) {
	e.alarms.stop(it.retry)
	e.alarms.stop(it.lookAlarm)
	e.park(it, nil)
	it.lane = laneNone
	delete(e.items, it.ref)
	delete(e.blocked, it)
	if it.driver != nil {
		delete(it.driver.items, it.ref.ID)
	}
	e.moved = true
	if it.shown {
		e.report(it.ref, nil)
		e.log.Info().Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Uint64("rev", it.rev).Str("cause", it.cause).Msg("item gone")
	}
	e.wakeWaiting(it.ref)
}

// report tells the reporter, and Statuses.
func (e *Engine) report(ref desired.Ref, s *desired.Status) {
	e.mu.Lock()
	if s == nil {
		delete(e.statuses, ref)
	} else {
		e.statuses[ref] = *s
	}
	e.mu.Unlock()
	if e.cfg.Reporter != nil {
		e.cfg.Reporter.Report(ref, s)
	}
}

// logStatus writes the one line of a transition.
func (e *Engine) logStatus(it *item, now time.Time) {
	log := e.log.Debug()
	switch it.status.Phase {
	case desired.PhaseReady:
		log = e.log.Info()
	case desired.PhaseRetrying, desired.PhaseDrifted:
		log = e.log.Warn()
	case desired.PhaseRefused:
		log = e.log.Error()
	case desired.PhaseRemoving:
		log = e.log.Info()
		if it.status.Fault != nil {
			log = e.log.Warn()
		}
	case desired.PhaseWaiting, desired.PhaseWorking:
	}
	log = log.Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Uint64("rev", it.rev).Str("phase", string(it.status.Phase))
	if it.cause != "" {
		log = log.Str("cause", it.cause)
	}
	if it.attempts > 0 {
		log = log.Int("attempt", it.attempts)
	}
	if f := it.status.Fault; f != nil {
		log = log.Str("err", f.Error())
	}
	if it.status.Phase == desired.PhaseReady && !it.working.IsZero() {
		log = log.Dur("took", now.Sub(it.working))
		it.working = time.Time{}
	}
	log.Msg("item status")
}

// restart forgets failures, so that the item is tried at once.
func (e *Engine) restart(it *item) {
	e.alarms.stop(it.retry)
	it.retry = nil
	it.attempts = 0
	it.final = false
	it.lookFailed = false
	e.park(it, nil)
}

// retryIn has the item tried again after d.
func (e *Engine) retryIn(it *item, d time.Duration) {
	e.alarms.stop(it.retry)
	it.retry = e.alarms.set(time.Now().Add(d), func() {
		it.retry = nil
		e.touch(it)
	})
}

// park makes the item wait for another one by its kind's wish, or ends that.
func (e *Engine) park(it *item, ref *desired.Ref) {
	if it.waits != nil {
		unlink(e.waiting, *it.waits, it)
	}
	it.waits = ref
	if ref != nil {
		link(e.waiting, *ref, it)
	}
}

// wakeWaiting wakes what kinds made wait for ref.
func (e *Engine) wakeWaiting(ref desired.Ref) {
	for it := range e.waiting[ref] {
		e.park(it, nil)
		e.touch(it)
	}
}

func link(m map[desired.Ref]map[*item]struct{}, ref desired.Ref, it *item) {
	if m[ref] == nil {
		m[ref] = map[*item]struct{}{}
	}
	m[ref][it] = struct{}{}
}

func unlink(m map[desired.Ref]map[*item]struct{}, ref desired.Ref, it *item) {
	delete(m[ref], it)
	if len(m[ref]) == 0 {
		delete(m, ref)
	}
}

// failed takes note of a failed call. since is when the call started.
func (e *Engine) failed(it *item, err error, since uint64) {
	if panicked, ok := errors.AsType[*PanicError](err); ok {
		e.log.Error().Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Err(err).Bytes("stack", panicked.Stack).Msg("kind panicked")
	}
	fault := FaultOf(err)
	phase := func(p desired.Phase) desired.Phase {
		if it.doc == nil {
			return desired.PhaseRemoving
		}
		return p
	}
	var wait *waitError
	var final *finalError
	var after *afterError
	switch {
	case errors.As(err, &wait):
		if o := e.items[wait.ref]; o != nil && o.changed > since {
			e.touch(it) // it changed while the kind looked at it
		} else {
			e.park(it, &wait.ref)
		}
		e.show(it, phase(desired.PhaseWaiting), fault)
	case errors.As(err, &final):
		it.final = true
		e.show(it, phase(desired.PhaseRefused), fault)
	case IsBusy(err) && it.doc != nil && errors.As(err, &after):
		// Not a failure: it counts no attempt and shows no fault.
		e.retryIn(it, max(after.d, 10*time.Millisecond))
		e.show(it, desired.PhaseWorking, nil)
	default:
		it.attempts++
		d := backoff(it.attempts)
		if errors.As(err, &after) {
			d = max(after.d, 10*time.Millisecond)
		}
		e.retryIn(it, d)
		e.show(it, phase(desired.PhaseRetrying), fault)
	}
}

// factsOf is the facts part of a status. A kind that panics over it gets no facts.
func (e *Engine) factsOf(it *item) []byte {
	if it.driver == nil || it.driver.facts == nil || it.have == nil {
		return nil
	}
	facts, err := it.driver.facts(it.ref.ID, it.have)
	if err != nil {
		e.log.Error().Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Err(err).Msg("facts of an item")
	}
	return facts
}

func sameStatus(a, b desired.Status) bool {
	return a.Rev == b.Rev && a.Phase == b.Phase && a.Progress == b.Progress && a.Cause == b.Cause && a.Drifts == b.Drifts &&
		a.Since.Equal(b.Since) && a.Began.Equal(b.Began) && bytes.Equal(a.Found, b.Found) && sameFault(a.Fault, b.Fault) && bytes.Equal(a.Facts, b.Facts) && sameDrift(a.LastDrift, b.LastDrift)
}

func sameFault(a, b *desired.Fault) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Code == b.Code && a.Message == b.Message && a.Remedy == b.Remedy && (a.Ref == b.Ref || a.Ref != nil && b.Ref != nil && *a.Ref == *b.Ref)
}

func sameDrift(a, b *desired.Drift) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.What == b.What && a.At.Equal(b.At)
}
