package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

const (
	// writeTimeout bounds the wait for one acknowledgement.
	writeTimeout = 5 * time.Second
	// Bounds of the wait between attempts to write.
	retryMin, retryMax = 50 * time.Millisecond, 10 * time.Second
	// patience is how many attempts others wait for a host that can't be written.
	patience = 3
	// lostAfter is how long a bucket may give no answer before it is taken for lost with its server, in a cluster of servers.
	lostAfter = 15 * time.Second
	// tombstoneTTL is how long the mark of a purged item stays in the bucket.
	tombstoneTTL = "168h"
)

// errAhead: the bucket, or the host itself, holds a generation that the document to be written has not reached.
var errAhead = errors.New("the host is ahead of the journal")

// writer writes one host's documents, one after the other.
type writer struct {
	p    *Publisher
	host string
	log  zerolog.Logger

	// Under p.mu.
	next     *rendered
	busy     bool
	known    bool   // what is in the bucket is known
	headHash string // of the head as it was written
	headGen  uint64

	// The running goroutine's.
	sent  map[desired.Ref]sent
	gen   uint64
	bits  plan.HeadBits
	whole bool // the bucket holds a whole document
	// made is set once the bucket's stream was brought about, last is its newest sequence.
	made bool
	last uint64
}

// sent is an item as it stands in the bucket.
type sent struct {
	rev   uint64
	cause string
	// content is the hash of the item without Rev and Cause, wire the hash of its bytes.
	content, wire string
}

// run writes until there is nothing left to write.
func (w *writer) run(ctx context.Context) {
	wait, tries := retryMin, 0
	var failing time.Time
	for {
		r, ok := w.p.take(w)
		if !ok {
			return
		}
		for {
			err := w.write(ctx, &r)
			if err == nil {
				w.p.wrote(w)
				wait, tries, failing = retryMin, 0, time.Time{}
				break
			}
			if ctx.Err() != nil {
				return
			}
			w.forget()
			if failing.IsZero() {
				failing = time.Now()
			}
			if time.Since(failing) > lostAfter && w.dropLost(ctx) {
				failing = time.Now()
			}
			if tries++; tries == 1 || tries%10 == 0 {
				w.log.Warn().Err(err).Uint64("gen", r.seq).Int("attempt", tries).Msg("document not written")
			}
			if tries >= patience {
				w.p.wrote(w)
			}
			if !w.p.pause(ctx, wait) {
				return
			}
			wait = min(2*wait, retryMax)
			if newer, ok := w.p.newer(w); ok {
				newer.first = min(newer.first, r.first)
				r = newer
			} else if errors.Is(err, errAhead) {
				// The journal may have passed the bucket by what concerns other hosts.
				r = w.p.afresh(w.host, r)
			}
		}
	}
}

// pop takes the document that waits, under p.mu.
func (w *writer) pop() (r rendered, ok bool) {
	if w.next == nil {
		return rendered{}, false
	}
	r, w.next = *w.next, nil
	return r, true
}

// dropLost gives up a bucket whose server has been gone for a while, so that the next attempt makes it anew on another one. Nothing is
// lost by that which can't be made again: a host does nothing for a bucket that is not there. Only the majority of a cluster does it.
func (w *writer) dropLost(ctx context.Context) bool {
	if w.p.cfg.Conn.ConnectedClusterName() == "" || !w.p.cfg.Conn.IsConnected() {
		return false
	}
	name := subjects.BucketStream(subjects.DesiredBucket(w.host))
	call, cancel := context.WithTimeout(ctx, writeTimeout)
	_, err := w.p.js.Stream(call, name)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return false // it answers, or nobody has a say
	}
	call, cancel = context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	// The one that would acknowledge it is the one that is gone.
	if err := w.p.js.DeleteStream(call, name); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		w.log.Warn().Err(err).Msg("bucket is lost with its server, and can't be given up")
		return false
	}
	w.log.Warn().Msg("bucket is lost with its server; it is made anew on another one")
	return true
}

// forget makes the next attempt read the bucket first.
func (w *writer) forget() {
	w.p.mu.Lock()
	w.known = false
	w.p.mu.Unlock()
	w.made = false
}

