package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"shoal/controller"
	"shoal/controller/file"
	"shoal/desired/layout"
)

// before has what was there before the last upgrade: keys, journal, programs, unit.
const before = layout.ControllerData + ".before-upgrade"

// precious are the directories of the controller's data that can't be made again.
var precious = []string{"identity", "nats"}

// Upgraded is what Upgrade tells.
type Upgraded struct {
	// From and To are versions; Same says that there was nothing to upgrade.
	From, To string
	Same     bool
	// Copy is where keys and journal are as they were before.
	Copy string
}

// RolledBackError is an upgrade that did not succeed, after which the old program runs again.
type RolledBackError struct {
	Err  error
	Copy string
}

// Error says why, and that nothing is lost.
func (e *RolledBackError) Error() string {
	return fmt.Sprintf("the new program was taken back, and the old one runs and answers; nothing that was acknowledged is lost: %v", e.Err)
}

// Unwrap is why.
func (e *RolledBackError) Unwrap() error { return e.Err }

// Upgrade replaces the programs of the controller that is installed here, and takes that back where the new one is not healthy. The error is a
// *RolledBackError then.
func Upgrade(ctx context.Context, c Config) (Upgraded, error) {
	var done Upgraded
	if err := here(); err != nil {
		return done, err
	}
	if !installed() {
		return done, fmt.Errorf("%w: see shoalctl controller install", ErrNotInstalled)
	}
	args, err := installedArgs()
	if err != nil {
		return done, err
	}
	now, err := check(ctx, program, args)
	if err != nil {
		return done, fmt.Errorf("the program that is installed: %w", err)
	}
	next, err := check(ctx, c.Program, args)
	if err != nil {
		return done, fmt.Errorf("the new program: %w; nothing was changed", err)
	}
	done.From, done.To, done.Copy = now.Version, next.Version, before
	files, err := c.programs()
	if err != nil {
		return done, err
	}
	files = append(files, layout.ControllerFiles()...)
	if done.Same, err = same(files); err != nil {
		return done, err
	}
	if done.Same {
		// It may have been cut off before the start.
		return done, c.start(ctx, "start", next)
	}
	need, err := sizeOf(now.Data)
	if err != nil {
		return done, err
	}
	if err := space(filepath.Dir(layout.ControllerData), need); err != nil {
		return done, err
	}
	c.Say("stopping %s, for a copy of keys and journal (%d MiB)", done.From, need>>20)
	if err := systemctl(ctx, "stop", layout.ControllerUnit); err != nil {
		return done, fmt.Errorf("stop the controller: %w", err)
	}
	if err := keep(ctx, files); err != nil {
		// Whatever became of ctx, the controller must not stay down.
		return done, errors.Join(fmt.Errorf("copy keys and journal: %w", err), systemctl(context.WithoutCancel(ctx), "start", layout.ControllerUnit))
	}
	c.Say("starting %s", done.To)
	err = c.swap(ctx, files, next)
	if err == nil {
		return done, nil
	}
	return done, c.rollBack(context.WithoutCancel(ctx), files, now, err)
}

// same says whether all files are there as they are to be.
func same(files []layout.File) (bool, error) {
	for _, f := range files {
		switch b, err := os.ReadFile(f.Path); {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		case string(b) != f.Content:
			return false, nil
		}
	}
	return true, nil
}

// sizeOf is how much is precious in a data directory, in bytes.
func sizeOf(data string) (int64, error) {
	var size int64
	for _, name := range precious {
		err := filepath.WalkDir(filepath.Join(data, name), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				size += info.Size()
			}
			return err
		})
		// The journal's files come and go while it works.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("measure the controller's data: %w", err)
		}
	}
	return size, nil
}

// keep copies what is precious, and the files that are going to be replaced, in place of the copy before the last upgrade.
func keep(ctx context.Context, files []layout.File) error {
	tmp := before + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	for _, name := range precious {
		from := filepath.Join(layout.ControllerData, name)
		if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
			continue // keys or streams are elsewhere
		}
		if _, err := run(ctx, "cp", "--archive", "--reflink=auto", from, tmp); err != nil {
			return err
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = file.Write(kept(tmp, f), f.Mode, b)
		}
		if err != nil {
			return err
		}
	}
	if _, err := run(ctx, "sync", "--file-system", tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(before); err != nil {
		return err
	}
	if err := os.Rename(tmp, before); err != nil {
		return err
	}
	return file.SyncDir(filepath.Dir(before))
}

// kept is where a file is in a copy.
func kept(dir string, f layout.File) string {
	return filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(f.Path, "/"), "/", "_"))
}

// swap puts the new files in place and starts them.
func (c Config) swap(ctx context.Context, files []layout.File, plan controller.Plan) error {
	for _, f := range files {
		if _, err := write(f); err != nil {
			return err
		}
	}
	if _, err := run(ctx, "systemd-sysusers", layout.SysUsers); err != nil {
		return fmt.Errorf("make the controller's user: %w", err)
	}
	return c.start(ctx, "restart", plan)
}

// rollBack puts the files from before back. The journal stays as the new program left it: what it acknowledged counts.
func (c Config) rollBack(ctx context.Context, files []layout.File, plan controller.Plan, why error) error {
	c.Say("the new program is not healthy; going back to %s", plan.Version)
	lost := func(err error) error {
		return fmt.Errorf("the new program is not healthy: %w\nand the old one does not come back: %w\nkeys and journal from before are in %s: to go back to these, without what was acknowledged since, "+
			"stop %s, move identity and nats in %s away, copy these there, and start it", why, err, before, layout.ControllerUnit, layout.ControllerData)
	}
	for _, f := range files {
		b, err := os.ReadFile(kept(before, f))
		switch {
		case err == nil:
			_, err = write(layout.File{Path: f.Path, Content: string(b), Mode: f.Mode})
		case errors.Is(err, fs.ErrNotExist):
			if err = os.Remove(f.Path); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			return lost(err)
		}
	}
	if err := c.start(ctx, "restart", plan); err != nil {
		return lost(err)
	}
	return &RolledBackError{Err: why, Copy: before}
}
