package plan

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// ConsoleDir is where hosts keep what guests write to their first serial port.
const ConsoleDir = "/var/lib/shoal/console"

// mtuVXLAN is what is left of 1500 bytes inside a VXLAN tunnel over IPv4.
const mtuVXLAN = 1450

// Renderer makes documents of hosts from one view. It remembers what hosts have in common, so that rendering many hosts
// from the same view is cheap. It is not safe for concurrent use.
type Renderer struct {
	r resource.Reader

	l2Hosts map[string][]string            // hosts that have a VM in the network, sorted
	mtus    map[string]mtu                 // by layer 2 network
	ranges  map[string][]*resource.IPRange // by layer 3 network, sorted by start
	filters map[string]*filter             // by the ids of a NIC's groups
	sets    map[string]desired.Item        // addrset items by group
	origs   map[originKey]desired.Item     // origin items of what hosts share
}

// NewRenderer makes a Renderer of a view.
func NewRenderer(r resource.Reader) *Renderer {
	return &Renderer{
		r: r, l2Hosts: map[string][]string{}, mtus: map[string]mtu{}, ranges: map[string][]*resource.IPRange{}, filters: map[string]*filter{},
		sets: map[string]desired.Item{}, origs: map[originKey]desired.Item{},
	}
}

// Render is the document of one host; see Renderer.Render.
func Render(r resource.Reader, host string) ([]desired.Item, HeadBits, error) {
	return NewRenderer(r).Render(host)
}

// short is what names on hosts are made of: 12 hex digits of an id.
func short(id string) string {
	s := strings.ReplaceAll(id, "-", "")
	return s[:min(12, len(s))]
}

// The names of things on hosts.
func bridgeName(l2 *resource.L2) string {
	if l2.Bridge != "" {
		return l2.Bridge
	}
	return "shb" + short(l2.ID)
}
func uplinkName(l2 string) string { return "shx" + short(l2) }
func tapName(nic string) string   { return "sht" + short(nic) }
func portName(l3 string) string   { return "shd" + short(l3) }
func setName(group string) string { return "shs-" + short(group) }
func chainName(nic string) string { return "shc-" + short(nic) }

func volumePath(s *resource.Storage, id string, f desired.Format) string {
	return path.Join(s.Path, "volumes", id+"."+string(f))
}
func imagePath(s *resource.Storage, id string) string { return path.Join(s.Path, "images", id) }

// document is what is being rendered.
type document struct {
	*Renderer
	host  *resource.Host
	items map[desired.Ref]desired.Item
}

// add puts an item in. Its cause is the newest of the resources that it was made from.
func (d *document) add(ref desired.Ref, spec any, needs []desired.Ref, from ...resource.Resource) error {
	if _, ok := d.items[ref]; ok {
		return nil
	}
	it, err := desired.NewItem(ref.Kind, ref.ID, spec, needs...)
	if err != nil {
		return err
	}
	it.Cause = newest(from...)
	d.items[ref] = it
	return nil
}

func newest(from ...resource.Resource) string {
	var rev uint64
	var cause string
	for _, r := range from {
		if b := r.Base(); b.Rev > rev || b.Rev == rev && b.Cause > cause {
			rev, cause = b.Rev, b.Cause
		}
	}
	return cause
}

