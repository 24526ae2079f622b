package anaconda

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// rules are what pykickstart checks of single commands beyond their options. It is read only.
var rules = map[string]func(*command){
	"autopart": func(c *command) {
		pbkdf(c)
		kind := strings.ToLower(c.opts["type"])
		switch {
		case c.opts["fstype"] == "btrfs":
			c.fail("--fstype=btrfs is no file system here; it is a --type")
		case kind == "btrfs" && c.check.release >= 8:
			c.fail("RHEL %d has no btrfs", c.check.release)
		case kind == "btrfs" && c.has("fstype"):
			c.fail("--type=btrfs and --fstype exclude each other")
		case c.has("hibernation") && c.has("noswap"):
			c.fail("--hibernation and --noswap exclude each other")
		}
	},
	"bootloader": func(c *command) {
		if strings.Contains(c.opts["boot-drive"], ",") {
			c.fail("--boot-drive is one disk")
		}
		if c.has("sdboot") && c.has("extlinux") {
			c.fail("--sdboot and --extlinux exclude each other")
		}
	},
	"driverdisk": func(c *command) {
		if c.atMostOne("source", "biospart")+len(c.args) != 1 {
			c.fail("give a partition or --source")
		}
	},
	"eula": func(c *command) {
		if len(c.opts) == 0 {
			c.fail("--agreed is missing")
		}
	},
	"group": func(c *command) { c.define("group", c.opts["name"]) },
	"harddrive": func(c *command) {
		c.exactlyOne("partition", "biospart")
	},
	"ignoredisk": func(c *command) {
		n := 0
		for _, o := range []string{"drives", "only-use", "interactive"} {
			if c.has(o) && (o == "interactive" || strings.Trim(c.opts[o], ", ") != "") {
				n++
			}
		}
		if n != 1 {
			c.fail("give one of --drives and --only-use")
		}
	},
	"keyboard": func(c *command) {
		if len(c.args) == 0 && strings.Trim(c.opts["vckeymap"]+c.opts["xlayouts"], ", ") == "" {
			c.fail("there is no layout")
		}
	},
	"logging": func(c *command) {
		if c.has("port") && c.opts["host"] == "" {
			c.fail("--port without --host")
		}
	},
	"logvol": func(c *command) {
		c.mountable("useexisting", "noformat")
		c.define("logical volume", c.opts["vgname"]+"/"+c.opts["name"])
		old := c.has("useexisting", "noformat")
		cached := c.has("cachesize", "cachemode", "cachepvs")
		percent, _ := strconv.Atoi(c.opts["percent"])
		size := c.has("size") && c.opts["size"] != "0"
		switch {
		case c.has("thin") && c.has("thinpool"):
			c.fail("--thin and --thinpool exclude each other")
		case c.has("thin") && c.opts["poolname"] == "":
			c.fail("--thin needs --poolname")
		case c.has("chunksize", "metadatasize") && !c.has("thinpool"):
			c.fail("--chunksize and --metadatasize are for thin pools")
		case !old && !size && percent == 0 && !c.has("recommended", "hibernation"):
			c.fail("say how large it shall be: --size, --percent or --recommended")
		case percent < 0 || percent > 100:
			c.fail("--percent is from 1 to 100")
		case size && percent != 0:
			c.fail("--size and --percent exclude each other")
		case cached && old:
			c.fail("an existing volume can't get a cache")
		case cached && c.has("thin"):
			c.fail("thin volumes can't have a cache")
		case cached && (c.opts["cachepvs"] == "" || c.opts["cachesize"] == "" || c.opts["cachesize"] == "0"):
			c.fail("a cache needs --cachepvs and --cachesize")
		case c.has("cachemode") && !slices.Contains([]string{"writeback", "writethrough"}, c.opts["cachemode"]):
			c.fail("--cachemode is writeback or writethrough")
		}
	},
	"mount": func(c *command) {
		if where := c.args[1]; strings.ToLower(where) != "none" && !strings.HasPrefix(where, "/") {
			c.fail("%q is no mount point", where)
		}
		if c.has("mkfsoptions") && !c.has("reformat") {
			c.fail("--mkfsoptions needs --reformat")
		}
	},
	"network": network,
	"part": func(c *command) {
		c.mountable("onpart", "usepart")
		where := c.args[0]
		if strings.HasPrefix(where, "/") {
			where = path.Clean(where)
		}
		if where != "swap" {
			c.define("mount point or member", where)
		}
		if (c.opts["fstype"] == "tmpfs" || c.opts["type"] == "tmpfs") && (c.has("grow") || c.has("maxsize") && c.opts["maxsize"] != "0") {
			c.fail("a tmpfs can't have --grow or --maxsize")
		}
	},
	"raid": func(c *command) {
		c.mountable("", "")
		old, members := c.has("useexisting", "noformat"), len(c.args) > 1
		switch {
		case !members && !old:
			c.fail("there are no members")
		case members && old:
			c.fail("an existing array has its members")
		case !old && !c.has("level"):
			c.fail("--level is missing")
		case c.opts["device"] == "":
			c.fail("--device is empty")
		}
		c.define("array", strings.TrimPrefix(strings.TrimPrefix(c.opts["device"], "/dev/md/"), "md"))
	},
	"repo": func(c *command) {
		c.define("repository", c.opts["name"])
		c.atMostOne("baseurl", "mirrorlist", "metalink")
	},
	"rescue": func(c *command) {
		if c.has("nomount") && c.has("romount") {
			c.fail("--nomount and --romount exclude each other")
		}
	},
	"rootpw": func(c *command) {
		if len(c.args) == 0 && !c.has("lock") {
			c.fail("there is no password, and no --lock")
		}
	},
	"services": func(c *command) {
		if strings.Trim(c.opts["enabled"]+c.opts["disabled"], ", ") == "" {
			c.fail("give --enabled or --disabled")
		}
	},
	"snapshot": func(c *command) {
		group, volume, ok := strings.Cut(c.args[0], "/")
		if !ok || group == "" || volume == "" || strings.Contains(volume, "/") {
			c.fail("%q is not a volume, as group/name", c.args[0])
		}
		if c.opts["name"] == "" {
			c.fail("--name is empty")
		}
	},
	"sshkey": func(c *command) {
		// Anaconda warns of a user's second key, and takes both.
		user := "user with a key " + c.opts["username"]
		if before, twice := c.check.defined[user]; twice {
			c.check.file.note(c.at, fmt.Sprintf("Anaconda will warn that %s has a key already, in %s", c.opts["username"], before))
		}
		c.check.defined[user] = c.at
	},
	"sshpw":      func(c *command) { c.define("password for the installer's user", c.opts["username"]) },
	"timesource": func(c *command) { c.exactlyOne("ntp-server", "ntp-pool", "ntp-disable") },
	"timezone": func(c *command) {
		if len(c.args) == 0 && len(c.opts) == 0 {
			c.fail("nothing is said")
		}
		if c.has("nontp") && c.opts["ntpservers"] != "" {
			c.fail("--nontp and --ntpservers exclude each other")
		}
	},
	"updates": func(c *command) {
		if len(c.args) == 0 && c.check.release >= 9 {
			c.fail("there is no URL")
		}
	},
	"url":  func(c *command) { c.exactlyOne("url", "mirrorlist", "metalink") },
	"user": func(c *command) { c.define("user", c.opts["name"]) },
	"volgroup": func(c *command) {
		old, members := c.has("useexisting", "noformat"), len(c.args) > 1
		switch {
		case !members && !old:
			c.fail("there are no physical volumes")
		case members && old:
			c.fail("an existing volume group has its physical volumes")
		}
		if n, _ := strconv.Atoi(c.opts["reserved-space"]); n < 0 {
			c.fail("--reserved-space is below 0")
		}
		if n, _ := strconv.Atoi(c.opts["reserved-percent"]); c.has("reserved-percent") && (n < 1 || n > 99) {
			c.fail("--reserved-percent is from 1 to 99")
		}
		c.define("volume group", c.args[0])
	},
}

