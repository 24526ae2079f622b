package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// memory is a store on a plantest.Site.
type memory struct {
	mu   sync.Mutex
	site *plantest.Site
	done map[string]bool
}

func (m *memory) View() resource.Reader {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.site.View()
}

func (m *memory) Commit(_ context.Context, req resource.Request, fn func(tx resource.Tx) error) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done[req.ID] {
		return m.site.View().Seq(), store.ErrRepeated
	}
	if err := m.site.Commit(req, fn); err != nil {
		return 0, err
	}
	m.done[req.ID] = true
	return m.site.View().Seq(), nil
}

func (m *memory) DryRun(_ context.Context, req resource.Request, fn func(tx resource.Tx) error) (resource.Reader, resource.Reader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, after, err := m.site.DryRun(req, fn)
	if err != nil {
		return nil, nil, err
	}
	return before, after, nil
}

// plainPasswords keeps passwords as they are, for tests that are not about hashing.
type plainPasswords struct{}

func (plainPasswords) Hash(_ context.Context, plain string) (string, error) {
	return "hash of " + plain, nil
}

func (plainPasswords) Check(_ context.Context, sealed, plain string) (bool, error) {
	return sealed == "hash of "+plain, nil
}

// issuers of credentials in these tests.
const issuerAdmin, issuerViewer, issuerSession = "AADMIN", "AVIEWER", "ASESSION"

// bench is a service on a site in memory.
type bench struct {
	t    *testing.T
	site *plantest.Example
	s    *Service
	keys int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ex := plantest.NewExample(7, 4)
	b := &bench{t: t, site: ex, keys: 500}
	b.s = New(Config{
		Store: &memory{site: ex.Site, done: map[string]bool{}}, Log: zerolog.Nop(),
		Roles: map[string]Role{issuerAdmin: RoleAdmin, issuerViewer: RoleViewer, issuerSession: RoleSession},
		Env: Env{
			Now: func() time.Time { return ex.Now }, Passwords: plainPasswords{}, SessionTime: 2 * time.Hour,
			HostJWT:    func(string, string) (string, time.Time, error) { return "jwt", ex.Now.Add(time.Hour), nil },
			SessionJWT: func(*resource.Session) (string, error) { return "jwt", nil },
			Door:       func() ([]string, string, string) { return []string{"tls://10.0.0.1:4222"}, "", "" },
		},
	})
	if err := ex.Do("test.admin", func(tx resource.Tx) error { _, err := plan.EnsureAdmin(tx, "hash of first"); return err }); err != nil {
		t.Fatal(err)
	}
	return b
}

var adminCaller = Caller{Token: "root", Key: "UROOT", Issuer: issuerAdmin}

