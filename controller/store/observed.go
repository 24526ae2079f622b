package store

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"

	"shoal/controller/resource"
	"shoal/desired"
)

// observation is what one host reported of one item; nil for an item that is gone.
type observation struct {
	host   string
	ref    desired.Ref
	status *desired.Status
}

// hostRef is the item under which a host itself is reported.
func hostRef() desired.Ref { return desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID} }

// SetObserved takes what a host reports of an item; nil for an item that is gone. Watch does so for the whole bucket.
func (s *Store) SetObserved(host string, ref desired.Ref, st *desired.Status) {
	s.observe([]observation{{host, ref, st}})
}

// observe takes several reports at once. What is told again as it was told before, as the hosts' heartbeats are, changes nothing and
// wakes nobody: of 10,000 hosts there are hundreds of those a second, and who wakes looks at everything.
func (s *Store) observe(batch []observation) {
	var news []observation
	s.writeObserved(func(txn *memdb.Txn) error {
		for _, o := range batch {
			same, err := toldBefore(txn, o)
			if err != nil {
				return err
			}
			if same {
				continue
			}
			news = append(news, o)
			row := &statusRow{host: o.host, ref: o.ref}
			if o.status == nil {
				if _, err := txn.DeleteAll(tableStatus, indexID, statusKey(o.host, o.ref)); err != nil {
					return err
				}
			} else {
				row.status = *o.status
				if err := txn.Insert(tableStatus, row); err != nil {
					return err
				}
			}
			if o.ref != hostRef() {
				continue
			}
			h := *observedView{txn}.host(o.host)
			h.host = o.host
			h.seen.Facts, h.seen.Reported = desired.HostFacts{}, false
			if o.status != nil {
				facts, err := desired.DecodeFacts[desired.HostFacts](*o.status)
				if err != nil {
					s.log.Warn().Str("host", o.host).Err(err).Msg("host reports facts that can't be read")
				} else {
					h.seen.Facts, h.seen.Reported = facts, len(o.status.Facts) > 0
				}
			}
			if err := txn.Insert(tableHosts, &h); err != nil {
				return err
			}
		}
		return nil
	})
	if len(news) == 0 {
		return
	}
	for _, o := range news {
		s.observers.mark(observedKey{o.host, o.ref})
	}
	s.changed.wake()
}

// toldBefore reports whether what a host says is known.
func toldBefore(txn *memdb.Txn, o observation) (bool, error) {
	raw, err := txn.First(tableStatus, indexID, statusKey(o.host, o.ref))
	if err != nil {
		return false, err
	}
	row, there := raw.(*statusRow)
	if !there || o.status == nil {
		return !there && o.status == nil, nil
	}
	return reflect.DeepEqual(row.status, *o.status), nil
}

// SetConnected says whether a host's agent is connected, and since when.
func (s *Store) SetConnected(host string, connected bool, at time.Time) {
	s.setHost(host, func(h *hostRow) { h.seen.Connected, h.seen.Since = connected, at.UTC() })
}

// SetPublished says what was written into a host's bucket: its generation and all items. The map belongs to the store
// from then on; nil for a host whose bucket is gone.
func (s *Store) SetPublished(host string, gen uint64, items map[desired.Ref]resource.PublishedItem) {
	s.setHost(host, func(h *hostRow) { h.gen, h.items = gen, items })
}

// SetPublishedSeq says up to which journal sequence the documents of all hosts have been written.
func (s *Store) SetPublishedSeq(seq uint64) {
	s.writeObserved(func(txn *memdb.Txn) error { return txn.Insert(tableHosts, &hostRow{seq: seq}) })
	s.changed.wake()
}

// EachStatus tells everything that hosts have reported at this moment.
func (s *Store) EachStatus(fn func(host string, ref desired.Ref, st desired.Status)) {
	it, err := s.observedNow().txn.Get(tableStatus, indexID)
	if err != nil {
		s.log.Error().Err(err).Msg("can't list what was observed")
		return
	}
	for o := it.Next(); o != nil; o = it.Next() {
		row := o.(*statusRow)
		fn(row.host, row.ref, row.status)
	}
}

// EachHost tells what is known of every host at this moment, and what was published for it. The map is the store's.
func (s *Store) EachHost(fn func(host string, seen resource.HostObservation, gen uint64, items map[desired.Ref]resource.PublishedItem)) {
	it, err := s.observedNow().txn.Get(tableHosts, indexID)
	if err != nil {
		s.log.Error().Err(err).Msg("can't list what was observed")
		return
	}
	for o := it.Next(); o != nil; o = it.Next() {
		if row := o.(*hostRow); row.host != "" {
			fn(row.host, row.seen, row.gen, row.items)
		}
	}
}

func (s *Store) setHost(host string, change func(*hostRow)) {
	s.writeObserved(func(txn *memdb.Txn) error {
		h := *observedView{txn}.host(host)
		h.host = host
		change(&h)
		return txn.Insert(tableHosts, &h)
	})
	s.observers.mark(observedKey{host, hostRef()})
	s.changed.wake()
}

// writeObserved runs one transaction. memdb refuses only what the schema makes impossible.
func (s *Store) writeObserved(fn func(*memdb.Txn) error) {
	txn := s.observed.Txn(true)
	defer txn.Abort()
	if err := fn(txn); err != nil {
		s.log.Error().Err(err).Msg("can't keep what was observed")
		return
	}
	txn.Commit()
}

type observedKey struct {
	host string
	ref  desired.Ref
}

// observers are those who follow what hosts report. Each has the set of what changed since it last looked.
type observers struct {
	mu   sync.Mutex
	subs map[*observer]struct{}
}

type observer struct {
	dirty map[observedKey]struct{}
	wake  chan struct{}
}

func (o *observers) mark(k observedKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for sub := range o.subs {
		sub.dirty[k] = struct{}{}
		select {
		case sub.wake <- struct{}{}:
		default:
		}
	}
}

// ObservedChanges calls fn with every item whose status changed, until ctx ends. What changes several times while fn
// is busy is told once. A host's connection, its own status and what was published for it are told as its item host.self.
func (s *Store) ObservedChanges(ctx context.Context, fn func(host string, ref desired.Ref)) error {
	sub := &observer{dirty: map[observedKey]struct{}{}, wake: make(chan struct{}, 1)}
	s.observers.mu.Lock()
	s.observers.subs[sub] = struct{}{}
	s.observers.mu.Unlock()
	defer func() {
		s.observers.mu.Lock()
		defer s.observers.mu.Unlock()
		delete(s.observers.subs, sub)
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-sub.wake:
		}
		s.observers.mu.Lock()
		dirty := sub.dirty
		sub.dirty = map[observedKey]struct{}{}
		s.observers.mu.Unlock()
		for k := range dirty {
			fn(k.host, k.ref)
		}
	}
}