func (c *command) atMostOne(names ...string) int {
	var given []string
	for _, n := range names {
		if value, ok := c.opts[n]; ok && (value != "" || n == "ntp-disable") {
			given = append(given, "--"+n)
		}
	}
	if len(given) > 1 {
		c.fail("%s exclude each other", strings.Join(given, " and "))
	}
	return len(given)
}

func (c *command) exactlyOne(names ...string) {
	if c.atMostOne(names...) == 0 {
		c.fail("give one of --%s", strings.Join(names, ", --"))
	}
}

func pbkdf(c *command) {
	if positive(c.opts["pbkdf-time"]) && positive(c.opts["pbkdf-iterations"]) {
		c.fail("--pbkdf-time and --pbkdf-iterations exclude each other")
	}
}

func positive(s string) bool { return s != "" && strings.Trim(s, "0") != "" }

// mountable checks what part, raid and logvol have in common. The two options are those with which --resize has something to resize.
func (c *command) mountable(onto, alias string) {
	pbkdf(c)
	switch {
	case c.opts["fstype"] == "btrfs" && c.check.release >= 8:
		c.fail("RHEL %d has no btrfs", c.check.release)
	case c.has("noformat") && c.opts["mkfsoptions"] != "":
		c.fail("--noformat and --mkfsoptions exclude each other")
	case c.opts["fsprofile"] != "" && c.opts["mkfsoptions"] != "":
		c.fail("--fsprofile and --mkfsoptions exclude each other")
	case c.has("resize") && !c.has(onto, alias):
		c.fail("--resize needs --%s", onto)
	case c.has("resize") && !positive(c.opts["size"]):
		c.fail("--resize needs --size")
	}
}

func network(c *command) {
	c.define("network device", c.opts["device"])
	if s := c.opts["bridgeopts"]; s != "" {
		if c.opts["bridgeslaves"] == "" {
			c.fail("--bridgeopts needs --bridgeslaves")
		}
		for pair := range strings.SplitSeq(s, ",") {
			if _, value, _ := strings.Cut(pair, "="); value == "" || strings.Contains(value, "=") {
				c.fail("--bridgeopts is %q, not key=value pairs separated by commas", s)
				break
			}
		}
	}
	if c.opts["bindto"] == "mac" && c.opts["vlanid"] != "" && c.opts["bondopts"] == "" {
		c.fail("--bindto=mac is not for VLANs")
	}
	if c.opts["device"] == "" {
		for _, o := range []string{"ipv4-dns-search", "ipv6-dns-search", "ipv4-ignore-auto-dns", "ipv6-ignore-auto-dns"} {
			if c.has(o) {
				c.fail("--%s needs --device", o)
			}
		}
	}
	if c.check.release == 7 {
		vlanName(c)
	}
}

// vlanName: NetworkManager of release 7 reads the VLAN out of the name of the interface.
func vlanName(c *command) {
	name := c.opts["interfacename"]
	var id string
	if prefix, after, dot := strings.Cut(name, "."); dot {
		if prefix == "vlan" {
			c.fail("--interfacename: vlan can't stand before a dot in RHEL 7")
			return
		}
		id = after
	} else if after, ok := strings.CutPrefix(name, "vlan"); ok {
		id = after
	} else {
		return
	}
	if n, err := strconv.Atoi(id); err != nil || n < 0 || n > 4095 {
		c.fail("--interfacename is %q: RHEL 7 wants the VLAN's number after vlan or a dot", name)
	}
}
