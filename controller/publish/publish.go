package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

// Store is what the publisher needs of the store.
type Store interface {
	View() resource.Reader
	Changes(ctx context.Context, from uint64, fn func(store.Committed) error) error
	SetPublished(host string, gen uint64, items map[desired.Ref]resource.PublishedItem)
	SetPublishedSeq(seq uint64)
}

// RenderFunc makes documents of hosts from one view.
type RenderFunc func(host string) ([]desired.Item, plan.HeadBits, error)

// Config is what a publisher needs.
type Config struct {
	Store Store
	Conn  *nats.Conn
	// Stream is the configuration of a host's bucket.
	Stream func(host string) jetstream.StreamConfig
	// Touch commits a transaction that changes nothing but the sequence of a host: a document that must be told anew needs a
	// generation of its own.
	Touch func(ctx context.Context, host string) error
	// Renderer and Affected are plan's, where nil.
	Renderer func(r resource.Reader) RenderFunc
	Affected func(old, changed resource.Resource, before, after resource.Reader) (hosts map[string]struct{}, all bool)
	// CheckEvery is how often buckets are compared with what was written; 0 for a minute.
	CheckEvery time.Duration
	Log        zerolog.Logger
}

// parallel is how many hosts are written for at once.
const parallel = 32

// Publisher writes documents.
type Publisher struct {
	cfg   Config
	js    jetstream.JetStream
	log   zerolog.Logger
	slots chan struct{}
	work  sync.WaitGroup

	mu      sync.Mutex
	writers map[string]*writer
	// seen is the sequence up to which all that is to be written has been given to writers; late are the hosts for which
	// something is still to be written, with the first sequence that is missing.
	seen uint64
	late map[string]uint64
	// moved wakes the goroutine that works out the sequence up to which everything is written.
	moved chan struct{}
}

// New makes a publisher.
func New(cfg Config) (*Publisher, error) {
	if cfg.Store == nil || cfg.Conn == nil || cfg.Stream == nil {
		return nil, errors.New("make publisher: Store, Conn and Stream must be set")
	}
	if cfg.Renderer == nil {
		cfg.Renderer = func(r resource.Reader) RenderFunc { return plan.NewRenderer(r).Render }
	}
	if cfg.Affected == nil {
		cfg.Affected = plan.Affected
	}
	if cfg.CheckEvery <= 0 {
		cfg.CheckEvery = time.Minute
	}
	js, err := jetstream.New(cfg.Conn, jetstream.WithPublishAsyncTimeout(writeTimeout), jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return nil, fmt.Errorf("make publisher: %w", err)
	}
	return &Publisher{
		cfg: cfg, js: js, log: cfg.Log, slots: make(chan struct{}, parallel), writers: map[string]*writer{}, late: map[string]uint64{},
		moved: make(chan struct{}, 1),
	}, nil
}

// Run publishes until ctx ends. It can be called once.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.work.Wait()
	p.work.Go(func() { p.advance(ctx) })
	p.work.Go(func() { p.check(ctx) })
	for {
		view := p.cfg.Store.View()
		p.dropOrphans(ctx, view)
		p.all(ctx, view, "")
		err := p.cfg.Store.Changes(ctx, view.Seq(), func(c store.Committed) error {
			p.committed(ctx, c)
			return nil
		})
		if !errors.Is(err, store.ErrGone) {
			return err
		}
	}
}

// all renders for every host.
func (p *Publisher) all(ctx context.Context, view resource.Reader, request string) {
	render := p.cfg.Renderer(view)
	for h := range resource.All[*resource.Host](view) {
		if h.Hold == nil {
			p.render(ctx, render, h.ID, view.Seq(), request)
		}
	}
	p.saw(view.Seq())
}

