package api

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"shoal/controller/access"
	"shoal/controller/resource"
)

// A Param is one parameter of an operation, read off a field of its struct of parameters. The tags are:
//
//	json      the name in requests
//	help      what it means, one line; mandatory
//	arg       place among the positional arguments of the command, from 1
//	required  "true": it must be given
//	ref       the kind that it names, by id or by unique name, among what the caller sees. The parameter "id" in the first place names
//	          what the operation is about, of its own kind where no other is given
//	use       "true": the operation uses what the parameter names; otherwise a write is taken to change it, which only its
//	          owner may
//	blind     "true": it is named by its id, and need not be seen by the caller
//	admin     "true": only the admin account may give it
//	secret    "true": it is recorded nowhere, and shoalctl does not take it from the command line
//	enum      the values it may have, separated by "|"
//	short     one letter for the command's flag
//	split     "true": on the command line one text may hold several entries of the list, separated by commas
//	bare      "true": in a nested struct, the field that takes the value without "name="
//
// Types are string, bool, int, float64, Size, what implements encoding.TextUnmarshaler, pointers to those (a parameter
// that tells "not given" from zero), slices of those, structs of parameters and slices of them.
type Param struct {
	// Name is the name in requests; Flag the one on the command line.
	Name, Flag, Short, Help string
	// Arg is the place among positional arguments, 0 for a flag.
	Arg      int
	Required bool
	Ref      resource.Kind
	Enum     []string
	Bare     bool
	// Use, Blind, Admin and Secret are the tags of these names; Main marks what the operation is about.
	Use, Blind, Admin, Secret, Main bool
	// Split is set for a list of which one text may hold several entries.
	Split bool
	// List is set for a parameter that may be given several times.
	List bool
	// Bool is set for a switch.
	Bool bool
	// Fields are those of a struct.
	Fields []Param
	// TypeName is how help names the value.
	TypeName string

	index []int
}

// MaxRequestBytes is the largest request that is looked at.
const MaxRequestBytes = 64 << 10

// maxList is the largest number of entries in a list of a request.
const maxList = 1024

// paramsOf reads the parameters off a struct type. It panics on a declaration that makes no sense: the registry's test
// finds that before a user can.
func paramsOf(t reflect.Type) []Param {
	var out []Param
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous || !f.IsExported() {
			continue // the fields of an embedded struct are visible themselves
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" || f.Tag.Get("help") == "" {
			panic(fmt.Sprintf("field %s of %s lacks a json or help tag", f.Name, t))
		}
		p := Param{
			Name: name, Flag: strings.ReplaceAll(name, "_", "-"), Short: f.Tag.Get("short"), Help: f.Tag.Get("help"), Required: f.Tag.Get("required") == "true",
			Ref: resource.Kind(f.Tag.Get("ref")), Bare: f.Tag.Get("bare") == "true", Split: f.Tag.Get("split") == "true", index: f.Index,
			Use: f.Tag.Get("use") == "true", Blind: f.Tag.Get("blind") == "true", Admin: f.Tag.Get("admin") == "true", Secret: f.Tag.Get("secret") == "true",
		}
		if s := f.Tag.Get("flag"); s != "" {
			p.Flag = s
		}
		if s := f.Tag.Get("enum"); s != "" {
			p.Enum = strings.Split(s, "|")
		}
		if s := f.Tag.Get("arg"); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 {
				panic(fmt.Sprintf("field %s of %s has a wrong arg tag", f.Name, t))
			}
			p.Arg = n
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Slice && !isText(ft) {
			p.List = true
			ft = ft.Elem()
		}
		p.TypeName = typeName(ft, p)
		switch {
		case ft.Kind() == reflect.Struct && !isText(ft):
			p.Fields = paramsOf(ft)
		case ft.Kind() == reflect.Bool:
			p.Bool = true
		}
		out = append(out, p)
	}
	return out
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func typeName(t reflect.Type, p Param) string {
	switch {
	case p.Ref != "":
		return string(p.Ref)
	case t == reflect.TypeFor[Size]():
		return "size"
	case len(p.Enum) > 0:
		return strings.Join(p.Enum, "|")
	case t.Name() == "Prefix":
		return "cidr"
	case t.Name() == "Addr":
		return "address"
	case isText(t):
		return strings.ToLower(t.Name())
	}
	switch t.Kind() {
	case reflect.Bool:
		return ""
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
		return "number"
	case reflect.Struct:
		return "options"
	default:
		return "text"
	}
}