// write brings the bucket to a document.
func (w *writer) write(ctx context.Context, r *rendered) error {
	if r.removed {
		return w.remove(ctx)
	}
	if h, ok := resource.Find[*resource.Host](w.p.cfg.Store.View(), w.host); ok && h.Hold != nil {
		w.forget() // what is wanted is rendered again when it is not held any more
		return nil
	}
	if !w.known || r.reload {
		if err := w.load(ctx, r.seq); err != nil {
			return err
		}
		r.reload = false
	}
	changed, removed, items, err := w.diff(r)
	if err != nil {
		return err
	}
	sameBits := w.bits.Shrink == r.bits.Shrink && maps.Equal(w.bits.Policy, r.bits.Policy)
	now := w.p.cfg.Store.View()
	facts := now.Observed().Host(w.host).Facts
	if w.whole && len(changed) == 0 && len(removed) == 0 && sameBits && !outrun(facts, w.gen) {
		w.tell(w.gen, w.sent)
		return nil
	}
	if w.gen > r.seq {
		return fmt.Errorf("generation %d is not above %d: %w", r.seq, w.gen, errAhead)
	}
	if facts.Gen > now.Seq() {
		// It was told by a journal that is no more. New sequences must not run after it until it takes them for newer.
		return fmt.Errorf("the host holds generation %d, the journal ends at %d: %w", facts.Gen, now.Seq(), errAhead)
	}
	if facts.Gen >= r.seq && w.p.cfg.Touch != nil {
		// The bucket has lost what the agent has read, and the journal has not: the agent looks at nothing but what is newer.
		if err := w.p.cfg.Touch(ctx, w.host); err != nil {
			return fmt.Errorf("give host %s a new generation: %w", w.host, err)
		}
		return fmt.Errorf("generation %d was told before; a new one follows", facts.Gen)
	}
	head := desired.Head{Host: w.host, Gen: r.seq, Items: make(map[desired.Ref]string, len(items)), Shrink: r.bits.Shrink, Policy: r.bits.Policy}
	for ref, s := range items {
		head.Items[ref] = s.wire
	}
	headBytes, err := head.Encode()
	if err != nil {
		return fmt.Errorf("encode head: %w", err)
	}
	if err := w.send(ctx, changed, headBytes, removed, r.request); err != nil {
		return err
	}
	w.sent, w.gen, w.bits, w.whole = items, r.seq, r.bits, true
	w.p.mu.Lock()
	w.headHash, w.headGen = desired.Hash(headBytes), r.seq
	w.p.mu.Unlock()
	w.log.Debug().Uint64("gen", r.seq).Int("changed", len(changed)).Int("removed", len(removed)).Msg("document written")
	w.tell(w.gen, w.sent)
	return nil
}

// outrun reports whether an agent has read a document that a bucket at generation gen does not lead to: one of a higher generation, or
// another one of the same.
func outrun(facts desired.HostFacts, gen uint64) bool {
	return facts.Gen > gen || facts.Gen == gen && facts.Ahead
}

// tell lets the store know what is in the bucket.
func (w *writer) tell(gen uint64, held map[desired.Ref]sent) {
	items := make(map[desired.Ref]resource.PublishedItem, len(held))
	for ref, s := range held {
		items[ref] = resource.PublishedItem{Rev: s.rev, Cause: s.cause}
	}
	w.p.cfg.Store.SetPublished(w.host, gen, items)
}

// diff finds what differs from the bucket: the bytes of changed items, the names of removed ones, and all items as they will stand.
func (w *writer) diff(r *rendered) (changed map[desired.Ref][]byte, removed []desired.Ref, items map[desired.Ref]sent, err error) {
	changed, items = map[desired.Ref][]byte{}, make(map[desired.Ref]sent, len(r.items))
	for _, it := range r.items {
		ref := it.Ref()
		content, err := contentHash(it)
		if err != nil {
			return nil, nil, nil, err
		}
		old, there := w.sent[ref]
		if there && old.content == content {
			items[ref] = old
			continue
		}
		it.Rev = r.seq
		if it.Cause == "" || it.Cause == old.cause && r.request != "" {
			// Nothing that it was made from is newer than before: something that it was made from is gone.
			it.Cause = r.request
		}
		b, err := it.Encode()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("encode %s: %w", ref, err)
		}
		changed[ref] = b
		items[ref] = sent{rev: it.Rev, cause: it.Cause, content: content, wire: desired.Hash(b)}
	}
	for ref := range w.sent {
		if _, ok := items[ref]; !ok {
			removed = append(removed, ref)
		}
	}
	slices.SortFunc(removed, desired.Ref.Compare)
	return changed, removed, items, nil
}

