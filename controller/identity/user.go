package identity

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"shoal/controller/file"
	"shoal/subjects"
)

// roleTag marks a user's JWT with its role, for people and for ParseCreds. What the user may do comes from its signature.
const roleTag = "role:"

// HostTTL is how long the credentials of a host's agent are good. It renews them at half of that.
const HostTTL = 30 * 24 * time.Hour

// maxTTL bounds how long credentials that expire are good.
const maxTTL = 100 * 365 * 24 * time.Hour

// IssueUser signs credentials for a user whose key was made elsewhere; only its public key ("U…") is needed. With a ttl
// of 0 they don't expire. The name of an agent is its host's id; people's names become a token of their subjects.
func (id *Identity) IssueUser(role Role, name, publicKey string, ttl time.Duration) (string, error) {
	if ttl < 0 || ttl > maxTTL {
		return "", fmt.Errorf("ttl: %s is not between 0 and 100 years", ttl)
	}
	var expires time.Time
	if ttl > 0 {
		expires = time.Now().Add(ttl)
	}
	return id.issue(role, name, "", publicKey, expires)
}

// IssueHost signs credentials for a host's agent, and says until when they are good.
func (id *Identity) IssueHost(host, publicKey string) (token string, expires time.Time, err error) {
	expires = time.Now().Add(HostTTL).UTC().Truncate(time.Second)
	token, err = id.issue(RoleAgent, host, "", publicKey, expires)
	return token, expires, err
}

// IssueSession signs credentials that expire, for a session of somebody in an account: RoleManager or RoleUser. The name
// becomes a token of the session's subjects.
func (id *Identity) IssueSession(role Role, name, account, publicKey string, expires time.Time) (string, error) {
	switch {
	case role != RoleManager && role != RoleUser:
		return "", fmt.Errorf("role: %q is not one of manager, user", string(role))
	case account == "":
		return "", errors.New("account: must be given")
	case !expires.After(time.Now()):
		return "", fmt.Errorf("expires: %s is not in the future", expires.UTC().Format(time.RFC3339))
	}
	return id.issue(role, name, account, publicKey, expires)
}

