package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// root is the source tree.
const root = "../.."

// The network of a test: machines on a bridge that is in a namespace of its own, and a proxy there that leads to the mirrors of packages, and nowhere else.
const (
	fabric  = "shoal-linux"
	gateway = "10.99.0.254"
	proxy   = "3142"
)

// network makes the bridge.
func network(t *testing.T) {
	t.Helper()
	if os.Getenv("SHOAL_E2E_LINUX") == "" {
		t.Skip("SKIPPED: it needs a Debian that is made first; run it with ./scripts/task e2e-linux")
	}
	must(t, "ip", "netns", "add", fabric)
	t.Cleanup(func() { must(t, "ip", "netns", "delete", fabric) })
	for _, line := range []string{"link set lo up", "link add br0 type bridge", "link set br0 up", "addr add " + gateway + "/24 dev br0"} {
		must(t, "ip", append([]string{"-n", fabric}, strings.Fields(line)...)...)
	}
	listener := listen(t, net.JoinHostPort(gateway, proxy))
	server := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
}

// listen listens inside the fabric.
func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine, and nothing else gets into the namespace.
		runtime.LockOSThread()
		f, err := os.Open("/run/netns/" + fabric)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", addr)
		}
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine is a Debian that runs.
type machine struct {
	t    *testing.T
	name string
	// dir is its root file system, seen from here.
	dir string
	// init is its first process.
	init string
}

// boot starts a machine with an address; it is gone at the end of the test.
func boot(t *testing.T, name, address string) *machine {
	t.Helper()
	base, err := filepath.Abs(filepath.Join(root, ".cache/linux/root"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base); err != nil {
		t.Fatalf("%v: run ./scripts/task e2e-linux", err)
	}
	work := t.TempDir()
	m := &machine{t: t, name: name, dir: filepath.Join(work, "root")}
	// What the machine writes is in memory.
	must(t, "mount", "-t", "tmpfs", "-o", "size=5G", "tmpfs", work)
	t.Cleanup(func() { must(t, "umount", work) })
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "mount", "-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, work, work), m.dir)
	t.Cleanup(func() { must(t, "umount", m.dir) })
	netns, port := fabric+"-"+name, "sl-"+name
	must(t, "ip", "netns", "add", netns)
	t.Cleanup(func() { must(t, "ip", "netns", "delete", netns) })
	must(t, "ip", "link", "add", port, "netns", fabric, "type", "veth", "peer", "name", "eth0", "netns", netns)
	for _, line := range []string{
		"-n " + fabric + " link set " + port + " master br0 up", "-n " + netns + " link set lo up", "-n " + netns + " link set eth0 up",
		"-n " + netns + " addr add " + address + "/24 dev eth0", "-n " + netns + " route add default via " + gateway,
	} {
		must(t, "ip", strings.Fields(line)...)
	}
	m.write("/etc/hostname", name+"\n")
	m.write("/etc/hosts", "127.0.0.1 localhost\n"+address+" "+name+"\n")
	m.write("/etc/apt/apt.conf.d/99proxy", fmt.Sprintf("Acquire::http::Proxy \"http://%s:%s\";\nAcquire::Check-Valid-Until \"false\";\n", gateway, proxy))
	// The clock is everybody's: chrony may look at it, and not set it.
	m.write("/etc/default/chrony", "DAEMON_OPTS=\"-F 1 -x\"\n")
	m.start(netns)
	return m
}

// start starts systemd, and waits until it is up.
func (m *machine) start(netns string) {
	m.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command("systemd-nspawn", "--quiet", "--boot", "--directory="+m.dir, "--machine=shoal-"+m.name, "--register=no", "--keep-unit",
		"--network-namespace-path=/run/netns/"+netns, "--capability=CAP_NET_ADMIN,CAP_SYS_TIME", "--bind=/dev/net/tun", "--resolv-conf=off", "--link-journal=no")
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	m.t.Cleanup(func() {
		// The end of its first process is the end of a machine.
		if m.init != "" {
			_ = exec.Command("kill", "-KILL", m.init).Run()
		} else {
			_ = cmd.Process.Signal(syscall.SIGKILL)
		}
		<-gone
	})
	eventually(m.t, time.Minute, func() error {
		out, err := exec.Command("pgrep", "--parent", fmt.Sprint(cmd.Process.Pid)).Output()
		if err != nil {
			return fmt.Errorf("no first process: %w\n%s", err, &log)
		}
		m.init = strings.Fields(string(out))[0]
		_, err = m.try("", "systemctl", "is-active", "--quiet", "multi-user.target")
		return err
	})
}

// write makes a file of the machine.
func (m *machine) write(path, content string) {
	m.t.Helper()
	m.put(path, []byte(content), 0o644)
}

func (m *machine) put(path string, content []byte, mode os.FileMode) {
	m.t.Helper()
	path = filepath.Join(m.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		m.t.Fatal(err)
	}
}

// bring copies a program of bin/ to the machine, and gives its path there.
func (m *machine) bring(program, dir string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "bin", program))
	if err != nil {
		m.t.Fatalf("%v: run ./scripts/task build", err)
	}
	path := filepath.Join(dir, program)
	m.put(path, b, 0o755)
	return path
}

// try runs a command on the machine as root, and gives all that it printed.
func (m *machine) try(stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", m.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--", name}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w\n%s", m.name, name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.try("", name, args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// refused runs a command that must fail and say something.
func (m *machine) refused(want, name string, args ...string) string {
	m.t.Helper()
	out, err := m.try("", name, args...)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() < 1 || !strings.Contains(out, want) {
		m.t.Fatalf("%s %s: %v, want a refusal with %q\n%s", name, strings.Join(args, " "), err, want, out)
	}
	return out
}

// has checks whether there is a file.
func (m *machine) has(path string, want bool) {
	m.t.Helper()
	if _, err := os.Lstat(filepath.Join(m.dir, path)); (err == nil) != want {
		m.t.Errorf("%s: %s is there: %v, want %v", m.name, path, err == nil, want)
	}
}

func wants(t *testing.T, out string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
}

func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		<-tick.C
	}
}
