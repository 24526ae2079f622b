package probe

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"shoal/desired"
)

// How often the host's clock is compared with the controllers': when all is well, while it is wrong, and before the first answer. Not to be asked
// too often matters where there are ten thousand hosts.
const (
	clockEvery = 5 * time.Minute
	clockWrong = 30 * time.Second
	clockFirst = 5 * time.Second
	// clockLook is how soon it is seen that somebody has set the clock, and clockStep how far it must have been set.
	clockLook = 10 * time.Second
	clockStep = 200 * time.Millisecond
	// clockTries are made for one comparison: the quickest answer is the most exact.
	clockTries = 3
	// clockChange is how much must have changed to be worth telling.
	clockChange = 50 * time.Millisecond
)

// Clock compares the host's clock with the controllers'.
type Clock struct {
	// Ask asks what the controllers' clock shows.
	Ask func(ctx context.Context) (time.Time, error)
	Log zerolog.Logger
	// now, in tests, replaces the time.
	now func() reading
}

// reading is what the host's clock shows, which may be set, and how long the machine has run, which may not.
type reading struct {
	wall time.Time
	ran  time.Duration
}

// begun is what monotonic time is counted from.
var begun = time.Now()

func machineTime() reading {
	t := time.Now()
	return reading{wall: t.Round(0), ran: t.Sub(begun)}
}

// Run reports how the clocks compare, when that is known and when it has changed noticeably, until ctx ends.
func (c *Clock) Run(ctx context.Context, report func(desired.Clock)) error {
	if c.now == nil {
		c.now = machineTime
	}
	var told *desired.Clock
	tick := time.NewTicker(clockFirst)
	defer tick.Stop()
	last, due, failures := c.now(), time.Duration(0), 0
	for {
		now := c.now()
		if stepped := now.wall.Sub(last.wall) - (now.ran - last.ran); stepped.Abs() >= clockStep {
			c.Log.Info().Dur("by", stepped).Msg("the clock was set")
			due = 0
		}
		last = now
		if now.ran >= due {
			found, err := c.compare(ctx)
			switch {
			case err != nil:
				// It is said elsewhere that there is no connection; a controller that does not know the question is an old one.
				c.Log.Debug().Err(err).Msg("clock not compared")
				due = now.ran + min(clockFirst<<min(failures, 10), clockEvery)
				failures++
			case found.Beyond(desired.ClockTolerance):
				due, failures = now.ran+clockWrong, 0
			default:
				due, failures = now.ran+clockEvery, 0
			}
			if err == nil && (told == nil || noticeable(*told, found)) {
				if found.Beyond(desired.ClockTolerance) {
					c.Log.Warn().Stringer("clock", found).Msg("the clock differs from the controllers'")
				}
				told = &found
				report(found)
			}
			if told != nil {
				tick.Reset(clockLook)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// noticeable reports whether there is something new to tell.
func noticeable(old, found desired.Clock) bool {
	change := max(found.OffsetMS-old.OffsetMS, old.OffsetMS-found.OffsetMS)
	return change >= clockChange.Milliseconds() && change > found.ErrorMS || old.Beyond(desired.ClockTolerance) != found.Beyond(desired.ClockTolerance)
}

// compare asks several times and takes the most exact answer.
func (c *Clock) compare(ctx context.Context) (desired.Clock, error) {
	var best desired.Clock
	for n := range clockTries {
		asked := c.now()
		theirs, err := c.Ask(ctx)
		if err != nil {
			return best, err
		}
		found := desired.CompareClocks(asked.wall, c.now().ran-asked.ran, theirs)
		if n == 0 || found.ErrorMS < best.ErrorMS {
			best = found
		}
	}
	return best, nil
}
