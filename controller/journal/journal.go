package journal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/controller/resource"
	"shoal/subjects"
)

var (
	// ErrFenced says that somebody else has written: who gets it is not up to date and may not lead.
	ErrFenced = errors.New("another controller has written to the journal")
	// ErrDiverged says that the journal is no longer what state was built from.
	ErrDiverged = errors.New("the journal is not the one that was read before: it went back or was made anew")
	// ErrUnknown says that an append was given up before its outcome was known.
	ErrUnknown = errors.New("it is not known whether the journal has it")
	// ErrTooLarge says that a group does not fit into one message.
	ErrTooLarge = errors.New("too large for one message of the journal")
)

// Config is the journal's stream. Nothing is ever taken out of it but by Purge, from its beginning. Direct reads are off because
// a replica that lags may answer them, and what is read from the journal decides.
func Config() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        subjects.JournalStream,
		Description: "the truth: one message = one committed group of transactions",
		Subjects:    []string{subjects.JournalSubject, subjects.JournalMarkSubject},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     -1,
		MaxBytes:    -1,
		MaxMsgSize:  -1,
		Replicas:    1,
		Duplicates:  2 * time.Minute,
		DenyDelete:  true,
		AllowDirect: false,
	}
}

// Position is a place in the journal: the state after the message with that sequence and identity. The zero Position
// is before the first message.
type Position struct {
	Seq uint64 `json:"seq"`
	ID  string `json:"id"`
}

// Message is one message of the journal.
type Message struct {
	Position
	// At is when the server stored it.
	At    time.Time
	Group Group
	// Size is the length of its JSON.
	Size int
}

// Journal reads and writes the stream. Its methods may be used at the same time, but appends are one after the other
// by nature.
type Journal struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	log    zerolog.Logger
	// single is set where the stream has one replica: there the server can compare the identity of the last message.
	single bool
}

// Open finds the stream. It does not make it.
func Open(ctx context.Context, js jetstream.JetStream, log zerolog.Logger) (*Journal, error) {
	stream, err := js.Stream(ctx, subjects.JournalStream)
	if err != nil {
		return nil, fmt.Errorf("open journal: find stream %s: %w", subjects.JournalStream, err)
	}
	cfg := stream.CachedInfo().Config
	if cfg.AllowDirect {
		return nil, fmt.Errorf("open journal: stream %s has direct reads switched on: update it to journal.Config", subjects.JournalStream)
	}
	return &Journal{js: js, stream: stream, log: log.With().Str("kind", "journal").Logger(), single: cfg.Replicas <= 1}, nil
}

// appendSlack is kept for headers and subject below the server's limit of a message.
const appendSlack = 1 << 10

// MaxMessage is the most bytes that a group may have on this connection.
func (j *Journal) MaxMessage() int {
	if n := int(j.js.Conn().MaxPayload()) - appendSlack; n > 0 {
		return n
	}
	return 1<<20 - appendSlack
}

// Append stores a group right after a position and returns the new one. What is returned is final: ErrFenced,
// ErrDiverged or a refusal of the server mean that it is not stored. Only ErrUnknown, when ctx has ended before
// the outcome was known, leaves it open; the writer must then read the journal again before it writes.
func (j *Journal) Append(ctx context.Context, after Position, group []byte) (Position, error) {
	return j.append(ctx, subjects.JournalSubject, after, group)
}

