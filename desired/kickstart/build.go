package kickstart

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	userName   = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	hostName   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	deviceName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`)
	volumeName = regexp.MustCompile(`^[a-zA-Z0-9_+][a-zA-Z0-9_+.-]{0,126}$`)
	locale     = regexp.MustCompile(`^[a-zA-Z]{1,8}(_[A-Z]{2})?(\.[A-Za-z0-9-]+)?(@[a-z]+)?$`)
	zone       = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$`)
	layout     = regexp.MustCompile(`^[a-z0-9_-]+( \([a-z0-9_-]+\))?$`)
	crypted    = regexp.MustCompile(`^(!|\*|\$[0-9a-z]+\$[^:\s]+|[./0-9A-Za-z]{13})$`)
	publicKey  = regexp.MustCompile(`^(ssh|ecdsa|sk-)[a-z0-9@.-]* [A-Za-z0-9+/=]+( [^\r\n]*)?$`)
	mountPoint = regexp.MustCompile(`^/[A-Za-z0-9/_.+@-]*$`)
	member     = regexp.MustCompile(`^(pv|raid)\.[A-Za-z0-9_-]+$`)
	options    = regexp.MustCompile(`^[A-Za-z0-9_=,.:+/-]+$`)
	word       = regexp.MustCompile(`^[A-Za-z0-9@:_.+-]+$`)
)

// build turns commands into the Kickstart, and checks what one line, or the lines together, can be checked for.
func (p *parser) build() {
	p.ks.Boot.Timeout = -1
	for _, c := range p.commands {
		switch c.name {
		case "lang":
			p.ks.Lang = p.match(c, locale, strings.Join(c.args, " "), "a locale such as C.UTF-8 or de_DE.UTF-8")
		case "keyboard":
			p.keyboard(c)
		case "timezone", "timesource":
			p.clock(c)
		case "rootpw":
			p.ks.Root = p.account(c)
		case "user":
			p.ks.Users = append(p.ks.Users, *p.account(c))
		case "group":
			p.ks.Groups = append(p.ks.Groups, Group{c.at, p.match(c, userName, c.opts["name"], "a name of a group"), c.number("gid")})
		case "sshkey":
			p.key(c)
		case "network":
			p.network(c)
		case "ignoredisk", "clearpart", "zerombr":
			p.disks(c)
		case "reqpart":
			p.ks.Require, p.ks.AddBoot = true, c.has("add-boot")
		case "autopart":
			p.auto(c)
		case "part", "raid", "volgroup", "logvol":
			p.storage(c)
		case "bootloader":
			p.bootloader(c)
		case "services":
			for _, s := range c.list("enabled") {
				p.ks.Services.Enabled = append(p.ks.Services.Enabled, Named{p.match(c, word, s, "a service"), c.at})
			}
			for _, s := range c.list("disabled") {
				p.ks.Services.Disabled = append(p.ks.Services.Disabled, Named{p.match(c, word, s, "a service"), c.at})
			}
		case "firewall":
			p.firewall(c)
		case "reboot", "poweroff", "shutdown", "halt":
			p.end(c)
		}
	}
	p.together()
}

// match gives the value when it has the form, else fails and gives nothing.
func (p *parser) match(c *command, form *regexp.Regexp, value, what string) string {
	if !form.MatchString(value) {
		p.fail(c.at, "", "%s: %q is not %s", c.name, value, what)
		return ""
	}
	return value
}

func (p *parser) keyboard(c *command) {
	var given []string
	for _, s := range []string{c.opts["vckeymap"], strings.Join(splitList(c.opts["xlayouts"])[:min(1, len(splitList(c.opts["xlayouts"])))], ""), strings.Join(c.args, "")} {
		if s != "" {
			given = append(given, s)
		}
	}
	if len(given) == 0 {
		p.fail(c.at, "", "keyboard needs a layout")
		return
	}
	p.ks.Keyboard = p.match(c, layout, given[0], "a keyboard layout such as us or de")
}

func (p *parser) clock(c *command) {
	if c.name == "timezone" {
		if len(c.args) == 1 {
			p.ks.Timezone = p.match(c, zone, c.args[0], "a time zone such as Etc/UTC or Europe/Berlin")
		}
		p.ks.LocalClock = len(c.args) == 1 && !c.has("utc") && !c.has("isUtc")
		p.ks.NoNTP = p.ks.NoNTP || c.has("nontp")
		for _, s := range c.list("ntpservers") {
			p.server(c, s, "")
		}
		return
	}
	p.ks.NoNTP = p.ks.NoNTP || c.has("ntp-disable")
	suffix := ""
	if c.has("nts") {
		suffix = " nts"
	}
	n := 0
	for option, kind := range map[string]string{"ntp-server": "", "ntp-pool": "pool "} {
		if s := c.opts[option]; s != "" {
			n++
			if p.server(c, s, kind) {
				p.ks.NTP[len(p.ks.NTP)-1] += suffix
			}
		}
	}
	if n == 2 || n == 0 && !c.has("ntp-disable") {
		p.fail(c.at, "", "timesource needs one of --ntp-server, --ntp-pool and --ntp-disable")
	}
}

