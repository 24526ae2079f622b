package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// Ahead is how what a host has been told differs from what the state would tell it. It is for hosts that are held.
type Ahead struct {
	// Diff is what would become of the host if the state's document were written now, without taking over anything first.
	Diff HostDiff `json:"diff"`
	// OnlyHost are the VMs and volumes that only the host knows: made since the state that was restored. They are never
	// removed, whatever is decided.
	OnlyHost []Known `json:"only_host,omitempty"`
	// OnlyState are the VMs that the state puts on the host and the host no longer has: moved or removed since.
	OnlyState []Known `json:"only_state,omitempty"`
	// Elsewhere are the VMs that the host has and the state puts on another host.
	Elsewhere []Known `json:"elsewhere,omitempty"`
}

// Known names a VM or volume.
type Known struct {
	Kind resource.Kind `json:"kind"`
	ID   string        `json:"id"`
	Name string        `json:"name,omitempty"`
	// Host is the one that the state puts it on.
	Host string `json:"host,omitempty"`
}

// Same reports whether the host has nothing that the state does not know, so that its document can be written.
func (a Ahead) Same() bool { return len(a.OnlyHost) == 0 && len(a.Elsewhere) == 0 }

// Ledger compares what a host has been told with the state. A host that the state does not know has everything alone.
func (d *Renderer) Ledger(host string, doc desired.Document) (Ahead, error) {
	r := d.r
	a := Ahead{Diff: HostDiff{HostID: host, Host: hostName(r, host)}}
	now, err := renderOrNothing(d, host)
	if err != nil {
		return a, err
	}
	titles := map[string]string{}
	for _, ref := range doc.Refs() {
		if ref.Kind == desired.KindOrigin {
			continue
		}
		old := doc.Items[ref]
		if ref.Kind == desired.KindDomain {
			dom, err := desired.DecodeSpec[desired.Domain](old)
			if err != nil {
				return a, fmt.Errorf("read what host %s has: %w", host, err)
			}
			titles[ref.ID] = dom.Title
			vm, known := resource.Find[*resource.VM](r, ref.ID)
			switch {
			case !known:
				a.OnlyHost = append(a.OnlyHost, Known{Kind: resource.KindVM, ID: ref.ID, Name: dom.Title})
			case vm.HostID != host:
				a.Elsewhere = append(a.Elsewhere, Known{Kind: resource.KindVM, ID: ref.ID, Name: vm.Name, Host: hostName(r, vm.HostID)})
			}
		}
		if ref.Kind == desired.KindVolume {
			v, err := desired.DecodeSpec[desired.Volume](old)
			if err != nil {
				return a, fmt.Errorf("read what host %s has: %w", host, err)
			}
			if _, known := resource.Find[*resource.Volume](r, ref.ID); !known && !v.Absent {
				a.OnlyHost = append(a.OnlyHost, Known{Kind: resource.KindVolume, ID: ref.ID})
			}
		}
		it, ok := now[ref]
		switch {
		case !ok:
			a.Diff.Items = append(a.Diff.Items, ItemDiff{Ref: ref, Change: ItemRemoved, Old: old.Spec})
			a.Diff.effect(r, r, ref, old.Spec, nil)
		case !old.SameContent(it):
			a.Diff.Items = append(a.Diff.Items, ItemDiff{Ref: ref, Change: ItemChanged, Old: old.Spec, New: it.Spec, Needs: it.Needs})
			a.Diff.effect(r, r, ref, old.Spec, it.Spec)
		}
	}
	for ref, it := range now {
		if _, ok := doc.Items[ref]; !ok {
			a.Diff.Items = append(a.Diff.Items, ItemDiff{Ref: ref, Change: ItemAdded, New: it.Spec, Needs: it.Needs})
			a.Diff.effect(r, r, ref, nil, it.Spec)
		}
	}
	slices.SortFunc(a.Diff.Items, func(x, y ItemDiff) int { return x.Ref.Compare(y.Ref) })
	for _, s := range []*[]string{&a.Diff.Stops, &a.Diff.Restarts, &a.Diff.Starts, &a.Diff.Erases} {
		for i, n := range *s {
			(*s)[i] = cmp.Or(titles[n], n)
		}
		slices.Sort(*s)
	}
	for vm := range resource.Referrers[*resource.VM](r, resource.KindHost, host) {
		if _, ok := doc.Items[resource.DomainRef(vm.ID)]; !ok && vm.HostID == host && !vm.Undefine {
			a.OnlyState = append(a.OnlyState, Known{Kind: resource.KindVM, ID: vm.ID, Name: vm.Name})
		}
	}
	return a, nil
}

