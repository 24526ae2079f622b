package plan

import (
	"maps"
	"reflect"
	"slices"

	"shoal/controller/resource"
)

// Affected is the hosts whose documents may differ between two views because one resource changed from old to changed; nil
// stands for absent. The union over all changes between the views covers every document that differs. all says that
// every host may be.
//
// A document depends on a resource by a chain of references, and every link of that chain may have changed as well, so the
// chain is followed in both views.
func Affected(old, changed resource.Resource, before, after resource.Reader) (hosts map[string]struct{}, all bool) {
	a := &affected{hosts: map[string]struct{}{}, before: before, after: after}
	switch {
	case old == nil && changed == nil:
	case old == nil || changed == nil:
		r, in := changed, after
		if changed == nil {
			r, in = old, before
		}
		a.resource(r, nil, in)
	default:
		a.resource(old, changed, before)
		a.resource(changed, old, after)
	}
	return a.hosts, a.all
}

type affected struct {
	hosts         map[string]struct{}
	all           bool
	before, after resource.Reader
}

func (a *affected) add(host string) {
	if host != "" {
		a.hosts[host] = struct{}{}
	}
}

// resource adds the hosts that mention r in the view in. other is what it was or became, nil for nothing.
func (a *affected) resource(r, other resource.Resource, in resource.Reader) {
	if other == nil || !reflect.DeepEqual(originOf(r), originOf(other)) {
		a.origin(r, other != nil, in)
	}
	switch x := r.(type) {
	case *resource.Host:
		a.host(x, other, in)
	case *resource.Cluster:
		if o, ok := other.(*resource.Cluster); !ok || !maps.Equal(o.Drift, x.Drift) {
			for h := range resource.Referrers[*resource.Host](in, resource.KindCluster, x.ID) {
				a.add(h.ID)
			}
		}
	case *resource.Storage:
		// Of a storage, hosts know how to reach it and nothing else.
		o, _ := other.(*resource.Storage)
		same := o != nil && o.Type == x.Type && o.Path == x.Path && o.Source == x.Source && o.MountOptions == x.MountOptions
		for _, c := range x.ClusterIDs {
			if same && slices.Contains(o.ClusterIDs, c) {
				continue
			}
			for h := range resource.Referrers[*resource.Host](in, resource.KindCluster, c) {
				a.add(h.ID)
			}
		}
		if !same || !slices.Equal(o.ClusterIDs, x.ClusterIDs) {
			for v := range resource.Referrers[*resource.Volume](in, resource.KindStorage, x.ID) {
				a.add(resource.VolumeHost(in, v))
			}
		}
	case *resource.Release:
		if o, ok := other.(*resource.Release); !ok || o.Signature != x.Signature || o.SHA256 != x.SHA256 || o.Version != x.Version {
			for h := range resource.Referrers[*resource.Host](in, resource.KindRelease, x.ID) {
				a.add(h.ID)
			}
		}
	case *resource.VXLANPool:
		if o, ok := other.(*resource.VXLANPool); ok && o.Port == x.Port {
			return
		}
		for l2 := range resource.Referrers[*resource.L2](in, resource.KindVXLANPool, x.ID) {
			a.l2(in, l2.ID)
		}
	case *resource.L2:
		o, ok := other.(*resource.L2)
		if !ok || o.Type != x.Type || o.Device != x.Device || o.Bridge != x.Bridge || o.VLAN != x.VLAN || o.PoolID != x.PoolID || o.VNI != x.VNI {
			a.l2(in, x.ID)
		}
	case *resource.L3:
		// The largest MTU of the layer 3 networks is the bridge's.
		if o, ok := other.(*resource.L3); !ok || o.MTU != x.MTU || o.L2ID != x.L2ID {
			a.l2(in, x.L2ID)
		}
		if o, ok := other.(*resource.L3); !ok || o.NoDHCP != x.NoDHCP || o.DHCPServer != x.DHCPServer || o.Domain != x.Domain || !slices.Equal(o.DNS, x.DNS) {
			a.l3(in, x.ID)
		}
	case *resource.IPRange:
		if o, ok := other.(*resource.IPRange); !ok || o.L3ID != x.L3ID || o.Bits != x.Bits || o.Gateway != x.Gateway || o.Start != x.Start {
			a.l3(in, x.L3ID)
		}
	case *resource.SecGroup:
		if o, ok := other.(*resource.SecGroup); !ok || o.State != x.State {
			a.groupNICs(in, x.ID)
		}
	case *resource.SecRule:
		if o, ok := other.(*resource.SecRule); !ok || o.GroupID != x.GroupID || o.Unique()[0] != x.Unique()[0] {
			a.groupNICs(in, x.GroupID)
		}
	case *resource.VM:
		a.vm(x, other, in)
	case *resource.NIC:
		a.nic(x, other, in)
	case *resource.Volume:
		a.add(resource.VolumeHost(in, x))
	default:
		// Zones, images and offerings are in documents for a rebuild only, tasks not at all: what a host must know of an image is
		// in the volumes that stand on it.
	}
}

