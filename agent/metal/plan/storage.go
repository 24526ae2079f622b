package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"shoal/agent/host"
	"shoal/desired/kickstart"
)

// Sizes of partitions that the firmware needs, in MiB.
const (
	biosSize = 1
	espSize  = 256
	// headroom is what a root file system needs beside the image: its own structures, logs, a second kernel.
	headroom = 700
)

// slot is a partition to be made.
type slot struct {
	kickstart.Part
	disk *Disk
	// number from 1; mib is its final size.
	number, mib int
}

func (s *slot) path() string { return partition(s.disk.Path, s.number) }

// partition is the node of a partition: sda1, but nvme0n1p1.
func partition(disk string, n int) string {
	if c := disk[len(disk)-1]; c >= '0' && c <= '9' {
		return disk + "p" + strconv.Itoa(n)
	}
	return disk + strconv.Itoa(n)
}

// types of partitions in a GPT (UEFI specification; Discoverable Partitions Specification). It is read only.
var types = map[string]string{
	"biosboot": "21686148-6449-6E6F-744E-656564454649", "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
	"swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "raid": "A19D880F-05FC-4D3B-A006-743F0F84911E", "lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
}

func (s *slot) kind() string {
	switch {
	case s.Mount == "biosboot" || s.Mount == "swap":
		return s.Mount
	case s.Mount == "/boot/efi" || s.Mount == "":
		return "esp"
	case s.IsRAID():
		return "raid"
	case s.IsPV():
		return "lvm"
	}
	return "linux"
}

// uuid makes the UUID of something; the same installation gets the same one twice.
func (p *planner) uuid(what string) string {
	if u, ok := p.uuids[what]; ok {
		return u
	}
	h := sha256.Sum256([]byte(p.o.Seed + "\x00" + what))
	// RFC 9562, version 8: the maker's own.
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	s := hex.EncodeToString(h[:16])
	p.uuids[what] = s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
	return p.uuids[what]
}

// recommendedSwap follows the table of the RHEL installation guide, at most a tenth of the disk.
func recommendedSwap(memory, disk int) int {
	want := 4096
	switch {
	case memory <= 2048:
		want = 2 * memory
	case memory <= 8192:
		want = memory
	case memory <= 65536:
		want = memory / 2
	}
	return max(256, min(want, disk/10))
}

// auto writes out what autopart means.
func (p *planner) auto() {
	a := p.ks.Auto
	if a == nil {
		return
	}
	k := *p.ks
	p.ks = &k
	disk := int(p.pool[0].Size / mib)
	root := kickstart.Format{Mount: "/", Type: a.Type}
	rootSpace := kickstart.Space{Size: p.m.Image + headroom, Grow: true}
	swap := kickstart.Space{Size: recommendedSwap(p.m.Memory, disk)}
	if a.LVM {
		if !a.NoBoot {
			k.Parts = append(k.Parts, kickstart.Part{At: a.At, Format: kickstart.Format{Mount: "/boot", Type: "ext4"}, Space: kickstart.Space{Size: 1024}})
		}
		k.Parts = append(k.Parts, kickstart.Part{At: a.At, Format: kickstart.Format{Mount: "pv.auto"}, Space: kickstart.Space{Size: 1024, Grow: true}})
		k.Volumes = append(k.Volumes, kickstart.VolumeGroup{At: a.At, Name: "shoal", Members: []string{"pv.auto"}})
		k.Logicals = append(k.Logicals, kickstart.Logical{At: a.At, Format: root, Space: rootSpace, Group: "shoal", Name: "root"})
		if !a.NoSwap {
			k.Logicals = append(k.Logicals, kickstart.Logical{At: a.At, Format: kickstart.Format{Mount: "swap"}, Space: swap, Group: "shoal", Name: "swap"})
		}
		return
	}
	if !a.NoSwap {
		k.Parts = append(k.Parts, kickstart.Part{At: a.At, Format: kickstart.Format{Mount: "swap"}, Space: swap})
	}
	k.Parts = append(k.Parts, kickstart.Part{At: a.At, Format: root, Space: rootSpace})
}

