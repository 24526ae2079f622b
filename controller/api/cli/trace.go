package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/list"

	"shoal/controller/api"
	"shoal/controller/resource"
	"shoal/controller/trace"
	"shoal/desired"
)

// told shows an answer that is no table. ok is false where it is one.
func (a *App) told(op *api.Operation, raw json.RawMessage) (ok bool, err error) {
	if a.quiet || a.output != "table" && a.output != "wide" {
		return false, nil
	}
	var text string
	switch op.Kind {
	case api.KindTrace:
		var t trace.Trace
		if err := json.Unmarshal(raw, &t); err != nil {
			return true, fmt.Errorf("read answer: %w", err)
		}
		text = traceTree(&t, a.output == "wide")
	case api.KindWhy:
		var vm trace.VM
		var item trace.Item
		if err := json.Unmarshal(raw, &vm); err != nil {
			return true, fmt.Errorf("read answer: %w", err)
		}
		if vm.VMID != "" {
			text = whyVM(&vm)
			break
		}
		if err := json.Unmarshal(raw, &item); err != nil {
			return true, fmt.Errorf("read answer: %w", err)
		}
		text = whyItem(&item)
	default:
		return false, nil
	}
	_, err = fmt.Fprint(a.Out, text)
	return true, err
}

// tree is an indented list.
type tree struct{ list.Writer }

func newTree() tree {
	w := list.NewWriter()
	w.SetStyle(list.StyleConnectedLight)
	return tree{w}
}

func (t tree) add(format string, args ...any) { t.AppendItem(plain(fmt.Sprintf(format, args...))) }

func (t tree) under(fn func()) {
	t.Indent()
	fn()
	t.UnIndent()
}

func (t tree) String() string { return t.Render() + "\n" }

