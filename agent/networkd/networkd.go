// Package networkd is the form in which a host's own network is kept: units of systemd-networkd and .link files of udev, in Dir. The
// installer writes them, an operator's changes (agent/network) edit them, and both through this package.
//
// It is pure text. Parse and String keep what they don't know, and its order and comments: what an administrator wrote by hand, with
// options that nothing here has heard of, outlives every edit.
package networkd

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Dir is where the units of this machine are; those elsewhere are the distribution's or of a tool such as netplan.
const Dir = "/etc/systemd/network"

// Section is a part of a unit.
type Section struct {
	Name string
	// Lines are the assignments, comments and blank lines, in order, without their ends; a line that goes on is one.
	Lines []string
}

// Unit is a file of systemd.netdev(5), systemd.network(5) or systemd.link(5).
type Unit struct {
	// Head are the lines before the first section.
	Head     []string
	Sections []Section
}

// Parse reads a unit.
func Parse(text string) (*Unit, error) {
	u := &Unit{}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for n := 0; n < len(lines); n++ {
		line := strings.TrimRight(lines[n], "\r")
		at := n + 1
		for strings.HasSuffix(line, "\\") && !comment(line) && n+1 < len(lines) {
			n++
			line += "\n" + strings.TrimRight(lines[n], "\r")
		}
		// To go on with nothing is to end.
		for !comment(line) && strings.HasSuffix(strings.TrimSpace(line), "\\") {
			line = strings.TrimSuffix(strings.TrimSpace(line), "\\")
		}
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "["):
			name, ok := strings.CutSuffix(trimmed[1:], "]")
			if !ok || name == "" || strings.ContainsAny(name, "[]\n") {
				return nil, fmt.Errorf("line %d: %q is not the head of a section", at, trimmed)
			}
			u.Sections = append(u.Sections, Section{Name: name})
			continue
		case trimmed != "" && !comment(trimmed):
			if key, _, ok := strings.Cut(trimmed, "="); !ok || strings.TrimSpace(key) == "" {
				return nil, fmt.Errorf("line %d: %q is not an assignment", at, trimmed)
			}
			if len(u.Sections) == 0 {
				return nil, fmt.Errorf("line %d: %q is before any section", at, trimmed)
			}
		}
		if len(u.Sections) == 0 {
			u.Head = append(u.Head, line)
			continue
		}
		last := &u.Sections[len(u.Sections)-1]
		last.Lines = append(last.Lines, line)
	}
	if len(u.Sections) == 0 {
		u.Head = trimBlank(u.Head)
	}
	return u, nil
}

func comment(line string) bool {
	line = strings.TrimSpace(line)
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";")
}

// assignment splits a line; ok is false for comments and blank lines.
func assignment(line string) (key, value string, ok bool) {
	if comment(line) {
		return "", "", false
	}
	key, value, ok = strings.Cut(strings.ReplaceAll(line, "\\\n", " "), "=")
	return strings.TrimSpace(key), strings.TrimSpace(value), ok
}

