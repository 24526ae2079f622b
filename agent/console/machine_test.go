package console

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/ledger"
	"shoal/agent/network"
	"shoal/agent/sim/gate"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

func TestMain(m *testing.M) { netbox.Main(m) }

// programs stands in for some programs of the machine; others are run.
type programs struct {
	mu    sync.Mutex
	calls []host.Command
	out   map[string]string
	err   map[string]error
}

func (p *programs) Run(ctx context.Context, c host.Command) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, c)
	for key := range p.err {
		if strings.HasPrefix(c.String(), key) {
			return nil, p.err[key]
		}
	}
	for key := range p.out {
		if strings.HasPrefix(c.String(), key) {
			return []byte(p.out[key]), nil
		}
	}
	return host.Machine{}.Run(ctx, c)
}

func newMachine(t *testing.T, data string, run host.Runner) *Machine {
	t.Helper()
	own, err := network.New(network.Config{Data: data, Units: t.TempDir(), Machine: network.Kernel{Run: run}})
	if err != nil {
		t.Fatal(err)
	}
	return &Machine{Data: data, Libvirt: filepath.Join(data, "none"), Archives: t.TempDir(), Run: run, Network: own}
}

// joined is the data directory of a host that has joined, with a document in its ledger, and the secrets in it.
func joined(t *testing.T) (data string, secrets []string) {
	t.Helper()
	g := gate.New(t)
	data = filepath.Join(t.TempDir(), "data")
	token := g.Token("one", gate.Token{Uses: 1})
	if _, err := install.Join(t.Context(), install.JoinConfig{Data: data, Token: token}); err != nil {
		t.Fatal(err)
	}
	creds, err := os.ReadFile(filepath.Join(data, "identity", "host.creds"))
	if err != nil {
		t.Fatal(err)
	}
	secrets = []string{gate.Secret, token}
	for line := range strings.Lines(string(creds)) {
		if line = strings.TrimSpace(line); len(line) > 40 && !strings.HasPrefix(line, "-") && !strings.HasPrefix(line, "*") {
			secrets = append(secrets, line)
		}
	}
	if len(secrets) < 4 {
		t.Fatalf("the credentials have no secrets: %d", len(secrets))
	}
	item, err := desired.NewItem(desired.KindDomain, "d1", &desired.Domain{Name: "shoal-d1", Title: "web1", CPUs: 2, MemoryMiB: 512, Machine: "q35", Power: desired.PowerOn})
	if err != nil {
		t.Fatal(err)
	}
	item.Rev = 1
	b, err := item.Encode()
	if err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(filepath.Join(data, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	if err := book.Accept(desired.Document{
		Head:  desired.Head{Host: "h1", Gen: 1, Items: map[desired.Ref]string{item.Ref(): desired.Hash(b)}},
		Items: map[desired.Ref]desired.Item{item.Ref(): item},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = book.Close() }) // a running agent has it open
	return data, secrets
}

// unpack gives the files of an archive.
func unpack(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", name, info.Mode(), err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
	}
}

// TestLook reads this machine, and a host's ledger.
func TestLook(t *testing.T) {
	data, _ := joined(t)
	m := newMachine(t, data, &programs{out: map[string]string{"systemctl show": "Id=ssh.service\nLoadState=loaded\nActiveState=active\n"}})
	m.Look(t.Context())
	n := m.Look(t.Context())
	if n.Hostname == "" || n.Kernel == "" || n.Uptime <= 0 || n.CPUs == 0 || n.Memory == 0 || n.MemoryUsed == 0 || n.MemoryUsed > n.Memory || n.Busy > 1 || n.Load[2] == "" || len(n.FileSystems) == 0 {
		t.Errorf("%+v", n)
	}
	if !n.Status.Joined || n.Status.Name == "" {
		t.Errorf("who it is: %+v", n.Status)
	}
	// Without libvirtd, what runs is not known, and that is said.
	if diff := cmp.Diff([]VM{{"web1", "unknown", 2, 512}}, n.VMs); diff != "" {
		t.Errorf("VMs (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(n.Notes, func(s string) bool { return strings.HasPrefix(s, "VMs: libvirtd") }) {
		t.Errorf("notes %q", n.Notes)
	}
	if diff := cmp.Diff([]Service{{"ssh", "active"}}, n.Services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

// TestBundle: a bundle has what is needed, and no secret of the host wherever it came from, nor what looks like one.
func TestBundle(t *testing.T) {
	data, secrets := joined(t)
	others := []string{
		"SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY", "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5In0.eyJqdGkiOiJ4In0.c2ln", "hunter2hunter2", "correct-horse", "MIIEvQIBADANBgkq",
		"AGE-SECRET-KEY-1QQPQQQQQ", "$y$j9T$abcdefghijklmnop$qrstuvwxyz0123456789",
	}
	// The secret of a token that is still there, by itself; that of one that is used up and gone can be told by the token's form only.
	waiting := desired.JoinToken{ID: "two", Secret: "secret-of-one-that-waits", URLs: []string{"tls://127.0.0.1:1"}}
	if err := os.WriteFile(install.TokenFile(data), []byte(waiting.Text()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, waiting.Secret, waiting.Text())
	log := "a line that stays\n" + strings.Join(secrets[1:], "\nx ") + "\npassword=" + others[2] + "\n{\"host_token\": \"" + others[3] + "\", \"uses\": 3}\nseed " + others[0] + "\n" + others[1] +
		"\n-----BEGIN PRIVATE KEY-----\n" + others[4] + "\n-----END PRIVATE KEY-----\n" + others[5] + "\nroot:" + others[6] + ":20000:0\nthe last line\n"
	p := &programs{out: map[string]string{"journalctl": log}, err: map[string]error{"iptables-save": errors.New("run iptables-save: password=" + others[2])}}
	m := newMachine(t, data, p)
	name, err := m.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, name)
	for _, file := range []string{"node.json", "ledger.json", "inventory.json", "journal.txt", "addresses.txt", "missing.txt"} {
		if files[file] == "" {
			t.Errorf("there is no %s among %d files", file, len(files))
		}
	}
	for file, content := range files {
		for _, secret := range slices.Concat(secrets, others) {
			if strings.Contains(content, secret) {
				t.Errorf("%s has the secret %q", file, secret)
			}
		}
	}
	for file, want := range map[string][]string{
		"journal.txt": {"a line that stays", "the last line", `"uses": 3`, "password=" + masked, "-----", masked}, "ledger.json": {"web1", `"gen": 1`},
		"missing.txt": {"rules.txt: run iptables-save"}, "inventory.json": {`"hostname"`}, "addresses.txt": {"lo:"},
	} {
		for _, w := range want {
			if w != "-----" && !strings.Contains(files[file], w) {
				t.Errorf("%s has no %q:\n%s", file, w, files[file])
			}
		}
	}
}

// TestMask_JSON: what was JSON stays so.
func TestMask_JSON(t *testing.T) {
	t.Parallel()
	m := NewMask(t.TempDir())
	const in = `{"tokens": {"a": 1}, "token": "x\"y", "passwords": ["p"], "secret_hash":"abc", "seedling": 4}`
	got := string(m.Text([]byte(in)))
	if want := `{"tokens": {"a": 1}, "token": "[masked]", "passwords": ["p"], "secret_hash":"[masked]", "seedling": [masked]}`; got != want {
		t.Errorf("%s", cmp.Diff(want, got))
	}
}

func FuzzMask(f *testing.F) {
	f.Add("x SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY y", "password: z")
	seed := regexp.MustCompile(`\bS[ANOCUX][A-Z2-7]{56}\b`)
	m := NewMask(f.TempDir())
	f.Fuzz(func(t *testing.T, a, b string) {
		got := m.Text([]byte(a + "\n" + b))
		if seed.Match(got) {
			t.Fatalf("%q keeps a seed: %q", a+b, got)
		}
		if bytes.Count(got, []byte("\n")) > strings.Count(a+"\n"+b, "\n") {
			t.Fatalf("%q has more lines than %q", got, a+"\n"+b)
		}
	})
}

// TestBackup: a backup holds all that makes the host what it is.
func TestBackup(t *testing.T) {
	data, _ := joined(t)
	m := newMachine(t, data, &programs{})
	said, err := m.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(said, " ")
	files := unpack(t, name)
	for _, file := range []string{"identity/host.creds", "identity/host.seed", "identity/host.json", "ledger/ledger.log"} {
		want, err := os.ReadFile(filepath.Join(data, file))
		if err != nil {
			t.Fatal(err)
		}
		if files[strings.TrimPrefix(filepath.Join(data, file), "/")] != string(want) {
			t.Errorf("%s is not in it", file)
		}
	}
}

// TestPassword sets and checks a password with the machine's own programs, in a copy of /etc.
func TestPassword(t *testing.T) {
	netbox.Need(t, "chpasswd", "unix_chkpwd")
	etc := t.TempDir()
	netbox.Run(t, "cp -a /etc/. "+etc+"\nmount --bind "+etc+" /etc")
	t.Cleanup(func() { netbox.Run(t, "umount -l /etc") })
	m := newMachine(t, t.TempDir(), host.Machine{})
	if _, err := m.SetPassword(t.Context(), "short"); err == nil || !strings.Contains(err.Error(), "password: give at least") {
		t.Errorf("too short: %v", err)
	}
	if _, err := m.SetPassword(t.Context(), "two lines\nroot:x"); err == nil {
		t.Error("two lines were taken")
	}
	if err := m.Authenticate(t.Context(), "correct horse"); !errors.Is(err, ErrPassword) {
		t.Fatalf("a password that was never set: %v", err)
	}
	if said, err := m.SetPassword(t.Context(), "correct horse"); err != nil || strings.Contains(said, "horse") {
		t.Fatalf("%q, %v", said, err)
	}
	if err := m.Authenticate(t.Context(), "correct horse"); err != nil {
		t.Errorf("the right one: %v", err)
	}
	for _, wrong := range []string{"", "correct", "correct horse\x00x"} {
		if err := m.Authenticate(t.Context(), wrong); !errors.Is(err, ErrPassword) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// TestEnrol: the agent stands aside while this machine joins, and comes back whatever came of it.
func TestEnrol(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	token := desired.JoinToken{ID: "x", Secret: gate.Secret, URLs: []string{"tls://127.0.0.1:1"}}.Text()
	for name, joinErr := range map[string]error{"joins": nil, "is refused": errors.New("not known")} {
		p := &programs{out: map[string]string{"systemctl": "", self + " join": ""}, err: map[string]error{}}
		if joinErr != nil {
			p.err[self+" join"] = joinErr
		}
		m := newMachine(t, t.TempDir(), p)
		if _, err := m.Enrol(t.Context(), token); !errors.Is(err, joinErr) {
			t.Errorf("%s: %v", name, err)
		}
		var calls []string
		for _, c := range p.calls {
			calls = append(calls, strings.Join(c.Args, " "))
			if strings.Contains(c.String(), gate.Secret) {
				t.Errorf("%s: the token is on a command line: %s", name, c)
			}
		}
		if diff := cmp.Diff([]string{"stop shoal-agent.service", "join --force --token-file - --data " + m.Data, "start shoal-agent.service"}, calls); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if string(p.calls[1].Stdin) != token {
			t.Errorf("%s: the token was not handed over", name)
		}
	}
	if _, err := newMachine(t, t.TempDir(), &programs{}).Enrol(t.Context(), "nonsense"); err == nil {
		t.Error("nonsense stops the agent")
	}
}

func TestRestart(t *testing.T) {
	p := &programs{out: map[string]string{"systemctl": ""}}
	m := newMachine(t, t.TempDir(), p)
	if _, err := m.Restart(t.Context(), "libvirtd"); err != nil {
		t.Error(err)
	}
	if _, err := m.Restart(t.Context(), "../x"); err == nil {
		t.Error("any unit can be restarted")
	}
	_, rebootErr := m.Reboot(t.Context())
	_, offErr := m.PowerOff(t.Context())
	if rebootErr != nil || offErr != nil {
		t.Error(rebootErr, offErr)
	}
	var calls []string
	for _, c := range p.calls {
		calls = append(calls, c.String())
	}
	if diff := cmp.Diff([]string{"systemctl restart libvirtd.service", "systemctl reboot", "systemctl poweroff"}, calls); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
