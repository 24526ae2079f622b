package iso

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/controller/file"
	"shoal/controller/iso/anaconda"
	"shoal/desired"
	"shoal/desired/kickstart"
	"shoal/desired/layout"
)

// Names on a repacked medium.
const (
	payloadDir  = "shoal"
	payloadTar  = payloadDir + "/host.tar"
	payloadRPMs = payloadDir + "/packages"
)

// anacondaMedium is where Anaconda has the medium mounted that it started from.
const anacondaMedium = "/run/install/repo"

// VendorRequest is what a vendor's medium shall make of the machines that it is put into. Of Request the same holds as for our own.
type VendorRequest struct {
	Request
	// Programs is a directory with shoal-agent, and for management shoal-controller and shoalctl.
	Programs string
	// RPMs is a directory of packages to add, empty for none; Install are names of packages to install beside those of the kickstart.
	RPMs    string
	Install []string
}

// Repack is a vendor's medium with a request that has been checked against it.
type Repack struct {
	v   *Vendor
	req VendorRequest
	// base is the vendor's file: xorriso reads it by name.
	base      string
	kickstart string
	payload   []byte
	rpms      []string
	// Notes are what is put into other words for this release of Anaconda, and what has no effect there.
	Notes []kickstart.Note
}

// tools are what repacking is done with, and the packages that have them, as the RHEL family and Debian call them.
var tools = map[string]string{"xorriso": "xorriso", "mcopy": "mtools", "mkfs.vfat": "dosfstools", "implantisomd5": "isomd5sum", "createrepo_c": "createrepo_c (createrepo-c on Debian)"}

// Repack checks a request against the medium, which is the file base.
func (v *Vendor) Repack(base string, req VendorRequest) (*Repack, error) {
	if err := (desired.HostMedium{Mode: req.Mode, Token: req.Token, ID: strings.Repeat("0", 16)}).Validate(); err != nil {
		return nil, err
	}
	if err := checkArgs(req.Args); err != nil {
		return nil, err
	}
	adapted, err := anaconda.Adapt(kickstart.Source{Name: req.Name, Text: req.Kickstart, Open: req.Open}, v.Release)
	if err != nil {
		return nil, err
	}
	if !v.Packages && (adapted.Source == "" || adapted.Source == "cdrom") {
		return nil, fmt.Errorf("%s, %q, carries no packages, as media that only start the installer: take the DVD, or a kickstart that says where packages come from (url --url=…)", v.Product, v.Label)
	}
	m := &Repack{v: v, req: req, base: base, Notes: adapted.Notes}
	if m.rpms, err = findRPMs(req.RPMs); err != nil {
		return nil, err
	}
	if err := m.pack(); err != nil {
		return nil, err
	}
	m.kickstart = adapted.Text + m.addition(adapted.Source)
	if _, err := anaconda.Check(kickstart.Source{Name: req.Name + ", with what is added to it", Text: []byte(m.kickstart)}, v.Release); err != nil {
		return nil, err
	}
	return m, m.haveTools()
}

