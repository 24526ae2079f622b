package linux

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The controller's machine and what is on it.
const (
	controllerAddr = "10.99.0.1"
	controllerData = "/var/lib/shoal-controller"
	agentData      = "/var/lib/shoal-agent"
)

var controllerFlags = []string{"--", "--listen", controllerAddr + ":4222", "--http", controllerAddr + ":8480"}

// ctl is shoalctl on the controller's machine.
func (m *machine) ctl(args ...string) string {
	m.t.Helper()
	return m.run("/usr/local/bin/shoalctl", append([]string{"--server", "tls://" + controllerAddr + ":4222", "--creds", controllerData + "/admin.creds"}, args...)...)
}

// TestController is the life of a controller as a unit: installed, upgraded, saved from an upgrade that does not work, removed, brought back, purged.
func TestController(t *testing.T) {
	network(t)
	m := boot(t, "c1", controllerAddr)
	shoalctl := m.bring("shoalctl", "/opt/one")
	program := m.bring("shoal-controller", "/opt/one")
	install := append([]string{"controller", "install"}, controllerFlags...)

	m.refused("--listen", shoalctl, "controller", "install", "--", "--listen", "4222")
	m.refused("the unit's own", shoalctl, "controller", "install", "--", "--data", "/x")
	for _, path := range []string{"/usr/local/bin/shoal-controller", controllerData, "/etc/shoal"} {
		m.has(path, false)
	}
	out := m.run(shoalctl, install...)
	password := regexp.MustCompile(`one-time password, which is not shown again: (\S+)`).FindStringSubmatch(out)
	if password == nil {
		t.Fatalf("no password in\n%s", out)
	}
	m.has(controllerData+"/first-password", false)
	if log := m.run("journalctl", "--unit", "shoal-controller", "--no-pager"); strings.Contains(log, password[1]) {
		t.Error("the password is in the machine's log")
	}
	if user := strings.TrimSpace(m.run("ps", "-o", "user:32=", "-C", "shoal-controller")); user != "shoal-controller" {
		t.Errorf("it runs as %q", user)
	}
	wants(t, m.run("chronyc", "-n", "tracking"), "Reference ID")
	m.has("/etc/chrony/conf.d/shoal-controller.conf", true)
	if out := m.run(shoalctl, install...); strings.Contains(out, "wrote") || strings.Contains(out, "password") {
		t.Errorf("installing again did something:\n%s", out)
	}
	m.refused("another /etc/shoal/controller.env", shoalctl, "controller", "install", "--", "--listen", controllerAddr+":4223")

	// Root's commands leave the controller what is its own.
	m.ctl("zone", "create", "z1")
	m.run("shoal-controller", "ca", "rotate")
	if strangers := m.run("find", controllerData, "!", "-user", "shoal-controller"); strangers != "" {
		t.Errorf("not the controller's:\n%s", strangers)
	}

	// Programs of other versions stand in front of the real one; it says what version it has by its flags' check only.
	next := m.front("/opt/two", program, `exec -a shoal-controller "$real" "$@"`)
	wants(t, m.run(next, "controller", "upgrade"), "upgraded from", "which answers")
	for _, name := range []string{"identity", "nats", "usr_local_bin_shoal-controller"} {
		m.has(controllerData+".before-upgrade/"+name, true)
	}
	wants(t, m.ctl("zone", "list"), "z1")
	wants(t, m.run(next, "controller", "upgrade"), "is installed already")
	working := m.run("sha256sum", "/usr/local/bin/shoal-controller")
	for name, body := range map[string]string{
		"ends":          `echo "it has a fault"; exit 3`,
		"never answers": `exec sleep 1000`,
	} {
		bad := m.front("/opt/"+strings.ReplaceAll(name, " ", "-"), program, body)
		out := m.refused("the old one runs and answers", bad, "controller", "upgrade", "--patience", "20s")
		if name == "ends" {
			wants(t, out, "it has a fault")
		}
		if now := m.run("sha256sum", "/usr/local/bin/shoal-controller"); now != working {
			t.Errorf("%s: another program is installed: %s", name, now)
		}
		wants(t, m.ctl("zone", "list"), "z1")
	}
	stubborn := m.front("/opt/stubborn", program, "exit 1")
	m.put("/opt/stubborn/shoal-controller", []byte("#!/bin/sh\necho no such flag >&2\nexit 1\n"), 0o755)
	m.refused("nothing was changed", stubborn, "controller", "upgrade")

	m.run("shoalctl", "controller", "uninstall")
	m.has("/etc/systemd/system/shoal-controller.service", false)
	m.has("/usr/local/bin/shoal-controller", false)
	m.has("/etc/chrony/conf.d/shoal-controller.conf", false)
	m.has(controllerData+"/nats", true)
	wants(t, m.run(shoalctl, install...), "taking up the data")
	wants(t, m.ctl("zone", "list"), "z1")
	m.refused("--confirm c1", "shoalctl", "controller", "uninstall", "--purge")
	m.run("shoalctl", "controller", "uninstall", "--purge", "--confirm", "c1")
	for _, path := range []string{controllerData, controllerData + ".before-upgrade", "/usr/local/bin/shoal-controller", "/usr/local/bin/shoalctl", "/etc/shoal/controller.env", "/etc/sysusers.d/shoal-controller.conf"} {
		m.has(path, false)
	}
	m.refused("no controller here", shoalctl, "controller", "uninstall")
}

