// Package access decides who may see and do what. It is pure: it knows resources and who asks, no connection and no clock.
//
// # What it guarantees
//
// Who asks is a [Principal], made by controller/api from what the NATS server vouches for, never from what a request says. What a
// principal sees of the database is [View]'s reader and nothing else: what belongs to the principal's account, what was
// shared with it, and what belongs to such a thing (the rules of a group, the ranges of a network). Anything else is not there: no
// error, count, name or suggestion tells it from what never was. References to what can't be seen are blanked, statuses name
// no host, and secrets are left out for everybody.
//
// Whether an operation may run is [Principal.Check]'s decision, before it runs, on the resources that the request names, all of them
// looked up by the View. The admin account may do everything. An account may use what was shared with it, and
// change only its own. A user of an account may read what the account sees, and do what policies allow: the union of
// what its own and its groups' policies allow, less what any of them denies.
//
// [Usage] and [CheckQuota] hold an account to its quotas, inside the transaction that would exceed them.
//
// # What it leaves to others
//
// Which parameters of an operation name resources, and whether it uses or changes them, is declared with the operation
// (controller/api). What a change means is decided by controller/plan, on all resources.
package access

import (
	"slices"
	"strings"

	"shoal/controller/resource"
)

// Principal is who asks.
type Principal struct {
	// ID is the token of the caller's subjects: an account's or user's id, or the name in a credentials file.
	ID string
	// Name is how people know it: "acme" or "acme/ann".
	Name string
	// Account is the account's id, User the user's; empty where the account itself asks.
	Account, User string
	// Session is the session's id; empty for a credentials file that was made beside the keys.
	Session string
	// From is the address that the request came from.
	From string
	// Admin may do everything; ReadOnly may read everything and change nothing.
	Admin, ReadOnly bool
}

// Everything reports whether nothing is hidden from the principal.
func (p Principal) Everything() bool { return p.Admin || p.ReadOnly }

// Target is a resource that a request names.
type Target struct {
	// Field is the parameter that names it.
	Field    string
	Resource resource.Resource
	// Use says that the operation uses it and does not change it.
	Use bool
	// Main says that the operation is about it.
	Main bool
}

// Action is what a request wants to do.
type Action struct {
	Kind resource.Kind
	Verb string
	// Read changes nothing.
	Read bool
	// Admin is for the admin account only; Own is for everybody about themselves, whatever policies say.
	Admin, Own bool
}

// Name is the name of the operation, "<kind>.<verb>".
func (a Action) Name() string { return string(a.Kind) + "." + a.Verb }

// Check decides whether the principal may do it with these resources, which must have been found by the principal's View. The
// error is a *resource.Error.
func (p Principal) Check(r resource.Reader, a Action, targets []Target) error {
	switch {
	case p.Admin:
		return nil
	case p.ReadOnly && a.Read:
		return nil
	case p.ReadOnly:
		return forbidden("%s changes something, and %s may only read", a.Name(), p.Name).WithRemedy("use the credentials of somebody who may")
	case a.Admin:
		return forbidden("%s is for the admin account", a.Name()).WithRemedy("ask an administrator of the installation")
	}
	if !a.Read {
		for _, t := range targets {
			if !t.Use && !owns(p, t.Resource) {
				e := forbidden("%s %s is shared with you: you may use it, not change it", t.Resource.Kind(), t.Resource.Base().Name)
				e.Field = t.Field
				return e.WithRemedy("ask its owner")
			}
		}
	}
	if p.User == "" || a.Own && p.isSelf(targets) {
		return nil
	}
	return p.consult(r, a, targets)
}

// isSelf reports whether a request is about the principal itself, or about nothing else.
func (p Principal) isSelf(targets []Target) bool {
	return !slices.ContainsFunc(targets, func(t Target) bool { id := t.Resource.Base().ID; return id != p.ID && id != p.Session })
}

// consult asks the policies of a user.
func (p Principal) consult(r resource.Reader, a Action, targets []Target) error {
	rules := statements(r, p.User)
	var main resource.Resource
	for _, t := range targets {
		if decide(rules, a.Name(), t.Resource) == denied {
			return forbidden("a policy denies %s on %s %s to %s", a.Name(), t.Resource.Kind(), t.Resource.Base().Name, p.Name).WithRemedy("ask %s's administrator", accountName(r, p.Account))
		}
		if t.Main {
			main = t.Resource
		}
	}
	switch d := decide(rules, a.Name(), main); {
	case d == denied:
		return forbidden("a policy denies %s to %s", a.Name(), p.Name).WithRemedy("ask %s's administrator", accountName(r, p.Account))
	case d == allowed || a.Read:
		return nil
	}
	return forbidden("no policy allows %s to %s", a.Name(), p.Name).
		WithRemedy("whoever administers account %s can give you a policy that does: shoalctl policy create … --statement allow,%s", accountName(r, p.Account), a.Name())
}

func accountName(r resource.Reader, id string) string {
	if a, ok := resource.Find[*resource.Account](r, id); ok {
		return a.Name
	}
	return id
}

func forbidden(format string, args ...any) *resource.Error {
	e := resource.Invalid("", format, args...)
	e.Code = resource.CodeForbidden
	return e
}

// verdict is what policies say.
type verdict int

const (
	silent verdict = iota
	allowed
	denied
)

// statements are those of a user's own policies and of its groups'.
func statements(r resource.Reader, user string) []resource.Statement {
	u, ok := resource.Find[*resource.User](r, user)
	if !ok {
		return nil
	}
	ids := slices.Clone(u.PolicyIDs)
	for _, id := range u.GroupIDs {
		if g, ok := resource.Find[*resource.Group](r, id); ok {
			ids = append(ids, g.PolicyIDs...)
		}
	}
	var out []resource.Statement
	for _, id := range ids {
		if pol, ok := resource.Find[*resource.Policy](r, id); ok {
			out = append(out, pol.Statements...)
		}
	}
	return out
}

// decide is what statements say of an action on a resource; nil stands for none, of which only statements speak that
// are about any.
func decide(rules []resource.Statement, action string, res resource.Resource) verdict {
	out := silent
	for _, s := range rules {
		if !slices.ContainsFunc(s.Actions, func(p string) bool { return match(p, action) }) || !about(s, res) {
			continue
		}
		if s.Effect == resource.Deny {
			return denied
		}
		out = allowed
	}
	return out
}

func about(s resource.Statement, res resource.Resource) bool {
	if len(s.Resources) == 0 && len(s.Tags) == 0 {
		return true
	}
	if res == nil {
		return false
	}
	b := res.Base()
	return slices.Contains(s.Resources, b.ID) || slices.ContainsFunc(s.Tags, func(t string) bool { return slices.Contains(b.Tags, t) })
}

// match reports whether a name is as a pattern says, in which * stands for any text.
func match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, p)
		if i < 0 {
			return false
		}
		rest = rest[i+len(p):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
