package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/resource"
)

// TestRecord: what changed nothing is recorded as the caller was told it, with whose it was and without secrets; what changed
// something is not recorded twice.
func TestRecord(t *testing.T) {
	b := newBench(t)
	type note struct{ Caller, Account, Op, Refusal string }
	var got []note
	var params []string
	b.s.cfg.Record = func(req resource.Request, refusal string) {
		if req.ID == "" || req.Started.IsZero() || req.From != "10.0.0.9" {
			t.Errorf("%s is recorded with the id %q, from %q at %s", req.Op, req.ID, req.From, req.Started)
		}
		got = append(got, note{req.Caller, req.Account, req.Op, refusal})
		params = append(params, string(req.Params))
	}
	admin := adminCaller
	admin.From, admin.Started = "10.0.0.9", b.site.Now
	acme := b.do(admin, "account.create", map[string]any{"name": "acme", "password": "correct horse"})
	who := b.session(acme, "")
	who.From, who.Started = "10.0.0.9", b.site.Now
	if len(got) != 0 {
		t.Errorf("a write is recorded beside the journal: %v", got)
	}
	for _, c := range []struct {
		who    Caller
		op     string
		params map[string]any
		want   note
	}{
		{admin, "account.create", map[string]any{"name": "acme", "password": "battery staple"}, note{"root", resource.AdminAccount, "account.create", "acme"}},
		{admin, "zone.get", map[string]any{"id": "nowhere"}, note{"root", resource.AdminAccount, "zone.get", "nowhere"}},
		{who, "zone.create", map[string]any{"name": "mine"}, note{acme, acme, "zone.create", "for the admin account"}},
		{who, "zone.create", map[string]any{"wrong": "mine"}, note{acme, acme, "zone.create", "not a known parameter"}},
		{Caller{Token: "x", Key: "UX", Issuer: "somebody", From: "10.0.0.9", Started: b.site.Now}, "zone.list", nil, note{"x", "", "zone.list", "who signed"}},
	} {
		got, params = nil, nil
		if _, err := b.call(c.who, c.op, c.params); err == nil {
			t.Errorf("%s %v is not refused", c.op, c.params)
		}
		if len(got) != 1 || !strings.Contains(got[0].Refusal, c.want.Refusal) {
			t.Fatalf("%s: recorded %+v, want one that says %q", c.op, got, c.want.Refusal)
		}
		c.want.Refusal = got[0].Refusal
		if diff := cmp.Diff(c.want, got[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.op, diff)
		}
		if strings.Contains(params[0], "battery") {
			t.Errorf("a password is recorded: %s", params[0])
		}
	}
	got = nil
	read := func() {
		t.Helper()
		if _, err := b.call(admin, "zone.list", map[string]any{}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.call(admin, "zone.create", map[string]any{"name": "dry", "dry_run": true}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if len(got) != 0 {
		t.Errorf("reads are recorded without --audit-reads: %v", got)
	}
	b.s.cfg.AuditReads = true
	read()
	if diff := cmp.Diff([]note{{"root", resource.AdminAccount, "zone.list", ""}, {"root", resource.AdminAccount, "zone.create", ""}}, got); diff != "" {
		t.Errorf("with --audit-reads (-want +got):\n%s", diff)
	}
}
