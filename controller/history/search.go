package history

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/controller/resource"
)

// Filter selects entries of the journal. What is not set does not restrict.
type Filter struct {
	// Request is a request's id.
	Request string
	// Accounts are those of the callers, exactly.
	Accounts []string
	// Callers, Froms and Ops are patterns as of path.Match, such as "vm.*"; one of each list must match.
	Callers, Froms, Ops []string
	// Kind and Resource are what was changed: a kind, and an id or a name. A resource that had the name at any time is meant.
	Kind     resource.Kind
	Resource string
	Outcome  Outcome
	// Since is inclusive, Until is not.
	Since, Until time.Time
	// UpTo is the newest message that is looked at; 0 for the journal's end.
	UpTo uint64
	// Before and After restrict to what is older, or newer, than an entry.
	Before, After *Place
	// Oldest gives the oldest first, otherwise the newest.
	Oldest bool
	// Limit is how many are given at most, Offset how many are left out before.
	Limit, Offset int
}

// Place is where an entry is: the message of the journal, and the entry's number in its group.
type Place struct {
	Seq uint64
	Sub int
}

func (p Place) compare(o Place) int {
	return cmp.Or(cmp.Compare(p.Seq, o.Seq), cmp.Compare(p.Sub, o.Sub))
}

// CheckPatterns reports the first pattern that is none.
func (f *Filter) CheckPatterns() error {
	for field, list := range map[string][]string{"caller": f.Callers, "from": f.Froms, "op": f.Ops} {
		for _, p := range list {
			if _, err := path.Match(p, ""); err != nil {
				return resource.Invalid(field, "%q is no pattern", p).WithRemedy("* stands for any characters, ? for one, [abc] for one of them; \\ before one of these for itself")
			}
		}
	}
	return nil
}

// chosen are the places of words that match one of the patterns; nil for all.
func chosen(w words, patterns []string) (map[uint32]bool, bool) {
	if len(patterns) == 0 {
		return nil, true
	}
	out := map[uint32]bool{}
	for i, s := range w.List {
		for _, p := range patterns {
			if ok, err := path.Match(p, s); ok && err == nil || p == s {
				out[uint32(i)] = true //nolint:gosec // as they were put
			}
		}
	}
	return out, len(out) > 0
}

// exactly are the places of words that are in a list; nil for all.
func exactly(w words, list []string) (map[uint32]bool, bool) {
	if len(list) == 0 {
		return nil, true
	}
	out := map[uint32]bool{}
	for i, s := range w.List {
		if slices.Contains(list, s) {
			out[uint32(i)] = true //nolint:gosec // as they were put
		}
	}
	return out, len(out) > 0
}

// matcher is a filter for the rows of one segment.
type matcher struct {
	f                            *Filter
	accounts, callers, froms, op map[uint32]bool
	outcome                      int
	kind                         int // -1 for any
	request                      uint64
	ids                          map[uint64]struct{} // nil for any
	since, until                 int64
	columns                      []int
}

// matcher prepares a filter for a segment; nil if none of its rows can match. Ids are the hashes of the resources that are meant.
func (f *Filter) matcher(h *header, ids map[uint64]struct{}) *matcher {
	m := &matcher{f: f, ids: ids, kind: -1, outcome: -1, since: -1 << 63, until: 1<<63 - 1}
	if h.Rows == 0 || !h.spans(f.Since, f.Until) || f.UpTo != 0 && h.Before.Seq >= f.UpTo || f.Before != nil && h.Before.Seq >= f.Before.Seq ||
		f.After != nil && h.Last.Seq < f.After.Seq {
		return nil
	}
	var any0, any1, any2, any3 bool
	m.accounts, any0 = exactly(h.Accounts, f.Accounts)
	m.callers, any1 = chosen(h.Callers, f.Callers)
	m.froms, any2 = chosen(h.Froms, f.Froms)
	m.op, any3 = chosen(h.Ops, f.Ops)
	if !any0 || !any1 || !any2 || !any3 {
		return nil
	}
	need := func(condition bool, cols ...int) {
		if condition {
			m.columns = append(m.columns, cols...)
		}
	}
	need(m.accounts != nil, colAccount)
	need(m.callers != nil, colCaller)
	need(m.froms != nil, colFrom)
	need(m.op != nil, colOp)
	if f.Kind != "" {
		if m.kind = slices.Index(h.Kinds.List, string(f.Kind)); m.kind < 0 {
			return nil
		}
	}
	need(f.Kind != "", colRefKind)
	need(ids != nil, colRefID)
	need(ids != nil || f.Kind != "", colRefEnd)
	if f.Outcome != "" {
		m.outcome = slices.Index(outcomes(), f.Outcome)
		need(true, colOutcome)
	}
	if f.Request != "" {
		m.request = hash(f.Request)
		need(true, colRequest)
	}
	if !f.Since.IsZero() {
		m.since = f.Since.UnixNano()
	}
	if !f.Until.IsZero() {
		m.until = f.Until.UnixNano()
	}
	need(h.From < m.since || h.To >= m.until, colAt)
	need(m.partly(h), colSeq, colSub)
	return m
}

// partly reports whether some rows of a segment are out of the range of places.
func (m *matcher) partly(h *header) bool {
	return m.f.UpTo != 0 && h.Last.Seq > m.f.UpTo || m.f.Before != nil && h.Last.Seq >= m.f.Before.Seq || m.f.After != nil && h.Before.Seq < m.f.After.Seq
}