func (p *parser) server(c *command, s, kind string) bool {
	if _, err := netip.ParseAddr(s); err != nil && !hostName.MatchString(s) {
		p.fail(c.at, "", "%s: %q is not a name or an address", c.name, s)
		return false
	}
	p.ks.NTP = append(p.ks.NTP, kind+s)
	return true
}

func (p *parser) account(c *command) *Account {
	a := &Account{
		At: c.at, Name: c.opts["name"], Gecos: c.opts["gecos"], Groups: c.list("groups"), Home: c.opts["homedir"], Shell: c.opts["shell"], UID: c.number("uid"), GID: c.number("gid"),
		Password: c.opts["password"], Crypted: c.has("iscrypted"), Lock: c.has("lock"), SSHPassword: c.has("allow-ssh"),
	}
	if c.name == "rootpw" {
		a.Password = strings.Join(c.args, "")
		if a.Password == "" && !a.Lock {
			p.fail(c.at, "", "rootpw needs a password or --lock")
		}
	} else {
		p.match(c, userName, a.Name, "a name of a user (--name)")
		if a.Name == "root" {
			p.fail(c.at, "use rootpw and sshkey", "user: root is there already")
		}
		for i, g := range a.Groups {
			// Anaconda takes "name(gid)"; the gid is not needed where the group line says it.
			name, gid, isPair := strings.Cut(strings.TrimSuffix(g, ")"), "(")
			a.Groups[i] = p.match(c, userName, name, "a name of a group")
			if n, err := strconv.Atoi(gid); isPair && (err != nil || n <= 0) {
				p.fail(c.at, "", "user: %q is not a group", g)
			} else if isPair {
				p.ks.Groups = append(p.ks.Groups, Group{c.at, name, n})
			}
		}
		for _, s := range []string{a.Home, a.Shell} {
			if s != "" {
				p.match(c, mountPoint, s, "an absolute path")
			}
		}
		if strings.ContainsAny(a.Gecos, ":\n") {
			p.fail(c.at, "", "user: --gecos can't hold a colon")
		}
	}
	switch {
	case c.has("iscrypted") && c.has("plaintext"):
		p.fail(c.at, "", "%s: --iscrypted and --plaintext exclude each other", c.name)
	case a.Crypted && !crypted.MatchString(a.Password):
		p.fail(c.at, "make one with: openssl passwd -6", "%s: the password is no hash of crypt(3)", c.name)
	case strings.ContainsAny(a.Password, "\n\r") || !a.Crypted && strings.ContainsRune(a.Password, 0):
		p.fail(c.at, "", "%s: the password holds a line break", c.name)
	}
	return a
}

func (p *parser) key(c *command) {
	user := c.opts["username"]
	line := strings.TrimSpace(strings.Join(c.args, " "))
	if user == "" {
		p.fail(c.at, "", "sshkey needs --username")
	}
	if !publicKey.MatchString(line) {
		p.fail(c.at, "quote the whole line of the .pub file", "sshkey: this is not a public key")
		return
	}
	p.ks.Keys = append(p.ks.Keys, Key{c.at, user, line})
}

func (p *parser) network(c *command) {
	if h := c.opts["hostname"]; h != "" {
		if p.ks.Hostname = p.match(c, hostName, h, "a host name"); len(h) > 64 {
			p.fail(c.at, "", "network: the host name is longer than 64 characters")
		}
	}
	only := len(c.opts) == 1 && c.has("hostname")
	if only || len(c.opts) == 0 {
		if !only {
			p.fail(c.at, "", "network: nothing is said")
		}
		return
	}
	n := Network{
		At: c.at, Device: c.opts["device"], NoRoute: c.has("nodefroute"), IgnoreDNS: c.has("nodns") || c.has("ipv4-ignore-auto-dns"), MTU: c.number("mtu"), VLAN: c.number("vlanid"),
		Bond: c.list("bondslaves"), Bridge: c.list("bridgeslaves"),
		Search: append(c.list("ipv4-dns-search"), c.list("ipv6-dns-search")...),
	}
	if n.Device == "" {
		n.Device = "link"
	}
	if mac, err := net.ParseMAC(n.Device); err == nil && len(mac) == 6 {
		n.Device = mac.String()
	} else if n.Device != "link" && n.Device != "bootif" {
		p.match(c, deviceName, n.Device, "a network device, a MAC, link or bootif")
	}
	n.Name = n.Device
	p.stacked(c, &n)
	p.addresses(c, &n)
	if v := c.opts["onboot"]; v != "" {
		yes, _ := yesNo(v)
		n.Down = !yes
	}
	n.Down = n.Down || c.has("no-activate")
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		p.fail(c.at, "", "network: an MTU of %d is not between 576 and 65535", n.MTU)
	}
	for _, s := range n.Search {
		p.match(c, hostName, s, "a domain")
	}
	p.ks.Networks = append(p.ks.Networks, n)
}

