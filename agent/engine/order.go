package engine

import (
	"fmt"
	"slices"

	"shoal/desired"
)

// users says who uses what on this host now, for the order of removals. It is made anew when items have moved.
type users struct {
	of map[desired.Ref][]*item
	// unknown are the items of which nobody knows what they use: anything of a lower stage.
	unknown []*item
}

// findUsers collects the items that may use others which they don't need any more, or which are to be removed themselves.
func (e *Engine) findUsers() *users {
	u := &users{of: map[desired.Ref][]*item{}}
	for _, it := range e.items {
		switch { // only what is here uses anything
		case it.driver == nil, it.known && it.have == nil && !it.stale && it.job == nil:
			continue
		case it.doc != nil && it.isReady():
			continue // uses what it needs, and that is wanted
		case it.doc != nil && it.ready:
			continue // changed by others, but not in what it needs
		}
		if !it.usesKnown {
			u.unknown = append(u.unknown, it)
		}
		for _, ref := range it.uses {
			u.of[ref] = append(u.of[ref], it)
		}
	}
	// In order, so that the same one is named every time.
	byRef := func(a, b *item) int { return a.ref.Compare(b.ref) }
	slices.SortFunc(u.unknown, byRef)
	for _, items := range u.of {
		slices.SortFunc(items, byRef)
	}
	return u
}

// willUse takes note that an item is about to be ensured: from now on it may use what it needs, and still what it used.
func (it *item) willUse() {
	if it.known && it.have == nil && !it.stale {
		it.uses, it.usesKnown = nil, true
	}
	for _, need := range it.doc.Needs {
		if !slices.Contains(it.uses, need) {
			it.uses = append(slices.Clip(it.uses), need)
		}
	}
}

// inUse is the fault of an unwanted item that can't be removed yet, because something that is here uses it.
func (e *Engine) inUse(it *item) *desired.Fault {
	if e.users == nil {
		e.users = e.findUsers()
	}
	for _, user := range e.users.of[it.ref] {
		if user != it && !e.letsGo(user, it) {
			return &desired.Fault{Code: desired.CodeWaiting, Ref: &user.ref, Message: fmt.Sprintf("%s still uses it", user.ref)}
		}
	}
	for _, user := range e.users.unknown {
		// After a restart nobody knows whether a wanted item that fails has ever used this.
		if user.driver.stage > it.driver.stage && (user.doc == nil || !e.root(user).fails()) {
			return &desired.Fault{Code: desired.CodeWaiting, Ref: &user.ref, Message: fmt.Sprintf("%s may still use it", user.ref)}
		}
	}
	for _, d := range e.order {
		if d.stage > it.driver.stage && !d.observed {
			return &desired.Fault{Code: desired.CodeWaiting, Message: fmt.Sprintf("items of kind %s, not observed yet, may use it", d.name)}
		}
	}
	return nil
}

// letsGo says that an item has to be removed although user has not let go of it: user waits for an item of its kind which
// fails, perhaps because this one is in its place.
func (e *Engine) letsGo(user, it *item) bool {
	if user.doc == nil {
		return false
	}
	root := e.root(user)
	return root != user && root.fails() && root.ref.Kind == it.ref.Kind
}

// root is the item at the end of the chain of waiting that starts at it.
func (e *Engine) root(it *item) *item {
	for range len(e.items) { // a chain can be a ring
		if !it.shown || it.status.Phase != desired.PhaseWaiting || it.status.Fault == nil || it.status.Fault.Ref == nil {
			return it
		}
		next := e.items[*it.status.Fault.Ref]
		if next == nil || next.doc == nil {
			return it
		}
		it = next
	}
	return it
}
