package iso

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"shoal/desired"
)

// Recipe makes a kickstart out of a few wishes, for who does not want to write one. The text works with Anaconda too.
type Recipe struct {
	Mode     desired.Mode
	Hostname string
	// Disks are one, or two that mirror each other: see disk. None is the machine's only disk.
	Disks []string
	// Erase allows that what the disks hold is lost.
	Erase bool
	// Net is dhcp, or ADDRESS/BITS with ,gateway=, ,dns= and ,mtu= after it. NIC is what has it: a name, a MAC or link; Bond is
	// NAME=NIC,NIC with ,mode= after it, instead of a NIC. VLAN is 0 without one.
	Net, NIC, Bond string
	VLAN           int
	// Keys are lines of public keys for root; PasswordHash is root's password.
	Keys         []string
	PasswordHash string
	Timezone     string
	Lang         string
	Keyboard     string
	NTP          []string
	// Args are kernel arguments of the installed system.
	Args []string
}

// Kickstart is the text.
func (r Recipe) Kickstart() (string, error) {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Made by shoalctl iso build, mode %s.", r.Mode)
	line("text")
	line("lang %s", or(r.Lang, "C.UTF-8"))
	line("keyboard %s", or(r.Keyboard, "us"))
	line("timezone %s --utc", or(r.Timezone, "Etc/UTC"))
	for _, s := range r.NTP {
		line("timesource --ntp-server=%s", s)
	}
	if r.PasswordHash != "" {
		line("rootpw --iscrypted %s", quote(r.PasswordHash))
	} else {
		line("rootpw --lock")
	}
	for _, k := range r.Keys {
		line("sshkey --username=root %s", quote(strings.TrimSpace(k)))
	}
	net, err := r.network()
	if err != nil {
		return "", err
	}
	line("%s", net)
	if r.Hostname != "" {
		line("network --hostname=%s", r.Hostname)
	}
	if err := r.disks(line); err != nil {
		return "", err
	}
	if len(r.Args) > 0 {
		line("bootloader --append=%s", quote(strings.Join(r.Args, " ")))
	} else {
		line("bootloader")
	}
	line("firewall --enabled %s", map[desired.Mode]string{
		desired.ModeManagement: "--service=ssh,vxlan,ntp --port=4222:tcp,8480:tcp,49152-49215:tcp", desired.ModeCompute: "--service=ssh,vxlan --port=49152-49215:tcp",
		desired.ModeStorage: "--service=ssh,vxlan,nfs --port=49152-49215:tcp", desired.ModeExpert: "--service=ssh",
	}[r.Mode])
	line("services --enabled=sshd,chronyd")
	line("firstboot --disable")
	line("reboot")
	line("%%packages\n@^minimal-environment\n%%end")
	return b.String(), nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// quote makes one word of the kickstart language.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func (r Recipe) network() (string, error) {
	var all []string
	nic := or(r.NIC, "link")
	if r.Bond != "" {
		if r.NIC != "" {
			return "", errors.New("--bond and --nic exclude each other: a bond has its own name")
		}
		name, rest, _ := strings.Cut(r.Bond, "=")
		mode, nics := "active-backup", []string{}
		for s := range strings.SplitSeq(rest, ",") {
			if m, ok := strings.CutPrefix(s, "mode="); ok {
				mode = map[string]string{"lacp": "802.3ad"}[m] + map[bool]string{true: m}[m != "lacp"]
			} else if s != "" {
				nics = append(nics, s)
			}
		}
		if name == "" || len(nics) == 0 {
			return "", fmt.Errorf("--bond: %q is not NAME=NIC,NIC[,mode=MODE]", r.Bond)
		}
		options := "mode=" + mode + ",miimon=100"
		if mode == "802.3ad" {
			options += ",lacp_rate=fast,xmit_hash_policy=layer3+4"
		}
		nic = name
		all = append(all, "--bondslaves="+strings.Join(nics, ","), "--bondopts="+options)
	}
	all = append([]string{"--device=" + nic}, all...)
	if r.VLAN != 0 {
		all = append(all, "--vlanid="+strconv.Itoa(r.VLAN))
		if r.Bond == "" && (nic == "link" || strings.Contains(nic, ":")) {
			all = append(all, "--interfacename=vlan"+strconv.Itoa(r.VLAN))
		}
	}
	where, rest, _ := strings.Cut(or(r.Net, "dhcp"), ",")
	if where == "dhcp" {
		all = append(all, "--bootproto=dhcp")
	} else {
		p, err := netip.ParsePrefix(where)
		if err != nil || !p.Addr().Is4() {
			return "", fmt.Errorf("--net: %q is not dhcp or an IPv4 address such as 10.0.0.5/24", where)
		}
		all = append(all, "--bootproto=static", "--ip="+p.Addr().String(), "--netmask="+strconv.Itoa(p.Bits()), "--noipv6")
	}
	for s := range strings.SplitSeq(rest, ",") {
		if s == "" {
			continue
		}
		k, v, _ := strings.Cut(s, "=")
		option, ok := map[string]string{"gateway": "--gateway=", "dns": "--nameserver=", "mtu": "--mtu="}[k]
		if !ok || v == "" {
			return "", fmt.Errorf("--net: %q is not one of gateway=, dns= (several with +), mtu=", s)
		}
		all = append(all, option+strings.ReplaceAll(v, "+", ","))
	}
	return "network " + strings.Join(all, " ") + " --onboot=on", nil
}

