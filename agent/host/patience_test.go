package host_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"shoal/agent/host"
)

func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p host.Patience
		hung := make(chan struct{})
		touch := func(storage string, f func() (int, error)) (int, time.Duration, error) {
			start := time.Now()
			v, err := host.Touch(t.Context(), &p, storage, time.Second, f)
			return v, time.Since(start), err
		}
		seven := func() (int, error) { return 7, nil }
		hang := func() (int, error) { <-hung; return 1, nil }

		if v, _, err := touch("a", seven); v != 7 || err != nil {
			t.Errorf("touch: %d, %v", v, err)
		}
		if _, _, err := touch("a", func() (int, error) { return 0, context.Canceled }); !errors.Is(err, context.Canceled) {
			t.Errorf("an error of the touch: %v", err)
		}
		if _, took, err := touch("a", hang); !errors.Is(err, host.ErrHung) || took != time.Second {
			t.Errorf("a hanging touch: %v after %s", err, took)
		}
		// The next one costs nothing, and others' storages are not concerned.
		if _, took, err := touch("a", seven); !errors.Is(err, host.ErrHung) || took != 0 {
			t.Errorf("a touch behind a hanging one: %v after %s", err, took)
		}
		if v, _, err := touch("b", seven); v != 7 || err != nil {
			t.Errorf("another storage: %d, %v", v, err)
		}
		close(hung)
		synctest.Wait()
		if p.Hung("a") {
			t.Error("it came back and counts as hanging")
		}
		if v, _, err := touch("a", seven); v != 7 || err != nil {
			t.Errorf("after it came back: %d, %v", v, err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		hung = make(chan struct{})
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := host.Touch(ctx, &p, "a", time.Second, hang); !errors.Is(err, context.Canceled) {
			t.Errorf("a touch whose context ends: %v", err)
		}
		close(hung)
	})
}
