package desired

import (
	"encoding/hex"
	"fmt"
	"path"
	"strings"
)

// PoolType says what kind of storage a pool is.
type PoolType string

// The types.
const (
	PoolLocal       PoolType = "local"       // a directory of this host
	PoolSharedMount PoolType = "sharedmount" // a directory that the operator mounted on every host
	PoolNFS         PoolType = "nfs"         // mounted by the agent
)

// PoolMarker is the file in a pool's directory that says whose it is: it holds the storage's id and a newline.
const PoolMarker = ".shoal-pool"

// Pool is a primary storage on a host. Its item's id is the storage's.
type Pool struct {
	Type PoolType `json:"type"`
	// Path is the directory, absolute and clean.
	Path string `json:"path"`
	// Source is "server:/export", with type nfs.
	Source string `json:"source,omitempty"`
	// Options are mount options, with type nfs, comma separated.
	Options string `json:"options,omitempty"`
}

// PoolFacts is what is known of a pool.
type PoolFacts struct {
	// TotalBytes and FreeBytes are those of the file system.
	TotalBytes uint64 `json:"total_bytes"`
	FreeBytes  uint64 `json:"free_bytes"`
}

// Validate names the first field that is wrong.
func (p *Pool) Validate() error {
	if err := checkPath("path", p.Path); err != nil {
		return err
	}
	switch p.Type {
	case PoolLocal, PoolSharedMount:
	case PoolNFS:
		server, export, ok := strings.Cut(p.Source, ":/")
		if !ok || server == "" || strings.ContainsAny(p.Source, " \t\n") || strings.HasPrefix(server, "-") {
			return fmt.Errorf("source: %q is not server:/export (export %q)", p.Source, export)
		}
	default:
		return fmt.Errorf("type: %q is not one of local, sharedmount, nfs", p.Type)
	}
	return nil
}

// Format is the format of an image or volume.
type Format string

// The formats.
const (
	FormatQCOW2 Format = "qcow2"
	FormatRaw   Format = "raw"
	FormatISO   Format = "iso"
)

// Image is an image in a pool's cache. It is never changed once it is there; volumes are overlays on it.
type Image struct {
	// Pool is the id of the pool's item, Image the image's.
	Pool  string `json:"pool"`
	Image string `json:"image"`
	// Path is the file.
	Path string `json:"path"`
	// SHA256 is the content's digest in hex, Bytes its length.
	SHA256 string `json:"sha256"`
	Bytes  uint64 `json:"bytes"`
	Format Format `json:"format"`
}

// Validate names the first field that is wrong.
func (i *Image) Validate() error {
	if i.Pool == "" || i.Image == "" {
		return fmt.Errorf("pool and image: must be set")
	}
	if b, err := hex.DecodeString(i.SHA256); err != nil || len(b) != 32 {
		return fmt.Errorf("sha256: %q is not a SHA-256 in hex", i.SHA256)
	}
	if err := checkFormat(i.Format); err != nil {
		return err
	}
	return checkPath("path", i.Path)
}

// Volume is a volume's file. Its item's id is the volume's.
type Volume struct {
	// Pool is the id of the pool's item.
	Pool string `json:"pool"`
	// Path is the file.
	Path   string `json:"path"`
	Format Format `json:"format"`
	// Bytes is the virtual size. A volume only ever grows.
	Bytes uint64 `json:"bytes"`
	// Backing is the image that it is an overlay of; nil for none.
	Backing *Backing `json:"backing,omitempty"`
	// Exists says that its file was there before: that it is missing is a loss, and no work to do.
	Exists bool `json:"exists,omitempty"`
	// Absent is a tombstone: the file is to be removed. Only this removes it.
	Absent bool `json:"absent,omitempty"`
}

// Backing names what an overlay stands on.
type Backing struct {
	Path   string `json:"path"`
	Format Format `json:"format"`
}

// VolumeFacts is what is known of a volume.
type VolumeFacts struct {
	// Absent is true once a tombstone has done its work.
	Absent bool `json:"absent,omitempty"`
	// VirtualBytes is what the guest sees, ActualBytes what the file takes.
	VirtualBytes uint64 `json:"virtual_bytes,omitempty"`
	ActualBytes  uint64 `json:"actual_bytes,omitempty"`
}

// Validate names the first field that is wrong.
func (v *Volume) Validate() error {
	if v.Pool == "" {
		return fmt.Errorf("pool: must be set")
	}
	if err := checkPath("path", v.Path); err != nil {
		return err
	}
	if v.Absent {
		return nil
	}
	if v.Bytes == 0 {
		return fmt.Errorf("bytes: must be set")
	}
	if v.Backing != nil {
		if err := checkPath("backing.path", v.Backing.Path); err != nil {
			return err
		}
	}
	return checkFormat(v.Format)
}

func checkFormat(f Format) error {
	switch f {
	case FormatQCOW2, FormatRaw, FormatISO:
		return nil
	default:
		return fmt.Errorf("format: %q is not one of qcow2, raw, iso", f)
	}
}

// checkPath wants an absolute, clean path that can stand in a command line and in XML.
func checkPath(field, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > 1024 {
		return fmt.Errorf("%s: %q is not an absolute, clean path", field, p)
	}
	for _, c := range []byte(p) {
		if c < ' ' || c == 0x7f {
			return fmt.Errorf("%s: %q holds a control character", field, p)
		}
	}
	return nil
}
