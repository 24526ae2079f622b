package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/controller/file"
)

// File is a file in a target.
type File struct {
	Name  string
	Bytes int64
}

// Target is where backups are kept.
type Target interface {
	// String is how people call it, without secrets.
	String() string
	List(ctx context.Context) ([]File, error)
	// Write makes a file that is whole or absent; it refuses a name that is taken.
	Write(ctx context.Context, name string, fill func(io.Writer) error) error
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	Remove(ctx context.Context, name string) error
	// Tidy removes what an earlier Write left behind that was cut off, if it is older than age.
	Tidy(ctx context.Context, age time.Duration) error
}

// partial marks a file that is being written.
const partial = ".partial"

// NewTarget makes a target of a directory's path or "sftp://user@host:port/directory".
func NewTarget(to string, cfg SFTPConfig) (Target, error) {
	if rest, ok := strings.CutPrefix(to, "sftp://"); ok {
		u, err := url.Parse(to)
		if err != nil {
			return nil, fmt.Errorf("backup target: %q is not sftp://user@host/directory", rest)
		}
		return newSFTP(u, cfg)
	}
	if strings.Contains(to, "://") {
		return nil, fmt.Errorf("backup target: %q is neither a directory nor sftp://user@host/directory", to)
	}
	dir, err := filepath.Abs(to)
	if err != nil {
		return nil, fmt.Errorf("backup target: %w", err)
	}
	return directory(dir), nil
}

// directory is a target on this machine, or mounted on it.
type directory string

func (d directory) String() string { return string(d) }

// List implements Target. The directory must be there: one that was not mounted must not look like one without backups.
func (d directory) List(context.Context) ([]File, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var out []File
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		out = append(out, File{e.Name(), fi.Size()})
	}
	return out, nil
}

func (d directory) Write(_ context.Context, name string, fill func(io.Writer) error) (err error) {
	final, tmp := filepath.Join(string(d), name), filepath.Join(string(d), "."+name+partial)
	if _, err := os.Lstat(final); err == nil {
		return fmt.Errorf("write %s: %w", final, fs.ErrExist)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	err = fill(f)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", final, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, final); err != nil {
		return errors.Join(fmt.Errorf("write backup: %w", err), os.Remove(tmp))
	}
	return file.SyncDir(string(d))
}

func (d directory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(d), name))
	if err != nil {
		return nil, fmt.Errorf("open backup: %w", err)
	}
	return f, nil
}

func (d directory) Remove(_ context.Context, name string) error {
	if err := os.Remove(filepath.Join(string(d), name)); err != nil {
		return fmt.Errorf("remove backup: %w", err)
	}
	return file.SyncDir(string(d))
}

func (d directory) Tidy(_ context.Context, age time.Duration) error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return fmt.Errorf("tidy %s: %w", d, err)
	}
	var errs []error
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !isPartial(e.Name()) || time.Since(fi.ModTime()) < age {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(string(d), e.Name())))
	}
	return errors.Join(errs...)
}

func isPartial(name string) bool {
	inner, ok := strings.CutSuffix(strings.TrimPrefix(name, "."), partial)
	_, known := parseName(inner)
	return ok && known && name[0] == '.'
}
