package identity_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/jwt/v2"

	"shoal/controller/identity"
)

// revokedIn is what an account tells servers of revoked users.
func revokedIn(t *testing.T, id *identity.Identity, a identity.Account) jwt.RevocationList {
	t.Helper()
	token, err := id.AccountJWT(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	return c.Revocations
}

func user(t *testing.T, id *identity.Identity) string {
	t.Helper()
	c, err := id.Creds(identity.RoleManager, "x", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c.PublicKey
}

func TestRevocationsAreForgottenInTime(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	now := time.Now().Truncate(time.Second)
	gone, still, forever, just := user(t, id), user(t, id), user(t, id), user(t, id)
	accounts, err := id.RevokeAll([]identity.Revocation{
		{Role: identity.RoleUser, PublicKey: gone, At: now.Add(-5 * time.Hour), Until: now.Add(-2 * time.Hour)},
		{Role: identity.RoleUser, PublicKey: just, At: now.Add(-5 * time.Hour), Until: now.Add(-time.Minute)}, // the servers' clocks may be late
		{Role: identity.RoleManager, PublicKey: still, At: now, Until: now.Add(time.Hour)},
		{Role: identity.RoleAgent, PublicKey: forever, At: now.Add(-1000 * time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]identity.Account{identity.USR, identity.AGT}, accounts); d != "" {
		t.Errorf("accounts (-want +got):\n%s", d)
	}
	want := jwt.RevocationList{just: now.Add(-5 * time.Hour).Unix(), still: now.Unix()}
	if d := cmp.Diff(want, revokedIn(t, id, identity.USR)); d != "" {
		t.Errorf("users (-want +got):\n%s", d)
	}
	if d := cmp.Diff(jwt.RevocationList{forever: now.Add(-1000 * time.Hour).Unix()}, revokedIn(t, id, identity.AGT)); d != "" {
		t.Errorf("agents (-want +got):\n%s", d)
	}
}

// A second revocation takes nothing of the first back.
func TestRevocationsOnlyGrow(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	now, key := time.Now().Truncate(time.Second), user(t, id)
	for _, r := range []identity.Revocation{
		{At: now, Until: now.Add(time.Hour)},
		{At: now.Add(-time.Hour), Until: now.Add(-3 * time.Hour)},
	} {
		if _, err := id.Revoke(identity.RoleUser, key, r.At, r.Until); err != nil {
			t.Fatal(err)
		}
	}
	if got := revokedIn(t, id, identity.USR)[key]; got != now.Unix() {
		t.Errorf("revoked up to %d, want %d", got, now.Unix())
	}
}

// A stand-by that comes to lead knows what another controller has revoked in the meantime.
func TestRevocationsOfAnotherController(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	one, two := open(t, dir), open(t, dir)
	a, b := user(t, one), user(t, one)
	for id, key := range map[*identity.Identity]string{one: a, two: b} {
		if _, err := id.Revoke(identity.RoleUser, key, time.Now(), time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []*identity.Identity{one, two} {
		if got := revokedIn(t, id, identity.USR); got[a] == 0 || got[b] == 0 {
			t.Errorf("a controller knows of %v, want both users", got)
		}
	}
}

func TestRevokeAllIsAllOrNothing(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	good := identity.Revocation{Role: identity.RoleUser, PublicKey: user(t, id), At: time.Now()}
	for _, c := range []struct {
		bad  identity.Revocation
		want string
	}{
		{identity.Revocation{Role: "root", PublicKey: good.PublicKey, At: good.At}, "role:"},
		{identity.Revocation{Role: identity.RoleUser, PublicKey: "*", At: good.At}, "public_key:"},
		{identity.Revocation{Role: identity.RoleUser, PublicKey: good.PublicKey}, "at:"},
	} {
		if _, err := id.RevokeAll([]identity.Revocation{good, c.bad}); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error about %s", c.bad, err, c.want)
		}
		if got := revokedIn(t, id, identity.USR); len(got) != 0 {
			t.Errorf("%+v: the other one is revoked", c.bad)
		}
	}
}

// The file of older controllers held the time alone.
func TestRevocationsOfOlderControllers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	id := open(t, dir)
	key := user(t, id)
	b, err := json.Marshal(map[string]any{"AGT": map[string]any{key: "2026-11-01T12:00:00Z"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "revoked.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := revokedIn(t, open(t, dir), identity.AGT)[key]; got != time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC).Unix() {
		t.Errorf("revoked up to %d", got)
	}
}
