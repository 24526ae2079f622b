package journal

import (
	"bytes"
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

// ErrNoRequest says that a request was not found where it was looked for.
var ErrNoRequest = errors.New("the journal has no such request there")

const (
	// lookBack is how many messages are read at a time when a request is looked for backwards.
	lookBack = 2000
	// lookMost is how many are looked through at most.
	lookMost = 200_000
)

// FindAt reads the entry of a request from the message with that sequence.
func (j *Journal) FindAt(ctx context.Context, seq uint64, request string) (Found, error) {
	return j.scan(ctx, seq, seq, request)
}

// FindBefore looks for the last entry of a request, backwards from a moment, or from the end with the zero time. It gives up after
// a number of messages that takes a second or so.
func (j *Journal) FindBefore(ctx context.Context, before time.Time, request string) (Found, error) {
	last, err := j.Last(ctx)
	if err != nil {
		return Found{}, err
	}
	to := last.Seq
	if !before.IsZero() {
		if to, err = j.FirstSince(ctx, before); err != nil {
			return Found{}, err
		}
		to = min(to-1, last.Seq)
	}
	for looked := uint64(0); to > 0 && looked < lookMost; looked += lookBack {
		from := max(to, lookBack) - lookBack + 1
		found, err := j.scan(ctx, from, to, request)
		if !errors.Is(err, ErrNoRequest) {
			return found, err
		}
		to = from - 1
	}
	return Found{}, fmt.Errorf("look for request %s: %w", request, ErrNoRequest)
}

// After calls fn for the entries after a message, at most limit messages of them and those only that were there at the call, until fn
// says that it is enough.
func (j *Journal) After(ctx context.Context, seq uint64, limit int, fn func(Found) (more bool)) error {
	last, err := j.Last(ctx)
	if err != nil || last.Seq <= seq {
		return err
	}
	to := min(last.Seq, seq+uint64(limit))
	return j.between(ctx, seq+1, to, nil, func(f Found) bool { return fn(f) })
}

func (j *Journal) scan(ctx context.Context, from, to uint64, request string) (Found, error) {
	var found Found
	// A message that does not hold the id is not worth decoding.
	err := j.between(ctx, from, to, []byte(`"`+request+`"`), func(f Found) bool {
		if f.Request.ID == request {
			found = f
		}
		return true
	})
	if err == nil && found.Seq == 0 {
		err = fmt.Errorf("look for request %s: %w", request, ErrNoRequest)
	}
	return found, err
}

func (j *Journal) between(ctx context.Context, from, to uint64, holds []byte, fn func(Found) bool) error {
	return Session{JS: j.js, Stream: subjects.JournalStream, From: from}.Run(ctx, func(r Raw) error {
		if holds == nil || bytes.Contains(r.Data, holds) {
			g, err := Decode(r.Data)
			if err != nil {
				return fmt.Errorf("message %d: %w: %w", r.Seq, errDamaged, err)
			}
			for _, e := range g.Entries {
				if !fn(Found{Entry: e, Seq: r.Seq, Stored: r.At}) {
					return ErrStop
				}
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
