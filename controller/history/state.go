package history

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// value is a resource as the journal has it, decoded when somebody looks. States that follow each other share those that did
// not change, so that what is the same pointer is the same resource.
type value struct {
	raw  json.RawMessage
	once sync.Once
	res  resource.Resource
}

// resource is nil where the JSON can't be read: then a newer controller wrote it.
func (v *value) resource(kind resource.Kind) resource.Resource {
	v.once.Do(func() {
		if r, err := resource.Decode(kind, v.raw); err == nil {
			v.res = r
		}
	})
	return v.res
}

// state is every resource after one message of the journal. It never changes once it is shown to anybody.
type state struct {
	at journal.Position
	// stored is when the server stored the message.
	stored time.Time
	kinds  map[resource.Kind]map[string]*value
	count  int
}

func newState() *state { return &state{kinds: map[resource.Kind]map[string]*value{}} }

// copy is a state that can be changed.
func (s *state) copy() *state {
	c := *s
	c.kinds = make(map[resource.Kind]map[string]*value, len(s.kinds))
	for k, m := range s.kinds {
		c.kinds[k] = maps.Clone(m)
	}
	return &c
}

func (s *state) put(kind resource.Kind, id string, raw json.RawMessage) {
	m := s.kinds[kind]
	if m == nil {
		m = map[string]*value{}
		s.kinds[kind] = m
	}
	_, there := m[id]
	switch {
	case raw == nil && there:
		delete(m, id)
		s.count--
	case raw != nil:
		m[id] = &value{raw: raw}
		if !there {
			s.count++
		}
	}
}

// apply takes in what the first entries of a message changed.
func (s *state) apply(entries []journal.Entry) {
	for _, e := range entries {
		for _, c := range e.Changes {
			s.put(c.Kind, c.ID, c.Value)
		}
	}
}

// view is a resource.Reader of a state. What it needs to be quick it makes when it is first asked for.
type view struct {
	*state
	observed resource.Observed

	mu     sync.Mutex
	tables map[resource.Kind]*table
	// holders has the resource of every unique key; keys are all of them in order.
	holders map[string]resource.Resource
	keys    []string
}

// table are the resources of one kind.
type table struct {
	all    []resource.Resource // by id
	byName map[string][]resource.Resource
	refs   map[reference][]resource.Resource
}

type reference struct {
	kind resource.Kind
	id   string
}

func newView(s *state, observed resource.Observed) *view {
	return &view{state: s, observed: observed, tables: map[resource.Kind]*table{}}
}

// Seq implements resource.Reader.
func (v *view) Seq() uint64 { return v.at.Seq }

// Observed implements resource.Reader.
func (v *view) Observed() resource.Observed { return v.observed }

// Get implements resource.Reader.
func (v *view) Get(kind resource.Kind, id string) resource.Resource {
	if x := v.kinds[kind][id]; x != nil {
		return x.resource(kind)
	}
	return nil
}

func (v *view) table(kind resource.Kind) *table {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lockedTable(kind)
}

func (v *view) lockedTable(kind resource.Kind) *table {
	if t := v.tables[kind]; t != nil {
		return t
	}
	t := &table{all: decodeAll(kind, v.kinds[kind])}
	v.tables[kind] = t
	return t
}

// decodeAll decodes a kind's resources on all processors, and gives them in order of their ids.
func decodeAll(kind resource.Kind, values map[string]*value) []resource.Resource {
	list := make([]*value, 0, len(values))
	for _, x := range values {
		list = append(list, x)
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(list, max(1, len(list)/runtime.GOMAXPROCS(0)+1)) {
		wg.Go(func() {
			for _, x := range part {
				x.resource(kind)
			}
		})
	}
	wg.Wait()
	out := make([]resource.Resource, 0, len(list))
	for _, x := range list {
		if x.res != nil {
			out = append(out, x.res)
		}
	}
	slices.SortFunc(out, func(a, b resource.Resource) int { return strings.Compare(a.Base().ID, b.Base().ID) })
	return out
}

// All implements resource.Reader.
func (v *view) All(kind resource.Kind) iter.Seq[resource.Resource] {
	return slices.Values(v.table(kind).all)
}

// Owned implements resource.Reader.
func (v *view) Owned(kind resource.Kind, account string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for r := range v.All(kind) {
			if r.Base().Owner == account && !yield(r) {
				return
			}
		}
	}
}

