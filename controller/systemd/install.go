package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"shoal/controller"
	"shoal/controller/file"
	"shoal/desired/layout"
)

// Installed is what Install tells.
type Installed struct {
	Plan controller.Plan
	// Password is the admin account's one-time password, "" where the installation is not new.
	Password string
}

// Install puts a controller on this machine. Data of an earlier one is taken up.
func Install(ctx context.Context, c Config) (Installed, error) {
	var done Installed
	if err := here(); err != nil {
		return done, err
	}
	line, err := argsLine(c.Args)
	if err != nil {
		return done, err
	}
	if done.Plan, err = check(ctx, c.Program, c.Args); err != nil {
		return done, err
	}
	runs := systemctl(ctx, "is-active", "--quiet", layout.ControllerUnit) == nil
	files, err := c.programs()
	if err != nil {
		return done, err
	}
	if runs {
		for _, f := range append(files, layout.File{Path: layout.ControllerArgs, Content: line}) {
			if old, err := os.ReadFile(f.Path); err != nil || string(old) != f.Content {
				return done, fmt.Errorf("a controller runs here, with another %s: for a newer program there is shoalctl controller upgrade; flags are in %s", f.Path, layout.ControllerArgs)
			}
		}
	} else if err := free(ctx, done.Plan); err != nil {
		return done, err
	}
	_, err = os.Stat(filepath.Join(layout.ControllerData, "identity"))
	fresh := errors.Is(err, fs.ErrNotExist)
	if !fresh && !runs {
		c.Say("taking up the data in %s", layout.ControllerData)
	}
	files = append(append(files, layout.ControllerFiles()...), layout.File{Path: layout.ControllerArgs, Content: line, Mode: 0o644})
	for _, f := range files {
		changed, err := write(f)
		if err != nil {
			return done, err
		}
		if changed {
			c.Say("wrote %s", f.Path)
		}
	}
	if _, err := run(ctx, "systemd-sysusers", layout.SysUsers); err != nil {
		return done, fmt.Errorf("make the controller's user: %w", err)
	}
	if c.Clock {
		c.clock(ctx)
	}
	if err := systemctl(ctx, "enable", "--quiet", layout.ControllerUnit); err != nil {
		return done, fmt.Errorf("have the controller start with the machine: %w", err)
	}
	verb := "restart" // one that is started over and over is no better a start
	if runs {
		verb = "start"
	}
	if err := c.start(ctx, verb, done.Plan); err != nil {
		return done, err
	}
	done.Password, err = firstPassword(ctx, fresh && done.Plan.NATSURL == "")
	return done, err
}

// firstPassword takes the one-time password and its file away. Of a new installation there is one, a moment after it leads.
func firstPassword(ctx context.Context, expected bool) (string, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, err := os.ReadFile(layout.FirstPassword)
		switch {
		case err == nil:
			return strings.TrimSpace(string(b)), errors.Join(os.Remove(layout.FirstPassword), file.SyncDir(layout.ControllerData))
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("read the one-time password: %w", err)
		case !expected || time.Now().After(deadline):
			return "", nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// clock has this machine serve the time. Hosts that get none from here have other sources, and what is wrong with theirs shows in their status.
func (c Config) clock(ctx context.Context) {
	if _, err := exec.LookPath("chronyd"); err != nil {
		if _, err := exec.LookPath("apt-get"); err != nil {
			c.Say("warning: hosts get no time from here: install chrony, and repeat the command")
			return
		}
		c.Say("installing chrony")
		install := []string{"-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "-o", "DPkg::Options::=--force-confdef", "-o", "DPkg::Options::=--force-confold", "install", "chrony"}
		_, err := run(ctx, "apt-get", install...)
		if err != nil {
			if _, err = run(ctx, "apt-get", "-qq", "update"); err == nil {
				_, err = run(ctx, "apt-get", install...)
			}
		}
		if err != nil {
			c.Say("warning: hosts get no time from here: %v", err)
			return
		}
	}
	conf := layout.ControllerClock()
	if _, err := os.Stat(filepath.Dir(conf.Path)); err != nil {
		c.Say("warning: hosts get no time from here: chrony has no %s; add to its configuration: allow", filepath.Dir(conf.Path))
		return
	}
	changed, err := write(conf)
	if err == nil && changed {
		c.Say("wrote %s", conf.Path)
		err = systemctl(ctx, "restart", "chrony.service")
	}
	if err != nil {
		c.Say("warning: hosts get no time from here: %v", err)
	}
}

// Uninstall takes the controller off. Hosts go on without it. Data stays, unless purge.
func Uninstall(ctx context.Context, purge bool, say func(format string, args ...any)) error {
	if err := here(); err != nil {
		return err
	}
	left := false
	for _, path := range []string{layout.ControllerUnitPath, program, layout.ControllerData} {
		if _, err := os.Lstat(path); err == nil {
			left = true
		}
	}
	if !left {
		return ErrNotInstalled
	}
	if installed() {
		say("stopping the controller")
		if err := systemctl(ctx, "disable", "--quiet", "--now", layout.ControllerUnit); err != nil {
			return fmt.Errorf("stop the controller: %w", err)
		}
	}
	files := []string{layout.ControllerUnitPath, layout.SysUsers, layout.ControllerClock().Path, program}
	if purge {
		files = append(files, layout.ControllerArgs, shoalctl)
	}
	for _, path := range files {
		switch err := os.Remove(path); {
		case err == nil:
			say("removed %s", path)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("remove %s: %w", path, err)
		case path == layout.ControllerClock().Path:
			continue
		}
		if path == layout.ControllerClock().Path {
			if err := systemctl(ctx, "try-restart", "chrony.service"); err != nil {
				say("warning: chrony serves the time until its next start: %v", err)
			}
		}
	}
	if err := systemctl(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("tell systemd that the unit is gone: %w", err)
	}
	if !purge {
		say("kept: %s, with all keys and the journal; %s; %s", layout.ControllerData, layout.ControllerArgs, shoalctl)
		return nil
	}
	for _, dir := range []string{layout.ControllerData, before} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the controller's data: %w", err)
		}
		say("removed %s", dir)
	}
	// Only when it is nobody's that runs; what it owned is gone.
	if _, err := run(ctx, "userdel", layout.ControllerUser); err != nil {
		say("warning: %v", err)
	}
	return nil
}
