package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// building is a state that is being read, before it gets its indexes.
type building struct {
	at     journal.Position
	values map[changeKey]stored
}

// stored is a resource as it was read, and decoded where somebody had to look into it already.
type stored struct {
	raw      json.RawMessage
	resource resource.Resource
}

func newBuilding() building { return building{values: map[changeKey]stored{}} }

func (v stored) decode(k changeKey) (resource.Resource, error) {
	if v.resource != nil {
		return v.resource, nil
	}
	return decodeResource(k.kind, k.id, v.raw)
}

// Load reads the state: the projection, where it can be believed, then the journal from there on. It can be called
// again, after journal.ErrDiverged; readers of changes are told by ErrGone.
func (s *Store) Load(ctx context.Context) error {
	if !s.busy.TryLock() {
		return fmt.Errorf("load: %w", errBusy)
	}
	defer s.busy.Unlock()
	began := time.Now()
	b, why := s.readProjection(ctx)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("load: %w", context.Cause(ctx))
	}
	from := b.at.Seq
	snap, err := s.build(ctx, b)
	if err != nil && from > 0 && errors.Is(err, errInconsistent) {
		why, from = err, 0
		snap, err = s.build(ctx, newBuilding())
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if why != nil && !errors.Is(why, errNoProjection) {
		s.log.Warn().AnErr("cause", why).Msg("the projection can't be believed: everything was read from the journal")
	}
	s.remake = why != nil
	s.current.Store(snap)
	s.feed.reset(snap.at.Seq)
	s.changed.wake()
	s.log.Info().Uint64("seq", snap.at.Seq).Uint64("rev", from).Dur("took", time.Since(began)).Msg("loaded")
	return nil
}

// build replays the journal onto what was read and makes the indexes.
func (s *Store) build(ctx context.Context, b building) (*snapshot, error) {
	// The requests of the last minutes are needed too, even where their effect is in the projection.
	recent, err := s.journal.FirstSince(ctx, s.clock().Add(-RequestsKept))
	if err != nil {
		return nil, err
	}
	s.requests.reset()
	from := b.at.Seq + 1
	put := func(kind resource.Kind, id string, value json.RawMessage) {
		if k := (changeKey{kind, id}); value == nil {
			delete(b.values, k)
		} else {
			b.values[k] = stored{raw: value}
		}
	}
	// Of what is older nothing but the resources is needed.
	if from < recent {
		if b.at, _, err = s.journal.Values(ctx, from, recent-1, put); err != nil {
			return nil, err
		}
		from = recent
	}
	err = s.journal.Replay(ctx, min(from, recent), func(m journal.Message) error {
		s.requests.add(m, s.clock())
		if m.Seq < from {
			return nil
		}
		b.at = m.Position
		for _, e := range m.Group.Entries {
			for _, c := range e.Changes {
				put(c.Kind, c.ID, c.Value)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.index()
}

// errInconsistent says that resources contradict each other, which no committed state does.
var errInconsistent = errors.New("the resources contradict each other")

// index makes the tables, and looks whether the references and unique keys are as they are after any transaction.
func (b building) index() (*snapshot, error) {
	db, err := memdb.NewMemDB(resourceSchema())
	if err != nil {
		return nil, err
	}
	db = db.Snapshot()
	txn := db.Txn(true)
	defer txn.Abort()
	holders := map[string]changeKey{}
	// In order, since the trees behind the indexes copy less where neighbours come one after the other.
	keys := slices.SortedFunc(maps.Keys(b.values), func(a, b changeKey) int {
		return cmp.Or(strings.Compare(string(a.kind), string(b.kind)), strings.Compare(a.id, b.id))
	})
	for _, k := range keys {
		r, err := b.values[k].decode(k)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errInconsistent, err)
		}
		for _, ref := range r.Refs() {
			if _, ok := b.values[changeKey{ref.Kind, ref.ID}]; !ok && ref.Mode != resource.Weak {
				return nil, fmt.Errorf("%s %s names the %s %s, which is not there: %w", k.kind, k.id, ref.Kind, ref.ID, errInconsistent)
			}
		}
		if r.Base().Rev > b.at.Seq {
			return nil, fmt.Errorf("%s %s has revision %d, the journal ends at %d: %w", k.kind, k.id, r.Base().Rev, b.at.Seq, errInconsistent)
		}
		for _, key := range r.Unique() {
			if other, ok := holders[key]; ok {
				return nil, fmt.Errorf("%s %s and %s %s both have %s: %w", k.kind, k.id, other.kind, other.id, key, errInconsistent)
			}
			holders[key] = k
			if err := txn.Insert(tableHolders, &holder{key, k.kind, k.id}); err != nil {
				return nil, err
			}
		}
		if err := txn.Insert(string(k.kind), r); err != nil {
			return nil, err
		}
	}
	txn.Commit()
	return &snapshot{at: b.at, db: db}, nil
}
