package identity_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"shoal/controller/identity"
)

func FuzzParseHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=8,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		if again, err := identity.ParseHash(s); err == nil && again != s {
			t.Errorf("%q reads as %q", s, again)
		}
	})
}

func FuzzParseCA(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "identity")
	if _, err := identity.Open(dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Repeat(b, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := identity.ParseCA(b)
		if err != nil {
			return
		}
		if again, err := identity.ParseCA(first); err != nil || !bytes.Equal(first, again) {
			t.Errorf("what was read is not read again: %v", err)
		}
	})
}

func FuzzParseRevocations(f *testing.F) {
	f.Add([]byte(`{"AGT":{"UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA":{"at":"2026-11-01T12:00:00Z"}}}`))
	f.Add([]byte(`{"USR":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = identity.ForgetAll(b, time.Now())
	})
}

func FuzzParseCreds(f *testing.F) {
	id, err := identity.Open(filepath.Join(f.TempDir(), "identity"))
	if err != nil {
		f.Fatal(err)
	}
	c, err := id.Creds(identity.RoleAdmin, "ann", 0)
	if err != nil {
		f.Fatal(err)
	}
	b, err := c.Format()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := identity.ParseCreds(b); err == nil && (c.PublicKey == "" || len(c.Seed) == 0) {
			t.Errorf("credentials without a key: %+v", c)
		}
	})
}
