package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"shoal/controller/api"
	"shoal/controller/plan"
	"shoal/controller/resource"
)

// The exit codes of shoalctl plan, which are those of other tools that plan.
const (
	planNothing = 0
	planError   = 1
	planChanges = 2
)

// codeError ends a command with an exit code; err is nil where there is nothing to tell.
type codeError struct {
	code int
	err  error
}

func (c codeError) Error() string {
	if c.err == nil {
		return fmt.Sprintf("exit code %d", c.code)
	}
	return c.err.Error()
}

func (c codeError) Unwrap() error { return c.err }

// changesHelp explains the file.
const changesHelp = `FILE is YAML or JSON, - for the standard input: one change, a list of them, or an object with the list under "changes". A change has the
operation under "op" and its parameters beside it or under "params", as shoalctl schema get KIND VERB shows them; what a flag takes as a text may be
written as that text. Changes are made in order, in one transaction; a later one may name what an earlier one makes.

  changes:
  - op: vm.create
    name: web1
    image: debian
    offering: small
    network: net1,ip=10.1.0.20
  - op: vm.stop
    id: old1`

// planCommand adds `shoalctl plan -f FILE` to the commands of plans.
func (a *App) planCommand(root *cobra.Command) {
	commands := root.Commands()
	group := commands[slices.IndexFunc(commands, func(c *cobra.Command) bool { return c.Name() == string(resource.KindPlan) })]
	var file, name, description string
	group.Use, group.Short = "plan", "Plan changes, and operations on plans"
	group.Long = "Try changes on the state as it is, show all that they would do, and keep that as a plan for a week; shoalctl apply --plan ID does just that, or refuses " +
		"because the base has moved.\n\n" + changesHelp + "\n\nExit codes of shoalctl plan -f: 0 nothing would change, 2 something would, 1 error."
	group.Example = "  shoalctl plan -f changes.yaml\n  shoalctl apply --plan ID"
	group.Flags().StringVarP(&file, "file", "f", "", "file with the changes")
	group.Flags().StringVar(&name, "name", "", "name of the plan")
	group.Flags().StringVar(&description, "description", "", "free text, up to 2048 bytes")
	help := group.RunE
	group.RunE = func(cmd *cobra.Command, args []string) error {
		if file == "" {
			return help(cmd, args)
		}
		if len(args) > 0 {
			return codeError{planError, usage(fmt.Errorf("%q is one argument too many", args[0]))}
		}
		raw, p, err := a.makePlan(cmd.Context(), file, name, description)
		if err == nil {
			err = a.printPlan(raw, p)
		}
		switch {
		case err != nil:
			return codeError{planError, err}
		case len(p.Touched) > 0:
			return codeError{planChanges, nil}
		}
		return nil
	}
}

// applyCommand is `shoalctl apply`.
func (a *App) applyCommand() *cobra.Command {
	var file, id string
	var noWait, dryRun bool
	cmd := &cobra.Command{
		Use: "apply --plan ID | -f FILE", Short: "Do what a plan or a file of changes says",
		Long: "With --plan just what the plan shows is done, or nothing: it is refused where something that the plan changes has changed since, or where the outcome would " +
			"be another one. With -f the changes are planned and applied at once. It then waits until all hosts have brought it about, and fails if one can't.\n\n" + changesHelp,
		Example: "  shoalctl apply --plan ID\n  shoalctl apply -f changes.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (file == "") == (id == "") {
				return usage(errors.New("give either --plan ID or -f FILE"))
			}
			return a.apply(cmd.Context(), file, id, !noWait, dryRun)
		},
	}
	cmd.Flags().StringVar(&id, "plan", "", "plan to apply, by id or unique name")
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with changes to plan and apply at once")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until hosts have brought it about")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, also on hosts, and change nothing")
	cmd.Flags().DurationVar(&a.waitTimeout, "wait-timeout", 10*time.Minute, "how long to wait for hosts")
	_ = cmd.RegisterFlagCompletionFunc("plan", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeNames(cmd.Context(), resource.KindPlan, prefix)
	})
	return cmd
}

// applyTries is how often a file of changes is planned anew because its base has moved before it was applied.
const applyTries = 5

// planCall makes one call of an operation of plans.
func (a *App) planCall(ctx context.Context, client *api.Client, verb string, params map[string]any) (json.RawMessage, error) {
	params["request"] = uuid.NewString()
	body, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return client.Call(ctx, a.registry.Find(resource.KindPlan, verb), body)
}

// planReply is the answer to plan.create.
type planReply struct {
	Resource  resource.Plan   `json:"resource"`
	Documents []plan.HostDiff `json:"documents"`
}

