package identity

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"

	"shoal/subjects"
)

// Limits of one agent's connection. It needs a handful of subscriptions and no large message.
const (
	agentSubscriptions = 50
	agentPayload       = 1 << 20
	agentReplyTime     = 5 * time.Minute
)

// Limits of guests. Anybody who reaches the port is one, so they get just what their three requests need.
const (
	guestSubscriptions = 4
	guestPayload       = 16 << 10
	guestConnections   = 4096 // of all guests together
)

// link is a subject that one account offers and others use.
type link struct {
	subject string
	stream  bool // messages flow to the importer; otherwise it is a request
	many    bool // a request with more than one answer
	share   bool // importers say who asks, in a header that they can't forge
	from    Account
	to      []Account
}

// links is everything that crosses the border of an account.
func links() []link {
	l := []link{
		{subject: subjects.DirectGetAll, many: true, from: CTL, to: []Account{AGT, USR}},
		{subject: subjects.DirectGetLast, from: CTL, to: []Account{USR}},
		{subject: subjects.BucketSubject(subjects.ObservedBucket, ">"), from: CTL, to: []Account{AGT}},
		{subject: subjects.AgentAPIAll, share: true, from: CTL, to: []Account{AGT}},
		{subject: subjects.APIAll, share: true, from: CTL, to: []Account{USR}},
		{subject: "$SRV.>", many: true, from: CTL, to: []Account{USR}},
		{subject: subjects.Hint("*", ">"), stream: true, from: CTL, to: []Account{AGT, USR}},
		{subject: subjects.EventAll, stream: true, from: CTL, to: []Account{USR}},
		{subject: subjects.GuestAll, share: true, from: CTL, to: []Account{ENROLL}},
		{subject: subjects.Agent("*", ">"), share: true, from: AGT, to: []Account{CTL}},
	}
	for _, s := range subjects.ReadOnlyJetStream() {
		l = append(l, link{subject: s, from: CTL, to: []Account{USR}})
	}
	return l
}

// claims builds the account as it is now.
func (id *Identity) claims(a Account) (*jwt.AccountClaims, error) {
	c := jwt.NewAccountClaims(id.AccountID(a))
	c.Name = string(a)
	for _, l := range links() {
		typ := jwt.Service
		if l.stream {
			typ = jwt.Stream
		}
		if l.from == a {
			e := &jwt.Export{Name: l.subject, Subject: jwt.Subject(l.subject), Type: typ}
			if l.many {
				e.ResponseType = jwt.ResponseTypeStream
			}
			c.Exports.Add(e)
		}
		if slices.Contains(l.to, a) {
			c.Imports.Add(&jwt.Import{Name: l.subject, Subject: jwt.Subject(l.subject), Account: id.AccountID(l.from), Type: typ, Share: l.share})
		}
	}
	switch a {
	case CTL:
		c.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
		c.SigningKeys.AddScopedSigner(id.scope(RoleInspector, subjects.InspectorRole()))
	case AGT:
		s := id.scope(RoleAgent, subjects.AgentRole())
		s.Template.Limits.Subs, s.Template.Limits.Payload = agentSubscriptions, agentPayload
		c.SigningKeys.AddScopedSigner(s)
	case USR:
		c.SigningKeys.AddScopedSigner(id.scope(RoleAdmin, subjects.AdminRole()))
		c.SigningKeys.AddScopedSigner(id.scope(RoleViewer, subjects.ViewerRole()))
		c.SigningKeys.AddScopedSigner(id.scope(RoleManager, subjects.AdminRole()))
		c.SigningKeys.AddScopedSigner(id.scope(RoleUser, subjects.UserRole()))
	case ENROLL:
		s := id.scope(RoleGuest, subjects.GuestRole())
		s.Template.Limits.Subs, s.Template.Limits.Payload = guestSubscriptions, guestPayload
		s.Template.BearerToken = true // everybody has the token, and nobody its key
		c.SigningKeys.AddScopedSigner(s)
		c.Limits.Conn = guestConnections
	case SYS:
	}
	// From the file each time: another controller may have led since, and what it has revoked must stay so.
	revoked, err := loadRevocations(filepath.Join(id.dir, revokedFile))
	if err != nil {
		return nil, err
	}
	revoked.forget(time.Now())
	for user, r := range revoked[a] {
		c.RevokeAt(user, r.At)
	}
	return c, nil
}

