package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"shoal/subjects"
)

// Found is an entry of the journal with its place.
type Found struct {
	Entry
	// Seq is the message's, Stored when the server stored it.
	Seq    uint64
	Stored time.Time
}

// ErrNoRequest says that there is no entry of a request.
var ErrNoRequest = errors.New("the journal has no such request")

// After calls fn for the entries after a message, at most limit messages of them and those only that were there at the call, until fn
// says that it is enough.
func (j *Journal) After(ctx context.Context, seq uint64, limit int, fn func(Found) (more bool)) error {
	last, err := j.Last(ctx)
	if err != nil || last.Seq <= seq {
		return err
	}
	to := min(last.Seq, seq+uint64(limit))
	return Session{JS: j.js, Stream: subjects.JournalStream, From: seq + 1}.Run(ctx, func(r Raw) error {
		g, err := Decode(r.Data)
		if err != nil {
			return fmt.Errorf("message %d: %w: %w", r.Seq, errDamaged, err)
		}
		for _, e := range g.Entries {
			if !fn(Found{Entry: e, Seq: r.Seq, Stored: r.At}) {
				return ErrStop
			}
		}
		if r.Seq >= to {
			return ErrStop
		}
		return nil
	})
}

// headerSource is on what the server copied from another stream: HISTORY has the observed bucket as a source.
const headerSource = "Nats-Stream-Source"

// Recorded is a message of HISTORY.
type Recorded struct {
	// Key is the key in the host's document, "<kind>.<id>" or "head"; the same for what was observed.
	Host, Key string
	At        time.Time
	Data      []byte
	// Observed says that the host reported it; otherwise it was published for the host.
	Observed bool
	// Gone says that the key was taken out, Cause the request behind that where it is known.
	Gone  bool
	Cause string
}

// Recorded calls fn for what HISTORY has under these subjects from a moment on, in order, until fn says that it is enough or all that
// was there at the call is read.
func (j *Journal) Recorded(ctx context.Context, since time.Time, filters []string, fn func(Recorded) (more bool)) error {
	return Session{
		JS: j.js, Stream: subjects.HistoryStream, Since: since, Filters: filters,
		Begin: func(pending uint64) error {
			if pending == 0 {
				return ErrStop
			}
			return nil
		},
	}.Run(ctx, func(r Raw) error {
		host, key, err := subjects.ParseHistory(r.Subject)
		if err == nil {
			rec := Recorded{Host: host, Key: key, At: r.At, Data: r.Data, Cause: r.Header.Get(subjects.HeaderCause)}
			rec.Observed = r.Header.Get(headerSource) != ""
			rec.Gone = r.Header.Get("KV-Operation") != "" && len(r.Data) == 0
			if !fn(rec) {
				return ErrStop
			}
		}
		if r.Pending == 0 {
			return ErrStop
		}
		return nil
	})
}
