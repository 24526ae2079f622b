package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
)

func TestChanges(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	s := b.store(ctx, b.connect())
	lead(ctx, t, s)
	commit(ctx, t, s, "before", putZone("before"))

	cctx, stop := context.WithCancel(ctx)
	got := make(chan Committed, 100)
	block := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.Changes(cctx, s.Seq(), func(c Committed) error {
			got <- c
			<-block
			return nil
		})
	}()
	commit(ctx, t, s, "a", putZone("a"))
	c := <-got
	if c.Seq != 2 || c.Before.Get(resource.KindZone, "a") != nil || c.After.Get(resource.KindZone, "a") == nil || c.At.IsZero() {
		t.Errorf("the first change is %+v", c)
	}
	if e := c.Entries[0]; e.Request.ID != "a" || e.Changes[0].Old != nil || e.Changes[0].New != c.After.Get(resource.KindZone, "a") {
		t.Errorf("its entry is %+v", e)
	}
	// While the reader is busy more comes, and is told as one.
	commit(ctx, t, s, "b", putZone("b"))
	commit(ctx, t, s, "c", func(tx resource.Tx) error { return tx.Delete(resource.KindZone, "a") })
	close(block)
	c = <-got
	var requests []string
	for _, e := range c.Entries {
		requests = append(requests, e.Request.ID)
	}
	if diff := cmp.Diff([]string{"b", "c"}, requests); diff != "" || c.Seq != 4 {
		t.Errorf("the second change has sequence %d and the requests (-want +got):\n%s", c.Seq, diff)
	}
	if c.Before.Seq() != 2 || c.After.Seq() != 4 || c.Entries[1].Changes[0].New != nil || c.Entries[1].Changes[0].Old == nil {
		t.Errorf("the second change is %+v", c)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Changes ends with %v", err)
	}
	// Who comes late gets what is still in memory.
	late := errors.New("late")
	if err := s.Changes(ctx, 2, func(c Committed) error {
		if c.Seq != 4 || len(c.Entries) != 2 {
			t.Errorf("the late reader gets %d with %d entries", c.Seq, len(c.Entries))
		}
		return late
	}); !errors.Is(err, late) {
		t.Errorf("Changes returns %v, not its function's error", err)
	}
}

