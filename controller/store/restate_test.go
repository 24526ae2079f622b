package store

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// churn fills a store with zones that are changed and deleted, so that most of the journal is overtaken.
func churn(t testing.TB, s *Store, from, to int) {
	t.Helper()
	ctx := testContext(t)
	for i := from; i < to; i++ {
		commit(ctx, t, s, fmt.Sprintf("put-%d", i), putZone(fmt.Sprintf("z%03d", i%40)))
		if i%7 == 3 {
			id := fmt.Sprintf("z%03d", i%40)
			commit(ctx, t, s, fmt.Sprintf("del-%d", i), func(tx resource.Tx) error { return tx.Delete(resource.KindZone, id) })
		}
	}
}

// fromJournal is what a store makes of the journal alone.
func fromJournal(t testing.TB, js jetstream.JetStream) map[string]string {
	t.Helper()
	ctx := testContext(t)
	j, err := journal.Open(ctx, js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Journal: j, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(ctx); err != nil {
		t.Fatalf("load from the journal alone: %v", err)
	}
	return dump(t, s.View())
}

// TestRestateUnderLoad compacts while callers commit and a stand-by follows: nothing is lost anywhere, and revisions stay.
func TestRestateUnderLoad(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	s, standby := b.store(ctx, js), b.store(ctx, b.connect())
	lead(ctx, t, s)
	following := make(chan error, 1)
	go func() { following <- standby.Follow(ctx) }()
	churn(t, s, 0, 200)
	before := s.View()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("w%d-%d", w, i%30)
				if _, err := s.Commit(ctx, request(fmt.Sprintf("load-%d-%d", w, i)), putZone(id)); err != nil {
					t.Errorf("commit during the round: %v", err)
					return
				}
			}
		})
	}
	for range 3 {
		r, err := s.Restate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.journal.Purge(ctx, r)
		if err != nil || n == 0 {
			t.Fatalf("%d messages purged: %v", n, err)
		}
		bound, err := s.journal.Bound(ctx)
		if err != nil || bound != (journal.Bound{First: r.From, Whole: r.Seq}) {
			t.Fatalf("after the purge up to %+v the bound is %+v, %v", r, bound, err)
		}
	}
	close(stop)
	wg.Wait()
	want := dump(t, s.View())
	if diff := cmp.Diff(want, fromJournal(t, b.connect())); diff != "" {
		t.Errorf("what is left of the journal makes another state (-want +got):\n%s", diff)
	}
	if err := standby.Await(ctx, func(r resource.Reader) bool { return r.Seq() == s.Seq() }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, dump(t, standby.View())); diff != "" {
		t.Errorf("the stand-by has another state (-want +got):\n%s", diff)
	}
	for z := range before.All(resource.KindZone) {
		if now := s.View().Get(resource.KindZone, z.Base().ID); now == nil || now.Base().Rev != z.Base().Rev {
			t.Errorf("zone %s was revision %d and is %+v: restating changed it", z.Base().ID, z.Base().Rev, now)
		}
	}
	// Somebody who starts now, with the projection, and one who leads then.
	again := b.store(ctx, b.connect())
	if diff := cmp.Diff(want, dump(t, again.View())); diff != "" {
		t.Errorf("a new controller has another state (-want +got):\n%s", diff)
	}
	first, err := again.journal.FirstSince(ctx, time.Time{})
	if bound, err2 := again.journal.Bound(ctx); err != nil || err2 != nil || first > bound.First {
		t.Errorf("the first message since ever is %d (%v), the bound %+v (%v)", first, err, bound, err2)
	}
	select {
	case err := <-following:
		t.Errorf("the stand-by stopped following: %v", err)
	default:
	}
}

