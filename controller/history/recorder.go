package history

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// Limits of what is recorded of calls that changed nothing.
const (
	// noteEvery is how long notes gather.
	noteEvery = 500 * time.Millisecond
	// noteBurst is how many calls of one caller are recorded one by one within noteWindow; the others are counted.
	noteBurst  = 200
	noteWindow = 10 * time.Second
	// noteParams is how many bytes of parameters a note keeps, noteError how many of the refusal.
	noteParams = 2 << 10
	noteError  = 1 << 10
	// noteCallers is how many callers are told apart at once; the rest are counted together.
	noteCallers = 4096
)

// Recorder records calls that changed nothing: refused ones, and reads where that is wanted. It keeps its callers waiting for nothing,
// and nobody can flood the journal through it: of a caller who makes too many, so many are recorded one by one, and
// how many more there were is, too.
type Recorder struct {
	note  func(context.Context, []journal.Entry) error
	log   zerolog.Logger
	clock func() time.Time

	mu      sync.Mutex
	pending []journal.Entry
	callers map[string]*noted
}

// noted is what a caller has used of the window.
type noted struct {
	since time.Time
	n     int
	// more counts what was not recorded, by what was asked and how it ended; like is one of them.
	more map[string]*counted
}

type counted struct {
	like journal.Entry
	n    uint64
}

// NewRecorder makes a recorder that writes through a store's Note.
func NewRecorder(note func(context.Context, []journal.Entry) error, log zerolog.Logger) *Recorder {
	return &Recorder{note: note, log: log, clock: time.Now, callers: map[string]*noted{}}
}

// Record takes in a call that changed nothing, at the time of its end; refusal is "" for a read.
func (r *Recorder) Record(req resource.Request, refusal string) {
	now := r.clock().UTC()
	if len(req.Params) > noteParams {
		req.Params = fmt.Appendf(nil, `{"omitted_bytes":%d}`, len(req.Params))
	} else if len(req.Params) > 0 && !json.Valid(req.Params) {
		req.Params = fmt.Appendf(nil, `{"invalid_bytes":%d}`, len(req.Params))
	}
	if len(refusal) > noteError {
		refusal = strings.ToValidUTF8(refusal[:noteError], "") + "..."
	}
	// What a caller wrote must not become six times as long when it is encoded.
	refusal = strings.Map(func(c rune) rune {
		if c < ' ' || c == utf8.RuneError {
			return ' '
		}
		return c
	}, refusal)
	e := journal.Entry{Request: req, At: now, Error: refusal}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.callers[req.Caller]
	if c == nil {
		if len(r.callers) >= noteCallers {
			e.Request.Caller = "*"
			c = r.callers["*"]
		}
		if c == nil {
			c = &noted{since: now, more: map[string]*counted{}}
			r.callers[e.Request.Caller] = c
		}
	}
	if now.Sub(c.since) > noteWindow {
		c.since, c.n = now, 0
	}
	if c.n++; c.n <= noteBurst {
		r.pending = append(r.pending, e)
		return
	}
	key := req.Op
	if refusal != "" {
		key += " refused"
	}
	x := c.more[key]
	if x == nil {
		x = &counted{like: e}
		c.more[key] = x
	}
	x.n++
	x.like.At = now
}

// Run writes what was recorded until ctx ends, and then what is left.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			r.flush(rest, true)
			return context.Cause(ctx)
		case <-tick.C:
			r.flush(ctx, false)
		}
	}
}

// take gives what is to be written: what was recorded, and the counts of windows that have ended, or all.
func (r *Recorder) take(all bool) []journal.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock().UTC()
	out := r.pending
	r.pending = nil
	for name, c := range r.callers {
		ended := now.Sub(c.since) > noteWindow
		if !ended && !all {
			continue
		}
		for _, x := range c.more {
			e := x.like
			// The count is an entry of its own: the one that it is like may come again.
			e.Request.ID, e.Request.Params, e.More = uuid.NewString(), nil, x.n
			out = append(out, e)
		}
		if ended {
			delete(r.callers, name)
		} else {
			clear(c.more)
		}
	}
	return out
}

// flush writes in pieces that fit beside transactions. What can't be written is kept for the next time.
func (r *Recorder) flush(ctx context.Context, all bool) {
	entries := r.take(all)
	for len(entries) > 0 {
		n, size := 0, 0
		for n < len(entries) && n < maxNotes && size < store.MaxNotes/2 {
			size += len(entries[n].Request.Params) + 2*len(entries[n].Error) + 512
			n++
		}
		if err := r.note(ctx, entries[:n]); err != nil {
			r.log.Warn().Err(err).Int("count", len(entries)).Msg("refused calls are not recorded yet")
			r.mu.Lock()
			r.pending = append(entries, r.pending...)
			// Who takes over the lead can't write them either: so they are bounded by what a term can gather.
			if over := len(r.pending) - maxPending; over > 0 {
				r.log.Error().Int("count", over).Msg("calls that changed nothing are lost for the journal")
				r.pending = r.pending[over:]
			}
			r.mu.Unlock()
			return
		}
		entries = entries[n:]
	}
}

const (
	maxNotes   = 500
	maxPending = 50_000
)
