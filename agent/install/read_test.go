package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"shoal/desired"
)

func TestFacts_OfDMI(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"sys_vendor": "Vendor Inc.\n", "product_name": strings.Repeat("ü", 200), "product_serial": " a\x00b\x1b[31m\xff \n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := facts(dir)
	if f.Vendor != "Vendor Inc." || f.Product != strings.Repeat("ü", 64) || f.Serial != "ab[31m" || f.UUID != "" {
		t.Errorf("%q %q %q %q", f.Vendor, f.Product, f.Serial, f.UUID)
	}
}

func TestUseless(t *testing.T) {
	other, clock := &PinError{Server: "a"}, &PinError{Server: "a", Err: errors.New("not yet valid")}
	away := errors.New("connection refused")
	for n, c := range []struct {
		err  error
		want bool
	}{
		{&RefusalError{Number: 403}, true},
		{&RefusalError{Number: 503}, false},
		{other, true},
		{clock, false},
		{away, false},
		{errors.Join(other, other), true},
		{errors.Join(other, away), false},
		{errors.Join(other, &RefusalError{Number: 503}), false},
		{fmt.Errorf("%w: %w", nats.ErrTLS, away), false},
	} {
		if got := useless(fmt.Errorf("ask to be let in: %w", c.err)); got != c.want {
			t.Errorf("%d: %v: %t, want %t", n, c.err, got, c.want)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add([]byte("xkv1"), "X", "")
	f.Add([]byte(`{"code":"x","message":"y"}`), "", "403")
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, by, code string) {
		m := nats.NewMsg("x")
		m.Data = data
		m.Header.Set(desired.SealedBy, by)
		m.Header.Set(errorCodeHeader, code)
		if plain, err := unseal(m, key); err == nil {
			t.Fatalf("%q was taken for sealed: %q", data, plain)
		}
		if code != "" && Refused(m) == nil {
			t.Fatalf("code %q is no refusal", code)
		}
	})
}

func FuzzReadEnrolReply(f *testing.F) {
	f.Add([]byte(`{"state":"pending","retry_seconds":5}`))
	f.Add([]byte(`{"state":"approved","credentials":{"host":"h1","jwt":"x"}}`))
	const key = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readEnrolReply(b, key)
		if err == nil && r.State == desired.EnrolApproved {
			t.Fatalf("%q lets a host in without a JWT for its key", b)
		}
		if d := askAgain(r.RetrySeconds); d <= 0 || d.Hours() > 2 {
			t.Fatalf("ask again after %s", d)
		}
	})
}

func FuzzReadRefusal(f *testing.F) {
	f.Add("403", []byte(`{"code":"forbidden","message":"no"}`))
	f.Add("", []byte(`null`))
	f.Fuzz(func(t *testing.T, number string, body []byte) {
		r := readRefusal(number, body)
		if r.Error() == "" || r.Number < 400 || r.Number > 599 {
			t.Fatalf("%+v", r)
		}
	})
}

func FuzzParseCreds(f *testing.F) {
	f.Add([]byte("-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\nSUA\n------END USER NKEY SEED------\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		claims, key, err := parseCreds(b)
		if err != nil {
			return
		}
		if public, err := key.PublicKey(); err != nil || public != claims.Subject {
			t.Fatalf("%q: another key", b)
		}
	})
}

func FuzzParseSeed(f *testing.F) {
	f.Add([]byte("SUAMRA\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, public, err := parseSeed(b); err == nil && (key == nil || !nkeys.IsValidPublicUserKey(public)) {
			t.Fatalf("%q", b)
		}
	})
}

// FuzzIdentityFiles reads damaged files of an identity: an error, never a panic, and no secret in it.
func FuzzIdentityFiles(f *testing.F) {
	good, err := json.Marshal(about{Host: "h1", Name: "one", URLs: []string{"tls://127.0.0.1:4222"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte("x"))
	f.Add([]byte(`{"urls":null}`), []byte(""))
	f.Fuzz(func(t *testing.T, hostJSON, creds []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{hostFile: hostJSON, credsFile: creds, caFile: hostJSON} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		i, err := open(dir, never)
		if err != nil {
			return
		}
		_, _ = i.Roots()
		if len(i.URLs()) == 0 {
			t.Fatal("an identity without servers was opened")
		}
	})
}

// TestErrorsHoldNoSeed: what can't be read is not shown.
func TestErrorsHoldNoSeed(t *testing.T) {
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	damaged := "-----BEGIN NATS USER JWT-----\nnone\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n" + string(seed[:50]) +
		"\n------END USER NKEY SEED------\n"
	if err := os.WriteFile(filepath.Join(dir, credsFile), []byte(damaged), 0o600); err != nil {
		t.Fatal(err)
	}
	_, openErr := open(dir, never)
	_, _, seedErr := parseSeed(seed[:50])
	for _, err := range []error{openErr, seedErr} {
		if err == nil || strings.Contains(err.Error(), string(seed[:20])) {
			t.Errorf("%v", err)
		}
	}
}
