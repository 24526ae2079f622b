package plantest

import (
	"encoding/json"
	"fmt"
	"time"

	"shoal/controller/resource"
)

// Site is a set of resources with a clock that stands still, numbered ids and seeded randomness.
type Site struct {
	view *View
	// Now is the time of transactions.
	Now time.Time
	ids int
	// state of splitmix64, which is enough for choices and MACs
	random uint64
	// requests counts transactions.
	requests int
	// Answered is what the newest transaction that said so told its caller.
	Answered json.RawMessage
}

// New makes an empty site.
func New(seed uint64) *Site {
	return &Site{view: newView(), Now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), random: seed}
}

// View is the site as it is now.
func (s *Site) View() *View { return s.view }

// Request is the next call of a user.
func (s *Site) Request(op string) resource.Request {
	s.requests++
	return resource.Request{ID: fmt.Sprintf("req-%d", s.requests), Caller: "ann", Op: op}
}

// Do runs a function as a user's call. An error leaves no trace.
func (s *Site) Do(op string, fn func(tx resource.Tx) error) error { return s.Commit(s.Request(op), fn) }

// Commit runs a function as one transaction. An error leaves no trace.
func (s *Site) Commit(req resource.Request, fn func(tx resource.Tx) error) error {
	_, after, err := s.DryRun(req, fn)
	if err == nil {
		s.view = after
	}
	return err
}

// DryRun runs a function and gives both views without keeping anything.
func (s *Site) DryRun(req resource.Request, fn func(tx resource.Tx) error) (before, after *View, err error) {
	tx := &tx{View: s.view.clone(), site: s, req: req}
	tx.seq++
	if err := fn(tx); err != nil {
		return nil, nil, err
	}
	return s.view, tx.View, nil
}

type tx struct {
	*View
	site *Site
	req  resource.Request
}

func (t *tx) Now() time.Time            { return t.site.Now }
func (t *tx) Request() resource.Request { return t.req }

// Answer implements resource.Tx.
func (t *tx) Answer(reply json.RawMessage) { t.site.Answered = reply }

// Uint64 is splitmix64: the same for the same seed.
func (t *tx) Uint64() uint64 {
	t.site.random += 0x9e3779b97f4a7c15
	z := t.site.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// NewID makes an id that looks like a UUID. It is scattered, so that the order of ids is not that of creation.
func (t *tx) NewID() string {
	t.site.ids++
	n := uint32(t.site.ids) * 2654435761
	return fmt.Sprintf("%08x-%04x-4000-8000-%012x", n, t.site.ids&0xffff, t.site.ids)
}

func (t *tx) Put(r resource.Resource) error {
	b := r.Base()
	if b.ID == "" {
		return resource.Invalid("id", "must be set")
	}
	if err := r.Validate(); err != nil {
		return err
	}
	for _, ref := range r.Refs() {
		if ref.Mode != resource.Weak && t.Get(ref.Kind, ref.ID) == nil {
			return resource.NotFound(ref.Kind, ref.ID)
		}
	}
	for _, k := range r.Unique() {
		if h, ok := t.holders[k]; ok && h.Base().ID != b.ID {
			return resource.Conflict("unique", "%s is taken", k).Because(h, "has it")
		}
	}
	b.Created = t.site.Now
	if old := t.Get(r.Kind(), b.ID); old != nil {
		if old == r {
			return fmt.Errorf("put %s %s: it is the stored resource itself", r.Kind(), b.ID)
		}
		b.Created = old.Base().Created
		t.unindex(old)
	}
	b.Updated, b.Rev, b.Cause = t.site.Now, t.seq, t.req.ID
	t.index(r)
	return nil
}

func (t *tx) Delete(kind resource.Kind, id string) error {
	r := t.Get(kind, id)
	if r == nil {
		return resource.NotFound(kind, id)
	}
	for _, k := range resource.Kinds() {
		for user := range t.Referrers(k, kind, id) {
			for _, ref := range user.Refs() {
				if ref.Kind == kind && ref.ID == id && ref.Mode != resource.Weak && user != r {
					return (&resource.Error{Code: resource.CodeInUse, Field: "id", Message: fmt.Sprintf("%s %s is in use", kind, id)}).Because(user, "names it")
				}
			}
		}
	}
	t.unindex(r)
	return nil
}
