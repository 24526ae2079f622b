// Package query selects resources by their attributes, by those of related resources and by their status.
//
// # Conditions
//
// A condition is a path, an operator and a value; a resource must meet all conditions.
//
//	name=web                 cpus>=2               memory_mib<4096       created>2026-01-02
//	name!=web                name~=web-*           name!~=*test*         (case does not matter; without * or ? anywhere in the text)
//	state in enabled,disabled                      tags not-in old,test  (\, for a comma in a value)
//	hostname is-null         destroyed not-null
//
// A path is a field as JSON shows it, of the resource (cpus), of its status (status.phase), of what it names (the field
// host_id leads to host: host.name), or of what names it (nic.ip, volume.storage.name), to any depth.
//
// A path can lead to several values, such as those of a list or of all NICs. A condition holds if it holds for one of
// them; those with !=, !~= and not-in hold if their opposite does not, so also where there is no value. Every
// condition is looked at by itself: nic.ip=… and nic.mac=… may be met by different NICs. An empty text, list, time,
// address or object is null; numbers and booleans never are.
//
// # What it guarantees
//
// Everything is checked when a query is parsed: an unknown field, an operator that a field does not know, a value that is
// not of its type are an *resource.Error that names the path and what would be valid. Conditions on id, name and on
// what a resource names use the store's indexes.
package query

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"shoal/controller/resource"
)

// Limits of a query.
const (
	MaxConditions = 64
	MaxValue      = 4096
	maxDepth      = 8
)

// Spec is a query as people write it.
type Spec struct {
	// Conditions must all be met.
	Conditions []string
	// Sort are paths, each with a leading "-" for descending; name and id follow by themselves. Null comes last.
	Sort []string
	// Fields are the paths to show; none for the whole resource with its status.
	Fields []string
	// Limit is how many are returned at most, 0 for all; Offset how many are left out before.
	Limit, Offset int
	// Count asks for the number only.
	Count bool
}

// Query is a parsed query. It can be run any number of times, also at the same time.
type Query struct {
	kind       resource.Kind
	conditions []condition
	sort       []order
	fields     []path
	spec       Spec
}

// order is one path to sort by.
type order struct {
	path path
	desc bool
}

// Result is what a query found.
type Result struct {
	// Total is how many meet the conditions, whatever Limit and Offset.
	Total int   `json:"total"`
	Rows  []Row `json:"rows"`
}

// Row is one resource. Its JSON is the whole resource with its status under "status", or the fields that were asked for.
type Row struct {
	Resource resource.Resource
	// Status is nil for kinds that have none.
	Status any
	// Names and Values are the fields that were asked for; a path that can lead to several values has a list.
	Names  []string
	Values []any
}

// Parse checks a query.
func Parse(kind resource.Kind, spec Spec) (*Query, error) {
	proto := resource.New(kind)
	if proto == nil {
		return nil, resource.Invalid("kind", "%q is not one of %s", kind, joinKinds())
	}
	if len(spec.Conditions) > MaxConditions {
		return nil, resource.Invalid("conditions", "%d are given, at most %d are allowed", len(spec.Conditions), MaxConditions)
	}
	if spec.Limit < 0 {
		return nil, resource.Invalid("limit", "%d is negative", spec.Limit)
	}
	if spec.Offset < 0 {
		return nil, resource.Invalid("offset", "%d is negative", spec.Offset)
	}
	q := &Query{kind: kind, spec: spec}
	for _, text := range spec.Conditions {
		c, err := parseCondition(kind, text)
		if err != nil {
			return nil, err
		}
		q.conditions = append(q.conditions, c)
	}
	for _, text := range spec.Sort {
		name, desc := strings.CutPrefix(text, "-")
		p, err := parsePath(kind, name)
		if err != nil {
			return nil, err
		}
		if p.class == classNone {
			return nil, resource.Invalid("sort", "%s is no single value%s", name, p.inside())
		}
		q.sort = append(q.sort, order{p, desc})
	}
	for _, name := range spec.Fields {
		p, err := parsePath(kind, name)
		if err != nil {
			return nil, err
		}
		q.fields = append(q.fields, p)
	}
	return q, nil
}

// Kind is the kind of resources that the query is about.
func (q *Query) Kind() resource.Kind { return q.kind }

// row is a resource that is looked at, with its status once somebody asks for it.
type row struct {
	res     resource.Resource
	status  any
	derived bool
}

