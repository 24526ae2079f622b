package journal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/subjects"
)

func TestAfter(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	j := b.journal(ctx, b.connect())
	var at Position
	for i := range 20 {
		var err error
		if at, err = j.Append(ctx, at, encode(t, entry(fmt.Sprintf("r%d", i)))); err != nil {
			t.Fatal(err)
		}
	}
	var after []uint64
	if err := j.After(ctx, 4, 3, func(f Found) bool { after = append(after, f.Seq); return true }); err != nil {
		t.Fatal(err)
	}
	if err := j.After(ctx, at.Seq, 3, func(Found) bool { t.Error("something comes after the end"); return true }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{5, 6, 7}, after); diff != "" {
		t.Error(diff)
	}
}

func TestRecorded(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	j := b.journal(ctx, js)
	bucket := subjects.BucketStream(subjects.ObservedBucket)
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: bucket, Subjects: []string{subjects.BucketSubject(subjects.ObservedBucket, ">")}}); err != nil {
		t.Fatal(err)
	}
	history, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: subjects.HistoryStream, Subjects: []string{subjects.HistoryAll},
		Sources: []*jetstream.StreamSource{{Name: bucket, SubjectTransforms: []jetstream.SubjectTransformConfig{{
			Source: subjects.BucketSubject(subjects.ObservedBucket, "*.domain.*"), Destination: subjects.HistorySubject("{{wildcard(1)}}", "domain.{{wildcard(2)}}"),
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	put := func(host, key, data string, header ...string) {
		m := nats.NewMsg(subjects.HistorySubject(host, key))
		m.Data = []byte(data)
		for i := 0; i < len(header); i += 2 {
			m.Header.Set(header[i], header[i+1])
		}
		if _, err := js.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	put("h1", "domain.a", "before")
	time.Sleep(5 * time.Millisecond)
	since := time.Now()
	time.Sleep(5 * time.Millisecond)
	put("h1", "domain.a", "item")
	put("h1", "domain.b", "another")
	if _, err := js.Publish(ctx, subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey("h1", "domain", "a")), []byte("status")); err != nil {
		t.Fatal(err)
	}
	for history.CachedInfo().State.LastSeq < 4 {
		if _, err := history.Info(ctx); err != nil {
			t.Fatal(err)
		}
	}
	put("h2", "domain.a", "", "KV-Operation", "DEL", subjects.HeaderCause, "r")
	put("h1", subjects.HeadKey, "head")
	type told struct {
		Host, Key, Data, Cause string
		Observed, Gone         bool
	}
	read := func(most int, filters ...string) (out []told) {
		t.Helper()
		err := j.Recorded(ctx, since, filters, func(r Recorded) bool {
			out = append(out, told{r.Host, r.Key, string(r.Data), r.Cause, r.Observed, r.Gone})
			return len(out) < most
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := []told{{"h1", "domain.a", "item", "", false, false}, {"h1", "domain.a", "status", "", true, false}, {"h2", "domain.a", "", "r", false, true}}
	if diff := cmp.Diff(all, read(9, "shoal.history.*.domain.a", "shoal.history.*.domain.none")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(all[:2], read(2, "shoal.history.*.domain.a")); diff != "" {
		t.Error(diff)
	}
	if got := read(9, "shoal.history.*.domain.none"); got != nil {
		t.Errorf("read %v where there is nothing", got)
	}
	if got := read(9, subjects.HistorySubject("h1", ">")); len(got) != 4 || got[3].Key != subjects.HeadKey {
		t.Errorf("read %v", got)
	}
}

// BenchmarkRecorded reads a few items' records out of many, as a trace of a request from long ago does.
func BenchmarkRecorded(b *testing.B) {
	const items, rounds = 10_000, 10
	ctx, bus := b.Context(), newBus(b)
	js := bus.connect()
	j := bus.journal(ctx, js)
	_, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: subjects.HistoryStream, Subjects: []string{subjects.HistoryAll}, Compression: jetstream.S2Compression,
	})
	if err != nil {
		b.Fatal(err)
	}
	data := []byte(strings.Repeat(`{"kind":"domain"}`, 20))
	since := time.Now()
	var last jetstream.PubAckFuture
	for n := range items * rounds {
		i := n % items
		if last, err = js.PublishAsync(subjects.HistorySubject(fmt.Sprintf("h%d", i%100), fmt.Sprintf("domain.d%d", i)), data, jetstream.WithStallWait(time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	<-last.Ok()
	var filters []string
	for i := range 8 {
		filters = append(filters, subjects.HistorySubject("*", fmt.Sprintf("domain.d%d", i*1000)))
	}
	for name, sets := range map[string][][]string{"together": {filters}, "one by one": slices.Collect(slices.Chunk(filters, 1))} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n := 0
				for _, set := range sets {
					if err := j.Recorded(ctx, since, set, func(Recorded) bool { n++; return true }); err != nil {
						b.Fatal(err)
					}
				}
				if n != 8*rounds {
					b.Fatalf("read %d records", n)
				}
			}
		})
	}
}
