package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"shoal/controller/api"
	"shoal/controller/file"
	"shoal/controller/resource"
)

// App is one run of shoalctl.
type App struct {
	Out, Err io.Writer
	// Getenv looks an environment variable up.
	Getenv func(string) string
	// Version is what `shoalctl version` prints.
	Version string

	registry *api.Registry

	server, creds, ca, contextName, output string
	timeout, waitTimeout                   time.Duration
	noHeaders, quiet                       bool
	// moment is the one that shoalctl replay was opened at.
	moment string
}

// DefaultServer is where a controller with default settings listens.
const DefaultServer = "tls://127.0.0.1:4222"

// Main runs shoalctl with the process' environment and gives its exit code.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &App{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: version}
	return a.Run(ctx, args)
}

// Run executes a command line and gives its exit code.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.Command() //nolint:contextcheck // completion gets the command's own
	root.SetArgs(args)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	err := root.ExecuteContext(ctx)
	var coded codeError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &coded) && coded.err == nil:
		return coded.code
	case errors.As(err, &coded):
		a.fail(coded.err)
		return coded.code
	}
	return a.fail(err)
}

// Command is the whole tree of commands.
func (a *App) Command() *cobra.Command {
	a.registry = api.NewRegistry()
	root := &cobra.Command{
		Use:   "shoalctl",
		Short: "Control a Shoal private cloud",
		Long: "shoalctl asks the leading controller of a Shoal installation over NATS.\n\n" +
			"A command is shoalctl KIND VERB; `shoalctl KIND` lists the verbs of a kind. Resources are named by id or by a name that only one has.\n\n" + ExitCodes(),
		SilenceUsage: true, SilenceErrors: true, Version: a.Version,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkOutput() },
	}
	root.SetVersionTemplate("shoalctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	f := root.PersistentFlags()
	f.StringVarP(&a.server, "server", "s", "", "NATS server of the installation (SHOAL_SERVER; "+DefaultServer+")")
	f.StringVar(&a.creds, "creds", "", "credentials file (SHOAL_CREDS)")
	f.StringVar(&a.ca, "ca", "", "file with the certificates that the server's must be signed by (SHOAL_CA; ca.pem beside the credentials file, or the system's)")
	f.StringVar(&a.contextName, "context", "", "context to use; see shoalctl context (SHOAL_CONTEXT)")
	f.StringVarP(&a.output, "output", "o", "table", "how to print: table, wide, json, yaml, csv")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
	f.BoolVar(&a.noHeaders, "no-headers", false, "print tables without headers")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print ids only")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml", "csv"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		c, err := a.loadContexts()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return c.names(), cobra.ShellCompDirectiveNoFileComp
	})
	for _, op := range a.registry.Operations() {
		if op.Command != "" {
			a.place(root, op.Command, op, true)
		}
		switch {
		case op.Command == string(op.Kind): // its command is not made of kind and verb
		case op.Kind == api.KindHistory: // likewise: shoalctl history KIND NAME
			a.place(root, string(op.Kind), op, true)
		case op.Kind == api.KindReplay: // see replayCommand
		case op.Name() == "plan.create": // from a file, not from flags
		case op.Name() == "release.upload", op.Name() == "release.create": // see releaseCommand
		case op.Name() == "rollout.create": // its command is start
		default:
			a.place(root, api.Command(op.Kind)+" "+op.Verb, op, false)
		}
		for _, path := range op.Paths {
			a.place(root, path, op, true)
		}
	}
	for _, cmd := range root.Commands() {
		if cmd.Name() == string(api.KindAudit) {
			cmd.AddCommand(a.exportCommand())
		}
	}
	a.planCommand(root)
	agent := root.Commands()[slices.IndexFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == "agent" })]
	agent.Short = "Releases of the agent, and bringing them to hosts"
	for _, cmd := range agent.Commands() {
		if cmd.Name() == string(resource.KindRelease) {
			cmd.AddCommand(a.releaseCommand())
		}
	}
	root.AddCommand(a.replayCommand(), a.applyCommand(), a.loginCommand(), a.logoutCommand(), a.contextCommand(), a.isoCommand(), a.controllerCommand(), a.natsCommand(), a.versionCommand())
	return root
}

