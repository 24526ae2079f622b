package volume

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shoal/agent/host"
)

// Files is the file system that pools are in. Calls may hang with their storage.
type Files interface {
	// Stat gives fs.ErrNotExist for what is not there. It does not follow symbolic links.
	Stat(path string) (FileInfo, error)
	// Head is the beginning of a file.
	Head(path string, n int) ([]byte, error)
	Open(path string) (io.ReadCloser, error)
	// Append opens a file for writing at its end, and makes it if need be.
	Append(path string) (File, error)
	// Publish puts a file that is whole in its place: durable, at once, in place of what is there.
	Publish(from, to string, perm fs.FileMode) error
	// Remove removes a file, durably; one that is not there is no error.
	Remove(path string) error
	MkdirAll(dir string) error
	// List is the names in a directory; none when there is no such directory.
	List(dir string) ([]string, error)
	// Free is the space that is left in a directory's file system.
	Free(dir string) (uint64, error)
	// InUse reports whether a QEMU of this host has a disk image open.
	InUse(path string) (bool, error)
}

// FileInfo describes a file.
type FileInfo struct {
	Size      uint64
	Allocated uint64
	Modified  time.Time
	Regular   bool
}

// File is a file that is being written.
type File interface {
	io.WriteCloser
	Sync() error
}

// Disk is the machine's file system.
type Disk struct{}

// Stat implements Files.
func (Disk) Stat(path string) (FileInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return FileInfo{}, err
	}
	info := FileInfo{Size: uint64(fi.Size()), Modified: fi.ModTime(), Regular: fi.Mode().IsRegular()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.Allocated = uint64(st.Blocks) * 512
	}
	return info, nil
}

// Head implements Files.
func (Disk) Head(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	got, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:got], err
}

// Open implements Files.
func (Disk) Open(path string) (io.ReadCloser, error) { return os.Open(path) }

// Append implements Files.
func (Disk) Append(path string) (File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
}

// Publish implements Files.
func (Disk) Publish(from, to string, perm fs.FileMode) error {
	f, err := os.OpenFile(from, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(perm), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return host.SyncDir(filepath.Dir(to))
}

// Remove implements Files.
func (Disk) Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return host.SyncDir(filepath.Dir(path))
}

// MkdirAll implements Files.
func (Disk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o755) }

// List implements Files.
func (Disk) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Free implements Files.
func (Disk) Free(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// InUse implements Files. QEMU locks bytes from 100 and from 200 on of every image that it has open, with the locks of
// open file descriptions (block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE).
func (Disk) InUse(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, err
	}
	return lock.Type != unix.F_UNLCK, nil
}
