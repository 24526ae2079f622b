package plan

import (
	"fmt"
	"slices"
	"strings"

	"shoal/controller/resource"
)

// Update replaces a resource by a changed copy of it. What can't change, or changes by a call of its own, is refused with
// the field's name.
func Update(tx resource.Tx, changed resource.Resource) (resource.Resource, error) {
	id := changed.Base().ID
	old := tx.Get(changed.Kind(), id)
	if old == nil {
		return nil, resource.NotFound(changed.Kind(), id)
	}
	changed = changed.Clone()
	if err := changed.Validate(); err != nil {
		return nil, err
	}
	// fixed holds the fields that must stay, task what the call is about.
	var fixed []fixedField
	task := resource.Kind("")
	switch x := changed.(type) {
	case *resource.VM:
		o := old.(*resource.VM)
		if err := checkFixed(o.Name, o.HostID, x.HostID, "host_id", "start it on another host", string(o.Power), string(x.Power), "power", "use start, stop, pause or resume"); err != nil {
			return nil, err
		}
		return put(UpdateVM(tx, x))
	case *resource.NIC:
		o := old.(*resource.NIC)
		if err := checkFixed(o.Name, o.VMID, x.VMID, "vm_id", "", o.L3ID, x.L3ID, "l3_id", "", o.MAC, x.MAC, "mac", "", o.IP.String(), x.IP.String(), "ip", "",
			o.Model, x.Model, "model", ""); err != nil {
			return nil, err
		}
		return put(UpdateNIC(tx, x))
	case *resource.Volume:
		o := old.(*resource.Volume)
		if err := checkFixed(o.Name, o.StorageID, x.StorageID, "storage_id", "", o.VMID, x.VMID, "vm_id", "use attach and detach", string(o.Format), string(x.Format), "format", ""); err != nil {
			return nil, err
		}
		return put(UpdateVolume(tx, x))
	case *resource.Account, *resource.Policy, *resource.Group, *resource.User, *resource.Session, *resource.Share, *resource.HostToken, *resource.Enrolment, *resource.Revocation:
		var err error
		if fixed, err = updateIdentity(tx, old, changed); err != nil {
			return nil, err
		}
	case *resource.Cluster:
		fixed = []fixedField{{"zone_id", old.(*resource.Cluster).ZoneID, x.ZoneID}}
	case *resource.Host:
		o := old.(*resource.Host)
		fixed = []fixedField{{"cluster_id", o.ClusterID, x.ClusterID}, {"public_key", o.PublicKey, x.PublicKey}}
		x.VTEPs = o.VTEPs
		if h := tx.Holder("host/name/" + x.Name); h != nil && h.Base().ID != id {
			return nil, resource.Conflict("name", "another host has the name %s", x.Name)
		}
	case *resource.Storage:
		o := old.(*resource.Storage)
		fixed = []fixedField{
			{"zone_id", o.ZoneID, x.ZoneID},
			{"type", o.Type, x.Type},
			{"path", o.Path, x.Path},
			{"source", o.Source, x.Source},
			{"cluster_ids", strings.Join(o.ClusterIDs, " "), strings.Join(x.ClusterIDs, " ")},
		}
		task = resource.KindStorage
	case *resource.Image:
		o := old.(*resource.Image)
		fixed = []fixedField{{"url", o.URL, x.URL}, {"checksum", o.Checksum, x.Checksum}}
		x.Stage, x.SHA256, x.Bytes, x.VirtualBytes, x.Format = o.Stage, o.SHA256, o.Bytes, o.VirtualBytes, o.Format
	case *resource.VXLANPool:
		o := old.(*resource.VXLANPool)
		fixed = []fixedField{{"zone_id", o.ZoneID, x.ZoneID}, {"clusters", fmt.Sprint(o.Clusters), fmt.Sprint(x.Clusters)}}
		for l := range resource.Referrers[*resource.L2](tx, resource.KindVXLANPool, id) {
			if !slices.ContainsFunc(x.Ranges, func(r resource.VNIRange) bool { return r.From <= l.VNI && l.VNI <= r.To }) {
				return nil, resource.Conflict("ranges", "network %s has VNI %d, which would be in no range", l.Name, l.VNI)
			}
		}
	case *resource.L2:
		o := old.(*resource.L2)
		fixed = []fixedField{
			{"zone_id", o.ZoneID, x.ZoneID},
			{"type", o.Type, x.Type},
			{"device", o.Device, x.Device},
			{"bridge", o.Bridge, x.Bridge},
			{"vlan", o.VLAN, x.VLAN},
			{"pool_id", o.PoolID, x.PoolID},
			{"vni", o.VNI, x.VNI},
			{"cluster_ids", strings.Join(o.ClusterIDs, " "), strings.Join(x.ClusterIDs, " ")},
		}
	case *resource.L3:
		o := old.(*resource.L3)
		fixed = []fixedField{{"l2_id", o.L2ID, x.L2ID}}
		x.DHCPServer = o.DHCPServer
		if err := tx.Put(x); err != nil {
			return nil, err
		}
		if len(rangesOf(tx, id)) > 0 {
			if err := chooseDHCPServer(tx, x); err != nil {
				return nil, err
			}
		}
		x = resource.Copy(tx.Get(resource.KindL3, id).(*resource.L3))
		changed, task = x, resource.KindL3
	case *resource.IPRange:
		o := old.(*resource.IPRange)
		fixed = []fixedField{{"l3_id", o.L3ID, x.L3ID}, {"start", o.Start, x.Start}, {"end", o.End, x.End}, {"bits", o.Bits, x.Bits}, {"gateway", o.Gateway, x.Gateway}}
	case *resource.SecRule:
		o := old.(*resource.SecRule)
		fixed = []fixedField{
			{"group_id", o.GroupID, x.GroupID},
			{"direction", o.Direction, x.Direction},
			{"protocol", o.Protocol, x.Protocol},
			{"from_port", o.FromPort, x.FromPort},
			{"to_port", o.ToPort, x.ToPort},
			{"cidr", o.CIDR, x.CIDR},
			{"remote_group_id", o.RemoteGroupID, x.RemoteGroupID},
		}
	case *resource.SecGroup:
		task = resource.KindSecGroup
	case *resource.Task:
		return nil, resource.Invalid("kind", "a task can't be changed")
	}
	for _, f := range fixed {
		if f.old != f.new {
			return nil, resource.Invalid(f.name, "can't be changed from %v to %v", f.old, f.new)
		}
	}
	if err := checkRefs(tx, changed); err != nil {
		return nil, err
	}
	if err := tx.Put(changed); err != nil {
		return nil, err
	}
	if task != "" {
		if _, err := NewTask(tx, task, id); err != nil {
			return nil, err
		}
	}
	return tx.Get(changed.Kind(), id), nil
}

// fixedField is a field that Update does not change.
type fixedField struct {
	name     string
	old, new any
}

// checkFixed takes groups of four: old, new, field, remedy.
func checkFixed(name string, quads ...string) error {
	for q := range slices.Chunk(quads, 4) {
		if q[0] != q[1] {
			e := resource.Invalid(q[2], "of %s can't be changed from %s to %s", name, q[0], q[1])
			if q[3] != "" {
				e = e.WithRemedy("%s", q[3])
			}
			return e
		}
	}
	return nil
}
