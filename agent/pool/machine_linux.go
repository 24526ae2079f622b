package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/agent/host"
)

// Machine is what the kind needs of the host. What touches a storage may hang with it.
type Machine interface {
	// Mounts is what is mounted where, in the order of mounting. It never hangs.
	Mounts() ([]Mount, error)
	Mount(ctx context.Context, fstype, source, path, options string) error
	Unmount(ctx context.Context, path string) error

	MkdirAll(path string) error
	// Resolve is the path without symbolic links.
	Resolve(path string) (string, error)
	// ReadMarker gives fs.ErrNotExist for a marker that is not there.
	ReadMarker(path string) (string, error)
	WriteMarker(path, content string) error
	Space(path string) (Space, error)

	// WatchMounts calls changed once it listens and after each change of the mounts, until ctx ends.
	WatchMounts(ctx context.Context, changed func()) error
}

// Mount is a line of /proc/self/mountinfo.
type Mount struct{ Path, Type, Source string }

// Space is a file system's.
type Space struct {
	Total, Free uint64
	ReadOnly    bool
}

// Host is the machine that the agent runs on.
type Host struct {
	// Run runs mount and umount.
	Run host.Runner
}

// Mounts implements Machine.
func (Host) Mounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads mountinfo (proc(5)).
func parseMounts(r io.Reader) ([]Mount, error) {
	var mounts []Mount
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 2 {
			return nil, fmt.Errorf("parse mountinfo: %q", s.Text())
		}
		mounts = append(mounts, Mount{Path: unescape(left[4]), Type: right[0], Source: unescape(right[1])})
	}
	return mounts, s.Err()
}

// unescape undoes the kernel's \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(s string) bool {
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7'
}

// Mount implements Machine.
func (h Host) Mount(ctx context.Context, fstype, source, path, options string) error {
	_, err := h.Run.Run(ctx, host.Command{Name: "mount", Args: []string{"-t", fstype, "-o", options, source, path}})
	return err
}

// Unmount implements Machine.
func (h Host) Unmount(ctx context.Context, path string) error {
	_, err := h.Run.Run(ctx, host.Command{Name: "umount", Args: []string{path}})
	return err
}

// MkdirAll implements Machine.
func (Host) MkdirAll(path string) error { return os.MkdirAll(path, 0o755) }

// Resolve implements Machine.
func (Host) Resolve(path string) (string, error) { return filepath.EvalSymlinks(path) }

// ReadMarker implements Machine.
func (Host) ReadMarker(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 256))
	return string(b), err
}

// WriteMarker implements Machine.
func (Host) WriteMarker(path, content string) error {
	return host.WriteFile(path, []byte(content), 0o644)
}

// Space implements Machine.
func (Host) Space(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, err
	}
	unit := uint64(st.Bsize)
	return Space{Total: st.Blocks * unit, Free: st.Bavail * unit, ReadOnly: st.Flags&unix.ST_RDONLY != 0}, nil
}

// WatchMounts implements Machine. The kernel marks an open mountinfo with POLLPRI when it changes.
func (Host) WatchMounts(ctx context.Context, changed func()) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	changed() // for what happened until now
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		n, err := unix.Poll(fds, 500)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll mountinfo: %w", err)
		}
		if n > 0 {
			changed()
		}
	}
}

// notExist reports whether nothing is there.
func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
