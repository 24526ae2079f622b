package metal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"shoal/agent/metal/plan"
)

// block is what lsblk tells of a device; see lsblk(8).
type block struct {
	Name, Path, Type string
	Size             int64
	RO, RM           bool
	Model, Serial    *string
	FSType, Label    *string
	PartLabel        *string
	PTType           *string
	MountPoints      []*string
	Children         []block
}

const lsblkColumns = "NAME,PATH,TYPE,SIZE,RO,RM,MODEL,SERIAL,FSTYPE,LABEL,PARTLABEL,PTTYPE,MOUNTPOINTS"

func text(s *string) string {
	if s == nil {
		return ""
	}
	return strings.TrimSpace(*s)
}

// disksOf reads the output of lsblk. dirty reports whether a disk without any known signature holds something all the same.
func disksOf(lsblk []byte, links map[string][]string, dirty func(path string) (bool, error)) ([]plan.Disk, error) {
	var out struct{ BlockDevices []block }
	if err := json.Unmarshal(lsblk, &out); err != nil {
		return nil, fmt.Errorf("read what lsblk says: %w", err)
	}
	var disks []plan.Disk
	for _, b := range out.BlockDevices {
		if b.Type != "disk" || b.Size == 0 || slices.ContainsFunc([]string{"zram", "ram", "fd", "nbd", "loop", "sr"}, func(p string) bool {
			rest, ok := strings.CutPrefix(b.Name, p)
			return ok && rest != "" && strings.Trim(rest, "0123456789") == ""
		}) {
			continue
		}
		d := plan.Disk{
			Name: b.Name, Path: b.Path, Links: links[b.Path], Size: b.Size, Model: text(b.Model), Serial: text(b.Serial), Removable: b.RM, ReadOnly: b.RO, Table: text(b.PTType),
		}
		slices.Sort(d.Links)
		b.use(&d)
		if kind := text(b.FSType); kind != "" {
			d.Content = append(d.Content, plan.Content{Path: b.Path, Type: kind, Label: text(b.Label)})
		}
		for _, c := range b.Children {
			if c.Type == "part" {
				d.Content = append(d.Content, plan.Content{Path: c.Path, Type: text(c.FSType), Label: text(c.Label), Name: text(c.PartLabel)})
			}
		}
		if d.Table == "" && len(d.Content) == 0 && d.InUse == "" {
			found, err := dirty(b.Path)
			if err != nil {
				// A disk that can't be read is no disk to install to, but no reason to stop either while others can be.
				d.InUse = "it can't be read: " + err.Error()
			}
			if found {
				d.Content = append(d.Content, plan.Content{Path: b.Path, Type: "data"})
			}
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// use finds what is mounted of a device and of all that lies on it, and the volumes and arrays, topmost first.
func (b *block) use(d *plan.Disk) {
	for i := range b.Children {
		b.Children[i].use(d)
	}
	for _, m := range b.MountPoints {
		switch text(m) {
		case "":
		case MediumDir:
			d.InUse = "it is the installation medium"
		default:
			d.InUse = b.Path + " is in use as " + text(m)
		}
	}
	h := plan.Holder{Path: b.Path, Name: b.Name}
	switch {
	case b.Type == "lvm" || b.Type == "crypt":
		h.Kind = b.Type
	case strings.HasPrefix(b.Type, "raid"), b.Type == "linear", b.Type == "md":
		h.Kind = "raid"
	case b.Type == "disk" || b.Type == "part":
		return
	default:
		h.Kind = b.Type
	}
	if !slices.Contains(d.Holders, h) {
		d.Holders = append(d.Holders, h)
	}
}

// dirty reports whether the first MiB of a disk is anything but zeros.
func dirty(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	n, err := f.ReadAt(b, 0)
	if n == 0 && err != nil {
		return false, err
	}
	return len(bytes.Trim(b[:n], "\x00")) > 0, nil
}

// diskLinks are the names that udev has given to disks, by their nodes.
func diskLinks(root string) map[string][]string {
	links := map[string][]string{}
	for _, by := range []string{"by-id", "by-path", "by-uuid", "by-label"} {
		names, err := filepath.Glob(filepath.Join(root, by, "*"))
		if err != nil {
			continue
		}
		for _, n := range names {
			if node, err := filepath.EvalSymlinks(n); err == nil {
				links[node] = append(links[node], n)
			}
		}
	}
	return links
}

// nicsOf are the wired interfaces of the machine.
func nicsOf(sys string) ([]plan.NIC, error) {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	read := func(name, file string) string {
		b, err := os.ReadFile(filepath.Join(sys, name, file))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	var nics []plan.NIC
	for _, e := range entries {
		// Type 1 is Ethernet (linux/if_arp.h); what has no device below it is not hardware.
		if _, err := os.Stat(filepath.Join(sys, e.Name(), "device")); err != nil || read(e.Name(), "type") != "1" {
			continue
		}
		nics = append(nics, plan.NIC{Name: e.Name(), MAC: strings.ToLower(read(e.Name(), "address")), Carrier: read(e.Name(), "carrier") == "1"})
	}
	return nics, nil
}

// look finds out what the machine and the image have.
func (i *installer) look(ctx context.Context) (plan.Machine, error) {
	m := plan.Machine{Image: i.image.SizeMiB, BootMAC: bootMAC(i.args)}
	out, err := i.run(ctx, "lsblk", "--json", "--bytes", "--output", lsblkColumns)
	if err != nil {
		return m, fmt.Errorf("list disks: %w", err)
	}
	if m.Disks, err = disksOf(out, diskLinks("/dev/disk"), dirty); err != nil {
		return m, err
	}
	if m.NICs, err = nicsOf("/sys/class/net"); err != nil {
		return m, err
	}
	for _, n := range m.NICs {
		// A carrier can only be seen on an interface that is up.
		if _, err := i.run(ctx, "ip", "link", "set", n.Name, "up"); err != nil {
			i.console.Note("%v", err)
		}
	}
	if len(m.NICs) > 0 {
		if err := pause(ctx, carrierWait); err != nil {
			return m, err
		}
		if m.NICs, err = nicsOf("/sys/class/net"); err != nil {
			return m, err
		}
	}
	_, err = os.Stat("/sys/firmware/efi")
	m.EFI = err == nil
	if m.Memory, err = memoryMiB("/proc/meminfo"); err != nil {
		return m, err
	}
	return m, offers("/", &m)
}

func memoryMiB(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read the size of the memory: %w", err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			kib, err := strconv.Atoi(f[1])
			return kib / 1024, err
		}
	}
	return 0, errors.New("read the size of the memory: it is not in " + file)
}

// bootMAC reads the interface that the machine was started from off the kernel's command line, where PXELINUX, GRUB and iPXE put it.
func bootMAC(args []string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "BOOTIF="); ok {
			v = strings.ToLower(strings.ReplaceAll(v, "-", ":"))
			if len(v) == len("01:52:54:00:00:00:01") {
				v = v[3:]
			}
			return v
		}
	}
	return ""
}