// origin adds the hosts whose documents say that they were made from r, among others.
func (a *affected) origin(r resource.Resource, changed bool, in resource.Reader) {
	switch x := r.(type) {
	case *resource.Account:
		for _, kind := range resource.Kinds() {
			if kind == resource.KindAccount {
				continue
			}
			for owned := range in.Owned(kind, x.ID) {
				a.origin(owned, changed, in)
			}
		}
	case *resource.Zone, *resource.Cluster:
		// What names a new one, or one that is gone, has changed itself.
		a.all = a.all || changed
	case *resource.Host:
		a.add(x.ID)
	case *resource.Storage:
		for _, c := range x.ClusterIDs {
			for h := range resource.Referrers[*resource.Host](in, resource.KindCluster, c) {
				a.add(h.ID)
			}
		}
		for v := range resource.Referrers[*resource.Volume](in, resource.KindStorage, x.ID) {
			a.add(resource.VolumeHost(in, v))
		}
	case *resource.Image:
		a.vmsAndVolumes(in, x.Kind(), x.ID)
	case *resource.Offering:
		a.vmsAndVolumes(in, x.Kind(), x.ID)
	case *resource.DiskOffering:
		a.vmsAndVolumes(in, x.Kind(), x.ID)
	case *resource.VXLANPool:
		for l2 := range resource.Referrers[*resource.L2](in, resource.KindVXLANPool, x.ID) {
			a.l2(in, l2.ID)
		}
	case *resource.L2:
		a.l2(in, x.ID)
	case *resource.L3:
		a.l3(in, x.ID)
	case *resource.IPRange:
		a.l3(in, x.L3ID)
	case *resource.SecGroup:
		a.groupNICs(in, x.ID)
		a.naming(in, []string{x.ID})
	case *resource.SecRule:
		a.groupNICs(in, x.GroupID)
	case *resource.VM:
		a.add(x.HostID)
	case *resource.NIC:
		a.nicHost(in, x)
	case *resource.Volume:
		a.add(resource.VolumeHost(in, x))
	default:
	}
}

// vmsAndVolumes adds the hosts of those that name a resource.
func (a *affected) vmsAndVolumes(in resource.Reader, kind resource.Kind, id string) {
	for vm := range resource.Referrers[*resource.VM](in, kind, id) {
		a.add(vm.HostID)
	}
	for v := range resource.Referrers[*resource.Volume](in, kind, id) {
		a.add(resource.VolumeHost(in, v))
	}
}

func (a *affected) host(x *resource.Host, other resource.Resource, in resource.Reader) {
	o, ok := other.(*resource.Host)
	sameVTEPs := ok && maps.Equal(o.VTEPs, x.VTEPs)
	// Whatever changed: a host that was put again as it was is to be told its document anew.
	a.add(x.ID)
	if sameVTEPs || !ok && len(x.VTEPs) == 0 {
		return
	}
	for l2 := range l2sOf(in, x.ID) {
		a.peers(in, l2)
	}
}

// l2sOf are the layer 2 networks that a host's VMs are in.
func l2sOf(r resource.Reader, host string) map[string]struct{} {
	out := map[string]struct{}{}
	for vm := range resource.Referrers[*resource.VM](r, resource.KindHost, host) {
		if vm.HostID != host {
			continue
		}
		for n := range resource.Referrers[*resource.NIC](r, resource.KindVM, vm.ID) {
			if l3, ok := resource.Find[*resource.L3](r, n.L3ID); ok {
				out[l3.L2ID] = struct{}{}
			}
		}
	}
	return out
}

