package iso

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// entry is a file of an archive.
type entry struct {
	name string
	mode uint32
	size int64
	data io.Reader
}

// writeCPIO writes an archive in the format of the kernel's initramfs ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).
// Directories are made as needed. It has no times and owners but 0, so that the same files give the same bytes.
func writeCPIO(w io.Writer, files []entry) error {
	out := &counter{w: w}
	var made []string
	inode := 0
	put := func(e entry) error {
		inode++
		if _, err := fmt.Fprintf(out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", inode, e.mode, 0, 0, 1, 0, e.size, 0, 0, 0, 0, len(e.name)+1, 0, e.name); err != nil {
			return err
		}
		if err := out.pad(); err != nil {
			return err
		}
		if e.data != nil {
			if n, err := io.Copy(out, e.data); err != nil {
				return err
			} else if n != e.size {
				return fmt.Errorf("%s has %d bytes, not %d", e.name, n, e.size)
			}
		}
		return out.pad()
	}
	for _, f := range files {
		if f.size >= 1<<32 {
			return fmt.Errorf("%s is too large for an initramfs", f.name)
		}
		var above []string
		for d := path.Dir(f.name); d != "."; d = path.Dir(d) {
			above = append(above, d)
		}
		slices.Reverse(above)
		for _, d := range above {
			if slices.Contains(made, d) {
				continue
			}
			made = append(made, d)
			if err := put(entry{name: d, mode: 0o40700}); err != nil {
				return err
			}
		}
		f.mode |= 0o100000
		if err := put(f); err != nil {
			return err
		}
	}
	return put(entry{name: "TRAILER!!!"})
}

// text is a file with this content.
func text(name string, mode uint32, content string) entry {
	return entry{name: name, mode: mode, size: int64(len(content)), data: strings.NewReader(content)}
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func (c *counter) pad() error {
	_, err := c.Write(make([]byte, (4-c.n%4)%4))
	return err
}
