package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/desired"
)

// spec is what items of the tests want.
type spec struct {
	Value string `json:"value"`
}

func (s *spec) Validate() error {
	if s.Value == "" {
		return errors.New("value: must be set")
	}
	return nil
}

// thing is what the scripted host has of an item.
type thing struct{ Value string }

// fact is the scripted kinds' facts.
type fact struct {
	Value string `json:"value"`
}

// script is a kind whose host is a map and whose calls a test can fail, delay and watch.
type script struct {
	name desired.Kind

	mu      sync.Mutex
	world   map[string]thing
	calls   []string
	busy    map[string]bool
	twice   bool // two calls worked on one item at once
	before  func(ctx context.Context, op, id string) error
	changed func(string)
	watches int
}

func newScript(name desired.Kind) *script {
	return &script{name: name, world: map[string]thing{}, busy: map[string]bool{}}
}

// enter logs a call and runs the test's script for it.
func (s *script) enter(ctx context.Context, op, id string) (leave func(), err error) {
	s.mu.Lock()
	s.calls = append(s.calls, op+" "+id)
	if id != "" {
		s.twice = s.twice || s.busy[id]
		s.busy[id] = true
	}
	before := s.before
	s.mu.Unlock()
	leave = func() {
		s.mu.Lock()
		delete(s.busy, id)
		s.mu.Unlock()
	}
	ended := false
	defer func() {
		if !ended {
			leave() // the script panics
		}
	}()
	if before != nil {
		err = before(ctx, op, id)
	}
	ended = true
	return leave, err
}

func (s *script) Observe(ctx context.Context) (map[string]thing, error) {
	leave, err := s.enter(ctx, "observe", "")
	defer leave()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.world), nil
}

func (s *script) Diff(_ string, want spec, have thing) string {
	if want.Value == "panic" {
		panic("diff")
	}
	if want.Value != have.Value {
		return fmt.Sprintf("value is %s, not %s", have.Value, want.Value)
	}
	return ""
}

func (s *script) Ensure(ctx context.Context, id string, want spec, _ *thing) (thing, error) {
	leave, err := s.enter(ctx, "ensure", id)
	defer leave()
	if err != nil {
		return thing{}, err
	}
	s.put(id, want.Value)
	return thing(want), nil
}

func (s *script) Remove(ctx context.Context, id string, _ thing) error {
	leave, err := s.enter(ctx, "remove", id)
	defer leave()
	if err != nil {
		return err
	}
	s.drop(id)
	return nil
}

func (s *script) Watch(ctx context.Context, changed func(string)) error {
	s.mu.Lock()
	s.changed = changed
	s.watches++
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (s *script) Facts(_ string, have thing) any { return fact(have) }

func (s *script) put(id, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world[id] = thing{value}
}

func (s *script) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.world, id)
}

// has is the host now.
func (s *script) has() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string]string{}
	for id, t := range s.world {
		m[id] = t.Value
	}
	return m
}

// event tells the engine of a change.
func (s *script) event(id string) {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	changed(id)
}

// on sets what happens at the start of calls.
func (s *script) on(f func(ctx context.Context, op, id string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// took gives the calls since the last took, without observations.
func (s *script) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := slices.DeleteFunc(s.calls, func(c string) bool { return c == "observe " || c[:4] == "look" })
	s.calls = nil
	return calls
}

// count is how many calls were logged as op, since the last took.
func (s *script) count(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		if c == call {
			n++
		}
	}
	return n
}

// one is a script whose items can be observed alone.
type one struct{ *script }

func (o one) ObserveOne(ctx context.Context, id string) (*thing, error) {
	leave, err := o.enter(ctx, "look", id)
	defer leave()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if t, ok := o.world[id]; ok {
		return &t, nil
	}
	return nil, nil
}

// guarded is a script whose removals are guarded; what has the value "off" does not count.
type guarded struct{ one }

func (guarded) Counts(have thing) bool { return have.Value != "off" }

// flusher is a script that applies at Flush only.
type flusher struct {
	*script
	batch map[string]*thing
}

func newFlusher(name desired.Kind) *flusher {
	return &flusher{newScript(name), map[string]*thing{}}
}

