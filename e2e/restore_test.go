package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sftpServer starts an OpenSSH server in the fabric, and gives the flags of a controller that makes its backups there.
func (b *bed) sftpServer(t *testing.T) (flags []string) {
	t.Helper()
	const bin = "/usr/sbin/sshd"
	if _, err := os.Stat(bin); err != nil {
		t.Skip("there is no sshd here: scripts/setup build installs it")
	}
	dir := filepath.Join(b.dir, "sftp")
	for _, d := range []string{filepath.Join(dir, "backups"), "/run/sshd"} { // the latter is where the server drops its rights
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"host", "client"} {
		if _, err := run(exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))); err != nil {
			t.Fatal(err)
		}
	}
	host, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"known": fmt.Sprintf("[%s.1]:2222 %s", b.net, host),
		"pass":  "correct horse battery staple\n",
		"config": fmt.Sprintf("Port 2222\nListenAddress %s.1\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/client.pub\nStrictModes no\nUsePAM no\nPidFile none\n"+
			"PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n", b.net, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := b.fabProcess("sshd", bin, "-D", "-e", "-f", filepath.Join(dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return []string{
		"--backup-to", fmt.Sprintf("sftp://root@%s.1:2222%s/backups", b.net, dir), "--backup-sftp-key", filepath.Join(dir, "client"),
		"--backup-sftp-known-hosts", filepath.Join(dir, "known"), "--backup-passphrase-file", filepath.Join(dir, "pass"),
	}
}

// pid is that of a VM's QEMU.
func (b *bed) pid(t *testing.T, box, id string) string {
	t.Helper()
	return b.in(t, box, "pgrep -f '[q]emu.*uuid %s'", id)
}

// held is a host that knows more than the journal.
type held struct {
	ID, Name, State, Remedy string
	Known                   bool
	OnlyHost                int `json:"only_host"`
	OnlyState               int `json:"only_state"`
	Differs                 int
}

// ahead waits until just these hosts are held, and have handed over what they were told.
func (b *bed) ahead(t *testing.T, boxes ...string) map[string]held {
	t.Helper()
	out := map[string]held{}
	eventually(t, 60*time.Second, func() error {
		var all []held
		if err := b.tryJSON(&all, "ahead", "list"); err != nil {
			return err
		}
		clear(out)
		for _, h := range all {
			for box, id := range b.hosts {
				if id == h.ID {
					out[box] = h
				}
			}
			if h.State != "ahead" && h.State != "same" {
				return fmt.Errorf("host %+v has not handed over what it was told", h)
			}
		}
		for _, box := range boxes {
			if _, ok := out[box]; !ok || len(all) != len(boxes) {
				return fmt.Errorf("held are %+v, want %v", all, boxes)
			}
		}
		return nil
	})
	return out
}

// away ends the controller and takes its disk away.
func (b *bed) away(t *testing.T, to string) {
	t.Helper()
	b.controller.kill()
	if err := os.Rename(filepath.Join(b.dir, "controller"), filepath.Join(b.dir, to)); err != nil {
		t.Fatal(err)
	}
}

// TestRestore_UnderRunningHosts loses the controller twice under hosts that go on. First an old backup is restored, from an SFTP server:
// what hosts were told since is neither undone nor forgotten, and is decided about, for one host each way. Then there
// is no backup: all is put together again from what hosts know. The guest lives through all of it.
func TestRestore_UnderRunningHosts(t *testing.T) {
	b, err := newBed("e2er", "10.82.0")
	if b != nil {
		t.Cleanup(b.down)
		t.Cleanup(func() {
			if t.Failed() {
				b.dump(t)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := b.addHost("h3", 3, "c1"); err != nil {
		t.Fatal(err)
	}
	b.controller.kill()
	backups := b.sftpServer(t)
	b.flags = backups
	if err := b.startController(); err != nil {
		t.Fatal(err)
	}
	for box := range b.hosts {
		if err := b.connected(box); err != nil {
			t.Fatal(err)
		}
	}

	pass := filepath.Join(b.dir, "acme.txt")
	if err := os.WriteFile(pass, []byte("the password of acme\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.ctl(t, "account create acme --password-file %s", pass)
	var acme, micro struct{ ID string }
	b.get(t, &acme, "account get acme")
	b.get(t, &micro, "offering get micro")
	b.ctl(t, "vm create guest --image tiny --offering tiny --network net1 --host h1 --wait")
	b.ctl(t, "vm create quiet --image tiny --offering micro --network net1 --host h2 --wait")
	b.ctl(t, "vm create gone --image tiny --offering micro --network net1 --host h1 --wait")
	guest := b.vm(t, "guest")
	b.booted(t, guest)
	if _, err := b.guest(t, guest, "echo since-before >/tmp/mark"); err != nil {
		t.Fatal(err)
	}
	b.ctl(t, "backup create --wait")

	// What follows is not in the backup.
	b.ctl(t, "vm create late1 --image tiny --offering micro --network net1 --host h1 --wait")
	b.ctl(t, "vm create late2 --image tiny --offering micro --network net1 --host h2 --wait")
	b.ctl(t, "vm update guest --tag prod --description since")
	b.ctl(t, "vm poweroff quiet --wait")
	b.ctl(t, "vm destroy gone --force --wait")
	b.ctl(t, "vm expunge gone --wait")
	late1, late2 := b.vm(t, "late1"), b.vm(t, "late2")
	b.ctl(t, "vm chown late1 --account acme")
	eventually(t, 30*time.Second, func() error { // the host knows whose it is
		if ledger := b.in(t, "h1", "cat /var/lib/shoal-agent/ledger/*"); !strings.Contains(ledger, `"name":"acme"`) {
			return fmt.Errorf("the ledger of h1 does not name the account")
		}
		return nil
	})
	pids := map[string]string{}
	for id, box := range map[string]string{guest.ID: "h1", late1.ID: "h1", late2.ID: "h2"} {
		pids[id] = b.pid(t, box, id)
	}
	alive := func(when string) {
		t.Helper()
		for id, box := range map[string]string{guest.ID: "h1", late1.ID: "h1", late2.ID: "h2"} {
			if got := b.pid(t, box, id); got != pids[id] {
				t.Errorf("%s: the QEMU of VM %s was process %s and is %s", when, id, pids[id], got)
			}
		}
		if out, err := b.guest(t, guest, "cat /tmp/mark"); err != nil || !strings.Contains(out, "since-before") {
			t.Errorf("%s: the guest says %q, %v", when, out, err)
		}
	}

	b.away(t, "lost-first")
	data := filepath.Join(b.dir, "controller")
	dir := filepath.Join(b.dir, "sftp", "backups")
	files, err := filepath.Glob(filepath.Join(dir, "*.age"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no backup in %s: %v", dir, err)
	}
	newest := backups[1] + "/" + filepath.Base(slices.Max(files)) // their names begin with the time
	said, err := b.tryProgram("shoal-controller", append([]string{"restore", "--data", data, newest}, backups[2:]...)...)
	if err != nil || !strings.Contains(said, "3 hosts are held") {
		t.Fatalf("restore: %v\n%s", err, said)
	}
	if err := b.startController(); err != nil {
		t.Fatal(err)
	}
	// The host that was told nothing since goes on by itself.
	hosts := b.ahead(t, "h1", "h2")
	if h := hosts["h1"]; h.OnlyHost != 2 || h.OnlyState != 1 || !h.Known { // late1 and its volume; gone
		t.Errorf("h1 is shown as %+v", h)
	}
	if h := hosts["h2"]; h.OnlyHost != 2 || h.Differs == 0 {
		t.Errorf("h2 is shown as %+v", h)
	}
	if e := b.refused(t, "vm create nowhere --image tiny --offering micro --network net1 --host h1"); !strings.Contains(e.stderr, "held back") {
		t.Errorf("a VM for a host that is held: %v", e)
	}
	alive("restored")
	for _, d := range []struct{ box, id, want string }{{"h2", b.vm(t, "quiet").ID, "shut off"}, {"h1", late1.ID, "running"}, {"h2", late2.ID, "running"}} {
		if got := b.in(t, d.box, "virsh domstate shoal-%s", d.id); got != d.want {
			t.Errorf("restored: VM %s is %s on its host, want %s", d.id, got, d.want)
		}
	}
	if got := b.in(t, "h1", "virsh list --all --name"); strings.Contains(got, b.vm(t, "gone").ID) {
		t.Errorf("the VM that was removed since is back: %s", got)
	}

	// The host is right.
	b.ctl(t, "ahead adopt h1 --wait")
	b.ahead(t, "h2")
	if v := b.vm(t, "late1"); v.ID != late1.ID || v.HostID != b.hosts["h1"] {
		t.Errorf("the VM that only the host had is %+v", v)
	}
	var tagged struct {
		Tags        []string
		Description string
	}
	if b.get(t, &tagged, "vm get guest"); tagged.Description != "since" || !slices.Contains(tagged.Tags, "prod") {
		t.Errorf("what was said of the guest since is lost: %+v", tagged)
	}
	var bin struct{ Destroyed time.Time }
	if b.get(t, &bin, "vm get gone"); bin.Destroyed.IsZero() {
		t.Errorf("the VM that the host does not have is not in the recycle bin: %+v", bin)
	}
	// The backup is right: what it wants on is started again. What only the host has stays all the same.
	b.ctl(t, "ahead override h2 --wait")
	b.ahead(t)
	b.state(t, "quiet", "Running", "running")
	b.state(t, "late2", "Running", "running")
	alive("decided")
	// And changes arrive again.
	b.ctl(t, "vm create after --image tiny --offering micro --network net1 --host h1 --wait")
	b.ctl(t, "vm poweroff quiet --wait")
	alive("after a change")

	// Everything but the keys is lost.
	b.away(t, "lost-second")
	keys := filepath.Join(b.dir, "lost-second", "identity")
	if said, err := b.tryProgram("shoal-controller", "rebuild", "--data", data, "--identity", keys); err != nil {
		t.Fatalf("rebuild: %v\n%s", err, said)
	}
	b.flags = append([]string{"--identity", keys}, backups...)
	if err := b.startController(); err != nil {
		t.Fatal(err)
	}
	for box, h := range b.ahead(t, "h1", "h2", "h3") {
		if h.Known || h.Remedy != "shoalctl ahead adopt "+b.hosts[box] {
			t.Errorf("%s is shown as %+v", box, h)
		}
	}
	b.ctl(t, "ahead adopt --all --wait")
	b.ahead(t)
	alive("rebuilt")
	for _, c := range []struct{ line, want string }{
		{"zone get z1 -o yaml", "name: z1"},
		{"cluster get c1 -o yaml", "cpu_overcommit: 100"},
		{"host get h3 -o yaml", b.hosts["h3"]},
		{"storage get local -o yaml", "path: /var/lib/shoal/storage"},
		{"offering get tiny -o yaml", "memory_mib: 128"},
		{"l3 get net1 -o yaml", "domain: e2e.test"},
		{"iprange get r1 -o yaml", "end: 10.1.0.200"},
		{"vm get guest -o yaml", "description: since"},
		{"account get acme -o yaml", acme.ID},
		{"vm get late1 -o yaml", "owner: " + acme.ID},
		{"vm get late2 -o yaml", "offering_id: " + micro.ID},
		{"image get tiny -o yaml", "stage: ready"},
	} {
		if out := b.ctl(t, "%s", c.line); !strings.Contains(out, c.want) {
			t.Errorf("after the rebuild shoalctl %s says, without %q:\n%s", c.line, c.want, out)
		}
	}
	b.state(t, "quiet", "Stopped", "shut off")
	b.ctl(t, "vm start quiet --wait")
	b.ctl(t, "vm create anew --image tiny --offering tiny --network net1 --host h2 --wait")
	b.state(t, "anew", "Running", "running")
	alive("after a change of what was rebuilt")
	if d := b.ctl(t, "drift -o csv"); strings.Contains(d, "held") {
		t.Errorf("something is held: %s", d)
	}
}
