package plan

import (
	"fmt"
	"net/netip"
	"path"
	"slices"

	"shoal/controller/resource"
)

// NFSDir is where hosts mount NFS storages.
const NFSDir = "/var/lib/shoal/nfs"

// prepare gives a new resource what every new resource gets.
func prepare(tx resource.Tx, r resource.Resource) {
	b := r.Base()
	if b.ID == "" {
		b.ID = tx.NewID()
	}
	if b.Owner == "" {
		b.Owner = tx.Request().Owner()
	}
}

// Create adds a resource of one of the kinds that users state in full: zone, cluster, host, storage, image, offering,
// disk offering, VXLAN pool, layer 2 and 3 network, range, security group and rule. Fields that are not set get their
// defaults. VMs, NICs and volumes are made from specs by functions of their own.
func Create(tx resource.Tx, r resource.Resource) (resource.Resource, error) {
	r = r.Clone()
	switch x := r.(type) {
	case *resource.L2:
		return put(CreateL2(tx, x))
	case *resource.IPRange:
		return put(AddIPRange(tx, x))
	case *resource.SecGroup:
		return put(CreateSecGroup(tx, x, false))
	case *resource.VM, *resource.NIC, *resource.Volume, *resource.Task, *resource.Session, *resource.Share, *resource.Enrolment, *resource.Revocation:
		return nil, resource.Invalid("kind", "a %s is not created this way", r.Kind())
	}
	prepare(tx, r)
	task := resource.Kind("")
	about := r.Base().ID
	switch x := r.(type) {
	case *resource.Account, *resource.Policy, *resource.Group, *resource.User:
		if err := newIdentity(tx, x); err != nil {
			return nil, err
		}
	case *resource.HostToken:
		if err := newToken(tx, x); err != nil {
			return nil, err
		}
	case *resource.Zone:
		enable(&x.State)
	case *resource.Cluster:
		enable(&x.State)
	case *resource.Host:
		enable(&x.State)
		x.VTEPs = nil
		for _, key := range x.Unique() {
			if h := tx.Holder(key); h != nil {
				field := "name"
				if key != x.Unique()[0] {
					field = "public_key"
				}
				return nil, resource.Conflict(field, "host %s has it already", h.Base().Name)
			}
		}
	case *resource.Storage:
		if err := newStorage(tx, x); err != nil {
			return nil, err
		}
		task = resource.KindStorage
	case *resource.Image:
		enable(&x.State)
		if x.Stage == "" {
			x.Stage = resource.ImageAdding
		}
		task = resource.KindImage
	case *resource.Offering:
		enable(&x.State)
		if x.Strategy == "" {
			x.Strategy = resource.FewestVMs
		}
	case *resource.DiskOffering:
		enable(&x.State)
	case *resource.VXLANPool:
		if x.Port == 0 {
			x.Port = 4789
		}
		if err := checkPool(tx, x); err != nil {
			return nil, err
		}
	case *resource.L3:
		x.DHCPServer = netip.Addr{}
		if x.Category == "" {
			x.Category = resource.CategoryPrivate
		}
	case *resource.SecRule:
		if x.Name == "" {
			x.Name = fmt.Sprintf("%s-%s", x.Direction, x.Protocol)
		}
		if err := checkRule(tx, x); err != nil {
			return nil, err
		}
		if g, ok := resource.Find[*resource.SecGroup](tx, x.GroupID); ok {
			x.Owner = g.Owner
		}
		task, about = resource.KindSecGroup, x.GroupID
	}
	if err := checkRefs(tx, r); err != nil {
		return nil, err
	}
	if err := tx.Put(r); err != nil {
		return nil, err
	}
	if task != "" {
		if _, err := NewTask(tx, task, about); err != nil {
			return nil, err
		}
	}
	return tx.Get(r.Kind(), r.Base().ID), nil
}

