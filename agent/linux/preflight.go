package linux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/desired"
	"shoal/desired/layout"
	"shoal/subjects"
)

// What a host needs of disk space below /var/lib at the least, and what it should have: images and volumes of local storages lie there, too.
const (
	minFree  = 2 << 30
	goodFree = 10 << 30
)

// maxSkew is how wrong the clock may be to join all the same: credentials and certificates begin to hold at a time. What is less, chrony puts right.
const maxSkew = time.Minute

// program is something that the agent runs, with the Debian package that has it.
type program struct{ name, pkg string }

// programs are all that the agent runs.
func programs() []program {
	emulator := program{"qemu-system-x86_64", "qemu-system-x86"}
	if runtime.GOARCH == "arm64" {
		emulator = program{"qemu-system-aarch64", "qemu-system-arm"}
	}
	return []program{
		{"libvirtd", "libvirt-daemon-system"},
		emulator,
		{"qemu-img", "qemu-utils"},
		{"virsh", "libvirt-clients"},
		{"dnsmasq", "dnsmasq-base"},
		{"iptables", "iptables"},
		{"ipset", "ipset"},
		{"ebtables", "ebtables"},
		{"mount.nfs", "nfs-common"},
		{"ip", "iproute2"},
		{"nsenter", "util-linux"},
		{"modprobe", "kmod"},
	}
}

// libvirtDriver is what libvirt needs to run QEMU. It has no program.
const libvirtDriver = "libvirt-daemon-driver-qemu"

// otherClocks are units of time daemons that are left alone.
var otherClocks = []string{"ntp.service", "ntpsec.service", "ntpd.service", "openntpd.service"}

// Preflight looks at all that stands in the way of this machine's becoming a host.
func Preflight(ctx context.Context, cfg Config) Report {
	p := &preflight{cfg: cfg}
	// What the rest needs comes first.
	p.add(p.root(), p.systemd())
	if !p.report.Ready() {
		return p.report
	}
	p.add(p.distribution(), p.machineID(), p.name(), p.kernel(), p.kvm(), p.cgroups(), p.disk())
	p.add(p.packages(ctx), p.clockDaemon(ctx), p.vxlan())
	p.add(p.conflicts(ctx)...)
	p.add(p.identity()...)
	p.add(p.controller(ctx)...)
	return p.report
}

type preflight struct {
	cfg    Config
	report Report
	// token is what the machine is to join with, nil for none.
	token *desired.JoinToken
}

func (p *preflight) add(checks ...Check) { p.report.Checks = append(p.report.Checks, checks...) }

func (p *preflight) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return p.cfg.Run.Run(ctx, host.Command{Name: name, Args: args})
}

func active(ctx context.Context, run host.Runner, unit string) bool {
	_, err := run.Run(ctx, host.Command{Name: "systemctl", Args: []string{"is-active", "--quiet", unit}})
	return err == nil
}

func (*preflight) root() Check {
	if uid := os.Geteuid(); uid != 0 {
		return failed("root", fmt.Sprintf("the user is %d", uid), "packages, units and networks are root's", "run it as root, such as with sudo")
	}
	return ok("root", "yes")
}

func (*preflight) systemd() Check {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return failed("systemd", "it does not run this machine", "the agent is a unit of systemd", "use a distribution that systemd runs, or start shoal-agent by what there is instead: see shoal-agent --help")
	}
	return ok("systemd", "it runs this machine")
}

// release is what /etc/os-release says.
type release struct{ id, like, version, name string }

func readRelease(r io.Reader) release {
	var out release
	s := bufio.NewScanner(r)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), "=")
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		value = strings.Trim(value, "'")
		switch key {
		case "ID":
			out.id = value
		case "ID_LIKE":
			out.like = value
		case "VERSION_ID":
			out.version = value
		case "PRETTY_NAME":
			out.name = value
		}
	}
	return out
}

// debian reports whether packages are Debian's.
func (r release) debian() bool {
	return r.id == "debian" || slices.Contains(strings.Fields(r.like), "debian")
}

func thisRelease() release {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return release{name: "unknown"}
	}
	defer f.Close()
	return readRelease(f)
}

func (*preflight) distribution() Check {
	const name = "system"
	r := thisRelease()
	switch {
	case r.id == "debian" && r.version == "12":
		return ok(name, "%s", r.name)
	case r.debian():
		return note(name, r.name, "Shoal is tried on Debian 12; this derives from Debian, and its packages are named alike", "")
	default:
		return note(name, r.name, "Shoal is tried on Debian 12; here no packages are installed", "")
	}
}

