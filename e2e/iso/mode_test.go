package iso

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// node is an installed machine as whoever logs in there by SSH sees it.
type node struct {
	*machine
	name string
	key  key
	hardware
}

// becomes installs a machine in a mode from a CD, by flags alone, and starts what was installed, with the drive empty.
func becomes(t *testing.T, mode string, h hardware) *node {
	t.Helper()
	n := &node{name: mode + "1", key: newKey(t), hardware: h}
	n.disks, n.ssh = []string{disk(t, 12)}, freePort(t)
	power(t, hardware{cd: medium(t, "--mode", mode, "--hostname", n.name, "--ssh-key", n.key.file), disks: n.disks}).installs()
	n.on(t)
	return n
}

// on switches it on, and waits until all that starts with it has been started.
func (n *node) on(t *testing.T) {
	t.Helper()
	m := power(t, n.hardware)
	n.machine = m
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		log, err := os.ReadFile(m.log)
		warnings, sshErr := n.in("systemctl --failed --no-pager; journalctl --boot --priority warning --no-pager | tail -n 60")
		t.Logf("%s: %v, %v\n%s\n%s", n.name, err, sshErr, tail(string(log)), warnings)
	})
	eventually(t, 10*time.Minute, func() error {
		// It has another exit code for each state.
		out, err := n.in("systemctl is-system-running || true")
		if err == nil && !strings.Contains(out, "running") && !strings.Contains(out, "degraded") {
			err = fmt.Errorf("systemd is %s", out)
		}
		return err
	})
}

// in runs a shell line there.
func (n *node) in(line string) (string, error) { return n.key.run(n.ssh, line) }

// run runs a shell line that must succeed.
func (n *node) run(t *testing.T, line string) string {
	t.Helper()
	out, err := n.in(line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// is checks what shell lines print.
func (n *node) is(t *testing.T, lines map[string]string) {
	t.Helper()
	for line, want := range lines {
		if got, err := n.in(line); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s: %s prints %q, want %q; %v", n.name, line, strings.TrimSpace(got), want, err)
		}
	}
}

// tells waits until a shell line prints all of these.
func (n *node) tells(t *testing.T, line string, wants ...string) {
	t.Helper()
	eventually(t, 5*time.Minute, func() error {
		out, err := n.in(line)
		if err != nil {
			return err
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				return fmt.Errorf("%s: %s does not print %q:\n%s", n.name, line, want, out)
			}
		}
		return nil
	})
}

// started: all that starts with the machine did, in an order that there is.
func (n *node) started(t *testing.T) {
	t.Helper()
	n.is(t, map[string]string{
		"hostname":                               n.name,
		"systemctl --failed --plain --no-legend": "",
		"journalctl --boot --no-pager --grep 'ordering cycle' --output cat --quiet || true": "",
		"systemctl is-active ssh chrony nftables systemd-networkd | sort --unique":          "active",
	})
}

// screens: the first shows the node's console, with these; logins are on the second.
func (n *node) screens(t *testing.T, wants ...string) {
	t.Helper()
	n.tells(t, "cat /dev/vcs1", append(wants, "Shoal  "+n.name, "enter menu")...)
	n.run(t, "chvt 2")
	n.tells(t, "cat /dev/vcs2", n.name+" login:")
	n.run(t, "chvt 1")
}

// rollback: what rolls back a change of the network was asked whether there is one, before the network came up, and found one or none.
func (n *node) rollback(t *testing.T, found string) {
	t.Helper()
	n.is(t, map[string]string{
		"systemctl show --property LoadState,Result,ConditionResult shoal-network-rollback.service | sort": "ConditionResult=" + found + "\nLoadState=loaded\nResult=success",
		// Microseconds since the start of the machine; 0 is never.
		"test $(systemctl show --property ConditionTimestampMonotonic --value shoal-network-rollback.service) -lt $(systemctl show --property ActiveEnterTimestampMonotonic --value systemd-networkd.service) && " +
			"test $(systemctl show --property ConditionTimestampMonotonic --value shoal-network-rollback.service) -gt 0 && echo before": "before",
	})
}

// outside makes what reaches the machine, 192.0.2.1, over its network, and so through its packet filter: a network namespace at 192.0.2.2. What is given goes before
// a command that is to run in there.
func (n *node) outside(t *testing.T) string {
	t.Helper()
	n.run(t, `ip netns add outside && ip link add out0 type veth peer name out1 netns outside && ip address add 192.0.2.1/30 dev out0 && ip link set out0 up &&
ip -n outside address add 192.0.2.2/30 dev out1 && ip -n outside link set out1 up && ip -n outside link set lo up`)
	return "ip netns exec outside "
}

