package api

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/resource"
	"shoal/controller/store/query"
	"shoal/subjects"
)

// TestRegistry_IsWhole: what a user relies on is there for every operation.
func TestRegistry_IsWhole(t *testing.T) {
	g := NewRegistry()
	refs := resource.Kinds()
	for _, op := range g.Operations() {
		t.Run(op.Name(), func(t *testing.T) {
			if !subjects.ValidToken(string(op.Kind)) || !subjects.ValidToken(op.Verb) {
				t.Errorf("kind and verb can't stand in a subject")
			}
			if op.Summary == "" || op.Help == "" && op.Verb != "update" || !strings.Contains(op.Example, "shoalctl "+Command(op.Kind)+" ") {
				t.Errorf("it lacks a summary, help, or an example of its own: %q", op.Example)
			}
			if strings.HasSuffix(op.Summary, ".") || strings.Contains(op.Summary, "\n") {
				t.Errorf("the summary %q is no line without a full stop", op.Summary)
			}
			if n := boolInt(op.read != nil) + boolInt(op.write != nil) + boolInt(op.serve != nil); n != 1 || op.Class == Read && op.write != nil || op.Class != Read && op.read != nil {
				t.Errorf("class %s does not fit what it does", op.Class)
			}
			if op.Class == Read && !slices.Contains([]string{"get", "list", "query"}, op.Verb) {
				t.Errorf("a viewer may use get, list and query only (subjects.ViewerRole), not %s", op.Verb)
			}
			if op.Class != Read && slices.Contains([]string{"get", "list", "query"}, op.Verb) {
				t.Errorf("a viewer could use it")
			}
			if op.Result != ResultReply && len(op.Columns) == 0 {
				t.Errorf("it has no columns")
			}
			checkParams(t, op.Params, refs)
			b, err := json.Marshal(op.Schema())
			if err != nil || !json.Valid(b) {
				t.Errorf("its schema is %s (%v)", b, err)
			}
			for i, p := range op.Args() {
				if p.Arg != i+1 || p.List || len(p.Fields) > 0 {
					t.Errorf("argument %s: places must be 1, 2, ... and values plain", p.Name)
				}
			}
		})
	}
	for _, kind := range resource.Kinds() {
		want := []string{"get", "list"}
		switch kind {
		case resource.KindTask, resource.KindRevocation:
		case resource.KindSession, resource.KindEnrolment:
			want = append(want, "delete") // made by logging in, and by machines
		case resource.KindShare: // made by share and recall of what is shared
		case resource.KindHostToken, resource.KindRelease, resource.KindRollout:
			want = append(want, "create", "delete")
		case resource.KindPlan:
			want = append(want, "create", "apply", "delete")
		default:
			want = append(want, "create", "update", "delete")
		}
		for _, verb := range want {
			if g.Find(kind, verb) == nil {
				t.Errorf("kind %s has no %s", kind, verb)
			}
		}
	}
}

func checkParams(t *testing.T, params []Param, refs []resource.Kind) {
	t.Helper()
	names, flags, shorts := map[string]bool{}, map[string]bool{"output": true, "server": true, "creds": true, "context": true, "timeout": true, "quiet": true}, map[string]bool{"o": true, "s": true, "q": true, "h": true}
	for _, p := range params {
		if names[p.Name] || flags[p.Flag] || p.Short != "" && shorts[p.Short] {
			t.Errorf("parameter %s clashes with another", p.Name)
		}
		names[p.Name], flags[p.Flag] = true, true
		if p.Short != "" {
			shorts[p.Short] = true
		}
		if p.Ref != "" && !slices.Contains(refs, p.Ref) {
			t.Errorf("parameter %s refers to the unknown kind %s", p.Name, p.Ref)
		}
		if strings.ToLower(p.Name) != p.Name || strings.HasSuffix(p.Help, ".") {
			t.Errorf("parameter %s: name in lower case, help without a full stop", p.Name)
		}
		checkParams(t, p.Fields, refs)
	}
}

// TestColumns_Exist: a column whose path leads nowhere would be empty for ever.
func TestColumns_Exist(t *testing.T) {
	for _, op := range NewRegistry().Operations() {
		res := resource.New(op.Kind)
		if res == nil {
			continue
		}
		known := map[string]bool{}
		jsonPaths("", reflect.TypeOf(res).Elem(), known, 0)
		for _, c := range op.Columns {
			head, rest, _ := strings.Cut(c.Path, ".")
			switch head {
			case "names":
				if !known[rest] {
					t.Errorf("%s: column %s: %s is no field", op.Name(), c.Title, rest)
				}
			case "status":
				if r, ok := res.(*resource.IPRange); ok {
					r.Start, r.End = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
				}
				s := resource.Derive(emptyReader{}, res)
				paths := map[string]bool{}
				jsonPaths("", reflect.TypeOf(s), paths, 0)
				if !paths[rest] {
					t.Errorf("%s: column %s: %s is not in %T", op.Name(), c.Title, rest, s)
				}
			default:
				if !known[c.Path] {
					t.Errorf("%s: column %s: %s is no field", op.Name(), c.Title, c.Path)
				}
			}
		}
	}
}

