package metal

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"shoal/agent/host"
	"shoal/desired"
)

// TokenFile is where the agent of an installed host looks for a join token by itself; it is install.TokenFile of the usual directory, which a test
// compares: to import that package would bring all of NATS into the initramfs.
const TokenFile = "/var/lib/shoal-agent/identity/token"

// BinDir is where Shoal's programs are on a host.
const BinDir = "/usr/local/bin"

// agentUnit runs the agent. Guests, DHCP servers and mounts outlive it, so systemd ends the one process only, and network-online.target is not
// waited for: a host without its controller, or with a cable out, must bring up its guests all the same.
const agentUnit = `[Unit]
Description=Shoal agent
After=network.target libvirtd.service
Wants=libvirtd.service
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=` + BinDir + `/shoal-agent
Restart=always
RestartSec=5
KillMode=process
OOMScoreAdjust=-900
StateDirectory=shoal-agent
StateDirectoryMode=0711
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
`

const controllerUnit = `[Unit]
Description=Shoal controller
After=network.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=` + BinDir + `/shoal-controller
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=60
StateDirectory=shoal-controller
StateDirectoryMode=0700
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
`

// settings are what the kernel of a host must be told; the modules are loaded before them, since the keys are theirs.
const (
	settings = "# Guests behind bridges are filtered by iptables, and networks are routed.\nnet.ipv4.ip_forward=1\nnet.bridge.bridge-nf-call-iptables=1\nnet.bridge.bridge-nf-call-ip6tables=1\n"
	modules  = "br_netfilter\nbonding\n8021q\nvxlan\nvhost_net\n"
)

// shoal puts Shoal's own programs into the system at root, and says which units to switch on.
func (i *installer) shoal(root string) ([]string, error) {
	mode := i.host.Mode
	programs := map[string]bool{"shoalctl": mode == desired.ModeManagement, "shoal-controller": mode == desired.ModeManagement, "shoal-agent": mode != desired.ModeExpert}
	var units []string
	write := func(name, content string, perm os.FileMode) error {
		if err := host.WriteFile(filepath.Join(root, name), []byte(content), perm); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	for _, name := range []string{"shoal-agent", "shoal-controller", "shoalctl"} {
		if !programs[name] {
			continue
		}
		b, err := os.ReadFile(filepath.Join(i.cfg.Medium, "shoal", "bin", name))
		if err != nil {
			return nil, damaged(err)
		}
		if err := write(filepath.Join(BinDir, name), string(b), 0o755); err != nil {
			return nil, err
		}
	}
	if programs["shoal-agent"] {
		if err := write("/etc/systemd/system/shoal-agent.service", agentUnit, 0o644); err != nil {
			return nil, err
		}
		if err := write("/etc/sysctl.d/60-shoal.conf", settings, 0o644); err != nil {
			return nil, err
		}
		if err := write("/etc/modules-load.d/shoal.conf", modules, 0o644); err != nil {
			return nil, err
		}
		units = append(units, "shoal-agent.service", "libvirtd.service")
	}
	if programs["shoal-controller"] {
		if err := write("/etc/systemd/system/shoal-controller.service", controllerUnit, 0o644); err != nil {
			return nil, err
		}
		units = append(units, "shoal-controller.service")
	}
	if mode == desired.ModeStorage {
		units = append(units, "nfs-kernel-server.service")
	}
	if i.host.Token != "" {
		identity := filepath.Dir(filepath.Join(root, TokenFile))
		for dir, perm := range map[string]os.FileMode{filepath.Dir(identity): 0o711, identity: 0o700} {
			err := os.MkdirAll(dir, perm)
			if err == nil {
				err = os.Chmod(dir, perm)
			}
			if err != nil {
				return nil, fmt.Errorf("make the agent's directory: %w", err)
			}
		}
		if err := write(TokenFile, i.host.Token+"\n", 0o600); err != nil {
			return nil, err
		}
	}
	slices.Sort(units)
	return units, nil
}
