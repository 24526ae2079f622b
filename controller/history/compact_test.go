package history

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"shoal/controller/resource"
)

// TestCompactedJournal: what was said once more is no call and no version; before the bound nothing is known, and says so; from it on
// every moment is whole, also for an index that is made anew from what is left.
func TestCompactedJournal(t *testing.T) {
	b := newBench(t, Config{SegmentRows: 4})
	for i := range 10 {
		b.commit(rid(i), "ann", "zone.create", put(zone(fmt.Sprintf("z%d", i), "before")))
	}
	old := b.store.Seq()
	b.commit("drop", "ann", "zone.delete", func(tx resource.Tx) error { return tx.Delete(resource.KindZone, "z0") })
	round, err := b.store.Restate(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.book.Purge(b.ctx, round); err != nil {
		t.Fatal(err)
	}
	b.commit("after", "bob", "zone.update", put(zone("z1", "after")))
	look := func(when string) {
		t.Helper()
		b.indexed()
		for _, call := range b.calls(Filter{}) {
			if call != "after" {
				t.Errorf("%s: %q is listed, which the journal does not have any more, or which was none", when, call)
			}
		}
		if m, err := b.past.Parse(b.ctx, fmt.Sprint(old)); !resource.HasCode(err, resource.CodeNotFound) {
			t.Errorf("%s: a moment before the bound: %+v, %v", when, m, err)
		}
		if _, err := b.past.At(b.ctx, Moment{Seq: old}); !resource.HasCode(err, resource.CodeNotFound) {
			t.Errorf("%s: a view from before the bound: %v", when, err)
		}
		for seq, want := range map[uint64]string{round.Seq: "before", b.store.Seq(): "after"} {
			view, err := b.past.At(b.ctx, Moment{Seq: seq})
			if err != nil {
				t.Fatalf("%s: at %d: %v", when, seq, err)
			}
			n := 0
			for range view.All(resource.KindZone) {
				n++
			}
			z, ok := view.Get(resource.KindZone, "z1").(*resource.Zone)
			if !ok || n != 9 || z.Name != want {
				t.Errorf("%s: at %d there are %d zones, z1 is %+v, want 9 and %s", when, seq, n, z, want)
			}
		}
	}
	look("an index that saw it")
	b.stop()
	files, err := filepath.Glob(filepath.Join(b.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	b.open(Config{SegmentRows: 4})
	look("an index from what is left")
}
