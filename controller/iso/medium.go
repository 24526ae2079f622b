package iso

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"shoal/controller/file"
	"shoal/desired"
	"shoal/desired/kickstart"
)

// Files of the image with space for what makes it a medium; see scripts/iso/build.
const (
	hostImage  = "boot/host.img"
	hostConfig = "boot/grub/host.cfg"
)

// Request is what a medium shall make of the machines that it is put into.
type Request struct {
	Mode  desired.Mode
	Token string
	// Kickstart is the text, Name how errors call it. Open gives what it includes by a relative path.
	Kickstart []byte
	Name      string
	Open      func(name string) ([]byte, error)
	// Args are kernel arguments for the installer.
	Args []string
	// MenuSeconds is how long the boot menu waits.
	MenuSeconds int
}

// Medium is a request that has been checked, with an image to fill in.
type Medium struct {
	img  *image
	host desired.HostMedium
	// names and contents are what goes into the initramfs, in order.
	names, contents []string
	config          string
	args            string
	// Notes are what the installer will leave out of the kickstart.
	Notes []kickstart.Note
}

// New checks a request against an image of size bytes.
func New(r io.ReaderAt, size int64, req Request) (*Medium, error) {
	img, err := openImage(r, size)
	if err != nil {
		return nil, err
	}
	includes := map[string][]byte{}
	ks, err := kickstart.Parse(kickstart.Source{Name: req.Name, Text: req.Kickstart, Early: true, Open: func(name string) ([]byte, error) {
		if path.IsAbs(name) && !path.IsAbs(req.Name) || req.Open == nil {
			return nil, fs.ErrNotExist // %pre writes it
		}
		rel, err := filepath.Rel(path.Dir(req.Name), name)
		if err != nil || !filepath.IsLocal(rel) {
			return nil, fs.ErrNotExist
		}
		b, err := req.Open(name)
		if err == nil {
			includes[filepath.ToSlash(rel)] = b
		}
		return b, err
	}})
	if err != nil {
		return nil, err
	}
	m := &Medium{img: img, host: desired.HostMedium{Mode: req.Mode, Token: req.Token}, Notes: ks.Notes}
	if err := checkArgs(req.Args); err != nil {
		return nil, err
	}
	if err := m.identify(req, includes); err != nil {
		return nil, err
	}
	b, err := json.Marshal(m.host)
	if err != nil {
		return nil, fmt.Errorf("encode the host: %w", err)
	}
	m.names = []string{desired.HostMediumFile, desired.HostMediumKickstart}
	m.contents = []string{string(b) + "\n", string(req.Kickstart)}
	for _, name := range sorted(includes) {
		if name == desired.HostMediumFile || name == desired.HostMediumKickstart {
			return nil, fmt.Errorf("a file that the kickstart includes can't be called %s", name)
		}
		m.names, m.contents = append(m.names, name), append(m.contents, string(includes[name]))
	}
	m.args = strings.Join(req.Args, " ")
	m.config = fmt.Sprintf("set shoal_id=%s\nset timeout=%d\nset shoal_args=%q\n", m.host.ID, req.MenuSeconds, m.args)
	return m, m.host.Validate()
}

func sorted(m map[string][]byte) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// identify makes the id out of all that decides what the medium does.
func (m *Medium) identify(req Request, includes map[string][]byte) error {
	var all bytes.Buffer
	for _, name := range []string{"shoal/sums", "boot/initrd.img"} {
		b, err := m.img.read(name, 64<<20)
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "%x\n", sha256.Sum256(b))
	}
	fmt.Fprintf(&all, "%q %q %q %q\n", req.Mode, req.Token, req.Kickstart, req.Args)
	for _, name := range sorted(includes) {
		fmt.Fprintf(&all, "%q %q\n", name, includes[name])
	}
	sum := sha256.Sum256(all.Bytes())
	m.host.ID = hex.EncodeToString(sum[:8])
	return nil
}

// files is what goes into the initramfs.
func (m *Medium) files() []entry {
	var out []entry
	for i, name := range m.names {
		out = append(out, text("host/"+name, 0o600, m.contents[i]))
	}
	return out
}

// ID tells this medium from others.
func (m *Medium) ID() string { return m.host.ID }

