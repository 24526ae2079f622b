package metal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"shoal/desired"
)

// readHost reads what makes a medium that of certain hosts.
func readHost(dir string) (desired.HostMedium, error) {
	var h desired.HostMedium
	b, err := os.ReadFile(filepath.Join(dir, desired.HostMediumFile))
	if errors.Is(err, fs.ErrNotExist) {
		return h, errors.New("this medium does not say what the machine is to become: make one that does with shoalctl iso build")
	}
	if err != nil {
		return h, fmt.Errorf("read what the machine is to become: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return h, fmt.Errorf("read %s of the medium: %w (it was made by another version of shoalctl)", desired.HostMediumFile, err)
	}
	return h, h.Validate()
}

// image is what the medium says of its root file system.
type image struct {
	// SizeMiB is what it takes when it is unpacked.
	SizeMiB int `json:"size_mib"`
}

// verify reads every file that sums lists and compares: a medium that was written badly must be found before a disk is written to.
func verify(ctx context.Context, dir string, say func(format string, args ...any)) error {
	sums, err := os.ReadFile(filepath.Join(dir, "sums"))
	if err != nil {
		return damaged(err)
	}
	n := 0
	for s := bufio.NewScanner(bytes.NewReader(sums)); s.Scan(); n++ {
		want, name, ok := strings.Cut(s.Text(), "  ")
		if !ok || !filepath.IsLocal(name) {
			return damaged(fmt.Errorf("the list of checksums has %q", s.Text()))
		}
		got, err := checksum(ctx, filepath.Join(dir, name))
		if err != nil {
			return damaged(err)
		}
		if got != want {
			return damaged(fmt.Errorf("%s is not what was written", name))
		}
	}
	if n == 0 {
		return damaged(errors.New("the list of checksums is empty"))
	}
	say("the medium is whole: %d files compared", n)
	return nil
}

func damaged(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("the medium is damaged: %w; nothing was changed on this machine; write the medium again, or try another stick or drive", err)
}

func checksum(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		_, err := io.CopyN(h, f, 8<<20)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}
