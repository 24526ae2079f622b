package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The shared bed lives in a net of its own, beside a demo or a developer's experiments.
const (
	bedPrefix = "e2e"
	bedNet    = "10.79.0"
)

// repo is the repository's root.
var repo = func() string {
	wd, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Dir(wd)
}()

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIPPED: the end-to-end tests need root, for namespaces, libvirt and iptables")
		os.Exit(0)
	}
	for _, f := range []string{"bin/shoal-controller", "bin/shoal-agent", "bin/shoalctl", ".cache/guest/tiny.qcow2"} {
		if _, err := os.Stat(filepath.Join(repo, f)); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %s is missing: run ./scripts/task test-e2e, which builds it\n", f)
			os.Exit(1)
		}
	}
	// Two runs at once would clean up each other's bed.
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "shoal-"+bedPrefix+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: lock the bed:", err)
		os.Exit(1)
	}
	code := m.Run()
	if shared.bed != nil {
		// Whatever the tests did, no secret may be anywhere in what is written down.
		if err := shared.bed.leaks(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: FAIL:", err)
			code = max(code, 1)
		}
		shared.bed.down()
	}
	os.Exit(code)
}

// shared is the bed of all tests, made by the first that asks.
var shared struct {
	once sync.Once
	bed  *bed
	err  error
}

// bed is a controller and its hosts.
type bed struct {
	prefix, net string
	dir         string // state of this bed: controller data, logs, what boxes see as /shared
	controller  *process
	flags       []string          // further flags of the controller
	hosts       map[string]string // box name to host id
}

// theBed is the shared bed, up and with its base resources.
func theBed(t *testing.T) *bed {
	t.Helper()
	shared.once.Do(func() { shared.bed, shared.err = newBed(bedPrefix, bedNet) })
	if shared.err != nil {
		t.Fatalf("set up the bed: %v", shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			shared.bed.dump(t)
		}
	})
	// The test before this one may have restarted the controller.
	for name := range shared.bed.hosts {
		if err := shared.bed.connected(name); err != nil {
			t.Fatal(err)
		}
	}
	return shared.bed
}

func newBed(prefix, net string, flags ...string) (*bed, error) {
	b := &bed{prefix: prefix, net: net, dir: filepath.Join(os.TempDir(), "shoal-"+prefix), flags: flags, hosts: map[string]string{}}
	if err := b.fresh(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.shared("bin"), 0o755); err != nil {
		return nil, err
	}
	for _, f := range []string{"bin/shoal-agent", "scripts/guest/run"} {
		if err := copyFile(filepath.Join(repo, f), b.shared("bin", filepath.Base(f))); err != nil {
			return nil, err
		}
	}
	if err := b.box("fabric"); err != nil {
		return b, err
	}
	if err := b.startController(); err != nil {
		return b, err
	}
	return b, b.populate()
}

// fresh removes what a killed run has left, and makes the bed's directory.
func (b *bed) fresh() error {
	if err := os.MkdirAll(b.shared(), 0o755); err != nil {
		return err
	}
	if err := b.box("clean"); err != nil {
		return err
	}
	if err := os.RemoveAll(b.dir); err != nil {
		return err
	}
	return os.MkdirAll(b.shared(), 0o755)
}

// populate makes what every test stands on: two hosts, a local storage, a VXLAN network, an image and offerings.
func (b *bed) populate() error {
	for _, c := range []string{
		"zone create z1",
		"cluster create c1 --zone z1 --cpu-overcommit 100",
		"offering create tiny --cpu 1 --memory 128MiB",
		"offering create micro --cpu 1 --memory 16MiB",
		"diskoffering create d64 --size 64MiB",
		"storage create local --zone z1 --type local --path /var/lib/shoal/storage --cluster c1",
		"vxlanpool create vx --zone z1 --range 100-199",
		"vxlanpool attach vx --cluster c1 --cidr " + b.net + ".0/24",
		"l2 create l2a --zone z1 --type vxlan --pool vx",
		"l3 create net1 --l2 l2a --category private --dns 9.9.9.9 --domain e2e.test",
		"iprange create r1 --network net1 --start 10.1.0.10 --end 10.1.0.200 --prefix 24 --gateway 10.1.0.1",
		"image add tiny --url file://" + filepath.Join(repo, ".cache/guest/tiny.qcow2") + " --wait",
	} {
		if _, err := b.try(strings.Fields(c)...); err != nil {
			return err
		}
	}
	for i, name := range []string{"h1", "h2"} {
		if err := b.addHost(name, i+1, "c1"); err != nil {
			return err
		}
	}
	return nil
}

// addHost makes a box, has it join and waits until it is connected and its storage is ready.
func (b *bed) addHost(name string, n int, cluster string) error {
	if err := b.startBox(name, n); err != nil {
		return err
	}
	token, err := b.try("host", "token", "create", "--cluster", cluster, "-q")
	if err != nil {
		return err
	}
	if _, err := b.tryIn(name, "/shared/bin/shoal-agent", "join", strings.TrimSpace(token), "--name", name); err != nil {
		return err
	}
	var h struct{ ID string }
	if err := b.tryJSON(&h, "host", "get", name); err != nil {
		return err
	}
	b.hosts[name] = h.ID
	return b.connected(name)
}

