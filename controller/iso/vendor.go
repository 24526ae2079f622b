package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"shoal/controller/iso/anaconda"
)

// Vendor is an installation medium of the RHEL family, as its maker gives it out.
type Vendor struct {
	// Product is what it calls itself, Release its major release.
	Product string
	Release anaconda.Release
	// Label is its volume label, by which the installer finds it.
	Label string
	// Packages reports whether it carries any, as DVDs do.
	Packages bool

	img  *image
	boot bootRecords
	// made is the time in its volume descriptor, and uuid the same as the boot loaders know it: YYYYMMDDhhmmsscc.
	made time.Time
	uuid string
	// menus are the files with boot menus that it has.
	menus []string
	// checked: it carries a checksum of itself.
	checked bool
}

// errVendor is in the errors of files that are no medium to repack.
var errVendor = errors.New("this is no installation medium of the RHEL family for x86_64")

// menuFiles are where media of the family have their boot menus; those of UEFI lie in the EFI system partition once more.
var menuFiles = []string{"isolinux/isolinux.cfg", "boot/grub2/grub.cfg", "boot/grub/grub.cfg", "EFI/BOOT/grub.cfg", "EFI/BOOT/BOOT.conf"}

// family is what the makers call their products.
var family = regexp.MustCompile(`(?i)red hat|rhel|centos|alma|rocky|oracle`)

// OpenVendor looks at a medium of size bytes. What can't be repacked is refused with the reason.
func OpenVendor(r io.ReaderAt, size int64) (*Vendor, error) {
	img, err := openVolume(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errVendor, err)
	}
	v := &Vendor{img: img, Label: img.label(), checked: bytes.Contains(img.volume[883:1395], []byte("ISO MD5SUM"))}
	if err := v.identify(); err != nil {
		return nil, fmt.Errorf("%w: %w", errVendor, err)
	}
	if v.Label == "" || strings.ContainsAny(v.Label, "/:'\"") {
		return nil, fmt.Errorf("%w: its label is %q, by which the installer can't find it", errVendor, v.Label)
	}
	for _, dir := range []string{"repodata", "BaseOS/repodata"} {
		if _, err := img.find(dir + "/repomd.xml"); err == nil {
			v.Packages = true
		}
	}
	for _, name := range menuFiles {
		if _, err := img.find(name); err == nil {
			v.menus = append(v.menus, name)
		}
	}
	v.uuid = string(img.volume[830:846])
	if v.made, err = time.Parse("20060102150405", v.uuid[:14]); err != nil {
		return nil, fmt.Errorf("%w: it does not say when it was made: %w", errVendor, err)
	}
	if v.boot, err = readBootRecords(img); err != nil {
		return nil, fmt.Errorf("%w: %w", errVendor, err)
	}
	for _, name := range []string{"ks.cfg", payloadDir} {
		if _, err := img.find(name); err == nil {
			return nil, fmt.Errorf("it has a /%s already, so it is not as its vendor made it: take the vendor's own", name)
		}
	}
	return v, nil
}

// identify reads .treeinfo, or .discinfo where there is only that, as on media that carry no packages.
func (v *Vendor) identify() error {
	var version, arch string
	if b, err := v.img.read(".treeinfo", 1<<20); err == nil {
		info := readINI(b)
		version, arch = info["general.version"], info["general.arch"]
		name := info["general.name"]
		if v.Product = name; name == "" {
			v.Product = strings.TrimSpace(info["general.family"] + " " + version)
		}
		if !family.MatchString(info["general.family"] + " " + name) {
			return fmt.Errorf("its .treeinfo says that it is %q", v.Product)
		}
	} else if b, err := v.img.read(".discinfo", 1<<16); err == nil {
		// The time, the product or its version alone, the architecture.
		lines := strings.Split(string(b)+"\n\n\n", "\n")
		v.Product, arch = strings.TrimSpace(lines[1]), strings.TrimSpace(lines[2])
		words := strings.Fields(v.Product)
		if len(words) == 0 || len(words) > 1 && !family.MatchString(v.Product) {
			return fmt.Errorf("its .discinfo says that it is %q", v.Product)
		}
		version = words[len(words)-1]
	} else {
		return errors.New("it has neither .treeinfo nor .discinfo, as live media and those of other systems")
	}
	if arch != "x86_64" {
		return fmt.Errorf("%s is for %q", v.Product, arch)
	}
	var err error
	if v.Release, err = anaconda.ParseRelease(version); err != nil {
		return fmt.Errorf("%s: %w", v.Product, err)
	}
	if _, err := v.img.find("images/pxeboot/vmlinuz"); err != nil {
		return fmt.Errorf("it has no kernel that starts an installer: %w", err)
	}
	for _, stage2 := range []string{"images/install.img", "LiveOS/squashfs.img"} {
		if _, err := v.img.find(stage2); err == nil {
			return nil
		}
	}
	return errors.New("it has no installer (images/install.img)")
}

