// Command shoal-controller decides what hosts must be, and tells them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"shoal/controller"
)

// version is set by the linker at a release.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "shoal-controller:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := controller.Config{Version: version}
	var level, format string
	cmd := &cobra.Command{
		Use:   "shoal-controller",
		Short: "Decide what hosts must be, and tell them",
		Long: `shoal-controller serves the API over NATS, keeps the journal, and publishes each host's document. NATS with JetStream is built in; --nats-url
uses an external one. Several controllers on one NATS are equal: one leads, the others follow and take over.

The first start makes keys in <data>/identity and the administrator's credentials in <data>/admin.creds.`,
		Example: `  shoal-controller --data /var/lib/shoal-controller --listen 10.0.0.1:4222 --http 10.0.0.1:8480
  shoalctl --server nats://10.0.0.1:4222 --creds /var/lib/shoal-controller/admin.creds host list`,
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
			tuneGC()
			if cfg.Name == "" {
				full, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("--name: %w", err)
				}
				// A name is one token of a subject: no dots.
				cfg.Name, _, _ = strings.Cut(full, ".")
			}
			return controller.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Data, "data", "/var/lib/shoal-controller", "directory of the controller's own")
	f.StringVar(&cfg.Name, "name", "", "name that tells this controller from others (default the host name)")
	f.StringVar(&cfg.Identity, "identity", "", "directory of the keys, which controllers of one installation share (default <data>/identity)")
	f.StringVar(&cfg.Listen, "listen", "0.0.0.0:4222", "address of the built-in NATS")
	f.StringVar(&cfg.NATSURL, "nats-url", "", "external NATS instead of the built-in one; see nats-config")
	f.StringVar(&cfg.Creds, "creds", "", "credentials file for --nats-url (default made from the identity)")
	f.IntVar(&cfg.Replicas, "replicas", 1, "replicas of the precious streams, with --nats-url")
	f.StringVar(&cfg.HTTP, "http", "0.0.0.0:8480", "address at which hosts fetch images")
	f.StringVar(&cfg.Advertise, "advertise", "", "host name or address that hosts are told for --http (default that of --http)")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "json", "json or console")
	cmd.AddCommand(natsConfig(), creds())
	return cmd
}

// gcPercent is how much the heap may grow before it is collected, in percent of what is live. With Go's 100 a controller
// under load collects dozens of times a second, and callers at the 99th percentile wait for it four times as long.
// From gcMemoryShare of the machine's memory on it is collected as often as it takes.
const (
	gcPercent     = 400
	gcMemoryShare = 0.5
)

// tuneGC sets both, unless the operator has set GOGC or GOMEMLIMIT.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	var info unix.Sysinfo_t
	if os.Getenv("GOMEMLIMIT") == "" && unix.Sysinfo(&info) == nil {
		debug.SetMemoryLimit(int64(float64(info.Totalram) * float64(info.Unit) * gcMemoryShare))
	}
}

// natsConfig prints the configuration of an external NATS server.
func natsConfig() *cobra.Command {
	var dir, listen, store string
	cmd := &cobra.Command{
		Use:   "nats-config",
		Short: "Print the configuration of an external NATS server for this installation's keys",
		Long: `nats-config prints a configuration for nats-server that trusts this installation's operator and has its accounts. The keys are made where
there are none yet.`,
		Example: `  shoal-controller nats-config --identity /etc/shoal/identity --listen 10.0.0.1:4222 --store /var/lib/nats > nats.conf
  nats-server -c nats.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := controller.NATSConfig(dir, listen, store)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "identity", "/var/lib/shoal-controller/identity", "directory of the keys")
	f.StringVar(&listen, "listen", "0.0.0.0:4222", "address that the server listens on")
	f.StringVar(&store, "store", "/var/lib/nats", "directory of the server's streams")
	return cmd
}

// creds makes credentials for people and programs. It needs the keys and no running controller.
func creds() *cobra.Command {
	var dir, role, name, out string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "creds", Short: "Make a credentials file for shoalctl and other clients", Args: cobra.NoArgs,
		Example: "  shoal-controller creds --identity /var/lib/shoal-controller/identity --role viewer --name ann --out ann.creds",
		RunE:    func(*cobra.Command, []string) error { return controller.MakeCreds(dir, role, name, ttl, out) },
	}
	f := cmd.Flags()
	f.StringVar(&dir, "identity", "/var/lib/shoal-controller/identity", "directory of the keys")
	f.StringVar(&role, "role", "viewer", "admin or viewer")
	f.StringVar(&name, "name", "", "name of the user")
	f.StringVar(&out, "out", "", "file to write; must not exist")
	f.DurationVar(&ttl, "ttl", 0, "how long they are good for; 0 for ever")
	for _, required := range []string{"name", "out"} {
		if err := cmd.MarkFlagRequired(required); err != nil {
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
