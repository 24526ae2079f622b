// Command shoal-controller decides what hosts must be, and tells them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"shoal/controller"
	"shoal/controller/file"
	"shoal/controller/image"
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
	var level, format, passwordFile string
	var sources []string
	var check bool
	cmd := &cobra.Command{
		Use:   "shoal-controller",
		Short: "Decide what hosts must be, and tell them",
		Long: `shoal-controller serves the API over NATS, keeps the journal, and publishes each host's document. NATS with JetStream is built in; --nats-url
uses an external one. Several controllers on one NATS are equal: one leads, the others follow and take over.

The first start makes keys and a certificate authority in <data>/identity, and the admin account, whose one-time password it prints. The way back in
when that is lost is <data>/admin.creds, a credentials file that may do everything: shoalctl --creds admin.creds account password admin. All ports are
served with TLS 1.3, by a certificate of that authority, which is made anew in time, or by a given one, whose files are read again when they change.
What clients must trust is in <data>/ca.pem.`,
		Example: `  shoal-controller --data /var/lib/shoal-controller --listen 10.0.0.1:4222 --http 10.0.0.1:8480
  shoalctl --server tls://10.0.0.1:4222 --creds /var/lib/shoal-controller/admin.creds host list`,
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
			if cfg.ImageSources, err = image.ParseSources(sources); err != nil {
				return fmt.Errorf("--image-source: %w", err)
			}
			// To whoever starts it for the first time, and to no log.
			cfg.FirstPassword = func(password string) {
				if passwordFile != "" {
					err := file.Write(passwordFile, 0o600, []byte(password+"\n"))
					if err == nil {
						return
					}
					log.Error().Err(err).Msg("one-time password not written to --first-password-file; it is on the standard output")
				}
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "The admin account's one-time password, which is not shown again: %s\nLog in with it: shoalctl login --account admin\n", password)
			}
			cfg.Ready = func(string) {
				if err := ready(); err != nil {
					log.Warn().Err(err).Msg("systemd not told that the controller is ready")
				}
			}
			if check {
				plan, err := controller.Check(cfg)
				if err != nil {
					return err
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(plan)
			}
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
	f.StringArrayVar(&sources, "image-source", nil,
		"address, prefix or host name inside the site that accounts other than admin may add images from, too; may be repeated (default public addresses only)")
	f.StringVar(&cfg.Advertise, "advertise", "", "host name or address that hosts are told for --http (default that of --http)")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "file with the certificate to present and its chain up to the root, PEM (default made by the installation's own authority)")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "file with the key of --tls-cert, PEM")
	f.StringArrayVar(&cfg.TLSNames, "tls-name", nil, "further host name or address that this machine is reached by; may be repeated")
	f.DurationVar(&cfg.SessionTime, "session-time", controller.DefaultSessionTime, "how long a login lasts without being used")
	f.StringVar(&cfg.Backup.To, "backup-to", "", "where backups go: a directory, or sftp://user@host/directory")
	f.DurationVar(&cfg.Backup.Every, "backup-every", 24*time.Hour, "how often one is made by itself; 0 for never")
	f.IntVar(&cfg.Backup.Keep, "backup-keep", 14, "how many backups stay; 0 for all")
	sealFlags(f, &cfg.Backup.Seal)
	sftpFlags(f, &cfg.Backup.SFTP)
	f.StringArrayVar(&cfg.Backup.Seal.Recipients, "backup-recipient", nil, "age public key that backups are encrypted to; may be repeated")
	f.BoolVar(&cfg.Backup.Seal.Plain, "backup-unencrypted", false, "do not encrypt backups, which hold every private key")
	f.Var((*days)(&cfg.JournalKeep), "journal-keep", "how much history the journal keeps, such as 400d or 720h; 0 for all of it")
	f.Var((*size)(&cfg.JournalMaxBytes), "journal-max-size", "how large the journal may become before history goes, however young, such as 20GiB; 0 for no limit")
	f.BoolVar(&cfg.AuditReads, "audit-reads", false, "record calls that only read in the journal, too")
	f.BoolVar(&check, "check", false, "only look whether flags and keys are good, print what would be done as JSON, and change nothing")
	f.StringVar(&passwordFile, "first-password-file", "", "file that the first start writes the admin account's one-time password to, instead of printing it")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&format, "log-format", "json", "json or console")
	cmd.AddCommand(natsConfig(), creds(), ca(), restore(), verifyBackup(), rebuild())
	return cmd
}

