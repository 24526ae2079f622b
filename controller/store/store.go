package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// Config is what a store needs.
type Config struct {
	Journal *journal.Journal
	// JS has the bucket "resources", which the store reads on start and writes while it leads. Nil for a store without.
	JS  jetstream.JetStream
	Log zerolog.Logger
	// Clock gives the time of transactions; time.Now if it is nil.
	Clock func() time.Time
}

// RequestsKept is how long the ids of committed requests are known at least.
const RequestsKept = 10 * time.Minute

// ErrRepeated says that a request with the same id was committed before. Commit returns the sequence that it got then.
var ErrRepeated = errors.New("the request was committed before")

// Store is the database. Make it with New, then Load.
type Store struct {
	journal *journal.Journal
	js      jetstream.JetStream
	log     zerolog.Logger
	clock   func() time.Time

	// current is what everybody sees.
	current atomic.Pointer[snapshot]
	// observed is what hosts and publisher reported.
	observed *memdb.MemDB

	feed      *feed
	changed   broadcast
	observers observers

	// busy is held by the one of Load, Follow and Lead that runs.
	busy     sync.Mutex
	requests requests // guarded by busy
	// remake is set by Load where the projection could not be believed; guarded by busy.
	remake  bool
	leading atomic.Pointer[leadership]
}

// snapshot is the state after a message of the journal. It never changes.
type snapshot struct {
	at journal.Position
	db *memdb.MemDB
}

// New makes an empty store.
func New(cfg Config) (*Store, error) {
	db, err := memdb.NewMemDB(resourceSchema())
	if err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	observed, err := memdb.NewMemDB(observedSchema())
	if err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	s := &Store{
		journal: cfg.Journal, js: cfg.JS, log: cfg.Log.With().Str("kind", "store").Logger(), clock: cfg.Clock,
		observed: observed.Snapshot(), // which has no watches, and so does not pay for them
		feed:     newFeed(0), observers: observers{subs: map[*observer]struct{}{}},
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	s.requests.reset()
	s.current.Store(&snapshot{db: db.Snapshot()})
	return s, nil
}

// View is a consistent snapshot, joined with what is observed at this moment.
func (s *Store) View() resource.Reader { return s.viewOf(s.current.Load()) }

func (s *Store) viewOf(snap *snapshot) *view {
	return &view{seq: snap.at.Seq, txn: snap.db.Txn(false), observed: s.observedNow()}
}

func (s *Store) observedNow() observedView { return observedView{s.observed.Txn(false)} }

// Seq is the journal sequence of the newest state.
func (s *Store) Seq() uint64 { return s.current.Load().at.Seq }

// Leading reports whether Commit works here.
func (s *Store) Leading() bool { return s.leading.Load() != nil }

// publish makes a new state visible; answer is called once it is, before anybody else is woken.
func (s *Store) publish(snap *snapshot, entries []Entry, size int, answer func()) {
	before := s.current.Swap(snap)
	answer()
	s.feed.add(before, snap, entries, size)
	s.changed.wake()
}

// applyMessage takes over what another controller has committed.
func (s *Store) applyMessage(m journal.Message) error {
	cur := s.current.Load()
	if !m.Follows(cur.at) {
		return fmt.Errorf("apply journal message %d after %d: %w", m.Seq, cur.at.Seq, journal.ErrDiverged)
	}
	db := cur.db.Snapshot()
	txn := db.Txn(true)
	defer txn.Abort()
	entries := make([]Entry, len(m.Group.Entries))
	for i, e := range m.Group.Entries {
		var err error
		if entries[i], err = decodeEntry(e); err != nil {
			return fmt.Errorf("apply journal message %d: %w", m.Seq, err)
		}
		if e.Restates() {
			if err := sameAs(&view{txn: txn}, &entries[i]); err != nil {
				return fmt.Errorf("apply journal message %d: %w", m.Seq, err)
			}
			continue
		}
		if err := apply(txn, entries[i].Changes); err != nil {
			return fmt.Errorf("apply journal message %d: %w", m.Seq, err)
		}
	}
	txn.Commit()
	s.requests.add(m, s.clock())
	s.publish(&snapshot{at: m.Position, db: db}, entries, m.Size, func() {})
	return nil
}

// errBusy says that Load, Follow or Lead runs already.
var errBusy = errors.New("the store is loading, following or leading already")

// Follow applies what the leading controller commits, until ctx ends. journal.ErrDiverged means that the state must be
// loaded anew.
func (s *Store) Follow(ctx context.Context) error {
	if !s.busy.TryLock() {
		return fmt.Errorf("follow the journal: %w", errBusy)
	}
	defer s.busy.Unlock()
	if err := s.journal.Tail(ctx, s.current.Load().at, s.applyMessage); err != nil {
		return fmt.Errorf("follow the journal: %w", err)
	}
	return nil
}

// requests remembers which requests were committed with which sequence, in two generations: the older one is dropped
// when the younger one has become RequestsKept old.
type requests struct {
	young, old map[requestKey]uint64
	since      time.Time
}

// requestKey stands for a request's id, which can be of any length.
type requestKey [16]byte

func keyOf(id string) requestKey {
	h := sha256.Sum256([]byte(id))
	return requestKey(h[:16])
}

func (q *requests) reset() { *q = requests{young: map[requestKey]uint64{}} }

func (q *requests) find(k requestKey) (uint64, bool) {
	if seq, ok := q.young[k]; ok {
		return seq, true
	}
	seq, ok := q.old[k]
	return seq, ok
}

func (q *requests) put(k requestKey, seq uint64, now time.Time) {
	if now.Sub(q.since) > RequestsKept {
		q.young, q.old, q.since = map[requestKey]uint64{}, q.young, now
	}
	q.young[k] = seq
}

// add takes the requests of a message of the journal that are not too old.
func (q *requests) add(m journal.Message, now time.Time) {
	if now.Sub(m.At) > 2*RequestsKept {
		return
	}
	for _, e := range m.Group.Entries {
		if !e.IsNote() { // a call that was refused may come again and be accepted
			q.put(keyOf(e.Request.ID), m.Seq, now)
		}
	}
}
