package history

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
)

func TestMain(m *testing.M) {
	// A check may be a whole server and dozens of transactions; -rapid.checks=N does more.
	if err := flag.Set("rapid.checks", "12"); err != nil {
		panic(err)
	}
	// The server's own, which waits for the stream that HISTORY is sourced from.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).trySetupSourceConsumer.func3"))
}

// TestSearch_EqualsModel: whatever is asked for, the index finds what looking at every entry finds.
func TestSearch_EqualsModel(t *testing.T) {
	b := newBench(t, Config{SegmentRows: 16})
	type entry struct {
		id, caller, op, zone, name string
		outcome                    Outcome
	}
	var model []entry
	names := map[string]string{}
	for i := range 120 {
		e := entry{id: rid(i), caller: []string{"ann", "bob", "controller"}[i%3], op: []string{"zone.create", "zone.update"}[i%2], outcome: Changed}
		switch {
		case i%7 == 3:
			e.outcome = Refused
			if err := b.store.Note(b.ctx, []journal.Entry{{Request: resource.Request{ID: e.id, Caller: e.caller, Op: e.op}, At: time.Now().UTC(), Error: "no"}}); err != nil {
				t.Fatal(err)
			}
		case i%11 == 5:
			e.outcome = Read
			if err := b.store.Note(b.ctx, []journal.Entry{{Request: resource.Request{ID: e.id, Caller: e.caller, Op: e.op}, At: time.Now().UTC()}}); err != nil {
				t.Fatal(err)
			}
		default:
			e.zone, e.name = fmt.Sprintf("z%d", i%5), fmt.Sprintf("name%d", i%13)
			b.commit(e.id, e.caller, e.op, put(zone(e.zone, e.name)))
			names[e.zone] += " " + e.name + " "
		}
		model = append(model, e)
	}
	rapid.Check(t, func(r *rapid.T) {
		pick := func(label string, options ...string) string { return rapid.SampledFrom(options).Draw(r, label) }
		f := Filter{Oldest: rapid.Bool().Draw(r, "oldest"), Limit: rapid.IntRange(1, 150).Draw(r, "limit"), Offset: rapid.IntRange(0, 30).Draw(r, "offset")}
		if p := pick("caller", "", "ann", "a*", "*", "nobody"); p != "" {
			f.Callers = []string{p}
		}
		if p := pick("op", "", "zone.*", "zone.create"); p != "" {
			f.Ops = []string{p}
		}
		f.Outcome = Outcome(pick("outcome", "", "changed", "read", "refused"))
		f.Resource = pick("resource", "", "z1", "name3", "nothing")
		if rapid.Bool().Draw(r, "kind") {
			f.Kind = resource.KindZone
		}
		if rapid.IntRange(0, 9).Draw(r, "request") == 0 {
			f.Request = "r9"
		}
		want := []string{}
		for _, e := range model {
			ok := (f.Outcome == "" || e.outcome == f.Outcome) && (f.Request == "" || e.id == f.Request) && (f.Kind == "" || e.zone != "")
			if len(f.Callers) > 0 {
				m, err := filepath.Match(f.Callers[0], e.caller)
				ok = ok && m && err == nil
			}
			if len(f.Ops) > 0 {
				m, err := filepath.Match(f.Ops[0], e.op)
				ok = ok && m && err == nil
			}
			if f.Resource != "" {
				ok = ok && e.zone != "" && (e.zone == f.Resource || strings.Contains(names[e.zone], " "+f.Resource+" "))
			}
			if ok {
				want = append(want, e.id)
			}
		}
		if !f.Oldest {
			slices.Reverse(want)
		}
		total := len(want)
		want = want[min(f.Offset, len(want)):]
		want = want[:min(f.Limit, len(want))]
		got, err := b.past.Calls(b.ctx, f, nil)
		if err != nil {
			r.Fatal(err)
		}
		ids := []string{}
		for _, c := range got.Items {
			ids = append(ids, c.ID)
		}
		if diff := cmp.Diff(want, ids); diff != "" {
			r.Fatalf("%+v (-want +got):\n%s", f, diff)
		}
		if got.Total != total {
			r.Fatalf("%+v: total %d, want %d", f, got.Total, total)
		}
		// Who may see only some sees those, in the same order.
		only, err := b.past.Calls(b.ctx, f, func(c Call) bool { return c.Caller == "ann" })
		if err != nil {
			r.Fatal(err)
		}
		for _, c := range only.Items {
			if c.Caller != "ann" {
				r.Fatalf("%s of %s is seen", c.ID, c.Caller)
			}
		}
	})
	// Paging by cursor gives each once.
	var all []string
	for f := (Filter{Limit: 17}); ; {
		got, err := b.past.Calls(b.ctx, f, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range got.Items {
			all = append(all, c.ID)
		}
		if f.Before = got.Next; got.Next == nil {
			break
		}
	}
	want := []string{}
	for _, e := range slices.Backward(model) {
		want = append(want, e.id)
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("page by page (-want +got):\n%s", diff)
	}
	// By time: the second half.
	mid, err := b.past.Call(b.ctx, rid(60), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := b.calls(Filter{Since: mid.At, Oldest: true})
	if len(got) != 60 || got[0] != rid(60) {
		t.Errorf("since r60 there are %d, the first being %v", len(got), got[:1])
	}
	if got := b.calls(Filter{Until: mid.At}); len(got) != 60 {
		t.Errorf("until r60 there are %d", len(got))
	}
}

// TestIndex_SurvivesAndIsRebuilt: a restart reads what is on the disk, damage and loss are made good, and what is of another
// journal is not believed.
func TestIndex_SurvivesAndIsRebuilt(t *testing.T) {
	cfg := Config{SegmentRows: 8, CheckpointEvery: 10}
	b := newBench(t, cfg)
	for i := range 60 {
		b.commit(rid(i), "ann", "zone.create", put(zone(fmt.Sprintf("z%d", i), fmt.Sprintf("n%d", i))))
	}
	want := b.calls(Filter{})
	if len(want) != 60 {
		t.Fatalf("%d calls are found", len(want))
	}
	files := func(prefix string) []string {
		list, err := filepath.Glob(filepath.Join(b.dir, prefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	b.until("checkpoints are written", func() bool { return len(files("state-")) > 0 })
	same := func(what string) {
		t.Helper()
		b.until(what+": the index has all", func() bool {
			got, err := b.past.Calls(b.ctx, Filter{Limit: 1000}, nil)
			return err == nil && len(got.Items) == 60
		})
		if diff := cmp.Diff(want, b.calls(Filter{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		for _, seq := range []uint64{1, 13, 37, 60} {
			m, err := b.past.Parse(b.ctx, fmt.Sprint(seq))
			if err != nil {
				t.Fatal(err)
			}
			v, err := b.past.At(b.ctx, m)
			if err != nil {
				t.Fatalf("%s: view at %d: %v", what, seq, err)
			}
			if n := len(slices.Collect(v.All(resource.KindZone))); n != int(seq) || v.Seq() != seq {
				t.Errorf("%s: at %d there are %d zones, Seq is %d", what, seq, n, v.Seq())
			}
		}
	}
	restart := func() { b.stop(); b.open(cfg) }
	segments := files("index-")
	if len(segments) != 7 {
		t.Fatalf("%d segments", len(segments))
	}
	info, err := os.Stat(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	restart()
	same("after a restart")
	if again, err := os.Stat(segments[0]); err != nil || !again.ModTime().Equal(info.ModTime()) {
		t.Errorf("a restart has written segments anew (%v)", err)
	}
	flip := func(path string, at int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if at < 0 {
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			at += info.Size()
		}
		var c [1]byte
		if _, err := f.ReadAt(c[:], at); err != nil {
			t.Fatal(err)
		}
		c[0] ^= 0x40
		if _, err := f.WriteAt(c[:], at); err != nil {
			t.Fatal(err)
		}
	}
	// A column is damaged while the controller runs: told, then made good.
	flip(segments[2], -35) // before the last column, of eight accounts
	if _, err := b.past.Calls(b.ctx, Filter{Resource: "z1", Limit: 5}, nil); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("search in a damaged segment: %v", err)
	}
	same("after a damaged column")
	flip(segments[1], 20)
	restart()
	same("after a damaged header")
	if err := os.Truncate(segments[3], 100); err != nil {
		t.Fatal(err)
	}
	restart()
	same("after a cut file")
	for _, path := range files("state-") {
		flip(path, -10)
	}
	restart()
	same("after damaged checkpoints")
	b.stop()
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	b.open(cfg)
	same("after everything was lost")
	// What belongs to another journal is removed.
	other := newBench(t, cfg)
	other.stop()
	if err := os.CopyFS(other.dir, os.DirFS(b.dir)); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	other.open(cfg)
	other.commit("only", "bob", "zone.create", put(zone("q", "q")))
	if diff := cmp.Diff([]string{"only"}, other.calls(Filter{})); diff != "" {
		t.Errorf("with the index of another journal (-want +got):\n%s", diff)
	}
	m, err := other.past.Parse(b.ctx, "1")
	if err != nil {
		t.Fatal(err)
	}
	v, err := other.past.At(b.ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(slices.Collect(v.All(resource.KindZone))); n != 1 {
		t.Errorf("with the checkpoints of another journal there are %d zones", n)
	}
}

// TestIndex_FollowsOnStandBy: one that does not lead has the same.
func TestIndex_FollowsOnStandBy(t *testing.T) {
	b := newBench(t, Config{SegmentRows: 8})
	second := *b
	second.dir = t.TempDir()
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	standby := openStore(t, b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = standby.Follow(ctx)
	}()
	second.store = standby
	second.open(Config{SegmentRows: 8})
	for i := range 30 {
		b.commit(rid(i), "ann", "zone.create", put(zone(fmt.Sprintf("z%d", i), "n")))
	}
	b.until("the stand-by has all", func() bool { return standby.Seq() == b.store.Seq() })
	if diff := cmp.Diff(b.calls(Filter{}), second.calls(Filter{})); diff != "" {
		t.Errorf("the stand-by's calls (-leader +stand-by):\n%s", diff)
	}
	second.stop()
	cancel()
	<-done
}

// TestVersions: every version with its diff, author and cause, also after the end.
func TestVersions(t *testing.T) {
	b := newBench(t, Config{SegmentRows: 4})
	b.commit("make", "ann", "zone.create", put(zone("z", "first")))
	for i := range 5 {
		b.commit(rid(i), "bob", "zone.create", put(zone(fmt.Sprintf("other%d", i), "x")))
	}
	b.commit("rename", "bob", "zone.update", put(zone("z", "second")))
	b.commit("drop", "ann", "zone.delete", func(tx resource.Tx) error { return tx.Delete(resource.KindZone, "z") })
	type row struct {
		Request, Caller string
		Change          Change
		Name, Fields    string
	}
	for _, ref := range []string{"z", "first", "second"} {
		got, next, err := b.past.Versions(b.ctx, Filter{Kind: resource.KindZone, Resource: ref, Limit: 10}, nil)
		if err != nil || next != nil {
			t.Fatal(next, err)
		}
		var rows []row
		for _, v := range got {
			r := row{Request: v.Request, Caller: v.Caller, Change: v.Change, Name: v.Name}
			if v.Change == Modified {
				for _, f := range v.Fields {
					r.Fields += fmt.Sprintf("%s %s>%s", f.Field, f.Old, f.New)
				}
			}
			rows = append(rows, r)
		}
		if diff := cmp.Diff([]row{
			{"drop", "ann", Deleted, "second", ""}, {"rename", "bob", Modified, "second", `name "first">"second"`}, {"make", "ann", Created, "first", ""},
		}, rows); diff != "" {
			t.Errorf("%s (-want +got):\n%s", ref, diff)
		}
	}
	// Page by page, the diffs are the same.
	got, next, err := b.past.Versions(b.ctx, Filter{Kind: resource.KindZone, Resource: "z", Limit: 2}, nil)
	if err != nil || next == nil || len(got) != 2 || len(got[1].Fields) != 1 {
		t.Fatalf("a page of two: %+v, %v, %v", got, next, err)
	}
	got, _, err = b.past.Versions(b.ctx, Filter{Kind: resource.KindZone, Resource: "z", Limit: 2, Before: next}, nil)
	if err != nil || len(got) != 1 || got[0].Request != "make" {
		t.Errorf("the next page: %+v, %v", got, err)
	}
	c, err := b.past.Call(b.ctx, "rename", nil, nil)
	if err != nil || len(c.On) != 1 || len(c.On[0].Fields) != 1 || c.TookMS <= 0 || c.From != "10.0.0.1" {
		t.Errorf("the call: %+v, %v", c, err)
	}
	what, err := b.past.Undoing(b.ctx, "make")
	if err != nil || len(what) != 1 || what[0].Before != nil || len(what[0].Later) != 2 || !slices.Equal(what[0].Later[0].Fields, []string{"name"}) {
		t.Errorf("to be undone: %+v, %v", what, err)
	}
}

// TestAt_Observed: a view of the past shows what hosts had reported then, whatever has come since, with checkpoints in between.
func TestAt_Observed(t *testing.T) {
	b := newBench(t, Config{CheckpointEvery: 5})
	ref := desired.Ref{Kind: desired.KindDomain, ID: "v"}
	record, stop := context.WithCancel(b.ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = b.past.RecordHosts(record) }()
	defer func() { stop(); <-done }()
	type moment struct {
		at    time.Time
		phase desired.Phase
		up    bool
		zones int
	}
	var moments []moment
	zones := 0
	for i, phase := range []desired.Phase{desired.PhaseWorking, desired.PhaseReady, "", desired.PhaseRetrying, desired.PhaseReady} {
		for range 3 {
			b.commit(fmt.Sprintf("c%d", zones), "ann", "zone.create", put(zone(fmt.Sprintf("z%d", zones), "n")))
			zones++
		}
		b.report("h", ref, phase, nil)
		up := i%2 == 0
		b.store.SetConnected("h", up, time.Now())
		b.until("HISTORY has the status and the host", func() bool {
			obs, err := b.past.observedAt(b.ctx, base{obs: newObservation()}, time.Now().Add(time.Hour), "")
			if err != nil {
				t.Fatal(err)
			}
			st, ok := obs.Status("h", ref)
			return ok == (phase != "") && st.Phase == phase && obs.Host("h").Connected == up
		})
		time.Sleep(2 * time.Millisecond) // so that no two moments share a message's time
		moments = append(moments, moment{time.Now().UTC(), phase, up, zones})
		time.Sleep(2 * time.Millisecond)
	}
	check := func() {
		t.Helper()
		for _, m := range slices.Backward(moments) {
			at, err := b.past.Parse(b.ctx, m.at.Format(time.RFC3339Nano))
			if err != nil {
				t.Fatal(err)
			}
			v, err := b.past.At(b.ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			st, ok := v.Observed().Status("h", ref)
			if ok != (m.phase != "") || st.Phase != m.phase || v.Observed().Host("h").Connected != m.up {
				t.Errorf("at %s: status %v %q, connected %v; want %+v", m.at, ok, st.Phase, v.Observed().Host("h").Connected, m)
			}
			if n := len(slices.Collect(v.All(resource.KindZone))); n != m.zones {
				t.Errorf("at %s there are %d zones, want %d", m.at, n, m.zones)
			}
		}
	}
	check()
	b.stop()
	b.open(Config{CheckpointEvery: 5})
	check()
	// A host's own stream has it all, in order.
	events, more, err := b.past.Events(b.ctx, "h", time.Time{}, time.Time{}, 0, 1000)
	if err != nil || more {
		t.Fatal(more, err)
	}
	var phases []string
	for _, e := range events {
		if e.Sort == OfStatus {
			phases = append(phases, string(e.Change)+" "+e.Phase)
		}
	}
	if diff := cmp.Diff([]string{"created Working", "modified Ready", "deleted ", "created Retrying", "modified Ready"}, phases); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"-2h": now.Add(-2 * time.Hour), "-1d12h": now.Add(-36 * time.Hour), "-3d": now.Add(-72 * time.Hour), "-90s": now.Add(-90 * time.Second),
		"2026-11-24T10:00:00+02:00": now.Add(-4 * time.Hour), "2026-11-24 11:30": now.Add(-30 * time.Minute), "2026-11-24": now.Add(-12 * time.Hour),
	} {
		if got, err := ParseTime("at", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-", "-x", "-1d-2h", "yesterday", "--2h", "2026-13-01", "-5"} {
		if got, err := ParseTime("at", text, now); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// TestFind: of a request that was refused before and after, the call that changed something is found, however long ago it was.
func TestFind(t *testing.T) {
	b := newBench(t, Config{SegmentRows: 10})
	note := func(id string) {
		t.Helper()
		if err := b.store.Note(b.ctx, []journal.Entry{{Request: resource.Request{ID: id, Caller: "ann", Op: "zone.create"}, At: time.Now().UTC(), Error: "no"}}); err != nil {
			t.Fatal(err)
		}
	}
	zone := func(name string) func(resource.Tx) error {
		return func(tx resource.Tx) error {
			z := &resource.Zone{State: resource.Enabled}
			z.ID, z.Name = name, name
			return tx.Put(z)
		}
	}
	note("again")
	seq := b.commit("again", "ann", "zone.create", zone("z"))
	note("again")
	note("never")
	for i := range 50 {
		b.commit(rid(i), "ben", "zone.create", zone(fmt.Sprint("z", i)))
	}
	found, err := b.past.Find(b.ctx, "again")
	if err != nil || found.Seq != seq || len(found.Changes) != 1 || found.Stored.IsZero() {
		t.Errorf("found: %+v, %v; want message %d", found, err, seq)
	}
	if found, err = b.past.Find(b.ctx, "never"); err != nil || found.Error != "no" {
		t.Errorf("one that was always refused: %+v, %v", found, err)
	}
	if _, err = b.past.Find(b.ctx, "nobody"); !errors.Is(err, journal.ErrNoRequest) {
		t.Errorf("one that never was: %v", err)
	}
}

// TestRecorder: nobody floods the journal, and nothing is dropped without a count.
func TestRecorder(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var got []journal.Entry
	fail := true
	r := NewRecorder(func(_ context.Context, list []journal.Entry) error {
		if fail {
			return errors.New("nobody leads")
		}
		got = append(got, list...)
		return nil
	}, zerolog.Nop())
	r.clock = func() time.Time { return now }
	record := func(req resource.Request, refusal string) {
		r.Record(t.Context(), Note{Request: req, Refusal: refusal})
	}
	const n = 5000
	for i := range n {
		record(resource.Request{ID: rid(i), Caller: "mallory", Op: "vm.create", Params: []byte(`{"x":1}`)}, strings.Repeat("no\x01", 1000))
		record(resource.Request{ID: "q" + rid(i), Caller: "mallory", Op: "vm.list"}, "")
	}
	record(resource.Request{ID: "ann", Caller: "ann", Op: "vm.create", Params: []byte(`{"broken`)}, "no")
	record(resource.Request{ID: "big", Caller: "ann", Op: "vm.create", Params: []byte(`"` + strings.Repeat("x", 60_000) + `"`)}, "no")
	r.flush(t.Context())
	fail = false
	r.flush(t.Context())
	burst := shareOf(false).burst
	one, more := 0, uint64(0)
	for _, e := range got {
		if e.Request.Caller == "mallory" {
			one++
			more += e.More
		}
		if len(e.Request.Params) > noteParams || len(e.Error) > noteError+3 {
			t.Errorf("a note has %d bytes of parameters and %d of refusal", len(e.Request.Params), len(e.Error))
		}
		if _, err := (journal.Group{Entries: []journal.Entry{e}}).Encode(); err != nil {
			t.Error(err)
		}
	}
	if one != 2*burst || more != 0 || len(got) != 2*burst+2 { // refused calls and reads have a burst each
		t.Errorf("%d calls are recorded, %d of one caller", len(got), one)
	}
	now = now.Add(shareOf(false).window + time.Second)
	r.count(false)
	r.flush(t.Context())
	for _, e := range got {
		more += e.More
	}
	if one+int(more) != 2*n {
		t.Errorf("%d calls are recorded and %d counted, of %d", one, more, 2*n)
	}
}

// TestRecorder_Guests: whoever asks without credentials, from however many addresses and for however long, takes a bounded part of the
// journal; the first of each address are there with what they claimed, and the sums are right.
func TestRecorder_Guests(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var got []journal.Entry
	r := NewRecorder(func(_ context.Context, list []journal.Entry) error { got = append(got, list...); return nil }, zerolog.Nop())
	r.clock = func() time.Time { return now }
	limit := shareOf(true)
	asked := 0
	ask := func(from string) {
		asked++
		r.Record(t.Context(), Note{Request: resource.Request{ID: rid(asked), Caller: "guest", From: from, Op: "session.login", Params: []byte(`{"account":"acme"}`)}, Refusal: "no", Guest: true})
	}
	counted := func() (recorded, more int) {
		for _, e := range got {
			if e.More > 0 {
				more += int(e.More)
			} else {
				recorded++
			}
		}
		return recorded, more
	}
	// One address.
	for range 1000 {
		ask("10.0.0.1")
	}
	r.flush(t.Context())
	if one, _ := counted(); one != limit.burst || got[0].Request.From != "10.0.0.1" || string(got[0].Request.Params) != `{"account":"acme"}` {
		t.Errorf("%d of one address are recorded, the first as %+v", one, got[0].Request)
	}
	// For an hour, from everywhere.
	for range 3600 {
		now = now.Add(time.Second)
		for range 100 {
			ask(fmt.Sprintf("10.1.%d.%d", asked/250%250, asked%250))
		}
		r.count(false)
		r.flush(t.Context())
	}
	r.count(true)
	r.flush(t.Context())
	one, more := counted()
	if one+more != asked {
		t.Errorf("%d are recorded and %d counted, of %d", one, more, asked)
	}
	if most := 3600 * (limit.total + limit.sources + 2) / 60; len(got) > most+limit.total+limit.sources {
		t.Errorf("%d entries in an hour, at most %d are wanted", len(got), most)
	}
}

func (r *Recorder) running() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runs
}

// TestRecorder_Durable: whoever records a refused change goes on when it is on the disk, or when nobody can write it.
func TestRecorder_Durable(t *testing.T) {
	written := make(chan []journal.Entry)
	r := NewRecorder(func(ctx context.Context, list []journal.Entry) error {
		select {
		case written <- list:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}, zerolog.Nop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = r.Run(ctx) }()
	for !r.running() {
		time.Sleep(time.Millisecond)
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		r.Record(t.Context(), Note{Request: resource.Request{ID: "r1", Caller: "ann", Op: "vm.create"}, Refusal: "no", Durable: true})
	}()
	select {
	case <-told:
		t.Fatal("the caller is told before it is written")
	case list := <-written:
		if len(list) != 1 || list[0].Request.ID != "r1" {
			t.Fatalf("written: %+v", list)
		}
	}
	<-told
	stop()
	<-ended
	r.Record(t.Context(), Note{Request: resource.Request{ID: "r2", Caller: "ann", Op: "vm.create"}, Refusal: "no", Durable: true})
}