// SignRelease signs with the key that signs the credentials of hosts: a host knows it, and nobody else has it. The signature is in base64. What is signed
// must not be taken for the part of a JWT, which begins with base64.
func (id *Identity) SignRelease(proof []byte) (string, error) {
	sig, err := id.keys[roleKey(RoleAgent)].Sign(proof)
	if err != nil {
		return "", fmt.Errorf("sign a release: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

// guestJWT is what a server takes for the credentials of whoever has none. Its key is thrown away: nobody signs with it.
func (id *Identity) guestJWT() (string, error) {
	k, err := nkeys.CreateUser()
	if err != nil {
		return "", fmt.Errorf("make key of guests: %w", err)
	}
	pub, err := k.PublicKey()
	if err != nil {
		return "", fmt.Errorf("make key of guests: %w", err)
	}
	return id.issue(RoleGuest, subjects.GuestName, "", pub, time.Time{})
}

func (id *Identity) issue(role Role, name, account, publicKey string, expires time.Time) (string, error) {
	a, scoped, err := role.account()
	if err != nil {
		return "", err
	}
	if !subjects.ValidToken(name) {
		return "", fmt.Errorf("name: %q is not 1 to 64 bytes of [A-Za-z0-9_-]", name)
	}
	if err := checkUserKey(publicKey); err != nil {
		return "", err
	}
	c := jwt.NewUserClaims(publicKey)
	c.Name = name
	c.Tags.Add(roleTag + string(role))
	switch {
	case account != "":
		// Tags are kept in lower case: an id that is not would become another account's.
		if !subjects.ValidToken(account) || account != strings.ToLower(account) {
			return "", fmt.Errorf("account: %q is not 1 to 64 bytes of [a-z0-9_-]", account)
		}
		c.Tags.Add(subjects.AccountTag + account)
	case role == RoleUser:
		return "", errors.New("account: must be given for the role user")
	}
	if !expires.IsZero() {
		c.Expires = expires.Unix()
	}
	signer := id.keys[accountKey(a)]
	if scoped {
		signer = id.keys[roleKey(role)]
		c.IssuerAccount = id.AccountID(a)
		c.SetScoped(true)
	}
	t, err := c.Encode(signer)
	if err != nil {
		return "", fmt.Errorf("sign user %s: %w", name, err)
	}
	return t, nil
}

func checkUserKey(publicKey string) error {
	if !nkeys.IsValidPublicUserKey(publicKey) {
		return fmt.Errorf("public_key: %q is not a user nkey (56 characters, starting with U)", publicKey)
	}
	return nil
}

// Creds is what a user connects with.
type Creds struct {
	Role      Role // empty where the JWT does not say
	Name      string
	PublicKey string
	// Account is the public key of the user's account.
	Account string
	// Expires is zero for credentials that don't.
	Expires time.Time
	JWT     string
	// Seed is the user's secret.
	Seed []byte
}

// String leaves the secret out.
func (c Creds) String() string { return fmt.Sprintf("%s %s (%s)", c.Role, c.Name, c.PublicKey) }

// Creds makes a key here and signs credentials for it.
func (id *Identity) Creds(role Role, name string, ttl time.Duration) (Creds, error) {
	k, err := nkeys.CreateUser()
	if err != nil {
		return Creds{}, fmt.Errorf("make key of user %s: %w", name, err)
	}
	pub, err := k.PublicKey()
	if err != nil {
		return Creds{}, fmt.Errorf("make key of user %s: %w", name, err)
	}
	seed, err := k.Seed()
	if err != nil {
		return Creds{}, fmt.Errorf("make key of user %s: %w", name, err)
	}
	t, err := id.IssueUser(role, name, pub, ttl)
	if err != nil {
		return Creds{}, err
	}
	return parse(t, seed)
}

// Format is the text of a credentials file, as every NATS client takes it.
func (c Creds) Format() ([]byte, error) {
	b, err := jwt.FormatUserConfig(c.JWT, c.Seed)
	if err != nil {
		return nil, fmt.Errorf("format credentials of %s: %w", c.Name, err)
	}
	return b, nil
}

// WriteFile writes a credentials file in one step. Only its owner may read it.
func (c Creds) WriteFile(path string) error {
	b, err := c.Format()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	if err := file.Write(path, 0o600, b); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return nil
}

// NewCreds puts a JWT from IssueUser and the seed of its key together.
func NewCreds(token string, seed []byte) (Creds, error) { return parse(token, seed) }

// ParseCreds reads the text of a credentials file. The signatures are for the server to check.
func ParseCreds(b []byte) (Creds, error) {
	t, err := jwt.ParseDecoratedJWT(b)
	if err != nil {
		return Creds{}, fmt.Errorf("parse credentials: %w", err)
	}
	k, err := jwt.ParseDecoratedUserNKey(b)
	if err != nil {
		return Creds{}, fmt.Errorf("parse credentials: %w", err)
	}
	seed, err := k.Seed()
	if err != nil {
		return Creds{}, fmt.Errorf("parse credentials: %w", err)
	}
	return parse(t, seed)
}

// ReadCreds reads a credentials file, which nobody but its owner may be able to read.
func ReadCreds(path string) (Creds, error) {
	b, err := readPrivate(path)
	if err != nil {
		return Creds{}, fmt.Errorf("read credentials: %w", err)
	}
	c, err := ParseCreds(b)
	if err != nil {
		return Creds{}, fmt.Errorf("read credentials %s: %w", path, err)
	}
	return c, nil
}

func parse(token string, seed []byte) (Creds, error) {
	u, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return Creds{}, fmt.Errorf("parse credentials: %w", err)
	}
	k, err := nkeys.FromSeed(seed)
	if err != nil {
		return Creds{}, fmt.Errorf("parse credentials: seed: %w", err)
	}
	if pub, err := k.PublicKey(); err != nil || pub != u.Subject {
		return Creds{}, errors.New("parse credentials: the key is not the one that the JWT was issued for")
	}
	c := Creds{Name: u.Name, PublicKey: u.Subject, Account: u.IssuerAccount, JWT: token, Seed: seed}
	if c.Account == "" {
		c.Account = u.Issuer
	}
	if u.Expires != 0 {
		c.Expires = time.Unix(u.Expires, 0).UTC()
	}
	for _, t := range u.Tags {
		if r, ok := strings.CutPrefix(t, roleTag); ok {
			c.Role = Role(r)
		}
	}
	return c, nil
}
