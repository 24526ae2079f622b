package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

const (
	// restateBytes is how much one step of a round says at most, but for a single resource: callers wait for it together with
	// their own.
	restateBytes = 128 << 10
	// restateShare is how much longer than a step takes the round rests after it.
	restateShare = 3
)

// cursor is how far a round has got: the next resource is the first of kind at or after id.
type cursor struct {
	kind int
	id   string
}

// Restate writes every resource into the journal once more, as it is, while callers go on committing, and then the mark
// that says so. After it, what the journal holds before the round can be purged without a loss: each resource's last
// version is in the round or behind it. It changes nothing: readers of Changes see no change. A round that is cut off does
// no harm; the next one begins anew.
func (s *Store) Restate(ctx context.Context) (journal.Round, error) {
	at, from := cursor{}, uint64(0)
	kinds := resource.Kinds()
	for at.kind < len(kinds) {
		var next cursor
		began := time.Now()
		c := &call{request: resource.Request{Caller: resource.CallerController, Op: journal.OpRestate}}
		wrote := false
		c.restate = func(v *view) (e journal.Entry, err error) {
			e.Changes, next, err = v.restate(kinds, at)
			wrote = len(e.Changes) > 0
			return e, err
		}
		seq, err := s.submit(ctx, c)
		if err != nil {
			return journal.Round{}, fmt.Errorf("restate %s from %q: %w", kinds[at.kind], at.id, err)
		}
		if from == 0 && wrote {
			from = seq
		}
		at = next
		if err := pause(ctx, restateShare*time.Since(began)); err != nil {
			return journal.Round{}, fmt.Errorf("restate: %w", err)
		}
	}
	c := &call{request: resource.Request{Caller: resource.CallerController, Op: journal.OpRestate}, mark: &journal.Mark{From: from}}
	seq, err := s.submit(ctx, c)
	if err != nil {
		return journal.Round{}, fmt.Errorf("end the round of restating: %w", err)
	}
	r := journal.Round{From: from, Seq: seq, At: s.now()}
	if r.From == 0 {
		r.From = seq
	}
	s.log.Info().Uint64("rev", r.From).Uint64("seq", r.Seq).Msg("journal restated")
	return r, nil
}

// restate are the next resources from a cursor on, and where to go on.
func (v *view) restate(kinds []resource.Kind, at cursor) ([]journal.Change, cursor, error) {
	var out []journal.Change
	size := 0
	for ; at.kind < len(kinds); at = (cursor{kind: at.kind + 1}) {
		kind := kinds[at.kind]
		it, err := v.txn.LowerBound(string(kind), indexID, at.id)
		if err != nil {
			return nil, at, fmt.Errorf("look through %s: %w", kind, err)
		}
		for o := it.Next(); o != nil; o = it.Next() {
			r := o.(resource.Resource)
			b, err := encodeResource(r)
			if err != nil {
				return nil, at, fmt.Errorf("encode %s %s: %w", kind, r.Base().ID, err)
			}
			if len(out) > 0 && size+len(b) > restateBytes {
				return out, cursor{at.kind, r.Base().ID}, nil
			}
			out = append(out, journal.Change{Kind: kind, ID: r.Base().ID, Value: b})
			size += len(b) + 96
		}
	}
	return out, at, nil
}

// runRestate puts what a step of a round says into the open group. It is what the group's functions before have made.
func (v *committer) runRestate(c *call) {
	g := v.open
	entry, err := c.restate(&view{seq: g.seq(), txn: g.txn})
	if err != nil || len(entry.Changes) == 0 {
		g.add(c, err, 0)
		return
	}
	entry.Request, entry.At = c.request, c.now
	encoded, err := entry.Encode()
	if err != nil {
		g.add(c, err, 0)
		return
	}
	if len(g.encoded) > 0 && g.size+len(encoded) > journal.MaxGroup {
		v.carry = append([]*call{c}, v.carry...)
		g.full = true
		return
	}
	g.add(c, nil, 0)
	g.keys[c.key] = struct{}{}
	g.entries = append(g.entries, Entry{Request: c.request, At: c.now})
	g.encoded = append(g.encoded, encoded)
	g.size += len(encoded) + 1
	g.full = g.size >= journal.MaxGroup || len(g.entries) >= groupEntries
}

// runMark makes the open group the end of a round; it waits for a group of its own.
func (v *committer) runMark(c *call) {
	g := v.open
	if len(g.calls) > 0 {
		v.carry = append([]*call{c}, v.carry...)
		g.full = true
		return
	}
	m := *c.mark
	if m.From == 0 {
		m.From = g.seq() // nothing was there to be said
	}
	g.mark, g.full = &m, true
	g.add(c, nil, 0)
}

// sameAs holds what is restated against what is there, and leaves the entry without changes, which it has none of.
func sameAs(v *view, e *Entry) error {
	for _, c := range e.Changes {
		old := v.Get(c.Kind, c.ID)
		if c.New == nil || old == nil || old.Base().Rev != c.New.Base().Rev {
			return fmt.Errorf("%s %s is restated otherwise than it is here: %w", c.Kind, c.ID, journal.ErrDiverged)
		}
	}
	e.Changes = slices.Delete(e.Changes, 0, len(e.Changes))
	return nil
}
