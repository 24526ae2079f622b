package resource

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"shoal/desired"
)

// VNIRange is a range of VXLAN network identifiers, inclusive.
type VNIRange struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// ClusterVTEP says in which network the hosts of a cluster have their tunnel addresses.
type ClusterVTEP struct {
	ClusterID string       `json:"cluster_id"`
	CIDR      netip.Prefix `json:"cidr"`
}

// VXLANPool is a range of VNIs with the clusters that may use it.
type VXLANPool struct {
	Meta
	ZoneID   string        `json:"zone_id"`
	Ranges   []VNIRange    `json:"ranges"`
	Clusters []ClusterVTEP `json:"clusters,omitempty"`
	// Port is the UDP port of the tunnels.
	Port int `json:"port"`
}

// Kind implements Resource.
func (*VXLANPool) Kind() Kind { return KindVXLANPool }

// Clone implements Resource.
func (p *VXLANPool) Clone() Resource { c := *p; return &c }

// Refs implements Resource.
func (p *VXLANPool) Refs() []Ref {
	out := refs(Ref{KindZone, p.ZoneID, Parent, "zone_id"})
	for _, c := range p.Clusters {
		out = append(out, Ref{KindCluster, c.ClusterID, Link, "clusters"})
	}
	return out
}

// Unlink implements Unlinker.
func (p *VXLANPool) Unlink(_ Kind, id string) Resource {
	c := *p
	c.Clusters = nil
	for _, v := range p.Clusters {
		if v.ClusterID != id {
			c.Clusters = append(c.Clusters, v)
		}
	}
	return &c
}

// MaxVNI is the largest identifier; 16777215 is reserved.
const MaxVNI = 16777214

// Validate implements Resource.
func (p *VXLANPool) Validate() error {
	if err := p.validateMeta(); err != nil {
		return err
	}
	if p.ZoneID == "" {
		return Invalid("zone_id", "must be set")
	}
	if len(p.Ranges) == 0 {
		return Invalid("ranges", "must hold at least one range of VNIs")
	}
	for i, r := range p.Ranges {
		if r.From < 1 || r.To > MaxVNI || r.From > r.To {
			return Invalid(fmt.Sprintf("ranges[%d]", i), "%d-%d is not a range within 1..%d", r.From, r.To, MaxVNI)
		}
		for j, o := range p.Ranges[:i] {
			if r.From <= o.To && o.From <= r.To {
				return Invalid(fmt.Sprintf("ranges[%d]", i), "%d-%d overlaps ranges[%d] %d-%d", r.From, r.To, j, o.From, o.To)
			}
		}
	}
	for i, c := range p.Clusters {
		if !c.CIDR.IsValid() || c.CIDR != c.CIDR.Masked() {
			return Invalid(fmt.Sprintf("clusters[%d].cidr", i), "%s is not a network such as 10.0.0.0/24", c.CIDR)
		}
		for _, o := range p.Clusters[:i] {
			if o.ClusterID == c.ClusterID {
				return Invalid(fmt.Sprintf("clusters[%d].cluster_id", i), "%s is listed twice", c.ClusterID)
			}
		}
	}
	if p.Port < 1 || p.Port > 65535 {
		return Invalid("port", "%d is not within 1..65535", p.Port)
	}
	return nil
}

// L2Type is how a layer 2 network reaches other hosts.
type L2Type string

// The types.
const (
	L2NoVLAN L2Type = "novlan"
	L2VLAN   L2Type = "vlan"
	L2VXLAN  L2Type = "vxlan"
)

// L2 is a layer 2 network.
type L2 struct {
	Meta
	ZoneID string `json:"zone_id"`
	Type   L2Type `json:"type"`
	// Device is the hosts' network device, with types novlan and vlan; Bridge, with type novlan, an existing bridge of the
	// hosts that is used as it is. One of them.
	Device string `json:"device,omitempty"`
	Bridge string `json:"bridge,omitempty"`
	// VLAN is the VLAN id, with type vlan.
	VLAN int `json:"vlan,omitempty"`
	// PoolID and VNI, with type vxlan.
	PoolID string `json:"pool_id,omitempty"`
	VNI    int    `json:"vni,omitempty"`
	// ClusterIDs are the clusters whose hosts have it, sorted. With type vxlan they are the pool's.
	ClusterIDs []string `json:"cluster_ids,omitempty"`
}

