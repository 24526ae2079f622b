package resource

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/desired"
)

// AdminAccount is the id and name of the account that may do everything. It is made at the first start and can't go.
const AdminAccount = "admin"

// Quota names a limit of an account.
type Quota string

// The quotas. Bytes are bytes; everything else is a number. What is in the recycle bin counts: it still takes its place.
const (
	QuotaVMs         Quota = "vms"
	QuotaRunning     Quota = "vms-running"
	QuotaCPUs        Quota = "vcpus"
	QuotaMemory      Quota = "memory"
	QuotaVolumes     Quota = "volumes" // data volumes
	QuotaVolumeBytes Quota = "volume-bytes"
	QuotaImages      Quota = "images"
	QuotaImageBytes  Quota = "image-bytes"
	QuotaSecGroups   Quota = "secgroups"
	QuotaL3          Quota = "l3-networks"
	QuotaVXLAN       Quota = "vxlan-networks"
)

// Quotas lists the quotas with their defaults (catalogue row I4).
func Quotas() []QuotaDefault {
	const gib, tib = 1 << 30, 1 << 40
	return []QuotaDefault{
		{QuotaVMs, 20},
		{QuotaRunning, 20},
		{QuotaCPUs, 60},
		{QuotaMemory, 80 * gib},
		{QuotaVolumes, 40},
		{QuotaVolumeBytes, 10 * tib},
		{QuotaImages, 20},
		{QuotaImageBytes, 10 * tib},
		{QuotaSecGroups, 20},
		{QuotaL3, 20},
		{QuotaVXLAN, 8},
	}
}

// QuotaDefault is a quota and what an account has of it when nothing else was set.
type QuotaDefault struct {
	Name  Quota
	Limit uint64
}

// Bytes reports whether a quota counts bytes.
func (q Quota) Bytes() bool { return q == QuotaMemory || q == QuotaVolumeBytes || q == QuotaImageBytes }

// Account owns resources. It is who logs in with its name alone, too.
type Account struct {
	Meta
	State State `json:"state"`
	// Password is the hash of the account's password, sealed by controller/identity; empty for an account that nobody can log
	// in to by password.
	Password string `json:"password,omitempty"`
	// OneTime says that the password must be changed at the next login.
	OneTime bool `json:"one_time,omitempty"`
	// Quotas are the limits that differ from the defaults.
	Quotas map[Quota]uint64 `json:"quotas,omitempty"`
	// Deleting is set while everything that the account owns is being removed from hosts; its own record goes last.
	Deleting bool `json:"deleting,omitempty"`
}

// Kind implements Resource.
func (*Account) Kind() Kind { return KindAccount }

// Clone implements Resource.
func (a *Account) Clone() Resource { c := *a; return &c }

// Unique implements Resource: people log in by it, in whatever case.
func (a *Account) Unique() []string { return []string{AccountKey(a.Name)} }

// AccountKey is the unique key of an account's name.
func AccountKey(name string) string { return "account/name/" + strings.ToLower(name) }

// Validate implements Resource.
func (a *Account) Validate() error {
	if err := a.validateMeta(); err != nil {
		return err
	}
	if err := checkLoginName(a.Name); err != nil {
		return err
	}
	if a.ID == AdminAccount && (a.State != Enabled || a.Deleting || len(a.Quotas) > 0) {
		return Invalid("state", "the admin account is always enabled, has no quotas and can't be deleted")
	}
	for q := range a.Quotas {
		if !slices.ContainsFunc(Quotas(), func(d QuotaDefault) bool { return d.Name == q }) {
			return Invalid("quotas", "there is no quota %q", q)
		}
	}
	return a.State.validate()
}

// Limit is how much of a quota the account may have.
func (a *Account) Limit(q Quota) uint64 {
	if n, ok := a.Quotas[q]; ok {
		return n
	}
	for _, d := range Quotas() {
		if d.Name == q {
			return d.Limit
		}
	}
	return 0
}

// Redacted is a copy without the password's hash, for whoever reads.
func (a *Account) Redacted() Resource { c := *a; c.Password = ""; return &c }

