// Package engine is the generic reconciler of an agent: it brings a host to what its document says and keeps it there.
// It knows items, statuses and stages, and no kind.
//
// # What it guarantees
//
//   - Level, not edge: every decision starts from what is wanted and what is really there. Events only say "look again".
//   - Nothing of ours that is unwanted stays, nothing that is not ours is touched (kinds observe only what bears our mark).
//     Without a document nothing is removed at all, nor is anything on the ground of a failed observation.
//   - One item is never worked on twice at once. Items of a kind run in parallel, bounded (Sizer).
//   - A failed item is retried after 250 ms, doubling to 60 s, with jitter; a new Rev starts at once. Backoff is for
//     failures only: a foreign change is healed at once, and only an item that is changed over and over waits, up to 2 s.
//   - A call that hangs blocks its own item only: after 2 s without Progress it gives up its place among the kind's parallel
//     calls, after its timeout (Timeouter, 5 min without Progress) its context ends.
//   - Every change of an item's status is reported once, the newest wins.
//
// # Order
//
// Removing: an item is taken off only when nothing that is here uses it any more. That is: no unwanted item of a higher
// stage that needed it is still here, and every wanted item that needed it has become Ready in a form that does not. What
// an item needed is known from the last time it was Ready; of an item that was not Ready since the agent started, every
// item of a lower stage is taken to be in use. Two ways out keep this from blocking for ever: a wanted user that waits for
// an item which fails does not hold items of that item's kind (the old bridge has the VNI of the new one), and after a
// restart a wanted item that fails holds nothing. A held removal shows as Removing with the fault Waiting and the user's name.
//
// Ensuring: Needs gate, and nothing else. An item starts as soon as everything it Needs is Ready at the revision of the
// same document, whatever the rest of its own or of lower stages is doing, and it is woken by that, not by polling. An item
// that is as it should be is Ready even if what it needs is not. Stages matter for items without Needs in removal only.
//
// Between the two: removals of a kind are started before its other work and don't hold it up. Where a new item can't be
// while an old one is (a VNI, a path, memory), its Ensure fails, and is tried again at once when an item of its kind is gone.
//
// # What it expects of kinds
//
// Observe and ObserveOne may run beside Ensure and Remove; what they find of an item that is being worked on is not used.
// No Ensure or Remove of a Flusher starts while its Flush runs. Ensure has to bring about what Diff compares: an Ensure
// that succeeds and leaves a difference counts as failed. A kind whose items live on different storages, or can hang
// one by one for another reason, should have ObserveOne: when Observe fails the engine looks at its items one by one.
// Remove may be called for the same thing again at every sweep, if the kind decides to keep it but still lists it.
// An Ensure whose item leaves the document gets its context cancelled, and Remove follows.
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

	// Adopter says in a spec what was found, where others have changed an item: want with the differences taken over. ok is
	// false where the spec can't express all of them. Like Diff it is pure and cheap.
	Adopter[W, H any] interface {
		Adopt(id string, want W, have H) (found W, ok bool)
	}

	// Sizer says for how many of the kind's items Ensure may run at once; the default is 8.
	Sizer interface {
		Parallel() int
	}

	// Timeouter says how long Ensure, Remove and Flush may take without reporting Progress; the default is 5 min. Observe
	// and ObserveOne have 30 s, or that if it is shorter.
	Timeouter interface {
		Timeout() time.Duration
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

// busyError is a step that goes on by itself.
type busyError struct{ *afterError }

// Unwrap lets who only knows After look again in time.
func (e *busyError) Unwrap() error { return e.afterError }

// Busy says that a long step is under way and all is well: the item stays Working and is looked at again after d, or at
// the next event or change. Kinds return it instead of waiting where a new wish must be heard meanwhile (a guest that was
// asked to stop).
func Busy(d time.Duration, why string) error { return &busyError{&afterError{errors.New(why), d}} }

// IsBusy reports whether err came from Busy.
func IsBusy(err error) bool {
	var b *busyError
	return errors.As(err, &b)
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
		if direct, ok := err.(*desired.Fault); !ok || direct != fault { //nolint:errorlint // whether something is wrapped around the fault is the question
			f.Message = err.Error()
		}
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

// Progress tells how far Ensure is, in percent, and that it is alive: its timeout starts anew. It is for kinds; outside of
// an Ensure it does nothing.
func Progress(ctx context.Context, percent int) {
	if f, ok := ctx.Value(progressKey{}).(func(int)); ok {
		f(percent)
	}
}