// TestRestateIsNoChange: who reads changes sees none, and nothing in the projection is written for it.
func TestRestateIsNoChange(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	churn(t, s, 0, 20)
	from := s.Seq()
	if _, err := s.Restate(ctx); err != nil {
		t.Fatal(err)
	}
	end := commit(ctx, t, s, "end", putZone("end"))
	done := errors.New("seen")
	err := s.Changes(ctx, from, func(c Committed) error {
		for _, e := range c.Entries {
			if e.Request.Op == journal.OpRestate && len(e.Changes) > 0 {
				t.Errorf("restating shows %d changes", len(e.Changes))
			}
		}
		if c.Seq >= end {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
}

// TestRestateCrashPoints cuts compaction off at each of its steps: the journal is whole at all of them.
func TestRestateCrashPoints(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	term := lead(ctx, t, s)
	churn(t, s, 0, 120)
	check := func(step string) {
		t.Helper()
		if diff := cmp.Diff(dump(t, s.View()), fromJournal(t, b.connect())); diff != "" {
			t.Errorf("after a crash %s the journal makes another state (-want +got):\n%s", step, diff)
		}
	}
	next := func() {
		t.Helper()
		term.end()
		b.stop()
		b.start()
		s = b.store(ctx, b.connect())
		term = lead(ctx, t, s)
	}
	// In the middle of a round: one step of it was written, its mark was not.
	kinds := resource.Kinds()
	if _, err := s.submit(ctx, &call{request: resource.Request{Op: journal.OpRestate}, restate: func(v *view) (journal.Entry, error) {
		changes, _, err := v.restate(kinds, cursor{})
		return journal.Entry{Changes: changes[:len(changes)/2]}, err
	}}); err != nil {
		t.Fatal(err)
	}
	check("within a round")
	next()
	if rounds, err := s.journal.Rounds(ctx); err != nil || len(rounds) != 0 {
		t.Fatalf("a round that was cut off counts: %v, %v", rounds, err)
	}
	churn(t, s, 120, 140)
	r, err := s.Restate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	check("before the purge")
	next()
	rounds, err := s.journal.Rounds(ctx)
	if err != nil || len(rounds) != 1 || rounds[0].From != r.From || rounds[0].Seq != r.Seq {
		t.Fatalf("the round is not found again: %v, %v, want %+v", rounds, err, r)
	}
	// In the middle of the purge: a part of what can go is gone.
	stream, err := s.js.Stream(ctx, subjects.JournalStream)
	if err != nil {
		t.Fatal(err)
	}
	for _, upTo := range []uint64{2, r.From / 2, r.From - 1} {
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(upTo)); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("within the purge, at %d", upTo))
		next()
		if stream, err = s.js.Stream(ctx, subjects.JournalStream); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.journal.Purge(ctx, rounds[0]); err != nil {
		t.Fatal(err)
	}
	check("after the purge")
	next()
	churn(t, s, 140, 160)
	check("later")
	// What was no complete round is refused, and a journal without its beginning is noticed.
	for _, bad := range []journal.Round{{From: r.From + 1, Seq: r.Seq}, {From: s.Seq(), Seq: s.Seq()}} {
		if _, err := s.journal.Purge(ctx, bad); err == nil {
			t.Errorf("purged up to %+v, which is no round", bad)
		}
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(r.From+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.journal.Last(ctx); err == nil {
		t.Error("a journal that lost a part of its only round is taken for whole")
	}
}

// TestRestateNothing: an empty journal can be compacted, too.
func TestRestateNothing(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	commit(ctx, t, s, "put", putZone("z"))
	commit(ctx, t, s, "del", func(tx resource.Tx) error { return tx.Delete(resource.KindZone, "z") })
	r, err := s.Restate(ctx)
	if err != nil || r.From != r.Seq {
		t.Fatalf("the round of nothing is %+v, %v", r, err)
	}
	if _, err := s.journal.Purge(ctx, r); err != nil {
		t.Fatal(err)
	}
	commit(ctx, t, s, "more", putZone("y"))
	if diff := cmp.Diff(dump(t, s.View()), fromJournal(t, b.connect())); diff != "" {
		t.Error(diff)
	}
}
