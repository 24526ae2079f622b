package iso

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/iso/anaconda"
	"shoal/desired"
	"shoal/desired/layout"
)

// vendorTree is a medium of release 9, without boot records.
func vendorTree() map[string]string {
	const info = "[general]\nfamily = Rocky Linux\nname = Rocky Linux 9.5\nversion = 9.5\narch = x86_64\n"
	return map[string]string{
		".treeinfo": info, ".discinfo": "1735689600.0\n9.5\nx86_64\n", "images/pxeboot/vmlinuz": "k", "images/install.img": "i", "images/efiboot.img": "", "BaseOS/repodata/repomd.xml": "x",
		"isolinux/isolinux.cfg": "append initrd=initrd.img inst.stage2=hd:LABEL=X\n", "EFI/BOOT/grub.cfg": "linux /k inst.stage2=hd:LABEL=X\n",
	}
}

// vendorImage makes an image with a boot catalogue for BIOS and, where esp is a file of it, UEFI.
func vendorImage(files map[string]string, label, esp string) []byte {
	b := tree(files)
	pvd := b[16*sector:]
	copy(pvd[40:72], fmt.Sprintf("%-32s", label))
	copy(pvd[830:], "2025010100000000\x00")
	catalogue := len(b)
	b = append(b, make([]byte, sector)...)
	pvd = b[16*sector:]
	pvd[80], pvd[81] = byte(len(b)/sector), byte(len(b)/sector>>8)
	copy(b[17*sector:], "\x00CD001\x01EL TORITO SPECIFICATION")
	b[17*sector+71], b[17*sector+72] = byte(catalogue/sector), byte(catalogue/sector>>8)
	c := b[catalogue:]
	c[0], c[30], c[31], c[32] = 1, 0x55, 0xaa, 0x88
	if esp != "" {
		img, err := openVolume(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			panic(err)
		}
		e, err := img.find(esp)
		if err != nil {
			panic(err)
		}
		c[64], c[65], c[96] = 0x91, 0xef, 0x88
		c[104], c[105] = byte(e.offset/sector), byte(e.offset/sector>>8)
	}
	return b
}

func openVendor(b []byte) (*Vendor, error) { return OpenVendor(bytes.NewReader(b), int64(len(b))) }