// partitions puts every partition on a disk. Disks to start from need two more; which these are follows from where /boot comes to lie, and that can
// depend on them, hence the repetition.
func (p *planner) partitions() {
	p.auto()
	if p.ks.AddBoot && !p.makes("/boot") {
		k := *p.ks
		k.Parts = append([]kickstart.Part{{At: p.ks.Boot.At, Format: kickstart.Format{Mount: "/boot", Type: "ext4"}, Space: kickstart.Space{Size: 1024}}}, k.Parts...)
		p.ks = &k
	}
	if p.ks.Boot.Disk != "" {
		for _, d := range p.pool {
			if d.is(p.ks.Boot.Disk) {
				p.boot = append(p.boot, d)
				break
			}
		}
	}
	for range len(p.pool) + 1 {
		if !p.place() {
			return
		}
		more := false
		for _, d := range p.bootDisks() {
			if !slices.Contains(p.boot, d) {
				p.boot = append(p.boot, d)
				more = true
			}
		}
		if !more {
			break
		}
	}
	var used []*Disk
	for _, d := range p.pool {
		if len(p.on[d.Name]) > 0 {
			used = append(used, d)
			p.grow(d)
			p.free(d)
		}
	}
	if len(p.errs) == 0 {
		p.takeDown(used)
	}
}

// makes reports whether something of the kickstart is mounted there.
func (p *planner) makes(mount string) bool {
	return slices.ContainsFunc(p.ks.Parts, func(x kickstart.Part) bool { return x.Mount == mount }) ||
		slices.ContainsFunc(p.ks.Arrays, func(x kickstart.Array) bool { return x.Mount == mount }) ||
		slices.ContainsFunc(p.ks.Logicals, func(x kickstart.Logical) bool { return x.Mount == mount })
}

// usable is what partitions can have of a disk: a MiB at each end is for the tables and for alignment.
func usable(d *Disk) int { return int(d.Size/mib) - 2 }

func (p *planner) taken(d *Disk) int {
	n := 0
	for _, s := range p.on[d.Name] {
		n += s.mib
	}
	return n
}

func (p *planner) put(d *Disk, part kickstart.Part, mib int) {
	s := &slot{Part: part, disk: d, mib: mib, number: len(p.on[d.Name]) + 1}
	p.on[d.Name] = append(p.on[d.Name], s)
	p.parts = append(p.parts, s)
}

// place puts the partitions on disks at their least size.
func (p *planner) place() bool {
	p.on, p.parts = map[string][]*slot{}, nil
	if len(p.boot) == 0 {
		p.boot = []*Disk{p.pool[0]}
		// A first partition that names its disk tells better than the order of the kernel.
		for _, part := range p.ks.Parts {
			if i := slices.IndexFunc(p.pool, func(d *Disk) bool { return part.Disk != "" && d.is(part.Disk) }); i >= 0 {
				p.boot = []*Disk{p.pool[i]}
				break
			}
		}
	}
	bios, esp := p.special("biosboot", biosSize), p.special("/boot/efi", espSize)
	for _, d := range p.boot {
		b, e := bios, esp
		p.put(d, b, b.Size)
		if d != p.boot[0] {
			// Only one can be mounted; the others are kept alike by installing the boot loader into each.
			e.Mount = ""
		}
		p.put(d, e, e.Size)
	}
	ok := true
	for _, part := range p.ks.Parts {
		if part.Mount == "biosboot" || part.Mount == "/boot/efi" {
			continue
		}
		want := max(part.Size, 1)
		if part.Recommended {
			want = recommendedSwap(p.m.Memory, int(p.pool[0].Size/mib))
		}
		if d := p.room(part, want); d != nil {
			p.put(d, part, want)
		} else {
			ok = false
		}
	}
	return ok
}

// special is a partition that the firmware needs, as the kickstart wants it or as is usual.
func (p *planner) special(mount string, mib int) kickstart.Part {
	for _, part := range p.ks.Parts {
		if part.Mount == mount {
			part.Size, part.Grow, part.Disk = max(part.Size, mib), false, ""
			return part
		}
	}
	return kickstart.Part{At: p.ks.Boot.At, Format: kickstart.Format{Mount: mount, Type: "vfat"}, Space: kickstart.Space{Size: mib}}
}

