package cli

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"shoal/controller/api"
	"shoal/controller/resource"
)

// exportCommand writes all calls that a filter selects, as they come.
func (a *App) exportCommand() *cobra.Command {
	op := a.registry.Find(api.KindAudit, "list")
	cmd := a.operation(op)
	cmd.Use, cmd.Aliases = "export", nil
	cmd.Short = "Write calls as CSV or as lines of JSON"
	cmd.Long = "Write every call that the filters select, the newest first, as they come from the controller: CSV, or with -o json one JSON object a line, with everything that " +
		"audit list shows of it."
	cmd.Example = "  shoalctl audit export --since -30d > audit.csv\n  shoalctl audit export --caller ann -o json | jq -c 'select(.outcome==\"refused\")'"
	c := &call{op: op, params: op.NewParams()}
	cmd.ResetFlags()
	cmd.Flags().StringVar(&c.at, "at", a.at(), "leave out what came later; see audit list")
	for _, p := range op.Params {
		if p.Name == "limit" || p.Name == "offset" || p.Name == "cursor" || p.Name == "count" {
			continue
		}
		f := cmd.Flags().VarPF(&flagValue{p, c.params}, p.Flag, p.Short, p.Help)
		if p.Bool {
			f.NoOptDefVal = "true"
		}
	}
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.export(cmd.Context(), c) }
	return cmd
}

func (a *App) export(ctx context.Context, c *call) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	want := map[string]any{}
	if err := json.Unmarshal(body, &want); err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	want["limit"] = 0
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	w := csv.NewWriter(a.Out)
	if a.output != "json" && !a.noHeaders {
		var heads []string
		for _, col := range c.op.Columns {
			heads = append(heads, col.Title)
		}
		if err := w.Write(heads); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	for {
		b, err := json.Marshal(want)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		short, cancel := context.WithTimeout(ctx, max(a.timeout, 30*time.Second))
		raw, err := client.Call(short, c.op, b)
		cancel()
		if err != nil {
			return err
		}
		var page api.Page
		if err := json.Unmarshal(raw, &page); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		for _, item := range page.Items {
			if err := a.exportOne(w, c.op, item); err != nil {
				return err
			}
		}
		if w.Flush(); w.Error() != nil {
			return fmt.Errorf("write: %w", w.Error())
		}
		if page.Cursor == "" {
			return nil
		}
		want["cursor"] = page.Cursor
	}
}

func (a *App) exportOne(w *csv.Writer, op *api.Operation, item json.RawMessage) error {
	if a.output == "json" {
		if _, err := fmt.Fprintln(a.Out, string(item)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		return nil
	}
	v, err := decode(item)
	if err != nil {
		return err
	}
	var row []string
	for _, col := range op.Columns {
		row = append(row, cell(at(v, col.Path), "", time.Time{}))
	}
	if err := w.Write(row); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// replayCommand looks at the past.
func (a *App) replayCommand() *cobra.Command {
	var moment string
	list := a.operation(a.registry.Find(api.KindReplay, "list"))
	cmd := &cobra.Command{
		Use: "replay [--at MOMENT] [COMMAND...]", Short: "Look at the past",
		Long: "Open a read-only view of the whole system at a moment: every get, list and query works on it. With a command that one is run on the view; without, the view is described, " +
			"and how to make a shell look at it. Every reading command also takes --at itself.\n\n" +
			"With --host the stream of changes of a host is printed: everything it had to be, and everything its agent reported, in order.",
		Example: "  shoalctl replay --at 2026-11-24T09:00:00Z vm list --where host.name=h1\n  shoalctl replay --at -2h\n  shoalctl replay --host h1 --from -2h --to -1h\n" +
			"  shoalctl replay diff --from -2h --to -1h\n  shoalctl replay document h1 --at -2h -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case cmd.Flags().Changed("host"):
				return list.RunE(cmd, args)
			case moment == "":
				return usage(errors.New("--at or --host must be given: shoalctl replay --at -2h vm list, or shoalctl replay --host h1"))
			case len(args) > 0:
				return a.replayed(cmd.Context(), moment, args)
			}
			return a.describe(cmd.Context(), moment)
		},
	}
	cmd.Flags().AddFlagSet(list.Flags())
	cmd.Flags().Lookup("host").Usage = "host whose stream of changes to show, by id or name; also one that is gone"
	cmd.Flags().Lookup("at").Value = &textValue{&moment}
	cmd.Flags().SetInterspersed(false)
	diff := a.operation(a.registry.Find(api.KindReplay, "query"))
	diff.Use, diff.Aliases = "diff", []string{"query"}
	document := a.operation(a.registry.Find(api.KindReplay, "get"))
	document.Use, document.Aliases = "document HOST", []string{"get"}
	cmd.AddCommand(diff, document, a.operation(a.registry.Find(api.KindReplay, "list")))
	return cmd
}

// textValue is a flag's text.
type textValue struct{ s *string }

func (v *textValue) String() string {
	if v.s == nil {
		return ""
	}
	return *v.s
}
func (v *textValue) Type() string       { return "moment" }
func (v *textValue) Set(s string) error { *v.s = s; return nil }

