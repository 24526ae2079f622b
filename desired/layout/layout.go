// Package layout says what Shoal looks like on a machine: where its programs and data are, the units that run them, and what kernel and
// clock are told. Whoever puts Shoal on a machine takes it from here: the installer of bare machines, shoal-agent install and
// shoalctl controller install. It only makes texts; it touches nothing.
package layout

import (
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strings"
)

// Where things are.
const (
	// BinDir is where Shoal's programs are.
	BinDir = "/usr/local/bin"

	Agent      = "shoal-agent"
	Controller = "shoal-controller"
	Shoalctl   = "shoalctl"

	AgentUnit      = "shoal-agent.service"
	ControllerUnit = "shoal-controller.service"
	// RollbackUnit is pulled in by the agent's.
	RollbackUnit = "shoal-network-rollback.service"

	AgentData      = "/var/lib/shoal-agent"
	ControllerData = "/var/lib/shoal-controller"

	// AgentToken is where the agent of a host that has not joined looks for a join token.
	AgentToken = AgentData + "/identity/token"

	// ControllerUser is whom the controller runs as.
	ControllerUser = "shoal-controller"
	// ControllerArgs is a file of environment variables, of which ControllerArgsVar holds the controller's flags. It is the operator's.
	ControllerArgs    = "/etc/shoal/controller.env"
	ControllerArgsVar = "SHOAL_CONTROLLER_ARGS"
	// FirstPassword is where a controller that was started by its unit writes the admin account's one-time password. It is of no use
	// once that has been changed.
	FirstPassword = ControllerData + "/first-password"
	// SysUsers declares ControllerUser to systemd-sysusers.
	SysUsers = "/etc/sysusers.d/" + Controller + ".conf"

	unitDir = "/etc/systemd/system/"
	// Where chrony, as Debian configures it, looks for more configuration, and for sources.
	chronyConf    = "/etc/chrony/conf.d/" + Controller + ".conf"
	chronySources = "/etc/chrony/sources.d/" + Agent + ".sources"
)

// File is a file of a machine: its absolute path, its content, its permissions.
type File struct {
	Path, Content string
	Mode          fs.FileMode
}

func text(path, content string) File { return File{path, content, 0o644} }

// AgentUnitPath and ControllerUnitPath are where the units are.
const (
	AgentUnitPath      = unitDir + AgentUnit
	ControllerUnitPath = unitDir + ControllerUnit
)

// AgentFiles are what a host has beside programs and data.
func AgentFiles() []File {
	return []File{
		text(AgentUnitPath, agentUnit),
		text(unitDir+RollbackUnit, rollbackUnit),
		text("/etc/sysctl.d/60-shoal.conf", settings),
		text("/etc/modules-load.d/shoal.conf", strings.Join(Modules, "\n")+"\n"),
	}
}

// agentUnit runs the agent. Guests, DHCP servers and mounts outlive it, so systemd ends the one process only, and network-online.target is not
// waited for: a host without its controller, or with a cable out, must bring up its guests all the same.
const agentUnit = `[Unit]
Description=Shoal agent
After=network.target libvirtd.service
Wants=libvirtd.service ` + RollbackUnit + `
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

// rollbackUnit takes back, before the network comes up, a change of the host's network that was pending when the machine went down.
const rollbackUnit = `[Unit]
Description=Roll back a change of the network that nobody confirmed
ConditionPathExists=` + AgentData + `/network/pending.json
DefaultDependencies=no
RequiresMountsFor=` + AgentData + ` ` + BinDir + `
After=local-fs.target
Before=network-pre.target systemd-networkd.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=` + BinDir + `/shoal-agent net guard --boot
`

// Console has the node's console on the first screen of a machine that is nothing but a host, in the place of a login; those are on the
// other screens. As a part of getty's own unit it takes the terminal over as that does, and nothing has to be switched off for it.
func Console() File {
	return text(unitDir+"getty@tty1.service.d/shoal.conf", "[Service]\nExecStart=\nExecStart=-"+BinDir+"/shoal-agent console --login\n")
}

// settings are what the kernel of a host must be told. Modules are loaded before them, since the keys are theirs.
const settings = "# Guests behind bridges are filtered by iptables, and networks are routed.\nnet.ipv4.ip_forward=1\nnet.bridge.bridge-nf-call-iptables=1\nnet.bridge.bridge-nf-call-ip6tables=1\n"

// Modules are the modules of the kernel that a host loads at its start.
var Modules = []string{"br_netfilter", "bonding", "8021q", "vxlan", "vhost_net"}

// ControllerFiles are what a machine with a controller has beside programs, data and ControllerArgs.
func ControllerFiles() []File {
	return []File{
		text(SysUsers, "u "+ControllerUser+" - \"Shoal controller\" "+ControllerData+"\n"),
		text(ControllerUnitPath, controllerUnit),
	}
}

// controllerUnit runs the controller, which tells when it is ready; with a long journal that takes a while. What root's commands
// (restore, rebuild, ca) have left in its directory becomes its own first.
const controllerUnit = `[Unit]
Description=Shoal controller
After=network.target
StartLimitIntervalSec=0

[Service]
Type=notify
User=` + ControllerUser + `
EnvironmentFile=-` + ControllerArgs + `
ExecStartPre=+/bin/chown --recursive --from=root ` + ControllerUser + `: ` + ControllerData + `
ExecStart=` + BinDir + `/shoal-controller --first-password-file ` + FirstPassword + ` $` + ControllerArgsVar + `
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStartSec=600
TimeoutStopSec=60
StateDirectory=shoal-controller
StateDirectoryMode=0700
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
`

// HostClock has a host's chrony take the time from the machines of these servers, "tls://controller:4222", beside the sources that it
// has: where those are reachable they outvote a controller that is wrong.
func HostClock(servers []string) File {
	var b strings.Builder
	b.WriteString("# Written by Shoal: the time of the controllers' machines.\n")
	var names []string
	for _, s := range servers {
		name := ""
		if u, err := url.Parse(s); err == nil {
			name = u.Hostname()
		}
		// The machine itself is no source of its own.
		if ip := net.ParseIP(name); name == "" || name == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) || slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		b.WriteString("server " + name + " iburst\n")
	}
	return text(chronySources, b.String())
}

// ControllerClock has a controller's chrony serve the time to hosts. When it knows no better source it serves its own, so that all hosts of a site
// without any agree.
func ControllerClock() File {
	return text(chronyConf, "# Written by Shoal: hosts take the time from here.\nallow\nlocal stratum 10\n")
}
