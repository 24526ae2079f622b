package api

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"shoal/controller/resource"
)

// throttle slows down those who guess: requests from one address, and failures about one name. It lives with the leader and forgets
// when another takes over, which costs a guesser nothing less than an address.
type throttle struct {
	every time.Duration // between two requests of one address, in the long run
	burst int
	free  int // failures about one name that cost nothing

	mu    sync.Mutex
	from  map[string]*rate.Limiter
	about map[string]failures
	swept time.Time
}

// failures are those about one name, one after the other.
type failures struct {
	n     int
	until time.Time // before which no further try is looked at
}

// How long somebody who fails again and again has to wait, and how long failures are remembered.
const (
	minHold    = time.Second
	maxHold    = time.Minute
	rememberIt = 15 * time.Minute
	// maxThrottled bounds the memory that somebody can take who comes from everywhere.
	maxThrottled = 100_000
)

func newThrottle(every time.Duration, burst, free int) *throttle {
	return &throttle{every: every, burst: burst, free: free, from: map[string]*rate.Limiter{}, about: map[string]failures{}}
}

// admit refuses a request that comes too soon.
func (t *throttle) admit(from, name string, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	if f := t.about[name]; now.Before(f.until) {
		return busy(f.until.Sub(now))
	}
	l := t.from[from]
	if l == nil {
		l = rate.NewLimiter(rate.Every(t.every), t.burst)
		t.from[from] = l
	}
	if r := l.ReserveN(now, 1); r.DelayFrom(now) > 0 {
		wait := r.DelayFrom(now)
		r.CancelAt(now)
		return busy(wait)
	}
	return nil
}

// failed notes a failure about a name.
func (t *throttle) failed(name string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.about[name]
	f.n++
	if over := f.n - t.free; over > 0 {
		f.until = now.Add(min(minHold<<min(over-1, 10), maxHold))
	} else {
		f.until = now
	}
	t.about[name] = f
}

// succeeded forgets the failures about a name.
func (t *throttle) succeeded(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.about, name)
}

// sweep forgets what is over. It looks once in a while only, and lets go of all of one sort that has become too much: whoever comes
// from that many addresses is not slowed down by remembering them.
func (t *throttle) sweep(now time.Time) {
	if len(t.from) >= maxThrottled {
		clear(t.from)
	}
	if len(t.about) >= maxThrottled {
		clear(t.about)
	}
	if now.Sub(t.swept) < time.Minute {
		return
	}
	t.swept = now
	for k, f := range t.about {
		if now.Sub(f.until) > rememberIt {
			delete(t.about, k)
		}
	}
	for k, l := range t.from {
		if l.TokensAt(now) >= float64(t.burst) {
			delete(t.from, k)
		}
	}
}

func busy(wait time.Duration) error {
	e := resource.Invalid("", "too many tries")
	e.Code = resource.CodeBusy
	return e.WithRemedy("wait %s, then try again", max(wait.Round(time.Second), time.Second))
}
