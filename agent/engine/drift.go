package engine

import (
	"fmt"
	"maps"
	"time"

	"shoal/desired"
)

// Mark is what must be known of an item whose foreign changes are not to be healed, when the next agent starts: without it
// a change would look like work that was never done, and would be undone.
type Mark struct {
	// Rev is the revision that was brought about.
	Rev uint64 `json:"rev"`
	// Drift is what is held; nil where the item was last seen as it should be. Drifts counts.
	Drift  *desired.Drift `json:"drift,omitempty"`
	Drifts int            `json:"drifts,omitempty"`
}

// Memory keeps marks over the end of an agent.
type Memory interface {
	// Recall gives what was kept. rebooted says that the machine was started anew since.
	Recall() (marks map[desired.Ref]Mark, rebooted bool)
	// Keep replaces what is kept. It does not block, and the map is not changed any more.
	Keep(marks map[desired.Ref]Mark)
}

// drifting is the engine's part in what it must remember.
type drifting struct {
	memory Memory
	// recalled are the marks of items that were not judged yet; rebooted says that they are from before the machine's last start.
	recalled map[desired.Ref]Mark
	rebooted bool
	// dirty says that what is kept may not be what is so; kept is what is kept.
	dirty bool
	kept  map[desired.Ref]Mark
}

func newDrifting(m Memory) drifting {
	d := drifting{memory: m}
	if m != nil {
		d.recalled, d.rebooted = m.Recall()
		d.kept = maps.Clone(d.recalled)
	}
	return d
}

// policy is what is done about foreign changes of a kind.
func (e *Engine) policy(kind desired.Kind) desired.Policy {
	if p := e.doc.Policy[kind]; p == desired.PolicyHold || p == desired.PolicyAdopt {
		return p
	}
	return desired.PolicyHeal
}

// recall gives an item that is judged for the first time what an earlier agent knew of it.
//
// A start of the machine takes away what does not live on disk, and that is nobody's foreign change: of the time before
// only a drift counts that is still the same. So guests that ran come back after a power cut whatever the policy,
// and one that somebody had stopped stays so.
func (e *Engine) recall(it *item, diff string) {
	m, ok := e.drift.recalled[it.ref]
	if !ok {
		return
	}
	delete(e.drift.recalled, it.ref)
	if it.doc == nil || m.Rev != it.doc.Rev || it.ready || it.drifted {
		return
	}
	switch {
	case m.Drift != nil && (!e.drift.rebooted || m.Drift.What == diff):
		it.drifted, it.drift, it.drifts = true, m.Drift, m.Drifts
	case m.Drift == nil && !e.drift.rebooted:
		it.ready, it.drifts = true, m.Drifts
	}
}

// remember has what is to be remembered kept, if that has changed. Only items whose policy is not to heal need it.
func (e *Engine) remember() {
	d := &e.drift
	if d.memory == nil || !d.dirty || !e.docSet {
		return
	}
	d.dirty = false
	now := map[desired.Ref]Mark{}
	for ref, m := range d.recalled {
		if it := e.items[ref]; it != nil && it.doc != nil && it.doc.Rev == m.Rev {
			now[ref] = m
		} else {
			delete(d.recalled, ref)
		}
	}
	for ref, it := range e.items {
		if it.doc == nil || e.policy(ref.Kind) == desired.PolicyHeal || !it.ready && !it.drifted {
			continue
		}
		m := Mark{Rev: it.doc.Rev, Drifts: it.drifts}
		if it.drifted {
			m.Drift = it.drift
		}
		now[ref] = m
	}
	same := func(a, b Mark) bool { return a.Rev == b.Rev && a.Drifts == b.Drifts && sameDrift(a.Drift, b.Drift) }
	if maps.EqualFunc(now, d.kept, same) {
		return
	}
	d.kept = now
	d.memory.Keep(now)
}

// foreignChange takes note of a change that others made to an item which was Ready.
func (e *Engine) foreignChange(it *item, diff string) {
	now := time.Now()
	it.ready, it.drifted, e.drift.dirty = false, true, true
	it.drifts++
	it.drift = &desired.Drift{At: now.UTC(), What: diff}
	it.working, it.began = now, now
	e.log.Warn().Str("kind", string(it.ref.Kind)).Str("id", it.ref.ID).Uint64("rev", it.rev).Str("what", diff).Msg("item drifted")
	if wait := it.heals.take(now); wait > 0 {
		e.retryIn(it, wait)
	}
}

// showDrifted shows what policy leaves as it is. With policy adopt and a kind that can say it in a spec, that spec is shown, for
// the controller to take over; otherwise it is held.
func (e *Engine) showDrifted(it *item, policy desired.Policy, diff string) {
	e.restart(it)
	if it.drift == nil || it.drift.What != diff {
		it.drift = &desired.Drift{At: time.Now().UTC(), What: diff}
		e.drift.dirty = true
	}
	message := "changed by others and held as it is by policy: " + diff
	remedy := ""
	if policy == desired.PolicyAdopt {
		found, err := it.found()
		switch {
		case err != nil:
			message = fmt.Sprintf("changed by others and held as it is, since it can't be taken over: %s: %v", diff, err)
		case found != nil:
			e.showFound(it, found)
			return
		default:
			message = "changed by others and held as it is, since no wish can express it: " + diff
		}
		remedy = "put it right on the host, or set the drift policy of its kind to heal"
	}
	e.show(it, desired.PhaseDrifted, FaultOf(&desired.Fault{Code: desired.CodeHeld, Message: message, Remedy: remedy}))
}

func (e *Engine) showFound(it *item, found []byte) {
	it.foundSpec = found
	e.show(it, desired.PhaseDrifted, nil)
	it.foundSpec = nil
}

// found is the spec that what is here fits, nil where the kind can't say it.
func (it *item) found() ([]byte, error) {
	if it.have == nil || it.driver.adopt == nil {
		return nil, nil
	}
	return it.driver.adopt(it.ref.ID, it.want, it.have)
}
