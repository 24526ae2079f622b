package anaconda

import "strings"

// grammar is what the language allows on one line, in all releases at once.
type grammar struct {
	releases span
	// options are separated by ", ", each "name shape releases": the shape is flag, text, number, yesno, maybe (with or without a value) or
	// alternatives such as a|b, with ! after it where the option must be there. Without releases it is as old as the command.
	options string
	// min and max count the words that are no options; max -1 is any number.
	min, max int
	// what names these words in errors.
	what string
	// free: the line is passed on to another program as it is.
	free bool
	// excludes are commands that can't be in the same file.
	excludes string
	// gone says what to use in the releases that do not know it or do nothing with it.
	gone string
}

// Options that several commands share.
const (
	luks = "encrypted flag, passphrase text, escrowcert text, backuppassphrase flag, cipher text, luks-version text 8-10, pbkdf text 8-10, pbkdf-memory number 8-10, " +
		"pbkdf-time number 8-10, pbkdf-iterations number 8-10"
	filesystem = "fstype text, fsoptions text, fsprofile text, mkfsoptions text, label text, noformat flag"
	room       = "size number, grow flag, maxsize number, recommended flag, hibernation flag, resize flag"
	tls        = "sslcacert text 8-10, sslclientcert text 8-10, sslclientkey text 8-10"
	end        = "eject flag, kexec flag 8-10"
	screen     = "non-interactive flag 8-10"
	script     = "erroronfail flag, interpreter text, log text, logfile text"
	team       = "team devices are gone; use --bondslaves"
)

