package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/controller/access"
	"shoal/controller/history"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// Limits of lists of the past.
const (
	// pastDefault is how many are given where no limit is, pastPage how many one answer has at most.
	pastDefault = 100
	pastPage    = 1000
	// paramsShown is how much of the parameters a list shows; all of them are shown by audit get.
	paramsShown = 4 << 10
)

// ownCalls are the accounts whose calls the caller of an operation sees: the own one; nil for all.
func ownCalls(env *Env) []string {
	if env.caller.Everything() {
		return nil
	}
	return []string{env.caller.Account}
}

// sees is the same for a single call.
func sees(env *Env) history.Sees {
	if env.caller.Everything() {
		return nil
	}
	return func(c history.Call) bool { return c.Account == env.caller.Account }
}

// show gives versions of resources as the caller of an operation may see them now, see access.Past.
func show(env *Env) history.Show {
	if env.caller.Everything() {
		return nil
	}
	return func(kind resource.Kind, id string, value json.RawMessage) json.RawMessage {
		r, err := resource.Decode(kind, value)
		if err != nil {
			return nil
		}
		seen := access.Past(once{env.whole, r}, env.whole, env.caller).Get(kind, id)
		if seen == nil {
			return nil
		}
		b, err := desired.Canonical(seen)
		if err != nil {
			return nil
		}
		return b
	}
}

// once is a reader in which one resource is as it once was.
type once struct {
	resource.Reader
	was resource.Resource
}

// Get implements resource.Reader.
func (o once) Get(kind resource.Kind, id string) resource.Resource {
	if o.was.Kind() == kind && o.was.Base().ID == id {
		return o.was
	}
	return o.Reader.Get(kind, id)
}

type auditList struct {
	Callers  []string `json:"callers,omitempty" flag:"caller" split:"true" help:"who called; * stands for any characters"`
	From     []string `json:"from,omitempty" split:"true" help:"address that the call came from; * stands for any characters"`
	Ops      []string `json:"ops,omitempty" flag:"op" split:"true" help:"operation, such as vm.create or vm.*"`
	Kind     string   `json:"kind,omitempty" help:"kind of a resource that was changed"`
	Resource string   `json:"resource,omitempty" flag:"on" help:"id of a resource that was changed, or a name that it had at any time; also KIND/NAME"`
	Outcome  string   `json:"outcome,omitempty" enum:"changed|read|refused" help:"how it ended"`
	Request  string   `json:"request,omitempty" help:"id of the request"`
	Since    string   `json:"since,omitempty" help:"not before that time, such as 2026-11-24T15:04:05Z or -2h"`
	Until    string   `json:"until,omitempty" help:"before that time"`
	Oldest   bool     `json:"oldest,omitempty" help:"the oldest first, otherwise the newest"`
	Limit    *int     `json:"limit,omitempty" help:"at most that many (100); 0 for all"`
	Offset   int      `json:"offset,omitempty" help:"leave out that many from the start"`
	Cursor   string   `json:"cursor,omitempty" help:"go on behind an earlier answer: its cursor"`
	Count    bool     `json:"count,omitempty" help:"count only"`
}

// filter reads what is asked for.
func (p *auditList) filter(env *Env) (history.Filter, error) {
	f := history.Filter{
		Request: p.Request, Accounts: ownCalls(env), Callers: p.Callers, Froms: p.From, Ops: p.Ops, Kind: resource.Kind(p.Kind), Resource: p.Resource, Outcome: history.Outcome(p.Outcome),
		UpTo: env.moment.Seq, Oldest: p.Oldest, Offset: p.Offset,
	}
	if kind, ref, ok := strings.Cut(p.Resource, "/"); ok && p.Kind == "" && resource.New(resource.Kind(kind)) != nil {
		f.Kind, f.Resource = resource.Kind(kind), ref
	}
	if f.Kind != "" && resource.New(f.Kind) == nil {
		return f, unknownKind("kind", string(f.Kind))
	}
	if p.Offset < 0 {
		return f, resource.Invalid("offset", "%d is negative", p.Offset)
	}
	var err error
	if f.Limit, err = pageOf(p.Limit); err != nil {
		return f, err
	}
	if f.Since, f.Until, err = window(env, p.Since, p.Until); err != nil {
		return f, err
	}
	if p.Cursor != "" {
		place, err := parsePlace(p.Cursor)
		if err != nil {
			return f, err
		}
		if p.Oldest {
			f.After = place
		} else {
			f.Before = place
		}
	}
	return f, f.CheckPatterns()
}

