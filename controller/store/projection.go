package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// checkpointKey is the key that says what the projection is worth. No kind has this name.
const checkpointKey = "checkpoint"

// checkpoint says from where to where the keys of the projection go. Every write of a resource is conditional on the
// checkpoint being the writer's own, so that a controller that has lost the lead can't spoil it.
type checkpoint struct {
	// At is the position up to which every key is written; the zero position for a projection that is being made.
	At journal.Position `json:"at"`
	// Ahead is the newest position that a key may stem from.
	Ahead journal.Position `json:"ahead"`
	// Count and Digest are of the resources at At. They can be compared where Ahead is At.
	Count  int    `json:"count"`
	Digest string `json:"digest"`
}

var (
	errNoProjection = errors.New("there is no projection")
	errProjection   = errors.New("the projection is not of this journal, or damaged")
)

const (
	kvOperation = "KV-Operation"
	kvDelete    = "DEL"
	// tombstoneTTL is how long a deleted key is remembered in the projection, in seconds; people may want to see it.
	tombstoneTTL = "86400"
	natsTTL      = "Nats-TTL"
)

// digest sums up which revisions of which resources there are; the order does not matter.
type digest uint64

// toggle adds a resource, or takes it out.
func (d *digest) toggle(r resource.Resource) {
	h := fnv.New64a()
	m := r.Base()
	_, _ = fmt.Fprintf(h, "%s.%s@%d", r.Kind(), m.ID, m.Rev)
	*d ^= digest(h.Sum64())
}

func (d digest) String() string { return strconv.FormatUint(uint64(d), 16) }

func checkpointSubject() string {
	return subjects.BucketSubject(subjects.ResourcesBucket, checkpointKey)
}

// readCheckpoint is the checkpoint and its sequence in the bucket's stream, 0 if there is none.
func readCheckpoint(ctx context.Context, stream jetstream.Stream) (checkpoint, uint64, error) {
	m, err := stream.GetLastMsgForSubject(ctx, checkpointSubject())
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return checkpoint{}, 0, errNoProjection
	case err != nil:
		return checkpoint{}, 0, fmt.Errorf("read checkpoint: %w", err)
	}
	var c checkpoint
	if err := json.Unmarshal(m.Data, &c); err != nil {
		return checkpoint{}, m.Sequence, fmt.Errorf("read checkpoint: %w: %w", errProjection, err)
	}
	return c, m.Sequence, nil
}

