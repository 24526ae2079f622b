package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// buildAgent builds an agent of a version. Each change is a file of the repository with what is replaced in it, in this build only: an
// agent that is broken on purpose.
func buildAgent(t *testing.T, version string, changes map[string][2]string) string {
	t.Helper()
	dir := t.TempDir()
	overlay := map[string]map[string]string{"Replace": {}}
	for file, change := range changes {
		b, err := os.ReadFile(filepath.Join(repo, file))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(b), change[0], change[1], 1)
		if text == string(b) {
			t.Fatalf("%s does not hold %q", file, change[0])
		}
		with := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(with, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][filepath.Join(repo, file)] = with
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "shoal-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-ldflags", "-X main.version="+version, "-o", program, "./cmd/shoal-agent")
	cmd.Dir, cmd.Env = repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build agent %s: %v\n%s", version, err, out)
	}
	return program
}

// rollout is what tests read of a rollout, release of a release.
type rollout struct {
	ID, State, Why string
	Wave           int
	Status         struct{ Done, Failed int }
}

type release struct {
	ID, Version, Arch string
	Status            struct {
		Running, Failed int
		Rollout, Why    string
	}
}

// counters are what changes in a packet filter by itself.
var counters = regexp.MustCompile(`\[\d+:\d+\]|(?m)^#.*$`)

