package query

import (
	"cmp"
	"encoding"
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/controller/resource"
)

// Operator is how a condition compares.
type Operator string

// The operators.
const (
	Equal          Operator = "="
	NotEqual       Operator = "!="
	Greater        Operator = ">"
	GreaterOrEqual Operator = ">="
	Less           Operator = "<"
	LessOrEqual    Operator = "<="
	Like           Operator = "~="
	NotLike        Operator = "!~="
	In             Operator = "in"
	NotIn          Operator = "not-in"
	IsNull         Operator = "is-null"
	NotNull        Operator = "not-null"
)

// Operators lists all operators.
func Operators() []Operator {
	return []Operator{Equal, NotEqual, Greater, GreaterOrEqual, Less, LessOrEqual, Like, NotLike, In, NotIn, IsNull, NotNull}
}

// condition is a parsed condition.
type condition struct {
	path path
	op   Operator
	// texts are the values as they were written; values the same as the path's type; none for null tests.
	texts  []string
	values []any
	// null: one of the values is the empty text, which stands for null.
	null bool
}

// symbols are tried in this order, so that the longer one wins where two start at the same place.
var symbols = [...]Operator{NotLike, GreaterOrEqual, LessOrEqual, NotEqual, Like, Equal, Greater, Less}

// parseCondition reads "<path><operator><value>".
func parseCondition(kind resource.Kind, text string) (condition, error) {
	name, op, value, err := split(text)
	if err != nil {
		return condition{}, err
	}
	p, err := parsePath(kind, name)
	if err != nil {
		return condition{}, err
	}
	c := condition{path: p, op: op}
	switch op {
	case IsNull, NotNull:
		return c, nil
	case In, NotIn:
		c.texts = splitList(value)
	default:
		c.texts = []string{value}
	}
	if p.class == classNone {
		return condition{}, resource.Invalid(name, "is no single value%s", p.inside())
	}
	switch op {
	case Greater, GreaterOrEqual, Less, LessOrEqual:
		if p.class == classBool {
			return condition{}, resource.Invalid(name, "is true or false: %s does not apply", op)
		}
	case Like, NotLike:
		c.values = []any{newPattern(value)}
		return c, nil
	default:
	}
	for _, t := range c.texts {
		if t == "" {
			c.null = true
			continue
		}
		v, err := p.parse(t)
		if err != nil {
			return condition{}, err
		}
		c.values = append(c.values, v)
	}
	return c, nil
}

// split finds the operator: a symbol right behind the path, or a word set off by spaces.
func split(text string) (name string, op Operator, value string, err error) {
	if len(text) > MaxValue {
		return "", "", "", resource.Invalid("condition", "is %d bytes long, at most %d are allowed", len(text), MaxValue)
	}
	text = strings.TrimLeft(text, " \t")
	end := 0
	for end < len(text) && isPathByte(text[end]) {
		end++
	}
	// "not-in" and "is-null" hold a hyphen, which keys of maps may too: what counts is the space before them.
	name, rest := text[:end], text[end:]
	trimmed := strings.TrimLeft(rest, " \t")
	for _, s := range symbols {
		if v, ok := strings.CutPrefix(trimmed, string(s)); ok && name != "" {
			return name, s, strings.TrimLeft(v, " \t"), nil
		}
	}
	if len(trimmed) < len(rest) && name != "" {
		word, v, spaced := strings.Cut(trimmed, " ")
		switch o := Operator(word); o {
		case In, NotIn:
			if spaced {
				return name, o, strings.TrimLeft(v, " \t"), nil
			}
		case IsNull, NotNull:
			if strings.TrimSpace(v) == "" {
				return name, o, "", nil
			}
		default:
		}
	}
	ops := make([]string, 0, len(Operators()))
	for _, o := range Operators() {
		ops = append(ops, string(o))
	}
	return "", "", "", resource.Invalid("condition", "%q is not a path, an operator (%s) and a value, such as name=web", text, strings.Join(ops, " "))
}

func isPathByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.' || c == ':'
}

