package install

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal/desired"
	"shoal/subjects"
)

const (
	// renewApart is the least time between two renewals that went well, whatever asks for them: connections that come and go,
	// or a clock that is years ahead.
	renewApart = time.Hour
	// renewSpread is over how long a fleet that has just connected asks.
	renewSpread = 30 * time.Second
	// renewLook is the longest time without a look at the clock, which may jump.
	renewLook = time.Hour
	// Bounds of how long to wait after a renewal that did not go well, and after the controller said that this host is none.
	renewMin, renewMax     = 5 * time.Second, 10 * time.Minute
	removedMin, removedMax = 2 * time.Hour, 4 * time.Hour
)

// RenewConfig is what a Renewer needs.
type RenewConfig struct {
	Identity *Identity
	// Ask makes a request over the host's own connection. A refusal is a *RefusalError.
	Ask func(ctx context.Context, verb string, body []byte) ([]byte, error)
	// Renewed is called after newer credentials, certificates or servers have been put in place; servers says whether those
	// are others now, expired whether the old credentials had been refused.
	Renewed func(servers, expired bool)
	Log     zerolog.Logger

	// askGuest replaces the request of somebody without a connection, in tests of time.
	askGuest func(ctx context.Context) ([]byte, error)
}

// Renewer keeps an identity's credentials, certificates and servers fresh: at half of the credentials' life, a while after each
// connection, and at once when a server refuses them.
type Renewer struct {
	cfg RenewConfig
	log zerolog.Logger

	mu        sync.Mutex
	connected bool
	refused   bool
	// wake has Run look at once.
	wake chan struct{}
}

// NewRenewer makes a Renewer. It works in Run.
func NewRenewer(cfg RenewConfig) (*Renewer, error) {
	if cfg.Identity == nil || cfg.Ask == nil || cfg.Renewed == nil {
		return nil, errors.New("make renewer: Identity, Ask and Renewed must be set")
	}
	r := &Renewer{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1)}
	if cfg.askGuest == nil {
		r.cfg.askGuest = r.askAsGuest
	}
	return r, nil
}

// Connected tells that the credentials were taken.
func (r *Renewer) Connected() { r.tell(true, false) }

// Disconnected tells that there is no connection any more, or not yet; refused, that a server does not take the credentials.
func (r *Renewer) Disconnected(refused bool) { r.tell(false, refused) }

