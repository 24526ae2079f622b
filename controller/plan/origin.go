package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// What documents say of the resources that they were made from, for a rebuild; see desired.Origin. Each type below is what
// hosts get to know of a kind: no secret, nothing that another item tells, nothing that changes without a decision of
// somebody's. The names are those of the resources' own JSON, so that a record is a resource of which a part is missing.
type (
	originBase struct {
		ID          string   `json:"id"`
		Name        string   `json:"name"`
		Description string   `json:"description,omitempty"`
		Owner       string   `json:"owner,omitempty"`
		Tags        []string `json:"tags,omitempty"`
	}
	accountOrigin struct {
		originBase
		State  resource.State            `json:"state"`
		Quotas map[resource.Quota]uint64 `json:"quotas,omitempty"`
	}
	zoneOrigin struct {
		originBase
		State resource.State `json:"state"`
	}
	clusterOrigin struct {
		originBase
		ZoneID        string                          `json:"zone_id"`
		State         resource.State                  `json:"state"`
		Arch          string                          `json:"arch,omitempty"`
		CPUOvercommit int                             `json:"cpu_overcommit,omitempty"`
		Drift         map[desired.Kind]desired.Policy `json:"drift,omitempty"`
	}
	hostOrigin struct {
		originBase
		ClusterID string                          `json:"cluster_id"`
		State     resource.State                  `json:"state"`
		Drift     map[desired.Kind]desired.Policy `json:"drift,omitempty"`
	}
	storageOrigin struct {
		originBase
		ZoneID        string         `json:"zone_id"`
		State         resource.State `json:"state"`
		Overprovision float64        `json:"overprovision"`
		ReservedBytes uint64         `json:"reserved_bytes"`
		ClusterIDs    []string       `json:"cluster_ids,omitempty"`
	}
	imageOrigin struct {
		originBase
		State        resource.State      `json:"state"`
		URL          string              `json:"url"`
		Checksum     string              `json:"checksum,omitempty"`
		Stage        resource.ImageState `json:"stage"`
		SHA256       string              `json:"sha256,omitempty"`
		Bytes        uint64              `json:"bytes,omitempty"`
		VirtualBytes uint64              `json:"virtual_bytes,omitempty"`
		Format       desired.Format      `json:"format,omitempty"`
	}
	offeringOrigin struct {
		originBase
		State     resource.State              `json:"state"`
		CPUs      int                         `json:"cpus"`
		MemoryMiB int                         `json:"memory_mib"`
		Strategy  resource.AllocationStrategy `json:"strategy"`
	}
	diskOfferingOrigin struct {
		originBase
		State resource.State `json:"state"`
		Bytes uint64         `json:"bytes"`
	}
	vxlanPoolOrigin struct {
		originBase
		ZoneID   string                 `json:"zone_id"`
		Ranges   []resource.VNIRange    `json:"ranges"`
		Clusters []resource.ClusterVTEP `json:"clusters,omitempty"`
		Port     int                    `json:"port"`
	}
	l2Origin struct {
		originBase
		ZoneID     string   `json:"zone_id"`
		PoolID     string   `json:"pool_id,omitempty"`
		ClusterIDs []string `json:"cluster_ids,omitempty"`
	}
	l3Origin struct {
		originBase
		L2ID       string            `json:"l2_id"`
		Category   resource.Category `json:"category"`
		DNS        []netip.Addr      `json:"dns,omitempty"`
		Domain     string            `json:"domain,omitempty"`
		MTU        int               `json:"mtu,omitempty"`
		NoDHCP     bool              `json:"no_dhcp,omitempty"`
		DHCPServer netip.Addr        `json:"dhcp_server,omitzero"`
	}
	ipRangeOrigin struct {
		originBase
		L3ID    string     `json:"l3_id"`
		Start   netip.Addr `json:"start"`
		End     netip.Addr `json:"end"`
		Bits    int        `json:"bits"`
		Gateway netip.Addr `json:"gateway"`
	}
	secGroupOrigin struct {
		originBase
		State resource.State `json:"state"`
	}
	secRuleOrigin struct {
		originBase
		GroupID       string             `json:"group_id"`
		Direction     resource.Direction `json:"direction"`
		Protocol      desired.Protocol   `json:"protocol"`
		FromPort      int                `json:"from_port,omitempty"`
		ToPort        int                `json:"to_port,omitempty"`
		CIDR          netip.Prefix       `json:"cidr,omitzero"`
		RemoteGroupID string             `json:"remote_group_id,omitempty"`
	}
	vmOrigin struct {
		originBase
		OfferingID string                      `json:"offering_id,omitempty"`
		ImageID    string                      `json:"image_id,omitempty"`
		Strategy   resource.AllocationStrategy `json:"strategy"`
		Hostname   string                      `json:"hostname,omitempty"`
		Destroyed  time.Time                   `json:"destroyed,omitzero"`
	}
	nicOrigin struct {
		originBase
		L3ID        string     `json:"l3_id"`
		IP          netip.Addr `json:"ip,omitzero"`
		Index       int        `json:"index"`
		Default     bool       `json:"default,omitempty"`
		SecGroupIDs []string   `json:"secgroup_ids,omitempty"`
	}
	volumeOrigin struct {
		originBase
		Type           resource.VolumeType `json:"type"`
		State          resource.State      `json:"state"`
		ImageID        string              `json:"image_id,omitempty"`
		DiskOfferingID string              `json:"disk_offering_id,omitempty"`
		Destroyed      time.Time           `json:"destroyed,omitzero"`
	}
)