// session logs an account, or a user of it, in.
func (b *bench) session(account, user string) Caller {
	b.t.Helper()
	b.keys++
	key := plantest.Key(b.keys)
	var s *resource.Session
	if err := b.site.Do("test.login", func(tx resource.Tx) (err error) {
		s, err = plan.OpenSession(tx, plan.SessionSpec{AccountID: account, UserID: user, PublicKey: key, For: time.Hour})
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	return Caller{Token: s.Principal(), Key: key, Issuer: issuerSession}
}

func (b *bench) call(who Caller, op string, params map[string]any) (string, error) {
	b.t.Helper()
	kind, verb, _ := strings.Cut(op, ".")
	o := b.s.registry.Find(resource.Kind(kind), verb)
	if o == nil {
		b.t.Fatalf("there is no operation %s", op)
	}
	body, err := json.Marshal(params)
	if err != nil {
		b.t.Fatal(err)
	}
	answer, err := b.s.Call(b.t.Context(), o, who, "", body)
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(answer)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(out), nil
}

// do is a call that must succeed; it gives the id of the resource in the reply.
func (b *bench) do(who Caller, op string, params map[string]any) string {
	b.t.Helper()
	out, err := b.call(who, op, params)
	if err != nil {
		b.t.Fatalf("%s %v: %v", op, params, err)
	}
	var reply struct{ Resource struct{ ID string } }
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		b.t.Fatal(err)
	}
	return reply.Resource.ID
}

// everything of every tenant kind, made by an account, under names that begin with prefix; ids by kind.
func (b *bench) furnish(who Caller, prefix, subnet string) map[resource.Kind]string {
	b.t.Helper()
	ids := map[resource.Kind]string{}
	add := func(kind resource.Kind, params map[string]any) {
		params["name"] = prefix + string(kind)
		ids[kind] = b.do(who, string(kind)+".create", params)
	}
	add(resource.KindL2, map[string]any{"type": "vxlan", "pool": b.site.IDs["pool"]})
	add(resource.KindL3, map[string]any{"l2": ids[resource.KindL2]})
	add(resource.KindIPRange, map[string]any{"network": ids[resource.KindL3], "cidr": subnet})
	add(resource.KindSecGroup, map[string]any{})
	ids[resource.KindSecRule] = b.do(who, "secrule.create", map[string]any{"secgroup": ids[resource.KindSecGroup], "direction": "ingress", "protocol": "tcp", "port": "80"})
	add(resource.KindVM, map[string]any{
		"image": b.site.IDs["image"], "offering": b.site.IDs["small"], "networks": []any{map[string]any{"l3": ids[resource.KindL3], "secgroups": []any{ids[resource.KindSecGroup]}}},
	})
	for n := range resource.Referrers[*resource.NIC](b.s.cfg.Store.View(), resource.KindVM, ids[resource.KindVM]) {
		ids[resource.KindNIC] = n.ID
	}
	add(resource.KindVolume, map[string]any{"size": "1GiB"})
	add(resource.KindImage, map[string]any{"url": "http://example.net/" + prefix + ".qcow2"})
	add(resource.KindPolicy, map[string]any{"statements": []any{map[string]any{"effect": "allow", "actions": []any{"vm.*"}}}})
	add(resource.KindGroup, map[string]any{"policies": []any{ids[resource.KindPolicy]}})
	add(resource.KindUser, map[string]any{"groups": []any{ids[resource.KindGroup]}, "password": prefix + "password"})
	for task := range resource.Owned[*resource.Task](b.s.cfg.Store.View(), who.Token) {
		ids[resource.KindTask] = task.ID
	}
	for s := range resource.Owned[*resource.Session](b.s.cfg.Store.View(), who.Token) {
		ids[resource.KindSession] = s.ID
	}
	return ids
}

// two makes two accounts that are furnished alike, and share what the installation offers.
func (b *bench) two() (acme, rival Caller, acmes, rivals map[resource.Kind]string) {
	b.t.Helper()
	for _, s := range []struct{ kind, name string }{{"zone", "zone"}, {"vxlanpool", "pool"}, {"image", "image"}, {"offering", "small"}, {"diskoffering", "disk"}, {"l3", "outer"}} {
		b.do(adminCaller, s.kind+".share", map[string]any{"id": b.site.IDs[s.name], "all": true})
	}
	accounts := map[string]string{}
	for _, n := range []string{"hush-acme", "rival"} {
		accounts[n] = b.do(adminCaller, "account.create", map[string]any{"name": n, "password": "password of " + n})
	}
	acme, rival = b.session(accounts["hush-acme"], ""), b.session(accounts["rival"], "")
	acmes, rivals = b.furnish(acme, "hush-", "10.8.0.0/24"), b.furnish(rival, "open-", "10.9.0.0/24")
	acmes[resource.KindAccount], rivals[resource.KindAccount] = accounts["hush-acme"], accounts["rival"]
	if err := b.site.Settle(); err != nil {
		b.t.Fatal(err)
	}
	return acme, rival, acmes, rivals
}

// stolen is everything of an account that nobody else may see: ids and names.
func (b *bench) stolen(account string) map[string]string {
	out := map[string]string{}
	for _, kind := range resource.Kinds() {
		for r := range b.s.cfg.Store.View().Owned(kind, account) {
			out[r.Base().ID] = string(kind)
			if strings.HasPrefix(r.Base().Name, "hush-") {
				out[r.Base().Name] = string(kind)
			}
			if n, ok := r.(*resource.NIC); ok {
				out[n.MAC] = "MAC"
			}
		}
	}
	out[account] = "account"
	return out
}

// state is everything of an account, to see whether it was touched.
func (b *bench) state(account string) map[string]string {
	out := map[string]string{}
	for _, kind := range resource.Kinds() {
		for r := range b.s.cfg.Store.View().Owned(kind, account) {
			j, err := json.Marshal(r)
			if err != nil {
				b.t.Fatal(err)
			}
			out[string(kind)+"/"+r.Base().ID] = string(j)
		}
	}
	return out
}

// filler is a value of a parameter that is well formed; own are the caller's resources.
func filler(p Param, t reflect.Type, own map[resource.Kind]string) any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p.List {
		p.List = false
		return []any{filler(p, t.Elem(), own)}
	}
	if len(p.Fields) > 0 {
		out := map[string]any{}
		for _, f := range p.Fields {
			if f.Required {
				out[f.Name] = filler(f, t.FieldByIndex(f.index).Type, own)
			}
		}
		return out
	}
	switch {
	case p.Ref != "":
		return own[p.Ref]
	case len(p.Enum) > 0:
		return p.Enum[0]
	case t == reflect.TypeFor[Size]():
		return "2GiB"
	case t == reflect.TypeFor[netip.Addr]():
		return "10.9.0.77"
	case t == reflect.TypeFor[netip.Prefix]():
		return "10.10.0.0/24"
	case t == reflect.TypeFor[span]():
		return "90"
	case t == reflect.TypeFor[duration]():
		return "1h"
	case t == reflect.TypeFor[quotaLimit]():
		return "vms=5"
	case t.Kind() == reflect.Bool:
		return true
	case t.Kind() == reflect.Int, t.Kind() == reflect.Float64:
		return 1
	case p.Name == "public_key":
		return plantest.Key(999)
	case p.Name == "url":
		return "http://example.net/x"
	default:
		return "fill-" + p.Name
	}
}

