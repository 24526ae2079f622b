package subjects

import (
	"strings"
	"testing"
)

func TestValidToken(t *testing.T) {
	for _, c := range []struct {
		in   string
		want bool
	}{
		{"a", true},
		{"6f1c2b3a-0000-4000-8000-000000000001", true},
		{"A_z-9", true},
		{"", false},
		{"a.b", false},
		{"a*", false},
		{"a>", false},
		{"a b", false},
		{"ä", false},
		{strings.Repeat("a", 64), true},
		{strings.Repeat("a", 65), false},
	} {
		if got := ValidToken(c.in); got != c.want {
			t.Errorf("ValidToken(%q) = %v, want %v", c.in, got, c.want)
		}
	}
}

// TestBuildersAndParsersAgree takes every name apart again that can be built.
func TestBuildersAndParsersAgree(t *testing.T) {
	kind, id, err := ParseItemKey(ItemKey("vm", "1"))
	if kind != "vm" || id != "1" || err != nil {
		t.Errorf("ParseItemKey = %q %q %v", kind, id, err)
	}
	host, kind, id, err := ParseObservedKey(ObservedKey("h1", "domain", "d1"))
	if host != "h1" || kind != "domain" || id != "d1" || err != nil {
		t.Errorf("ParseObservedKey = %q %q %q %v", host, kind, id, err)
	}
	caller, kind, verb, err := ParseAPI(API("ann", "vm", "create"))
	if caller != "ann" || kind != "vm" || verb != "create" || err != nil {
		t.Errorf("ParseAPI = %q %q %q %v", caller, kind, verb, err)
	}
	host, verb, err = ParseAgentAPI(AgentAPI("h1", "image-url"))
	if host != "h1" || verb != "image-url" || err != nil {
		t.Errorf("ParseAgentAPI = %q %q %v", host, verb, err)
	}
	host, key, err := ParseHistory(HistorySubject("h1", "domain.d1"))
	if host != "h1" || key != "domain.d1" || err != nil {
		t.Errorf("ParseHistory = %q %q %v", host, key, err)
	}
	if got, ok := DesiredHost(DesiredBucket("h1")); got != "h1" || !ok {
		t.Errorf("DesiredHost = %q %v", got, ok)
	}
	if got, ok := BucketKey("b", BucketSubject("b", "a.b")); got != "a.b" || !ok {
		t.Errorf("BucketKey = %q %v", got, ok)
	}
}

func TestParsersRefuse(t *testing.T) {
	for _, in := range []string{"", "a", ".a", "a.", "a.b.c", "a.*", "a.>"} {
		if _, _, err := ParseItemKey(in); err == nil {
			t.Errorf("ParseItemKey(%q) was accepted", in)
		}
	}
	for _, in := range []string{"", "a.b", "a.b.c.d", "a..c", "*.b.c"} {
		if _, _, _, err := ParseObservedKey(in); err == nil {
			t.Errorf("ParseObservedKey(%q) was accepted", in)
		}
	}
	for _, in := range []string{"shoal.api.v1.ann.vm", "shoal.api.v2.ann.vm.get", "shoal.api.v1.ann.vm.get.x", "x"} {
		if _, _, _, err := ParseAPI(in); err == nil {
			t.Errorf("ParseAPI(%q) was accepted", in)
		}
	}
	for _, in := range []string{"shoal.history.h1", "shoal.history..x", "shoal.journal", "shoal.history.h1."} {
		if _, _, err := ParseHistory(in); err == nil {
			t.Errorf("ParseHistory(%q) was accepted", in)
		}
	}
	if _, _, err := ParseAgentAPI("shoal.agent.h1.x"); err == nil {
		t.Error("ParseAgentAPI accepted another tree")
	}
}

// TestRolesAreConfined holds each role's list to subjects that carry the user's own name, bar those that are the same
// for everybody because they only read.
func TestRolesAreConfined(t *testing.T) {
	everybody := map[string]bool{"$JS.API.>": true, "$SRV.>": true, "shoal.hint.>": true, EventAll: true}
	for role, p := range map[string]Permissions{"agent": AgentRole(), "admin": AdminRole(), "viewer": ViewerRole()} {
		for _, s := range append(p.Publish, p.Subscribe...) {
			if !strings.Contains(s, nameTemplate) && !everybody[s] {
				t.Errorf("role %s may use %s, which does not carry its name", role, s)
			}
			if role == "agent" && everybody[s] {
				t.Errorf("an agent may use %s", s)
			}
		}
	}
}
