package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/desired"
	"shoal/desired/layout"
)

// Config is what to make of this machine.
type Config struct {
	// Program is the file that becomes shoal-agent.
	Program string
	// Token is a join token's text, "" for none; Name and Cluster are as in install.JoinConfig.
	Token, Name, Cluster string
	Version              string
	// Packages lets missing packages be installed.
	Packages bool
	Run      host.Runner
	// Say is told of each step.
	Say func(format string, args ...any)
	// Join is what install.Join is called with beside the above.
	Join install.JoinConfig
}

// PreflightError is a machine that can't become a host as it is.
type PreflightError struct{ Report Report }

// Error counts what stands in the way.
func (e *PreflightError) Error() string {
	return fmt.Sprintf("%d checks failed, and nothing was changed: do what the remedies say, and repeat the command", e.Report.Failures())
}

// connectPatience is how long an agent that was started may take to connect.
const connectPatience = time.Minute

// Install makes this machine a host. The error is a *PreflightError before anything was changed, else it says which step did not succeed; the call can
// be repeated then. report is told what Preflight found.
func Install(ctx context.Context, cfg Config, report func(Report)) error {
	r := Preflight(ctx, cfg)
	report(r)
	if !r.Ready() {
		return &PreflightError{r}
	}
	i := &installer{cfg: cfg}
	if err := i.packages(ctx, r.missing); err != nil {
		return err
	}
	changed, err := i.files(ctx)
	if err != nil {
		return err
	}
	joined, err := i.join(ctx)
	if err != nil {
		return err
	}
	return i.start(ctx, changed, joined)
}

type installer struct{ cfg Config }

func (i *installer) run(ctx context.Context, name string, args ...string) error {
	_, err := i.cfg.Run.Run(ctx, host.Command{Name: name, Args: args})
	return err
}

func (i *installer) packages(ctx context.Context, missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	i.cfg.Say("installing packages: %s", strings.Join(missing, " "))
	// Configuration that somebody has written stays, and nobody is asked.
	err := i.run(ctx, "env", append([]string{
		"DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300",
		"-o", "DPkg::Options::=--force-confdef", "-o", "DPkg::Options::=--force-confold", "install",
	}, missing...)...)
	if err != nil {
		return fmt.Errorf("install packages: %w", err)
	}
	return nil
}

// files puts program, unit and settings in place, and reports whether the agent has to be started anew for it.
func (i *installer) files(ctx context.Context) (changed bool, err error) {
	b, err := os.ReadFile(i.cfg.Program)
	if err != nil {
		return false, fmt.Errorf("read the program: %w", err)
	}
	files := append([]layout.File{{Path: filepath.Join(layout.BinDir, layout.Agent), Content: string(b), Mode: 0o755}}, layout.AgentFiles()...)
	if clock, ok := i.clock(); ok {
		files = append(files, clock)
	}
	var written []string
	for _, f := range files {
		old, err := os.ReadFile(f.Path)
		if err == nil && bytes.Equal(old, []byte(f.Content)) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("read %s: %w", f.Path, err)
		}
		if err := host.WriteFile(f.Path, []byte(f.Content), f.Mode); err != nil {
			return false, fmt.Errorf("write %s: %w", f.Path, err)
		}
		i.cfg.Say("wrote %s", f.Path)
		written = append(written, f.Path)
	}
	wrote := func(path string) bool { return slices.Contains(written, path) }
	if len(written) == 0 {
		return false, nil
	}
	if err := i.run(ctx, "systemctl", "daemon-reload"); err != nil {
		return false, fmt.Errorf("tell systemd of the unit: %w", err)
	}
	// Not every kernel has all modules, and what is missing shows where it is needed.
	for _, unit := range []string{"systemd-modules-load.service", "systemd-sysctl.service"} {
		if err := i.run(ctx, "systemctl", "restart", unit); err != nil {
			i.cfg.Say("warning: %v", err)
		}
	}
	if clock, ok := i.clock(); ok && wrote(clock.Path) {
		if err := i.run(ctx, "chronyc", "reload", "sources"); err != nil {
			i.cfg.Say("warning: chrony takes the controller as a source from its next start: %v", err)
		}
	}
	return wrote(filepath.Join(layout.BinDir, layout.Agent)) || wrote(layout.AgentUnitPath), nil
}

