package controller

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// bells wake those who do tasks of the controller's own: each is rung when a task for it may be there.
type bells map[resource.Kind]chan struct{}

// newBells makes bells that have been rung once: what an earlier leader did not get to is looked for.
func newBells(kinds ...resource.Kind) bells {
	b := bells{}
	for _, k := range kinds {
		b[k] = make(chan struct{}, 1)
		b.ring(k)
	}
	return b
}

func (b bells) ring(k resource.Kind) {
	select {
	case b[k] <- struct{}{}:
	default:
	}
}

// ringEvery is how often all bells are rung without a reason that is known, since changes may be missed.
const ringEvery = time.Minute

// ringBells rings when a task is made, until ctx ends.
func (c *controller) ringBells(ctx context.Context, b bells) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return c.changes(ctx, func(done store.Committed) {
			for _, e := range done.Entries {
				for _, ch := range e.Changes {
					if t, ok := ch.New.(*resource.Task); ok && t.State == resource.TaskRunning && b[t.ResourceKind] != nil {
						b.ring(t.ResourceKind)
					}
				}
			}
		})
	})
	group.Go(func() error {
		tick := time.NewTicker(ringEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				for k := range b {
					b.ring(k)
				}
			}
		}
	})
	return group.Wait()
}

// endTask records how a task of the controller's own came out.
func endTask(ctx context.Context, s *store.Store, op, id string, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var e *resource.Error
	if failure != nil && !errors.As(failure, &e) {
		e = &resource.Error{Code: resource.CodeInternal, Message: failure.Error(), Remedy: "read the controller's log of this moment"}
	}
	_, err := s.Commit(ctx, resource.Request{ID: uuid.NewString(), Caller: resource.CallerController, Op: op + ".done"},
		func(tx resource.Tx) error { return plan.EndTask(tx, id, e) })
	return err
}
