package access

import (
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"

	"shoal/controller/resource"
	"shoal/desired"
)

// View is what a principal sees of a reader.
func View(r resource.Reader, p Principal) resource.Reader { return Past(r, r, p) }

// Past is what a principal sees of a moment of the past: what its account owned then, and what is shared with it now. What was
// shared and recalled since is hidden again, and what somebody else owned before it was handed over stays theirs.
func Past(then, now resource.Reader, p Principal) resource.Reader {
	v := &view{full: then, now: now, p: p, everything: p.Everything()}
	if p.User != "" && !v.everything {
		v.rules = statements(now, p.User)
	}
	return v
}

// view is a reader without what its principal may not see.
type view struct {
	full resource.Reader
	// now has the shares that count.
	now        resource.Reader
	p          Principal
	everything bool
	rules      []resource.Statement // of a user
}

// Sees reports whether the principal sees a resource of the full reader.
func (v *view) sees(res resource.Resource) bool {
	if v.everything {
		return true
	}
	if !owns(v.p, res) && !v.given(res) {
		return false
	}
	return v.p.User == "" || decide(v.rules, string(res.Kind())+".get", res) != denied
}

// owns reports whether a resource belongs to the principal's account. A user has its own session only.
func owns(p Principal, res resource.Resource) bool {
	b := res.Base()
	switch x := res.(type) {
	case *resource.Account:
		return b.ID == p.Account
	case *resource.Session:
		return x.AccountID == p.Account && (p.User == "" || x.UserID == p.User)
	}
	return b.Owner == p.Account
}

// given reports whether a resource was shared with the principal's account, or belongs to one that was.
func (v *view) given(res resource.Resource) bool {
	kind, id := res.Kind(), res.Base().ID
	switch x := res.(type) {
	case *resource.IPRange:
		kind, id = resource.KindL3, x.L3ID
	case *resource.SecRule:
		kind, id = resource.KindSecGroup, x.GroupID
	case *resource.Share:
		return (x.AccountID == v.p.Account || x.AccountID == "" && v.p.Account != "") && v.now.Get(kind, id) != nil
	}
	return resource.Shareable(kind) &&
		(v.now.Holder(resource.ShareKey(kind, v.p.Account, id)) != nil || v.now.Holder(resource.ShareKey(kind, resource.EveryAccount, id)) != nil)
}

// show is a resource as the principal sees it, or nil.
func (v *view) show(res resource.Resource) resource.Resource {
	if res == nil || !v.sees(res) {
		return nil
	}
	if s, ok := res.(resource.Secretive); ok {
		res = s.Redacted()
	}
	if v.everything {
		return res
	}
	return v.blank(res)
}

// blank takes references out that lead to what the principal does not see.
func (v *view) blank(res resource.Resource) resource.Resource {
	copied := false
	for _, ref := range res.Refs() {
		target := v.full.Get(ref.Kind, ref.ID)
		if target == nil || v.sees(target) {
			continue
		}
		if !copied {
			res, copied = res.Clone(), true
		}
		clearRef(res, ref)
	}
	if t, ok := res.(*resource.Task); ok && t.Error != nil {
		t = resource.Copy(t)
		t.Error = hideReasons(t.Error, func(resource.Reason) bool { return false })
		res = t
	}
	if img, ok := res.(*resource.Image); ok && len(img.Servers) > 0 {
		img = resource.Copy(img)
		img.Servers = nil
		res = img
	}
	if vol, ok := res.(*resource.Volume); ok && vol.Path != "" {
		vol = resource.Copy(vol)
		vol.Path = "" // where on a storage of somebody else's
		res = vol
	}
	return res
}

// clearRef blanks the field that holds a reference, or takes it out of the list there.
func clearRef(res resource.Resource, ref resource.Ref) {
	val := reflect.ValueOf(res).Elem()
	index, ok := fieldsOf(val.Type())[ref.Field]
	if !ok {
		return
	}
	f := val.FieldByIndex(index)
	switch list := f.Interface().(type) {
	case []string:
		f.Set(reflect.ValueOf(slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == ref.ID })))
	default:
		f.SetZero()
	}
}

// fieldIndexes are the fields of the types of resources by their JSON names.
var fieldIndexes sync.Map // reflect.Type -> map[string][]int

