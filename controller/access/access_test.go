package access

import (
	"testing"

	"pgregory.net/rapid"

	"shoal/controller/resource"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"vm.start", "vm.start", true},
		{"vm.start", "vm.starts", false},
		{"vm.*", "vm.start", true},
		{"vm.*", "vmx.start", false},
		{"*", "vm.start", true},
		{"*.list", "vm.list", true},
		{"*.list", "vm.lists", false},
		{"v*.s*t", "vm.start", true},
		{"v*.s*t", "vm.stop", false},
		{"a*a", "a", false},
		{"**", "", true},
		{"", "", true},
		{"", "x", false},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("match(%q, %q) = %t", c.pattern, c.name, got)
		}
	}
}

// TestMatch_Property: a pattern that is made by putting stars in place of parts of a name matches it.
func TestMatch_Property(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-c.]{0,3}`), 1, 5).Draw(t, "parts")
		pattern, name := "", ""
		for _, p := range parts {
			name += p
			if rapid.Bool().Draw(t, "star") {
				p = "*"
			}
			pattern += p
		}
		if !match(pattern, name) {
			t.Fatalf("%q does not match %q", pattern, name)
		}
	})
}

func TestDecide(t *testing.T) {
	vm := &resource.VM{Meta: resource.Meta{ID: "v1", Tags: []string{"test"}}}
	allow := func(actions ...string) resource.Statement {
		return resource.Statement{Effect: resource.Allow, Actions: actions}
	}
	deny := func(actions ...string) resource.Statement {
		return resource.Statement{Effect: resource.Deny, Actions: actions}
	}
	only := func(s resource.Statement, ids, tags []string) resource.Statement {
		s.Resources, s.Tags = ids, tags
		return s
	}
	for name, c := range map[string]struct {
		rules []resource.Statement
		res   resource.Resource
		want  verdict
	}{
		"nothing":                     {nil, vm, silent},
		"allowed":                     {[]resource.Statement{allow("vm.start")}, vm, allowed},
		"a denial first":              {[]resource.Statement{deny("vm.*"), allow("*")}, vm, denied},
		"a denial last":               {[]resource.Statement{allow("*"), deny("*.start")}, vm, denied},
		"by id":                       {[]resource.Statement{only(allow("*"), []string{"v1"}, nil)}, vm, allowed},
		"by another id":               {[]resource.Statement{only(allow("*"), []string{"v2"}, nil)}, vm, silent},
		"by tag":                      {[]resource.Statement{only(allow("*"), nil, []string{"x", "test"})}, vm, allowed},
		"by id or tag":                {[]resource.Statement{only(allow("*"), []string{"v2"}, []string{"test"})}, vm, allowed},
		"about none, by id":           {[]resource.Statement{only(allow("*"), []string{"v1"}, nil)}, nil, silent},
		"about none":                  {[]resource.Statement{allow("*")}, nil, allowed},
		"a denial of something else":  {[]resource.Statement{allow("*"), only(deny("*"), []string{"v2"}, nil)}, vm, allowed},
		"a denial that is about none": {[]resource.Statement{allow("*"), only(deny("*"), []string{"v2"}, nil)}, nil, allowed},
	} {
		if got := decide(c.rules, "vm.start", c.res); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestAmount(t *testing.T) {
	for want, n := range map[string]uint64{"0 bytes": 0, "512 bytes": 512, "1 MiB": 1 << 20, "80 GiB": 80 << 30, "1.5 TiB": 3 << 39} {
		if got := Amount(resource.QuotaMemory, n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	if got := Amount(resource.QuotaVMs, 20); got != "20" {
		t.Errorf("20 VMs are %q", got)
	}
}
