package history

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/controller/store/query"
)

// entries is the length of the journal that the benchmarks search; a site that makes 100,000 changes a day has 10 million
// after 100 days.
var entries = flag.Int("entries", 1_000_000, "entries of the benchmarks' journal")

// live is how many VMs there are, each with a NIC.
const live = 50_000

// fill writes a journal of that length: VMs and their NICs at first, then updates of VMs by many callers. One message in a hundred is a
// single transaction, as at a quiet hour; the others are groups.
func fill(b *testing.B, book *journal.Journal, n int) {
	b.Helper()
	ctx := b.Context()
	r := rand.New(rand.NewPCG(1, 2))
	ids := make([]string, live)
	for i := range ids {
		var u uuid.UUID
		for j := range u {
			u[j] = byte(r.Uint32())
		}
		ids[i] = u.String()
	}
	at := journal.Position{}
	begin := time.Now().UTC().Add(-100 * 24 * time.Hour)
	var group []journal.Encoded
	size, limit := 0, 0
	flush := func() {
		var err error
		if at, err = book.Append(ctx, at, journal.Join(group)); err != nil {
			b.Fatal(err)
		}
		group, size = group[:0], 0
	}
	put := func(i int, changes []journal.Change, op string) {
		when := begin.Add(time.Duration(i) * 860 * time.Millisecond)
		e, err := journal.Entry{
			Request: resource.Request{
				ID: fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", i), Caller: fmt.Sprintf("user%03d", r.IntN(500)), Op: op, From: fmt.Sprintf("10.0.%d.%d", r.IntN(8), r.IntN(250)),
				Params: []byte(`{"id":"some-vm","description":"a new one"}`), Started: when.Add(-time.Millisecond),
			},
			At: when, Changes: changes,
		}.Encode()
		if err != nil {
			b.Fatal(err)
		}
		group = append(group, e)
		if size += len(e); size >= limit {
			flush()
			limit = 1
			if r.IntN(100) > 0 {
				limit = 20<<10 + r.IntN(400<<10)
			}
		}
	}
	vm := func(i, rev int) journal.Change {
		id := ids[i]
		return journal.Change{Kind: resource.KindVM, ID: id, Value: fmt.Appendf(nil,
			`{"id":%q,"name":"vm%d","description":"revision %d","owner":"user1","tags":["a","b"],"created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:01Z","rev":%d,"cause":"0a1b2c3d","zone_id":"z","host_id":"h","cluster_id":"c","cpus":2,"memory_mib":2048,"strategy":"fewest-vms","machine":"q35","power":"on","stop_seconds":60}`,
			id, i, rev, 1)}
	}
	put(0, []journal.Change{
		{Kind: resource.KindZone, ID: "z", Value: []byte(`{"id":"z","name":"z","state":"enabled","created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1}`)},
		{Kind: resource.KindCluster, ID: "c", Value: []byte(`{"id":"c","name":"c","zone_id":"z","state":"enabled","created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1}`)},
		{Kind: resource.KindHost, ID: "h", Value: fmt.Appendf(nil, `{"id":"h","name":"h","cluster_id":"c","state":"enabled","public_key":"U%055d","created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1}`, 0)},
		{Kind: resource.KindL2, ID: "l2", Value: []byte(`{"id":"l2","name":"l2","zone_id":"z","type":"no-vlan","device":"eth0","cluster_ids":["c"],"created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1}`)},
		{Kind: resource.KindL3, ID: "l3", Value: []byte(`{"id":"l3","name":"l3","l2_id":"l2","category":"private","created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1}`)},
	}, "site.create")
	for i := range live {
		nic := journal.Change{Kind: resource.KindNIC, ID: "n" + ids[i][1:], Value: fmt.Appendf(nil,
			`{"id":"n%s","name":"nic0","created":"2026-08-01T00:00:00Z","updated":"2026-08-01T00:00:00Z","rev":1,"vm_id":%q,"l3_id":"l3","ip":"10.%d.%d.%d","mac":"52:54:00:%02x:%02x:%02x","index":0,"model":"virtio"}`,
			ids[i][1:], ids[i], 1+i>>16, i>>8&255, i&255, i>>16, i>>8&255, i&255)}
		put(i+1, []journal.Change{vm(i, 0), nic}, "vm.create")
	}
	for i := live + 1; i < n; i++ {
		put(i, []journal.Change{vm(r.IntN(live), i)}, []string{"vm.update", "vm.stop", "vm.start"}[i%3])
	}
	flush()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkPast is a journal with -entries entries over 100,000 live resources: searches with a page of a hundred calls, and views of
// random moments with a query over all VMs.
func BenchmarkPast(b *testing.B) {
	// As shoal-controller runs.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	w := newBench(b, Config{})
	w.stop()
	began := time.Now()
	fill(b, w.book, max(*entries, 2*live))
	b.Logf("%d entries written in %s", *entries, time.Since(began).Round(time.Second))
	began = time.Now()
	if err := w.reload(); err != nil {
		b.Fatal(err)
	}
	loaded := time.Since(began)
	b.Logf("store replayed them in %s", loaded.Round(time.Millisecond))
	began = time.Now()
	w.open(Config{})
	w.indexed()
	b.Logf("indexed, with checkpoints, in %s", time.Since(began).Round(time.Second))
	w.stop()
	began = time.Now()
	w.open(Config{})
	w.indexed()
	b.Logf("opened again in %s", time.Since(began).Round(time.Millisecond))
	last := w.store.Seq()
	searches := []struct {
		name string
		f    Filter
		want bool
	}{
		{"all", Filter{}, true},
		{"caller", Filter{Callers: []string{"user123"}}, true},
		{"callers", Filter{Callers: []string{"user12*"}, Ops: []string{"vm.st*"}}, true},
		{"from", Filter{Froms: []string{"10.0.3.77"}}, true},
		{"name", Filter{Kind: resource.KindVM, Resource: "vm777"}, true},
		{"request", Filter{Request: fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", *entries/3)}, true},
		{"refused", Filter{Outcome: Refused}, false},
		{"day", Filter{Since: time.Now().Add(-50 * 24 * time.Hour), Until: time.Now().Add(-49 * 24 * time.Hour), Callers: []string{"user0*"}}, *entries > 5_000_000},
		{"oldest", Filter{Ops: []string{"vm.stop"}, Oldest: true}, true},
	}
	for _, s := range searches {
		b.Run("search/"+s.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				f := s.f
				f.Limit = 100
				got, err := w.past.Calls(b.Context(), f, nil)
				if err != nil {
					b.Fatal(err)
				}
				if s.want != (len(got.Items) > 0) {
					b.Fatalf("%d calls are found", len(got.Items))
				}
				took = append(took, time.Since(began))
			}
			b.ReportMetric(ms(slices.Max(took)), "max-ms")
		})
	}
	b.Run("versions", func(b *testing.B) {
		for b.Loop() {
			got, _, err := w.past.Versions(b.Context(), Filter{Kind: resource.KindVM, Resource: "vm4711", Limit: 100}, nil)
			if err != nil || len(got) == 0 {
				b.Fatal(len(got), err)
			}
		}
	})
	r := rand.New(rand.NewPCG(3, 4))
	b.Run("view", func(b *testing.B) {
		q, err := query.Parse(resource.KindVM, query.Spec{Conditions: []string{"nic.ip=10.1.3.5"}})
		if err != nil {
			b.Fatal(err)
		}
		var took []time.Duration
		for b.Loop() {
			began := time.Now()
			m, err := w.past.Parse(b.Context(), fmt.Sprint(last/10+1+r.Uint64N(last-last/10)))
			if err != nil {
				b.Fatal(err)
			}
			v, err := w.past.At(b.Context(), m)
			if err != nil {
				b.Fatal(err)
			}
			if got := q.Run(v); got.Total != 1 {
				b.Fatalf("%d VMs have the address", got.Total)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
		b.ReportMetric(ms(took[len(took)-1]), "max-ms")
	})
	b.Run("again", func(b *testing.B) { // the same moment: people ask more than once
		m, err := w.past.Parse(b.Context(), fmt.Sprint(last/2))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := w.past.At(b.Context(), m); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkReplay reads a journal of -entries transactions into the store, without the projection.
func BenchmarkReplay(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	w := newBench(b, Config{})
	w.stop()
	fill(b, w.book, *entries)
	b.ResetTimer()
	for b.Loop() {
		s, err := store.New(store.Config{Journal: w.book, Log: zerolog.Nop()})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(*entries)*float64(b.N)/b.Elapsed().Seconds(), "tx/s")
}

// BenchmarkRefused is 256 callers who are refused a change each, all of which are on the disk before they are told.
func BenchmarkRefused(b *testing.B) {
	w := newBench(b, Config{})
	term, stop := context.WithCancel(b.Context())
	r := NewRecorder(w.store.Note, zerolog.Nop())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(term) }()
	w.until("the recorder runs", r.running)
	const callers = 256
	var mu sync.Mutex
	took := make([]time.Duration, 0, b.N)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				began := time.Now()
				r.Record(b.Context(), Note{
					Request: resource.Request{ID: uuid.NewString(), Caller: fmt.Sprint("user", i/100), Op: "vm.create", Params: []byte(`{"name":"a","image":"tiny"}`)},
					Refusal: "no host can take the VM", Durable: true,
				})
				d := time.Since(began)
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	stop()
	<-ran
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "refusals/s")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
}
