package kickstart

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// maxDepth bounds %include within %include, and maxSize all text together: the language has no use for more.
const (
	maxDepth = 8
	maxSize  = 4 << 20
)

// Source is where a kickstart file and what it includes come from.
type Source struct {
	// Name is the file as errors name it.
	Name string
	Text []byte
	// Open gives an included file. A path is as written, and relative ones are relative to the file that includes them.
	Open func(name string) ([]byte, error)
	// Early allows included files to be absent, since %pre writes them: everything else can be checked before it runs.
	Early bool
}

// Parse reads a kickstart file. Its error is of type Errors and lists all that is wrong.
func Parse(src Source) (*Kickstart, error) {
	p := &parser{src: src, ks: &Kickstart{}, seen: map[string]Pos{}}
	p.file(src.Name, src.Text, 0)
	p.build()
	if err := p.errs.orNil(); err != nil {
		return nil, err
	}
	return p.ks, nil
}

type parser struct {
	src      Source
	ks       *Kickstart
	errs     Errors
	commands []*command
	seen     map[string]Pos
	size     int
	// missing is set when an included file is not there yet.
	missing bool
}

func (p *parser) fail(at Pos, remedy, format string, args ...any) {
	p.errs = append(p.errs, &Error{At: at, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (p *parser) note(at Pos, format string, args ...any) {
	p.ks.Notes = append(p.ks.Notes, Note{At: at, Text: fmt.Sprintf(format, args...)})
}

func (p *parser) file(name string, text []byte, depth int) {
	if p.size += len(text); p.size > maxSize {
		p.fail(Pos{name, 1}, "", "kickstart files of more than %d MiB are not read", maxSize>>20)
		return
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		at := Pos{name, i + 1}
		// What a line begins with decides; quotes are looked at afterwards.
		head := strings.Fields(lines[i])
		if len(head) == 0 || strings.HasPrefix(head[0], "#") {
			continue
		}
		ws, err := Words(lines[i])
		if err != nil {
			p.fail(at, "", "%v", err)
			ws = head
		}
		switch {
		case len(ws) == 0:
		case ws[0] == "%include" || ws[0] == "%ksappend":
			if err == nil {
				p.include(ws, at, depth)
			}
		case ws[0] == "%end":
			p.fail(at, "", "there is no section that %%end could close")
		case strings.HasPrefix(ws[0], "%"):
			end := i + 1
			for end < len(lines) && strings.TrimSpace(lines[end]) != "%end" {
				end++
			}
			if end == len(lines) {
				p.fail(at, "", "section %s is not closed by %%end", ws[0])
				return
			}
			if err == nil {
				p.section(ws, lines[i+1:end], at)
			}
			i = end
		case err == nil:
			p.directive(ws, at)
		}
	}
}

func (p *parser) include(ws []string, at Pos, depth int) {
	if len(ws) != 2 {
		p.fail(at, "", "%s needs one file", ws[0])
		return
	}
	if strings.Contains(ws[1], "://") {
		p.fail(at, "", "%s %s: files are included from the medium and from what %%pre wrote, not from the network", ws[0], ws[1])
		return
	}
	if depth >= maxDepth {
		p.fail(at, "", "%s %s: more than %d files include each other", ws[0], ws[1], maxDepth)
		return
	}
	name := ws[1]
	if !path.IsAbs(name) {
		name = path.Join(path.Dir(at.File), name)
	}
	if p.src.Open == nil {
		p.fail(at, "", "%s %s: nothing can be included here", ws[0], ws[1])
		return
	}
	text, err := p.src.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.src.Early:
		p.missing = true
		p.note(at, "%s is not there yet; it is looked at after %%pre", name)
	case err != nil:
		p.fail(at, "write it in %pre, or put it beside the kickstart file", "%s %s: %v", ws[0], ws[1], err)
	default:
		p.file(name, text, depth+1)
	}
}

func (p *parser) directive(ws []string, at Pos) {
	name := ws[0]
	if a, ok := aliases[name]; ok {
		name = a
	}
	d, ok := directives[name]
	if !ok {
		names := append(slices.Sorted(maps.Keys(directives)), slices.Sorted(maps.Keys(aliases))...)
		p.fail(at, Near(name, names), "unknown directive %q", ws[0])
		return
	}
	if d.refuse != "" {
		p.fail(at, "", "%s can't be used: %s", ws[0], d.refuse)
		return
	}
	if before, twice := p.seen[name]; twice && !d.many {
		p.fail(at, "", "%s is there already, in %s", ws[0], before)
		return
	}
	p.seen[name] = at
	c := p.check(name, ws[1:], at, d.options, d.min, d.max, d.what)
	if d.skip != "" {
		p.note(at, "%s is left out: %s", ws[0], d.skip)
		return
	}
	p.commands = append(p.commands, c)
}

func (p *parser) section(ws, body []string, at Pos) {
	name := strings.TrimPrefix(ws[0], "%")
	s, ok := sections[name]
	if !ok {
		p.fail(at, Near(name, slices.Sorted(maps.Keys(sections))), "unknown section %q", ws[0])
		return
	}
	least, most := s.min, s.max
	c := p.check(ws[0], ws[1:], at, s.options, least, most, "a name")
	switch name {
	case "pre", "pre-install", "post", "onerror":
		interpreter := c.first("interpreter")
		if interpreter == "" {
			interpreter = "/bin/sh"
		}
		if !path.IsAbs(interpreter) {
			p.fail(at, "", "%s: --interpreter is %q, not an absolute path", ws[0], interpreter)
		}
		p.ks.Scripts = append(p.ks.Scripts, Script{
			At: at, Stage: Stage(name), Interpreter: interpreter, StopOnError: c.has("erroronfail"), NoChroot: c.has("nochroot"), Log: c.first("log"),
			Body: strings.Join(body, "\n") + "\n",
		})
	case "packages":
		p.packages(c, body, at)
	case "addon":
		if len(c.args) == 1 && c.args[0] != "com_redhat_kdump" {
			p.fail(at, "", "%%addon %s is not known", c.args[0])
		} else if !c.has("disable") {
			p.fail(at, "write %addon com_redhat_kdump --disable", "%%addon com_redhat_kdump: kdump can't be set up")
		}
	case "certificate":
		p.certificate(c, body, at)
	default:
		p.note(at, "%s is left out: %s", ws[0], s.skip)
	}
}

func (p *parser) packages(c *command, body []string, at Pos) {
	p.ks.Packages.IgnoreMissing = p.ks.Packages.IgnoreMissing || c.has("ignoremissing")
	for i, line := range body {
		ws, err := Words(line)
		at := Pos{at.File, at.Line + 1 + i}
		switch {
		case err != nil:
			p.fail(at, "", "%v", err)
		case len(ws) == 0:
		case ws[0] == "%include":
			p.fail(at, "", "%%include inside %%packages is not supported")
		case len(ws) > 1 && !strings.HasPrefix(ws[0], "@"):
			p.fail(at, "", "%%packages: one package a line, not %q", strings.TrimSpace(line))
		case strings.HasPrefix(ws[0], "-"):
			p.ks.Packages.Exclude = append(p.ks.Packages.Exclude, Named{ws[0][1:], at})
		case strings.HasPrefix(ws[0], "@"):
			p.ks.Packages.Groups = append(p.ks.Packages.Groups, Named{strings.TrimSpace(strings.Join(ws, " ")[1:]), at})
		default:
			p.ks.Packages.Install = append(p.ks.Packages.Install, Named{ws[0], at})
		}
	}
}

func (p *parser) certificate(c *command, body []string, at Pos) {
	name := c.first("filename")
	if name == "" || strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
		p.fail(at, "", "%%certificate needs --filename, a plain file name")
		return
	}
	if dir := c.first("dir"); dir != "" {
		p.fail(at, "copy it in %post", "%%certificate: --dir can't be used, the certificate is put where the system trusts it")
		return
	}
	p.ks.Certificates = append(p.ks.Certificates, Certificate{Name: name, PEM: strings.Join(body, "\n") + "\n"})
}
