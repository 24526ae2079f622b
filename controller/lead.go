package controller

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"shoal/controller/api"
	"shoal/controller/identity"
	"shoal/controller/journal"
	"shoal/controller/plan"
	"shoal/controller/publish"
	"shoal/controller/release"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/controller/store"
	"shoal/controller/trace"
	"shoal/desired"
)

// run follows the journal, and leads when it gets the lease.
func (c *controller) run(ctx context.Context) error {
	follower := c.follow(ctx)
	defer func() { follower.stop() }()
	return c.site.NewLease().Campaign(ctx, func(ctx context.Context) error {
		// One of following and leading at a time: both move the state of the store.
		follower.stop()
		defer func() { follower = c.follow(context.WithoutCancel(ctx)) }()
		err := c.lead(ctx)
		if errors.Is(err, journal.ErrDiverged) || errors.Is(err, journal.ErrUnknown) {
			err = errors.Join(err, c.store.Load(context.WithoutCancel(ctx)))
		}
		return err
	})
}

// follower applies what another controller commits, until it is stopped.
type follower struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (c *controller) follow(ctx context.Context) *follower {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{cancel, make(chan struct{})}
	go func() {
		defer close(f.done)
		for wait := retryMin; ctx.Err() == nil; wait = min(2*wait, retryMax) {
			err := c.store.Follow(ctx)
			if ctx.Err() != nil {
				return
			}
			c.log.Warn().Err(err).Msg("journal can't be followed")
			if errors.Is(err, journal.ErrDiverged) {
				if err := c.store.Load(ctx); err != nil && ctx.Err() == nil {
					c.log.Error().Err(err).Msg("state can't be loaded")
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}()
	return f
}

func (f *follower) stop() {
	f.cancel()
	<-f.done
}

// Bounds of the wait before the journal is followed again.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// lead does what only the leader does, until ctx or any part of it ends.
func (c *controller) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.store.Lead(ctx) })
	for !c.store.Leading() {
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-time.After(time.Millisecond):
		}
	}
	publisher, err := publish.New(publish.Config{
		Store: c.store, Conn: c.site.Conn(), Stream: site.Desired, Touch: c.touch, Log: c.log,
	})
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	asked := newBells(resource.KindBackup, resource.KindSite, resource.KindAhead)
	backups, err := c.backupService(asked[resource.KindBackup])
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	held := &aheads{store: c.store, site: c.site, roster: &c.roster, asked: asked[resource.KindAhead], log: c.log, told: map[string]told{}}
	compact := &compactor{
		store: c.store, book: c.book, keep: c.cfg.JournalKeep, maxBytes: c.cfg.JournalMaxBytes, size: c.journalSize,
		asked: asked[resource.KindSite], log: c.log, now: time.Now,
	}
	releases := release.New(release.Config{Objects: c.site.Artifacts(), View: c.store.View, Sign: c.id.SignRelease, Log: c.log})
	service := api.New(api.Config{
		Store: c.store, Conn: c.site.Conn(), ImageURLs: c.images.URLs, Record: c.calls.Record, AuditReads: c.cfg.AuditReads, Log: c.log,
		Roles: map[string]api.Role{
			c.id.SigningKey(identity.RoleAdmin): api.RoleAdmin, c.id.SigningKey(identity.RoleViewer): api.RoleViewer,
			c.id.SigningKey(identity.RoleManager): api.RoleSession, c.id.SigningKey(identity.RoleUser): api.RoleSession,
		},
		UserAccount: c.id.AccountID(identity.USR), AgentAccount: c.id.AccountID(identity.AGT), GuestAccount: c.id.AccountID(identity.ENROLL),
		SealTo: c.id.SealTo,
		Env: api.Env{
			Version: c.cfg.Version, Name: c.cfg.Name, HostJWT: c.id.IssueHost, SessionJWT: c.sessionJWT, Passwords: c.passwords,
			SessionTime: c.cfg.SessionTime, Door: c.door, ImageProgress: c.images.Progress,
			Usage: c.usage(backups), Backups: backups.List, Ahead: held.list, History: c.past, Tracer: trace.New(c.book, c.past), Releases: releases,
		},
	})
	group.Go(func() error { return c.calls.Run(ctx) })
	group.Go(func() error { return c.site.Refusals(ctx, func(r site.Refusal) { c.refusedConnection(ctx, r) }) })
	group.Go(func() error { return c.past.RecordHosts(ctx) })
	group.Go(func() error { return publisher.Run(ctx) })
	group.Go(func() error { return service.Run(ctx) })
	group.Go(func() error { return c.images.Run(ctx) })
	group.Go(func() error { return c.ringBells(ctx, asked) })
	group.Go(func() error { return backups.Run(ctx) })
	group.Go(func() error { return held.run(ctx) })
	group.Go(func() error { return releases.Run(ctx) })
	group.Go(func() error { return compact.run(ctx) })
	group.Go(func() error { return c.decide(ctx) })
	group.Go(func() error { return c.announce(ctx) })
	group.Go(func() error { return c.site.Keep(ctx) })
	group.Go(func() error { return c.revoke(ctx) })
	group.Go(func() error { return c.firstAdmin(ctx) })
	return group.Wait()
}

