package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"shoal/controller/resource"
)

// newIdentity prepares what belongs to an account: a policy, a group, a user. Its owner is that account, whoever makes it.
func newIdentity(tx resource.Tx, r resource.Resource) error {
	switch x := r.(type) {
	case *resource.Account:
		enable(&x.State)
		x.Owner = resource.AdminAccount
		if x.Deleting {
			return resource.Invalid("deleting", "must not be set")
		}
		return nil
	case *resource.Policy:
		x.Owner = x.AccountID
		return ordinary(tx, x.AccountID, "policies")
	case *resource.Group:
		x.Owner = x.AccountID
		if err := ordinary(tx, x.AccountID, "groups"); err != nil {
			return err
		}
		return ofAccount(tx, x.AccountID, r)
	case *resource.User:
		enable(&x.State)
		x.Owner = x.AccountID
		return ofAccount(tx, x.AccountID, r)
	}
	return nil
}

// ordinary refuses what makes no sense in the admin account, whose users may do everything.
func ordinary(tx resource.Tx, account, what string) error {
	a, err := resource.Get[*resource.Account](tx, account)
	if err != nil {
		return inThe(err, "account_id")
	}
	if a.ID == resource.AdminAccount {
		return resource.Invalid("account_id", "the admin account has no %s: all its users may do everything", what)
	}
	if a.Deleting {
		return resource.Conflict("account_id", "account %s is being deleted", a.Name)
	}
	return nil
}

// ofAccount holds a user's or group's references to its own account.
func ofAccount(tx resource.Tx, account string, r resource.Resource) error {
	a, err := resource.Get[*resource.Account](tx, account)
	if err != nil {
		return inThe(err, "account_id")
	}
	if a.Deleting {
		return resource.Conflict("account_id", "account %s is being deleted", a.Name)
	}
	for _, ref := range r.Refs() {
		if ref.Kind == resource.KindAccount {
			continue
		}
		target := tx.Get(ref.Kind, ref.ID)
		if target == nil || target.Base().Owner != account {
			return inThe(resource.NotFound(ref.Kind, ref.ID), ref.Field)
		}
	}
	return nil
}

// SetPassword gives an account, or with user a user of one, a password by its sealed hash. Sessions but keep end: whoever knew the
// old one is out.
func SetPassword(tx resource.Tx, kind resource.Kind, id, sealed string, oneTime bool, keep string) (resource.Resource, error) {
	switch kind {
	case resource.KindAccount:
		a, err := resource.Get[*resource.Account](tx, id)
		if err != nil {
			return nil, err
		}
		a = resource.Copy(a)
		a.Password, a.OneTime = sealed, oneTime
		if err := tx.Put(a); err != nil {
			return nil, err
		}
	default:
		u, err := resource.Get[*resource.User](tx, id)
		if err != nil {
			return nil, err
		}
		u = resource.Copy(u)
		u.Password, u.OneTime = sealed, oneTime
		if err := tx.Put(u); err != nil {
			return nil, err
		}
	}
	return tx.Get(kind, id), endSessions(tx, id, keep)
}

