package network

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// still is a machine whose clock is set by hand and whose network stays as it is.
type still struct{ up time.Duration }

func (s *still) Ready(context.Context) error                  { return nil }
func (s *still) Devices(context.Context) ([]Device, error)    { return nil, nil }
func (s *still) Rename(context.Context, string, string) error { return nil }
func (s *still) Release(context.Context, string) error        { return nil }
func (s *still) Clear(context.Context, string) error          { return nil }
func (s *still) Delete(context.Context, string) error         { return nil }
func (s *still) Reload(context.Context) error                 { return nil }
func (s *still) Reconfigure(context.Context, string) error    { return nil }
func (s *still) Uptime() (time.Duration, error)               { return s.up, nil }
func (s *still) Boot() (string, error)                        { return "this", nil }

// TestWatch: an answer counts once networkd is through, silence until the time is over; then the agent rolls back, too.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		up        time.Duration
		answer    error
		ended     bool
		confirmed bool
	}{
		{"too soon", 104 * time.Second, nil, false, false},
		{"an answer", 106 * time.Second, nil, true, true},
		{"silence", 106 * time.Second, errors.New("no answer"), false, false},
		{"silence for too long", 160 * time.Second, errors.New("no answer"), true, false},
		{"an answer that is too late", 161 * time.Second, nil, true, false},
	} {
		m := &still{up: 100 * time.Second}
		n, err := New(Config{Data: t.TempDir(), Units: t.TempDir(), Machine: m, Guard: func(context.Context) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		p := &Pending{ID: "c1", Change: "x", Boot: "this", Applied: m.up, Deadline: m.up + Patience}
		lock, err := n.lock() // makes the directory
		if err != nil {
			t.Fatal(err)
		}
		lock.Close()
		if err := write(n.path("pending.json"), p); err != nil {
			t.Fatal(err)
		}
		m.up = c.up
		if err := n.look(t.Context(), func(context.Context) (string, error) { return "tls://c:4222", c.answer }); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		last, err := n.Last()
		if err != nil || (last != nil) != c.ended || last != nil && last.Confirmed != c.confirmed {
			t.Errorf("%s: %+v, %v", c.name, last, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n.Watch(ctx, zerolog.Nop(), func(ctx context.Context) (string, error) { return "", ctx.Err() }) // ends with its context
	}
}

// TestApply_NoGuard: a change that nobody would roll back is never begun.
func TestApply_NoGuard(t *testing.T) {
	t.Parallel()
	n, err := New(Config{Data: t.TempDir(), Units: t.TempDir(), Machine: &still{}, Guard: func(context.Context) error { return errors.New("no process") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(t.Context(), MakeBridge{Name: "br0"}, Cut{}); err == nil {
		t.Error("a change without a guard was made")
	}
	if c, err := n.config(); err != nil || c.NetDevOf("br0") != "" {
		t.Errorf("it left %v, %v", c, err)
	}
	if p, err := n.Pending(); p != nil || err != nil {
		t.Errorf("pending: %+v, %v", p, err)
	}
}
