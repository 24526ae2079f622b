// Command shoal-agent makes a host what its controller's document says, and keeps it so.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"shoal/agent"
	"shoal/agent/update"
	"shoal/desired/layout"
)

// version is set by the linker at a release.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	var ended exitError
	switch {
	case errors.Is(err, agent.ErrReplaced):
		// Where it does not become the other at once, whoever started it will see to that.
		if err := update.Relaunch(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, "shoal-agent:", err)
		}
		return
	case errors.As(err, &ended):
		stop()
		os.Exit(int(ended))
	case err != nil:
		fmt.Fprintln(os.Stderr, "shoal-agent:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := agent.Config{Version: version}
	var level, format string
	cmd := &cobra.Command{
		Use:   "shoal-agent",
		Short: "Make this host what its controller's document says, and keep it so",
		Long: `shoal-agent dials the controller's NATS, takes this host's document, and brings bridges, DHCP servers, packet filters, storages, volumes
and domains to what it says. It works on from its ledger (in --data) when nobody answers. Stopping it changes nothing on the host.

It is the host that shoal-agent join made of this machine. Until that was run it waits. With a join token in the file
identity/token in --data, or in --token-file, it joins by itself, tries for as long as it takes, and then overwrites and removes the token.
It renews its credentials, and the certificates and servers that go with them, by itself.

A host that was added with shoalctl host add --creds-out is given by --creds, --nats-url and --ca instead. Newer credentials are
written into that file.

It replaces itself by the releases that the controller rolls out: this program then starts the one that is current, from release/ in --data, and goes
back to the one before where a new one is not well. Whoever starts it must start it again when it ends.

It needs root, a running libvirtd, and dnsmasq, iptables, ipset, ebtables and qemu-img on the PATH.`,
		Example: `  shoalctl host token create --cluster c1      # where shoalctl works; then, on the host:
  shoal-agent install TOKEN                    # with packages and unit; or, where those are there:
  shoal-agent join TOKEN`,
		Args:          cobra.NoArgs,
		Version:       fullVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkGiven(cfg); err != nil {
				return err
			}
			log, err := logger(os.Stderr, level, format)
			if err != nil {
				return err
			}
			cfg.Log = log
			ran, code, err := update.Launch(cmd.Context(), update.LaunchConfig{Data: cfg.Data, Args: os.Args, Log: log})
			switch {
			case err != nil:
				return err
			case ran && code != 0:
				return exitError(code)
			case ran:
				return nil
			}
			err = agent.Run(cmd.Context(), cfg)
			if !errors.Is(err, agent.ErrReplaced) {
				update.Say(cfg.Data, err)
			}
			return err
		},
	}
	all := cmd.PersistentFlags()
	all.StringVar(&cfg.Data, "data", layout.AgentData, "directory of the agent's own")
	f := cmd.Flags()
	f.StringVar(&cfg.TokenFile, "token-file", "", "file with a join token, which may come later; removed once this host has joined")
	f.StringVar(&cfg.Libvirt, "libvirt", agent.LibvirtSocket, "socket of libvirtd")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "json", "json or console")
	for _, flags := range []*pflag.FlagSet{f, status(&cfg, cmd).Flags()} {
		flags.StringVar(&cfg.NATSURL, "nats-url", "", "with --creds: NATS of the controllers, several separated by commas")
		flags.StringVar(&cfg.Creds, "creds", "", "credentials file of this host from shoalctl host add --creds-out, for a host that did not join")
		flags.StringVar(&cfg.CA, "ca", "", "with --creds: file with the certificates that the controllers' must be signed by")
	}
	cmd.AddCommand(join(&cfg), installCommand(&cfg), uninstallCommand(&cfg), net(&cfg), screen(&cfg), logs(&cfg))
	return cmd
}

// exitError is that of a release which was run, and has said what there was to say.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// checkGiven refuses half of what describes a host that did not join.
func checkGiven(cfg agent.Config) error {
	switch {
	case cfg.Creds == "" && (cfg.NATSURL != "" || cfg.CA != ""):
		return errors.New("--nats-url and --ca go with --creds; a host that joined knows its servers")
	case cfg.Creds != "" && cfg.NATSURL == "":
		return errors.New("--creds needs --nats-url, such as tls://controller:4222")
	case cfg.Creds != "" && cfg.TokenFile != "":
		return errors.New("--creds and --token-file are two ways to be a host: give one")
	}
	return nil
}

// logger writes lines of JSON, or for people.
func logger(w io.Writer, level, format string) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", level)
	}
	switch format {
	case "json":
	case "console":
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.RFC3339}
	default:
		return zerolog.Nop(), errors.New("--log-format: want json or console")
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger(), nil
}

// fullVersion adds the commit, where the build knows it.
func fullVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return version + " " + s.Value
		}
	}
	return version
}