// startBox makes a box whose agent runs and waits for an identity.
func (b *bed) startBox(name string, n int) error {
	// What systemd does on a real host: start the agent at boot, and again when it dies.
	const rc = `#!/bin/sh
while :; do
	/shared/bin/shoal-agent >>/var/log/shoal-agent.log 2>&1
	sleep 0.1
done
`
	rcFile := filepath.Join(b.dir, name+".rc")
	if err := os.WriteFile(rcFile, []byte(rc), 0o755); err != nil {
		return err
	}
	if err := b.box("create", name, fmt.Sprint(n), rcFile); err != nil {
		return err
	}
	return b.box("on", name)
}

// connected waits until a host's agent is.
func (b *bed) connected(name string) error {
	return within(60*time.Second, func() error {
		var h struct{ Status struct{ State string } }
		if err := b.tryJSON(&h, "host", "get", name); err != nil {
			return err
		}
		if h.Status.State != "Connected" {
			return fmt.Errorf("host %s is %q, want Connected", name, h.Status.State)
		}
		return nil
	})
}

func (b *bed) startController() error {
	p, err := b.fabProcess("controller", filepath.Join(repo, "bin/shoal-controller"), append([]string{
		"--data", filepath.Join(b.dir, "controller"), "--listen", b.net + ".1:4222", "--http", b.net + ".1:8480", "--advertise", b.net + ".1",
	}, b.flags...)...)
	if err != nil {
		return err
	}
	b.controller = p
	return within(30*time.Second, func() error {
		_, err := b.try("zone", "list")
		return err
	})
}

// ca is the file of the authorities that the controller's clients must trust.
func (b *bed) ca() string { return filepath.Join(b.dir, "controller/ca.pem") }

// down ends the bed and everything in it.
func (b *bed) down() {
	if b.controller != nil {
		b.controller.kill()
	}
	if err := b.box("clean"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: clean up:", err)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: clean up:", err)
	}
}

// dump shows what a failed test left to read.
func (b *bed) dump(t *testing.T) {
	for _, c := range [][]string{{"host", "list"}, {"vm", "list", "-o", "wide"}, {"volume", "list"}, {"task", "list"}} {
		out, _ := b.try(c...)
		t.Logf("shoalctl %s:\n%s", strings.Join(c, " "), out)
	}
	log, _ := os.ReadFile(filepath.Join(b.dir, "controller.log"))
	t.Logf("end of the controller's log:\n%s", end(log, 6000))
	for name := range b.hosts {
		out, _ := b.tryIn(name, "tail", "-c", "6000", "/var/log/shoal-agent.log")
		t.Logf("end of the agent's log on %s:\n%s", name, out)
		out, _ = b.tryIn(name, "sh", "-c", "virsh list --all; ip -br link; iptables-save | tail -n 60; ip netns")
		t.Logf("host %s:\n%s", name, out)
	}
}

func end(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

func (b *bed) shared(elem ...string) string {
	return filepath.Join(append([]string{b.dir, "shared"}, elem...)...)
}

// boxCmd is a call of scripts/box/box for this bed.
func (b *bed) boxCmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(repo, "scripts/box/box"), args...)
	cmd.Env = append(os.Environ(), "BOX_PREFIX="+b.prefix, "BOX_NET="+b.net, "BOX_SHARED="+b.shared())
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (b *bed) box(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := run(b.boxCmd(ctx, args...))
	return err
}

// nfs calls scripts/box/nfs for this bed: start DIR, stop, hang, resume.
func (b *bed) nfs(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := b.boxCmd(ctx, args...)
	cmd.Path = filepath.Join(repo, "scripts/box/nfs")
	_, err := run(cmd)
	return err
}

// run gives a command's standard output; its error holds what it said.
func run(cmd *exec.Cmd) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// cliError is a shoalctl that did not exit with 0.
type cliError struct {
	args   string
	code   int
	stderr string
}

func (e *cliError) Error() string {
	return fmt.Sprintf("shoalctl %s: exit status %d: %s", e.args, e.code, strings.TrimSpace(e.stderr))
}

// try runs shoalctl as the administrator, from the fabric.
func (b *bed) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := b.boxCmd(ctx, append([]string{"fab", filepath.Join(repo, "bin/shoalctl")}, args...)...)
	cmd.Env = append(cmd.Env, "SHOAL_SERVER=tls://"+b.net+".1:4222", "SHOAL_CREDS="+filepath.Join(b.dir, "controller/admin.creds"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if !slices.Contains(args, "token") { // whose answer is a secret, and meant to be shown
		b.record(out.Bytes(), errOut.Bytes())
	}
	if err != nil {
		code := -1
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		}
		return out.String(), &cliError{strings.Join(args, " "), code, errOut.String()}
	}
	return out.String(), nil
}

