package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"shoal/agent"
	"shoal/agent/install"
	"shoal/agent/update"
	"shoal/desired"
)

// join is the subcommand that makes a machine a host.
func join(cfg *agent.Config) *cobra.Command {
	var name, cluster, tokenFile string
	var noWait, force bool
	cmd := &cobra.Command{
		Use:   "join [TOKEN]",
		Short: "Make this machine a host of the controller that a join token is from",
		Long: `join makes this machine's key, checks that the servers in the token are the controller's, and asks it to let the machine in. The key stays
here: its fingerprint is what shoalctl host pending shows. Where an administrator must approve, join shows the fingerprint and
waits; it can be interrupted, a running shoal-agent goes on. Afterwards the token is gone from this machine's disk.

The token is printed by shoalctl host token create. Others can see it in the list of processes while join runs; --token-file avoids that.

A machine that has joined refuses to join again, for it would be another host: what runs here belongs to the host that it is.
With --force it asks nevertheless, and stays who it is until it is let in. The old identity is kept beside, in --data. If it then has
another id, the agent does not start before the old host's ledger is moved away: guests of the old host must not be taken for leftovers.`,
		Example: `  shoal-agent join shoal1.k3x9…
  shoalctl host token create --cluster c1 | ssh h1 shoal-agent join --token-file -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := readToken(cmd.InOrStdin(), args, tokenFile)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			var shown func(install.Pending)
			if !noWait {
				shown = pending(out)
			}
			j, err := install.Join(cmd.Context(), install.JoinConfig{
				Data: cfg.Data, Token: token, Name: name, Cluster: cluster, Version: cfg.Version, Force: force, NoWait: noWait,
				Log:     zerolog.New(zerolog.ConsoleWriter{Out: cmd.ErrOrStderr(), TimeFormat: time.RFC3339}).With().Timestamp().Logger(),
				Pending: shown,
			})
			if err != nil {
				return joinError(err, cfg.Data, force)
			}
			_, err = io.WriteString(out, joinedText(j, cfg.Data))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "name that the host is to have (default: the host name)")
	f.StringVar(&cluster, "cluster", "", "cluster that the token must be for; any where not given")
	f.StringVar(&tokenFile, "token-file", "", "read the token from this file, which stays as it is, or from the standard input with -")
	f.BoolVar(&noWait, "no-wait", false, "don't wait for an administrator: the running shoal-agent does")
	f.BoolVar(&force, "force", false, "join although this machine has joined")
	cmd.MarkFlagsMutuallyExclusive("no-wait", "force")
	return cmd
}

// pending says once that an administrator must approve.
func pending(out io.Writer) func(install.Pending) {
	said := false
	return func(p install.Pending) {
		if !said {
			_, _ = fmt.Fprintf(out, "waiting for an administrator to let this host in\n  name         %s\n  fingerprint  %s\n"+
				"compare it with shoalctl host pending, then: shoalctl host approve %s\n", p.Name, p.Fingerprint, p.Name)
		}
		said = true
	}
}

// maxTokenInput is more than any token and the white space around it.
const maxTokenInput = 2 * desired.MaxJoinToken

func readToken(stdin io.Reader, args []string, path string) (string, error) {
	if (len(args) == 1) == (path != "") {
		return "", errors.New("give the join token, or --token-file")
	}
	if len(args) == 1 {
		return args[0], nil
	}
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		defer f.Close()
		stdin = f
	}
	b, err := io.ReadAll(io.LimitReader(stdin, maxTokenInput))
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return string(b), nil
}

// joinError adds what to do next, where the reason does not say it.
func joinError(err error, data string, force bool) error {
	switch {
	case errors.Is(err, install.ErrJoined):
		return fmt.Errorf("%w: see shoal-agent status; with --force it asks to be another host, and what runs here stays with the one that it is now", err)
	case errors.Is(err, install.ErrLocked) && force:
		return fmt.Errorf("%w: stop it first, with systemctl stop shoal-agent; guests run on", err)
	case errors.Is(err, install.ErrLocked):
		return fmt.Errorf("%w; see shoal-agent status", err)
	}
	if _, statErr := os.Lstat(install.TokenFile(data)); statErr == nil && !force {
		return fmt.Errorf("%w\nnothing is lost: repeat the command, or leave it to shoal-agent, which goes on with the token when it runs", err)
	}
	return err
}

// joinedText says what was done and what comes next.
func joinedText(j install.Joined, data string) string {
	var b strings.Builder
	if j.State == desired.EnrolPending {
		fmt.Fprintf(&b, "an administrator must let this host in: shoalctl host approve %s\n  name         %s\n  fingerprint  %s\n"+
			"shoal-agent goes on asking when it runs: systemctl enable --now shoal-agent\n", j.Name, j.Name, j.Fingerprint)
		return b.String()
	}
	fmt.Fprintf(&b, "this machine is host %s\n  id           %s\n  fingerprint  %s\n  servers      %s\n",
		j.Name, j.Host, j.Fingerprint, strings.Join(j.Servers, ", "))
	if !j.Expires.IsZero() {
		fmt.Fprintf(&b, "  credentials  until %s, renewed by shoal-agent\n", j.Expires.Local().Format("2006-01-02 15:04 MST"))
	}
	if j.Replaced != "" {
		fmt.Fprintf(&b, "who it was before is kept in %s\n", j.Replaced)
	}
	service := "systemctl enable --now shoal-agent"
	if data = filepath.Clean(data); data != "/var/lib/shoal-agent" {
		service = "shoal-agent --data " + data
	}
	fmt.Fprintf(&b, "next: %s (one that runs already takes over within seconds)\n", service)
	return b.String()
}

// status is the subcommand that tells who this host is.
func status(cfg *agent.Config, parent *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell who this host is and how its agent is connected",
		Long: `status reads what is in --data and asks nobody: it works with the controller out of sight and the agent stopped. How the agent is connected
is what the running agent last noted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkGiven(*cfg); err != nil {
				return err
			}
			var given *install.Identity
			if cfg.Creds != "" {
				var err error
				if given, err = install.Given(install.GivenConfig{Creds: cfg.Creds, CA: cfg.CA, URLs: cfg.NATSURL, Data: cfg.Data}); err != nil {
					return err
				}
			}
			s, err := install.Look(cfg.Data, given)
			if err != nil {
				return err
			}
			releases, err := update.Look(cfg.Data)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), statusText(s, time.Now())+releaseText(releases))
			return err
		},
	}
	parent.AddCommand(cmd)
	return cmd
}

