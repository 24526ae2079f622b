package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"sigs.k8s.io/yaml"

	"shoal/controller/api"
	"shoal/controller/resource"
)

// print shows the answers of one command line as --output says.
func (a *App) print(c *call, answers []json.RawMessage) error {
	switch c.op.Result {
	case api.ResultList:
		var page api.Page
		if err := json.Unmarshal(answers[0], &page); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if countOnly(c) {
			_, err := fmt.Fprintln(a.Out, page.Total)
			return err
		}
		if page.Items == nil {
			page.Items = []json.RawMessage{}
		}
		return a.printList(c.op, fieldsOf(c), page.Items)
	case api.ResultOne:
		if ok, err := a.told(c.op, answers[0]); ok {
			return err
		}
		if show := a.printer(c.op); show != nil && a.output == "table" && !a.quiet {
			for _, raw := range answers {
				if err := show(raw); err != nil {
					return err
				}
			}
			return nil
		}
		if len(answers) > 1 || a.output == "table" || a.output == "wide" || a.output == "csv" || a.quiet {
			return a.printList(c.op, nil, answers)
		}
		return a.printValue(answers[0])
	case api.ResultReply:
		if a.quiet || a.output == "table" || a.output == "wide" || a.output == "csv" {
			for _, raw := range answers {
				if err := a.printReply(c, raw); err != nil {
					return err
				}
			}
			return nil
		}
		if len(answers) == 1 {
			return a.printValue(answers[0])
		}
		return a.printValue(answers)
	}
	return nil
}

// printer shows an answer in a way of its own; nil for a table.
func (a *App) printer(op *api.Operation) func(json.RawMessage) error {
	switch {
	case op.Kind == api.KindReplay && op.Verb == "query":
		return a.printDifference
	case op.Kind == api.KindAudit && op.Verb == "get":
		return a.printCall
	default:
		return nil
	}
}

func countOnly(c *call) bool {
	var p struct{ Count bool }
	b, err := json.Marshal(c.params)
	return err == nil && json.Unmarshal(b, &p) == nil && p.Count
}

func fieldsOf(c *call) []string {
	var p struct{ Fields []string }
	b, err := json.Marshal(c.params)
	if err != nil || json.Unmarshal(b, &p) != nil {
		return nil
	}
	return p.Fields
}

func (a *App) printValue(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	if a.output == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		_, err = a.Out.Write(b)
		return err
	}
	_, err = fmt.Fprintln(a.Out, string(b))
	return err
}

// decode reads JSON without making floats of numbers.
func decode(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return v, nil
}

func (a *App) printList(op *api.Operation, fields []string, items []json.RawMessage) error {
	if a.quiet {
		for _, raw := range items {
			v, err := decode(raw)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(a.Out, cell(at(v, "id"), "", time.Now())); err != nil {
				return err
			}
		}
		return nil
	}
	if a.output == "json" || a.output == "yaml" {
		return a.printValue(items)
	}
	var columns []api.Column
	for _, f := range fields {
		columns = append(columns, api.Column{Title: strings.ToUpper(f), Path: f})
	}
	if fields == nil {
		for _, c := range op.Columns {
			if !c.Wide || a.output != "table" {
				columns = append(columns, c)
			}
		}
	}
	rows := make([][]string, len(items))
	for i, raw := range items {
		v, err := decode(raw)
		if err != nil {
			return err
		}
		for _, c := range columns {
			as := c.As
			if a.output == "csv" {
				as = "" // for programs
			}
			rows[i] = append(rows[i], cell(at(v, c.Path), as, time.Now()))
		}
	}
	heads := make([]string, len(columns))
	for i, c := range columns {
		heads[i] = c.Title
	}
	if a.output == "csv" {
		w := csv.NewWriter(a.Out)
		if !a.noHeaders {
			rows = append([][]string{heads}, rows...)
		}
		if err := w.WriteAll(rows); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	if !a.noHeaders {
		t.AppendHeader(row(heads))
	}
	for _, r := range rows {
		t.AppendRow(row(r))
	}
	for line := range strings.SplitSeq(t.Render(), "\n") {
		if len(rows) == 0 && a.noHeaders {
			break
		}
		if _, err := fmt.Fprintln(a.Out, strings.TrimRight(line, " ")); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

func row(cells []string) table.Row {
	out := make(table.Row, len(cells))
	for i, c := range cells {
		out[i] = c
	}
	return out
}

// at follows a dotted path into decoded JSON. A whole path that is a key itself wins: that is how queries give fields of
// related resources.
func at(v any, path string) any {
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	if found, ok := m[path]; ok {
		return found
	}
	head, rest, dotted := strings.Cut(path, ".")
	if !dotted {
		return nil
	}
	return at(m[head], rest)
}

// cell is a value as text.
func cell(v any, as string, now time.Time) string {
	switch x := v.(type) {
	case nil:
		return ""
	case bool:
		if x {
			return "yes"
		}
		return ""
	case json.Number:
		return number(x, as)
	case string:
		if as == "age" || as == "time" {
			if t, err := time.Parse(time.RFC3339Nano, x); err == nil {
				if as == "time" {
					return t.Local().Format("2006-01-02 15:04:05")
				}
				return age(now.Sub(t))
			}
		}
		// What users typed must not drive a terminal.
		return strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
				return '?'
			}
			return r
		}, x)
	case []any:
		var out []string
		for _, e := range x {
			out = append(out, cell(e, as, now))
		}
		return strings.Join(out, ",")
	case map[string]any:
		var out []string
		for k, e := range x {
			out = append(out, k+"="+cell(e, as, now))
		}
		slices.Sort(out)
		return strings.Join(out, ",")
	default:
		return fmt.Sprint(x)
	}
}

