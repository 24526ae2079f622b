package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/backup"
	"shoal/controller/resource"
)

// sealFlags are the flags that tell what opens a backup.
func sealFlags(f *pflag.FlagSet, cfg *backup.SealConfig) {
	f.StringVar(&cfg.PassphraseFile, "backup-passphrase-file", "", "file with the passphrase of backups in its first line")
	f.StringVar(&cfg.KeyFile, "backup-key-file", "", "file with the age secret key that opens backups, to check or restore them")
}

// sftpFlags are the flags that an SFTP server needs.
func sftpFlags(f *pflag.FlagSet, cfg *backup.SFTPConfig) {
	f.StringVar(&cfg.KeyFile, "backup-sftp-key", "", "private key to log in to the SFTP server with")
	f.StringVar(&cfg.KnownHosts, "backup-sftp-known-hosts", "", "file with the SFTP server's key, as ssh-keyscan prints it")
}

// days is a duration that may be given in days.
type days time.Duration

func (d *days) String() string { return time.Duration(*d).String() }
func (d *days) Type() string   { return "duration" }
func (d *days) Set(s string) error {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		whole, err := strconv.ParseUint(n, 10, 16)
		*d = days(time.Duration(whole) * 24 * time.Hour)
		return err
	}
	v, err := time.ParseDuration(s)
	if err == nil && v < 0 {
		err = errors.New("must not be negative")
	}
	*d = days(v)
	return err
}

// size is a number of bytes with a unit.
type size uint64

func (z *size) String() string { return api.Size(*z).String() }
func (z *size) Type() string   { return "size" }
func (z *size) Set(s string) error {
	v, err := api.ParseSize(s)
	*z = size(v)
	return err
}

// restoring makes the flags that restore and its kin share.
func restoring(cmd *cobra.Command, cfg *controller.RestoreConfig) {
	f := cmd.Flags()
	f.StringVar(&cfg.Data, "data", "/var/lib/shoal-controller", "directory of the controller that will run; missing or empty")
	f.StringVar(&cfg.Identity, "identity", "", "directory of the keys (default <data>/identity)")
	f.StringVar(&cfg.NATSURL, "nats-url", "", "external NATS that gets the streams instead of the built-in one; it must have none of them")
	f.StringVar(&cfg.CA, "ca", "", "file with certificates (PEM) that --nats-url's may be signed by, beside the installation's own authority")
	f.IntVar(&cfg.Replicas, "replicas", 1, "replicas of the precious streams, with --nats-url")
}

func restore() *cobra.Command {
	var cfg controller.RestoreConfig
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Restore a backup on an empty machine", Args: cobra.ExactArgs(1),
		Long: `restore makes the controller's directory from a backup: keys and journal; all else is rebuilt. FILE is a file or sftp://user@host/directory/file. Nothing is
ever overwritten, and the directory is there whole or not at all. Then start the controller as ever.

Hosts that were told something since the backup are not rolled back: they go on as they are, and shoalctl ahead list shows them. See README, The drill.

For an external NATS: restore --keys-only --identity DIR first, start NATS with what nats-config prints, then restore --identity DIR --nats-url URL.`,
		Example: `  shoal-controller restore --backup-passphrase-file pass --data /var/lib/shoal-controller /backups/shoal-OABC-20261124T020000Z-8841.tar.age`,
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := logger(cmd.ErrOrStderr(), "info", "console")
			if err != nil {
				return err
			}
			cfg.From, cfg.Log = args[0], log
			got, err := controller.Restore(cmd.Context(), cfg)
			if err != nil {
				return fmt.Errorf("restore: %w", err)
			}
			m := got.Manifest
			if cfg.KeysOnly {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "restored the keys of the backup of %s\n", m.Created.Format(time.RFC3339))
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "restored the backup of %s (journal up to %d, by %s) to %s\n%s\n%d hosts are held until it is known what they were told since: "+
				"start the controller, then see shoalctl ahead list\n", m.Created.Format(time.RFC3339), m.Seq, m.Controller, cfg.Data, counts(got.Contents), got.Held)
			for _, a := range m.Absent {
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "not in the backup: %s %s (%s), added from %s\n", a.What, a.Name, a.ID, a.From)
				}
			}
			return err
		},
	}
	restoring(cmd, &cfg)
	sealFlags(cmd.Flags(), &cfg.Seal)
	sftpFlags(cmd.Flags(), &cfg.SFTP)
	cmd.Flags().BoolVar(&cfg.KeysOnly, "keys-only", false, "restore the keys and nothing else")
	cmd.Flags().Uint64Var(&cfg.Advance, "advance", 0, "by how much the journal's sequences go on further: more than it was written to since the backup (default by the backup's age)")
	return cmd
}

