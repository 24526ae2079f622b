package identity_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"shoal/controller/identity"
)

// younger turns a directory into one that a controller before sessions has made.
func younger(t *testing.T, dir string) {
	t.Helper()
	for _, f := range []string{"layout.json", "role-user.seed", "role-manager.seed", "role-guest.seed", "role-inspector.seed", "seal.seed", "ca.pem"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
}

// An older directory gets what it lacks, once, and keeps what it has; from then on nothing that is lost is made again.
func TestOpenAddsWhatOlderControllersDidNotKnow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	first := open(t, dir)
	younger(t, dir)
	keys := make([]string, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			id, err := identity.Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			ca, err := id.CA()
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = id.SigningKey(identity.RoleUser) + identity.Pin(ca.Active())
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k == "" || k != keys[0] {
			t.Fatalf("controllers that start at once have different keys: %v", keys)
		}
	}
	again := open(t, dir)
	for _, r := range []identity.Role{identity.RoleAgent, identity.RoleAdmin, identity.RoleViewer} {
		if again.SigningKey(r) == "" || again.SigningKey(r) != first.SigningKey(r) {
			t.Errorf("the key of role %s has changed", r)
		}
	}
	if again.SigningKey(identity.RoleUser) == first.SigningKey(identity.RoleUser) {
		t.Error("the key of a user was not made anew, so this test shows nothing")
	}
	if err := os.Remove(filepath.Join(dir, "role-user.seed")); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(dir); err == nil {
		t.Error("a key that was lost is made again")
	}
}

// A crash between two files of the upgrade loses none that was made.
func TestOpenGoesOnWithAnUpgrade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	open(t, dir)
	younger(t, dir)
	half := open(t, dir)
	for _, f := range []string{"layout.json", "ca.pem"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if id := open(t, dir); id.SigningKey(identity.RoleGuest) != half.SigningKey(identity.RoleGuest) {
		t.Error("a key that was there is made again")
	}
}

// Older controllers issued hosts' credentials that never run out: in their directories no revocation of a host is forgotten.
func TestRevocationsOfOldDirectoriesStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	open(t, dir)
	younger(t, dir)
	id := open(t, dir)
	c, err := id.Creds(identity.RoleAgent, "h1", 0)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-100 * 24 * time.Hour)
	if _, err := id.Revoke(identity.RoleAgent, c.PublicKey, old, old.Add(identity.HostTTL)); err != nil {
		t.Fatal(err)
	}
	if got := revokedIn(t, id, identity.AGT); got[c.PublicKey] == 0 {
		t.Error("the revocation is forgotten while the credentials are still good")
	}
}