// refPlaces lists every place of a reference in an operation's parameters: how to set it in a request.
func refPlaces(op *Operation) []place {
	var out []place
	var walk func(params []Param, t reflect.Type, set func(req map[string]any, own map[resource.Kind]string, p Param, v any))
	walk = func(params []Param, t reflect.Type, set func(req map[string]any, own map[resource.Kind]string, p Param, v any)) {
		for _, p := range params {
			ft := t.FieldByIndex(p.index).Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if p.List {
				ft = ft.Elem()
			}
			if p.Ref != "" {
				out = append(out, place{p.Ref, p.Name, func(req map[string]any, own map[resource.Kind]string, v any) {
					if p.List {
						v = []any{v}
					}
					set(req, own, p, v)
				}})
			}
			if len(p.Fields) > 0 {
				walk(p.Fields, ft, func(req map[string]any, own map[resource.Kind]string, inner Param, v any) {
					one := p
					one.List = false
					obj := filler(one, ft, own).(map[string]any)
					obj[inner.Name] = v
					if p.List {
						set(req, own, p, []any{obj})
					} else {
						set(req, own, p, obj)
					}
				})
			}
		}
	}
	walk(op.Params, op.params, func(req map[string]any, _ map[resource.Kind]string, p Param, v any) { req[p.Name] = v })
	return out
}

type place struct {
	kind resource.Kind
	name string
	set  func(req map[string]any, own map[resource.Kind]string, v any)
}