// each calls fn for every row that matches, in order.
func (m *matcher) each(h *header, r *rows, fn func(i int)) {
	times, places := slices.Contains(m.columns, colAt), m.partly(h)
	for i := range h.Rows {
		switch {
		case m.request != 0 && r.request[i] != m.request,
			times && (r.at[i] < m.since || r.at[i] >= m.until),
			m.outcome >= 0 && int(r.outcome[i]) != m.outcome,
			m.accounts != nil && !m.accounts[r.account[i]],
			m.callers != nil && !m.callers[r.caller[i]],
			m.froms != nil && !m.froms[r.from[i]],
			m.op != nil && !m.op[r.op[i]],
			places && !m.within(Place{r.seq[i], int(r.sub[i])}),
			(m.ids != nil || m.kind >= 0) && !m.about(r, i):
			continue
		}
		fn(i)
	}
}

func (m *matcher) within(p Place) bool {
	f := m.f
	return (f.UpTo == 0 || p.Seq <= f.UpTo) && (f.Before == nil || p.compare(*f.Before) < 0) && (f.After == nil || p.compare(*f.After) > 0)
}

func (m *matcher) about(r *rows, i int) bool {
	from := uint32(0)
	if i > 0 {
		from = r.refEnd[i-1]
	}
	for j := from; j < r.refEnd[i]; j++ {
		if m.kind >= 0 && int(r.refKind[j]) != m.kind {
			continue
		}
		if m.ids == nil {
			return true
		}
		if _, ok := m.ids[r.refID[j]]; ok {
			return true
		}
	}
	return false
}

// parts are the segments and the tail of an index at one moment, oldest first.
type parts struct {
	segments []*segment
	tail     *tail
}

// part is one of them.
func (p *parts) part(i int) (*header, *segment) {
	if i < len(p.segments) {
		return &p.segments[i].header, p.segments[i]
	}
	return &p.tail.header, nil
}

// found is what one part has: how many rows match, and which, as many as can be wanted.
type found struct {
	rows  []int
	total int
}

// search looks through all parts, on all processors. Where the rows that match lie in the journal is looked up at the end, and only for
// those that are given.
func (p *parts) search(ctx context.Context, f *Filter, ids map[uint64]struct{}) ([]Place, int, error) {
	want := f.Limit + f.Offset
	results := make([]found, len(p.segments)+1)
	err := p.scan(ctx, func(i int, s *scratch) error {
		h, seg := p.part(i)
		m := f.matcher(h, ids)
		if m == nil {
			return nil
		}
		r, out := &p.tail.rows, &results[i]
		if seg != nil {
			if len(m.columns) == 0 { // every row matches
				out.total = h.Rows
				return nil
			}
			if err := seg.load(s, m.columns...); err != nil {
				return err
			}
			r = &s.rows
		}
		m.each(h, r, func(row int) {
			out.total++
			if !f.Oldest || len(out.rows) < want {
				out.rows = append(out.rows, row)
			}
			if !f.Oldest && len(out.rows) > 2*want+1024 {
				out.rows = append(out.rows[:0], out.rows[len(out.rows)-want:]...)
			}
		})
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	total := 0
	for _, r := range results {
		total += r.total
	}
	places, err := p.places(ctx, f, results)
	return places, total, err
}

// places are those of the rows that were found, in the order that is asked for, without those that are to be left out.
func (p *parts) places(ctx context.Context, f *Filter, results []found) ([]Place, error) {
	var out []Place
	skip := f.Offset
	s := &scratch{}
	for n := range results {
		i := n
		if !f.Oldest {
			i = len(results) - 1 - n
		}
		total := results[i].total
		if skip >= total || len(out) >= f.Limit {
			skip = max(0, skip-total)
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("search the journal: %w", context.Cause(ctx))
		}
		h, seg := p.part(i)
		r := &p.tail.rows
		if seg != nil {
			if err := seg.load(s, colSeq, colSub); err != nil {
				return nil, err
			}
			r = &s.rows
		}
		rows := results[i].rows
		every := rows == nil
		if every {
			total = h.Rows
		} else {
			total = len(rows) // the others are beyond what is wanted
		}
		for ; skip < total && len(out) < f.Limit; skip++ {
			row := skip
			if !f.Oldest {
				row = total - 1 - skip
			}
			if !every {
				row = rows[row]
			}
			out = append(out, Place{r.seq[row], int(r.sub[row])})
		}
		skip = 0
	}
	return out, nil
}

// scan calls fn for every part, several at once.
func (p *parts) scan(ctx context.Context, fn func(i int, s *scratch) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	next := 0
	for range min(runtime.GOMAXPROCS(0), len(p.segments)+1) {
		group.Go(func() error {
			s := &scratch{}
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i > len(p.segments) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return fmt.Errorf("search the journal: %w", context.Cause(ctx))
				}
				if err := fn(i, s); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// named are the hashes of the ids of resources that have an id, or had it as their name at any time.
func (p *parts) named(ctx context.Context, kind resource.Kind, ref string) (map[uint64]struct{}, error) {
	name := hash(ref)
	out := map[uint64]struct{}{name: {}}
	var mu sync.Mutex
	err := p.scan(ctx, func(i int, s *scratch) error {
		h, seg := p.part(i)
		k := -1
		if kind != "" {
			if k = slices.Index(h.Kinds.List, string(kind)); k < 0 {
				return nil
			}
		}
		r := &p.tail.rows
		if seg != nil {
			if err := seg.load(s, colRefName); err != nil {
				return err
			}
			if !slices.Contains(s.refName, name) {
				return nil
			}
			if err := seg.load(s, colRefID, colRefKind); err != nil {
				return err
			}
			r = &s.rows
		}
		for j := range h.Refs {
			if r.refName[j] == name && (k < 0 || int(r.refKind[j]) == k) {
				mu.Lock()
				out[r.refID[j]] = struct{}{}
				mu.Unlock()
			}
		}
		return nil
	})
	return out, err
}