// releaseText is which releases of the agent there are, for people; "" where none ever came.
func releaseText(s update.Status) string {
	var b strings.Builder
	row := func(name, text, more string) {
		if text != "" {
			if more != "" {
				more = ": " + more
			}
			fmt.Fprintf(&b, "%-12s %s%s\n", name, text, more)
		}
	}
	row("release", s.Current, "")
	row("on trial", s.Trial, s.Note)
	row("rolled back", s.RolledBack, s.Why)
	return b.String()
}

// statusText is a status for people.
func statusText(s install.Status, now time.Time) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s "+format+"\n", append([]any{name}, args...)...)
	}
	if !s.Joined {
		state := "not joined: run shoal-agent join TOKEN, with a token from shoalctl host token create"
		if s.Joining {
			state = "joining: a token is there"
		}
		row("host", "%s", state)
		if s.Fingerprint != "" {
			row("fingerprint", "%s", s.Fingerprint)
		}
	} else {
		row("host", "%s", s.Host)
		if s.Name != "" {
			row("name", "%s", s.Name)
		}
		row("fingerprint", "%s", s.Fingerprint)
		row("servers", "%s", strings.Join(s.Servers, ", "))
		switch {
		case s.Expires.IsZero():
			row("credentials", "don't expire")
		case s.Expires.After(now):
			row("credentials", "until %s", s.Expires.Local().Format("2006-01-02 15:04 MST"))
		default:
			row("credentials", "expired at %s; the agent asks for new ones when it reaches a controller", s.Expires.Local().Format("2006-01-02 15:04 MST"))
		}
	}
	switch c := s.Connection; {
	case s.Agent == 0:
		row("agent", "does not run")
	case c == nil:
		row("agent", "runs, process %d", s.Agent)
	case c.Connected:
		row("agent", "runs, process %d, connected to %s since %s", s.Agent, c.Server, c.Since.Local().Format(time.DateTime))
	case c.Error != "":
		row("agent", "runs, process %d, not connected since %s: %s", s.Agent, c.Since.Local().Format(time.DateTime), c.Error)
	default:
		row("agent", "runs, process %d, not connected yet", s.Agent)
	}
	return b.String()
}