// checkLoginName holds names that people log in by to what can be typed without doubt; "/" parts account and user.
func checkLoginName(s string) error {
	if strings.ContainsAny(s, "/\\") {
		return Invalid("name", "must not hold / or \\")
	}
	return nil
}

// User is a person or program that works in an account. It owns nothing itself.
type User struct {
	Meta
	AccountID string `json:"account_id"`
	State     State  `json:"state"`
	// Password and OneTime are as with accounts.
	Password string `json:"password,omitempty"`
	OneTime  bool   `json:"one_time,omitempty"`
	// GroupIDs are the groups that the user is in, PolicyIDs the policies that are the user's own. Both sorted.
	GroupIDs  []string `json:"group_ids,omitempty"`
	PolicyIDs []string `json:"policy_ids,omitempty"`
}

// Kind implements Resource.
func (*User) Kind() Kind { return KindUser }

// Clone implements Resource.
func (u *User) Clone() Resource { c := *u; return &c }

// Refs implements Resource.
func (u *User) Refs() []Ref {
	return slices.Concat(
		refs(Ref{KindAccount, u.AccountID, Parent, "account_id"}),
		linkAll(KindGroup, "group_ids", u.GroupIDs), linkAll(KindPolicy, "policy_ids", u.PolicyIDs),
	)
}

// Unlink implements Unlinker.
func (u *User) Unlink(kind Kind, id string) Resource {
	c := *u
	if kind == KindGroup {
		c.GroupIDs = without(u.GroupIDs, id)
	} else {
		c.PolicyIDs = without(u.PolicyIDs, id)
	}
	return &c
}

// Unique implements Resource: a name is unique in its account.
func (u *User) Unique() []string { return []string{UserKey(u.AccountID, u.Name)} }

// UserKey is the unique key of a user's name.
func UserKey(account, name string) string { return "user/" + account + "/" + strings.ToLower(name) }

// Validate implements Resource.
func (u *User) Validate() error {
	if err := u.validateMeta(); err != nil {
		return err
	}
	if err := checkLoginName(u.Name); err != nil {
		return err
	}
	if u.AccountID == "" {
		return Invalid("account_id", "must be set")
	}
	return u.State.validate()
}

// Redacted is a copy without the password's hash, for whoever reads.
func (u *User) Redacted() Resource { c := *u; c.Password = ""; return &c }

// Group is a set of users of an account that have the same rights.
type Group struct {
	Meta
	AccountID string   `json:"account_id"`
	PolicyIDs []string `json:"policy_ids,omitempty"`
}

// Kind implements Resource.
func (*Group) Kind() Kind { return KindGroup }

// Clone implements Resource.
func (g *Group) Clone() Resource { c := *g; return &c }

// Refs implements Resource.
func (g *Group) Refs() []Ref {
	return slices.Concat(refs(Ref{KindAccount, g.AccountID, Parent, "account_id"}), linkAll(KindPolicy, "policy_ids", g.PolicyIDs))
}

// Unlink implements Unlinker.
func (g *Group) Unlink(_ Kind, id string) Resource {
	c := *g
	c.PolicyIDs = without(g.PolicyIDs, id)
	return &c
}

// Unique implements Resource: a name is unique in its account.
func (g *Group) Unique() []string {
	return []string{"group/" + g.AccountID + "/" + strings.ToLower(g.Name)}
}

// Validate implements Resource.
func (g *Group) Validate() error {
	if err := g.validateMeta(); err != nil {
		return err
	}
	if g.AccountID == "" {
		return Invalid("account_id", "must be set")
	}
	return nil
}

// Effect is what a statement does.
type Effect string

// The effects. A denial outweighs every allowance.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Statement allows or denies actions.
type Statement struct {
	Effect Effect `json:"effect"`
	// Actions are names of operations, "<kind>.<verb>", in which * stands for any text: vm.start, vm.*, *.list, *.
	Actions []string `json:"actions"`
	// Resources are ids that it is about; Tags are tags one of which a resource must have. Empty: whatever resource.
	Resources []string `json:"resources,omitempty"`
	Tags      []string `json:"tags,omitempty"`
}

// Policy is a set of statements that is given to users and groups of an account.
type Policy struct {
	Meta
	AccountID  string      `json:"account_id"`
	Statements []Statement `json:"statements"`
}

