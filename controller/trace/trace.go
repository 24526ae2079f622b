package trace

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// Calls is where requests are found; *history.History is one.
type Calls interface {
	// Find gives the newest entry of a request that changed something, otherwise its newest; journal.ErrNoRequest where there is none.
	Find(ctx context.Context, request string) (journal.Found, error)
}

// Journal is where decisions and records are found; *journal.Journal is one.
type Journal interface {
	// After gives the entries of the messages that follow one.
	After(ctx context.Context, seq uint64, limit int, fn func(journal.Found) (more bool)) error
	// Recorded gives what HISTORY has under some subjects since a moment.
	Recorded(ctx context.Context, since time.Time, filters []string, fn func(journal.Recorded) (more bool)) error
}

// Tracer follows requests.
type Tracer struct {
	journal Journal
	calls   Calls
}

// New makes a tracer.
func New(j Journal, c Calls) *Tracer { return &Tracer{j, c} }

// Limits of one trace.
const (
	// maxRecords is how many records are looked at, maxDocuments how many are shown.
	maxRecords   = 50_000
	maxDocuments = 1000
	// wideWindow is how long after a transaction documents are looked for under all subjects, where what it changed does not say
	// under which.
	wideWindow = 10 * time.Second
	// clockSlack is how far HISTORY's clock may be behind the journal's: they are of the same servers.
	clockSlack = time.Second
	// settleTime is how long it is looked for more after everything has ended.
	settleTime = 5 * time.Second
	// followUps is how many messages of the journal after the transaction are looked through for decisions that followed from it.
	followUps = 500
)

// State is how something that a request caused stands.
type State string

// The states.
const (
	Done       State = "done"       // as wanted
	Working    State = "working"    // not yet
	Failed     State = "failed"     // refused by the host
	Held       State = "held"       // changed by others since and left so by policy
	Superseded State = "superseded" // a later request changed it before the host had done it
)

// Call is who asked for what.
type Call struct {
	Request string          `json:"request"`
	Caller  string          `json:"caller"`
	Op      string          `json:"op"`
	Params  json.RawMessage `json:"params,omitempty"`
	// At is the transaction's time, Seq its journal sequence, Stored when the journal had it.
	At     time.Time `json:"at"`
	Seq    uint64    `json:"seq"`
	Stored time.Time `json:"stored"`
}

// Trace is a call and all that it caused.
type Trace struct {
	Call
	// Error says why it was refused, where the journal has that.
	Error   string   `json:"error,omitempty"`
	Changes []Change `json:"changes,omitempty"`
	Hosts   []Host   `json:"hosts,omitempty"`
	Tasks   []Task   `json:"tasks,omitempty"`
	// FollowUps are decisions of the controller about what the call changed, until all had ended.
	FollowUps []FollowUp `json:"follow_ups,omitempty"`
	State     State      `json:"state"`
	// Ended is when the last of it had ended, TookMS how long after the transaction.
	Ended  time.Time `json:"ended,omitzero"`
	TookMS float64   `json:"took_ms,omitempty"`
	// Truncated says that there was more than is shown.
	Truncated bool `json:"truncated,omitempty"`
	// Note says what is not known any more.
	Note string `json:"note,omitempty"`
}

