package api

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/history"
	"shoal/controller/resource"
)

// TestRecord: what changed nothing is recorded as the caller was told it, with whose it was and without secrets; what changed
// something is not recorded twice.
func TestRecord(t *testing.T) {
	b := newBench(t)
	type note struct {
		Caller, Account, Op, Refusal string
		Durable                      bool
	}
	var got []note
	var params []string
	var replies []string
	b.s.cfg.Record = func(_ context.Context, n history.Note) {
		req := n.Request
		if req.ID == "" || req.Started.IsZero() || req.From != "10.0.0.9" {
			t.Errorf("%s is recorded with the id %q, from %q at %s", req.Op, req.ID, req.From, req.Started)
		}
		got = append(got, note{req.Caller, req.Account, req.Op, n.Refusal, n.Durable})
		params = append(params, string(req.Params))
		replies = append(replies, string(n.Reply))
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
		{admin, "account.create", map[string]any{"name": "acme", "password": "battery staple"}, note{"root", resource.AdminAccount, "account.create", "acme", true}},
		{admin, "zone.get", map[string]any{"id": "nowhere"}, note{"root", resource.AdminAccount, "zone.get", "nowhere", false}},
		{who, "zone.create", map[string]any{"name": "mine"}, note{acme, acme, "zone.create", "for the admin account", true}},
		{who, "zone.create", map[string]any{"wrong": "mine"}, note{acme, acme, "zone.create", "not a known parameter", true}},
		{Caller{Token: "x", Key: "UX", Issuer: "somebody", From: "10.0.0.9", Started: b.site.Now}, "zone.list", nil, note{"x", "", "zone.list", "who signed", false}},
	} {
		got, params, replies = nil, nil, nil
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
		if !strings.HasPrefix(replies[0], `{"code":"`) || strings.Contains(replies[0], "battery") {
			t.Errorf("%s: the recorded reply is %s", c.op, replies[0])
		}
	}
	got, replies = nil, nil
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
	if diff := cmp.Diff([]note{{"root", resource.AdminAccount, "zone.list", "", false}, {"root", resource.AdminAccount, "zone.create", "", false}}, got); diff != "" {
		t.Errorf("with --audit-reads (-want +got):\n%s", diff)
	}
	if !strings.Contains(replies[0], `"items":[`) || !strings.Contains(replies[1], `"dry_run":true`) {
		t.Errorf("the recorded replies are %s", replies)
	}
}

// TestRecord_Reply: of a write the journal keeps what the caller was told, and no secret of it.
func TestRecord_Reply(t *testing.T) {
	b := newBench(t)
	b.s.cfg.AuditReads = true
	var notes []history.Note
	b.s.cfg.Record = func(_ context.Context, n history.Note) { notes = append(notes, n) }
	answer := func(op string, params map[string]any) (told, kept string) {
		t.Helper()
		b.site.Answered = nil
		told, err := b.call(adminCaller, op, params)
		if err != nil {
			t.Fatal(err)
		}
		return told, string(b.site.Answered)
	}
	if _, kept := answer("zone.create", map[string]any{"name": "z9"}); !strings.Contains(kept, `{"resource":{"kind":"zone","id":"`) {
		t.Errorf("kept of zone.create: %s", kept)
	}
	if _, kept := answer("zone.delete", map[string]any{"id": "z9"}); !strings.Contains(kept, `{"deleted":[{"kind":"zone","id":"`) {
		t.Errorf("kept of zone.delete: %s", kept)
	}
	token, stored := answer("hosttoken.create", map[string]any{"cluster": "c1", "name": "secretive"})
	_, rest, ok := strings.Cut(token, `"token":"`)
	secret, _, _ := strings.Cut(rest, `"`)
	if !ok || len(secret) < 20 {
		t.Fatalf("no token is told: %s", token)
	}
	if !strings.Contains(stored, `"resource":{"kind":"`) || strings.Contains(stored, secret) || strings.Contains(stored, "token\":\"") {
		t.Errorf("kept of hosttoken.create: %s", stored)
	}
	if got := string(kept(&Reply{Request: "r", Token: secret, JWT: "eyJ"})); strings.Contains(got, secret) || strings.Contains(got, "eyJ") || strings.Count(got, masked) != 2 {
		t.Errorf("a reply with secrets is kept as %s", got)
	}
	for i := range 60 {
		b.do(adminCaller, "zone.create", map[string]any{"name": "zone" + strings.Repeat("x", i)})
	}
	notes = nil
	if _, err := b.call(adminCaller, "zone.list", map[string]any{}); err != nil {
		t.Fatal(err)
	}
	full := string(notes[0].Reply)
	cut := string(history.Bounded(notes[0].Reply))
	if len(full) < 10_000 || len(cut) > 5_000 || !strings.HasPrefix(cut, `{"truncated":"{\"items\":[`) || !strings.Contains(cut, `"sha256":"`) {
		t.Errorf("%d bytes are kept as %d: %s", len(full), len(cut), cut)
	}
}
