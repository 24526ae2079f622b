package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// ErrGone says that the commits which a reader of changes asks for are not in memory (any more), or that the state was
// loaded anew. The reader takes a View and goes on from its Seq.
var ErrGone = errors.New("these changes are no longer in memory")

// Change is what one transaction made of one resource.
type Change struct {
	Kind resource.Kind
	ID   string
	// Old is nil for a resource that was made, New for one that was deleted.
	Old, New resource.Resource
	// encoded is New as the journal has it.
	encoded []byte
}

// Entry is one transaction.
type Entry struct {
	Request resource.Request
	At      time.Time
	// Changes is empty for an entry that only records a call; Error and More are as in the journal.
	Changes []Change
	Error   string
	More    uint64
}

// Committed is one group of transactions, or several that came while the reader was busy, as one.
type Committed struct {
	// Seq is the journal sequence of the last of them, At when its newest transaction ran.
	Seq uint64
	At  time.Time
	// Before and After are the states around them.
	Before, After resource.Reader
	Entries       []Entry
}

// Limits of the commits kept for readers that come late: those between a View and the call of Changes, and a restart of
// the publisher.
const (
	feedCommits = 4096
	feedBytes   = 64 << 20
	// mergeEntries is how many transactions a slow reader gets at once.
	mergeEntries = 4096
)

// commitNode is one group in the feed. It is filled when ready is closed.
type commitNode struct {
	ready         chan struct{}
	reset         bool
	before, after *snapshot
	entries       []Entry
	size          int
	next          *commitNode
}

// feed is a list of commits. Every reader walks it on its own; what all have passed and nobody keeps is freed.
type feed struct {
	mu    sync.Mutex
	base  uint64 // the commits after this sequence are in the list
	first *commitNode
	tail  *commitNode // the one to be filled next
	count int
	size  int
}

func newFeed(base uint64) *feed {
	c := &commitNode{ready: make(chan struct{})}
	return &feed{base: base, first: c, tail: c}
}

// add appends a commit.
func (f *feed) add(before, after *snapshot, entries []Entry, size int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.tail
	c.before, c.after, c.entries, c.size = before, after, entries, size
	c.next = &commitNode{ready: make(chan struct{})}
	f.tail = c.next
	close(c.ready)
	f.count++
	f.size += size
	for f.count > 1 && (f.count > feedCommits || f.size > feedBytes) {
		f.base = f.first.after.at.Seq
		f.count--
		f.size -= f.first.size
		f.first = f.first.next
	}
}

// reset drops everything: the readers are told.
func (f *feed) reset(base uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tail.reset = true
	close(f.tail.ready)
	c := &commitNode{ready: make(chan struct{})}
	f.base, f.first, f.tail, f.count, f.size = base, c, c, 0, 0
}

// from is where a reader starts who knows everything up to a sequence.
func (f *feed) from(seq uint64) (*commitNode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seq < f.base {
		return nil, fmt.Errorf("read changes from %d, the oldest known being %d: %w", seq, f.base, ErrGone)
	}
	c := f.first
	for c != f.tail && c.after.at.Seq <= seq {
		c = c.next
	}
	return c, nil
}

// Changes calls fn for every commit after a sequence, in order, and goes on as they come until ctx or fn ends it. A
// reader that is slow gets what has come meanwhile at once.
func (s *Store) Changes(ctx context.Context, from uint64, fn func(Committed) error) error {
	return s.commits(ctx, from, func(before, after *snapshot, entries []Entry) error {
		done := Committed{Seq: after.at.Seq, Before: s.viewOf(before), After: s.viewOf(after), Entries: entries}
		for _, e := range entries {
			if e.At.After(done.At) {
				done.At = e.At
			}
		}
		return fn(done)
	})
}

func (s *Store) commits(ctx context.Context, from uint64, fn func(before, after *snapshot, entries []Entry) error) error {
	c, err := s.feed.from(from)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ready:
		}
		if c.reset {
			return fmt.Errorf("read changes: the state was loaded anew: %w", ErrGone)
		}
		if c.after.at.Seq <= from {
			c = c.next
			continue
		}
		before, after := c.before, c.after
		entries := slices.Clip(c.entries) // what follows must not be written behind the commit's own
		c = c.next
		for len(entries) < mergeEntries && isReady(c) && !c.reset {
			entries, after = append(entries, c.entries...), c.after
			c = c.next
		}
		if err := fn(before, after, entries); err != nil {
			return err
		}
	}
}

// Log calls fn for every message of the journal after a sequence, one by one as they were stored, with the state after
// it, and goes on as they come until ctx or fn ends it.
func (s *Store) Log(ctx context.Context, from uint64, fn func(at journal.Position, after resource.Reader, entries []Entry) error) error {
	c, err := s.feed.from(from)
	if err != nil {
		return err
	}
	for ; ; c = c.next {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ready:
		}
		if c.reset {
			return fmt.Errorf("read the log: the state was loaded anew: %w", ErrGone)
		}
		if c.after.at.Seq <= from {
			continue
		}
		if err := fn(c.after.at, s.viewOf(c.after), c.entries); err != nil {
			return err
		}
	}
}

func isReady(c *commitNode) bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// broadcast wakes everybody who waits for a change of anything.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait gives a channel that the next wake closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Await returns once the condition holds. It is asked again after every change of intent, of what hosts report and of
// what was published; it must be quick.
func (s *Store) Await(ctx context.Context, condition func(resource.Reader) bool) error {
	for {
		changed := s.changed.wait()
		if condition(s.View()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}
