// Package engine is the generic reconciler of an agent: it brings a host to what its document says and keeps it there.
// It knows items, statuses and stages, and no kind.
//
// # What it guarantees
//
//   - Level, not edge: every decision starts from what is wanted and what is really there. Events only say "look again".
//   - Nothing of ours that is unwanted stays, nothing that is not ours is touched (kinds observe only what bears our mark).
//   - Removal goes first, stages downwards; then ensuring, stages upwards, an item only once everything it Needs is Ready.
//   - One item is never worked on twice at once. Items of a stage run in parallel, bounded.
//   - A failed item is retried after 250 ms, doubling to 60 s, with jitter; a new Rev starts at once.
//   - A kind that hangs blocks its own items only.
//   - Every change of an item's status is reported once, the newest wins.
//
// Delivery of documents and statuses is left to agent/link, keeping the document to agent/ledger, and every touch of the
// machine to the kinds.
//
// # Improvement on the design page, 2026-11-23
//
// Kind has Diff beside Observe, Ensure and Remove. With it the engine, and not each kind, knows what is drift, what is
// a change and what is nothing to do; the drift policies hold for every kind alike, and an idle pass calls no Ensure.
package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"shoal/desired"
)

// Kind drives one kind of item. W is the kind's spec in package desired, H what the kind finds on the host of one item.
// All methods are bounded by ctx and safe to repeat. Ensure and Remove may run in parallel for different ids.
type Kind[W, H any] interface {
	// Observe finds everything of ours that is really here, by item id, also what no document mentions any more. An
	// error is not "empty": nothing is removed on it.
	Observe(ctx context.Context) (map[string]H, error)
	// Diff says in a few words how have differs from want, as an operator would ("stopped", "rule 3 missing"), or ""
	// when there is nothing to do. It is pure and cheap.
	Diff(id string, want W, have H) string
	// Ensure brings the item about and returns what is there now. have is nil when nothing is there. It may find the
	// work done already.
	Ensure(ctx context.Context, id string, want W, have *H) (H, error)
	// Remove takes the item off the host. Absent is success.
	Remove(ctx context.Context, id string, have H) error
}

// Optional methods of a kind, found by type assertion.
type (
	// Watcher tells of changes on the host, until ctx ends. An empty id means "look at everything of this kind". Events may
	// be lost, doubled and early; the engine only looks again. An error makes the engine start it anew after a while.
	Watcher interface {
		Watch(ctx context.Context, changed func(id string)) error
	}

	// OneObserver observes a single item, where that is cheaper than Observe. A nil result means absent.
	OneObserver[H any] interface {
		ObserveOne(ctx context.Context, id string) (*H, error)
	}

	// Flusher is a kind that applies a whole table at once. Ensure and Remove only collect; Flush applies what was
	// collected since the last Flush, or nothing of it. Items are Ready, and gone, only after it.
	Flusher interface {
		Flush(ctx context.Context) error
	}

	// Facter turns what was found into the kind's facts in package desired, for the status.
	Facter[H any] interface {
		Facts(id string, have H) any
	}

	// Sizer says for how many of the kind's items Ensure may run at once; the default is 8.
	Sizer interface {
		Parallel() int
	}

	// Guarded marks a kind whose removals count against the shrink guard: a document that would remove more than
	// max(3, 20 %) of the items that Counts (for domains: that run) is held, unless its head says Shrink.
	Guarded[H any] interface {
		Counts(have H) bool
	}
)

// Stage orders kinds: lower stages are ensured first and removed last.
type Stage int

// The stages.
const (
	StageBase   Stage = iota // netdev, pool
	StageShared              // image, addrset
	StageItem                // dhcp, secgroup, volume
	StageDomain              // domain
)

// Reporter takes statuses. Calls don't block. A nil status means that the item is gone from document and host.
type Reporter interface {
	Report(ref desired.Ref, status *desired.Status)
}

// waitError makes an item wait for another.
type waitError struct {
	ref desired.Ref
	why string
}

func (e *waitError) Error() string { return fmt.Sprintf("wait for %s: %s", e.ref, e.why) }

// Wait says that the item can't go on until ref is Ready. It is not a failure: the item is looked at again when ref
// changes.
func Wait(ref desired.Ref, why string) error { return &waitError{ref, why} }

// finalError stops retries.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// Final says that trying again is useless until the item changes: it becomes Refused.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalError{err}
}

// afterError sets the time of the next try.
type afterError struct {
	err error
	d   time.Duration
}

func (e *afterError) Error() string { return e.err.Error() }
func (e *afterError) Unwrap() error { return e.err }

// After says when to try again, instead of the usual backoff.
func After(d time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &afterError{err, d}
}

// Fault gives an error a code for the user, and optionally a remedy that is better than the code's own.
func Fault(code desired.Code, remedy string, err error) error {
	if err == nil {
		return nil
	}
	return &faultError{&desired.Fault{Code: code, Message: err.Error(), Remedy: remedy}, err}
}

// faultError keeps the chain behind a fault.
type faultError struct {
	fault *desired.Fault
	err   error
}

func (e *faultError) Error() string { return e.err.Error() }
func (e *faultError) Unwrap() []error {
	return []error{e.fault, e.err}
}

// FaultOf is the fault that a user sees of err: its own where it carries one, else Timeout or Internal with the
// whole chain as message, always with a remedy.
func FaultOf(err error) *desired.Fault {
	f := desired.Fault{Code: desired.CodeInternal}
	var fault *desired.Fault
	var wait *waitError
	switch {
	case errors.As(err, &wait):
		f.Code, f.Ref, f.Message = desired.CodeWaiting, &wait.ref, wait.why
	case errors.As(err, &fault):
		f = *fault
		f.Message = err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		f.Code = desired.CodeTimeout
	}
	if f.Message == "" {
		f.Message = err.Error()
	}
	if f.Remedy == "" {
		f.Remedy = f.Code.Remedy()
	}
	return &f
}

// progressKey carries the function that takes an item's progress.
type progressKey struct{}

// Progress tells how far Ensure is, in percent. It is for kinds; outside of an Ensure it does nothing.
func Progress(ctx context.Context, percent int) {
	if f, ok := ctx.Value(progressKey{}).(func(int)); ok {
		f(percent)
	}
}