// Render is the document of one host: its items in order of their names, and what the document's head says beside
// them. Rev is left 0 for the publisher, who knows what changed. Cause is that of the newest resource that the item
// was made from; where an item changed because something went away, the publisher knows better.
func (d *Renderer) Render(host string) ([]desired.Item, HeadBits, error) {
	h, err := resource.Get[*resource.Host](d.r, host)
	if err != nil {
		return nil, HeadBits{}, err
	}
	doc := &document{Renderer: d, host: h, items: map[desired.Ref]desired.Item{}}
	for s := range resource.Referrers[*resource.Storage](d.r, resource.KindCluster, h.ClusterID) {
		if err := doc.pool(s); err != nil {
			return nil, HeadBits{}, err
		}
	}
	if err := doc.agent(); err != nil {
		return nil, HeadBits{}, fmt.Errorf("render the agent: %w", err)
	}
	var vms []*resource.VM
	nics := map[string][]*resource.NIC{}
	for vm := range resource.Referrers[*resource.VM](d.r, resource.KindHost, host) {
		if vm.HostID == host {
			vms = append(vms, vm)
			nics[vm.ID] = nicsOf(d.r, vm.ID)
		}
	}
	slices.SortFunc(vms, byID)
	if err := doc.dhcp(vms, nics); err != nil {
		return nil, HeadBits{}, err
	}
	for _, vm := range vms {
		if err := doc.vm(vm, nics[vm.ID]); err != nil {
			return nil, HeadBits{}, fmt.Errorf("render VM %s: %w", vm.ID, err)
		}
	}
	for _, v := range slices.SortedFunc(resource.Referrers[*resource.Volume](d.r, resource.KindHost, host), byID) {
		if resource.VolumeHost(d.r, v) == host {
			if err := doc.volume(v); err != nil {
				return nil, HeadBits{}, fmt.Errorf("render volume %s: %w", v.ID, err)
			}
		}
	}
	if err := doc.origins(vms, nics); err != nil {
		return nil, HeadBits{}, fmt.Errorf("render what host %s is made from: %w", host, err)
	}
	items := make([]desired.Item, 0, len(doc.items))
	for _, it := range doc.items {
		items = append(items, it)
	}
	slices.SortFunc(items, func(a, b desired.Item) int { return a.Ref().Compare(b.Ref()) })
	return items, HeadBits{Shrink: h.Shrink, Policy: resource.DriftPolicies(d.r, h)}, nil
}

func byID[T resource.Resource](a, b T) int { return strings.Compare(a.Base().ID, b.Base().ID) }

func nicsOf(r resource.Reader, vm string) []*resource.NIC {
	return slices.SortedFunc(resource.Referrers[*resource.NIC](r, resource.KindVM, vm), func(a, b *resource.NIC) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), strings.Compare(a.ID, b.ID))
	})
}

// volumesOf are the volumes that a VM has, in order of their targets.
func volumesOf(r resource.Reader, vm string) []*resource.Volume {
	var out []*resource.Volume
	for v := range resource.Referrers[*resource.Volume](r, resource.KindVM, vm) {
		if v.VMID == vm {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *resource.Volume) int {
		return cmp.Or(cmp.Compare(len(a.Target), len(b.Target)), strings.Compare(a.Target, b.Target), strings.Compare(a.ID, b.ID))
	})
	return out
}

func (d *document) pool(s *resource.Storage) error {
	return d.add(resource.PoolRef(s.ID), &desired.Pool{Type: desired.PoolType(s.Type), Path: s.Path, Source: s.Source, Options: s.MountOptions}, nil, s)
}

func (d *document) volume(v *resource.Volume) error {
	s, err := resource.Get[*resource.Storage](d.r, v.StorageID)
	if err != nil {
		return err
	}
	// A storage that was taken from the cluster goes on being there for the volumes that are left on it.
	if err := d.pool(s); err != nil {
		return err
	}
	spec := &desired.Volume{Pool: s.ID, Path: v.Path, Format: v.Format}
	needs := []desired.Ref{resource.PoolRef(s.ID)}
	if v.Expunging {
		spec.Absent = true
		return d.add(resource.VolumeRef(v.ID), spec, needs, v)
	}
	spec.Bytes, spec.Exists = v.Bytes, v.Made
	if b := v.Backing; b != nil {
		ref := resource.ImageRef(s.ID, v.ImageID)
		img := &desired.Image{Pool: s.ID, Image: v.ImageID, Path: imagePath(s, v.ImageID), SHA256: b.SHA256, Bytes: b.Bytes, Format: b.Format}
		// Several volumes may stand on one image: the item is the first one's doing.
		if err := d.add(ref, img, needs, s, v); err != nil {
			return err
		}
		spec.Backing = &desired.Backing{Path: img.Path, Format: b.Format}
		needs = append(needs, ref)
	}
	return d.add(resource.VolumeRef(v.ID), spec, needs, v)
}

