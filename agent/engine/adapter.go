package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"

	"shoal/desired"
)

// adapter is a Kind without its types, so that the engine can hold kinds side by side. What is wanted and what is there
// travel as any: W in want, H in have, a nil have for absent. Every call is safe against a panic of the kind.
type adapter struct {
	decode  func(desired.Item) (any, error)
	diff    func(id string, want, have any) (string, error)
	observe func(ctx context.Context) (map[string]any, error)
	ensure  func(ctx context.Context, id string, want, have any) (any, error)
	remove  func(ctx context.Context, id string, have any) error

	// Optional methods, nil when the kind lacks them.
	one    func(ctx context.Context, id string) (any, error)
	watch  func(ctx context.Context, changed func(string)) error
	flush  func(ctx context.Context) error
	facts  func(id string, have any) (json.RawMessage, error)
	counts func(have any) bool
	adopt  func(id string, want, have any) (json.RawMessage, error)

	parallel int
	timeout  time.Duration
}

// PanicError is a panic of a kind.
type PanicError struct {
	Value any
	Stack []byte
}

// Error names the value only: the stack goes to the log.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// protect makes a panic an error.
func protect(err *error) {
	if r := recover(); r != nil {
		*err = &PanicError{Value: r, Stack: debug.Stack()}
	}
}

func newAdapter[W, H any, P interface {
	*W
	desired.Spec
}](impl Kind[W, H]) adapter {
	a := adapter{parallel: defaultParallel, timeout: defaultTimeout}
	a.decode = func(it desired.Item) (_ any, err error) {
		defer protect(&err)
		return desired.DecodeSpec[W, P](it)
	}
	a.diff = func(id string, want, have any) (_ string, err error) {
		defer protect(&err)
		return impl.Diff(id, want.(W), have.(H)), nil
	}
	a.observe = func(ctx context.Context) (_ map[string]any, err error) {
		defer protect(&err)
		found, err := impl.Observe(ctx)
		if err != nil {
			return nil, err
		}
		all := make(map[string]any, len(found))
		for id, have := range found {
			all[id] = have
		}
		return all, nil
	}
	a.ensure = func(ctx context.Context, id string, want, have any) (_ any, err error) {
		defer protect(&err)
		var p *H
		if have != nil {
			h := have.(H)
			p = &h
		}
		return impl.Ensure(ctx, id, want.(W), p)
	}
	a.remove = func(ctx context.Context, id string, have any) (err error) {
		defer protect(&err)
		return impl.Remove(ctx, id, have.(H))
	}
	if k, ok := impl.(OneObserver[H]); ok {
		a.one = func(ctx context.Context, id string) (_ any, err error) {
			defer protect(&err)
			h, err := k.ObserveOne(ctx, id)
			if err != nil || h == nil {
				return nil, err
			}
			return *h, nil
		}
	}
	if k, ok := impl.(Watcher); ok {
		a.watch = func(ctx context.Context, changed func(string)) (err error) {
			defer protect(&err)
			return k.Watch(ctx, changed)
		}
	}
	if k, ok := impl.(Flusher); ok {
		a.flush = func(ctx context.Context) (err error) {
			defer protect(&err)
			return k.Flush(ctx)
		}
	}
	if k, ok := impl.(Facter[H]); ok {
		a.facts = func(id string, have any) (_ json.RawMessage, err error) {
			defer protect(&err)
			facts := k.Facts(id, have.(H))
			if facts == nil {
				return nil, nil
			}
			return desired.Canonical(facts)
		}
	}
	if k, ok := impl.(Guarded[H]); ok {
		a.counts = func(have any) (yes bool) {
			// What can't be judged counts: the guard errs on the side of holding.
			defer func() {
				if recover() != nil {
					yes = true
				}
			}()
			return k.Counts(have.(H))
		}
	}
	if k, ok := impl.(Adopter[W, H]); ok {
		a.adopt = func(id string, want, have any) (_ json.RawMessage, err error) {
			defer protect(&err)
			found, ok := k.Adopt(id, want.(W), have.(H))
			if !ok {
				return nil, nil
			}
			return desired.Canonical(found)
		}
	}
	if k, ok := impl.(Sizer); ok {
		a.parallel = max(1, k.Parallel())
	}
	if k, ok := impl.(Timeouter); ok && k.Timeout() > 0 {
		a.timeout = k.Timeout()
	}
	return a
}
