package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"shoal/desired/kickstart"
)

const mib = 1 << 20

// String names a disk for people: they must be able to tell it from others.
func (d *Disk) String() string {
	what := slices.DeleteFunc([]string{size(d.Size), d.Model, d.Serial}, func(s string) bool { return s == "" })
	return d.Path + " (" + strings.Join(what, ", ") + ")"
}

func size(bytes int64) string {
	if bytes < 10<<30 {
		return fmt.Sprintf("%d MiB", bytes/mib)
	}
	return fmt.Sprintf("%d GiB", bytes>>30)
}

// is reports whether a kickstart means this disk by a name: the kernel's, a path, or a pattern of one.
func (d *Disk) is(spec string) bool {
	spec = strings.TrimPrefix(spec, "/dev/")
	for _, name := range append([]string{d.Name, d.Path}, d.Links...) {
		if ok, err := path.Match(spec, strings.TrimPrefix(name, "/dev/")); ok && err == nil {
			return true
		}
	}
	return false
}

func (d *Disk) any(specs []string) bool { return slices.ContainsFunc(specs, d.is) }

// unfinished reports whether the disk holds nothing but an installation of ours that did not come to its end.
func (d *Disk) unfinished() bool {
	return d.Table == "gpt" && len(d.Content) > 0 && d.Content[0].Name == Unfinished
}

// holds tells what is on the disk.
func (d *Disk) holds() string {
	var all []string
	for _, c := range d.Content {
		s := strings.TrimPrefix(c.Path, "/dev/")
		switch {
		case c.Type == "" && c.Path == d.Path:
			continue
		case c.Type == "":
			s += ": a partition"
		case c.Type == "data":
			s += ": data of an unknown kind"
		default:
			s += ": " + c.Type
		}
		if c.Label != "" {
			s += " " + c.Label
		}
		all = append(all, s)
	}
	if len(all) > 6 {
		all = append(all[:6], fmt.Sprintf("%d more", len(all)-6))
	}
	if len(all) == 0 {
		return "an empty " + d.Table + " partition table"
	}
	return strings.Join(all, ", ")
}

// choose finds the disks that may be used.
func (p *planner) choose() {
	k := p.ks.Disks
	named := map[string]kickstart.Pos{}
	add := func(at kickstart.Pos, specs ...string) {
		for _, s := range specs {
			if s != "" {
				named[s] = at
			}
		}
	}
	add(p.ks.Boot.At, p.ks.Boot.Disk)
	for _, part := range p.ks.Parts {
		add(part.At, part.Disk)
	}
	add(k.ClearAt, k.ClearDisks...)
	pool := k.OnlyUse
	if len(pool) == 0 {
		for s := range named {
			pool = append(pool, s)
		}
		slices.Sort(pool)
	}
	add(k.OnlyUseAt, k.OnlyUse...)
	for _, s := range sortedKeys(named) {
		p.mustBe(s, named[s])
	}
	if len(p.errs) > 0 {
		return
	}
	for i := range p.m.Disks {
		d := &p.m.Disks[i]
		switch {
		case len(pool) > 0 && !d.any(pool), d.any(k.Ignore):
		case len(pool) == 0 && (d.Removable || d.ReadOnly || d.InUse != ""):
		default:
			p.pool = append(p.pool, d)
		}
	}
	switch {
	case len(p.pool) == 0:
		p.fail(kickstart.Pos{File: p.file()}, "", "the machine has no disk to install to; it has %s", p.disks())
	case len(pool) == 0 && len(p.pool) > 1:
		p.fail(kickstart.Pos{File: p.file()}, "say which to use with ignoredisk --only-use=", "the machine has %d disks and the kickstart names none: %s", len(p.pool), p.disks())
	}
}

// file is the kickstart's name for errors that concern no line.
func (p *planner) file() string {
	if p.ks.Root != nil {
		return p.ks.Root.At.File
	}
	return ""
}

// mustBe fails when a kickstart names a disk that is not there or can't be used.
func (p *planner) mustBe(spec string, at kickstart.Pos) {
	var found []*Disk
	for i := range p.m.Disks {
		if p.m.Disks[i].is(spec) {
			found = append(found, &p.m.Disks[i])
		}
	}
	if len(found) == 0 {
		p.fail(at, "", "no disk is %s; the machine has %s", spec, p.disks())
	}
	for _, d := range found {
		switch {
		case d.InUse != "":
			p.fail(at, "", "%s can't be used: %s", d, d.InUse)
		case d.ReadOnly:
			p.fail(at, "", "%s can't be used: it is read-only", d)
		}
	}
}

// disks lists all disks.
func (p *planner) disks() string {
	if len(p.m.Disks) == 0 {
		return "no disks at all (is the controller's driver there, is the RAID volume made?)"
	}
	all := make([]string, len(p.m.Disks))
	for i := range p.m.Disks {
		d := &p.m.Disks[i]
		if all[i] = d.String(); d.InUse != "" {
			all[i] += ": " + d.InUse
		}
	}
	return strings.Join(all, ", ")
}

// free checks that what is on a disk may go, and takes down what lies on it.
func (p *planner) free(d *Disk) {
	k := p.ks.Disks
	cleared := func(d *Disk) bool { return k.ClearAll && (len(k.ClearDisks) == 0 || d.any(k.ClearDisks)) }
	for _, c := range d.Content {
		if c.Name == Finished(p.o.ID) && !p.o.Reinstall {
			p.fail(kickstart.Pos{File: p.file()}, "take the medium out and start from the disk; to install again choose it in the boot menu", "%s was installed from this very medium already", d)
			return
		}
	}
	if d.unfinished() {
		p.say("%s: start an unfinished installation again", d)
		return
	}
	if len(d.Content) == 0 && d.Table == "" {
		p.say("%s: blank", d)
		return
	}
	switch {
	case !cleared(d):
		p.fail(k.ClearAt, "if it may all be lost, say so with clearpart --all --drives="+d.Name, "%s holds data and the kickstart does not clear it: %s", d, d.holds())
		return
	case d.Table == "" && !k.ZeroMBR:
		p.fail(k.ClearAt, "if it may all be lost, add zerombr", "%s holds something without a partition table: %s", d, d.holds())
		return
	}
	for _, h := range d.Holders {
		for i := range p.m.Disks {
			other := &p.m.Disks[i]
			same := slices.ContainsFunc(other.Holders, func(o Holder) bool { return o.Kind == h.Kind && o.Name == h.Name })
			if same && other.Name != d.Name && (!cleared(other) || !slices.Contains(p.pool, other)) {
				p.fail(k.ClearAt, "clear both or none", "%s can't be cleared: the %s %s lies on %s too", d, h.Kind, h.Name, other)
			}
		}
	}
	p.say("%s: ERASE ALL: %s", d, d.holds())
}

// takeDown stops what the kernel has made out of the disks.
func (p *planner) takeDown(disks []*Disk) {
	done := map[string]bool{}
	for _, d := range disks {
		for _, h := range d.Holders {
			if done[h.Path] {
				continue
			}
			done[h.Path] = true
			switch h.Kind {
			case "raid":
				p.step("stop the array "+h.Name, nil, "mdadm", "--stop", h.Path)
			default:
				p.step("stop the volume "+h.Name, nil, "dmsetup", "remove", "--retry", h.Path)
			}
		}
	}
}