// TestRelease_UpdatesAndRollsBack: a host with a guest gets a new agent, keeps it, and goes back to it from every sort of broken one. Nothing that
// the agent is there for is touched by any of it.
func TestRelease_UpdatesAndRollsBack(t *testing.T) {
	b := theBed(t)
	const box, cluster = "h8", "c8"
	good := buildAgent(t, "2.0-good", nil)

	b.ctl(t, "cluster create %s --zone z1 --cpu-overcommit 100", cluster)
	t.Cleanup(func() { b.ctl(t, "cluster delete %s", cluster) })
	b.ctl(t, "storage attach local --cluster %s", cluster)
	b.ctl(t, "vxlanpool attach vx --cluster %s --cidr %s.0/24", cluster, b.net)
	t.Cleanup(func() {
		b.ctl(t, "vxlanpool detach vx --cluster %s", cluster)
		b.ctl(t, "storage detach local --cluster %s", cluster)
	})
	t.Cleanup(func() {
		delete(b.hosts, box)
		b.ctl(t, "host disable %s", box)
		b.ctl(t, "host delete %s --cascade", box)
		if err := b.box("rm", box); err != nil {
			t.Error(err)
		}
		var rollouts []rollout
		b.get(t, &rollouts, "agent rollout list")
		for _, o := range rollouts {
			b.ctl(t, "agent rollout delete %s", o.ID)
		}
		var releases []release
		b.get(t, &releases, "agent release list")
		for _, l := range releases {
			b.ctl(t, "agent release delete %s", l.ID)
		}
	})
	if err := b.addHost(box, 8, cluster); err != nil {
		t.Fatal(err)
	}
	b.ctl(t, "secgroup create settled")
	t.Cleanup(func() { b.ctl(t, "secgroup delete settled --cascade") })
	b.ctl(t, "secrule create --secgroup settled --direction ingress --protocol icmp")
	guest := "--image tiny --offering tiny --network net1 --secgroup settled --cluster " + cluster
	eventually(t, time.Minute, func() error { // it takes a host a moment to find out what it can run
		_, err := b.try(strings.Fields("vm create settled --dry-run " + guest)...)
		return err
	})
	v := b.createVM(t, "settled", "%s", guest)
	b.booted(t, v)

	// machine is all that must stay as it is: processes by id and start, rules, links.
	machine := func() string {
		return counters.ReplaceAllString(b.in(t, box, `for p in $(pgrep -f "[g]uest=shoal-%s"; pgrep dnsmasq); do echo $p $(cut -d " " -f 22 /proc/$p/stat); done; iptables-save; ebtables-save; ipset list -name; ip -br link`, v.ID), "")
	}
	version := func() string {
		var h struct{ Status struct{ Version string } }
		b.get(t, &h, "host get %s", box)
		return h.Status.Version
	}
	ended := func(version string) rollout {
		t.Helper()
		var o rollout
		eventually(t, 4*time.Minute, func() error {
			var all []rollout
			if err := b.tryJSON(&all, "agent", "rollout", "list", "--where", "version="+version); err != nil {
				return err
			}
			if len(all) != 1 || all[0].State == "running" {
				return fmt.Errorf("rollouts of %s: %+v", version, all)
			}
			o = all[0]
			return nil
		})
		return o
	}
	rollOut := func(version string) {
		t.Helper()
		b.ctl(t, "agent rollout start %s --cluster %s --soak 1s --trial 60s --within 3m", version, cluster)
	}
	newest := func(version string) rollout {
		t.Helper()
		var all []rollout
		b.get(t, &all, "agent rollout list --where version=%s --sort -created", version)
		if len(all) == 0 {
			t.Fatalf("there is no rollout of %s", version)
		}
		return all[0]
	}
	untouched := machine()
	if !strings.Contains(untouched, "shc-") {
		t.Fatalf("no rules of the guest are there:\n%s", untouched)
	}

	// What is no agent is found out before anybody hears of it.
	if e := b.refused(t, "agent release add %s --version 2.0-wrong", filepath.Join(repo, "bin/shoalctl")); !strings.Contains(e.stderr, "is the program shoal/cmd/shoalctl") {
		t.Errorf("adding shoalctl as an agent: %v", e)
	}
	b.ctl(t, "agent release add %s", good) // it says itself which version it is
	rollOut("2.0-good")
	if o := ended("2.0-good"); o.State != "done" || o.Wave != 1 || version() != "2.0-good" {
		t.Fatalf("the rollout is %+v, and the host runs %s", o, version())
	}
	if now := machine(); now != untouched {
		t.Errorf("the update has touched the host: before\n%s\nafter\n%s", untouched, now)
	}
	if why := b.ctl(t, "why %s agent.self", box); !strings.Contains(why, "as it should be") {
		t.Errorf("why: %s", why)
	}
	if files := b.in(t, box, "ls -l /proc/$(pgrep -x shoal-agent | tail -n 1)/exe"); !strings.Contains(files, "/var/lib/shoal-agent/release/") {
		t.Errorf("the agent runs from %s", files)
	}
	// It is what comes back after a crash and after a loss of power.
	b.killAgent(t, box)
	if err := b.connected(box); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		changes map[string][2]string
		why     string
	}{
		"crashes": {map[string][2]string{"agent/agent.go": {"	who, lock, err := identity(ctx, cfg)", `	if true {
		panic("broken on purpose")
	}
	who, lock, err := identity(ctx, cfg)`}}, "ended by itself: exit status 2"},
		"deaf": {map[string][2]string{"agent/link/connect.go": {
			"return (&net.Dialer{Timeout: patience}).DialContext(ctx, network, address)", `return nil, fmt.Errorf("broken on purpose")`,
		}}, "not connected to the controller: broken on purpose"},
		"sick": {map[string][2]string{"agent/dhcp/dhcp.go": {
			"	links, err := k.machine.Links(ctx)\n	if err != nil {", "	links, err := k.machine.Links(ctx)\n	err = errors.New(\"broken on purpose\")\n	if err != nil {",
		}}, "broken on purpose"},
	} {
		t.Run(name, func(t *testing.T) {
			before := machine()
			bad := buildAgent(t, "2.1-"+name, c.changes)
			b.ctl(t, "agent release add %s", bad)
			b.ctl(t, "agent rollout start 2.1-%s --cluster %s --soak 1s --trial 25s --within 3m", name, cluster)
			o := ended("2.1-" + name)
			if o.State != "stopped" || !strings.Contains(o.Why, "host "+box+": ") || !strings.Contains(o.Why, "was rolled back: ") || !strings.Contains(o.Why, c.why) {
				t.Errorf("the rollout is %+v, want it stopped for %q", o, c.why)
			}
			var l []release
			b.get(t, &l, "agent release list --where version=2.1-%s", name)
			if len(l) != 1 || l[0].Status.Failed != 1 || l[0].Status.Why != o.Why {
				t.Errorf("the release is shown as %+v", l)
			}
			if why := b.ctl(t, "why %s agent.self", box); !strings.Contains(why, c.why) {
				t.Errorf("why: %s", why)
			}
			if got := version(); got != "2.0-good" {
				t.Errorf("the host runs %s, want the one before", got)
			}
			if err := b.connected(box); err != nil {
				t.Error(err)
			}
			if now := machine(); now != before {
				t.Errorf("the host was touched: before\n%s\nafter\n%s", before, now)
			}
		})
	}

	// Back on its feet: the guest never noticed, and the agent still does its work.
	b.state(t, "settled", "Running", "running")
	b.ctl(t, "vm reboot settled --wait")
	b.booted(t, v)

	// A host that was off gets its turn when it is back, by the base that it was installed with or any other.
	if err := b.box("off", box); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		var h host
		if err := b.tryJSON(&h, "host", "get", box); err != nil {
			return err
		}
		if h.Status.State != "Disconnected" {
			return errors.New("the host is still connected")
		}
		return nil
	})
	b.ctl(t, "agent release add %s --version 3.0", buildAgent(t, "3.0", nil))
	rollOut("3.0")
	var all []struct {
		State  string
		Status struct{ Offline int }
	}
	b.get(t, &all, "agent rollout list --where version=3.0")
	if len(all) != 1 || all[0].State != "running" || all[0].Status.Offline != 1 {
		t.Errorf("with the host off the rollout is %+v", all)
	}
	if err := b.box("on", box); err != nil {
		t.Fatal(err)
	}
	if o := ended("3.0"); o.State != "done" || version() != "3.0" {
		t.Errorf("the rollout is %+v, and the host runs %s", o, version())
	}

	// An agent from before there were releases does all but that, and says so. The way out is by hand: another binary in the place of
	// the installed one.
	b.ctl(t, "agent release add %s", buildAgent(t, "1.0-old", map[string][2]string{"agent/agent.go": {"	engine.Add(a.engine, engine.StageBase, desired.KindAgent, updater)\n", ""}}))
	rollOut("1.0-old")
	if o := ended("1.0-old"); o.State != "stopped" || !strings.Contains(o.Why, `knows no items of kind "agent"`) || version() != "1.0-old" {
		t.Errorf("the rollout is %+v, and the host runs %s", o, version())
	}
	b.ctl(t, "vm reboot settled --wait")
	b.booted(t, v)
	var h struct {
		Status struct{ Agent struct{ Code string } }
	}
	if b.get(t, &h, "host get %s", box); h.Status.Agent.Code != "TooNew" {
		t.Errorf("the host shows %+v", h)
	}
	rollOut("3.0")
	o := newest("3.0")
	b.in(t, box, "touch /shared/bin/shoal-agent")
	b.killAgent(t, box)
	eventually(t, 4*time.Minute, func() error {
		if now := newest("3.0"); now.State == "stopped" {
			b.ctl(t, "agent rollout resume %s", o.ID)
		} else if now.State != "done" {
			return fmt.Errorf("the rollout is %+v", now)
		}
		if got := version(); got != "3.0" {
			return fmt.Errorf("the host runs %s", got)
		}
		return nil
	})
}
