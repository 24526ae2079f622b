package plantest

import (
	"cmp"
	"encoding/json"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

type at struct {
	host string
	ref  desired.Ref
}

// Observed is what the hosts of a site report.
type Observed struct {
	hosts     map[string]resource.HostObservation
	statuses  map[at]desired.Status
	items     map[at]desired.Item
	published map[string]uint64
	seq       uint64
}

func newObserved() *Observed {
	return &Observed{
		hosts: map[string]resource.HostObservation{}, statuses: map[at]desired.Status{}, items: map[at]desired.Item{}, published: map[string]uint64{},
	}
}

func (o *Observed) clone() *Observed {
	return &Observed{
		hosts: maps.Clone(o.hosts), statuses: maps.Clone(o.statuses), items: maps.Clone(o.items), published: maps.Clone(o.published), seq: o.seq,
	}
}

// Status implements resource.Observed.
func (o *Observed) Status(host string, ref desired.Ref) (desired.Status, bool) {
	st, ok := o.statuses[at{host, ref}]
	return st, ok
}

// Drifted implements resource.Observed.
func (o *Observed) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(yield func(resource.HostItem, desired.Status) bool) {
		items := slices.SortedFunc(maps.Keys(o.statuses), func(a, b at) int { return cmp.Or(strings.Compare(a.host, b.host), a.ref.Compare(b.ref)) })
		for _, k := range items {
			if resource.HasDrifted(o.statuses[k]) && !yield(resource.HostItem{Host: k.host, Ref: k.ref}, o.statuses[k]) {
				return
			}
		}
	}
}

// Host implements resource.Observed.
func (o *Observed) Host(host string) resource.HostObservation { return o.hosts[host] }

// Published implements resource.Observed.
func (o *Observed) Published(host string, ref desired.Ref) (resource.PublishedItem, bool) {
	it, ok := o.items[at{host, ref}]
	return resource.PublishedItem{Rev: it.Rev, Cause: it.Cause}, ok
}

// PublishedGen implements resource.Observed.
func (o *Observed) PublishedGen(host string) uint64 { return o.published[host] }

// PublishedSeq implements resource.Observed.
func (o *Observed) PublishedSeq() uint64 { return o.seq }

// observe changes what is observed, in a view of its own.
func (s *Site) observe(fn func(o *Observed)) {
	v := *s.view
	v.observed = v.observed.clone()
	fn(v.observed)
	s.view = &v
}

// Connect makes a host report itself, with a machine of that size.
func (s *Site) Connect(host string, inv desired.Inventory) {
	s.observe(func(o *Observed) {
		o.hosts[host] = resource.HostObservation{
			Connected: true, Since: s.Now, Reported: true, Facts: desired.HostFacts{Gen: o.hosts[host].Facts.Gen, Version: "test", Started: s.Now, Inventory: inv},
		}
	})
}

// SetConnected pulls or plugs a host's network. What it reported stays.
func (s *Site) SetConnected(host string, connected bool) {
	s.observe(func(o *Observed) {
		h := o.hosts[host]
		h.Connected, h.Since = connected, s.Now
		o.hosts[host] = h
	})
}

// SetGen makes a host report that it was told a generation.
func (s *Site) SetGen(host string, gen uint64) {
	s.observe(func(o *Observed) {
		h := o.hosts[host]
		h.Facts.Gen = gen
		o.hosts[host] = h
	})
}

// SetClock makes a host report how its clock stands.
func (s *Site) SetClock(host string, c desired.Clock) {
	s.observe(func(o *Observed) {
		h := o.hosts[host]
		h.Facts.Clock = &c
		o.hosts[host] = h
	})
}

// SetPublishedGen makes a host's bucket hold a generation.
func (s *Site) SetPublishedGen(host string, gen uint64) {
	s.observe(func(o *Observed) { o.published[host] = gen })
}

// Report sets the status of an item; the revision is that of the published item unless given.
func (s *Site) Report(host string, ref desired.Ref, st desired.Status, facts any) {
	s.observe(func(o *Observed) { o.report(host, ref, st, facts, s.Now) })
}

func (o *Observed) report(host string, ref desired.Ref, st desired.Status, facts any, now time.Time) {
	if st.Rev == 0 {
		st.Rev = o.items[at{host, ref}].Rev
	}
	if facts != nil {
		b, err := json.Marshal(facts)
		if err != nil {
			panic(err)
		}
		st.Facts = b
	}
	if st.Since.IsZero() {
		st.Since = now
	}
	o.statuses[at{host, ref}] = st
}

