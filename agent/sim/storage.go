package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/agent/host"
	"shoal/agent/pool"
	"shoal/agent/volume"
)

// Storage is a model of a host's file system, its mounts and qemu-img. It implements pool.Machine, volume.Files and
// host.Runner; its other methods are what operators, guests and accidents do.
type Storage struct {
	mu      *sync.Mutex // that of all storages with the same filers
	cond    *sync.Cond
	local   *tree
	filers  *tree // what lies below mounts, by "@<source>/..."
	mounts  []pool.Mount
	exports map[string]bool // servers' exports that answer
	hung    map[string]bool // directories whose files don't answer
	used    map[string]bool
	free    uint64
	ro      bool
	change  int // counts changes of mounts
}

type simFile struct {
	content  []byte
	size     uint64 // of a sparse file; content is its beginning
	modified int64
	perm     fs.FileMode
}

// tree is files, by their names.
type tree struct {
	files map[string]*simFile
	dirs  map[string]bool
	// made counts how often there came to be a file where none was.
	made  map[string]int
	clock int64
}

func newTree() *tree {
	return &tree{files: map[string]*simFile{}, dirs: map[string]bool{"/": true}, made: map[string]int{}}
}

func (t *tree) set(name string, f *simFile) {
	if t.files[name] == nil {
		t.made[name]++
	}
	t.clock++
	f.modified = t.clock
	t.files[name] = f
}

// of is where a file lies, by its real name.
func (s *Storage) of(file string) *tree {
	if strings.HasPrefix(file, "@") {
		return s.filers
	}
	return s.local
}

// NewStorage is a host with free bytes of disk.
func NewStorage(free uint64) *Storage {
	s := &Storage{
		mu: &sync.Mutex{}, local: newTree(), filers: newTree(), exports: map[string]bool{}, hung: map[string]bool{},
		used: map[string]bool{}, free: free,
	}
	s.cond = sync.NewCond(s.mu)
	return s
}

// Share makes both hosts mount from the same filers. It is to be called before anything else.
func (s *Storage) Share(with *Storage) {
	s.mu, s.filers = with.mu, with.filers
	s.cond = sync.NewCond(s.mu)
}

// Made tells how often there came to be a file of that name, which was not there just before.
func (s *Storage) Made(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.real(name)
	return s.of(file).made[file]
}

// Export makes "server:/path" mountable, or not.
func (s *Storage) Export(source string, up bool) { s.locked(func() { s.exports[source] = up }) }

// Hang makes everything below a directory hang, or go on.
func (s *Storage) Hang(dir string, hang bool) { s.locked(func() { s.hung[dir] = hang }) }

// SetFree sets what is free; SetReadOnly remounts everything.
func (s *Storage) SetFree(n uint64) { s.locked(func() { s.free = n }) }

// SetReadOnly makes the file system read-only, or writable.
func (s *Storage) SetReadOnly(ro bool) { s.locked(func() { s.ro = ro }) }

// SetUsed is a guest that opens or closes a disk.
func (s *Storage) SetUsed(path string, used bool) { s.locked(func() { s.used[path] = used }) }

// Put is somebody else's file.
func (s *Storage) Put(name string, content []byte) {
	s.locked(func() { s.put(name, content, uint64(len(content))) })
}

// Drop is somebody else's rm.
func (s *Storage) Drop(name string) {
	s.locked(func() {
		file := s.enter(name)
		delete(s.of(file).files, file)
	})
}

// Files lists all files.
func (s *Storage) Files() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, t := range []*tree{s.local, s.filers} {
		for n := range t.files {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// MountForeign is an operator's mount; UnmountForeign an operator's umount.
func (s *Storage) MountForeign(source, dir string) {
	s.locked(func() { s.mounts = append(s.mounts, pool.Mount{Path: dir, Type: "ext4", Source: source}); s.change++ })
}

// UnmountForeign takes the topmost mount off a directory.
func (s *Storage) UnmountForeign(dir string) { s.locked(func() { s.unmount(dir) }) }

// Reset takes every mount off, and lets go of every file that a guest has open, as a boot of the host does.
func (s *Storage) Reset() {
	s.locked(func() {
		s.mounts = nil
		s.change++
		clear(s.used)
	})
}

// Has reports whether a file is there, without waiting for a storage that hangs.
func (s *Storage) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.real(name)
	return s.of(file).files[file] != nil
}

func (s *Storage) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.cond.Broadcast()
}

func (s *Storage) unmount(dir string) bool {
	for i, v := range slices.Backward(s.mounts) {
		if v.Path == dir {
			s.mounts = slices.Delete(s.mounts, i, i+1)
			s.change++
			return true
		}
	}
	return false
}

