package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/subjects"
)

// StreamUsage is what a stream takes.
type StreamUsage struct {
	Name        string
	Description string
	Messages    uint64
	Bytes       uint64
	// First and Last are when the oldest and the newest message were stored.
	First, Last time.Time
	// PerDay is how many bytes a day has added of late; 0 for buckets, which hold the newest message of each key only.
	PerDay uint64
	// MaxBytes and MaxAge are its limits; 0 for none.
	MaxBytes int64
	MaxAge   time.Duration
	// DenyPurge says that nothing can ever be taken out.
	DenyPurge bool
	// Older is how many bytes the messages take that are older than each of the ages that were asked for.
	Older []Older
}

// Older is what messages take that are older than an age.
type Older struct {
	Age   time.Duration
	Bytes uint64
}

// usageDay is over how long growth is measured.
const usageDay = 24 * time.Hour

// Usage is what every stream takes, the largest first. The buckets of all hosts' documents are one entry, "KV_desired_*".
func (s *Site) Usage(ctx context.Context, ages []time.Duration) ([]StreamUsage, error) {
	list := s.js.ListStreams(ctx)
	documents := StreamUsage{Name: subjects.BucketStream(subjects.DesiredBucket("*"))}
	hosts := 0
	var out []StreamUsage
	for info := range list.Info() {
		u := StreamUsage{
			Name: info.Config.Name, Description: info.Config.Description, Messages: info.State.Msgs, Bytes: info.State.Bytes,
			MaxBytes: max(info.Config.MaxBytes, 0), MaxAge: info.Config.MaxAge, DenyPurge: info.Config.DenyPurge,
		}
		if info.State.Msgs > 0 {
			u.First, u.Last = info.State.FirstTime, info.State.LastTime
		}
		if _, ok := subjects.DesiredHost(strings.TrimPrefix(u.Name, subjects.BucketStream(""))); ok {
			hosts++
			documents.Messages += u.Messages
			documents.Bytes += u.Bytes
			continue
		}
		if info.Config.MaxMsgsPerSubject != 1 && info.State.Msgs > 0 {
			if err := s.grow(ctx, info, &u, ages); err != nil {
				return nil, err
			}
		}
		out = append(out, u)
	}
	if err := list.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	documents.Description = fmt.Sprintf("documents of %d hosts", hosts)
	out = append(out, documents)
	slices.SortStableFunc(out, func(a, b StreamUsage) int {
		switch {
		case a.Bytes > b.Bytes:
			return -1
		case a.Bytes < b.Bytes:
			return 1
		default:
			return strings.Compare(a.Name, b.Name)
		}
	})
	return out, nil
}

// grow finds out how old what a stream holds is.
func (s *Site) grow(ctx context.Context, info *jetstream.StreamInfo, u *StreamUsage, ages []time.Duration) error {
	st, err := s.js.Stream(ctx, info.Config.Name)
	if err != nil {
		return fmt.Errorf("look into stream %s: %w", info.Config.Name, err)
	}
	now := time.Now()
	share := func(at time.Time) (float64, error) {
		seq, err := firstAt(ctx, st, info.State, at)
		if err != nil {
			return 0, fmt.Errorf("look into stream %s: %w", info.Config.Name, err)
		}
		// By sequences: what was deleted in between counts as if it were there, which is near enough to decide by.
		return float64(seq-info.State.FirstSeq) / float64(info.State.LastSeq-info.State.FirstSeq+1), nil
	}
	span := min(usageDay, now.Sub(info.State.FirstTime))
	before, err := share(now.Add(-span))
	if err != nil {
		return err
	}
	if span > 0 {
		u.PerDay = uint64((1 - before) * float64(u.Bytes) * float64(usageDay) / float64(max(span, time.Minute)))
	}
	for _, age := range ages {
		older, err := share(now.Add(-age))
		if err != nil {
			return err
		}
		u.Older = append(u.Older, Older{age, uint64(older * float64(u.Bytes))})
	}
	return nil
}

// firstAt is the sequence of the first message at or after a time; the one after the last if there is none.
func firstAt(ctx context.Context, st jetstream.Stream, state jetstream.StreamState, at time.Time) (uint64, error) {
	lo, hi := state.FirstSeq, state.LastSeq+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		m, err := st.GetMsg(ctx, mid, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			hi = mid
			continue
		}
		if err != nil {
			return 0, err
		}
		if m.Time.Before(at) {
			lo = m.Sequence + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}
