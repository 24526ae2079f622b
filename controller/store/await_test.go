package store

import (
	"context"
	"testing"
	"time"

	"shoal/subjects"
)

// awaitProjection waits until the projection has everything that is committed.
func awaitProjection(ctx context.Context, t testing.TB, s *Store) checkpoint {
	t.Helper()
	stream, err := s.js.Stream(ctx, subjects.BucketStream(subjects.ResourcesBucket))
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, _, err := readCheckpoint(ctx, stream)
		if want := s.current.Load().at; err == nil && c.At == want && c.Ahead == want {
			return c
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the projection stays at %+v (%v), the store is at %+v", c, err, s.current.Load().at)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
