package query

import (
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"

	"shoal/controller/resource"
	"shoal/desired"
)

// path leads from a resource to values.
type path struct {
	text  string
	steps []step
	// typ is the type at its end, class how its values are compared.
	typ   reflect.Type
	class class
	// many: it can lead to several values.
	many bool
	// names is set where a condition on this path is one on what the resource names, which is indexed.
	names struct {
		kind resource.Kind
		by   refBy
	}
}

type refBy int

const (
	refByID refBy = iota
	refByName
)

// step is one part of a path.
type step struct {
	sort stepSort
	// index is the field's, from the value before.
	index []int
	// key of a map.
	key string
	// kind is that of the related resources, field the JSON name of the field that holds the reference, empty for any.
	kind  resource.Kind
	field string
}

type stepSort int

const (
	stepField   stepSort = iota // a field of a struct
	stepKey                     // an entry of a map
	stepStatus                  // the status of the resource
	stepForward                 // the resources that it names
	stepReverse                 // the resources that name it
)

// field is what JSON shows of a struct.
type field struct {
	index []int
	typ   reflect.Type
}

// shape is what is known of a kind.
type shape struct {
	fields map[string]field
	status reflect.Type // nil for none
	// forward are the references by name: what the field is called without _id, and the target's kind where no other
	// field leads to it.
	forward map[string]forward
	// idFields are the reference fields themselves.
	idFields map[string]resource.Kind
}

type forward struct {
	kind  resource.Kind
	field string
}

// shapes knows every kind. It is made once, from the types themselves.
var shapes = sync.OnceValue(func() map[resource.Kind]*shape {
	out := map[resource.Kind]*shape{}
	for _, kind := range resource.Kinds() {
		proto := resource.New(kind)
		s := &shape{
			fields: fieldsOf(reflect.TypeOf(proto).Elem()), forward: map[string]forward{}, idFields: map[string]resource.Kind{},
		}
		if st := resource.Derive(nothing{}, resource.New(kind)); st != nil {
			s.status = reflect.TypeOf(st)
		}
		// A resource all of whose fields are set tells what its references are.
		fill(reflect.ValueOf(proto).Elem(), 0)
		fields := map[resource.Kind][]string{}
		for _, ref := range proto.Refs() {
			if resource.New(ref.Kind) == nil {
				continue // what a share names can be of several kinds: no path leads there
			}
			s.idFields[ref.Field] = ref.Kind
			if !slices.Contains(fields[ref.Kind], ref.Field) {
				fields[ref.Kind] = append(fields[ref.Kind], ref.Field)
			}
			if name, ok := strings.CutSuffix(strings.TrimSuffix(ref.Field, "s"), "_id"); ok {
				s.forward[name] = forward{ref.Kind, ref.Field}
			}
		}
		for to, names := range fields {
			if _, ok := s.forward[string(to)]; !ok && len(names) == 1 {
				s.forward[string(to)] = forward{to, names[0]}
			}
		}
		out[kind] = s
	}
	return out
})

// fieldsOf are the fields of a struct as JSON shows them.
func fieldsOf(t reflect.Type) map[string]field {
	out := map[string]field{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			for n, inner := range fieldsOf(f.Type) {
				if _, ok := out[n]; !ok {
					inner.index = append([]int{i}, inner.index...)
					out[n] = inner
				}
			}
			continue
		case !f.IsExported() || name == "-":
			continue
		case name == "":
			name = f.Name
		}
		out[name] = field{index: []int{i}, typ: f.Type}
	}
	return out
}

// fill sets every text and makes every list and map one long.
func fill(v reflect.Value, depth int) {
	if depth > 4 || !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field, depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	}
}

