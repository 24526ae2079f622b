package history

import (
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// observation is what hosts had reported at a moment, and what had been published for them: a resource.Observed.
type observation struct {
	hosts map[string]*hostPast
	seq   uint64
}

// hostPast is one host at a moment. Items are named as their keys are.
type hostPast struct {
	seen      resource.HostObservation
	gen       uint64
	status    map[string]json.RawMessage
	published map[string]resource.PublishedItem
	// items and head are the bytes that were seen while HISTORY was read.
	items map[string][]byte
	head  []byte
}

func newObservation() *observation { return &observation{hosts: map[string]*hostPast{}} }

func (o *observation) host(id string) *hostPast {
	h := o.hosts[id]
	if h == nil {
		h = &hostPast{status: map[string]json.RawMessage{}, published: map[string]resource.PublishedItem{}, items: map[string][]byte{}}
		o.hosts[id] = h
	}
	return h
}

// Status implements resource.Observed.
func (o *observation) Status(host string, ref desired.Ref) (desired.Status, bool) {
	h := o.hosts[host]
	if h == nil {
		return desired.Status{}, false
	}
	raw, ok := h.status[ref.String()]
	if !ok {
		return desired.Status{}, false
	}
	st, err := desired.DecodeStatus(raw)
	return st, err == nil
}

// Drifted implements resource.Observed.
func (o *observation) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(yield func(resource.HostItem, desired.Status) bool) {
		for _, host := range slices.Sorted(maps.Keys(o.hosts)) {
			for _, name := range slices.Sorted(maps.Keys(o.hosts[host].status)) {
				var ref desired.Ref
				if ref.UnmarshalText([]byte(name)) != nil {
					continue
				}
				if st, ok := o.Status(host, ref); ok && resource.HasDrifted(st) && !yield(resource.HostItem{Host: host, Ref: ref}, st) {
					return
				}
			}
		}
	}
}

// Host implements resource.Observed.
func (o *observation) Host(host string) resource.HostObservation {
	if h := o.hosts[host]; h != nil {
		return h.seen
	}
	return resource.HostObservation{}
}

// Published implements resource.Observed.
func (o *observation) Published(host string, ref desired.Ref) (resource.PublishedItem, bool) {
	h := o.hosts[host]
	if h == nil {
		return resource.PublishedItem{}, false
	}
	it, ok := h.published[ref.String()]
	return it, ok
}

// PublishedGen implements resource.Observed.
func (o *observation) PublishedGen(host string) uint64 {
	if h := o.hosts[host]; h != nil {
		return h.gen
	}
	return 0
}

// PublishedSeq implements resource.Observed. It is the state's own: publishing takes some milliseconds, and what was not
// yet written then is missing among the items themselves.
func (o *observation) PublishedSeq() uint64 { return o.seq }

// headerSource is on messages that HISTORY has from the bucket of what hosts report, and on no others.
const headerSource = "Nats-Stream-Source"

// hostKey is the key under which HISTORY has what is known of a host as a whole.
func hostKey() string { return subjects.ItemKey(string(desired.KindHost), desired.HostStatusID) }

// reported reports whether a message of HISTORY is a status; otherwise it is of a document, or of a host as a whole.
func reported(h nats.Header) bool { return h.Get(headerSource) != "" }

func gone(h nats.Header) bool {
	op := h.Get("KV-Operation")
	return op == "DEL" || op == "PURGE" || h.Get("Nats-Marker-Reason") != ""
}

// take takes in a message of HISTORY.
func (o *observation) take(r journal.Raw) {
	id, key, err := subjects.ParseHistory(r.Subject)
	if err != nil {
		return
	}
	h := o.host(id)
	switch {
	case reported(r.Header) && gone(r.Header):
		delete(h.status, key)
	case reported(r.Header):
		h.status[key] = r.Data
	case key == hostKey():
		var rec hostRecord
		if json.Unmarshal(r.Data, &rec) == nil {
			h.seen = rec.observation()
		}
	case key == subjects.HeadKey:
		if head, err := desired.DecodeHead(r.Data); err == nil {
			h.gen, h.head = head.Gen, r.Data
		}
	case gone(r.Header):
		delete(h.published, key)
		delete(h.items, key)
	default:
		if it, err := desired.DecodeItem(r.Data); err == nil {
			h.published[key] = resource.PublishedItem{Rev: it.Rev, Cause: it.Cause}
			h.items[key] = r.Data
		}
	}
}

// copy is an observation that can be changed.
func (o *observation) copy() *observation {
	c := &observation{hosts: make(map[string]*hostPast, len(o.hosts)), seq: o.seq}
	for id, h := range o.hosts {
		x := *h
		x.status, x.published, x.items = maps.Clone(h.status), maps.Clone(h.published), maps.Clone(h.items)
		c.hosts[id] = &x
	}
	return c
}

// margin is how long before a checkpoint HISTORY is read again: longer than a report takes into HISTORY, and clocks of one
// site may differ a little.
const margin = 10 * time.Second
