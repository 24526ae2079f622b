// Package file puts files in place whole: who reads one, or comes back after a crash, finds the old one or the new one.
package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace makes path the file that fill writes, in one step, and durable. It is written beside, under a name that begins with a dot, and is
// gone again where anything fails; only the end of the process leaves it there. The directory must exist. What root writes belongs to whom the
// directory belongs to: root's commands must not take files away from a controller that runs as somebody else. Errors are those of fill and of os.
func Replace(path string, perm fs.FileMode, fill func(f *os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	err = f.Chmod(perm)
	if err == nil && os.Geteuid() == 0 {
		err = adopt(f, dir)
	}
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(dir)
}

// adopt gives a file to the owner of a directory.
func adopt(f *os.File, dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		return f.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// Write makes path a file with this content, as Replace does.
func Write(path string, perm fs.FileMode, content []byte) error {
	return Replace(path, perm, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// SyncDir makes what was made, renamed and removed in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