// splitList splits at commas; a backslash takes the next character as it is.
func splitList(s string) []string {
	var out []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == ',':
			out = append(out, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(out, b.String())
}

// holds reports whether a resource meets the condition.
func (c *condition) holds(r resource.Reader, w *row) bool {
	switch c.op {
	case IsNull:
		return !c.any(r, w, func(reflect.Value) bool { return true })
	case NotNull:
		return c.any(r, w, func(reflect.Value) bool { return true })
	case NotEqual, NotIn:
		return !c.equalsOne(r, w)
	case Equal, In:
		return c.equalsOne(r, w)
	case Like, NotLike:
		p := c.values[0].(pattern)
		return c.any(r, w, func(v reflect.Value) bool { return p.matches(text(v, c.path.class)) }) == (c.op == Like)
	default: // compares by order
	}
	if c.null {
		return false
	}
	want := c.values[0]
	return c.any(r, w, func(v reflect.Value) bool {
		switch n := compare(v, c.path.class, want); c.op {
		case Greater:
			return n > 0
		case GreaterOrEqual:
			return n >= 0
		case Less:
			return n < 0
		default:
			return n <= 0
		}
	})
}

func (c *condition) equalsOne(r resource.Reader, w *row) bool {
	some := false
	return c.any(r, w, func(v reflect.Value) bool {
		some = true
		for _, want := range c.values {
			if compare(v, c.path.class, want) == 0 {
				return true
			}
		}
		return false
	}) || c.null && !some
}

// any reports whether ok holds for one value.
func (c *condition) any(r resource.Reader, w *row, ok func(reflect.Value) bool) bool {
	found := false
	c.path.each(r, w, func(v reflect.Value) bool {
		found = ok(v)
		return !found
	})
	return found
}

// indexed are the resources that may meet the condition, from an index, and how good the index is; 0 for none.
func (c *condition) indexed(r resource.Reader, kind resource.Kind) (seq func() iter.Seq[resource.Resource], rank int) {
	if (c.op != Equal && c.op != In) || c.null {
		return nil, 0
	}
	ref := c.path.names
	switch {
	case c.path.text == "id":
		return func() iter.Seq[resource.Resource] { return byID(r, kind, c.texts) }, 3
	case c.path.text == "name":
		return func() iter.Seq[resource.Resource] { return byName(r, kind, c.texts) }, 2
	case ref.kind != "" && ref.by == refByID:
		return func() iter.Seq[resource.Resource] { return referrers(r, kind, ref.kind, byIDs(c.texts)) }, 1
	case ref.kind != "" && ref.by == refByName:
		return func() iter.Seq[resource.Resource] {
			var ids []string
			for t := range byName(r, ref.kind, c.texts) {
				ids = append(ids, t.Base().ID)
			}
			return referrers(r, kind, ref.kind, ids)
		}, 1
	}
	return nil, 0
}

func byIDs(texts []string) []string {
	ids := slices.Clone(texts)
	slices.Sort(ids)
	return slices.Compact(ids)
}

func byID(r resource.Reader, kind resource.Kind, texts []string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for _, id := range byIDs(texts) {
			if res := r.Get(kind, id); res != nil && !yield(res) {
				return
			}
		}
	}
}

func byName(r resource.Reader, kind resource.Kind, texts []string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		for _, name := range byIDs(texts) {
			for res := range r.Named(kind, name) {
				if !yield(res) {
					return
				}
			}
		}
	}
}

// referrers are the resources that name one of several others, each once.
func referrers(r resource.Reader, from, kind resource.Kind, ids []string) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		var seen map[string]struct{}
		if len(ids) > 1 {
			seen = map[string]struct{}{}
		}
		for _, id := range ids {
			for res := range r.Referrers(from, kind, id) {
				if seen != nil {
					if _, ok := seen[res.Base().ID]; ok {
						continue
					}
					seen[res.Base().ID] = struct{}{}
				}
				if !yield(res) {
					return
				}
			}
		}
	}
}

// class is how the values of a type are compared.
type class int