// replayed runs a command line on the view of a moment.
func (a *App) replayed(ctx context.Context, moment string, args []string) error {
	past := *a
	past.moment = moment
	root := past.Command() //nolint:contextcheck // completion gets the command's own
	// What was said of the installation and of the output before the command holds for it.
	root.SetArgs(args)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	for name, value := range map[string]string{"server": a.server, "creds": a.creds, "context": a.contextName, "output": a.output, "timeout": a.timeout.String()} {
		if err := root.PersistentFlags().Set(name, value); err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
	}
	past.noHeaders, past.quiet = a.noHeaders, a.quiet
	return root.ExecuteContext(ctx)
}

// describe tells what there was at a moment.
func (a *App) describe(ctx context.Context, moment string) error {
	client, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	short, cancel := context.WithTimeout(ctx, max(a.timeout, 30*time.Second))
	defer cancel()
	body, err := json.Marshal(api.Past{At: moment})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	raw, err := client.Call(short, a.registry.Find(api.KindSystem, "get"), body)
	if err != nil {
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		return a.printValue(raw)
	}
	var s struct {
		At        time.Time
		Seq       uint64
		Resources map[resource.Kind]int
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "at %s, message %d of the journal:", s.At.Format(time.RFC3339), s.Seq)
	for _, k := range resource.Kinds() {
		if n := s.Resources[k]; n > 0 {
			fmt.Fprintf(&b, " %d %s,", n, k)
		}
	}
	text := strings.TrimSuffix(strings.TrimSuffix(b.String(), ","), ":")
	_, err = fmt.Fprintf(a.Out, "%s\nto look around there: export SHOAL_AT=%s\n", text, s.At.Format(time.RFC3339Nano))
	return err
}

// printDifference shows how two moments differ.
func (a *App) printDifference(raw json.RawMessage) error {
	var d struct {
		FromSeq   uint64 `json:"from_seq"`
		ToSeq     uint64 `json:"to_seq"`
		Resources []struct {
			Kind   resource.Kind
			ID     string
			Name   string
			Change string
			Fields []struct {
				Field    string
				Old, New json.RawMessage
			}
		}
		Documents json.RawMessage
		Omitted   int
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "from message %d to %d of the journal:\n", d.FromSeq, d.ToSeq)
	for _, r := range d.Resources {
		sign := map[string]string{"created": "+", "modified": "~", "deleted": "-"}[r.Change]
		fmt.Fprintf(&b, "%s %s %s %s\n", sign, r.Kind, cell(r.Name, "", time.Time{}), r.ID)
		if r.Change != "modified" {
			continue
		}
		for _, f := range r.Fields {
			fmt.Fprintf(&b, "    %s: %s -> %s\n", f.Field, short(f.Old), short(f.New))
		}
	}
	if err := printDocuments(&b, d.Documents); err != nil {
		return err
	}
	if d.Omitted > 0 {
		fmt.Fprintf(&b, "%d more did not fit: choose moments that are closer to each other\n", d.Omitted)
	}
	_, err := fmt.Fprint(a.Out, b.String())
	return err
}

// printCall shows a call with the fields that it changed.
func (a *App) printCall(raw json.RawMessage) error {
	var c struct {
		ID, Caller, From, Op, Result string
		Seq                          uint64
		At                           time.Time
		TookMS                       float64 `json:"took_ms"`
		Params, Reply                json.RawMessage
		On                           []struct {
			Kind             resource.Kind
			ID, Name, Change string
			Fields           []struct {
				Field    string
				Old, New json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "request  %s\nop       %s\ncaller   %s", c.ID, c.Op, c.Caller)
	if c.From != "" {
		fmt.Fprintf(&b, " from %s", c.From)
	}
	fmt.Fprintf(&b, "\ntime     %s", c.At.Format(time.RFC3339Nano))
	if c.TookMS > 0 {
		fmt.Fprintf(&b, ", took %.1f ms", c.TookMS)
	}
	fmt.Fprintf(&b, "\njournal  message %d\nresult   %s\n", c.Seq, cell(c.Result, "", time.Time{}))
	if len(c.Params) > 0 {
		fmt.Fprintf(&b, "params   %s\n", cell(string(c.Params), "", time.Time{}))
	}
	if len(c.Reply) > 0 {
		fmt.Fprintf(&b, "reply    %s\n", cell(string(c.Reply), "", time.Time{}))
	}
	for _, r := range c.On {
		fmt.Fprintf(&b, "%s %s %s %s\n", map[string]string{"created": "+", "modified": "~", "deleted": "-"}[r.Change], r.Kind, cell(r.Name, "", time.Time{}), r.ID)
		for _, f := range r.Fields {
			if r.Change == "created" {
				fmt.Fprintf(&b, "    %s: %s\n", f.Field, short(f.New))
			} else {
				fmt.Fprintf(&b, "    %s: %s -> %s\n", f.Field, short(f.Old), short(f.New))
			}
		}
	}
	_, err := fmt.Fprint(a.Out, b.String())
	return err
}