func TestOpenVendor(t *testing.T) {
	t.Parallel()
	v, err := openVendor(vendorImage(vendorTree(), "Rocky-9-5-x86_64-dvd", "images/efiboot.img"))
	if err != nil {
		t.Fatal(err)
	}
	if v.Product != "Rocky Linux 9.5" || v.Release != 9 || v.Label != "Rocky-9-5-x86_64-dvd" || !v.Packages || v.checked || !v.boot.bios || !v.boot.uefi || v.boot.espFile != "images/efiboot.img" ||
		!slices.Equal(v.menus, []string{"isolinux/isolinux.cfg", "EFI/BOOT/grub.cfg"}) {
		t.Errorf("%+v", v)
	}
	with := func(change map[string]string) map[string]string {
		files := vendorTree()
		for name, content := range change {
			if files[name] = content; content == "-" {
				delete(files, name)
			}
		}
		return files
	}
	v, err = openVendor(vendorImage(with(map[string]string{".treeinfo": "-", "BaseOS/repodata/repomd.xml": "-"}), "RHEL-9-4-0-BaseOS-x86_64", ""))
	if err != nil || v.Packages || v.Release != 9 || v.boot.uefi {
		t.Errorf("a medium without packages: %+v, %v", v, err)
	}
	for want, test := range map[string]struct {
		files map[string]string
		label string
	}{
		`says that it is "Fedora 41"`:                        {with(map[string]string{".treeinfo": "[general]\nfamily = Fedora\nname = Fedora 41\nversion = 41\narch = x86_64\n"}), "F"},
		`"24.03" is not a release of the RHEL family`:        {with(map[string]string{".treeinfo": "-", ".discinfo": "1.0\n24.03\nx86_64\n"}), "openEuler"},
		`is for "aarch64"`:                                   {with(map[string]string{".treeinfo": "[general]\nfamily = CentOS\nname=CentOS Stream 9\nversion = 9\narch = aarch64\n"}), "C"},
		"neither .treeinfo nor .discinfo":                    {with(map[string]string{".treeinfo": "-", ".discinfo": "-"}), "Debian"},
		"no kernel that starts an installer":                 {with(map[string]string{"images/pxeboot/vmlinuz": "-"}), "C"},
		"no installer (images/install.img)":                  {with(map[string]string{"images/install.img": "-"}), "C"},
		"it has a /ks.cfg already":                           {with(map[string]string{"ks.cfg": "text"}), "C"},
		`its label is ""`:                                    {vendorTree(), ""},
		"neither images/efiboot.img nor a partition":         {with(map[string]string{"images/other.img": "x", "images/efiboot.img": "-"}), "C"},
		`its .discinfo says that it is "Some Other Thing 9"`: {with(map[string]string{".treeinfo": "-", ".discinfo": "1.0\nSome Other Thing 9\nx86_64\n"}), "C"},
	} {
		esp := "images/efiboot.img"
		if _, ok := test.files["images/other.img"]; ok {
			esp = "images/other.img"
		}
		if _, err := openVendor(vendorImage(test.files, test.label, esp)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
	if _, err := openVendor(tree(vendorTree())); err == nil {
		t.Error("an image without boot records is taken")
	}
	if _, err := openVendor([]byte("hello")); !errors.Is(err, errVendor) {
		t.Errorf("no image: %v", err)
	}
}

// TestPatchMenu: entries that install get the kickstart by the label as the vendor spelt it; others stay.
func TestPatchMenu(t *testing.T) {
	t.Parallel()
	const isolinux = `default vesamenu.c32
timeout 600
label linux
  append initrd=initrd.img inst.stage2=hd:LABEL=CentOS\x207\x20x86_64 quiet
label rescue
  append initrd=initrd.img inst.stage2=hd:LABEL=CentOS\x207\x20x86_64 rescue quiet
label memory
  append -
`
	const grub = `set timeout=60
menuentry 'Install' {
	linuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL=RHEL-9 inst.ks=cdrom:/old.cfg quiet
	initrdefi /images/pxeboot/initrd.img
}
menuentry 'Rescue' {
	linux /images/pxeboot/vmlinuz inst.stage2=hd:LABEL=RHEL-9 inst.rescue quiet
}
menuentry 'By UUID' {
	linux /images/pxeboot/vmlinuz inst.stage2=hd:UUID=2025 quiet
}
`
	for _, test := range []struct {
		name, text string
		n          int
		want       []string
	}{
		{"isolinux/isolinux.cfg", isolinux, 1, []string{
			"-timeout 600", "+timeout 50", `-  append initrd=initrd.img inst.stage2=hd:LABEL=CentOS\x207\x20x86_64 quiet`,
			`+  append initrd=initrd.img inst.stage2=hd:LABEL=CentOS\x207\x20x86_64 quiet inst.ks=hd:LABEL=CentOS\x207\x20x86_64:/ks.cfg console=ttyS0 a=b`,
		}},
		{"EFI/BOOT/grub.cfg", grub, 2, []string{
			"-set timeout=60", "+set timeout=5", "-\tlinuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL=RHEL-9 inst.ks=cdrom:/old.cfg quiet",
			"+\tlinuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL=RHEL-9 quiet inst.ks=hd:LABEL=RHEL-9:/ks.cfg console=ttyS0 a=b",
			"-\tlinux /images/pxeboot/vmlinuz inst.stage2=hd:UUID=2025 quiet",
			`+	linux /images/pxeboot/vmlinuz inst.stage2=hd:UUID=2025 quiet inst.ks=hd:LABEL=A\x20B:/ks.cfg console=ttyS0 a=b`,
		}},
		{"EFI/BOOT/grub.cfg", "linux /k inst.stage2=x", 1, []string{"-linux /k inst.stage2=x", "+set timeout=5", `+linux /k inst.stage2=x inst.ks=hd:LABEL=A\x20B:/ks.cfg console=ttyS0 a=b`}},
		{"EFI/BOOT/grub.cfg", "linux /k root=/dev/sda", 0, nil},
	} {
		got, n := patchMenu(test.name, test.text, udevLabel("A B"), []string{"console=ttyS0", "a=b"}, 5)
		before, after := strings.Split(test.text, "\n"), strings.Split(got, "\n")
		var diff []string
		for len(after) > len(before) {
			before = append([]string{""}, before...)
		}
		for i := range after {
			if before[i] == after[i] {
				continue
			}
			if before[i] != "" {
				diff = append(diff, "-"+before[i])
			}
			diff = append(diff, "+"+after[i])
		}
		slices.Sort(diff)
		slices.Sort(test.want)
		if d := cmp.Diff(test.want, diff); d != "" || n != test.n {
			t.Errorf("%s: %d entries (-want +got):\n%s", test.name, n, d)
		}
	}
}

// programs are a directory with the programs that hosts get.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{layout.Agent, layout.Controller, layout.Shoalctl} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!"+name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const vendorKickstart = "lang en_US.UTF-8\nkeyboard us\ntimezone Etc/UTC\nrootpw --lock\nautopart\n%packages\n@^minimal-environment\n%end\nreboot\n"

func vendorRequest(t *testing.T, mode desired.Mode) VendorRequest {
	t.Helper()
	req := VendorRequest{Request: Request{Mode: mode, Kickstart: []byte(vendorKickstart), Name: "my.ks", MenuSeconds: 5}, Programs: programs(t)}
	if mode != desired.ModeExpert {
		req.Token = token("secret")
	}
	return req
}

// toolsOrSkip skips where the tools that repack are not installed.
func toolsOrSkip(t *testing.T, more ...string) {
	t.Helper()
	for _, name := range append([]string{"xorriso", "mcopy", "mkfs.vfat", "implantisomd5"}, more...) {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed: run scripts/setup media", name)
		}
	}
}

// TestRequestsAgainstVendors: what can't work on a medium is refused before anything is written.
func TestRequestsAgainstVendors(t *testing.T) {
	t.Parallel()
	dvd, err := openVendor(vendorImage(vendorTree(), "X", ""))
	if err != nil {
		t.Fatal(err)
	}
	files := vendorTree()
	delete(files, "BaseOS/repodata/repomd.xml")
	boot, err := openVendor(vendorImage(files, "X", ""))
	if err != nil {
		t.Fatal(err)
	}
	empty, wrong := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(wrong, "a.rpm"), []byte("no package"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(v **Vendor, r *VendorRequest){
		"carries no packages": func(v **Vendor, _ *VendorRequest) { *v = boot },
		`my.ks:11: unknown command "module2"; did you mean module?`: func(_ **Vendor, r *VendorRequest) { r.Kickstart = append(r.Kickstart, "hmc\nmodule2\n"...) },
		"say with --programs where they are":                        func(_ **Vendor, r *VendorRequest) { r.Programs = empty },
		"there is no *.rpm in":                                      func(_ **Vendor, r *VendorRequest) { r.RPMs = empty },
		"a.rpm is no RPM package":                                   func(_ **Vendor, r *VendorRequest) { r.RPMs = wrong },
		"the kernel argument \"a b\"":                               func(_ **Vendor, r *VendorRequest) { r.Args = []string{"a b"} },
		"the mode expert has no agent":                              func(_ **Vendor, r *VendorRequest) { r.Mode = desired.ModeExpert },
		"parse join token":                                          func(_ **Vendor, r *VendorRequest) { r.Token = "x" },
		"Anaconda takes names of interfaces": func(_ **Vendor, r *VendorRequest) {
			r.Kickstart = append(r.Kickstart, "network --device=b --bondslaves=52:54:00:00:00:01\n"...)
		},
		"%include http://x: files are included": func(_ **Vendor, r *VendorRequest) { r.Kickstart = append(r.Kickstart, "%include http://x\n"...) },
	} {
		v, req := dvd, vendorRequest(t, desired.ModeCompute)
		change(&v, &req)
		if _, err := v.Repack("x.iso", req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
	req := vendorRequest(t, desired.ModeCompute)
	req.Kickstart = append(req.Kickstart, "url --url=http://mirror.example/9\n"...)
	toolsOrSkip(t)
	if m, err := boot.Repack("x.iso", req); err != nil || strings.Contains(m.kickstart, "cdrom") {
		t.Errorf("a medium without packages, and a kickstart that has some: %v", err)
	}
}

// TestHostScript runs what Anaconda runs after the installation, on a directory in the place of the new system.
func TestHostScript(t *testing.T) {
	t.Parallel()
	toolsOrSkip(t)
	v, err := openVendor(vendorImage(vendorTree(), "X", ""))
	if err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[desired.Mode][]string{
		desired.ModeCompute: {"sysctl.d/60-shoal.conf", "bin/shoal-agent"}, desired.ModeManagement: {"bin/shoalctl", "bin/shoal-controller", "sysusers.d/shoal-controller.conf", "wants/shoal-controller.service"},
		desired.ModeStorage: {"wants/nfs-server.service", "bin/shoal-agent"},
	} {
		m, err := v.Repack("x.iso", vendorRequest(t, mode))
		if err != nil {
			t.Fatal(err)
		}
		root, medium, bin := t.TempDir(), t.TempDir(), t.TempDir()
		calls := filepath.Join(bin, "calls")
		if err := errors.Join(os.MkdirAll(filepath.Join(medium, payloadDir), 0o700), os.WriteFile(filepath.Join(medium, payloadTar), m.payload, 0o600),
			os.WriteFile(filepath.Join(bin, "chroot"), []byte("#!/bin/sh\nshift; echo \"$@\" >>"+calls+"\n"), 0o700)); err != nil {
			t.Fatal(err)
		}
		script := func() ([]byte, error) {
			cmd := exec.Command("/bin/sh", "-c", m.unpack(root, medium))
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			return cmd.CombinedOutput()
		}
		if out, err := script(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for name, perm := range map[string]fs.FileMode{layout.BinDir + "/shoal-agent": 0o755, layout.AgentUnitPath: 0o644, layout.AgentToken: 0o600, filepath.Dir(layout.AgentToken): 0o700, layout.AgentData: 0o711} {
			if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Mode().Perm() != perm {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(root, layout.AgentToken)); err != nil || string(b) != token("secret")+"\n" {
			t.Errorf("token %q, %v", b, err)
		}
		if to, err := os.Readlink(filepath.Join(root, "etc/systemd/system/multi-user.target.wants", layout.AgentUnit)); err != nil || to != layout.AgentUnitPath {
			t.Errorf("the agent is not switched on: %s, %v", to, err)
		}
		var names []string
		for r := tar.NewReader(bytes.NewReader(m.payload)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
			if h.Uid != 0 || !h.ModTime.Equal(v.made) {
				t.Errorf("%s belongs to %d and is of %s", h.Name, h.Uid, h.ModTime)
			}
		}
		for _, suffix := range want {
			if !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, suffix) }) {
				t.Errorf("%s: there is no %s in %v", mode, suffix, names)
			}
		}
		b, err := os.ReadFile(calls)
		if err != nil || strings.Contains(string(b), "useradd") != (mode == desired.ModeManagement) || !strings.Contains(string(b), "restorecon -R") {
			t.Errorf("%s calls %s, %v", mode, b, err)
		}
		if err := os.WriteFile(filepath.Join(medium, payloadTar), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := script(); err == nil || !strings.Contains(string(out), "the medium is damaged") {
			t.Errorf("a damaged medium: %v, %s", err, out)
		}
	}
}

// TestRepack repacks media that are made with the layouts and the boot loaders of vendors: see scripts/iso/vendor.
func TestRepack(t *testing.T) {
	t.Parallel()
	toolsOrSkip(t, "createrepo_c", "isohybrid", "genisoimage", "grub-mkimage", "rpmbuild")
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	rpms := rpm(t)
	for release := range map[anaconda.Release]bool{7: true, 9: true, 10: true} {
		t.Run(release.String(), func(t *testing.T) {
			t.Parallel()
			base := filepath.Join(t.TempDir(), "vendor.iso")
			if out, err := exec.Command("../../scripts/iso/vendor", fmt.Sprint(int(release)), kernel, kernel, base).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			f, size := open(t, base)
			v, err := OpenVendor(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if v.Release != release || !v.Packages || !v.checked || !v.boot.bios || !v.boot.uefi || !v.boot.gpt || len(v.boot.mbr) == 0 {
				t.Errorf("%+v", v)
			}
			req := vendorRequest(t, desired.ModeCompute)
			req.RPMs, req.Install = rpms, []string{"shoal-test"}
			// So many arguments that the menu does not fit into the space that it had in the full EFI system partition.
			for i := range 100 {
				req.Args = append(req.Args, fmt.Sprintf("test.argument.%d=%d", i, i))
			}
			m, err := v.Repack(base, req)
			if err != nil {
				t.Fatal(err)
			}
			var sums []string
			dir := t.TempDir()
			for i := range 2 {
				name := filepath.Join(dir, fmt.Sprint(i))
				if err := m.Write(t.Context(), name); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command("sha256sum", name).Output()
				if err != nil {
					t.Fatal(err)
				}
				sums = append(sums, string(out[:64]))
			}
			if sums[0] != sums[1] {
				t.Error("the same request gives other bytes")
			}
			if left, _ := os.ReadDir(dir); len(left) != 2 {
				t.Errorf("something was left behind: %v", left)
			}
			checkRepacked(t, v, m, filepath.Join(dir, "0"))
		})
	}
}

func open(t *testing.T, name string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, info.Size()
}

// checkRepacked looks at a repacked medium with other eyes: xorriso's, checkisomd5's, mtools'.
func checkRepacked(t *testing.T, v *Vendor, m *Repack, name string) {
	t.Helper()
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	if out := run("checkisomd5", name); !strings.Contains(out, "PASS") {
		t.Errorf("its checksum of itself: %s", out)
	}
	// What starts where, in the order of the catalogue and of the tables, without the places and sizes that a new image has.
	kind := func(image string) (out []string) {
		for line := range strings.Lines(run("xorriso", "-indev", image, "-report_el_torito", "plain", "-report_system_area", "plain")) {
			for _, prefix := range []string{"El Torito img path", "El Torito img opts", "System area summary", "Volume id", "Partition offset", "GPT type GUID", "MBR partition path", "GPT partition path"} {
				if strings.HasPrefix(line, prefix) && !strings.Contains(line, ":   3 ") {
					out = append(out, strings.TrimSpace(line))
				}
			}
		}
		return out
	}
	want := kind(m.base)
	if len(want) < 6 {
		t.Errorf("xorriso says too little: %v", want)
	}
	if diff := cmp.Diff(want, kind(name)); diff != "" {
		t.Errorf("it would start otherwise (-vendor's +repacked):\n%s", diff)
	}
	f, size := open(t, name)
	img, err := openVolume(f, size)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := readBootRecords(img)
	if err != nil {
		t.Fatal(err)
	}
	for path, args := range map[string]bool{"ks.cfg": false, payloadTar: false, payloadRPMs + "/repodata/repomd.xml": false, "images/install.img": false, "EFI/BOOT/grub.cfg": true} {
		b, err := img.read(path, 32<<20)
		if err != nil || args && !strings.Contains(string(b), ":/ks.cfg test.argument.0=0") {
			t.Errorf("%s: %v\n%.2000s", path, err, b)
		}
	}
	if out, err := img.read(payloadRPMs+"/repodata/primary.xml.gz", 1<<20); err != nil || len(out) == 0 {
		t.Errorf("the packages have no list: %v", err)
	}
	esp := filepath.Join(t.TempDir(), "esp")
	b := make([]byte, boot.esp.size)
	if _, err := f.ReadAt(b, boot.esp.offset); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(esp, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if grown := boot.esp.size > v.boot.esp.size; grown != (v.Release == 9) {
		t.Errorf("the EFI system partition has %d bytes, and had %d", boot.esp.size, v.boot.esp.size)
	}
	menu := run("mcopy", "-n", "-i", esp, "::/EFI/BOOT/grub.cfg", "-")
	if n := strings.Count(menu, ":/ks.cfg test.argument.0=0"); n != 2 || !strings.Contains(menu, "set timeout=5") {
		t.Errorf("%d entries of the menu of UEFI:\n%.2000s", n, menu)
	}
	if out := run("mdir", "-i", esp, "::/EFI/BOOT"); !strings.Contains(out, "BOOTX64  EFI") {
		t.Errorf("the boot loader is not there: %s", out)
	}
}

// rpm builds a package.
func rpm(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	spec := filepath.Join(dir, "test.spec")
	if err := os.WriteFile(spec, []byte("Name: shoal-test\nVersion: 1\nRelease: 1\nSummary: a test\nLicense: none\nBuildArch: noarch\n%description\na test\n%files\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("rpmbuild", "--quiet", "-bb", "-D", "_topdir "+dir, "-D", "_rpmdir "+dir, "-D", "_rpmfilename %%{NAME}.rpm", spec).CombinedOutput(); err != nil {
		t.Fatalf("rpmbuild: %v\n%s", err, out)
	}
	return dir
}

// FuzzVendor: no file makes the reader of vendors' media panic or read without end.
func FuzzVendor(f *testing.F) {
	f.Add(vendorImage(vendorTree(), "X", "images/efiboot.img"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := openVendor(b)
		if err == nil && (v.Label == "" || v.Release == 0) {
			t.Errorf("%+v", v)
		}
	})
}
