package iso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/desired"
	"shoal/desired/kickstart"
)

// tree makes an ISO 9660 image with Rock Ridge names out of files, as far as the reader needs: what xorriso makes is used in e2e/iso.
func tree(files map[string]string) []byte {
	dirs := map[string]map[string]bool{"": {}}
	for name := range files {
		parts := strings.Split(name, "/")
		for i := range parts {
			at := strings.Join(parts[:i], "/")
			if dirs[at] == nil {
				dirs[at] = map[string]bool{}
			}
			dirs[at][parts[i]] = i < len(parts)-1
		}
	}
	var out []byte
	out = append(out, make([]byte, 18*sector)...)
	next := func(content []byte) (lba, size int) {
		lba = len(out) / sector
		out = append(out, content...)
		out = append(out, make([]byte, (sector-len(out)%sector)%sector)...)
		return lba, len(content)
	}
	record := func(id, name string, lba, size int, dir bool) []byte {
		b := make([]byte, 33, 255)
		binary.LittleEndian.PutUint32(b[2:], uint32(lba))
		binary.LittleEndian.PutUint32(b[10:], uint32(size))
		if dir {
			b[25] = 2
		}
		b[32] = byte(len(id))
		b = append(b, id...)
		if len(id)%2 == 0 {
			b = append(b, 0)
		}
		if name != "" {
			b = append(b, 'N', 'M', byte(5+len(name)), 1, 0)
			b = append(b, name...)
		}
		b[0] = byte(len(b))
		return b
	}
	var write func(dir string) (int, int)
	write = func(dir string) (int, int) {
		var content []byte
		n := 0
		for name, isDir := range dirs[dir] {
			full := strings.TrimPrefix(dir+"/"+name, "/")
			var lba, size int
			if isDir {
				lba, size = write(full)
			} else {
				lba, size = next([]byte(files[full]))
			}
			n++
			r := record(fmt.Sprintf("FILE%d.;1", n), name, lba, size, isDir)
			if len(content)%sector+len(r) > sector {
				content = append(content, make([]byte, sector-len(content)%sector)...)
			}
			content = append(content, r...)
		}
		return next(content)
	}
	lba, size := write("")
	pvd := out[16*sector:]
	copy(pvd, "\x01CD001\x01")
	copy(pvd[40:], fmt.Sprintf("%-32s", desired.MediumLabel))
	binary.LittleEndian.PutUint32(pvd[80:], uint32(len(out)/sector))
	copy(pvd[156:], record("\x00", "", lba, size, true))
	return out
}

func testImage() []byte {
	return tree(map[string]string{
		hostImage: strings.Repeat("\x00", 8192), hostConfig: strings.Repeat("\n", 4096), "boot/initrd.img": "initrd", "boot/vmlinuz": "kernel", "shoal/sums": "aa  rootfs.squashfs\nbb  bin/shoal-agent\n",
		"shoal/rootfs.squashfs": "root", "shoal/bin/shoal-agent": "agent", "shoal/pxe/shimx64.efi": "shim", "shoal/pxe/grubnetx64.efi": "grub",
	})
}

const plain = "rootpw --lock\npart / --size=3000 --grow\n"

func token(secret string) string {
	return desired.JoinToken{ID: "id", Secret: secret, URLs: []string{"tls://10.0.0.1:4222"}}.Text()
}

func request(text string) Request {
	return Request{Mode: desired.ModeCompute, Token: token("secret"), Kickstart: []byte(text), Name: "my.ks", MenuSeconds: 5}
}