func (*preflight) machineID() Check {
	const name, remedy = "machine id", "rm -f /etc/machine-id; systemd-machine-id-setup"
	const why = "libvirt and DHCP take it for this machine, and no two may have the same"
	b, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(b))
	switch {
	case err != nil:
		return failed(name, err.Error(), why, remedy)
	case len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "":
		return failed(name, fmt.Sprintf("/etc/machine-id has %q, which is none", id), why, remedy)
	}
	return ok(name, "%s", id)
}

func (p *preflight) name() Check {
	const check = "name"
	name := p.cfg.Name
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return failed(check, err.Error(), "the host is called so", "give --name")
		}
	}
	if !subjects.ValidToken(name) || name == "localhost" {
		return failed(check, fmt.Sprintf("%q", name), "the host is called so: 1 to 64 letters, digits, _ and -, and not localhost", "give --name, or change it: hostnamectl set-hostname NAME")
	}
	return ok(check, "%s", name)
}

// kernel looks for what bridged packets are filtered by; other modules are loaded as they are needed.
func (p *preflight) kernel() Check {
	const name = "kernel"
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return failed(name, err.Error(), "", "")
	}
	version := unix.ByteSliceToString(uts.Release[:])
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return failed(name, version+" has no /dev/net/tun", "guests are connected by taps", "modprobe tun; use a kernel that has it")
	}
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		return ok(name, "%s", version)
	}
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		b, err := os.ReadFile(filepath.Join(dir, version, "modules.dep"))
		if err == nil && strings.Contains(string(b), "/br_netfilter.ko") {
			return ok(name, "%s", version)
		}
	}
	return failed(name, version+" has no module br_netfilter", "security groups filter what passes bridges", "install the distribution's kernel with all its modules, and start it")
}

func (*preflight) kvm() Check {
	const name, why = "kvm", "guests are emulated, which is ten times slower and more"
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return note(name, "/dev/kvm is not there", why, "switch virtualization on in the firmware (VT-x, AMD-V), or for this machine where it is a guest itself; modprobe kvm_intel or kvm_amd says why not")
	case err != nil:
		return note(name, err.Error(), why, "find out why root can't open it")
	}
	_ = f.Close()
	return ok(name, "/dev/kvm is there; the agent finds out whether it works")
}

func (*preflight) cgroups() Check {
	const name, want = "cgroups", "cpu and memory"
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		have := strings.Fields(string(b))
		if slices.Contains(have, "cpu") && slices.Contains(have, "memory") {
			return ok(name, "version 2")
		}
		return failed(name, fmt.Sprintf("version 2 with %v", have), "libvirt bounds guests by "+want, "remove cgroup_disable= from the kernel's command line")
	}
	for _, c := range []string{"cpu", "memory"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c)); err != nil {
			return failed(name, "there is no "+c, "libvirt bounds guests by "+want, "remove cgroup_disable= from the kernel's command line")
		}
	}
	return ok(name, "version 1")
}

func (*preflight) disk() Check {
	const name, why = "disk", "packages take 1 GiB, and images and volumes of local storages need room"
	var st unix.Statfs_t
	if err := unix.Statfs("/var/lib", &st); err != nil {
		return failed(name, err.Error(), why, "")
	}
	free := st.Bavail * uint64(st.Bsize) //nolint:gosec // a block size is positive
	found := fmt.Sprintf("%.1f GiB are free in /var/lib", float64(free)/(1<<30))
	switch {
	case free < minFree:
		return failed(name, found, why, "free 2 GiB, or mount a larger file system at /var/lib")
	case free < goodFree:
		return note(name, found, why, "put local storages elsewhere: shoalctl storage create --path")
	}
	return ok(name, "%s", found)
}

