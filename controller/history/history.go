package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

// Config is what a History needs.
type Config struct {
	// Dir is the directory of its own. It is made where it is missing.
	Dir     string
	Journal *journal.Journal
	Store   *store.Store
	// JS has the stream HISTORY.
	JS  jetstream.JetStream
	Log zerolog.Logger
	// Clock is time.Now where it is nil.
	Clock func() time.Time
	// CheckpointEvery is how many messages and changes there are at least between two checkpoints; 0 for what is right
	// outside of tests. SegmentRows is how many rows a segment has at least, likewise.
	CheckpointEvery, SegmentRows int
}

// Limits of checkpoints.
const (
	// checkpointEvery is how many messages and changes lie between two checkpoints at least: reading so many takes a few
	// tenths of a second. With more resources there are as many, so that all checkpoints together take less space than the journal.
	checkpointEvery = 50_000
	// checkpointRest is how many times longer than writing a checkpoint took it is rested afterwards.
	checkpointRest = 9
	// historyEvery is how many messages of HISTORY call for a checkpoint too, and how often it is looked.
	historyEvery = 100_000
	historyLook  = 30 * time.Second
	// cachedViews is how many views of the past are kept: two, because people compare.
	cachedViews = 2
	// catchUpWait is how long a reader waits for the index to have what was committed before.
	catchUpWait = 5 * time.Second
)

// History is the index, the checkpoints, and what is read with them.
type History struct {
	cfg Config
	log zerolog.Logger

	mu       sync.Mutex
	segments []*segment
	tail     *tail
	// ready is set when the index has caught up for the first time; changed is closed when it gets on.
	changed chan struct{}
	// checkpoints are those on the disk, oldest first.
	checkpoints []saved
	views       []cachedView

	// reopen ends the reading of the journal, so that the directory is looked through again.
	reopen func()

	// building is held by the one who makes a view of the past, because it takes memory.
	building chan struct{}
	jobs     chan snapshot
}

type cachedView struct {
	until time.Time
	view  *view
	obs   *observation
}

// snapshot is a state that is to be written as a checkpoint.
type snapshot struct {
	at    journal.Position
	after resource.Reader
	// live says that what is observed now belongs to it; state is set where the state was read from the journal.
	live  bool
	state *state
}

// New opens the directory.
func New(cfg Config) (*History, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.CheckpointEvery == 0 {
		cfg.CheckpointEvery = checkpointEvery
	}
	if cfg.SegmentRows == 0 {
		cfg.SegmentRows = segmentRows
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the history: %w", err)
	}
	h := &History{
		cfg: cfg, log: cfg.Log.With().Str("kind", "history").Logger(), tail: newTail(journal.Position{}), changed: make(chan struct{}),
		building: make(chan struct{}, 1), jobs: make(chan snapshot, 1),
	}
	return h, nil
}

// Run keeps the index and the checkpoints up to date until ctx ends.
func (h *History) Run(ctx context.Context) error {
	defer h.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.writeCheckpoints(ctx) })
	group.Go(func() error {
		for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
			began := time.Now()
			term, reopen := context.WithCancel(ctx)
			h.mu.Lock()
			h.reopen = reopen
			h.mu.Unlock()
			err := h.follow(term)
			reopen()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if time.Since(began) > time.Minute {
				wait = 100 * time.Millisecond
			}
			h.log.Warn().Err(err).Msg("the index of the journal is opened again")
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
	})
	return group.Wait()
}

func (h *History) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.segments {
		_ = s.file.Close()
	}
	h.segments = nil
}