// put makes a typed result a Resource; a nil pointer stays nil.
func put[T resource.Resource](r T, err error) (resource.Resource, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

func enable(s *resource.State) {
	if *s == "" {
		*s = resource.Enabled
	}
}

// checkRefs names the field of a reference that leads nowhere.
func checkRefs(tx resource.Tx, r resource.Resource) error {
	if err := r.Validate(); err != nil {
		return err
	}
	for _, ref := range r.Refs() {
		if ref.Mode != resource.Weak && tx.Get(ref.Kind, ref.ID) == nil {
			return inThe(resource.NotFound(ref.Kind, ref.ID), ref.Field)
		}
	}
	return nil
}

// checkRule finds a rule that a group has already.
func checkRule(tx resource.Tx, x *resource.SecRule) error {
	if h := tx.Holder(x.Unique()[0]); h != nil && h.Base().ID != x.ID {
		return resource.Conflict("group_id", "the group has the same rule already: %s", h.Base().ID)
	}
	return nil
}

func newStorage(tx resource.Tx, s *resource.Storage) error {
	enable(&s.State)
	if s.Overprovision == 0 {
		s.Overprovision = 1
	}
	if s.ReservedBytes == 0 {
		s.ReservedBytes = resource.DefaultReservedBytes
	}
	if s.Type == resource.StorageNFS {
		if s.Path != "" && s.Path != path.Join(NFSDir, s.ID) {
			return resource.Invalid("path", "must not be set with type nfs: it is chosen")
		}
		s.Path = path.Join(NFSDir, s.ID)
	}
	slices.Sort(s.ClusterIDs)
	s.ClusterIDs = slices.Compact(s.ClusterIDs)
	for _, id := range s.ClusterIDs {
		if err := storageFits(tx, s, id); err != nil {
			return err
		}
	}
	return nil
}

// storageFits says why a storage can't be attached to a cluster.
func storageFits(tx resource.Tx, s *resource.Storage, cluster string) error {
	c, err := clusterInZone(tx, cluster, s.ZoneID, "storage "+s.Name)
	if err != nil {
		return err
	}
	for o := range resource.Referrers[*resource.Storage](tx, resource.KindCluster, cluster) {
		if o.ID == s.ID {
			continue
		}
		if o.Path == s.Path || nested(o.Path, s.Path) || nested(s.Path, o.Path) {
			return resource.Conflict("path", "%s is within or around %s, the path of storage %s of cluster %s", s.Path, o.Path, o.Name, c.Name)
		}
		if s.Source != "" && o.Source == s.Source {
			return resource.Conflict("source", "%s is storage %s of cluster %s already", s.Source, o.Name, c.Name)
		}
	}
	return nil
}

// nested reports whether a path lies below another.
func nested(dir, p string) bool {
	return len(p) > len(dir) && p[:len(dir)] == dir && p[len(dir)] == '/'
}

func clusterInZone(tx resource.Tx, id, zone, what string) (*resource.Cluster, error) {
	c, err := resource.Get[*resource.Cluster](tx, id)
	if err != nil {
		return nil, inThe(err, "cluster_id")
	}
	if c.ZoneID != zone {
		return nil, resource.Conflict("cluster_id", "cluster %s and %s are in different zones", c.Name, what)
	}
	return c, nil
}

// AttachStorage lets the hosts of a cluster use a storage.
func AttachStorage(tx resource.Tx, id, clusterID string) (*resource.Storage, error) {
	s, err := resource.Get[*resource.Storage](tx, id)
	if err != nil {
		return nil, err
	}
	s = resource.Copy(s)
	if !slices.Contains(s.ClusterIDs, clusterID) {
		if err := storageFits(tx, s, clusterID); err != nil {
			return nil, err
		}
		s.ClusterIDs = append(slices.Clone(s.ClusterIDs), clusterID)
		slices.Sort(s.ClusterIDs)
	}
	return putStorage(tx, s)
}

func putStorage(tx resource.Tx, s *resource.Storage) (*resource.Storage, error) {
	if err := tx.Put(s); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindStorage, s.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Storage](tx, s.ID)
}

// DetachStorage takes a storage from a cluster, unless a volume on it is in use there.
func DetachStorage(tx resource.Tx, id, clusterID string) (*resource.Storage, error) {
	s, err := resource.Get[*resource.Storage](tx, id)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(s.ClusterIDs, clusterID) {
		return nil, resource.Conflict("cluster_id", "storage %s is not attached to it", s.Name)
	}
	var users []resource.Reason
	for v := range resource.Referrers[*resource.Volume](tx, resource.KindStorage, s.ID) {
		h, ok := resource.Find[*resource.Host](tx, resource.VolumeHost(tx, v))
		if ok && h.ClusterID == clusterID {
			users = append(users, resource.Reason{Kind: resource.KindVolume, ID: v.ID, Name: v.Name, Why: "it is on host " + h.Name})
		}
	}
	if len(users) > 0 {
		return nil, inUse("storage "+s.Name, users)
	}
	return putStorage(tx, s.Unlink(resource.KindCluster, clusterID).(*resource.Storage))
}