// originOf is what hosts get to know of a resource; nil for kinds of which they get to know nothing.
func originOf(r resource.Resource) any {
	m := r.Base()
	base := originBase{ID: m.ID, Name: m.Name, Description: m.Description, Owner: m.Owner, Tags: m.Tags}
	switch x := r.(type) {
	case *resource.Account:
		return accountOrigin{base, x.State, x.Quotas}
	case *resource.Zone:
		return zoneOrigin{base, x.State}
	case *resource.Cluster:
		return clusterOrigin{base, x.ZoneID, x.State, x.Arch, x.CPUOvercommit, x.Drift}
	case *resource.Host:
		return hostOrigin{base, x.ClusterID, x.State, x.Drift}
	case *resource.Storage:
		return storageOrigin{base, x.ZoneID, x.State, x.Overprovision, x.ReservedBytes, x.ClusterIDs}
	case *resource.Image:
		return imageOrigin{base, x.State, publicURL(x.URL), x.Checksum, x.Stage, x.SHA256, x.Bytes, x.VirtualBytes, x.Format}
	case *resource.Offering:
		return offeringOrigin{base, x.State, x.CPUs, x.MemoryMiB, x.Strategy}
	case *resource.DiskOffering:
		return diskOfferingOrigin{base, x.State, x.Bytes}
	case *resource.VXLANPool:
		return vxlanPoolOrigin{base, x.ZoneID, x.Ranges, x.Clusters, x.Port}
	case *resource.L2:
		return l2Origin{base, x.ZoneID, x.PoolID, x.ClusterIDs}
	case *resource.L3:
		return l3Origin{base, x.L2ID, x.Category, x.DNS, x.Domain, x.MTU, x.NoDHCP, x.DHCPServer}
	case *resource.IPRange:
		return ipRangeOrigin{base, x.L3ID, x.Start, x.End, x.Bits, x.Gateway}
	case *resource.SecGroup:
		return secGroupOrigin{base, x.State}
	case *resource.SecRule:
		return secRuleOrigin{base, x.GroupID, x.Direction, x.Protocol, x.FromPort, x.ToPort, x.CIDR, x.RemoteGroupID}
	case *resource.VM:
		return vmOrigin{base, x.OfferingID, x.ImageID, x.Strategy, x.Hostname, x.Destroyed}
	case *resource.NIC:
		return nicOrigin{base, x.L3ID, x.IP, x.Index, x.Default, x.SecGroupIDs}
	case *resource.Volume:
		return volumeOrigin{base, x.Type, x.State, x.ImageID, x.DiskOfferingID, x.Destroyed}
	default:
		return nil
	}
}