// Kind implements Resource.
func (*L2) Kind() Kind { return KindL2 }

// Clone implements Resource.
func (l *L2) Clone() Resource { c := *l; return &c }

// Refs implements Resource.
func (l *L2) Refs() []Ref {
	return refs(append(linkAll(KindCluster, "cluster_ids", l.ClusterIDs),
		Ref{KindZone, l.ZoneID, Parent, "zone_id"}, Ref{KindVXLANPool, l.PoolID, Parent, "pool_id"})...)
}

// Unlink implements Unlinker.
func (l *L2) Unlink(_ Kind, id string) Resource {
	c := *l
	c.ClusterIDs = without(l.ClusterIDs, id)
	return &c
}

// VNIKey is the unique key of a VNI in a pool.
func VNIKey(pool string, vni int) string { return fmt.Sprintf("vni/%s/%08d", pool, vni) }

// Unique implements Resource.
func (l *L2) Unique() []string {
	if l.Type == L2VXLAN {
		return []string{VNIKey(l.PoolID, l.VNI)}
	}
	return nil
}

// Validate implements Resource.
func (l *L2) Validate() error {
	if err := l.validateMeta(); err != nil {
		return err
	}
	if l.ZoneID == "" {
		return Invalid("zone_id", "must be set")
	}
	if l.Type != L2VLAN && l.VLAN != 0 {
		return Invalid("vlan", "must not be set with type %s", l.Type)
	}
	if l.Type != L2VXLAN && (l.PoolID != "" || l.VNI != 0) {
		return Invalid("pool_id", "must not be set with type %s", l.Type)
	}
	switch l.Type {
	case L2NoVLAN:
		if (l.Device == "") == (l.Bridge == "") {
			return Invalid("device", "set either device (a network device of the hosts) or bridge (an existing bridge of theirs)")
		}
		if l.Bridge != "" {
			return checkLinkName("bridge", l.Bridge)
		}
		return checkLinkName("device", l.Device)
	case L2VLAN:
		if l.VLAN < 1 || l.VLAN > 4094 {
			return Invalid("vlan", "%d is not within 1..4094", l.VLAN)
		}
		if l.Bridge != "" {
			return Invalid("bridge", "must not be set with type vlan")
		}
		return checkLinkName("device", l.Device)
	case L2VXLAN:
		if l.PoolID == "" {
			return Invalid("pool_id", "must be set with type vxlan")
		}
		if l.VNI < 1 || l.VNI > MaxVNI {
			return Invalid("vni", "%d is not within 1..%d", l.VNI, MaxVNI)
		}
		if l.Device != "" || l.Bridge != "" || len(l.ClusterIDs) > 0 {
			return Invalid("device", "device, bridge and cluster_ids must not be set with type vxlan: they are the pool's")
		}
		return nil
	default:
		return Invalid("type", "%q is not one of novlan, vlan, vxlan", l.Type)
	}
}

func checkLinkName(field, s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r > '~' }) {
		return Invalid(field, "%q is not the name of a network device (1 to 15 characters)", s)
	}
	return nil
}

// Category says what a layer 3 network is for.
type Category string

// The categories.
const (
	CategoryPublic  Category = "public"
	CategoryPrivate Category = "private"
	CategorySystem  Category = "system"
)