// stacked reads what makes a device out of others.
func (p *parser) stacked(c *command, n *Network) {
	if c.has("vlanid") {
		if n.VLAN < 1 || n.VLAN > 4094 {
			p.fail(c.at, "", "network: VLAN %d is not between 1 and 4094", n.VLAN)
		}
		n.Name = n.Device + "." + strconv.Itoa(n.VLAN)
		if s := c.opts["interfacename"]; s != "" {
			n.Name = s
		} else if strings.Contains(n.Device, ":") || n.Device == "link" || n.Device == "bootif" {
			p.fail(c.at, "give it one with --interfacename", "network: the VLAN on %s needs a name", n.Device)
			return
		}
		p.match(c, deviceName, n.Name, "a name of at most 15 characters for the VLAN (--interfacename)")
	} else if c.has("interfacename") {
		p.fail(c.at, "", "network: --interfacename names a VLAN; there is no --vlanid")
	}
	for _, s := range slices.Concat(n.Bond, n.Bridge) {
		if mac, err := net.ParseMAC(s); err != nil || len(mac) != 6 {
			p.match(c, deviceName, s, "a network device or a MAC")
		}
	}
	if len(n.Bond) > 0 && len(n.Bridge) > 0 {
		p.fail(c.at, "write two lines: the bond, and the bridge with the bond as its slave", "network: one device can't be a bond and a bridge")
	}
	if (len(n.Bond) > 0 || len(n.Bridge) > 0) && !deviceName.MatchString(n.Device) {
		p.fail(c.at, "", "network: a bond or bridge needs a name (--device)")
	}
	n.BondOptions = p.pairs(c, "bondopts", len(n.Bond) > 0, bondOptions)
	n.BridgeOptions = p.pairs(c, "bridgeopts", len(n.Bridge) > 0, bridgeOptions)
}

// bondOptions and bridgeOptions are what can be set on such devices, with the form of the value. They are read only.
var (
	bondOptions = map[string]string{
		"mode": `^(balance-rr|active-backup|balance-xor|broadcast|802\.3ad|balance-tlb|balance-alb|[0-6])$`, "miimon": `^[0-9]{1,6}$`, "updelay": `^[0-9]{1,6}$`, "downdelay": `^[0-9]{1,6}$`,
		"lacp_rate": `^(slow|fast|0|1)$`, "xmit_hash_policy": `^(layer2|layer2\+3|layer3\+4|encap2\+3|encap3\+4|vlan\+srcmac)$`, "primary": `^[A-Za-z0-9_.-]{1,15}$`,
		"min_links": `^[0-9]{1,3}$`, "ad_select": `^(stable|bandwidth|count)$`, "fail_over_mac": `^(none|active|follow)$`, "primary_reselect": `^(always|better|failure)$`,
	}
	bridgeOptions = map[string]string{
		"stp": `^(yes|no|on|off|true|false)$`, "priority": `^[0-9]{1,5}$`, "forward-delay": `^[0-9]{1,2}$`, "hello-time": `^[0-9]{1,2}$`, "max-age": `^[0-9]{1,2}$`, "ageing-time": `^[0-9]{1,7}$`,
	}
)

func (p *parser) pairs(c *command, option string, fits bool, known map[string]string) map[string]string {
	s, ok := c.opts[option]
	if !ok {
		return nil
	}
	if !fits {
		p.fail(c.at, "", "network: --%s without the devices that it is for", option)
		return nil
	}
	out := map[string]string{}
	for _, pair := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ';' }) {
		k, v, _ := strings.Cut(pair, "=")
		form, ok := known[k]
		if !ok {
			p.fail(c.at, "", "network: --%s has no %q", option, k)
		} else if !regexp.MustCompile(form).MatchString(v) {
			p.fail(c.at, "", "network: --%s: %s can't be %q", option, k, v)
		}
		out[k] = v
	}
	return out
}

