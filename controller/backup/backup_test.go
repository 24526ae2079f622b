package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestNames(t *testing.T) {
	at := time.Date(2026, 11, 24, 2, 0, 5, 0, time.UTC)
	for _, n := range []name{{"OABCDEFGHIJK", at, 7, true}, {"OABCDEFGHIJK", at, 1 << 40, false}} {
		got, ok := parseName(n.String())
		if !ok || got != n {
			t.Errorf("%s is read as %+v", n, got)
		}
		if !isPartial("."+n.String()+partial) || isPartial(n.String()) {
			t.Errorf("%s: what is half written is not told apart", n)
		}
	}
	for _, s := range []string{
		"", "shoal", "shoal-A-20261124T020005Z-7.tar.age.old", "shoal-A-20261124T020005Z-07.tar", "shoal-A-20261124-7.tar", "x-A-20261124T020005Z-7.tar",
		"shoal-A-20261124T020005Z-7.tar.age.age", "../shoal-A-20261124T020005Z-7.tar", "shoal-A-B-20261124T020005Z-7.tar",
	} {
		if n, ok := parseName(s); ok {
			t.Errorf("%q is read as %+v", s, n)
		}
		if isPartial(s) {
			t.Errorf("%q is taken for half written", s)
		}
	}
}

// TestRestoreCommand: what is shown of a backup holds every flag that restoring it needs.
func TestRestoreCommand(t *testing.T) {
	dir := t.TempDir()
	pass := filepath.Join(dir, "pass")
	if err := os.WriteFile(pass, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pair, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	const login = "--backup-sftp-key FILE --backup-sftp-known-hosts FILE "
	for _, c := range []struct {
		to    string
		seal  SealConfig
		flags string
	}{
		{dir, SealConfig{Plain: true}, ""},
		{dir, SealConfig{PassphraseFile: pass}, "--backup-passphrase-file FILE "},
		{"sftp://shoal@10.0.0.9:22/backups", SealConfig{Recipients: []string{pair.Recipient().String()}}, "--backup-key-file FILE " + login},
	} {
		seal, err := NewSeal(c.seal)
		if err != nil {
			t.Fatal(err)
		}
		target, err := NewTarget(c.to, SFTPConfig{KeyFile: pass, KnownHosts: pass})
		if err != nil {
			t.Fatal(err)
		}
		s := &Service{cfg: Config{Target: target, Seal: seal}}
		n := name{installation: "OABC", at: time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC), seq: 7, encrypted: seal.Encrypts()}
		want := "shoal-controller restore --data /var/lib/shoal-controller " + c.flags + c.to + "/" + n.String()
		if got := s.info(n, 1).Restore; got != want {
			t.Errorf("to %s it is\n%s, want\n%s", c.to, got, want)
		}
	}
}

// staged makes a staging directory with a stream and a directory with keys.
func staged(t *testing.T) (staging, keys string) {
	t.Helper()
	staging, keys = t.TempDir(), t.TempDir()
	for path, content := range map[string]string{
		filepath.Join(staging, StreamsDir, "JOURNAL", "backup.json"):   `{}`,
		filepath.Join(staging, StreamsDir, "JOURNAL", "stream.arc.s2"): strings.Repeat("journal", 10000),
		filepath.Join(keys, "operator.seed"):                           "secret",
		filepath.Join(keys, "ca", "root.pem"):                          "another",
		filepath.Join(keys, "empty"):                                   "",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return staging, keys
}

func archived(t *testing.T) []byte {
	t.Helper()
	staging, keys := staged(t)
	streams, secrets, err := gather(staging, keys)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := write(&b, Manifest{Format: Format, Installation: "O", Seq: 9, Created: time.Unix(1e9, 0).UTC()}, append(streams, secrets...)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchive(t *testing.T) {
	b, dir := archived(t), t.TempDir()
	m, err := Extract(bytes.NewReader(b), dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ca/root.pem", "empty", "operator.seed"}, m.Keys); diff != "" || m.Seq != 9 || len(m.Members) != 5 {
		t.Errorf("the manifest is %+v\n%s", m, diff)
	}
	for _, x := range m.Members {
		fi, err := os.Stat(filepath.Join(dir, x.Name))
		if err != nil || fi.Size() != x.Bytes || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", x.Name, fi, err)
		}
	}
	for n := 0; n < len(b); n += 997 {
		if _, err := Extract(bytes.NewReader(b[:n]), t.TempDir()); err == nil && n < len(b)-4*512 {
			t.Errorf("cut off at %d of %d it is taken for whole", n, len(b))
		}
	}
}

// TestArchive_Evil: a member that the manifest does not have, or that leads out of the directory, is not unpacked.
func TestArchive_Evil(t *testing.T) {
	for _, bad := range []string{"../evil", "/evil", "identity/evil", "streams/../../evil"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		r := tar.NewReader(bytes.NewReader(archived(t)))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = w.WriteHeader(h)
			_, _ = io.Copy(w, r)
		}
		_ = w.WriteHeader(&tar.Header{Name: bad, Size: 1, Mode: 0o600, Typeflag: tar.TypeReg})
		_, _ = w.Write([]byte("x"))
		_ = w.Close()
		dir := filepath.Join(t.TempDir(), "in")
		if _, err := Extract(&b, dir); err == nil {
			t.Errorf("%s was unpacked", bad)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "evil")); err == nil {
			t.Errorf("%s is outside", bad)
		}
	}
}

