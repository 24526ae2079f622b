package store

import (
	"iter"
	"strings"

	"github.com/hashicorp/go-memdb"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
)

// view is a resource.Reader on one snapshot of the resources and one of what was observed.
type view struct {
	seq      uint64
	txn      *memdb.Txn
	observed observedView
}

// The indexes and tables are those of the schemas, and arguments are strings: memdb has nothing to complain about but
// unknown kinds, of which there are no resources.

// Seq implements resource.Reader.
func (v *view) Seq() uint64 { return v.seq }

// Get implements resource.Reader.
func (v *view) Get(kind resource.Kind, id string) resource.Resource {
	o, err := v.txn.First(string(kind), indexID, id)
	if err != nil || o == nil {
		return nil
	}
	return o.(resource.Resource)
}

// All implements resource.Reader.
func (v *view) All(kind resource.Kind) iter.Seq[resource.Resource] {
	return v.each(func() (memdb.ResultIterator, error) { return v.txn.Get(string(kind), indexID) })
}

// Owned implements resource.Reader.
func (v *view) Owned(kind resource.Kind, account string) iter.Seq[resource.Resource] {
	return v.each(func() (memdb.ResultIterator, error) {
		return v.txn.Get(string(kind), indexOwner+"_prefix", ownerKey(account))
	})
}

// Named implements resource.Reader.
func (v *view) Named(kind resource.Kind, name string) iter.Seq[resource.Resource] {
	return v.each(func() (memdb.ResultIterator, error) { return v.txn.Get(string(kind), indexName, name) })
}

// Referrers implements resource.Reader.
func (v *view) Referrers(from, kind resource.Kind, id string) iter.Seq[resource.Resource] {
	return v.each(func() (memdb.ResultIterator, error) { return v.txn.Get(string(from), indexRefs, refKey(kind, id)) })
}

func (v *view) each(get func() (memdb.ResultIterator, error)) iter.Seq[resource.Resource] {
	return func(yield func(resource.Resource) bool) {
		it, err := get()
		if err != nil {
			return
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if !yield(o.(resource.Resource)) {
				return
			}
		}
	}
}

// Holder implements resource.Reader.
func (v *view) Holder(key string) resource.Resource {
	o, err := v.txn.First(tableHolders, indexID, key)
	if err != nil || o == nil {
		return nil
	}
	h := o.(*holder)
	return v.Get(h.kind, h.id)
}

// HoldersFrom implements resource.Reader.
func (v *view) HoldersFrom(prefix, from string) iter.Seq[string] {
	return func(yield func(string) bool) {
		it, err := v.txn.LowerBound(tableHolders, indexID, max(prefix, from))
		if err != nil {
			return
		}
		for o := it.Next(); o != nil; o = it.Next() {
			key := o.(*holder).key
			if !strings.HasPrefix(key, prefix) || !yield(key) {
				return
			}
		}
	}
}

// Observed implements resource.Reader.
func (v *view) Observed() resource.Observed { return v.observed }

// observedView is a resource.Observed on one snapshot.
type observedView struct{ txn *memdb.Txn }

func (v observedView) host(host string) *hostRow {
	o, err := v.txn.First(tableHosts, indexID, host)
	if err != nil || o == nil {
		return &hostRow{}
	}
	return o.(*hostRow)
}

// Status implements resource.Observed.
func (v observedView) Status(host string, ref desired.Ref) (desired.Status, bool) {
	o, err := v.txn.First(tableStatus, indexID, statusKey(host, ref))
	if err != nil || o == nil {
		return desired.Status{}, false
	}
	return o.(*statusRow).status, true
}

// Drifted implements resource.Observed.
func (v observedView) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(yield func(resource.HostItem, desired.Status) bool) {
		it, err := v.txn.Get(tableStatus, indexDrifted)
		if err != nil {
			return
		}
		for o := it.Next(); o != nil; o = it.Next() {
			r := o.(*statusRow)
			if !yield(resource.HostItem{Host: r.host, Ref: r.ref}, r.status) {
				return
			}
		}
	}
}

// Host implements resource.Observed.
func (v observedView) Host(host string) resource.HostObservation { return v.host(host).seen }

// Published implements resource.Observed.
func (v observedView) Published(host string, ref desired.Ref) (resource.PublishedItem, bool) {
	it, ok := v.host(host).items[ref]
	return it, ok
}

// PublishedGen implements resource.Observed.
func (v observedView) PublishedGen(host string) uint64 { return v.host(host).gen }

// PublishedSeq implements resource.Observed.
func (v observedView) PublishedSeq() uint64 { return v.host("").seq }

// Position is a state with the message of the journal that it is of.
type Position struct {
	At   journal.Position
	View resource.Reader
}

// Position is the newest state; ok is false before anything was committed or loaded.
func (s *Store) Position() (p Position, ok bool) {
	cur := s.current.Load()
	return Position{cur.at, s.viewOf(cur)}, cur.at.Seq > 0
}
