// Package plantest is a site for tests of decisions: resources in memory with transactions, a publisher, and hosts that do at
// once what their documents say. It keeps the rules of a store (validation, references, unique keys, immutable
// views) and none of its durability. It is for tests only.
package plantest

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"shoal/controller/resource"
)

type target struct {
	from resource.Kind
	kind resource.Kind
	id   string
}

// View is an immutable view of a Site.
type View struct {
	seq      uint64
	byKind   map[resource.Kind]map[string]resource.Resource
	refs     map[target][]string // ids, sorted
	keys     []string            // unique keys, sorted
	holders  map[string]resource.Resource
	observed *Observed
}

func newView() *View {
	return &View{
		byKind: map[resource.Kind]map[string]resource.Resource{}, refs: map[target][]string{}, holders: map[string]resource.Resource{}, observed: newObserved(),
	}
}

// clone is a copy that can be changed.
func (v *View) clone() *View {
	c := &View{
		seq: v.seq, byKind: make(map[resource.Kind]map[string]resource.Resource, len(v.byKind)), refs: make(map[target][]string, len(v.refs)),
		keys: slices.Clone(v.keys), holders: maps.Clone(v.holders), observed: v.observed.clone(),
	}
	for k, m := range v.byKind {
		c.byKind[k] = maps.Clone(m)
	}
	// Lists are replaced, never edited.
	maps.Copy(c.refs, v.refs)
	return c
}

// Seq implements resource.Reader.
func (v *View) Seq() uint64 { return v.seq }

// Get implements resource.Reader.
func (v *View) Get(kind resource.Kind, id string) resource.Resource {
	if r, ok := v.byKind[kind][id]; ok {
		return r
	}
	return nil
}

// All implements resource.Reader.
func (v *View) All(kind resource.Kind) iter.Seq[resource.Resource] {
	ids := slices.Sorted(maps.Keys(v.byKind[kind]))
	return func(yield func(resource.Resource) bool) {
		for _, id := range ids {
			if r, ok := v.byKind[kind][id]; ok && !yield(r) {
				return
			}
		}
	}
}

// Owned implements resource.Reader.
func (v *View) Owned(kind resource.Kind, account string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for r := range v.All(kind) {
			if r.Base().Owner == account && !yield(r) {
				return
			}
		}
	}
}

// Named implements resource.Reader.
func (v *View) Named(kind resource.Kind, name string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for r := range v.All(kind) {
			if r.Base().Name == name && !yield(r) {
				return
			}
		}
	}
}

// Referrers implements resource.Reader.
func (v *View) Referrers(from resource.Kind, kind resource.Kind, id string) iter.Seq[resource.Resource] {
	ids := v.refs[target{from, kind, id}]
	return func(yield func(resource.Resource) bool) {
		for _, id := range ids {
			if r, ok := v.byKind[from][id]; ok && !yield(r) {
				return
			}
		}
	}
}

// Holder implements resource.Reader.
func (v *View) Holder(key string) resource.Resource {
	if r, ok := v.holders[key]; ok {
		return r
	}
	return nil
}

// HoldersFrom implements resource.Reader.
func (v *View) HoldersFrom(prefix, from string) iter.Seq[string] {
	i, _ := slices.BinarySearch(v.keys, max(prefix, from))
	keys := v.keys[i:]
	return func(yield func(string) bool) {
		for _, k := range keys {
			if !strings.HasPrefix(k, prefix) || !yield(k) {
				return
			}
		}
	}
}

// Observed implements resource.Reader.
func (v *View) Observed() resource.Observed { return v.observed }

func (v *View) index(r resource.Resource) {
	id := r.Base().ID
	m := v.byKind[r.Kind()]
	if m == nil {
		m = map[string]resource.Resource{}
		v.byKind[r.Kind()] = m
	}
	m[id] = r
	for _, ref := range r.Refs() {
		t := target{r.Kind(), ref.Kind, ref.ID}
		if i, ok := slices.BinarySearch(v.refs[t], id); !ok {
			v.refs[t] = slices.Insert(slices.Clip(v.refs[t][:i:i]), i, append([]string{id}, v.refs[t][i:]...)...)
		}
	}
	for _, k := range r.Unique() {
		if i, ok := slices.BinarySearch(v.keys, k); !ok {
			v.keys = slices.Insert(v.keys, i, k)
		}
		v.holders[k] = r
	}
}

func (v *View) unindex(r resource.Resource) {
	id := r.Base().ID
	delete(v.byKind[r.Kind()], id)
	for _, ref := range r.Refs() {
		t := target{r.Kind(), ref.Kind, ref.ID}
		v.refs[t] = slices.DeleteFunc(slices.Clone(v.refs[t]), func(s string) bool { return s == id })
	}
	for _, k := range r.Unique() {
		if i, ok := slices.BinarySearch(v.keys, k); ok {
			v.keys = slices.Delete(v.keys, i, i+1)
		}
		delete(v.holders, k)
	}
}
