package engine_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/desired"
)

// quick is a host in memory that costs next to nothing, so that benchmarks show the engine.
type quick struct{ world map[string]thing }

func (q *quick) Observe(context.Context) (map[string]thing, error) { return q.world, nil }

func (*quick) Diff(_ string, want spec, have thing) string {
	if want.Value != have.Value {
		return "differs"
	}
	return ""
}

func (*quick) Ensure(_ context.Context, _ string, want spec, _ *thing) (thing, error) {
	return thing(want), nil
}
func (*quick) Remove(context.Context, string, thing) error { return nil }
func (*quick) Facts(_ string, have thing) any              { return fact(have) }

// run starts an engine with 4 quick kinds and 500 items in 50 groups, settled at generation 1.
func runQuick(b *testing.B) (e *engine.Engine, items func(rev uint64) []desired.Item) {
	e = engine.New(engine.Config{Log: zerolog.Nop()})
	items = func(rev uint64) []desired.Item {
		var all []desired.Item
		all = append(all, item(b, base, "pool", 1, "1"))
		for i := range 50 {
			var needs []desired.Ref
			for j := range 8 {
				it := item(b, disk, fmt.Sprint(i, "-", j), rev, fmt.Sprint(rev), ref(base, "pool"))
				all, needs = append(all, it), append(needs, it.Ref())
			}
			r := item(b, rules, fmt.Sprint(i), rev, fmt.Sprint(rev))
			all = append(all, r, item(b, guest, fmt.Sprint(i), rev, fmt.Sprint(rev), append(needs, r.Ref())...))
		}
		return all
	}
	for k, stage := range map[desired.Kind]engine.Stage{
		base: engine.StageBase, disk: engine.StageItem, rules: engine.StageItem, guest: engine.StageDomain,
	} {
		engine.Add(e, stage, k, &quick{map[string]thing{}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	setAndSettle(b, e, document(1, items(1)...))
	return e, items
}

func setAndSettle(b *testing.B, e *engine.Engine, doc desired.Document) {
	e.Set(doc)
	if err := e.Settled(context.Background(), doc.Head.Gen); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPass_All is a document in which all 500 items changed, until all are Ready again.
func BenchmarkPass_All(b *testing.B) {
	e, items := runQuick(b)
	gen := uint64(1)
	for b.Loop() {
		b.StopTimer()
		gen++
		doc := document(gen, items(gen)...)
		b.StartTimer()
		setAndSettle(b, e, doc)
	}
}

// BenchmarkPass_One is a create among 500 items: a new one until it is Ready.
func BenchmarkPass_One(b *testing.B) {
	e, items := runQuick(b)
	all := items(1)
	gen := uint64(1)
	for b.Loop() {
		b.StopTimer()
		gen++
		doc := document(gen, append(all, item(b, guest, "new", gen, fmt.Sprint(gen), ref(disk, "0-0")))...)
		b.StartTimer()
		setAndSettle(b, e, doc)
	}
}

// BenchmarkPass_Same is a new generation in which nothing changed.
func BenchmarkPass_Same(b *testing.B) {
	e, items := runQuick(b)
	doc := document(1, items(1)...)
	gen := uint64(1)
	for b.Loop() {
		gen++
		doc.Head.Gen = gen
		setAndSettle(b, e, doc)
	}
}