// Named implements resource.Reader.
func (v *view) Named(kind resource.Kind, name string) iter.Seq[resource.Resource] {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.lockedTable(kind)
	if t.byName == nil {
		t.byName = make(map[string][]resource.Resource, len(t.all))
		for _, r := range t.all {
			t.byName[r.Base().Name] = append(t.byName[r.Base().Name], r)
		}
	}
	return slices.Values(t.byName[name])
}

// Referrers implements resource.Reader.
func (v *view) Referrers(from, kind resource.Kind, id string) iter.Seq[resource.Resource] {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.lockedTable(from)
	if t.refs == nil {
		t.refs = map[reference][]resource.Resource{}
		for _, r := range t.all {
			for _, ref := range r.Refs() {
				k := reference{ref.Kind, ref.ID}
				if l := t.refs[k]; len(l) == 0 || l[len(l)-1] != r {
					t.refs[k] = append(l, r)
				}
			}
		}
	}
	return slices.Values(t.refs[reference{kind, id}])
}

func (v *view) unique() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.holders != nil {
		return
	}
	v.holders = map[string]resource.Resource{}
	for _, kind := range resource.Kinds() {
		for _, r := range v.lockedTable(kind).all {
			for _, key := range r.Unique() {
				v.holders[key] = r
			}
		}
	}
	v.keys = slices.Sorted(maps.Keys(v.holders))
}

// Holder implements resource.Reader.
func (v *view) Holder(key string) resource.Resource {
	v.unique()
	if r, ok := v.holders[key]; ok {
		return r
	}
	return nil
}

// HoldersFrom implements resource.Reader.
func (v *view) HoldersFrom(prefix, from string) iter.Seq[string] {
	return func(yield func(string) bool) {
		v.unique()
		i, _ := slices.BinarySearch(v.keys, max(prefix, from))
		for _, key := range v.keys[i:] {
			if !strings.HasPrefix(key, prefix) || !yield(key) {
				return
			}
		}
	}
}

// Field is a field of a resource, an item or a status that differs between two versions.
type Field struct {
	Field string          `json:"field"`
	Old   json.RawMessage `json:"old,omitempty"`
	New   json.RawMessage `json:"new,omitempty"`
}

// bookkeeping are the fields that change with every change.
func bookkeeping(field string) bool {
	return field == "updated" || field == "rev" || field == "cause" || field == "created"
}

// Diff lists the fields of two JSON objects that differ, by name; nested objects as dotted names. Either may be nil.
func Diff(old, now json.RawMessage, skip func(field string) bool) []Field {
	var out []Field
	diff("", old, now, skip, &out, 0)
	return out
}

// maxDiffDepth is how far Diff looks into objects.
const maxDiffDepth = 6

func diff(prefix string, old, now json.RawMessage, skip func(string) bool, out *[]Field, depth int) {
	a, b := object(old), object(now)
	names := map[string]struct{}{}
	for _, m := range []map[string]json.RawMessage{a, b} {
		for n := range m {
			names[n] = struct{}{}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if skip != nil && depth == 0 && skip(n) || string(a[n]) == string(b[n]) {
			continue
		}
		path := n
		if prefix != "" {
			path = prefix + "." + n
		}
		if depth < maxDiffDepth && object(a[n]) != nil && object(b[n]) != nil {
			diff(path, a[n], b[n], skip, out, depth+1)
			continue
		}
		*out = append(*out, Field{path, a[n], b[n]})
	}
}

func object(raw json.RawMessage) map[string]json.RawMessage {
	if len(raw) == 0 || raw[0] != '{' {
		return nil
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	return m
}

func describe(kind resource.Kind, id string) string { return fmt.Sprintf("%s %s", kind, id) }