// Fields lists the fields of a kind, Relations what leads to other resources: for completion and help.
func Fields(kind resource.Kind) []string {
	s := shapes()[kind]
	if s == nil {
		return nil
	}
	var out []string
	for name := range s.fields {
		out = append(out, name)
	}
	if s.status != nil {
		out = append(out, "status")
		if t := deref(s.status); t.Kind() == reflect.Struct {
			for name := range fieldsOf(t) {
				out = append(out, "status."+name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Relations lists the names that lead from a kind to other resources.
func Relations(kind resource.Kind) []string {
	s := shapes()[kind]
	if s == nil {
		return nil
	}
	var out []string
	for name := range s.forward {
		out = append(out, name)
	}
	for _, k := range resource.Kinds() {
		if k != kind && names(k, kind) && !slices.Contains(out, string(k)) {
			out = append(out, string(k))
		}
	}
	slices.Sort(out)
	return out
}

// names reports whether resources of a kind can name those of another.
func names(from, to resource.Kind) bool {
	for _, k := range shapes()[from].idFields {
		if k == to {
			return true
		}
	}
	return false
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// parsePath checks a path and finds its way.
func parsePath(kind resource.Kind, s string) (path, error) {
	p := path{text: s}
	parts := strings.Split(s, ".")
	if slices.Contains(parts, "") || len(parts) > maxDepth {
		return path{}, resource.Invalid("path", "%q is not 1 to %d names with dots between them", s, maxDepth)
	}
	for i, part := range parts {
		here := strings.Join(parts[:i+1], ".")
		if p.typ == nil {
			sh := shapes()[kind]
			if f, ok := sh.fields[part]; ok {
				p.into(step{sort: stepField, index: f.index}, f)
				if target, ok := sh.idFields[part]; ok {
					p.index(target, refByID, i == 0)
				} else {
					p.index(p.names.kind, refByName, i == 1 && part == "name" && p.names.kind != "")
				}
				if i == 1 && part == "id" && len(p.steps) == 2 && p.steps[0].sort == stepForward {
					p.index(p.steps[0].kind, refByID, true)
				}
				continue
			}
			if f, ok := sh.forward[part]; ok {
				p.steps = append(p.steps, step{sort: stepForward, kind: f.kind, field: f.field})
				p.many = p.many || !strings.HasSuffix(f.field, "_id")
				kind = f.kind
				p.names.kind = ""
				if i == 0 {
					p.names.kind = f.kind
				}
				continue
			}
			if part == "status" && sh.status != nil {
				p.into(step{sort: stepStatus}, field{typ: sh.status})
				p.names.kind = ""
				continue
			}
			if k := resource.Kind(part); k != kind && shapes()[k] != nil && names(k, kind) {
				p.steps = append(p.steps, step{sort: stepReverse, kind: k})
				p.many, p.names.kind = true, ""
				kind = k
				continue
			}
			return path{}, unknown(here, "of "+string(kind), append(Fields(kind), Relations(kind)...))
		}
		p.names.kind = ""
		switch p.typ.Kind() {
		case reflect.Struct:
			if classOf(p.typ) != classNone {
				return path{}, resource.Invalid(here, "%s is a single value: nothing is inside it", strings.Join(parts[:i], "."))
			}
			fields := fieldsOf(p.typ)
			f, ok := fields[part]
			if !ok {
				return path{}, unknown(here, "in "+strings.Join(parts[:i], "."), sortedNames(fields))
			}
			p.into(step{sort: stepField, index: f.index}, f)
		case reflect.Map:
			if p.typ.Key().Kind() != reflect.String {
				return path{}, resource.Invalid(here, "%s has keys that can't be named", strings.Join(parts[:i], "."))
			}
			p.into(step{sort: stepKey, key: part}, field{typ: p.typ.Elem()})
		default:
			return path{}, resource.Invalid(here, "%s is a single value: nothing is inside it", strings.Join(parts[:i], "."))
		}
	}
	if p.typ == nil {
		return path{}, resource.Invalid(s, "is a %s: name one of its fields, such as %s.name", kind, s)
	}
	p.class = classOf(p.typ)
	if p.class == classNone || len(p.steps) > 2 {
		p.names.kind = ""
	}
	return p, nil
}

// index notes what is named, or that nothing is.
func (p *path) index(kind resource.Kind, by refBy, ok bool) {
	p.names.kind, p.names.by = kind, by
	if !ok {
		p.names.kind = ""
	}
}

// into goes to a field, and through pointers and lists to what is in them.
func (p *path) into(s step, f field) {
	p.steps = append(p.steps, s)
	t := f.typ
	for classOf(t) == classNone {
		if t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
			p.many, t = true, t.Elem()
			continue
		}
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
			continue
		}
		break
	}
	p.typ = t
}

func sortedNames(fields map[string]field) []string {
	var out []string
	for n := range fields {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func unknown(path, where string, valid []string) *resource.Error {
	return resource.Invalid(path, "there is no such field or relation %s; there are %s", where, strings.Join(valid, ", "))
}

// inside says what a path that is no single value could be followed by.
func (p path) inside() string {
	if p.typ != nil && p.typ.Kind() == reflect.Struct {
		return ": name one of its fields: " + strings.Join(sortedNames(fieldsOf(p.typ)), ", ")
	}
	if p.typ != nil && p.typ.Kind() == reflect.Map {
		return ": name one of its keys"
	}
	return ""
}

// each calls yield with every value that is not null, until it returns false.
func (p path) each(r resource.Reader, w *row, yield func(reflect.Value) bool) {
	p.fromResource(r, w, p.steps, yield)
}

func (p path) fromResource(r resource.Reader, w *row, steps []step, yield func(reflect.Value) bool) bool {
	s, rest := steps[0], steps[1:]
	switch s.sort {
	case stepStatus:
		st := w.statusOf(r)
		if st == nil {
			return true
		}
		return p.fromValue(reflect.ValueOf(st), rest, yield)
	case stepForward:
		for _, ref := range w.res.Refs() {
			if ref.Field != s.field {
				continue
			}
			if target := r.Get(ref.Kind, ref.ID); target != nil && !p.fromResource(r, &row{res: target}, rest, yield) {
				return false
			}
		}
		return true
	case stepReverse:
		for from := range r.Referrers(s.kind, w.res.Kind(), w.res.Base().ID) {
			if !p.fromResource(r, &row{res: from}, rest, yield) {
				return false
			}
		}
		return true
	default:
		return p.fromValue(reflect.ValueOf(w.res).Elem(), steps, yield)
	}
}

func (p path) fromValue(v reflect.Value, steps []step, yield func(reflect.Value) bool) bool {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return true
		}
		return p.fromValue(v.Elem(), steps, yield)
	}
	if v.Kind() == reflect.Slice && classOf(v.Type()) == classNone && v.Type().Elem().Kind() != reflect.Uint8 {
		for i := range v.Len() {
			if !p.fromValue(v.Index(i), steps, yield) {
				return false
			}
		}
		return true
	}
	if len(steps) == 0 {
		if p.null(v) {
			return true
		}
		return yield(v)
	}
	switch s := steps[0]; s.sort {
	case stepKey:
		if v.Kind() != reflect.Map {
			return true
		}
		key := reflect.ValueOf(s.key).Convert(v.Type().Key())
		if v = v.MapIndex(key); !v.IsValid() {
			return true
		}
	default:
		if v.Kind() != reflect.Struct {
			return true
		}
		v = v.FieldByIndex(s.index)
	}
	return p.fromValue(v, steps[1:], yield)
}

// null reports whether a value is empty. Numbers and booleans never are.
func (p path) null(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Map, reflect.Slice:
		return v.Len() == 0
	case reflect.Struct:
		return p.class != classNone && v.IsZero()
	default:
		return false
	}
}

// first is the first value, to sort by; nil for none.
func (p path) first(r resource.Reader, w *row) any {
	var out any
	p.each(r, w, func(v reflect.Value) bool {
		out = value(v, p.class)
		return false
	})
	return out
}

// show is what the path leads to, as JSON shows it.
func (p path) show(r resource.Reader, w *row) any {
	out := []any{}
	p.each(r, w, func(v reflect.Value) bool {
		out = append(out, v.Interface())
		return p.many
	})
	switch {
	case p.many:
		return out
	case len(out) == 0:
		return nil
	default:
		return out[0]
	}
}

// nothing is a reader of no resources.
type nothing struct{}

func (nothing) Seq() uint64                                   { return 0 }
func (nothing) Get(resource.Kind, string) resource.Resource   { return nil }
func (nothing) All(resource.Kind) iter.Seq[resource.Resource] { return none[resource.Resource] }
func (nothing) Named(resource.Kind, string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}

func (nothing) Referrers(_, _ resource.Kind, _ string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}

func (nothing) Owned(resource.Kind, string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}
func (nothing) Holder(string) resource.Resource                   { return nil }
func (nothing) HoldersFrom(_, _ string) iter.Seq[string]          { return none[string] }
func (nothing) Observed() resource.Observed                       { return nothing{} }
func (nothing) Status(string, desired.Ref) (desired.Status, bool) { return desired.Status{}, false }
func (nothing) Host(string) resource.HostObservation              { return resource.HostObservation{} }

func (nothing) Published(string, desired.Ref) (resource.PublishedItem, bool) {
	return resource.PublishedItem{}, false
}
func (nothing) PublishedGen(string) uint64 { return 0 }

func (nothing) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(func(resource.HostItem, desired.Status) bool) {}
}

func (nothing) PublishedSeq() uint64 { return 0 }

func none[T any](func(T) bool) {}