func fieldsOf(t reflect.Type) map[string][]int {
	if m, ok := fieldIndexes.Load(t); ok {
		return m.(map[string][]int)
	}
	m := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && !f.Anonymous {
			m[name] = f.Index
		}
	}
	fieldIndexes.Store(t, m)
	return m
}

// Seq implements resource.Reader.
func (v *view) Seq() uint64 { return v.full.Seq() }

// Get implements resource.Reader.
func (v *view) Get(kind resource.Kind, id string) resource.Resource {
	return v.show(v.full.Get(kind, id))
}

// All implements resource.Reader. It looks at what the account owns and was given, not at everything.
func (v *view) All(kind resource.Kind) iter.Seq[resource.Resource] {
	if v.everything {
		return v.shown(v.full.All(kind))
	}
	seen := map[string]resource.Resource{}
	add := func(res resource.Resource) {
		if res == nil {
			return
		}
		id := res.Base().ID
		if _, ok := seen[id]; ok {
			return
		}
		if s := v.show(res); s != nil {
			seen[id] = s
		}
	}
	for res := range v.full.Owned(kind, v.p.Account) {
		add(res)
	}
	switch kind {
	case resource.KindAccount:
		add(v.full.Get(kind, v.p.Account))
	case resource.KindShare:
		for res := range v.full.Referrers(resource.KindShare, resource.KindAccount, v.p.Account) {
			add(res)
		}
		for _, k := range resource.Kinds() {
			for key := range v.full.HoldersFrom(resource.SharePrefix(k, resource.EveryAccount), "") {
				add(v.full.Holder(key))
			}
		}
	case resource.KindIPRange:
		v.eachGiven(resource.KindL3, func(id string) { each(v.full.Referrers(kind, resource.KindL3, id), add) })
	case resource.KindSecRule:
		v.eachGiven(resource.KindSecGroup, func(id string) { each(v.full.Referrers(kind, resource.KindSecGroup, id), add) })
	default:
		v.eachGiven(kind, func(id string) { add(v.full.Get(kind, id)) })
	}
	ids := make([]string, 0, len(seen))
	for id := range seen {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return func(yield func(resource.Resource) bool) {
		for _, id := range ids {
			if !yield(seen[id]) {
				return
			}
		}
	}
}

func each(seq iter.Seq[resource.Resource], fn func(resource.Resource)) {
	for r := range seq {
		fn(r)
	}
}

// eachGiven calls fn with the ids of all of a kind that were shared with the principal's account.
func (v *view) eachGiven(kind resource.Kind, fn func(id string)) {
	if !resource.Shareable(kind) {
		return
	}
	for _, to := range []string{v.p.Account, resource.EveryAccount} {
		prefix := resource.SharePrefix(kind, to)
		for key := range v.now.HoldersFrom(prefix, "") {
			fn(strings.TrimPrefix(key, prefix))
		}
	}
}

// shown leaves out what the principal does not see.
func (v *view) shown(seq iter.Seq[resource.Resource]) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for res := range seq {
			if s := v.show(res); s != nil && !yield(s) {
				return
			}
		}
	}
}

// Owned implements resource.Reader.
func (v *view) Owned(kind resource.Kind, account string) iter.Seq[resource.Resource] {
	return v.shown(v.full.Owned(kind, account))
}

// Named implements resource.Reader.
func (v *view) Named(kind resource.Kind, name string) iter.Seq[resource.Resource] {
	return v.shown(v.full.Named(kind, name))
}

// Referrers implements resource.Reader. Who names something that the principal does not see is not seen to name it.
func (v *view) Referrers(from, kind resource.Kind, id string) iter.Seq[resource.Resource] {
	if target := v.full.Get(kind, id); target != nil && !v.sees(target) {
		return func(func(resource.Resource) bool) {}
	}
	return v.shown(v.full.Referrers(from, kind, id))
}

// Holder implements resource.Reader.
func (v *view) Holder(key string) resource.Resource { return v.show(v.full.Holder(key)) }

// HoldersFrom implements resource.Reader.
func (v *view) HoldersFrom(prefix, from string) iter.Seq[string] {
	if v.everything {
		return v.full.HoldersFrom(prefix, from)
	}
	return func(yield func(string) bool) {
		for key := range v.full.HoldersFrom(prefix, from) {
			if v.Holder(key) != nil && !yield(key) {
				return
			}
		}
	}
}