// front makes a directory with shoalctl and a program in front of the real controller: it answers --check as the real one, and runs the body else.
func (m *machine) front(dir, program, body string) string {
	m.t.Helper()
	m.put(filepath.Join(dir, "shoal-controller"), []byte(fmt.Sprintf("#!/bin/bash\nreal=%s\nfor a; do [ \"$a\" != --check ] || exec \"$real\" \"$@\"; done\n%s\n", program, body)), 0o755)
	return m.bring("shoalctl", dir)
}

// TestHost is the life of a host on a plain Debian: checks that fail, installation with real packages, removal, return, purge.
func TestHost(t *testing.T) {
	network(t)
	c := boot(t, "c1", controllerAddr)
	shoalctl := c.bring("shoalctl", "/root")
	c.bring("shoal-controller", "/root")
	c.run(shoalctl, append([]string{"controller", "install"}, controllerFlags...)...)
	c.ctl("zone", "create", "z1")
	c.ctl("cluster", "create", "c1", "--zone", "z1")
	token := strings.TrimSpace(c.ctl("host", "token", "create", "--cluster", "c1", "-q"))

	h := boot(t, "h1", "10.99.0.2")
	agent := h.bring("shoal-agent", "/root")
	installed := []string{"/usr/local/bin/shoal-agent", "/etc/systemd/system/shoal-agent.service", "/etc/sysctl.d/60-shoal.conf", "/etc/modules-load.d/shoal.conf", agentData}
	none := func() {
		t.Helper()
		for _, path := range installed {
			h.has(path, false)
		}
	}
	// What stands in the way is said, with a remedy, and nothing is changed.
	lost := "shoal1.a.b..dGxzOi8vMTAuOTkuMC45OjQyMjI" // tls://10.99.0.9:4222, where nobody is
	wants(t, h.refused("checks failed, and nothing was changed", agent, "install", lost), "FAILED  controller", "tls://10.99.0.9:4222", "remedy: check the route")
	none()
	h.run("systemd-run", "--quiet", "--unit=firewalld", "sleep", "1000")
	wants(t, h.refused("checks failed", agent, "install", token), "FAILED  conflict    firewalld.service runs", "systemctl disable --now firewalld")
	none()
	h.run("systemctl", "stop", "firewalld")
	wants(t, h.run(agent, "install", "--check", token), "packages    to be installed: ", "answers", "of the controller's, give or take")
	none()

	out, err := h.try(token, agent, "install", "--token-file", "-")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "installing packages:", "this machine is host h1", "the agent runs and is connected")
	if strings.Contains(out, token) {
		t.Error("the token is shown")
	}
	if b, err := os.ReadFile(filepath.Join(h.dir, "/etc/chrony/sources.d/shoal-agent.sources")); err != nil || !strings.Contains(string(b), "server "+controllerAddr+" iburst") {
		t.Errorf("sources of the time: %q, %v", b, err)
	}
	eventually(t, time.Minute, func() error {
		var s struct {
			Status struct {
				State string
				Clock *struct {
					OffsetMS int64 `json:"offset_ms"`
				}
			}
		}
		if err := json.Unmarshal([]byte(c.ctl("host", "get", "h1", "-o", "json")), &s); err != nil {
			return err
		}
		if s.Status.State != "Connected" || s.Status.Clock == nil || max(s.Status.Clock.OffsetMS, -s.Status.Clock.OffsetMS) > 1000 {
			return fmt.Errorf("the host's status is %+v", s.Status)
		}
		return nil
	})
	eventually(t, 2*time.Minute, func() error { // chrony takes the time from the controller's machine
		out, err := h.try("", "chronyc", "-n", "sources")
		if err == nil && !regexp.MustCompile(`\^[*+?] `+regexp.QuoteMeta(controllerAddr)+` +\d+ +\d+ +[1-7]`).MatchString(out) {
			err = fmt.Errorf("no answer from %s:\n%s", controllerAddr, out)
		}
		return err
	})
	pid := h.run("systemctl", "show", "--property=MainPID", "shoal-agent")
	if out := h.run(agent, "install"); strings.Contains(out, "wrote") {
		t.Errorf("installing again did something:\n%s", out)
	}
	if now := h.run("systemctl", "show", "--property=MainPID", "shoal-agent"); now != pid {
		t.Error("installing again started the agent anew")
	}

	c.ctl("storage", "create", "local", "--zone", "z1", "--type", "local", "--path", "/var/lib/shoal/storage", "--cluster", "c1", "--wait")
	h.has("/var/lib/shoal/storage/.shoal-pool", true)
	h.run("shoal-agent", "uninstall")
	for _, path := range installed[:4] {
		h.has(path, false)
	}
	h.has(agentData+"/identity/host.creds", true)
	gone := func() {
		t.Helper()
		for name, args := range map[string][]string{
			"ip": {"-brief", "link"}, "iptables-save": nil, "ip6tables-save": nil, "ebtables-save": nil, "ipset": {"list", "-name"}, "virsh": {"list", "--all", "--name"}, "mount": nil,
		} {
			if left := regexp.MustCompile(`(?im)^.*\b(sh[bxtds][0-9a-f]{8}|shs-|shc-|shoal-[0-9a-f]{8}).*$`).FindString(h.run(name, args...)); left != "" {
				t.Errorf("%s still has: %s", name, left)
			}
		}
		if left := h.run("ip", "netns", "list"); strings.TrimSpace(left) != "" {
			t.Errorf("namespaces: %s", left)
		}
		if out, err := h.try("", "pgrep", "--list-full", "dnsmasq|qemu"); err == nil {
			t.Errorf("still running: %s", out)
		}
	}
	gone()
	h.has("/var/lib/shoal/storage/.shoal-pool", true)

	// The same host comes back.
	wants(t, h.run(agent, "install"), "this machine is host", "the agent runs and is connected")
	h.refused("--confirm h1", "shoal-agent", "uninstall", "--purge")
	h.run("shoal-agent", "uninstall", "--purge", "--confirm", "h1")
	gone()
	none()
	h.has("/var/lib/shoal/storage/.shoal-pool", false)
	h.refused("there is no agent here", agent, "uninstall")
}