// counts says how many resources there are.
func counts(c backup.Contents) string {
	var parts []string
	for _, k := range resource.Kinds() {
		if n := c.Resources[k]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, k))
		}
	}
	if len(parts) == 0 {
		return "it holds no resources"
	}
	return "it holds " + strings.Join(parts, ", ")
}

func verifyBackup() *cobra.Command {
	var cfg controller.RestoreConfig
	var scratch string
	cmd := &cobra.Command{
		Use: "verify-backup FILE", Short: "Check a backup by restoring it aside", Args: cobra.ExactArgs(1),
		Long: `verify-backup holds every byte of a backup against its manifest, restores it into a server of its own in a scratch directory, and rebuilds the state from the
journal. It needs no controller. A backup that it lets pass can be restored.`,
		Example: `  shoal-controller verify-backup --backup-key-file age.key /backups/shoal-OABC-20261124T020000Z-8841.tar.age`,
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := logger(cmd.ErrOrStderr(), "warn", "console")
			if err != nil {
				return err
			}
			cfg.From, cfg.Log = args[0], log
			got, err := controller.VerifyBackup(cmd.Context(), cfg, scratch)
			if err != nil {
				return fmt.Errorf("verify backup: %w", err)
			}
			m := got.Manifest
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the backup of %s is good: journal up to %d, %d keys, made by %s %s\n%s\n",
				m.Created.Format(time.RFC3339), m.Seq, len(m.Keys), m.Controller, m.Version, counts(got.Contents))
			return err
		},
	}
	sealFlags(cmd.Flags(), &cfg.Seal)
	sftpFlags(cmd.Flags(), &cfg.SFTP)
	cmd.Flags().StringVar(&scratch, "scratch", "", "directory for the copy (default the system's for temporary files)")
	return cmd
}

func rebuild() *cobra.Command {
	var cfg controller.RestoreConfig
	cmd := &cobra.Command{
		Use: "rebuild", Short: "Begin anew under running hosts, when the journal and all backups are lost", Args: cobra.NoArgs,
		Long: `rebuild makes an empty controller's directory whose journal begins above all that hosts were ever told. Bring the keys, from wherever they survived, to
<data>/identity's place with --identity first; without any, new ones are made, and hosts must be given new credentials. Start the controller, wait until
shoalctl ahead list shows all hosts, and take them over: shoalctl ahead adopt --all. What hosts were told comes back with ids, names, owners, tags and descriptions: zones,
clusters, storages, images' records, offerings, networks with their ranges, security groups with their rules, VMs, NICs, volumes, and the accounts that own them. What no host
had to do with is lost: passwords, users, policies, shares, tasks, accounts that own nothing there, offerings and images that no VM there came from, detached volumes on shared
storages. See README, Backups.`,
		Example: `  shoal-controller rebuild --data /var/lib/shoal-controller --identity /etc/shoal/identity`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd.ErrOrStderr(), "info", "console")
			if err != nil {
				return err
			}
			cfg.Log = log
			if err := controller.Rebuild(cmd.Context(), cfg); err != nil {
				return fmt.Errorf("rebuild: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is ready: start the controller, then see shoalctl ahead list\n", cfg.Data)
			return err
		},
	}
	restoring(cmd, &cfg)
	return cmd
}
