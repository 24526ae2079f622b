package release_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/controller/identity"
	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/release"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/desired"
)

// bench is a service on a real bucket, with hosts that are made up.
type bench struct {
	*release.Service
	t    *testing.T
	site *plantest.Example
	id   *identity.Identity
	arts *site.Artifacts
	now  time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	id, err := identity.Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := site.Open(t.Context(), site.Config{Name: "test", Identity: id, Dir: t.TempDir(), MaxStore: 512 << 20, MaxHistory: 1 << 20, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b := &bench{t: t, site: plantest.NewExample(1, 2), id: id, arts: s.Artifacts(), now: time.Now()}
	b.Service = release.New(release.Config{
		Objects: b.arts, View: b.view, Sign: id.SignRelease, Now: func() time.Time { return b.now }, Log: zerolog.Nop(),
	})
	return b
}

// agentBinary is a Go program that passes for an agent by all that can be seen without running it: this test's, with another name in it.
func agentBinary(t *testing.T, command string) []byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	old, line := []byte("path\tshoal/controller/release.test\n"), "path\t"+command+"\n"
	if len(line) < len(old) {
		line += strings.Repeat("x", len(old)-len(line)-1) + "\n" // a line that says nothing
	}
	if !bytes.Contains(b, old) || len(line) != len(old) {
		t.Fatalf("this program does not say %q", old)
	}
	return bytes.ReplaceAll(b, old, []byte(line))
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (b *bench) upload(data []byte) string {
	b.t.Helper()
	sum := digestOf(data)
	for at := 0; at < len(data); at += 1 << 20 {
		part := data[at:min(at+1<<20, len(data))]
		if n, err := b.Upload(sum, uint64(at), part); err != nil || n != uint64(at+len(part)) {
			b.t.Fatalf("part at %d: %d, %v", at, n, err)
		}
	}
	return sum
}

// TestTakeAndPart: a binary goes in in parts and comes out in parts, the same, to the host that is to run it and to no other; a host can check
// that it comes from whoever made its credentials.
func TestTakeAndPart(t *testing.T) {
	b := newBench(t)
	data := agentBinary(t, "shoal/cmd/shoal-agent")
	sum := b.upload(data)
	signed, err := b.Take(t.Context(), "1.2", sum, uint64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	// Again, with nothing uploaded: what is there will do.
	if again, err := b.Take(t.Context(), "1.2", sum, uint64(len(data))); err != nil || again != signed {
		t.Errorf("again: %+v, %v", again, err)
	}
	l := &resource.Release{Meta: resource.Meta{Name: "1.2"}, Version: "1.2", Arch: signed.Arch, SHA256: sum, Bytes: uint64(len(data)), Signature: signed.Signature}
	if err := b.site.Do("release.create", func(tx resource.Tx) error {
		if l, err = plan.AddRelease(tx, l); err != nil {
			return err
		}
		h, err := resource.Get[*resource.Host](tx, b.site.IDs["h1"])
		if err != nil {
			return err
		}
		h = resource.Copy(h)
		h.ReleaseID, h.TrialSeconds = l.ID, 60
		return tx.Put(h)
	}); err != nil {
		t.Fatal(err)
	}

	token, _, err := b.id.IssueHost("h1", userKey(t))
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.Decode(nkeys.PrefixByteAccount, []byte(claims.Issuer))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.site.Publish(); err != nil {
		t.Fatal(err)
	}
	items := b.site.Items(b.site.IDs["h1"])
	i := slices.IndexFunc(items, func(it desired.Item) bool { return it.Kind == desired.KindAgent })
	if i < 0 {
		t.Fatalf("the host is told nothing of it: %v", items)
	}
	spec, err := desired.DecodeSpec[desired.Agent](items[i])
	if err != nil || !spec.SignedBy(ed25519.PublicKey(key)) {
		t.Errorf("by its own credentials the host can't tell that %+v is signed (%v)", spec, err)
	}

	var got []byte
	for {
		part, err := b.Part(t.Context(), b.site.IDs["h1"], desired.ReleaseRequest{Release: l.ID, Offset: uint64(len(got))})
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
		if len(part) > desired.MaxReleasePart {
			t.Fatalf("a part has %d bytes", len(part))
		}
		got = append(got, part...)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes came out, and %d went in, or they differ", len(got), len(data))
	}
	if _, err := b.Part(t.Context(), b.site.IDs["h2"], desired.ReleaseRequest{Release: l.ID}); !resource.HasCode(err, resource.CodeForbidden) {
		t.Errorf("another host: %v", err)
	}
	// After a restore the bucket is empty, which the host is told, and what to do about it.
	if err := b.arts.Delete(t.Context(), sum); err != nil {
		t.Fatal(err)
	}
	other := release.New(release.Config{Objects: b.arts, View: b.view, Sign: b.id.SignRelease, Log: zerolog.Nop()})
	if _, err := other.Part(t.Context(), b.site.IDs["h1"], desired.ReleaseRequest{Release: l.ID}); err == nil || !strings.Contains(err.Error(), "is not in the bucket") {
		t.Errorf("without the content: %v", err)
	}
}

func userKey(t *testing.T) string {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// TestTake_Refuses: what is no agent gets no signature, and nothing of it stays.
func TestTake_Refuses(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		data  []byte
		field string
	}{
		"text":            {[]byte("#!/bin/sh\n"), "binary"},
		"another program": {agentBinary(t, "shoal/controller/release.test"), "binary"},
	} {
		sum := b.upload(c.data)
		_, err := b.Take(t.Context(), "1.2", sum, uint64(len(c.data)))
		if e, ok := errors.AsType[*resource.Error](err); !ok || e.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	lie := digestOf([]byte("other"))
	if _, err := b.Upload(lie, 0, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Take(t.Context(), "1.2", lie, 5); !resource.HasCode(err, resource.CodeInvalid) {
		t.Errorf("another content than was said: %v", err)
	}
	if _, err := b.Take(t.Context(), "1.2", lie, 5); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("a refused upload is still there: %v", err)
	}
	if names, err := b.arts.Names(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("left in the bucket: %v (%v)", names, err)
	}
}

func TestUpload_Order(t *testing.T) {
	b := newBench(t)
	sum := func(n byte) string { return strings.Repeat(hex.EncodeToString([]byte{n}), 32) }
	if _, err := b.Upload(sum(1), 4, []byte("late")); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("the end before the beginning: %v", err)
	}
	for range 2 { // said again, it is the same
		if n, err := b.Upload(sum(1), 0, []byte("begin")); err != nil || n != 5 {
			t.Errorf("%d, %v", n, err)
		}
	}
	if _, err := b.Upload(sum(1), 7, []byte("gap")); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("a gap: %v", err)
	}
	for i := range byte(3) {
		if _, err := b.Upload(sum(2+i), 0, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Upload(sum(9), 0, []byte("x")); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("a fifth at a time: %v", err)
	}
	b.now = b.now.Add(time.Hour) // whoever left has left
	if _, err := b.Upload(sum(9), 0, []byte("x")); err != nil {
		t.Errorf("after an hour: %v", err)
	}
}

// TestRun_Tidies: what no release names goes, but not at once, for a release may be about to be recorded.
func TestRun_Tidies(t *testing.T) {
	b := newBench(t)
	data := agentBinary(t, "shoal/cmd/shoal-agent")
	sum := b.upload(data)
	if _, err := b.Take(t.Context(), "1.2", sum, uint64(len(data))); err != nil {
		t.Fatal(err)
	}
	names := func() int {
		all, err := b.arts.Names(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if err := b.Tidy(t.Context()); err != nil || names() != 1 {
		t.Fatalf("at once: %v, %d left", err, names())
	}
	b.now = b.now.Add(2 * time.Hour)
	if err := b.Tidy(t.Context()); err != nil || names() != 0 {
		t.Errorf("later: %v, %d left", err, names())
	}
}

func (b *bench) view() resource.Reader { return b.site.View() }