func jsonPaths(prefix string, t reflect.Type, into map[string]bool, depth int) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || depth > 3 {
		return
	}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		into[prefix+name] = true
		jsonPaths(prefix+name+".", f.Type, into, depth+1)
	}
}

// TestExamples_Parse: the conditions that help shows are accepted.
func TestExamples_Parse(t *testing.T) {
	n := 0
	for _, op := range NewRegistry().Operations() {
		_, rest, found := strings.Cut(op.Example, "--where ")
		if !found {
			continue
		}
		n++
		condition, _, _ := strings.Cut(rest, " ")
		if _, err := query.Parse(op.Kind, query.Spec{Conditions: []string{strings.Trim(condition, "'")}}); err != nil {
			t.Errorf("%s: %v", op.Name(), err)
		}
	}
	if n < len(resource.Kinds()) {
		t.Errorf("%d examples have a condition, want one for each kind", n)
	}
}

func fieldOf(err error) string {
	var e *resource.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Field
}

// TestDecode_IsStrict: what is wrong is named.
func TestDecode_IsStrict(t *testing.T) {
	g := NewRegistry()
	for _, c := range []struct {
		kind        resource.Kind
		verb, body  string
		field, says string
	}{
		{"zone", "create", ``, "name", "must be given"},
		{"zone", "create", `{}`, "name", "must be given"},
		{"zone", "create", `[]`, "request", "object"},
		{"zone", "create", `{"name":"z"} x`, "request", "data after"},
		{"zone", "create", `{"name":"z"`, "request", "not JSON"},
		{"zone", "create", `{"name":"z","colour":"red"}`, "colour", "known"},
		{"zone", "create", `{"Name":"z"}`, "Name", "known"},
		{"zone", "create", `{"name":"z","name":"y"}`, "name", "twice"},
		{"zone", "create", `{"name":5}`, "name", "text"},
		{"zone", "create", `{"name":"z","tags":"a"}`, "tags", "list"},
		{"zone", "create", `{"name":"z","tags":[null]}`, "tags[0]", "null"},
		{"zone", "create", `{"name":"z","dry_run":"yes"}`, "dry_run", "true or false"},
		{"vm", "create", `{"name":"v","memory":"5 parsecs"}`, "memory", "size"},
		{"vm", "create", `{"name":"v","memory":true}`, "memory", "number"},
		{"vm", "create", `{"name":"v","cpus":1.5}`, "cpus", "whole"},
		{"vm", "create", `{"name":"v","strategy":"luck"}`, "strategy", "fewest-vms"},
		{"vm", "create", `{"name":"v","networks":[{"l3":"n","ip":"10.1.0.300"}]}`, "networks[0].ip", "10.1.0.300"},
		{"vm", "create", `{"name":"v","networks":[{"ip":"10.1.0.3"}]}`, "networks[0].l3", "given"},
		{"vm", "create", `{"name":"v","networks":[{"l3":"n","speed":1}]}`, "networks[0].speed", "known"},
		{"vm", "create", `{"name":"v","networks":{}}`, "networks", "list"},
		{"vm", "get", `{"id":"v","dry_run":true}`, "dry_run", "known"},
		{"vxlanpool", "create", `{"name":"p","zone":"z","ranges":["a-b"]}`, "ranges[0]", "range"},
		{"iprange", "create", `{"name":"r","network":"n","cidr":"10.0.0.0/33"}`, "cidr", "/33"},
	} {
		_, _, err := g.Find(c.kind, c.verb).Decode([]byte(c.body))
		if err == nil || fieldOf(err) != c.field || !strings.Contains(err.Error()+remedyOf(err), c.says) {
			t.Errorf("%s.%s %s: got %v, want field %s and %q", c.kind, c.verb, c.body, err, c.field, c.says)
		}
	}
	big := `{"name":"` + strings.Repeat("x", MaxRequestBytes) + `"}`
	if _, _, err := g.Find("zone", "create").Decode([]byte(big)); fieldOf(err) != "request" {
		t.Errorf("a request that is too long: %v", err)
	}
}

func remedyOf(err error) string {
	if e, ok := errors.AsType[*resource.Error](err); ok {
		return e.Remedy
	}
	return ""
}