// look finds a program where root would.
func look(name string) bool {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin") {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

// packages finds what is missing and whether it could be had.
func (p *preflight) packages(ctx context.Context) Check {
	const name = "packages"
	var absent []string
	for _, prog := range programs() {
		if !look(prog.name) {
			absent = append(absent, prog.name)
			p.report.missing = append(p.report.missing, prog.pkg)
		}
	}
	debian := thisRelease().debian() && look("apt-get")
	if debian {
		if _, err := p.run(ctx, "dpkg-query", "--status", libvirtDriver); err != nil {
			p.report.missing = append(p.report.missing, libvirtDriver)
		}
		if p.wantsChrony(ctx) && !look("chronyd") {
			p.report.missing = append(p.report.missing, "chrony")
		}
	}
	slices.Sort(p.report.missing)
	list := strings.Join(p.report.missing, " ")
	switch {
	case len(p.report.missing) == 0:
		return ok(name, "all are there")
	case !debian:
		return failed(name, "there is no "+strings.Join(absent, ", "), "the agent runs them", "install what has them, by the distribution's package manager")
	case !p.cfg.Packages:
		return failed(name, "missing: "+list, "the agent needs them", "apt-get install "+list)
	}
	simulate := append([]string{"--simulate", "-qq", "--no-install-recommends", "install"}, p.report.missing...)
	_, err := p.run(ctx, "apt-get", simulate...)
	if err != nil {
		// The lists may be absent, or older than the archive.
		if _, updateErr := p.run(ctx, "apt-get", "-qq", "update"); updateErr != nil {
			err = errors.Join(err, updateErr)
		} else {
			_, err = p.run(ctx, "apt-get", simulate...)
		}
	}
	if err != nil {
		return failed(name, "missing and not to be had: "+list+": "+err.Error(), "the agent needs them", "check /etc/apt/sources.list and the way to the mirror: apt-get update; apt-get install "+list)
	}
	return ok(name, "to be installed: %s", list)
}

// wantsChrony reports whether chrony is to set the clock.
func (p *preflight) wantsChrony(ctx context.Context) bool { return p.otherClock(ctx) == "" }

func (p *preflight) otherClock(ctx context.Context) string {
	for _, unit := range otherClocks {
		if active(ctx, p.cfg.Run, unit) {
			return unit
		}
	}
	return ""
}

func (p *preflight) clockDaemon(ctx context.Context) Check {
	const name = "clock"
	if unit := p.otherClock(ctx); unit != "" {
		return note(name, unit+" sets it", "it is left alone, and does not take the time from the controller", "add the controller to its servers where it has no other")
	}
	return ok(name, "chrony sets it")
}

// vxlan looks for a program that has taken the port of VXLAN. Devices of the kernel share one socket.
func (*preflight) vxlan() Check {
	const name, port = "ports", 4789
	const free = "UDP 4789 is free; no port is opened to the controller"
	links, err := netlink.LinkList()
	if err != nil {
		return failed(name, err.Error(), "", "")
	}
	if slices.ContainsFunc(links, func(l netlink.Link) bool { v, ok := l.(*netlink.Vxlan); return ok && v.Port == port }) {
		return ok(name, free)
	}
	for _, table := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		taken := bound(f, port)
		_ = f.Close()
		if taken {
			return failed(name, "a program listens at UDP 4789", "VXLAN networks use it; no other port is needed", "find it with ss -ulpn sport = 4789, and stop it")
		}
	}
	return ok(name, free)
}

// bound reports whether a table of /proc/net has a socket at a local port.
func bound(r io.Reader, port uint16) bool {
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
			return true
		}
	}
	return false
}

// conflicts looks for what else thinks that networks and guests are its own.
func (p *preflight) conflicts(ctx context.Context) []Check {
	var out []Check
	for _, c := range []struct {
		unit  string
		fatal bool
		why   string
		fix   string
	}{
		{"firewalld.service", true, "it makes the rules of the packet filter anew whenever it likes, and drops what guests send", "systemctl disable --now firewalld; what may come to the host itself can be said in /etc/nftables.conf, in a table of its own"},
		{"ufw.service", false, "it drops what is forwarded unless told otherwise, and guests' packets are", "ufw default allow routed"},
		{"dnsmasq.service", false, "Shoal's own DHCP servers run apart from it; it must not answer on guests' bridges", "put except-interface=shb* into its configuration"},
	} {
		if !active(ctx, p.cfg.Run, c.unit) {
			continue
		}
		check := note("conflict", c.unit+" runs", c.why, c.fix)
		if c.fatal {
			check.Result = Failed
		}
		out = append(out, check)
	}
	if look("virsh") && active(ctx, p.cfg.Run, "libvirtd.service") {
		if b, err := p.run(ctx, "virsh", "--connect", "qemu:///system", "net-list", "--name"); err == nil && slices.Contains(strings.Fields(string(b)), "default") {
			out = append(out, note("conflict", "libvirt's network default is up (virbr0)", "nothing of Shoal's uses it, and its addresses can't be used for networks of guests", "virsh net-destroy default; virsh net-autostart --disable default"))
		}
	}
	if len(out) == 0 {
		out = append(out, ok("conflicts", "none"))
	}
	return out
}

