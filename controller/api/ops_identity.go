package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"shoal/controller/access"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

// Bounds of passwords, in characters and bytes.
const (
	minPassword = 8
	maxPassword = 256
)

// checkPassword holds a new password to its bounds. The error does not hold it.
func checkPassword(field, s string) error {
	switch {
	case utf8.RuneCountInString(s) < minPassword:
		return resource.Invalid(field, "has fewer than %d characters", minPassword)
	case len(s) > maxPassword:
		return resource.Invalid(field, "is longer than %d bytes", maxPassword)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }):
		return resource.Invalid(field, "holds a character that can't be typed")
	}
	return nil
}

// hashNew hashes the password of a new account or user; "" for none.
func hashNew(ctx context.Context, env *Env, password string) (string, error) {
	if password == "" {
		return "", nil
	}
	if err := checkPassword("password", password); err != nil {
		return "", err
	}
	return env.Passwords.Hash(ctx, password)
}

// passwordParams are the parameters of a change of a password.
type passwordParams struct {
	ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
	New     string `json:"new_password" required:"true" secret:"true" help:"new password, 8 to 256 characters"`
	Old     string `json:"old_password,omitempty" secret:"true" help:"present password, where it is your own"`
	OneTime bool   `json:"one_time,omitempty" help:"have it changed at the next login"`
}

// passwordOp declares the change of a password of a kind.
func passwordOp(g *Registry, kind resource.Kind) {
	writesPrepared(g, Operation{
		Kind: kind, Verb: "password", Summary: "Set the password of " + article(kind), Scope: ScopeOwn,
		Help: "It is asked for, or read from a file with --new-password-file; your own needs the present one, too. All other sessions end. " +
			"A user may set its own, an account those of its users, an administrator every one.",
		Example: fmt.Sprintf("shoalctl %s password NAME", kind),
	}, func(ctx context.Context, env *Env, r resource.Reader, who access.Principal, p *passwordParams) (string, error) {
		if err := checkPassword("new_password", p.New); err != nil {
			return "", err
		}
		// Whoever has a credentials file made beside the keys may do without: it is the way back in.
		if self := p.ID == who.ID && who.Session != ""; self {
			ok, err := env.Passwords.Check(ctx, sealedPassword(r, kind, p.ID), p.Old)
			if err != nil {
				return "", err
			}
			if !ok {
				e := resource.Invalid("old_password", "is not the present password")
				e.Code = resource.CodeForbidden
				return "", e
			}
		}
		return env.Passwords.Hash(ctx, p.New)
	}, func(tx resource.Tx, p *passwordParams, sealed string) (Outcome, error) {
		return did(plan.SetPassword(tx, kind, p.ID, sealed, p.OneTime, tx.Request().Session))
	})
}

// sealedPassword is the hash of an account's or user's password, "" for none.
func sealedPassword(r resource.Reader, kind resource.Kind, id string) string {
	switch x := r.Get(kind, id).(type) {
	case *resource.Account:
		return x.Password
	case *resource.User:
		return x.Password
	default:
		return ""
	}
}

