package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/journal"
	"shoal/desired"
	"shoal/subjects"
)

// watchBatch is how many reports are taken over at once.
const watchBatch = 512

// watcher reads the bucket "observed". It resumes after a break only where it can prove that the stream has not gone
// back, and otherwise compares everything.
type watcher struct {
	s      *Store
	js     jetstream.JetStream
	stream jetstream.Stream
	// made is when the stream was made; seq and at are those of the last message read.
	made time.Time
	seq  uint64
	at   time.Time
	// seen are the keys that a comparison has found so far; nil when none is under way.
	seen  map[string]struct{}
	batch []observation
}

// Watch follows the bucket "observed" until ctx ends, and misses nothing: not even what happened while the connection
// was gone, nor what a stream lost that went back.
func (s *Store) Watch(ctx context.Context, js jetstream.JetStream) error {
	w := &watcher{s: s, js: js}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		began := time.Now()
		err := w.session(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("watch what hosts report: %w", err)
		}
		if time.Since(began) > 10*time.Second {
			wait = 50 * time.Millisecond
		}
		s.log.Debug().Err(err).Uint64("seq", w.seq).Msg("reading what hosts report again")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// errMoved says that the stream is not what was read before.
var errMoved = errors.New("the bucket went back or was made anew")

func (w *watcher) session(ctx context.Context) error {
	stream, err := w.js.Stream(ctx, subjects.BucketStream(subjects.ObservedBucket))
	if err != nil {
		return fmt.Errorf("find bucket %s: %w", subjects.ObservedBucket, err)
	}
	w.stream = stream
	session := journal.Session{JS: w.js, Stream: subjects.BucketStream(subjects.ObservedBucket)}
	if w.resumable(ctx) {
		session.From = w.seq + 1
		session.Check = w.check
	} else {
		w.seen, w.made, w.seq = map[string]struct{}{}, stream.CachedInfo().Created, 0
		session.LastPerSubject = true
		session.Check = w.check
		session.Begin = func(pending uint64) error {
			if pending == 0 {
				w.compared()
			}
			return nil
		}
	}
	w.batch = w.batch[:0]
	return session.Run(ctx, func(r journal.Raw) error {
		w.take(r)
		w.seq, w.at = r.Seq, r.At
		if r.Pending == 0 || len(w.batch) >= watchBatch {
			w.flush()
		}
		if r.Pending == 0 && w.seen != nil {
			w.compared()
		}
		return nil
	})
}

// resumable reports whether the message that was read last is still there: then so is all that was before it.
func (w *watcher) resumable(ctx context.Context) bool {
	if w.seq == 0 || w.seen != nil || !w.stream.CachedInfo().Created.Equal(w.made) {
		return false
	}
	m, err := w.stream.GetMsg(ctx, w.seq)
	return err == nil && m.Time.Equal(w.at)
}

// check looks whether the stream went back while nothing came. The last message may be gone for good reason:
// a newer one of its key has replaced it, which then would have been read.
func (w *watcher) check(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	info, err := w.stream.Info(short)
	if err != nil {
		return fmt.Errorf("look at bucket %s: %w", subjects.ObservedBucket, err)
	}
	if !info.Created.Equal(w.made) || info.State.LastSeq < w.seq {
		return errMoved
	}
	return nil
}

// take puts one message into the batch.
func (w *watcher) take(r journal.Raw) {
	key, ok := subjects.BucketKey(subjects.ObservedBucket, r.Subject)
	if !ok {
		return
	}
	host, kind, id, err := subjects.ParseObservedKey(key)
	ref := desired.Ref{Kind: desired.Kind(kind), ID: id}
	if err == nil && !slices.Contains(desired.Kinds(), ref.Kind) && ref != hostRef() {
		err = fmt.Errorf("read observed key %q: hosts report no such thing", key)
	}
	if err != nil {
		w.s.log.Warn().Err(err).Msg("a report was left aside")
		return
	}
	if isDeleted(r.Header) {
		w.batch = append(w.batch, observation{host: host, ref: ref})
		return
	}
	if w.seen != nil {
		w.seen[statusKey(host, ref)] = struct{}{}
	}
	st, err := desired.DecodeStatus(r.Data)
	if err != nil {
		w.s.log.Warn().Str("host", host).Stringer("id", ref).Err(err).Msg("a report was left aside")
		return
	}
	if w.seen != nil {
		if have, ok := w.s.observedNow().Status(host, ref); ok && reflect.DeepEqual(have, st) {
			return
		}
	}
	w.batch = append(w.batch, observation{host: host, ref: ref, status: &st})
}

func (w *watcher) flush() {
	if len(w.batch) > 0 {
		w.s.observe(w.batch)
		w.batch = w.batch[:0]
	}
}

// compared ends a comparison: what was not found is gone.
func (w *watcher) compared() {
	it, err := w.s.observedNow().txn.Get(tableStatus, indexID)
	if err != nil {
		w.s.log.Error().Err(err).Msg("can't compare what was observed")
		return
	}
	for o := it.Next(); o != nil; o = it.Next() {
		row := o.(*statusRow)
		if _, ok := w.seen[statusKey(row.host, row.ref)]; !ok {
			w.batch = append(w.batch, observation{host: row.host, ref: row.ref})
		}
	}
	w.flush()
	w.seen = nil
	w.s.log.Debug().Uint64("seq", w.seq).Msg("compared what hosts report")
}
