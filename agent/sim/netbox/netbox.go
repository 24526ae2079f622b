// Package netbox gives a test binary a network of its own, so that tests can use the real tools without a trace on the machine. It is for
// tests only.
//
// It guarantees that the tests run in new network and mount namespaces with an empty /run and a loopback, and that all of it is gone, with every
// process that was started in it, when the test binary ends, also when it is killed.
package netbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
)

const inside = "SHOAL_NETBOX"

// Main runs the tests of a package in namespaces of its own. Without root they run where they are, and tests that called Need skip.
//
//	func TestMain(m *testing.M) { netbox.Main(m) }
func Main(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "netbox:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	// A fuzzing process talks to its workers over descriptors that would not get through.
	fuzzing := slices.ContainsFunc(os.Args, func(a string) bool {
		return strings.HasPrefix(a, "-test.fuzz") && !strings.HasPrefix(a, "-test.fuzzcachedir")
	})
	if os.Geteuid() != 0 || fuzzing {
		os.Exit(m.Run())
	}
	// A pid namespace, so that daemons end with the tests.
	args := append([]string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--mount-proc"}, os.Args...)
	cmd := exec.Command("unshare", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	default:
		fmt.Fprintln(os.Stderr, "netbox: no namespaces here, tests with real tools will skip:", err)
		os.Exit(m.Run())
	}
}

func prepare() error {
	for _, dir := range []string{"/run"} {
		if err := syscall.Mount("netbox", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	// sysfs shows the network namespace that it was mounted in.
	if err := syscall.Mount("netbox", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return nil
}

// Need skips a test where it has no namespaces of its own or a program is not installed.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("SKIPPED: needs root for network namespaces of its own")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %s is not installed: run scripts/setup", p)
		}
	}
}

// Run runs a command line, or each of several lines, and fails the test when one does not work.
func Run(t testing.TB, lines string) string {
	t.Helper()
	var all strings.Builder
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		out, err := exec.Command("sh", "-c", line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// Try runs a command line and says whether it worked, with what it printed.
func Try(line string) (string, bool) {
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	return string(out), err == nil
}

// In runs f on a thread that is in a network namespace of that name, so that sockets it makes are there. They work from
// everywhere afterwards.
func In[T any](namespace string, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var r result
		ns, err := netns.GetFromName(namespace)
		if err == nil {
			defer ns.Close()
			if err = netns.Set(ns); err == nil {
				r.v, err = f()
			}
		}
		r.err = err
		c <- r
	}()
	r := <-c
	return r.v, r.err
}