// mtu is what the parts of a network agree on; 0 leaves it to the kernel.
type mtu struct{ bridge, guest int }

// mtuOf is the MTU of a layer 2 network's bridge: the largest that a layer 3 network on it asks for.
func (d *Renderer) mtuOf(l2 *resource.L2) int {
	if m, ok := d.mtus[l2.ID]; ok {
		return m.bridge
	}
	m := mtu{guest: guestMTU(l2, nil)}
	m.bridge = m.guest
	for l3 := range resource.Referrers[*resource.L3](d.r, resource.KindL2, l2.ID) {
		m.bridge = max(m.bridge, l3.MTU)
	}
	d.mtus[l2.ID] = m
	return m.bridge
}

// guestMTU is what guests in a network use.
func guestMTU(l2 *resource.L2, l3 *resource.L3) int {
	switch {
	case l3 != nil && l3.MTU != 0:
		return l3.MTU
	case l2.Type == resource.L2VXLAN:
		return mtuVXLAN
	default:
		return 0
	}
}

// hostsOfL2 are the hosts that have a VM in a layer 2 network, whatever the VM does.
func (d *Renderer) hostsOfL2(l2 string) []string {
	if hosts, ok := d.l2Hosts[l2]; ok {
		return hosts
	}
	set := map[string]struct{}{}
	for l3 := range resource.Referrers[*resource.L3](d.r, resource.KindL2, l2) {
		for n := range resource.Referrers[*resource.NIC](d.r, resource.KindL3, l3.ID) {
			if vm, ok := resource.Find[*resource.VM](d.r, n.VMID); ok {
				set[vm.HostID] = struct{}{}
			}
		}
	}
	hosts := make([]string, 0, len(set))
	for h := range set {
		hosts = append(hosts, h)
	}
	slices.Sort(hosts)
	d.l2Hosts[l2] = hosts
	return hosts
}

func (d *document) netdev(l2 *resource.L2, n *resource.NIC) error {
	ref := resource.NetDevRef(l2.ID)
	if _, ok := d.items[ref]; ok {
		return nil
	}
	spec := &desired.NetDev{Bridge: bridgeName(l2)}
	from := []resource.Resource{l2, n}
	switch l2.Type {
	case resource.L2NoVLAN:
		if l2.Bridge != "" {
			// It belongs to the operator: nothing about it is ours to set.
			spec.Type = desired.NetDevExisting
			return d.add(ref, spec, nil, from...)
		}
		spec.Type, spec.Device = desired.NetDevNoVLAN, l2.Device
	case resource.L2VLAN:
		spec.Type, spec.Device, spec.VLAN, spec.Uplink = desired.NetDevVLAN, l2.Device, l2.VLAN, uplinkName(l2.ID)
	case resource.L2VXLAN:
		pool, err := resource.Get[*resource.VXLANPool](d.r, l2.PoolID)
		if err != nil {
			return err
		}
		from = append(from, pool)
		spec.Type, spec.Uplink = desired.NetDevVXLAN, uplinkName(l2.ID)
		spec.VXLAN = &desired.VXLAN{VNI: l2.VNI, Local: d.host.VTEPs[pool.ID], Port: pool.Port}
		for _, id := range d.hostsOfL2(l2.ID) {
			h, ok := resource.Find[*resource.Host](d.r, id)
			if ok && id != d.host.ID && h.VTEPs[pool.ID].IsValid() {
				spec.VXLAN.Remotes = append(spec.VXLAN.Remotes, h.VTEPs[pool.ID])
			}
		}
		slices.SortFunc(spec.VXLAN.Remotes, netip.Addr.Compare)
		spec.VXLAN.Remotes = slices.Compact(spec.VXLAN.Remotes)
	}
	spec.MTU = d.mtuOf(l2)
	return d.add(ref, spec, nil, from...)
}