func unknownKind(field, kind string) error {
	return resource.Invalid(field, "%q is no kind of resources", kind).WithRemedy("see shoalctl --help")
}

// pageOf is how many one answer gives of a limit.
func pageOf(limit *int) (int, error) {
	switch {
	case limit == nil:
		return pastDefault, nil
	case *limit < 0:
		return 0, resource.Invalid("limit", "%d is negative", *limit)
	case *limit == 0:
		return pastPage, nil
	default:
		return min(*limit, pastPage), nil
	}
}

func window(env *Env, since, until string) (from, to time.Time, err error) {
	now := env.Now().UTC()
	if since != "" {
		if from, err = history.ParseTime("since", since, now); err != nil {
			return from, to, err
		}
	}
	if until != "" {
		to, err = history.ParseTime("until", until, now)
	}
	return from, to, err
}

func parsePlace(text string) (*history.Place, error) {
	a, b, _ := strings.Cut(text, ".")
	seq, err := strconv.ParseUint(a, 10, 64)
	sub, subErr := strconv.Atoi(b)
	if err != nil || subErr != nil || sub < 0 {
		return nil, resource.Invalid("cursor", "%q is none that an answer gave", text)
	}
	return &history.Place{Seq: seq, Sub: sub}, nil
}

func placeText(p *history.Place) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", p.Seq, p.Sub)
}

// auditRow is a call in a list.
type auditRow struct {
	history.Call
	// Summary names what it was about in one line, Result how it ended.
	Summary string `json:"summary,omitempty"`
	Result  string `json:"result"`
}

// maxNamed is how many resources a line names.
const maxNamed = 2

func rowOf(c history.Call) auditRow {
	row := auditRow{Call: c, Result: string(c.Outcome)}
	on := slices.DeleteFunc(slices.Clone(c.On), func(t history.Touched) bool { return t.Kind == resource.KindTask })
	kind, _, _ := strings.Cut(c.Op, ".")
	// What the operation is about comes first.
	slices.SortStableFunc(on, func(a, b history.Touched) int { return cmp.Compare(rank(a, kind), rank(b, kind)) })
	var names []string
	for _, t := range on[:min(len(on), maxNamed)] {
		names = append(names, string(t.Kind)+" "+cmp.Or(t.Name, t.ID))
	}
	row.Summary = strings.Join(names, ", ")
	if more := len(on) - len(names); more > 0 {
		row.Summary += fmt.Sprintf(" (+%d)", more)
	}
	if row.Summary == "" && c.Caller == subjects.GuestName {
		row.Summary = claimText(c.Params)
	}
	if c.Error != "" {
		row.Result = "refused: " + c.Error
	}
	if c.More > 0 {
		row.Result = fmt.Sprintf("%d more: %s", c.More, row.Result)
	}
	return row
}

// claimText is in one line whom a guest claimed to be.
func claimText(params json.RawMessage) string {
	var p struct{ Account, User, Name, Host string }
	if json.Unmarshal(params, &p) != nil {
		return ""
	}
	var parts []string
	for _, x := range [][2]string{{"account", p.Account}, {"user", p.User}, {"host", p.Host}, {"name", p.Name}} {
		if x[1] != "" {
			parts = append(parts, x[0]+" "+x[1])
		}
	}
	return strings.Join(parts, ", ")
}

func rank(t history.Touched, kind string) int {
	if string(t.Kind) == kind {
		return 0
	}
	return 1
}

// auditPage finds calls.
func auditPage(ctx context.Context, env *Env, r resource.Reader, p *auditList) (any, error) {
	f, err := p.filter(env)
	if err != nil {
		return nil, err
	}
	if p.Count {
		f.Limit, f.Offset = 0, 0
	}
	found, err := env.History.Calls(ctx, f, nil)
	if err != nil {
		return nil, err
	}
	page := Page{Items: []json.RawMessage{}, Total: found.Total, Seq: r.Seq()}
	if p.Limit != nil {
		page.Cursor = placeText(found.Next)
	}
	size := 0
	for i, c := range found.Items {
		if len(c.Params) > paramsShown {
			c.Params = fmt.Appendf(nil, `{"omitted_bytes":%d}`, len(c.Params))
		}
		raw, err := json.Marshal(rowOf(c))
		if err != nil {
			return nil, fmt.Errorf("encode call %s: %w", c.ID, err)
		}
		if size += len(raw) + 1; size > maxPage && i > 0 {
			last := found.Items[i-1]
			page.Cursor = placeText(&history.Place{Seq: last.Seq, Sub: last.Sub})
			break
		}
		page.Items = append(page.Items, raw)
	}
	return page, nil
}

