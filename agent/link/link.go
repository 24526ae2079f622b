// Package link is an agent's connection to its controller: documents come in, statuses go out, and a few requests are made.
// The agent dials; nothing ever dials it.
//
// # What it guarantees
//
// Documents: each that is handed on is complete (the head and, for every entry of it, an item with that hash), is this
// host's, and has a higher generation than the last. None is missed for good: the bucket is read whole at every connect,
// every few minutes, and whenever a cheap probe sees that its end is not where it should be, so that lost hints, a server's
// restart, a bucket that was rolled back or made anew, all end in a fresh look. Hints say when to look and nothing else. No
// JetStream consumer is used: one that loses its place misses updates for good and without a word (see the package
// comment of controller/publish for the other side).
//
// A document of a schema that this agent does not speak is not handed on, which is told.
//
// Statuses: the newest of each item wins, is sent until the server has acknowledged it, and again after each
// reconnection, for the server may have lost what it had acknowledged. What is gone is purged.
//
// Requests: the controller may ask for the document in the ledger, page by page. Nothing else can be asked, and nothing be told.
//
// Everything works, or waits, with no server in sight: at the start, for hours, and while credentials are refused. Credentials and
// certificates are read anew at each attempt. A server that refuses the credentials is tried less and less often, at the least
// every hour, and at once after Redial.
//
// # What it leaves to others
//
// Whether a document is accepted is the ledger's decision, what is done about it the engine's. Where credentials come from
// and what to do about refused ones is agent/install's.
package link

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"shoal/desired"
	"shoal/subjects"
)

// Config is what a link needs. Zero durations are replaced by the defaults that their comments name.
type Config struct {
	// URL is one server or several, separated by commas.
	URL string
	// Creds is the credentials file. It is read anew at each connection attempt, so that renewed ones are taken.
	Creds string
	// Roots gives the authorities that may vouch for servers (nil: the system's) at each connection attempt. Where it is set, servers
	// must use TLS; where it is not, their URLs say it. TLS is 1.3 in any case.
	Roots func() (*x509.CertPool, error)
	// Host is this host's id: the user name in the credentials.
	Host string
	// OnState is told of each connection and of each failure to get or keep one, in order. It must return soon.
	OnState func(State)
	// OnDocument takes each new document. It is called from Run's goroutine; nothing is read while it runs. With an error the
	// document is handed on again after a while.
	OnDocument func(desired.Document) error
	// Document is the document in the ledger, which the controller may ask for after it has lost data; nil for none.
	Document func() (desired.Document, bool)
	// OnAhead is told whether the bucket is behind what the agent has, or holds another document of the same generation: the controller
	// has lost data.
	OnAhead func(ahead bool)
	// OnTooNew is told why the newest document can't be understood, and with nil when one can be again. May be nil.
	OnTooNew func(err error)
	Log      zerolog.Logger
	// Names is the file that keeps the names of what was reported; "" for none.
	Names string
	// ForgetAfter is how long after the start statuses of an earlier process are purged that nobody has reported anew. By
	// then whoever reports must have reported everything once. 1 min
	ForgetAfter time.Duration

	ProbeEvery     time.Duration // 30 s
	ProbeWait      time.Duration // 10 s
	ResyncEvery    time.Duration // 10 min
	HeartbeatEvery time.Duration // 30 s
	// Spread is over how long all statuses are sent again after a reconnection, so that a fleet does not do it at once. 5 s
	Spread time.Duration
	// ReconnectWait and ReconnectJitter are how long to wait between attempts. 2 s, 3 s
	ReconnectWait, ReconnectJitter time.Duration
	// RefusedWait is the longest wait while credentials are refused. 1 h
	RefusedWait time.Duration
	// Options are added to the client's, for tests.
	Options []nats.Option
}

// Link is the connection.
type Link struct {
	cfg    Config
	log    zerolog.Logger
	nc     atomic.Pointer[nats.Conn]
	view   *view
	report *reporter
	// connected wakes Run after each connection, redial the wait for the first one.
	connected, redial chan struct{}
	refusals          atomic.Int32 // in a row
	failure           failure
	read              atomic.Bool // the bucket was read, and understood
	telling           sync.Mutex
	servers           atomic.Pointer[[]string] // other ones than cfg.URL's
}