// Change is a resource that the transaction changed.
type Change struct {
	Kind   resource.Kind `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Change string        `json:"change"` // created, changed, deleted
}

// Host is what a host got and did.
type Host struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Documents []Document `json:"documents"`
}

// Document is an item of a host's document that the call changed.
type Document struct {
	Ref desired.Ref `json:"ref"`
	// Name is that of the resource that the item belongs to.
	Name   string `json:"name,omitempty"`
	Change string `json:"change"` // written, removed
	// Rev is the item's revision, Written when it was recorded for the host.
	Rev     uint64    `json:"rev,omitempty"`
	Written time.Time `json:"written"`
	Actions []Action  `json:"actions,omitempty"`
	State   State     `json:"state"`
	// Ended is when the host had ended, TookMS how long after it was written for it, WorkMS how long the host worked.
	Ended  time.Time `json:"ended,omitzero"`
	TookMS float64   `json:"took_ms,omitempty"`
	WorkMS float64   `json:"work_ms,omitempty"`
	// By is the request that superseded it.
	By string `json:"by,omitempty"`
}

// Action is what a host reported of an item.
type Action struct {
	Phase desired.Phase `json:"phase"`
	// Since is when the item entered the phase and Began when the host took it up, by the host's clock; Reported when it was told.
	Since    time.Time      `json:"since"`
	Began    time.Time      `json:"began,omitzero"`
	Reported time.Time      `json:"reported"`
	Fault    *desired.Fault `json:"fault,omitempty"`
	Progress int            `json:"progress,omitempty"`
	Drift    *desired.Drift `json:"drift,omitempty"`
	// Facts are what the host measured, with the last action.
	Facts json.RawMessage `json:"facts,omitempty"`
	// Gone says that the host has nothing left of it.
	Gone bool `json:"gone,omitempty"`
}

// Task is the record of the call's effect.
type Task struct {
	ID       string             `json:"id"`
	State    resource.TaskState `json:"state"`
	Finished time.Time          `json:"finished,omitzero"`
	Error    *resource.Error    `json:"error,omitempty"`
}

// FollowUp is a decision of the controller.
type FollowUp struct {
	Call
	Changes []Change `json:"changes"`
}

// Find finds the call with a request id.
func (t *Tracer) Find(ctx context.Context, request string) (journal.Found, error) {
	// Ids of accounts other than the administrators' end in the account's: see controller/api.
	id, account, scoped := strings.Cut(request, "@")
	if !subjects.ValidToken(id) || scoped && !subjects.ValidToken(account) {
		return journal.Found{}, resource.Invalid("request", "%q is not the id of a request", request)
	}
	found, err := t.calls.Find(ctx, request)
	if errors.Is(err, journal.ErrNoRequest) {
		e := &resource.Error{Code: resource.CodeNotFound, Field: "request", Message: fmt.Sprintf("the journal has no request %q", request)}
		return found, e.WithRemedy("see shoalctl audit list")
	}
	return found, err
}

// Trace follows a request.
func (t *Tracer) Trace(ctx context.Context, r resource.Reader, request string) (*Trace, error) {
	found, err := t.Find(ctx, request)
	if err != nil {
		return nil, err
	}
	out := &Trace{Call: callOf(found), Error: found.Error, Changes: changesOf(r, found.Changes)}
	if found.Error != "" {
		out.State = Failed
		return out, nil
	}
	c := &collector{r: r, trace: out, items: map[resource.HostItem]*Document{}, status: map[resource.HostItem]bool{}}
	narrow, wide := filters(r, found)
	since := found.Stored.Add(-clockSlack)
	if wide {
		if err := t.journal.Recorded(ctx, since, []string{subjects.HistoryAll}, func(rec journal.Recorded) bool {
			return rec.At.Before(found.Stored.Add(wideWindow)) && c.document(rec)
		}); err != nil {
			return nil, fmt.Errorf("read what was recorded: %w", err)
		}
		for it := range c.items {
			narrow = append(narrow, subjects.HistorySubject(it.Host, it.Ref.String()))
		}
		slices.Sort(narrow)
		narrow = slices.Compact(narrow)
		c.items, c.order, c.last = map[resource.HostItem]*Document{}, nil, time.Time{}
	}
	for _, chunk := range passes(narrow) {
		c.records, c.known = 0, maps.Clone(c.items)
		if err := t.journal.Recorded(ctx, since, chunk, c.take); err != nil {
			return nil, fmt.Errorf("read what was recorded: %w", err)
		}
	}
	c.finish()
	t.tasks(r, out)
	if err := t.followUps(ctx, r, found, out); err != nil {
		return nil, err
	}
	return out, nil
}

// maxFilters is how many subjects are read at once.
const maxFilters = 128

// passes splits subjects into sets that are read one after the other: the server refuses filters that overlap, and a whole host
// overlaps with an item of any.
func passes(all []string) [][]string {
	var out [][]string
	var items []string
	for _, s := range all {
		switch {
		case slices.ContainsFunc(all, func(o string) bool { return o != s && covers(o, s) }):
		case strings.HasSuffix(s, ">"):
			out = append(out, []string{s})
		default:
			items = append(items, s)
		}
	}
	return append(slices.Collect(slices.Chunk(items, maxFilters)), out...)
}

// covers reports whether a subject with wildcards matches all that another one does.
func covers(wide, narrow string) bool {
	w, n := strings.Split(wide, "."), strings.Split(narrow, ".")
	for i, token := range w {
		switch {
		case token == ">":
			return len(n) > i
		case i >= len(n):
			return false
		case token != "*" && token != n[i]:
			return false
		}
	}
	return len(w) == len(n)
}

func callOf(f journal.Found) Call {
	return Call{
		Request: f.Request.ID, Caller: f.Request.Caller, Op: f.Request.Op, Params: f.Request.Params, At: f.At, Seq: f.Seq, Stored: f.Stored,
	}
}

func changesOf(r resource.Reader, changes []journal.Change) []Change {
	out := make([]Change, 0, len(changes))
	for _, c := range changes {
		ch := Change{Kind: c.Kind, ID: c.ID, Change: "deleted"}
		if c.Value != nil {
			ch.Change = "changed"
			var m resource.Meta
			if json.Unmarshal(c.Value, &m) == nil {
				ch.Name = m.Name
				if m.Created.Equal(m.Updated) {
					ch.Change = "created"
				}
			}
		} else if res := r.Get(c.Kind, c.ID); res != nil {
			ch.Name = res.Base().Name
		}
		out = append(out, ch)
	}
	return out
}

// collector puts records together.
type collector struct {
	r       resource.Reader
	trace   *Trace
	items   map[resource.HostItem]*Document
	known   map[resource.HostItem]*Document // from an earlier pass, which has all of it
	order   []resource.HostItem
	status  map[resource.HostItem]bool // the newest record is of a document that is not of this call any more
	records int
	last    time.Time // when the newest document or action was recorded
}

// itemOf is the item that a record is about.
func itemOf(rec journal.Recorded) (resource.HostItem, bool) {
	kind, id, err := subjects.ParseItemKey(rec.Key)
	return resource.HostItem{Host: rec.Host, Ref: desired.Ref{Kind: desired.Kind(kind), ID: id}}, err == nil
}

// document takes a record if it is of a document that the call changed; more is false when there are too many.
func (c *collector) document(rec journal.Recorded) (more bool) {
	if c.records++; c.records > maxRecords || len(c.items) >= maxDocuments {
		c.trace.Truncated = true
		return false
	}
	it, ok := itemOf(rec)
	if !ok || rec.Observed || it.Ref.Kind == desired.KindOrigin { // of which hosts do nothing
		return true
	}
	d := &Document{Ref: it.Ref, Change: "written", Written: rec.At, State: Working}
	if rec.Gone {
		if rec.Cause != c.trace.Request {
			return true
		}
		d.Change = "removed"
	} else {
		item, err := desired.DecodeItem(rec.Data)
		if err != nil || item.Cause != c.trace.Request {
			return true
		}
		d.Rev = item.Rev
	}
	if c.items[it] == nil {
		c.order = append(c.order, it)
		if kind, id := resource.ItemResource(it.Ref); kind != "" {
			if res := c.r.Get(kind, id); res != nil {
				d.Name = res.Base().Name
			}
		}
	} else {
		d.Name, d.Actions = c.items[it].Name, c.items[it].Actions
	}
	c.items[it] = d
	delete(c.status, it)
	c.last = rec.At
	return true
}

// take takes a record of whatever sort; more is false when everything has ended for a while, or there are too many.
func (c *collector) take(rec journal.Recorded) (more bool) {
	if len(c.items) > 0 && rec.At.After(c.last.Add(settleTime)) && c.ended() {
		return false
	}
	it, ok := itemOf(rec)
	if !ok || c.known[it] != nil {
		return true
	}
	if !rec.Observed {
		if d := c.items[it]; d != nil && d.State == Working && c.foreign(rec) {
			d.State, d.By = Superseded, causeOf(rec)
			c.status[it] = true
		} else if d != nil && c.foreign(rec) {
			c.status[it] = true
		}
		return c.document(rec)
	}
	if c.records++; c.records > maxRecords {
		c.trace.Truncated = true
		return false
	}
	if d := c.items[it]; d != nil && !c.status[it] {
		c.action(d, rec)
	}
	return true
}

// foreign reports whether a document is of another call.
func (c *collector) foreign(rec journal.Recorded) bool { return causeOf(rec) != c.trace.Request }

func causeOf(rec journal.Recorded) string {
	if rec.Gone {
		return rec.Cause
	}
	item, err := desired.DecodeItem(rec.Data)
	if err != nil {
		return ""
	}
	return item.Cause
}

// action takes a report of a host about an item of the call.
func (c *collector) action(d *Document, rec journal.Recorded) {
	if rec.Gone {
		if d.Change == "removed" {
			d.Actions = append(d.Actions, Action{Phase: desired.PhaseRemoving, Since: rec.At, Reported: rec.At, Gone: true})
			d.State, d.Ended = Done, rec.At
			c.last = rec.At
		}
		return
	}
	st, err := desired.DecodeStatus(rec.Data)
	if err != nil || d.Change == "written" && st.Rev < d.Rev || d.Change == "removed" && st.Phase != desired.PhaseRemoving {
		return
	}
	if d.State != Working && st.Phase == desired.PhaseReady && len(d.Actions) > 0 {
		return // facts that change while it is as it should be are no actions
	}
	a := Action{
		Phase: st.Phase, Since: st.Since, Began: st.Began, Reported: rec.At, Fault: st.Fault, Progress: st.Progress, Drift: st.LastDrift, Facts: st.Facts,
	}
	// Progress replaces progress.
	if n := len(d.Actions); n > 0 {
		last := &d.Actions[n-1]
		last.Facts = nil
		if last.Phase == a.Phase && last.Since.Equal(a.Since) && sameFault(last.Fault, a.Fault) {
			*last = a
			return
		}
	}
	d.Actions = append(d.Actions, a)
	c.last = rec.At
	switch st.Phase {
	case desired.PhaseReady:
		d.State, d.Ended = Done, st.Since
		if !st.Began.IsZero() {
			d.WorkMS = ms(st.Since.Sub(st.Began))
		}
	case desired.PhaseRefused:
		d.State, d.Ended = Failed, st.Since
	case desired.PhaseDrifted:
		d.State, d.Ended = Held, st.Since
	default:
		d.State, d.Ended = Working, time.Time{}
	}
	if !d.Ended.IsZero() && d.Ended.Before(d.Written) {
		d.Ended = rec.At // the host's clock is behind, or it was so before: the report is what tells
	}
}

func sameFault(a, b *desired.Fault) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Code == b.Code && a.Message == b.Message
}

func (c *collector) ended() bool {
	for _, d := range c.items {
		if d.State == Working {
			return false
		}
	}
	return true
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// finish orders what was found and sums it up.
func (c *collector) finish() {
	t := c.trace
	byHost := map[string]*Host{}
	for _, it := range c.order {
		d := c.items[it]
		if d == nil {
			continue
		}
		if !d.Ended.IsZero() {
			d.TookMS = ms(d.Ended.Sub(d.Written))
		}
		h := byHost[it.Host]
		if h == nil {
			h = &Host{ID: it.Host, Name: it.Host}
			if res := c.r.Get(resource.KindHost, it.Host); res != nil {
				h.Name = res.Base().Name
			}
			byHost[it.Host] = h
		}
		h.Documents = append(h.Documents, *d)
	}
	for _, h := range byHost {
		slices.SortStableFunc(h.Documents, func(a, b Document) int { return cmp.Or(a.Written.Compare(b.Written), a.Ref.Compare(b.Ref)) })
		t.Hosts = append(t.Hosts, *h)
	}
	slices.SortFunc(t.Hosts, func(a, b Host) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID)) })
	t.State, t.Ended = Done, t.Stored
	for _, d := range c.items {
		if d.State == Working || t.State != Working && d.State != Done && d.State != Superseded {
			t.State = d.State
		}
		if d.Ended.After(t.Ended) {
			t.Ended = d.Ended
		}
	}
	if t.State == Working {
		t.Ended = time.Time{}
		return
	}
	t.TookMS = ms(t.Ended.Sub(t.At))
}

// tasks are the records of the call's effect, as long as they are kept.
func (t *Tracer) tasks(r resource.Reader, out *Trace) {
	for i := 0; ; i++ {
		id := out.Request
		if i > 0 {
			id = fmt.Sprintf("%s.%d", out.Request, i)
		}
		task, ok := r.Holder("task/" + id).(*resource.Task)
		if !ok {
			return
		}
		out.Tasks = append(out.Tasks, Task{ID: task.ID, State: task.State, Finished: task.Finished, Error: task.Error})
	}
}

// followUps finds what the controller decided about what the call changed, until it had ended.
func (t *Tracer) followUps(ctx context.Context, r resource.Reader, found journal.Found, out *Trace) error {
	touched := map[resource.Ref]bool{}
	for _, c := range found.Changes {
		if c.Kind != resource.KindTask {
			touched[resource.Ref{Kind: c.Kind, ID: c.ID}] = true
		}
	}
	until := out.Ended.Add(settleTime)
	err := t.journal.After(ctx, found.Seq, followUps, func(f journal.Found) bool {
		if !out.Ended.IsZero() && f.Stored.After(until) {
			return false
		}
		if f.Request.Caller != resource.CallerController {
			return true
		}
		var about []journal.Change
		for _, c := range f.Changes {
			if touched[resource.Ref{Kind: c.Kind, ID: c.ID}] {
				about = append(about, c)
			}
		}
		if len(about) > 0 {
			out.FollowUps = append(out.FollowUps, FollowUp{Call: callOf(f), Changes: changesOf(r, about)})
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("read what followed: %w", err)
	}
	return nil
}
