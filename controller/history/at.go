package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/subjects"
)

// Moment is a moment of the past.
type Moment struct {
	// Seq is the newest message of the journal that had been stored, 0 before the first.
	Seq uint64
	// Time is up to when HISTORY counts.
	Time time.Time
}

// Parse reads a moment as people write it: a time (RFC 3339, or "2006-01-02 15:04:05" in UTC, seconds and time of day may be left
// out), how long ago ("-2h", "-1d12h"), or a sequence of the journal.
func (h *History) Parse(ctx context.Context, text string) (Moment, error) {
	now := h.cfg.Clock().UTC()
	if seq, err := strconv.ParseUint(text, 10, 64); err == nil {
		last := h.cfg.Store.Seq()
		if seq > last || seq == 0 {
			return Moment{}, resource.Invalid("at", "message %d is not in the journal, which has 1 to %d", seq, last)
		}
		m, err := h.cfg.Journal.Get(ctx, seq)
		if errors.Is(err, journal.ErrNoMessage) {
			bound, boundErr := h.cfg.Journal.Bound(ctx)
			if boundErr == nil && seq < bound.First {
				return Moment{}, tooOld(bound)
			}
		}
		if err != nil {
			return Moment{}, err
		}
		return Moment{Seq: seq, Time: m.At}, nil
	}
	t, err := ParseTime("at", text, now)
	if err != nil {
		return Moment{}, err
	}
	if t.After(now.Add(time.Minute)) {
		return Moment{}, resource.Invalid("at", "%s has not come yet", t.Format(time.RFC3339))
	}
	next, err := h.cfg.Journal.FirstSince(ctx, t.Add(time.Nanosecond))
	if err != nil {
		return Moment{}, err
	}
	return Moment{Seq: next - 1, Time: t}, nil
}