// Observed implements resource.Reader.
func (v *view) Observed() resource.Observed {
	if v.everything {
		return v.full.Observed()
	}
	return unobserved{}
}

// Derive implements resource.Deriver: a status is the truth about a resource, worked out from everything, less what
// names something that the principal does not see.
func (v *view) Derive(res resource.Resource) any {
	if v.everything {
		return resource.Derive(v.full, res)
	}
	whole := v.full.Get(res.Kind(), res.Base().ID)
	if whole == nil {
		whole = res
	}
	return hideStatus(resource.Derive(v.full, whole), owns(v.p, whole))
}

// hideStatus leaves out what a status says of hosts and storages; of what is not the principal's own also who uses it.
func hideStatus(s any, own bool) any {
	switch x := s.(type) {
	case resource.VMStatus:
		x.Host, x.VNC, x.Fault = "", "", hideFault(x.Fault)
		return x
	case resource.VolumeStatus:
		x.Host, x.Fault = "", hideFault(x.Fault)
		return x
	case resource.NICStatus:
		x.Host, x.Fault = "", hideFault(x.Fault)
		return x
	case resource.ImageStatus:
		x.Cached = nil
		if !own {
			x.Volumes = 0
		}
		return x
	case resource.L3Status:
		x.Faults = hideFaults(x.Faults)
		if !own {
			x.NICs = 0
		}
		return x
	case resource.L2Status:
		x.Faults, x.Hosts = hideFaults(x.Faults), 0
		if !own {
			x.NICs = 0
		}
		return x
	case resource.SecGroupStatus:
		x.Faults = hideFaults(x.Faults)
		if !own {
			x.Members = 0
		}
		return x
	case resource.Convergence:
		x.Waiting = slices.Clone(x.Waiting)
		for i := range x.Waiting {
			w := &x.Waiting[i]
			w.HostID, w.Host = "", ""
			if w.Ref.Kind == desired.KindPool || w.Ref.Kind == desired.KindImage {
				w.Ref = desired.Ref{} // it names the storage
			}
		}
		x.Error = hideReasons(x.Error, func(resource.Reason) bool { return false })
		return x
	case resource.AddressUse, resource.VXLANPoolStatus:
		return x
	default:
		if own {
			return x
		}
		return nil
	}
}

// hideFault keeps what a fault is, and not where.
func hideFault(f *resource.ItemFault) *resource.ItemFault {
	if f == nil {
		return nil
	}
	return &resource.ItemFault{Code: f.Code, Message: f.Message, Remedy: f.Remedy}
}

func hideFaults(list []resource.ItemFault) []resource.ItemFault {
	var out []resource.ItemFault
	for i := range list {
		out = append(out, *hideFault(&list[i]))
	}
	return out
}

// Hide makes an error one that the principal may see: what stands in the way is named only where it can be seen.
func Hide(r resource.Reader, p Principal, err *resource.Error) *resource.Error {
	if p.Everything() {
		return err
	}
	v := View(r, p)
	return hideReasons(err, func(why resource.Reason) bool { return why.ID != "" && v.Get(why.Kind, why.ID) != nil })
}

func hideReasons(err *resource.Error, seen func(resource.Reason) bool) *resource.Error {
	if err == nil || len(err.Reasons) == 0 {
		return err
	}
	c := *err
	c.Reasons = slices.DeleteFunc(slices.Clone(err.Reasons), func(w resource.Reason) bool { return !seen(w) })
	if hidden := len(err.Reasons) - len(c.Reasons); hidden > 0 && c.Code == resource.CodeCapacity {
		c.Remedy = "ask for less, or ask an administrator, who sees why"
	}
	return &c
}

// unobserved is what is observed for whoever may not see hosts. Statuses are worked out by Derive.
type unobserved struct{}

func (unobserved) Status(string, desired.Ref) (desired.Status, bool) { return desired.Status{}, false }

func (unobserved) Host(string) resource.HostObservation { return resource.HostObservation{} }

func (unobserved) Published(string, desired.Ref) (resource.PublishedItem, bool) {
	return resource.PublishedItem{}, false
}

func (unobserved) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(func(resource.HostItem, desired.Status) bool) {}
}
func (unobserved) PublishedGen(string) uint64 { return 0 }
func (unobserved) PublishedSeq() uint64       { return 0 }