const (
	classNone class = iota // not a single value
	classText
	classBool
	classInt
	classUint
	classFloat
	classTime
	classAddr
	classMarshal // shown as text by its own method
)

func classOf(t reflect.Type) class {
	switch t {
	case reflect.TypeFor[time.Time]():
		return classTime
	case reflect.TypeFor[netip.Addr]():
		return classAddr
	}
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return classMarshal
	}
	switch t.Kind() {
	case reflect.String:
		return classText
	case reflect.Bool:
		return classBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return classInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return classUint
	case reflect.Float32, reflect.Float64:
		return classFloat
	default:
		return classNone
	}
}

// parse reads a value of the path's type.
func (p path) parse(s string) (any, error) {
	switch p.class {
	case classBool:
		switch s {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, resource.Invalid(p.text, "%q is neither true nor false", s)
	case classInt:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
		return nil, resource.Invalid(p.text, "%q is not a whole number", s)
	case classUint:
		if n, err := strconv.ParseUint(s, 10, 64); err == nil {
			return n, nil
		}
		return nil, resource.Invalid(p.text, "%q is not a whole number of 0 or more", s)
	case classFloat:
		if f, err := strconv.ParseFloat(s, 64); err == nil && f == f {
			return f, nil
		}
		return nil, resource.Invalid(p.text, "%q is not a number", s)
	case classTime:
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
			if t, err := time.Parse(layout, s); err == nil {
				return t, nil
			}
		}
		return nil, resource.Invalid(p.text, "%q is not a time such as 2026-01-02T15:04:05Z or 2026-01-02 (UTC)", s)
	case classAddr:
		if a, err := netip.ParseAddr(s); err == nil {
			return a, nil
		}
		return nil, resource.Invalid(p.text, "%q is not an IP address", s)
	default:
		return s, nil
	}
}

// value is a value as compare takes it.
func value(v reflect.Value, c class) any {
	switch c {
	case classBool:
		return v.Bool()
	case classInt:
		return v.Int()
	case classUint:
		return v.Uint()
	case classFloat:
		return v.Float()
	case classTime, classAddr:
		return v.Interface()
	default:
		return text(v, c)
	}
}

func compare(v reflect.Value, c class, want any) int {
	switch w := want.(type) {
	case string:
		return strings.Compare(text(v, c), w)
	case int64:
		return cmp.Compare(v.Int(), w)
	case uint64:
		return cmp.Compare(v.Uint(), w)
	default:
		return compareAny(value(v, c), want)
	}
}

// compareAny compares two values of the same class.
func compareAny(a, b any) int {
	switch x := a.(type) {
	case bool:
		switch y := b.(bool); {
		case x == y:
			return 0
		case y:
			return -1
		default:
			return 1
		}
	case int64:
		return cmp.Compare(x, b.(int64))
	case uint64:
		return cmp.Compare(x, b.(uint64))
	case float64:
		return cmp.Compare(x, b.(float64))
	case time.Time:
		return x.Compare(b.(time.Time))
	case netip.Addr:
		return x.Compare(b.(netip.Addr))
	default:
		return strings.Compare(a.(string), b.(string))
	}
}

// text is a value as it is shown.
func text(v reflect.Value, c class) string {
	switch c {
	case classText:
		return v.String()
	case classTime:
		return v.Interface().(time.Time).Format(time.RFC3339Nano)
	case classAddr:
		return v.Interface().(netip.Addr).String()
	case classMarshal:
		b, err := v.Interface().(encoding.TextMarshaler).MarshalText()
		if err != nil {
			return ""
		}
		return string(b)
	default:
		return fmt.Sprint(v.Interface())
	}
}

// pattern matches texts; "*" and "%" stand for any characters, "?" for one. Case does not matter.
type pattern []rune

func newPattern(s string) pattern {
	s = strings.ToLower(strings.ReplaceAll(s, "%", "*"))
	if !strings.ContainsAny(s, "*?") {
		s = "*" + s + "*"
	}
	return pattern(s)
}

func (p pattern) matches(s string) bool {
	t := []rune(strings.ToLower(s))
	i, j, star, mark := 0, 0, -1, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