// commands is read only.
var commands = map[string]grammar{
	// The system.
	"lang":     {options: "addsupport text", min: 1, max: 1, what: "a locale"},
	"keyboard": {options: "vckeymap text, xlayouts text, switch text", max: 1, what: "a layout"},
	"timezone": {options: "utc flag, isUtc flag 7-8~9, nontp flag 7-8~9, ntpservers text 7-8~9", max: 1, what: "a time zone", gone: "use --utc, and timesource for the servers"},
	"timesource": {
		releases: "9-10", options: "ntp-server text, ntp-pool text, ntp-disable flag, nts flag", gone: "use timezone --ntpservers",
	},
	"rootpw":   {options: "iscrypted flag, lock flag, plaintext flag, allow-ssh flag 9-10", max: 1, what: "a password"},
	"user":     {options: "groups text, homedir text, iscrypted flag, name text!, password text, shell text, uid number, lock flag, plaintext flag, gecos text, gid number"},
	"group":    {options: "name text!, gid number"},
	"sshkey":   {releases: "8-10", options: "username text!", min: 1, max: 1, what: "a public key in quotes", gone: "write it in %post"},
	"sshpw":    {options: "username text!, iscrypted flag, plaintext flag, lock flag, sshkey flag 8-10", min: 1, max: -1, what: "a password"},
	"services": {options: "disabled text, enabled text"},
	"selinux":  {options: "disabled flag, enforcing flag, permissive flag"},
	"firewall": {options: "disable flag, disabled flag, enable flag, enabled flag, port text, trust text, service text, ftp flag, http flag, smtp flag, ssh flag, remove-service text, " +
		"use-system-defaults flag 8-10"},
	"network": {options: "bootproto dhcp|bootp|static|query|ibft, device text, gateway text, hostname text, ip text, mtu text, nameserver text, netmask text, nodns flag, onboot yesno, " +
		"activate flag, no-activate flag, nodefroute flag, noipv4 flag, noipv6 flag, ipv6 text, ipv6gateway text, bondslaves text, bondopts text, vlanid text, interfacename text, " +
		"bridgeslaves text, bridgeopts text, bindto mac, dhcpclass text, essid text, ethtool text, wepkey text, wpakey text, notksdevice flag, teamslaves text 7-9~10, " +
		"teamconfig text 7-9~10, ipv4-dns-search text 9-10, ipv6-dns-search text 9-10, ipv4-ignore-auto-dns flag 9-10, ipv6-ignore-auto-dns flag 9-10"},
	"realm":      {free: true},
	"auth":       {releases: "7~8-9", free: true, gone: "use authselect"},
	"authselect": {releases: "8-10", free: true, gone: "use authconfig"},
	"rhsm": {releases: "8-10", options: "organization text!, activation-key text!, connect-to-insights flag, proxy text, server-hostname text, rhsm-baseurl text, " +
		"flatpak-registry-url text 10"},
	"syspurpose": {releases: "8-10", options: "role text, sla text, usage text, addon text"},
	"xconfig":    {options: "defaultdesktop text, startxonboot flag"},
	"skipx":      {},
	"firstboot":  {options: "disable flag, disabled flag, enable flag, enabled flag, reconfig flag"},
	"eula":       {options: "agreed flag, agree flag, accepted flag, accept flag"},

	// Disks.
	"ignoredisk": {options: "drives text, only-use text, interactive flag 7~8"},
	"clearpart":  {options: "all flag, initlabel flag, linux flag, none flag, disklabel text, drives text, list text, cdl flag"},
	"zerombr":    {},
	"part": {
		options: filesystem + ", " + room + ", " + luks + ", active flag 7~8, asprimary flag, type text, onbiosdisk text, ondisk text, ondrive text, onpart text, usepart text",
		min:     1, max: 1, what: "a mount point", excludes: "autopart mount",
	},
	"raid": {
		options: filesystem + ", " + luks + ", device text!, level raid0|raid1|raid4|raid5|raid6|raid10|0|1|4|5|6|10, spares number, chunksize number, useexisting flag",
		min:     1, max: -1, what: "a mount point and its members", excludes: "autopart mount",
	},
	"volgroup": {
		options: "noformat flag, useexisting flag, reserved-space number, reserved-percent number, pesize number", min: 1, max: -1, what: "a name and its physical volumes",
		excludes: "autopart mount",
	},
	"logvol": {
		options: filesystem + ", " + room + ", " + luks + ", name text!, vgname text!, percent number, useexisting flag, thinpool flag, thin flag, poolname text, chunksize number, " +
			"metadatasize number, profile text, cachesize number 8-10, cachemode text 8-10, cachepvs text 8-10",
		min: 1, max: 1, what: "a mount point", excludes: "autopart mount",
	},
	"btrfs": {
		releases: "7~8-9", options: "noformat flag, useexisting flag, label text, data text, metadata text, subvol flag, parent text, name text, mkfsoptions text",
		min: 1, max: -1, what: "a mount point", gone: "use xfs",
	},
	"reqpart": {options: "add-boot flag", excludes: "autopart mount"},
	"autopart": {
		options:  "type lvm|btrfs|plain|partition|thinp, nolvm flag, fstype text, nohome flag, noboot flag 8-10, noswap flag 8-10, hibernation flag 10, " + luks,
		excludes: "part raid volgroup logvol reqpart",
	},
	"mount": {
		releases: "8-10", options: "reformat maybe, mkfsoptions text, mountoptions text", min: 2, max: 2, what: "a device and a mount point",
		excludes: "autopart part raid volgroup logvol reqpart",
	},
	"snapshot": {options: "name text!, when pre-install|post-install!", min: 1, max: 1, what: "a volume, as group/name"},
	"bootloader": {options: "append text, location mbr|partition|none|boot, boot-drive text, driveorder text, timeout number, default text, password text, iscrypted flag, md5pass text, " +
		"leavebootorder flag, extlinux flag, disabled flag, nombr flag, upgrade flag 7~8, sdboot flag 10"},
	"zipl":      {releases: "8-10", options: "secure-boot flag, force-secure-boot flag, no-secure-boot flag"},
	"zfcp":      {options: "devnum text!, fcplun text, wwpn text"},
	"fcoe":      {options: "nic text!, dcb flag, autovlan flag"},
	"iscsi":     {options: "target text, ipaddr text!, port number, user text, password text, reverse-user text, reverse-password text, iface text"},
	"iscsiname": {min: 1, max: 1, what: "a name"},
	"nvdimm":    {releases: "7-9", options: "namespace text, blockdevs text, mode text, sectorsize number", min: 1, max: 1, what: "an action"},
	"multipath": {releases: "7~8", options: "name text!, device text!, rule text!"},
	"dmraid":    {releases: "7~8", options: "name text!, dev text!", gone: "use raid"},

	// Where packages come from.
	"cdrom":     {},
	"harddrive": {options: "biospart text 7-8, partition text, dir text!"},
	"nfs":       {options: "server text!, dir text!, opts text"},
	"url":       {options: "url text, mirrorlist text, metalink text 8-10, proxy text, noverifyssl flag, " + tls},
	"repo": {options: "name text!, baseurl text, mirrorlist text, metalink text 8-10, cost number, excludepkgs text, includepkgs text, ignoregroups yesno 7-8~9, proxy text, " +
		"noverifyssl flag, install flag, " + tls},
	"hmc":             {},
	"liveimg":         {options: "url text!, proxy text, noverifyssl flag, checksum text"},
	"ostreesetup":     {options: "osname text!, remote text, url text!, ref text!, nogpg flag", excludes: "ostreecontainer bootc"},
	"ostreecontainer": {releases: "9-10", options: "stateroot text, url text!, transport text, remote text, no-signature-verification flag", excludes: "ostreesetup bootc"},
	"bootc":           {releases: "10", options: "stateroot text, source-imgref text!, target-imgref text", excludes: "ostreesetup ostreecontainer"},
	"module":          {releases: "8-9~10", options: "name text!, stream text, disable flag"},

	// The installer itself.
	"text":                 {options: screen},
	"cmdline":              {},
	"graphical":            {options: screen},
	"vnc":                  {releases: "7-9~10", options: "password text, host text, port text", gone: "use rdp"},
	"rdp":                  {releases: "10", options: "username text, password text", gone: "use vnc"},
	"logging":              {options: "host text, port text, level debug|info|warning|error|critical 7-8~9"},
	"mediacheck":           {},
	"updates":              {max: 1, what: "a URL"},
	"driverdisk":           {options: "source text, biospart text", max: 1, what: "a partition"},
	"rescue":               {options: "nomount flag, romount flag"},
	"reboot":               {options: end},
	"poweroff":             {options: end},
	"shutdown":             {options: end},
	"halt":                 {options: end},
	"install":              {releases: "7~8", options: "root-device text", gone: "leave it out"},
	"upgrade":              {releases: "~7", options: "root-device text"},
	"autostep":             {releases: "7-8~9", options: "autoscreenshot flag"},
	"device":               {releases: "7~8", options: "opts text", min: 1, max: -1, what: "a module"},
	"deviceprobe":          {releases: "7~8", free: true},
	"method":               {releases: "7-8~9", free: true},
	"unsupported_hardware": {releases: "7"},
}

