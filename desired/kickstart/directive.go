package kickstart

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A directive is what the language allows on one line. Options are written "name shape": the shape is flag, text, number (not
// negative), list (separated by commas), yesno, or alternatives such as a|b. After it may stand what becomes of the option:
// "- reason" when it is left out, "! reason" when it is refused.
type directive struct {
	options []string
	// min and max count the words that are no options; max -1 is any number.
	min, max int
	// what names these words in errors.
	what string
	// many allows the directive more than once.
	many bool
	// skip is why the whole directive is left out; refuse is why it is refused.
	skip, refuse string
}

const (
	encryption = "! encrypted disks are not supported: nobody could type a passphrase at an unattended start"
	existing   = "! existing partitions and volumes can't be taken over: this installer takes whole disks"
	resizing   = "! nothing existing is resized: this installer takes whole disks"
	image      = "the system is unpacked from the medium, not installed from a package source"
	noDesktop  = "hosts have no graphical desktop"
	stays      = "the medium may stay in the drive: from then on it starts the installed system"
	attended   = "the installation is unattended and writes to the screen and the serial console"
)

var format = []string{
	"fstype ext4|xfs|ext3|ext2|vfat|efi|swap|biosboot|lvmpv|mdmember", "fsoptions text", "label text", "mkfsoptions text ! file systems are made with the options that Shoal needs",
	"fsprofile text ! file systems are made with the options that Shoal needs",
}

var encrypted = []string{
	"encrypted flag " + encryption, "passphrase text " + encryption, "escrowcert text " + encryption, "backuppassphrase flag " + encryption,
	"cipher text " + encryption, "luks-version text " + encryption, "pbkdf text " + encryption, "pbkdf-memory text " + encryption,
	"pbkdf-time text " + encryption, "pbkdf-iterations text " + encryption,
}

var reuse = []string{"noformat flag " + existing, "useexisting flag " + existing}

// directives is the language. It is read only.
var directives = map[string]directive{
	"lang":       {options: []string{"addsupport list - only the first language is set up"}, min: 1, max: 1, what: "a locale"},
	"keyboard":   {options: []string{"vckeymap text", "xlayouts list", "switch list - " + noDesktop}, max: 1, what: "a layout"},
	"timezone":   {options: []string{"utc flag", "isUtc flag", "nontp flag", "ntpservers list"}, max: 1, what: "a time zone"},
	"timesource": {options: []string{"ntp-server text", "ntp-pool text", "ntp-disable flag", "nts flag"}, many: true},
	"rootpw":     {options: []string{"iscrypted flag", "plaintext flag", "lock flag", "allow-ssh flag"}, max: 1, what: "a password"},
	"user": {options: []string{
		"name text", "gecos text", "groups list", "homedir text", "lock flag", "password text", "iscrypted flag", "plaintext flag", "shell text",
		"uid number", "gid number",
	}, many: true},
	"group":  {options: []string{"name text", "gid number"}, many: true},
	"sshkey": {options: []string{"username text"}, min: 1, max: 1, what: "a public key in quotes", many: true},
	"network": {options: []string{
		"device text", "bootproto static|dhcp|ibft|bootp|query", "activate flag", "no-activate flag", "onboot yesno", "ip text", "netmask text", "gateway text",
		"ipv6 text", "ipv6gateway text", "nodefroute flag", "nameserver list", "nodns flag", "hostname text", "mtu number", "noipv4 flag", "noipv6 flag",
		"bondslaves list", "bondopts text", "vlanid number", "interfacename text", "bridgeslaves list", "bridgeopts text", "ipv4-dns-search list",
		"ipv6-dns-search list", "bindto mac - interfaces given by MAC are always bound to it",
		"dhcpclass text ! the DHCP class can't be set", "ethtool text ! settings of ethtool belong into %post",
		"teamslaves text ! team devices are gone from Linux; use --bondslaves", "teamconfig text ! team devices are gone from Linux; use --bondopts",
		"essid text ! a host needs a cable", "wepkey text ! a host needs a cable", "wpakey text ! a host needs a cable",
		"ipv4-ignore-auto-dns flag", "ipv6-ignore-auto-dns flag",
	}, many: true},
	"ignoredisk": {options: []string{"drives list", "only-use list", "interactive flag ! the installation is unattended"}},
	"clearpart": {options: []string{
		"all flag", "none flag", "drives list", "initlabel flag", "disklabel gpt|msdos", "linux flag " + existing, "list list " + existing,
		"cdl flag ! that is for machines that Shoal does not run on",
	}},
	"zerombr": {},
	"part": {options: slices.Concat(format, encrypted, reuse, []string{
		"size number", "grow flag", "maxsize number", "ondisk text", "ondrive text", "asprimary flag - GPT has primary partitions only", "recommended flag",
		"hibernation flag ! a host does not hibernate", "onpart text " + existing, "usepart text " + existing, "resize flag " + resizing,
		"start number ! partitions are laid out in the order of the file", "end number ! partitions are laid out in the order of the file", "active flag - GPT knows no active partition",
	}), min: 1, max: 1, what: "a mount point, swap, pv.ID, raid.ID or biosboot", many: true},
	"reqpart": {options: []string{"add-boot flag"}},
	"autopart": {options: slices.Concat([]string{
		"type plain|lvm|btrfs|thinp", "fstype ext4|xfs", "nolvm flag", "nohome flag", "noboot flag", "noswap flag",
	}, encrypted)},
	"volgroup": {options: slices.Concat(reuse, []string{
		"pesize number", "reserved-space number", "reserved-percent number",
	}), min: 2, max: -1, what: "a name and its physical volumes", many: true},
	"logvol": {options: slices.Concat(format, encrypted, reuse, []string{
		"vgname text", "name text", "size number", "grow flag", "maxsize number", "percent number", "recommended flag",
		"hibernation flag ! a host does not hibernate", "resize flag " + resizing, "thinpool flag ! thin pools are not supported",
		"thin flag ! thin pools are not supported", "poolname text ! thin pools are not supported", "cachesize number ! cached volumes are not supported",
		"cachemode text ! cached volumes are not supported", "cachepvs text ! cached volumes are not supported",
	}), min: 1, max: 1, what: "a mount point or swap", many: true},
	"raid": {options: slices.Concat(format, encrypted, reuse, []string{
		"level text", "device text", "spares number", "chunksize number",
	}), min: 3, max: -1, what: "a mount point, swap or pv.ID, and its members", many: true},
	"bootloader": {options: []string{
		"append text", "boot-drive text", "driveorder list", "location mbr|partition|none|boot", "timeout number", "password text", "iscrypted flag",
		"leavebootorder flag", "nombr flag ! the machine could not start", "disabled flag ! the machine could not start", "default text - the newest kernel starts",
		"extlinux flag ! the boot loader is GRUB", "sdboot flag ! the boot loader is GRUB", "upgrade flag ! nothing is upgraded",
	}},
	"services": {options: []string{"enabled list", "disabled list"}, many: true},
	"firewall": {options: []string{
		"enabled flag", "enable flag", "disabled flag", "disable flag", "port list", "service list", "trust list", "ssh flag", "http flag", "ftp flag", "smtp flag",
		"remove-service list", "use-system-defaults flag",
	}},
	"reboot":   {options: []string{"eject flag - " + stays, "kexec flag - the machine starts anew"}},
	"poweroff": {options: []string{"eject flag - " + stays}},
	"shutdown": {options: []string{"eject flag - " + stays}},
	"halt":     {options: []string{"eject flag - " + stays}},

	"selinux":         {options: []string{"enforcing flag", "permissive flag", "disabled flag"}, skip: "this system has no SELinux"},
	"firstboot":       {options: []string{"enable flag", "enabled flag", "disable flag", "disabled flag", "reconfig flag"}, skip: "this system asks nothing at its first start"},
	"skipx":           {skip: noDesktop},
	"xconfig":         {options: []string{"startxonboot flag", "defaultdesktop text"}, skip: noDesktop},
	"text":            {options: []string{"non-interactive flag"}, skip: attended},
	"cmdline":         {skip: attended},
	"graphical":       {options: []string{"non-interactive flag"}, skip: attended},
	"vnc":             {options: []string{"host text", "port text", "password text"}, skip: attended},
	"eula":            {options: []string{"agreed flag"}, skip: "there is nothing to agree to"},
	"auth":            {max: -1, options: []string{"enableshadow flag", "useshadow flag", "passalgo text"}, skip: "passwords are kept in /etc/shadow"},
	"authselect":      {max: -1, skip: "passwords are kept in /etc/shadow"},
	"logging":         {options: []string{"host text", "port text", "level text"}, skip: "the log stays on the consoles and in /var/log/shoal-install.log"},
	"mediacheck":      {skip: "the medium is always checked"},
	"cdrom":           {skip: image},
	"install":         {skip: image},
	"url":             {options: []string{"url text", "mirrorlist text", "metalink text", "proxy text", "noverifyssl flag"}, skip: image},
	"harddrive":       {options: []string{"partition text", "dir text"}, skip: image},
	"nfs":             {options: []string{"server text", "dir text", "opts text"}, skip: image},
	"liveimg":         {options: []string{"url text", "proxy text", "checksum text", "noverifyssl flag"}, skip: image},
	"repo":            {options: []string{"name text", "baseurl text", "mirrorlist text", "metalink text", "cost number", "excludepkgs list", "includepkgs list", "proxy text", "noverifyssl flag", "install flag"}, many: true, skip: image},
	"module":          {refuse: "module streams are for package sources; this system is unpacked from the medium"},
	"upgrade":         {refuse: "nothing is upgraded: this installer takes whole disks"},
	"rescue":          {refuse: "choose the rescue shell in the boot menu"},
	"driverdisk":      {refuse: "driver disks can't be loaded"},
	"updates":         {refuse: "the installer can't be updated from a kickstart file"},
	"snapshot":        {refuse: "snapshots can't be made while installing"},
	"btrfs":           {refuse: "btrfs is not supported: use xfs or ext4"},
	"mount":           {refuse: "existing partitions can't be taken over: this installer takes whole disks"},
	"multipath":       {refuse: "installing to multipath devices is not supported"},
	"iscsi":           {refuse: "installing to iSCSI disks is not supported"},
	"iscsiname":       {refuse: "installing to iSCSI disks is not supported"},
	"fcoe":            {refuse: "installing to FCoE disks is not supported"},
	"nvdimm":          {refuse: "installing to NVDIMM is not supported"},
	"realm":           {refuse: "joining a domain belongs into %post"},
	"rhsm":            {refuse: "this system has no subscription"},
	"syspurpose":      {refuse: "this system has no subscription"},
	"ostreesetup":     {refuse: image},
	"ostreecontainer": {refuse: image},
	"zfcp":            {refuse: "that is for machines that Shoal does not run on"},
	"zipl":            {refuse: "that is for machines that Shoal does not run on"},
	"dmraid":          {refuse: "firmware RAID is not supported: use raid"},
}

// aliases are other names of directives.
var aliases = map[string]string{"partition": "part", "authconfig": "auth", "bootc": "ostreecontainer"}

// section is a block that %end closes.
type section struct {
	options  []string
	min, max int
	skip     string
}

var script = []string{"interpreter text", "erroronfail flag", "log text"}

// sections is read only.
var sections = map[string]section{
	"pre":         {options: script},
	"pre-install": {options: script},
	"post":        {options: append([]string{"nochroot flag"}, script...)},
	"onerror":     {options: script},
	"traceback":   {options: script, skip: "this installer has no tracebacks; %onerror runs when something goes wrong"},
	"packages": {options: []string{
		"ignoremissing flag", "ignorebroken flag", "nocore flag", "default flag", "exclude-weakdeps flag", "excludeWeakdeps flag", "excludedocs flag",
		"exclude-docs flag", "inst-langs text", "instLangs text", "multilib flag", "retries number", "timeout number",
	}},
	"addon":       {options: []string{"disable flag", "enable flag", "reserve-mb text"}, min: 1, max: 1},
	"anaconda":    {skip: "these are settings of Anaconda's screens"},
	"certificate": {options: []string{"filename text", "dir text"}},
}

// option is one option of a directive's list.
type option struct {
	name, shape string
	// verdict is - or ! with its reason, or empty.
	verdict, reason string
}

func parseOption(s string) option {
	name, rest, _ := strings.Cut(s, " ")
	shape, rest, _ := strings.Cut(rest, " ")
	verdict, reason, _ := strings.Cut(rest, " ")
	return option{name, shape, verdict, reason}
}

// command is one line, or the first line of a section, taken apart.
type command struct {
	name string
	args []string
	opts map[string]string
	at   Pos
}

func (c *command) has(name string) bool { _, ok := c.opts[name]; return ok }

// first is the value of the first of these options that is given.
func (c *command) first(names ...string) string {
	for _, n := range names {
		if v, ok := c.opts[n]; ok {
			return v
		}
	}
	return ""
}

func (c *command) list(name string) []string { return splitList(c.opts[name]) }

// number is an option of shape number; check has seen to its form. Without the option it is 0.
func (c *command) number(name string) int {
	n, err := strconv.Atoi(c.opts[name])
	if err != nil {
		return 0
	}
	return n
}

func splitList(s string) []string {
	var out []string
	for one := range strings.SplitSeq(s, ",") {
		if one = strings.TrimSpace(one); one != "" {
			out = append(out, one)
		}
	}
	return out
}

// check takes a line apart by a list of options.
func (p *parser) check(title string, ws []string, at Pos, options []string, least, most int, what string) *command {
	c := &command{name: title, opts: map[string]string{}, at: at}
	for i := 0; i < len(ws); i++ {
		w := ws[i]
		if !strings.HasPrefix(w, "-") || w == "-" {
			c.args = append(c.args, w)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		at := slices.IndexFunc(options, func(o string) bool { return strings.HasPrefix(o, name+" ") })
		if at < 0 || !strings.HasPrefix(w, "--") {
			p.fail(c.at, Near(name, options), "%s has no option %s", title, strings.SplitN(w, "=", 2)[0])
			continue
		}
		o := parseOption(options[at])
		if o.shape == "flag" && given {
			p.fail(c.at, "", "%s: --%s takes no value", title, name)
			continue
		}
		if o.shape != "flag" && !given {
			if i+1 >= len(ws) || strings.HasPrefix(ws[i+1], "--") {
				p.fail(c.at, "", "%s: --%s needs a value", title, name)
				continue
			}
			i++
			value = ws[i]
		}
		if why := wrongShape(o.shape, value); why != "" {
			p.fail(c.at, "", "%s: --%s is %q, not %s", title, name, value, why)
			continue
		}
		if _, twice := c.opts[name]; twice {
			p.fail(c.at, "", "%s: --%s is there twice", title, name)
			continue
		}
		switch o.verdict {
		case "!":
			p.fail(c.at, "", "%s: --%s: %s", title, name, o.reason)
			continue
		case "-":
			p.note(c.at, "%s --%s is left out: %s", title, name, o.reason)
		}
		c.opts[name] = value
	}
	switch {
	case len(c.args) < least:
		p.fail(at, "", "%s needs %s", title, what)
	case most >= 0 && len(c.args) > most:
		p.fail(at, "", "%s: too many words: %q", title, c.args[most])
	}
	return c
}

// wrongShape says what a value should be, or nothing when it is that.
func wrongShape(shape, value string) string {
	switch shape {
	case "flag":
	case "text":
		if value == "" {
			return "a value"
		}
	case "list":
		if len(splitList(value)) == 0 {
			return "a list separated by commas"
		}
	case "number":
		if n, err := strconv.Atoi(value); err != nil || n < 0 || n > 1<<40 {
			return "a number"
		}
	case "yesno":
		if _, ok := yesNo(value); !ok {
			return "yes or no"
		}
	default:
		all := strings.Split(shape, "|")
		if !slices.Contains(all, value) {
			return "one of " + strings.Join(all, ", ")
		}
	}
	return ""
}

func yesNo(s string) (yes, ok bool) {
	switch strings.ToLower(s) {
	case "yes", "on", "true", "1":
		return true, true
	case "no", "off", "false", "0":
		return false, true
	}
	return false, false
}

// Near suggests the name that a wrong one was probably meant to be.
func Near[S ~[]string](wrong string, from S) string {
	best, distance := "", 3
	for _, s := range from {
		s, _, _ = strings.Cut(s, " ")
		if d := edits(wrong, s); d < distance || d == distance && distance < 3 && s < best {
			best, distance = s, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %s?", best)
}

// edits counts the letters that differ between two words (Levenshtein).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
