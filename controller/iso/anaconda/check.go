package anaconda

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"shoal/desired/kickstart"
)

// Check reports what a release's Anaconda would refuse, as kickstart.Errors, and in notes what it would read and not do. The file is taken as it is.
func Check(src kickstart.Source, r Release) ([]kickstart.Note, error) {
	f := read(src)
	f.check(r)
	return f.result()
}

func (f *file) result() ([]kickstart.Note, error) {
	if len(f.errs) > 0 {
		return nil, f.errs
	}
	return f.notes, nil
}

// command is a line taken apart. Of an option that is given twice the last counts.
type command struct {
	at    kickstart.Pos
	name  string
	args  []string
	opts  map[string]string
	check *checker
}

func (c *command) has(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { _, ok := c.opts[n]; return ok })
}

func (c *command) fail(format string, args ...any) {
	c.check.file.fail(c.at, c.name+": "+fmt.Sprintf(format, args...), "")
}

// checker goes through a file.
type checker struct {
	file    *file
	release Release
	// seen are the commands so far, and defined what they define, with the places.
	seen, defined map[string]kickstart.Pos
}

func (f *file) check(r Release) {
	c := &checker{file: f, release: r, seen: map[string]kickstart.Pos{}, defined: map[string]kickstart.Pos{}}
	for _, it := range f.items {
		switch {
		case len(it.words) == 0 || it.words[0] == "%include":
		case it.section:
			c.section(it)
		default:
			c.command(it)
		}
	}
}

func (c *checker) command(it *item) {
	name := it.words[0]
	if full, ok := aliases[name]; ok {
		name = full
	}
	g, ok := commands[name]
	if !ok {
		c.file.fail(it.at, fmt.Sprintf("unknown command %q", it.words[0]), kickstart.Near(name, slices.Concat(slices.Sorted(maps.Keys(commands)), slices.Sorted(maps.Keys(aliases)))))
		return
	}
	if !c.known(it.at, it.words[0], g.releases, g.gone) {
		return
	}
	if _, before := c.seen[name]; !before {
		c.seen[name] = it.at
	}
	for other := range strings.FieldsSeq(g.excludes) {
		if before, ok := c.seen[other]; ok {
			c.file.fail(it.at, fmt.Sprintf("%s and %s, in %s, exclude each other", it.words[0], other, before), "")
		}
	}
	if g.free {
		return
	}
	if cmd := c.parse(it, g); cmd != nil {
		if rule, ok := rules[name]; ok {
			rule(cmd)
		}
	}
}

// known reports whether the release knows a word, and says so where it does not or where the word does nothing.
func (c *checker) known(at kickstart.Pos, title string, in span, gone string) bool {
	known, deprecated := in.has(c.release)
	if !known {
		c.file.fail(at, fmt.Sprintf("RHEL %d does not know %s", c.release, title), gone)
		return false
	}
	if deprecated {
		text := fmt.Sprintf("%s is deprecated in RHEL %d", title, c.release)
		if gone != "" {
			text += ": " + gone
		}
		c.file.note(at, text)
	}
	return true
}