// New makes a link. It connects in Run.
func New(cfg Config) (*Link, error) {
	if cfg.URL == "" || cfg.Host == "" || cfg.OnDocument == nil {
		return nil, errors.New("new link: URL, Host and OnDocument must be set")
	}
	for d, def := range map[*time.Duration]time.Duration{
		&cfg.ProbeEvery: 30 * time.Second, &cfg.ProbeWait: 10 * time.Second, &cfg.ResyncEvery: 10 * time.Minute, &cfg.HeartbeatEvery: 30 * time.Second,
		&cfg.Spread: 5 * time.Second, &cfg.ForgetAfter: time.Minute, &cfg.ReconnectWait: 2 * time.Second, &cfg.ReconnectJitter: 3 * time.Second,
		&cfg.RefusedWait: time.Hour,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	l := &Link{cfg: cfg, log: cfg.Log, connected: make(chan struct{}, 1), redial: make(chan struct{}, 1)}
	l.view = newView(cfg.Host)
	var err error
	if l.report, err = newReporter(cfg.Host, cfg.Names, cfg.Log); err != nil {
		return nil, err
	}
	return l, nil
}

// Accepted tells the document that the agent stands by: only those of higher generations are handed on. It is to be called before Run.
func (l *Link) Accepted(head desired.Head) { l.view.deliver(head) }

// Report implements engine.Reporter.
func (l *Link) Report(ref desired.Ref, status *desired.Status) { l.report.put(ref, status) }

// Run connects and works until ctx ends; the error is nil then. It can be called once.
func (l *Link) Run(ctx context.Context) error {
	nc := l.connect(ctx)
	if nc == nil {
		return nil
	}
	defer nc.Close()
	hints := make(chan *nats.Msg, 64)
	// The head is written last, and one hint for a document is enough.
	sub, err := nc.ChanSubscribe(subjects.Hint(l.cfg.Host, subjects.HeadKey), hints)
	if err != nil {
		return fmt.Errorf("subscribe to hints: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	requests, err := l.serve(nc)
	if err != nil {
		return err
	}
	defer func() { _ = requests.Unsubscribe() }()

	reporting := make(chan struct{})
	go func() {
		defer close(reporting)
		l.report.run(ctx, nc, l.cfg.Spread)
	}()
	defer func() { <-reporting }()

	probe, resync, beat := timer(l.cfg.ProbeEvery), timer(l.cfg.ResyncEvery), timer(l.cfg.HeartbeatEvery)
	defer probe.Stop()
	defer resync.Stop()
	defer beat.Stop()
	forget := time.NewTimer(l.cfg.ForgetAfter)
	defer forget.Stop()
	// again asks for another look, after a look that did not give a whole document.
	again := time.NewTimer(time.Hour)
	again.Stop()
	backoff := againMin
	look := func(whole bool) {
		complete, err := l.look(ctx, whole)
		if err == nil && complete {
			again.Stop()
			backoff = againMin
			return
		}
		if err != nil && ctx.Err() == nil && nc.IsConnected() {
			l.log.Warn().Err(err).Msg("document not taken over")
		}
		again.Reset(backoff)
		backoff = min(2*backoff, againMax)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.connected:
			l.report.resume()
			look(true)
		case h := <-hints:
			n := drain(hints)
			l.log.Debug().Str("subject", h.Subject).Int("more", n).Msg("hint")
			look(false)
		case <-again.C:
			if nc.IsConnected() {
				look(true)
			} else {
				again.Reset(backoff)
			}
		case <-probe.C:
			probe.Reset(jitter(l.cfg.ProbeEvery))
			if nc.IsConnected() {
				if same, err := l.probe(ctx, nc); err == nil && !same {
					look(true)
				}
			}
		case <-resync.C:
			resync.Reset(jitter(l.cfg.ResyncEvery))
			if nc.IsConnected() {
				look(true)
			}
		case <-forget.C:
			l.report.purgeForgotten()
		case <-beat.C:
			beat.Reset(jitter(l.cfg.HeartbeatEvery))
			l.report.again(desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID})
		}
	}
}

// Bounds of how soon to look again after a look that gave no whole document. The first is short, since the usual
// reason is that a document is being written right now.
const (
	againMin = 20 * time.Millisecond
	againMax = 5 * time.Second
)

// probe asks for the end of the bucket. The answer may be lost with the connection, and while it is waited for nothing else is done.
func (l *Link) probe(ctx context.Context, nc *nats.Conn) (same bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.ProbeWait)
	defer cancel()
	return l.view.probe(ctx, nc)
}

// look reads the bucket, what is new in it or all of it, and hands a new document on.
func (l *Link) look(ctx context.Context, whole bool) (complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := l.view.read(ctx, l.nc.Load(), whole); err != nil {
		return false, err
	}
	doc, state, err := l.view.document()
	if state == torn && !whole {
		// What we remember may be wrong: a rolled-back bucket hands out the same sequences again.
		if err := l.view.read(ctx, l.nc.Load(), true); err != nil {
			return false, err
		}
		doc, state, err = l.view.document()
	}
	if l.cfg.OnTooNew != nil && state != torn {
		l.cfg.OnTooNew(err)
	}
	if l.cfg.OnAhead != nil && state != torn && state != foreign {
		l.cfg.OnAhead(state == behind)
	}
	if state == newer {
		l.log.Debug().Uint64("gen", doc.Head.Gen).Int("items", len(doc.Items)).Msg("document read")
		if err := l.cfg.OnDocument(doc); err != nil {
			return false, err
		}
		l.view.deliver(doc.Head)
	}
	if state != torn && state != foreign {
		l.read.Store(true)
	}
	return state != torn, nil
}

// Exchanged reports whether both ways have worked since the start: the bucket was read and understood, and a status acknowledged.
func (l *Link) Exchanged() (read, heard bool) { return l.read.Load(), l.report.acked() }

// jitter varies a period by an eighth each way, so that a fleet does not act in step.
func jitter(d time.Duration) time.Duration { return d - d/8 + rand.N(d/4+1) }

func timer(d time.Duration) *time.Timer { return time.NewTimer(jitter(d)) }

// drain empties a channel without waiting.
func drain[T any](c <-chan T) (n int) {
	for {
		select {
		case <-c:
			n++
		default:
			return n
		}
	}
}
