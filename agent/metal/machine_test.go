package metal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/agent/metal/plan"
	"shoal/desired"
)

// lsblkOutput is of a machine with a stick that has the medium, a mirror with volumes on it, a blank disk, one with something that is not known,
// and devices that are no disks. It is as lsblk of util-linux 2.38 writes it.
const lsblkOutput = `{"blockdevices": [
 {"name":"loop0","path":"/dev/loop0","type":"loop","size":338399232,"ro":true,"rm":false,"model":null,"serial":null,"fstype":"squashfs","label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"sdc","path":"/dev/sdc","type":"disk","size":8000000000,"ro":false,"rm":true,"model":"Stick ","serial":"123","fstype":"iso9660","label":"SHOAL_INSTALL","partlabel":null,"pttype":"PMBR","mountpoints":["/run/install/repo"],
  "children":[{"name":"sdc1","path":"/dev/sdc1","type":"part","size":1,"ro":false,"rm":true,"fstype":"iso9660","label":"SHOAL_INSTALL","partlabel":"Gap0","pttype":"PMBR","mountpoints":[null]}]},
 {"name":"sda","path":"/dev/sda","type":"disk","size":40000000000,"ro":false,"rm":false,"model":"Disk","serial":"A","fstype":null,"label":null,"partlabel":null,"pttype":"gpt","mountpoints":[null],
  "children":[{"name":"sda1","path":"/dev/sda1","type":"part","size":1,"ro":false,"rm":false,"fstype":null,"label":null,"partlabel":"shoal-unfinished","pttype":"gpt","mountpoints":[null]},
   {"name":"sda2","path":"/dev/sda2","type":"part","size":1,"ro":false,"rm":false,"fstype":"linux_raid_member","label":"any:sys","partlabel":"pv","pttype":"gpt","mountpoints":[null],
    "children":[{"name":"md127","path":"/dev/md127","type":"raid1","size":1,"ro":false,"rm":false,"fstype":"LVM2_member","label":null,"partlabel":null,"pttype":null,"mountpoints":[null],
     "children":[{"name":"vg-root","path":"/dev/mapper/vg-root","type":"lvm","size":1,"ro":false,"rm":false,"fstype":"xfs","label":null,"partlabel":null,"pttype":null,"mountpoints":["/mnt/x"]}]}]}]},
 {"name":"vda","path":"/dev/vda","type":"disk","size":20000000000,"ro":false,"rm":false,"model":null,"serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"vdb","path":"/dev/vdb","type":"disk","size":20000000000,"ro":true,"rm":false,"model":null,"serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"vdc","path":"/dev/vdc","type":"disk","size":20000000000,"ro":false,"rm":false,"model":null,"serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"vdd","path":"/dev/vdd","type":"disk","size":20000000000,"ro":false,"rm":false,"model":null,"serial":null,"fstype":"LVM2_member","label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"fd0","path":"/dev/fd0","type":"disk","size":4096,"ro":false,"rm":true,"model":null,"serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"sde","path":"/dev/sde","type":"disk","size":0,"ro":false,"rm":true,"model":"Reader","serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]},
 {"name":"sr0","path":"/dev/sr0","type":"rom","size":1,"ro":false,"rm":true,"model":null,"serial":null,"fstype":null,"label":null,"partlabel":null,"pttype":null,"mountpoints":[null]}]}`