// Release ends a host's hold: its document is written from now on. Who calls it has seen that nothing is lost by that.
func Release(tx resource.Tx, host string) error {
	h, err := resource.Get[*resource.Host](tx, host)
	if err != nil {
		return err
	}
	if h.Hold == nil {
		return nil
	}
	h = resource.Copy(h)
	h.Hold = nil
	return tx.Put(h)
}

// Hold is a host whose documents are kept back; see resource.HostHold.
func Hold(h *resource.Host, hold resource.HostHold) *resource.Host {
	h = resource.Copy(h)
	h.Hold = &hold
	return h
}

// AdoptLimit is how many VMs one transaction of an adoption takes over.
const AdoptLimit = 64

// Adoption takes over what a host has been told, from the document in its ledger, into the state. It goes in steps, each a
// transaction, so that a host with hundreds of VMs can be taken over; while they go on, the host stays held. Release ends that:
// after the steps of all hosts that are decided about together, since documents also hold what other hosts have.
type Adoption struct {
	Host string
	Doc  desired.Document
	// OnlyNew takes over only what the state does not know; what it knows stays as the state has it.
	OnlyNew bool
}

// Steps is how many steps there are.
func (a Adoption) Steps() int { return 2 + (len(a.domains())+AdoptLimit-1)/AdoptLimit }

func (a Adoption) domains() []desired.Ref {
	return slices.DeleteFunc(a.Doc.Refs(), func(r desired.Ref) bool { return r.Kind != desired.KindDomain })
}

// Step takes one step. All of them can be repeated.
func (a Adoption) Step(tx resource.Tx, n int) error {
	h, err := resource.Get[*resource.Host](tx, a.Host)
	if err != nil {
		return err
	}
	if a.Doc.Head.Host != a.Host {
		return resource.Conflict("host", "the document is host %s's", a.Doc.Head.Host)
	}
	ad := &adopter{tx: tx, host: h, doc: a.Doc, onlyNew: a.OnlyNew}
	if err := ad.read(); err != nil {
		return err
	}
	domains := a.domains()
	switch {
	case n == 0:
		return ad.shared()
	case n < a.Steps()-1:
		for _, ref := range domains[(n-1)*AdoptLimit : min(n*AdoptLimit, len(domains))] {
			if err := ad.vm(ref.ID); err != nil {
				return fmt.Errorf("take over VM %s: %w", cmp.Or(ad.domains[ref.ID].Title, ref.ID), err)
			}
		}
		return nil
	default:
		return ad.rest()
	}
}

// adopter turns the items of one document into resources.
type adopter struct {
	tx      resource.Tx
	host    *resource.Host
	zone    string
	doc     desired.Document
	onlyNew bool

	pools    map[string]desired.Pool
	netdevs  map[string]desired.NetDev
	images   map[string]desired.Image // by the item's id
	servers  map[string]desired.DHCP
	sets     map[string]desired.AddrSet
	filters  map[string]desired.SecGroup
	volumes  map[string]desired.Volume
	domains  map[string]desired.Domain
	origins  originSet
	byBridge map[string]string // layer 2 network by bridge
	byMAC    map[string]lease
}

// lease is what DHCP knows of a NIC.
type lease struct {
	l3    string
	entry desired.DHCPEntry
}

func decodeAll[T any, P interface {
	*T
	desired.Spec
}](doc desired.Document, kind desired.Kind) (map[string]T, error) {
	out := map[string]T{}
	for ref, it := range doc.Items {
		if ref.Kind != kind {
			continue
		}
		spec, err := desired.DecodeSpec[T, P](it)
		if err != nil {
			return nil, resource.Conflict("host", "what the host has can't be read: %v", err)
		}
		out[ref.ID] = spec
	}
	return out, nil
}