// ready tells systemd, where that started us, that the controller has started (sd_notify(3)).
func ready() error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("READY=1"))
	return errors.Join(err, conn.Close())
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
	var dir, listen, store, tlsDir string
	var names []string
	cmd := &cobra.Command{
		Use:   "nats-config",
		Short: "Print the configuration of an external NATS server for this installation's keys",
		Long: `nats-config prints a configuration for nats-server that trusts this installation's operator and has its accounts, and writes a certificate
and key for it into --tls-dir. The keys of the installation are made where there are none yet. The certificate is good for a year: give the same command
again in time, then nats-server --signal reload.`,
		Example: `  shoal-controller nats-config --identity /etc/shoal/identity --listen 10.0.0.1:4222 --store /var/lib/nats --tls-dir /etc/nats/tls > nats.conf
  nats-server -c nats.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := controller.NATSConfig(dir, listen, store, tlsDir, names)
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
	f.StringVar(&tlsDir, "tls-dir", "/etc/nats/tls", "directory to write the server's certificate and key to")
	f.StringArrayVar(&names, "tls-name", nil, "further host name or address that the server is reached by; may be repeated")
	return cmd
}

// creds makes credentials for people and programs. It needs the keys and no running controller.
func creds() *cobra.Command {
	var dir, role, name, out string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "creds", Short: "Make a credentials file for shoalctl and other clients", Args: cobra.NoArgs,
		Example: "  shoal-controller creds --identity /var/lib/shoal-controller/identity --role viewer --name ann --out ann.creds\n" +
			"  shoal-controller creds --role inspector --name look --ttl 8h --out look.creds",
		RunE: func(*cobra.Command, []string) error { return controller.MakeCreds(dir, role, name, ttl, out) },
	}
	f := cmd.Flags()
	f.StringVar(&dir, "identity", "/var/lib/shoal-controller/identity", "directory of the keys")
	f.StringVar(&role, "role", "viewer", "admin, viewer, or inspector: reads streams and buckets with the nats CLI, and calls nothing")
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

// ca replaces the certificate authority, step by step. It needs the keys and no running controller.
func ca() *cobra.Command {
	var dir string
	parent := &cobra.Command{
		Use: "ca", Short: "Show and replace the installation's certificate authority",
		Long: `A new authority is first trusted and only later used, so that nobody is locked out: rotate adds one, which hosts get when they renew their
credentials; activate, after 30 days, makes the certificates come from it; retire drops the old one. Running controllers notice each step.`,
	}
	parent.PersistentFlags().StringVar(&dir, "identity", "/var/lib/shoal-controller/identity", "directory of the keys")
	parent.AddCommand(&cobra.Command{
		Use: "list", Short: "List the authorities that are to be trusted", Example: "  shoal-controller ca list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := controller.ListCA(dir)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NAME\tACTIVE\tSINCE\tUNTIL\tPIN") // Flush tells of an error
			for _, c := range list {
				_, _ = fmt.Fprintf(w, "%s\t%t\t%s\t%s\t%s\n", c.Name, c.Active, c.Since.UTC().Format(time.DateOnly), c.Until.UTC().Format(time.DateOnly), c.Pin)
			}
			return w.Flush()
		},
	})
	for step, short := range map[string]string{
		"rotate": "Add a new authority to those that are to be trusted", "activate": "Make certificates come from the new authority",
		"retire": "Drop the authorities that do not issue certificates",
	} {
		var force bool
		cmd := &cobra.Command{
			Use: step, Short: short, Example: "  shoal-controller ca " + step, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				text, err := controller.ChangeCA(dir, step, force)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
				return err
			},
		}
		if step == "activate" {
			cmd.Flags().BoolVar(&force, "force", false, "also if hosts may not know it yet; those can't connect any more")
		}
		parent.AddCommand(cmd)
	}
	return parent
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
