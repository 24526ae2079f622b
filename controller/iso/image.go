package iso

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"shoal/desired"
)

const sector = 2048

// errFormat is in the error of a file that is no image of ours.
var errFormat = errors.New("this is not an installation image of Shoal")

var errDirectory = errors.New("a directory of the image is damaged")

// extent is where a file lies in an image: files of ISO 9660 are in one piece.
type extent struct {
	offset, size int64
	dir          bool
}

// image reads an ISO 9660 file system (ECMA-119) with Rock Ridge names (IEEE P1282).
type image struct {
	r    io.ReaderAt
	size int64
	root extent
	// volume is the primary volume descriptor.
	volume []byte
}

// openImage opens an installation image of ours.
func openImage(r io.ReaderAt, size int64) (*image, error) {
	i, err := openVolume(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFormat, err)
	}
	if i.label() != desired.MediumLabel {
		return nil, fmt.Errorf("%w: its label is %q, not %q", errFormat, i.label(), desired.MediumLabel)
	}
	return i, nil
}

// openVolume opens an image of anybody's.
func openVolume(r io.ReaderAt, size int64) (*image, error) {
	b := make([]byte, sector)
	if _, err := r.ReadAt(b, 16*sector); err != nil {
		return nil, fmt.Errorf("it has no volume descriptor: %w", err)
	}
	if b[0] != 1 || string(b[1:6]) != "CD001" {
		return nil, errors.New("it is no ISO 9660 file system")
	}
	if want := int64(binary.LittleEndian.Uint32(b[80:])) * sector; want > size {
		return nil, fmt.Errorf("the image is not complete: it has %d bytes of %d", size, want)
	}
	i := &image{r: r, size: size, volume: b}
	var err error
	i.root, _, err = i.record(b[156:190])
	return i, err
}

func (i *image) label() string { return strings.TrimRight(string(i.volume[40:72]), " \x00") }

// record takes a directory record apart.
func (i *image) record(b []byte) (extent, string, error) {
	if len(b) < 34 || 33+int(b[32]) > len(b) {
		return extent{}, "", errDirectory
	}
	e := extent{offset: int64(binary.LittleEndian.Uint32(b[2:])) * sector, size: int64(binary.LittleEndian.Uint32(b[10:])), dir: b[25]&2 != 0}
	if e.offset+e.size > i.size {
		return e, "", fmt.Errorf("%w: it names what lies behind the end", errDirectory)
	}
	n := int(b[32])
	name, _, _ := strings.Cut(string(b[33:33+n]), ";")
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if n == 1 && b[33] < 2 {
		return e, ".", nil
	}
	// The system use area follows the name, padded to an even length.
	for rest := b[min(len(b), 33+n+(n+1)%2):]; len(rest) >= 4 && int(rest[2]) >= 4 && int(rest[2]) <= len(rest); rest = rest[rest[2]:] {
		if string(rest[:2]) == "NM" && rest[2] >= 5 && rest[4]&6 == 0 {
			name = string(rest[5:rest[2]])
		}
	}
	return e, name, nil
}

// find is where a file lies.
func (i *image) find(name string) (extent, error) {
	at := i.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		next, err := i.in(at, part)
		if err != nil {
			return extent{}, fmt.Errorf("find %s: %w", name, err)
		}
		at = next
	}
	return at, nil
}

func (i *image) in(dir extent, part string) (extent, error) {
	if !dir.dir || dir.size > 1<<20 {
		return extent{}, errDirectory
	}
	b := make([]byte, dir.size)
	if _, err := i.r.ReadAt(b, dir.offset); err != nil {
		return extent{}, err
	}
	for at := 0; at < len(b); {
		n := int(b[at])
		if n == 0 {
			// Records do not cross sectors.
			at = (at/sector + 1) * sector
			continue
		}
		if at+n > len(b) {
			return extent{}, errDirectory
		}
		e, name, err := i.record(b[at : at+n])
		if err != nil {
			return extent{}, err
		}
		if name == part {
			return e, nil
		}
		at += n
	}
	return extent{}, fmt.Errorf("it has no such file: %w", fs.ErrNotExist)
}

// open reads a file.
func (i *image) open(name string) (*io.SectionReader, error) {
	e, err := i.find(name)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(i.r, e.offset, e.size), nil
}

func (i *image) read(name string, most int64) ([]byte, error) {
	r, err := i.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, r.Size(), most)
	}
	return io.ReadAll(r)
}
