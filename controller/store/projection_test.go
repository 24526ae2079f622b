package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// believed reads the projection as Load does; the error says why it is not believed.
func believed(ctx context.Context, t testing.TB, s *Store) (building, error) {
	t.Helper()
	return s.readProjection(ctx)
}

func putKey(ctx context.Context, t testing.TB, js jetstream.JetStream, key string, value []byte) {
	t.Helper()
	if _, err := js.Publish(ctx, subjects.BucketSubject(subjects.ResourcesBucket, key), value); err != nil {
		t.Fatal(err)
	}
}

func TestProjection(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	m := lead(ctx, t, s)
	commit(ctx, t, s, "world", benchWorld)
	for i := range 30 {
		commit(ctx, t, s, fmt.Sprint(i), putZone(fmt.Sprintf("z%d", i)))
	}
	commit(ctx, t, s, "delete", func(tx resource.Tx) error { return tx.Delete(resource.KindZone, "z7") })
	c := awaitProjection(ctx, t, s)
	if c.Count != 34 {
		t.Errorf("the checkpoint counts %d resources, want 34", c.Count)
	}
	kv, err := s.js.KeyValue(ctx, subjects.ResourcesBucket)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(ctx, "zone.z3"); err != nil || !cmp.Equal(string(e.Value()), dump(t, s.View())["zone.z3"]) {
		t.Errorf("nats kv get resources zone.z3 shows %v, %v", e, err)
	}
	if _, err := kv.Get(ctx, "zone.z7"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("a deleted zone is still there: %v", err)
	}
	want := dump(t, s.View())
	got, err := believed(ctx, t, s)
	if err != nil || got.at != s.current.Load().at || len(got.values) != 34 {
		t.Fatalf("the projection is not believed: %v (%d values at %v)", err, len(got.values), got.at)
	}
	m.end()

	// More is in the journal than in the projection.
	cfg := Config{Journal: s.journal, Log: zerolog.Nop()} // writes no projection
	ahead, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := ahead.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, dump(t, ahead.View())); diff != "" {
		t.Errorf("read from the journal (-leader +loaded):\n%s", diff)
	}
	m = lead(ctx, t, ahead)
	commit(ctx, t, ahead, "more", func(tx resource.Tx) error {
		return errors.Join(tx.Put(zone("more")), tx.Delete(resource.KindZone, "z8"))
	})
	m.end()
	want = dump(t, ahead.View())
	s = b.store(ctx, b.connect())
	if diff := cmp.Diff(want, dump(t, s.View())); diff != "" {
		t.Errorf("read from projection and journal (-leader +loaded):\n%s", diff)
	}
	// The next leader brings the projection up to date.
	m = lead(ctx, t, s)
	awaitProjection(ctx, t, s)
	m.end()

	// Whatever is wrong with the projection: it is not believed, Load gives the same, and the next leader mends it.
	for name, spoil := range map[string]func(){
		"value":      func() { putKey(ctx, t, s.js, "zone.z1", []byte("rubbish")) },
		"foreign id": func() { putKey(ctx, t, s.js, "zone.z1", []byte(`{"id":"z2"}`)) },
		"stale": func() {
			z := zone("z1")
			z.Rev = 1
			v, _ := encodeResource(z)
			putKey(ctx, t, s.js, "zone.z1", v)
		},
		"missing":    func() { _ = kv.Delete(ctx, "zone.z1") },
		"too much":   func() { putKey(ctx, t, s.js, "zone.ghost", []byte(want["zone.z1"])) },
		"odd key":    func() { putKey(ctx, t, s.js, "nonsense", []byte("x")) },
		"checkpoint": func() { putKey(ctx, t, s.js, checkpointKey, []byte("x")) },
		"no checkpoint": func() {
			_ = kv.Delete(ctx, checkpointKey)
		},
		"of another journal": func() {
			v, _ := json.Marshal(checkpoint{At: journal.Position{Seq: 3, ID: "x"}, Ahead: journal.Position{Seq: 3, ID: "x"}})
			putKey(ctx, t, s.js, checkpointKey, v)
		},
		"ahead of the journal": func() {
			p := journal.Position{Seq: 3000, ID: "x"}
			v, _ := json.Marshal(checkpoint{At: p, Ahead: p})
			putKey(ctx, t, s.js, checkpointKey, v)
		},
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			if _, err := believed(ctx, t, s); err == nil {
				t.Error("it is believed")
			}
			j, err := journal.Open(ctx, s.js, zerolog.Nop())
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := New(Config{Journal: j, JS: s.js, Log: zerolog.Nop()})
			if err != nil {
				t.Fatal(err)
			}
			if err := fresh.Load(ctx); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, dump(t, fresh.View())); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
			m := lead(ctx, t, fresh)
			// The spoiled checkpoint may look as if all were written: the leader's own comes after it.
			commit(ctx, t, fresh, "mend "+name, putZone("mend"))
			want = dump(t, fresh.View())
			awaitProjection(ctx, t, fresh)
			m.end()
			if _, err := believed(ctx, t, fresh); err != nil {
				t.Errorf("it is still not believed: %v", err)
			}
		})
	}
}

// A controller that has lost the lead can't write into the projection of the next one.
func TestProjectionIsFenced(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	m := lead(ctx, t, s)
	commit(ctx, t, s, "a", putZone("a"))
	awaitProjection(ctx, t, s)
	m.end()
	stream, err := s.js.Stream(ctx, subjects.BucketStream(subjects.ResourcesBucket))
	if err != nil {
		t.Fatal(err)
	}
	old := &projector{s: s, stream: stream, dirty: map[string][]byte{}, wake: make(chan struct{}, 1)}
	start := s.current.Load()
	if err := old.takeOver(ctx, start, s.viewOf(start)); err != nil {
		t.Fatal(err)
	}
	two := b.store(ctx, b.connect())
	lead(ctx, t, two)
	commit(ctx, t, two, "b", putZone("a2"))
	awaitProjection(ctx, t, two)
	old.dirty["zone.a"], old.upTo = []byte(`{"id":"a","name":"stale"}`), start.at
	f, err := old.put("zone.a", old.dirty["zone.a"])
	if err != nil {
		t.Fatal(err)
	}
	if err := await(ctx, f); err == nil {
		t.Error("the one who lost the lead has written a key")
	}
	if err := old.mark(ctx); err == nil {
		t.Error("the one who lost the lead has written the checkpoint")
	}
}
