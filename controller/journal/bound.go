package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/subjects"
)

// ErrCantPurge says that the stream was made with purging denied, which the server never takes back.
var ErrCantPurge = errors.New("the journal was made by an earlier version, with purging denied for good")

// errHeadless says that the beginning of the journal is gone without a round of restating that stands in for it.
var errHeadless = errors.New("its beginning is gone, so that the truth can't be rebuilt from it: restore a backup")

// Bound is how far back the journal goes. Nothing before First can be looked at any more. From Whole on the state of any
// moment can be rebuilt from the messages that are there; between the two there are messages, but resources that did not
// change meanwhile are not known.
type Bound struct {
	First uint64 `json:"first"`
	// Whole is 0 for a journal that was never purged.
	Whole uint64 `json:"whole"`
}

// Round is a round of restating.
type Round struct {
	// From is the first message of the round, Seq its mark, At when that was stored.
	From uint64    `json:"from"`
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
}

// Bound tells how far back the journal goes.
func (j *Journal) Bound(ctx context.Context) (Bound, error) {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := j.stream.Info(short)
	if err != nil {
		return Bound{}, fmt.Errorf("read the journal's bound: %w", err)
	}
	first := max(info.State.FirstSeq, 1)
	if first == 1 {
		return Bound{First: 1}, nil
	}
	r, err := j.whole(ctx, first)
	if err != nil {
		return Bound{}, fmt.Errorf("read the journal's bound: %w", err)
	}
	return Bound{First: first, Whole: r.Seq}, nil
}

// Rounds are the complete rounds that are in the journal as a whole, oldest first.
func (j *Journal) Rounds(ctx context.Context) ([]Round, error) {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	info, err := j.stream.Info(short)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("read the journal's rounds: %w", err)
	}
	return j.rounds(ctx, max(info.State.FirstSeq, 1), 0)
}

// whole is the oldest round that is there as a whole: with it the journal needs nothing before.
func (j *Journal) whole(ctx context.Context, first uint64) (Round, error) {
	found, err := j.rounds(ctx, first, 1)
	if err != nil {
		return Round{}, err
	}
	if len(found) == 0 {
		return Round{}, fmt.Errorf("its first message is %d: %w", first, errHeadless)
	}
	return found[0], nil
}

// rounds finds up to limit rounds, 0 for all, that begin at or after the first message.
func (j *Journal) rounds(ctx context.Context, first uint64, limit int) ([]Round, error) {
	var out []Round
	for seq := first; limit == 0 || len(out) < limit; {
		short, cancel := context.WithTimeout(ctx, requestTimeout)
		m, err := j.stream.GetMsg(short, seq, jetstream.WithGetMsgSubject(subjects.JournalMarkSubject))
		cancel()
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the mark after message %d: %w", seq, err)
		}
		g, err := Decode(m.Data)
		if err != nil || g.Mark == nil {
			return nil, fmt.Errorf("message %d is no mark: %w", m.Sequence, errDamaged)
		}
		if g.Mark.From >= first {
			out = append(out, Round{From: g.Mark.From, Seq: m.Sequence, At: m.Time})
		}
		seq = m.Sequence + 1
	}
	return out, nil
}

// AppendMark stores the end of a round, as Append does a group.
func (j *Journal) AppendMark(ctx context.Context, after Position, m Mark) (Position, error) {
	b, err := Group{Mark: &m}.Encode()
	if err != nil {
		return Position{}, err
	}
	return j.append(ctx, subjects.JournalMarkSubject, after, b)
}

// CanPurge is an error that wraps ErrCantPurge where nothing can ever be taken out of the journal.
func (j *Journal) CanPurge(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := j.stream.Info(short)
	if err != nil {
		return fmt.Errorf("look up the journal: %w", err)
	}
	if info.Config.DenyPurge {
		return fmt.Errorf("purge the journal: %w", ErrCantPurge)
	}
	return nil
}

// Purge takes out what is before a complete round, and nothing else; it returns how many messages that were. It can be cut off
// and repeated at any moment: all that it takes out is said again behind it.
func (j *Journal) Purge(ctx context.Context, r Round) (uint64, error) {
	if err := j.CanPurge(ctx); err != nil {
		return 0, err
	}
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	info, err := j.stream.Info(short)
	cancel()
	if err != nil {
		return 0, fmt.Errorf("purge the journal: %w", err)
	}
	known, err := j.rounds(ctx, max(info.State.FirstSeq, 1), 0)
	if err != nil {
		return 0, fmt.Errorf("purge the journal: %w", err)
	}
	there := false
	for _, k := range known {
		there = there || k.From == r.From && k.Seq == r.Seq
	}
	if !there {
		return 0, fmt.Errorf("purge the journal up to message %d: there is no complete round from there to message %d", r.From, r.Seq)
	}
	long, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := j.stream.Purge(long, jetstream.WithPurgeSequence(r.From)); err != nil {
		return 0, fmt.Errorf("purge the journal up to message %d: %w", r.From, err)
	}
	after, err := j.stream.Info(long)
	if err != nil {
		return 0, fmt.Errorf("purge the journal: %w", err)
	}
	return info.State.Msgs - min(after.State.Msgs, info.State.Msgs), nil
}
