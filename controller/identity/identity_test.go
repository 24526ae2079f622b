package identity_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"shoal/controller/identity"
)

func open(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	id, err := identity.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestOpenMakesKeysOnceAndPrivately(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "identity")
	first := open(t, dir)
	second := open(t, dir)
	for _, a := range identity.Accounts() {
		if first.AccountID(a) == "" || first.AccountID(a) != second.AccountID(a) {
			t.Errorf("account %s: id %q at first, %q later", a, first.AccountID(a), second.AccountID(a))
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", e.Name(), fi.Mode().Perm())
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".identity-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOpenAtOnceGivesOneIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := identity.Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = id.AccountID(identity.CTL)
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two identities: %v", ids)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"world-readable key", func(d string) error { return os.Chmod(filepath.Join(d, "operator.seed"), 0o644) }, "chmod 600"},
		{"missing key", func(d string) error { return os.Remove(filepath.Join(d, "account-agt.seed")) }, "account-agt.seed is missing: restore"},
		{"missing newer key", func(d string) error { return os.Remove(filepath.Join(d, "role-user.seed")) }, "role-user.seed is missing: restore"},
		{"missing sealing key", func(d string) error { return os.Remove(filepath.Join(d, "seal.seed")) }, "seal.seed is missing: restore"},
		{"missing authority", func(d string) error { return os.Remove(filepath.Join(d, "ca.pem")) }, "ca.pem is missing: restore"},
		{"garbage authority", func(d string) error { return os.WriteFile(filepath.Join(d, "ca.pem"), []byte("x"), 0o600) }, "read certificate authority"},
		{"world-readable authority", func(d string) error { return os.Chmod(filepath.Join(d, "ca.pem"), 0o644) }, "chmod 600"},
		{"layout of a newer controller", func(d string) error {
			return os.WriteFile(filepath.Join(d, "layout.json"), []byte(`{"version":4,"since":1}`), 0o600)
		}, "it has version 4, this controller knows 3"},
		{"garbage layout", func(d string) error { return os.WriteFile(filepath.Join(d, "layout.json"), []byte(`{}`), 0o600) }, "impossible"},
		{"garbage", func(d string) error { return os.WriteFile(filepath.Join(d, "role-agent.seed"), []byte("x"), 0o600) }, "read seed"},
		{"key of another sort", func(d string) error {
			b, err := os.ReadFile(filepath.Join(d, "operator.seed"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(d, "account-ctl.seed"), b, 0o600)
		}, "key of type O, want A"},
		{"garbage revocations", func(d string) error { return os.WriteFile(filepath.Join(d, "revoked.json"), []byte("x"), 0o600) }, "read revocations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "identity")
			open(t, dir)
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := identity.Open(dir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestCredsRoundTrip(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	for _, c := range []struct {
		role    identity.Role
		account identity.Account
	}{
		{identity.RoleAgent, identity.AGT},
		{identity.RoleAdmin, identity.USR},
		{identity.RoleViewer, identity.USR},
		{identity.RoleInspector, identity.CTL},
		{identity.RoleManager, identity.USR},
		{identity.RoleGuest, identity.ENROLL},
		{identity.RoleController, identity.CTL},
		{identity.RoleSystem, identity.SYS},
	} {
		made, err := id.Creds(c.role, "some-Name_1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "sub", "x.creds")
		if err := made.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		read, err := identity.ReadCreds(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(made, read); d != "" {
			t.Errorf("%s: %s", c.role, d)
		}
		if read.Role != c.role || read.Account != id.AccountID(c.account) || read.Name != "some-Name_1" || read.Expires.IsZero() {
			t.Errorf("%s: got %s in %s, expires %s", c.role, read, read.Account, read.Expires)
		}
		if strings.Contains(read.String(), string(read.Seed)) {
			t.Errorf("%s: String shows the seed", c.role)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.ReadCreds(path); err == nil {
			t.Errorf("%s: credentials that others may read were accepted", c.role)
		}
	}
}

func TestIssueUserRefuses(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		role      identity.Role
		name, key string
		ttl       time.Duration
		want      string
	}{
		{"root", "ann", pub, 0, "role:"},
		{identity.RoleAdmin, "ann.*", pub, 0, "name:"},
		{identity.RoleAdmin, "", pub, 0, "name:"},
		{identity.RoleAdmin, "ann", id.AccountID(identity.CTL), 0, "public_key:"},
		{identity.RoleAdmin, "ann", pub[:55], 0, "public_key:"},
		{identity.RoleAdmin, "ann", pub, -1, "ttl:"},
		{identity.RoleAdmin, "ann", pub, 1 << 62, "ttl:"},
		{identity.RoleUser, "ann", pub, time.Hour, "account:"},
	} {
		if _, err := id.IssueUser(c.role, c.name, c.key, c.ttl); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("IssueUser(%q, %q, %q, %s) = %v, want an error about %s", c.role, c.name, c.key, c.ttl, err, c.want)
		}
	}
}

func TestRevocationIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	id := open(t, dir)
	c, err := id.Creds(identity.RoleAgent, "h1", 0)
	if err != nil {
		t.Fatal(err)
	}
	before, err := id.AccountJWT(identity.AGT)
	if err != nil {
		t.Fatal(err)
	}
	a, err := id.Revoke(identity.RoleAgent, c.PublicKey, time.Now(), time.Time{})
	if err != nil || a != identity.AGT {
		t.Fatalf("Revoke = %s, %v", a, err)
	}
	after, err := open(t, dir).AccountJWT(identity.AGT)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) <= len(before) {
		t.Error("the account does not hold the revocation after the keys were read again")
	}
}

// The text for an external server is parsed by the server itself.
func TestServerConfigIsAccepted(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	dir := t.TempDir()
	ca, err := id.CA()
	if err != nil {
		t.Fatal(err)
	}
	chain, private, err := ca.Issue([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	for path, b := range map[string][]byte{cert: chain, key: private} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := id.ServerConfig(identity.ExternalServer{Listen: "127.0.0.1:4333", Dir: dir, Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "nats-server.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if o.Port != 4333 || o.TLSConfig == nil || o.TLSConfig.MinVersion != tls.VersionTLS13 || o.TLSTimeout != 10 {
		t.Errorf("port %d, TLS %+v with timeout %v", o.Port, o.TLSConfig, o.TLSTimeout)
	}
	if !o.SyncAlways || o.SystemAccount != id.AccountID(identity.SYS) || !o.JetStream {
		t.Errorf("sync always %t, system account %q, jetstream %t", o.SyncAlways, o.SystemAccount, o.JetStream)
	}
}