// publicURL is a URL without what may let somebody in: hosts need not know that.
func publicURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String()
}

// originItem is the item of a resource and of those that go with it. It is of the same bytes on every host that has it.
func (d *Renderer) originItem(r resource.Resource, parts ...resource.Resource) (desired.Item, error) {
	type record struct {
		Kind   resource.Kind `json:"kind"`
		Record any           `json:"record"`
	}
	var spec struct {
		Resources []record `json:"resources"`
	}
	slices.SortFunc(parts, func(a, b resource.Resource) int {
		return cmp.Or(strings.Compare(string(a.Kind()), string(b.Kind())), strings.Compare(a.Base().ID, b.Base().ID))
	})
	from := append([]resource.Resource{r}, parts...)
	for _, p := range from {
		spec.Resources = append(spec.Resources, record{p.Kind(), originOf(p)})
	}
	it, err := desired.NewItem(desired.KindOrigin, r.Base().ID, &spec)
	it.Cause = newest(from...)
	return it, err
}

// origins adds what the document was made from: its host, what runs there, what that stands on, and whose it is.
func (d *document) origins(vms []*resource.VM, nics map[string][]*resource.NIC) error {
	done, owners := map[string]bool{}, map[string]bool{}
	add := func(r resource.Resource, parts ...resource.Resource) error {
		id := r.Base().ID
		if done[id] {
			return nil
		}
		for _, p := range append(parts, r) {
			owners[p.Base().Owner] = true
			done[p.Base().ID] = true
		}
		var it desired.Item
		var err error
		switch r.Kind() {
		case resource.KindHost, resource.KindVM, resource.KindVolume:
			it, err = d.originItem(r, parts...)
		default:
			// Many hosts have them.
			key := originKey{r.Kind(), id, len(parts) > 0}
			var known bool
			if it, known = d.origs[key]; !known {
				it, err = d.originItem(r, parts...)
				d.origs[key] = it
			}
		}
		d.items[it.Ref()] = it
		return err
	}
	// find adds a resource that may be gone.
	find := func(kind resource.Kind, id string) error {
		if id == "" || done[id] {
			return nil
		}
		if r := d.r.Get(kind, id); r != nil {
			return add(r)
		}
		return nil
	}
	clusters := func(ids ...string) error {
		for _, id := range ids {
			if done[id] {
				continue
			}
			c, ok := resource.Find[*resource.Cluster](d.r, id)
			if !ok {
				continue
			}
			if err := find(resource.KindZone, c.ZoneID); err != nil {
				return err
			}
			if err := add(c); err != nil {
				return err
			}
		}
		return nil
	}
	if err := clusters(d.host.ClusterID); err != nil {
		return err
	}
	if err := add(d.host); err != nil {
		return err
	}
	var volumes []*resource.Volume
	for ref := range d.items {
		switch ref.Kind {
		case desired.KindPool:
			s, err := resource.Get[*resource.Storage](d.r, ref.ID)
			if err != nil {
				return err
			}
			if err := clusters(s.ClusterIDs...); err != nil {
				return err
			}
			if err := add(s); err != nil {
				return err
			}
		case desired.KindVolume:
			if v, ok := resource.Find[*resource.Volume](d.r, ref.ID); ok && !v.Expunging {
				volumes = append(volumes, v)
			}
		default:
		}
	}
	groups := map[string]bool{}
	for _, vm := range vms {
		if vm.Undefine {
			continue
		}
		var parts []resource.Resource
		for _, v := range volumesOf(d.r, vm.ID) {
			if !v.Expunging {
				parts = append(parts, v)
			}
		}
		for _, n := range nics[vm.ID] {
			parts = append(parts, n)
			for _, g := range n.SecGroupIDs {
				groups[g] = true
			}
			if !done[n.L3ID] {
				if err := d.networkOrigins(n.L3ID, add, clusters); err != nil {
					return err
				}
			}
		}
		if err := add(vm, parts...); err != nil {
			return err
		}
		if err := find(resource.KindOffering, vm.OfferingID); err != nil {
			return err
		}
		if err := find(resource.KindImage, vm.ImageID); err != nil {
			return err
		}
	}
	for _, v := range volumes {
		if err := add(v); err != nil { // unless it is its VM's
			return err
		}
		if err := find(resource.KindImage, v.ImageID); err != nil {
			return err
		}
		if err := find(resource.KindDiskOffering, v.DiskOfferingID); err != nil {
			return err
		}
	}
	var named []string
	for id := range groups {
		g, ok := resource.Find[*resource.SecGroup](d.r, id)
		if !ok {
			continue
		}
		var rules []resource.Resource
		for rule := range resource.Referrers[*resource.SecRule](d.r, resource.KindSecGroup, id) {
			if rule.GroupID == id {
				rules = append(rules, rule)
				named = append(named, rule.RemoteGroupID)
			}
		}
		if err := add(g, rules...); err != nil {
			return err
		}
	}
	// Rules need the groups that they name, not those groups' rules.
	for _, id := range named {
		if err := find(resource.KindSecGroup, id); err != nil {
			return err
		}
	}
	for _, id := range sorted(owners) {
		if a, ok := resource.Find[*resource.Account](d.r, id); ok && id != resource.AdminAccount {
			if err := add(a); err != nil {
				return err
			}
		}
	}
	return nil
}