// TestAccounts_AreApart goes through the whole registry: whatever an account, or a user of it that may do everything there, puts in the
// place of any resource, it learns and changes nothing of another account's: a resource of the other account is answered exactly like
// one that never was. An operation that is added is covered the same day.
func TestAccounts_AreApart(t *testing.T) {
	b := newBench(t)
	acme, rival, acmes, rivals := b.two()
	policy := b.do(rival, "policy.create", map[string]any{"name": "all", "statements": []any{map[string]any{"effect": "allow", "actions": []any{"*"}}}})
	user := b.do(rival, "user.create", map[string]any{"name": "bob", "policies": []any{policy}})
	b.do(adminCaller, "quota.update", map[string]any{"account": rival.Token, "limits": []any{"vms=100000", "volumes=100000", "secgroups=100000", "l3-networks=100000", "images=100000", "vms-running=100000", "vcpus=100000", "memory=999TiB"}})
	secrets, before := b.stolen(acme.Token), b.state(acme.Token)
	// What an account may know of the installation: what was shared.
	for _, kind := range []resource.Kind{resource.KindHost, resource.KindCluster, resource.KindStorage} {
		for r := range b.s.cfg.Store.View().All(kind) {
			secrets[r.Base().ID] = string(kind)
		}
	}
	own := map[resource.Kind]string{}
	maps.Copy(own, rivals)
	for kind, name := range map[resource.Kind]string{resource.KindZone: "zone", resource.KindVXLANPool: "pool", resource.KindOffering: "small", resource.KindDiskOffering: "disk"} {
		own[kind] = b.site.IDs[name]
	}
	theirs := map[resource.Kind]string{resource.KindHost: b.site.IDs["h1"], resource.KindCluster: b.site.IDs["c1"], resource.KindStorage: b.site.IDs["local"]}
	maps.Copy(theirs, acmes)
	const nobody = "6f1c2b3a-0000-4000-8000-00000000dead"
	leak := func(t *testing.T, what, text, probe string) {
		t.Helper()
		text = strings.ReplaceAll(text, probe, "")
		for s, kind := range secrets {
			if s != probe && strings.Contains(text, s) {
				t.Errorf("%s tells of %s %s: %s", what, kind, s, text)
			}
		}
	}
	// outcome is an answer or error as text, without the id that was asked for.
	outcome := func(t *testing.T, who Caller, op *Operation, req map[string]any, probe string) string {
		t.Helper()
		out, err := b.call(who, op.Name(), req)
		if err != nil {
			var e *resource.Error
			if !errors.As(err, &e) {
				t.Fatalf("%s %v: %v", op.Name(), req, err)
			}
			j, _ := json.Marshal(e)
			out = "error " + string(j)
		}
		leak(t, fmt.Sprintf("%s %v", op.Name(), req), out, probe)
		return strings.ReplaceAll(out, probe, "ID")
	}
	calls := 0
	for _, op := range b.s.registry.Operations() {
		t.Run(op.Name(), func(t *testing.T) {
			base := func() map[string]any {
				req := map[string]any{}
				for _, p := range op.Params {
					if p.Required {
						req[p.Name] = filler(p, op.params.FieldByIndex(p.index).Type, own)
					}
				}
				if op.Class != Read {
					req["dry_run"] = true
				}
				return req
			}
			for who, caller := range map[string]Caller{"account": rival, "user": b.session(rival.Token, user)} {
				calls++
				outcome(t, caller, op, base(), "-")
				for _, pl := range refPlaces(op) {
					target, ok := theirs[pl.kind]
					if !ok {
						target, ok = b.site.IDs["lan"], pl.kind == resource.KindL2
					}
					if !ok {
						continue
					}
					for _, dry := range []bool{true, false} {
						if dry && op.Class == Read {
							continue
						}
						got, none := base(), base()
						for _, r := range []map[string]any{got, none} {
							if delete(r, "dry_run"); dry {
								r["dry_run"] = true
							}
						}
						pl.set(got, own, target)
						pl.set(none, own, nobody)
						calls += 2
						if pl.kind == resource.KindAccount && op.Verb == "share" {
							continue // by its id, which only the other account can tell, one may share with it
						}
						a, z := outcome(t, caller, op, got, target), outcome(t, caller, op, none, nobody)
						if a != z {
							t.Errorf("as %s, %s in place of %s is answered\n%s\nand what never was\n%s", who, pl.kind, pl.name, a, z)
						}
						if !strings.HasPrefix(a, "error") && op.Class != Read {
							t.Errorf("as %s, %s %v succeeded", who, op.Name(), got)
						}
					}
				}
			}
		})
	}
	if d := cmp.Diff(before, b.state(acme.Token)); d != "" {
		t.Errorf("something of the other account has changed:\n%s", d)
	}
	if calls < 500 {
		t.Errorf("only %d calls were made", calls)
	}
	// Lists, counts, conditions and sorting over relations.
	for _, kind := range resource.Kinds() {
		for _, q := range []map[string]any{
			{},
			{"count": true},
			{"where": []any{"owner=" + acme.Token}},
			{"where": []any{"name~=hush-*"}, "sort": []any{"-created"}},
		} {
			out, err := b.call(rival, string(kind)+".list", q)
			if err != nil {
				t.Fatal(err)
			}
			leak(t, fmt.Sprintf("%s.list %v", kind, q), out, "-")
			var page Page
			if err := json.Unmarshal([]byte(out), &page); err != nil {
				t.Fatal(err)
			}
			want := 0
			for r := range b.s.cfg.Store.View().All(kind) {
				if r.Base().Owner == rival.Token || r.Base().ID == rival.Token {
					want++
				}
			}
			if q["where"] != nil && page.Total != 0 {
				t.Errorf("%s.list %v finds %d", kind, q, page.Total)
			}
			exact := []resource.Kind{resource.KindVM, resource.KindNIC, resource.KindVolume, resource.KindUser, resource.KindSecGroup, resource.KindTask, resource.KindAccount}
			if slices.Contains(exact, kind) && q["where"] == nil && page.Total != want {
				t.Errorf("%s.list %v counts %d, the account has %d", kind, q, page.Total, want)
			}
		}
	}
	for _, c := range []string{"host.name~=*", "cluster.name~=*", "host.memory_mib>0"} {
		if out, err := b.call(rival, "vm.list", map[string]any{"where": []any{c}, "count": true}); err == nil && !strings.Contains(out, `"total":0`) {
			t.Errorf("a condition on hosts finds VMs: %s", out)
		}
	}
}

