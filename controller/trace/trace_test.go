package trace_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/journal"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/controller/trace"
	"shoal/desired"
	"shoal/subjects"
)

var start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// book is a journal of given entries and records.
type book struct {
	t       *testing.T
	entries []journal.Found
	records []journal.Recorded
	asked   [][]string // filters
}

func (b *book) Find(_ context.Context, request string) (journal.Found, error) {
	for _, e := range slices.Backward(b.entries) {
		if e.Request.ID == request {
			return e, nil
		}
	}
	return journal.Found{}, journal.ErrNoRequest
}

func (b *book) After(_ context.Context, seq uint64, limit int, fn func(journal.Found) bool) error {
	for _, e := range b.entries {
		if e.Seq > seq && e.Seq <= seq+uint64(limit) && !fn(e) {
			break
		}
	}
	return nil
}

func (b *book) Recorded(_ context.Context, since time.Time, filters []string, fn func(journal.Recorded) bool) error {
	b.asked = append(b.asked, filters)
	for i, f := range filters {
		for _, o := range filters[i+1:] {
			if f == o {
				b.t.Errorf("the server refuses filters that overlap: %s", f)
			}
		}
	}
	for _, r := range b.records {
		if r.At.Before(since) || !slices.ContainsFunc(filters, func(f string) bool { return match(f, subjects.HistorySubject(r.Host, r.Key)) }) {
			continue
		}
		if !fn(r) {
			break
		}
	}
	return nil
}

// match is how NATS matches subjects.
func match(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

// call adds a transaction of somebody.
func (b *book) call(seq uint64, request, caller string, ms int, changes ...resource.Resource) {
	f := journal.Found{Seq: seq, Stored: at(ms + 1)}
	f.Request = resource.Request{ID: request, Caller: caller, Op: "vm.test"}
	f.At = at(ms)
	for _, r := range changes {
		raw, err := json.Marshal(r)
		if err != nil {
			b.t.Fatal(err)
		}
		f.Changes = append(f.Changes, journal.Change{Kind: r.Kind(), ID: r.Base().ID, Value: raw})
	}
	b.entries = append(b.entries, f)
}

func (b *book) gone(kind resource.Kind, id string) {
	last := &b.entries[len(b.entries)-1]
	last.Changes = append(last.Changes, journal.Change{Kind: kind, ID: id})
}

// wrote adds an item of a host's document.
func (b *book) wrote(ms int, host string, ref desired.Ref, rev uint64, cause string) {
	it, err := desired.NewItem(ref.Kind, ref.ID, map[string]any{"rev": rev})
	if err != nil {
		b.t.Fatal(err)
	}
	it.Rev, it.Cause = rev, cause
	raw, err := it.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.records = append(b.records, journal.Recorded{Host: host, Key: ref.String(), At: at(ms), Data: raw})
}

func (b *book) removed(ms int, host string, ref desired.Ref, cause string) {
	b.records = append(b.records, journal.Recorded{Host: host, Key: ref.String(), At: at(ms), Gone: true, Cause: cause})
}

// said adds a report.
func (b *book) said(ms int, host string, ref desired.Ref, st *desired.Status) {
	r := journal.Recorded{Host: host, Key: ref.String(), At: at(ms), Observed: true, Gone: st == nil}
	if st != nil {
		var err error
		if r.Data, err = st.Encode(); err != nil {
			b.t.Fatal(err)
		}
	}
	b.records = append(b.records, r)
}

// outline is what a test compares of a trace.
func outline(tr *trace.Trace) []string {
	var out []string
	for _, h := range tr.Hosts {
		for _, d := range h.Documents {
			line := h.Name + " " + d.Ref.String() + " " + d.Change + " " + string(d.State)
			for _, a := range d.Actions {
				line += " " + string(a.Phase)
				if a.Gone {
					line += "(gone)"
				}
			}
			out = append(out, line)
		}
	}
	for _, f := range tr.FollowUps {
		out = append(out, "then "+f.Request)
	}
	return append(out, string(tr.State))
}

func vm(id string, created, updated time.Time) *resource.VM {
	v := &resource.VM{HostID: "h1"}
	v.ID, v.Name, v.Created, v.Updated = id, id, created, updated
	return v
}

func TestTrace(t *testing.T) {
	d, other := resource.DomainRef("v"), resource.DomainRef("w")
	ready := func(rev uint64, ms int) *desired.Status {
		return &desired.Status{Rev: rev, Phase: desired.PhaseReady, Since: at(ms), Began: at(ms - 100)}
	}
	for name, c := range map[string]struct {
		fill func(b *book)
		want []string
	}{
		"done, with every step of the host": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(0), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.said(20, "h1", d, &desired.Status{Rev: 5, Phase: desired.PhaseWaiting, Since: at(19), Fault: &desired.Fault{Code: desired.CodeWaiting, Message: "volume"}})
			b.said(30, "h1", d, &desired.Status{Rev: 5, Phase: desired.PhaseWorking, Since: at(29), Progress: 10})
			b.said(40, "h1", d, &desired.Status{Rev: 5, Phase: desired.PhaseWorking, Since: at(29), Progress: 90})
			b.said(310, "h1", d, ready(5, 300))
			b.said(400, "h1", d, ready(5, 300)) // facts only
			b.said(60_000, "h1", d, &desired.Status{Rev: 5, Phase: desired.PhaseDrifted, Since: at(60_000)})
		}, []string{"h1 domain.v written done Waiting Working Ready", "done"}},
		"of others nothing": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(0), at(0)))
			b.call(6, "s", "ann", 1, vm("w", at(1), at(1)))
			b.wrote(10, "h1", d, 5, "r")
			b.wrote(10, "h1", other, 6, "s")
			b.said(20, "h1", other, ready(6, 19))
		}, []string{"h1 domain.v written working", "working"}},
		"refused": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(0), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.said(20, "h1", d, &desired.Status{Rev: 5, Phase: desired.PhaseRefused, Since: at(19), Fault: &desired.Fault{Code: desired.CodeLibvirt, Message: "no"}})
		}, []string{"h1 domain.v written failed Refused", "failed"}},
		"an older revision's report is not its": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(-1000), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.said(11, "h1", d, ready(4, -500))
		}, []string{"h1 domain.v written working", "working"}},
		"superseded before the host got to it": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(-1000), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.call(6, "s", "ann", 11, vm("v", at(-1000), at(11)))
			b.wrote(12, "h1", d, 6, "s")
			b.said(20, "h1", d, ready(6, 19))
		}, []string{"h1 domain.v written superseded", "done"}},
		"changed later, after it was done": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(-1000), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.said(20, "h1", d, ready(5, 19))
			b.wrote(30, "h1", d, 6, "s")
			b.said(40, "h1", d, &desired.Status{Rev: 6, Phase: desired.PhaseRefused, Since: at(39)})
		}, []string{"h1 domain.v written done Ready", "done"}},
		"a removal, until the host has nothing left": {func(b *book) {
			b.call(5, "r", "ann", 0)
			b.gone(resource.KindVM, "v")
			b.removed(10, "h1", d, "r")
			b.said(20, "h1", d, &desired.Status{Rev: 4, Phase: desired.PhaseRemoving, Since: at(19)})
			b.said(50, "h1", d, nil)
		}, []string{"h1 domain.v removed done Removing Removing(gone)", "done"}},
		"what follows from reports": {func(b *book) {
			b.call(5, "r", "ann", 0, vm("v", at(0), at(0)))
			b.wrote(10, "h1", d, 5, "r")
			b.said(20, "h1", d, ready(5, 19))
			b.call(6, "decided", resource.CallerController, 30, vm("v", at(0), at(30)))
			b.call(7, "elsewhere", resource.CallerController, 31, vm("w", at(0), at(30)))
			b.call(8, "ann's", "ann", 32, vm("v", at(0), at(32)))
			b.call(9, "much later", resource.CallerController, 600_000, vm("v", at(0), at(600_000)))
		}, []string{"h1 domain.v written done Ready", "then decided", "done"}},
		"nothing on any host": {func(b *book) {
			z := &resource.Zone{}
			z.ID, z.Name, z.Created, z.Updated = "z", "z", at(0), at(0)
			b.call(5, "r", "ann", 0, z)
		}, []string{"done"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &book{t: t}
			c.fill(b)
			tr, err := trace.New(b, b).Trace(t.Context(), plantest.NewExample(1, 1).View(), "r")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, outline(tr)); diff != "" {
				t.Error(diff)
			}
			if name == "done, with every step of the host" {
				doc := tr.Hosts[0].Documents[0]
				if doc.TookMS != 290 || doc.WorkMS != 100 || tr.TookMS != 300 || !tr.Ended.Equal(at(300)) || !doc.Written.Equal(at(10)) {
					t.Errorf("times: %+v, %+v", doc, tr)
				}
			}
		})
	}
}