// identity finds who this machine is already, and reads the token.
func (p *preflight) identity() []Check {
	const name = "identity"
	s, err := install.Look(layout.AgentData, nil)
	if err != nil {
		return []Check{failed(name, err.Error(), "the agent would not start", "restore "+layout.AgentData+"/identity from a backup, or move it away")}
	}
	if s.Joined {
		check := ok(name, "this machine is host %s", s.Host)
		if p.cfg.Token != "" {
			check = note(name, check.Found, "it stays who it is, and the token is not used", "to make it another host: shoal-agent join --force")
		}
		p.token = &desired.JoinToken{URLs: s.Servers}
		return []Check{check}
	}
	if p.cfg.Token == "" {
		if s.Joining {
			return []Check{ok(name, "the agent will join with the token in %s", layout.AgentToken)}
		}
		return []Check{note(name, "there is no token", "the agent waits until it gets one", "shoalctl host token create, then shoal-agent join TOKEN")}
	}
	tok, err := desired.ParseJoinToken(p.cfg.Token)
	if err != nil {
		return []Check{failed(name, err.Error(), "the machine joins by it", "get a new one from shoalctl host token create")}
	}
	p.token = &tok
	return []Check{ok(name, "%s", tok)}
}

// controller finds out whether a controller is to be reached, and what its clock shows.
func (p *preflight) controller(ctx context.Context) []Check {
	const name = "controller"
	if p.token == nil {
		return nil
	}
	if p.token.ID == "" {
		// Who has joined has an agent that tells, and that compares clocks.
		if s, err := install.Look(layout.AgentData, nil); err == nil && s.Connection != nil && s.Agent != 0 && s.Connection.Connected {
			return []Check{ok(name, "the agent is connected to %s", s.Connection.Server)}
		}
		return ways(ctx, p.token.URLs)
	}
	c, err := install.CompareClock(ctx, *p.token)
	if pin, ok := errors.AsType[*install.PinError](err); ok && pin.Err == nil {
		return []Check{failed(name, err.Error(), "the token is good for one installation only", "check the address in the token, or get a new one")}
	}
	if err != nil {
		out := ways(ctx, p.token.URLs)
		if slices.ContainsFunc(out, func(c Check) bool { return c.Result == OK }) {
			out = append(out, note("clock", err.Error(), "a machine whose clock is wrong can't join", "compare the clocks by hand"))
		}
		return out
	}
	out := []Check{ok(name, "%s answers", strings.Join(p.token.URLs, " or "))}
	switch {
	case c.Beyond(maxSkew):
		out = append(out, failed("clock", c.String()+" of the controller's", "credentials and certificates begin and cease to hold at a time", "set it: date --utc --set="+time.Now().Add(-time.Duration(c.OffsetMS)*time.Millisecond).UTC().Format("2006-01-02T15:04:05")))
	case c.Beyond(desired.ClockTolerance):
		out = append(out, note("clock", c.String()+" of the controller's", "logs and histories of hosts are compared", "none: chrony will set it"))
	default:
		out = append(out, ok("clock", "%s of the controller's, give or take %d ms", c, c.ErrorMS))
	}
	return out
}

// ways looks for the way to each server; one is enough.
func ways(ctx context.Context, servers []string) []Check {
	const name = "controller"
	var out []Check
	reached := 0
	for _, server := range servers {
		found, why, remedy := reach(ctx, server)
		if why == "" {
			reached++
			out = append(out, ok(name, "%s", found))
		} else {
			out = append(out, note(name, found, why, remedy))
		}
	}
	if reached == 0 {
		for n := range out {
			out[n].Result = Failed
		}
	}
	return out
}

// reach finds the way to a server; why is empty where there is one.
func reach(ctx context.Context, server string) (found, why, remedy string) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" {
		return server, "it is no address", "get a new token"
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if net.ParseIP(u.Hostname()) == nil {
		if _, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err != nil {
			return err.Error(), "the controller's name must be known here", "check /etc/resolv.conf and the name server, or add the name to /etc/hosts"
		}
	}
	port := u.Port()
	if port == "" {
		port = "4222"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return fmt.Sprintf("%s: %v", server, err), "the agent dials the controller", "check the route (ip route get " + u.Hostname() + "), packet filters on the way, and whether the controller runs"
	}
	defer conn.Close()
	return fmt.Sprintf("%s answers", server), "", ""
}