// tryProgram runs one of our binaries in the fabric.
func (b *bed) tryProgram(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return run(b.boxCmd(ctx, append([]string{"fab", filepath.Join(repo, "bin", name)}, args...)...))
}

func (b *bed) tryJSON(into any, args ...string) error {
	out, err := b.try(append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("read what shoalctl %s printed: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// ctl runs a shoalctl command, given as one types it, that must succeed.
func (b *bed) ctl(t *testing.T, line string, args ...any) string {
	t.Helper()
	out, err := b.try(strings.Fields(fmt.Sprintf(line, args...))...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs a shoalctl command that must fail, and gives what it says.
func (b *bed) refused(t *testing.T, line string, args ...any) *cliError {
	t.Helper()
	line = fmt.Sprintf(line, args...)
	_, err := b.try(strings.Fields(line)...)
	var e *cliError
	if !errors.As(err, &e) {
		t.Fatalf("shoalctl %s succeeded, want a refusal (%v)", line, err)
	}
	return e
}

func (b *bed) get(t *testing.T, into any, line string, args ...any) {
	t.Helper()
	if err := b.tryJSON(into, strings.Fields(fmt.Sprintf(line, args...))...); err != nil {
		t.Fatal(err)
	}
}

// tryIn runs a command in a box.
func (b *bed) tryIn(box string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return run(b.boxCmd(ctx, append([]string{"exec", box}, args...)...))
}

// in runs a shell line in a box that must succeed.
func (b *bed) in(t *testing.T, box, line string, args ...any) string {
	t.Helper()
	out, err := b.tryIn(box, "sh", "-c", fmt.Sprintf(line, args...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// vm is what tests read of a VM.
type vm struct {
	ID     string
	Name   string
	HostID string `json:"host_id"`
	Power  string
	Status struct {
		State string
		Host  string
		IPs   []string `json:"ips"`
		Fault *struct{ Code, Message, Remedy string }
	}
}

func (v vm) ip() string {
	if len(v.Status.IPs) == 0 {
		return ""
	}
	return v.Status.IPs[0]
}

func (b *bed) vm(t *testing.T, name string) vm {
	t.Helper()
	var v vm
	b.get(t, &v, "vm get %s", name)
	return v
}

// createVM makes a VM, waits until it is up, and expunges it when the test ends.
func (b *bed) createVM(t *testing.T, name, flags string, args ...any) vm {
	t.Helper()
	b.removeVM(t, name)
	b.ctl(t, "vm create %s %s --wait", name, fmt.Sprintf(flags, args...))
	return b.vm(t, name)
}

func (b *bed) removeVM(t *testing.T, name string) {
	t.Cleanup(func() {
		_, _ = b.try("vm", "destroy", name, "--force", "--wait")
		if _, err := b.try("vm", "expunge", name, "--wait"); err != nil {
			var e *cliError
			if !errors.As(err, &e) || e.code != 3 { // not found: it is gone already
				t.Errorf("clean up: %v", err)
			}
		}
	})
}

// box of a VM's host.
func (b *bed) boxOf(t *testing.T, v vm) string {
	t.Helper()
	for name, id := range b.hosts {
		if id == v.HostID {
			return name
		}
	}
	t.Fatalf("VM %s is on host %s, which is none of ours", v.Name, v.HostID)
	return ""
}

// guest runs a shell line in a guest, over its serial console.
func (b *bed) guest(t *testing.T, v vm, line string, args ...any) (string, error) {
	t.Helper()
	return b.tryIn(b.boxOf(t, v), "/shared/bin/run", "-t", "30", "shoal-"+v.ID, fmt.Sprintf(line, args...))
}

// booted waits until a guest has taken its lease.
func (b *bed) booted(t *testing.T, v vm) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		out, err := b.guest(t, v, "ip -4 -o addr show dev eth0")
		if err != nil {
			return err
		}
		if !strings.Contains(out, " "+v.ip()+"/") {
			return fmt.Errorf("guest %s has no address %s yet: %q", v.Name, v.ip(), out)
		}
		return nil
	})
}

// within asks until there is no error any more, or the time is over. It gives the last error then.
func within(d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s still: %w", d, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func eventually(t *testing.T, d time.Duration, f func() error) {
	t.Helper()
	if err := within(d, f); err != nil {
		t.Fatal(err)
	}
}

// process is a program in the fabric, with its output in a file of the bed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (b *bed) fabProcess(name, program string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not through the box script: a signal must reach the program itself.
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + b.prefix + "-fab", program}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// kill is SIGKILL, as a crash.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// killAgent is SIGKILL for the agent of a box; its supervisor starts it again.
func (b *bed) killAgent(t *testing.T, box string) {
	t.Helper()
	b.in(t, box, "pkill -KILL -x shoal-agent || true")
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode())
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