// rangesOf are the ranges of a layer 3 network in order.
func (d *Renderer) rangesOf(l3 string) []*resource.IPRange {
	if rs, ok := d.ranges[l3]; ok {
		return rs
	}
	rs := rangesOf(d.r, l3)
	d.ranges[l3] = rs
	return rs
}

func rangesOf(r resource.Reader, l3 string) []*resource.IPRange {
	return slices.SortedFunc(resource.Referrers[*resource.IPRange](r, resource.KindL3, l3), func(a, b *resource.IPRange) int {
		return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID))
	})
}

// dhcp makes the netdev and DHCP items of all networks that the host's VMs are in. VMs in the recycle bin get no
// address.
func (d *document) dhcp(vms []*resource.VM, nics map[string][]*resource.NIC) error {
	type server struct {
		l3      *resource.L3
		l2      *resource.L2
		entries []desired.DHCPEntry
		from    []resource.Resource
	}
	servers := map[string]*server{}
	for _, vm := range vms {
		for _, n := range nics[vm.ID] {
			l3, err := resource.Get[*resource.L3](d.r, n.L3ID)
			if err != nil {
				return err
			}
			l2, err := resource.Get[*resource.L2](d.r, l3.L2ID)
			if err != nil {
				return err
			}
			if err := d.netdev(l2, n); err != nil {
				return err
			}
			if l3.NoDHCP || !l3.DHCPServer.IsValid() || !n.IP.IsValid() || !vm.Destroyed.IsZero() || len(d.rangesOf(l3.ID)) == 0 {
				continue
			}
			s := servers[l3.ID]
			if s == nil {
				s = &server{l3: l3, l2: l2, from: []resource.Resource{l3}}
				servers[l3.ID] = s
			}
			// A guest has one default route, whichever of its NICs asks first.
			e := desired.DHCPEntry{MAC: n.MAC, IP: n.IP, NoGateway: !n.Default}
			if n.Default {
				e.Hostname = cmp.Or(vm.Hostname, strings.ReplaceAll(n.IP.String(), ".", "-"))
			}
			s.entries = append(s.entries, e)
			s.from = append(s.from, n, vm)
		}
	}
	for id, s := range servers {
		ranges := d.rangesOf(id)
		slices.SortFunc(s.entries, func(a, b desired.DHCPEntry) int { return strings.Compare(a.MAC, b.MAC) })
		spec := &desired.DHCP{
			Bridge: bridgeName(s.l2), Namespace: "shoal-" + id, Port: portName(id),
			Server:  netip.PrefixFrom(s.l3.DHCPServer, ranges[0].Bits),
			Gateway: ranges[0].Gateway, DNS: s.l3.DNS, Domain: s.l3.Domain, MTU: guestMTU(s.l2, s.l3), Entries: s.entries,
		}
		if err := d.add(resource.DHCPRef(id), spec, []desired.Ref{resource.NetDevRef(s.l2.ID)}, s.from...); err != nil {
			return err
		}
	}
	return nil
}

// filter is what a set of security groups lets pass.
type filter struct {
	ingress, egress []desired.Rule
	sets            []string // groups whose members the rules name, sorted
	enabled         bool     // at least one group is
	from            []resource.Resource
	// json is the part of a filter's spec that holds the rules: NICs share it, and it is most of their documents.
	json []byte
}