func (a *App) makePlan(ctx context.Context, file, name, description string) (json.RawMessage, resource.Plan, error) {
	var p resource.Plan
	changes, err := a.readChanges(file)
	if err != nil {
		return nil, p, err
	}
	client, err := a.dial(ctx)
	if err != nil {
		return nil, p, err
	}
	defer client.Close()
	raw, err := a.planCall(ctx, client, "create", map[string]any{"name": name, "description": description, "changes": changes})
	if err != nil {
		return nil, p, err
	}
	var reply planReply
	if err := json.Unmarshal(raw, &reply); err != nil {
		return nil, p, fmt.Errorf("read answer: %w", err)
	}
	return raw, reply.Resource, nil
}

func (a *App) apply(ctx context.Context, file, id string, wait, dryRun bool) error {
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	var raw json.RawMessage
	for try := 1; ; try++ {
		if file != "" {
			_, p, err := a.makePlan(ctx, file, "", "")
			if err != nil {
				return err
			}
			if p.ID == "" {
				a.tell("nothing to change\n")
				return nil
			}
			id = p.ID
		}
		raw, err = a.planCall(ctx, client, "apply", map[string]any{"id": id, "dry_run": dryRun})
		// Nobody has seen the plan of a file: what hosts report meanwhile is no reason to refuse it.
		var e *resource.Error
		if file != "" && try < applyTries && errors.As(err, &e) && e.Code == resource.CodeConflict && e.Field == "plan" {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	var reply api.Reply
	if err := json.Unmarshal(raw, &reply); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if wait && !dryRun && reply.Task != "" {
		if err := a.wait(ctx, client, reply); err != nil {
			return err
		}
	}
	if a.output == "json" || a.output == "yaml" {
		return a.printValue(raw)
	}
	return a.printApplied(ctx, client, id, raw, wait && !dryRun)
}

// printApplied shows what applying a plan has changed.
func (a *App) printApplied(ctx context.Context, client *api.Client, id string, raw json.RawMessage, waited bool) error {
	var reply struct {
		Request   string          `json:"request"`
		DryRun    bool            `json:"dry_run"`
		Documents json.RawMessage `json:"documents"`
	}
	if err := json.Unmarshal(raw, &reply); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	body, err := json.Marshal(map[string]string{"id": id})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	got, err := client.Call(ctx, a.registry.Find(resource.KindPlan, "get"), body)
	if err != nil {
		return err
	}
	var p resource.Plan
	if err := json.Unmarshal(got, &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var b strings.Builder
	for _, t := range p.Touched {
		if a.quiet {
			fmt.Fprintln(&b, t.ID)
			continue
		}
		fmt.Fprintln(&b, touchedLine(t))
	}
	switch {
	case a.quiet:
	case reply.DryRun:
		b.WriteString("it would be accepted (dry run)\n")
		if err := printDocuments(&b, reply.Documents); err != nil {
			return err
		}
	case waited:
		fmt.Fprintf(&b, "applied by request %s, and hosts have brought it about\n", reply.Request)
	default:
		fmt.Fprintf(&b, "applied by request %s; hosts are working on it\n", reply.Request)
	}
	_, err = fmt.Fprint(a.Out, b.String())
	return err
}

// touchedLine is a resource of a plan in a line.
func touchedLine(t resource.PlannedResource) string {
	sign := map[resource.PlannedChange]string{resource.PlannedCreate: "+", resource.PlannedUpdate: "~", resource.PlannedDelete: "-"}[t.Change]
	return fmt.Sprintf("%s %s %s %s", sign, t.Kind, plain(t.Name), t.ID)
}

// changed is a change of a file as the API takes it.
type changed struct {
	Op     string                     `json:"op"`
	Params map[string]json.RawMessage `json:"params,omitempty"`
}

// readChanges reads a file of changes.
func (a *App) readChanges(file string) ([]changed, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(os.Stdin)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, usage(fmt.Errorf("read changes: %w", err))
	}
	raw, err := yaml.YAMLToJSONStrict(b)
	if err != nil {
		return nil, usage(fmt.Errorf("read changes in %s: %w", file, err))
	}
	list, err := changeList(raw)
	if err != nil {
		return nil, usage(fmt.Errorf("read changes in %s: %w", file, err))
	}
	out := make([]changed, len(list))
	for i, fields := range list {
		if out[i], err = a.change(fields); err != nil {
			return nil, usage(fmt.Errorf("changes[%d] in %s: %w", i, file, err))
		}
	}
	return out, nil
}

// changeList finds the changes in a file's JSON.
func changeList(raw []byte) ([]map[string]json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '{' {
		var one map[string]json.RawMessage
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, err
		}
		if _, ok := one["op"]; ok {
			return []map[string]json.RawMessage{one}, nil
		}
		for name := range one {
			if name != "changes" {
				return nil, fmt.Errorf("%q is not known beside changes", name)
			}
		}
		raw = one["changes"]
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("it is neither a change, nor a list of changes, nor an object with the list under changes")
	}
	if len(list) == 0 {
		return nil, errors.New("it has no changes")
	}
	return list, nil
}

// change turns the fields of a change into a call: parameters beside the operation, and texts as flags take them.
func (a *App) change(fields map[string]json.RawMessage) (changed, error) {
	c := changed{Params: map[string]json.RawMessage{}}
	if err := json.Unmarshal(fields["op"], &c.Op); err != nil || c.Op == "" {
		return c, errors.New("op must be given: KIND.VERB, such as vm.create")
	}
	for name, raw := range fields {
		switch name {
		case "op":
		case "params":
			var params map[string]json.RawMessage
			if err := json.Unmarshal(raw, &params); err != nil {
				return c, errors.New("params must be an object")
			}
			for n, v := range params {
				if _, twice := fields[n]; twice {
					return c, fmt.Errorf("%s is given beside params and in it", n)
				}
				c.Params[n] = v
			}
		default:
			c.Params[name] = raw
		}
	}
	kind, verb, _ := strings.Cut(c.Op, ".")
	op := a.registry.Find(resource.Kind(kind), verb)
	if op == nil {
		return c, nil // the controller says so, and may know more operations
	}
	for _, p := range op.Params {
		// Who knows the flags may write them.
		if flag := strings.ReplaceAll(p.Flag, "-", "_"); flag != p.Name && c.Params[flag] != nil && c.Params[p.Name] == nil {
			c.Params[p.Name] = c.Params[flag]
			delete(c.Params, flag)
		}
		raw, ok := c.Params[p.Name]
		if !ok || len(p.Fields) == 0 && !p.List {
			continue
		}
		v, err := fromTexts(op, p, raw)
		if err != nil {
			return c, err
		}
		c.Params[p.Name] = v
	}
	return c, nil
}

// fromTexts reads texts where a parameter has several fields or values, as its flag does; anything else stays as it is.
func fromTexts(op *api.Operation, p api.Param, raw json.RawMessage) (json.RawMessage, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Name, err)
	}
	var texts []string
	list, isList := v.([]any)
	if !isList {
		list = []any{v}
	}
	for _, e := range list {
		text, ok := e.(string)
		if !ok || isList && len(p.Fields) == 0 {
			return raw, nil
		}
		texts = append(texts, text)
	}
	params := op.NewParams()
	for _, text := range texts {
		if err := p.SetText(params, text); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", p.Name, err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("encode %s: %w", p.Name, err)
	}
	return all[p.Name], nil
}