func accounts(g *Registry) {
	readable(g, resource.KindAccount, "state=enabled",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STATE", Path: "state"}, Column{Title: "DELETING", Path: "deleting", Wide: true}, Column{Title: "DESCRIPTION", Path: "description"}, age(), idColumn())
	type accountCreate struct {
		meta
		Password string `json:"password,omitempty" secret:"true" help:"password; without one nobody can log in as the account itself"`
		OneTime  bool   `json:"one_time,omitempty" help:"have it changed at the first login"`
	}
	writesPrepared(g, Operation{
		Kind: resource.KindAccount, Verb: "create", Summary: "Create an account",
		Help: "An account owns resources: whoever works in it sees what it owns and what was shared with it, and nothing else. It has quotas (shoalctl quota list), " +
			"and users of its own (shoalctl user create). It needs networks, images and offerings of its own or shared with it.",
		Example: "shoalctl account create acme\nshoalctl account create acme --password-file acme.txt --one-time",
	}, func(ctx context.Context, env *Env, _ resource.Reader, _ access.Principal, p *accountCreate) (string, error) {
		return hashNew(ctx, env, p.Password)
	}, func(tx resource.Tx, p *accountCreate, sealed string) (Outcome, error) {
		return create(tx, &resource.Account{Meta: p.base(tx), State: resource.Enabled, Password: sealed, OneTime: p.OneTime})
	})
	updatable[*resource.Account](g, "acme --description 'pays monthly'", "", metaUpdateParts, nil)
	switchable(g, "Nobody of a disabled account can log in, and its sessions end; its VMs go on.", func(a *resource.Account) *resource.State { return &a.State }, nil)
	passwordOp(g, resource.KindAccount)
	deletable(g, resource.KindAccount, "With --cascade everything that it owns goes with it, VMs and volumes with their data. Its sessions end at once; its record goes when hosts have confirmed that all is gone.")

	quotas(g)
	reads(g, Operation{
		Kind: KindIdentity, Verb: "get", Result: ResultOne, Scope: ScopeOwn, Summary: "Show who you are",
		Help: "Account and user, until when the session lasts, and what kind of rights it has.", Example: "shoalctl identity get", Paths: []string{"whoami"},
		Columns: []Column{
			{Title: "NAME", Path: "name"},
			{Title: "ACCOUNT", Path: "account"},
			{Title: "USER", Path: "user"},
			{Title: "RIGHTS", Path: "rights"},
			{Title: "EXPIRES", Path: "expires", As: "time"},
			{Title: "SESSION", Path: "session", Wide: true},
		},
	}, func(env *Env, r resource.Reader, _ *struct{}) (any, error) {
		who := env.caller
		out := struct {
			ID      string    `json:"id"`
			Name    string    `json:"name"`
			Account string    `json:"account"`
			User    string    `json:"user,omitempty"`
			Rights  string    `json:"rights"`
			Session string    `json:"session,omitempty"`
			From    string    `json:"from,omitempty"`
			Expires time.Time `json:"expires,omitzero"`
		}{ID: who.ID, Name: who.Name, Account: who.Account, User: who.User, Session: who.Session, From: who.From}
		switch {
		case who.Admin:
			out.Rights = "everything"
		case who.ReadOnly:
			out.Rights = "read everything"
		case who.User == "":
			out.Rights = "everything in the account"
		default:
			out.Rights = "read the account, and what policies allow"
		}
		if s, ok := resource.Find[*resource.Session](r, who.Session); ok {
			out.Expires = s.Expires
		}
		return out, nil
	})
}

// quotaLimit is a quota with its limit, as "vms=50".
type quotaLimit struct {
	Quota resource.Quota
	Limit uint64
}

// UnmarshalText reads "<quota>=<limit>"; a limit may have a unit.
func (q *quotaLimit) UnmarshalText(b []byte) error {
	name, text, ok := strings.Cut(string(b), "=")
	if !ok || !slices.ContainsFunc(resource.Quotas(), func(d resource.QuotaDefault) bool { return string(d.Name) == name }) {
		var names []string
		for _, d := range resource.Quotas() {
			names = append(names, string(d.Name))
		}
		return fmt.Errorf("%q is not <quota>=<limit> with one of %s", b, strings.Join(names, ", "))
	}
	n, err := ParseSize(text)
	if err != nil {
		return err
	}
	q.Quota, q.Limit = resource.Quota(name), uint64(n)
	return nil
}

// MarshalText is what UnmarshalText reads.
func (q quotaLimit) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s=%d", q.Quota, q.Limit), nil
}

