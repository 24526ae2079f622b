package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"shoal/desired"
)

// Config is what an engine needs.
type Config struct {
	// Reporter takes the statuses; nil for nobody: then Statuses is the only way to see them.
	Reporter Reporter
	Log      zerolog.Logger
	// SweepEvery is how often everything is observed, events or not; 0 for 60 s. It is varied by 20 %.
	SweepEvery time.Duration
	// Memory keeps what is held by policy over the end of this process; nil to forget it.
	Memory Memory
}

// Engine brings a host to its document. Make one with New, give it kinds with Add and documents with Set, and Run it.
//
// One goroutine, Run's, owns all state and takes all decisions; calls into kinds run in goroutines of their own and post
// their results to it. So nothing below the line in the struct needs a lock, and nothing that a kind does can hold it up,
// but Diff, Facts and Counts, which are pure and cheap.
type Engine struct {
	cfg     Config
	log     zerolog.Logger
	started atomic.Bool
	calls   sync.WaitGroup
	inbox   inbox

	mu       sync.Mutex
	statuses map[desired.Ref]desired.Status

	// ---- Run's goroutine only.

	drivers map[desired.Kind]*driver
	order   []*driver // stages upwards
	doc     desired.Head
	docSet  bool
	items   map[desired.Ref]*item
	// dependents are the wanted items that Need an item, waiting those that a kind made wait for one.
	dependents map[desired.Ref]map[*item]struct{}
	waiting    map[desired.Ref]map[*item]struct{}
	dirty      []*item
	// blocked are the removals that wait for users of the item; moved says that they may go on now.
	blocked map[*item]struct{}
	moved   bool
	users   *users
	running map[*call]struct{}
	clock   uint64 // orders observations, calls and changes
	alarms  alarms
	settles []settle
	drift   drifting
}

// settle is a caller of Settled.
type settle struct {
	gen  uint64
	done chan struct{}
}

// New makes an engine.
func New(cfg Config) *Engine {
	if cfg.SweepEvery <= 0 {
		cfg.SweepEvery = 60 * time.Second
	}
	return &Engine{
		cfg:        cfg,
		log:        cfg.Log,
		inbox:      inbox{wake: make(chan struct{}, 1)},
		statuses:   map[desired.Ref]desired.Status{},
		drivers:    map[desired.Kind]*driver{},
		items:      map[desired.Ref]*item{},
		dependents: map[desired.Ref]map[*item]struct{}{},
		waiting:    map[desired.Ref]map[*item]struct{}{},
		blocked:    map[*item]struct{}{},
		running:    map[*call]struct{}{},
		drift:      newDrifting(cfg.Memory),
	}
}

// Add gives the engine a kind. It must come before Run, once for each kind; anything else is a mistake in the program and panics.
func Add[W, H any, P interface {
	*W
	desired.Spec
}](e *Engine, stage Stage, name desired.Kind, impl Kind[W, H]) {
	if e.started.Load() {
		panic(fmt.Sprintf("engine: kind %s added after Run", name))
	}
	if e.drivers[name] != nil {
		panic(fmt.Sprintf("engine: kind %s added twice", name))
	}
	d := &driver{
		adapter: newAdapter[W, H, P](impl), name: name, stage: stage,
		items: map[string]*item{}, gone: map[string]uint64{},
	}
	e.drivers[name] = d
	e.order = append(e.order, d)
	slices.SortStableFunc(e.order, func(a, b *driver) int { return int(a.stage - b.stage) })
}

// Set makes doc what is wanted. It returns at once; the newest document wins, and one of a lower generation than the
// current one is ignored. The caller must not change doc afterwards.
func (e *Engine) Set(doc desired.Document) { e.inbox.set(doc) }

// Kick looks at an item anew and tries it at once, whatever its backoff, even if it is Refused.
func (e *Engine) Kick(ref desired.Ref) {
	e.inbox.post(func() {
		d := e.drivers[ref.Kind]
		if d == nil {
			return
		}
		it := e.items[ref]
		if it == nil || d.one == nil {
			e.requestObserve(d)
		}
		if it == nil {
			return
		}
		e.restart(it)
		it.look, it.lookAfter = true, time.Time{}
		e.touch(it)
	})
}