func (a *adopter) read() (err error) {
	c, err := resource.Get[*resource.Cluster](a.tx, a.host.ClusterID)
	if err != nil {
		return err
	}
	a.zone = c.ZoneID
	for _, read := range []func() error{
		func() (err error) { a.pools, err = decodeAll[desired.Pool](a.doc, desired.KindPool); return },
		func() (err error) { a.netdevs, err = decodeAll[desired.NetDev](a.doc, desired.KindNetDev); return },
		func() (err error) { a.images, err = decodeAll[desired.Image](a.doc, desired.KindImage); return },
		func() (err error) { a.servers, err = decodeAll[desired.DHCP](a.doc, desired.KindDHCP); return },
		func() (err error) { a.sets, err = decodeAll[desired.AddrSet](a.doc, desired.KindAddrSet); return },
		func() (err error) { a.filters, err = decodeAll[desired.SecGroup](a.doc, desired.KindSecGroup); return },
		func() (err error) { a.volumes, err = decodeAll[desired.Volume](a.doc, desired.KindVolume); return },
		func() (err error) { a.domains, err = decodeAll[desired.Domain](a.doc, desired.KindDomain); return },
		func() (err error) { a.origins, err = readOrigins(a.doc); return },
	} {
		if err := read(); err != nil {
			return err
		}
	}
	a.byBridge, a.byMAC = map[string]string{}, map[string]lease{}
	for id, n := range a.netdevs {
		a.byBridge[n.Bridge] = id
	}
	for id, s := range a.servers {
		for _, e := range s.Entries {
			a.byMAC[e.MAC] = lease{id, e}
		}
	}
	return nil
}

// recovered is the name of a resource of which nothing but the id is known.
func recovered(id string) string { return "recovered-" + short(id) }

// meta is the common part of what is taken over where the document does not tell: it is the admin account's, which can give it away.
func (a *adopter) meta(id, name string) resource.Meta {
	return resource.Meta{ID: id, Name: cmp.Or(name, recovered(id)), Owner: resource.AdminAccount}
}