// invalidJSON explains why a value could not be read.
func invalidJSON(field string, err error) *resource.Error {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if te.Field != "" && field == "" {
			field = te.Field
		}
		return resource.Invalid(field, "is a JSON %s, which can't be read as %s", te.Value, describeType(te.Type))
	}
	if e, ok := errors.AsType[*resource.Error](err); ok {
		return e
	}
	return resource.Invalid(field, "%v", err)
}

func describeType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Uint64, reflect.Uint:
		return "a whole number that is not negative"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	default:
		return "a " + t.Name()
	}
}

// members splits a JSON object into its members, in order. A name that is there twice is refused: readers of JSON differ
// in which of the two they take, so what was meant can't be known.
func members(path string, raw []byte) ([]string, map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	tok, err := d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("is empty")
		}
		return nil, nil, resource.Invalid(path, "is not JSON: %v", err)
	}
	if tok != json.Delim('{') {
		return nil, nil, resource.Invalid(path, "must be a JSON object")
	}
	var names []string
	values := map[string]json.RawMessage{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return nil, nil, resource.Invalid(path, "is not JSON: %v", err)
		}
		name := tok.(string)
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, nil, resource.Invalid(join(path, name), "is not JSON: %v", err)
		}
		if _, twice := values[name]; twice {
			return nil, nil, resource.Invalid(join(path, name), "is given twice")
		}
		names = append(names, name)
		values[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, resource.Invalid(path, "is not JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, resource.Invalid(path, "has data after the JSON object")
	}
	return names, values, nil
}

func join(path, name string) string {
	if name == "" {
		name = `""`
	}
	if path == "" || path == "request" {
		return name
	}
	return path + "." + name
}

// decodeInto reads a JSON object into a struct of parameters, strictly.
func decodeInto(path string, raw []byte, params []Param, v reflect.Value) error {
	names, values, err := members(path, raw)
	if err != nil {
		return err
	}
	for _, name := range names {
		i := slices.IndexFunc(params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			return unknownField(join(path, name), name, params)
		}
		if string(values[name]) == "null" {
			continue // the same as not given
		}
		if err := decodeValue(join(path, name), values[name], params[i], v.FieldByIndex(params[i].index)); err != nil {
			return err
		}
	}
	return nil
}

func unknownField(path, name string, params []Param) error {
	known := make([]string, len(params))
	best, bestDistance := "", 3
	for i, p := range params {
		known[i] = p.Name
		if d := distance(name, p.Name); d < bestDistance {
			best, bestDistance = p.Name, d
		}
	}
	slices.Sort(known)
	e := resource.Invalid(path, "is not a known parameter")
	if best != "" {
		return e.WithRemedy("did you mean %s?", best)
	}
	return e.WithRemedy("known are %s", strings.Join(known, ", "))
}

// distance is the number of edits between two short words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

