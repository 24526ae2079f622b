package history

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"shoal/controller/journal"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// EventSort is what a change of a host is of.
type EventSort string

// The sorts.
const (
	OfDocument EventSort = "document" // an item that the host must be, or its document's head
	OfStatus   EventSort = "status"   // what the agent reported of an item
	OfHost     EventSort = "host"     // connection and facts of the host as a whole
	OfResource EventSort = "resource" // the host's own record in the journal
)

// Event is one change of a host's document, or of what it reported.
type Event struct {
	// Seq is the message of HISTORY, or of the journal where Sort is "resource".
	Seq    uint64    `json:"seq"`
	At     time.Time `json:"at"`
	Sort   EventSort `json:"sort"`
	Item   string    `json:"item"`
	Change Change    `json:"change"`
	// Rev and Cause are of the item; Gen is of a head.
	Rev   uint64 `json:"rev,omitempty"`
	Gen   uint64 `json:"gen,omitempty"`
	Cause string `json:"cause,omitempty"`
	// Phase and Fault are of a status.
	Phase string         `json:"phase,omitempty"`
	Fault *desired.Fault `json:"fault,omitempty"`
	// Fields are what differs from what was before, where that is known.
	Fields []Field         `json:"fields,omitempty"`
	Value  json.RawMessage `json:"value,omitempty"`
}