func quotas(g *Registry) {
	type quotaList struct {
		Account string `json:"account,omitempty" arg:"1" ref:"account" help:"account; your own where not given"`
	}
	reads(g, Operation{
		Kind: KindQuota, Verb: "list", Aliases: []string{"ls"}, Result: ResultList, Summary: "List the quotas of an account, and what it has of them",
		Help: "What is in the recycle bin counts. The admin account has no quotas. memory and the names ending in -bytes count bytes.", Example: "shoalctl quota list acme",
		Columns: []Column{{Title: "QUOTA", Path: "quota"}, {Title: "USED", Path: "used_text"}, {Title: "LIMIT", Path: "limit_text"}, {Title: "DEFAULT", Path: "default", Wide: true}},
	}, func(env *Env, r resource.Reader, p *quotaList) (any, error) {
		who := env.caller
		id := cmp.Or(p.Account, who.Account)
		a, err := resource.Get[*resource.Account](r, id)
		if err != nil {
			return nil, err
		}
		page := Page{Items: []json.RawMessage{}, Seq: r.Seq()}
		if a.ID == resource.AdminAccount {
			return page, nil
		}
		// All that it owns counts, also what a policy hides from a user.
		use := access.Usage(env.whole, a.ID)
		for _, q := range resource.Quotas() {
			row := map[string]any{"quota": q.Name, "used": use[q.Name], "limit": a.Limit(q.Name), "default": q.Limit}
			row["used_text"], row["limit_text"] = access.Amount(q.Name, use[q.Name]), access.Amount(q.Name, a.Limit(q.Name))
			b, err := json.Marshal(row)
			if err != nil {
				return nil, fmt.Errorf("encode quota %s: %w", q.Name, err)
			}
			page.Items = append(page.Items, b)
		}
		page.Total = len(page.Items)
		return page, nil
	})
	type quotaSet struct {
		Account string           `json:"account" arg:"1" required:"true" ref:"account" help:"account"`
		Limits  []quotaLimit     `json:"limits,omitempty" flag:"limit" help:"quota and its limit, such as vms=50 or memory=200GiB"`
		Reset   []resource.Quota `json:"reset,omitempty" split:"true" help:"quota that gets its default back"`
	}
	writes(g, Operation{
		Kind: KindQuota, Verb: "update", Aliases: []string{"set"}, Scope: ScopeAdmin, Summary: "Set quotas of an account",
		Help: "What the account has more of than it may from now on stays; it can't add to it.", Example: "shoalctl quota update acme --limit vms=50 --limit memory=200GiB",
	}, func(tx resource.Tx, p *quotaSet) (Outcome, error) {
		a, err := resource.Get[*resource.Account](tx, p.Account)
		if err != nil {
			return Outcome{}, err
		}
		a = resource.Copy(a)
		all := maps.Clone(a.Quotas)
		if all == nil {
			all = map[resource.Quota]uint64{}
		}
		for _, l := range p.Limits {
			all[l.Quota] = l.Limit
		}
		for i, q := range p.Reset {
			if _, ok := all[q]; !ok && !slices.ContainsFunc(resource.Quotas(), func(d resource.QuotaDefault) bool { return d.Name == q }) {
				return Outcome{}, resource.Invalid(fmt.Sprintf("reset[%d]", i), "there is no quota %q", q)
			}
			delete(all, q)
		}
		if a.Quotas = all; len(all) == 0 {
			a.Quotas = nil
		}
		return did(plan.Update(tx, a))
	})
}

// accountOf is the account that something is made in: the one that an administrator names, else the caller's own.
func accountOf(tx resource.Tx, named string) (string, error) {
	if named == "" || named == tx.Request().Account {
		return tx.Request().Account, nil
	}
	if !tx.Request().Admin {
		e := resource.Invalid("account", "may be given by the admin account only")
		e.Code = resource.CodeForbidden
		return "", e
	}
	return named, nil
}

// statement is a statement of a policy as it is typed: "allow,vm.start,vm.stop,tag=test".
type statement struct {
	Effect    string   `json:"effect" bare:"true" required:"true" enum:"allow|deny" help:"allow or deny"`
	Actions   []string `json:"actions" required:"true" help:"operation, <kind>.<verb>, with * for any text"`
	Resources []string `json:"resources,omitempty" help:"id of a resource that it is about; all where none is given"`
	Tags      []string `json:"tags,omitempty" help:"tag that the resource must have one of"`
}