// TestManagement installs a cloud of one machine. All else is done there, as its first user does it: the one-time password is changed, the machine becomes its
// own host, and a guest runs on it.
func TestManagement(t *testing.T) {
	need(t)
	thorough(t)
	t.Parallel()
	n := becomes(t, "management", hardware{cpu: "max", memory: 3072})
	n.started(t)
	n.rollback(t, "no")
	n.tells(t, "stat --format %a /var/lib/shoal-controller/first-password", "600")
	n.is(t, map[string]string{
		// It has told systemd that it is ready.
		"systemctl is-active shoal-controller": "active",
		"ps --no-headers --format user:32 $(systemctl show --property MainPID --value shoal-controller)": "shoal-controller",
		"find /var/lib/shoal-controller ! -user shoal-controller":                                        "",
	})
	n.screens(t, "has not joined a controller", "shoal-controller active")

	n.run(t, "umask 077; echo correct-horse-battery >new")
	// Hashing a password takes an emulated processor long.
	login := "shoalctl login --timeout 2m --server tls://127.0.0.1:4222 --ca /var/lib/shoal-controller/ca.pem --account admin --password-file "
	n.run(t, login+"/var/lib/shoal-controller/first-password --new-password-file new")
	if out, err := n.in(login + "/var/lib/shoal-controller/first-password"); err == nil {
		t.Errorf("the one-time password is good for a second time:\n%s", out)
	}
	session := cloud{func(args ...string) (string, error) { return n.in("shoalctl " + strings.Join(args, " ")) }}
	session.ctl(t, "zone create z1")
	session.ctl(t, "logout")
	c := cloud{func(args ...string) (string, error) {
		return n.in("SHOAL_CREDS=/var/lib/shoal-controller/admin.creds shoalctl " + strings.Join(args, " "))
	}}
	c.ctl(t, "cluster create c1 --zone z1")
	n.run(t, "export SHOAL_CREDS=/var/lib/shoal-controller/admin.creds; shoalctl host token create --cluster c1 -q | shoal-agent join --token-file -")
	c.connects(t, n.name, 5*time.Minute)
	n.screens(t, "connected to tls://", fmt.Sprintf("%-9s %s ", "Host", n.name))

	// Other hosts reach it, and have the time from it.
	outside := n.outside(t)
	for _, port := range []string{"4222", "8480"} {
		n.run(t, outside+"bash -c 'exec 3<>/dev/tcp/192.0.2.1/"+port+"'")
	}
	n.run(t, outside+"chronyd -Q -t 30 'server 192.0.2.1 iburst'")
	image, err := os.Open(tiny(t))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := n.key.feed(n.ssh, "cat >/var/tmp/tiny.qcow2", image); err != nil {
		t.Fatal(err)
	}
	guest(t, c, "/var/tmp/tiny.qcow2", n.name, n.in)
	n.started(t)
}

// TestStorage installs a machine that serves NFS, mounts what it exports from outside, and cuts the power while a change of its network waits to be confirmed.
func TestStorage(t *testing.T) {
	need(t)
	thorough(t)
	t.Parallel()
	n := becomes(t, "storage", hardware{})
	n.started(t)
	n.rollback(t, "no")
	n.is(t, map[string]string{"systemctl is-active nfs-server shoal-agent libvirtd | sort --unique": "active", "cat /var/lib/nfs/etab": ""})
	n.screens(t, "has not joined a controller")

	outside := n.outside(t)
	n.run(t, "mkdir /srv/vms && echo '/srv/vms 192.0.2.0/30(rw,no_root_squash,no_subtree_check)' >>/etc/exports && systemctl reload nfs-server")
	// As an agent does it.
	n.run(t, outside+"sh -ec 'mount -t nfs -o hard,timeo=150,retrans=3 192.0.2.1:/srv/vms /mnt; echo kept >/mnt/file; umount /mnt'")
	n.is(t, map[string]string{"cat /srv/vms/file": "kept"})
	n.started(t)

	n.run(t, "shoal-agent net vlan $(basename $(dirname /sys/class/net/*/device)) 42 --address 192.168.42.5/24 --no-wait")
	n.tells(t, "ip -4 -brief address", "192.168.42.5/24")
	n.off()
	n.on(t)
	n.rollback(t, "yes")
	n.is(t, map[string]string{"ip -4 -brief address | grep -c 192.168.42.5/24 || true": "0", "grep -rl 192.168.42.5 /etc/systemd/network || true": ""})
	n.started(t)
}
