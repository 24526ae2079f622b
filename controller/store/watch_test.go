package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

func report(ctx context.Context, t testing.TB, js jetstream.JetStream, host string, ref desired.Ref, st *desired.Status) {
	t.Helper()
	subject := subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(host, string(ref.Kind), ref.ID))
	if st == nil {
		kv, err := js.KeyValue(ctx, subjects.ObservedBucket)
		if err != nil {
			t.Fatal(err)
		}
		if err := kv.Delete(ctx, subjects.ObservedKey(host, string(ref.Kind), ref.ID)); err != nil {
			t.Fatal(err)
		}
		return
	}
	b, err := st.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, subject, b); err != nil {
		t.Fatal(err)
	}
}

func domain(n int) desired.Ref {
	return desired.Ref{Kind: desired.KindDomain, ID: fmt.Sprintf("vm%d", n)}
}

// awaitRevs waits until exactly these items of host h are reported, with these revisions.
func awaitRevs(ctx context.Context, t testing.TB, s *Store, want map[int]uint64) {
	t.Helper()
	got := map[int]uint64{}
	if err := s.Await(ctx, func(r resource.Reader) bool {
		clear(got)
		for n := range 100 {
			if st, ok := r.Observed().Status("h", domain(n)); ok {
				got[n] = st.Rev
			}
		}
		return cmp.Equal(want, got)
	}); err != nil {
		t.Fatalf("%v; observed (-want +got):\n%s", err, cmp.Diff(want, got))
	}
}

func TestWatch(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	agent := b.connect()
	s := b.store(ctx, b.connect())
	report(ctx, t, agent, "h", domain(1), status(1))
	report(ctx, t, agent, "h", domain(2), status(1))
	report(ctx, t, agent, "h", domain(2), nil)
	wctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(wctx, s.js) }()
	awaitRevs(ctx, t, s, map[int]uint64{1: 1})
	report(ctx, t, agent, "h", domain(3), status(2))
	report(ctx, t, agent, "h", domain(1), status(3))
	awaitRevs(ctx, t, s, map[int]uint64{1: 3, 3: 2})
	report(ctx, t, agent, "h", domain(1), nil)
	awaitRevs(ctx, t, s, map[int]uint64{3: 2})

	// Rubbish is left aside and disturbs nothing.
	for _, key := range []string{"h.domain", "h.nonsense.x", "h.host.other", "h.domain.vm4.more", "h.domain.vm5"} {
		if _, err := agent.Publish(ctx, subjects.BucketSubject(subjects.ObservedBucket, key), []byte("rubbish")); err != nil {
			t.Fatal(err)
		}
	}
	report(ctx, t, agent, "h", domain(6), status(6))
	awaitRevs(ctx, t, s, map[int]uint64{3: 2, 6: 6})

	// The server restarts; others write before the watcher is back.
	for i := range 3 {
		b.stop()
		b.start()
		late := b.connect()
		report(ctx, t, late, "h", domain(3), status(uint64(10+i)))
		awaitRevs(ctx, t, s, map[int]uint64{3: uint64(10 + i), 6: 6})
	}

	// The server's data goes back in time, and new reports overtake the old sequence.
	b.stop()
	backup := t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	b.start()
	late := b.connect()
	report(ctx, t, late, "h", domain(7), status(20))
	report(ctx, t, late, "h", domain(3), status(20))
	awaitRevs(ctx, t, s, map[int]uint64{3: 20, 6: 6, 7: 20})
	b.stop()
	if err := errors.Join(os.RemoveAll(filepath.Join(b.dir, "jetstream")), os.CopyFS(b.dir, os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	b.start()
	late = b.connect()
	for i := range 5 {
		report(ctx, t, late, "h", domain(8), status(uint64(30+i)))
	}
	awaitRevs(ctx, t, s, map[int]uint64{3: 12, 6: 6, 8: 34})

	// The bucket is made anew.
	if err := late.DeleteStream(ctx, subjects.BucketStream(subjects.ObservedBucket)); err != nil {
		t.Fatal(err)
	}
	if _, err := late.CreateStream(ctx, bucket(subjects.ObservedBucket)); err != nil {
		t.Fatal(err)
	}
	report(ctx, t, late, "h", domain(9), status(1))
	awaitRevs(ctx, t, s, map[int]uint64{9: 1})
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch ends with %v", err)
	}
}
