package engine

import (
	"math/rand/v2"
	"time"
)

// The times of the engine. They are not settings: what depends on a host's size is in Sizer and Timeouter.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 60 * time.Second
	// defaultTimeout bounds Ensure, Remove and Flush; observeTimeout bounds looking.
	defaultTimeout = 5 * time.Minute
	observeTimeout = 30 * time.Second
	// lendAfter is how long a silent call keeps its place among the kind's parallel calls.
	lendAfter = 2 * time.Second
	// grace is what a call gets to end after its context did, before its item is reported as stuck, and before Run gives up.
	grace = 5 * time.Second
	// healBurst heals go at once, then one every healEvery.
	healBurst = 5
	healEvery = 2 * time.Second
	// Observations that events ask for run back to back, but take no more than a tenth of the time, and are never
	// further apart than observeGapMax.
	observeGapMin = 2 * time.Millisecond
	observeGapMax = time.Second
	// doubtAfter failed observations in a row the items of the kind are no longer called Ready.
	doubtAfter = 3

	defaultParallel = 8
)

// backoff is the time before try number n+1, n >= 1 tries having failed.
func backoff(n int) time.Duration {
	d := lastRetry
	if n < 9 { // 250 ms << 8 is above the limit
		d = min(firstRetry<<(n-1), lastRetry)
	}
	return jitter(d)
}

// jitter varies d by 20 %, so that what failed together is not tried together.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d))
}

// bucket lets healBurst things pass at once and then one every healEvery.
type bucket struct {
	used float64
	at   time.Time
}

// take says how long to wait before the next.
func (b *bucket) take(now time.Time) time.Duration {
	b.used = max(0, b.used-float64(now.Sub(b.at))/float64(healEvery))
	b.at = now
	b.used++
	if b.used <= healBurst {
		return 0
	}
	return min(healEvery, time.Duration((b.used-healBurst)*float64(healEvery)))
}