// commit commits a decision of the controller's own.
func (c *controller) commit(ctx context.Context, op string, fn func(tx resource.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := c.store.Commit(ctx, resource.Request{ID: uuid.NewString(), Caller: resource.CallerController, Op: op}, fn)
	return err
}

// touch gives a host a new sequence in the journal, and with it its document a new generation.
func (c *controller) touch(ctx context.Context, host string) error {
	return c.commit(ctx, "host.touch", func(tx resource.Tx) error {
		h, err := resource.Get[*resource.Host](tx, host)
		if err != nil {
			return err
		}
		return tx.Put(resource.Copy(h))
	})
}

const (
	// decideEvery is how often it is looked whether time has made something due.
	decideEvery = time.Second
	// decideGap lets reports gather: in a storm of them one look serves many.
	decideGap = 10 * time.Millisecond
)

// decide takes the decisions that follow from what hosts report and from time.
func (c *controller) decide(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	wake := make(chan struct{}, 1)
	rouse := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	group.Go(func() error {
		return c.store.ObservedChanges(ctx, func(string, desired.Ref) { rouse() })
	})
	group.Go(func() error {
		return c.changes(ctx, func(store.Committed) { rouse() })
	})
	group.Go(func() error {
		timer := time.NewTicker(decideEvery)
		defer timer.Stop()
		for {
			c.tick(ctx)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-timer.C:
			case <-wake:
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(decideGap):
				}
			}
		}
	})
	return group.Wait()
}

// tick takes what decisions are due: all in one transaction, and, if one of them can't be taken, each in one of its own, so
// that a resource which nobody foresaw holds up no other.
func (c *controller) tick(ctx context.Context) {
	if !plan.Due(c.store.View(), time.Now().UTC()) {
		return
	}
	err := c.commit(ctx, "controller.decide", func(tx resource.Tx) error {
		_, err := plan.Tick(tx)
		return err
	})
	if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrNotLeading) {
		return
	}
	c.log.Warn().Err(err).Msg("decisions are taken one by one")
	for _, ref := range plan.Pending(c.store.View(), time.Now().UTC()) {
		err := c.commit(ctx, "controller.decide", func(tx resource.Tx) error {
			_, err := plan.Follow(tx, ref.Kind, ref.ID)
			return err
		})
		if ctx.Err() != nil || errors.Is(err, store.ErrNotLeading) {
			return
		}
		if err != nil {
			c.log.Error().Err(err).Str("kind", string(ref.Kind)).Str("id", ref.ID).Msg("decision not taken")
		}
	}
}

// changes calls fn for everything that is committed from now on. What is no longer in memory is left out.
func (c *controller) changes(ctx context.Context, fn func(store.Committed)) error {
	for {
		err := c.store.Changes(ctx, c.store.View().Seq(), func(done store.Committed) error {
			fn(done)
			return nil
		})
		if !errors.Is(err, store.ErrGone) {
			return err
		}
	}
}