func (w *row) statusOf(r resource.Reader) any {
	if !w.derived {
		w.status, w.derived = resource.Derive(r, w.res), true
	}
	return w.status
}

// Run finds the resources.
func (q *Query) Run(r resource.Reader) Result {
	var found []*row
	total := 0
	for res := range q.candidates(r) {
		w := &row{res: res}
		if !q.matches(r, w) {
			continue
		}
		total++
		if !q.spec.Count {
			found = append(found, w)
		}
	}
	q.order(r, found)
	found = found[min(q.spec.Offset, len(found)):]
	if q.spec.Limit > 0 {
		found = found[:min(q.spec.Limit, len(found))]
	}
	out := Result{Total: total, Rows: make([]Row, len(found))}
	for i, w := range found {
		out.Rows[i] = q.show(r, w)
	}
	return out
}

// Matches reports whether a resource meets the conditions.
func (q *Query) Matches(r resource.Reader, res resource.Resource) bool {
	return res.Kind() == q.kind && q.matches(r, &row{res: res})
}

func (q *Query) matches(r resource.Reader, w *row) bool {
	for i := range q.conditions {
		if !q.conditions[i].holds(r, w) {
			return false
		}
	}
	return true
}

// candidates are the resources that may meet the conditions: from an index where a condition has one.
func (q *Query) candidates(r resource.Reader) iter.Seq[resource.Resource] {
	var best func() iter.Seq[resource.Resource]
	rank := 0
	for i := range q.conditions {
		if seq, n := q.conditions[i].indexed(r, q.kind); n > rank {
			best, rank = seq, n
		}
	}
	if best == nil {
		return r.All(q.kind)
	}
	return best()
}

func (q *Query) order(r resource.Reader, found []*row) {
	if len(q.sort) == 0 {
		slices.SortFunc(found, func(a, b *row) int { return resource.ByName(a.res, b.res) })
		return
	}
	type keyed struct {
		w    *row
		keys []any
	}
	all := make([]keyed, len(found))
	for i, w := range found {
		all[i] = keyed{w, make([]any, len(q.sort))}
		for j, o := range q.sort {
			all[i].keys[j] = o.path.first(r, w)
		}
	}
	slices.SortFunc(all, func(a, b keyed) int {
		for i, o := range q.sort {
			x, y := a.keys[i], b.keys[i]
			switch {
			case x == nil && y == nil:
				continue
			case x == nil:
				return 1
			case y == nil:
				return -1
			}
			if c := compareAny(x, y); c != 0 {
				if o.desc {
					return -c
				}
				return c
			}
		}
		return resource.ByName(a.w.res, b.w.res)
	})
	for i := range all {
		found[i] = all[i].w
	}
}

func (q *Query) show(r resource.Reader, w *row) Row {
	if len(q.fields) == 0 {
		return Row{Resource: w.res, Status: w.statusOf(r)}
	}
	out := Row{Resource: w.res, Names: make([]string, len(q.fields)), Values: make([]any, len(q.fields))}
	for i, p := range q.fields {
		out.Names[i], out.Values[i] = p.text, p.show(r, w)
	}
	return out
}

// MarshalJSON implements json.Marshaler.
func (w Row) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if w.Names != nil {
		b.WriteByte('{')
		for i, name := range w.Names {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:", name)
			if err := e.Encode(w.Values[i]); err != nil {
				return nil, fmt.Errorf("encode %s: %w", name, err)
			}
			b.Truncate(b.Len() - 1)
		}
		b.WriteByte('}')
		return b.Bytes(), nil
	}
	if err := e.Encode(w.Resource); err != nil {
		return nil, fmt.Errorf("encode %s: %w", w.Resource.Kind(), err)
	}
	if w.Status != nil {
		b.Truncate(b.Len() - 2) // "}\n"
		b.WriteString(`,"status":`)
		if err := e.Encode(w.Status); err != nil {
			return nil, fmt.Errorf("encode status of %s: %w", w.Resource.Kind(), err)
		}
		b.Truncate(b.Len() - 1)
		b.WriteByte('}')
	}
	return b.Bytes(), nil
}

func joinKinds() string {
	var names []string
	for _, k := range resource.Kinds() {
		names = append(names, string(k))
	}
	slices.SortFunc(names, cmp.Compare[string])
	return strings.Join(names, ", ")
}
