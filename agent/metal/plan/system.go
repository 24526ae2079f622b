package plan

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"shoal/agent/host"
	"shoal/desired/kickstart"
)

// system plans what the unpacked system is told: names, clock, users, services, filter.
func (p *planner) system() {
	k := p.ks
	name := cmp.Or(k.Hostname, "shoal-host")
	short, _, dotted := strings.Cut(name, ".")
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + name
	if dotted {
		hosts += " " + short
	}
	p.text("/etc/hostname", name+"\n")
	p.text("/etc/hosts", hosts+"\n")
	p.text("/etc/fstab", "# Written by Shoal's installer.\n"+strings.Join(p.fstab, "\n")+"\n")
	// Names of the machine that others know it by; the image has none.
	p.text("/etc/nvme/hostid", p.uuid("nvme")+"\n")
	p.text("/etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:"+p.uuid("nvme")+"\n")
	p.out.Files = append(p.out.Files, File{Path: "/etc/iscsi/initiatorname.iscsi", Mode: 0o600, Content: "InitiatorName=iqn.1993-08.org.debian:01:" + p.uuid("iscsi")[:8] + "\n"})
	p.language()
	p.clock()
	p.people()
	for _, c := range k.Certificates {
		p.text("/usr/local/share/ca-certificates/"+strings.TrimSuffix(c.Name, path.Ext(c.Name))+".crt", c.PEM)
	}
	if len(k.Certificates) > 0 {
		p.inside("trust certificates", "", "update-ca-certificates")
	}
	p.firewall()
	on, off := Units(k, p.m)
	if len(on) > 0 {
		p.inside("enable services", "", "systemctl", append([]string{"enable", "--quiet"}, on...)...)
	}
	if len(off) > 0 {
		p.inside("disable services", "", "systemctl", append([]string{"disable", "--quiet"}, off...)...)
	}
	p.say("the machine will be called %s", name)
}

func (p *planner) text(name, content string) {
	p.out.Files = append(p.out.Files, File{Path: name, Mode: 0o644, Content: content})
}

// inside plans a command that runs in the target.
func (p *planner) inside(say, stdin, name string, args ...string) {
	p.out.Inside = append(p.out.Inside, Step{Say: say, Command: host.Command{Name: name, Args: args, Stdin: []byte(stdin)}})
}

// language sets language and keyboard.
func (p *planner) language() {
	lang := cmp.Or(p.ks.Lang, "C.UTF-8")
	if base, charset, ok := strings.Cut(lang, "."); lang != "C" && lang != "POSIX" {
		if ok && !strings.EqualFold(strings.ReplaceAll(strings.SplitN(charset, "@", 2)[0], "-", ""), "utf8") {
			p.fail(kickstart.Pos{File: p.file()}, "write "+base+".UTF-8", "lang: %s is not UTF-8", lang)
		}
		if !ok {
			stem, modifier, has := strings.Cut(lang, "@")
			if lang = stem + ".UTF-8"; has {
				lang += "@" + modifier
			}
		}
	}
	p.text("/etc/default/locale", "LANG="+lang+"\n")
	if base, _, _ := strings.Cut(lang, "."); base != "C" && base != "POSIX" {
		if len(p.m.Locales) > 0 && !slices.Contains(p.m.Locales, lang) {
			p.fail(kickstart.Pos{File: p.file()}, "", "lang: the image has no locale %s", lang)
		}
		p.text("/etc/locale.gen", lang+" UTF-8\n")
		p.inside("make the locale "+lang, "", "locale-gen")
	}
	layout, variant, _ := strings.Cut(cmp.Or(p.ks.Keyboard, "us"), " ")
	p.text("/etc/default/keyboard", fmt.Sprintf("XKBMODEL=\"pc105\"\nXKBLAYOUT=%q\nXKBVARIANT=%q\nXKBOPTIONS=\"\"\nBACKSPACE=\"guess\"\n", layout, strings.Trim(variant, "()")))
}