func (j *Journal) append(ctx context.Context, subject string, after Position, group []byte) (Position, error) {
	if limit := j.MaxMessage(); len(group) > limit {
		return Position{}, fmt.Errorf("append to journal: %d bytes, at most %d fit: %w", len(group), limit, ErrTooLarge)
	}
	at := Position{Seq: after.Seq + 1, ID: rand.Text()}
	opts := []jetstream.PublishOpt{
		jetstream.WithMsgID(at.ID), jetstream.WithExpectLastSequence(after.Seq), jetstream.WithExpectStream(subjects.JournalStream),
		jetstream.WithRetryAttempts(0),
	}
	if j.single && after.ID != "" {
		opts = append(opts, jetstream.WithExpectLastMsgID(after.ID))
	}
	// open is set once a try may have reached the server without an answer.
	open := false
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		ack, err := j.publish(ctx, subject, group, opts)
		if err == nil {
			if ack.Sequence != at.Seq {
				return Position{}, fmt.Errorf("append to journal: stored as %d instead of %d: %w", ack.Sequence, at.Seq, ErrDiverged)
			}
			return at, nil
		}
		fate := outcome(err)
		if fate == fateClosed {
			return Position{}, fmt.Errorf("append to journal: %w: %w", ErrUnknown, err)
		}
		if fate == fateOpen {
			open = true
		}
		if fate == fateFenced || open {
			found, lookErr := j.look(ctx, after, at)
			switch {
			case lookErr != nil && isFinal(lookErr):
				return Position{}, fmt.Errorf("append to journal: %w", lookErr)
			case lookErr != nil:
				open = true
			case found:
				return at, nil
			case fate == fateFenced:
				// The end is where it should be, and yet the server refused: it saw something that is gone again. Once more.
				open = true
			}
		}
		if fate == fateRefused {
			if open {
				return Position{}, fmt.Errorf("append to journal: %w: %w", ErrUnknown, err)
			}
			return Position{}, fmt.Errorf("append to journal: %w", err)
		}
		if fate == fateOpen || wait > 500*time.Millisecond {
			j.log.Warn().Err(err).Uint64("seq", at.Seq).Msg("journal does not answer, trying again")
		}
		select {
		case <-ctx.Done():
			if !open {
				return Position{}, fmt.Errorf("append to journal: %w: %w", context.Cause(ctx), err)
			}
			return Position{}, fmt.Errorf("append to journal: %w: %w", ErrUnknown, err)
		case <-time.After(wait):
		}
	}
}

// patience is how long an answer takes at most when all is well.
const patience = 20 * time.Millisecond

// publish tries once. An answer that was lost with the connection is not waited for.
func (j *Journal) publish(ctx context.Context, subject string, group []byte, opts []jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	nc := j.js.Conn()
	changed := nc.StatusChanged(nats.CONNECTED) // buffered: what comes before anybody listens is kept
	defer nc.RemoveStatusListener(changed)
	late := time.AfterFunc(patience, func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	})
	defer late.Stop()
	return j.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: group}, opts...)
}

type fate int

const (
	fateOpen    fate = iota // it may have been stored
	fateUnsent              // it did not leave: try again
	fateFenced              // the stream's end is not where it was expected
	fateRefused             // the server will not store it
	fateClosed              // the connection is closed for good; it may have been stored
)

// Error codes of the server that say why a message can't be stored, whenever it is tried.
const (
	codeWrongLastMsgID        = 10070
	codeInsufficientResources = 10023
	codeStorageExceeded       = 10047
	codeStoreFailed           = 10077
	codeMessageTooLarge       = 10054
	codeWrongStream           = 10060
)

func outcome(err error) fate {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api):
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant, codeWrongLastMsgID:
			return fateFenced
		case codeInsufficientResources, codeStorageExceeded, codeStoreFailed, codeMessageTooLarge, codeWrongStream:
			return fateRefused
		}
		if api.Code == 503 {
			return fateUnsent
		}
		return fateRefused
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrPermissionViolation):
		return fateRefused
	case errors.Is(err, nats.ErrConnectionClosed):
		return fateClosed
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrReconnectBufExceeded),
		errors.Is(err, nats.ErrConnectionReconnecting):
		return fateUnsent
	default:
		return fateOpen
	}
}

// isFinal reports whether looking again can't change the answer.
func isFinal(err error) bool { return errors.Is(err, ErrFenced) || errors.Is(err, ErrDiverged) }

// look finds out what stands at a position that an append aimed at: found if it is ours, otherwise nothing (then the
// end is where it was), ErrFenced or ErrDiverged.
func (j *Journal) look(ctx context.Context, after, at Position) (found bool, err error) {
	there, err := j.at(ctx, at.Seq)
	switch {
	case err == nil && there.ID == at.ID:
		return true, nil
	case err == nil:
		if err := j.Verify(ctx, after); err != nil {
			return false, err
		}
		return false, ErrFenced
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return false, err
	}
	return false, j.Verify(ctx, after)
}

// at is the position of a stored message.
func (j *Journal) at(ctx context.Context, seq uint64) (Position, error) {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := j.stream.GetMsg(short, seq)
	if err != nil {
		return Position{}, fmt.Errorf("read journal message %d: %w", seq, err)
	}
	return Position{Seq: seq, ID: m.Header.Get(nats.MsgIdHdr)}, nil
}

// ErrNoMessage says that the journal has no message with that sequence.
var ErrNoMessage = errors.New("the journal has no such message")

// Get reads one message.
func (j *Journal) Get(ctx context.Context, seq uint64) (Message, error) {
	r, at, err := j.get(ctx, seq)
	if err != nil {
		return Message{}, err
	}
	return decode(r, at)
}