func TestTrace_OfARefusedCallIsItsRefusal(t *testing.T) {
	b := &book{t: t}
	b.call(5, "r", "ann", 0)
	b.entries[0].Error = "no room"
	tr, err := trace.New(b, b).Trace(t.Context(), plantest.NewExample(1, 1).View(), "r")
	if err != nil || tr.State != trace.Failed || tr.Error != "no room" || len(b.asked) > 0 {
		t.Errorf("%+v, %v, asked for %v", tr, err, b.asked)
	}
}

func TestTrace_ReadsOnlyWhereItCanShow(t *testing.T) {
	b := &book{t: t}
	b.call(5, "r", "ann", 0, vm("v", at(0), at(0)))
	if _, err := trace.New(b, b).Trace(t.Context(), plantest.NewExample(1, 1).View(), "r"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"shoal.history.*.domain.v"}}, b.asked); diff != "" {
		t.Error(diff)
	}
}

func TestTrace_UnknownRequest(t *testing.T) {
	b := &book{t: t}
	view := plantest.NewExample(1, 1).View()
	for id, code := range map[string]resource.ErrorCode{"nobody": resource.CodeNotFound, `a","b`: resource.CodeInvalid, "r@acc": resource.CodeNotFound} {
		_, err := trace.New(b, b).Trace(t.Context(), view, id)
		var e *resource.Error
		if !errors.As(err, &e) || e.Code != code {
			t.Errorf("%s: %v", id, err)
		}
	}
}
