package trace

import (
	"encoding/json"
	"slices"

	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// filters are the subjects of HISTORY that a transaction can show in. wide says that these are not all: then documents are looked for
// under every subject, for a short time.
func filters(r resource.Reader, e journal.Found) (out []string, wide bool) {
	onAny := func(refs ...desired.Ref) {
		for _, ref := range refs {
			out = append(out, subjects.HistorySubject("*", ref.String()))
		}
	}
	values := map[resource.Ref]resource.Resource{}
	for _, c := range e.Changes {
		if c.Value == nil {
			continue
		}
		if res := resource.New(c.Kind); res != nil && json.Unmarshal(c.Value, res) == nil {
			values[resource.Ref{Kind: c.Kind, ID: c.ID}] = res
		}
	}
	for _, c := range e.Changes {
		res := values[resource.Ref{Kind: c.Kind, ID: c.ID}]
		switch x := res.(type) {
		case *resource.VM:
			onAny(resource.DomainRef(x.ID))
			if !x.Created.Equal(x.Updated) {
				// With it, what belongs to it may have gone to another host.
				for n := range resource.Referrers[*resource.NIC](r, resource.KindVM, x.ID) {
					onAny(nicRefs(r, n)...)
				}
				for v := range resource.Referrers[*resource.Volume](r, resource.KindVM, x.ID) {
					onAny(resource.VolumeRef(v.ID))
				}
			}
			if !x.Destroyed.IsZero() || x.Undefine {
				wide = true // its members leave sets
			}
		case *resource.NIC:
			onAny(nicRefs(r, x)...)
			if x.Rev != 0 && !x.Created.Equal(x.Updated) {
				wide = true // what it was before is not known here
			}
		case *resource.Volume:
			onAny(resource.VolumeRef(x.ID))
			if x.StorageID != "" && x.ImageID != "" {
				onAny(resource.ImageRef(x.StorageID, x.ImageID))
			}
			for _, vm := range []string{x.VMID, x.LeavingVMID} {
				if vm != "" {
					onAny(resource.DomainRef(vm))
				}
			}
		case *resource.L3:
			onAny(resource.DHCPRef(x.ID), resource.NetDevRef(x.L2ID))
		case *resource.IPRange:
			onAny(resource.DHCPRef(x.L3ID))
		case *resource.L2:
			onAny(resource.NetDevRef(x.ID))
		case *resource.Storage:
			onAny(resource.PoolRef(x.ID))
		case *resource.Host:
			out = append(out, subjects.HistorySubject(x.ID, ">"))
			wide = wide || len(x.VTEPs) > 0
		case *resource.Zone, *resource.Offering, *resource.DiskOffering, *resource.Task, *resource.Plan, *resource.Image:
			// They are in no document.
		case nil:
			// A deletion, or a kind of a newer controller: what it was made of is not known here.
			wide = wide || c.Kind != resource.KindTask && c.Kind != resource.KindPlan
		default:
			// Security groups and rules, pools and clusters show in items of others.
			wide = true
		}
	}
	slices.Sort(out)
	return slices.Compact(out), wide
}

// nicRefs are the items that a NIC shows in.
func nicRefs(r resource.Reader, n *resource.NIC) []desired.Ref {
	out := []desired.Ref{resource.SecGroupRef(n.ID), resource.DHCPRef(n.L3ID), resource.DomainRef(n.VMID)}
	for _, g := range n.SecGroupIDs {
		out = append(out, resource.AddrSetRef(g))
	}
	if l3, ok := resource.Find[*resource.L3](r, n.L3ID); ok {
		out = append(out, resource.NetDevRef(l3.L2ID))
	}
	return out
}
