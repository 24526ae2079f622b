package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"shoal/controller/file"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	is := func(want string, perm os.FileMode) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Fatalf("the file has %q (%v), want %q", b, err, want)
		}
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != perm {
			t.Fatalf("mode %v (%v), want %v", fi.Mode().Perm(), err, perm)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Fatalf("beside the file: %v (%v)", entries, err)
		}
	}
	if err := file.Write(path, 0o600, []byte("old, and longer")); err != nil {
		t.Fatal(err)
	}
	is("old, and longer", 0o600)
	if err := file.Write(path, 0o644, []byte("new")); err != nil {
		t.Fatal(err)
	}
	is("new", 0o644)
	failed := errors.New("no")
	err := file.Replace(path, 0o600, func(f *os.File) error {
		_, err := f.WriteString("half")
		return errors.Join(err, failed)
	})
	if !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	is("new", 0o644)
}

// TestReplace_KeepsTheOwner: what root writes in a directory of somebody else's is theirs.
func TestReplace_KeepsTheOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a")
	if err := file.Write(path, 0o600, nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 12345 || owner.Gid != 12346 {
		t.Errorf("it belongs to %d:%d", owner.Uid, owner.Gid)
	}
}