func (p *parser) addresses(c *command, n *Network) {
	proto := c.opts["bootproto"]
	if proto == "ibft" || proto == "query" {
		p.fail(c.at, "use static or dhcp", "network: --bootproto=%s can't be used", proto)
	}
	if ip := c.opts["ip"]; ip != "" {
		if proto == "dhcp" || proto == "bootp" {
			p.fail(c.at, "", "network: --ip and --bootproto=%s exclude each other", proto)
		}
		n.Static = p.prefix(c, ip, c.opts["netmask"])
	} else {
		if proto == "static" && !c.has("noipv4") && !c.has("ipv6") {
			p.fail(c.at, "", "network: --bootproto=static needs --ip")
		}
		if c.has("netmask") {
			p.fail(c.at, "", "network: --netmask without --ip")
		}
		n.DHCP = !c.has("noipv4") && proto != "static"
	}
	if c.has("noipv4") && c.has("ip") {
		p.fail(c.at, "", "network: --ip and --noipv4 exclude each other")
	}
	switch v := c.opts["ipv6"]; {
	case v != "" && c.has("noipv6"):
		p.fail(c.at, "", "network: --ipv6 and --noipv6 exclude each other")
	case v == "auto" || v == "dhcp" || v == "" && !c.has("noipv6"):
		n.Auto6 = true
	case v != "":
		prefix, err := netip.ParsePrefix(v)
		if err != nil || !prefix.Addr().Is6() || prefix.Addr().Zone() != "" {
			p.fail(c.at, "", "network: --ipv6 is %q, not auto, dhcp or an address/length", v)
		}
		n.Static6 = prefix
	}
	n.Gateway = p.addr(c, "gateway", true)
	n.Gateway6 = p.addr(c, "ipv6gateway", false)
	if n.Gateway.IsValid() && n.Static.IsValid() && !n.Static.Masked().Contains(n.Gateway) {
		p.fail(c.at, "", "network: the gateway %s is not in %s", n.Gateway, n.Static.Masked())
	}
	for _, s := range c.list("nameserver") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			p.fail(c.at, "", "network: the name server %q is not an address", s)
			continue
		}
		n.DNS = append(n.DNS, a)
	}
}

