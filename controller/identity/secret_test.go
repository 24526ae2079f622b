package identity_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/argon2"

	"shoal/controller/identity"
)

func TestSeal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	id, other := open(t, dir), open(t, filepath.Join(t.TempDir(), "identity"))
	for _, plain := range []string{"", "x", strings.Repeat("secret", 1000)} {
		sealed, err := id.Seal([]byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		again, err := id.Seal([]byte(plain))
		if err != nil || again == sealed {
			t.Errorf("the same text is sealed alike twice (%v)", err)
		}
		if plain != "" && strings.Contains(sealed, base64.RawStdEncoding.EncodeToString([]byte(plain))) {
			t.Error("the text can be read")
		}
		got, err := open(t, dir).Open(sealed)
		if err != nil || string(got) != plain {
			t.Errorf("Open = %q, %v", got, err)
		}
		if _, err := other.Open(sealed); err == nil {
			t.Error("another installation opens it")
		}
		for i := range sealed {
			if i%97 != 0 && len(sealed) > 200 {
				continue
			}
			c := byte('A')
			if sealed[i] == c {
				c = 'B'
			}
			if _, err := id.Open(sealed[:i] + string(c) + sealed[i+1:]); err == nil {
				t.Errorf("opens although character %d has changed", i)
			}
		}
	}
}

func TestSealTo(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	box, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := box.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, by, err := id.SealTo(pub, []byte("answer"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := box.Open(sealed, by); err != nil || string(got) != "answer" {
		t.Errorf("the asker reads %q, %v", got, err)
	}
	for _, bad := range []string{"", "X", by, pub + "A", pub[:55], strings.Repeat("X", 4096), id.AccountID(identity.CTL), strings.ToLower(pub)} {
		if _, _, err := id.SealTo(bad, []byte("answer")); err == nil {
			t.Errorf("sealed to %q", bad)
		}
	}
}

func FuzzOpen(f *testing.F) {
	id, err := identity.Open(filepath.Join(f.TempDir(), "identity"))
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := id.Seal([]byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add("sealed1:")
	f.Add(sealed[:20] + "\n" + sealed[20:])
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := id.Open(s); err == nil && s != sealed {
			t.Errorf("opens %q", s)
		}
	})
}

func FuzzSealTo(f *testing.F) {
	id, err := identity.Open(filepath.Join(f.TempDir(), "identity"))
	if err != nil {
		f.Fatal(err)
	}
	box, err := nkeys.CreateCurveKeys()
	if err != nil {
		f.Fatal(err)
	}
	pub, err := box.PublicKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pub)
	f.Fuzz(func(t *testing.T, s string) {
		if _, _, err := id.SealTo(s, []byte("x")); err == nil && !nkeys.IsValidPublicCurveKey(s) {
			t.Errorf("sealed to %q", s)
		}
	})
}

func TestPassword(t *testing.T) {
	id, ctx := open(t, filepath.Join(t.TempDir(), "identity")), t.Context()
	hash, err := id.HashPassword(ctx, "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "$argon2id$v=19$m=65536,t=3,p=4$") {
		t.Errorf("the hash is %q", hash)
	}
	for plain, want := range map[string]bool{"correct horse": true, "correct horsf": false, "": false, strings.Repeat("x", 4096): false} {
		if ok, err := id.CheckPassword(ctx, hash, plain); err != nil || ok != want {
			t.Errorf("%.20q: %t, %v, want %t", plain, ok, err, want)
		}
	}
	if again, err := id.HashPassword(ctx, "correct horse"); err != nil || again == hash {
		t.Errorf("two hashes of a password are the same (%v)", err)
	}
	for _, plain := range []string{"", strings.Repeat("x", identity.MaxPassword+1)} {
		if _, err := id.HashPassword(ctx, plain); err == nil {
			t.Errorf("a password of %d bytes was hashed", len(plain))
		}
	}
	// Hashes with other parameters go on to be good.
	enc := base64.RawStdEncoding
	small := fmt.Sprintf("$argon2id$v=19$m=64,t=1,p=1$%s$%s", enc.EncodeToString([]byte("12345678")), enc.EncodeToString(argon2.IDKey([]byte("pw"), []byte("12345678"), 1, 64, 1, 16)))
	if ok, err := id.CheckPassword(ctx, small, "pw"); err != nil || !ok {
		t.Errorf("a hash with small parameters: %t, %v", ok, err)
	}
	for _, bad := range []string{
		"", "pw", "$argon2i" + hash[len("$argon2id"):], strings.Replace(hash, "v=19", "v=16", 1), strings.Replace(hash, "m=65536", "m=999999999", 1),
		strings.Replace(hash, "m=65536", "m=8", 1), strings.Replace(hash, "t=3", "t=0", 1), strings.Replace(hash, "t=3", "t=1000000", 1),
		strings.Replace(hash, "p=4", "p=0", 1), strings.Replace(hash, "p=4", "p=255", 1), strings.Replace(hash, "m=65536", "m=+65536", 1),
		hash[:strings.LastIndex(hash, "$")+1], hash + "$", hash + strings.Repeat("A", 300),
	} {
		if ok, err := id.CheckPassword(ctx, bad, "correct horse"); err == nil || ok || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%.60q: %t, %v, want an error that does not show it", bad, ok, err)
		}
	}
}

// Two hash at once; who waits for longer than it may is told.
func TestPasswordsWaitTheirTurn(t *testing.T) {
	id := open(t, filepath.Join(t.TempDir(), "identity"))
	enc := base64.RawStdEncoding
	slow := fmt.Sprintf("$argon2id$v=19$m=262144,t=8,p=1$%s$%s", enc.EncodeToString(make([]byte, 16)), enc.EncodeToString(make([]byte, 32)))
	done := make(chan error, 3)
	for range 2 {
		go func() {
			_, err := id.CheckPassword(context.Background(), slow, "x")
			done <- err
		}()
	}
	for id.Hashing() < 2 {
		select {
		case err := <-done:
			t.Fatalf("it ended before the other one began (%v)", err)
		case <-time.After(time.Millisecond):
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := id.HashPassword(ctx, "third"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the third got %v, want its deadline", err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := id.HashPassword(t.Context(), "third"); err != nil {
		t.Error(err)
	}
}
