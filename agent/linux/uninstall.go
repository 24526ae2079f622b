package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/agent"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/ledger"
	"shoal/desired"
	"shoal/desired/layout"
)

// Removal says how far an uninstallation goes.
type Removal struct {
	// StopGuests lets guests that run be shut down, and ended after Patience.
	StopGuests bool
	Patience   time.Duration
	// Purge removes the volumes and images of local storages, and who the host is. What other hosts see stays.
	Purge bool
}

// RunningError says that guests run, which somebody may need.
type RunningError struct{ Guests []string }

// Error names the guests and the ways out.
func (e *RunningError) Error() string {
	return fmt.Sprintf("%d guests of Shoal's run here, and nothing was changed: shoal-%s\nmove them away or stop them (shoalctl vm stop), or let them be shut down by --stop-guests",
		len(e.Guests), strings.Join(e.Guests, ", shoal-"))
}

// leavePatience is how long it may take to take off what the agent has built.
const leavePatience = 2 * time.Minute

// ErrNotInstalled says that there is nothing to take off.
var ErrNotInstalled = errors.New("there is no agent here: neither unit, program nor data")

// Uninstall makes this machine what it was before, but for packages. Data stays unless r says otherwise. The error is a *RunningError before anything was
// changed, or ErrNotInstalled.
func Uninstall(ctx context.Context, cfg Config, r Removal) error {
	p := &preflight{cfg: cfg}
	for _, check := range []Check{p.root(), p.systemd()} {
		if check.Result == Failed {
			return fmt.Errorf("%s: %s: %s", check.Name, check.Found, check.Remedy)
		}
	}
	if !installed() {
		return ErrNotInstalled
	}
	i := &installer{cfg: cfg}
	if err := i.guestsGone(ctx, r); err != nil {
		return err
	}
	if _, err := os.Stat(layout.AgentUnitPath); err == nil {
		cfg.Say("stopping the agent")
		if err := i.run(ctx, "systemctl", "disable", "--quiet", "--now", layout.AgentUnit); err != nil {
			return fmt.Errorf("stop the agent: %w", err)
		}
	}
	if err := i.leave(ctx); err != nil {
		return err
	}
	if err := i.removeFiles(ctx); err != nil {
		return err
	}
	if r.Purge {
		if err := i.purge(); err != nil {
			return err
		}
	} else {
		cfg.Say("kept: %s (who the host is), and all storages; shoal-agent install makes it the same host again", layout.AgentData)
	}
	cfg.Say("packages stay, and kernel settings until the next start; tell the controller: shoalctl host remove NAME")
	return nil
}

func installed() bool {
	for _, path := range []string{layout.AgentUnitPath, layout.AgentData, filepath.Join(layout.BinDir, layout.Agent)} {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

// told is the last document of the host, which names its storages. No agent may run.
func told() (desired.Document, error) {
	dir := filepath.Join(layout.AgentData, "ledger")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return desired.Document{}, nil
	}
	book, err := ledger.Open(dir)
	if err != nil {
		return desired.Document{}, err
	}
	doc, _ := book.Document()
	return doc, book.Close()
}

// guestsGone refuses while guests run, or shuts them down.
func (i *installer) guestsGone(ctx context.Context, r Removal) error {
	if !look("libvirtd") {
		return nil // none can run
	}
	l, err := agent.NewLeaver(agentConfig(i.cfg))
	if err != nil {
		return err
	}
	defer l.Close()
	running, err := l.Running(ctx)
	if err != nil {
		return fmt.Errorf("%w; start it, so that guests can be seen: systemctl start libvirtd", err)
	}
	switch {
	case len(running) == 0:
		return nil
	case !r.StopGuests:
		return &RunningError{running}
	}
	// An agent that runs would start them again.
	if err := i.run(ctx, "systemctl", "stop", layout.AgentUnit); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	i.cfg.Say("shutting %d guests down; those that have not within %s are ended", len(running), r.Patience)
	return l.Stop(ctx, r.Patience)
}

// leave takes off what the agent has built.
func (i *installer) leave(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(layout.AgentData, "ledger")); errors.Is(err, fs.ErrNotExist) || !look("libvirtd") {
		return nil // it has never built anything
	}
	i.cfg.Say("taking off guests, networks, packet filters and mounts")
	l, err := agent.NewLeaver(agentConfig(i.cfg))
	if err != nil {
		return err
	}
	defer l.Close()
	err = l.Leave(ctx, leavePatience)
	if errors.Is(err, install.ErrLocked) {
		return fmt.Errorf("%w: it was not started by the unit; stop it, and repeat the command", err)
	}
	return err
}

func (i *installer) removeFiles(ctx context.Context) error {
	files := append(layout.AgentFiles(), layout.HostClock(nil), layout.File{Path: filepath.Join(layout.BinDir, layout.Agent)})
	for _, f := range files {
		err := os.Remove(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = host.SyncDir(filepath.Dir(f.Path))
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", f.Path, err)
		}
		i.cfg.Say("removed %s", f.Path)
	}
	if err := i.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return fmt.Errorf("tell systemd that the unit is gone: %w", err)
	}
	if look("chronyc") {
		if err := i.run(ctx, "chronyc", "reload", "sources"); err != nil {
			i.cfg.Say("warning: chrony asks the controller until its next start: %v", err)
		}
	}
	return nil
}

// purge removes data. Storages that other hosts use as well are not touched.
func (i *installer) purge() error {
	doc, err := told()
	if err != nil {
		return fmt.Errorf("find the host's storages: %w", err)
	}
	for ref, item := range doc.Items {
		if ref.Kind != desired.KindPool {
			continue
		}
		spec, err := desired.DecodeSpec[desired.Pool](item)
		if err != nil {
			return fmt.Errorf("read storage %s: %w", ref.ID, err)
		}
		if spec.Type != desired.PoolLocal {
			i.cfg.Say("kept: %s, which other hosts may use", spec.Path)
			continue
		}
		for _, name := range []string{"volumes", "images", desired.PoolMarker} {
			if err := os.RemoveAll(filepath.Join(spec.Path, name)); err != nil {
				return fmt.Errorf("remove the storage's data: %w", err)
			}
		}
		i.cfg.Say("removed volumes and images in %s", spec.Path)
	}
	// The console logs of guests are beside, in the directory that is the usual place of storages, too.
	for _, dir := range []string{layout.AgentData, "/var/lib/shoal/console"} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the agent's data: %w", err)
		}
		i.cfg.Say("removed %s", dir)
	}
	return nil
}
