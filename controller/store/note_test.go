package store

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// TestAnswer: the journal keeps what a transaction tells its caller, also where it changes nothing; such a one may come again.
func TestAnswer(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	type kept struct {
		ID, Reply string
		Changes   int
	}
	var want []kept
	for i, c := range []struct {
		kept
		fn func(resource.Tx) error
	}{
		{kept{"r1", `{"n":1}`, 1}, putZone("z")},
		{kept{"r2", `{"n":2}`, 0}, func(resource.Tx) error { return nil }},
		{kept{"r2", `{"n":3}`, 0}, func(resource.Tx) error { return nil }},
	} {
		seq, err := s.Commit(ctx, resource.Request{ID: c.ID, Caller: "ann", Op: "zone.create"}, func(tx resource.Tx) error {
			tx.Answer([]byte(c.Reply))
			return c.fn(tx)
		})
		if err != nil || seq != uint64(i)+1 {
			t.Fatalf("%s is at %d, %v", c.ID, seq, err)
		}
		want = append(want, c.kept)
	}
	var got []kept
	for seq := range want {
		m, err := s.journal.Get(ctx, uint64(seq)+1)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range m.Group.Entries {
			got = append(got, kept{e.Request.ID, string(e.Reply), len(e.Changes)})
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the journal has (-want +got):\n%s", diff)
	}
}

// A call that was refused is recorded beside others, told to those who follow, and may come again with the same id, also after
// a restart.
func TestNotes(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	s := b.store(ctx, js)
	refused := journal.Entry{Request: resource.Request{ID: "r1", Caller: "ann", Op: "vm.create", From: "10.0.0.9"}, At: s.now(), Error: "no room", Reply: []byte(`{"code":"capacity"}`), More: 3}
	if err := s.Note(ctx, []journal.Entry{refused}); !isCode(err, resource.CodeNotLeader) {
		t.Fatalf("a note where nobody leads: %v", err)
	}
	term := lead(ctx, t, s)
	type told struct{ ID, Error string }
	var got []told
	seen := make(chan struct{})
	logged, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Log(logged, 0, func(at journal.Position, after resource.Reader, entries []Entry) error {
			if after.Seq() != at.Seq {
				t.Errorf("the state after message %d is that of %d", at.Seq, after.Seq())
			}
			for _, e := range entries {
				got = append(got, told{e.Request.ID, e.Error})
			}
			if len(got) == 2 {
				close(seen)
			}
			return nil
		})
	}()
	if err := s.Note(ctx, []journal.Entry{refused}); err != nil {
		t.Fatal(err)
	}
	commit(ctx, t, s, "r1", putZone("z"))
	<-seen
	cancel()
	<-done
	if diff := cmp.Diff([]told{{"r1", "no room"}, {"r1", ""}}, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	m, err := s.journal.Get(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(refused, m.Group.Entries[0]); diff != "" {
		t.Errorf("the journal has (-want +got):\n%s", diff)
	}
	if err := s.Note(ctx, []journal.Entry{{Request: resource.Request{ID: "r2"}, At: s.now(), Error: "x"}}); err != nil {
		t.Fatal(err)
	}
	term.end()
	again := b.store(ctx, js)
	lead(ctx, t, again)
	commit(ctx, t, again, "r2", putZone("y"))
	if err := again.Note(ctx, []journal.Entry{{Request: resource.Request{ID: "big"}, Error: strings.Repeat("x", MaxNotes)}}); err == nil {
		t.Error("more than a group's share of notes was taken")
	}
	if err := again.Note(ctx, []journal.Entry{{Request: resource.Request{ID: "r3"}, Changes: []journal.Change{{Kind: "zone", ID: "z"}}}}); err == nil {
		t.Error("a change went around the transaction")
	}
}
