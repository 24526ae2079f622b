package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"shoal/desired"
)

// adopt makes doc what is wanted.
func (e *Engine) adopt(doc desired.Document) {
	if e.docSet && doc.Head.Gen < e.doc.Gen {
		e.log.Warn().Uint64("gen", doc.Head.Gen).Msg("older document ignored")
		return
	}
	e.log.Debug().Uint64("gen", doc.Head.Gen).Int("items", len(doc.Items)).Msg("document in force")
	e.doc, e.docSet, e.moved, e.drift.dirty = doc.Head, true, true, true
	for ref, want := range doc.Items {
		if ref.Kind == desired.KindOrigin {
			continue // for others to read, from the ledger
		}
		it := e.items[ref]
		if it == nil {
			it = e.add(ref)
		}
		e.want(it, want)
	}
	for ref, it := range e.items {
		if _, ok := doc.Items[ref]; !ok {
			if it.doc != nil {
				e.unwant(it)
			}
			it.held = false // the guard judges each generation anew
			e.touch(it)
		} else if it.drifted {
			e.touch(it) // the policy may have changed
		}
	}
}

// add makes the entry of an item that was not known. If its kind was observed, it is known not to be here.
func (e *Engine) add(ref desired.Ref) *item {
	it := &item{ref: ref, driver: e.drivers[ref.Kind]}
	if d := it.driver; d != nil {
		it.known = d.observed
		it.seen = d.gone[ref.ID]
		d.items[ref.ID] = it
	}
	e.items[ref] = it
	return it
}

// want gives an item its wanted content.
func (e *Engine) want(it *item, doc desired.Item) {
	was := it.doc
	same := was != nil && was.SameContent(doc)
	if same && was.Rev == doc.Rev && was.Cause == doc.Cause {
		return
	}
	it.doc, it.rev, it.cause, e.drift.dirty = &doc, doc.Rev, doc.Cause, true
	if same {
		// Rev or Cause alone: nothing to do but to say so.
		if it.shown {
			e.show(it, it.status.Phase, it.status.Fault)
		}
		return
	}
	if was != nil {
		for _, need := range was.Needs {
			unlink(e.dependents, need, it)
		}
	}
	for _, need := range doc.Needs {
		link(e.dependents, need, it)
	}
	it.want, it.bad = nil, nil
	if it.driver != nil {
		it.want, it.bad = it.driver.decode(doc)
	}
	e.restart(it)
	it.ready, it.drifted, it.solo = false, false, false
	it.approved, it.held, it.quiet = false, false, false
	it.working, it.lookAfter = time.Now(), time.Time{}
	it.began = it.working
	e.touch(it)
}

// unwant takes an item's wanted content away. Work on it is given up: it is in vain.
func (e *Engine) unwant(it *item) {
	for _, need := range it.doc.Needs {
		unlink(e.dependents, need, it)
	}
	it.doc, it.want, it.bad = nil, nil, nil
	e.restart(it)
	it.ready, it.drifted, e.drift.dirty = false, false, true
	if it.job != nil && it.job.op == opEnsure && !it.job.collected {
		it.job.cancel()
	}
}

// pass judges what is dirty and starts what that gives.
func (e *Engine) pass(ctx context.Context) {
	for again := true; again; again = e.moved || len(e.dirty) > 0 {
		e.judgeAll()
		for _, d := range e.order {
			e.startQueued(ctx, d)
			e.startFlush(ctx, d)
			e.startObserve(ctx, d)
		}
	}
	e.remember()
	e.answerSettled()
}

// judgeAll judges until nothing is dirty.
func (e *Engine) judgeAll() {
	for e.moved || len(e.dirty) > 0 {
		if e.moved {
			e.moved, e.users = false, nil
			for it := range e.blocked {
				e.touch(it)
			}
			clear(e.blocked)
		}
		batch := e.dirty
		e.dirty = nil
		for _, it := range batch {
			it.dirty = false
			if it.job != nil || e.items[it.ref] != it {
				continue // judged when the job ends; forgotten
			}
			it.op = e.judge(it)
			it.enqueue()
		}
	}
}