// printPlan shows a plan: what would happen to guests and data first and loud, then resources, places and documents.
func (a *App) printPlan(raw json.RawMessage, p resource.Plan) error {
	if a.output == "json" || a.output == "yaml" {
		return a.printValue(raw)
	}
	if a.quiet {
		if p.ID != "" {
			_, err := fmt.Fprintln(a.Out, p.ID)
			return err
		}
		return nil
	}
	var reply planReply
	if err := json.Unmarshal(raw, &reply); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var b strings.Builder
	if len(p.Touched) == 0 {
		b.WriteString("nothing would change\n")
	}
	for _, h := range p.Hosts {
		for _, effect := range []struct {
			what  string
			names []string
		}{{"!! STOPS VM", h.Stops}, {"!! RESTARTS VM", h.Restarts}, {"!! ERASES volume", h.Erases}} {
			for _, n := range effect.names {
				fmt.Fprintf(&b, "%s %s on host %s\n", effect.what, plain(n), plain(h.Host))
			}
		}
	}
	for _, t := range p.Touched {
		fmt.Fprintln(&b, touchedLine(t))
	}
	for _, pl := range p.Placements {
		fmt.Fprintf(&b, "VM %s goes to host %s: %s\n", plain(pl.VM), plain(pl.Host), pl.Why)
		for _, o := range pl.Others {
			fmt.Fprintf(&b, "    %s: %s\n", plain(o.Name), o.Why)
		}
	}
	if len(p.Touched) > 0 {
		documents, err := json.Marshal(reply.Documents)
		if err != nil {
			return fmt.Errorf("encode documents: %w", err)
		}
		if err := printDocuments(&b, documents); err != nil {
			return err
		}
	}
	if p.ID != "" {
		fmt.Fprintf(&b, "apply it with: shoalctl apply --plan %s\n", p.ID)
	}
	_, err := fmt.Fprint(a.Out, b.String())
	return err
}

// plain is a text that drives no terminal.
func plain(s string) string { return cell(s, "", time.Time{}) }
