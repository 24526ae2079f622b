package host

import (
	"context"
	"fmt"
)

// Turn is a lock that is waited for as long as a context lives and no longer. It is for what is held while programs run, which may
// take as long as they like.
type Turn chan struct{}

// NewTurn is a lock that nobody holds.
func NewTurn() Turn { return make(Turn, 1) }

// Take waits for the lock.
func (t Turn) Take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for others to end: %w", ctx.Err())
	}
}

// Give lets the next one have it.
func (t Turn) Give() { <-t }
