package identity_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"shoal/controller/identity"
)

func TestIssueSession(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	key, expires := user(t, id), time.Now().Add(2*time.Hour)
	for _, role := range []identity.Role{identity.RoleUser, identity.RoleManager} {
		token, err := id.IssueSession(role, "ann", "acc-1", key, expires)
		if err != nil {
			t.Fatal(err)
		}
		c, err := jwt.DecodeUserClaims(token)
		if err != nil {
			t.Fatal(err)
		}
		if c.Name != "ann" || c.Expires != expires.Unix() || !c.Tags.Contains("account:acc-1") || c.Issuer != id.SigningKey(role) || c.IssuerAccount != id.AccountID(identity.USR) {
			t.Errorf("%s: %s", role, c)
		}
	}
	for _, c := range []struct {
		role                identity.Role
		name, account, want string
		expires             time.Time
	}{
		{identity.RoleAdmin, "ann", "a", "role:", expires},
		{identity.RoleAgent, "ann", "a", "role:", expires},
		{identity.RoleUser, "ann", "", "account:", expires},
		{identity.RoleUser, "ann", "Upper", "account:", expires},
		{identity.RoleUser, "ann", "a.b", "account:", expires},
		{identity.RoleUser, "ann", "a*", "account:", expires},
		{identity.RoleUser, "a.b", "a", "name:", expires},
		{identity.RoleUser, "ann", "a", "expires:", time.Time{}},
		{identity.RoleUser, "ann", "a", "expires:", time.Now().Add(-time.Second)},
	} {
		if _, err := id.IssueSession(c.role, c.name, c.account, key, c.expires); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	keys := map[string]identity.Role{}
	for _, r := range []identity.Role{identity.RoleAgent, identity.RoleAdmin, identity.RoleViewer, identity.RoleInspector, identity.RoleManager, identity.RoleUser, identity.RoleGuest} {
		k := id.SigningKey(r)
		if other, ok := keys[k]; ok || k == "" {
			t.Errorf("%s and %s are signed by the same key %q", r, other, k)
		}
		keys[k] = r
	}
}

func TestIssueHost(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	before := time.Now().Truncate(time.Second)
	token, expires, err := id.IssueHost("h1", user(t, id))
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	if c.Expires != expires.Unix() || expires.Before(before.Add(identity.HostTTL)) || expires.After(time.Now().Add(identity.HostTTL)) {
		t.Errorf("it runs out at %d, said is %s", c.Expires, expires)
	}
}