// TestUsers_DoWhatPoliciesAllow: reading is allowed, everything else must be; a denial outweighs; tags and ids narrow.
func TestUsers_DoWhatPoliciesAllow(t *testing.T) {
	b := newBench(t)
	acme, _, acmes, _ := b.two()
	vm := acmes[resource.KindVM]
	b.do(acme, "vm.update", map[string]any{"id": vm, "tags": []any{"test"}})
	policy := func(name string, statements ...map[string]any) string {
		var list []any
		for _, s := range statements {
			list = append(list, s)
		}
		return b.do(acme, "policy.create", map[string]any{"name": name, "statements": list})
	}
	as := func(policies ...string) Caller {
		list := []any{}
		for _, p := range policies {
			list = append(list, p)
		}
		return b.session(acme.Token, b.do(acme, "user.create", map[string]any{"name": fmt.Sprintf("u%d", b.keys), "policies": list}))
	}
	allowed := func(who Caller, op string, params map[string]any) bool {
		params["dry_run"] = true
		_, err := b.call(who, op, params)
		if err != nil && !resource.HasCode(err, resource.CodeForbidden) {
			t.Errorf("%s: %v", op, err)
		}
		return err == nil
	}
	power := policy("power", map[string]any{"effect": "allow", "actions": []any{"vm.stop", "vm.poweroff"}})
	noVM := policy("no-vm", map[string]any{"effect": "deny", "actions": []any{"vm.stop"}, "resources": []any{vm}})
	hidden := policy("hidden", map[string]any{"effect": "deny", "actions": []any{"vm.*"}, "resources": []any{vm}})
	tagged := policy("tagged", map[string]any{"effect": "allow", "actions": []any{"vm.*"}, "tags": []any{"test"}})
	other := policy("other", map[string]any{"effect": "allow", "actions": []any{"*"}, "tags": []any{"prod"}})
	for _, c := range []struct {
		name string
		who  Caller
		op   string
		want bool
	}{
		{"nothing is given", as(), "vm.stop", false},
		{"allowed", as(power), "vm.stop", true},
		{"another verb", as(power), "vm.reboot", false},
		{"denied on the resource", as(power, noVM), "vm.stop", false},
		{"by tag", as(tagged), "vm.reboot", true},
		{"by a tag that it lacks", as(other), "vm.reboot", false},
	} {
		if got := allowed(c.who, c.op, map[string]any{"id": vm}); got != c.want {
			t.Errorf("%s: %s is allowed: %t", c.name, c.op, got)
		}
	}
	if out, err := b.call(as(), "vm.get", map[string]any{"id": vm}); err != nil || !strings.Contains(out, vm) {
		t.Errorf("a user may read: %s, %v", out, err)
	}
	if _, err := b.call(as(hidden), "vm.get", map[string]any{"id": vm}); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("what is denied is not seen: %v", err)
	}
	// A group's policies count; and losing them takes effect on the session that is there.
	group := b.do(acme, "group.create", map[string]any{"name": "ops", "policies": []any{power}})
	id := b.do(acme, "user.create", map[string]any{"name": "grouped", "groups": []any{group}})
	grouped := b.session(acme.Token, id)
	if !allowed(grouped, "vm.stop", map[string]any{"id": vm}) {
		t.Error("the policy of a group does not count")
	}
	b.do(acme, "user.update", map[string]any{"id": id, "groups": []any{}})
	if allowed(grouped, "vm.stop", map[string]any{"id": vm}) {
		t.Error("a user that left its group may still do what that allows")
	}
	// A user sees its own session only, and ends it without a policy.
	out, err := b.call(grouped, "session.list", map[string]any{})
	if err != nil || !strings.Contains(out, `"total":1`) {
		t.Errorf("sessions of a user: %s, %v", out, err)
	}
	if _, err := b.call(grouped, "session.renew", map[string]any{}); err != nil {
		t.Errorf("a user renews its session: %v", err)
	}
}