// parse takes a line apart; it gives nothing where something was wrong.
func (c *checker) parse(it *item, g grammar) *command {
	cmd := &command{at: it.at, name: it.words[0], opts: map[string]string{}, check: c}
	before := len(c.file.errs)
	all := g.all()
	words := it.words[1:]
	for i := 0; i < len(words); i++ {
		w := words[i]
		if !strings.HasPrefix(w, "-") || w == "-" || isNumber(w) {
			cmd.args = append(cmd.args, w)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		at := slices.IndexFunc(all, func(o option) bool { return o.name == name })
		if at < 0 || !strings.HasPrefix(w, "--") {
			names := make([]string, len(all))
			for n, o := range all {
				names[n] = o.name
			}
			option, _, _ := strings.Cut(w, "=")
			c.file.fail(it.at, fmt.Sprintf("%s has no option %s", cmd.name, option), kickstart.Near(name, names))
			continue
		}
		o := all[at]
		if !c.known(it.at, cmd.name+" --"+name, o.releases, map[bool]string{true: team, false: g.gone}[strings.HasPrefix(name, "team")]) {
			continue
		}
		switch {
		case o.shape == "flag" && given:
			cmd.fail("--%s takes no value", name)
			continue
		case o.shape != "flag" && !given:
			if i+1 < len(words) && (!strings.HasPrefix(words[i+1], "-") || isNumber(words[i+1])) {
				i++
				value = words[i]
			} else if o.shape != "maybe" {
				cmd.fail("--%s needs a value", name)
				continue
			}
		}
		if why := wrongShape(o.shape, value); why != "" {
			cmd.fail("--%s is %q, not %s", name, value, why)
			continue
		}
		cmd.opts[name] = value
	}
	for _, o := range all {
		if known, _ := o.releases.has(c.release); o.required && known && !cmd.has(o.name) {
			cmd.fail("--%s is missing", o.name)
		}
	}
	switch {
	case len(cmd.args) < g.min:
		c.file.fail(it.at, fmt.Sprintf("%s needs %s", cmd.name, g.what), "")
	case g.max >= 0 && len(cmd.args) > g.max:
		c.file.fail(it.at, fmt.Sprintf("%s: too many words: %q", cmd.name, cmd.args[g.max]), "")
	}
	if len(c.file.errs) > before {
		return nil
	}
	return cmd
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

// wrongShape says what a value should be, or nothing when it is that.
func wrongShape(shape, value string) string {
	switch shape {
	case "flag", "text", "maybe":
		return ""
	case "number":
		if !isNumber(value) {
			return "a number"
		}
	case "yesno":
		if !slices.Contains([]string{"on", "yes", "true", "1", "off", "no", "false", "0"}, strings.ToLower(value)) {
			return "yes or no"
		}
	default:
		all := strings.Split(shape, "|")
		// Anaconda takes the levels of arrays and the types of autopart in any case, and nothing else.
		if folded := slices.Contains(all, "raid1") || slices.Contains(all, "thinp"); !slices.Contains(all, value) && (!folded || !slices.Contains(all, strings.ToLower(value))) {
			return "one of " + strings.Join(all, ", ")
		}
	}
	return ""
}

// define notes that a line makes something that only one line may make.
func (c *command) define(what, name string) {
	key := what + "\x00" + name
	if before, twice := c.check.defined[key]; twice {
		if name == "" {
			c.fail("the %s is there already, in %s", what, before)
		} else {
			c.fail("the %s %s is there already, in %s", what, name, before)
		}
		return
	}
	c.check.defined[key] = c.at
}

func (c *checker) section(it *item) {
	name := it.words[0]
	g, ok := sections[name]
	if !ok {
		c.file.fail(it.at, fmt.Sprintf("unknown section %q", name), kickstart.Near(name, slices.Sorted(maps.Keys(sections))))
		return
	}
	if !c.known(it.at, name, g.releases, g.gone) || g.free {
		return
	}
	cmd := c.parse(it, g)
	if cmd == nil {
		return
	}
	switch name {
	case "%packages":
		if cmd.has("default") && cmd.has("nocore") {
			cmd.fail("--default and --nocore exclude each other")
		}
		c.packages(it)
	case "%certificate":
		if !cmd.has("dir", "type") {
			cmd.fail("--dir or --type is missing")
		}
		if strings.TrimSpace(strings.Join(it.body, "")) == "" {
			cmd.fail("there is no certificate in it")
		}
	}
}

func (c *checker) packages(it *item) {
	for n, line := range it.body {
		at := kickstart.Pos{File: it.at.File, Line: it.at.Line + 1 + n}
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch {
		case fields[0] == "%include":
			if len(fields) != 2 || !strings.HasPrefix(fields[1], "/") {
				c.file.fail(at, "%include inside %packages needs one absolute path", "write the packages themselves")
			}
		case strings.HasPrefix(fields[0], "@") && slices.Contains(fields, "--nodefaults") && slices.Contains(fields, "--optional"):
			c.file.fail(at, fields[0]+": --nodefaults and --optional exclude each other", "")
		case strings.HasPrefix(fields[0], "%"):
			c.file.fail(at, fmt.Sprintf("%q is no package", fields[0]), "close %packages with %end before it")
		}
	}
}