// WriteISO writes the medium as an image for CDs and sticks.
func (m *Medium) WriteISO(ctx context.Context, name string) error {
	return file.Replace(name, 0o600, func(f *os.File) error {
		if err := copyAll(ctx, f, io.NewSectionReader(m.img.r, 0, m.img.size)); err != nil {
			return fmt.Errorf("copy the image: %w", err)
		}
		var archive bytes.Buffer
		if err := writeCPIO(&archive, m.files()); err != nil {
			return fmt.Errorf("pack the kickstart: %w", err)
		}
		if err := m.fill(f, hostImage, archive.Bytes(), 0); err != nil {
			return err
		}
		return m.fill(f, hostConfig, []byte(m.config), '\n')
	})
}

// fill writes content into the reserved space of a file.
func (m *Medium) fill(f *os.File, name string, content []byte, padding byte) error {
	e, err := m.img.find(name)
	if err != nil {
		return err
	}
	if int64(len(content)) > e.size {
		return fmt.Errorf("the kickstart and what it includes are too large: %d bytes where the image has room for %d", len(content), e.size)
	}
	content = append(content, bytes.Repeat([]byte{padding}, int(e.size)-len(content))...)
	if _, err := f.WriteAt(content, e.offset); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// WritePXE writes the medium as files for a network start into a directory: kernel and initramfs, what is on the medium as a second
// initramfs, and the scripts of iPXE (BIOS, or UEFI without Secure Boot) and of GRUB (UEFI; Debian's signed one loads by TFTP only). All files are
// readable by everybody, as those who serve them are nobody in particular: whoever can start from there can read the join token.
func (m *Medium) WritePXE(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "grub"), 0o755); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	for _, f := range [][2]string{{"boot/vmlinuz", "vmlinuz"}, {"boot/initrd.img", "initrd.img"}, {"shoal/pxe/shimx64.efi", "shimx64.efi"}, {"shoal/pxe/grubnetx64.efi", "grubx64.efi"}} {
		r, err := m.img.open(f[0])
		if err != nil {
			return err
		}
		if err := file.Replace(filepath.Join(dir, f[1]), 0o644, func(out *os.File) error { return copyAll(ctx, out, r) }); err != nil {
			return err
		}
	}
	files := m.files()
	sums, err := m.img.read("shoal/sums", 1<<20)
	if err != nil {
		return err
	}
	names := []string{"sums"}
	for line := range strings.SplitSeq(strings.TrimSpace(string(sums)), "\n") {
		if _, name, ok := strings.Cut(line, "  "); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		r, err := m.img.open("shoal/" + name)
		if err != nil {
			return err
		}
		files = append(files, entry{name: "payload/shoal/" + name, mode: 0o644, size: r.Size(), data: r})
	}
	if err := file.Replace(filepath.Join(dir, "payload.cpio"), 0o644, func(out *os.File) error { return writeCPIO(out, files) }); err != nil {
		return fmt.Errorf("write payload.cpio: %w", err)
	}
	args := strings.TrimSpace("console=tty0 console=ttyS0,115200 quiet " + m.args)
	scripts := map[string]string{
		"boot.ipxe": "#!ipxe\nkernel vmlinuz initrd=initrd.img initrd=payload.cpio " + args + " BOOTIF=01-${net0/mac:hexhyp}\ninitrd initrd.img\ninitrd payload.cpio\nboot\n",
		"grub/grub.cfg": "set timeout=3\nmenuentry \"Install a Shoal host, unattended\" {\n  linux /vmlinuz " + args + " BOOTIF=01-$net_default_mac\n  initrd /initrd.img /payload.cpio\n}\n" +
			"menuentry \"Start from the next device\" {\n  exit\n}\n",
	}
	for name, content := range scripts {
		if err := file.Write(filepath.Join(dir, filepath.FromSlash(name)), 0o644, []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

// copyAll copies until the end or the end of ctx.
func copyAll(ctx context.Context, w io.Writer, r io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n, err := io.CopyN(w, r, 16<<20); n < 16<<20 {
			if err == io.EOF { //nolint:errorlint // CopyN gives it as it is
				return nil
			}
			return err
		}
	}
}
