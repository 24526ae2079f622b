package controller

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal/controller/identity"
	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/controller/store"
)

// TestCompactor_Limits: history stays as long as it is to, and goes earlier only where the journal would become too large.
func TestCompactor_Limits(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	id, err := identity.Open(filepath.Join(dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := site.Open(ctx, site.Config{Name: "c", Identity: id, Dir: filepath.Join(dir, "nats"), NoSync: true, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	book, err := journal.Open(ctx, s.JetStream(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.New(store.Config{Journal: book, JS: s.JetStream(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Load(ctx); err != nil {
		t.Fatal(err)
	}
	leading, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = db.Lead(leading) }()
	t.Cleanup(func() { stop(); <-ended })
	for !db.Leading() {
		time.Sleep(time.Millisecond)
	}
	n := 0
	grow := func(by int) {
		t.Helper()
		for range by {
			n++
			if _, err := db.Commit(ctx, resource.Request{ID: fmt.Sprint(n), Caller: "ann", Op: "test"}, func(tx resource.Tx) error {
				return tx.Put(&resource.Zone{Meta: resource.Meta{ID: "z", Name: fmt.Sprint(n)}, State: resource.Enabled})
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	ahead, bytes := time.Duration(0), uint64(0)
	k := &compactor{
		store: db, book: book, keep: 100 * time.Hour, log: zerolog.Nop(), now: func() time.Time { return time.Now().Add(ahead) },
		size: func(context.Context) (uint64, uint64, error) { return uint64(n), bytes, nil },
	}
	auto := func() (rounds int, first uint64) {
		t.Helper()
		if err := k.auto(ctx); err != nil {
			t.Fatal(err)
		}
		all, err := book.Rounds(ctx)
		if err != nil {
			t.Fatal(err)
		}
		bound, err := book.Bound(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(all), bound.First
	}
	grow(10)
	if rounds, first := auto(); rounds != 0 || first != 1 {
		t.Errorf("a small journal: %d rounds, from %d", rounds, first)
	}
	grow(roundGrowth)
	if rounds, first := auto(); rounds != 1 || first != 1 {
		t.Errorf("a journal that has grown: %d rounds, from %d; its history is young", rounds, first)
	}
	if rounds, _ := auto(); rounds != 1 {
		t.Errorf("%d rounds although nothing was added", rounds)
	}
	grow(roundGrowth)
	if rounds, _ := auto(); rounds != 1 {
		t.Errorf("%d rounds within a tenth of what is to be kept", rounds)
	}
	ahead = 11 * time.Hour
	if rounds, first := auto(); rounds != 2 || first != 1 {
		t.Errorf("later: %d rounds, from %d", rounds, first)
	}
	ahead = 101 * time.Hour
	if rounds, first := auto(); rounds != 1 || first <= roundGrowth {
		// Both were made in the same second of the server's clock: the newest that is old enough counts.
		t.Errorf("after what is to be kept: %d rounds, from %d", rounds, first)
	}
	ahead = 0
	grow(roundGrowth)
	before := db.Seq()
	k.maxBytes, bytes = 1000, 2000
	ahead = 103 * time.Hour
	k.keep = 10_000 * time.Hour
	if _, first := auto(); first <= before {
		t.Errorf("a journal that is too large begins at %d, it was at %d: size wins over age", first, before)
	}
	k.keep, k.maxBytes = 0, 0
	grow(roundGrowth)
	if rounds, _ := auto(); rounds != 1 {
		t.Errorf("%d rounds although there are no limits", rounds)
	}
	if got, _ := resource.Find[*resource.Zone](db.View(), "z"); got == nil || got.Name != fmt.Sprint(n) {
		t.Errorf("the zone is %+v", got)
	}
}