func statements(in []statement) []resource.Statement {
	out := make([]resource.Statement, len(in))
	for i, s := range in {
		out[i] = resource.Statement{Effect: resource.Effect(s.Effect), Actions: s.Actions, Resources: s.Resources, Tags: s.Tags}
	}
	return out
}

func users(g *Registry) {
	readable(g, resource.KindUser, "group.name=ops",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ACCOUNT", Path: "names.account_id"}, Column{Title: "STATE", Path: "state"}, Column{Title: "GROUPS", Path: "names.group_ids"},
		Column{Title: "POLICIES", Path: "names.policy_ids"}, age(), idColumn())
	type userCreate struct {
		meta
		Account  string   `json:"account,omitempty" ref:"account" help:"account that it works in; your own where not given"`
		Password string   `json:"password,omitempty" secret:"true" help:"password; without one it can't log in"`
		OneTime  bool     `json:"one_time,omitempty" help:"have it changed at the first login"`
		Groups   []string `json:"groups,omitempty" flag:"group" ref:"group" help:"group to put it into"`
		Policies []string `json:"policies,omitempty" flag:"policy" ref:"policy" help:"policy to give it"`
	}
	writesPrepared(g, Operation{
		Kind: resource.KindUser, Verb: "create", Summary: "Create a user",
		Help:    "A user owns nothing: it works with what its account has. It may read, and do what policies of its own and of its groups allow. Users of the admin account may do everything.",
		Example: "shoalctl user create ann --policy operators\nshoalctl user create bob --account acme --password-file bob.txt --one-time",
	}, func(ctx context.Context, env *Env, _ resource.Reader, _ access.Principal, p *userCreate) (string, error) {
		return hashNew(ctx, env, p.Password)
	}, func(tx resource.Tx, p *userCreate, sealed string) (Outcome, error) {
		account, err := accountOf(tx, p.Account)
		if err != nil {
			return Outcome{}, err
		}
		return create(tx, &resource.User{
			Meta: p.base(tx), AccountID: account, State: resource.Enabled, Password: sealed, OneTime: p.OneTime, GroupIDs: sorted(p.Groups), PolicyIDs: sorted(p.Policies),
		})
	})
	type userUpdate struct {
		getParams
		metaChange
		Groups   *[]string `json:"groups,omitempty" flag:"group" ref:"group" help:"groups, which replace the old ones; an empty text for none"`
		Policies *[]string `json:"policies,omitempty" flag:"policy" ref:"policy" help:"policies, which replace the old ones; an empty text for none"`
	}
	updatable(g, "ann --group ops", "It takes effect at once, also on sessions.", func(p *userUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *userUpdate, u *resource.User) error {
			if p.Groups != nil {
				u.GroupIDs = sorted(*p.Groups)
			}
			if p.Policies != nil {
				u.PolicyIDs = sorted(*p.Policies)
			}
			return nil
		})
	switchable(g, "A disabled user can't log in, and its sessions end.", func(u *resource.User) *resource.State { return &u.State }, nil)
	passwordOp(g, resource.KindUser)
	deletable(g, resource.KindUser, "Its sessions end. What it has made belongs to its account and stays.")

	readable(g, resource.KindGroup, "user.name=ann",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ACCOUNT", Path: "names.account_id"}, Column{Title: "POLICIES", Path: "names.policy_ids"}, age(), idColumn())
	type groupCreate struct {
		meta
		Account  string   `json:"account,omitempty" ref:"account" help:"account that it is in; your own where not given"`
		Policies []string `json:"policies,omitempty" flag:"policy" ref:"policy" help:"policy to give it"`
	}
	writes(g, Operation{
		Kind: resource.KindGroup, Verb: "create", Summary: "Create a group of users", Help: "Its users get the policies of the group beside their own.",
		Example: "shoalctl group create ops --policy operators",
	}, func(tx resource.Tx, p *groupCreate) (Outcome, error) {
		account, err := accountOf(tx, p.Account)
		if err != nil {
			return Outcome{}, err
		}
		return create(tx, &resource.Group{Meta: p.base(tx), AccountID: account, PolicyIDs: sorted(p.Policies)})
	})
	type groupUpdate struct {
		getParams
		metaChange
		Policies *[]string `json:"policies,omitempty" flag:"policy" ref:"policy" help:"policies, which replace the old ones; an empty text for none"`
	}
	updatable(g, "ops --policy operators", "", func(p *groupUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *groupUpdate, x *resource.Group) error {
			if p.Policies != nil {
				x.PolicyIDs = sorted(*p.Policies)
			}
			return nil
		})
	deletable(g, resource.KindGroup, "Its users stay.")

	readable(g, resource.KindPolicy, "name=operators",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ACCOUNT", Path: "names.account_id"}, Column{Title: "STATEMENTS", Path: "statements", Wide: true}, age(), idColumn())
	type policyCreate struct {
		meta
		Account    string      `json:"account,omitempty" ref:"account" help:"account that it is in; your own where not given"`
		Statements []statement `json:"statements" flag:"statement" required:"true" help:"what it allows or denies: allow,actions=vm.start or deny,actions=*.delete,tags=prod; may name actions, resources and tags several times"`
	}
	writes(g, Operation{
		Kind: resource.KindPolicy, Verb: "create", Summary: "Create a policy",
		Help: "Statements allow or deny operations, by name (<kind>.<verb>, with * for any text; shoalctl schema get lists them), on all resources of the account, on some by id, or on those " +
			"that have a tag. A user may do what any of its policies allows and none denies.",
		Example: "shoalctl policy create operators --statement allow,actions=vm.start,actions=vm.stop\nshoalctl policy create test --statement 'allow,actions=vm.*,tags=test' --statement 'deny,actions=*.delete'",
	}, func(tx resource.Tx, p *policyCreate) (Outcome, error) {
		account, err := accountOf(tx, p.Account)
		if err != nil {
			return Outcome{}, err
		}
		return create(tx, &resource.Policy{Meta: p.base(tx), AccountID: account, Statements: statements(p.Statements)})
	})
	type policyUpdate struct {
		getParams
		metaChange
		Statements *[]statement `json:"statements,omitempty" flag:"statement" help:"statements, which replace the old ones"`
	}
	updatable(g, "operators --statement 'allow,actions=vm.*'", "It takes effect at once, also on sessions.", func(p *policyUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *policyUpdate, x *resource.Policy) error {
			if p.Statements != nil {
				x.Statements = statements(*p.Statements)
			}
			return nil
		})
	deletable(g, resource.KindPolicy, "Who has it loses what it allows.")
}

// sorted is a list of ids as resources keep it.
func sorted(ids []string) []string {
	out := slices.Clone(ids)
	slices.Sort(out)
	if out = slices.Compact(out); len(out) == 0 {
		return nil
	}
	return out
}

func sessions(g *Registry) {
	readable(g, resource.KindSession, "account.name=acme",
		Column{Title: "NAME", Path: "name"}, Column{Title: "FROM", Path: "from"}, Column{Title: "EXPIRES", Path: "expires", As: "time"}, age(), Column{Title: "ID", Path: "id"})
	writesPrepared(g, Operation{
		Kind: resource.KindSession, Verb: "renew", Scope: ScopeOwn, Summary: "Make your session last from now on",
		Help: "shoalctl does it by itself when half of a session's time is over.", Example: "shoalctl session renew", after: issueSession,
	}, func(_ context.Context, env *Env, _ resource.Reader, _ access.Principal, _ *struct{}) (time.Duration, error) {
		return env.SessionTime, nil
	}, func(tx resource.Tx, _ *struct{}, last time.Duration) (Outcome, error) {
		id := tx.Request().Session
		if id == "" {
			return Outcome{}, resource.Invalid("session", "your credentials are no session: they are a file that was made beside the keys")
		}
		return did(plan.RenewSession(tx, id, last))
	})
	writes(g, Operation{
		Kind: resource.KindSession, Verb: "delete", Aliases: []string{"rm"}, Scope: ScopeOwn, Summary: "End a session", Class: Dangerous,
		Help: "Its credentials stop working at once. shoalctl logout ends your own.", Example: "shoalctl session delete SESSION",
	}, func(tx resource.Tx, p *getParams) (Outcome, error) {
		deleted, err := plan.Delete(tx, resource.KindSession, p.ID, plan.DeleteOptions{})
		return Outcome{Deleted: deleted, Subject: resource.Ref{Kind: resource.KindSession, ID: p.ID}}, err
	})
}

// issueSession signs the credential of the session that the reply is about.
func issueSession(env *Env, _ resource.Reader, _ any, reply *Reply) error {
	s, ok := reply.main.(*resource.Session)
	if !ok || env.SessionJWT == nil || reply.DryRun {
		return nil
	}
	var err error
	reply.JWT, err = env.SessionJWT(s)
	reply.Expires = s.Expires
	return err
}

// shareParams name who gets a resource.
type shareParams struct {
	ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
	Account string `json:"account,omitempty" ref:"account" use:"true" blind:"true" help:"account that gets it; by its id where you are not an administrator"`
	All     bool   `json:"all,omitempty" help:"every account gets it, also those that are made later"`
}

func shares(g *Registry) {
	for _, kind := range resource.Kinds() {
		if resource.Shareable(kind) {
			shareable(g, kind)
		}
		if chownable(kind) {
			chown(g, kind)
		}
	}
	readable(g, resource.KindShare, "resource_kind=l3",
		Column{Title: "KIND", Path: "resource_kind"}, Column{Title: "RESOURCE", Path: "names.resource_id"}, Column{Title: "ACCOUNT", Path: "names.account_id"}, age(), idColumn())
}

// shareable declares share and recall of a kind.
func shareable(g *Registry, kind resource.Kind) {
	run := func(f func(tx resource.Tx, kind resource.Kind, id, account string) (*resource.Share, error)) func(tx resource.Tx, p *shareParams) (Outcome, error) {
		return func(tx resource.Tx, p *shareParams) (Outcome, error) {
			if (p.Account == "") == !p.All {
				return Outcome{}, resource.Invalid("account", "either an account or all must be given")
			}
			return did(f(tx, kind, p.ID, p.Account))
		}
	}
	writes(g, Operation{
		Kind: kind, Verb: "share", Scope: ScopeAccount, Summary: "Share " + article(kind) + " with an account, or with all",
		Help: "It can be seen and used there, and changed by its owner only.", Example: fmt.Sprintf("shoalctl %s share NAME --account acme\nshoalctl %s share NAME --all", kind, kind),
	}, run(plan.ShareResource))
	writes(g, Operation{
		Kind: kind, Verb: "recall", Scope: ScopeAccount, Class: Dangerous, Summary: "Share " + article(kind) + " no longer",
		Help: "What was made with it stays.", Example: fmt.Sprintf("shoalctl %s recall NAME --account acme", kind),
	}, run(plan.RecallResource))
}

func chownable(kind resource.Kind) bool {
	switch kind {
	case resource.KindVM, resource.KindVolume, resource.KindImage, resource.KindSecGroup, resource.KindL2, resource.KindL3:
		return true
	default:
		return false
	}
}

// chown declares the change of owner of a kind.
func chown(g *Registry, kind resource.Kind) {
	type chownParams struct {
		ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
		Account string `json:"account" required:"true" ref:"account" help:"account that it belongs to from now on"`
	}
	writes(g, Operation{
		Kind: kind, Verb: "chown", Scope: ScopeAdmin, Summary: "Give " + article(kind) + " to another account",
		Help:    "What belongs to it goes with it: of a VM its NICs and volumes. What the old owner has shared of it is recalled. The quotas of the new owner hold.",
		Example: fmt.Sprintf("shoalctl %s chown NAME --account acme", kind),
	}, func(tx resource.Tx, p *chownParams) (Outcome, error) {
		before := access.Usage(tx, p.Account)
		out, err := did(plan.ChangeOwner(tx, kind, p.ID, p.Account))
		if err != nil {
			return out, err
		}
		return out, access.CheckQuota(tx, p.Account, before)
	})
}

func enrolments(g *Registry) {
	readable(g, resource.KindHostToken, "cluster.name=c1",
		Column{Title: "NAME", Path: "name"}, Column{Title: "CLUSTER", Path: "names.cluster_id"}, Column{Title: "USED", Path: "status.used"}, Column{Title: "LEFT", Path: "status.left"},
		Column{Title: "APPROVAL", Path: "approval"}, Column{Title: "REPLACES", Path: "names.replace_id"}, Column{Title: "EXPIRES", Path: "expires", As: "time"}, age(), idColumn())
	type tokenCreate struct {
		Name        string   `json:"name,omitempty" arg:"1" help:"name, for people; made up where not given"`
		Description string   `json:"description,omitempty" help:"free text, up to 2048 bytes"`
		Zone        string   `json:"zone,omitempty" ref:"zone" help:"zone of the cluster, to tell clusters of one name apart"`
		Cluster     string   `json:"cluster,omitempty" ref:"cluster" help:"cluster that the hosts go to; that of the replaced host where not given"`
		Uses        int      `json:"uses,omitempty" help:"for how many hosts it is good (1)"`
		TTL         duration `json:"ttl,omitempty" help:"for how long it is good, such as 30m or 24h (1h)"`
		Approve     string   `json:"approve,omitempty" enum:"auto|manual" help:"auto lets hosts in at once; manual has an administrator look at each (auto)"`
		Replace     string   `json:"replace,omitempty" ref:"host" help:"host whose record the joining host gets, with all that stands on it: for a machine that was installed anew"`
	}
	writesPrepared(g, Operation{
		Kind: resource.KindHostToken, Verb: "create", Summary: "Create a join token for hosts",
		Help: "The token is printed once. On the host: shoal-agent join TOKEN. It makes a key there, checks that it talks to this installation, and gets credentials for that key; no port is opened on the host. " +
			"A token that was used up, has run out or was deleted lets nobody in.",
		Example: "shoalctl host token create --zone z1 --cluster c1\nshoalctl host token create --cluster c1 --uses 20 --ttl 24h --approve manual\nshoalctl host token create --replace h1",
		after:   showToken,
	}, func(_ context.Context, env *Env, _ resource.Reader, _ access.Principal, p *tokenCreate) (newSecret, error) {
		if p.TTL < 0 || time.Duration(p.TTL) > maxTokenTTL {
			return "", resource.Invalid("ttl", "%s is not within 0..%s", time.Duration(p.TTL), maxTokenTTL)
		}
		if env.Door == nil {
			return "", resource.Invalid("", "this controller does not say where hosts can reach it")
		}
		return newSecret(rand.Text()), nil
	}, func(tx resource.Tx, p *tokenCreate, secret newSecret) (Outcome, error) {
		if p.Cluster == "" && p.Replace != "" {
			h, err := resource.Get[*resource.Host](tx, p.Replace)
			if err != nil {
				return Outcome{}, err
			}
			p.Cluster = h.ClusterID
		}
		if p.Cluster == "" {
			return Outcome{}, resource.Invalid("cluster", "must be given")
		}
		c, err := resource.Get[*resource.Cluster](tx, p.Cluster)
		if err != nil {
			return Outcome{}, err
		}
		if p.Zone != "" && c.ZoneID != p.Zone {
			return Outcome{}, resource.Conflict("zone", "cluster %s is in another zone", c.Name)
		}
		t := &resource.HostToken{
			Meta: resource.Meta{Name: p.Name, Description: p.Description, Owner: tx.Request().Owner()}, ClusterID: p.Cluster, Uses: p.Uses, ReplaceID: p.Replace,
			Approval: resource.Approval(p.Approve), SecretHash: plan.SecretHash(string(secret)), Expires: tx.Now().Add(cmp.Or(time.Duration(p.TTL), defaultTokenTTL)),
		}
		// The id stands in the token, where a short one will do: the secret is what counts.
		t.ID = fmt.Sprintf("%012x", tx.Uint64()>>16)
		t.Name = cmp.Or(t.Name, t.ID)
		return create(tx, t)
	})
	deletable(g, resource.KindHostToken, "It lets nobody in from now on. Hosts that came with it stay.")

	readable(g, resource.KindEnrolment, "state=pending",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STATE", Path: "state"}, Column{Title: "FINGERPRINT", Path: "fingerprint"}, Column{Title: "CLUSTER", Path: "names.cluster_id"},
		Column{Title: "FROM", Path: "from"}, Column{Title: "MACHINE", Path: "machine.product"}, Column{Title: "SERIAL", Path: "machine.serial"},
		Column{Title: "CPUS", Path: "machine.cpus"}, Column{Title: "MEM", Path: "machine.memory_mib", As: "mib"},
		Column{Title: "MACS", Path: "machine.macs", Wide: true}, Column{Title: "UUID", Path: "machine.uuid", Wide: true}, Column{Title: "REASON", Path: "reason", Wide: true}, age(), idColumn())
	g.Find(resource.KindEnrolment, "list").Paths = []string{"host pending"}
	type enrolApprove struct {
		ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
		Name    string `json:"name,omitempty" help:"name that the host gets; the one that it asks for where not given"`
		Replace string `json:"replace,omitempty" ref:"host" help:"host whose record it gets, with all that stands on it"`
	}
	writes(g, Operation{
		Kind: resource.KindEnrolment, Verb: "approve", Summary: "Let a waiting host in", Paths: []string{"host approve"},
		Help:    "Compare its fingerprint with the one that the machine shows. It comes in within seconds.",
		Example: "shoalctl enrolment approve h7\nshoalctl host approve h7 --replace h7-old",
	}, func(tx resource.Tx, p *enrolApprove) (Outcome, error) {
		return did(plan.ApproveEnrolment(tx, p.ID, p.Name, p.Replace))
	})
	type enrolReject struct {
		ID     string `json:"id" arg:"1" required:"true" help:"id or unique name"`
		Reason string `json:"reason,omitempty" help:"why, which the machine is told"`
	}
	writes(g, Operation{
		Kind: resource.KindEnrolment, Verb: "reject", Class: Dangerous, Summary: "Turn a waiting host away", Paths: []string{"host reject"},
		Help: "Its key is refused from now on; with a new key and a good token it may ask again.", Example: "shoalctl enrolment reject h7 --reason 'not ours'",
	}, func(tx resource.Tx, p *enrolReject) (Outcome, error) {
		return did(plan.RejectEnrolment(tx, p.ID, p.Reason))
	})
	deletable(g, resource.KindEnrolment, "The machine may ask again.")
	readable(g, resource.KindRevocation, "role=host",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ROLE", Path: "role"}, Column{Title: "KEY", Path: "public_key"}, Column{Title: "UNTIL", Path: "until", As: "time"}, age(), idColumn())
}

// newSecret is the secret of a token that is being made.
type newSecret string

// Limits of a token's time.
const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 30 * 24 * time.Hour
)

// showToken puts the token's text into the answer, the only place that it ever stands in.
func showToken(env *Env, _ resource.Reader, prepared any, reply *Reply) error {
	t, ok := reply.main.(*resource.HostToken)
	secret, fresh := prepared.(newSecret)
	if !ok || !fresh || reply.DryRun || reply.Repeated {
		return nil
	}
	urls, pin, _ := env.Door()
	reply.Token = desired.JoinToken{ID: t.ID, Secret: string(secret), Pin: pin, URLs: urls}.Text()
	return nil
}

// duration is a time.Duration as people write it.
type duration time.Duration

// UnmarshalText reads a duration such as 30m or 24h.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration, such as 30m or 24h", b)
	}
	*d = duration(v)
	return nil
}

// MarshalText is what UnmarshalText reads.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