func TestSeal(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	key, pass, other := file("key", "# a comment\n"+id.String()+"\n"), file("pass", "correct horse\nsecond line\n"), file("other", "battery staple\n")
	roundTrip := func(to, from SealConfig) ([]byte, error) {
		t.Helper()
		to.work, from.work = 10, 10
		w, err := NewSeal(to)
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewSeal(from)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		c, err := w.wrap(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("content"))
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if sealed := !bytes.Contains(b.Bytes(), []byte("content")); sealed != w.Encrypts() {
			t.Errorf("%+v: sealed is %t", to, sealed)
		}
		p, err := r.Open(&b)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(p)
	}
	for _, c := range []struct {
		to, from SealConfig
		ok       bool
	}{
		{SealConfig{Recipients: []string{id.Recipient().String()}}, SealConfig{KeyFile: key}, true},
		{SealConfig{PassphraseFile: pass}, SealConfig{PassphraseFile: pass}, true},
		{SealConfig{Plain: true}, SealConfig{}, true},
		{SealConfig{PassphraseFile: pass}, SealConfig{PassphraseFile: other}, false},
		{SealConfig{PassphraseFile: pass}, SealConfig{KeyFile: key}, false},
		{SealConfig{Recipients: []string{id.Recipient().String()}}, SealConfig{}, false},
	} {
		got, err := roundTrip(c.to, c.from)
		if c.ok != (err == nil) || c.ok && string(got) != "content" {
			t.Errorf("%+v read with %+v: %q, %v", c.to, c.from, got, err)
		}
		if !c.ok && !errors.Is(err, ErrSealed) {
			t.Errorf("%+v read with %+v: %v does not say that the key is missing", c.to, c.from, err)
		}
	}
	for _, bad := range []SealConfig{
		{Recipients: []string{"age1nonsense"}},
		{PassphraseFile: file("short", "abc\n")},
		{PassphraseFile: filepath.Join(dir, "none")},
		{KeyFile: pass},
		{Plain: true, PassphraseFile: pass},
	} {
		if _, err := NewSeal(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// targets runs a test on a directory and on a real SFTP server.
func targets(t *testing.T, fn func(t *testing.T, x Target, dir string)) {
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		x, err := NewTarget(dir, SFTPConfig{})
		if err != nil {
			t.Fatal(err)
		}
		fn(t, x, dir)
	})
	t.Run("sftp", func(t *testing.T) {
		s := newSSHD(t)
		x, err := NewTarget(s.url(), s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		fn(t, x, s.dir)
	})
}

func TestTarget(t *testing.T) {
	targets(t, func(t *testing.T, x Target, dir string) {
		ctx := t.Context()
		names := func() []string {
			t.Helper()
			files, err := x.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, f := range files {
				out = append(out, fmt.Sprintf("%s:%d", f.Name, f.Bytes))
			}
			return out
		}
		content := bytes.Repeat([]byte("0123456789"), 200_000)
		put := func(name string) error {
			return x.Write(ctx, name, func(w io.Writer) error { _, err := w.Write(content); return err })
		}
		if err := put("a"); err != nil {
			t.Fatal(err)
		}
		if err := put("a"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a name that is taken: %v", err)
		}
		broken := errors.New("broken")
		if err := x.Write(ctx, "b", func(w io.Writer) error { _, _ = w.Write(content[:100]); return broken }); !errors.Is(err, broken) {
			t.Errorf("a source that breaks: %v", err)
		}
		if diff := cmp.Diff([]string{"a:2000000"}, names()); diff != "" {
			t.Errorf("something is left: %s", diff)
		}
		r, err := x.Open(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("read back %d bytes, %v", len(got), err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "a")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("others may read it: %v, %v", fi.Mode(), err)
		}
		if _, err := x.Open(ctx, "none"); err == nil {
			t.Error("what is not there can be opened")
		}
		old := "." + name{"O", time.Unix(1e9, 0), 1, true}.String() + partial
		for _, f := range []string{old, ".theirs.partial"} {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(filepath.Join(dir, f), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(x.Tidy(ctx, 2*time.Hour)); err != nil || len(names()) != 3 {
			t.Errorf("too early: %v, %v", names(), err)
		}
		if err := x.Tidy(ctx, time.Minute); err != nil || len(names()) != 2 {
			t.Errorf("left over: %v, %v", names(), err)
		}
		if err := x.Remove(ctx, "a"); err != nil || len(names()) != 1 {
			t.Errorf("after the removal: %v, %v", names(), err)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, sftp := x.(*sftpTarget); sftp {
			if _, err := x.List(gone); err == nil {
				t.Error("a call that was given up goes on")
			}
		}
	})
}

// TestSFTP_Refuses: a server that nobody knows, or that has become another one, gets nothing.
func TestSFTP_Refuses(t *testing.T) {
	s := newSSHD(t)
	list := func(edit func(*SFTPConfig)) error {
		t.Helper()
		cfg := s.cfg
		edit(&cfg)
		x, err := NewTarget(s.url(), cfg)
		if err != nil {
			return err
		}
		_, err = x.List(t.Context())
		return err
	}
	if err := list(func(*SFTPConfig) {}); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	_, wrong := sshKey(t)
	for says, edit := range map[string]func(*SFTPConfig){
		"is not in": func(c *SFTPConfig) { c.KnownHosts = write("known", nil) },
		"is another one": func(c *SFTPConfig) {
			c.KnownHosts = write("known", []byte(knownhosts.Line([]string{s.addr}, wrong.PublicKey())+"\n"))
		},
		"unable to authenticate":    func(c *SFTPConfig) { p, _ := sshKey(t); c.KeyFile = write("key", p) },
		"--backup-sftp-known-hosts": func(c *SFTPConfig) { c.KnownHosts = "" },
		"no such file":              func(c *SFTPConfig) { c.KeyFile = "/nonexistent" },
		"ssh: no key found":         func(c *SFTPConfig) { c.KeyFile = write("key", []byte("x")) },
	} {
		if err := list(edit); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	for _, to := range []string{"sftp://user:secret@host/dir", "sftp://host/dir", "sftp://user@host", "sftp://user@host/", "ftp://x/y"} {
		if _, err := NewTarget(to, s.cfg); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// sshKey makes a key in OpenSSH's format.
func sshKey(t *testing.T) ([]byte, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), signer
}

// sshd is a real OpenSSH server on a loopback port, for this test's user.
type sshd struct {
	addr, user, dir string
	cfg             SFTPConfig
}

func (s *sshd) url() string { return "sftp://" + s.user + "@" + s.addr + s.dir }

func newSSHD(t *testing.T) *sshd {
	t.Helper()
	const bin = "/usr/sbin/sshd"
	if _, err := os.Stat(bin); err != nil {
		t.Skip("there is no sshd here: scripts/setup build installs it")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &sshd{user: me.Username, dir: filepath.Join(dir, "backups"), cfg: SFTPConfig{KeyFile: filepath.Join(dir, "client"), KnownHosts: filepath.Join(dir, "known")}}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(s.addr)
	l.Close()
	hostKey, host := sshKey(t)
	clientKey, client := sshKey(t)
	files := map[string][]byte{
		"host": hostKey, "client": clientKey, "known": []byte(knownhosts.Line([]string{s.addr}, host.PublicKey()) + "\n"),
		"authorized": ssh.MarshalAuthorizedKey(client.PublicKey()),
		"config": fmt.Appendf(nil, "Port %s\nListenAddress 127.0.0.1\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"+
			"PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 100\n", port, dir),
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Root's server drops its rights in this directory while nobody is logged in.
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(bin, "-D", "-e", "-f", filepath.Join(dir, "config"))
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not start: %v\n%s", err, log.String())
		}
	}
}