// filterOf joins the rules of a NIC's groups. Disabled groups are ignored as if the NIC were not in them.
func (d *Renderer) filterOf(n *resource.NIC) (*filter, error) {
	key := strings.Join(n.SecGroupIDs, " ")
	if f, ok := d.filters[key]; ok {
		return f, nil
	}
	f := &filter{}
	for _, id := range n.SecGroupIDs {
		g, ok := resource.Find[*resource.SecGroup](d.r, id)
		if !ok || g.State != resource.Enabled {
			continue
		}
		f.enabled = true
		f.from = append(f.from, g)
		for rule := range resource.Referrers[*resource.SecRule](d.r, resource.KindSecGroup, id) {
			if rule.GroupID != id {
				continue
			}
			f.from = append(f.from, rule)
			out := desired.Rule{Protocol: rule.Protocol, FromPort: rule.FromPort, ToPort: rule.ToPort, CIDR: rule.CIDR}
			if rule.RemoteGroupID != "" {
				out.Set = setName(rule.RemoteGroupID)
				f.sets = append(f.sets, rule.RemoteGroupID)
			}
			if rule.Direction == resource.Ingress {
				f.ingress = append(f.ingress, out)
			} else {
				f.egress = append(f.egress, out)
			}
		}
	}
	f.ingress, f.egress = canonicalRules(f.ingress), canonicalRules(f.egress)
	slices.Sort(f.sets)
	f.sets = slices.Compact(f.sets)
	for _, part := range []struct {
		name  string
		rules []desired.Rule
	}{{"ingress", f.ingress}, {"egress", f.egress}} {
		if len(part.rules) == 0 {
			continue
		}
		b, err := desired.Canonical(part.rules)
		if err != nil {
			return nil, fmt.Errorf("encode the rules of groups %s: %w", key, err)
		}
		f.json = fmt.Appendf(f.json, "%q:%s,", part.name, b)
	}
	d.filters[key] = f
	return f, nil
}

func canonicalRules(rules []desired.Rule) []desired.Rule {
	slices.SortFunc(rules, func(a, b desired.Rule) int {
		return cmp.Or(strings.Compare(string(a.Protocol), string(b.Protocol)), cmp.Compare(a.FromPort, b.FromPort), cmp.Compare(a.ToPort, b.ToPort),
			a.CIDR.Addr().Compare(b.CIDR.Addr()), cmp.Compare(a.CIDR.Bits(), b.CIDR.Bits()), strings.Compare(a.Set, b.Set))
	})
	return slices.Compact(rules)
}

// addrset is the item of a group's members over all hosts. It is the same on every host.
func (d *Renderer) addrset(group string) (desired.Item, error) {
	if it, ok := d.sets[group]; ok {
		return it, nil
	}
	spec := &desired.AddrSet{Name: setName(group)}
	var from []resource.Resource
	if g, ok := resource.Find[*resource.SecGroup](d.r, group); ok {
		from = append(from, g)
	}
	for n := range resource.Referrers[*resource.NIC](d.r, resource.KindSecGroup, group) {
		vm, ok := resource.Find[*resource.VM](d.r, n.VMID)
		if !ok || !vm.Destroyed.IsZero() || !n.IP.IsValid() {
			continue
		}
		spec.Addrs = append(spec.Addrs, n.IP)
		from = append(from, n)
	}
	slices.SortFunc(spec.Addrs, netip.Addr.Compare)
	spec.Addrs = slices.Compact(spec.Addrs)
	it, err := desired.NewItem(desired.KindAddrSet, group, spec)
	if err != nil {
		return it, err
	}
	it.Cause = newest(from...)
	d.sets[group] = it
	return it, nil
}