// sorted are the ids of a map in order, so that a repetition does the same.
func sorted[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// shared takes over what VMs stand on and is not known: storages, networks, security groups. What is known is the state's, for
// other hosts have it, too.
func (a *adopter) shared() error {
	a.leaveKnown()
	if err := a.origins.restore(a.tx, resource.KindAccount, resource.KindZone, resource.KindCluster, resource.KindImage, resource.KindOffering,
		resource.KindDiskOffering, resource.KindVXLANPool); err != nil {
		return err
	}
	for _, id := range sorted(a.pools) {
		if err := a.storage(id, a.pools[id]); err != nil {
			return fmt.Errorf("take over storage %s: %w", id, err)
		}
	}
	for _, id := range sorted(a.netdevs) {
		if err := a.l2(id, a.netdevs[id]); err != nil {
			return fmt.Errorf("take over network %s: %w", id, err)
		}
	}
	if err := a.origins.restore(a.tx, resource.KindL3, resource.KindIPRange); err != nil {
		return err
	}
	for _, id := range sorted(a.servers) {
		if err := a.l3(id, a.servers[id]); err != nil {
			return fmt.Errorf("take over layer 3 network %s: %w", id, err)
		}
	}
	if err := a.origins.restore(a.tx, resource.KindSecGroup, resource.KindSecRule); err != nil {
		return err
	}
	for _, id := range sorted(a.sets) {
		if a.tx.Get(resource.KindSecGroup, id) == nil {
			if err := a.tx.Put(&resource.SecGroup{Meta: a.meta(id, ""), State: resource.Enabled}); err != nil {
				return fmt.Errorf("take over security group %s: %w", id, err)
			}
		}
	}
	return nil
}

// leaveKnown keeps what belongs to known networks and groups from being taken over piece by piece: a rule or range that somebody
// removed must not come back because one host has not heard of that. A group of which another host knew no more than
// that rules name it has no rules yet.
func (a *adopter) leaveKnown() {
	known := map[string]bool{}
	for id := range a.origins[resource.KindL3] {
		known[id] = a.tx.Get(resource.KindL3, id) != nil
	}
	for id := range a.origins[resource.KindSecGroup] {
		known[id] = a.tx.Get(resource.KindSecGroup, id) != nil && (a.onlyNew || !a.empty(id))
	}
	maps.DeleteFunc(a.origins[resource.KindIPRange], func(_ string, r resource.Resource) bool { return known[r.(*resource.IPRange).L3ID] })
	maps.DeleteFunc(a.origins[resource.KindSecRule], func(_ string, r resource.Resource) bool { return known[r.(*resource.SecRule).GroupID] })
}

func (a *adopter) storage(id string, p desired.Pool) error {
	old, known := resource.Find[*resource.Storage](a.tx, id)
	if known {
		o, told := originFrom[*resource.Storage](a.origins, id)
		if slices.Contains(old.ClusterIDs, a.host.ClusterID) || told && !slices.Contains(o.ClusterIDs, a.host.ClusterID) {
			return nil
		}
		s := resource.Copy(old)
		s.ClusterIDs = append(slices.Clone(old.ClusterIDs), a.host.ClusterID)
		slices.Sort(s.ClusterIDs)
		return a.tx.Put(s)
	}
	s, ok := originFrom[*resource.Storage](a.origins, id)
	if !ok {
		s = &resource.Storage{
			Meta: a.meta(id, ""), ZoneID: a.zone, State: resource.Enabled, Overprovision: 1, ReservedBytes: resource.DefaultReservedBytes,
			ClusterIDs: []string{a.host.ClusterID},
		}
	}
	s.Type, s.Path, s.Source, s.MountOptions = resource.StorageType(p.Type), p.Path, p.Source, p.Options
	return a.tx.Put(existing(a.tx, s))
}

func (a *adopter) l2(id string, n desired.NetDev) error {
	if l2, known := resource.Find[*resource.L2](a.tx, id); known {
		if l2.Type == resource.L2VXLAN && n.VXLAN != nil {
			return a.vtep(l2.PoolID, n.VXLAN.Local)
		}
		return nil
	}
	l2, ok := originFrom[*resource.L2](a.origins, id)
	if !ok {
		l2 = &resource.L2{Meta: a.meta(id, ""), ZoneID: a.zone, ClusterIDs: []string{a.host.ClusterID}}
	}
	switch n.Type {
	case desired.NetDevExisting:
		l2.Type, l2.Bridge = resource.L2NoVLAN, n.Bridge
	case desired.NetDevNoVLAN:
		l2.Type, l2.Device = resource.L2NoVLAN, n.Device
	case desired.NetDevVLAN:
		l2.Type, l2.Device, l2.VLAN = resource.L2VLAN, n.Device, n.VLAN
	case desired.NetDevVXLAN:
		l2.Type, l2.VNI, l2.ClusterIDs = resource.L2VXLAN, n.VXLAN.VNI, nil
		var err error
		if a.tx.Get(resource.KindVXLANPool, l2.PoolID) != nil {
			err = a.vtep(l2.PoolID, n.VXLAN.Local)
		} else {
			l2.PoolID, err = a.vxlanPool(n.VXLAN)
		}
		if err != nil {
			return err
		}
	}
	return a.tx.Put(existing(a.tx, l2))
}

// vxlanPool finds the pool that a tunnel can belong to, or makes one, where the document does not tell.
func (a *adopter) vxlanPool(v *desired.VXLAN) (string, error) {
	var id string
	for p := range resource.All[*resource.VXLANPool](a.tx) {
		inRange := slices.ContainsFunc(p.Ranges, func(r resource.VNIRange) bool { return r.From <= v.VNI && v.VNI <= r.To })
		in := slices.ContainsFunc(p.Clusters, func(c resource.ClusterVTEP) bool { return c.ClusterID == a.host.ClusterID && c.CIDR.Contains(v.Local) })
		if inRange && in && p.Port == v.Port {
			id = p.ID
			break
		}
	}
	if id == "" {
		cidr := netip.PrefixFrom(v.Local, 24).Masked()
		for _, addrs := range a.tx.Observed().Host(a.host.ID).Facts.Inventory.Addresses {
			for _, s := range addrs {
				if p, err := netip.ParsePrefix(s); err == nil && p.Addr() == v.Local {
					cidr = p.Masked()
				}
			}
		}
		p := &resource.VXLANPool{
			ZoneID: a.zone, Port: v.Port, Ranges: []resource.VNIRange{{From: 1, To: resource.MaxVNI}},
			Clusters: []resource.ClusterVTEP{{ClusterID: a.host.ClusterID, CIDR: cidr}},
		}
		p.Meta = a.meta(a.tx.NewID(), "recovered-vxlan")
		id = p.ID
		if err := a.tx.Put(p); err != nil {
			return "", err
		}
	}
	return id, a.vtep(id, v.Local)
}

// vtep gives the host the tunnel address that it has.
func (a *adopter) vtep(pool string, local netip.Addr) error {
	if a.host.VTEPs[pool] == local {
		return nil
	}
	h := resource.Copy(a.host)
	if h.VTEPs = maps.Clone(h.VTEPs); h.VTEPs == nil {
		h.VTEPs = map[string]netip.Addr{}
	}
	h.VTEPs[pool] = local
	if err := a.tx.Put(h); err != nil {
		return err
	}
	a.host = h
	return nil
}

// l3 takes over a layer 3 network that the document does not tell of. Its ranges are not known, only what was given out of them:
// new ranges cover just that, so that nobody gets an address that an operator had kept for something else.
func (a *adopter) l3(id string, s desired.DHCP) error {
	if a.tx.Get(resource.KindL3, id) == nil {
		l2 := a.byBridge[s.Bridge]
		if l2 == "" {
			return resource.Conflict("host", "the document has no network with bridge %s", s.Bridge)
		}
		l3 := &resource.L3{
			Meta: a.meta(id, ""), L2ID: l2, Category: resource.CategoryPrivate, DNS: s.DNS, Domain: s.Domain, DHCPServer: s.Server.Addr(),
		}
		if n := a.netdevs[l2]; s.MTU != 0 && !(n.Type == desired.NetDevVXLAN && s.MTU == mtuVXLAN) {
			l3.MTU = s.MTU
		}
		if err := a.tx.Put(l3); err != nil {
			return err
		}
	}
	ranges := rangesOf(a.tx, id)
	var missing []netip.Addr
	for _, e := range s.Entries {
		if !slices.ContainsFunc(ranges, func(r *resource.IPRange) bool { return r.Contains(e.IP) }) {
			missing = append(missing, e.IP)
		}
	}
	if len(ranges) > 0 || len(missing) == 0 || !s.Gateway.IsValid() {
		// The ranges of a known network are the state's; an address outside of them is no hindrance.
		return nil
	}
	missing = append(missing, s.Server.Addr())
	slices.SortFunc(missing, netip.Addr.Compare)
	first, last := missing[0], missing[len(missing)-1]
	parts := [][2]netip.Addr{{first, last}}
	if first.Less(s.Gateway) && s.Gateway.Less(last) {
		parts = [][2]netip.Addr{{first, s.Gateway.Prev()}, {s.Gateway.Next(), last}}
	}
	for _, p := range parts {
		r := &resource.IPRange{L3ID: id, Start: p[0], End: p[1], Bits: s.Server.Bits(), Gateway: s.Gateway}
		r.Meta = a.meta(a.tx.NewID(), "")
		if err := a.tx.Put(r); err != nil {
			return err
		}
	}
	return nil
}

// vm takes over one VM with its NICs and volumes.
func (a *adopter) vm(id string) error {
	d := a.domains[id]
	old, known := resource.Find[*resource.VM](a.tx, id)
	if known && a.onlyNew {
		return nil
	}
	vm, told := originFrom[*resource.VM](a.origins, id)
	switch {
	case known && told:
		o := vm
		vm = resource.Copy(old)
		vm.Name, vm.Description, vm.Owner, vm.Tags = o.Name, o.Description, o.Owner, o.Tags
		vm.OfferingID, vm.ImageID, vm.Strategy, vm.Hostname, vm.Destroyed = o.OfferingID, o.ImageID, o.Strategy, o.Hostname, o.Destroyed
	case known:
		vm = resource.Copy(old)
		vm.Name = cmp.Or(d.Title, vm.Name)
	case !told:
		vm = &resource.VM{Meta: a.meta(id, d.Title), Strategy: resource.FewestVMs}
	}
	vm.ZoneID, vm.ClusterID, vm.HostID = a.zone, a.host.ClusterID, a.host.ID
	vm.CPUs, vm.MemoryMiB, vm.Machine, vm.CPUMode, vm.StopSeconds, vm.Act = d.CPUs, d.MemoryMiB, d.Machine, d.CPUMode, d.StopSeconds, d.Act
	vm.Power, vm.Force, vm.Wish = d.Power, d.Force, d.Wish
	if d.Act != nil {
		vm.ActSeq = max(vm.ActSeq, d.Act.Seq)
	}
	// It may be running there, whatever is wanted of it: only the host can say that it is not.
	vm.Ran, vm.Undefine = true, false
	if vm.Power != desired.PowerOff {
		vm.Destroyed, vm.Expunging = resource.VM{}.Destroyed, false
	}
	for _, n := range d.NICs {
		if e, ok := a.byMAC[n.MAC]; ok && e.entry.Hostname != "" && e.entry.Hostname != strings.ReplaceAll(e.entry.IP.String(), ".", "-") {
			vm.Hostname = e.entry.Hostname
		}
	}
	if err := a.tx.Put(vm); err != nil {
		return err
	}
	has := map[string]bool{}
	for i, n := range d.NICs {
		has[n.ID] = true
		if err := a.nic(vm, i, n); err != nil {
			return fmt.Errorf("NIC %s: %w", n.MAC, err)
		}
	}
	for _, n := range nicsOf(a.tx, id) {
		if !has[n.ID] {
			if err := a.tx.Delete(resource.KindNIC, n.ID); err != nil {
				return err
			}
		}
	}
	has = map[string]bool{}
	for _, disk := range d.Disks {
		has[disk.Volume] = true
	}
	for _, v := range volumesOf(a.tx, id) {
		if !has[v.ID] {
			v = resource.Copy(v)
			v.VMID, v.Target = "", ""
			if err := a.tx.Put(v); err != nil {
				return err
			}
		}
	}
	for _, disk := range d.Disks {
		if err := a.volume(disk.Volume, vm, &disk); err != nil {
			return fmt.Errorf("volume %s: %w", disk.Volume, err)
		}
	}
	return nil
}

func (a *adopter) nic(vm *resource.VM, index int, n desired.DomainNIC) error {
	nic, told := originFrom[*resource.NIC](a.origins, n.ID)
	if old, ok := resource.Find[*resource.NIC](a.tx, n.ID); ok && !told {
		nic = resource.Copy(old)
		nic.Index = index
	} else if !told {
		nic = &resource.NIC{Meta: a.meta(n.ID, ""), Default: index == 0, Index: index}
	}
	nic.VMID, nic.MAC, nic.Model = vm.ID, n.MAC, n.Model
	if a.tx.Get(resource.KindL3, nic.L3ID) == nil {
		nic.L3ID = ""
	}
	nic.SecGroupIDs = slices.DeleteFunc(slices.Clone(nic.SecGroupIDs), func(g string) bool { return a.tx.Get(resource.KindSecGroup, g) == nil })
	filter, filtered := a.filters[n.ID]
	if e, ok := a.byMAC[n.MAC]; ok {
		nic.L3ID, nic.IP, nic.Default = e.l3, e.entry.IP, !e.entry.NoGateway
	} else if filtered && len(filter.IPs) > 0 {
		nic.IP = filter.IPs[0]
	}
	if nic.L3ID == "" {
		l3, err := a.plainL3(a.byBridge[n.Bridge])
		if err != nil {
			return err
		}
		nic.L3ID = l3
	}
	nic.AntiSpoof = filtered && filter.AntiSpoof
	var err error
	if nic.SecGroupIDs, err = a.groups(nic, filter, filtered); err != nil {
		return err
	}
	return a.tx.Put(nic)
}

// plainL3 is a layer 3 network without DHCP for a NIC of which hosts know only the bridge.
func (a *adopter) plainL3(l2 string) (string, error) {
	if l2 == "" {
		return "", resource.Conflict("host", "the document has no network for it")
	}
	for l3 := range resource.Referrers[*resource.L3](a.tx, resource.KindL2, l2) {
		if l3.NoDHCP {
			return l3.ID, nil
		}
	}
	l3 := &resource.L3{L2ID: l2, Category: resource.CategoryPrivate, NoDHCP: true}
	l3.Meta = a.meta(a.tx.NewID(), "")
	return l3.ID, a.tx.Put(l3)
}

// groups are the security groups that make a NIC's filter. Where the groups that it is in make just that, they stay. Otherwise
// it gets one whose rules are the filter's, since hosts do not know which rule came from which group.
func (a *adopter) groups(nic *resource.NIC, f desired.SecGroup, filtered bool) ([]string, error) {
	// Whoever is in a group that counts lets in only what rules say.
	enabled := filtered && f.IngressPolicy == desired.Drop
	now, err := NewRenderer(a.tx).filterOf(nic)
	if err != nil {
		return nil, err
	}
	if now.enabled == enabled && (!enabled || slices.Equal(now.ingress, f.Ingress) && slices.Equal(now.egress, f.Egress)) {
		return nic.SecGroupIDs, nil
	}
	if !enabled {
		return nil, nil
	}
	// Membership in a group that other rules name shows in its addresses.
	var ids []string
	for _, id := range sorted(a.sets) {
		if slices.Contains(a.sets[id].Addrs, nic.IP) && a.empty(id) {
			ids = append(ids, id)
		}
	}
	rules, err := json.Marshal([2][]desired.Rule{f.Ingress, f.Egress})
	if err != nil {
		return nil, err
	}
	name := "recovered-" + desired.Hash(rules)[:12]
	var group *resource.SecGroup
	for g := range a.tx.Named(resource.KindSecGroup, name) {
		group = g.(*resource.SecGroup)
	}
	if group == nil {
		group = &resource.SecGroup{Meta: a.meta(a.tx.NewID(), name), State: resource.Enabled}
		if err := a.tx.Put(group); err != nil {
			return nil, err
		}
		for dir, list := range map[resource.Direction][]desired.Rule{resource.Ingress: f.Ingress, resource.Egress: f.Egress} {
			for _, r := range list {
				if err := a.rule(group.ID, dir, r); err != nil {
					return nil, err
				}
			}
		}
	}
	ids = append(ids, group.ID)
	slices.Sort(ids)
	return ids, nil
}

// empty reports whether a group adds no rule of its own to a filter.
func (a *adopter) empty(group string) bool {
	for r := range resource.Referrers[*resource.SecRule](a.tx, resource.KindSecGroup, group) {
		if r.GroupID == group {
			return false
		}
	}
	return true
}

func (a *adopter) rule(group string, dir resource.Direction, r desired.Rule) error {
	rule := &resource.SecRule{GroupID: group, Direction: dir, Protocol: r.Protocol, FromPort: r.FromPort, ToPort: r.ToPort, CIDR: r.CIDR}
	if r.Set != "" {
		for id := range a.sets {
			if setName(id) == r.Set {
				rule.RemoteGroupID = id
			}
		}
		if rule.RemoteGroupID == "" {
			return resource.Conflict("host", "the document has no group for %s", r.Set)
		}
	}
	rule.Meta = a.meta(a.tx.NewID(), fmt.Sprintf("%s-%s", dir, r.Protocol))
	return a.tx.Put(rule)
}

// volume takes over a volume, with the VM that has it or none.
func (a *adopter) volume(id string, vm *resource.VM, disk *desired.Disk) error {
	spec, ok := a.volumes[id]
	if !ok {
		return resource.Conflict("host", "the document does not have it")
	}
	v, told := originFrom[*resource.Volume](a.origins, id)
	old, known := resource.Find[*resource.Volume](a.tx, id)
	switch {
	case known && told:
		o := v
		v = resource.Copy(old)
		v.Name, v.Description, v.Owner, v.Tags, v.Type, v.State = o.Name, o.Description, o.Owner, o.Tags, o.Type, o.State
		v.ImageID, v.DiskOfferingID, v.Destroyed = o.ImageID, o.DiskOfferingID, o.Destroyed
	case known:
		v = resource.Copy(old)
	case told:
		v.ZoneID = a.zone
	default:
		v = &resource.Volume{Meta: a.meta(id, ""), Type: resource.VolumeData, State: resource.Enabled, ZoneID: a.zone}
		if disk != nil && disk.Boot == 1 {
			v.Type = resource.VolumeRoot
		}
	}
	s, err := resource.Get[*resource.Storage](a.tx, spec.Pool)
	if err != nil {
		return err
	}
	v.StorageID, v.Path, v.Format, v.LastHostID = s.ID, spec.Path, spec.Format, a.host.ID
	v.HostID = ""
	if !s.Shared() {
		v.HostID = a.host.ID
	}
	v.Bytes = max(v.Bytes, spec.Bytes)
	st, reported := a.tx.Observed().Status(a.host.ID, resource.VolumeRef(id))
	v.Made = v.Made || spec.Exists || reported && st.Phase == desired.PhaseReady
	v.VMID, v.Target, v.LeavingVMID = "", "", ""
	v.Expunging, v.TombstoneHostID = false, ""
	if vm != nil {
		v.VMID, v.Target = vm.ID, disk.Target
		if !told {
			v.Destroyed = resource.Volume{}.Destroyed
		}
		if v.Name == recovered(id) {
			v.Name = vm.Name + "-" + disk.Target
		}
	}
	if spec.Backing != nil && v.Backing == nil {
		for _, ref := range a.doc.Items[resource.VolumeRef(id)].Needs {
			if img, ok := a.images[ref.ID]; ok && ref.Kind == desired.KindImage {
				v.ImageID, v.Backing = img.Image, &resource.Backing{SHA256: img.SHA256, Bytes: img.Bytes, Format: img.Format}
			}
		}
	}
	return a.tx.Put(v)
}

// rest takes over volumes that no VM has, and, where the host's word counts for what is known, too, puts aside what it no
// longer has: into the recycle bin, since its data may still be there.
func (a *adopter) rest() error {
	attached := map[string]bool{}
	for _, d := range a.domains {
		for _, disk := range d.Disks {
			attached[disk.Volume] = true
		}
	}
	for _, id := range sorted(a.volumes) {
		spec := a.volumes[id]
		v, known := resource.Find[*resource.Volume](a.tx, id)
		switch {
		case spec.Absent && known && !a.onlyNew && !v.Expunging:
			// The host was told to remove it, and may have.
			v = resource.Copy(v)
			v.Expunging, v.TombstoneHostID, v.VMID, v.Target, v.LeavingVMID = true, a.host.ID, "", "", ""
			if err := a.tx.Put(v); err != nil {
				return fmt.Errorf("take over the end of volume %s: %w", v.Name, err)
			}
		case spec.Absent, known && (a.onlyNew || attached[id]):
		case known && v.VMID != "" && a.tx.Get(resource.KindVM, v.VMID) != nil && a.domains[v.VMID].Name == "":
			// Its VM is put aside with it.
		default:
			if err := a.volume(id, nil, nil); err != nil {
				return fmt.Errorf("take over volume %s: %w", id, err)
			}
		}
	}
	if a.onlyNew {
		return nil
	}
	for _, vm := range slices.SortedFunc(resource.Referrers[*resource.VM](a.tx, resource.KindHost, a.host.ID), byID) {
		if _, ok := a.domains[vm.ID]; ok || vm.HostID != a.host.ID || vm.Undefine || !vm.Destroyed.IsZero() {
			continue
		}
		vm = resource.Copy(vm)
		vm.Power, vm.Destroyed, vm.Act = desired.PowerOff, a.tx.Now(), nil
		if err := a.tx.Put(vm); err != nil {
			return fmt.Errorf("put VM %s aside: %w", vm.Name, err)
		}
	}
	return nil
}