// open reads the directory: what can't be believed is removed.
func (h *History) open(ctx context.Context) error {
	entries, err := os.ReadDir(h.cfg.Dir)
	if err != nil {
		return fmt.Errorf("read directory of the history: %w", err)
	}
	var segments []*segment
	var checkpoints []saved
	last := journal.Position{}
	broken := false
	drop := func(name string, why error) {
		h.log.Warn().Str("file", name).AnErr("cause", why).Msg("a file of the history is made again")
		if err := os.Remove(filepath.Join(h.cfg.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.log.Error().Err(err).Str("file", name).Msg("it can't be removed")
		}
	}
	for _, e := range entries { // by name, so by sequence
		name := e.Name()
		var seq uint64
		switch {
		case strings.HasPrefix(name, "."): // what file.Replace had not ended
			_ = os.Remove(filepath.Join(h.cfg.Dir, name))
		case strings.HasPrefix(name, "index-"):
			s, err := openSegment(filepath.Join(h.cfg.Dir, name))
			if err == nil && (broken || s.Before != last) {
				err = errors.Join(fmt.Errorf("%w: what it follows is missing", errDamaged), s.file.Close())
			}
			if err != nil {
				broken = true
				drop(name, err)
				continue
			}
			last = s.Last
			segments = append(segments, s)
		case scan(name, &seq):
			c, err := readSaved(filepath.Join(h.cfg.Dir, name))
			if err == nil && c.seq != seq {
				err = fmt.Errorf("%w: it is of message %d", errDamaged, c.seq)
			}
			if err != nil {
				drop(name, err)
				continue
			}
			checkpoints = append(checkpoints, c)
		}
	}
	// The newest that the journal still has: everything before it then is of this journal too.
	for len(segments) > 0 {
		s := segments[len(segments)-1]
		err := h.cfg.Journal.Verify(ctx, s.Last)
		if err == nil {
			break
		}
		if !errors.Is(err, journal.ErrDiverged) {
			return errors.Join(err, closeAll(segments))
		}
		drop(filepath.Base(s.path), errors.Join(err, s.file.Close()))
		segments = segments[:len(segments)-1]
	}
	if len(segments) > 0 {
		last = segments[len(segments)-1].Last
	} else {
		last = journal.Position{}
	}
	h.mu.Lock()
	old := h.segments
	h.segments, h.tail, h.checkpoints, h.views = segments, newTail(last), checkpoints, nil
	h.mu.Unlock()
	return closeAll(old)
}

func closeAll(segments []*segment) error {
	var err error
	for _, s := range segments {
		err = errors.Join(err, s.file.Close())
	}
	return err
}

func scan(name string, seq *uint64) bool {
	_, err := fmt.Sscanf(name, "state-%020d", seq)
	return err == nil && name == checkpointName(*seq)
}

// follow brings the index to the journal's end, and goes on as messages come.
func (h *History) follow(ctx context.Context) error {
	if err := h.open(ctx); err != nil {
		return err
	}
	began := time.Now()
	from := h.position()
	pace := pace{h: h}
	for {
		at := h.position()
		err := h.cfg.Store.Log(ctx, at.Seq, func(at journal.Position, after resource.Reader, entries []store.Entry) error {
			switch before := h.position(); {
			case at.Seq <= before.Seq:
				return fmt.Errorf("index message %d after %d: %w", at.Seq, before.Seq, journal.ErrDiverged)
			case at.Seq != before.Seq+1:
				// Sequences have gaps after a restore, and marks are in no log: the journal tells whether this is the next one.
				return store.ErrGone
			}
			if err := h.add(at, entries); err != nil {
				return err
			}
			if pace.due(entries, after) {
				pace.ask(snapshot{at: at, after: after, live: true})
			}
			return nil
		})
		if !errors.Is(err, store.ErrGone) {
			return err
		}
		// It is behind what the store has in memory.
		if err := h.cfg.Journal.Verify(ctx, at); err != nil {
			return err
		}
		if err := h.replay(ctx, at, &pace); err != nil {
			return err
		}
		if h.position() == at {
			// The store was loaded anew, and has not got on since.
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		h.log.Info().Uint64("seq", h.position().Seq).Uint64("rev", from.Seq).Dur("took", time.Since(began)).Msg("journal is indexed")
	}
}

// replay indexes the journal from a position up to its end, with checkpoints on the way.
func (h *History) replay(ctx context.Context, from journal.Position, pace *pace) error {
	last, err := h.cfg.Journal.Last(ctx)
	if err != nil {
		return err
	}
	// Only where there is room for a checkpoint is the state needed.
	var s *state
	if last.Seq > from.Seq && last.Seq-from.Seq > uint64(h.cfg.CheckpointEvery)/4 || from.Seq == 0 { //nolint:gosec // positive
		if s, _, err = h.stateBefore(ctx, from.Seq+1, time.Time{}); err != nil {
			return err
		}
		s = s.copy()
	}
	bound, err := h.cfg.Journal.Bound(ctx)
	if err != nil {
		return err
	}
	return h.cfg.Journal.Replay(ctx, from.Seq+1, func(m journal.Message) error {
		entries := make([]store.Entry, len(m.Group.Entries))
		changes := 0
		for i, e := range m.Group.Entries {
			entries[i] = store.Entry{Request: e.Request, At: e.At, Error: e.Error, More: e.More, Changes: make([]store.Change, len(e.Changes))}
			for j, c := range e.Changes {
				entries[i].Changes[j] = store.Change{Kind: c.Kind, ID: c.ID, New: named(c.Kind, c.Value)}
				if c.Value == nil && s != nil {
					if old := s.kinds[c.Kind][c.ID]; old != nil {
						entries[i].Changes[j].Old = named(c.Kind, old.raw)
					}
				}
				if s != nil {
					s.put(c.Kind, c.ID, c.Value)
				}
			}
			changes += len(e.Changes)
		}
		if err := h.add(m.Position, entries); err != nil {
			return err
		}
		if s == nil {
			return nil
		}
		s.at, s.stored = m.Position, m.At
		pace.cost += 1 + changes
		// In what is left of a compacted journal the state is whole only from the end of the first round of restating on.
		if pace.cost >= max(h.cfg.CheckpointEvery, s.count) && m.Seq >= bound.Whole {
			pace.cost = 0
			h.writeCheckpoint(snapshot{at: m.Position, state: s})
		}
		return nil
	})
}

// named is a resource that has nothing but its name: that is all the index wants.
func named(kind resource.Kind, raw json.RawMessage) resource.Resource {
	if raw == nil {
		return nil
	}
	r := resource.New(kind)
	if r == nil {
		return nil
	}
	var m struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	r.Base().Name = m.Name
	return r
}

// position is up to where everything is indexed.
func (h *History) position() journal.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tail.Last
}

// add indexes a message.
func (h *History) add(at journal.Position, entries []store.Entry) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tail.add(at, entries)
	if h.tail.Rows >= h.cfg.SegmentRows {
		s, err := h.tail.write(h.cfg.Dir)
		if err != nil {
			return err
		}
		h.segments = append(slices.Clip(h.segments), s)
		h.tail = newTail(at)
	}
	close(h.changed)
	h.changed = make(chan struct{})
	return nil
}