// Pick reads some entries of one message, by their numbers in ascending order; it is quicker than Get, which decodes all of them. The
// message comes without its group.
func (j *Journal) Pick(ctx context.Context, seq uint64, numbers []int) (Message, []Entry, error) {
	r, at, err := j.get(ctx, seq)
	if err != nil {
		return Message{}, nil, err
	}
	entries, err := Pick(r.Data, numbers)
	if err != nil {
		return Message{}, nil, fmt.Errorf("message %d: %w: %w", seq, errDamaged, err)
	}
	return Message{Position: at, At: r.At, Size: len(r.Data)}, entries, nil
}

func (j *Journal) get(ctx context.Context, seq uint64) (Raw, Position, error) {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := j.stream.GetMsg(short, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return Raw{}, Position{}, fmt.Errorf("read journal message %d: %w", seq, ErrNoMessage)
	case err != nil:
		return Raw{}, Position{}, fmt.Errorf("read journal message %d: %w", seq, err)
	}
	return Raw{Seq: m.Sequence, At: m.Time.UTC(), Data: m.Data}, Position{Seq: seq, ID: m.Header.Get(nats.MsgIdHdr)}, nil
}

// Verify reports ErrDiverged if a position is not in the journal any more.
func (j *Journal) Verify(ctx context.Context, p Position) error {
	if p == (Position{}) {
		return nil
	}
	there, err := j.at(ctx, p.Seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("message %d is gone: %w", p.Seq, ErrDiverged)
	case err != nil:
		return err
	case there.ID != p.ID:
		return fmt.Errorf("message %d is another one than before: %w", p.Seq, ErrDiverged)
	}
	return nil
}

// Last is the journal's end.
func (j *Journal) Last(ctx context.Context) (Position, error) {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	info, err := j.stream.Info(short)
	cancel()
	switch {
	case err != nil:
		return Position{}, fmt.Errorf("read the journal's end: %w", err)
	case info.State.LastSeq == 0:
		return Position{}, nil
	case info.State.Msgs == 0:
		return Position{}, fmt.Errorf("read the journal's end: it was emptied up to message %d: %w", info.State.LastSeq, errHeadless)
	case info.State.FirstSeq > 1:
		if _, err := j.whole(ctx, info.State.FirstSeq); err != nil {
			return Position{}, fmt.Errorf("read the journal's end: %w", err)
		}
	}
	p, err := j.at(ctx, info.State.LastSeq)
	// The end may have moved meanwhile, but what was there stays; unless the stream went back.
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Position{}, fmt.Errorf("read the journal's end: %w", ErrDiverged)
	}
	return p, err
}