// room finds a disk for a partition. Members of one array go on different disks.
func (p *planner) room(part kickstart.Part, want int) *Disk {
	var sisters []string
	for _, a := range p.ks.Arrays {
		if slices.Contains(a.Members, part.Mount) {
			sisters = a.Members
		}
	}
	least := 0
	for _, d := range p.pool {
		if part.Disk != "" && !d.is(part.Disk) {
			continue
		}
		if part.Disk == "" && slices.ContainsFunc(p.on[d.Name], func(s *slot) bool { return slices.Contains(sisters, s.Mount) }) {
			continue
		}
		left := usable(d) - p.taken(d)
		if left >= want {
			return d
		}
		least = max(least, left)
	}
	name := part.Mount
	switch {
	case part.Disk != "":
		p.fail(part.At, "", "%s of %d MiB does not fit on %s: %d MiB are left of the disks that may be used (%s)", name, want, part.Disk, max(0, least), p.poolNames())
	case len(sisters) > 0:
		p.fail(part.At, "", "%s of %d MiB does not fit: each member of an array needs a disk of its own, with room (%s)", name, want, p.poolNames())
	default:
		p.fail(part.At, "", "%s of %d MiB does not fit: %d MiB are left (%s)", name, want, max(0, least), p.poolNames())
	}
	return nil
}

func (p *planner) poolNames() string {
	var all []string
	for _, d := range p.pool {
		all = append(all, d.String())
	}
	return strings.Join(all, ", ")
}

// grow shares what is left of a disk among those that want it, in proportion to their sizes, as Anaconda does.
func (p *planner) grow(d *Disk) {
	share(usable(d)-p.taken(d), p.on[d.Name], func(s *slot) (*int, kickstart.Space) { return &s.mib, s.Space })
}

// share gives left to the growing ones of all.
func share[T any](left int, all []T, of func(T) (*int, kickstart.Space)) {
	for left > 0 {
		var open []T
		sum := 0
		for _, x := range all {
			if have, s := of(x); s.Grow && (s.Max == 0 || *have < s.Max) {
				open = append(open, x)
				sum += max(1, *have)
			}
		}
		if len(open) == 0 {
			return
		}
		given := 0
		for _, x := range open {
			have, s := of(x)
			more := left * max(1, *have) / sum
			if s.Max > 0 {
				more = min(more, s.Max-*have)
			}
			given += more
			*have += more
		}
		if given == 0 {
			// What is left can't be divided any more.
			have, s := of(open[0])
			if s.Max > 0 {
				left = min(left, s.Max-*have)
			}
			*have += left
			return
		}
		left -= given
	}
}

// device is something that can be formatted or be a member: a partition, an array, a logical volume.
type device struct {
	kickstart.Format
	at   kickstart.Pos
	path string
	mib  int
	// disks that it lies on. mirrored: each of them has all of it.
	disks    []*Disk
	mirrored bool
	logical  string
}

// devices are all of them, members before what is made of them.
func (p *planner) devices() []device {
	var all []device
	by := map[string]device{}
	for _, s := range p.parts {
		d := device{Format: s.Format, at: s.At, path: s.path(), mib: s.mib, disks: []*Disk{s.disk}}
		all = append(all, d)
		by[s.Mount] = d
	}
	for _, a := range p.ks.Arrays {
		d := device{Format: a.Format, at: a.At, path: "/dev/md/" + a.Device, mirrored: a.Level == 1}
		least := 0
		for i, m := range a.Members {
			x := by[m]
			if i == 0 || x.mib < least {
				least = x.mib
			}
			d.disks = append(d.disks, x.disks...)
		}
		n := len(a.Members) - a.Spares
		// mdadm keeps some room at the beginning of each member (man md, "data offset"), at most 128 MiB and a superblock.
		d.mib = max(0, least-min(129, 2+least/64)) * map[int]int{0: n, 1: 1, 4: n - 1, 5: n - 1, 6: n - 2, 10: n / 2}[a.Level]
		all = append(all, d)
		by[a.Mount] = d
	}
	for _, v := range p.ks.Volumes {
		all = append(all, p.logicals(v, by)...)
	}
	return all
}

// logicals are the volumes of a group, with their sizes.
func (p *planner) logicals(v kickstart.VolumeGroup, by map[string]device) []device {
	extent := max(1, cmp.Or(v.Extent, 4096)/1024)
	var disks []*Disk
	total, mirrored := 0, true
	for _, m := range v.Members {
		x := by[m]
		disks = append(disks, x.disks...)
		mirrored = mirrored && x.mirrored
		// A MiB at the beginning of each is LVM's.
		total += (x.mib - 1) / extent * extent
	}
	reserve := max(v.Reserve, total*v.ReservePercent/100)
	type volume struct {
		kickstart.Logical
		mib int
	}
	var all []*volume
	left := total - reserve
	for _, l := range p.ks.Logicals {
		if l.Group != v.Name {
			continue
		}
		want := l.Size
		switch {
		case l.Recommended:
			want = recommendedSwap(p.m.Memory, total)
		case l.Percent > 0:
			want = total * l.Percent / 100
		}
		want = (max(1, want) + extent - 1) / extent * extent
		if want > left {
			p.fail(l.At, "", "%s of %d MiB does not fit into the volume group %s: %d MiB are left of %d", l.Mount, want, v.Name, max(0, left), total)
		}
		left -= want
		all = append(all, &volume{l, want})
	}
	share(left/extent*extent, all, func(x *volume) (*int, kickstart.Space) { return &x.mib, x.Space })
	out := make([]device, len(all))
	for i, l := range all {
		out[i] = device{
			Format: l.Format, at: l.At, path: "/dev/" + v.Name + "/" + l.Name, mib: l.mib / extent * extent, disks: disks, mirrored: mirrored && len(v.Members) == 1,
			logical: "/dev/mapper/" + strings.ReplaceAll(v.Name, "-", "--") + "-" + strings.ReplaceAll(l.Name, "-", "--"),
		}
	}
	return out
}