// networkOrigins adds a layer 3 network with its ranges, and what it stands on.
func (d *document) networkOrigins(id string, add func(resource.Resource, ...resource.Resource) error, clusters func(...string) error) error {
	l3, err := resource.Get[*resource.L3](d.r, id)
	if err != nil {
		return err
	}
	l2, err := resource.Get[*resource.L2](d.r, l3.L2ID)
	if err != nil {
		return err
	}
	if err := clusters(l2.ClusterIDs...); err != nil {
		return err
	}
	if pool, ok := resource.Find[*resource.VXLANPool](d.r, l2.PoolID); ok {
		for _, c := range pool.Clusters {
			if err := clusters(c.ClusterID); err != nil {
				return err
			}
		}
		if err := add(pool); err != nil {
			return err
		}
	}
	if err := add(l2); err != nil {
		return err
	}
	var ranges []resource.Resource
	for _, r := range d.rangesOf(l3.ID) {
		ranges = append(ranges, r)
	}
	return add(l3, ranges...)
}

// originKey names an item that many hosts have: a group is told with its rules or without.
type originKey struct {
	kind  resource.Kind
	id    string
	whole bool
}

// emptyOrigin is an empty record of a kind, to decode into; nil for kinds of which documents say nothing.
func emptyOrigin(kind resource.Kind) any {
	r := resource.New(kind)
	if r == nil {
		return nil
	}
	record := originOf(r)
	if record == nil {
		return nil
	}
	return reflect.New(reflect.TypeOf(record)).Interface()
}

// originSet are the resources that a document says it was made from, each as far as it tells.
type originSet map[resource.Kind]map[string]resource.Resource

// readOrigins reads them. Only what documents are meant to tell is taken from them, whatever else a host may have put in. A kind
// that is not known is left out: it is of a newer controller's, and what it says can be set again by hand.
func readOrigins(doc desired.Document) (originSet, error) {
	specs, err := decodeAll[desired.Origin](doc, desired.KindOrigin)
	if err != nil {
		return nil, err
	}
	out := originSet{}
	for _, id := range sorted(specs) {
		for _, o := range specs[id].Resources {
			kind := resource.Kind(o.Kind)
			record := emptyOrigin(kind)
			if record == nil {
				continue
			}
			if err := json.Unmarshal(o.Record, record); err != nil {
				return nil, resource.Conflict("host", "what the host has of a %s can't be read: %v", kind, err)
			}
			known, err := json.Marshal(record)
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", kind, err)
			}
			r, err := resource.Decode(kind, known)
			if err != nil {
				return nil, resource.Conflict("host", "what the host has of a %s can't be read: %v", kind, err)
			}
			if out[kind] == nil {
				out[kind] = map[string]resource.Resource{}
			}
			out[kind][r.Base().ID] = r
		}
	}
	return out, nil
}

