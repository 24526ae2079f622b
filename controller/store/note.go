package store

import (
	"context"
	"errors"
	"fmt"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// notes are entries without changes on their way to the journal.
type notes struct {
	entries []Entry
	encoded []journal.Encoded
	size    int
}

// MaxNotes is how many bytes of notes one call of Note takes: far less than a group holds, so that transactions find room
// beside them.
const MaxNotes = journal.MaxGroup / 4

// Note records calls that were refused, and those that only read. The notes go into the
// group that is gathered anyway, in one turn of the queue, so that they cost transactions next to nothing. It returns once
// they are durable. What is longer than MaxNotes is refused whole.
func (s *Store) Note(ctx context.Context, entries []journal.Entry) error {
	l := s.leading.Load()
	if l == nil {
		return notLeader()
	}
	n := &notes{}
	for _, e := range entries {
		if !e.IsNote() {
			return fmt.Errorf("note request %s: it has changes", e.Request.ID)
		}
		b, err := e.Encode()
		if err != nil {
			return err
		}
		n.entries = append(n.entries, Entry{Request: e.Request, At: e.At, Error: e.Error, More: e.More})
		n.encoded = append(n.encoded, b)
		n.size += len(b) + 1
	}
	if n.size > MaxNotes || len(entries) > groupEntries {
		return fmt.Errorf("note %d calls: %d bytes are more than %d: %w", len(entries), n.size, MaxNotes, errTooManyNotes)
	}
	if len(entries) == 0 {
		return nil
	}
	c := &call{request: resource.Request{ID: entries[0].Request.ID}, notes: n, reply: make(chan result, 1)}
	_, err := c.commit(ctx, l)
	return err
}

var errTooManyNotes = errors.New("too much at once")

// note puts notes into the open group, or where they don't fit any more, into the next one.
func (v *committer) note(c *call) {
	g := v.open
	if len(g.encoded) > 0 && g.size+c.notes.size > journal.MaxGroup {
		v.carry = append([]*call{c}, v.carry...)
		g.full = true
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return
	}
	c.ran = true
	g.add(c, nil, 0)
	g.entries = append(g.entries, c.notes.entries...)
	g.encoded = append(g.encoded, c.notes.encoded...)
	g.size += c.notes.size
	g.full = g.size >= journal.MaxGroup || len(g.entries) >= groupEntries
}