func find(all []device, mount string) *device {
	if i := slices.IndexFunc(all, func(d device) bool { return d.Mount == mount }); i >= 0 {
		return &all[i]
	}
	return nil
}

// bootDisks are the disks that the boot loader must be on: those that hold /boot, all of them when each has the whole of it.
func (p *planner) bootDisks() []*Disk {
	before := len(p.errs)
	all := p.devices()
	p.errs = p.errs[:before]
	d := find(all, "/boot")
	if d == nil {
		d = find(all, "/")
	}
	if d == nil || len(d.disks) == 0 || p.ks.Boot.Disk != "" && !d.mirrored {
		return nil
	}
	if d.mirrored {
		return d.disks
	}
	return d.disks[:1]
}

// build makes the steps.
func (p *planner) build() {
	for _, d := range p.pool {
		if slots := p.on[d.Name]; len(slots) > 0 {
			p.partition(d, slots)
		}
	}
	all := p.devices()
	for _, a := range p.ks.Arrays {
		p.array(a)
	}
	for _, v := range p.ks.Volumes {
		p.group(v, all)
	}
	root := find(all, "/")
	if need := p.m.Image + headroom; root != nil && root.mib < need {
		p.fail(root.at, "give it more, or use a larger disk", "the root file system would have %d MiB, and the system needs %d MiB (disks: %s)", root.mib, need, p.poolNames())
		return
	}
	if boot := find(all, "/boot"); boot != nil && boot.mib < 200 {
		p.fail(boot.at, "give it 512", "/boot of %d MiB has no room for two kernels", boot.mib)
	}
	for _, d := range all {
		p.format(d)
	}
	// A file system is mounted after those that it lies below.
	slices.SortStableFunc(p.out.Mounts, func(a, b Mount) int {
		return cmp.Or(cmp.Compare(strings.Count(path.Clean(a.Path+"/x"), "/"), strings.Count(path.Clean(b.Path+"/x"), "/")), strings.Compare(a.Path, b.Path))
	})
	p.loader(all)
}

func (p *planner) partition(d *Disk, slots []*slot) {
	var script strings.Builder
	fmt.Fprintf(&script, "label: gpt\nlabel-id: %s\n", p.uuid("disk "+d.Name))
	var nodes []string
	for _, s := range slots {
		name := cmp.Or(strings.Trim(strings.ReplaceAll(s.Mount, "/", "-"), "-"), "root")
		if s.Mount == "" {
			name = "boot-efi"
		}
		if s.number == 1 {
			name = Unfinished
		}
		fmt.Fprintf(&script, "size=%dMiB, type=%s, uuid=%s, name=%q\n", s.mib, types[s.kind()], p.uuid("partition "+s.path()), name)
		nodes = append(nodes, s.path())
		what := cmp.Or(s.Mount, "a second /boot/efi")
		if s.Type != "" && s.kind() == "linux" {
			what += " (" + s.Type + ")"
		}
		p.say("  %s %d MiB %s", s.path(), s.mib, what)
	}
	p.out.Steps = append(p.out.Steps, Step{Say: "partition " + d.String(), Nodes: nodes, Command: host.Command{
		Name: "sfdisk", Args: []string{"--quiet", "--lock=yes", "--wipe=always", "--wipe-partitions=always", d.Path}, Stdin: []byte(script.String()),
	}})
	p.out.Finish = append(p.out.Finish, Step{Say: "mark " + d.Path + " as done", Command: host.Command{
		Name: "sfdisk", Args: []string{"--quiet", "--no-reread", "--force", "--part-label", d.Path, "1", Finished(p.o.ID)},
	}})
}

