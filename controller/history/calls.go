package history

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
)

// Call is an entry of the journal as people see it.
type Call struct {
	// ID is the request's.
	ID  string `json:"id"`
	Seq uint64 `json:"seq"`
	// Sub is the place in the message.
	Sub    int       `json:"sub"`
	At     time.Time `json:"at"`
	Caller string    `json:"caller"`
	// Account is the caller's.
	Account string `json:"account,omitempty"`
	From    string `json:"from,omitempty"`
	Op      string `json:"op"`
	// On is what was changed.
	On      []Touched `json:"on,omitempty"`
	Outcome Outcome   `json:"outcome"`
	// Error says why it was refused.
	Error string `json:"error,omitempty"`
	// TookMS is from when the controller got the call until it was durable, or refused, in milliseconds; 0 where it is not known.
	TookMS float64 `json:"took_ms,omitempty"`
	// More is how many calls like this one came too fast to be recorded one by one.
	More   uint64          `json:"more,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	// Reply is what the caller was told, without secrets; only where one call is asked for.
	Reply json.RawMessage `json:"reply,omitempty"`
}

// Touched is a resource that a call changed.
type Touched struct {
	Kind   resource.Kind `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Change Change        `json:"change"`
	// Fields are what differs; only where one call is asked for.
	Fields []Field `json:"fields,omitempty"`
}

// Change is what became of a resource or of an item.
type Change string

// The changes.
const (
	Created  Change = "created"
	Modified Change = "modified"
	Deleted  Change = "deleted"
)

// Sees decides who may see a call; nil lets everybody see everything. Where it goes by accounts, Filter.Accounts is quicker.
type Sees func(Call) bool

// Show gives a version of a resource as somebody may see it: without secrets, and without what is not theirs; nil for what they don't
// see at all.
type Show func(kind resource.Kind, id string, value json.RawMessage) json.RawMessage

// redact is what everybody sees: it has no secrets.
func redact(kind resource.Kind, _ string, value json.RawMessage) json.RawMessage {
	r, err := resource.Decode(kind, value)
	if err != nil {
		return nil
	}
	s, ok := r.(resource.Secretive)
	if !ok {
		return value
	}
	b, err := desired.Canonical(s.Redacted())
	if err != nil {
		return nil
	}
	return b
}

// shown is a value as somebody may see it.
func (s Show) shown(kind resource.Kind, id string, value json.RawMessage) json.RawMessage {
	switch {
	case value == nil:
		return nil
	case s == nil:
		return redact(kind, id, value)
	default:
		return s(kind, id, value)
	}
}

// Calls are the entries that a filter selects.
type Calls struct {
	Items []Call
	// Total is how many there are in all; -1 where that is not known, because not everybody may see all.
	Total int
	// Next continues behind the last one; nil at the end.
	Next *Place
}

// batch is how many entries are fetched at once where some of them may be hidden.
const batch = 256

// Calls finds entries of the journal. Limit must be set.
func (h *History) Calls(ctx context.Context, f Filter, sees Sees) (Calls, error) {
	if err := h.await(ctx, h.cfg.Store.Seq()); err != nil {
		return Calls{}, err
	}
	out := Calls{Items: []Call{}, Total: -1}
	want := f.Limit
	if sees != nil {
		f.Limit = max(want, batch)
	}
	skip := 0
	if sees != nil {
		skip, f.Offset = f.Offset, 0
	}
	for {
		places, total, err := h.search(ctx, &f)
		if err != nil {
			return Calls{}, err
		}
		calls, err := h.fetch(ctx, places)
		if err != nil {
			return Calls{}, err
		}
		for _, c := range calls {
			place := Place{c.Seq, c.Sub}
			if f.Oldest {
				f.After = &place
			} else {
				f.Before = &place
			}
			switch {
			case f.Request != "" && c.ID != f.Request: // another one with the same hash
			case sees != nil && !sees(c):
			case skip > 0:
				skip--
			default:
				out.Items = append(out.Items, c)
			}
			if len(out.Items) == want {
				out.Next = &place
				break
			}
		}
		if sees == nil {
			out.Total = total
		}
		if len(out.Items) == want || len(places) < f.Limit || sees == nil {
			break
		}
	}
	if sees == nil && out.Total >= 0 && f.Offset+len(out.Items) >= out.Total {
		out.Next = nil
	}
	return out, nil
}

// fetch reads entries from the journal, each message once, several at once.
func (h *History) fetch(ctx context.Context, places []Place) ([]Call, error) {
	out := make([]Call, len(places))
	err := h.entries(ctx, places, func(i int, m journal.Message, e journal.Entry) {
		out[i] = callOf(m, places[i].Sub, e)
	})
	return out, err
}

// fetchers is how many messages are read at once.
const fetchers = 8