func TestDisksOf(t *testing.T) {
	t.Parallel()
	got, err := disksOf([]byte(lsblkOutput), map[string][]string{"/dev/vda": {"/dev/disk/by-path/b", "/dev/disk/by-id/a"}}, func(path string) (bool, error) {
		if path == "/dev/vdc" {
			return false, errors.New("input/output error")
		}
		return path == "/dev/vdb", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []plan.Disk{
		{Name: "sdc", Path: "/dev/sdc", Size: 8000000000, Model: "Stick", Serial: "123", Removable: true, InUse: "it is the installation medium", Table: "PMBR", Content: []plan.Content{
			{Path: "/dev/sdc", Type: "iso9660", Label: "SHOAL_INSTALL"}, {Path: "/dev/sdc1", Type: "iso9660", Label: "SHOAL_INSTALL", Name: "Gap0"},
		}},
		{
			Name: "sda", Path: "/dev/sda", Size: 40000000000, Model: "Disk", Serial: "A", Table: "gpt", InUse: "/dev/mapper/vg-root is in use as /mnt/x",
			Content: []plan.Content{{Path: "/dev/sda1", Name: "shoal-unfinished"}, {Path: "/dev/sda2", Type: "linux_raid_member", Label: "any:sys", Name: "pv"}},
			Holders: []plan.Holder{{Path: "/dev/mapper/vg-root", Kind: "lvm", Name: "vg-root"}, {Path: "/dev/md127", Kind: "raid", Name: "md127"}},
		},
		{Name: "vda", Path: "/dev/vda", Size: 20000000000, Links: []string{"/dev/disk/by-id/a", "/dev/disk/by-path/b"}},
		{Name: "vdb", Path: "/dev/vdb", Size: 20000000000, ReadOnly: true, Content: []plan.Content{{Path: "/dev/vdb", Type: "data"}}},
		{Name: "vdc", Path: "/dev/vdc", Size: 20000000000, InUse: "it can't be read: input/output error"},
		{Name: "vdd", Path: "/dev/vdd", Size: 20000000000, Content: []plan.Content{{Path: "/dev/vdd", Type: "LVM2_member"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := disksOf([]byte("lsblk: error"), nil, nil); err == nil {
		t.Error("nonsense is read as no disks")
	}
}

func TestDirty(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "disk")
	for content, want := range map[string]bool{strings.Repeat("\x00", 3<<20): false, strings.Repeat("\x00", 900<<10) + "x" + strings.Repeat("\x00", 2<<20): true, "\x00\x00": false} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := dirty(name); got != want || err != nil {
			t.Errorf("%d bytes: %v, %v", len(content), got, err)
		}
	}
	if _, err := dirty(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("what can't be read is called blank")
	}
}

func TestNICsOf(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	for file, content := range map[string]string{
		"ens3/type": "1\n", "ens3/address": "52:54:00:AA:00:01\n", "ens3/carrier": "1\n", "ens3/device/x": "", "ens4/type": "1\n", "ens4/address": "52:54:00:aa:00:02\n", "ens4/device/x": "",
		"lo/type": "772\n", "br0/type": "1\n", "br0/address": "52:54:00:aa:00:03\n", "ib0/type": "32\n", "ib0/device/x": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := nicsOf(sys)
	want := []plan.NIC{{Name: "ens3", MAC: "52:54:00:aa:00:01", Carrier: true}, {Name: "ens4", MAC: "52:54:00:aa:00:02"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestBootMAC(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{"BOOTIF=01-52-54-00-AA-00-01": "52:54:00:aa:00:01", "BOOTIF=52:54:00:aa:00:01": "52:54:00:aa:00:01", "quiet": ""} {
		if got := bootMAC([]string{"quiet", arg}); got != want {
			t.Errorf("%s: %q", arg, got)
		}
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, test := range map[string]struct{ sums, want string }{
		"whole":      {empty + "  a\n" + empty + "  bin/b\n", ""},
		"changed":    {strings.Repeat("0", 64) + "  a\n", "a is not what was written"},
		"missing":    {empty + "  c\n", "no such file"},
		"empty list": {"", "the list of checksums is empty"},
		"outside":    {empty + "  ../a\n", "the list of checksums has"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
				t.Fatal(err)
			}
			for file, content := range map[string]string{"a": "", "bin/b": "", "sums": test.sums} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := verify(t.Context(), dir, func(string, ...any) {})
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "nothing was changed")):
				t.Errorf("error is %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	for file, content := range map[string]string{"a": "", "sums": empty + "  a\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := verify(ctx, dir, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestVolumeLabel(t *testing.T) {
	t.Parallel()
	b := make([]byte, 17*2048)
	copy(b[16*2048:], "\x01CD001\x01")
	copy(b[16*2048+40:], "SHOAL_INSTALL                   ")
	name := filepath.Join(t.TempDir(), "cd")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := volumeLabel(name); got != "SHOAL_INSTALL" {
		t.Errorf("label is %q", got)
	}
	if got := volumeLabel("/dev/null"); got != "" {
		t.Errorf("label of nothing is %q", got)
	}
}

func TestReadHost(t *testing.T) {
	t.Parallel()
	token := desired.JoinToken{ID: "id", Secret: "secret", URLs: []string{"tls://10.0.0.1:4222"}}.Text()
	for content, want := range map[string]string{
		`{"id":"0123456789abcdef","mode":"compute","token":"` + token + `"}`: "", `{"id":"0123456789abcdef","mode":"desktop"}`: "mode", `{"id":"x","mode":"compute"}`: "id",
		`{"id":"0123456789abcdef","mode":"compute","token":"a b"}`: "parse join token", `{"mode":"compute","new":1}`: "another version", "{": "another version",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "host.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readHost(dir); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
	if _, err := readHost(t.TempDir()); err == nil || !strings.Contains(err.Error(), "shoalctl iso build") {
		t.Errorf("a bare image: %v", err)
	}
}