// originFrom is the beginning of a resource that is taken over: what the document says of it, in memory of its own.
func originFrom[T resource.Resource](o originSet, id string) (t T, ok bool) {
	r, ok := o[t.Kind()][id]
	if !ok {
		return t, false
	}
	return resource.Copy(r.(T)), true
}

// restore puts what documents tell in full, and the state does not know. What can't be put is left out, for the rest is worth more:
// that is a rule that another rule has come in place of, or a range whose addresses belong to another by now.
func (o originSet) restore(tx resource.Tx, kinds ...resource.Kind) error {
	for _, kind := range kinds {
		for _, id := range sorted(o[kind]) {
			if tx.Get(kind, id) != nil {
				continue
			}
			r := o[kind][id].Clone()
			if l, ok := r.(resource.Unlinker); ok {
				r = existing(tx, l)
			}
			if a, ok := r.(*resource.Account); ok && tx.Holder(resource.AccountKey(a.Name)) != nil {
				a.Name = recovered(a.ID)
			}
			if !fits(tx, r) {
				continue
			}
			if err := tx.Put(r); err != nil {
				return fmt.Errorf("take over %s %s: %w", kind, cmp.Or(r.Base().Name, id), err)
			}
		}
	}
	return nil
}

// existing is a resource without its links to what is not there.
func existing(tx resource.Reader, l resource.Unlinker) resource.Resource {
	r := l.(resource.Resource)
	for _, ref := range r.Refs() {
		if ref.Mode == resource.Link && tx.Get(ref.Kind, ref.ID) == nil {
			r = r.(resource.Unlinker).Unlink(ref.Kind, ref.ID)
		}
	}
	return r
}

// fits reports whether a resource has all that it names, and nothing has its place.
func fits(tx resource.Reader, r resource.Resource) bool {
	for _, ref := range r.Refs() {
		if ref.Mode != resource.Weak && (ref.Kind != r.Kind() || ref.ID != r.Base().ID) && tx.Get(ref.Kind, ref.ID) == nil {
			return false
		}
	}
	for _, key := range r.Unique() {
		if tx.Holder(key) != nil {
			return false
		}
	}
	if x, ok := r.(*resource.IPRange); ok {
		for _, o := range rangesOf(tx, x.L3ID) {
			if o.Contains(x.Start) || o.Contains(x.End) || x.Contains(o.Start) || o.Bits != x.Bits || o.Gateway != x.Gateway {
				return false
			}
		}
	}
	return true
}

// Knows reports whether a document says which host it is of and which cluster that is in, so that a state which knows neither can
// take them over.
func Knows(doc desired.Document) bool {
	o, err := readOrigins(doc)
	if err != nil {
		return false
	}
	h, ok := originFrom[*resource.Host](o, doc.Head.Host)
	return ok && o[resource.KindCluster][h.ClusterID] != nil
}

// AdoptHost adds a host that the state does not know, and where they are missing its cluster and zone, as the host's document
// says. The host is held; key is its public key.
func AdoptHost(tx resource.Tx, doc desired.Document, key string) error {
	if tx.Get(resource.KindHost, doc.Head.Host) != nil {
		return nil
	}
	o, err := readOrigins(doc)
	if err != nil {
		return err
	}
	h, ok := originFrom[*resource.Host](o, doc.Head.Host)
	if !ok {
		return resource.Conflict("host", "the host does not say which cluster it was in").WithRemedy("give --cluster, --name and --key: see shoalctl ahead list -o yaml")
	}
	if err := o.restore(tx, resource.KindAccount, resource.KindZone, resource.KindCluster); err != nil {
		return err
	}
	h.PublicKey = key
	return tx.Put(Hold(h, resource.HostHold{Since: tx.Now(), Why: "it was not known; what it has is being taken over"}))
}