// enter waits while name hangs; s.mu is held. The real name of a file below a mount is the mount's.
func (s *Storage) enter(name string) string {
	for slices.ContainsFunc(parents(name), func(d string) bool { return s.hung[d] }) {
		s.cond.Wait()
	}
	return s.real(name)
}

// real is the name of a file whatever is mounted; s.mu is held.
func (s *Storage) real(name string) string {
	for _, m := range slices.Backward(s.mounts) {
		if rest, ok := strings.CutPrefix(name, m.Path); ok && (rest == "" || rest[0] == '/') {
			return "@" + m.Source + rest
		}
	}
	return name
}

func parents(name string) []string {
	dirs := []string{name}
	for d := path.Dir(name); ; d = path.Dir(d) {
		dirs = append(dirs, d)
		if d == "/" || d == "." {
			return dirs
		}
	}
}

func (s *Storage) put(name string, content []byte, size uint64) {
	file := s.enter(name)
	s.of(file).set(file, &simFile{content: slices.Clone(content), size: size, perm: 0o644})
}

func (s *Storage) get(name string) (*simFile, error) {
	file := s.enter(name)
	if f := s.of(file).files[file]; f != nil {
		return f, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
}

func (s *Storage) writable(name string, need uint64) error {
	switch {
	case s.ro:
		return &fs.PathError{Op: "write", Path: name, Err: syscall.EROFS}
	case need > s.free:
		return &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	return nil
}

// Mounts implements pool.Machine.
func (s *Storage) Mounts() ([]pool.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mounts), nil
}

// Mount implements pool.Machine.
func (s *Storage) Mount(_ context.Context, fstype, source, dir, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.exports[source] {
		return fmt.Errorf("mount.%s: Connection timed out", fstype)
	}
	s.mounts = append(s.mounts, pool.Mount{Path: dir, Type: fstype, Source: source})
	s.change++
	s.cond.Broadcast()
	return nil
}

// Unmount implements pool.Machine.
func (s *Storage) Unmount(_ context.Context, dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.unmount(dir) {
		return fmt.Errorf("umount: %s: not mounted", dir)
	}
	s.cond.Broadcast()
	return nil
}

// WatchMounts implements pool.Machine.
func (s *Storage) WatchMounts(ctx context.Context, changed func()) error {
	stop := context.AfterFunc(ctx, func() { s.locked(func() {}) })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for seen := s.change - 1; ; {
		for s.change == seen && ctx.Err() == nil {
			s.cond.Wait()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		seen = s.change
		s.mu.Unlock()
		changed()
		s.mu.Lock()
	}
}

// MkdirAll implements pool.Machine and volume.Files.
func (s *Storage) MkdirAll(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.enter(dir)
	tree := s.of(name)
	if tree.files[name] != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if !tree.dirs[name] {
		if err := s.writable(dir, 0); err != nil {
			return err
		}
	}
	tree.dirs[name] = true
	return nil
}

// Resolve implements pool.Machine.
func (s *Storage) Resolve(dir string) (string, error) { return dir, nil }

// ReadMarker implements pool.Machine.
func (s *Storage) ReadMarker(name string) (string, error) {
	b, err := s.Head(name, 256)
	return string(b), err
}

// WriteMarker implements pool.Machine.
func (s *Storage) WriteMarker(name, content string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(name, uint64(len(content))); err != nil {
		return err
	}
	s.put(name, []byte(content), uint64(len(content)))
	return nil
}

// Space implements pool.Machine.
func (s *Storage) Space(dir string) (pool.Space, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name := s.enter(dir); !s.of(name).dirs[name] && !strings.HasPrefix(name, "@") {
		return pool.Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: syscall.ENOENT}
	}
	return pool.Space{Total: 1 << 40, Free: s.free, ReadOnly: s.ro}, nil
}

// Stat implements volume.Files.
func (s *Storage) Stat(name string) (volume.FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(name)
	if err != nil {
		return volume.FileInfo{}, err
	}
	return volume.FileInfo{Size: f.size, Allocated: uint64(len(f.content)), Modified: time.Unix(0, f.modified), Regular: true}, nil
}

// Head implements volume.Files.
func (s *Storage) Head(name string, n int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(name)
	if err != nil {
		return nil, err
	}
	return slices.Clone(f.content[:min(n, len(f.content))]), nil
}

// Open implements volume.Files.
func (s *Storage) Open(name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(slices.Clone(f.content))), nil
}

type simWriter struct {
	s    *Storage
	name string
}