// CreateL2 adds a layer 2 network. A VXLAN network without a VNI gets the first free one of its pool.
func CreateL2(tx resource.Tx, l *resource.L2) (*resource.L2, error) {
	l = resource.Copy(l)
	prepare(tx, l)
	if l.Type == resource.L2VXLAN && l.PoolID != "" {
		p, err := resource.Get[*resource.VXLANPool](tx, l.PoolID)
		if err != nil {
			return nil, inThe(err, "pool_id")
		}
		if l.ZoneID == "" {
			l.ZoneID = p.ZoneID
		}
		if l.ZoneID != p.ZoneID {
			return nil, resource.Invalid("pool_id", "VXLAN pool %s is in another zone", p.Name)
		}
		if l.VNI == 0 {
			if l.VNI, err = freeVNI(tx, p); err != nil {
				return nil, err
			}
		}
		if !slices.ContainsFunc(p.Ranges, func(r resource.VNIRange) bool { return r.From <= l.VNI && l.VNI <= r.To }) {
			return nil, resource.Invalid("vni", "%d is not in a range of VXLAN pool %s", l.VNI, p.Name)
		}
		if h := tx.Holder(resource.VNIKey(p.ID, l.VNI)); h != nil {
			return nil, resource.Conflict("vni", "%d is taken", l.VNI).Because(h, "it has that VNI")
		}
		// Pools of overlapping ranges may share a wire.
		for o := range resource.All[*resource.L2](tx) {
			if o.Type == resource.L2VXLAN && o.VNI == l.VNI && o.ZoneID == l.ZoneID {
				return nil, resource.Conflict("vni", "%d is taken in another pool in the zone", l.VNI).Because(o, "it has that VNI")
			}
		}
	}
	slices.Sort(l.ClusterIDs)
	l.ClusterIDs = slices.Compact(l.ClusterIDs)
	if err := checkRefs(tx, l); err != nil {
		return nil, err
	}
	for _, c := range l.ClusterIDs {
		if err := l2Fits(tx, l, c); err != nil {
			return nil, err
		}
	}
	if err := tx.Put(l); err != nil {
		return nil, err
	}
	return resource.Get[*resource.L2](tx, l.ID)
}

// l2Fits says why a layer 2 network can't be attached to a cluster.
func l2Fits(tx resource.Tx, l *resource.L2, cluster string) error {
	c, err := clusterInZone(tx, cluster, l.ZoneID, "network "+l.Name)
	if err != nil {
		return err
	}
	for o := range resource.Referrers[*resource.L2](tx, resource.KindCluster, cluster) {
		if o.ID != l.ID && o.Type == l.Type && o.Device == l.Device && o.Bridge == l.Bridge && o.VLAN == l.VLAN {
			field := "device"
			if l.Bridge != "" {
				field = "bridge"
			} else if l.VLAN != 0 {
				field = "vlan"
			}
			return resource.Conflict(field, "network %s of cluster %s has it already", o.Name, c.Name).WithRemedy("use that network: it can have several layer 3 networks")
		}
	}
	return nil
}

// AttachL2 gives the hosts of a cluster a layer 2 network.
func AttachL2(tx resource.Tx, id, clusterID string) (*resource.L2, error) {
	l, err := resource.Get[*resource.L2](tx, id)
	if err != nil {
		return nil, err
	}
	if l.Type == resource.L2VXLAN {
		return nil, resource.Invalid("l2", "network %s is a VXLAN network: attach its pool", l.Name)
	}
	if slices.Contains(l.ClusterIDs, clusterID) {
		return l, nil
	}
	if err := l2Fits(tx, l, clusterID); err != nil {
		return nil, err
	}
	l = resource.Copy(l)
	l.ClusterIDs = append(slices.Clone(l.ClusterIDs), clusterID)
	slices.Sort(l.ClusterIDs)
	if err := tx.Put(l); err != nil {
		return nil, err
	}
	return resource.Get[*resource.L2](tx, id)
}

