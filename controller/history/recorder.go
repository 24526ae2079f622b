package history

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"shoal/desired"
)

// Limits of what is recorded of calls that changed nothing.
const (
	// noteEvery is how long notes gather that nobody waits for.
	noteEvery = 500 * time.Millisecond
	// noteWait is how long a call waits for its note to be durable. A journal that takes longer takes nothing: then the note is kept
	// in memory for when it does.
	noteWait = 2 * time.Second
	// noteParams is how many bytes of parameters a note keeps, noteError how many of the refusal.
	noteParams = 2 << 10
	noteError  = 1 << 10
	// maxWindow is how long a window can get.
	maxWindow = 5 * time.Minute
	// maxReply is how many bytes of a reply are kept.
	maxReply = 4 << 10
)

// share is how much of the journal one sort of calls may take.
type share struct {
	// burst is how many calls of one source are recorded one by one within a window; the others are counted. Of a source whose refused
	// calls go on the windows get longer.
	burst  int
	window time.Duration
	// sources is how many are told apart at once; the rest are counted together.
	sources int
	// total is how many calls of all sources are recorded one by one within a window; 0 for any number.
	total int
}

// shareOf is the share of callers with credentials, or of guests. Those have none, and can come from as many addresses as they like: all
// of them together get two notes and some four counts a second at most, which is below a gigabyte a day.
func shareOf(guest bool) share {
	if guest {
		return share{burst: 20, window: time.Minute, sources: 256, total: 120}
	}
	return share{burst: 200, window: 10 * time.Second, sources: 4096}
}

// Note is a call that changed nothing.
type Note struct {
	resource.Request
	// Refusal says why it was refused; "" for one that only read.
	Refusal string
	// Reply is what the caller was told, without secrets.
	Reply json.RawMessage
	// Guest says that the caller has no credentials: what names it is its address.
	Guest bool
	// Durable says that the call was to change something: whoever records it waits until that is on the disk.
	Durable bool
}

// Recorder records calls that changed nothing: refused ones, and reads where that is wanted. A refused change is durable before its
// caller is told, as one that was done is; the others are soon after. Nobody can flood the journal through it: of a source that makes
// too many, so many are recorded one by one, and how many more there were is, too.
type Recorder struct {
	note  func(context.Context, []journal.Entry) error
	log   zerolog.Logger
	clock func() time.Time
	// wake is for when somebody waits.
	wake chan struct{}

	mu sync.Mutex
	// runs is set while there is somebody to write.
	runs    bool
	pending []pending
	// callers are the sources that have credentials, guests those that have none; fromGuests is what all of these have used of a window.
	callers, guests map[source]*noted
	fromGuests      noted
}

// pending is a note on its way; done, where somebody waits for it, is closed when it is durable.
type pending struct {
	entry journal.Entry
	done  chan struct{}
}

// source is who calls: a caller, or a guest's address.
type source struct {
	name    string
	refused bool
}

// noted is what a source has used of the window.
type noted struct {
	since  time.Time
	window time.Duration
	n      int
	// more counts what was not recorded, by what was asked; like is one of them.
	more map[string]*counted
}

type counted struct {
	like journal.Entry
	n    uint64
}

// NewRecorder makes a recorder that writes through a store's Note.
func NewRecorder(note func(context.Context, []journal.Entry) error, log zerolog.Logger) *Recorder {
	return &Recorder{note: note, log: log, clock: time.Now, wake: make(chan struct{}, 1), callers: map[source]*noted{}, guests: map[source]*noted{}}
}

// Record takes in a call that changed nothing, at the time of its end.
func (r *Recorder) Record(ctx context.Context, n Note) {
	done := r.take(n)
	if done == nil {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	limit := time.NewTimer(noteWait)
	defer limit.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-limit.C:
	}
}

// entry is how a note stands in the journal: bounded, and such that it can be encoded.
func (n Note) entry(now time.Time) journal.Entry {
	if len(n.Params) > noteParams {
		n.Params = fmt.Appendf(nil, `{"omitted_bytes":%d}`, len(n.Params))
	} else if len(n.Params) > 0 && !json.Valid(n.Params) {
		n.Params = fmt.Appendf(nil, `{"invalid_bytes":%d}`, len(n.Params))
	}
	refusal := n.Refusal
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
	return journal.Entry{Request: n.Request, At: now, Error: refusal, Reply: Bounded(n.Reply)}
}

// Bounded is a reply as the journal keeps it: the whole of a short one, otherwise its beginning, its length, and its hash, by which
// somebody who has it can show that it is the one.
func Bounded(reply json.RawMessage) json.RawMessage {
	if len(reply) <= maxReply {
		return reply
	}
	sum := sha256.Sum256(reply)
	// The text of JSON has no control characters, so that each of its bytes becomes two at most.
	b, err := desired.Canonical(struct {
		Truncated string `json:"truncated"`
		Bytes     int    `json:"bytes"`
		SHA256    string `json:"sha256"`
	}{strings.ToValidUTF8(string(reply[:maxReply/2]), ""), len(reply), hex.EncodeToString(sum[:])})
	if err != nil {
		return nil
	}
	return b
}

