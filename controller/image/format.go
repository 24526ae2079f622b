package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"shoal/controller/resource"
	"shoal/desired"
)

// Content is what an image turned out to be.
type Content struct {
	Format desired.Format
	// VirtualBytes is what a guest sees.
	VirtualBytes uint64
}

// packed are formats that are recognised in order to say so.
var packed = []struct {
	magic  string
	offset int
	name   string
	remedy string
}{
	{"\x1f\x8b", 0, "compressed by gzip", "unpack it first (gunzip)"},
	{"\xfd7zXZ\x00", 0, "compressed by xz", "unpack it first (unxz)"},
	{"\x28\xb5\x2f\xfd", 0, "compressed by zstd", "unpack it first (unzstd)"},
	{"BZh", 0, "compressed by bzip2", "unpack it first (bunzip2)"},
	{"PK\x03\x04", 0, "a zip archive", "unpack it first (unzip)"},
	{"ustar", 257, "a tar archive", "unpack it first (tar -x)"},
	{"KDMV", 0, "a VMDK image", "convert it first: qemu-img convert -O qcow2"},
	{"# Disk DescriptorFile", 0, "a VMDK descriptor", "convert the image first: qemu-img convert -O qcow2"},
	{"conectix", 0, "a VHD image", "convert it first: qemu-img convert -O qcow2"},
	{"vhdxfile", 0, "a VHDX image", "convert it first: qemu-img convert -O qcow2"},
	{"<<< ", 0, "a VDI image", "convert it first: qemu-img convert -O qcow2"},
	{"QED\x00", 0, "a QED image", "convert it first: qemu-img convert -O qcow2"},
	{"<!DOCTYPE", 0, "an HTML page", "check the address: it leads to a page, not to the image"},
	{"<!doctype", 0, "an HTML page", "check the address: it leads to a page, not to the image"},
	{"<html", 0, "an HTML page", "check the address: it leads to a page, not to the image"},
}

// isoMagic is the identifier of the first volume descriptor (ECMA-119, 8.1): sector 16, byte 1.
const (
	isoMagic  = "CD001"
	isoOffset = 16*2048 + 1
)

// Inspect finds out what an image is by looking into it. The error is a *resource.Error.
func Inspect(r io.ReaderAt, size int64) (Content, error) {
	if size == 0 {
		return Content{}, resource.Invalid("url", "the image is empty")
	}
	head := make([]byte, min(size, 512))
	if _, err := r.ReadAt(head, 0); err != nil {
		return Content{}, fmt.Errorf("read image: %w", err)
	}
	if bytes.HasPrefix(head, []byte(qcow2Magic)) {
		return inspectQCOW2(r, size)
	}
	if size >= isoOffset+int64(len(isoMagic)) {
		b := make([]byte, len(isoMagic))
		if _, err := r.ReadAt(b, isoOffset); err != nil {
			return Content{}, fmt.Errorf("read image: %w", err)
		}
		if string(b) == isoMagic {
			return Content{Format: desired.FormatISO, VirtualBytes: uint64(size)}, nil
		}
	}
	for _, p := range packed {
		if len(head) >= p.offset+len(p.magic) && string(head[p.offset:p.offset+len(p.magic)]) == p.magic {
			return Content{}, resource.Invalid("url", "the content is %s", p.name).WithRemedy("%s", p.remedy)
		}
	}
	if size%512 != 0 {
		return Content{}, resource.Invalid("url", "the content is neither qcow2 nor ISO 9660, and its %d bytes are no disk either: that has sectors of 512", size).
			WithRemedy("check the address; other formats can be converted by qemu-img convert -O qcow2")
	}
	if size < resource.MinVolumeBytes || size > resource.MaxVolumeBytes {
		return Content{}, resource.Invalid("url", "a raw disk of %d bytes is not within %d..%d", size, resource.MinVolumeBytes, uint64(resource.MaxVolumeBytes))
	}
	return Content{Format: desired.FormatRaw, VirtualBytes: uint64(size)}, nil
}