func (p *planner) clock() {
	zone := cmp.Or(p.ks.Timezone, "Etc/UTC")
	if len(p.m.Zones) > 0 && !slices.Contains(p.m.Zones, zone) {
		p.fail(kickstart.Pos{File: p.file()}, "", "timezone: there is no time zone %s", zone)
	}
	p.out.Files = append(p.out.Files, File{Path: "/etc/localtime", Link: "/usr/share/zoneinfo/" + zone})
	p.text("/etc/timezone", zone+"\n")
	mode := "UTC"
	if p.ks.LocalClock {
		mode = "LOCAL"
	}
	p.text("/etc/adjtime", "0.0 0 0.0\n0\n"+mode+"\n")
	if p.ks.NoNTP {
		p.inside("disable the clock's synchronisation", "", "systemctl", "disable", "--quiet", "chrony.service")
		return
	}
	if len(p.ks.NTP) == 0 {
		return
	}
	var conf strings.Builder
	conf.WriteString("# Written by Shoal's installer.\n")
	for _, s := range p.ks.NTP {
		if !strings.HasPrefix(s, "pool ") {
			s = "server " + s
		}
		conf.WriteString(s + " iburst\n")
	}
	p.text("/etc/chrony/chrony.conf", conf.String()+"confdir /etc/chrony/conf.d\ndriftfile /var/lib/chrony/chrony.drift\nntsdumpdir /var/lib/chrony\nlogdir /var/log/chrony\nmakestep 1 3\nrtcsync\nleapsectz right/UTC\n")
}

// people makes groups, users, passwords and keys. Passwords go over standard input, which nobody can list.
func (p *planner) people() {
	k := p.ks
	for _, g := range k.Groups {
		args := []string{"--force"}
		if g.GID > 0 {
			args = append(args, "--gid", fmt.Sprint(g.GID))
		}
		p.inside("make the group "+g.Name, "", "groupadd", append(args, g.Name)...)
	}
	for _, u := range k.Users {
		for _, g := range u.Groups {
			p.inside("make the group "+g, "", "groupadd", "--force", g)
		}
		args := []string{"--create-home", "--shell", cmp.Or(u.Shell, "/bin/bash")}
		for _, o := range [][2]string{{"--comment", u.Gecos}, {"--home-dir", u.Home}, {"--groups", strings.Join(u.Groups, ",")}} {
			if o[1] != "" {
				args = append(args, o[0], o[1])
			}
		}
		if u.UID > 0 {
			args = append(args, "--uid", fmt.Sprint(u.UID))
		}
		if u.GID > 0 {
			args = append(args, "--gid", fmt.Sprint(u.GID))
		}
		p.inside("make the user "+u.Name, "", "useradd", append(args, u.Name)...)
		p.password(u.Name, u)
	}
	if k.Root != nil {
		p.password("root", *k.Root)
		if k.Root.SSHPassword {
			p.text("/etc/ssh/sshd_config.d/shoal.conf", "PermitRootLogin yes\n")
		}
	}
	keys := map[string]string{}
	for _, key := range k.Keys {
		keys[key.User] += key.Line + "\n"
	}
	for _, user := range sortedKeys(keys) {
		// The home directory is asked of the system; the shell gets the user as an argument, never as text.
		p.inside("install keys of "+user, keys[user], "sh", "-ec", `home=$(getent passwd "$1" | cut -d: -f6); install -d -m 700 -o "$1" -g "$(id -gn "$1")" "$home/.ssh"
cat >>"$home/.ssh/authorized_keys"; chmod 600 "$home/.ssh/authorized_keys"; chown "$1:$(id -gn "$1")" "$home/.ssh/authorized_keys"`, "sh", user)
	}
}

func (p *planner) password(user string, a kickstart.Account) {
	if a.Password != "" {
		var args []string
		if a.Crypted {
			args = []string{"--encrypted"}
		}
		p.inside("set the password of "+user, user+":"+a.Password+"\n", "chpasswd", args...)
	}
	if a.Lock {
		p.inside("lock the password of "+user, "", "usermod", "--lock", user)
	}
}

// firewall writes rules for what comes to the host itself. They are a table of their own, so that starting them anew leaves alone what the agent has
// set for guests.
func (p *planner) firewall() {
	f := p.ks.Firewall
	if f == nil || !f.Enabled {
		return
	}
	var rules []string
	for _, t := range f.Trust {
		rules = append(rules, fmt.Sprintf("iifname %q accept", t))
	}
	for _, s := range f.Services {
		for _, port := range kickstart.ServicePorts[s] {
			rules = append(rules, fmt.Sprintf("%s dport %s accept comment %q", port.Protocol, ports(port), s))
		}
	}
	for _, port := range f.Ports {
		rules = append(rules, fmt.Sprintf("%s dport %s accept", port.Protocol, ports(port)))
	}
	p.text("/etc/nftables.conf", `#!/usr/sbin/nft -f
# Written by Shoal's installer: what may come to the host itself. What guests may do is the agent's, in other tables.
table inet shoal_host
delete table inet shoal_host
table inet shoal_host {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iif lo accept
    meta l4proto { icmp, ipv6-icmp, igmp } accept
    `+strings.Join(rules, "\n    ")+`
  }
}
`)
	p.inside("enable the packet filter", "", "systemctl", "enable", "--quiet", "nftables.service")
}

func ports(p kickstart.Port) string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}
