package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/desired"
)

// item makes an item of the given kind with some content.
func item(t testing.TB, kind desired.Kind, id string, rev uint64, content string) desired.Item {
	t.Helper()
	it, err := desired.NewItem(kind, id, map[string]string{"content": content})
	if err != nil {
		t.Fatal(err)
	}
	it.Rev = rev
	return it
}

// document makes a whole document.
func document(t testing.TB, gen uint64, items ...desired.Item) desired.Document {
	t.Helper()
	doc := desired.Document{Head: desired.Head{Host: "h1", Gen: gen, Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	for _, it := range items {
		b, err := it.Encode()
		if err != nil {
			t.Fatal(err)
		}
		doc.Head.Items[it.Ref()] = desired.Hash(b)
		doc.Items[it.Ref()] = it
	}
	return doc
}

func mustOpen(t testing.TB, dir string) *Ledger {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustAccept(t testing.TB, l *Ledger, doc desired.Document) {
	t.Helper()
	if err := l.Accept(doc); err != nil {
		t.Fatal(err)
	}
}

// reopen is what the next process finds.
func reopen(t testing.TB, l *Ledger) *Ledger {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, l.dir)
}

func wantGen(t testing.TB, l *Ledger, gens ...uint64) desired.Document {
	t.Helper()
	doc, ok := l.Document()
	if !ok || !slices.Contains(gens, doc.Head.Gen) {
		t.Fatalf("document is generation %d (%v), want one of %d", doc.Head.Gen, ok, gens)
	}
	return doc
}

func TestAccept_SurvivesReopen(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	if _, ok := l.Document(); ok {
		t.Fatal("a new ledger has a document")
	}
	want := document(t, 7, item(t, desired.KindDomain, "a", 5, "x<y>"), item(t, desired.KindNetDev, "b", 7, "z"))
	want.Head.Policy = map[desired.Kind]desired.Policy{desired.KindDomain: desired.PolicyHold}
	mustAccept(t, l, want)
	next := document(t, 9, want.Items[desired.Ref{Kind: desired.KindDomain, ID: "a"}], item(t, desired.KindNetDev, "c", 9, "new"))
	next.Head.Policy = want.Head.Policy
	mustAccept(t, l, next)
	l = reopen(t, l)
	if d := cmp.Diff(next, wantGen(t, l, 9)); d != "" {
		t.Error(d)
	}
	if l.Damage() != nil {
		t.Error(l.Damage())
	}
}

// TestRead: another process sees what is accepted, while the ledger is open, and where only the spare is there.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := Read(dir); ok || err != nil {
		t.Fatalf("a document out of nothing: %v", err)
	}
	l := mustOpen(t, dir)
	want := document(t, 7, item(t, desired.KindDomain, "a", 5, "x"))
	mustAccept(t, l, want)
	for range 2 {
		got, ok, err := Read(dir)
		if err != nil || !ok || !cmp.Equal(want, got) {
			t.Fatalf("%v, %v: %s", ok, err, cmp.Diff(want, got))
		}
		if err := os.Rename(filepath.Join(dir, logFile), filepath.Join(dir, spareFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func TestDocument_IsACopy(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	doc := document(t, 1, item(t, desired.KindDomain, "a", 1, "x"))
	mustAccept(t, l, doc)
	clear(doc.Items)
	got, _ := l.Document()
	clear(got.Items)
	clear(got.Head.Items)
	if again := wantGen(t, l, 1); len(again.Items) != 1 || len(again.Head.Items) != 1 {
		t.Error("a caller's change reached the ledger")
	}
}

func TestAccept_Refuses(t *testing.T) {
	a, b := item(t, desired.KindDomain, "a", 1, "x"), item(t, desired.KindDomain, "b", 1, "y")
	other := item(t, desired.KindDomain, "a", 1, "other")
	with := func(gen uint64, change func(*desired.Document)) desired.Document {
		d := document(t, gen, a, b)
		change(&d)
		return d
	}
	for name, tt := range map[string]struct {
		doc  desired.Document
		want error
	}{
		"an older generation":                  {document(t, 4, a, b), ErrOlder},
		"the same generation with less":        {document(t, 5, a), ErrSameGeneration},
		"the same generation, other item":      {document(t, 5, other, b), ErrSameGeneration},
		"the same generation, shrink":          {with(5, func(d *desired.Document) { d.Head.Shrink = true }), ErrSameGeneration},
		"another host":                         {with(6, func(d *desired.Document) { d.Head.Host = "h2" }), ErrWrongHost},
		"no host":                              {with(6, func(d *desired.Document) { d.Head.Host = "" }), ErrInvalid},
		"no generation":                        {with(0, func(*desired.Document) {}), ErrInvalid},
		"an item whose hash differs":           {with(6, func(d *desired.Document) { d.Items[a.Ref()] = other }), ErrInvalid},
		"the same generation, tampered item":   {with(5, func(d *desired.Document) { d.Items[a.Ref()] = other }), ErrInvalid},
		"an item that is missing":              {with(6, func(d *desired.Document) { delete(d.Items, a.Ref()) }), ErrInvalid},
		"an item that the head does not list":  {with(6, func(d *desired.Document) { delete(d.Head.Items, a.Ref()) }), ErrInvalid},
		"an item under another's name":         {with(6, func(d *desired.Document) { d.Items[a.Ref()] = b }), ErrInvalid},
		"a spec that is no JSON":               {with(6, func(d *desired.Document) { it := a; it.Rev, it.Spec = 2, []byte("{"); d.Items[a.Ref()] = it }), ErrInvalid},
		"a head that lists a hash of nothing":  {with(6, func(d *desired.Document) { d.Head.Items[a.Ref()] = "" }), ErrInvalid},
		"an item exchanged for one not listed": {with(6, func(d *desired.Document) { delete(d.Items, a.Ref()); d.Items[desired.Ref{Kind: "x", ID: "y"}] = b }), ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, t.TempDir())
			mustAccept(t, l, document(t, 5, a, b))
			if err := l.Accept(tt.doc); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			for _, l := range []*Ledger{l, reopen(t, l)} {
				if d := cmp.Diff(document(t, 5, a, b), wantGen(t, l, 5)); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func TestAccept_SameDocumentAgainWritesNothing(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	doc := document(t, 5, item(t, desired.KindDomain, "a", 1, "x"))
	mustAccept(t, l, doc)
	size := l.size
	mustAccept(t, l, doc)
	if l.size != size {
		t.Errorf("log grew from %d to %d", size, l.size)
	}
}

func TestOpen_OneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	if _, err := Open(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second Open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir)
	if err := l.Accept(document(t, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

func TestActs_AtMostOnce(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	check := func(seq uint64, done bool, text string) {
		t.Helper()
		for range 2 {
			gotSeq, gotDone, gotText := l.Last("vm")
			if gotSeq != seq || gotDone != done || gotText != text {
				t.Errorf("Last: %d %v %q, want %d %v %q", gotSeq, gotDone, gotText, seq, done, text)
			}
			l = reopen(t, l)
		}
	}
	check(0, false, "")
	if err := l.Begin("vm", 3); err != nil {
		t.Fatal(err)
	}
	check(3, false, "")
	for _, seq := range []uint64{0, 1, 3} {
		if err := l.Begin("vm", seq); err == nil || seq > 0 && !errors.Is(err, ErrActBegun) {
			t.Errorf("Begin(%d): %v", seq, err)
		}
	}
	if err := l.End("vm", 2, ""); err == nil {
		t.Error("ended an act that was not the last begun")
	}
	if err := l.End("other", 0, ""); err == nil {
		t.Error("ended an act that was never begun")
	}
	if err := l.End("vm", 3, "the guest said no"); err != nil {
		t.Fatal(err)
	}
	check(3, true, "the guest said no")
	if err := l.Begin("vm", 4); err != nil {
		t.Fatal(err)
	}
	check(4, false, "")
}

func TestCompaction_KeepsEverythingAndBoundsTheLog(t *testing.T) {
	const slack = 64 << 10
	l, err := open(t.TempDir(), slack, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<10) // 16 KiB
	stays := item(t, desired.KindDomain, "stays", 1, "x")
	if err := l.Begin("stays", 1); err != nil {
		t.Fatal(err)
	}
	var doc desired.Document
	for gen := uint64(1); gen <= 40; gen++ {
		doc = document(t, gen, stays, item(t, desired.KindAddrSet, "big", gen, fmt.Sprint(gen, big)))
		mustAccept(t, l, doc)
		if limit := 2*l.live + slack + 20<<10; l.size > limit {
			t.Fatalf("log of %d bytes, at most %d expected", l.size, limit)
		}
	}
	if _, err := os.Stat(filepath.Join(l.dir, spareFile)); err != nil {
		t.Errorf("no compaction: %v", err)
	}
	l = reopen(t, l)
	if d := cmp.Diff(doc, wantGen(t, l, 40)); d != "" {
		t.Error(d)
	}
	if seq, _, _ := l.Last("stays"); seq != 1 {
		t.Error("compaction lost an act")
	}
	// The size that decides on compaction is what compaction gives.
	content, err := l.state.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.state.size(), int64(len(content)); got < want*9/10 || got > want*11/10 {
		t.Errorf("state's size is %d, encoded %d", got, want)
	}
}

func TestCompaction_ForgetsOldActsOfAbsentDomainsOnly(t *testing.T) {
	var s state
	s.accept(desired.Head{Host: "h1", Gen: 1}, map[desired.Ref]desired.Item{{Kind: desired.KindDomain, ID: "vm0"}: item(t, desired.KindDomain, "vm0", 1, "x")}, 10, nil)
	for i := range maxActs + 5 {
		s.note(act{ID: fmt.Sprint("vm", i), Seq: 1})
	}
	s.note(act{ID: "vm1", Seq: 2})
	log, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	got := replay(log).state
	if len(got.acts) != maxActs {
		t.Errorf("%d acts, want %d", len(got.acts), maxActs)
	}
	for id, want := range map[string]uint64{"vm0": 1, "vm1": 2, "vm2": 0, "vm6": 0, "vm7": 1} {
		if got.acts[id].Seq != want {
			t.Errorf("act of %s is %d, want %d", id, got.acts[id].Seq, want)
		}
	}
}

// errCrash ends the process's life.
var errCrash = errors.New("crash")

// TestCrash_AtEveryStep ends the process before every step of a series of accepts with a compaction. The next one
// finds the last accepted document, or the one that was being accepted.
func TestCrash_AtEveryStep(t *testing.T) {
	big := strings.Repeat("x", 3<<10)
	docs := make([]desired.Document, 9)
	for i := range docs {
		docs[i] = document(t, uint64(i+1), item(t, desired.KindDomain, "a", 1, "x"), item(t, desired.KindAddrSet, "big", uint64(i+1), fmt.Sprint(i, big)))
	}
	steps := map[string]bool{}
	for n := 0; ; n++ {
		dir := t.TempDir()
		left, crashed := n, ""
		l, err := open(dir, 8<<10, func(step string) error {
			if left--; left < 0 {
				crashed = step
				return errCrash
			}
			return nil
		})
		var accepted uint64
		if err == nil {
			for _, doc := range docs {
				if err = l.Accept(doc); err != nil {
					break
				}
				accepted = doc.Head.Gen
			}
			_ = l.Close()
		}
		if err != nil && !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		steps[crashed] = true
		next := mustOpen(t, dir)
		if next.Damage() != nil {
			t.Errorf("crash %s in generation %d: %v", crashed, accepted+1, next.Damage())
		}
		if accepted > 0 {
			doc := wantGen(t, next, accepted, accepted+1)
			if d := cmp.Diff(docs[doc.Head.Gen-1], doc); d != "" {
				t.Errorf("crash %s: %s", crashed, d)
			}
		}
		// And life goes on.
		mustAccept(t, next, document(t, 100, item(t, desired.KindDomain, "a", 1, "x")))
		wantGen(t, reopen(t, next), 100)
		if err == nil {
			break
		}
	}
	for _, step := range []string{
		"before write", "within write", "before sync", "before compaction", "within compaction", "before spare", "before swap", "before directory sync",
	} {
		if !steps[step] {
			t.Errorf("no crash %s was tried", step)
		}
	}
}

// TestAccept_GoesOnAfterAFailedWrite shows that a disk that fails once does no lasting harm.
func TestAccept_GoesOnAfterAFailedWrite(t *testing.T) {
	for _, step := range []string{"before write", "within write", "before sync"} {
		fail := false
		l, err := open(t.TempDir(), compactSlack, func(s string) error {
			if fail && s == step {
				return errors.New("no space left on device")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		mustAccept(t, l, document(t, 1, item(t, desired.KindDomain, "a", 1, "x")))
		fail = true
		if err := l.Accept(document(t, 2)); err == nil {
			t.Fatal("accepted although the disk failed")
		}
		wantGen(t, l, 1)
		fail = false
		mustAccept(t, l, document(t, 3, item(t, desired.KindDomain, "a", 3, "y")))
		l = reopen(t, l)
		wantGen(t, l, 3)
		if l.Damage() != nil {
			t.Error(l.Damage())
		}
	}
}

// series is a log of several generations, and where each one's record ends.
func series(t testing.TB) (log []byte, ends []int, docs []desired.Document) {
	t.Helper()
	dir := t.TempDir()
	l := mustOpen(t, dir)
	for gen := uint64(1); gen <= 4; gen++ {
		items := []desired.Item{item(t, desired.KindDomain, "same", 1, "x"), item(t, desired.KindDomain, "a", gen, fmt.Sprint(gen))}
		if gen == 3 {
			items = append(items, item(t, desired.KindNetDev, "b", gen, "only here and later"))
		}
		docs = append(docs, document(t, gen, items...))
		mustAccept(t, l, docs[gen-1])
		ends = append(ends, int(l.size))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	return log, ends, docs
}

func TestOpen_TornAtEveryByte(t *testing.T) {
	log, ends, docs := series(t)
	for cut := range len(log) + 1 {
		r := replay(log[:cut])
		want := 0
		for _, end := range ends {
			if end <= cut {
				want++
			}
		}
		if !r.state.has != (want == 0) || want > 0 && !cmp.Equal(docs[want-1], r.state.doc) {
			t.Fatalf("cut at %d: generation %d, want %d", cut, r.state.doc.Head.Gen, want)
		}
		if len(r.damage) > 0 {
			t.Fatalf("cut at %d: a torn tail is called damage: %v", cut, r.damage)
		}
	}
}

func TestOpen_DamagedByteNeverGivesAnUnknownDocument(t *testing.T) {
	log, ends, docs := series(t)
	for at := range log {
		bad := bytes.Clone(log)
		bad[at] ^= 0x55
		r := replay(bad)
		if len(r.damage) == 0 && (at < ends[len(ends)-2] || r.state.doc.Head.Gen == docs[len(docs)-1].Head.Gen) {
			t.Fatalf("damage at %d was not told", at)
		}
		if at < ends[0] {
			// The first record holds an item that all need, so nothing may be whole; never is it something else.
			if r.state.has {
				t.Fatalf("damage at %d in the first record: generation %d", at, r.state.doc.Head.Gen)
			}
			continue
		}
		if !r.state.has || !cmp.Equal(docs[r.state.doc.Head.Gen-1], r.state.doc) {
			t.Fatalf("damage at %d: has %v, generation %d", at, r.state.has, r.state.doc.Head.Gen)
		}
		if at < ends[2] && r.state.doc.Head.Gen != 4 && at >= ends[0] {
			t.Fatalf("damage at %d, before the last record, left generation %d in force", at, r.state.doc.Head.Gen)
		}
	}
}

func TestOpen_DamageIsToldKeptAndLeft(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	first := document(t, 1, item(t, desired.KindDomain, "a", 1, "x"))
	mustAccept(t, l, first)
	end := l.size
	mustAccept(t, l, document(t, 2, item(t, desired.KindDomain, "a", 2, "y")))
	if err := l.Begin("a", 9); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	path := filepath.Join(dir, logFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[end+30] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, dir)
	if l.Damage() == nil || !strings.Contains(l.Damage().Error(), damagedFile) {
		t.Errorf("Damage: %v", l.Damage())
	}
	if d := cmp.Diff(first, wantGen(t, l, 1)); d != "" {
		t.Error(d)
	}
	if seq, _, _ := l.Last("a"); seq != 9 {
		t.Error("the act after the damage was lost")
	}
	kept, _ := filepath.Glob(filepath.Join(dir, damagedFile+"*"))
	if len(kept) != 1 {
		t.Fatalf("kept %v", kept)
	}
	if b, _ := os.ReadFile(kept[0]); !bytes.Equal(b, raw) {
		t.Error("the damaged file was not kept as it was")
	}
	l = reopen(t, l)
	if l.Damage() != nil {
		t.Errorf("told twice: %v", l.Damage())
	}
	wantGen(t, l, 1)
}

func TestOpen_SpareStandsInForALogOfGarbage(t *testing.T) {
	for name, garbage := range map[string][]byte{"rubbish": []byte("what is this"), "zeros": make([]byte, 5000), "empty": nil} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := mustOpen(t, dir)
			mustAccept(t, l, document(t, 1, item(t, desired.KindDomain, "a", 1, "x")))
			if err := l.compact(true); err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
			if err := os.WriteFile(filepath.Join(dir, logFile), garbage, 0o600); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, dir)
			wantGen(t, l, 1)
			if l.Damage() == nil {
				t.Error("no word of the damage")
			}
			wantGen(t, reopen(t, l), 1)
		})
	}
}

// FuzzReplay holds the decoder to: no panic, and every document it gives is whole.
func FuzzReplay(f *testing.F) {
	log, ends, _ := series(f)
	f.Add(log)
	f.Add(log[:ends[1]+7])
	f.Add(append(bytes.Clone(log[ends[0]:]), log[:ends[0]]...))
	f.Add([]byte(magic))
	record, _ := actRecord(act{ID: "a", Seq: 1})
	f.Add(append(record, 0, 0, 0))
	f.Fuzz(func(t *testing.T, log []byte) {
		r := replay(log)
		if r.good > int64(len(log)) {
			t.Fatalf("good up to %d of %d", r.good, len(log))
		}
		if !r.state.has {
			return
		}
		if len(r.state.doc.Items) != len(r.state.doc.Head.Items) {
			t.Fatal("items are missing")
		}
		if _, err := r.state.encode(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzReplayRecords fuzzes what stands in sound records.
func FuzzReplayRecords(f *testing.F) {
	head, _ := document(f, 1).Head.Encode()
	f.Add(byte(typeDocument), appendBytes(nil, head))
	f.Add(byte(typeAct), []byte(`{"id":"a","seq":1}`))
	f.Add(byte('?'), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		b := append(make([]byte, prefixLen), kind)
		r := replay(frame(append(b, body...)))
		if r.state.has && len(r.state.doc.Items) != len(r.state.doc.Head.Items) {
			t.Fatal("items are missing")
		}
	})
}

// addrSet is a security group's item of n addresses, of which the first is set apart by rev.
func addrSet(b testing.TB, id string, n int, rev uint64) desired.Item {
	b.Helper()
	set := desired.AddrSet{Name: "shs-" + id}
	for i := range n {
		set.Addrs = append(set.Addrs, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	set.Addrs[0] = netip.AddrFrom4([4]byte{11, byte(rev >> 16), byte(rev >> 8), byte(rev)})
	it, err := desired.NewItem(desired.KindAddrSet, id, set)
	if err != nil {
		b.Fatal(err)
	}
	it.Rev = rev
	return it
}

// BenchmarkAccept is one item changed in documents of several forms, with the sync. Compare with BenchmarkSync, which is
// the disk alone.
func BenchmarkAccept(b *testing.B) {
	for _, bb := range []struct {
		name    string
		items   int // small ones besides
		members int // of the one that changes
	}{{"500 items, a small one changed", 500, 10}, {"500 items, 1 of 10000 members changed", 500, 10_000}} {
		b.Run(bb.name, func(b *testing.B) {
			l := mustOpen(b, b.TempDir())
			var items []desired.Item
			for i := range bb.items {
				items = append(items, item(b, desired.KindDomain, fmt.Sprint("vm", i), 1, strings.Repeat("x", 1000)))
			}
			var rev uint64
			for b.Loop() {
				b.StopTimer()
				rev++
				doc := document(b, rev, append(slices.Clone(items), addrSet(b, "group", bb.members, rev))...)
				b.StartTimer()
				mustAccept(b, l, doc)
			}
		})
	}
}

// BenchmarkSync is what a record of 160 KB costs on this disk at least.
func BenchmarkSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 160<<10)
	for b.Loop() {
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen reads a ledger of 50 MB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l := mustOpen(b, dir)
	var items []desired.Item
	for i := range 300 {
		items = append(items, addrSet(b, fmt.Sprint("group", i), 10_000, 1))
	}
	mustAccept(b, l, document(b, 1, items...))
	_ = l.Close()
	for b.Loop() {
		l, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		_ = l.Close()
	}
}