func TestChangesThatAreGone(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	first := b.store(ctx, b.connect())
	m := lead(ctx, t, first)
	commit(ctx, t, first, "a", putZone("a"))
	m.end()
	s := b.store(ctx, b.connect())
	if err := s.Changes(ctx, 0, func(Committed) error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("changes from before the start: %v, want ErrGone", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Changes(ctx, s.Seq(), func(Committed) error { return nil }) }()
	if err := s.Load(ctx); err != nil {
		t.Fatal(err)
	}
	lead(ctx, t, s)
	commit(ctx, t, s, "b", putZone("b"))
	select {
	case err := <-ended:
		if !errors.Is(err, ErrGone) {
			t.Errorf("changes after a new Load: %v, want ErrGone", err)
		}
	case <-time.After(100 * time.Millisecond):
		// The reader came after the Load: nothing was lost for it.
	}
}

func TestFeedForgets(t *testing.T) {
	f := newFeed(0)
	snap := func(n uint64) *snapshot { return &snapshot{at: journal.Position{Seq: n}} }
	reader, err := f.from(0)
	if err != nil {
		t.Fatal(err)
	}
	const n = feedCommits + 10
	for i := range uint64(n) {
		f.add(snap(i), snap(i+1), nil, 1)
	}
	if _, err := f.from(9); !errors.Is(err, ErrGone) {
		t.Errorf("from 9: %v, want ErrGone", err)
	}
	if c, err := f.from(10); err != nil || c.after.at.Seq != 11 {
		t.Errorf("from 10: %v, %v", c, err)
	}
	for i := range uint64(n) { // a reader that is under way loses nothing
		if !isReady(reader) || reader.after.at.Seq != i+1 {
			t.Fatalf("commit %d is not what the reader gets", i+1)
		}
		reader = reader.next
	}
	f.add(snap(n), snap(n+1), nil, feedBytes+1)
	f.add(snap(n+1), snap(n+2), nil, 1)
	if _, err := f.from(n); !errors.Is(err, ErrGone) {
		t.Errorf("after a huge commit: %v, want ErrGone", err)
	}
}

// alone is a store without a journal: for what is observed.
func alone(t testing.TB) *Store {
	t.Helper()
	s, err := New(Config{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func status(rev uint64) *desired.Status {
	return &desired.Status{Rev: rev, Phase: desired.PhaseReady, Since: time.Unix(int64(rev), 0).UTC()}
}

func TestDrifted(t *testing.T) {
	t.Parallel()
	s := alone(t)
	ref := desired.Ref{Kind: desired.KindDomain, ID: "d"}
	drifted := func() map[resource.HostItem]int {
		out := map[resource.HostItem]int{}
		for it, st := range s.View().Observed().Drifted() {
			out[it] = st.Drifts
		}
		return out
	}
	before := s.View()
	for host, st := range map[string]desired.Status{
		"a": {Phase: desired.PhaseReady}, "b": {Phase: desired.PhaseReady, Drifts: 2}, "c": {Phase: desired.PhaseDrifted},
	} {
		s.SetObserved(host, ref, &st)
	}
	if d := cmp.Diff(map[resource.HostItem]int{{Host: "b", Ref: ref}: 2, {Host: "c", Ref: ref}: 0}, drifted()); d != "" {
		t.Error(d)
	}
	for range before.Observed().Drifted() {
		t.Error("an older view shows what came later")
	}
	s.SetObserved("b", ref, nil)
	s.SetObserved("c", ref, &desired.Status{Phase: desired.PhaseReady})
	if got := drifted(); len(got) > 0 {
		t.Errorf("still %v", got)
	}
}

func TestObserved(t *testing.T) {
	ctx, s := testContext(t), alone(t)
	vm, at := desired.Ref{Kind: desired.KindDomain, ID: "vm"}, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	empty := s.View().Observed()
	s.SetObserved("h", vm, status(3))
	s.SetObserved("h2", vm, status(4))
	s.SetConnected("h", true, at)
	s.SetPublished("h", 7, map[desired.Ref]resource.PublishedItem{vm: {Rev: 5, Cause: "r"}})
	s.SetPublishedSeq(9)
	facts := desired.HostFacts{Gen: 6, Version: "1"}
	raw, err := desired.Canonical(facts)
	if err != nil {
		t.Fatal(err)
	}
	self := status(0)
	self.Facts = raw
	s.SetObserved("h", hostRef(), self)

	if _, ok := empty.Status("h", vm); ok || empty.Host("h").Connected || empty.PublishedSeq() != 0 {
		t.Error("a view has changed")
	}
	o := s.View().Observed()
	if st, ok := o.Status("h", vm); !ok || st.Rev != 3 {
		t.Errorf("status = %+v, %v", st, ok)
	}
	if diff := cmp.Diff(resource.HostObservation{Connected: true, Since: at, Reported: true, Facts: facts}, o.Host("h")); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	if it, ok := o.Published("h", vm); !ok || it.Rev != 5 || it.Cause != "r" || o.PublishedGen("h") != 7 || o.PublishedSeq() != 9 {
		t.Errorf("published = %+v, %v, gen %d, seq %d", it, ok, o.PublishedGen("h"), o.PublishedSeq())
	}
	if _, ok := o.Published("h2", vm); ok || o.Host("h2").Reported || o.PublishedGen("nobody") != 0 {
		t.Error("another host has what is not its own")
	}
	s.SetObserved("h", vm, nil)
	s.SetObserved("h", hostRef(), nil)
	s.SetPublished("h", 0, nil)
	o = s.View().Observed()
	if _, ok := o.Status("h", vm); ok || o.Host("h").Reported || !o.Host("h").Connected {
		t.Errorf("after removal: %+v", o.Host("h"))
	}
	if _, ok := o.Status("h2", vm); !ok {
		t.Error("the other host's status is gone too")
	}

	// Followers are told what changes, each thing once.
	octx, stop := context.WithCancel(ctx)
	told := make(chan string, 100)
	hold := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.ObservedChanges(octx, func(host string, ref desired.Ref) { told <- host + " " + ref.String(); <-hold })
	}()
	rev := uint64(1)
	for ; len(told) == 0; rev++ { // until it listens
		s.SetObserved("h3", vm, status(rev))
		time.Sleep(time.Millisecond)
	}
	for i := range 10 {
		s.SetConnected("h4", i%2 == 0, at)
	}
	close(hold)
	seen := map[string]int{}
	for seen["h4 host.self"] == 0 {
		seen[<-told]++
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ObservedChanges ends with %v", err)
	}
	for len(told) > 0 {
		seen[<-told]++
	}
	if seen["h4 host.self"] != 1 {
		t.Errorf("a host's change was told %d times", seen["h4 host.self"])
	}
}

// TestObservedChanges_HeartbeatIsNoNews: what is told again as it was told before wakes nobody.
func TestObservedChanges_HeartbeatIsNoNews(t *testing.T) {
	ctx, s := testContext(t), alone(t)
	ctx, stop := context.WithCancel(ctx)
	told, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- s.ObservedChanges(ctx, func(host string, _ desired.Ref) { told <- host })
	}()
	for rev := uint64(1); len(told) == 0; rev++ { // until it listens
		s.SetObserved("h1", hostRef(), status(rev))
		time.Sleep(time.Millisecond)
	}
	s.SetObserved("h2", hostRef(), status(7))
	for got := ""; got != "h2"; {
		got = <-told
	}
	for range 3 {
		s.SetObserved("h2", hostRef(), status(7))
	}
	s.SetObserved("h3", hostRef(), status(7))
	if got := <-told; got != "h3" {
		t.Errorf("%s was told again", got)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ObservedChanges ends with %v", err)
	}
}

func TestAwait(t *testing.T) {
	ctx, s := testContext(t), alone(t)
	done := make(chan error, 3)
	wait := func(ok func(resource.Reader) bool) { go func() { done <- s.Await(ctx, ok) }() }
	wait(func(r resource.Reader) bool { return r.Observed().Host("h").Connected })
	wait(func(r resource.Reader) bool { return r.Observed().PublishedSeq() == 3 })
	wait(func(r resource.Reader) bool {
		_, ok := r.Observed().Status("h", hostRef())
		return ok
	})
	s.SetConnected("h", true, time.Now())
	s.SetPublishedSeq(3)
	s.SetObserved("h", hostRef(), status(1))
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Await(short, func(resource.Reader) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("Await ends with %v", err)
	}
}

// BenchmarkObserved takes reports of 200,000 items, in batches as Watch does.
func BenchmarkObserved(b *testing.B) {
	s := alone(b)
	batch := make([]observation, watchBatch)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		for i := range batch {
			n++
			batch[i] = observation{fmt.Sprintf("host-%d", n%1000), desired.Ref{Kind: desired.KindDomain, ID: fmt.Sprintf("vm-%d", n%200_000)}, status(uint64(n))}
		}
		s.observe(batch)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "reports/s")
}