// TestShares: what is shared can be used and not changed; recalled, it is gone from sight, and what was made with it stays.
func TestShares(t *testing.T) {
	b := newBench(t)
	acme, rival, acmes, rivals := b.two()
	net := acmes[resource.KindL3]
	attach := map[string]any{"vm": rivals[resource.KindVM], "network": net}
	if _, err := b.call(rival, "nic.attach", attach); !resource.HasCode(err, resource.CodeNotFound) {
		t.Fatalf("before it is shared: %v", err)
	}
	b.do(acme, "l3.share", map[string]any{"id": net, "account": rival.Token})
	b.do(acme, "l3.share", map[string]any{"id": net, "account": rival.Token}) // again is no mistake
	out, err := b.call(rival, "l3.get", map[string]any{"id": net})
	if err != nil || strings.Contains(out, acmes[resource.KindL2]) {
		t.Errorf("a shared network is seen, not what it stands on: %s, %v", out, err)
	}
	if out, err := b.call(rival, "iprange.list", map[string]any{"where": []any{"l3.id=" + net}}); err != nil || !strings.Contains(out, acmes[resource.KindIPRange]) {
		t.Errorf("its ranges are seen: %s, %v", out, err)
	}
	nic := b.do(rival, "nic.attach", attach)
	for op, params := range map[string]map[string]any{
		"l3.update": {"id": net, "name": "mine"}, "l3.delete": {"id": net, "cascade": true}, "iprange.create": {"network": net, "name": "x", "cidr": "10.99.0.0/24"}, "l3.share": {"id": net, "all": true},
	} {
		if _, err := b.call(rival, op, params); !resource.HasCode(err, resource.CodeForbidden) {
			t.Errorf("%s on what is shared: %v", op, err)
		}
	}
	if _, err := b.call(acme, "l3.delete", map[string]any{"id": net, "cascade": true}); !resource.HasCode(err, resource.CodeInUse) || strings.Contains(err.Error(), rivals[resource.KindVM]) {
		t.Errorf("its owner can't delete it while others use it, and is not told who: %v", err)
	}
	b.do(acme, "l3.recall", map[string]any{"id": net, "account": rival.Token})
	if _, err := b.call(rival, "l3.get", map[string]any{"id": net}); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("after it was recalled: %v", err)
	}
	if out, err := b.call(rival, "nic.get", map[string]any{"id": nic}); err != nil || strings.Contains(out, net) {
		t.Errorf("the NIC stays, and does not say where it is any more: %s, %v", out, err)
	}
}

// TestQuota_HoldsAtOnce: 64 callers at once get no more than the quota, and one by one what is left.
func TestQuota_HoldsAtOnce(t *testing.T) {
	b := newBench(t)
	acme, _, acmes, _ := b.two()
	var ok, refused int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			op := b.s.registry.Find(resource.KindVM, "create")
			body := fmt.Sprintf(`{"name":"n%d","diskless":true,"offering":%q,"stopped":true}`, i, b.site.IDs["small"])
			_, err := b.s.Call(t.Context(), op, acme, "", []byte(body))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ok++
			case resource.HasCode(err, resource.CodeQuota):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ok != 19 || refused != 45 {
		t.Errorf("%d were made and %d refused; the quota is 20, and there was one", ok, refused)
	}
	// A quota below what is there stands in no way of what does not add to it.
	b.do(adminCaller, "quota.update", map[string]any{"account": acme.Token, "limits": []any{"vms=3"}})
	if _, err := b.call(acme, "vm.poweroff", map[string]any{"id": acmes[resource.KindVM]}); err != nil {
		t.Errorf("with a quota that is exceeded a VM can't be switched off: %v", err)
	}
	b.do(adminCaller, "quota.update", map[string]any{"account": acme.Token, "limits": []any{"vms=21"}, "reset": []any{"vcpus"}})
	b.do(acme, "vm.create", map[string]any{"name": "one-more", "diskless": true, "offering": b.site.IDs["small"], "stopped": true})
	if _, err := b.call(acme, "vm.create", map[string]any{"name": "too-much", "diskless": true, "offering": b.site.IDs["small"], "stopped": true}); !resource.HasCode(err, resource.CodeQuota) {
		t.Errorf("one more than the quota: %v", err)
	}
	out, err := b.call(acme, "quota.list", map[string]any{})
	if err != nil || !strings.Contains(out, `"limit":21,"limit_text":"21","quota":"vms","used":21`) {
		t.Errorf("quotas: %s, %v", out, err)
	}
}