// take puts a note where it belongs. The channel is closed when it is durable; nil where there is nothing to wait for.
func (r *Recorder) take(n Note) <-chan struct{} {
	now := r.clock().UTC()
	e := n.entry(now)
	from, sources := source{n.Caller, n.Refusal != ""}, r.callers
	if n.Guest {
		from.name, sources = n.From, r.guests
	}
	limit := shareOf(n.Guest)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := sources[from]
	if c == nil {
		if len(sources) >= limit.sources {
			from.name = others
			c = sources[from]
		}
		if c == nil {
			c = &noted{since: now, window: limit.window, more: map[string]*counted{}}
			sources[from] = c
		}
	}
	if c.n++; c.n <= limit.burst && (limit.total == 0 || r.guest(now, limit)) {
		p := pending{entry: e}
		if n.Durable && r.runs {
			p.done = make(chan struct{})
		}
		r.pending = append(r.pending, p)
		return p.done
	}
	x := c.more[n.Op]
	if x == nil {
		x = &counted{like: e}
		// The count is an entry of its own, of calls that may have differed.
		q := &x.like.Request
		q.Params, x.like.Reply = nil, nil
		if from.name == others {
			q.Account, q.Session, q.From = "", "", others
		}
		if from.name == others && !n.Guest {
			q.Caller = others
		}
		c.more[n.Op] = x
	}
	x.n++
	x.like.At = now
	return nil
}

// others stands for all sources that are not told apart.
const others = "*"

// guest reports whether one more call of a guest can be recorded by itself.
func (r *Recorder) guest(now time.Time, limit share) bool {
	all := &r.fromGuests
	if now.Sub(all.since) > limit.window {
		all.since, all.n = now, 0
	}
	all.n++
	return all.n <= limit.total
}

// Run writes what was recorded until ctx ends, and then what is left.
func (r *Recorder) Run(ctx context.Context) error {
	r.mu.Lock()
	r.runs = true
	r.mu.Unlock()
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			r.runs = false
			r.mu.Unlock()
			rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			r.count(true)
			r.flush(rest)
			r.release()
			return context.Cause(ctx)
		case <-tick.C:
			r.count(false)
			r.flush(ctx)
		case <-r.wake:
			r.flush(ctx)
		}
	}
}

// release ends the wait of those whose notes can't be written by this term.
func (r *Recorder) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.pending {
		if done := r.pending[i].done; done != nil {
			close(done)
			r.pending[i].done = nil
		}
	}
}

// count makes notes of the counts of windows that have ended, or of all.
func (r *Recorder) count(all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock().UTC()
	for _, sources := range []map[source]*noted{r.callers, r.guests} {
		for from, c := range sources {
			ended := now.Sub(c.since) > c.window
			if !ended && !all {
				continue
			}
			over := len(c.more) > 0
			for _, x := range c.more {
				e := x.like
				e.Request.ID, e.More = uuid.NewString(), x.n
				r.pending = append(r.pending, pending{entry: e})
			}
			clear(c.more)
			switch {
			case !ended:
			case over && from.refused:
				c.since, c.n, c.window = now, 0, min(2*c.window, maxWindow)
			default:
				delete(sources, from)
			}
		}
	}
}

// flush writes in pieces that fit beside transactions. What can't be written is kept for the next time.
func (r *Recorder) flush(ctx context.Context) {
	r.mu.Lock()
	list := r.pending
	r.pending = nil
	r.mu.Unlock()
	for len(list) > 0 {
		n, size := 0, 0
		var entries []journal.Entry
		for n < len(list) && n < maxNotes && size < store.MaxNotes/2 {
			e := list[n].entry
			size += len(e.Request.Params) + 2*len(e.Error) + len(e.Reply) + 512
			entries = append(entries, e)
			n++
		}
		if err := r.note(ctx, entries); err != nil {
			r.log.Warn().Err(err).Int("count", len(list)).Msg("refused calls are not recorded yet")
			r.mu.Lock()
			r.pending = append(list, r.pending...)
			// Who takes over the lead can't write them either: so they are bounded by what a term can gather.
			if over := len(r.pending) - maxPending; over > 0 {
				r.log.Error().Int("count", over).Msg("calls that changed nothing are lost for the journal")
				r.pending = r.pending[over:]
			}
			r.mu.Unlock()
			return
		}
		for _, p := range list[:n] {
			if p.done != nil {
				close(p.done)
			}
		}
		list = list[n:]
	}
}

const (
	maxNotes   = 500
	maxPending = 50_000
)
