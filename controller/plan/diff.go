package plan

import (
	"encoding/json"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// Change is what becomes of an item.
type Change string

// The changes.
const (
	ItemAdded   Change = "added"
	ItemChanged Change = "changed"
	ItemRemoved Change = "removed"
)

// ItemDiff is an item that differs between two documents of a host.
type ItemDiff struct {
	Ref    desired.Ref `json:"ref"`
	Change Change      `json:"change"`
	// Old and New are the item's specs; Needs are those of the new one.
	Old   json.RawMessage `json:"old,omitempty"`
	New   json.RawMessage `json:"new,omitempty"`
	Needs []desired.Ref   `json:"needs,omitempty"`
}

// HostDiff is how a change of resources changes the document of a host.
type HostDiff struct {
	HostID string     `json:"host_id"`
	Host   string     `json:"host"`
	Items  []ItemDiff `json:"items"`
	// Stops, Restarts and Starts name the VMs that this would happen to.
	Stops    []string `json:"stops,omitempty"`
	Restarts []string `json:"restarts,omitempty"`
	Starts   []string `json:"starts,omitempty"`
	// Erases names the volumes whose data would be removed.
	Erases []string `json:"erases,omitempty"`
}

// DocumentDiff is what a change of resources does to the documents of all hosts, as a dry run shows it: only hosts whose
// documents differ, ordered by name, their items by reference.
func DocumentDiff(before, after resource.Reader) ([]HostDiff, error) {
	hosts := map[string]struct{}{}
	for _, kind := range resource.Kinds() {
		// Both are ordered by id, but a map asks less of a Reader.
		old := map[string]resource.Resource{}
		for r := range before.All(kind) {
			old[r.Base().ID] = r
		}
		add := func(a, b resource.Resource) bool {
			some, all := Affected(a, b, before, after)
			for h := range some {
				hosts[h] = struct{}{}
			}
			return all
		}
		all := false
		for r := range after.All(kind) {
			o := old[r.Base().ID]
			delete(old, r.Base().ID)
			if o != r {
				all = add(o, r) || all
			}
		}
		for _, o := range old {
			all = add(o, nil) || all
		}
		if all {
			for _, r := range []resource.Reader{before, after} {
				for h := range r.All(resource.KindHost) {
					hosts[h.Base().ID] = struct{}{}
				}
			}
		}
	}
	from, to := NewRenderer(before), NewRenderer(after)
	var out []HostDiff
	for h := range hosts {
		d, err := hostDiff(from, to, h)
		if err != nil {
			return nil, err
		}
		if len(d.Items) > 0 {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b HostDiff) int { return strings.Compare(a.Host+"\x00"+a.HostID, b.Host+"\x00"+b.HostID) })
	return out, nil
}

// renderOrNothing are the items of a host that it does something about; none for a host that is not there.
func renderOrNothing(d *Renderer, host string) (map[desired.Ref]desired.Item, error) {
	out := map[desired.Ref]desired.Item{}
	if d.r.Get(resource.KindHost, host) == nil {
		return out, nil
	}
	items, _, err := d.Render(host)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		// What a host only keeps does nothing to it.
		if it.Kind != desired.KindOrigin {
			out[it.Ref()] = it
		}
	}
	return out, nil
}

func hostDiff(from, to *Renderer, host string) (HostDiff, error) {
	d := HostDiff{HostID: host, Host: hostName(to.r, host)}
	if d.Host == host {
		d.Host = hostName(from.r, host)
	}
	old, err := renderOrNothing(from, host)
	if err != nil {
		return d, err
	}
	now, err := renderOrNothing(to, host)
	if err != nil {
		return d, err
	}
	for ref, it := range now {
		o, ok := old[ref]
		switch {
		case !ok:
			d.Items = append(d.Items, ItemDiff{Ref: ref, Change: ItemAdded, New: it.Spec, Needs: it.Needs})
		case !o.SameContent(it):
			d.Items = append(d.Items, ItemDiff{Ref: ref, Change: ItemChanged, Old: o.Spec, New: it.Spec, Needs: it.Needs})
		default:
			continue
		}
		d.effect(from.r, to.r, ref, o.Spec, it.Spec)
	}
	for ref, o := range old {
		if _, ok := now[ref]; !ok {
			d.Items = append(d.Items, ItemDiff{Ref: ref, Change: ItemRemoved, Old: o.Spec})
			d.effect(from.r, to.r, ref, o.Spec, nil)
		}
	}
	slices.SortFunc(d.Items, func(a, b ItemDiff) int { return a.Ref.Compare(b.Ref) })
	for _, s := range []*[]string{&d.Stops, &d.Restarts, &d.Starts, &d.Erases} {
		slices.Sort(*s)
	}
	return d, nil
}

// effect notes what the change of an item does to guests and data.
func (d *HostDiff) effect(before, after resource.Reader, ref desired.Ref, old, now json.RawMessage) {
	name := func(kind resource.Kind) string {
		for _, r := range []resource.Reader{after, before} {
			if x := r.Get(kind, ref.ID); x != nil {
				return x.Base().Name
			}
		}
		return ref.ID
	}
	switch ref.Kind {
	case desired.KindDomain:
		var a, b desired.Domain
		if len(old) > 0 && json.Unmarshal(old, &a) != nil || len(now) > 0 && json.Unmarshal(now, &b) != nil {
			return
		}
		was, is := a.Power != "" && a.Power != desired.PowerOff, b.Power != "" && b.Power != desired.PowerOff
		switch {
		case was && !is:
			d.Stops = append(d.Stops, name(resource.KindVM))
		case !was && is:
			d.Starts = append(d.Starts, name(resource.KindVM))
		case is && b.Act != nil && (a.Act == nil || a.Act.Seq != b.Act.Seq):
			d.Restarts = append(d.Restarts, name(resource.KindVM))
		}
	case desired.KindVolume:
		var a, b desired.Volume
		if len(old) > 0 && json.Unmarshal(old, &a) != nil || len(now) > 0 && json.Unmarshal(now, &b) != nil {
			return
		}
		if b.Absent && !a.Absent {
			d.Erases = append(d.Erases, name(resource.KindVolume))
		}
	default:
		// Other items stop no guest and remove no data.
	}
}