func TestWriteISO(t *testing.T) {
	t.Parallel()
	img := testImage()
	req := request(plain + "%include part.ks\n%include /tmp/later.ks\n")
	req.Args = []string{"quiet", "panic=5"}
	req.Open = func(name string) ([]byte, error) {
		if name == "part.ks" {
			return []byte("zerombr\n"), nil
		}
		return nil, fs.ErrNotExist
	}
	var outs [][]byte
	for i := range 2 {
		m, err := New(bytes.NewReader(img), int64(len(img)), req)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := m.WriteISO(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("others can read the token: %v, %v", info.Mode(), err)
		}
		outs = append(outs, b)
	}
	if !bytes.Equal(outs[0], outs[1]) {
		t.Error("the same request gives other bytes")
	}
	if len(outs[0]) != len(img) {
		t.Errorf("%d bytes of %d", len(outs[0]), len(img))
	}
	got, err := openImage(bytes.NewReader(outs[0]), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	config, err := got.read(hostConfig, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("set shoal_id=%s\nset timeout=5\nset shoal_args=\"quiet panic=5\"\n", mustID(t, img, req))
	if diff := cmp.Diff(want+strings.Repeat("\n", 4096-len(want)), string(config)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	archive, err := got.read(hostImage, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, archive)
	if files["host/ks.cfg"] != string(req.Kickstart) || files["host/part.ks"] != "zerombr\n" || !strings.Contains(files["host/host.json"], `"token":"shoal1.id.secret.`) || len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	// Nothing else may change: boot records and checksums are of the image.
	for _, name := range []string{hostImage, hostConfig} {
		e, err := got.find(name)
		if err != nil {
			t.Fatal(err)
		}
		copy(outs[0][e.offset:e.offset+e.size], img[e.offset:])
	}
	if !bytes.Equal(outs[0], img) {
		t.Error("more than the reserved space was written")
	}
}

func mustID(t *testing.T, img []byte, req Request) string {
	t.Helper()
	m, err := New(bytes.NewReader(img), int64(len(img)), req)
	if err != nil {
		t.Fatal(err)
	}
	return m.ID()
}

// unpack reads an archive the way the kernel does.
func unpack(t *testing.T, b []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			t.Fatalf("no header: %.20q", b)
		}
		var mode, size, nameLen int
		for i, into := range map[int]*int{1: &mode, 6: &size, 11: &nameLen} {
			if _, err := fmt.Sscanf(string(b[6+8*i:14+8*i]), "%x", into); err != nil {
				t.Fatal(err)
			}
		}
		name := string(b[110 : 110+nameLen-1])
		at := (110 + nameLen + 3) / 4 * 4
		if name == "TRAILER!!!" {
			return files
		}
		if mode&0o170000 == 0o100000 {
			files[name] = string(b[at : at+size])
		} else if mode != 0o40700 {
			t.Errorf("%s has mode %o", name, mode)
		}
		b = b[(at+size+3)/4*4:]
	}
}

func TestWritePXE(t *testing.T) {
	t.Parallel()
	img := testImage()
	m, err := New(bytes.NewReader(img), int64(len(img)), request(plain))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := m.WritePXE(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"vmlinuz": "kernel", "initrd.img": "initrd", "shimx64.efi": "shim", "grubx64.efi": "grub"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want || err != nil {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "payload.cpio"))
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, b)
	if files["payload/shoal/rootfs.squashfs"] != "root" || files["payload/shoal/bin/shoal-agent"] != "agent" || files["payload/shoal/sums"] == "" || files["host/ks.cfg"] != plain {
		t.Errorf("files: %v", files)
	}
	for _, name := range []string{"boot.ipxe", "grub/grub.cfg"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(b), "payload.cpio") {
			t.Errorf("%s: %v, %s", name, err, b)
		}
	}
}