// FirstSince is the sequence of the first message stored at or after a time; the one after the end if there is none.
func (j *Journal) FirstSince(ctx context.Context, t time.Time) (uint64, error) {
	last, err := j.Last(ctx)
	if err != nil {
		return 0, err
	}
	lo, hi := uint64(1), last.Seq+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		short, cancel := context.WithTimeout(ctx, requestTimeout)
		// The next one, where there is a gap or what was there is purged.
		m, err := j.stream.GetMsg(short, mid, jetstream.WithGetMsgSubject(">"))
		cancel()
		if err != nil {
			return 0, fmt.Errorf("read journal message %d: %w", mid, err)
		}
		if m.Time.Before(t) {
			lo = m.Sequence + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// Replay calls fn for every message from a sequence up to the end as it was when Replay began. What was purged is left out.
func (j *Journal) Replay(ctx context.Context, from uint64, fn func(Message) error) error {
	last, err := j.Last(ctx)
	if err != nil {
		return err
	}
	if from = max(from, 1); from > last.Seq {
		return nil
	}
	before, err := j.before(ctx, from)
	if err != nil {
		return err
	}
	return j.follow(ctx, before, decoded(func(m Message) error {
		if err := fn(m); err != nil {
			return err
		}
		if m.Seq >= last.Seq {
			return ErrStop
		}
		return nil
	}))
}

// before is the position right before a sequence, without identity where there is no message.
func (j *Journal) before(ctx context.Context, seq uint64) (Position, error) {
	if seq > 1 {
		switch there, err := j.at(ctx, seq-1); {
		case err == nil:
			return there, nil
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			return Position{}, err
		}
	}
	return Position{Seq: seq - 1}, nil
}

// Values tells what the messages from one sequence to another made of resources, in order, and gives the place and the time of the last one. It
// is several times as quick as Replay, for it looks at nothing else. A nil value is a deletion; the values are not looked into.
func (j *Journal) Values(ctx context.Context, from, to uint64, put func(kind resource.Kind, id string, value json.RawMessage)) (at Position, stored time.Time, err error) {
	from = max(from, 1)
	if at, err = j.before(ctx, from); err != nil {
		return at, stored, err
	}
	if to < from {
		return at, stored, nil
	}
	end, err := j.at(ctx, to) // that it is there, so that nobody waits for it
	if err != nil {
		return at, stored, err
	}
	err = j.follow(ctx, at, func(r Raw, here Position) error {
		changes, ok := scanChanges(r.Data)
		if !ok {
			g, err := Decode(r.Data)
			if err != nil {
				return fmt.Errorf("message %d: %w: %w", r.Seq, errDamaged, err)
			}
			changes = changes[:0]
			for _, e := range g.Entries {
				changes = append(changes, e.Changes...)
			}
		}
		for _, c := range changes {
			put(c.Kind, c.ID, c.Value)
		}
		at, stored = here, r.At
		if r.Seq >= to {
			return ErrStop
		}
		return nil
	})
	if err == nil && at != end {
		err = fmt.Errorf("message %d is another one than before: %w", to, ErrDiverged)
	}
	return at, stored, err
}

// Tail calls fn for every message after a position, and goes on as they come. It survives reconnects and restarts
// of the server, and returns fn's error, ErrDiverged, or ctx's.
func (j *Journal) Tail(ctx context.Context, after Position, fn func(Message) error) error {
	return j.follow(ctx, after, decoded(fn))
}

// decoded hands on messages with their groups.
func decoded(fn func(Message) error) func(Raw, Position) error {
	return func(r Raw, at Position) error {
		m, err := decode(r, at)
		if err != nil {
			return damage{err}
		}
		return fn(m)
	}
}

// damage is an error of a message, not of whoever consumes it.
type damage struct{ error }

func (e damage) Unwrap() error { return e.error }

// consumerError marks an error of the function that consumes messages, which ends the reading.
type consumerError struct{ error }

func (e consumerError) Unwrap() error { return e.error }

func (j *Journal) follow(ctx context.Context, at Position, fn func(r Raw, here Position) error) error {
	for wait := 50 * time.Millisecond; ; {
		err := Session{
			JS: j.js, Stream: subjects.JournalStream, From: at.Seq + 1,
			Check: func(ctx context.Context) error {
				if at.ID == "" {
					return nil // nothing was read yet, and what is before is purged, or was never there
				}
				return j.Verify(ctx, at)
			},
		}.Run(ctx, func(r Raw) error {
			if err := checkNext(r, at); err != nil {
				return err
			}
			here := Position{Seq: r.Seq, ID: r.Header.Get(nats.MsgIdHdr)}
			if err := fn(r, here); err != nil {
				if broken, ok := errors.AsType[damage](err); ok {
					return broken.error
				}
				return consumerError{err}
			}
			at, wait = here, 50*time.Millisecond
			return nil
		})
		var own consumerError
		switch {
		case err == nil: // fn said ErrStop
			return nil
		case errors.As(err, &own):
			return own.error
		case errors.Is(err, ErrDiverged), errors.Is(err, errDamaged), errors.Is(err, nats.ErrConnectionClosed):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		j.log.Debug().Err(err).Uint64("seq", at.Seq).Msg("reading the journal again")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
			wait = min(2*wait, 2*time.Second)
		}
	}
}

// errDamaged says that a message of the journal can't be read.
var errDamaged = errors.New("the journal is damaged: restore a backup")

func decode(r Raw, at Position) (Message, error) {
	g, err := Decode(r.Data)
	if err != nil {
		return Message{}, fmt.Errorf("message %d: %w: %w", r.Seq, errDamaged, err)
	}
	return Message{Position: at, At: r.At, Group: g, Size: len(r.Data)}, nil
}

// Follows reports whether a message is the one right after a position.
func (m Message) Follows(p Position) bool { return follows(m.Seq, m.Group, p) }

func follows(seq uint64, g Group, p Position) bool {
	return seq == p.Seq+1 || g.After != nil && *g.After == p
}

// checkNext holds a message to be the one right after a position. Where sequences have a gap, the message itself says so.
func checkNext(r Raw, before Position) error {
	// Without an identity nothing was read before: the first message that is there is the right one.
	if r.Seq == before.Seq+1 || before.ID == "" {
		return nil
	}
	g, err := Decode(r.Data)
	if err != nil {
		return fmt.Errorf("message %d: %w: %w", r.Seq, errDamaged, err)
	}
	if !follows(r.Seq, g, before) {
		return fmt.Errorf("message %d follows %d: %w", r.Seq, before.Seq, ErrDiverged)
	}
	return nil
}