// secgroup is the packet filter of a NIC; a NIC without any needs none. It stays for as long as the domain may be there,
// also in the recycle bin: a guest is never left without its filter while it is on its way down.
func (d *document) secgroup(n *resource.NIC) error {
	f, err := d.filterOf(n)
	if err != nil {
		return err
	}
	if !f.enabled && !n.AntiSpoof {
		return nil
	}
	spec := &desired.SecGroup{
		Tap: tapName(n.ID), Chain: chainName(n.ID), MAC: n.MAC, AntiSpoof: n.AntiSpoof,
		IngressPolicy: desired.Accept, EgressPolicy: desired.Accept,
	}
	if n.IP.IsValid() {
		spec.IPs = []netip.Addr{n.IP}
	}
	if f.enabled {
		spec.IngressPolicy = desired.Drop
		// Without egress rules all of it passes; the first one makes the rules the list of what passes.
		if len(f.egress) > 0 {
			spec.EgressPolicy = desired.Drop
		}
	}
	needs := make([]desired.Ref, 0, len(f.sets))
	for _, id := range f.sets {
		it, err := d.addrset(id)
		if err != nil {
			return err
		}
		d.items[it.Ref()] = it
		needs = append(needs, it.Ref())
	}
	ref := resource.SecGroupRef(n.ID)
	if err := d.add(ref, spec, needs, append([]resource.Resource{n}, f.from...)...); err != nil {
		return err
	}
	if it := d.items[ref]; len(f.json) > 0 {
		// No value before the policy can hold a quotation mark.
		i := bytes.Index(it.Spec, []byte(`"ingress_policy"`))
		it.Spec = slices.Concat(it.Spec[:i:i], f.json, it.Spec[i:])
		d.items[ref] = it
	}
	return nil
}

func (d *document) vm(vm *resource.VM, nics []*resource.NIC) error {
	dom := &desired.Domain{
		Name: "shoal-" + vm.ID, Title: vm.Name, Power: vm.Power, Wish: vm.Wish, StopSeconds: vm.StopSeconds, CPUs: vm.CPUs, MemoryMiB: vm.MemoryMiB,
		Machine: vm.Machine, CPUMode: vm.CPUMode, ConsoleLog: path.Join(ConsoleDir, vm.ID+".log"), Act: vm.Act,
	}
	var needs []desired.Ref
	from := []resource.Resource{vm}
	for _, v := range volumesOf(d.r, vm.ID) {
		if err := d.volume(v); err != nil {
			return err
		}
		disk := desired.Disk{
			Volume: v.ID, Path: v.Path, Format: v.Format, Target: v.Target, Bus: "virtio", Cache: "none",
			// A virtio disk shows 20 bytes of its serial number.
			Serial: serial(v.ID),
		}
		if v.Type == resource.VolumeRoot {
			disk.Boot = 1
		}
		dom.Disks = append(dom.Disks, disk)
		needs = append(needs, resource.VolumeRef(v.ID))
		from = append(from, v)
	}
	for _, n := range nics {
		l3, err := resource.Get[*resource.L3](d.r, n.L3ID)
		if err != nil {
			return err
		}
		l2, err := resource.Get[*resource.L2](d.r, l3.L2ID)
		if err != nil {
			return err
		}
		if err := d.secgroup(n); err != nil {
			return err
		}
		dom.NICs = append(dom.NICs, desired.DomainNIC{ID: n.ID, MAC: n.MAC, Tap: tapName(n.ID), Bridge: bridgeName(l2), Model: n.Model, MTU: guestMTU(l2, l3)})
		for _, ref := range []desired.Ref{resource.NetDevRef(l2.ID), resource.DHCPRef(l3.ID), resource.SecGroupRef(n.ID)} {
			if _, ok := d.items[ref]; ok {
				needs = append(needs, ref)
			}
		}
		from = append(from, n)
	}
	if vm.Undefine {
		return nil
	}
	if vm.Power == desired.PowerOff {
		// What it would need to run can't keep it from being off.
		dom.Force, needs = vm.Force, nil
	}
	return d.add(resource.DomainRef(vm.ID), dom, needs, from...)
}

func serial(id string) string {
	s := strings.ReplaceAll(id, "-", "")
	return s[:min(20, len(s))]
}