func (p *planner) array(a kickstart.Array) {
	args := []string{"--create", "/dev/md/" + a.Device, "--run", "--force", "--metadata=1.2", "--homehost=any", "--name=" + a.Device, "--level=" + strconv.Itoa(a.Level), "--uuid=" + mdUUID(p.uuid("array "+a.Device))}
	if a.Level != 0 {
		args = append(args, "--bitmap=internal")
	}
	if a.Chunk > 0 && a.Level != 1 {
		args = append(args, "--chunk="+strconv.Itoa(a.Chunk))
	}
	args = append(args, "--raid-devices="+strconv.Itoa(len(a.Members)-a.Spares))
	if a.Spares > 0 {
		args = append(args, "--spare-devices="+strconv.Itoa(a.Spares))
	}
	for _, m := range a.Members {
		for _, s := range p.parts {
			if s.Mount == m {
				args = append(args, s.path())
			}
		}
	}
	p.say("  /dev/md/%s RAID%d of %s %s", a.Device, a.Level, strings.Join(a.Members, ", "), a.Mount)
	p.step("make the array "+a.Device, []string{"/dev/md/" + a.Device}, "mdadm", args...)
}

// mdUUID writes a UUID the way mdadm does.
func mdUUID(u string) string {
	s := strings.ReplaceAll(u, "-", "")
	return s[:8] + ":" + s[8:16] + ":" + s[16:24] + ":" + s[24:]
}

func (p *planner) group(v kickstart.VolumeGroup, all []device) {
	var members []string
	for _, m := range v.Members {
		members = append(members, find(all, m).path)
	}
	p.step("make physical volumes", nil, "pvcreate", append([]string{"--yes", "-ff"}, members...)...)
	p.step("make the volume group "+v.Name, nil, "vgcreate", append([]string{"--yes", "--physicalextentsize", strconv.Itoa(cmp.Or(v.Extent, 4096)) + "k", v.Name}, members...)...)
	for _, d := range all {
		group, name, ok := strings.Cut(strings.TrimPrefix(d.path, "/dev/"), "/")
		if d.logical == "" || !ok || group != v.Name {
			continue
		}
		p.say("  %s %d MiB %s", d.path, d.mib, d.Mount)
		p.step("make the volume "+name, []string{d.logical}, "lvcreate", "--yes", "--wipesignatures", "y", "--name", name, "--size", strconv.Itoa(d.mib)+"m", v.Name)
	}
}

// format makes the file system of a device, its mount and its line of fstab.
func (p *planner) format(d device) {
	if d.Mount == "biosboot" || d.IsPV() || d.IsRAID() {
		return
	}
	node := cmp.Or(d.logical, d.path)
	kind := d.Type
	switch {
	case d.Mount == "swap":
		kind = "swap"
	case d.Mount == "" || d.Mount == "/boot/efi":
		kind = "vfat"
	case kind == "":
		kind = "ext4"
	}
	id := p.uuid("filesystem " + d.path)
	var label []string
	if d.Label != "" {
		label = []string{map[string]string{"vfat": "-n"}[kind] + map[bool]string{true: "-L"}[kind != "vfat"], d.Label}
	}
	say := "make " + kind + " on " + node
	switch kind {
	case "swap":
		p.step(say, nil, "mkswap", slices.Concat([]string{"--force", "--uuid", id}, label, []string{node})...)
	case "vfat":
		id = strings.ToUpper(id[:8])
		p.step(say, nil, "mkfs.vfat", slices.Concat([]string{"-F", "32", "-i", id}, label, []string{node})...)
		id = id[:4] + "-" + id[4:]
	case "xfs":
		if d.mib < 300 {
			p.fail(d.at, "use ext4", "%s of %d MiB is too small for xfs, which needs 300 MiB", d.Mount, d.mib)
		}
		p.step(say, nil, "mkfs.xfs", slices.Concat([]string{"-q", "-f", "-K", "-m", "uuid=" + id}, label, []string{node})...)
	default:
		p.step(say, nil, "mkfs."+kind, slices.Concat([]string{"-q", "-F", "-U", id, "-E", "nodiscard"}, label, []string{node})...)
	}
	switch {
	case d.Mount == "":
	case kind == "swap":
		p.fstab = append(p.fstab, "UUID="+id+" none swap sw 0 0")
	default:
		opts, pass := cmp.Or(d.Options, "defaults"), "2"
		switch d.Mount {
		case "/":
			pass = "1"
		case "/boot/efi":
			// The system starts without it, so a broken one must not stop it.
			opts = cmp.Or(d.Options, "umask=0077,nofail")
		}
		p.fstab = append(p.fstab, "UUID="+id+" "+d.Mount+" "+kind+" "+opts+" 0 "+pass)
		p.out.Mounts = append(p.out.Mounts, Mount{Device: node, Path: d.Mount, Type: kind, Options: d.Options})
	}
}