// ParseTime reads a time or how long ago; see Parse.
func ParseTime(field, text string, now time.Time) (time.Time, error) {
	if ago, ok := strings.CutPrefix(text, "-"); ok {
		days := time.Duration(0)
		if d, rest, found := strings.Cut(ago, "d"); found {
			n, err := strconv.ParseUint(d, 10, 16)
			if err != nil {
				return time.Time{}, wrongTime(field, text)
			}
			days, ago = time.Duration(n)*24*time.Hour, rest //nolint:gosec // at most 65,535 days
		}
		if ago == "" && days > 0 {
			return now.Add(-days), nil
		}
		d, err := time.ParseDuration(ago)
		if err != nil || d < 0 {
			return time.Time{}, wrongTime(field, text)
		}
		return now.Add(-days - d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, wrongTime(field, text)
}

func wrongTime(field, text string) error {
	return resource.Invalid(field, "%q is neither a time nor how long ago", text).
		WithRemedy("write 2026-11-24T15:04:05Z, or '2026-11-24 15:04' in UTC, or -2h, or -1d12h")
}

// At is the whole system as it was at a moment. It can be used as long as it is held.
func (h *History) At(ctx context.Context, m Moment) (resource.Reader, error) { return h.at(ctx, m) }

func (h *History) at(ctx context.Context, m Moment) (*view, error) {
	select {
	case h.building <- struct{}{}:
		defer func() { <-h.building }()
	case <-ctx.Done():
		return nil, fmt.Errorf("open the view of message %d: %w", m.Seq, context.Cause(ctx))
	}
	h.mu.Lock()
	for i, c := range h.views {
		if c.view.at.Seq == m.Seq && c.until.Equal(m.Time) {
			h.views = append(slices.Delete(h.views, i, i+1), c)
			h.mu.Unlock()
			return c.view, nil
		}
	}
	h.mu.Unlock()
	s, base, err := h.stateBefore(ctx, m.Seq+1, m.Time)
	if err != nil {
		return nil, err
	}
	obs, err := h.observedAt(ctx, base, m.Time, "")
	if err != nil {
		return nil, err
	}
	obs.seq = s.at.Seq
	v := newView(s, obs)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.views = append(h.views, cachedView{m.Time, v, obs})
	if len(h.views) > cachedViews {
		h.views = slices.Clone(h.views[1:])
	}
	return v, nil
}

// base is where the reading of HISTORY starts.
type base struct {
	obs *observation
	// taken is when it was what hosts had reported; zero for the beginning.
	taken time.Time
}

// stateBefore is the state before a message, and the newest older observation that is not newer than until.
func (h *History) stateBefore(ctx context.Context, seq uint64, until time.Time) (*state, base, error) {
	s, from := newState(), base{obs: newObservation()}
	h.mu.Lock()
	checkpoints, views := h.checkpoints, slices.Clone(h.views)
	h.mu.Unlock()
	best := uint64(0)
	for _, c := range views {
		if at := c.view.at.Seq; at < seq && at > best && (until.IsZero() || !c.until.After(until)) {
			best, s, from = at, c.view.state, base{c.obs, c.until}
		}
	}
	n, _ := find(checkpoints, seq)
	for _, saved := range slices.Backward(checkpoints[:n]) {
		at := saved.seq
		if at <= best {
			break
		}
		got, obs, c, err := h.readCheckpoint(ctx, at)
		if err != nil {
			if ctx.Err() != nil {
				return nil, base{}, err
			}
			continue
		}
		// A state without observation is good where the one that is looked for is none either; the observation then comes from an older
		// checkpoint or from HISTORY's beginning.
		if !until.IsZero() && c.Taken.After(until) {
			continue
		}
		s, best = got, at
		if !c.Taken.IsZero() {
			from = base{obs, c.Taken}
		}
		break
	}
	if best+1 >= seq {
		return s, from, nil
	}
	bound, err := h.cfg.Journal.Bound(ctx)
	switch {
	case err != nil:
		return nil, base{}, err
	case best+1 < bound.First && seq <= bound.Whole:
		return nil, base{}, tooOld(bound)
	case best+1 < bound.First:
		// What is left of a compacted journal says everything once more.
		s, best = newState(), bound.First-1
	case best >= bound.First:
		if err := h.cfg.Journal.Verify(ctx, s.at); err != nil {
			return nil, base{}, err
		}
	}
	s = s.copy()
	s.at, s.stored, err = h.cfg.Journal.Values(ctx, best+1, seq-1, s.put)
	if err != nil {
		return nil, base{}, err
	}
	return s, from, nil
}

// tooOld says that a moment is before what a compacted journal still tells of.
func tooOld(b journal.Bound) error {
	return &resource.Error{
		Code: resource.CodeNotFound, Field: "at", Message: fmt.Sprintf("the journal was compacted: nothing is known of moments before message %d", b.Whole),
		Remedy: "look at a later moment, or restore a backup from that time on another machine",
	}
}

// readCheckpoint reads a checkpoint of this journal. One that is damaged, or of another journal, is removed.
func (h *History) readCheckpoint(ctx context.Context, seq uint64) (*state, *observation, checkpoint, error) {
	path := filepath.Join(h.cfg.Dir, checkpointName(seq))
	s, obs, c, err := readCheckpoint(path)
	if err == nil {
		err = h.cfg.Journal.Verify(ctx, c.At)
	}
	if err != nil && ctx.Err() == nil && (errors.Is(err, errDamaged) || errors.Is(err, journal.ErrDiverged) || errors.Is(err, os.ErrNotExist)) {
		h.log.Warn().Err(err).Uint64("seq", seq).Msg("a checkpoint can't be believed and is removed")
		_ = os.Remove(path)
		h.mu.Lock()
		h.checkpoints = slices.DeleteFunc(slices.Clone(h.checkpoints), func(c saved) bool { return c.seq == seq })
		h.mu.Unlock()
	}
	return s, obs, c, err
}

// observedAt reads HISTORY from a base up to a time, of one host where it is given.
func (h *History) observedAt(ctx context.Context, from base, until time.Time, host string) (*observation, error) {
	obs := from.obs.copy()
	session := journal.Session{JS: h.cfg.JS, Stream: subjects.HistoryStream, From: 1, Begin: stopAtEnd}
	if !from.taken.IsZero() {
		session.From, session.Since = 0, from.taken.Add(-margin)
	}
	if host != "" {
		session.Filters = []string{subjects.HistorySubject(host, ">")}
	}
	err := session.Run(ctx, func(r journal.Raw) error {
		if r.At.After(until) {
			return journal.ErrStop
		}
		obs.take(r)
		if r.Pending == 0 {
			return journal.ErrStop
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what hosts had reported: %w", err)
	}
	return obs, nil
}

func stopAtEnd(pending uint64) error {
	if pending == 0 {
		return journal.ErrStop
	}
	return nil
}