type historyList struct {
	Kind   string `json:"kind" arg:"1" required:"true" help:"kind"`
	ID     string `json:"id" arg:"2" required:"true" help:"id, or a name that it had at any time"`
	Since  string `json:"since,omitempty" help:"not before that time, such as 2026-11-24T15:04:05Z or -2h; of a host the last day where not given"`
	Until  string `json:"until,omitempty" help:"before that time"`
	Limit  *int   `json:"limit,omitempty" help:"at most that many (100); 0 for all"`
	Cursor string `json:"cursor,omitempty" help:"go on behind an earlier answer: its cursor"`
}

// historyRow is one version of a resource, or one change of what a host must be or is.
type historyRow struct {
	history.Event
	ID     string `json:"id,omitempty"`
	Name   string `json:"name,omitempty"`
	Caller string `json:"caller,omitempty"`
	Op     string `json:"op,omitempty"`
	// Summary is the change in one line.
	Summary string `json:"summary"`
}

func versionRow(v history.Version) historyRow {
	row := historyRow{
		Event: history.Event{
			Seq: v.Seq, At: v.At, Sort: history.OfResource, Item: string(v.Kind) + "." + v.ID, Change: v.Change, Rev: v.Seq, Cause: v.Request, Fields: v.Fields, Value: v.Value,
		},
		ID: v.ID, Name: v.Name, Caller: v.Caller, Op: v.Op,
	}
	row.Summary = fieldText(v.Fields, v.Change)
	return row
}

func eventRow(e history.Event) historyRow {
	row := historyRow{Event: e}
	switch {
	case e.Gen != 0:
		row.Summary = fmt.Sprintf("generation %d", e.Gen)
	case e.Phase != "":
		row.Summary = e.Phase
		if e.Fault != nil {
			row.Summary += ": " + e.Fault.Message
		}
	default:
		row.Summary = fieldText(e.Fields, e.Change)
	}
	return row
}

// maxSummary is how long a line about fields may be.
const maxSummary = 160