func (r *Renewer) tell(connected, refused bool) {
	r.mu.Lock()
	before := [2]bool{r.connected, r.refused}
	r.connected = connected
	// Once refused, credentials stay so until they are taken: a server that is away meanwhile says nothing about them.
	r.refused = !connected && (r.refused || refused)
	same := before == [2]bool{r.connected, r.refused}
	r.mu.Unlock()
	if same {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// course is what a Renewer remembers from one attempt to the next.
type course struct {
	good     time.Time // the last renewal that went well, zero if none did
	next     time.Time // not before
	failures int
	removed  bool
	// look is when a connection is to be used to ask what is new, zero when that was done.
	look time.Time
	// half is when the credentials have lived for half of their life, zero when they live for ever, and of which that was worked out.
	half, issued, expires time.Time
}

// Run renews until ctx ends; the error is nil then.
func (r *Renewer) Run(ctx context.Context) error {
	var c course
	connected := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		r.mu.Lock()
		was, refused := connected, r.refused
		connected = r.connected
		r.mu.Unlock()
		now := time.Now()
		if connected && !was {
			// The old failures were those of another connection. Removal is the controller's word and stays.
			if !c.removed {
				c.failures, c.next = 0, time.Time{}
			}
			c.look = now.Add(jitter(renewSpread))
		}
		if due := r.due(&c, now, connected, refused); !due.After(now) {
			r.attempt(ctx, &c, refused)
		}
		wait := renewLook
		if due := r.due(&c, time.Now(), connected, refused); !due.IsZero() {
			wait = min(wait, max(time.Until(due), 0))
		}
		timer.Reset(wait)
	}
}

// far is a time that does not come.
func far(now time.Time) time.Time { return now.Add(renewLook) }

// due is when to ask next.
func (r *Renewer) due(c *course, now time.Time, connected, refused bool) time.Time {
	if !connected && !refused {
		return far(now) // the server is away
	}
	if refused {
		return c.next
	}
	due := far(now)
	if !c.look.IsZero() {
		due = c.look
	}
	if half := r.half(c, now); !half.IsZero() && half.Before(due) {
		due = half
	}
	if apart := c.good.Add(renewApart); !c.good.IsZero() && due.Before(apart) {
		due = apart
	}
	if due.Before(c.next) {
		due = c.next
	}
	return due
}

// half is when the credentials are to be renewed. It is worked out once for each, so that what varies in it does not vary on.
func (r *Renewer) half(c *course, now time.Time) time.Time {
	issued, expires, err := r.cfg.Identity.validity()
	if err != nil {
		r.log.Error().Err(err).Msg("credentials not readable")
		return now
	}
	if !issued.Equal(c.issued) || !expires.Equal(c.expires) || c.half.IsZero() {
		c.issued, c.expires, c.half = issued, expires, time.Time{}
		if !expires.IsZero() {
			life := max(expires.Sub(issued), 0)
			c.half = issued.Add(3*life/8 + jitter(life/8))
		}
	}
	return c.half
}

// attempt renews once, and decides when to do so again.
func (r *Renewer) attempt(ctx context.Context, c *course, refused bool) {
	before := r.cfg.Identity.URLs()
	err := r.renew(ctx, refused)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		c.good, c.look, c.removed = time.Now(), time.Time{}, false
		if refused {
			// Credentials that are refused again although they are new must not make us ask at once. Connected clears this.
			c.failures++
			c.next = time.Now().Add(backoff(renewMin, renewMax, c.failures))
		} else {
			c.failures, c.next = 0, time.Time{}
		}
		_, expires, _ := r.cfg.Identity.validity()
		r.log.Info().Time("expires", expires).Msg("credentials renewed")
		r.cfg.Renewed(!slices.Equal(before, r.cfg.Identity.URLs()), refused)
		return
	}
	if no, ok := errors.AsType[*RefusalError](err); ok && no.Removed() {
		again := removedMin + jitter(removedMax-removedMin)/2
		c.removed, c.failures, c.next = true, c.failures+1, time.Now().Add(again)
		r.log.Error().Err(err).Str("key", desired.Fingerprint(r.cfg.Identity.PublicKey())).Dur("again", again.Round(time.Second)).
			Msg("this host is no longer one of the controller's: what runs here is left alone; if it is to be one again, run shoal-agent join --force TOKEN")
		return
	}
	again := backoff(renewMin, renewMax, c.failures)
	c.failures++
	c.next = time.Now().Add(again)
	r.log.Warn().Err(err).Dur("again", again.Round(time.Second)).Msg("credentials not renewed")
}

// renew asks for credentials and puts them in place.
func (r *Renewer) renew(ctx context.Context, refused bool) error {
	ask := r.askConnected
	if refused {
		ask = r.cfg.askGuest
	}
	b, err := ask(ctx)
	if err != nil {
		return err
	}
	c, err := readCredentials(b)
	if err != nil {
		return err
	}
	return r.cfg.Identity.Take(c)
}

// readCredentials reads the answer to a RenewRequest.
func readCredentials(b []byte) (desired.Credentials, error) {
	var c desired.Credentials
	if err := json.Unmarshal(b, &c); err != nil {
		return desired.Credentials{}, errors.New("the controller's answer can't be read; are its version and the agent's far apart?")
	}
	return c, nil
}

func (r *Renewer) askConnected(ctx context.Context) ([]byte, error) {
	body, err := json.Marshal(desired.RenewRequest{Host: r.cfg.Identity.Host(), PublicKey: r.cfg.Identity.PublicKey()})
	if err != nil {
		return nil, err
	}
	return r.cfg.Ask(ctx, desired.RenewVerb, body)
}

// askAsGuest asks without credentials and signs.
func (r *Renewer) askAsGuest(ctx context.Context) ([]byte, error) {
	id := r.cfg.Identity
	g := guest{name: "shoal-agent " + id.Host() + ", to renew", urls: id.URLs()}
	if id.Private() {
		g.secure = func(_, name string) (*tls.Config, error) {
			roots, err := id.Roots()
			return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: roots}, err
		}
	}
	b, err := g.ask(ctx, subjects.Guest(subjects.GuestRenew), func(box string) ([]byte, error) {
		sig, err := id.sign(desired.RenewProof(id.Host(), box))
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		return json.Marshal(desired.RenewRequest{
			Host: id.Host(), PublicKey: id.PublicKey(), Signature: base64.StdEncoding.EncodeToString(sig), Box: box,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("renew credentials as a guest: %w", err)
	}
	return b, nil
}
