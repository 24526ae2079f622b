package console

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTicks(t *testing.T) {
	t.Parallel()
	const stat = "cpu  100 10 50 800 40 0 5 5 60 0\ncpu0 50 5 25 400 20 0 2 2 30 0\ncpu1 50 5 25 400 20 0 3 3 30 0\nintr 5\n"
	busy, total, cpus, err := ticks(stat)
	if busy != 170 || total != 1010 || cpus != 2 || err != nil {
		t.Errorf("%d of %d on %d, %v", busy, total, cpus, err)
	}
	for _, bad := range []string{"", "cpu x 1 1 1 1 1 1 1\n", "intr 5\n"} {
		if _, _, _, err := ticks(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	if total, used := memory("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n"); total != 1000<<10 || used != 600<<10 {
		t.Errorf("%d of %d", used, total)
	}
	if total, used := memory("nonsense"); total != 0 || used != 0 {
		t.Errorf("%d of %d out of nothing", used, total)
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	for file, content := range map[string]string{
		"sda/size": "4096\n", "sda/device/model": "A Disk  \n", "vda/size": "2\n", "vda/device/x": "", "loop0/size": "8\n", "sr0/size": "8\n", "sr0/device/x": "", "sdb/size": "0\n", "sdb/device/x": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]Disk{{"sda", "A Disk", 4096 * 512}, {"vda", "", 1024}}, disks(sys)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFileSystems(t *testing.T) {
	t.Parallel()
	got := fileSystems("/dev/vda1 / ext4 rw 0 0\n/dev/vda1 /again ext4 rw 0 0\nnas:/x /tmp nfs rw 0 0\n/dev/loop0 /tmp squashfs ro 0 0\n/dev/sdx /does/not/exist ext4 rw 0 0\n")
	if len(got) != 1 || got[0].Path != "/" || got[0].Bytes == 0 || got[0].Used > got[0].Bytes {
		t.Errorf("%+v", got)
	}
}

func TestUnitStates(t *testing.T) {
	t.Parallel()
	got := unitStates("Id=ssh.service\nLoadState=loaded\nActiveState=active\n\nId=x.service\nLoadState=not-found\nActiveState=inactive\n\nActiveState=failed\nLoadState=loaded\nId=libvirtd.service\n")
	if diff := cmp.Diff([]Service{{"ssh", "active"}, {"libvirtd", "failed"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 10 << 20: "10 MiB", 3 << 40: "3.0 TiB"} {
		if got := size(in); got != want {
			t.Errorf("%d: %s", in, got)
		}
	}
}
