package history

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"shoal/controller/resource"
)

// TestThin holds what is kept to what is promised, for any checkpoints.
func TestThin(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var all []saved
		seq, age := uint64(0), time.Duration(0)
		// Every few minutes, hours or days; from now backwards, then turned round.
		for range rapid.IntRange(0, 600).Draw(t, "checkpoints") {
			age += time.Duration(rapid.IntRange(1, 3000).Draw(t, "minutes")) * time.Minute / time.Duration(rapid.IntRange(1, 30).Draw(t, "often"))
			all = append(all, saved{stored: now.Add(-age), bytes: rapid.Int64Range(1, 1000).Draw(t, "bytes")})
		}
		slices.Reverse(all)
		for i := range all {
			seq += uint64(rapid.IntRange(1, thinApart).Draw(t, "messages"))
			all[i].seq = seq
		}
		first := uint64(rapid.IntRange(0, int(seq/4)).Draw(t, "first"))
		most := rapid.SampledFrom([]int{5, 100, 10000}).Draw(t, "most")
		size := rapid.SampledFrom([]int64{2000, 1 << 40}).Draw(t, "size")
		drop := thin(all, first, now, most, size)
		keep := slices.DeleteFunc(slices.Clone(all), func(c saved) bool { return slices.Contains(drop, c) })
		if len(keep)+len(drop) != len(all) {
			t.Fatalf("%d are kept and %d dropped of %d", len(keep), len(drop), len(all))
		}
		if len(all) > 0 && (len(keep) == 0 || keep[len(keep)-1] != all[len(all)-1]) {
			t.Fatalf("the newest is not kept")
		}
		total := int64(0)
		for _, c := range keep {
			total += c.bytes
		}
		if len(keep) > most || total > size && len(keep) > 1 {
			t.Fatalf("%d of %d bytes are kept, at most %d of %d are to be", len(keep), total, most, size)
		}
		if again := thin(keep, first, now, most, size); len(again) > 0 {
			t.Fatalf("of what was kept %v is dropped", again)
		}
		if most < 10000 || size < 1<<40 {
			return
		}
		for _, c := range drop {
			if c.seq < first {
				continue
			}
			age := now.Sub(c.stored)
			apart := 30 * 24 * time.Hour
			switch {
			case age <= 24*time.Hour:
				t.Fatalf("one of %s ago is dropped", age)
			case age <= 7*24*time.Hour:
				apart = time.Hour
			case age <= 90*24*time.Hour:
				apart = 24 * time.Hour
			}
			i, _ := find(keep, c.seq)
			if i == 0 || c.stored.Sub(keep[i-1].stored) >= apart || keep[i].seq-keep[i-1].seq > thinApart {
				t.Fatalf("one of %s ago is dropped without another near by", age)
			}
		}
	})
}

// TestThinOut_ViewsStay: after checkpoints have gone every moment shows what it did, read from further back.
func TestThinOut_ViewsStay(t *testing.T) {
	b := newBench(t, Config{CheckpointEvery: 2})
	const n = 40
	names := map[uint64]string{} // of z by the sequence that gave it
	for i := range n {
		name := fmt.Sprintf("name%d", i)
		b.commit(rid(i), "ann", "zone.update", put(zone("z", name)))
		names[b.store.Seq()] = name
		b.indexed()
		if i%4 == 3 {
			b.until("a checkpoint is written", func() bool { _, _, _, states := b.past.Usage(); return states >= i/4 })
		}
	}
	b.past.thinOut(b.ctx, time.Now().Add(time.Hour))
	_, bytes, _, before := b.past.Usage()
	if before < n/8 || bytes == 0 {
		t.Fatalf("%d checkpoints of %d bytes, want all that were made today", before, bytes)
	}
	look := func(when string) {
		t.Helper()
		for seq, name := range names {
			v, err := b.past.At(b.ctx, Moment{Seq: seq, Time: time.Now()})
			if err != nil {
				t.Fatalf("%s: at %d: %v", when, seq, err)
			}
			if z, ok := v.Get(resource.KindZone, "z").(*resource.Zone); !ok || z.Name != name {
				t.Errorf("%s: at %d the zone is %+v, want %s", when, seq, z, name)
			}
		}
	}
	look("before")
	b.past.thinOut(b.ctx, time.Now().AddDate(1, 0, 0)) // so that all are of one month, long ago
	_, less, _, after := b.past.Usage()
	files, err := filepath.Glob(filepath.Join(b.dir, "state-*"))
	if err != nil || len(files) != after || after > 2 || less == 0 || less >= bytes {
		t.Fatalf("%d checkpoints of %d bytes are left of %d, in files %v, %v", after, less, before, files, err)
	}
	look("thinned")
	b.stop()
	// One that can't be read is made no use of when the directory is opened again.
	if err := os.WriteFile(files[0], []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.open(Config{CheckpointEvery: 1000})
	look("opened again")
	if _, err := os.Stat(files[0]); err == nil {
		t.Errorf("a damaged checkpoint is still there")
	}
}