// contentHash is the hash of what an item wants, whatever its Rev and Cause.
func contentHash(it desired.Item) (string, error) {
	it.Rev, it.Cause = 0, ""
	b, err := it.Encode()
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", it.Ref(), err)
	}
	return desired.Hash(b), nil
}

// send writes HISTORY, the items, the head, and purges what is removed, in this order, and waits for all acknowledgements.
// One connection carries them and the server handles them in order, so that waiting once is enough.
func (w *writer) send(ctx context.Context, changed map[desired.Ref][]byte, head []byte, removed []desired.Ref, request string) error {
	if !w.made {
		call, cancel := context.WithTimeout(ctx, writeTimeout)
		stream, err := w.p.js.CreateOrUpdateStream(call, w.p.cfg.Stream(w.host))
		cancel()
		if err != nil {
			return fmt.Errorf("make bucket: %w", err)
		}
		if last := stream.CachedInfo().State.LastSeq; last != w.last {
			return fmt.Errorf("the bucket's sequence is %d, not %d as it was when it was read", last, w.last)
		}
		w.made = true
	}
	bucket := subjects.DesiredBucket(w.host)
	var acks []jetstream.PubAckFuture
	next := w.last
	put := func(m *nats.Msg) error {
		if _, ours := subjects.BucketKey(bucket, m.Subject); ours {
			// One publisher at a time: if another has written, none of this is.
			if m.Header == nil {
				m.Header = nats.Header{}
			}
			m.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(next, 10))
			next++
		}
		ack, err := w.p.js.PublishMsgAsync(m, jetstream.WithStallWait(writeTimeout))
		if err != nil {
			return fmt.Errorf("publish %s: %w", m.Subject, err)
		}
		acks = append(acks, ack)
		return nil
	}
	refs := slices.SortedFunc(maps.Keys(changed), desired.Ref.Compare)
	for _, target := range []func(key string) string{
		func(key string) string { return subjects.HistorySubject(w.host, key) },
		func(key string) string { return subjects.BucketSubject(bucket, key) },
	} {
		history := len(acks) == 0
		for _, ref := range refs {
			if err := put(&nats.Msg{Subject: target(ref.String()), Data: changed[ref]}); err != nil {
				return err
			}
		}
		if history {
			for _, ref := range removed {
				if err := put(&nats.Msg{Subject: target(ref.String()), Header: nats.Header{"KV-Operation": {"DEL"}, subjects.HeaderCause: {request}}}); err != nil {
					return err
				}
			}
		}
		if err := put(&nats.Msg{Subject: target(subjects.HeadKey), Data: head}); err != nil {
			return err
		}
	}
	for _, ref := range removed {
		purge := nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}, "Nats-TTL": {tombstoneTTL}}
		if err := put(&nats.Msg{Subject: subjects.BucketSubject(bucket, ref.String()), Header: purge}); err != nil {
			return err
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("publish %s: %w", ack.Msg().Subject, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.last = next
	return nil
}

// load reads what is in the bucket.
func (w *writer) load(ctx context.Context, seq uint64) error {
	b, err := w.p.readBucket(ctx, w.host)
	if err != nil {
		return err
	}
	if b.gen > seq {
		w.tell(b.gen, b.items) // so that a host is held whose bucket the journal has not reached
		return fmt.Errorf("the bucket's generation is %d, the journal's sequence %d: %w", b.gen, seq, errAhead)
	}
	w.sent, w.gen, w.bits, w.whole, w.last = b.items, b.gen, b.bits, b.whole, b.last
	w.p.mu.Lock()
	w.known, w.headHash, w.headGen = true, b.headHash, b.gen
	w.p.mu.Unlock()
	return nil
}

// remove deletes the bucket of a host that is no more, and what it reported.
func (w *writer) remove(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := w.p.js.DeleteStream(call, subjects.BucketStream(subjects.DesiredBucket(w.host)))
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("delete bucket: %w", err)
	}
	observed, err := w.p.js.Stream(call, subjects.BucketStream(subjects.ObservedBucket))
	if err == nil {
		err = observed.Purge(call, jetstream.WithPurgeSubject(subjects.BucketSubject(subjects.ObservedBucket, w.host+".>")))
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("purge what the host reported: %w", err)
	}
	w.p.mu.Lock()
	w.known = false
	w.p.mu.Unlock()
	w.log.Info().Msg("bucket deleted")
	return nil
}
