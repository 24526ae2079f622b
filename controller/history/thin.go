package history

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
)

// How many checkpoints are kept. A view of a moment without a checkpoint near by replays more of the journal, and that is all.
const (
	// thinApart is how many messages lie between two that are kept at most, as long as there are no more than thinMost of them and
	// they take no more than thinBytes: reading so many takes a second or two.
	thinApart = 250_000
	thinMost  = 400
	thinBytes = 8 << 30
)

// thinSteps is how far apart in time checkpoints are kept, by their age.
func thinSteps() []thinStep {
	const day = 24 * time.Hour
	return []thinStep{{day, 0}, {7 * day, time.Hour}, {90 * day, day}, {1<<63 - 1, 30 * day}}
}

type thinStep struct{ upTo, apart time.Duration }

// saved is a checkpoint on the disk.
type saved struct {
	seq    uint64
	stored time.Time
	bytes  int64
}

// thin says which of the checkpoints, oldest first, are of no use any more: those before the journal's first message, those that
// are nearer to the one kept before them than their age asks for, and where there are still too many, those that leave
// the smallest gap for their age. The newest stays in any case.
func thin(all []saved, first uint64, now time.Time, most int, size int64) (drop []saved) {
	var keep []saved
	for i, c := range all {
		apart, age := time.Duration(0), now.Sub(c.stored)
		for _, s := range thinSteps() {
			if age <= s.upTo {
				apart = s.apart
				break
			}
		}
		near := len(keep) > 0 && c.stored.Sub(keep[len(keep)-1].stored) < apart
		if near && i+1 < len(all) { // what would be missing is read from the one before
			near = all[i+1].seq-keep[len(keep)-1].seq <= thinApart
		}
		if i+1 < len(all) && (c.seq < first || near) {
			drop = append(drop, c)
			continue
		}
		keep = append(keep, c)
	}
	total := int64(0)
	for _, c := range keep {
		total += c.bytes
	}
	for len(keep) > 1 && (len(keep) > most || total > size) {
		worst, least := 0, 0.0
		for i := range keep[:len(keep)-1] {
			before := keep[i].stored // the oldest leaves all that is before it to the journal's beginning
			if i > 0 {
				before = keep[i-1].stored
			}
			gap := float64(keep[i+1].stored.Sub(before)+time.Second) / float64(now.Sub(keep[i].stored)+time.Second)
			if i == 0 || gap < least {
				worst, least = i, gap
			}
		}
		total -= keep[worst].bytes
		drop = append(drop, keep[worst])
		keep = slices.Delete(keep, worst, worst+1)
	}
	return drop
}

// thinOut removes checkpoints that are of no use any more.
func (h *History) thinOut(ctx context.Context, now time.Time) {
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	bound, err := h.cfg.Journal.Bound(short)
	if err != nil {
		return // the next one will do it
	}
	h.mu.Lock()
	drop := thin(h.checkpoints, bound.First, now, thinMost, thinBytes)
	h.checkpoints = slices.DeleteFunc(slices.Clone(h.checkpoints), func(c saved) bool { return slices.Contains(drop, c) })
	h.mu.Unlock()
	for _, c := range drop {
		if err := os.Remove(filepath.Join(h.cfg.Dir, checkpointName(c.seq))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.log.Error().Err(err).Uint64("seq", c.seq).Msg("a checkpoint can't be removed")
		}
	}
	if len(drop) > 0 {
		h.log.Debug().Int("removed", len(drop)).Msg("checkpoints thinned out")
	}
}

// place puts a checkpoint into a list that is ordered by sequence.
func place(list []saved, c saved) []saved {
	i, there := find(list, c.seq)
	list = slices.Clone(list)
	if there {
		list[i] = c
		return list
	}
	return slices.Insert(list, i, c)
}

func find(list []saved, seq uint64) (int, bool) {
	return slices.BinarySearchFunc(list, seq, func(c saved, seq uint64) int {
		switch {
		case c.seq < seq:
			return -1
		case c.seq > seq:
			return 1
		default:
			return 0
		}
	})
}

// readSaved reads no more of a checkpoint than what it says of itself.
func readSaved(path string) (saved, error) {
	f, err := os.Open(path)
	if err != nil {
		return saved{}, fmt.Errorf("read checkpoint: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return saved{}, fmt.Errorf("read checkpoint: %w", err)
	}
	fail := func(err error) (saved, error) {
		return saved{}, fmt.Errorf("read checkpoint %s: %w: %w", filepath.Base(path), errDamaged, err)
	}
	z := s2.NewReader(f, s2.ReaderMaxBlockSize(checkpointBlock))
	magic := make([]byte, len(checkpointMagic))
	if _, err := io.ReadFull(z, magic); err != nil || string(magic) != checkpointMagic {
		return fail(fmt.Errorf("it does not begin as one"))
	}
	n, err := binary.ReadUvarint(z)
	if err != nil || n > 4096 {
		return fail(fmt.Errorf("its head"))
	}
	head := make([]byte, n)
	var c checkpoint
	if _, err := io.ReadFull(z, head); err != nil || json.Unmarshal(head, &c) != nil {
		return fail(fmt.Errorf("its head"))
	}
	return saved{c.At.Seq, c.Stored, info.Size()}, nil
}

// Usage is how much the index and the checkpoints take, and how many files each.
func (h *History) Usage() (index, checkpoints uint64, segments, states int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.segments {
		if info, err := s.file.Stat(); err == nil {
			index += uint64(info.Size()) //nolint:gosec // not negative
		}
	}
	for _, c := range h.checkpoints {
		checkpoints += uint64(c.bytes) //nolint:gosec // not negative
	}
	return index, checkpoints, len(h.segments), len(h.checkpoints)
}
