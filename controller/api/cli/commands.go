package cli

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"shoal/controller/api"
	"shoal/subjects"
)

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  shoalctl version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.Out, "shoalctl "+a.Version)
			return err
		},
	}
}

func (a *App) contextCommand() *cobra.Command {
	parent := group("context", "Remember servers and credentials under names")
	names := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		c, err := a.loadContexts()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return c.names(), cobra.ShellCompDirectiveNoFileComp
	}
	// With returns what edits the file of contexts.
	with := func(edit func(c *contexts, name string) error) func(*cobra.Command, []string) error {
		return func(_ *cobra.Command, args []string) error {
			c, err := a.loadContexts()
			if err != nil {
				return err
			}
			if err := edit(&c, args[0]); err != nil {
				return err
			}
			return a.saveContexts(c)
		}
	}
	known := func(c *contexts, name string) error {
		if _, ok := c.Contexts[name]; !ok {
			return usage(fmt.Errorf("there is no context %q (see shoalctl context list)", name))
		}
		return nil
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List contexts", Example: "  shoalctl context list", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				c, err := a.loadContexts()
				if err != nil {
					return err
				}
				items := []json.RawMessage{}
				for _, n := range c.names() {
					b, err := json.Marshal(map[string]any{"id": n, "name": n, "current": n == c.Current, "server": c.Contexts[n].Server, "creds": c.Contexts[n].Creds, "ca": c.Contexts[n].CA})
					if err != nil {
						return fmt.Errorf("encode context: %w", err)
					}
					items = append(items, b)
				}
				return a.printList(&api.Operation{Columns: []api.Column{
					{Title: "NAME", Path: "name"}, {Title: "CURRENT", Path: "current"}, {Title: "SERVER", Path: "server"}, {Title: "CREDS", Path: "creds"}, {Title: "CA", Path: "ca"},
				}}, nil, items)
			},
		},
		&cobra.Command{
			Use: "set NAME", Short: "Remember --server, --creds and --ca under a name, and use it", Example: "  shoalctl context set lab --server tls://10.0.0.1:4222 --creds admin.creds --ca ca.pem",
			Args: cobra.ExactArgs(1), RunE: with(func(c *contexts, name string) error {
				if !subjects.ValidToken(name) {
					return usage(fmt.Errorf("the name %q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", name))
				}
				i := installation{Server: first(a.server, a.Getenv("SHOAL_SERVER"), DefaultServer), Creds: first(a.creds, a.Getenv("SHOAL_CREDS"))}
				if i.Creds == "" {
					return usage(fmt.Errorf("--creds must be given"))
				}
				creds, err := filepath.Abs(i.Creds)
				if err != nil {
					return fmt.Errorf("find credentials: %w", err)
				}
				if _, err := api.CredsUser(creds); err != nil {
					return err
				}
				i.Creds = creds
				// What lies beside the credentials is found there later, too.
				if file := first(a.ca, a.Getenv("SHOAL_CA")); file != "" {
					if i.CA, err = filepath.Abs(file); err != nil {
						return fmt.Errorf("find authorities: %w", err)
					}
					if _, err := api.ReadCA(i.CA); err != nil {
						return err
					}
				}
				c.Contexts[name], c.Current = i, name
				return nil
			}),
		},
		&cobra.Command{
			Use: "use NAME", Short: "Use a context from now on", Example: "  shoalctl context use lab", Args: cobra.ExactArgs(1), ValidArgsFunction: names,
			RunE: with(func(c *contexts, name string) error {
				if err := known(c, name); err != nil {
					return err
				}
				c.Current = name
				return nil
			}),
		},
		&cobra.Command{
			Use: "delete NAME", Short: "Forget a context", Example: "  shoalctl context delete lab", Args: cobra.ExactArgs(1), ValidArgsFunction: names,
			RunE: with(func(c *contexts, name string) error {
				if err := known(c, name); err != nil {
					return err
				}
				delete(c.Contexts, name)
				if c.Current == name {
					c.Current = ""
				}
				return nil
			}),
		},
	)
	return parent
}

// natsCommand tells how to look into an installation with the plain nats CLI.
func (a *App) natsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "nats", Short: "Show how to use the plain nats CLI with these credentials", Example: "  shoalctl nats", Args: cobra.NoArgs,
		Long: "Everything that Shoal keeps can be looked at with the nats CLI. A user may only receive answers under an inbox prefix of the own name, " +
			"which this command's output sets.",
		RunE: func(*cobra.Command, []string) error {
			to, err := a.target()
			if err != nil {
				return err
			}
			user, err := api.CredsUser(to.Creds)
			if err != nil {
				return err
			}
			creds, err := filepath.Abs(to.Creds)
			if err != nil {
				return fmt.Errorf("find credentials: %w", err)
			}
			var trust string
			if to.CA != "" {
				ca, err := filepath.Abs(to.CA)
				if err != nil {
					return fmt.Errorf("find authorities: %w", err)
				}
				trust = " --tlsca " + ca
			}
			_, err = fmt.Fprint(a.Out, strings.NewReplacer("SERVER", to.Server, "CREDS", creds, "TRUST", trust, "PREFIX", subjects.Inbox(user), "REQUEST", subjects.API(user, "vm", "get"),
				"SCHEMA", subjects.API(user, string(api.KindSchema), "get"), "EVENTS", subjects.EventAll, "DESIRED", subjects.DesiredBucket("HOST-ID"),
				"OBSERVED", subjects.ObservedBucket, "JOURNAL", subjects.JournalStream, "HISTORY", subjects.HistoryStream, "HEAD", subjects.HistorySubject("HOST-ID", subjects.HeadKey), "RESOURCES", subjects.ResourcesBucket).Replace(`# once: a context of the nats CLI
nats context add shoal --server SERVER --creds CREDSTRUST --inbox-prefix PREFIX --select

nats micro info shoal                          # every operation and its subject
nats req REQUEST '{"id":"NAME"}'               # the same as shoalctl vm get NAME
nats req SCHEMA '{"kind":"vm","verb":"create"}'   # the JSON schema of an operation
nats kv get RESOURCES vm.VM-ID --raw            # a resource as it is kept
nats kv get DESIRED head --raw                  # what a host must be: its head, then its items
nats kv get OBSERVED HOST-ID.host.self --raw    # what a host reports
nats stream get JOURNAL --last-for shoal.journal   # the newest transactions, and refused calls; or: JOURNAL SEQ, by audit list -o wide
nats stream get HISTORY --last-for HEAD         # what a host had to be and reported, change by change; or: HISTORY SEQ, by history host
nats sub EVENTS                                # hints of changes, as they happen
`))
			return err
		},
	}
}