func decodeValue(path string, raw json.RawMessage, p Param, v reflect.Value) error {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if !p.List {
		return decodeOne(path, raw, p, v)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return invalidJSON(path, err)
	}
	if len(list) > maxList {
		return resource.Invalid(path, "has %d entries, at most %d are allowed", len(list), maxList)
	}
	out := reflect.MakeSlice(v.Type(), len(list), len(list))
	for i, item := range list {
		if err := decodeOne(fmt.Sprintf("%s[%d]", path, i), item, p, out.Index(i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

func decodeOne(path string, raw json.RawMessage, p Param, v reflect.Value) error {
	if len(p.Fields) > 0 {
		if err := decodeInto(path, raw, p.Fields, v); err != nil {
			return err
		}
		return checkRequired(path, p.Fields, v)
	}
	if string(raw) == "null" {
		return resource.Invalid(path, "must not be null")
	}
	if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
		return invalidJSON(path, err)
	}
	return checkEnum(path, p, v)
}

func checkEnum(path string, p Param, v reflect.Value) error {
	if len(p.Enum) > 0 && v.Kind() == reflect.String && v.String() != "" && !slices.Contains(p.Enum, v.String()) {
		return resource.Invalid(path, "%q is not one of %s", v.String(), strings.Join(p.Enum, ", "))
	}
	return nil
}

func checkRequired(path string, params []Param, v reflect.Value) error {
	for _, p := range params {
		if p.Required && v.FieldByIndex(p.index).IsZero() {
			return resource.Invalid(join(path, p.Name), "must be given")
		}
	}
	return nil
}

// SetText sets a parameter of a struct from the command line's text; for a list it adds one entry. A struct takes
// "bare,name=value,name=value".
func (p Param) SetText(params any, text string) error {
	return p.setText(p.Name, reflect.ValueOf(params).Elem().FieldByIndex(p.index), text)
}

// IsSet reports whether a parameter of a struct has a value.
func (p Param) IsSet(params any) bool {
	return !reflect.ValueOf(params).Elem().FieldByIndex(p.index).IsZero()
}

func (p Param) setText(path string, v reflect.Value, text string) error {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if p.List {
		item := reflect.New(v.Type().Elem()).Elem()
		one := p
		one.List = false
		if text == "" && len(p.Fields) == 0 {
			// An empty text stands for the empty list, so that lists can be cleared.
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
			return nil
		}
		texts := []string{text}
		if p.Split {
			texts = strings.Split(text, ",")
		}
		for _, text := range texts {
			if err := one.setText(path, item, text); err != nil {
				return err
			}
			v.Set(reflect.Append(v, item))
		}
		return nil
	}
	if len(p.Fields) > 0 {
		return p.setOptions(path, v, text)
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return invalidJSON(path, err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return resource.Invalid(path, "%q is neither true nor false", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return resource.Invalid(path, "%q is not a whole number", text)
		}
		v.SetInt(n)
	case reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return resource.Invalid(path, "%q is not a whole number that is not negative", text)
		}
		v.SetUint(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return resource.Invalid(path, "%q is not a number", text)
		}
		v.SetFloat(n)
	default:
		return fmt.Errorf("set %s: type %s has no text form", path, v.Type())
	}
	return checkEnum(path, p, v)
}

func (p Param) setOptions(path string, v reflect.Value, text string) error {
	for i, part := range strings.Split(text, ",") {
		name, value, named := strings.Cut(part, "=")
		if i == 0 {
			if bare := slices.IndexFunc(p.Fields, func(f Param) bool { return f.Bare }); bare >= 0 && !named {
				name, value, named = p.Fields[bare].Name, part, true
			}
		}
		j := slices.IndexFunc(p.Fields, func(f Param) bool { return f.Name == name })
		if j < 0 {
			return unknownField(join(path, name), name, p.Fields)
		}
		f := p.Fields[j]
		if !named {
			if !f.Bool {
				return resource.Invalid(join(path, name), "needs a value: %s=%s", name, cmp.Or(f.TypeName, "value"))
			}
			value = "true"
		}
		if err := f.setText(join(path, name), v.FieldByIndex(f.index), value); err != nil {
			return err
		}
	}
	return checkRequired(path, p.Fields, v)
}

// readers are what a caller sees, and everything.
type readers struct{ seen, full resource.Reader }

// resolve replaces names by ids in every parameter that names a resource, and gives these. A parameter that the caller may not give
// is refused.
func resolve(r readers, path string, params []Param, v reflect.Value, admin bool) (targets []access.Target, err error) {
	for _, p := range params {
		f := v.FieldByIndex(p.index)
		if p.Admin && !admin && !f.IsZero() {
			e := resource.Invalid(join(path, p.Name), "may be given by the admin account only")
			e.Code = resource.CodeForbidden
			return nil, e.WithRemedy("leave it out, or ask an administrator")
		}
		if f.Kind() == reflect.Pointer {
			if f.IsNil() {
				continue
			}
			f = f.Elem()
		}
		items := []reflect.Value{f}
		if p.List {
			items = items[:0]
			for i := range f.Len() {
				items = append(items, f.Index(i))
			}
		}
		for i, item := range items {
			at := join(path, p.Name)
			if p.List {
				at = fmt.Sprintf("%s[%d]", at, i)
			}
			if len(p.Fields) > 0 {
				inner, err := resolve(r, at, p.Fields, item, admin)
				if err != nil {
					return nil, err
				}
				targets = append(targets, inner...)
				continue
			}
			if p.Ref == "" || item.String() == "" && !p.List {
				continue
			}
			if p.Blind && !admin {
				continue // whoever was told the id has it; nobody learns here whether there is such a resource
			}
			id, err := lookup(r.seen, at, p.Ref, item.String())
			if err != nil {
				return nil, err
			}
			item.SetString(id)
			targets = append(targets, access.Target{Field: at, Resource: r.full.Get(p.Ref, id), Use: p.Use, Main: p.Main})
		}
	}
	return targets, nil
}

// masked stands for a secret where a request is recorded.
const masked = "***"

// mask is a request's body without its secrets, as it is recorded. A body that can't be read is left out whole.
func mask(body []byte, params []Param) json.RawMessage {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if !slices.ContainsFunc(params, hasSecret) {
		return json.RawMessage(body)
	}
	names, values, err := members("request", body)
	if err != nil {
		return nil
	}
	b := bytes.NewBufferString("{")
	for _, name := range names {
		j := slices.IndexFunc(params, func(p Param) bool { return p.Name == name })
		if j < 0 {
			continue // unknown: it was refused
		}
		value := values[name]
		switch p := params[j]; {
		case p.Secret, p.List && hasSecret(p):
			value = json.RawMessage(strconv.Quote(masked))
		case hasSecret(p):
			value = mask(value, p.Fields)
		}
		if value == nil {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(name)) // the name of a parameter needs no escaping
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func hasSecret(p Param) bool { return p.Secret || slices.ContainsFunc(p.Fields, hasSecret) }

// maxCandidates is how many candidates an error names.
const maxCandidates = 8

// lookup finds a resource by id or by unique name.
func lookup(r resource.Reader, field string, kind resource.Kind, ref string) (string, error) {
	if found := r.Get(kind, ref); found != nil {
		return ref, nil
	}
	var candidates []resource.Resource
	for c := range r.Named(kind, ref) {
		candidates = append(candidates, c)
	}
	switch len(candidates) {
	case 0:
		return "", notFound(r, field, kind, ref)
	case 1:
		return candidates[0].Base().ID, nil
	}
	e := resource.Conflict(field, "%d resources of kind %s have the name %q", len(candidates), kind, ref).WithRemedy("give the id of the one you mean")
	slices.SortFunc(candidates, resource.ByName[resource.Resource])
	for _, c := range candidates[:min(len(candidates), maxCandidates)] {
		e.Reasons = append(e.Reasons, resource.Reason{Kind: kind, ID: c.Base().ID, Name: c.Base().ID, Why: "created " + c.Base().Created.Format("2006-01-02 15:04:05")})
	}
	return "", e
}

func notFound(r resource.Reader, field string, kind resource.Kind, ref string) *resource.Error {
	e := resource.NotFound(kind, ref)
	e.Field = field
	best, bestDistance := "", 3
	n := 0
	for c := range r.All(kind) {
		if n++; n > 10_000 {
			break // a suggestion is not worth more
		}
		if d := distance(ref, c.Base().Name); d < bestDistance {
			best, bestDistance = c.Base().Name, d
		}
	}
	if best != "" {
		return e.WithRemedy("did you mean %s? See shoalctl %s list", best, kind)
	}
	return e
}
