package anaconda

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"shoal/desired/kickstart"
)

// Adapted is a kickstart file in the words of one release, in one piece: what it included from its own directory is part of it.
type Adapted struct {
	Text string
	// Notes are what was put into other words, and what has no effect.
	Notes []kickstart.Note
	// Source is the command that says where packages come from, empty when none does.
	Source string
}

// Adapt puts a file that is written for Shoal's installer, or for another release, into the words of this one, and then checks it as Check
// does. It changes spellings only; what the release can't do is an error. All else, scripts above all, stays as it is.
func Adapt(src kickstart.Source, r Release) (*Adapted, error) {
	f := read(src)
	a := &adapter{file: f, release: r}
	a.clock()
	for _, it := range f.items {
		if len(it.words) > 0 {
			a.item(it)
		}
	}
	a.keys()
	f.check(r)
	notes, err := f.result()
	if err != nil {
		return nil, err
	}
	out := &Adapted{Text: f.String(), Notes: notes}
	for _, it := range f.items {
		if len(it.words) > 0 && slices.Contains([]string{"cdrom", "url", "nfs", "harddrive", "hmc", "liveimg", "ostreesetup", "ostreecontainer", "bootc"}, it.words[0]) {
			out.Source = it.words[0]
		}
	}
	return out, nil
}

type adapter struct {
	file    *file
	release Release
}

func (a *adapter) note(it *item, format string, args ...any) {
	a.file.note(it.at, fmt.Sprintf(format, args...))
}

// option is where a line has an option, its value, and how many words it takes; -1 where it has none.
func (it *item) option(name string) (at int, value string, count int) {
	for i, w := range it.words {
		if w == "--"+name {
			if i+1 < len(it.words) {
				return i, it.words[i+1], 2
			}
			return i, "", 1
		}
		if value, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			return i, value, 1
		}
	}
	return -1, "", 0
}

// replace puts other words in the place of an option.
func (it *item) replace(name string, words ...string) {
	if at, _, count := it.option(name); at >= 0 {
		it.set(slices.Replace(slices.Clone(it.words), at, at+count, words...))
	}
}

// flag puts other words in the place of an option that takes no value.
func (it *item) flag(name string, words ...string) bool {
	at := slices.Index(it.words, "--"+name)
	if at < 0 {
		return false
	}
	it.set(slices.Replace(slices.Clone(it.words), at, at+1, words...))
	return true
}

func (a *adapter) item(it *item) {
	switch it.words[0] {
	case "network":
		a.network(it)
	case "firewall":
		a.firewall(it)
	case "rootpw":
		if a.release < 9 && it.flag("allow-ssh") {
			a.note(it, "rootpw --allow-ssh is left out: in RHEL %d root may log in by password over SSH anyway", a.release)
		}
	case "%packages":
		a.packages(it)
		a.environment(it)
	}
}

// network: Anaconda wants a netmask in dots, and names of interfaces in a bond.
func (a *adapter) network(it *item) {
	if _, mask, _ := it.option("netmask"); mask != "" {
		if bits, err := strconv.Atoi(mask); err == nil && bits >= 0 && bits <= 32 {
			it.replace("netmask", "--netmask="+net.IP(net.CIDRMask(bits, 32)).String())
		}
	}
	for _, name := range []string{"bondslaves", "bridgeslaves"} {
		_, list, _ := it.option(name)
		for slave := range strings.SplitSeq(list, ",") {
			if _, err := net.ParseMAC(slave); err == nil {
				a.file.fail(it.at, fmt.Sprintf("network: Anaconda takes names of interfaces for --%s, not the MAC %s", name, slave),
					fmt.Sprintf("name the interface at the start of the installer, with --boot-arg ifname=nic0:%s, and write nic0 here", slave))
			}
		}
	}
}

// firewall: firewalld has no service for VXLAN, and Anaconda wants port:protocol.
func (a *adapter) firewall(it *item) {
	_, list, _ := it.option("service")
	services := strings.Split(list, ",")
	if at := slices.Index(services, "vxlan"); at >= 0 {
		services = slices.Delete(services, at, at+1)
		words := []string{"--port=4789:udp"}
		if len(services) > 0 {
			words = append([]string{"--service=" + strings.Join(services, ",")}, words...)
		}
		it.replace("service", words...)
	}
	words := slices.Clone(it.words)
	for i, w := range words {
		if ports, ok := strings.CutPrefix(w, "--port="); ok {
			words[i] = "--port=" + strings.ReplaceAll(ports, "/", ":")
		}
	}
	if !slices.Equal(words, it.words) {
		it.set(words)
	}
}

func (a *adapter) packages(it *item) {
	it.flag("exclude-docs", "--excludedocs")
	_, langs, _ := it.option("inst-langs")
	_, old, _ := it.option("instLangs")
	if a.release < 9 {
		it.replace("inst-langs", "--instLangs="+langs)
	} else {
		it.replace("instLangs", "--inst-langs="+old)
	}
	for _, name := range []string{"exclude-weakdeps", "excludeWeakdeps"} {
		switch {
		case a.release >= 9:
			it.flag(name, "--exclude-weakdeps")
		case a.release == 8:
			it.flag(name, "--excludeWeakdeps")
		case it.flag(name):
			a.note(it, "%%packages --%s is left out: packages of RHEL %d have no weak dependencies", name, a.release)
		}
	}
}

