package iso

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inside is the address at which machines reach the controller; it is no machine's.
const inside = "10.0.2.100"

// controller is a real one, on this machine's loopback.
type controller struct {
	dir, port string
}

func startController(t *testing.T) *controller {
	t.Helper()
	c := &controller{dir: filepath.Join(t.TempDir(), "controller"), port: freePort(t)}
	cmd := exec.Command(filepath.Join(root, "bin/shoal-controller"), "--data", c.dir, "--listen", "127.0.0.1:"+c.port, "--http", "127.0.0.1:"+freePort(t), "--advertise", inside, "--log-level", "warn")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err == nil {
			_ = cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the controller said:\n%s", log.String())
		}
	})
	eventually(t, time.Minute, func() error {
		_, err := c.try("zone", "create", "z1")
		return err
	})
	c.ctl(t, "cluster", "create", "c1", "--zone", "z1")
	return c
}

// freePort is one that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// way is what lets a machine that reaches nobody reach the controller.
func (c *controller) way() string {
	return fmt.Sprintf("guestfwd=tcp:%s:%s-cmd:nc 127.0.0.1 %s", inside, c.port, c.port)
}

func (c *controller) try(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(root, "bin/shoalctl"), args...)
	cmd.Env = append(os.Environ(), "SHOAL_SERVER=tls://127.0.0.1:"+c.port, "SHOAL_CREDS="+filepath.Join(c.dir, "admin.creds"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("shoalctl %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

func (c *controller) ctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// connects waits until the controller knows a host of this name and is in touch with it.
func (c *controller) connects(t *testing.T, name string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		out, err := c.try("host", "get", name, "-o", "json")
		if err != nil {
			return err
		}
		var h struct{ Status struct{ State string } }
		if err := json.Unmarshal([]byte(out), &h); err != nil {
			return err
		}
		if h.Status.State != "Connected" {
			return fmt.Errorf("host %s is %q, want Connected", name, h.Status.State)
		}
		return nil
	})
}

func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	tick := time.NewTicker(time.Second)
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