// aliases are other names of commands.
var aliases = map[string]string{"partition": "part", "authconfig": "auth"}

// sections are the blocks that %end closes. It is read only.
var sections = map[string]grammar{
	"%packages": {
		options: "ignoremissing flag, default flag, nocore flag, excludedocs flag, multilib flag, timeout number, retries number, nobase flag ~7, instLangs text 7-8~9, excludeWeakdeps flag 8~9, " +
			"inst-langs text 9-10, exclude-weakdeps flag 9-10",
		gone: "up to RHEL 8 they are --instLangs and --excludeWeakdeps, from 9 on --inst-langs and --exclude-weakdeps",
	},
	"%pre":         {options: script},
	"%pre-install": {options: script},
	"%post":        {options: "nochroot flag, " + script},
	"%onerror":     {options: script},
	"%traceback":   {releases: "7-8~9-10", options: script, gone: "use %onerror"},
	"%addon":       {free: true},
	"%anaconda":    {free: true},
	// pykickstart knows it for all releases; their own versions of it do from 10 on.
	"%certificate": {releases: "10", options: "filename text!, dir text, type text"},
}

// option is one of a grammar.
type option struct {
	name, shape string
	required    bool
	releases    span
}

func (g grammar) all() []option {
	var out []option
	for s := range strings.SplitSeq(g.options, ", ") {
		if s == "" {
			continue
		}
		name, rest, _ := strings.Cut(s, " ")
		shape, releases, _ := strings.Cut(rest, " ")
		shape, required := strings.CutSuffix(shape, "!")
		out = append(out, option{name, shape, required, span(releases)})
	}
	return out
}