// environment: the smallest installation has another name in release 7.
func (a *adapter) environment(it *item) {
	from, to := "@^minimal", "@^minimal-environment"
	if a.release == 7 {
		from, to = to, from
	}
	for i, line := range it.body {
		if strings.TrimSpace(line) == from {
			it.body[i] = to
			a.note(it, "%s became %s, as RHEL %d has it", from, to, a.release)
		}
	}
}

// clock: what timesource says is said by timezone up to release 8, and the other way round from 9 on.
func (a *adapter) clock() {
	f := a.file
	var zone *item
	var sources []*item
	for _, it := range f.items {
		switch {
		case it.section || len(it.words) == 0:
		case it.words[0] == "timezone":
			zone = it
			it.flag("isUtc", "--utc")
		case it.words[0] == "timesource":
			sources = append(sources, it)
		}
	}
	if a.release >= 9 {
		a.timesource(zone)
		return
	}
	if len(sources) == 0 {
		return
	}
	var servers []string
	var off bool
	for _, it := range sources {
		if slices.Contains(it.words, "--nts") {
			f.fail(it.at, fmt.Sprintf("timesource: RHEL %d can't set up --nts", a.release), "leave it out, or write chrony's configuration in %post")
		}
		for _, name := range []string{"ntp-server", "ntp-pool"} {
			if _, value, _ := it.option(name); value != "" {
				servers = append(servers, value)
			}
		}
		off = off || slices.Contains(it.words, "--ntp-disable")
		f.items = slices.DeleteFunc(f.items, func(other *item) bool { return other == it })
	}
	if zone == nil {
		zone = &item{at: sources[0].at, words: []string{"timezone"}}
		f.items = append([]*item{zone}, f.items...)
	}
	words := slices.Clone(zone.words)
	if off {
		words = append(words, "--nontp")
	}
	if len(servers) > 0 {
		if _, more, _ := zone.option("ntpservers"); more != "" {
			servers = append(strings.Split(more, ","), servers...)
			zone.replace("ntpservers")
			words = slices.Clone(zone.words)
		}
		words = append(words, "--ntpservers="+strings.Join(servers, ","))
	}
	zone.set(words)
	a.note(sources[0], "timesource became timezone --ntpservers, as RHEL %d has it", a.release)
}

func (a *adapter) timesource(zone *item) {
	if zone == nil {
		return
	}
	_, list, _ := zone.option("ntpservers")
	var added []*item
	add := func(option string) {
		it := &item{at: zone.at}
		it.set([]string{"timesource", option})
		added = append(added, it)
	}
	for server := range strings.SplitSeq(list, ",") {
		if server != "" {
			add("--ntp-server=" + server)
		}
	}
	zone.replace("ntpservers")
	if zone.flag("nontp") {
		add("--ntp-disable")
	}
	if len(added) > 0 {
		at := slices.Index(a.file.items, zone)
		a.file.items = slices.Insert(a.file.items, at+1, added...)
		a.note(zone, "timezone --ntpservers and --nontp became timesource, as RHEL %d has it", a.release)
	}
}

// keys: release 7 has no sshkey, so a script does it.
func (a *adapter) keys() {
	if a.release > 7 {
		return
	}
	script := &item{section: true, raw: "%post --erroronfail", words: []string{"%post", "--erroronfail"}}
	for _, it := range a.file.items {
		if it.section || len(it.words) == 0 || it.words[0] != "sshkey" {
			continue
		}
		_, user, count := it.option("username")
		rest := it.words[1:]
		if at, _, _ := it.option("username"); at > 0 {
			rest = slices.Delete(slices.Clone(rest), at-1, at-1+count)
		}
		if user == "" || len(rest) != 1 {
			a.file.fail(it.at, "sshkey needs --username and a public key in quotes", "")
			continue
		}
		if len(script.body) == 0 {
			script.at = it.at
			script.body = strings.Split(strings.TrimSuffix(putKey, "\n"), "\n")
			a.note(it, "sshkey became a script, as RHEL %d has none", a.release)
		}
		script.body = append(script.body, "put "+shell(user)+" "+shell(rest[0]))
		it.words, it.raw = nil, "# sshkey --username="+user+": see the last %post"
	}
	if len(script.body) > 0 {
		a.file.items = append(a.file.items, script)
	}
}

// putKey is how a script lets a key log in as a user.
const putKey = `put() {
	home=$(getent passwd "$1" | cut -d: -f6)
	[ -n "$home" ] || { echo "there is no user $1"; exit 1; }
	mkdir -p "$home/.ssh" && printf '%s\n' "$2" >>"$home/.ssh/authorized_keys" || exit 1
	chmod 700 "$home/.ssh" && chmod 600 "$home/.ssh/authorized_keys" && chown -R "$1:" "$home/.ssh" || exit 1
	! command -v restorecon >/dev/null || restorecon -R "$home/.ssh"
}
`

func shell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