// now is the index at this moment.
func (h *History) now() *parts {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := *h.tail
	return &parts{segments: h.segments, tail: &t}
}

// await returns once the index has a message.
func (h *History) await(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	for {
		h.mu.Lock()
		at, changed := h.tail.Last.Seq, h.changed
		h.mu.Unlock()
		if at >= seq {
			return nil
		}
		select {
		case <-ctx.Done():
			return &resource.Error{
				Code: resource.CodeConflict, Message: fmt.Sprintf("the index of the journal is being made: it is at message %d of %d", at, seq),
				Remedy: "ask again; meanwhile the journal can be read with nats stream get " + subjects.JournalStream,
			}
		case <-changed:
		}
	}
}

// search looks through the index. A segment that turns out to be damaged is made again, and so are those after it.
func (h *History) search(ctx context.Context, f *Filter) ([]Place, int, error) {
	p := h.now()
	var ids map[uint64]struct{}
	if f.Resource != "" {
		var err error
		if ids, err = p.named(ctx, f.Kind, f.Resource); err != nil {
			return nil, 0, h.damaged(err)
		}
	}
	f, err := h.kept(ctx, f)
	if err != nil {
		return nil, 0, err
	}
	places, total, err := p.search(ctx, f, ids)
	return places, total, h.damaged(err)
}

// kept restricts a filter to what the journal still has: the index knows of messages that a compaction has taken away since.
func (h *History) kept(ctx context.Context, f *Filter) (*Filter, error) {
	bound, err := h.cfg.Journal.Bound(ctx)
	if err != nil || bound.First <= 1 || f.After != nil && f.After.Seq >= bound.First {
		return f, err
	}
	g := *f
	g.After = &Place{Seq: bound.First - 1, Sub: math.MaxInt}
	return &g, nil
}

// damaged makes the index anew where an error says that it must be.
func (h *History) damaged(err error) error {
	broken, ok := errors.AsType[*damagedError](err)
	if !ok {
		return err
	}
	if !errors.Is(err, fs.ErrClosed) { // not one that was closed because the index was opened again
		h.log.Warn().Err(err).Msg("a segment of the index is damaged")
		if err := os.Remove(broken.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.log.Error().Err(err).Str("file", broken.path).Msg("it can't be removed")
		}
		h.mu.Lock()
		if h.reopen != nil {
			h.reopen()
		}
		h.mu.Unlock()
	}
	return &resource.Error{
		Code: resource.CodeConflict, Message: "the index of the journal was damaged and is being made again from the journal", Remedy: "ask again in a while",
	}
}

// pace decides when a checkpoint is due.
type pace struct {
	h    *History
	cost int
	n    int // resources, as far as is known
}

func (p *pace) due(entries []store.Entry, after resource.Reader) bool {
	p.cost++
	for _, e := range entries {
		p.cost += len(e.Changes)
	}
	if p.cost < max(p.h.cfg.CheckpointEvery, p.n) {
		return false
	}
	p.n = 0
	for _, kind := range resource.Kinds() {
		for range after.All(kind) {
			p.n++
		}
	}
	return p.cost >= p.n
}

