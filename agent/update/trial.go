package update

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"shoal/desired"
)

const (
	// lookEvery is how often a release on trial looks at itself, wellFor how long it must have been well.
	lookEvery = 500 * time.Millisecond
	wellFor   = 3 * time.Second
)

// Run has this process prove itself, where it is a release on trial, and returns when it has, or when ctx ends.
func (u *Updater) Run(ctx context.Context) error {
	st, trying := onTrial(u.store)
	if !trying {
		return nil
	}
	log := u.cfg.Log.With().Str("version", st.Trial.Version).Logger()
	// The last words of a crash are for the launcher: it shows them to people who have no shell on the host.
	if f, err := os.OpenFile(u.store.path(crashFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
		err = debug.SetCrashOutput(f, debug.CrashOptions{})
		if err := f.Close(); err != nil {
			log.Warn().Err(err).Msg("file for a crash not closed")
		}
		if err != nil {
			log.Warn().Err(err).Msg("a crash would not be kept")
		}
	}
	before, err := u.readReady()
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var since time.Time // since when it is well
	for {
		why := u.unwell(before)
		if why == "" && since.IsZero() {
			since = time.Now()
		} else if why != "" {
			since = time.Time{}
		}
		if why == "" && time.Since(since) >= wellFor {
			break
		}
		if why != "" && why != st.Trial.Note {
			st.Trial.Note = why
			if _, err := u.edit(func(now *state) { now.Trial = st.Trial }); err != nil {
				log.Warn().Err(err).Msg("what is not well is not kept")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return u.confirm(ctx, st.Trial)
}

// confirm makes this release the current one.
func (u *Updater) confirm(ctx context.Context, well *trial) error {
	var st state
	for {
		var err error
		if st, err = u.edit(func(st *state) {
			if st.Current != well.SHA256 {
				st.Previous, st.Current = st.Current, well.SHA256
			}
			st.Version = well.Version
			st.Trial, st.Failed = nil, nil
		}); err == nil {
			break
		}
		u.cfg.Log.Error().Err(err).Msg("release is well, and that can't be kept")
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
	u.cfg.Log.Info().Str("version", well.Version).Str("release", st.Current).Msg("release is well and current now")
	_ = debug.SetCrashOutput(nil, debug.CrashOptions{}) // it only closes a file
	if err := u.store.tidy(st); err != nil {
		u.cfg.Log.Warn().Err(err).Msg("old releases not removed")
	}
	select {
	case u.changed <- struct{}{}:
	default:
	}
	return nil
}

func (u *Updater) readReady() ([]readyItem, error) {
	b, err := os.ReadFile(u.store.path(readyFile))
	if err != nil {
		return nil, fmt.Errorf("read what was ready: %w", err)
	}
	var ready []readyItem
	if err := json.Unmarshal(b, &ready); err != nil {
		return nil, fmt.Errorf("read what was ready: %w", err)
	}
	return ready, nil
}

// unwell is what is not well yet; "" for nothing. What changed or went since counts for nothing: it need not be the agent's doing.
func (u *Updater) unwell(before []readyItem) string {
	doc, ok := u.cfg.Health.Document()
	if !ok {
		return "there is no document"
	}
	now := u.cfg.Health.Statuses()
	for _, was := range before {
		it, wanted := doc.Items[was.Ref]
		if !wanted || it.Rev != was.Rev {
			continue
		}
		switch s, told := now[was.Ref]; {
		case !told:
			return fmt.Sprintf("%s was not looked at", was.Ref)
		case s.Phase != desired.PhaseReady || s.Rev != it.Rev:
			why := fmt.Sprintf("%s was Ready and is %s", was.Ref, s.Phase)
			if s.Fault != nil {
				why += ": " + s.Fault.Message
			}
			return one(why)
		}
	}
	return u.cfg.Health.Heard()
}