// endSessions ends the sessions of an account itself or of a user, but for keep
func endSessions(tx resource.Tx, principal, keep string) error {
	for _, kind := range []resource.Kind{resource.KindAccount, resource.KindUser} {
		for _, s := range slices.Collect(resource.Referrers[*resource.Session](tx, kind, principal)) {
			if s.Principal() == principal && s.ID != keep {
				if err := endSession(tx, s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// MaxSessions is how many sessions one account or user may have at once (catalogue row I5).
const MaxSessions = 500

// SessionSpec asks for a session.
type SessionSpec struct {
	AccountID, UserID, PublicKey, From string
	// For is how long it lasts without being renewed.
	For time.Duration
}

// OpenSession logs an account, or a user of it, in.
func OpenSession(tx resource.Tx, spec SessionSpec) (*resource.Session, error) {
	a, u, err := mayLogIn(tx, spec.AccountID, spec.UserID)
	if err != nil {
		return nil, err
	}
	s := &resource.Session{AccountID: a.ID, UserID: spec.UserID, PublicKey: spec.PublicKey, From: spec.From, Expires: tx.Now().Add(spec.For)}
	s.ID, s.Name, s.Owner = tx.NewID(), a.Name, a.ID
	if u != nil {
		s.Name = clip(a.Name + "/" + u.Name)
	}
	n := 0
	kind := resource.KindAccount
	if u != nil {
		kind = resource.KindUser
	}
	for _, o := range slices.Collect(resource.Referrers[*resource.Session](tx, kind, s.Principal())) {
		switch {
		case o.Principal() != s.Principal():
		case !o.Expires.After(tx.Now()):
			if err := endSession(tx, o); err != nil {
				return nil, err
			}
		default:
			n++
		}
	}
	if n >= MaxSessions {
		return nil, &resource.Error{
			Code: resource.CodeBusy, Message: fmt.Sprintf("%s has %d sessions, which is as many as there may be at once", s.Name, n),
			Remedy: "log out where you are logged in, or have an administrator end some: shoalctl session list, shoalctl session delete",
		}
	}
	if err := tx.Put(s); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Session](tx, s.ID)
}

// clip shortens a name that was put together to what a name may be.
func clip(s string) string {
	for len(s) > resource.MaxName {
		r := []rune(s)
		s = string(r[:len(r)-1])
	}
	return s
}

// RenewSession makes a session last from now on.
func RenewSession(tx resource.Tx, id string, last time.Duration) (*resource.Session, error) {
	s, err := resource.Get[*resource.Session](tx, id)
	if err != nil {
		return nil, err
	}
	if _, _, err := mayLogIn(tx, s.AccountID, s.UserID); err != nil {
		return nil, err
	}
	s = resource.Copy(s)
	s.Expires = tx.Now().Add(last)
	if err := tx.Put(s); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Session](tx, id)
}

func mayLogIn(tx resource.Tx, account, user string) (*resource.Account, *resource.User, error) {
	a, err := resource.Get[*resource.Account](tx, account)
	if err != nil {
		return nil, nil, err
	}
	disabled := func(what, name string) error {
		return &resource.Error{Code: resource.CodeForbidden, Message: fmt.Sprintf("%s %s is disabled", what, name), Remedy: "ask an administrator"}
	}
	if a.State != resource.Enabled {
		return nil, nil, disabled("account", a.Name)
	}
	if user == "" {
		return a, nil, nil
	}
	u, err := resource.Get[*resource.User](tx, user)
	switch {
	case err != nil:
		return nil, nil, err
	case u.AccountID != a.ID:
		return nil, nil, resource.NotFound(resource.KindUser, user)
	case u.State != resource.Enabled:
		return nil, nil, disabled("user", u.Name)
	}
	return a, u, nil
}

// ShareResource lets another account, with "" every account, see and use a resource.
func ShareResource(tx resource.Tx, kind resource.Kind, id, account string) (*resource.Share, error) {
	r := tx.Get(kind, id)
	if r == nil {
		return nil, resource.NotFound(kind, id)
	}
	if account == r.Base().Owner {
		return nil, resource.Invalid("account", "it is the account's own already")
	}
	if h, ok := tx.Holder(resource.ShareKey(kind, account, id)).(*resource.Share); ok {
		return h, nil
	}
	s := &resource.Share{ResourceKind: kind, ResourceID: id, AccountID: account}
	to := "everybody"
	if a, ok := resource.Find[*resource.Account](tx, account); ok {
		to = a.Name
		if a.Deleting {
			return nil, resource.Conflict("account", "account %s is being deleted", a.Name)
		}
	}
	s.ID, s.Owner, s.Name = tx.NewID(), r.Base().Owner, clip(fmt.Sprintf("%s for %s", r.Base().Name, to))
	if err := tx.Put(s); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Share](tx, s.ID)
}

// RecallResource takes a share back. What another account has made with the resource stays; it can't use it anew.
func RecallResource(tx resource.Tx, kind resource.Kind, id, account string) (*resource.Share, error) {
	s, ok := tx.Holder(resource.ShareKey(kind, account, id)).(*resource.Share)
	if !ok {
		return nil, resource.Conflict("account", "it is not shared so")
	}
	return s, tx.Delete(resource.KindShare, s.ID)
}

// ChangeOwner gives a resource with all that belongs to it to another account. A VM takes its NICs and volumes with it; its NICs must
// be in no security group, since those are the old owner's.
func ChangeOwner(tx resource.Tx, kind resource.Kind, id, account string) (resource.Resource, error) {
	r := tx.Get(kind, id)
	if r == nil {
		return nil, resource.NotFound(kind, id)
	}
	to, err := resource.Get[*resource.Account](tx, account)
	if err != nil {
		return nil, inThe(err, "account")
	}
	if to.Deleting {
		return nil, resource.Conflict("account", "account %s is being deleted", to.Name)
	}
	moved := []resource.Resource{r}
	switch x := r.(type) {
	case *resource.VM:
		for _, n := range nicsOf(tx, id) {
			if len(n.SecGroupIDs) > 0 {
				return nil, resource.Conflict("vm", "NIC %s of VM %s is in security groups of the old owner", n.Name, x.Name).
					WithRemedy("take it out of them first: shoalctl nic set-groups %s --remove …", n.ID)
			}
			moved = append(moved, n)
		}
		for _, v := range volumesOf(tx, id) {
			moved = append(moved, v)
		}
	case *resource.Volume:
		if x.VMID != "" {
			return nil, resource.Conflict("volume", "volume %s is attached to a VM, and goes with it", x.Name).WithRemedy("detach it first, or change the owner of the VM")
		}
	case *resource.SecGroup:
		for n := range resource.Referrers[*resource.NIC](tx, kind, id) {
			return nil, resource.Conflict("secgroup", "NICs of its owner are in security group %s", x.Name).Because(n, "it is in the group")
		}
		for rule := range resource.Referrers[*resource.SecRule](tx, kind, id) {
			if rule.GroupID != id {
				return nil, resource.Conflict("secgroup", "rules of other groups name security group %s", x.Name).Because(rule, "it names the group")
			}
			moved = append(moved, rule)
		}
	case *resource.L3:
		for rg := range resource.Referrers[*resource.IPRange](tx, kind, id) {
			moved = append(moved, rg)
		}
	case *resource.L2:
		for l3 := range resource.Referrers[*resource.L3](tx, kind, id) {
			moved = append(moved, l3)
			for rg := range resource.Referrers[*resource.IPRange](tx, resource.KindL3, l3.ID) {
				moved = append(moved, rg)
			}
		}
	}
	for _, m := range moved {
		// What was shared by the old owner is not the new one's will.
		for _, s := range slices.Collect(resource.Referrers[*resource.Share](tx, m.Kind(), m.Base().ID)) {
			if err := tx.Delete(resource.KindShare, s.ID); err != nil {
				return nil, err
			}
		}
		c := m.Clone()
		c.Base().Owner = to.ID
		if err := tx.Put(c); err != nil {
			return nil, err
		}
	}
	return tx.Get(kind, id), nil
}

// deleteAccount begins to take an account out with everything that it owns. Its sessions end at once; VMs and volumes go as their
// hosts confirm it, in steps that Tick takes, and its own record goes last.
func deleteAccount(tx resource.Tx, a *resource.Account, opt DeleteOptions) ([]Deleted, error) {
	if a.ID == resource.AdminAccount {
		return nil, resource.Conflict("account", "the admin account can't be deleted")
	}
	out := []Deleted{{resource.KindAccount, a.ID, a.Name, ActionDelete}}
	var owned, users []resource.Reason
	for _, kind := range slices.Backward(resource.Kinds()) {
		for r := range tx.Owned(kind, a.ID) {
			if kind == resource.KindTask {
				continue
			}
			out = append(out, Deleted{kind, r.Base().ID, r.Base().Name, ActionDelete})
			switch kind {
			case resource.KindSession, resource.KindShare, resource.KindUser, resource.KindGroup, resource.KindPolicy:
			default:
				owned = append(owned, resource.Reason{Kind: kind, ID: r.Base().ID, Name: r.Base().Name, Why: "it would go with it"})
				users = append(users, strangers(tx, a.ID, r)...)
			}
		}
	}
	if len(users) > 0 {
		return nil, inUse("what account "+a.Name+" shares", users).WithRemedy("have the other accounts let go of it first")
	}
	if len(owned) > 0 && !opt.Cascade {
		return nil, inUse("account "+a.Name, owned).WithRemedy("delete these first, or all of it, data included, with --cascade (--dry-run shows what goes)")
	}
	for _, s := range slices.Collect(resource.Owned[*resource.Share](tx, a.ID)) {
		if err := tx.Delete(resource.KindShare, s.ID); err != nil {
			return nil, err
		}
	}
	for _, s := range slices.Collect(resource.Owned[*resource.Session](tx, a.ID)) {
		if err := endSession(tx, s); err != nil {
			return nil, err
		}
	}
	a = resource.Copy(a)
	a.State, a.Deleting = resource.Disabled, true
	if err := tx.Put(a); err != nil {
		return nil, err
	}
	return out, nil
}

// strangers are what other accounts have made with a resource.
func strangers(tx resource.Tx, account string, r resource.Resource) []resource.Reason {
	var out []resource.Reason
	for _, kind := range resource.Kinds() {
		if kind == resource.KindTask || kind == resource.KindShare {
			continue
		}
		for user := range tx.Referrers(kind, r.Kind(), r.Base().ID) {
			weak := true
			for _, ref := range user.Refs() {
				weak = weak && (ref.Kind != r.Kind() || ref.ID != r.Base().ID || ref.Mode == resource.Weak)
			}
			if user.Base().Owner != account && !weak {
				out = append(out, resource.Reason{Kind: kind, ID: user.Base().ID, Name: user.Base().Name, Why: fmt.Sprintf("it uses %s %s", r.Kind(), r.Base().Name)})
			}
		}
	}
	return out
}

// sweepLimit is how many VMs and volumes of a deleted account are told to go in one transaction.
const sweepLimit = 16

// decideAccount takes the next step of an account's deletion.
func decideAccount(r resource.Reader, a *resource.Account) decision {
	if !a.Deleting {
		return nil
	}
	var vms []string
	var volumes []string
	left := 0
	for vm := range resource.Owned[*resource.VM](r, a.ID) {
		left++
		if !vm.Expunging && len(vms) < sweepLimit {
			vms = append(vms, vm.ID)
		}
	}
	for v := range resource.Owned[*resource.Volume](r, a.ID) {
		left++
		if v.Type == resource.VolumeData && v.VMID == "" && v.LeavingVMID == "" && !v.Expunging && len(volumes) < sweepLimit {
			volumes = append(volumes, v.ID)
		}
	}
	switch {
	case len(vms)+len(volumes) > 0:
		return func(tx resource.Tx) error { return sweep(tx, vms, volumes) }
	case left > 0:
		return nil // hosts are at work
	}
	return func(tx resource.Tx) error { return dissolve(tx, a.ID) }
}

func sweep(tx resource.Tx, vms, volumes []string) error {
	for _, id := range vms {
		vm, ok := resource.Find[*resource.VM](tx, id)
		if !ok || vm.Expunging {
			continue
		}
		if vm.Destroyed.IsZero() {
			if _, err := DestroyVM(tx, id); err != nil {
				return err
			}
		}
		if _, err := ExpungeVM(tx, id); err != nil {
			return err
		}
	}
	for _, id := range volumes {
		v, ok := resource.Find[*resource.Volume](tx, id)
		if !ok || v.Expunging || v.VMID != "" || v.LeavingVMID != "" {
			continue
		}
		if _, err := bury(tx, v); err != nil {
			return err
		}
	}
	return nil
}

// dissolve takes out what is left of an account that has neither VMs nor volumes any more.
func dissolve(tx resource.Tx, id string) error {
	for _, kind := range []resource.Kind{resource.KindSecGroup, resource.KindL3, resource.KindL2, resource.KindImage, resource.KindTask} {
		for _, r := range slices.Collect(tx.Owned(kind, id)) {
			if t, ok := r.(*resource.Task); ok {
				if err := tx.Delete(resource.KindTask, t.ID); err != nil {
					return err
				}
				continue
			}
			if tx.Get(kind, r.Base().ID) == nil {
				continue // it went with another
			}
			if _, err := Delete(tx, kind, r.Base().ID, DeleteOptions{Cascade: true}); err != nil {
				return err
			}
		}
	}
	d := &deletion{tx: tx, opt: DeleteOptions{Cascade: true}, doomed: map[ref]resource.Resource{}, forget: map[ref]bool{}}
	a, err := resource.Get[*resource.Account](tx, id)
	if err != nil {
		return err
	}
	if err := d.collect(a); err != nil {
		return err
	}
	return d.run()
}

// revocationSlack is how much longer than needed a revocation is kept: the servers' clocks may be late.
const revocationSlack = time.Hour

// decideExpiry takes out sessions, tokens, enrolments and revocations whose time is over.
func decideExpiry(r resource.Resource, now time.Time) decision {
	var over time.Time
	switch x := r.(type) {
	case *resource.Session:
		over = x.Expires
	case *resource.HostToken:
		over = x.Expires.Add(TokenKept)
	case *resource.Enrolment:
		over = x.Updated.Add(resource.EnrolmentKept)
	case *resource.Revocation:
		over = x.Until.Add(revocationSlack)
	}
	if now.Before(over) {
		return nil
	}
	kind, id := r.Kind(), r.Base().ID
	return func(tx resource.Tx) error {
		if tx.Get(kind, id) == nil {
			return nil
		}
		return tx.Delete(kind, id)
	}
}

// updateIdentity checks changes of what accounts are made of, and lets them take effect on sessions.
func updateIdentity(tx resource.Tx, old, changed resource.Resource) (fixed []fixedField, err error) {
	switch x := changed.(type) {
	case *resource.Account:
		o := old.(*resource.Account)
		fixed = []fixedField{{"password", o.Password, x.Password}, {"deleting", o.Deleting, x.Deleting}}
		if o.Deleting {
			return nil, resource.Conflict("account", "account %s is being deleted", o.Name)
		}
		if x.State != resource.Enabled {
			for _, s := range slices.Collect(resource.Owned[*resource.Session](tx, x.ID)) {
				if err := endSession(tx, s); err != nil {
					return nil, err
				}
			}
		}
	case *resource.User:
		o := old.(*resource.User)
		fixed = []fixedField{{"account_id", o.AccountID, x.AccountID}, {"password", o.Password, x.Password}}
		if err := ofAccount(tx, x.AccountID, x); err != nil {
			return nil, err
		}
		if x.State != resource.Enabled {
			if err := endSessions(tx, x.ID, ""); err != nil {
				return nil, err
			}
		}
	case *resource.Group:
		fixed = []fixedField{{"account_id", old.(*resource.Group).AccountID, x.AccountID}}
		if err := ofAccount(tx, x.AccountID, x); err != nil {
			return nil, err
		}
	case *resource.Policy:
		fixed = []fixedField{{"account_id", old.(*resource.Policy).AccountID, x.AccountID}}
	case *resource.Session, *resource.Share, *resource.HostToken, *resource.Enrolment, *resource.Revocation:
		return nil, resource.Invalid("kind", "a %s can't be changed", changed.Kind())
	}
	return fixed, nil
}

// EnsureAdmin makes the admin account at the first start, with a one-time password by its sealed hash.
func EnsureAdmin(tx resource.Tx, sealed string) (made bool, err error) {
	if tx.Get(resource.KindAccount, resource.AdminAccount) != nil {
		return false, nil
	}
	a := &resource.Account{State: resource.Enabled, Password: sealed, OneTime: true}
	a.ID, a.Name, a.Owner = resource.AdminAccount, resource.AdminAccount, resource.AdminAccount
	a.Description = cmp.Or(a.Description, "may do everything")
	return true, tx.Put(a)
}