// Statuses is a copy of all statuses as they were last reported.
func (e *Engine) Statuses() map[desired.Ref]desired.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.statuses)
}

// Settled waits until a document of generation gen or later is in force and there is nothing left to do: every item is
// Ready or Refused, or Drifted where policy says so, and what is unwanted is gone, or held by the shrink guard.
func (e *Engine) Settled(ctx context.Context, gen uint64) error {
	s := settle{gen, make(chan struct{})}
	e.inbox.post(func() { e.settles = append(e.settles, s) })
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		e.inbox.post(func() {
			e.settles = slices.DeleteFunc(e.settles, func(o settle) bool { return o.done == s.done })
		})
		return fmt.Errorf("wait for generation %d to settle: %w", gen, ctx.Err())
	}
}

// Run reconciles until ctx ends, and returns when everything that it started has. It returns nil then, or an error that
// names the calls which did not end although their context did; those are lost goroutines. It can be called once.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return errors.New("run engine: it runs or ran already")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, d := range e.order {
		if d.watch != nil {
			e.calls.Go(func() { e.watch(ctx, d) })
		}
	}
	e.sweep()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		e.take()
		e.alarms.ring(time.Now())
		e.pass(ctx)
		timer.Stop()
		if at, ok := e.alarms.next(); ok {
			timer.Reset(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return e.stop()
		case <-e.inbox.wake:
		case <-timer.C:
		}
	}
}

// stop waits for what still runs, a while.
func (e *Engine) stop() error {
	ended := make(chan struct{})
	go func() {
		e.calls.Wait()
		close(ended)
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
	}
	var left []string
	for c := range e.running {
		if !c.returned.Load() {
			left = append(left, c.what)
		}
	}
	slices.Sort(left)
	return fmt.Errorf("stop engine: still running %v after their context ended: %s", grace, strings.Join(left, ", "))
}

// take takes over what came in: a document, events, results.
func (e *Engine) take() {
	doc, events, posts := e.inbox.take()
	for _, f := range posts {
		f()
	}
	if doc != nil {
		e.adopt(*doc)
	}
	for d, ids := range events {
		e.events(d, ids)
	}
}

// tick orders what happens.
func (e *Engine) tick() uint64 {
	e.clock++
	return e.clock
}

// touch has an item judged in the next pass.
func (e *Engine) touch(it *item) {
	if !it.dirty {
		it.dirty = true
		e.dirty = append(e.dirty, it)
	}
}

// inbox is the only way into Run's goroutine. Nothing blocks on it: documents and events replace what is there of their
// like, so a storm of them takes no room; posts are results of calls, at most a few for each item.
type inbox struct {
	wake chan struct{}

	mu     sync.Mutex
	doc    *desired.Document
	events map[*driver]map[string]struct{}
	posts  []func()
}

func (b *inbox) set(doc desired.Document) {
	b.mu.Lock()
	if b.doc == nil || doc.Head.Gen >= b.doc.Head.Gen {
		b.doc = &doc
	}
	b.mu.Unlock()
	b.rouse()
}

func (b *inbox) event(d *driver, id string) {
	b.mu.Lock()
	if b.events == nil {
		b.events = map[*driver]map[string]struct{}{}
	}
	if b.events[d] == nil {
		b.events[d] = map[string]struct{}{}
	}
	b.events[d][id] = struct{}{}
	b.mu.Unlock()
	b.rouse()
}

func (b *inbox) post(f func()) {
	b.mu.Lock()
	b.posts = append(b.posts, f)
	b.mu.Unlock()
	b.rouse()
}

func (b *inbox) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) take() (*desired.Document, map[*driver]map[string]struct{}, []func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	doc, events, posts := b.doc, b.events, b.posts
	b.doc, b.events, b.posts = nil, nil, nil
	return doc, events, posts
}