// verify reports errProjection if a checkpoint does not belong to the journal.
func (s *Store) verify(ctx context.Context, c checkpoint) error {
	if c.At == (journal.Position{}) {
		return errNoProjection
	}
	for _, p := range []journal.Position{c.At, c.Ahead} {
		err := s.journal.Verify(ctx, p)
		if errors.Is(err, journal.ErrDiverged) {
			return fmt.Errorf("%w: %w", errProjection, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// projectionWait is how long the bucket of the projection has to answer.
const projectionWait = 5 * time.Second

// readProjection reads the projection; the state is empty, and the error says why, if it can't be believed.
func (s *Store) readProjection(ctx context.Context) (building, error) {
	empty := newBuilding()
	if s.js == nil {
		return empty, errNoProjection
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Where the one server of a cluster that has it is away, nobody answers: then the journal has it all.
	look, end := context.WithTimeout(ctx, projectionWait)
	stream, err := s.js.Stream(look, subjects.BucketStream(subjects.ResourcesBucket))
	end()
	if err != nil {
		return empty, fmt.Errorf("find bucket %s: %w", subjects.ResourcesBucket, err)
	}
	c, _, err := readCheckpoint(ctx, stream)
	if err == nil {
		err = s.verify(ctx, c)
	}
	if err != nil {
		return empty, err
	}
	b := newBuilding()
	b.at = c.At
	if err := eachKey(ctx, s.js, func(key string, r journal.Raw) error {
		kind, id, err := subjects.ParseItemKey(key)
		switch k := (changeKey{resource.Kind(kind), id}); {
		case isDeleted(r.Header):
			delete(b.values, k)
		case err != nil:
			return fmt.Errorf("%w: %w", errProjection, err)
		default:
			b.values[k] = stored{raw: r.Data}
		}
		return nil
	}); err != nil {
		return empty, err
	}
	// The leading controller may have written meanwhile: what was read may be newer than what the checkpoint said before.
	after, _, err := readCheckpoint(ctx, stream)
	if err == nil {
		err = s.verify(ctx, after)
	}
	if err != nil {
		return empty, err
	}
	var sum digest
	for k, value := range b.values {
		r, err := value.decode(k)
		if err != nil {
			return empty, fmt.Errorf("%w: %w", errProjection, err)
		}
		b.values[k] = stored{resource: r}
		if r.Base().Rev > after.Ahead.Seq {
			return empty, fmt.Errorf("%w: %s %s has revision %d, later than the checkpoint's %d", errProjection, k.kind, k.id, r.Base().Rev, after.Ahead.Seq)
		}
		sum.toggle(r)
	}
	if after == c && c.At == c.Ahead && (c.Count != len(b.values) || c.Digest != sum.String()) {
		return empty, fmt.Errorf("%w: it holds %d resources, %d of which the checkpoint knows: their revisions differ", errProjection, len(b.values), c.Count)
	}
	return b, nil
}

func isDeleted(h nats.Header) bool {
	op := h.Get(kvOperation)
	return op == kvDelete || op == "PURGE" || h.Get("Nats-Marker-Reason") != ""
}

// eachKey reads the newest message of every key of the projection.
func eachKey(ctx context.Context, js jetstream.JetStream, fn func(key string, r journal.Raw) error) error {
	return journal.Session{
		JS: js, Stream: subjects.BucketStream(subjects.ResourcesBucket), LastPerSubject: true,
		Begin: func(pending uint64) error {
			if pending == 0 {
				return journal.ErrStop
			}
			return nil
		},
	}.Run(ctx, func(r journal.Raw) error {
		key, ok := subjects.BucketKey(subjects.ResourcesBucket, r.Subject)
		if ok && key != checkpointKey {
			if err := fn(key, r); err != nil {
				return err
			}
		}
		if r.Pending == 0 {
			return journal.ErrStop
		}
		return nil
	})
}

// project keeps the projection up to date until ctx ends. That it fails is no reason not to lead.
func (s *Store) project(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := s.projectTerm(ctx, func() { wait = time.Second })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.log.Warn().Err(err).Msg("the projection can't be written, trying again")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// projector writes the projection during one term.
type projector struct {
	s      *Store
	stream jetstream.Stream
	fence  uint64 // the sequence of our checkpoint
	now    checkpoint
	sum    digest
	count  int

	mu    sync.Mutex
	dirty map[string][]byte // by key; nil for what is to be deleted
	upTo  journal.Position
	wake  chan struct{}
}

const (
	// projectorPause is the least time between two batches: what changes several times within it is written once.
	projectorPause = 100 * time.Millisecond
	// projectorWindow is how many writes are on their way at once.
	projectorWindow = 64
	// projectorShare is how much longer than a window takes it rests after it: under load the projection may lag, but it
	// must not make the commits wait.
	projectorShare = 3
	// replayAtMost is how many messages behind the journal it is quicker to write everything.
	replayAtMost = 100_000
)

func (s *Store) projectTerm(ctx context.Context, written func()) error {
	stream, err := s.js.Stream(ctx, subjects.BucketStream(subjects.ResourcesBucket))
	if err != nil {
		return fmt.Errorf("find bucket %s: %w", subjects.ResourcesBucket, err)
	}
	start := s.current.Load()
	p := &projector{s: s, stream: stream, dirty: map[string][]byte{}, upTo: start.at, wake: make(chan struct{}, 1)}
	now := s.viewOf(start)
	for _, kind := range resource.Kinds() {
		for r := range now.All(kind) {
			p.sum.toggle(r)
			p.count++
		}
	}
	if err := p.takeOver(ctx, start, now); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		cancel(s.commits(ctx, start.at.Seq, p.take))
	}()
	defer func() { cancel(nil); <-reading }()
	p.signal()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.wake:
		}
		if err := p.write(ctx); err != nil {
			return err
		}
		written()
		if err := pause(ctx, projectorPause); err != nil {
			return err
		}
	}
}

// takeOver finds what has to be written to bring the projection to the start, and makes the checkpoint ours.
func (p *projector) takeOver(ctx context.Context, start *snapshot, now *view) error {
	old, seq, err := readCheckpoint(ctx, p.stream)
	if err == nil {
		err = p.s.verify(ctx, old)
	}
	p.fence = seq
	behind := err == nil && !p.s.remake && old.At.Seq <= start.at.Seq && start.at.Seq-old.At.Seq <= replayAtMost
	switch {
	case err != nil && !errors.Is(err, errNoProjection) && !errors.Is(err, errProjection):
		return err
	case errors.Is(err, errProjection):
		p.s.log.Warn().AnErr("cause", err).Msg("the projection is made anew")
		fallthrough
	case !behind:
		// From nothing: whatever is there and not in the state has to go.
		if err := eachKey(ctx, p.s.js, func(key string, r journal.Raw) error {
			if !isDeleted(r.Header) {
				p.dirty[key] = nil
			}
			return nil
		}); err != nil {
			return err
		}
		for _, kind := range resource.Kinds() {
			for r := range now.All(kind) {
				b, err := encodeResource(r)
				if err != nil {
					return fmt.Errorf("encode %s %s: %w", kind, r.Base().ID, err)
				}
				p.dirty[subjects.ResourceKey(string(kind), r.Base().ID)] = b
			}
		}
	default:
		p.now.At = old.At
		if err := p.s.journal.Replay(ctx, old.At.Seq+1, func(m journal.Message) error {
			if m.Seq > start.at.Seq {
				return journal.ErrStop
			}
			for _, e := range m.Group.Entries {
				for _, c := range e.Changes {
					p.dirty[subjects.ResourceKey(string(c.Kind), c.ID)] = c.Value
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// take notes what was committed.
func (p *projector) take(_, after *snapshot, entries []Entry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		for _, c := range e.Changes {
			if c.Old != nil {
				p.sum.toggle(c.Old)
				p.count--
			}
			if c.New != nil {
				p.sum.toggle(c.New)
				p.count++
			}
			p.dirty[subjects.ResourceKey(string(c.Kind), c.ID)] = c.encoded
		}
	}
	p.upTo = after.at
	p.signal()
	return nil
}

func (p *projector) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// write writes what has changed. The checkpoint before says how far the keys may be, the one behind that they are.
func (p *projector) write(ctx context.Context) error {
	p.mu.Lock()
	dirty, upTo, count, sum := p.dirty, p.upTo, p.count, p.sum
	if upTo == (journal.Position{}) {
		p.mu.Unlock()
		return nil
	}
	p.dirty = map[string][]byte{}
	p.mu.Unlock()
	if p.now.Ahead = upTo; p.now.At != upTo {
		if err := p.mark(ctx); err != nil {
			return err
		}
	}
	window := make([]jetstream.PubAckFuture, 0, projectorWindow)
	for keys := range slices.Chunk(slices.Collect(maps.Keys(dirty)), projectorWindow) {
		began := time.Now()
		window = window[:0]
		for _, key := range keys {
			f, err := p.put(key, dirty[key])
			if err != nil {
				return err
			}
			window = append(window, f)
		}
		for _, f := range window {
			if err := await(ctx, f); err != nil {
				return err
			}
		}
		if len(keys) == projectorWindow {
			if err := pause(ctx, projectorShare*time.Since(began)); err != nil {
				return err
			}
		}
	}
	p.now.At, p.now.Count, p.now.Digest = upTo, count, sum.String()
	if err := p.mark(ctx); err != nil {
		return err
	}
	p.s.remake = false
	return nil
}

func (p *projector) put(key string, value []byte) (jetstream.PubAckFuture, error) {
	m := nats.NewMsg(subjects.BucketSubject(subjects.ResourcesBucket, key))
	m.Data = value
	if value == nil {
		m.Header.Set(kvOperation, kvDelete)
		if p.stream.CachedInfo().Config.AllowMsgTTL {
			m.Header.Set(natsTTL, tombstoneTTL)
		}
	}
	f, err := p.s.js.PublishMsgAsync(m, jetstream.WithExpectLastSequenceForSubject(p.fence, checkpointSubject()), jetstream.WithStallWait(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	return f, nil
}

// mark writes the checkpoint, if the one there is ours or the one that was found.
func (p *projector) mark(ctx context.Context) error {
	b, err := json.Marshal(p.now)
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	ack, err := p.s.js.Publish(ctx, checkpointSubject(), b, jetstream.WithExpectLastSequencePerSubject(p.fence))
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	p.fence = ack.Sequence
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func await(ctx context.Context, f jetstream.PubAckFuture) error {
	select {
	case <-f.Ok():
		return nil
	case err := <-f.Err():
		return fmt.Errorf("write %s: %w", strings.TrimPrefix(f.Msg().Subject, "$KV."), err)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(30 * time.Second):
		return fmt.Errorf("write %s: no answer", f.Msg().Subject)
	}
}