// after is a moment as the time since another one.
func after(from, at time.Time) string {
	if at.IsZero() {
		return "?"
	}
	d := at.Sub(from)
	sign := "+"
	if d < 0 {
		sign, d = "-", -d
	}
	switch {
	case d < time.Second:
		return fmt.Sprintf("%s%.1f ms", sign, float64(d.Microseconds())/1000)
	case d < 2*time.Minute:
		return fmt.Sprintf("%s%.2f s", sign, d.Seconds())
	default:
		return sign + d.Round(time.Second).String()
	}
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

func callLine(c *trace.Call) string {
	return fmt.Sprintf("%s by %s at %s, request %s, journal sequence %d", c.Op, c.Caller, clock(c.At), c.Request, c.Seq)
}

// traceTree shows a trace, with times from the call on.
func traceTree(t *trace.Trace, wide bool) string {
	w := newTree()
	w.add("%s", callLine(&t.Call))
	w.under(func() {
		if len(t.Params) > 0 {
			w.add("asked for %s", short(t.Params))
		}
		if t.Error != "" {
			w.add("refused: %s", t.Error)
			return
		}
		w.add("transaction %d, stored %s", t.Seq, after(t.At, t.Stored))
		w.under(func() { addChanges(w, t.Changes) })
		for _, h := range t.Hosts {
			w.add("host %s", h.Name)
			w.under(func() {
				for _, d := range h.Documents {
					addDocument(w, t.At, &d, wide)
				}
			})
		}
		for _, f := range t.FollowUps {
			w.add("then %s, %s decided in transaction %d", after(t.At, f.Stored), f.Caller, f.Seq)
			w.under(func() { addChanges(w, f.Changes) })
		}
		for _, task := range t.Tasks {
			line := fmt.Sprintf("task %s is %s", task.ID, task.State)
			if !task.Finished.IsZero() {
				line += " " + after(t.At, task.Finished)
			}
			if task.Error != nil {
				line += ": " + task.Error.Message
			}
			w.add("%s", line)
		}
		if t.Truncated {
			w.add("there was more than is shown")
		}
		switch {
		case t.Ended.IsZero():
			w.add("%s: not everything has ended", t.State)
		default:
			w.add("%s %s", t.State, after(t.At, t.Ended))
		}
	})
	return w.String()
}

func addChanges(w tree, changes []trace.Change) {
	for _, c := range changes {
		w.add("%s %s %s %s", c.Change, c.Kind, c.Name, c.ID)
	}
}

func addDocument(w tree, from time.Time, d *trace.Document, wide bool) {
	name := d.Ref.String()
	if d.Name != "" {
		name = fmt.Sprintf("%s %s (%s)", d.Ref.Kind, d.Name, d.Ref.ID)
	}
	line := fmt.Sprintf("%s: %s %s, %s", name, d.Change, after(from, d.Written), d.State)
	if !d.Ended.IsZero() {
		line += " " + after(from, d.Ended)
	}
	if d.WorkMS > 0 {
		line += fmt.Sprintf(", the host worked for %.1f ms", d.WorkMS)
	}
	if d.By != "" {
		line += " by request " + d.By
	}
	w.add("%s", line)
	w.under(func() {
		for _, act := range d.Actions {
			line := fmt.Sprintf("%s %s", act.Phase, after(from, act.Since))
			if act.Gone {
				line = "gone " + after(from, act.Reported)
			} else if wide {
				line += fmt.Sprintf(", told %s", after(from, act.Reported))
			}
			if act.Progress > 0 {
				line += fmt.Sprintf(", %d %%", act.Progress)
			}
			if act.Fault != nil {
				line += ": " + act.Fault.Error()
			} else if act.Phase == desired.PhaseDrifted && act.Drift != nil {
				line += ": " + act.Drift.What
			}
			w.add("%s", line)
		}
	})
}

// whyVM is the one answer first, then what it rests on.
func whyVM(v *trace.VM) string {
	w := newTree()
	w.add("VM %s is %s: %s", v.VM, v.State, v.Answer.Answer)
	w.under(func() {
		for _, b := range v.Because {
			line := b.Text
			if b.Item != (desired.Ref{}) {
				line = fmt.Sprintf("%s %s on host %s: %s", b.Item.Kind, first(b.Name, b.Item.ID), b.Host, b.Text)
			}
			if b.Phase != "" {
				line += fmt.Sprintf(" [%s since %s]", b.Phase, clock(b.Since))
			}
			w.add("%s", line)
		}
		if v.Call != nil {
			w.add("asked for by %s", callLine(v.Call))
		} else if v.Note != "" && !v.AsWanted {
			w.add("%s", v.Note)
		}
		if v.Remedy != "" {
			w.add("what to do: %s", v.Remedy)
		}
	})
	return w.String()
}

func whyItem(it *trace.Item) string {
	w := newTree()
	name := it.Ref.String()
	if it.Resource != "" {
		name = fmt.Sprintf("%s (%s %s)", it.Ref, it.ResourceKind, it.Resource)
	}
	w.add("%s on host %s: %s", name, it.Host, it.Answer)
	w.under(func() {
		if it.Wanted {
			w.add("wanted at revision %d", it.Rev)
		}
		if st := it.Status; st != nil {
			line := fmt.Sprintf("the host has acted on revision %d: %s since %s", st.Rev, st.Phase, clock(st.Since))
			if !st.Began.IsZero() {
				line += fmt.Sprintf(", taken up at %s", clock(st.Began))
			}
			w.add("%s", line)
			if st.Fault != nil {
				w.add("what to do: %s", first(st.Fault.Remedy, st.Fault.Code.Remedy()))
			}
			if st.LastDrift != nil {
				w.add("changed by others %d times, last at %s: %s", max(st.Drifts, 1), clock(st.LastDrift.At), st.LastDrift.What)
			}
		}
		switch {
		case it.Call != nil && it.Call.Caller == resource.CallerController:
			w.add("decided by the controller: %s", callLine(it.Call))
		case it.Call != nil:
			w.add("caused by %s", callLine(it.Call))
			if len(it.Call.Params) > 0 {
				w.under(func() { w.add("asked for %s", short(it.Call.Params)) })
			}
		case it.Note != "":
			w.add("%s", it.Note)
		}
	})
	return w.String()
}