// readINI reads "key = value" lines as "section.key".
func readINI(b []byte) map[string]string {
	out := map[string]string{}
	section := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
		} else if key, value, ok := strings.Cut(line, "="); ok {
			out[section+"."+strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return out
}

// bootRecords are what makes an image start: from a CD by its El Torito catalogue, from a stick by its MBR and GPT.
type bootRecords struct {
	bios, uefi bool
	// esp is where the EFI system partition's image lies.
	esp extent
	// espFile is the file that it is, espPart the number of the partition that it is where no file is it.
	espFile string
	espPart int
	// mbr is the code in the first sector, empty for an image that starts from a CD only.
	mbr []byte
	gpt bool
}

// mbrCode is how much of the first sector is code; a disk's number and the partition table follow.
const mbrCode = 432

func readBootRecords(img *image) (bootRecords, error) {
	var boot bootRecords
	b := make([]byte, sector)
	if _, err := img.r.ReadAt(b, 17*sector); err != nil || string(b[7:30]) != "EL TORITO SPECIFICATION" {
		return boot, errors.New("it does not start from a CD: there is no El Torito boot record")
	}
	catalogue := make([]byte, sector)
	if _, err := img.r.ReadAt(catalogue, int64(binary.LittleEndian.Uint32(b[71:]))*sector); err != nil {
		return boot, fmt.Errorf("read the boot catalogue: %w", err)
	}
	if catalogue[0] != 1 || catalogue[30] != 0x55 || catalogue[31] != 0xaa {
		return boot, errors.New("the boot catalogue is damaged")
	}
	platform := catalogue[1]
	entry := func(e []byte) {
		if e[0] != 0x88 {
			return
		}
		switch platform {
		case 0:
			boot.bios = true
		case 0xef:
			boot.uefi = true
			boot.esp = extent{offset: int64(binary.LittleEndian.Uint32(e[8:])) * sector, size: int64(binary.LittleEndian.Uint16(e[6:])) * 512}
		}
	}
	entry(catalogue[32:64])
	for at := 64; at+64 <= len(catalogue) && (catalogue[at] == 0x90 || catalogue[at] == 0x91); at += 64 {
		platform = catalogue[at+1]
		entry(catalogue[at+32 : at+64])
	}
	first := make([]byte, 2*512)
	if _, err := img.r.ReadAt(first, 0); err != nil {
		return boot, fmt.Errorf("read the first sector: %w", err)
	}
	if first[510] == 0x55 && first[511] == 0xaa {
		boot.mbr = first[:mbrCode]
	}
	boot.gpt = string(first[512:520]) == "EFI PART"
	if boot.uefi {
		if err := boot.findESP(img); err != nil {
			return boot, err
		}
	}
	return boot, nil
}

// findESP finds what the image of the EFI system partition is: a file, up to release 9, or a partition behind the file system.
func (boot *bootRecords) findESP(img *image) error {
	if e, err := img.find("images/efiboot.img"); err == nil && e.offset == boot.esp.offset {
		boot.esp, boot.espFile = e, "images/efiboot.img"
		return nil
	}
	if !boot.gpt {
		return errors.New("the image of its EFI system partition is neither images/efiboot.img nor a partition")
	}
	header := make([]byte, 512)
	if _, err := img.r.ReadAt(header, 512); err != nil {
		return fmt.Errorf("read the partition table: %w", err)
	}
	n, size := int(binary.LittleEndian.Uint32(header[80:])), int(binary.LittleEndian.Uint32(header[84:]))
	if n > 256 || size < 128 || size > 512 {
		return errors.New("its partition table is damaged")
	}
	table := make([]byte, n*size)
	if _, err := img.r.ReadAt(table, int64(binary.LittleEndian.Uint64(header[72:]))*512); err != nil {
		return fmt.Errorf("read the partition table: %w", err)
	}
	for i := range n {
		p := table[i*size:]
		first, last := int64(binary.LittleEndian.Uint64(p[32:])), int64(binary.LittleEndian.Uint64(p[40:]))
		if first*512 == boot.esp.offset && last >= first && (last+1)*512 <= img.size {
			boot.esp.size, boot.espPart = (last+1-first)*512, i+1
			return nil
		}
	}
	return errors.New("the image of its EFI system partition is neither images/efiboot.img nor a partition")
}

// same says what has become different in the boot records of a repacked image, or nothing.
func (boot *bootRecords) same(now bootRecords) error {
	for what, wrong := range map[string]bool{
		"BIOS": boot.bios != now.bios, "UEFI": boot.uefi != now.uefi, "the code of the MBR": !bytes.Equal(boot.mbr, now.mbr), "the GPT": boot.gpt != now.gpt,
		"the EFI system partition": boot.espFile != now.espFile || boot.espPart != now.espPart,
	} {
		if wrong {
			return fmt.Errorf("the repacked image would not start as the vendor's does: %s differs", what)
		}
	}
	return nil
}

// missing reports whether an error is that of a file that is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