// Limits of a policy.
const (
	MaxStatements = 64
	maxActions    = 64
)

// Kind implements Resource.
func (*Policy) Kind() Kind { return KindPolicy }

// Clone implements Resource.
func (p *Policy) Clone() Resource { c := *p; return &c }

// Refs implements Resource.
func (p *Policy) Refs() []Ref { return refs(Ref{KindAccount, p.AccountID, Parent, "account_id"}) }

// Unique implements Resource: a name is unique in its account.
func (p *Policy) Unique() []string {
	return []string{"policy/" + p.AccountID + "/" + strings.ToLower(p.Name)}
}

// Validate implements Resource.
func (p *Policy) Validate() error {
	if err := p.validateMeta(); err != nil {
		return err
	}
	if p.AccountID == "" {
		return Invalid("account_id", "must be set")
	}
	if len(p.Statements) == 0 || len(p.Statements) > MaxStatements {
		return Invalid("statements", "has %d entries, 1 to %d are allowed", len(p.Statements), MaxStatements)
	}
	for i, s := range p.Statements {
		if err := s.validate(fmt.Sprintf("statements[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (s Statement) validate(field string) error {
	if s.Effect != Allow && s.Effect != Deny {
		return Invalid(field+".effect", "%q is neither allow nor deny", s.Effect)
	}
	for name, list := range map[string][]string{"actions": s.Actions, "resources": s.Resources, "tags": s.Tags} {
		if len(list) > maxActions || name == "actions" && len(list) == 0 {
			return Invalid(field+"."+name, "has %d entries, 1 to %d are allowed", len(list), maxActions)
		}
		for j, text := range list {
			if text == "" || len(text) > MaxTag {
				return Invalid(fmt.Sprintf("%s.%s[%d]", field, name, j), "must be 1 to %d bytes long", MaxTag)
			}
		}
	}
	for j, action := range s.Actions {
		if strings.ContainsFunc(action, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '*'
		}) {
			return Invalid(fmt.Sprintf("%s.actions[%d]", field, j), "%q is not <kind>.<verb>, with * for any text", action)
		}
	}
	return nil
}

// Session is somebody's time of being logged in, with a key of its own.
type Session struct {
	Meta
	AccountID string `json:"account_id"`
	// UserID is empty where the account itself is logged in.
	UserID string `json:"user_id,omitempty"`
	// PublicKey is the nkey of the session, "U…", made by the client.
	PublicKey string `json:"public_key"`
	// From is the address that the login came from.
	From string `json:"from,omitempty"`
	// Expires moves on when the session is renewed. The record goes then.
	Expires time.Time `json:"expires"`
}

// Kind implements Resource.
func (*Session) Kind() Kind { return KindSession }

// Clone implements Resource.
func (s *Session) Clone() Resource { c := *s; return &c }

// Refs implements Resource.
func (s *Session) Refs() []Ref {
	return refs(Ref{KindAccount, s.AccountID, Parent, "account_id"}, Ref{KindUser, s.UserID, Parent, "user_id"})
}

// Unique implements Resource.
func (s *Session) Unique() []string { return []string{SessionKey(s.PublicKey)} }

// SessionKey is the unique key of a session's public key.
func SessionKey(publicKey string) string { return "session/key/" + publicKey }

// Principal is who the session is of: the user, or the account itself. It is a token of the session's subjects.
func (s *Session) Principal() string { return cmp.Or(s.UserID, s.AccountID) }

// Validate implements Resource.
func (s *Session) Validate() error {
	if err := s.validateMeta(); err != nil {
		return err
	}
	if s.AccountID == "" {
		return Invalid("account_id", "must be set")
	}
	if s.Expires.IsZero() {
		return Invalid("expires", "must be set")
	}
	return checkUserKey(s.PublicKey)
}

func checkUserKey(k string) error {
	if len(k) != 56 || k[0] != 'U' {
		return Invalid("public_key", "%q is not a user nkey (56 characters, starting with U)", k)
	}
	return nil
}

// Share lets another account, or every account, see and use a resource, but not change it.
type Share struct {
	Meta
	ResourceKind Kind   `json:"resource_kind"`
	ResourceID   string `json:"resource_id"`
	// AccountID is the account that gets it; empty for all.
	AccountID string `json:"account_id,omitempty"`
}

// Shareable reports whether resources of a kind can be shared. What belongs to one of them goes with it: the ranges of
// a network, the rules of a group.
func Shareable(k Kind) bool {
	switch k {
	case KindZone, KindImage, KindOffering, KindDiskOffering, KindVXLANPool, KindL2, KindL3, KindSecGroup:
		return true
	default:
		return false
	}
}

// Kind implements Resource.
func (*Share) Kind() Kind { return KindShare }

// Clone implements Resource.
func (s *Share) Clone() Resource { c := *s; return &c }

// Refs implements Resource.
func (s *Share) Refs() []Ref {
	return refs(Ref{s.ResourceKind, s.ResourceID, Parent, "resource_id"}, Ref{KindAccount, s.AccountID, Parent, "account_id"})
}

// Unique implements Resource.
func (s *Share) Unique() []string {
	return []string{ShareKey(s.ResourceKind, s.AccountID, s.ResourceID)}
}

// EveryAccount stands for all accounts in the key of a share.
const EveryAccount = "*"

// ShareKey is the unique key of a share; account is empty or EveryAccount for all. SharePrefix begins the keys of all that an
// account was given of a kind.
func ShareKey(kind Kind, account, id string) string { return SharePrefix(kind, account) + id }

// SharePrefix is the beginning of the keys of what an account was given of a kind.
func SharePrefix(kind Kind, account string) string {
	return "share/" + string(kind) + "/" + cmp.Or(account, EveryAccount) + "/"
}

// Validate implements Resource.
func (s *Share) Validate() error {
	if err := s.validateMeta(); err != nil {
		return err
	}
	if !Shareable(s.ResourceKind) {
		return Invalid("resource_kind", "a %s can't be shared", s.ResourceKind)
	}
	if s.ResourceID == "" {
		return Invalid("resource_id", "must be set")
	}
	return nil
}

// Approval is how those who come with a token are let in.
type Approval string

// The sorts of approval.
const (
	ApproveAuto   Approval = "auto"   // at once
	ApproveManual Approval = "manual" // when an administrator has looked at them
)

// HostToken lets hosts ask to be let in.
type HostToken struct {
	Meta
	// ClusterID is where they go.
	ClusterID string `json:"cluster_id"`
	// SecretHash is the hex SHA-256 of the token's secret, which nobody keeps.
	SecretHash string `json:"secret_hash,omitempty"`
	// Uses is how many hosts it is good for, Expires until when.
	Uses     int       `json:"uses"`
	Expires  time.Time `json:"expires"`
	Approval Approval  `json:"approval"`
	// ReplaceID is the host whose record the one host that comes with the token gets, with all that stands on it.
	ReplaceID string `json:"replace_id,omitempty"`
	// Keys are those of the hosts that have come with it, in order. A key that came once may come again.
	Keys []string `json:"keys,omitempty"`
}

// MaxTokenUses is how many hosts one token may be good for.
const MaxTokenUses = 1000

// Kind implements Resource.
func (*HostToken) Kind() Kind { return KindHostToken }

// Clone implements Resource.
func (t *HostToken) Clone() Resource { c := *t; return &c }

// Refs implements Resource.
func (t *HostToken) Refs() []Ref {
	return refs(Ref{KindCluster, t.ClusterID, Parent, "cluster_id"}, Ref{KindHost, t.ReplaceID, Parent, "replace_id"})
}

// Validate implements Resource.
func (t *HostToken) Validate() error {
	if err := t.validateMeta(); err != nil {
		return err
	}
	if t.ClusterID == "" {
		return Invalid("cluster_id", "must be set")
	}
	if b, err := hex.DecodeString(t.SecretHash); err != nil || len(b) != 32 {
		return Invalid("secret_hash", "is not a SHA-256 in hex")
	}
	if t.Uses < 1 || t.Uses > MaxTokenUses {
		return Invalid("uses", "%d is not within 1..%d", t.Uses, MaxTokenUses)
	}
	if t.ReplaceID != "" && t.Uses != 1 {
		return Invalid("uses", "a token that replaces a host is good for one, not for %d", t.Uses)
	}
	if t.Expires.IsZero() {
		return Invalid("expires", "must be set")
	}
	if t.Approval != ApproveAuto && t.Approval != ApproveManual {
		return Invalid("approve", "%q is neither auto nor manual", t.Approval)
	}
	return nil
}

// Redacted is a copy without the secret's hash, for whoever reads.
func (t *HostToken) Redacted() Resource { c := *t; c.SecretHash = ""; return &c }

// HostTokenStatus is the derived state of a token.
type HostTokenStatus struct {
	Used int `json:"used"`
	Left int `json:"left"`
}

// EnrolmentState is how a machine's request to be let in stands.
type EnrolmentState string

// The states. A machine that was let in is a host, and its request is gone.
const (
	EnrolmentPending  EnrolmentState = "pending"
	EnrolmentRejected EnrolmentState = "rejected"
)

// Enrolment is a machine that asks to be let in and waits for an administrator.
type Enrolment struct {
	Meta
	State     EnrolmentState `json:"state"`
	TokenID   string         `json:"token_id"`
	ClusterID string         `json:"cluster_id"`
	PublicKey string         `json:"public_key"`
	// Fingerprint is what the machine shows too.
	Fingerprint string               `json:"fingerprint"`
	From        string               `json:"from,omitempty"`
	Version     string               `json:"version,omitempty"`
	Machine     desired.MachineFacts `json:"machine"`
	// Reason says why it was rejected.
	Reason string `json:"reason,omitempty"`
}

// EnrolmentKept is how long a request is kept that nobody decided about, or that was rejected, after its last change.
const EnrolmentKept = 7 * 24 * time.Hour

// Kind implements Resource.
func (*Enrolment) Kind() Kind { return KindEnrolment }

// Clone implements Resource.
func (e *Enrolment) Clone() Resource { c := *e; return &c }

// Refs implements Resource.
func (e *Enrolment) Refs() []Ref {
	return refs(Ref{KindCluster, e.ClusterID, Parent, "cluster_id"}, Ref{KindHostToken, e.TokenID, Weak, "token_id"})
}

// Unique implements Resource.
func (e *Enrolment) Unique() []string { return []string{EnrolmentKey(e.PublicKey)} }

// EnrolmentKey is the unique key of an enrolment's public key.
func EnrolmentKey(publicKey string) string { return "enrolment/key/" + publicKey }

// Validate implements Resource.
func (e *Enrolment) Validate() error {
	if err := e.validateMeta(); err != nil {
		return err
	}
	if e.ClusterID == "" {
		return Invalid("cluster_id", "must be set")
	}
	if e.State != EnrolmentPending && e.State != EnrolmentRejected {
		return Invalid("state", "%q is neither pending nor rejected", e.State)
	}
	return checkUserKey(e.PublicKey)
}

// RevokedRole is whose credentials a revocation takes away.
type RevokedRole string

// The roles.
const (
	RevokedHost    RevokedRole = "host"
	RevokedSession RevokedRole = "session"
)

// Revocation says that credentials which were issued for a key are good no longer. It is made together with the change that ends
// them, so that no crash can come between, and goes when they would have run out by themselves.
type Revocation struct {
	Meta
	PublicKey string      `json:"public_key"`
	Role      RevokedRole `json:"role"`
	// Ordinary says that the session was one of an ordinary account, whose credentials another key has signed.
	Ordinary bool `json:"ordinary,omitempty"`
	// Until is when the credentials would have run out.
	Until time.Time `json:"until"`
}

// Kind implements Resource.
func (*Revocation) Kind() Kind { return KindRevocation }

// Clone implements Resource.
func (r *Revocation) Clone() Resource { c := *r; return &c }

// Validate implements Resource.
func (r *Revocation) Validate() error {
	if err := r.validateMeta(); err != nil {
		return err
	}
	if r.Role != RevokedHost && r.Role != RevokedSession {
		return Invalid("role", "%q is neither host nor session", r.Role)
	}
	if r.Until.IsZero() {
		return Invalid("until", "must be set")
	}
	return checkUserKey(r.PublicKey)
}