// place puts an operation's command into the tree, under a path such as "host token create".
func (a *App) place(root *cobra.Command, path string, op *api.Operation, also bool) {
	words := strings.Fields(path)
	parent := root
	for i, w := range words[:len(words)-1] {
		at := slices.IndexFunc(parent.Commands(), func(c *cobra.Command) bool { return c.Name() == w })
		if at < 0 {
			parent.AddCommand(group(w, "Operations on "+strings.Join(words[:i+1], " ")))
			at = slices.IndexFunc(parent.Commands(), func(c *cobra.Command) bool { return c.Name() == w })
		}
		parent = parent.Commands()[at]
	}
	cmd := a.operation(op)
	if also {
		_, args, _ := strings.Cut(cmd.Use, " ")
		cmd.Use, cmd.Aliases = strings.TrimSpace(words[len(words)-1]+" "+args), nil
		cmd.Example = strings.ReplaceAll(cmd.Example, api.Command(op.Kind)+" "+op.Verb, path)
	}
	parent.AddCommand(cmd)
}

// group is a command that only has commands.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			e := fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				e = fmt.Errorf("%w: did you mean %s?", e, strings.Join(s, ", "))
			}
			return usage(fmt.Errorf("%w (see %s --help)", e, cmd.CommandPath()))
		},
	}
}

func (a *App) checkOutput() error {
	if !slices.Contains([]string{"table", "wide", "json", "yaml", "csv"}, a.output) {
		return usage(fmt.Errorf("--output: %q is not one of table, wide, json, yaml, csv", a.output))
	}
	return nil
}

// flagValue is a parameter as a flag.
type flagValue struct {
	p      api.Param
	params any
}

func (v *flagValue) String() string   { return "" }
func (v *flagValue) Type() string     { return v.p.TypeName }
func (v *flagValue) IsBoolFlag() bool { return v.p.Bool }
func (v *flagValue) Set(s string) error {
	return v.p.SetText(v.params, s)
}

// call is one invocation of an operation.
type call struct {
	op     *api.Operation
	params any
	// many says that the first argument may be given several times.
	many                bool
	dryRun, wait, watch bool
	// yes does what is otherwise only proposed.
	yes     bool
	request string
	// at is the moment that a read is of.
	at       string
	credsOut string
	// secrets are the files of secret parameters.
	secrets map[string]*string
	flags   *pflag.FlagSet
}

