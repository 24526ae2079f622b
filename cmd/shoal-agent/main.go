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

	"shoal/agent"
)

// version is set by the linker at a release.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "shoal-agent:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := agent.Config{Version: version}
	var level, format string
	cmd := &cobra.Command{
		Use:   "shoal-agent --nats-url URL --creds FILE",
		Short: "Make this host what its controller's document says, and keep it so",
		Long: `shoal-agent dials the controller's NATS, takes this host's document, and brings bridges, DHCP servers, packet filters, storages, volumes
and domains to what it says. It works on from its ledger (in --data) when nobody answers. Stopping it changes nothing on the host.

It needs root, a running libvirtd, and dnsmasq, iptables, ipset, ebtables and qemu-img on the PATH.`,
		Example: `  shoalctl host add h1 --cluster c1 --creds-out h1.creds     # where shoalctl works; then, on the host:
  shoal-agent --nats-url nats://controller:4222 --creds h1.creds`,
		Args:          cobra.NoArgs,
		Version:       fullVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(os.Stderr, level, format)
			if err != nil {
				return err
			}
			cfg.Log = log
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.NATSURL, "nats-url", "", "NATS of the controllers, several separated by commas")
	f.StringVar(&cfg.Creds, "creds", "", "credentials file of this host, from shoalctl host add --creds-out")
	f.StringVar(&cfg.Data, "data", "/var/lib/shoal-agent", "directory of the agent's own")
	f.StringVar(&cfg.Libvirt, "libvirt", "/run/libvirt/libvirt-sock", "socket of libvirtd")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "json", "json or console")
	for _, name := range []string{"nats-url", "creds"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return cmd
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