// l2 adds the hosts with VMs in a layer 2 network.
func (a *affected) l2(in resource.Reader, id string) {
	for l3 := range resource.Referrers[*resource.L3](in, resource.KindL2, id) {
		a.l3(in, l3.ID)
	}
}

// peers adds them if the network is a VXLAN network, whose hosts know of each other.
func (a *affected) peers(in resource.Reader, l2 string) {
	if l, ok := resource.Find[*resource.L2](in, l2); ok && l.Type == resource.L2VXLAN {
		a.l2(in, l2)
	}
}

func (a *affected) l3(in resource.Reader, id string) {
	for n := range resource.Referrers[*resource.NIC](in, resource.KindL3, id) {
		a.nicHost(in, n)
	}
}

func (a *affected) nicHost(in resource.Reader, n *resource.NIC) {
	if vm, ok := resource.Find[*resource.VM](in, n.VMID); ok {
		a.add(vm.HostID)
	}
}

// groupNICs adds the hosts of a group's members.
func (a *affected) groupNICs(in resource.Reader, group string) {
	for n := range resource.Referrers[*resource.NIC](in, resource.KindSecGroup, group) {
		a.nicHost(in, n)
	}
}

// naming adds the hosts that keep a group's members as a set: those of NICs whose groups have a rule that names it.
func (a *affected) naming(in resource.Reader, groups []string) {
	done := map[string]bool{}
	for _, g := range groups {
		for rule := range resource.Referrers[*resource.SecRule](in, resource.KindSecGroup, g) {
			if rule.RemoteGroupID == g && !done[rule.GroupID] {
				done[rule.GroupID] = true
				a.groupNICs(in, rule.GroupID)
			}
		}
	}
}

// membership adds what changes when a host enters or leaves the networks of a NIC: their other hosts, who send to it. It
// is compared over both views whether the host is in the network, for most NICs are not the first of their host.
func (a *affected) membership(in resource.Reader, host, l3 string) {
	n, ok := resource.Find[*resource.L3](in, l3)
	if !ok {
		return
	}
	l2, ok := resource.Find[*resource.L2](in, n.L2ID)
	if !ok || l2.Type != resource.L2VXLAN {
		return
	}
	_, was := l2sOf(a.before, host)[l2.ID]
	_, is := l2sOf(a.after, host)[l2.ID]
	if was != is {
		a.l2(a.before, l2.ID)
		a.l2(a.after, l2.ID)
	}
}

func (a *affected) vm(x *resource.VM, other resource.Resource, in resource.Reader) {
	a.add(x.HostID)
	o, ok := other.(*resource.VM)
	moved := !ok || o.HostID != x.HostID
	binned := !ok || o.Destroyed.IsZero() != x.Destroyed.IsZero()
	if !moved && !binned {
		return
	}
	for n := range resource.Referrers[*resource.NIC](in, resource.KindVM, x.ID) {
		if moved {
			a.membership(in, x.HostID, n.L3ID)
		}
		// Members in the recycle bin are in no set.
		if binned {
			a.naming(in, n.SecGroupIDs)
		}
	}
}

func (a *affected) nic(x *resource.NIC, other resource.Resource, in resource.Reader) {
	vm, ok := resource.Find[*resource.VM](in, x.VMID)
	if !ok {
		return
	}
	a.add(vm.HostID)
	o, ok := other.(*resource.NIC)
	if !ok || o.L3ID != x.L3ID || o.VMID != x.VMID {
		a.membership(in, vm.HostID, x.L3ID)
	}
	switch {
	case !vm.Destroyed.IsZero():
	case !ok || o.IP != x.IP || o.VMID != x.VMID:
		a.naming(in, x.SecGroupIDs)
	case !slices.Equal(o.SecGroupIDs, x.SecGroupIDs):
		a.naming(in, slices.DeleteFunc(slices.Clone(x.SecGroupIDs), func(id string) bool { return slices.Contains(o.SecGroupIDs, id) }))
	}
}