func checkArgs(args []string) error {
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\`;{}$|&<>") {
			return fmt.Errorf("the kernel argument %q holds a space or a sign that the boot loader would read", a)
		}
	}
	return nil
}

func (m *Repack) haveTools() error {
	need := []string{"xorriso"}
	if m.v.boot.uefi {
		need = append(need, "mcopy", "mkfs.vfat")
	}
	if m.v.checked {
		need = append(need, "implantisomd5")
	}
	if len(m.rpms) > 0 {
		need = append(need, "createrepo_c")
	}
	var absent []string
	for _, name := range need {
		if _, err := exec.LookPath(name); err != nil {
			absent = append(absent, tools[name])
		}
	}
	if len(absent) > 0 {
		return fmt.Errorf("repacking this medium needs what is not installed here: install %s", strings.Join(absent, ", "))
	}
	return nil
}

// VendorPackages are what a host of this mode needs beside the smallest installation, as the release calls them.
func (v *Vendor) VendorPackages(mode desired.Mode) []string {
	if mode == desired.ModeExpert {
		return []string{"chrony"}
	}
	filter := map[anaconda.Release][]string{7: {"iptables", "ebtables"}, 8: {"iptables", "iptables-ebtables"}}[v.Release]
	if filter == nil {
		filter = []string{"iptables-nft"}
	}
	return append([]string{"chrony", "conntrack-tools", "dnsmasq", "ethtool", "ipset", "libvirt", "nfs-utils", "qemu-kvm"}, filter...)
}

func findRPMs(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.rpm"))
	if err != nil {
		return nil, fmt.Errorf("look for packages: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no *.rpm in %s", dir)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("open a package: %w", err)
		}
		magic := make([]byte, 4)
		_, err = io.ReadFull(f, magic)
		_ = f.Close()
		if err != nil || string(magic) != "\xed\xab\xee\xdb" {
			return nil, fmt.Errorf("%s is no RPM package", name)
		}
	}
	return names, nil
}

// pack makes an archive of what is unpacked into the new system; the mode expert has nothing of it. Its times are those of the medium.
func (m *Repack) pack() error {
	if m.req.Mode == desired.ModeExpert {
		return nil
	}
	management := m.req.Mode == desired.ModeManagement
	files, units := layout.AgentFiles(), []string{layout.AgentUnitPath}
	programs := []string{layout.Agent}
	if management {
		files, units = append(files, layout.ControllerFiles()...), append(units, layout.ControllerUnitPath)
		programs = append(programs, layout.Controller, layout.Shoalctl)
	}
	if m.req.Mode == desired.ModeStorage {
		units = append(units, "/usr/lib/systemd/system/nfs-server.service")
	}
	for _, name := range programs {
		b, err := os.ReadFile(filepath.Join(m.req.Programs, name))
		if err != nil {
			return fmt.Errorf("read a program for the host: %w; say with --programs where they are", err)
		}
		files = append(files, layout.File{Path: path.Join(layout.BinDir, name), Content: string(b), Mode: 0o755})
	}
	if m.req.Token != "" {
		files = append(files,
			layout.File{Path: layout.AgentData, Mode: fs.ModeDir | 0o711}, layout.File{Path: path.Dir(layout.AgentToken), Mode: fs.ModeDir | 0o700},
			layout.File{Path: layout.AgentToken, Content: m.req.Token + "\n", Mode: 0o600})
	}
	for _, unit := range units {
		files = append(files, layout.File{Path: "/etc/systemd/system/multi-user.target.wants/" + path.Base(unit), Content: unit, Mode: fs.ModeSymlink | 0o777})
	}
	slices.SortFunc(files, func(a, b layout.File) int { return strings.Compare(a.Path, b.Path) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(f.Mode.Perm()), ModTime: m.v.made, Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Size: int64(len(f.Content))}
		content := f.Content
		if f.Mode.IsDir() {
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		} else if f.Mode.Type() == fs.ModeSymlink {
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeSymlink, f.Content, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack what the host gets: %w", err)
	}
	m.payload = out.Bytes()
	return nil
}

// addition is what a kickstart gets at its end.
func (m *Repack) addition(source string) string {
	var b strings.Builder
	b.WriteString("# Added by shoalctl iso build.\n")
	if source == "" {
		b.WriteString("cdrom\n")
	}
	if len(m.rpms) > 0 {
		fmt.Fprintf(&b, "repo --name=shoal --baseurl=file://%s/%s\n", anacondaMedium, payloadRPMs)
	}
	if len(m.req.Install) > 0 {
		b.WriteString("%packages\n" + strings.Join(m.req.Install, "\n") + "\n%end\n")
	}
	if m.payload != nil {
		root := "/mnt/sysroot"
		if m.v.Release == 7 {
			root = "/mnt/sysimage"
		}
		fmt.Fprintf(&b, "%%post --nochroot --erroronfail --log=%s/root/shoal-install.log\n%s%%end\n", root, m.unpack(root, anacondaMedium))
	}
	return b.String()
}

// unpack is the script that puts the archive into the new system at root, which Anaconda runs outside of it. Files that come from outside have
// no labels of SELinux until restorecon gives them theirs.
func (m *Repack) unpack(root, medium string) string {
	script := fmt.Sprintf(`set -e
medium=%[2]s
if [ ! -e $medium/%[3]s ]; then
	medium=/tmp/shoal-medium
	mkdir -p $medium
	mount -o ro -L '%[4]s' $medium
fi
echo "%[5]x  $medium/%[3]s" | sha256sum -c - || { echo "the medium is damaged: write it again"; exit 1; }
tar -xpf $medium/%[3]s -C %[1]s
`, root, medium, payloadTar, m.v.Label, sha256.Sum256(m.payload))
	if m.req.Mode == desired.ModeManagement {
		script += fmt.Sprintf("chroot %s useradd --system --no-create-home --home-dir %s --shell /sbin/nologin %s\n", root, layout.ControllerData, layout.ControllerUser)
	}
	return script + fmt.Sprintf("! chroot %[1]s sh -c 'command -v restorecon' || chroot %[1]s restorecon -R %s /etc/systemd/system /etc/sysctl.d /etc/modules-load.d /var/lib\n", root, layout.BinDir)
}

// Write writes the repacked medium. It needs room for the packages and programs in the directory for temporary files.
func (m *Repack) Write(ctx context.Context, name string) error {
	stage, err := os.MkdirTemp("", "shoal-iso-")
	if err != nil {
		return fmt.Errorf("make a directory for what is added: %w", err)
	}
	defer os.RemoveAll(stage)
	args, err := m.stage(ctx, stage)
	if err != nil {
		return err
	}
	return file.Replace(name, 0o600, func(f *os.File) error {
		if err := m.run(ctx, "xorriso", slices.Concat([]string{
			"-no_rc", "-report_about", "SORRY", "-abort_on", "FAILURE", "-indev", absolute(m.base), "-outdev", absolute(f.Name()), "-boot_image", "any", "replay",
			"-volume_date", "uuid", m.v.uuid,
		}, args, []string{"-commit", "-end"})...); err != nil {
			return err
		}
		if m.v.checked {
			if err := m.run(ctx, "implantisomd5", "--force", absolute(f.Name())); err != nil {
				return err
			}
		}
		return m.verify(f)
	})
}

func absolute(name string) string {
	if full, err := filepath.Abs(name); err == nil {
		return full
	}
	return name
}

// run runs a tool, with the time of the medium in the place of the clock's.
func (m *Repack) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH="+strconv.FormatInt(m.v.made.Unix(), 10))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w: %s", name, err, strings.Join(lines[max(0, len(lines)-5):], "; "))
	}
	return nil
}

// stage makes all files that are new or different, and says how xorriso puts them onto the medium.
func (m *Repack) stage(ctx context.Context, dir string) ([]string, error) {
	var args, added []string
	put := func(name, content string) (string, error) {
		where := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(where), 0o755); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
		if err := os.WriteFile(where, []byte(content), 0o600); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
		return where, os.Chtimes(where, m.v.made, m.v.made)
	}
	patched := map[bool]int{}
	for _, name := range m.v.menus {
		b, err := m.v.img.read(name, 1<<20)
		if err != nil {
			return nil, err
		}
		text, n := patchMenu(name, string(b), udevLabel(m.v.Label), m.req.Args, m.req.MenuSeconds)
		if n == 0 {
			continue
		}
		patched[strings.HasPrefix(name, "EFI/")] += n
		where, err := put("menus/"+name, text)
		if err != nil {
			return nil, err
		}
		args = append(args, "-update", where, "/"+name)
	}
	if m.v.boot.bios && patched[false] == 0 || m.v.boot.uefi && patched[true] == 0 {
		return nil, fmt.Errorf("no entry that installs was found in the boot menus of %s (%s)", m.v.Product, strings.Join(m.v.menus, ", "))
	}
	if m.v.boot.uefi {
		esp := filepath.Join(dir, "efi.img")
		if err := m.patchESP(ctx, dir, esp); err != nil {
			return nil, fmt.Errorf("change the boot menu in the EFI system partition: %w", err)
		}
		if m.v.boot.espFile != "" {
			args = append(args, "-update", esp, "/"+m.v.boot.espFile)
		} else {
			args = append(args, "-append_partition", strconv.Itoa(m.v.boot.espPart), "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", esp)
		}
	}
	add := func(name string) {
		args = append(args, "-map", filepath.Join(dir, filepath.FromSlash(name)), "/"+name)
		added = append(added, "/"+name)
	}
	if _, err := put("ks.cfg", m.kickstart); err != nil {
		return nil, err
	}
	add("ks.cfg")
	if m.payload != nil {
		if _, err := put(payloadTar, string(m.payload)); err != nil {
			return nil, err
		}
	}
	if err := m.stageRPMs(ctx, filepath.Join(dir, filepath.FromSlash(payloadRPMs))); err != nil {
		return nil, err
	}
	if m.payload != nil || len(m.rpms) > 0 {
		add(payloadDir)
	}
	for _, name := range added {
		for _, set := range [][]string{{"-chown_r", "0"}, {"-chgrp_r", "0"}, {"-chmod_r", "go-rwx"}, {"-alter_date_r", "b-c", "=" + strconv.FormatInt(m.v.made.Unix(), 10)}} {
			args = append(args, append(set, name, "--")...)
		}
	}
	return args, nil
}

// stageRPMs makes a repository of the packages. Its dates are those of the medium, so that it does not depend on when they were fetched.
func (m *Repack) stageRPMs(ctx context.Context, dir string) error {
	if len(m.rpms) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("add the packages: %w", err)
	}
	for _, name := range m.rpms {
		if err := copyFile(ctx, name, filepath.Join(dir, filepath.Base(name)), m.v.made); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
	}
	return m.run(ctx, "createrepo_c", "--quiet", "--no-database", "--simple-md-filenames", "--workers", "1", "--revision", strconv.FormatInt(m.v.made.Unix(), 10), "--set-timestamp-to-revision", dir)
}

func copyFile(ctx context.Context, from, to string, at time.Time) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(copyAll(ctx, out, in), out.Close()); err != nil {
		return err
	}
	return os.Chtimes(to, at, at)
}

// patchESP writes the image of the EFI system partition with other boot menus.
func (m *Repack) patchESP(ctx context.Context, dir, esp string) error {
	out, err := os.OpenFile(esp, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(copyAll(ctx, out, io.NewSectionReader(m.v.img.r, m.v.boot.esp.offset, m.v.boot.esp.size)), out.Close()); err != nil {
		return err
	}
	n := 0
	for _, name := range []string{"grub.cfg", "BOOT.conf"} {
		menu := filepath.Join(dir, "esp-"+name)
		if err := m.run(ctx, "mcopy", "-n", "-i", esp, "::/EFI/BOOT/"+name, menu); err != nil {
			continue // media have one of them, or both
		}
		b, err := os.ReadFile(menu)
		if err != nil {
			return err
		}
		text, entries := patchMenu(name, string(b), udevLabel(m.v.Label), m.req.Args, m.req.MenuSeconds)
		if entries == 0 {
			continue
		}
		n += entries
		if err := errors.Join(os.WriteFile(menu, []byte(text), 0o600), os.Chtimes(menu, m.v.made, m.v.made)); err != nil {
			return err
		}
		if err := m.run(ctx, "mcopy", "-m", "-o", "-i", esp, menu, "::/EFI/BOOT/"+name); err == nil {
			continue
		}
		if err := m.growESP(ctx, dir, esp, name, menu); err != nil {
			return err
		}
	}
	if n == 0 {
		return errors.New("no entry that installs was found in its /EFI/BOOT/grub.cfg")
	}
	return os.Chtimes(esp, m.v.made, m.v.made)
}

// growESP makes a larger file system of the same files, one of which replaced: vendors leave hardly any room.
func (m *Repack) growESP(ctx context.Context, dir, esp, name, menu string) error {
	tree := filepath.Join(dir, "esp")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	// The file that did not fit may be there in part, or be gone.
	if err := m.run(ctx, "mcopy", "-s", "-m", "-n", "-i", esp, "::*", tree); err != nil {
		return err
	}
	if err := copyOver(ctx, menu, filepath.Join(tree, "EFI", "BOOT", name), m.v.made); err != nil {
		return err
	}
	info, err := os.Stat(esp)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Truncate(esp, 0), os.Truncate(esp, info.Size()+1<<20)); err != nil {
		return err
	}
	if err := m.run(ctx, "mkfs.vfat", "--invariant", "-n", "ANACONDA", esp); err != nil {
		return err
	}
	// One by one, since mcopy takes a directory in the order of the disk.
	return filepath.WalkDir(tree, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == tree {
			return err
		}
		inside, err := filepath.Rel(tree, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return m.run(ctx, "mmd", "-i", esp, "::/"+filepath.ToSlash(inside))
		}
		return m.run(ctx, "mcopy", "-m", "-i", esp, name, "::/"+filepath.ToSlash(inside))
	})
}

func copyOver(ctx context.Context, from, to string, at time.Time) error {
	if err := os.Remove(to); err != nil && !missing(err) {
		return err
	}
	return copyFile(ctx, from, to, at)
}

// verify looks at what was written: it must start as the vendor's does, and find what was added.
func (m *Repack) verify(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the repacked medium: %w", err)
	}
	img, err := openVolume(f, info.Size())
	if err != nil {
		return fmt.Errorf("look at the repacked medium: %w", err)
	}
	boot, err := readBootRecords(img)
	if err != nil {
		return fmt.Errorf("look at the repacked medium: %w", err)
	}
	if err := m.v.boot.same(boot); err != nil {
		return err
	}
	if uuid := string(img.volume[830:846]); img.label() != m.v.Label || uuid != m.v.uuid {
		return fmt.Errorf("the repacked medium would not be found: it is %q %s, not %q %s", img.label(), uuid, m.v.Label, m.v.uuid)
	}
	ks, err := img.read("ks.cfg", 8<<20)
	if err != nil {
		return fmt.Errorf("look at the repacked medium: %w", err)
	}
	if string(ks) != m.kickstart {
		return errors.New("the kickstart on the repacked medium is not what was written")
	}
	return nil
}