// entries calls fn for each of some places, which are all different, with its message, of which the group is missing, and its entry.
func (h *History) entries(ctx context.Context, places []Place, fn func(i int, m journal.Message, e journal.Entry)) error {
	bySeq := map[uint64][]int{}
	for i, p := range places {
		bySeq[p.Seq] = append(bySeq[p.Seq], i)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	var mu sync.Mutex
	for seq, list := range bySeq {
		group.Go(func() error {
			slices.SortFunc(list, func(a, b int) int { return cmp.Compare(places[a].Sub, places[b].Sub) })
			numbers := make([]int, len(list))
			for n, i := range list {
				numbers[n] = places[i].Sub
			}
			m, entries, err := h.cfg.Journal.Pick(ctx, seq, numbers)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for n, i := range list {
				fn(i, m, entries[n])
			}
			return nil
		})
	}
	return group.Wait()
}

func callOf(m journal.Message, sub int, e journal.Entry) Call {
	c := Call{
		ID: e.Request.ID, Seq: m.Seq, Sub: sub, At: e.At, Caller: e.Request.Caller, Account: e.Request.Account, From: e.Request.From, Op: e.Request.Op,
		Outcome: outcomeOf(len(e.Changes), e.Error), Error: e.Error, More: e.More, Params: e.Request.Params,
	}
	for _, ch := range e.Changes {
		c.On = append(c.On, touched(ch))
	}
	if end := e.At; !e.Request.Started.IsZero() {
		if !e.IsNote() {
			end = m.At
		}
		c.TookMS = max(0, float64(end.Sub(e.Request.Started).Microseconds())/1000)
	}
	return c
}

// meta is what is read of every version of a resource.
type meta struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

func touched(c journal.Change) Touched {
	t := Touched{Kind: c.Kind, ID: c.ID, Change: Deleted}
	if c.Value == nil {
		return t
	}
	var m meta
	if json.Unmarshal(c.Value, &m) == nil {
		t.Name = m.Name
	}
	t.Change = Modified
	if m.Created.Equal(m.Updated) {
		t.Change = Created
	}
	return t
}

// Call is one request with the fields that it changed. Where a request id was refused at first and accepted later, the newest
// call is given.
func (h *History) Call(ctx context.Context, request string, sees Sees, show Show) (Call, error) {
	c, _, _, err := h.call(ctx, request, "", sees, show)
	return c, err
}

// Find gives the newest entry of a request that changed something, otherwise its newest; journal.ErrNoRequest where there is none.
func (h *History) Find(ctx context.Context, request string) (journal.Found, error) {
	for _, outcome := range []Outcome{Changed, ""} {
		found, err := h.Calls(ctx, Filter{Request: request, Outcome: outcome, Limit: 1}, nil)
		if err != nil {
			return journal.Found{}, err
		}
		if len(found.Items) == 0 {
			continue
		}
		c := found.Items[0]
		m, entries, err := h.cfg.Journal.Pick(ctx, c.Seq, []int{c.Sub})
		if err != nil {
			return journal.Found{}, err
		}
		return journal.Found{Entry: entries[0], Seq: c.Seq, Stored: m.At}, nil
	}
	return journal.Found{}, fmt.Errorf("look for request %s: %w", request, journal.ErrNoRequest)
}

// call finds a request with its entry, and the state before it.
func (h *History) call(ctx context.Context, request string, outcome Outcome, sees Sees, show Show) (Call, journal.Entry, *state, error) {
	found, err := h.Calls(ctx, Filter{Request: request, Outcome: outcome, Limit: 1}, sees)
	if err != nil {
		return Call{}, journal.Entry{}, nil, err
	}
	if len(found.Items) == 0 {
		return Call{}, journal.Entry{}, nil, &resource.Error{
			Code: resource.CodeNotFound, Field: "request", Message: fmt.Sprintf("the journal has no request %q", request), Remedy: "see shoalctl audit list",
		}
	}
	c := found.Items[0]
	m, err := h.cfg.Journal.Get(ctx, c.Seq)
	if err != nil {
		return Call{}, journal.Entry{}, nil, err
	}
	e := m.Group.Entries[c.Sub]
	c.Reply = e.Reply
	if e.IsNote() {
		return c, e, newState(), nil
	}
	c.Reply = whole(e, show)
	before, err := h.beforeEntry(ctx, m, c.Sub)
	if err != nil {
		return Call{}, journal.Entry{}, nil, err
	}
	for i, ch := range e.Changes {
		old, now := show.shown(ch.Kind, ch.ID, before.raw(ch.Kind, ch.ID)), show.shown(ch.Kind, ch.ID, ch.Value)
		if c.On[i].Name == "" {
			var m meta
			if json.Unmarshal(old, &m) == nil {
				c.On[i].Name = m.Name
			}
		}
		c.On[i].Fields = Diff(old, now, bookkeeping)
	}
	return c, e, before, nil
}

// whole is the reply to a call with the resources that it was about, which the journal has among the changes.
func whole(e journal.Entry, show Show) json.RawMessage {
	var reply map[string]json.RawMessage
	if json.Unmarshal(e.Reply, &reply) != nil {
		return e.Reply
	}
	var ref struct {
		Kind resource.Kind `json:"kind"`
		ID   string        `json:"id"`
	}
	value := func(raw json.RawMessage) json.RawMessage {
		if json.Unmarshal(raw, &ref) != nil {
			return raw
		}
		for _, ch := range e.Changes {
			if ch.Kind == ref.Kind && ch.ID == ref.ID {
				if v := show.shown(ch.Kind, ch.ID, ch.Value); v != nil {
					return v
				}
			}
		}
		return raw
	}
	if one := reply["resource"]; one != nil {
		reply["resource"] = value(one)
	}
	var list []json.RawMessage
	if json.Unmarshal(reply["resources"], &list) == nil && len(list) > 0 {
		for i := range list {
			list[i] = value(list[i])
		}
		b, err := desired.Canonical(list)
		if err != nil {
			return e.Reply
		}
		reply["resources"] = b
	}
	b, err := desired.Canonical(reply)
	if err != nil {
		return e.Reply
	}
	return b
}

// beforeEntry is the state before one entry of a message.
func (h *History) beforeEntry(ctx context.Context, m journal.Message, sub int) (*state, error) {
	s, _, err := h.stateBefore(ctx, m.Seq, time.Time{})
	if err != nil || sub == 0 {
		return s, err
	}
	s = s.copy()
	s.apply(m.Group.Entries[:sub])
	return s, nil
}

func (s *state) raw(kind resource.Kind, id string) json.RawMessage {
	if v := s.kinds[kind][id]; v != nil {
		return v.raw
	}
	return nil
}

// Version is one version of a resource.
type Version struct {
	Seq     uint64        `json:"seq"`
	At      time.Time     `json:"at"`
	Kind    resource.Kind `json:"kind"`
	ID      string        `json:"id"`
	Name    string        `json:"name,omitempty"`
	Change  Change        `json:"change"`
	Caller  string        `json:"caller"`
	Op      string        `json:"op"`
	Request string        `json:"request"`
	// Fields are what differs from the version before; of the first one they are all.
	Fields []Field `json:"fields"`
	// Value is the whole resource; missing where it was deleted.
	Value json.RawMessage `json:"value,omitempty"`
}

// Versions are the versions of a resource, the newest first, that a filter selects; the resource is named by an id, or by a
// name that it had at any time. Next continues behind the last one.
func (h *History) Versions(ctx context.Context, f Filter, show Show) ([]Version, *Place, error) {
	if err := h.await(ctx, h.cfg.Store.Seq()); err != nil {
		return nil, nil, err
	}
	p := h.now()
	ids, err := p.named(ctx, f.Kind, f.Resource)
	if err != nil {
		return nil, nil, h.damaged(err)
	}
	want := f.Limit
	// One more: what the last one is compared with.
	f.Limit, f.Outcome, f.Oldest = want+1, Changed, false
	kept, err := h.kept(ctx, &f)
	if err != nil {
		return nil, nil, err
	}
	places, _, err := p.search(ctx, kept, ids)
	if err != nil {
		return nil, nil, h.damaged(err)
	}
	type entry struct {
		m journal.Message
		e journal.Entry
	}
	entries := make([]entry, len(places))
	if err := h.entries(ctx, places, func(i int, m journal.Message, e journal.Entry) { entries[i] = entry{m, e} }); err != nil {
		return nil, nil, err
	}
	var out []Version
	last := map[string]Version{}
	for i, x := range slices.Backward(entries) {
		call := callOf(x.m, places[i].Sub, x.e)
		for _, ch := range x.e.Changes {
			if _, ok := ids[hash(ch.ID)]; !ok || ch.Kind != f.Kind {
				continue
			}
			t := touched(ch)
			v := Version{
				Seq: x.m.Seq, At: x.e.At, Kind: ch.Kind, ID: ch.ID, Name: t.Name, Change: t.Change, Caller: call.Caller, Op: call.Op, Request: call.ID,
				Value: show.shown(ch.Kind, ch.ID, ch.Value),
			}
			before, known := last[ch.ID]
			if v.Name == "" {
				v.Name = before.Name
			}
			if known || t.Change == Created {
				v.Fields = Diff(before.Value, v.Value, bookkeeping)
			}
			last[ch.ID] = v
			// The end of what somebody did not see is not theirs either.
			hidden := v.Value == nil && (ch.Value != nil || show != nil && before.Value == nil)
			if hidden {
				last[ch.ID] = Version{}
			}
			if i < want && !hidden {
				out = append(out, v)
			}
		}
	}
	slices.Reverse(out)
	if len(places) > want {
		return out, &places[want-1], nil
	}
	return out, nil, nil
}