// L3 is a layer 3 network: a flat network with DHCP on every host.
type L3 struct {
	Meta
	L2ID     string       `json:"l2_id"`
	Category Category     `json:"category"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	Domain   string       `json:"domain,omitempty"`
	// MTU that guests get; 0 lets the layer 2 network decide.
	MTU int `json:"mtu,omitempty"`
	// NoDHCP leaves addresses to the guests.
	NoDHCP bool `json:"no_dhcp,omitempty"`
	// DHCPServer is the DHCP server's own address, the same on every host. It is chosen with the first range.
	DHCPServer netip.Addr `json:"dhcp_server,omitzero"`
}

// Kind implements Resource.
func (*L3) Kind() Kind { return KindL3 }

// Clone implements Resource.
func (l *L3) Clone() Resource { c := *l; return &c }

// Refs implements Resource.
func (l *L3) Refs() []Ref { return refs(Ref{KindL2, l.L2ID, Parent, "l2_id"}) }

// Unique implements Resource.
func (l *L3) Unique() []string {
	if !l.DHCPServer.IsValid() {
		return nil
	}
	return []string{AddressKey(l.ID, l.DHCPServer)}
}

// Validate implements Resource.
func (l *L3) Validate() error {
	if err := l.validateMeta(); err != nil {
		return err
	}
	if l.L2ID == "" {
		return Invalid("l2_id", "must be set")
	}
	switch l.Category {
	case CategoryPublic, CategoryPrivate, CategorySystem:
	default:
		return Invalid("category", "%q is not one of public, private, system", l.Category)
	}
	if l.MTU != 0 && (l.MTU < 576 || l.MTU > 9216) {
		return Invalid("mtu", "%d is not within 576..9216", l.MTU)
	}
	if l.Domain != "" {
		if err := CheckHostname("domain", l.Domain); err != nil {
			return err
		}
	}
	if len(l.DNS) > 8 {
		return Invalid("dns", "has %d servers, at most 8 are allowed", len(l.DNS))
	}
	for i, a := range l.DNS {
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() {
			return Invalid(fmt.Sprintf("dns[%d]", i), "%s is not the address of a server", a)
		}
	}
	return nil
}

// CheckHostname holds a name to labels of 1 to 63 letters, digits and inner hyphens (RFC 1123), 253 bytes in all.
func CheckHostname(field, s string) error {
	if s == "" || len(s) > 253 {
		return Invalid(field, "%q is not a host name of 1 to 253 characters", s)
	}
	for label := range strings.SplitSeq(s, ".") {
		ok := label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
		for _, c := range []byte(label) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
		}
		if !ok {
			return Invalid(field, "%q is not a host name: labels are 1 to 63 letters, digits and inner hyphens", s)
		}
	}
	return nil
}

// AddressKey is the unique key of an address in a layer 3 network. Keys of one network sort as addresses do.
func AddressKey(l3 string, a netip.Addr) string {
	b := a.As16()
	return AddressPrefix(l3) + hex.EncodeToString(b[:])
}

// AddressPrefix is what the address keys of a layer 3 network start with.
func AddressPrefix(l3 string) string { return "ip/" + l3 + "/" }

// IPRange is a range of addresses that VMs of a layer 3 network get. All ranges of a network have the same prefix and
// gateway.
type IPRange struct {
	Meta
	L3ID  string     `json:"l3_id"`
	Start netip.Addr `json:"start"`
	End   netip.Addr `json:"end"`
	// Bits is the prefix length of the network.
	Bits    int        `json:"bits"`
	Gateway netip.Addr `json:"gateway"`
}

// Kind implements Resource.
func (*IPRange) Kind() Kind { return KindIPRange }

// Clone implements Resource.
func (r *IPRange) Clone() Resource { c := *r; return &c }

// Refs implements Resource.
func (r *IPRange) Refs() []Ref { return refs(Ref{KindL3, r.L3ID, Parent, "l3_id"}) }

// Prefix is the network that the range lies in.
func (r *IPRange) Prefix() netip.Prefix { return netip.PrefixFrom(r.Start, r.Bits).Masked() }

// Contains reports whether an address lies in the range.
func (r *IPRange) Contains(a netip.Addr) bool {
	return r.Start.Compare(a) <= 0 && a.Compare(r.End) <= 0
}

// Size is the number of addresses in an IPv4 range; 0 for one that is not set.
func (r *IPRange) Size() uint64 {
	if !r.Start.Is4() || !r.End.Is4() {
		return 0
	}
	if !r.Start.Is4() || !r.End.Is4() {
		return 0
	}
	s, e := r.Start.As4(), r.End.As4()
	return uint64(binary.BigEndian.Uint32(e[:])) - uint64(binary.BigEndian.Uint32(s[:])) + 1
}

// Validate implements Resource.
func (r *IPRange) Validate() error {
	if err := r.validateMeta(); err != nil {
		return err
	}
	if r.L3ID == "" {
		return Invalid("l3_id", "must be set")
	}
	for _, f := range []struct {
		name string
		a    netip.Addr
	}{{"start", r.Start}, {"end", r.End}, {"gateway", r.Gateway}} {
		if !f.a.Is4() {
			return Invalid(f.name, "%s is not an IPv4 address", f.a)
		}
		if f.a.IsMulticast() || f.a.IsLoopback() || f.a.IsUnspecified() || f.a.IsLinkLocalUnicast() {
			return Invalid(f.name, "%s can't be the address of a host", f.a)
		}
	}
	if r.Bits < 8 || r.Bits > 30 {
		return Invalid("bits", "%d is not a prefix length within 8..30", r.Bits)
	}
	if r.End.Less(r.Start) {
		return Invalid("end", "%s is before start %s", r.End, r.Start)
	}
	p := r.Prefix()
	if !p.Contains(r.End) {
		return Invalid("end", "%s is not in the network %s of start %s", r.End, p, r.Start)
	}
	if !p.Contains(r.Gateway) {
		return Invalid("gateway", "%s is not in the network %s", r.Gateway, p)
	}
	if r.Contains(r.Gateway) {
		return Invalid("gateway", "%s lies within the range %s-%s", r.Gateway, r.Start, r.End)
	}
	if r.Start == p.Addr() {
		return Invalid("start", "%s is the address of the network itself", r.Start)
	}
	if !p.Contains(r.End.Next()) {
		return Invalid("end", "%s is the network's broadcast address", r.End)
	}
	return nil
}

// SecGroup is a security group: a set of NICs and what may reach them.
type SecGroup struct {
	Meta
	State State `json:"state"`
}

// Kind implements Resource.
func (*SecGroup) Kind() Kind { return KindSecGroup }

// Clone implements Resource.
func (g *SecGroup) Clone() Resource { c := *g; return &c }

// Validate implements Resource.
func (g *SecGroup) Validate() error {
	if err := g.validateMeta(); err != nil {
		return err
	}
	return g.State.validate()
}

// Direction is which way a rule looks.
type Direction string

// The directions, as seen from the guest.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// SecRule lets traffic pass. With CIDR and RemoteGroupID both, the other side must be in both.
type SecRule struct {
	Meta
	GroupID   string           `json:"group_id"`
	Direction Direction        `json:"direction"`
	Protocol  desired.Protocol `json:"protocol"`
	// FromPort and ToPort are the destination ports, inclusive, with tcp and udp; 0-0 for all.
	FromPort int          `json:"from_port,omitempty"`
	ToPort   int          `json:"to_port,omitempty"`
	CIDR     netip.Prefix `json:"cidr,omitzero"`
	// RemoteGroupID is the group that the other side is in.
	RemoteGroupID string `json:"remote_group_id,omitempty"`
}

// Kind implements Resource.
func (*SecRule) Kind() Kind { return KindSecRule }

// Clone implements Resource.
func (r *SecRule) Clone() Resource { c := *r; return &c }

// Refs implements Resource. A rule that names a deleted group could never match again, so it goes with it.
func (r *SecRule) Refs() []Ref {
	return refs(Ref{KindSecGroup, r.GroupID, Parent, "group_id"}, Ref{KindSecGroup, r.RemoteGroupID, Parent, "remote_group_id"})
}

// Unique implements Resource: the same rule twice is a mistake.
func (r *SecRule) Unique() []string {
	return []string{fmt.Sprintf("secrule/%s/%s/%s/%d-%d/%s/%s", r.GroupID, r.Direction, r.Protocol, r.FromPort, r.ToPort, r.CIDR, r.RemoteGroupID)}
}

// Validate implements Resource.
func (r *SecRule) Validate() error {
	if err := r.validateMeta(); err != nil {
		return err
	}
	if r.GroupID == "" {
		return Invalid("group_id", "must be set")
	}
	if r.Direction != Ingress && r.Direction != Egress {
		return Invalid("direction", "%q is neither ingress nor egress", r.Direction)
	}
	switch r.Protocol {
	case desired.ProtoTCP, desired.ProtoUDP:
		if r.FromPort < 0 || r.ToPort > 65535 || r.FromPort > r.ToPort {
			return Invalid("from_port", "%d-%d is not a range within 0..65535", r.FromPort, r.ToPort)
		}
	case desired.ProtoAll, desired.ProtoICMP:
		if r.FromPort != 0 || r.ToPort != 0 {
			return Invalid("from_port", "protocol %s has no ports", r.Protocol)
		}
	default:
		return Invalid("protocol", "%q is not one of all, tcp, udp, icmp", r.Protocol)
	}
	if r.CIDR.IsValid() && r.CIDR != r.CIDR.Masked() {
		return Invalid("cidr", "%s has bits beyond its prefix length: did you mean %s?", r.CIDR, r.CIDR.Masked())
	}
	return nil
}

// NIC is a VM's network card.
type NIC struct {
	Meta
	VMID string `json:"vm_id"`
	L3ID string `json:"l3_id"`
	// IP is chosen from the network's ranges, or given.
	IP  netip.Addr `json:"ip,omitzero"`
	MAC string     `json:"mac"`
	// Index orders a VM's NICs.
	Index int    `json:"index"`
	Model string `json:"model"`
	// Default marks the NIC whose network gives the default route and host name.
	Default     bool     `json:"default,omitempty"`
	AntiSpoof   bool     `json:"anti_spoof,omitempty"`
	SecGroupIDs []string `json:"secgroup_ids,omitempty"`
}

// Kind implements Resource.
func (*NIC) Kind() Kind { return KindNIC }

// Clone implements Resource.
func (n *NIC) Clone() Resource { c := *n; return &c }

// Refs implements Resource. A network with NICs in it can't be deleted before their VMs.
func (n *NIC) Refs() []Ref {
	return refs(append(linkAll(KindSecGroup, "secgroup_ids", n.SecGroupIDs), Ref{KindVM, n.VMID, Parent, "vm_id"}, Ref{KindL3, n.L3ID, Needs, "l3_id"})...)
}

// Unlink implements Unlinker.
func (n *NIC) Unlink(_ Kind, id string) Resource {
	c := *n
	c.SecGroupIDs = without(n.SecGroupIDs, id)
	return &c
}

// Unique implements Resource.
func (n *NIC) Unique() []string {
	out := []string{"mac/" + n.MAC}
	if n.IP.IsValid() {
		out = append(out, AddressKey(n.L3ID, n.IP))
	}
	return out
}

// Validate implements Resource.
func (n *NIC) Validate() error {
	if err := n.validateMeta(); err != nil {
		return err
	}
	if n.VMID == "" || n.L3ID == "" {
		return Invalid("vm_id", "vm_id and l3_id must be set")
	}
	if m, err := net.ParseMAC(n.MAC); err != nil || len(m) != 6 || m.String() != n.MAC || m[0]&1 != 0 {
		return Invalid("mac", "%q is not a unicast MAC in lower case, such as 52:54:00:12:34:56", n.MAC)
	}
	switch n.Model {
	case "virtio", "e1000", "rtl8139":
		return nil
	default:
		return Invalid("model", "%q is not one of virtio, e1000, rtl8139", n.Model)
	}
}