func TestDecode_Reads(t *testing.T) {
	op := NewRegistry().Find("vm", "create")
	p, common, err := op.Decode([]byte(`{"name":"v","memory":"1GiB","networks":[{"l3":"n","ip":"10.0.0.5","default":true}],"disks":[{"size":1048576}],"request":"r1","dry_run":true,"description":null}`))
	if err != nil {
		t.Fatal(err)
	}
	got := p.(*vmCreate)
	if got.Name != "v" || got.Memory != 1<<30 || len(got.Networks) != 1 || got.Networks[0].IP.String() != "10.0.0.5" || !got.Networks[0].Default || got.Disks[0].Size != 1<<20 {
		t.Errorf("decoded %+v", got)
	}
	if diff := cmp.Diff(Common{Request: "r1", DryRun: true}, common); diff != "" {
		t.Error(diff)
	}
}

// TestText_EqualsJSON: the command line's texts and the requests' JSON mean the same.
func TestText_EqualsJSON(t *testing.T) {
	op := NewRegistry().Find("vm", "create")
	p := op.NewParams()
	for _, s := range [][2]string{
		{"name", "v"},
		{"cpus", "2"},
		{"memory", "1.5GiB"},
		{"networks", "net1,ip=10.0.0.5,mac=52:54:00:00:00:01,default"},
		{"networks", "l3=net2,secgroups=g"},
		{"disks", "10GiB,name=data"},
		{"disks", "offering=d10"},
		{"tags", "a"},
		{"tags", "b=c"},
		{"stop_seconds", "0"},
		{"stopped", "true"},
	} {
		i := slices.IndexFunc(op.Params, func(p Param) bool { return p.Name == s[0] })
		if err := op.Params[i].SetText(p, s[1]); err != nil {
			t.Fatal(s, err)
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	q, _, err := op.Decode(b)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if !reflect.DeepEqual(p, q) {
		t.Errorf("got %+v, want %+v", q, p)
	}
	for _, s := range [][2]string{
		{"cpus", "two"}, {"memory", "1.0000001KiB"}, {"networks", "net1,ip=300"}, {"networks", "net1,speed=1"}, {"networks", ",ip=10.0.0.5"}, {"networks", "net1,ip"}, {"stopped", "perhaps"}, {"strategy", "luck"},
	} {
		i := slices.IndexFunc(op.Params, func(p Param) bool { return p.Name == s[0] })
		if err := op.Params[i].SetText(op.NewParams(), s[1]); err == nil || !strings.HasPrefix(fieldOf(err), s[0]) {
			t.Errorf("%v: got %v, want an error that names it", s, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "512": 512, "1k": 1024, "10GiB": 10 << 30, "10 GiB": 10 << 30, "1.5TiB": 3 << 39, "1GB": 1e9, "16777215TiB": 16777215 << 40} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1e3", "1.2.3", "99999999TiB", "18446744073709551616", "0.1", "1YiB", "GiB", "1 2"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

// FuzzDecode: whatever comes, it is decoded or refused with a field; what was decoded encodes to the same.
func FuzzDecode(f *testing.F) {
	g := NewRegistry()
	for _, s := range []string{``, `{}`, `{"name":"v","memory":"1GiB","networks":[{"l3":"n","ip":"10.0.0.5"}]}`, `{"name":{"a":[1]}}`, `{"disks":[{"size":1e3}]}`, "{\"name\":\"\xff\"}", `{"name":"v","networks":[[]]}`} {
		f.Add([]byte(s))
	}
	ops := []*Operation{g.Find("vm", "create"), g.Find("vm", "list"), g.Find("iprange", "create"), g.Find("vxlanpool", "update"), g.Find("nic", "set-groups")}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, op := range ops {
			p, _, err := op.Decode(body)
			if err != nil {
				if fieldOf(err) == "" {
					t.Fatalf("%s: %v names no field", op.Name(), err)
				}
				continue
			}
			b, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			q, _, err := op.Decode(b)
			if err != nil && len(b) <= MaxRequestBytes {
				t.Fatalf("%s: %s does not decode again: %v", op.Name(), b, err)
			}
			if err == nil && !reflect.DeepEqual(p, q) {
				t.Fatalf("%s: %s became %+v, was %+v", op.Name(), b, q, p)
			}
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "10GiB", "1.5TiB", ".", "1..", "9999999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		z, err := ParseSize(s)
		if err != nil {
			return
		}
		b, err := json.Marshal(z)
		if err != nil {
			t.Fatal(err)
		}
		var again Size
		if err := json.Unmarshal(b, &again); err != nil || again != z {
			t.Fatalf("%q is %d, which reads back as %d (%v)", s, z, again, err)
		}
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