// judge decides what is to be done about an item now, and shows its status if nothing is. It is called whenever anything
// about the item may have changed, and never while a call works on it.
func (e *Engine) judge(it *item) op {
	d := it.driver
	if d == nil {
		if it.doc == nil {
			e.forget(it)
			return opNone
		}
		e.show(it, desired.PhaseRefused, FaultOf(&desired.Fault{
			Code: desired.CodeTooNew, Message: fmt.Sprintf("this agent knows no items of kind %q", it.ref.Kind),
		}))
		return opNone
	}
	if it.bad != nil {
		it.look = false
		e.show(it, desired.PhaseRefused, FaultOf(it.bad))
		return opNone
	}
	if !it.known && d.failures > 0 {
		it.look = true // the kind as a whole can't be observed, maybe the item can
	}
	if it.look && d.one != nil {
		if it.lookFailed && it.retry != nil || e.lookLater(it) {
			return opNone
		}
		return opLook
	}
	it.look = false
	if it.doc == nil {
		return e.judgeUnwanted(it)
	}
	if !it.known {
		if d.failures > 0 {
			e.show(it, desired.PhaseRetrying, FaultOf(fmt.Errorf("observe %s: %w", d.name, d.err)))
		}
		return opNone
	}
	diff, err := it.diff()
	if err != nil {
		e.failed(it, err, it.seen)
		return opNone
	}
	e.recall(it, diff)
	if diff == "" {
		if d.doubts(it) {
			e.show(it, desired.PhaseRetrying, FaultOf(fmt.Errorf("observe %s: %w", d.name, d.err)))
			return opNone
		}
		e.becomeReady(it)
		return opNone
	}
	if it.ready {
		e.foreignChange(it, diff)
	}
	if it.drifted {
		if policy := e.policy(d.name); policy != desired.PolicyHeal {
			e.showDrifted(it, policy, diff)
			return opNone
		}
	}
	if it.final || it.retry != nil || it.waits != nil {
		return opNone
	}
	if need, why := e.unmet(it); why != "" {
		e.show(it, desired.PhaseWaiting, FaultOf(Wait(need, why)))
		return opNone
	}
	return opEnsure
}

// judgeUnwanted decides about an item that no document wants.
func (e *Engine) judgeUnwanted(it *item) op {
	d := it.driver
	if !e.docSet {
		return opNone
	}
	if !it.known || it.stale {
		// Nothing is concluded from what was not seen.
		if d.failures > 0 && it.shown {
			e.show(it, desired.PhaseRemoving, FaultOf(fmt.Errorf("observe %s: %w", d.name, d.err)))
		}
		return opNone
	}
	if it.have == nil {
		e.forget(it)
		return opNone
	}
	if it.final || it.retry != nil || it.waits != nil {
		return opNone
	}
	if d.counts != nil && !it.approved {
		if !d.observed {
			return opNone
		}
		e.guard(d)
		if it.held {
			e.show(it, desired.PhaseRemoving, FaultOf(e.heldFault(d)))
			return opNone
		}
	}
	if fault := e.inUse(it); fault != nil {
		e.blocked[it] = struct{}{}
		e.show(it, desired.PhaseRemoving, FaultOf(fault))
		return opNone
	}
	return opRemove
}

// diff is how what is here differs from what is wanted.
func (it *item) diff() (string, error) {
	if it.have == nil {
		return "missing", nil
	}
	return it.driver.diff(it.ref.ID, it.want, it.have)
}

// unmet is the first need that is not Ready, and what is the matter with it.
func (e *Engine) unmet(it *item) (desired.Ref, string) {
	for _, need := range it.doc.Needs {
		switch o := e.items[need]; {
		case o == nil || o.doc == nil:
			return need, need.String() + " is not in the document"
		case !o.isReady():
			return need, need.String() + " is not ready"
		}
	}
	return desired.Ref{}, ""
}

// becomeReady takes note that an item is as it should be.
func (e *Engine) becomeReady(it *item) {
	e.restart(it)
	e.drift.dirty = e.drift.dirty || !it.ready || it.drifted
	it.ready, it.drifted, it.solo = true, false, false
	it.uses, it.usesKnown = it.doc.Needs, true
	e.show(it, desired.PhaseReady, nil)
}

// answerSettled lets callers of Settled go.
func (e *Engine) answerSettled() {
	if len(e.settles) == 0 || !e.docSet || !e.settled() {
		return
	}
	e.settles = slices.DeleteFunc(e.settles, func(s settle) bool {
		if s.gen > e.doc.Gen {
			return false
		}
		close(s.done)
		return true
	})
}

// settled says that there is nothing left to do.
func (e *Engine) settled() bool {
	for _, d := range e.order {
		if !d.observed {
			return false
		}
	}
	for _, it := range e.items {
		if it.job != nil || it.lane != laneNone || it.dirty || it.look || it.rev != it.status.Rev && it.doc != nil {
			return false
		}
		if it.doc == nil {
			if it.held && it.job == nil {
				continue
			}
			return false
		}
		switch it.status.Phase {
		case desired.PhaseReady, desired.PhaseRefused:
		case desired.PhaseDrifted:
		default:
			return false
		}
	}
	return true
}
