package plan

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"shoal/controller/resource"
)

// freeAddress is the first address of a layer 3 network's ranges that nobody has. Ranges are searched by the gaps
// between the keys that are taken, so the cost is that of the addresses in use, not of the range.
func freeAddress(tx resource.Tx, l3 *resource.L3) (netip.Addr, error) {
	ranges := rangesOf(tx, l3.ID)
	if len(ranges) == 0 {
		return netip.Addr{}, resource.Conflict("l3_id", "network %s has no range of addresses", l3.Name).
			WithRemedy("add one with shoalctl iprange create")
	}
	var reasons []resource.Reason
	for _, rg := range ranges {
		if a, ok := freeIn(tx, l3, rg); ok {
			return a, nil
		}
		u := resource.AddressesUsed(tx, rg)
		reasons = append(reasons, resource.Reason{
			Kind: resource.KindIPRange, ID: rg.ID, Name: rg.Name, Why: fmt.Sprintf("%s-%s: %d of %d addresses are taken", rg.Start, rg.End, u.Used, u.Total),
		})
	}
	return netip.Addr{}, &resource.Error{
		Code: resource.CodeCapacity, Field: "l3_id", Message: fmt.Sprintf("network %s has no free address", l3.Name),
		Remedy: "add a range with shoalctl iprange create, or expunge VMs that are in the recycle bin", Reasons: reasons,
	}
}

// freeIn is the first free address of a range. The network's name servers are never given away.
func freeIn(r resource.Reader, l3 *resource.L3, rg *resource.IPRange) (netip.Addr, bool) {
	next := rg.Start
	skip := func() {
		for next.Compare(rg.End) <= 0 && slices.Contains(l3.DNS, next) {
			next = next.Next()
		}
	}
	skip()
	for key := range r.HoldersFrom(resource.AddressPrefix(l3.ID), resource.AddressKey(l3.ID, rg.Start)) {
		want := resource.AddressKey(l3.ID, next)
		if key > want {
			break
		}
		if key == want {
			next = next.Next()
			skip()
		}
	}
	return next, next.Compare(rg.End) <= 0
}

// checkAddress holds an address that a user asks for to what a NIC of that network can have.
func checkAddress(tx resource.Tx, l3 *resource.L3, a netip.Addr) error {
	ranges := rangesOf(tx, l3.ID)
	if len(ranges) == 0 {
		return resource.Invalid("ip", "network %s has no range of addresses that %s could belong to", l3.Name, a)
	}
	p, gateway := ranges[0].Prefix(), ranges[0].Gateway
	switch {
	case !p.Contains(a):
		return resource.Invalid("ip", "%s is not in the network %s of %s", a, p, l3.Name)
	case a == p.Addr() || !p.Contains(a.Next()):
		return resource.Invalid("ip", "%s is the network's or the broadcast address of %s", a, p)
	case a == gateway:
		return resource.Conflict("ip", "%s is the gateway of network %s", a, l3.Name)
	case a == l3.DHCPServer:
		return resource.Conflict("ip", "%s is the address of the DHCP server of network %s", a, l3.Name)
	}
	return addressFree(tx, l3, a, "ip")
}

// addressFree reports who has an address in the networks that share a layer 2 network.
func addressFree(tx resource.Tx, l3 *resource.L3, a netip.Addr, field string) error {
	for o := range resource.Referrers[*resource.L3](tx, resource.KindL2, l3.L2ID) {
		if h := tx.Holder(resource.AddressKey(o.ID, a)); h != nil {
			return heldBy(tx, resource.Conflict(field, "%s is taken", a), h)
		}
		if o.ID == l3.ID {
			continue
		}
		for _, rg := range rangesOf(tx, o.ID) {
			if rg.Contains(a) || rg.Gateway == a {
				return resource.Conflict(field, "%s belongs to another network on the same layer 2 network", a).Because(o, "it has the range %s-%s", rg.Start, rg.End)
			}
		}
	}
	return nil
}

// heldBy says who has what was asked for.
func heldBy(r resource.Reader, e *resource.Error, h resource.Resource) *resource.Error {
	return e.Because(h, "%s has it", holderName(r, h))
}

func holderName(r resource.Reader, h resource.Resource) string {
	switch x := h.(type) {
	case *resource.NIC:
		if vm, ok := resource.Find[*resource.VM](r, x.VMID); ok {
			where := ""
			if !vm.Destroyed.IsZero() {
				where = " in the recycle bin"
			}
			return fmt.Sprintf("VM %s%s", vm.Name, where)
		}
	case *resource.L3:
		return fmt.Sprintf("the DHCP server of network %s", x.Name)
	}
	return fmt.Sprintf("%s %s", h.Kind(), h.Base().Name)
}

// freeMAC makes a MAC that no NIC has: locally administered, and high, so that a bridge never takes it for its own.
func freeMAC(tx resource.Tx) (string, error) {
	for range 64 {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], tx.Uint64())
		mac := fmt.Sprintf("fa:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4])
		if tx.Holder("mac/"+mac) == nil {
			return mac, nil
		}
	}
	return "", &resource.Error{Code: resource.CodeInternal, Field: "mac", Message: "64 random MACs were all taken"}
}