func (a *App) operation(op *api.Operation) *cobra.Command {
	c := &call{op: op, params: op.NewParams()}
	args := op.Args()
	var use strings.Builder
	use.WriteString(op.Verb)
	for _, p := range args {
		name := strings.ToUpper(p.Name)
		if p.Name == "id" {
			name = "NAME"
		}
		if p.Name == "id" && op.Kind == api.KindAudit {
			name = "REQUEST"
		}
		if !p.Required {
			name = "[" + name + "]"
		}
		use.WriteString(" " + name)
	}
	c.many = len(args) == 1 && args[0].Name == "id"
	if c.many {
		use.WriteString("...")
	}
	long := op.Summary + ". " + op.Help
	if op.Class == api.Dangerous {
		long += "\n\nThis may end a guest's work or lose data."
	}
	if op.Task {
		long += "\n\nHosts bring it about after the answer; --wait waits until they have."
	}
	cmd := &cobra.Command{
		Use: use.String(), Aliases: op.Aliases, Short: op.Summary, Long: long, Example: indent(op.Example),
		Args: func(_ *cobra.Command, given []string) error { return checkArgs(c, args, given) },
		RunE: func(cmd *cobra.Command, given []string) error { return a.run(cmd.Context(), c, args, given) },
	}
	c.flags = cmd.Flags()
	public := false
	for _, p := range op.Params {
		public = public || p.Name == "public_key"
		if p.Arg > 0 {
			continue
		}
		if p.Secret {
			secretFlag(cmd, c, p)
			continue
		}
		help := p.Help
		if p.Required && p.Name != "public_key" {
			help += " (required)"
		}
		if p.List {
			help += " (may be repeated)"
		}
		f := cmd.Flags().VarPF(&flagValue{p, c.params}, p.Flag, p.Short, help)
		if p.Bool {
			f.NoOptDefVal = "true"
		}
		a.completeFlag(cmd, p)
	}
	switch {
	case op.Class == api.Read:
		cmd.Flags().StringVar(&c.at, "at", a.at(), "show how it was then: a time such as 2026-11-24T15:04:05Z, how long ago such as -2h or -1d12h, or a sequence of the journal (SHOAL_AT)")
	case op.Proposes:
		cmd.Flags().BoolVar(&c.yes, "yes", false, "do it; without it is shown what would be done")
	}
	if op.Class != api.Read {
		cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "show what would change, also on hosts, and change nothing")
		cmd.Flags().BoolVar(&c.wait, "wait", false, "wait until hosts have brought it about, and fail if they can't")
		cmd.Flags().DurationVar(&a.waitTimeout, "wait-timeout", 10*time.Minute, "how long to wait with --wait")
		cmd.Flags().StringVar(&c.request, "request", "", "id of the request: a repetition with the same id is done once")
	} else if op.Verb == "list" || op.Verb == "get" && resource.New(op.Kind) != nil {
		cmd.Flags().BoolVar(&c.watch, "watch", false, "print again whenever something changed, until interrupted")
	}
	if public {
		cmd.Flags().StringVar(&c.credsOut, "creds-out", "", "file to write the credentials of the host's agent to; must not exist")
	}
	if len(args) > 0 {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			kind := op.Kind
			if op.Kind == api.KindHistory && len(given) == 0 {
				return kindNames(prefix), cobra.ShellCompDirectiveNoFileComp
			}
			if op.Kind == api.KindHistory {
				kind = resource.Kind(given[0])
			}
			if len(given) < len(args) && args[len(given)].Ref != "" {
				kind = args[len(given)].Ref
			} else if len(given) >= len(args) && !c.many || op.Verb == "create" {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeNames(cmd.Context(), kind, prefix)
		}
	} else {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	return cmd
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

func checkArgs(c *call, args []api.Param, given []string) error {
	need := 0
	for _, p := range args {
		if p.Required {
			need++
		}
	}
	switch {
	case len(given) < need:
		return usage(fmt.Errorf("%s must be given: shoalctl %s %s %s", args[len(given)].Name, c.op.Kind, c.op.Verb, argNames(args)))
	case len(given) > len(args) && !c.many:
		return usage(fmt.Errorf("%q is one argument too many", given[len(args)]))
	}
	return nil
}

func argNames(args []api.Param) string {
	var out []string
	for _, p := range args {
		out = append(out, strings.ToUpper(p.Name))
	}
	return strings.Join(out, " ")
}

func (a *App) completeFlag(cmd *cobra.Command, p api.Param) {
	switch {
	case len(p.Enum) > 0:
		_ = cmd.RegisterFlagCompletionFunc(p.Flag, cobra.FixedCompletions(p.Enum, cobra.ShellCompDirectiveNoFileComp))
	case p.Ref != "" || len(p.Fields) > 0:
		kind := p.Ref
		for _, f := range p.Fields {
			if f.Bare {
				kind = f.Ref
			}
		}
		if kind == "" {
			return
		}
		_ = cmd.RegisterFlagCompletionFunc(p.Flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return a.completeNames(cmd.Context(), kind, prefix)
		})
	}
}

func kindNames(prefix string) []string {
	var out []string
	for _, k := range resource.Kinds() {
		if strings.HasPrefix(string(k), prefix) {
			out = append(out, string(k))
		}
	}
	return out
}