// usersOfL2 are the VMs of a cluster in a layer 2 network.
func usersOfL2(tx resource.Tx, l2, cluster string) []resource.Reason {
	var users []resource.Reason
	for l3 := range resource.Referrers[*resource.L3](tx, resource.KindL2, l2) {
		for n := range resource.Referrers[*resource.NIC](tx, resource.KindL3, l3.ID) {
			if vm, ok := resource.Find[*resource.VM](tx, n.VMID); ok && vm.ClusterID == cluster {
				users = append(users, resource.Reason{Kind: resource.KindVM, ID: vm.ID, Name: vm.Name, Why: "it has a NIC in network " + l3.Name})
			}
		}
	}
	return users
}

// DetachL2 takes a layer 2 network from a cluster, unless a VM there is in it.
func DetachL2(tx resource.Tx, id, clusterID string) (*resource.L2, error) {
	l, err := resource.Get[*resource.L2](tx, id)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(l.ClusterIDs, clusterID) {
		return nil, resource.Conflict("cluster_id", "network %s is not attached to it", l.Name)
	}
	if users := usersOfL2(tx, id, clusterID); len(users) > 0 {
		return nil, inUse("network "+l.Name, users)
	}
	if err := tx.Put(l.Unlink(resource.KindCluster, clusterID)); err != nil {
		return nil, err
	}
	return resource.Get[*resource.L2](tx, id)
}

// checkPool checks what a pool's own fields do not show.
func checkPool(tx resource.Tx, p *resource.VXLANPool) error {
	if err := p.Validate(); err != nil {
		return err
	}
	for _, c := range p.Clusters {
		if _, err := clusterInZone(tx, c.ClusterID, p.ZoneID, "VXLAN pool "+p.Name); err != nil {
			return err
		}
	}
	return nil
}

// AttachVXLANPool lets the hosts of a cluster have the pool's networks; their tunnel addresses lie in cidr. Attaching
// it again changes the network.
func AttachVXLANPool(tx resource.Tx, id, clusterID string, cidr netip.Prefix) (*resource.VXLANPool, error) {
	p, err := resource.Get[*resource.VXLANPool](tx, id)
	if err != nil {
		return nil, err
	}
	p = p.Unlink(resource.KindCluster, clusterID).(*resource.VXLANPool)
	p.Clusters = append(p.Clusters, resource.ClusterVTEP{ClusterID: clusterID, CIDR: cidr})
	if err := checkPool(tx, p); err != nil {
		return nil, err
	}
	if err := tx.Put(p); err != nil {
		return nil, err
	}
	if err := setVTEPs(tx); err != nil {
		return nil, err
	}
	return resource.Get[*resource.VXLANPool](tx, id)
}

// DetachVXLANPool takes a pool from a cluster, unless a VM there is in one of its networks.
func DetachVXLANPool(tx resource.Tx, id, clusterID string) (*resource.VXLANPool, error) {
	p, err := resource.Get[*resource.VXLANPool](tx, id)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(p.Clusters, func(c resource.ClusterVTEP) bool { return c.ClusterID == clusterID }) {
		return nil, resource.Conflict("cluster_id", "VXLAN pool %s is not attached to it", p.Name)
	}
	var users []resource.Reason
	for l := range resource.Referrers[*resource.L2](tx, resource.KindVXLANPool, id) {
		users = append(users, usersOfL2(tx, l.ID, clusterID)...)
	}
	if len(users) > 0 {
		return nil, inUse("VXLAN pool "+p.Name, users)
	}
	if err := tx.Put(p.Unlink(resource.KindCluster, clusterID)); err != nil {
		return nil, err
	}
	if err := setVTEPs(tx); err != nil {
		return nil, err
	}
	return resource.Get[*resource.VXLANPool](tx, id)
}

// CreateSecGroup adds a security group. Unless closed, its members may reach each other, by a rule that can be deleted.
func CreateSecGroup(tx resource.Tx, g *resource.SecGroup, closed bool) (*resource.SecGroup, error) {
	g = resource.Copy(g)
	prepare(tx, g)
	enable(&g.State)
	if err := tx.Put(g); err != nil {
		return nil, err
	}
	if !closed {
		rule := &resource.SecRule{GroupID: g.ID, Direction: resource.Ingress, Protocol: "all", RemoteGroupID: g.ID}
		rule.Name = "members"
		prepare(tx, rule)
		if err := tx.Put(rule); err != nil {
			return nil, err
		}
	}
	return resource.Get[*resource.SecGroup](tx, g.ID)
}
