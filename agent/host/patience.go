package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrHung is a storage that does not answer.
var ErrHung = errors.New("the storage does not answer")

// Patience runs what touches storages that may hang for good, such as the mount of a dead NFS server, where neither a
// signal nor a deadline ends a system call. It gives up on a touch after a limit and leaves it behind. While one is left
// behind, others of the same storage are refused at once: so a dead storage costs a bounded number of threads, and only
// the first touch costs time. The zero value is ready.
type Patience struct {
	mu   sync.Mutex
	left map[string]int
}

// Hung reports whether a touch of the storage was left behind and has not come back.
func (p *Patience) Hung(storage string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left[storage] > 0
}

// Touch runs f, at most for limit. It gives what f gives, ErrHung, or the context's error. f must not write to what the
// caller reads afterwards unless Touch returned without ErrHung: it may still be running.
func Touch[T any](ctx context.Context, p *Patience, storage string, limit time.Duration, f func() (T, error)) (T, error) {
	var zero T
	if p.Hung(storage) {
		return zero, fmt.Errorf("%w: an earlier request is still waiting", ErrHung)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	var mu sync.Mutex
	finished, abandoned := false, false
	go func() {
		v, err := f()
		mu.Lock()
		finished = true
		if abandoned {
			p.mu.Lock()
			if p.left[storage]--; p.left[storage] == 0 {
				delete(p.left, storage)
			}
			p.mu.Unlock()
		}
		mu.Unlock()
		done <- result{v, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var why error
	select {
	case r := <-done:
		return r.v, r.err
	case <-timer.C:
		why = fmt.Errorf("%w within %s", ErrHung, limit)
	case <-ctx.Done():
		why = ctx.Err()
	}
	mu.Lock()
	defer mu.Unlock()
	if finished {
		r := <-done
		return r.v, r.err
	}
	abandoned = true
	p.mu.Lock()
	if p.left == nil {
		p.left = map[string]int{}
	}
	p.left[storage]++
	p.mu.Unlock()
	return zero, why
}
