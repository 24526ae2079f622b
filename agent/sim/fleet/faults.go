package fleet

import (
	"context"
	"sync"
	"time"
)

// Fault is what befalls one call into a model.
type Fault struct {
	// Delay is how long the call takes. It ends early with its context, where it has one.
	Delay time.Duration
	// Err makes the call fail: before anything is done, or, with Late, after all is done, so that only the answer is lost.
	Err  error
	Late bool
}

// Faults disturbs the calls that an agent makes into the models of its host. What operators and guests do is not disturbed. The
// zero value and nil disturb nothing.
type Faults struct {
	mu     sync.Mutex
	decide func(op string) Fault
}

// Set gives the function that decides on each call, by its name such as "libvirt.start"; nil for no faults. It is
// called by several goroutines.
func (f *Faults) Set(decide func(op string) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decide = decide
}

// enter is the start of a call without a model's lock, since it may take a while. What it gives is to be called at the end
// with the call's error.
func (f *Faults) enter(ctx context.Context, op string) (leave func(error) error, err error) {
	same := func(err error) error { return err }
	if f == nil {
		return same, nil
	}
	f.mu.Lock()
	decide := f.decide
	f.mu.Unlock()
	if decide == nil {
		return same, nil
	}
	fault := decide(op)
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return same, ctx.Err()
		}
	}
	switch {
	case fault.Err == nil:
		return same, nil
	case !fault.Late:
		return same, fault.Err
	default:
		return func(err error) error {
			if err == nil {
				err = fault.Err
			}
			return err
		}, nil
	}
}

// disturb runs a call that changes something.
func (f *Faults) disturb(ctx context.Context, op string, call func() error) error {
	leave, err := f.enter(ctx, op)
	if err != nil {
		return err
	}
	return leave(call())
}

// disturbed runs a call that gives something.
func disturbed[T any](ctx context.Context, f *Faults, op string, call func() (T, error)) (T, error) {
	var none T
	leave, err := f.enter(ctx, op)
	if err != nil {
		return none, err
	}
	v, err := call()
	if err = leave(err); err != nil {
		return none, err
	}
	return v, nil
}
