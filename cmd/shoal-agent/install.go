package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"shoal/agent"
	"shoal/agent/host"
	"shoal/agent/linux"
	"shoal/desired/layout"
)

// unitData refuses another data directory than the unit's.
func unitData(cfg *agent.Config) error {
	if filepath.Clean(cfg.Data) != layout.AgentData {
		return fmt.Errorf("--data: the unit's agent keeps to %s; for another directory run shoal-agent without a unit", layout.AgentData)
	}
	return nil
}

// said writes lines for people.
func said(w io.Writer) func(format string, args ...any) {
	return func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
}

// steps logs what a step has to say, which is only what is out of the ordinary.
func steps(w io.Writer) zerolog.Logger {
	return zerolog.New(zerolog.ConsoleWriter{Out: w, TimeFormat: time.RFC3339}).Level(zerolog.WarnLevel).With().Timestamp().Logger()
}

// installCommand makes this machine a host.
func installCommand(cfg *agent.Config) *cobra.Command {
	var to linux.Config
	var tokenFile string
	var check, noPackages bool
	cmd := &cobra.Command{
		Use:   "install [TOKEN]",
		Short: "Make this machine a host: packages, unit, settings, clock, joining",
		Long: `install looks at this machine first, and says of everything that stands in the way why that matters and what to do about it. Nothing is changed then, nor with
--check, but for the lists of packages. Then it installs the packages that are missing (on Debian and what derives from it), puts this program
into ` + layout.BinDir + `, its unit and the kernel's settings in place, has chrony take the time from the controller beside the sources that it has, joins with the token (as
shoal-agent join does), and starts the agent, now and with the machine.

It may be repeated, and then does what is left to do; with a newer program it is the way to upgrade an agent. Guests run on meanwhile. A machine that
has joined stays who it is. Without a token the agent waits for one.`,
		Example: `  shoalctl host token create --cluster c1 | ssh h1 shoal-agent install --token-file -
  shoal-agent install --check`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := unitData(cfg); err != nil {
				return err
			}
			if len(args) == 1 || tokenFile != "" {
				var err error
				if to.Token, err = readToken(cmd.InOrStdin(), args, tokenFile); err != nil {
					return err
				}
			}
			out := cmd.OutOrStdout()
			var err error
			if to.Program, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			to.Version, to.Packages, to.Run, to.Say = cfg.Version, !noPackages, host.Machine{}, said(out)
			report := func(r linux.Report) { _, _ = io.WriteString(out, r.Text()) }
			if check {
				r := linux.Preflight(cmd.Context(), to)
				report(r)
				if !r.Ready() {
					return &linux.PreflightError{Report: r}
				}
				return nil
			}
			to.Join.Log = steps(cmd.ErrOrStderr())
			if !to.Join.NoWait {
				to.Join.Pending = pending(out)
			}
			return linux.Install(cmd.Context(), to, report)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&check, "check", false, "only look at this machine; exit with 1 where something stands in the way")
	f.StringVar(&to.Name, "name", "", "name that the host is to have (default: the host name)")
	f.StringVar(&to.Cluster, "cluster", "", "cluster that the token must be for; any where not given")
	f.StringVar(&tokenFile, "token-file", "", "read the token from this file, which stays as it is, or from the standard input with -")
	f.BoolVar(&noPackages, "no-packages", false, "install no packages: they must be there")
	f.BoolVar(&to.Join.NoWait, "no-wait", false, "don't wait for an administrator who must approve: the agent does")
	return cmd
}

// uninstallCommand takes everything off.
func uninstallCommand(cfg *agent.Config) *cobra.Command {
	var r linux.Removal
	var confirm string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the agent and all that it has built off this machine",
		Long: `uninstall stops the agent and takes off what it has built: definitions of guests, DHCP servers, packet filters, bridges, VXLAN devices, mounts; then unit,
settings and program. It refuses while guests run, unless --stop-guests lets them be shut down.

Who the host is (` + layout.AgentData + `) and all volumes and images stay, so that shoal-agent install makes it the same host again, with everything on it. With --purge
they are removed as well, those of local storages only: what other hosts see is theirs, too. --confirm must give the name of this machine then.

Packages stay. The controller is not told: shoalctl host remove does that.`,
		Example: `  shoal-agent uninstall
  shoal-agent uninstall --stop-guests --purge --confirm h1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := unitData(cfg); err != nil {
				return err
			}
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			switch {
			case r.Purge && confirm != name:
				return fmt.Errorf("--purge removes the volumes and images of this machine's local storages for good: confirm it by its name, --confirm %s", name)
			case !r.Purge && confirm != "":
				return errors.New("--confirm goes with --purge")
			}
			return linux.Uninstall(cmd.Context(), linux.Config{
				Version: cfg.Version, Run: host.Machine{}, Say: said(cmd.OutOrStdout()),
			}, r)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.StopGuests, "stop-guests", false, "shut guests down that run")
	f.DurationVar(&r.Patience, "patience", 2*time.Minute, "with --stop-guests: how long a guest may take before it is ended")
	f.BoolVar(&r.Purge, "purge", false, "remove volumes and images of local storages, and who the host is")
	f.StringVar(&confirm, "confirm", "", "with --purge: the name of this machine")
	return cmd
}
