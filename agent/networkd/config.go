package networkd

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Config is all units of a directory, by their file names. Drop-ins are not among them.
type Config map[string]*Unit

// IsUnit reports whether a file of Dir is a unit.
func IsUnit(file string) bool {
	return slices.Contains([]string{".netdev", ".network", ".link"}, path.Ext(file)) && !strings.HasPrefix(file, ".")
}

// ParseConfig reads units, by their file names.
func ParseConfig(files map[string]string) (Config, error) {
	c := Config{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		u, err := Parse(files[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(Dir, name), err)
		}
		c[name] = u
	}
	return c, nil
}

// Clone is a copy that can be changed by itself.
func (c Config) Clone() Config {
	out := Config{}
	for name, u := range c {
		out[name] = u.Clone()
	}
	return out
}

// Device is what [Match] sections look at.
type Device struct {
	Name     string
	AltNames []string
	// MAC is the address now, PermanentMAC the hardware's, "" without one; both as "52:54:00:aa:00:01".
	MAC, PermanentMAC string
	// Kind is that of the driver, such as bond, "" for hardware.
	Kind string
}

// files are the units of a sort, in systemd's order.
func (c Config) files(ext string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c)), func(name string) bool { return path.Ext(name) != ext })
}

// NetworkOf is the .network file that is in force for an Ethernet device: the first that matches it. It is "" for none, and an error where
// that can't be told.
func (c Config) NetworkOf(d Device) (string, error) {
	for _, file := range c.files(".network") {
		match, err := c[file].matches(d)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path.Join(Dir, file), err)
		}
		if match {
			return file, nil
		}
	}
	return "", nil
}

func (u *Unit) matches(d Device) (bool, error) {
	lower := func(all []string) []string {
		out := make([]string, 0, len(all))
		for _, s := range all {
			out = append(out, strings.ToLower(s))
		}
		return out
	}
	for _, key := range u.Keys("Match") {
		want := u.Words("Match", key)
		var ok bool
		switch key {
		case "Name":
			ok = anyOf(want, append([]string{d.Name}, d.AltNames...)...)
		case "OriginalName":
			ok = anyOf(want, d.Name)
		case "MACAddress":
			ok = d.MAC != "" && slices.Contains(lower(want), strings.ToLower(d.MAC))
		case "PermanentMACAddress":
			ok = d.PermanentMAC != "" && slices.Contains(lower(want), strings.ToLower(d.PermanentMAC))
		case "Type":
			ok = anyOf(want, "ether")
		case "Kind":
			ok = anyOf(want, d.Kind)
		default:
			return false, fmt.Errorf("whether it is %s's can't be told, since it matches by %s: match it by Name or PermanentMACAddress", d.Name, key)
		}
		if !ok && len(want) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// anyOf reports whether a list of shell patterns, as systemd.network(5) has it, takes one of the values. A "!" at its beginning
// turns the whole list round.
func anyOf(patterns []string, values ...string) bool {
	not := false
	if len(patterns) > 0 {
		if rest, ok := strings.CutPrefix(patterns[0], "!"); ok {
			not, patterns = true, append([]string{rest}, patterns[1:]...)
		}
	}
	found := slices.ContainsFunc(patterns, func(p string) bool {
		return slices.ContainsFunc(values, func(v string) bool {
			// A kind that is empty is none, which no pattern takes.
			ok, err := path.Match(p, v)
			return v != "" && err == nil && ok
		})
	})
	return found != not
}

// Only reports whether a .network unit is one device's alone, by its name or its permanent MAC.
func (u *Unit) Only(d Device) bool {
	keys := u.Keys("Match")
	if len(keys) != 1 {
		return false
	}
	words := u.Words("Match", keys[0])
	return len(words) == 1 && (keys[0] == "Name" && words[0] == d.Name || keys[0] == "PermanentMACAddress" && d.PermanentMAC != "" && strings.EqualFold(words[0], d.PermanentMAC))
}

// NetDevOf is the file that makes a device, "" for none.
func (c Config) NetDevOf(name string) string {
	for _, file := range c.files(".netdev") {
		if c[file].Value("NetDev", "Name") == name {
			return file
		}
	}
	return ""
}

// NetDevs are the names of the devices that the units make, in order.
func (c Config) NetDevs() []string {
	var out []string
	for _, file := range c.files(".netdev") {
		if name := c[file].Value("NetDev", "Name"); name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// LinkOf is the .link file that names the interface with a permanent MAC, "" for none.
func (c Config) LinkOf(mac string) string {
	for _, file := range c.files(".link") {
		if c[file].Value("Link", "Name") != "" && slices.ContainsFunc(c[file].Words("Match", "PermanentMACAddress"), func(m string) bool { return strings.EqualFold(m, mac) }) {
			return file
		}
	}
	return ""
}