// Events are the changes of a host from a time on, oldest first, until another. After continues behind a message of HISTORY. More says
// that the limit cut them.
func (h *History) Events(ctx context.Context, host string, from, until time.Time, after uint64, limit int) (events []Event, more bool, err error) {
	session := journal.Session{JS: h.cfg.JS, Stream: subjects.HistoryStream, Filters: []string{subjects.HistorySubject(host, ">")}, From: 1, Begin: stopAtEnd}
	if !from.IsZero() {
		session.From, session.Since = 0, from
	}
	// What was before the first change of each key is not known, unless the reading starts before it.
	before := map[string]json.RawMessage{}
	err = session.Run(ctx, func(r journal.Raw) error {
		if !until.IsZero() && !r.At.Before(until) {
			return journal.ErrStop
		}
		e, ok := eventOf(r, before)
		if ok && r.Seq > after {
			if len(events) == limit {
				more = true
				return journal.ErrStop
			}
			events = append(events, e)
		}
		if r.Pending == 0 {
			return journal.ErrStop
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the history of host %s: %w", host, err)
	}
	return events, more, nil
}

func eventOf(r journal.Raw, before map[string]json.RawMessage) (Event, bool) {
	_, key, err := subjects.ParseHistory(r.Subject)
	if err != nil {
		return Event{}, false
	}
	e := Event{Seq: r.Seq, At: r.At, Sort: OfDocument, Item: key, Change: Modified, Value: r.Data}
	switch {
	case reported(r.Header):
		e.Sort = OfStatus
	case key == hostKey():
		e.Sort = OfHost
	}
	was := string(e.Sort) + " " + key
	old, known := before[was]
	if gone(r.Header) {
		delete(before, was)
		e.Change, e.Value = Deleted, nil
		return e, true
	}
	before[was] = r.Data
	if !known {
		e.Change = Created
	}
	switch {
	case e.Sort == OfStatus:
		if st, err := desired.DecodeStatus(r.Data); err == nil {
			e.Rev, e.Cause, e.Phase, e.Fault = st.Rev, st.Cause, string(st.Phase), st.Fault
		}
	case key == subjects.HeadKey:
		if head, err := desired.DecodeHead(r.Data); err == nil {
			e.Gen = head.Gen
		}
	case e.Sort == OfDocument:
		if it, err := desired.DecodeItem(r.Data); err == nil {
			e.Rev, e.Cause = it.Rev, it.Cause
		}
	}
	if known {
		e.Fields = Diff(old, r.Data, func(f string) bool { return f == "rev" || f == "cause" || f == "gen" || f == "items" })
	}
	return e, true
}

// Document is the document that a host had at a moment.
type Document struct {
	Host string    `json:"host"`
	Gen  uint64    `json:"gen"`
	At   time.Time `json:"at"`
	// Head and Items are the bytes that the host got, as they are rendered from the journal; Items by name.
	Head  json.RawMessage            `json:"head"`
	Items map[string]json.RawMessage `json:"items"`
	// Verified says that every item's hash is that in the head that the host got. Differs names those that are not.
	Verified bool     `json:"verified"`
	Differs  []string `json:"differs,omitempty"`
}

// Document renders the document that a host had at a moment. It is not found where HISTORY does not know one.
func (h *History) Document(ctx context.Context, host string, until time.Time) (*Document, error) {
	obs, err := h.documentsUntil(ctx, host, until)
	if err != nil {
		return nil, err
	}
	past := obs.hosts[host]
	if past == nil || past.head == nil {
		return nil, &resource.Error{
			Code: resource.CodeNotFound, Field: "host", Message: fmt.Sprintf("host %s had no document at %s, or HISTORY does not have it any more", host, until.Format(time.RFC3339)),
			Remedy: "see shoalctl history host " + host,
		}
	}
	head, err := desired.DecodeHead(past.head)
	if err != nil {
		return nil, err
	}
	s, _, err := h.stateBefore(ctx, head.Gen+1, time.Time{})
	if err != nil {
		return nil, err
	}
	items, bits, err := plan.Render(newView(s, obs), host)
	if err != nil {
		return nil, fmt.Errorf("render document %d of host %s: %w", head.Gen, host, err)
	}
	doc := &Document{Host: host, Gen: head.Gen, At: until, Items: map[string]json.RawMessage{}, Verified: true}
	again := desired.Head{Host: host, Gen: head.Gen, Items: map[desired.Ref]string{}, Shrink: bits.Shrink, Policy: bits.Policy}
	told := false
	for ref := range head.Items {
		told = told || ref.Kind == desired.KindOrigin
	}
	for _, it := range items {
		if it.Kind == desired.KindOrigin && !told {
			continue // controllers did not tell yet what documents are made from
		}
		// Which transaction made an item what it is, the publisher had found out and recorded.
		pub := past.published[it.Ref().String()]
		it.Rev, it.Cause = pub.Rev, pub.Cause
		b, err := it.Encode()
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", it.Ref(), err)
		}
		doc.Items[it.Ref().String()] = b
		again.Items[it.Ref()] = desired.Hash(b)
		if again.Items[it.Ref()] != head.Items[it.Ref()] {
			doc.Differs = append(doc.Differs, it.Ref().String())
		}
	}
	for ref := range head.Items {
		if _, ok := again.Items[ref]; !ok {
			doc.Differs = append(doc.Differs, ref.String())
		}
	}
	slices.Sort(doc.Differs)
	if doc.Head, err = again.Encode(); err != nil {
		return nil, fmt.Errorf("encode head: %w", err)
	}
	doc.Verified = len(doc.Differs) == 0 && bytes.Equal(doc.Head, past.head)
	return doc, nil
}

// documentsUntil is what was published for a host up to a time, with the newest head.
func (h *History) documentsUntil(ctx context.Context, host string, until time.Time) (*observation, error) {
	seq := h.cfg.Store.Seq()
	from := base{obs: newObservation()}
	if next, err := h.cfg.Journal.FirstSince(ctx, until.Add(time.Nanosecond)); err != nil {
		return nil, err
	} else if next <= seq {
		seq = next - 1
	}
	if _, near, err := h.stateBefore(ctx, seq+1, until); err != nil {
		return nil, err
	} else if !near.taken.IsZero() {
		from = near
	}
	// The host alone: the others need not be copied.
	only := &observation{hosts: map[string]*hostPast{}}
	if x := from.obs.hosts[host]; x != nil {
		only.hosts[host] = x
	}
	obs, err := h.observedAt(ctx, base{only, from.taken}, until, host)
	if err != nil {
		return nil, err
	}
	if x := obs.host(host); x.head == nil || !from.taken.IsZero() {
		// The head's bytes are in no checkpoint: it may be older than the newest one.
		head, err := h.lastHead(ctx, host, until)
		if err != nil {
			return nil, err
		}
		x.head = head
	}
	return obs, nil
}

// lastHead is the newest head of a host that HISTORY has up to a time; nil for none.
func (h *History) lastHead(ctx context.Context, host string, until time.Time) ([]byte, error) {
	req, err := json.Marshal(map[string]any{"multi_last": []string{subjects.HistorySubject(host, subjects.HeadKey)}, "up_to_time": until.Add(time.Nanosecond), "batch": 1})
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nc := h.cfg.JS.Conn()
	sub, err := nc.SubscribeSync(nc.NewRespInbox())
	if err != nil {
		return nil, fmt.Errorf("read head of host %s: %w", host, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(subjects.DirectGetStream(subjects.HistoryStream), sub.Subject, req); err != nil {
		return nil, fmt.Errorf("read head of host %s: %w", host, err)
	}
	m, err := sub.NextMsgWithContext(short)
	if err != nil {
		return nil, fmt.Errorf("read head of host %s: %w", host, err)
	}
	switch status := m.Header.Get("Status"); status {
	case "":
		return m.Data, nil
	case "404", "204":
		return nil, nil
	default:
		return nil, fmt.Errorf("read head of host %s: %s %s", host, status, m.Header.Get("Description"))
	}
}

// Difference is how two moments differ.
type Difference struct {
	From      Moment          `json:"from"`
	To        Moment          `json:"to"`
	Resources []Touched       `json:"resources"`
	Documents []plan.HostDiff `json:"documents"`
}

// Diff compares two moments: resources, and the documents that follow from them.
func (h *History) Diff(ctx context.Context, from, to Moment) (*Difference, error) {
	if from.Seq > to.Seq {
		return nil, resource.Invalid("from", "is after the other moment")
	}
	a, err := h.at(ctx, from)
	if err != nil {
		return nil, err
	}
	b, err := h.at(ctx, to)
	if err != nil {
		return nil, err
	}
	out := &Difference{From: from, To: to, Resources: []Touched{}}
	for _, kind := range resource.Kinds() {
		ids := map[string]struct{}{}
		for _, m := range []map[string]*value{a.kinds[kind], b.kinds[kind]} {
			for id := range m {
				ids[id] = struct{}{}
			}
		}
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			x, y := a.kinds[kind][id], b.kinds[kind][id]
			if x == y || x != nil && y != nil && bytes.Equal(x.raw, y.raw) {
				continue
			}
			t := Touched{Kind: kind, ID: id, Change: Modified}
			var old, now json.RawMessage
			var m meta
			if x == nil {
				t.Change = Created
			} else {
				old = x.raw
				_ = json.Unmarshal(old, &m)
			}
			if y == nil {
				t.Change = Deleted
			} else {
				now = y.raw
				_ = json.Unmarshal(now, &m)
			}
			t.Name, t.Fields = m.Name, Diff(Show(nil).shown(kind, id, old), Show(nil).shown(kind, id, now), bookkeeping)
			out.Resources = append(out.Resources, t)
		}
	}
	out.Documents, err = plan.DocumentDiff(a, b)
	if err != nil {
		return nil, fmt.Errorf("compare documents: %w", err)
	}
	return out, nil
}

// How often it is looked whether what is known of hosts is recorded: soon after the start, for what changed before anybody listened,
// and then for what could not be written.
const (
	recordSoon  = 200 * time.Millisecond
	recordEvery = time.Minute
)

// RecordHosts writes into HISTORY what is known of hosts as a whole, whenever it changes, until ctx ends: whether the agent is
// connected, and what it says of the machine. Reports that say the same again are left out. The leader does this.
func (h *History) RecordHosts(ctx context.Context) error {
	told := map[string][]byte{}
	record := func(host string) {
		seen := h.cfg.Store.View().Observed().Host(host)
		b, err := desired.Canonical(hostRecord{Connected: seen.Connected, Since: seen.Since, Reported: seen.Reported, Facts: seen.Facts})
		if err != nil || bytes.Equal(told[host], b) {
			return
		}
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if _, err := h.cfg.JS.PublishMsg(short, &nats.Msg{Subject: subjects.HistorySubject(host, hostKey()), Data: b}, jetstream.WithRetryAttempts(1)); err != nil {
			if ctx.Err() == nil {
				h.log.Warn().Err(err).Str("host", host).Msg("what is known of a host is not recorded yet")
			}
			return
		}
		told[host] = b
	}
	changed := make(chan string)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return h.cfg.Store.ObservedChanges(ctx, func(host string, ref desired.Ref) {
			if ref.String() != hostKey() {
				return
			}
			select {
			case changed <- host:
			case <-ctx.Done():
			}
		})
	})
	// One goroutine records, so that an older state never comes after a newer one.
	group.Go(func() error {
		all := time.NewTimer(recordSoon)
		defer all.Stop()
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case host := <-changed:
				record(host)
			case <-all.C:
				h.cfg.Store.EachHost(func(host string, _ resource.HostObservation, _ uint64, _ map[desired.Ref]resource.PublishedItem) {
					record(host)
				})
				all.Reset(recordEvery)
			}
		}
	})
	return group.Wait()
}
