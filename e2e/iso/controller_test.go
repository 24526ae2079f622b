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

// cloud is an installation, as an administrator with shoalctl sees it.
type cloud struct {
	shoalctl func(args ...string) (string, error)
}

// controller is a real one, on this machine's loopback.
type controller struct {
	cloud
	dir, port, http string
	cmd             *exec.Cmd
	log             bytes.Buffer
}

// startController starts one that has a cluster c1 in a zone z1.
func startController(t *testing.T) *controller {
	t.Helper()
	c := &controller{dir: filepath.Join(t.TempDir(), "controller"), port: freePort(t), http: freePort(t)}
	c.cloud = cloud{c.try}
	t.Cleanup(func() {
		c.stop()
		if t.Failed() {
			t.Logf("the controller said:\n%s", c.log.String())
		}
	})
	c.start(t)
	c.ctl(t, "zone create z1")
	c.ctl(t, "cluster create c1 --zone z1")
	return c
}

// start starts it, the second time with what it had.
func (c *controller) start(t *testing.T) {
	t.Helper()
	c.cmd = exec.Command(filepath.Join(root, "bin/shoal-controller"), "--data", c.dir, "--listen", "127.0.0.1:"+c.port, "--http", "127.0.0.1:"+c.http, "--advertise", inside, "--log-level", "warn")
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		_, err := c.try("zone", "list")
		return err
	})
}

// stop ends it, if it runs.
func (c *controller) stop() {
	if c.cmd != nil && c.cmd.Process != nil && c.cmd.Process.Kill() == nil {
		_ = c.cmd.Wait()
	}
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

// way is what lets a machine that reaches nobody reach the controller, while that runs.
func (c *controller) way() string {
	var all []string
	for _, port := range []string{c.port, c.http} {
		all = append(all, fmt.Sprintf("guestfwd=tcp:%s:%s-cmd:nc 127.0.0.1 %s", inside, port, port))
	}
	return strings.Join(all, ",")
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

// ctl runs a shoalctl command, given as one types it, that must succeed.
func (c cloud) ctl(t *testing.T, line string, args ...any) string {
	t.Helper()
	out, err := c.shoalctl(strings.Fields(fmt.Sprintf(line, args...))...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// status is what tests read of a host.
type status struct{ State, Virt string }

// host gives the status of a host, empty if there is none of this name.
func (c cloud) host(t *testing.T, name string) status {
	t.Helper()
	var hosts []struct{ Status status }
	if err := json.Unmarshal([]byte(c.ctl(t, "host list --where name=%s -o json", name)), &hosts); err != nil {
		t.Fatal(err)
	}
	if len(hosts) == 0 {
		return status{}
	}
	return hosts[0].Status
}

// connects waits until the controller knows a host of this name and is in touch with it.
func (c cloud) connects(t *testing.T, name string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		if state := c.host(t, name).State; state != "Connected" {
			return fmt.Errorf("host %s is %q, want Connected", name, state)
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