// clock are the sources of time for chrony, if it is there and the controllers are known.
func (i *installer) clock() (layout.File, bool) {
	servers := servers(i.cfg.Token)
	if len(servers) == 0 || !look("chronyd") {
		return layout.File{}, false
	}
	clock := layout.HostClock(servers)
	// Where chrony is not configured as Debian does it, the directory would be looked at by nobody.
	if _, err := os.Stat(filepath.Dir(clock.Path)); err != nil {
		i.cfg.Say("note: add the controller to the servers in chrony's configuration; it has no %s", filepath.Dir(clock.Path))
		return layout.File{}, false
	}
	return clock, true
}

// servers are those of the host that this machine is, or of the token.
func servers(token string) []string {
	if s, err := install.Look(layout.AgentData, nil); err == nil && s.Joined {
		return s.Servers
	}
	tok, err := desired.ParseJoinToken(token)
	if err != nil {
		return nil
	}
	return tok.URLs
}

// join makes this machine one of the controller's hosts, where it is none and there is a token.
func (i *installer) join(ctx context.Context) (bool, error) {
	s, err := install.Look(layout.AgentData, nil)
	if err != nil || s.Joined || i.cfg.Token == "" {
		return s.Joined, err
	}
	cfg := i.cfg.Join
	cfg.Data, cfg.Token, cfg.Name, cfg.Cluster, cfg.Version = layout.AgentData, i.cfg.Token, i.cfg.Name, i.cfg.Cluster, i.cfg.Version
	j, err := install.Join(ctx, cfg)
	if err != nil {
		return false, fmt.Errorf("join: %w\nall else is installed: repeat the command, with a new token where this one is used up", err)
	}
	if j.State == desired.EnrolPending {
		i.cfg.Say("an administrator must let this host in: shoalctl host approve %s (fingerprint %s)", j.Name, j.Fingerprint)
		return false, nil
	}
	i.cfg.Say("this machine is host %s, id %s, fingerprint %s", j.Name, j.Host, j.Fingerprint)
	return true, nil
}

// start starts libvirt and the agent, now and with the machine, and waits until the agent is connected where it can be.
func (i *installer) start(ctx context.Context, changed, joined bool) error {
	ran := active(ctx, i.cfg.Run, layout.AgentUnit)
	if err := i.run(ctx, "systemctl", "enable", "--quiet", "--now", "libvirtd.service", layout.AgentUnit); err != nil {
		return fmt.Errorf("start libvirt and the agent: %w; see journalctl -u %s", err, layout.AgentUnit)
	}
	if changed && ran {
		// Guests, DHCP servers and mounts outlive it.
		if err := i.run(ctx, "systemctl", "restart", layout.AgentUnit); err != nil {
			return fmt.Errorf("start the agent anew: %w; see journalctl -u %s", err, layout.AgentUnit)
		}
	}
	if !joined {
		i.cfg.Say("the agent runs and waits; see shoal-agent status")
		return nil
	}
	s, err := await(ctx, connectPatience)
	if err != nil {
		return err
	}
	if c := s.Connection; c == nil || !c.Connected {
		why := "it has said nothing yet"
		if c != nil && c.Error != "" {
			why = c.Error
		}
		return fmt.Errorf("the agent runs and is not connected after %s: %s; it goes on trying: see shoal-agent status and journalctl -u %s", connectPatience, why, layout.AgentUnit)
	}
	i.cfg.Say("the agent runs and is connected to %s", s.Connection.Server)
	return nil
}

// await waits until the running agent is connected, or for as long as it may take.
func await(ctx context.Context, patience time.Duration) (install.Status, error) {
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := install.Look(layout.AgentData, nil)
		if err != nil || s.Agent != 0 && s.Connection != nil && s.Connection.Connected || time.Now().After(deadline) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-tick.C:
		}
	}
}

// agentConfig is the agent's as the unit starts it. What it would log is in the errors of who takes everything off.
func agentConfig(cfg Config) agent.Config {
	return agent.Config{Data: layout.AgentData, Libvirt: agent.LibvirtSocket, Version: cfg.Version, Log: zerolog.Nop()}
}