// TestAccount_GoesWithEverything: nothing of a deleted account is left, its sessions end at once, and others keep theirs.
func TestAccount_GoesWithEverything(t *testing.T) {
	b := newBench(t)
	acme, rival, _, rivals := b.two()
	mine := b.state(rival.Token)
	if _, err := b.call(adminCaller, "account.delete", map[string]any{"id": acme.Token}); !resource.HasCode(err, resource.CodeInUse) {
		t.Fatalf("without cascade: %v", err)
	}
	if _, err := b.call(adminCaller, "account.delete", map[string]any{"id": acme.Token, "cascade": true}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.call(acme, "vm.list", map[string]any{}); !resource.HasCode(err, resource.CodeLogin) {
		t.Errorf("a session of the deleted account: %v", err)
	}
	if err := b.site.Settle(); err != nil {
		t.Fatal(err)
	}
	if left := b.state(acme.Token); len(left) > 0 {
		t.Errorf("left of the account: %v", slices.Sorted(maps.Keys(left)))
	}
	if b.s.cfg.Store.View().Get(resource.KindAccount, acme.Token) != nil {
		t.Error("the account itself is left")
	}
	after := b.state(rival.Token)
	if after["vm/"+rivals[resource.KindVM]] != mine["vm/"+rivals[resource.KindVM]] {
		t.Error("a VM of another account has changed")
	}
	if _, err := b.call(adminCaller, "account.delete", map[string]any{"id": resource.AdminAccount, "cascade": true}); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("the admin account: %v", err)
	}
}

// TestChangeOwner: a VM takes its NICs and volumes along, within the new owner's quotas.
func TestChangeOwner(t *testing.T) {
	b := newBench(t)
	acme, rival, acmes, _ := b.two()
	vm := acmes[resource.KindVM]
	chown := map[string]any{"id": vm, "account": rival.Token}
	if _, err := b.call(acme, "vm.chown", chown); !resource.HasCode(err, resource.CodeNotFound) && !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("by its owner: %v", err)
	}
	if _, err := b.call(adminCaller, "vm.chown", chown); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("with a NIC in a group of the old owner: %v", err)
	}
	b.do(acme, "nic.set-groups", map[string]any{"id": acmes[resource.KindNIC], "remove": []any{acmes[resource.KindSecGroup]}})
	b.do(adminCaller, "quota.update", map[string]any{"account": rival.Token, "limits": []any{"vms=1"}})
	if _, err := b.call(adminCaller, "vm.chown", chown); !resource.HasCode(err, resource.CodeQuota) {
		t.Errorf("over the quota of the new owner: %v", err)
	}
	b.do(adminCaller, "quota.update", map[string]any{"account": rival.Token, "reset": []any{"vms"}})
	b.do(adminCaller, "vm.chown", chown)
	if _, err := b.call(acme, "vm.get", map[string]any{"id": vm}); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("the old owner: %v", err)
	}
	for op, id := range map[string]string{"vm.get": vm, "nic.get": acmes[resource.KindNIC]} {
		if _, err := b.call(rival, op, map[string]any{"id": id}); err != nil {
			t.Errorf("the new owner, %s: %v", op, err)
		}
	}
}

// TestRequestIDs_AreAnAccountsOwn: the id of another account's request finds nothing and blocks nothing.
func TestRequestIDs_AreAnAccountsOwn(t *testing.T) {
	b := newBench(t)
	acme, rival, _, _ := b.two()
	first := b.do(acme, "secgroup.create", map[string]any{"name": "hush-g", "request": "deploy-1"})
	if again := b.do(acme, "secgroup.create", map[string]any{"name": "hush-g", "request": "deploy-1"}); again != first {
		t.Errorf("a repetition made %s, the first was %s", again, first)
	}
	if other := b.do(rival, "secgroup.create", map[string]any{"name": "mine", "request": "deploy-1"}); other == first || other == "" {
		t.Errorf("another account's request of the same id gave %q", other)
	}
}