func number(n json.Number, as string) string {
	i, err := n.Int64()
	if err != nil {
		return n.String()
	}
	factor := int64(1)
	switch as {
	case "mib":
		factor = 1 << 20
	case "size":
	default:
		return n.String()
	}
	if i < 0 {
		return "-" + api.Size(uint64(-i*factor)).String()
	}
	return api.Size(uint64(i * factor)).String()
}

// age is a duration in its largest unit.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func (a *App) printReply(c *call, raw json.RawMessage) error {
	var r struct {
		api.Reply
		Resource  json.RawMessage   `json:"resource"`
		Resources []json.RawMessage `json:"resources"`
		Documents json.RawMessage   `json:"documents"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	all := r.Resources
	if len(all) == 0 && len(r.Resource) > 0 {
		all = []json.RawMessage{r.Resource}
	}
	var b strings.Builder
	if r.Token != "" && a.quiet {
		// It is what a script wants, and there is no other way to it.
		_, err := fmt.Fprintln(a.Out, r.Token)
		return err
	}
	done := past(c)
	if c.op.Proposes {
		all = nil // each is among those that are listed with what becomes of them
	}
	for _, one := range all {
		var m resource.Meta
		if err := json.Unmarshal(one, &m); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if a.quiet {
			fmt.Fprintln(&b, m.ID)
			continue
		}
		fmt.Fprintf(&b, "%s %s %s: %s\n", c.op.Kind, cell(m.Name, "", time.Time{}), m.ID, done)
	}
	for _, d := range r.Deleted {
		if a.quiet {
			fmt.Fprintln(&b, d.ID)
			continue
		}
		verb := string(d.Action)
		if r.DryRun {
			verb = "would " + verb
		}
		fmt.Fprintf(&b, "%s %s %s: %s\n", d.Kind, cell(d.Name, "", time.Time{}), d.ID, verb)
	}
	if r.Task != "" && len(all) == 0 && len(r.Deleted) == 0 && !a.quiet {
		fmt.Fprintf(&b, "%s %s (task %s)\n", c.op.Kind, done, r.Task)
	}
	if r.Task != "" && !c.wait && !a.quiet && len(all) > 0 {
		fmt.Fprintf(&b, "hosts are working on it: shoalctl task get %s\n", r.Task)
	}
	if r.Token != "" {
		fmt.Fprintf(&b, "On the host, with this token, which is not shown again:\n\n  shoal-agent join %s\n\n", r.Token)
	}
	if r.DryRun && !a.quiet {
		if err := printDocuments(&b, r.Documents); err != nil {
			return err
		}
	}
	if c.op.Proposes && r.DryRun && !a.quiet {
		b.WriteString("nothing was done; --yes does it\n")
	}
	_, err := fmt.Fprint(a.Out, b.String())
	return err
}

// past says what a verb has done.
func past(c *call) string {
	switch {
	case c.dryRun:
		return c.op.Verb + " would be accepted (dry run)"
	case c.op.Task && c.wait:
		return c.op.Verb + " done"
	case c.op.Task:
		return c.op.Verb + " accepted"
	default:
		return c.op.Verb + " done"
	}
}