// offers reads what the root file system has that a kickstart can name.
func offers(root string, m *plan.Machine) error {
	status, err := os.ReadFile(filepath.Join(root, "var/lib/dpkg/status"))
	if err != nil {
		return fmt.Errorf("list the packages of the image: %w", err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if name, ok := strings.CutPrefix(line, "Package: "); ok {
			m.Packages = append(m.Packages, name)
		}
	}
	for _, dir := range []string{"lib/systemd/system", "etc/systemd/system", "etc/init.d"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list the services of the image: %w", err)
		}
		for _, e := range entries {
			name := e.Name()
			if dir == "etc/init.d" {
				name += ".service"
			}
			m.Units = append(m.Units, name)
		}
	}
	supported, err := os.ReadFile(filepath.Join(root, "usr/share/i18n/SUPPORTED"))
	if err != nil {
		return fmt.Errorf("list the locales of the image: %w", err)
	}
	for line := range strings.SplitSeq(string(supported), "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "UTF-8" {
			// Some are listed without the charset.
			name := f[0]
			if !strings.Contains(name, ".UTF-8") {
				stem, modifier, has := strings.Cut(name, "@")
				if name = stem + ".UTF-8"; has {
					name += "@" + modifier
				}
			}
			m.Locales = append(m.Locales, name)
		}
	}
	zones := filepath.Join(root, "usr/share/zoneinfo")
	err = filepath.WalkDir(zones, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			m.Zones = append(m.Zones, strings.TrimPrefix(path, zones+"/"))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list the time zones of the image: %w", err)
	}
	return nil
}