// disks writes which disks are used and how they are divided: boot, root and swap, the latter in a volume group.
func (r Recipe) disks(line func(format string, args ...any)) error {
	var names []string
	var choose string
	for _, d := range r.Disks {
		name, script, err := disk(d)
		if err != nil {
			return err
		}
		names = append(names, name)
		if script != "" {
			choose = script
		}
	}
	switch {
	case len(names) > 2:
		return fmt.Errorf("--disk: %d disks; one, or two that mirror each other", len(names))
	case choose != "" && len(names) > 1:
		return errors.New("--disk: two disks must be named by name, path or serial, not by size")
	}
	line("zerombr")
	only := ""
	if len(names) > 0 {
		only = strings.Join(names, ",")
	}
	switch {
	case choose != "":
		line("%%include /tmp/shoal-disk.ks")
		erase := ""
		if r.Erase {
			erase = `; echo "clearpart --all --initlabel --disklabel=gpt --drives=$disk"`
		}
		line("%%pre --erroronfail\n%s\n{ echo \"ignoredisk --only-use=$disk\"%s; } >/tmp/shoal-disk.ks\n%%end", choose, erase)
	case only != "":
		line("ignoredisk --only-use=%s", only)
		if r.Erase {
			line("clearpart --all --initlabel --disklabel=gpt --drives=%s", only)
		}
	case r.Erase:
		line("clearpart --all --initlabel --disklabel=gpt")
	}
	line("reqpart")
	if len(names) == 2 {
		for i, n := range names {
			line("part raid.1%d --size=1024 --ondisk=%s", i+1, n)
			line("part raid.2%d --size=6144 --grow --ondisk=%s", i+1, n)
		}
		line("raid /boot --level=RAID1 --device=boot --fstype=ext4 raid.11 raid.12")
		line("raid pv.01 --level=RAID1 --device=system raid.21 raid.22")
	} else {
		line("part /boot --fstype=ext4 --size=1024")
		line("part pv.01 --size=6144 --grow")
	}
	line("volgroup shoal pv.01")
	line("logvol / --vgname=shoal --name=root --fstype=ext4 --size=4096 --grow")
	line("logvol swap --vgname=shoal --name=swap --recommended")
	return nil
}

// disk reads how a disk is chosen: a kernel name or a path below /dev, serial=, path= (by-path) or size>=, which is the
// smallest one that is large enough. It gives the name for the kickstart, and the script that finds it where no name can.
func disk(s string) (name, script string, err error) {
	kind, value, ok := strings.Cut(s, "=")
	switch {
	case strings.HasPrefix(s, "size>="):
		size, err := bytesOf(strings.TrimPrefix(s, "size>="))
		if err != nil {
			return "", "", fmt.Errorf("--disk: %w", err)
		}
		return "", fmt.Sprintf(`disk=$(lsblk --nodeps --noheadings --bytes --raw --output NAME,SIZE,TYPE,RM,RO | awk '$3 == "disk" && $4 == 0 && $5 == 0 && $2 >= %d && $1 !~ /^(zram|fd|nbd)/' | sort -k2,2n -k1,1 | head -n 1 | cut -d" " -f1)
if [ -z "$disk" ]; then echo "no disk has %d bytes or more"; exit 1; fi`, size, size), nil
	case !ok:
		name = s
	case kind == "serial":
		name = "/dev/disk/by-id/*" + value
	case kind == "path":
		name = "/dev/disk/by-path/" + value
	default:
		return "", "", fmt.Errorf("--disk: %q is not a name, serial=, path= or size>=", s)
	}
	if _, err := path.Match(name, ""); err != nil || name == "" || strings.ContainsAny(name, " \t\n\"',#") || ok && value == "" {
		return "", "", fmt.Errorf("--disk: %q is not a disk", s)
	}
	return name, "", nil
}

func bytesOf(s string) (int64, error) {
	for suffix, factor := range map[string]int64{"GB": 1e9, "TB": 1e12, "GiB": 1 << 30, "TiB": 1 << 40, "G": 1 << 30, "T": 1 << 40} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			v, err := strconv.ParseInt(n, 10, 32)
			if err == nil && v > 0 {
				return v * factor, nil
			}
		}
	}
	return 0, fmt.Errorf("%q is not a size such as 200GB or 200GiB", s)
}
