package volume

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The parser must agree with the tool that writes the files.
func TestParseHeader(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("NOT TESTED: needs qemu-img: run scripts/setup")
	}
	dir := t.TempDir()
	base, file := filepath.Join(dir, "base"), filepath.Join(dir, "file")
	create := func(args ...string) header {
		t.Helper()
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		b, err := Disk{}.Head(file, headBytes)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want header
	}{
		{[]string{file, "5M"}, header{size: 5 << 20}},
		{[]string{"-o", "compat=0.10", file, "5M"}, header{size: 5 << 20}},
		{[]string{"-b", base, "-F", "raw", file, "8M"}, header{size: 8 << 20, backing: base, backingFormat: "raw"}},
		{[]string{"-o", "compat=0.10,cluster_size=512", "-b", base, "-F", "raw", file}, header{size: 1 << 20, backing: base, backingFormat: "raw"}},
	} {
		if d := cmp.Diff(c.want, create(c.args...), cmp.AllowUnexported(header{})); d != "" {
			t.Errorf("%v: %s", c.args, d)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	good := make([]byte, 128)
	copy(good, "QFI\xfb\x00\x00\x00\x03")
	good[103] = 104
	f.Add(good)
	f.Add(good[:72])
	f.Add([]byte("QFI\xfb"))
	overlay := append([]byte{}, good...)
	overlay[15], overlay[19] = 112, 16
	f.Add(overlay)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err == nil && len(h.backing) > 1023 {
			t.Errorf("backing file name of %d bytes", len(h.backing))
		}
	})
}