// scope is a role's permissions, tied to the role's signing key.
func (id *Identity) scope(r Role, p subjects.Permissions) *jwt.UserScope {
	s := jwt.NewUserScope()
	s.Key, s.Role = id.pub[roleKey(r)], string(r)
	s.Template.Permissions.Pub.Allow.Add(p.Publish...)
	s.Template.Permissions.Sub.Allow.Add(p.Subscribe...)
	if p.Respond {
		s.Template.Permissions.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: agentReplyTime}
	}
	return s
}

// AccountJWT is the account as a server takes it, signed with the operator's signing key.
func (id *Identity) AccountJWT(a Account) (string, error) {
	c, err := id.claims(a)
	if err != nil {
		return "", fmt.Errorf("build account %s: %w", a, err)
	}
	var vr jwt.ValidationResults
	c.Validate(&vr)
	if errs := vr.Errors(); len(errs) > 0 {
		return "", fmt.Errorf("build account %s: %w", a, errors.Join(errs...))
	}
	t, err := c.Encode(id.keys[signingKey])
	if err != nil {
		return "", fmt.Errorf("sign account %s: %w", a, err)
	}
	return t, nil
}

// OperatorJWT is the installation's operator as a server takes it. It is all that a server must trust.
func (id *Identity) OperatorJWT() (string, error) {
	c := jwt.NewOperatorClaims(id.pub[operatorKey])
	c.Name = "shoal"
	c.SystemAccount = id.AccountID(SYS)
	c.SigningKeys.Add(id.pub[signingKey])
	t, err := c.Encode(id.keys[operatorKey])
	if err != nil {
		return "", fmt.Errorf("sign operator: %w", err)
	}
	return t, nil
}

// Configure makes an embedded server trust the installation and know its accounts.
func (id *Identity) Configure(o *server.Options) error {
	ot, err := id.OperatorJWT()
	if err != nil {
		return err
	}
	oc, err := jwt.DecodeOperatorClaims(ot)
	if err != nil {
		return fmt.Errorf("read back operator: %w", err)
	}
	res := &server.MemAccResolver{}
	for _, a := range Accounts() {
		t, err := id.AccountJWT(a)
		if err != nil {
			return err
		}
		if err := res.Store(id.AccountID(a), t); err != nil {
			return fmt.Errorf("preload account %s: %w", a, err)
		}
	}
	o.TrustedOperators, o.AccountResolver, o.SystemAccount = []*jwt.OperatorClaims{oc}, res, id.AccountID(SYS)
	o.DefaultSentinel, err = id.guestJWT()
	return err
}

// ExternalServer is a NATS server that runs outside of the controller.
type ExternalServer struct {
	// Listen is its "host:port", Dir where it keeps accounts and streams.
	Listen, Dir string
	// Cert and Key are the files of its certificate's chain and key.
	Cert, Key string
}

// ServerConfig is the text of a nats-server.conf for such a server.
func (id *Identity) ServerConfig(o ExternalServer) (string, error) {
	ot, err := id.OperatorJWT()
	if err != nil {
		return "", err
	}
	guest, err := id.guestJWT()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# A NATS server for Shoal. Add a server_name and, for three servers, a cluster block.
listen: %q
ping_interval: "10s"
ping_max: 2
max_payload: 1MB
tls {
  cert_file: %q
  key_file: %q
  min_version: "1.3"
  timeout: 10
}
jetstream {
  store_dir: %q
  # Every acknowledged write of the journal must be on the disk.
  sync_interval: always
}
operator: %s
system_account: %s
# Whoever connects without credentials may ask for some, and nothing else.
default_sentinel: %q
# The controllers bring the accounts up to date by themselves.
resolver {
  type: full
  dir: %q
  allow_delete: false
  interval: "2m"
}
resolver_preload {
`, o.Listen, o.Cert, o.Key, filepath.Join(o.Dir, "jetstream"), ot, id.AccountID(SYS), guest, filepath.Join(o.Dir, "accounts"))
	for _, a := range Accounts() {
		t, err := id.AccountJWT(a)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "  # %s\n  %s: %s\n", a, id.AccountID(a), t)
	}
	b.WriteString("}\n")
	return b.String(), nil
}