// String is the file: sections with one blank line between them.
func (u *Unit) String() string {
	var b strings.Builder
	for _, line := range u.Head {
		b.WriteString(line + "\n")
	}
	for n, s := range u.Sections {
		if n > 0 {
			b.WriteString("\n")
		}
		b.WriteString("[" + s.Name + "]\n")
		for _, line := range trimBlank(s.Lines) {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func trimBlank(lines []string) []string {
	for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// Values are all that a key is assigned to in all sections of a name, in order. An assignment of nothing forgets the earlier ones, as
// systemd has it.
func (u *Unit) Values(section, key string) []string {
	var out []string
	for _, s := range u.Sections {
		if s.Name != section {
			continue
		}
		for _, line := range s.Lines {
			if k, v, ok := assignment(line); ok && k == key {
				if v == "" {
					out = nil
					continue
				}
				out = append(out, v)
			}
		}
	}
	return out
}

// Value is the last value of a key, "" without one.
func (u *Unit) Value(section, key string) string {
	all := u.Values(section, key)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// Words are the values of a key that holds lists.
func (u *Unit) Words(section, key string) []string {
	return strings.Fields(strings.Join(u.Values(section, key), " "))
}

// Keys are the keys that the sections of a name assign, once each, in order.
func (u *Unit) Keys(section string) []string {
	var out []string
	for _, s := range u.Sections {
		if s.Name != section {
			continue
		}
		for _, line := range s.Lines {
			if k, _, ok := assignment(line); ok && !slices.Contains(out, k) {
				out = append(out, k)
			}
		}
	}
	return out
}

// Set assigns values to a key, in the place of all that it was assigned to; none removes it.
func (u *Unit) Set(section, key string, values ...string) {
	for n := range u.Sections {
		if s := &u.Sections[n]; s.Name == section {
			s.Lines = slices.DeleteFunc(s.Lines, func(line string) bool {
				k, _, ok := assignment(line)
				return ok && k == key
			})
		}
	}
	for _, v := range values {
		u.Add(section, key, v)
	}
}

// Add assigns one more value to a key, at the end of the first section of that name, which is made if there is none.
func (u *Unit) Add(section, key, value string) {
	u.lines(section, key+"="+value)
}

func (u *Unit) lines(section string, lines ...string) {
	n := slices.IndexFunc(u.Sections, func(s Section) bool { return s.Name == section })
	if n < 0 {
		u.Sections = append(u.Sections, Section{Name: section})
		n = len(u.Sections) - 1
	}
	u.Sections[n].Lines = append(trimBlank(u.Sections[n].Lines), lines...)
}

// Drop removes all sections of a name.
func (u *Unit) Drop(section string) {
	u.Sections = slices.DeleteFunc(u.Sections, func(s Section) bool { return s.Name == section })
}

// Clone is a copy that can be changed by itself.
func (u *Unit) Clone() *Unit {
	c := &Unit{Head: slices.Clone(u.Head)}
	for _, s := range u.Sections {
		c.Sections = append(c.Sections, Section{Name: s.Name, Lines: slices.Clone(s.Lines)})
	}
	return c
}

// NetDevFile is the file that makes a device.
func NetDevFile(device string) string { return "10-" + device + ".netdev" }

// NetworkFile is the file that configures a device.
func NetworkFile(device string) string { return "20-" + device + ".network" }

// LinkFile is the file that names an interface.
func LinkFile(device string) string { return "10-" + device + ".link" }

// Network makes a unit for what match finds, such as Match("Name", "eno1"). Sections without lines are left out.
func Network(match []string, sections ...Section) *Unit {
	u := &Unit{Sections: []Section{{Name: "Match", Lines: match}}}
	for _, s := range sections {
		if len(s.Lines) > 0 {
			u.Sections = append(u.Sections, s)
		}
	}
	return u
}

// NoAddress are the lines of a [Network] section that keep a device without any address, IPv6's own too: what a member of a bond or
// bridge has, and a device that only carries others.
func NoAddress() []string { return []string{"LinkLocalAddressing=no", "IPv6AcceptRA=no"} }

// Link makes the unit by which udev calls the interface with a permanent MAC by a name, at each start.
func Link(mac, name string) *Unit {
	return &Unit{Sections: []Section{
		{Name: "Match", Lines: []string{"PermanentMACAddress=" + mac}},
		// The names that udev would have given stay as alternative ones.
		{Name: "Link", Lines: []string{"AlternativeNamesPolicy=database onboard slot path", "Name=" + name}},
	}}
}

// VLAN makes the device that carries the frames with that VLAN id of another one, whose [Network] names it.
func VLAN(name string, id int) *Unit {
	return netdev(name, "vlan", "VLAN", []string{"Id=" + strconv.Itoa(id)})
}

func netdev(name, kind, section string, lines []string) *Unit {
	return &Unit{Sections: []Section{{Name: "NetDev", Lines: []string{"Name=" + name, "Kind=" + kind}}, {Name: section, Lines: lines}}}
}

// bondModes are the numbers of the bonding driver.
func bondModes() []string {
	return []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}
}

// option names an option of a driver the way systemd.netdev(5) does, and says what its number counts.
type option struct{ key, unit string }

func bondOptions() map[string]option {
	return map[string]option{
		"miimon": {"MIIMonitorSec", "ms"}, "updelay": {"UpDelaySec", "ms"}, "downdelay": {"DownDelaySec", "ms"}, "xmit_hash_policy": {"TransmitHashPolicy", ""},
		"min_links": {"MinLinks", ""}, "ad_select": {"AdSelect", ""}, "primary_reselect": {"PrimaryReselectPolicy", ""}, "fail_over_mac": {"FailOverMACPolicy", ""},
	}
}

func bridgeOptions() map[string]option {
	return map[string]option{
		"priority": {"Priority", ""}, "forward-delay": {"ForwardDelaySec", ""}, "hello-time": {"HelloTimeSec", ""}, "max-age": {"MaxAgeSec", ""}, "ageing-time": {"AgeingTimeSec", ""},
	}
}

// Bond makes a bond. Its options are the bonding driver's own, as in its documentation: mode (a name or number; balance-rr without one),
// miimon (milliseconds, 100 without), lacp_rate, xmit_hash_policy and so on. Those that are not known are left out.
func Bond(name string, options map[string]string) *Unit {
	mode := options["mode"]
	if n, err := strconv.Atoi(mode); err == nil && n >= 0 && n < len(bondModes()) {
		mode = bondModes()[n]
	}
	if mode == "" {
		mode = "balance-rr"
	}
	lines := []string{"Mode=" + mode}
	if options["miimon"] == "" {
		lines = append(lines, "MIIMonitorSec=100ms")
	}
	lines = append(lines, optionLines(options, bondOptions())...)
	if r := options["lacp_rate"]; r != "" {
		lines = append(lines, "LACPTransmitRate="+map[string]string{"0": "slow", "1": "fast", "slow": "slow", "fast": "fast"}[r])
	}
	return netdev(name, "bond", "Bond", lines)
}

// Bridge makes a bridge. Its options are stp, priority, forward-delay and the other names of kickstart's --bridgeopts; STP is off without
// one.
func Bridge(name string, options map[string]string) *Unit {
	stp := "no"
	if v := options["stp"]; v == "yes" || v == "on" || v == "true" {
		stp = "yes"
	}
	return netdev(name, "bridge", "Bridge", append([]string{"STP=" + stp}, optionLines(options, bridgeOptions())...))
}

func optionLines(have map[string]string, known map[string]option) []string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if o, ok := known[k]; ok {
			lines = append(lines, o.key+"="+have[k]+o.unit)
		}
	}
	return lines
}