// loader plans how the machine starts.
func (p *planner) loader(all []device) {
	l := &p.out.Loader
	l.None, l.KeepOrder = p.ks.Boot.None, p.ks.Boot.KeepOrder
	if l.None {
		p.note(p.ks.Boot.At, "no boot loader is installed: something else must start this machine")
		return
	}
	for _, d := range p.boot {
		l.Disks = append(l.Disks, d.Path)
		for _, s := range p.on[d.Name] {
			if s.kind() == "esp" {
				l.ESPs = append(l.ESPs, s.path())
			}
		}
	}
	root, boot := find(all, "/"), find(all, "/boot")
	dir := ""
	if boot == nil {
		boot, dir = root, "/boot"
	}
	device := "UUID=" + p.uuid("filesystem "+root.path)
	if root.logical != "" {
		device = root.logical
	}
	p.out.Files = append(p.out.Files, File{Path: "/boot/grub/grub.cfg", Mode: 0o600, Content: p.menu(p.uuid("filesystem "+boot.path), dir, device)})
	// A medium that was left in the drive finds this by GRUB and starts the installed system (scripts/iso/grub.cfg).
	p.out.Files = append(p.out.Files, File{Path: "/boot/efi/shoal/grub.cfg", Mode: 0o600, Content: fmt.Sprintf(
		modules+"search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s/grub\nconfigfile $prefix/grub.cfg\n", p.uuid("filesystem "+boot.path), dir)})
	// The image's initramfs assembles arrays of any host by what they say of themselves; making it anew with this list would take minutes.
	if len(p.ks.Arrays) > 0 {
		var conf strings.Builder
		conf.WriteString("HOMEHOST <ignore>\nMAILADDR root\n")
		for _, a := range p.ks.Arrays {
			fmt.Fprintf(&conf, "ARRAY /dev/md/%s metadata=1.2 UUID=%s\n", a.Device, mdUUID(p.uuid("array "+a.Device)))
		}
		p.out.Files = append(p.out.Files, File{Path: "/etc/mdadm/mdadm.conf", Mode: 0o644, Content: conf.String()})
	}
}

// modules are what GRUB needs to find the new system wherever it lies.
const modules = "insmod part_gpt\ninsmod mdraid1x\ninsmod lvm\ninsmod ext2\ninsmod xfs\n"

// menu is GRUB's configuration. Kernel updates move the links that it names, so it never changes.
func (p *planner) menu(boot, dir, root string) string {
	args := append([]string{"root=" + root, "rw"}, p.o.Consoles...)
	if p.ks.Boot.Append != "" {
		args = append(args, p.ks.Boot.Append)
	}
	timeout := p.ks.Boot.Timeout
	if timeout < 0 {
		timeout = 3
	}
	var b strings.Builder
	b.WriteString("# Written by Shoal's installer. Kernel updates move the links that it names.\n")
	fmt.Fprintf(&b, "set timeout=%d\nset default=0\n", timeout)
	if h := p.ks.Boot.Password; h != "" {
		fmt.Fprintf(&b, "set superusers=root\npassword_pbkdf2 root %s\n", h)
	}
	b.WriteString(modules)
	b.WriteString("if serial --unit=0 --speed=115200; then\n  terminal_input console serial\n  terminal_output console serial\nfi\n")
	fmt.Fprintf(&b, "search --no-floppy --fs-uuid --set=root %s\n", boot)
	for _, e := range []struct{ title, suffix, extra string }{{"Shoal host", "", ""}, {"Shoal host, previous kernel", ".old", ""}, {"Shoal host, rescue shell", "", " systemd.unit=rescue.target"}} {
		open := " --unrestricted"
		if e.extra != "" {
			open = ""
		}
		fmt.Fprintf(&b, "menuentry %q%s {\n  linux %s/vmlinuz%s %s%s\n  initrd %s/initrd.img%s\n}\n", e.title, open, dir, e.suffix, strings.Join(args, " "), e.extra, dir, e.suffix)
	}
	return b.String()
}

// sortedKeys are the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
