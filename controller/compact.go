package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// opCompact is the operation whose tasks the compactor does. What the task is about is how much history is to stay.
const opCompact = "site.compact"

const (
	// compactEvery is how often it is looked whether the journal has become too old or too large.
	compactEvery = 10 * time.Minute
	// roundAtLeast is the least time between two rounds that nobody asked for, roundShare the share of the age to be kept after
	// which there is another, so that what can be purged is never much older than that age.
	roundAtLeast = time.Hour
	roundShare   = 10
	// roundGrowth is how many messages must have come since the last round for another one to be worth it.
	roundGrowth = 1000
)

// compactor keeps the journal within its limits.
type compactor struct {
	store *store.Store
	book  *journal.Journal
	// keep is how much history stays at least, maxBytes how large the journal may become; 0 for no limit. Where they contradict each
	// other, size wins: a full disk would stop everything.
	keep     time.Duration
	maxBytes uint64
	// size is what the journal takes now.
	size  func(ctx context.Context) (messages, bytes uint64, err error)
	asked <-chan struct{}
	log   zerolog.Logger
	now   func() time.Time
	// told is set once it was said that nothing can be taken out.
	told bool
}

// cantPurge says how a journal that can't be compacted becomes one that can.
func cantPurge(err error) error {
	if !errors.Is(err, journal.ErrCantPurge) {
		return err
	}
	return &resource.Error{
		Code: resource.CodeConflict, Message: err.Error(),
		Remedy: "make a backup (shoalctl backup create --wait), stop the controller at once, and restore it into an empty directory (shoal-controller restore): " +
			"the journal made there can be compacted. See README, What takes space",
	}
}

// run works until ctx ends.
func (k *compactor) run(ctx context.Context) error {
	limits := time.NewTicker(compactEvery)
	defer limits.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.asked:
			k.tasks(ctx)
		case <-limits.C:
			if err := k.auto(ctx); err != nil && ctx.Err() == nil {
				k.log.Error().Err(err).Msg("journal not compacted")
			}
		}
	}
}

// tasks does what people have asked for.
func (k *compactor) tasks(ctx context.Context) {
	for t := range resource.All[*resource.Task](k.store.View()) {
		if t.State != resource.TaskRunning || t.Op != opCompact {
			continue
		}
		keep, err := time.ParseDuration(t.ResourceID)
		if err == nil {
			_, err = k.compact(ctx, keep)
		}
		if ctx.Err() != nil {
			return
		}
		if err := endTask(ctx, k.store, opCompact, t.ID, err); err != nil && ctx.Err() == nil {
			k.log.Warn().Err(err).Msg("end of a task not recorded")
		}
	}
}

// compact says once more what there is, and purges what is before the newest round that is older than keep: with 0 all
// history before now.
func (k *compactor) compact(ctx context.Context, keep time.Duration) (purged uint64, err error) {
	// Saying everything once more would make a journal larger from which nothing can go.
	if err := k.book.CanPurge(ctx); err != nil {
		return 0, cantPurge(err)
	}
	started := k.now()
	if _, err := k.store.Restate(ctx); err != nil {
		return 0, err
	}
	return k.purge(ctx, started, keep)
}

// purge purges up to the newest round that is older than keep.
func (k *compactor) purge(ctx context.Context, started time.Time, keep time.Duration) (uint64, error) {
	rounds, err := k.book.Rounds(ctx)
	if err != nil {
		return 0, err
	}
	var last *journal.Round
	for i, r := range rounds {
		if keep <= 0 || !r.At.After(started.Add(-keep)) {
			last = &rounds[i]
		}
	}
	if last == nil {
		return 0, nil
	}
	bound, err := k.book.Bound(ctx)
	if err != nil || bound.First >= last.From {
		return 0, err
	}
	n, err := k.book.Purge(ctx, *last)
	if err != nil {
		return n, fmt.Errorf("compact: %w", err)
	}
	k.log.Info().Uint64("rev", last.From).Uint64("seq", last.Seq).Uint64("messages", n).Dur("took", k.now().Sub(started)).Msg("journal compacted")
	return n, nil
}

// auto keeps the journal within its limits.
func (k *compactor) auto(ctx context.Context) error {
	if k.keep <= 0 && k.maxBytes == 0 {
		return nil
	}
	if err := k.book.CanPurge(ctx); err != nil {
		if errors.Is(err, journal.ErrCantPurge) && !k.told {
			k.told = true
			k.log.Error().Err(cantPurge(err)).Msg("journal can't be kept within its limits")
		}
		if errors.Is(err, journal.ErrCantPurge) {
			return nil
		}
		return err
	}
	messages, bytes, err := k.size(ctx)
	if err != nil {
		return err
	}
	rounds, err := k.book.Rounds(ctx)
	if err != nil {
		return err
	}
	now, since, grown := k.now(), time.Time{}, messages
	if len(rounds) > 0 {
		newest := rounds[len(rounds)-1]
		since, grown = newest.At, k.store.Seq()-newest.Seq
	}
	every := max(k.keep/roundShare, roundAtLeast)
	full := k.maxBytes > 0 && bytes > k.maxBytes
	if full {
		every = roundAtLeast
	}
	if grown >= roundGrowth && now.Sub(since) >= every {
		if _, err := k.store.Restate(ctx); err != nil {
			return err
		}
	}
	keep := k.keep
	if full {
		keep = 0
		k.log.Warn().Uint64("bytes", bytes).Uint64("limit", k.maxBytes).Msg("journal is larger than it may be: history goes, however young")
	} else if keep <= 0 {
		return nil
	}
	_, err = k.purge(ctx, now, keep)
	return err
}
