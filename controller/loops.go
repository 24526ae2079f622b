package controller

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

const (
	// announceGap lets changes gather, so that clients are told of one resource once.
	announceGap = 50 * time.Millisecond
	// maxTaskHints is how many running tasks get a hint; who waits for another looks by itself every second.
	maxTaskHints = 256
)

// announce tells waiting clients that something changed. These are hints: they may get lost, and nobody may rely on them.
func (c *controller) announce(ctx context.Context) error {
	changed := make(chan hint, 4096)
	// A reader that can't keep up loses hints, not changes.
	note := func(h hint) {
		select {
		case changed <- h:
		default:
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return c.changes(ctx, func(done store.Committed) {
			for _, e := range done.Entries {
				for _, ch := range e.Changes {
					// A change of owner is news for both.
					for _, r := range []resource.Resource{ch.Old, ch.New} {
						if r != nil {
							note(hint{r.Base().Owner, ch.Kind, ch.ID})
						}
					}
				}
			}
		})
	})
	group.Go(func() error {
		return c.store.ObservedChanges(ctx, func(host string, ref desired.Ref) {
			if kind, id := shownIn(host, ref); kind != "" {
				if r := c.store.View().Get(kind, id); r != nil {
					note(hint{r.Base().Owner, kind, id})
				}
			}
		})
	})
	group.Go(func() error { return c.sendHints(ctx, changed) })
	return group.Wait()
}

// hint says that a resource of an account changed.
type hint struct {
	account string
	kind    resource.Kind
	id      string
}

// sendHints publishes what has gathered, each resource once. With any change running tasks may have got further.
func (c *controller) sendHints(ctx context.Context, changed <-chan hint) error {
	for {
		pending := map[hint]struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-changed:
			pending[r] = struct{}{}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(announceGap):
		}
		for more := true; more; {
			select {
			case r := <-changed:
				pending[r] = struct{}{}
			default:
				more = false
			}
		}
		n := 0
		for t := range resource.All[*resource.Task](c.store.View()) {
			if t.State == resource.TaskRunning && n < maxTaskHints {
				n++
				pending[hint{t.Owner, resource.KindTask, t.ID}] = struct{}{}
			}
		}
		for h := range pending {
			if !subjects.ValidToken(h.account) {
				continue
			}
			if err := c.site.Conn().Publish(subjects.Event(h.account, string(h.kind), h.id), nil); err != nil {
				break // the connection is away: so are those who would listen
			}
		}
	}
}

// shownIn is the resource whose status an item's shows in. Those who wait for an image are not told of a host's copy.
func shownIn(host string, ref desired.Ref) (resource.Kind, string) {
	switch ref.Kind {
	case desired.KindHost, desired.KindAgent:
		return resource.KindHost, host
	case desired.KindImage:
		return "", ""
	default:
		return resource.ItemResource(ref)
	}
}