// Publish writes the documents of all hosts.
func (s *Site) Publish() error {
	v := s.view
	d := plan.NewRenderer(v)
	docs := map[string][]desired.Item{}
	for h := range v.All(resource.KindHost) {
		items, _, err := d.Render(h.Base().ID)
		if err != nil {
			return err
		}
		docs[h.Base().ID] = items
	}
	s.observe(func(o *Observed) {
		seen := map[at]bool{}
		for host, items := range docs {
			changed := o.published[host] == 0
			for _, it := range items {
				k := at{host, it.Ref()}
				seen[k] = true
				if old, ok := o.items[k]; !ok || !old.SameContent(it) {
					it.Rev = v.seq
					o.items[k] = it
					changed = true
				}
			}
			for k := range o.items {
				if k.host == host && !seen[k] {
					delete(o.items, k)
					changed = true
				}
			}
			if changed {
				o.published[host] = v.seq
			}
		}
		for k := range o.items {
			if docs[k.host] == nil {
				delete(o.items, k)
			}
		}
		o.seq = v.seq
	})
	return nil
}

// Work lets the connected hosts do all that their documents say, at once.
func (s *Site) Work() {
	s.observe(func(o *Observed) {
		for k := range o.statuses {
			if _, wanted := o.items[k]; !wanted && o.hosts[k.host].Connected {
				delete(o.statuses, k)
			}
		}
		for id, h := range o.hosts {
			if h.Connected {
				h.Facts.Gen = o.published[id]
				o.hosts[id] = h
			}
		}
		for k, it := range o.items {
			if !o.hosts[k.host].Connected {
				continue
			}
			o.report(k.host, k.ref, desired.Status{Rev: it.Rev, Phase: desired.PhaseReady, Cause: it.Cause}, done(it, o.statuses[k]), s.Now)
		}
	})
}

// done is what a host reports once an item is as wanted.
func done(it desired.Item, old desired.Status) any {
	switch it.Kind {
	case desired.KindPool:
		if len(old.Facts) > 0 {
			return old.Facts
		}
		return desired.PoolFacts{TotalBytes: 1 << 40, FreeBytes: 900 << 30}
	case desired.KindVolume:
		var v desired.Volume
		if json.Unmarshal(it.Spec, &v) != nil {
			return nil
		}
		return desired.VolumeFacts{Absent: v.Absent, VirtualBytes: v.Bytes, ActualBytes: v.Bytes / 2}
	case desired.KindDomain:
		var d desired.Domain
		if json.Unmarshal(it.Spec, &d) != nil {
			return nil
		}
		f := desired.DomainFacts{State: desired.StateRunning, VNC: "127.0.0.1:5900"}
		switch d.Power {
		case desired.PowerOff:
			f.State, f.VNC = desired.StateShutoff, ""
		case desired.PowerPaused:
			f.State = desired.StatePaused
		case desired.PowerOn:
		}
		if d.Act != nil {
			f.Acted = &desired.Acted{Seq: d.Act.Seq}
		}
		return f
	case desired.KindDHCP:
		var d desired.DHCP
		if json.Unmarshal(it.Spec, &d) != nil {
			return nil
		}
		f := desired.DHCPFacts{Leases: map[string]netip.Addr{}}
		for _, e := range d.Entries {
			f.Leases[e.MAC] = e.IP
		}
		return f
	default:
		return nil
	}
}

// Tick takes the follow-up decisions, if there are any.
func (s *Site) Tick() (bool, error) {
	changed := false
	if !plan.Due(s.view, s.Now) {
		return false, nil
	}
	err := s.Commit(resource.Request{ID: "tick", Caller: resource.CallerController, Op: "controller.tick"}, func(tx resource.Tx) error {
		var err error
		changed, err = plan.Tick(tx)
		return err
	})
	return changed, err
}

// Settle publishes, lets hosts work and takes decisions until nothing is left to do.
func (s *Site) Settle() error {
	for range 20 {
		if err := s.Publish(); err != nil {
			return err
		}
		s.Work()
		if changed, err := s.Tick(); err != nil {
			return err
		} else if !changed {
			return nil
		}
	}
	panic("the site does not come to rest")
}

// Items are the published items of a host, in order.
func (s *Site) Items(host string) []desired.Item {
	var out []desired.Item
	for k, it := range s.view.observed.items {
		if k.host == host {
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b desired.Item) int { return a.Ref().Compare(b.Ref()) })
	return out
}
