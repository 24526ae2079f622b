package plantest

import (
	"fmt"
	"net/netip"
	"strings"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

// Example is a small site: one zone, two clusters, hosts with a local and a shared storage, a VXLAN network and a bridge of
// the operator's, each with addresses, security groups, an image and offerings. IDs are by name.
type Example struct {
	*Site
	IDs map[string]string
}

// Key is a public key that passes for a host's.
func Key(n int) string { return "U" + strings.Repeat("A", 49) + fmt.Sprintf("%06d", n) }

// Machine is what the n-th host reports of itself.
func Machine(n int) desired.Inventory {
	return desired.Inventory{
		Hostname: fmt.Sprintf("h%d", n), Arch: "amd64", CPUs: 4, MemoryMiB: 16384, Virt: "kvm", Devices: []string{"eth1"},
		Addresses: map[string][]string{"eth0": {fmt.Sprintf("10.77.0.%d/24", 10+n)}},
	}
}

// NewExample makes the example with a number of hosts; every third one is in the second cluster.
func NewExample(seed uint64, hosts int) *Example {
	e := &Example{Site: New(seed), IDs: map[string]string{}}
	zone := e.add("zone", &resource.Zone{})
	c1 := e.add("c1", &resource.Cluster{ZoneID: zone})
	c2 := e.add("c2", &resource.Cluster{ZoneID: zone})
	for i := range hosts {
		cluster := c1
		if i%3 == 2 {
			cluster = c2
		}
		e.add(fmt.Sprintf("h%d", i+1), &resource.Host{ClusterID: cluster, PublicKey: Key(i)})
	}
	e.add("local", &resource.Storage{ZoneID: zone, Type: resource.StorageLocal, Path: "/srv/local", ClusterIDs: []string{c1, c2}})
	e.add("nfs", &resource.Storage{ZoneID: zone, Type: resource.StorageNFS, Source: "10.77.0.1:/export", ClusterIDs: []string{c1, c2}})
	pool := e.add("pool", &resource.VXLANPool{ZoneID: zone, Ranges: []resource.VNIRange{{From: 100, To: 199}}})
	e.must("vxlanpool.attach", func(tx resource.Tx) error {
		for _, c := range []string{c1, c2} {
			if _, err := plan.AttachVXLANPool(tx, pool, c, netip.MustParsePrefix("10.77.0.0/24")); err != nil {
				return err
			}
		}
		return nil
	})
	vx := e.add("vx", &resource.L2{ZoneID: zone, Type: resource.L2VXLAN, PoolID: pool})
	lan := e.add("lan", &resource.L2{ZoneID: zone, Type: resource.L2NoVLAN, Device: "eth1", ClusterIDs: []string{c1, c2}})
	inner := e.add("inner", &resource.L3{L2ID: vx, DNS: []netip.Addr{netip.MustParseAddr("1.1.1.1")}, Domain: "example.net"})
	outer := e.add("outer", &resource.L3{L2ID: lan})
	e.add("r1", &resource.IPRange{
		L3ID: inner, Start: netip.MustParseAddr("192.168.0.10"), End: netip.MustParseAddr("192.168.0.200"), Bits: 24, Gateway: netip.MustParseAddr("192.168.0.1"),
	})
	e.add("r2", &resource.IPRange{
		L3ID: outer, Start: netip.MustParseAddr("172.16.0.10"), End: netip.MustParseAddr("172.16.0.200"), Bits: 24, Gateway: netip.MustParseAddr("172.16.0.1"),
	})
	web := e.add("web", &resource.SecGroup{})
	db := e.add("db", &resource.SecGroup{})
	e.add("web-http", &resource.SecRule{GroupID: web, Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: 80, ToPort: 80})
	e.add("db-from-web", &resource.SecRule{GroupID: db, Direction: resource.Ingress, Protocol: desired.ProtoTCP, FromPort: 5432, ToPort: 5432, RemoteGroupID: web})
	e.add("small", &resource.Offering{CPUs: 1, MemoryMiB: 512})
	e.add("disk", &resource.DiskOffering{Bytes: 10 << 30})
	e.add("image", &resource.Image{
		URL: "http://example.net/debian.qcow2", Stage: resource.ImageReady, SHA256: strings.Repeat("ab", 32), Bytes: 300 << 20, VirtualBytes: 2 << 30, Format: desired.FormatQCOW2,
	})
	for i := range hosts {
		e.Connect(e.IDs[fmt.Sprintf("h%d", i+1)], Machine(i+1))
	}
	if err := e.Settle(); err != nil {
		panic(err)
	}
	return e
}

func (e *Example) must(op string, fn func(tx resource.Tx) error) {
	if err := e.Do(op, fn); err != nil {
		panic(fmt.Sprintf("%s: %v", op, err))
	}
}

// add creates a resource under a name.
func (e *Example) add(name string, r resource.Resource) string {
	r.Base().Name = name
	e.must(string(r.Kind())+".create", func(tx resource.Tx) error {
		made, err := plan.Create(tx, r)
		if err != nil {
			return err
		}
		e.IDs[name] = made.Base().ID
		return nil
	})
	return e.IDs[name]
}

// VMSpec is a VM from the example's image with a NIC in the inner network and in group web.
func (e *Example) VMSpec(name string) plan.VMSpec {
	return plan.VMSpec{
		Name: name, OfferingID: e.IDs["small"], ImageID: e.IDs["image"], NICs: []plan.NICSpec{{L3ID: e.IDs["inner"], SecGroupIDs: []string{e.IDs["web"]}}},
	}
}

// CreateVM makes a VM.
func (e *Example) CreateVM(spec plan.VMSpec) (*resource.VM, error) {
	var vm *resource.VM
	err := e.Do("vm.create", func(tx resource.Tx) (err error) {
		vm, err = plan.CreateVM(tx, spec)
		return err
	})
	return vm, err
}