func (f *flusher) Ensure(ctx context.Context, id string, want spec, _ *thing) (thing, error) {
	leave, err := f.enter(ctx, "ensure", id)
	defer leave()
	if err != nil {
		return thing{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batch[id] = &thing{want.Value}
	return thing(want), nil
}

func (f *flusher) Remove(ctx context.Context, id string, _ thing) error {
	leave, err := f.enter(ctx, "remove", id)
	defer leave()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batch[id] = nil
	return nil
}

func (f *flusher) Flush(ctx context.Context) error {
	f.mu.Lock()
	batch := f.batch
	f.batch = map[string]*thing{}
	ids := slices.Sorted(maps.Keys(batch))
	f.calls = append(f.calls, fmt.Sprint("flush ", ids))
	before := f.before
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, "flush", fmt.Sprint(ids)); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, t := range batch {
		if t == nil {
			delete(f.world, id)
		} else {
			f.world[id] = *t
		}
	}
	return nil
}

// Names of the kinds of the tests: a base, something on it, a table, and what needs them.
const (
	base  desired.Kind = "base"
	disk  desired.Kind = "disk"
	rules desired.Kind = "rules"
	guest desired.Kind = "guest"
)

// rig is an engine with four scripted kinds.
type rig struct {
	*engine.Engine
	t     testing.TB
	base  *script
	disk  *script
	rules *flusher
	guest *script
	gen   uint64

	mu     sync.Mutex
	phases map[desired.Ref][]desired.Phase
	last   map[desired.Ref]*desired.Status
}

// newRig makes a rig that does not run yet.
func newRig(t testing.TB) *rig {
	r := &rig{
		t: t, base: newScript(base), disk: newScript(disk), rules: newFlusher(rules), guest: newScript(guest),
		phases: map[desired.Ref][]desired.Phase{}, last: map[desired.Ref]*desired.Status{},
	}
	r.Engine = engine.New(engine.Config{Reporter: r, Log: zerolog.Nop()})
	engine.Add(r.Engine, engine.StageDomain, guest, guarded{one{r.guest}})
	engine.Add(r.Engine, engine.StageBase, base, r.base)
	engine.Add(r.Engine, engine.StageItem, disk, one{r.disk})
	engine.Add(r.Engine, engine.StageItem, rules, r.rules)
	return r
}

// Report implements engine.Reporter.
func (r *rig) Report(ref desired.Ref, s *desired.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was := r.last[ref]; was != nil && s != nil {
		a, _ := was.Encode()
		b, _ := s.Encode()
		if string(a) == string(b) {
			r.t.Errorf("status of %s reported twice without a change: %s", ref, a)
		}
	}
	if s == nil {
		delete(r.last, ref)
		r.phases[ref] = append(r.phases[ref], "gone")
		return
	}
	r.last[ref] = s
	if p := r.phases[ref]; len(p) == 0 || p[len(p)-1] != s.Phase {
		r.phases[ref] = append(p, s.Phase)
	}
}

// went gives the phases that an item went through since the last went.
func (r *rig) went(ref desired.Ref) []desired.Phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.phases[ref]
	delete(r.phases, ref)
	return p
}

// start runs the rig until the test's bubble ends.
func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		for _, s := range []*script{r.base, r.disk, r.rules.script, r.guest} {
			if s.twice {
				r.t.Errorf("two calls worked on one item of kind %s at once", s.name)
			}
		}
	})
	synctest.Wait()
}

// ref names an item.
func ref(kind desired.Kind, id string) desired.Ref { return desired.Ref{Kind: kind, ID: id} }

// item makes an item that wants value.
func item(t testing.TB, kind desired.Kind, id string, rev uint64, value string, needs ...desired.Ref) desired.Item {
	t.Helper()
	it, err := desired.NewItem(kind, id, spec{value}, needs...)
	if err != nil {
		t.Fatal(err)
	}
	it.Rev, it.Cause = rev, fmt.Sprint("req-", rev)
	return it
}

// document makes a document of the next generation.
func (r *rig) document(items ...desired.Item) desired.Document {
	r.gen++
	return document(r.gen, items...)
}

func document(gen uint64, items ...desired.Item) desired.Document {
	doc := desired.Document{Head: desired.Head{Host: "h1", Gen: gen, Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	for _, it := range items {
		b, err := it.Encode()
		if err != nil {
			panic(err)
		}
		doc.Head.Items[it.Ref()] = desired.Hash(b)
		doc.Items[it.Ref()] = it
	}
	return doc
}

// set gives the engine a document of these items.
func (r *rig) set(items ...desired.Item) { r.Set(r.document(items...)) }

// settle waits until the newest document is settled.
func (r *rig) settle() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := r.Settled(ctx, r.gen); err != nil {
		r.t.Fatalf("%v: %v", err, r.Statuses())
	}
}

// status is an item's last reported status.
func (r *rig) status(ref desired.Ref) desired.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.last[ref]; s != nil {
		return *s
	}
	return desired.Status{}
}

// want fails the test unless an item has phase, and a fault with code unless that is empty.
func (r *rig) want(ref desired.Ref, phase desired.Phase, code desired.Code) {
	r.t.Helper()
	s := r.status(ref)
	var got desired.Code
	if s.Fault != nil {
		got = s.Fault.Code
	}
	if s.Phase != phase || got != code {
		r.t.Errorf("%s is %q with fault %v; want %q with code %q", ref, s.Phase, s.Fault, phase, code)
	}
	if s.Fault != nil && (s.Fault.Message == "" || s.Fault.Remedy == "") {
		r.t.Errorf("%s: fault without message or remedy: %+v", ref, s.Fault)
	}
}

// box is an error that calls return and a test changes.
type box struct {
	mu  sync.Mutex
	err error
}

func newBox(err error) *box { return &box{err: err} }

func (b *box) get() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *box) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

// journal is what calls of several kinds did, in order. It is read when they have ended.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}
