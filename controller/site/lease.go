package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"shoal/subjects"
)

// LeaseTTL is how long a lease lives without being renewed. With the renewing and campaigning below a killed leader is
// replaced after 3 to 4 seconds.
const LeaseTTL = 3 * time.Second

const (
	// leaseRenew is how often a leader renews.
	leaseRenew = 750 * time.Millisecond
	// leaseGiveUp is how long a leader goes on without having renewed: shorter than LeaseTTL, so that it has stopped
	// before another may start.
	leaseGiveUp = 2 * time.Second
	// leasePoll is how often a candidate tries. It asks instead of watching: a watch would be blind after a restart of NATS.
	leasePoll = 250 * time.Millisecond
	// leaseCall bounds one request.
	leaseCall = time.Second
)

// ErrLeaseLost is the cause with which the context of a leader ends that could not renew its lease.
var ErrLeaseLost = errors.New("the leader's lease is lost")

// Holder is what the lease says of the leading controller.
type Holder struct {
	Name  string    `json:"name"`
	Since time.Time `json:"since"`
}

// Lease elects one controller.
type Lease struct {
	js   jetstream.JetStream
	name string
	log  zerolog.Logger
	// remake makes the bucket anew where it is gone: it is in memory, and so it is after a restart of an external NATS. May be nil.
	remake func(ctx context.Context) error
}

// NewLease makes a candidate of that name.
func NewLease(js jetstream.JetStream, name string, log zerolog.Logger) *Lease {
	return &Lease{js: js, name: name, log: log}
}

// Campaign waits for the lease and runs lead while it holds it, again and again until ctx ends. The context of lead ends
// with ctx, or with ErrLeaseLost as its cause; lead must return soon then. The lease is kept while lead finishes and is
// given back at once, so that another controller takes over without waiting. An error of lead is logged, the lease given
// back, and the campaign goes on.
func (l *Lease) Campaign(ctx context.Context, lead func(ctx context.Context) error) error {
	kv, err := l.bucket(ctx)
	if err != nil {
		return err
	}
	value, wait := Holder{Name: l.name}, time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = leasePoll
		value.Since = time.Now().UTC()
		b, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode lease: %w", err)
		}
		asked := time.Now()
		call, cancel := context.WithTimeout(ctx, leaseCall)
		rev, err := kv.Create(call, subjects.LeaderKey, b)
		cancel()
		if errors.Is(err, jetstream.ErrNoStreamResponse) && l.remake != nil {
			call, cancel := context.WithTimeout(ctx, leaseCall)
			err := l.remake(call)
			cancel()
			if err == nil {
				l.log.Info().Msg("bucket of the lease was gone and is made anew")
			}
			continue
		}
		if err != nil {
			continue // held by another, or NATS is away: either way there is only waiting
		}
		l.log.Info().Uint64("rev", rev).Msg("leading")
		if err := l.hold(ctx, kv, b, rev, asked, lead); err != nil && ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("no longer leading")
			wait = 4 * leasePoll // let another try first
		}
	}
}

// bucket waits until the bucket can be opened.
func (l *Lease) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	for {
		call, cancel := context.WithTimeout(ctx, leaseCall)
		kv, err := l.js.KeyValue(call, subjects.LeaseBucket)
		cancel()
		if err == nil {
			return kv, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(leasePoll):
		}
	}
}

// hold runs lead and renews until it has returned.
func (l *Lease) hold(ctx context.Context, kv jetstream.KeyValue, value []byte, rev uint64, renewed time.Time, lead func(ctx context.Context) error) error {
	leading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan error, 1)
	go func() { done <- lead(leading) }()
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	lost := false
	for {
		select {
		case err := <-done:
			if !lost {
				// ctx may have ended; giving back is what the next leader waits for.
				call, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseCall)
				defer cancel()
				if derr := kv.Delete(call, subjects.LeaderKey, jetstream.LastRevision(rev)); derr != nil {
					l.log.Warn().Err(derr).Msg("lease not given back")
				}
			}
			if lost {
				err = errors.Join(ErrLeaseLost, err)
			}
			return err
		case <-tick.C:
		}
		if lost {
			continue
		}
		asked := time.Now()
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseGiveUp-min(asked.Sub(renewed), leaseGiveUp-time.Millisecond))
		next, err := kv.Update(call, subjects.LeaderKey, value, rev)
		cancel()
		if err != nil {
			// The answer to an earlier renewal may have got lost: then the lease is still ours under another revision.
			next, err = l.mine(ctx, kv, value)
		}
		switch {
		case err == nil:
			if next != rev {
				rev, renewed = next, asked
			}
		case errors.Is(err, ErrLeaseLost) || time.Since(renewed) >= leaseGiveUp:
			lost = true
			stop(ErrLeaseLost)
		}
	}
}

// mine is the revision of the lease if it is held with this value; ErrLeaseLost says that it is certainly not.
func (l *Lease) mine(ctx context.Context, kv jetstream.KeyValue, value []byte) (uint64, error) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseCall)
	defer cancel()
	e, err := kv.Get(call, subjects.LeaderKey)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return 0, ErrLeaseLost
	case err != nil:
		return 0, fmt.Errorf("look up lease: %w", err)
	case !bytes.Equal(e.Value(), value):
		return 0, ErrLeaseLost
	}
	return e.Revision(), nil
}

// Leader is the controller that leads now; ok is false when there is none.
func (l *Lease) Leader(ctx context.Context) (h Holder, ok bool, err error) {
	kv, err := l.js.KeyValue(ctx, subjects.LeaseBucket)
	if err != nil {
		return Holder{}, false, fmt.Errorf("look up leader: %w", err)
	}
	e, err := kv.Get(ctx, subjects.LeaderKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Holder{}, false, nil
	}
	if err != nil {
		return Holder{}, false, fmt.Errorf("look up leader: %w", err)
	}
	if err := json.Unmarshal(e.Value(), &h); err != nil {
		return Holder{}, false, fmt.Errorf("decode lease: %w", err)
	}
	return h, true, nil
}