func TestIDTellsMediaApart(t *testing.T) {
	t.Parallel()
	img := testImage()
	one := mustID(t, img, request(plain))
	other := request(plain)
	other.Token = token("other")
	more := request(plain + "zerombr\n")
	for _, id := range []string{mustID(t, img, other), mustID(t, img, more), mustID(t, tree(map[string]string{
		hostImage: "", hostConfig: "", "boot/initrd.img": "initrd2", "shoal/sums": "",
	}), request(plain))} {
		if id == one {
			t.Error("another medium has the same id")
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	img := testImage()
	cut := img[:len(img)-sector]
	label := bytes.Clone(img)
	copy(label[16*sector+40:], "DEBIAN")
	bare := tree(map[string]string{"boot/initrd.img": "", "shoal/sums": ""})
	args := request(plain)
	args.Args = []string{"a b"}
	mode := request(plain)
	mode.Mode = "desktop"
	for name, test := range map[string]struct {
		img  []byte
		req  Request
		want string
	}{
		"kickstart":   {img, request(plain + "bogus\n"), `my.ks:3: unknown directive "bogus"`},
		"mode":        {img, mode, "desktop"},
		"argument":    {img, args, `the kernel argument "a b"`},
		"cut off":     {cut, request(plain), "the image is not complete"},
		"another":     {label, request(plain), "its label is"},
		"no image":    {[]byte("hello"), request(plain), "it has no volume descriptor"},
		"absolute":    {img, Request{Mode: desired.ModeExpert, Name: "k", Kickstart: []byte(plain + "%include http://x/y\n")}, "not from the network"},
		"no space":    {img, request(plain + "# " + strings.Repeat("x", 9000)), "too large"},
		"no reserved": {bare, request(plain), "it has no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := New(bytes.NewReader(test.img), int64(len(test.img)), test.req)
			dir := t.TempDir()
			if err == nil {
				err = m.WriteISO(t.Context(), filepath.Join(dir, "x.iso"))
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %s", err, test.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("something was left behind: %v", left)
			}
		})
	}
}

// TestRecipes: what the flags make is a kickstart that is accepted without errors, and says what was wished.
func TestRecipes(t *testing.T) {
	t.Parallel()
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtest ops@corp"
	for name, test := range map[string]struct {
		r    Recipe
		want []string
	}{
		"default": {Recipe{Mode: desired.ModeCompute}, []string{"network --device=link --bootproto=dhcp --onboot=on", "zerombr", "logvol / "}},
		"static": {
			Recipe{Mode: desired.ModeStorage, Net: "10.20.0.11/24,gateway=10.20.0.1,dns=10.20.0.2+10.20.0.3,mtu=9000", Bond: "bond0=eno1,eno2,mode=lacp", VLAN: 120, Keys: []string{key}, Hostname: "st1", Disks: []string{"serial=S3Z8"}, Erase: true},
			[]string{"--bondopts=mode=802.3ad,miimon=100,lacp_rate=fast,xmit_hash_policy=layer3+4 --vlanid=120", "--nameserver=10.20.0.2,10.20.0.3 --mtu=9000", "ignoredisk --only-use=/dev/disk/by-id/*S3Z8", "clearpart --all --initlabel --disklabel=gpt --drives=/dev/disk/by-id/*S3Z8", `sshkey --username=root "` + key + `"`},
		},
		"mirror": {Recipe{Mode: desired.ModeManagement, Disks: []string{"sda", "path=pci-0000:00:1f.2-ata-2"}, PasswordHash: "$6$a$b", VLAN: 7}, []string{"part raid.22 --size=6144 --grow --ondisk=/dev/disk/by-path/pci-0000:00:1f.2-ata-2", "--interfacename=vlan7", "--service=ssh,vxlan,ntp", `rootpw --iscrypted "$6$a$b"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := test.r.Kickstart()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text)}); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in:\n%s", want, text)
				}
			}
		})
	}
	bySize, err := Recipe{Mode: desired.ModeExpert, Disks: []string{"size>=200GB"}, Erase: true}.Kickstart()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(bySize), Open: func(string) ([]byte, error) { return []byte("ignoredisk --only-use=/dev/sda\n"), nil }}); err != nil {
		t.Errorf("%v\n%s", err, bySize)
	}
	for want, r := range map[string]Recipe{
		"--net": {Net: "10.0.0.1"}, "gateway=": {Net: "dhcp,router=1"}, "--bond": {Bond: "bond0"}, "exclude": {Bond: "b=a", NIC: "c"}, "--disk": {Disks: []string{"colour=red"}},
		"not by size": {Disks: []string{"size>=1GB", "sda"}}, "3 disks": {Disks: []string{"a", "b", "c"}}, "not a size": {Disks: []string{"size>=big"}}, "not a disk": {Disks: []string{"a b"}},
	} {
		if _, err := r.Kickstart(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// FuzzImage: no file makes the reader panic or read without end.
func FuzzImage(f *testing.F) {
	f.Add(testImage())
	f.Fuzz(func(_ *testing.T, b []byte) {
		img, err := openImage(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, name := range []string{hostImage, "shoal/pxe/shimx64.efi", ""} {
			if e, err := img.find(name); err == nil && e.offset+e.size > int64(len(b)) {
				panic("a file lies behind the end")
			}
		}
	})
}