func (w simWriter) Write(b []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	f, err := w.s.get(w.name)
	if err != nil {
		return 0, err
	}
	if err := w.s.writable(w.name, uint64(len(b))); err != nil {
		return 0, err
	}
	w.s.free -= uint64(len(b))
	f.content = append(f.content, b...)
	f.size = uint64(len(f.content))
	return len(b), nil
}

func (simWriter) Sync() error  { return nil }
func (simWriter) Close() error { return nil }

// Append implements volume.Files.
func (s *Storage) Append(name string) (volume.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.get(name); err != nil {
		if err := s.writable(name, 0); err != nil {
			return nil, err
		}
		s.put(name, nil, 0)
	}
	return simWriter{s, name}, nil
}

// Publish implements volume.Files.
func (s *Storage) Publish(from, to string, perm fs.FileMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(from)
	if err != nil {
		return err
	}
	f.perm = perm
	old, file := s.enter(from), s.enter(to)
	delete(s.of(old).files, old)
	s.of(file).set(file, f)
	return nil
}

// Remove implements volume.Files.
func (s *Storage) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.enter(name)
	if f := s.of(file).files[file]; f != nil {
		if err := s.writable(name, 0); err != nil {
			return err
		}
		s.free += uint64(len(f.content))
		delete(s.of(file).files, file)
	}
	return nil
}

// List implements volume.Files.
func (s *Storage) List(dir string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.enter(dir)
	var names []string
	for n := range s.of(file).files {
		if path.Dir(n) == file {
			names = append(names, path.Base(n))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Free implements volume.Files.
func (s *Storage) Free(dir string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(dir)
	return s.free, nil
}

// InUse implements volume.Files.
func (s *Storage) InUse(name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(name)
	return s.used[name], nil
}

// Run implements host.Runner: it is qemu-img, as far as volumes need it.
func (s *Storage) Run(ctx context.Context, c host.Command) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fail := func(text string) ([]byte, error) {
		return nil, &host.ExitError{Command: c.String(), Code: 1, Stderr: "qemu-img: " + text, Err: errors.New("exit status 1")}
	}
	if c.Name != "qemu-img" || len(c.Args) < 2 {
		return fail("no such program")
	}
	var format, backing, backingFormat string
	var rest []string
	for i := 1; i < len(c.Args); i++ {
		switch c.Args[i] {
		case "-q":
		case "-f", "-b", "-F":
			if i+1 == len(c.Args) {
				return fail("option requires an argument")
			}
			switch c.Args[i] {
			case "-f":
				format = c.Args[i+1]
			case "-b":
				backing = c.Args[i+1]
			case "-F":
				backingFormat = c.Args[i+1]
			}
			i++
		default:
			rest = append(rest, c.Args[i])
		}
	}
	if len(rest) != 2 {
		return fail("want a file name and a size")
	}
	size, err := strconv.ParseUint(rest[1], 10, 64)
	if err != nil {
		return fail(err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if backing != "" {
		if _, err := s.get(backing); err != nil {
			return fail("Could not open '" + backing + "': No such file or directory")
		}
	}
	var content []byte
	length := size
	if format == "qcow2" {
		content = qcow2Header(size, backing, backingFormat)
		length = uint64(len(content))
	}
	if c.Args[0] == "resize" {
		if _, err := s.get(rest[0]); err != nil {
			return fail("Could not open '" + rest[0] + "': No such file or directory")
		}
		f, _ := s.get(rest[0])
		if format == "qcow2" {
			binary.BigEndian.PutUint64(f.content[24:], size)
		} else {
			f.size = size
		}
		return nil, nil
	}
	if err := s.writable(rest[0], uint64(len(content))+1); err != nil {
		var e *fs.PathError
		errors.As(err, &e)
		text := map[error]string{syscall.ENOSPC: "No space left on device", syscall.EROFS: "Read-only file system"}[e.Err]
		return fail(rest[0] + ": " + text)
	}
	s.put(rest[0], content, length)
	return nil, nil
}

// qcow2Header is the beginning of a version 3 file.
func qcow2Header(size uint64, backing, backingFormat string) []byte {
	be := binary.BigEndian
	b := append([]byte("QFI\xfb"), make([]byte, 100)...)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], size)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	if backing != "" {
		b = be.AppendUint32(b, 0xE2792ACA)
		b = be.AppendUint32(b, uint32(len(backingFormat)))
		b = append(b, backingFormat...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	b = append(b, make([]byte, 8)...)
	if backing != "" {
		be.PutUint64(b[8:], uint64(len(b)))
		be.PutUint32(b[16:], uint32(len(backing)))
		b = append(b, backing...)
	}
	return b
}