// Of the qcow2 header; see docs/interop/qcow2.rst of QEMU.
const (
	qcow2Magic = "QFI\xfb"

	qcow2Dirty       = 1 << 0 // reference counts may be wrong; fine for what is only read
	qcow2Corrupt     = 1 << 1
	qcow2DataFile    = 1 << 2
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4

	qcow2ExtDataFile = 0x44415441
)

func inspectQCOW2(r io.ReaderAt, size int64) (Content, error) {
	refuse := func(format string, args ...any) (Content, error) {
		return Content{}, resource.Invalid("url", "the qcow2 image "+format, args...)
	}
	h := make([]byte, 112)
	n, err := r.ReadAt(h, 0)
	if err != nil && err != io.EOF {
		return Content{}, fmt.Errorf("read image: %w", err)
	}
	if n < 72 {
		return refuse("ends within its header")
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(h[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(h[at:]) }
	version, headerLength := u32(4), uint32(72)
	if version != 2 && version != 3 {
		return refuse("has version %d; known are 2 and 3", version)
	}
	if backing, length := u64(8), u32(16); backing != 0 || length != 0 {
		c, err := refuse("names a backing file: it is only the upper half of an image, and the file would be looked for on the hosts")
		return c, func() *resource.Error {
			target := &resource.Error{}
			_ = errors.As(err, &target)
			return target
		}().WithRemedy("flatten it first: qemu-img convert -O qcow2")
	}
	clusterBits := u32(20)
	if clusterBits < 9 || clusterBits > 21 {
		return refuse("has clusters of 2^%d bytes; allowed are 2^9 to 2^21", clusterBits)
	}
	virtual := u64(24)
	if virtual < resource.MinVolumeBytes || virtual > resource.MaxVolumeBytes || virtual%512 != 0 {
		return refuse("has a virtual size of %d bytes, which is not a multiple of 512 within %d..%d", virtual, resource.MinVolumeBytes, uint64(resource.MaxVolumeBytes))
	}
	if u32(32) != 0 {
		return refuse("is encrypted")
	}
	if version == 3 {
		if n < 104 {
			return refuse("ends within its header")
		}
		features := u64(72)
		switch {
		case features&qcow2DataFile != 0:
			return refuse("keeps its data in an external file, which would be looked for on the hosts")
		case features&qcow2Corrupt != 0:
			return refuse("is marked corrupt")
		case features&^uint64(qcow2Dirty|qcow2Compression|qcow2ExtendedL2) != 0:
			return refuse("needs a feature that is not known (%#x)", features)
		}
		if headerLength = u32(100); headerLength < 104 || uint64(headerLength) > 1<<clusterBits {
			return refuse("has a header of %d bytes", headerLength)
		}
	}
	if err := checkExtensions(r, int64(headerLength), int64(1)<<clusterBits, size); err != nil {
		return Content{}, err
	}
	// The first-level table: entries of 8 bytes, each for a cluster of entries of 8 (or 16) bytes.
	l1Entries, l1Offset := uint64(u32(36)), u64(40)
	if end := l1Offset + l1Entries*8; l1Offset < 1<<clusterBits || l1Offset%(1<<clusterBits) != 0 || end < l1Offset || end > uint64(size) {
		return refuse("is cut: its table of clusters lies beyond its %d bytes", size)
	}
	return Content{Format: desired.FormatQCOW2, VirtualBytes: virtual}, nil
}

// checkExtensions walks the header extensions, which end where the first cluster does.
func checkExtensions(r io.ReaderAt, at, cluster, size int64) error {
	var h [8]byte
	end := min(cluster, size)
	for at+8 <= end {
		if _, err := r.ReadAt(h[:], at); err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		kind, length := binary.BigEndian.Uint32(h[:4]), int64(binary.BigEndian.Uint32(h[4:]))
		switch kind {
		case 0:
			return nil
		case qcow2ExtDataFile:
			return resource.Invalid("url", "the qcow2 image names an external data file, which would be looked for on the hosts")
		}
		at += 8 + (length+7)&^7
	}
	if at > end {
		return resource.Invalid("url", "the qcow2 image has header extensions beyond its first cluster")
	}
	return nil
}