// ask hands a state to the one who writes checkpoints, unless that one is busy; then a later state will do.
func (p *pace) ask(s snapshot) {
	select {
	case p.h.jobs <- s:
		p.cost = 0
	default:
	}
}

// writeCheckpoints writes those that are asked for, and of the newest state where HISTORY alone has grown.
func (h *History) writeCheckpoints(ctx context.Context) error {
	look := time.NewTicker(historyLook)
	defer look.Stop()
	written := h.historyEnd(ctx)
	for {
		var job snapshot
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
			end := h.historyEnd(ctx)
			if end >= written && end < written+historyEvery {
				continue
			}
			if p, ok := h.cfg.Store.Position(); ok {
				job = snapshot{at: p.At, after: p.View, live: true}
			}
		case job = <-h.jobs:
		}
		if job.at.Seq == 0 {
			continue
		}
		began := time.Now()
		h.writeCheckpoint(job)
		h.thinOut(ctx, h.cfg.Clock())
		written = h.historyEnd(ctx)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(checkpointRest * time.Since(began)):
		}
	}
}

func (h *History) historyEnd(ctx context.Context) uint64 {
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := h.cfg.JS.Stream(short, subjects.HistoryStream)
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.LastSeq
}

// writeCheckpoint writes a checkpoint. That it can't is told and no more: views then take longer.
func (h *History) writeCheckpoint(job snapshot) {
	began := time.Now()
	c := checkpoint{At: job.at, Stored: h.cfg.Clock().UTC()}
	if job.state != nil {
		c.Stored, c.Count = job.state.stored, job.state.count
	}
	if job.live {
		c.Taken = h.cfg.Clock().UTC()
	}
	if job.after != nil {
		for _, kind := range resource.Kinds() {
			for range job.after.All(kind) {
				c.Count++
			}
		}
	}
	err := writeCheckpoint(h.cfg.Dir, c, func(yield func(record) error) error { return h.records(job, yield) })
	if err != nil {
		h.log.Error().Err(err).Msg("checkpoint not written")
		return
	}
	info, err := os.Stat(filepath.Join(h.cfg.Dir, checkpointName(job.at.Seq)))
	if err != nil {
		h.log.Error().Err(err).Msg("checkpoint not found")
		return
	}
	h.mu.Lock()
	h.checkpoints = place(h.checkpoints, saved{job.at.Seq, c.Stored, info.Size()})
	h.mu.Unlock()
	h.log.Debug().Uint64("seq", job.at.Seq).Int("resources", c.Count).Dur("took", time.Since(began)).Msg("checkpoint written")
}

// records tells all that a checkpoint holds.
func (h *History) records(job snapshot, yield func(record) error) error {
	if job.state != nil {
		for kind, m := range job.state.kinds {
			for id, v := range m {
				if err := yield(record{recordResource, subjects.ResourceKey(string(kind), id), v.raw}); err != nil {
					return err
				}
			}
		}
	}
	if job.after != nil {
		for _, kind := range resource.Kinds() {
			for r := range job.after.All(kind) {
				b, err := desired.Canonical(r)
				if err != nil {
					return fmt.Errorf("encode %s: %w", describe(kind, r.Base().ID), err)
				}
				if err := yield(record{recordResource, subjects.ResourceKey(string(kind), r.Base().ID), b}); err != nil {
					return err
				}
			}
		}
	}
	if !job.live {
		return nil
	}
	var failed error
	put := func(sort byte, key string, v any) {
		if failed != nil {
			return
		}
		b, err := desired.Canonical(v)
		if err == nil {
			err = yield(record{sort, key, b})
		}
		failed = err
	}
	h.cfg.Store.EachStatus(func(host string, ref desired.Ref, st desired.Status) {
		put(recordStatus, subjects.ObservedKey(host, string(ref.Kind), ref.ID), st)
	})
	h.cfg.Store.EachHost(func(host string, seen resource.HostObservation, gen uint64, items map[desired.Ref]resource.PublishedItem) {
		put(recordHost, host, hostRecord{seen.Connected, seen.Since, seen.Reported, seen.Facts, gen})
		for ref, it := range items {
			if failed == nil {
				failed = yield(record{recordPublished, subjects.ObservedKey(host, string(ref.Kind), ref.ID), fmt.Appendf(nil, "%d %s", it.Rev, it.Cause)})
			}
		}
	})
	return failed
}