// TestCallers: who is not vouched for gets nothing.
func TestCallers(t *testing.T) {
	b := newBench(t)
	acme, _, _, _ := b.two()
	viewer := Caller{Token: "eye", Key: "UEYE", Issuer: issuerViewer}
	if _, err := b.call(viewer, "vm.list", map[string]any{}); err != nil {
		t.Error(err)
	}
	if _, err := b.call(viewer, "zone.create", map[string]any{"name": "z"}); !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("a viewer changes something: %v", err)
	}
	for name, c := range map[string]Caller{
		"an unknown signer": {Token: acme.Token, Key: acme.Key, Issuer: "AELSE"}, "no signer": {Token: acme.Token, Key: acme.Key},
		"another's token": {Token: resource.AdminAccount, Key: acme.Key, Issuer: issuerSession}, "an unknown key": {Token: acme.Token, Key: plantest.Key(1), Issuer: issuerSession},
	} {
		if _, err := b.call(c, "vm.list", map[string]any{}); !resource.HasCode(err, resource.CodeLogin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.site.Now = b.site.Now.Add(61 * time.Minute)
	if _, err := b.call(acme, "vm.list", map[string]any{}); !resource.HasCode(err, resource.CodeLogin) {
		t.Errorf("a session that ran out: %v", err)
	}
}

// TestPasswords: one's own needs the present one, an account sets those of its users, and other sessions end.
func TestPasswords(t *testing.T) {
	b := newBench(t)
	acme, _, acmes, rivals := b.two()
	second := b.session(acme.Token, "")
	change := func(who Caller, kind, id, old string) error {
		_, err := b.call(who, kind+".password", map[string]any{"id": id, "old_password": old, "new_password": "something new"})
		return err
	}
	if err := change(acme, "account", acme.Token, "wrong"); !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("with a wrong present password: %v", err)
	}
	if err := change(acme, "account", acme.Token, "password of hush-acme"); err != nil {
		t.Error(err)
	}
	if _, err := b.call(second, "vm.list", map[string]any{}); !resource.HasCode(err, resource.CodeLogin) {
		t.Errorf("another session goes on after the password was changed: %v", err)
	}
	if _, err := b.call(acme, "vm.list", map[string]any{}); err != nil {
		t.Errorf("one's own session ends with the change: %v", err)
	}
	if err := change(acme, "user", acmes[resource.KindUser], ""); err != nil {
		t.Errorf("an account sets a user's password: %v", err)
	}
	if err := change(acme, "user", rivals[resource.KindUser], ""); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("another account's user: %v", err)
	}
	user := b.session(acme.Token, acmes[resource.KindUser])
	if err := change(user, "user", acmes[resource.KindUser], "something new"); err != nil {
		t.Errorf("a user sets its own: %v", err)
	}
	colleague := b.do(acme, "user.create", map[string]any{"name": "colleague"})
	if err := change(user, "user", colleague, ""); !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("a user sets another's: %v", err)
	}
	if err := change(user, "account", acme.Token, "something new"); !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("a user sets its account's: %v", err)
	}
	if err := change(adminCaller, "account", resource.AdminAccount, ""); err != nil {
		t.Errorf("whoever has a credentials file sets the administrator's: %v", err)
	}
	if _, err := b.call(acme, "user.password", map[string]any{"id": colleague, "new_password": "short"}); !resource.HasCode(err, resource.CodeInvalid) || strings.Contains(err.Error(), "short\"") {
		t.Errorf("a short password: %v", err)
	}
}

// TestMask: what is recorded of a request holds no secret, and all else.
func TestMask(t *testing.T) {
	op := NewRegistry().Find(resource.KindAccount, "create")
	got := string(mask([]byte(`{"name":"a","password":"s3cret","tags":["x"],"nonsense":1}`), op.allParams()))
	if want := `{"name":"a","password":"***","tags":["x"]}`; got != want {
		t.Errorf("recorded is %s, want %s", got, want)
	}
	vm := NewRegistry().Find(resource.KindVM, "create")
	body := `{"name":"a","networks":[{"l3":"n"}]}`
	if got := string(mask([]byte(body), vm.allParams())); got != body {
		t.Errorf("recorded is %s", got)
	}
}
