package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Format is the version of the archive's layout.
const Format = 1

// The places in an archive.
const (
	manifestName = "manifest.json"
	// StreamsDir has one directory for each stream, as controller/site copied it.
	StreamsDir = "streams"
	// IdentityDir has the keys.
	IdentityDir = "identity"
)

// Bounds of what is read before it is known to be good.
const (
	maxManifest = 64 << 20
	maxKeys     = 64 << 20
)

// Stream is a stream in a backup.
type Stream struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	First    uint64    `json:"first"`
	Last     uint64    `json:"last"`
	LastTime time.Time `json:"last_time,omitzero"`
}

// Member is a file in a backup.
type Member struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Absent is something that belongs to the installation and is not in the backup.
type Absent struct {
	What string `json:"what"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	From string `json:"from,omitempty"`
}

// Manifest says what a backup is. It is the archive's first member.
type Manifest struct {
	Format int `json:"format"`
	// Installation is the public key of the operator, Controller and Version who made the backup.
	Installation string    `json:"installation"`
	Controller   string    `json:"controller"`
	Version      string    `json:"version"`
	Created      time.Time `json:"created"`
	// Seq is the journal's last sequence.
	Seq     uint64   `json:"seq"`
	Streams []Stream `json:"streams"`
	// Keys are the names of the files in the identity directory.
	Keys    []string `json:"keys"`
	Members []Member `json:"members"`
	Absent  []Absent `json:"absent,omitempty"`
}

// member is a file that is about to be written: its content is in data, or in the file at path.
type member struct {
	Member
	data []byte
	path string
}

// gather lists what is in the staging directory's streams, and then reads the keys.
func gather(staging, identity string) (streams, keys []member, err error) {
	root := filepath.Join(staging, StreamsDir)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(staging, p)
		if err != nil {
			return err
		}
		m := member{Member: Member{Name: filepath.ToSlash(rel)}, path: p}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if m.Bytes, err = io.Copy(h, f); err != nil {
			return err
		}
		m.SHA256 = hex.EncodeToString(h.Sum(nil))
		streams = append(streams, m)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read copied streams: %w", err)
	}
	keys, err = readKeys(identity)
	if err != nil {
		return nil, nil, fmt.Errorf("read the keys in %s: %w", identity, err)
	}
	return streams, keys, nil
}

// readKeys reads the identity directory as a whole, whatever is in it.
func readKeys(dir string) ([]member, error) {
	var out []member
	total := int64(0)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && p != dir && strings.HasPrefix(filepath.Base(p), "."):
			return nil // somebody's file on its way to another name
		case err != nil || d.IsDir():
			return err
		}
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		if err != nil {
			return err
		}
		if total += int64(len(b)); total > maxKeys {
			return fmt.Errorf("they are more than %d bytes: something else lies there", maxKeys)
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		out = append(out, member{Member: Member{
			Name: path.Join(IdentityDir, filepath.ToSlash(rel)), Bytes: int64(len(b)), SHA256: hex.EncodeToString(sum[:]),
		}, data: b})
		return nil
	})
	if err == nil && len(out) == 0 {
		err = errors.New("there are none")
	}
	return out, err
}

// write writes an archive. The members of the manifest are those that are given.
func write(w io.Writer, m Manifest, members []member) error {
	for _, x := range members {
		m.Members = append(m.Members, x.Member)
		if key, ok := strings.CutPrefix(x.Name, IdentityDir+"/"); ok {
			m.Keys = append(m.Keys, key)
		}
	}
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	t := tar.NewWriter(w)
	one := func(name string, size int64, from io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o600, ModTime: m.Created, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := io.Copy(t, from); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	if err := one(manifestName, int64(len(head)), strings.NewReader(string(head))); err != nil {
		return err
	}
	for _, x := range members {
		if x.data != nil || x.path == "" {
			if err := one(x.Name, x.Bytes, strings.NewReader(string(x.data))); err != nil {
				return err
			}
			continue
		}
		f, err := os.Open(x.path)
		if err != nil {
			return fmt.Errorf("write %s: %w", x.Name, err)
		}
		err = one(x.Name, x.Bytes, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return t.Close()
}

// readManifest reads the first member.
func readManifest(t *tar.Reader) (Manifest, error) {
	var m Manifest
	h, err := t.Next()
	if err != nil {
		return m, fmt.Errorf("read manifest: it is no backup of Shoal, or is cut off: %w", err)
	}
	if h.Name != manifestName || h.Size > maxManifest {
		return m, fmt.Errorf("read manifest: the first member is %q: it is no backup of Shoal", h.Name)
	}
	b, err := io.ReadAll(t)
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if m.Format != Format {
		return m, fmt.Errorf("read manifest: its format is %d, this version knows %d: use the version that made it, %s", m.Format, Format, m.Version)
	}
	return m, nil
}

// Extract unpacks an archive that is decrypted already into an empty directory, and holds every byte against the manifest.
func Extract(r io.Reader, dir string) (Manifest, error) {
	t := tar.NewReader(r)
	m, err := readManifest(t)
	if err != nil {
		return m, err
	}
	want := map[string]Member{}
	for _, x := range m.Members {
		want[x.Name] = x
	}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return m, fmt.Errorf("read backup: it is damaged or cut off: %w", err)
		}
		x, ok := want[h.Name]
		if !ok || h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || h.Size != x.Bytes {
			return m, fmt.Errorf("read backup: member %q is not as the manifest says", h.Name)
		}
		delete(want, h.Name)
		if err := extractOne(t, x, filepath.Join(dir, filepath.FromSlash(h.Name))); err != nil {
			return m, err
		}
	}
	if len(want) > 0 {
		var names []string
		for n := range want {
			names = append(names, n)
		}
		slices.Sort(names)
		return m, fmt.Errorf("read backup: %s are missing: it is damaged or cut off", strings.Join(names, ", "))
	}
	return m, nil
}

func extractOne(r io.Reader, x Member, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return fmt.Errorf("extract %s: %w", x.Name, err)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("extract %s: %w", x.Name, err)
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), r)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("extract %s: %w", x.Name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != x.SHA256 {
		return fmt.Errorf("extract %s: its SHA-256 is %s, the manifest says %s: the backup is damaged", x.Name, got, x.SHA256)
	}
	return nil
}