// committed renders for the hosts that a commit may have changed anything for.
func (p *Publisher) committed(ctx context.Context, c store.Committed) {
	hosts := map[string]string{} // to the last request that concerned it
	gone := map[string]bool{}
	for _, e := range c.Entries {
		for _, change := range e.Changes {
			if change.Kind == resource.KindHost {
				gone[change.ID] = change.New == nil
			}
			affected, all := p.cfg.Affected(change.Old, change.New, c.Before, c.After)
			if all {
				p.all(ctx, c.After, e.Request.ID)
				continue
			}
			for host := range affected {
				hosts[host] = e.Request.ID
			}
		}
	}
	render := p.cfg.Renderer(c.After)
	for host, request := range hosts {
		if h, ok := resource.Find[*resource.Host](c.After, host); ok && h.Hold == nil {
			p.render(ctx, render, host, c.Seq, request)
		}
	}
	for host, is := range gone {
		if is {
			p.post(ctx, host, rendered{seq: c.Seq, first: c.Seq, removed: true})
		}
	}
	p.saw(c.Seq)
}

func (p *Publisher) render(ctx context.Context, render RenderFunc, host string, seq uint64, request string) {
	items, bits, err := render(host)
	if err != nil {
		// A document that can't be rendered is a mistake in the program. The host keeps what it has.
		p.log.Error().Err(err).Str("host", host).Uint64("seq", seq).Msg("document can't be rendered")
		return
	}
	p.post(ctx, host, rendered{seq: seq, first: seq, items: items, bits: bits, request: request})
}

// rendered is a document to be written.
type rendered struct {
	// seq is the snapshot's, first the oldest one's that it stands for.
	seq, first uint64
	items      []desired.Item
	bits       plan.HeadBits
	// request is the last one that concerned the host.
	request string
	// removed says that the host is no more; reload that its bucket is to be read anew first.
	removed, reload bool
}

// post gives a document to the host's writer; it replaces one that waits.
func (p *Publisher) post(ctx context.Context, host string, r rendered) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.writers[host]
	if w == nil {
		w = &writer{p: p, host: host, log: p.log.With().Str("host", host).Logger()}
		p.writers[host] = w
	}
	if w.next != nil {
		r.first = w.next.first
		r.reload = r.reload || w.next.reload
		if r.request == "" {
			r.request = w.next.request
		}
	}
	w.next = &r
	if _, ok := p.late[host]; !ok {
		p.late[host] = r.first
	}
	if !w.busy {
		w.busy = true
		p.work.Go(func() {
			select {
			case p.slots <- struct{}{}:
				defer func() { <-p.slots }()
				w.run(ctx)
			case <-ctx.Done():
			}
		})
	}
}

// pause waits before another attempt, and lets other writers go on meanwhile: hosts that can't be written must not hold up the rest.
// It is false when ctx has ended; the slot is held again either way.
func (p *Publisher) pause(ctx context.Context, wait time.Duration) bool {
	<-p.slots
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	p.slots <- struct{}{}
	return ctx.Err() == nil
}

// take is the document that a writer has to write next; ok is false when there is none, and the writer ends.
func (p *Publisher) take(w *writer) (r rendered, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok = w.pop()
	w.busy = ok
	return r, ok
}

// newer is a document that came while the writer could not write an older one.
func (p *Publisher) newer(w *writer) (r rendered, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return w.pop()
}

// afresh renders a host's document as it is wanted now; it is r where that can't be.
func (p *Publisher) afresh(host string, r rendered) rendered {
	view := p.cfg.Store.View()
	if r.removed || view.Seq() <= r.seq || view.Get(resource.KindHost, host) == nil {
		return r
	}
	items, bits, err := p.cfg.Renderer(view)(host)
	if err != nil {
		return r // told when it was rendered for the change
	}
	r.seq, r.items, r.bits = view.Seq(), items, bits
	return r
}

// wrote says that everything up to r is in the host's bucket, or that the others must not wait for it any longer.
func (p *Publisher) wrote(w *writer) {
	p.mu.Lock()
	if w.next == nil {
		delete(p.late, w.host)
	} else {
		p.late[w.host] = w.next.first
	}
	p.mu.Unlock()
	p.move()
}