// fieldText tells in one line which fields changed.
func fieldText(fields []history.Field, change history.Change) string {
	if change != history.Modified {
		return string(change)
	}
	var b strings.Builder
	for i, f := range fields {
		part := fmt.Sprintf("%s: %s -> %s", f.Field, valueText(f.Old), valueText(f.New))
		if b.Len() > 0 && b.Len()+len(part) > maxSummary {
			fmt.Fprintf(&b, "; and %d more", len(fields)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(part)
	}
	return b.String()
}

const maxFieldText = 60

func valueText(raw json.RawMessage) string {
	switch {
	case raw == nil:
		return "none"
	case len(raw) > maxFieldText:
		return strings.ToValidUTF8(string(raw[:maxFieldText]), "") + "..."
	default:
		return string(raw)
	}
}

func rows[T any](page *Page, list []T, encode func(T) historyRow, cursor func(T) string) error {
	size := 0
	for i, x := range list {
		raw, err := json.Marshal(encode(x))
		if err != nil {
			return fmt.Errorf("encode history: %w", err)
		}
		if size += len(raw) + 1; size > maxPage && i > 0 {
			page.Cursor = cursor(list[i-1])
			return nil
		}
		page.Items = append(page.Items, raw)
	}
	return nil
}

// resourceHistory lists the versions of a resource.
func resourceHistory(ctx context.Context, env *Env, r resource.Reader, p *historyList) (any, error) {
	kind := resource.Kind(p.Kind)
	if resource.New(kind) == nil {
		return nil, unknownKind("kind", p.Kind)
	}
	if kind == resource.KindHost && env.caller.Everything() {
		return hostHistory(ctx, env, r, p)
	}
	limit, err := pageOf(p.Limit)
	if err != nil {
		return nil, err
	}
	f := history.Filter{Kind: kind, Resource: p.ID, Limit: limit, UpTo: env.moment.Seq}
	if f.Since, f.Until, err = window(env, p.Since, p.Until); err != nil {
		return nil, err
	}
	if p.Cursor != "" {
		if f.Before, err = parsePlace(p.Cursor); err != nil {
			return nil, err
		}
	}
	versions, next, err := env.History.Versions(ctx, f, show(env))
	if err != nil {
		return nil, err
	}
	if len(versions) == 0 && p.Cursor == "" && p.Since == "" && p.Until == "" {
		e := resource.NotFound(kind, p.ID)
		e.Field = "id"
		return nil, e.WithRemedy("no %s ever had this id or name; see shoalctl audit list --kind %s", kind, kind)
	}
	page := Page{Items: []json.RawMessage{}, Total: len(versions), Seq: r.Seq()}
	if p.Limit != nil {
		page.Cursor = placeText(next)
	}
	return page, rows(&page, versions, versionRow, func(v history.Version) string { return fmt.Sprintf("%d.0", v.Seq) })
}

// hostWindow is how far back a host's history goes where no time is given.
const hostWindow = 24 * time.Hour

// hostHistory lists, in order, the changes of a host's record, of its document, and of what it reported.
func hostHistory(ctx context.Context, env *Env, r resource.Reader, p *historyList) (any, error) {
	id, err := pastHost(ctx, env, r, p.ID)
	if err != nil {
		return nil, err
	}
	from, until, err := window(env, p.Since, p.Until)
	if err != nil {
		return nil, err
	}
	if from.IsZero() {
		from = env.Now().UTC().Add(-hostWindow)
	}
	if at := env.moment.Time; !at.IsZero() && (until.IsZero() || at.Before(until)) {
		until = at
	}
	page, err := hostEvents(ctx, env, r, id, from, until, p.Limit, p.Cursor, true)
	return page, err
}

// pastHost is a host's id, also of one that is gone.
func pastHost(ctx context.Context, env *Env, r resource.Reader, ref string) (string, error) {
	id, err := lookup(r, "id", resource.KindHost, ref)
	if err == nil {
		return id, nil
	}
	versions, _, findErr := env.History.Versions(ctx, history.Filter{Kind: resource.KindHost, Resource: ref, Limit: 1}, show(env))
	if findErr != nil {
		return "", findErr
	}
	if len(versions) == 0 {
		return "", err
	}
	return versions[0].ID, nil
}

func hostEvents(ctx context.Context, env *Env, r resource.Reader, id string, from, until time.Time, limit *int, cursor string, record bool) (any, error) {
	n, err := pageOf(limit)
	if err != nil {
		return nil, err
	}
	after := uint64(0)
	if cursor != "" {
		if after, err = strconv.ParseUint(cursor, 10, 64); err != nil {
			return nil, resource.Invalid("cursor", "%q is none that an answer gave", cursor)
		}
	}
	events, more, err := env.History.Events(ctx, id, from, until, after, n)
	if err != nil {
		return nil, err
	}
	list := make([]historyRow, 0, len(events))
	for _, e := range events {
		list = append(list, eventRow(e))
	}
	if record {
		// The versions of the host's record between the first and the last event, or within the window.
		f := history.Filter{Kind: resource.KindHost, Resource: id, Limit: pastPage, Since: from, Until: until}
		if len(events) > 0 && after > 0 {
			f.Since = events[0].At
		}
		if len(events) > 0 && more {
			f.Until = events[len(events)-1].At
		}
		versions, _, err := env.History.Versions(ctx, f, show(env))
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			list = append(list, versionRow(v))
		}
		slices.SortStableFunc(list, func(a, b historyRow) int { return a.At.Compare(b.At) })
	}
	page := Page{Items: []json.RawMessage{}, Total: len(list), Seq: r.Seq()}
	if more && limit != nil {
		page.Cursor = strconv.FormatUint(events[len(events)-1].Seq, 10)
	}
	last := after
	return page, rows(&page, list, func(x historyRow) historyRow { return x }, func(x historyRow) string {
		if x.Sort != history.OfResource {
			last = x.Seq
		}
		return strconv.FormatUint(last, 10)
	})
}

type undoParams struct {
	Request string `json:"id" arg:"1" required:"true" help:"id of the request that is to be undone"`
}

type replayGet struct {
	Host string `json:"host" arg:"1" required:"true" help:"host, by id or name"`
}

type replayList struct {
	Host   string `json:"host" required:"true" help:"host, by id or name; also one that is gone"`
	From   string `json:"from,omitempty" help:"not before that time, such as 2026-11-24T15:04:05Z or -2h; the last day where not given"`
	To     string `json:"to,omitempty" help:"before that time"`
	Limit  *int   `json:"limit,omitempty" help:"at most that many (100); 0 for all"`
	Cursor string `json:"cursor,omitempty" help:"go on behind an earlier answer: its cursor"`
}

type replayDiff struct {
	From string `json:"from" required:"true" help:"the earlier moment: a time, how long ago, or a sequence of the journal"`
	To   string `json:"to,omitempty" help:"the later one; now where not given"`
}

// difference is how two moments differ, as an answer.
type difference struct {
	FromSeq   uint64            `json:"from_seq"`
	ToSeq     uint64            `json:"to_seq"`
	Resources []history.Touched `json:"resources"`
	Documents []plan.HostDiff   `json:"documents"`
	// Omitted is how many resources and documents did not fit.
	Omitted int `json:"omitted,omitempty"`
}

// past declares what the time machine has.
func past(g *Registry) {
	auditColumns := []Column{
		{Title: "TIME", Path: "at", As: "time"},
		{Title: "CALLER", Path: "caller"},
		{Title: "FROM", Path: "from"},
		{Title: "OP", Path: "op"},
		{Title: "ON", Path: "summary"},
		{Title: "RESULT", Path: "result"},
		{Title: "MS", Path: "took_ms"},
		{Title: "REQUEST", Path: "id"},
		{Title: "SEQ", Path: "seq", Wide: true},
		{Title: "PARAMS", Path: "params", Wide: true},
	}
	finds(g, Operation{
		Kind: KindAudit, Verb: "list", Scope: ScopeAccount, Aliases: []string{"ls", "query"}, Result: ResultList, Columns: auditColumns, Summary: "List who called what",
		Help: "Straight from the journal: every call that changed something, every one that was refused, logins and machines that wanted to join (caller guest) too, and where the " +
			"controller runs with --audit-reads also those that read. Calls that were refused too fast to be recorded one by one are counted (\"20 more\"). MS is the time from the " +
			"call's arrival until it was on the disk, or refused.",
		Example: "shoalctl audit list --caller ann --op 'vm.*' --since -2h\nshoalctl audit list --on vm/web1 -o json\nshoalctl audit list --outcome refused --count",
	}, auditPage)
	finds(g, Operation{
		Kind: KindAudit, Verb: "get", Scope: ScopeAccount, Aliases: []string{"show"}, Result: ResultOne, Columns: auditColumns, Summary: "Show a call, with what it changed",
		Help: "The parameters and the reply with secrets masked, and every resource that it changed with the fields, old and new. Of a long reply the beginning, the length and the " +
			"SHA-256 are kept.",
		Example: "shoalctl audit show REQUEST -o yaml",
	}, func(ctx context.Context, env *Env, r resource.Reader, p *getParams) (any, error) {
		c, err := env.History.Call(ctx, p.ID, sees(env), show(env))
		if err != nil {
			return nil, err
		}
		return rowOf(c), nil
	})
	writesPrepared(g, Operation{
		Kind: KindAudit, Verb: "undo", Scope: ScopeAdmin, Paths: []string{"undo"}, Proposes: true, Class: Dangerous, Task: true, Summary: "Undo a request",
		Help: "Proposes the transaction that takes back what a request did, and with --yes does it: what it made is deleted (VMs and volumes go to the recycle bin), what it " +
			"deleted is made again with its id, and fields become what they were. It is refused, with a reason for each resource, where the world moved on: where the same " +
			"fields have changed again, something else depends on it, an address is taken, or data is gone. An undo is a request too, and can be undone.",
		Example: "shoalctl undo REQUEST\nshoalctl undo REQUEST --yes --wait\nshoalctl audit undo REQUEST",
	}, func(ctx context.Context, env *Env, _ resource.Reader, _ access.Principal, p *undoParams) ([]plan.Undoing, error) {
		if env.History == nil {
			return nil, noHistory()
		}
		return env.History.Undoing(ctx, p.Request)
	}, func(tx resource.Tx, p *undoParams, what []plan.Undoing) (Outcome, error) {
		done, err := plan.Undo(tx, p.Request, what)
		if err != nil {
			return Outcome{}, err
		}
		out := Outcome{Resources: done.Restored, Deleted: done.Deleted}
		if len(done.Restored) == 0 {
			out.Subject = resource.Ref{Kind: done.Deleted[0].Kind, ID: done.Deleted[0].ID}
		}
		return out, nil
	})
	historyColumns := []Column{
		{Title: "TIME", Path: "at", As: "time"},
		{Title: "WHAT", Path: "sort"},
		{Title: "ITEM", Path: "item"},
		{Title: "CHANGE", Path: "change"},
		{Title: "CALLER", Path: "caller"},
		{Title: "OP", Path: "op"},
		{Title: "DETAILS", Path: "summary"},
		{Title: "REQUEST", Path: "cause"},
		{Title: "SEQ", Path: "seq", Wide: true},
	}
	finds(g, Operation{
		Kind: KindHistory, Verb: "list", Scope: ScopeAccount, Result: ResultList, Columns: historyColumns, Summary: "Show every version of a resource",
		Help: "The newest first, with what changed, who did it and by which request; also of one that was deleted, by id or by a name that it had. " +
			"Of a host it is, oldest first, every change of its record, of its document, and of what its agent reported, of the last day where no time is given.",
		Example: "shoalctl history vm web1\nshoalctl history host h1 --since -1h -o json",
	}, resourceHistory)
	finds(g, Operation{
		Kind: KindReplay, Verb: "get", Scope: ScopeAdmin, Result: ResultOne, Summary: "Show the document that a host had",
		Help: "It is rendered from the journal at that moment, byte for byte what the host got: \"verified\" says that every item has the hash that the head had.",
		Columns: []Column{
			{Title: "HOST", Path: "host"}, {Title: "GEN", Path: "gen"}, {Title: "AT", Path: "at", As: "time"}, {Title: "ITEMS", Path: "count"}, {Title: "VERIFIED", Path: "verified"},
		},
		Example: "shoalctl replay document h1 --at -2h -o json",
	}, func(ctx context.Context, env *Env, r resource.Reader, p *replayGet) (any, error) {
		id, err := pastHost(ctx, env, r, p.Host)
		if err != nil {
			return nil, err
		}
		at := env.moment.Time
		if at.IsZero() {
			at = env.Now().UTC()
		}
		doc, err := env.History.Document(ctx, id, at)
		if err != nil {
			return nil, err
		}
		return struct {
			*history.Document
			Count int `json:"count"`
		}{doc, len(doc.Items)}, nil
	})
	finds(g, Operation{
		Kind: KindReplay, Verb: "list", Scope: ScopeAdmin, Result: ResultList, Columns: historyColumns, Summary: "Show the stream of changes of a host",
		Help:    "Every change of what the host must be, and of what its agent reported, in the order in which they happened, from the stream HISTORY.",
		Example: "shoalctl replay --host h1 --from -2h --to -1h",
	}, func(ctx context.Context, env *Env, r resource.Reader, p *replayList) (any, error) {
		id, err := pastHost(ctx, env, r, p.Host)
		if err != nil {
			return nil, err
		}
		from, to, err := window(env, p.From, p.To)
		if err != nil {
			return nil, err
		}
		if from.IsZero() {
			from = env.Now().UTC().Add(-hostWindow)
		}
		return hostEvents(ctx, env, r, id, from, to, p.Limit, p.Cursor, false)
	})
	finds(g, Operation{
		Kind: KindReplay, Verb: "query", Scope: ScopeAdmin, Result: ResultOne, Summary: "Show how two moments differ",
		Help: "Every resource that was made, changed or deleted in between, with its fields, and what that did to the documents of hosts.",
		Columns: []Column{
			{Title: "FROM", Path: "from_seq"}, {Title: "TO", Path: "to_seq"}, {Title: "RESOURCES", Path: "resources"}, {Title: "DOCUMENTS", Path: "documents"},
		},
		Example: "shoalctl replay diff --from -2h --to -1h",
	}, func(ctx context.Context, env *Env, r resource.Reader, p *replayDiff) (any, error) {
		from, err := env.History.Parse(ctx, p.From)
		if err != nil {
			return nil, err
		}
		to := history.Moment{Seq: r.Seq(), Time: env.Now().UTC()}
		if p.To != "" {
			if to, err = env.History.Parse(ctx, p.To); err != nil {
				return nil, err
			}
		}
		d, err := env.History.Diff(ctx, from, to)
		if err != nil {
			return nil, err
		}
		return fit(d), nil
	})
}

// fit leaves out what does not fit in one answer: specs first, then the rest.
func fit(d *history.Difference) difference {
	out := difference{FromSeq: d.From.Seq, ToSeq: d.To.Seq, Resources: []history.Touched{}, Documents: []plan.HostDiff{}}
	size := 0
	add := func(v any) bool {
		b, err := desired.Canonical(v)
		size += len(b)
		fits := err == nil && size < maxPage
		if !fits {
			out.Omitted++
		}
		return fits
	}
	for _, t := range d.Resources {
		if add(t) {
			out.Resources = append(out.Resources, t)
		}
	}
	for _, h := range d.Documents {
		if add(h) {
			out.Documents = append(out.Documents, h)
		}
	}
	return out
}
