package history

import (
	"context"
	"slices"

	"shoal/controller/journal"
	"shoal/controller/plan"
	"shoal/controller/resource"
)

// maxLater is how many later changes of a resource are looked at: the newest ones.
const maxLater = 200

// Undoing is what a request did, and what became of that since, for plan.Undo.
func (h *History) Undoing(ctx context.Context, request string) ([]plan.Undoing, error) {
	c, e, before, err := h.call(ctx, request, Changed, nil, nil)
	if resource.HasCode(err, resource.CodeNotFound) {
		if other, otherErr := h.Call(ctx, request, nil, nil); otherErr == nil {
			return nil, resource.Conflict("request", "request %s changed nothing: it was %s", request, other.Outcome)
		}
	}
	if err != nil {
		return nil, err
	}
	var out []plan.Undoing
	for _, ch := range e.Changes {
		u := plan.Undoing{Kind: ch.Kind, ID: ch.ID}
		last := before.raw(ch.Kind, ch.ID)
		if last != nil {
			if u.Before, err = resource.Decode(ch.Kind, last); err != nil {
				return nil, err
			}
		}
		if ch.Value != nil {
			if u.After, err = resource.Decode(ch.Kind, ch.Value); err != nil {
				return nil, err
			}
		}
		if u.Before == nil && u.After == nil {
			continue
		}
		last = ch.Value
		places, _, err := h.search(ctx, &Filter{Kind: ch.Kind, Resource: ch.ID, After: &Place{c.Seq, c.Sub}, Outcome: Changed, Limit: maxLater})
		if err != nil {
			return nil, err
		}
		slices.Reverse(places) // search gives the newest, and those first
		entries := make([]journal.Entry, len(places))
		if err := h.entries(ctx, places, func(i int, _ journal.Message, e journal.Entry) { entries[i] = e }); err != nil {
			return nil, err
		}
		for _, e := range entries {
			for _, later := range e.Changes {
				if later.Kind != ch.Kind || later.ID != ch.ID {
					continue
				}
				l := plan.LaterChange{Request: e.Request.ID, Caller: e.Request.Caller, Op: e.Request.Op}
				for _, f := range Diff(last, later.Value, bookkeeping) {
					l.Fields = append(l.Fields, topLevel(f.Field))
				}
				l.Fields = slices.Compact(l.Fields)
				u.Later = append(u.Later, l)
				last = later.Value
			}
		}
		out = append(out, u)
	}
	return out, nil
}

func topLevel(field string) string {
	for i, c := range field {
		if c == '.' {
			return field[:i]
		}
	}
	return field
}