func (p *Publisher) saw(seq uint64) {
	p.mu.Lock()
	p.seen = max(p.seen, seq)
	p.mu.Unlock()
	p.move()
}

func (p *Publisher) move() {
	select {
	case p.moved <- struct{}{}:
	default:
	}
}

// advance tells the store up to which sequence everything is written.
func (p *Publisher) advance(ctx context.Context) {
	var told uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.moved:
		}
		p.mu.Lock()
		seq, many := p.seen, len(p.late) > 256
		for _, first := range p.late {
			seq = min(seq, first-1)
		}
		p.mu.Unlock()
		if seq > told {
			told = seq
			p.cfg.Store.SetPublishedSeq(seq)
		}
		if many {
			// Looking through thousands of hosts for each one that is done would be quadratic.
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// check compares every bucket with what was written, now and then and after each reconnection: a server may have lost what it
// acknowledged, and a bucket may have been deleted.
func (p *Publisher) check(ctx context.Context) {
	reconnected := p.cfg.Conn.StatusChanged(nats.CONNECTED)
	defer p.cfg.Conn.RemoveStatusListener(reconnected)
	timer := time.NewTicker(p.cfg.CheckEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-reconnected:
		}
		p.mu.Lock()
		type head struct {
			hash string
			gen  uint64
		}
		heads := make(map[string]head, len(p.writers))
		for host, w := range p.writers {
			if !w.busy && w.known {
				heads[host] = head{w.headHash, w.headGen}
			}
		}
		p.mu.Unlock()
		var lost []string
		observed := p.cfg.Store.View().Observed()
		var mu sync.Mutex
		var looks errgroup.Group
		looks.SetLimit(parallel)
		for host, h := range heads {
			looks.Go(func() error {
				got, err := p.headHash(ctx, host)
				// One that gives no answer is written, too: the writer finds out what is wrong with it.
				silent := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders)
				if err == nil && (got != h.hash || outrun(observed.Host(host).Facts, h.gen)) || silent {
					mu.Lock()
					lost = append(lost, host)
					mu.Unlock()
				}
				return nil
			})
		}
		_ = looks.Wait()
		if ctx.Err() != nil {
			return
		}
		if len(lost) == 0 {
			continue
		}
		view := p.cfg.Store.View()
		render := p.cfg.Renderer(view)
		for _, host := range lost {
			if h, ok := resource.Find[*resource.Host](view, host); !ok || h.Hold != nil {
				continue
			}
			items, bits, err := render(host)
			if err != nil {
				continue // told when it was rendered for the change
			}
			p.log.Warn().Str("host", host).Msg("bucket is not as it was written, or does not answer; written anew")
			p.post(ctx, host, rendered{seq: view.Seq(), first: view.Seq(), items: items, bits: bits, reload: true})
		}
	}
}

// dropOrphans deletes the buckets of hosts that are no more: a publisher may have died before it could. A bucket that
// is newer than the journal is kept: then it is the journal that lost the host.
func (p *Publisher) dropOrphans(ctx context.Context, view resource.Reader) {
	names := p.js.StreamNames(ctx, jetstream.WithStreamListSubject(subjects.BucketSubject("*", ">")))
	for name := range names.Name() {
		host, ok := subjects.DesiredHost(strings.TrimPrefix(name, subjects.BucketStream("")))
		// A host that is connected is no orphan, but one that the state lost: deleted ones can't connect.
		if !ok || view.Get(resource.KindHost, host) != nil || view.Observed().Host(host).Connected {
			continue
		}
		b, err := p.readBucket(ctx, host)
		if err != nil {
			continue
		}
		if b.gen > view.Seq() {
			p.log.Error().Str("host", host).Uint64("gen", b.gen).Uint64("seq", view.Seq()).Msg("bucket of an unknown host is newer than the journal; kept")
			continue
		}
		p.post(ctx, host, rendered{seq: view.Seq(), first: view.Seq(), removed: true})
	}
}