func (p *parser) prefix(c *command, ip, mask string) netip.Prefix {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Is4() {
		p.fail(c.at, "", "network: --ip is %q, not an IPv4 address", ip)
		return netip.Prefix{}
	}
	if mask == "" {
		p.fail(c.at, "", "network: --ip needs --netmask")
		return netip.Prefix{}
	}
	bits, err := strconv.Atoi(mask)
	if m := net.ParseIP(mask).To4(); m != nil {
		ones, size := net.IPMask(m).Size()
		if bits, err = ones, nil; size == 0 {
			err = net.InvalidAddrError("not contiguous")
		}
	}
	if err != nil || bits < 1 || bits > 32 {
		p.fail(c.at, "", "network: --netmask is %q, not a netmask", mask)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}

func (p *parser) addr(c *command, option string, four bool) netip.Addr {
	s := c.opts[option]
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() != four || a.Zone() != "" {
		p.fail(c.at, "", "network: --%s is %q, not an address of that kind", option, s)
		return netip.Addr{}
	}
	return a
}

func (p *parser) disks(c *command) {
	d := &p.ks.Disks
	switch c.name {
	case "zerombr":
		d.ZeroMBR = true
	case "ignoredisk":
		d.OnlyUse, d.Ignore = c.list("only-use"), c.list("drives")
		d.OnlyUseAt, d.IgnoreAt = c.at, c.at
		if len(d.OnlyUse) > 0 && len(d.Ignore) > 0 {
			p.fail(c.at, "", "ignoredisk: --only-use and --drives exclude each other")
		}
		if len(d.OnlyUse) == 0 && len(d.Ignore) == 0 {
			p.fail(c.at, "", "ignoredisk needs --only-use or --drives")
		}
	case "clearpart":
		d.ClearAt, d.ClearAll, d.ClearDisks = c.at, c.has("all"), c.list("drives")
		if c.has("all") && c.has("none") {
			p.fail(c.at, "", "clearpart: --all and --none exclude each other")
		}
		if c.opts["disklabel"] == "msdos" {
			p.fail(c.at, "", "clearpart: --disklabel=msdos can't be used: disks get a GPT, which starts on BIOS and UEFI")
		}
		if len(d.ClearDisks) > 0 && !d.ClearAll {
			p.fail(c.at, "add --all", "clearpart: --drives without --all clears nothing")
		}
	}
	for _, s := range slices.Concat(d.OnlyUse, d.Ignore, d.ClearDisks) {
		p.diskSpec(c, s)
	}
}

// diskSpec checks how a disk is named: a kernel name or a path below /dev, with shell wildcards.
func (p *parser) diskSpec(c *command, s string) {
	if _, err := path.Match(s, ""); err != nil || strings.ContainsAny(s, " \t") || strings.Contains(s, "..") {
		p.fail(c.at, "", "%s: %q is not a disk", c.name, s)
	}
}

func (p *parser) auto(c *command) {
	a := &Auto{At: c.at, LVM: !c.has("nolvm"), Type: c.opts["fstype"], NoHome: c.has("nohome"), NoBoot: c.has("noboot"), NoSwap: c.has("noswap")}
	switch c.opts["type"] {
	case "plain":
		a.LVM = false
	case "btrfs", "thinp":
		p.fail(c.at, "use plain or lvm", "autopart: --type=%s is not supported", c.opts["type"])
	}
	p.ks.Auto = a
}

func (p *parser) format(c *command) Format {
	f := Format{Type: c.opts["fstype"], Options: c.opts["fsoptions"], Label: c.opts["label"]}
	if len(c.args) > 0 {
		f.Mount = c.args[0]
	}
	if f.Type == "efi" {
		f.Type = "vfat"
	}
	if f.Options != "" {
		p.match(c, options, f.Options, "mount options")
	}
	if f.Label != "" {
		if p.match(c, word, f.Label, "a label"); len(f.Label) > 12 {
			p.fail(c.at, "", "%s: the label %q is longer than 12 characters", c.name, f.Label)
		}
	}
	switch {
	case f.Mount == "swap" || f.Mount == "biosboot" && c.name == "part" || member.MatchString(f.Mount) && (c.name == "part" || c.name == "raid" && f.IsPV()):
		if want := map[string]string{"swap": "swap", "biosboot": "biosboot"}[f.Mount]; f.Type != "" && f.Type != want && f.Type != "lvmpv" && f.Type != "mdmember" {
			p.fail(c.at, "", "%s: %s can't have a file system %s", c.name, f.Mount, f.Type)
		}
		f.Type = ""
	case !mountPoint.MatchString(f.Mount) || path.Clean(f.Mount) != f.Mount:
		p.fail(c.at, "", "%s: %q is not a mount point", c.name, f.Mount)
	case slices.Contains([]string{"swap", "biosboot", "lvmpv", "mdmember"}, f.Type):
		p.fail(c.at, "", "%s: %s can't have a file system %s", c.name, f.Mount, f.Type)
	case f.Mount == "/boot/efi":
		if f.Type == "" {
			f.Type = "vfat"
		}
		if f.Type != "vfat" {
			p.fail(c.at, "", "%s: firmware reads FAT only, so /boot/efi can't be %s", c.name, f.Type)
		}
	case f.Type == "vfat" && (f.Mount == "/" || f.Mount == "/boot"):
		p.fail(c.at, "", "%s: %s can't be FAT", c.name, f.Mount)
	case slices.ContainsFunc(kernelPaths, func(s string) bool { return f.Mount == s || strings.HasPrefix(f.Mount, s+"/") }):
		p.fail(c.at, "", "%s: %s can't be a file system of its own", c.name, f.Mount)
	case slices.Contains([]string{"/bin", "/etc", "/lib", "/lib64", "/root", "/sbin", "/usr", "/mnt"}, f.Mount):
		p.fail(c.at, "", "%s: %s must be on the root file system", c.name, f.Mount)
	}
	return f
}

// kernelPaths are made by the kernel or at every start. It is read only.
var kernelPaths = []string{"/proc", "/sys", "/dev", "/run"}

func (p *parser) space(c *command) Space {
	s := Space{Size: c.number("size"), Max: c.number("maxsize"), Grow: c.has("grow"), Recommended: c.has("recommended"), Percent: c.number("percent")}
	ways := 0
	for _, given := range []bool{c.has("size"), s.Recommended, c.has("percent")} {
		if given {
			ways++
		}
	}
	special := len(c.args) > 0 && (c.args[0] == "biosboot" || c.args[0] == "/boot/efi")
	switch {
	case c.has("size") && s.Size == 0:
		p.fail(c.at, "", "%s: a size of 0 MiB is nothing", c.name)
	case s.Size > 1<<30:
		p.fail(c.at, "", "%s: %d MiB is more than any disk has", c.name, s.Size)
	case ways > 1:
		p.fail(c.at, "", "%s: --size, --percent and --recommended exclude each other", c.name)
	case ways == 0 && !s.Grow && !special:
		p.fail(c.at, "", "%s: say how large %s shall be (--size in MiB, --grow)", c.name, strings.Join(c.args[:min(1, len(c.args))], ""))
	case s.Recommended && (len(c.args) == 0 || c.args[0] != "swap"):
		p.fail(c.at, "", "%s: --recommended is for swap", c.name)
	case s.Max > 0 && !s.Grow, s.Max > 0 && s.Max < s.Size:
		p.fail(c.at, "", "%s: --maxsize bounds --grow from above", c.name)
	case s.Percent > 100 || c.has("percent") && s.Percent == 0:
		p.fail(c.at, "", "%s: --percent is from 1 to 100", c.name)
	}
	return s
}

func (p *parser) storage(c *command) {
	switch c.name {
	case "part":
		disk := c.first("ondisk", "ondrive")
		if disk != "" {
			p.diskSpec(c, disk)
		}
		p.ks.Parts = append(p.ks.Parts, Part{At: c.at, Format: p.format(c), Space: p.space(c), Disk: disk})
	case "raid":
		a := Array{At: c.at, Format: p.format(c), Device: strings.TrimPrefix(c.opts["device"], "/dev/md/"), Spares: c.number("spares"), Chunk: c.number("chunksize"), Members: c.args[min(1, len(c.args)):]}
		level, ok := strings.CutPrefix(strings.ToUpper(c.opts["level"]), "RAID")
		a.Level = -1
		if n, err := strconv.Atoi(level); (ok || err == nil) && slices.Contains([]string{"0", "1", "4", "5", "6", "10"}, level) {
			a.Level = n
		} else {
			p.fail(c.at, "", "raid: --level is %q, not one of RAID0, RAID1, RAID4, RAID5, RAID6, RAID10", c.opts["level"])
		}
		if !volumeName.MatchString(a.Device) || len(a.Device) > 31 {
			p.fail(c.at, "", "raid: --device is %q, not a name", a.Device)
		}
		p.ks.Arrays = append(p.ks.Arrays, a)
	case "volgroup":
		v := VolumeGroup{At: c.at, Extent: c.number("pesize"), Reserve: c.number("reserved-space"), ReservePercent: c.number("reserved-percent")}
		if len(c.args) > 0 {
			v.Name, v.Members = p.match(c, volumeName, c.args[0], "a name of a volume group"), c.args[1:]
		}
		if v.Extent != 0 && (v.Extent < 1024 || v.Extent&(v.Extent-1) != 0) {
			p.fail(c.at, "", "volgroup: --pesize is %d KiB, not a power of two from 1024 on", v.Extent)
		}
		if v.ReservePercent > 99 {
			p.fail(c.at, "", "volgroup: --reserved-percent is below 100")
		}
		p.ks.Volumes = append(p.ks.Volumes, v)
	case "logvol":
		l := Logical{At: c.at, Format: p.format(c), Space: p.space(c)}
		l.Group = p.match(c, volumeName, c.opts["vgname"], "a name of a volume group (--vgname)")
		l.Name = p.match(c, volumeName, c.opts["name"], "a name of a volume (--name)")
		p.ks.Logicals = append(p.ks.Logicals, l)
	}
}

func (p *parser) bootloader(c *command) {
	b := &p.ks.Boot
	b.At, b.Append, b.Disk, b.Password, b.KeepOrder = c.at, c.opts["append"], c.opts["boot-drive"], c.opts["password"], c.has("leavebootorder")
	b.None = c.opts["location"] == "none"
	if c.opts["location"] == "partition" {
		p.fail(c.at, "use --location=mbr", "bootloader: --location=partition can't be used on a GPT")
	}
	if c.has("timeout") {
		b.Timeout = c.number("timeout")
	}
	if b.Disk != "" {
		p.diskSpec(c, b.Disk)
	}
	if d := c.list("driveorder"); b.Disk == "" && len(d) > 0 {
		b.Disk = d[0]
		p.diskSpec(c, b.Disk)
	}
	if strings.ContainsAny(b.Append, "\"'`\\\n{};$") {
		p.fail(c.at, "", "bootloader: --append can't hold quotes or any of ` \\ { } ; $")
	}
	if b.Password != "" && (!c.has("iscrypted") || !regexp.MustCompile(`^grub\.pbkdf2\.sha512\.[0-9]+\.[0-9A-F]+\.[0-9A-F]+$`).MatchString(b.Password)) {
		p.fail(c.at, "make one with grub-mkpasswd-pbkdf2, and add --iscrypted", "bootloader: the password is no hash of GRUB")
	}
}

func (p *parser) firewall(c *command) {
	on, off := c.has("enabled") || c.has("enable"), c.has("disabled") || c.has("disable")
	f := &Firewall{At: c.at, Enabled: !off, Services: c.list("service"), Trust: c.list("trust")}
	if on && off {
		p.fail(c.at, "", "firewall: --enabled and --disabled exclude each other")
	}
	if c.has("use-system-defaults") {
		p.fail(c.at, "say what is to be open", "firewall: this system has no default rules")
	}
	for _, s := range []string{"ssh", "http", "ftp", "smtp"} {
		if c.has(s) {
			f.Services = append(f.Services, s)
		}
	}
	// Without a word about it SSH stays open, as in Anaconda; it is named as a service so that removing it is possible.
	if f.Enabled && !slices.Contains(f.Services, "ssh") && !slices.Contains(c.list("remove-service"), "ssh") {
		f.Services = append(f.Services, "ssh")
	}
	f.Services = slices.DeleteFunc(f.Services, func(s string) bool { return slices.Contains(c.list("remove-service"), s) })
	for _, s := range f.Services {
		if _, ok := ServicePorts[s]; !ok {
			p.fail(c.at, "give its port with --port", "firewall: the service %q is not known", s)
		}
	}
	for _, s := range f.Trust {
		p.match(c, deviceName, s, "a network device")
	}
	for _, s := range c.list("port") {
		ports, protocol, _ := strings.Cut(s, ":")
		if protocol == "" {
			ports, protocol, _ = strings.Cut(s, "/")
		}
		first, last, ranged := strings.Cut(ports, "-")
		if !ranged {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b < a || !slices.Contains([]string{"tcp", "udp", "sctp", "dccp"}, protocol) {
			p.fail(c.at, "", "firewall: %q is not a port such as 443:tcp", s)
			continue
		}
		f.Ports = append(f.Ports, Port{uint16(a), uint16(b), protocol})
	}
	p.ks.Firewall = f
}

// ServicePorts are the services that firewall knows by name. It is read only.
var ServicePorts = map[string][]Port{
	"ssh": {{22, 22, "tcp"}}, "http": {{80, 80, "tcp"}}, "https": {{443, 443, "tcp"}}, "ftp": {{21, 21, "tcp"}}, "smtp": {{25, 25, "tcp"}}, "ntp": {{123, 123, "udp"}},
	"dns": {{53, 53, "tcp"}, {53, 53, "udp"}}, "dhcp": {{67, 67, "udp"}}, "tftp": {{69, 69, "udp"}}, "snmp": {{161, 161, "udp"}}, "iscsi-target": {{3260, 3260, "tcp"}},
	"nfs": {{2049, 2049, "tcp"}}, "nfs3": {{2049, 2049, "tcp"}, {2049, 2049, "udp"}}, "rpc-bind": {{111, 111, "tcp"}, {111, 111, "udp"}}, "mountd": {{20048, 20048, "tcp"}, {20048, 20048, "udp"}},
	"vxlan": {{4789, 4789, "udp"}}, "libvirt-tls": {{16514, 16514, "tcp"}}, "vnc-server": {{5900, 5903, "tcp"}}, "cockpit": {{9090, 9090, "tcp"}},
}

func (p *parser) end(c *command) {
	end := map[string]End{"reboot": Reboot, "poweroff": PowerOff, "shutdown": PowerOff, "halt": Halt}[c.name]
	if p.ks.End != "" && p.ks.End != end {
		p.fail(c.at, "", "%s contradicts %s", c.name, p.ks.End)
	}
	p.ks.End = end
}

// together checks what follows from several lines.
func (p *parser) together() {
	k := p.ks
	users := map[string]Pos{"root": {}}
	for _, u := range k.Users {
		if before, twice := users[u.Name]; twice && u.Name != "root" {
			p.fail(u.At, "", "user: %s is there already, in %s", u.Name, before)
		}
		users[u.Name] = u.At
	}
	for _, key := range k.Keys {
		if _, ok := users[key.User]; key.User != "" && !ok && !p.missing {
			p.fail(key.At, "add a user line", "sshkey: there is no user %s", key.User)
		}
	}
	if !p.missing {
		p.access()
		p.stack()
	}
	p.names()
	p.devices()
}

// access: a host that nobody can log in to is a mistake; better found here than at its console.
func (p *parser) access() {
	k := p.ks
	if k.Root == nil {
		p.fail(Pos{File: p.src.Name}, "add a password, or rootpw --lock with a user", "the file has no rootpw")
	}
	for _, u := range k.Users {
		if u.Password == "" && !u.Lock && !slices.ContainsFunc(k.Keys, func(key Key) bool { return key.User == u.Name }) {
			p.note(u.At, "user %s has neither password nor key and can't log in", u.Name)
		}
	}
}

// names: what is made must have one maker.
func (p *parser) names() {
	k := p.ks
	mounts, made := map[string]Pos{}, map[string]Pos{}
	once := func(set map[string]Pos, name, what string, at Pos) {
		if before, twice := set[name]; twice {
			p.fail(at, "", "%s %s is there already, in %s", what, name, before)
		}
		set[name] = at
	}
	format := func(f Format, at Pos) {
		if f.Mount != "" && f.Mount != "swap" {
			once(mounts, f.Mount, "the mount point or member", at)
		}
	}
	for _, x := range k.Parts {
		format(x.Format, x.At)
	}
	for _, x := range k.Arrays {
		format(x.Format, x.At)
		once(made, "/dev/md/"+x.Device, "the array", x.At)
	}
	for _, x := range k.Volumes {
		once(made, x.Name, "the volume group", x.At)
	}
	for _, x := range k.Logicals {
		format(x.Format, x.At)
		once(made, x.Group+"/"+x.Name, "the logical volume", x.At)
	}
}

// stack: members must exist, and be used once.
func (p *parser) stack() {
	k := p.ks
	have := map[string]Pos{}
	for _, x := range k.Parts {
		if x.IsPV() || x.IsRAID() {
			have[x.Mount] = x.At
		}
	}
	for _, x := range k.Arrays {
		if x.IsPV() {
			have[x.Mount] = x.At
		}
	}
	used := map[string]bool{}
	use := func(what string, members []string, prefix string, at Pos) {
		for _, m := range members {
			switch _, ok := have[m]; {
			case !strings.HasPrefix(m, prefix):
				p.fail(at, "", "%s: %q is not a %sID", what, m, prefix)
			case !ok:
				p.fail(at, "", "%s: no line makes %s", what, m)
			case used[m]:
				p.fail(at, "", "%s: %s is used already", what, m)
			}
			used[m] = true
		}
	}
	least := map[int]int{0: 2, 1: 2, 4: 3, 5: 3, 6: 4, 10: 4}
	for _, a := range k.Arrays {
		use("raid", a.Members, "raid.", a.At)
		if n := len(a.Members) - a.Spares; a.Level >= 0 && n < least[a.Level] {
			p.fail(a.At, "", "raid: RAID%d needs %d members beside the spares, not %d", a.Level, least[a.Level], n)
		}
	}
	groups := map[string]bool{}
	for _, v := range k.Volumes {
		use("volgroup", v.Members, "pv.", v.At)
		groups[v.Name] = true
	}
	for name, at := range have {
		if !used[name] {
			p.fail(at, "", "%s is made and not used", name)
		}
	}
	for _, l := range k.Logicals {
		if l.Group != "" && !groups[l.Group] {
			p.fail(l.At, "", "logvol: no line makes the volume group %s", l.Group)
		}
	}
	p.root()
}

// root: the system must have a place.
func (p *parser) root() {
	k := p.ks
	var mounts []string
	for _, x := range k.Parts {
		mounts = append(mounts, x.Mount)
	}
	for _, x := range k.Arrays {
		mounts = append(mounts, x.Mount)
	}
	for _, x := range k.Logicals {
		mounts = append(mounts, x.Mount)
	}
	own := slices.ContainsFunc(mounts, func(s string) bool { return s != "biosboot" && s != "/boot/efi" })
	switch {
	case k.Auto != nil && own:
		p.fail(k.Auto.At, "", "autopart and lines that make partitions exclude each other")
	case k.Auto == nil && !slices.Contains(mounts, "/"):
		p.fail(Pos{File: p.src.Name}, "add part / or autopart", "the file makes no root file system")
	}
}

// devices: one line for one network device.
func (p *parser) devices() {
	byName := map[string]Pos{}
	slaves := map[string]string{}
	for _, n := range p.ks.Networks {
		if before, twice := byName[n.Name]; twice {
			p.fail(n.At, "", "network: %s is configured already, in %s", n.Name, before)
		}
		byName[n.Name] = n.At
		for _, s := range slices.Concat(n.Bond, n.Bridge) {
			if master, twice := slaves[s]; twice {
				p.fail(n.At, "", "network: %s belongs to %s already", s, master)
			}
			slaves[s] = n.Device
		}
	}
	for _, n := range p.ks.Networks {
		if master, ok := slaves[n.Name]; ok && (n.Static.IsValid() || n.Static6.IsValid()) {
			p.fail(n.At, fmt.Sprintf("give the address to %s", master), "network: %s belongs to %s and can't have an address", n.Name, master)
		}
	}
}