// freeVNI is the first identifier of a pool that no network has.
func freeVNI(tx resource.Tx, p *resource.VXLANPool) (int, error) {
	ranges := slices.Clone(p.Ranges)
	slices.SortFunc(ranges, func(a, b resource.VNIRange) int { return a.From - b.From })
	total := 0
	for _, rg := range ranges {
		total += rg.To - rg.From + 1
		next := rg.From
		for key := range tx.HoldersFrom("vni/"+p.ID+"/", resource.VNIKey(p.ID, rg.From)) {
			if key != resource.VNIKey(p.ID, next) {
				break
			}
			next++
		}
		if next <= rg.To {
			return next, nil
		}
	}
	return 0, &resource.Error{
		Code: resource.CodeCapacity, Field: "vni", Message: fmt.Sprintf("all %d identifiers of VXLAN pool %s are taken", total, p.Name),
		Remedy: "add a range to the pool",
	}
}

// AddIPRange adds a range to a layer 3 network. With the first one the DHCP server gets its address.
func AddIPRange(tx resource.Tx, rg *resource.IPRange) (*resource.IPRange, error) {
	rg = resource.Copy(rg)
	prepare(tx, rg)
	if rg.Name == "" {
		rg.Name = fmt.Sprintf("%s-%s", rg.Start, rg.End)
	}
	if err := rg.Validate(); err != nil {
		return nil, err
	}
	l3, err := resource.Get[*resource.L3](tx, rg.L3ID)
	if err != nil {
		return nil, err
	}
	rg.Owner = l3.Owner // whoever adds it
	for o := range resource.Referrers[*resource.L3](tx, resource.KindL2, l3.L2ID) {
		for _, other := range rangesOf(tx, o.ID) {
			if rg.Start.Compare(other.End) <= 0 && other.Start.Compare(rg.End) <= 0 {
				return nil, resource.Conflict("start", "%s-%s overlaps %s-%s", rg.Start, rg.End, other.Start, other.End).Because(other, "it is a range of network %s", o.Name)
			}
			if o.ID == l3.ID && other.Prefix() != rg.Prefix() {
				return nil, resource.Conflict("bits", "%s is not the network %s of the other ranges of %s", rg.Prefix(), other.Prefix(), l3.Name)
			}
			if o.ID == l3.ID && other.Gateway != rg.Gateway {
				return nil, resource.Conflict("gateway", "%s is not the gateway %s of the other ranges of %s", rg.Gateway, other.Gateway, l3.Name)
			}
			if rg.Contains(other.Gateway) {
				return nil, resource.Conflict("start", "%s-%s holds %s, which is a gateway", rg.Start, rg.End, other.Gateway).Because(o, "it has that gateway")
			}
			if other.Contains(rg.Gateway) {
				return nil, resource.Conflict("gateway", "%s lies within %s-%s", rg.Gateway, other.Start, other.End).Because(other, "it is a range of network %s", o.Name)
			}
		}
		// An address that was given to a NIC by hand may lie outside the ranges of its network.
		if o.ID == l3.ID {
			if h := tx.Holder(resource.AddressKey(o.ID, rg.Gateway)); h != nil {
				return nil, heldBy(tx, resource.Conflict("gateway", "%s is taken", rg.Gateway), h)
			}
			continue
		}
		end := resource.AddressKey(o.ID, rg.End)
		for key := range tx.HoldersFrom(resource.AddressPrefix(o.ID), resource.AddressKey(o.ID, rg.Start)) {
			if key > end {
				break
			}
			return nil, heldBy(tx, resource.Conflict("start", "%s-%s holds an address that is taken in another network on the same layer 2 network", rg.Start, rg.End), tx.Holder(key))
		}
	}
	if err := tx.Put(rg); err != nil {
		return nil, err
	}
	if err := chooseDHCPServer(tx, l3); err != nil {
		return nil, err
	}
	if _, err := NewTask(tx, resource.KindL3, l3.ID); err != nil {
		return nil, err
	}
	return resource.Get[*resource.IPRange](tx, rg.ID)
}

// chooseDHCPServer gives the DHCP server of a network an address of its ranges, if it needs one and has none.
func chooseDHCPServer(tx resource.Tx, l3 *resource.L3) error {
	if l3.NoDHCP || l3.DHCPServer.IsValid() {
		return nil
	}
	a, err := freeAddress(tx, l3)
	if err != nil {
		return err
	}
	l3 = resource.Copy(l3)
	l3.DHCPServer = a
	return tx.Put(l3)
}

// removeIPRange checks that nothing has an address of a range, and moves the DHCP server out of it.
func removeIPRange(tx resource.Tx, rg *resource.IPRange) error {
	l3, err := resource.Get[*resource.L3](tx, rg.L3ID)
	if err != nil {
		return err
	}
	var users []resource.Reason
	last := len(rangesOf(tx, l3.ID)) == 1
	for n := range resource.Referrers[*resource.NIC](tx, resource.KindL3, l3.ID) {
		if n.IP.IsValid() && (last || rg.Contains(n.IP)) {
			users = append(users, resource.Reason{Kind: resource.KindNIC, ID: n.ID, Name: n.Name, Why: fmt.Sprintf("%s of %s", n.IP, holderName(tx, n))})
		}
	}
	if len(users) > 0 {
		return inUse(fmt.Sprintf("range %s of network %s", rg.Name, l3.Name), users)
	}
	if err := tx.Delete(resource.KindIPRange, rg.ID); err != nil {
		return err
	}
	if !l3.DHCPServer.IsValid() || !last && !rg.Contains(l3.DHCPServer) {
		return nil
	}
	l3 = resource.Copy(l3)
	l3.DHCPServer = netip.Addr{}
	if err := tx.Put(l3); err != nil || last {
		return err
	}
	return chooseDHCPServer(tx, l3)
}