// completeNames asks the controller, but not for long: somebody waits at a prompt.
func (a *App) completeNames(ctx context.Context, kind resource.Kind, prefix string) ([]string, cobra.ShellCompDirective) { //nolint:contextcheck // cobra completes without one
	op := a.registry.Find(kind, "list")
	if op == nil || resource.New(kind) == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if ctx == nil {
		ctx = context.Background() // cobra completes without one
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client, err := a.dial(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	raw, err := client.Call(ctx, op, []byte(`{"sort":["name"],"limit":500}`))
	var page api.Page
	if err != nil || json.Unmarshal(raw, &page) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, item := range page.Items {
		var r struct{ ID, Name string }
		if json.Unmarshal(item, &r) != nil {
			continue
		}
		name := r.Name
		if kind == resource.KindTask {
			name = r.ID
		}
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
}

// dial connects as flags, environment and context say, in this order.
func (a *App) dial(ctx context.Context) (*api.Client, error) {
	to, err := a.target()
	if err != nil {
		return nil, err
	}
	client, err := api.Dial(ctx, api.ClientConfig{Server: to.Server, Creds: to.Creds, CA: to.CA, Timeout: a.timeout})
	if err != nil {
		return nil, err
	}
	a.renew(ctx, client, to)
	return client, nil
}

// target is the installation that flags, environment and context name, in this order.
func (a *App) target() (installation, error) {
	contexts, err := a.loadContexts()
	if err != nil {
		return installation{}, err
	}
	name := first(a.contextName, a.Getenv("SHOAL_CONTEXT"))
	c, ok := contexts.Contexts[first(name, contexts.Current)]
	if name != "" && !ok {
		return installation{}, usage(fmt.Errorf("--context: there is no context %q (see shoalctl context list)", name))
	}
	to := installation{
		Server: first(a.server, a.Getenv("SHOAL_SERVER"), c.Server, DefaultServer), Creds: first(a.creds, a.Getenv("SHOAL_CREDS"), c.Creds),
		CA: first(a.ca, a.Getenv("SHOAL_CA"), c.CA),
	}
	if to.CA == "" && to.Creds != "" {
		to.CA = beside(to.Creds)
	}
	if to.Creds == c.Creds {
		to.Session = c.Session
	}
	if to.Creds == "" {
		return installation{}, usage(errors.New("no credentials: log in (shoalctl login), give --creds FILE, set SHOAL_CREDS, or make a context (shoalctl context set); " +
			"the administrator's are in admin.creds in the controller's data directory"))
	}
	return to, nil
}

// beside is the file of authorities beside a credentials file; "" where there is none.
func beside(creds string) string {
	file := filepath.Join(filepath.Dir(creds), "ca.pem")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// run makes the calls of one command line.
func (a *App) run(ctx context.Context, c *call, args []api.Param, given []string) error {
	switch {
	case c.op.Class != api.Read && a.at() != "":
		return usage(fmt.Errorf("you are looking at the past (%s): nothing can be changed there; unset SHOAL_AT", a.at()))
	case c.watch && c.at != "":
		return usage(errors.New("--watch: the past does not change; leave out --at"))
	case c.op.Proposes && !c.yes:
		c.dryRun = true
	}
	var keys *hostKey
	if f := c.flags.Lookup("creds-out"); f != nil && !c.dryRun {
		var err error
		if keys, err = a.prepareKey(c); err != nil {
			return err
		}
		defer keys.discard()
	} else if f != nil {
		if err := a.dryKey(c); err != nil {
			return err
		}
	}
	if err := a.fillSecrets(c); err != nil {
		return err
	}
	for _, p := range c.op.Params {
		if p.Required && p.Arg == 0 && !p.IsSet(c.params) {
			return usage(fmt.Errorf("--%s must be given: %s", p.Flag, p.Help))
		}
	}
	targets := [][]string{given}
	if c.many {
		targets = nil
		for _, g := range given {
			targets = append(targets, []string{g})
		}
	}
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if c.watch {
		return a.watch(ctx, client, c, args, targets)
	}
	err = a.once(ctx, client, c, args, targets, keys)
	// A secret that turns out to be needed, such as one's present password, is asked for.
	e, ok := errors.AsType[*resource.Error](err)
	if !ok || !interactive() {
		return err
	}
	for _, p := range c.op.Params {
		if p.Secret && p.Name == e.Field && !p.IsSet(c.params) {
			secret, askErr := a.ask(p.Help)
			if askErr != nil {
				return askErr
			}
			if setErr := p.SetText(c.params, secret); setErr != nil {
				return setErr
			}
			return a.once(ctx, client, c, args, targets, keys)
		}
	}
	return err
}

func (a *App) once(ctx context.Context, client *api.Client, c *call, args []api.Param, targets [][]string, keys *hostKey) error {
	var answers []json.RawMessage
	var failed []error
	for _, target := range targets {
		for i, text := range target {
			if err := args[i].SetText(c.params, text); err != nil {
				return err
			}
		}
		answer, err := a.call(ctx, client, c, keys)
		if err != nil {
			if len(targets) == 1 {
				return err
			}
			failed = append(failed, err)
			continue
		}
		answers = append(answers, answer)
	}
	if len(answers) > 0 {
		if err := a.print(c, answers); err != nil {
			return err
		}
	}
	for _, err := range failed[:max(len(failed)-1, 0)] {
		a.fail(err)
	}
	if len(failed) > 0 {
		return failed[len(failed)-1]
	}
	return nil
}

// call makes one request, and waits for its task if asked to.
func (a *App) call(ctx context.Context, client *api.Client, c *call, keys *hostKey) (json.RawMessage, error) {
	body, err := c.body()
	if err != nil {
		return nil, err
	}
	if c.op.Result == api.ResultList {
		return a.list(ctx, client, c, body)
	}
	actx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	raw, err := client.Call(actx, c.op, body)
	if err != nil || c.op.Class == api.Read {
		return raw, err
	}
	var reply api.Reply
	if err := json.Unmarshal(raw, &reply); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if keys != nil {
		if err := keys.write(reply.JWT); err != nil {
			return nil, err
		}
		a.tell("credentials are in %s; bring them and the controller's ca.pem to the host and start: shoal-agent --nats-url %s --creds %s --ca ca.pem --data /var/lib/shoal-agent\n",
			c.credsOut, first(a.server, a.Getenv("SHOAL_SERVER"), "tls://CONTROLLER:4222"), filepath.Base(c.credsOut))
	}
	if c.wait && !c.dryRun && reply.Task != "" {
		if err := a.wait(ctx, client, reply); err != nil {
			return nil, err
		}
		return a.refresh(ctx, client, c.op, reply, raw), nil
	}
	return raw, nil
}

// body is the request's JSON.
func (c *call) body() ([]byte, error) {
	b, err := json.Marshal(c.params)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	if c.op.Class == api.Read && c.at == "" {
		return b, nil
	}
	common, err := json.Marshal(api.Past{At: c.at})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	if c.op.Class == api.Read {
		return merge(b, common), nil
	}
	common, err = json.Marshal(api.Common{Request: first(c.request, uuid.NewString()), DryRun: c.dryRun})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return merge(b, common), nil
}

// merge makes one of two JSON objects.
func merge(a, b []byte) []byte {
	if string(a) == "{}" {
		return b
	}
	return slices.Concat(a[:len(a)-1], []byte(","), b[1:])
}

// at is the moment that all reads are of, where one is set; "" for now.
func (a *App) at() string { return first(a.moment, a.Getenv("SHOAL_AT")) }

// list follows the pages of an answer.
func (a *App) list(ctx context.Context, client *api.Client, c *call, body []byte) (json.RawMessage, error) {
	var all api.Page
	want := map[string]any{}
	if err := json.Unmarshal(body, &want); err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	limit, limited := want["limit"].(float64)
	for {
		b, err := json.Marshal(want)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		actx, cancel := context.WithTimeout(ctx, a.timeout)
		raw, err := client.Call(actx, c.op, b)
		cancel()
		if err != nil {
			return nil, err
		}
		var page api.Page
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		all.Items, all.Total, all.Seq = append(all.Items, page.Items...), page.Total, page.Seq
		if page.Next == 0 && page.Cursor == "" || limit > 0 && len(all.Items) >= int(limit) {
			if !limited && len(all.Items) == defaultLimit && all.Total != len(all.Items) && !countOnly(c) {
				a.tell("the first %d are shown%s; --limit 0 shows all\n", len(all.Items), ofTotal(all.Total))
			}
			out, err := json.Marshal(all)
			if err != nil {
				return nil, fmt.Errorf("encode list: %w", err)
			}
			return out, nil
		}
		if page.Cursor != "" {
			want["cursor"] = page.Cursor
			delete(want, "offset")
		} else {
			want["offset"] = page.Next
		}
		if limit > 0 {
			want["limit"] = int(limit) - len(all.Items)
		}
	}
}

// defaultLimit is how many calls are shown where no limit is given.
const defaultLimit = 100

func ofTotal(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" of %d", n)
}

// refresh shows the resource as it is after the wait.
func (a *App) refresh(ctx context.Context, client *api.Client, op *api.Operation, reply api.Reply, raw json.RawMessage) json.RawMessage {
	res, ok := reply.Resource.(map[string]any)
	get := a.registry.Find(op.Kind, "get")
	if !ok || get == nil {
		return raw
	}
	id, _ := res["id"].(string)
	body, err := json.Marshal(map[string]string{"id": id})
	if err != nil {
		return raw
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	now, err := client.Call(ctx, get, body)
	if err != nil {
		return raw // it is gone, which may be what was wanted
	}
	var whole map[string]json.RawMessage
	if json.Unmarshal(raw, &whole) != nil {
		return raw
	}
	whole["resource"] = now
	out, err := json.Marshal(whole)
	if err != nil {
		return raw
	}
	return out
}

func (a *App) watch(ctx context.Context, client *api.Client, c *call, args []api.Param, targets [][]string) error {
	hint := make(chan struct{}, 1)
	stop, err := client.Hints(c.op.Kind, "*", func() {
		select {
		case hint <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	var before string
	out := a.Out
	defer func() { a.Out = out }()
	for {
		var b bytes.Buffer
		a.Out = &b
		if err := a.once(ctx, client, c, args, targets, nil); err != nil {
			return err
		}
		if to, err := a.target(); err == nil {
			a.renew(ctx, client, to)
		}
		if b.String() != before {
			before = b.String()
			if _, err := io.WriteString(out, before); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		timer := time.NewTimer(2 * time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-hint:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// contexts is the file of contexts.
type contexts struct {
	Current  string                  `json:"current,omitempty"`
	Contexts map[string]installation `json:"contexts"`
}

// installation is one installation as somebody uses it.
type installation struct {
	Server string `json:"server"`
	Creds  string `json:"creds"`
	CA     string `json:"ca,omitempty"`
	// Account, User and Session are those of a login.
	Account string `json:"account,omitempty"`
	User    string `json:"user,omitempty"`
	Session string `json:"session,omitempty"`
}

func (c contexts) names() []string {
	out := make([]string, 0, len(c.Contexts))
	for n := range c.Contexts {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (a *App) contextsFile() string {
	dir := a.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		dir = filepath.Join(a.Getenv("HOME"), ".config")
	}
	return filepath.Join(dir, "shoal", "contexts.yaml")
}

func (a *App) loadContexts() (contexts, error) {
	c := contexts{Contexts: map[string]installation{}}
	b, err := os.ReadFile(a.contextsFile())
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read contexts: %w", err)
	}
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return c, fmt.Errorf("read contexts %s: %w", a.contextsFile(), err)
	}
	if c.Contexts == nil {
		c.Contexts = map[string]installation{}
	}
	return c, nil
}

func (a *App) saveContexts(c contexts) error {
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	path := a.contextsFile()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	if err := file.Write(path, 0o600, b); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	return nil
}
