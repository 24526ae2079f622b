package api

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

// span is "from-to" or one number.
type span struct{ From, To int }

// UnmarshalText reads "from-to" or one number.
func (s *span) UnmarshalText(b []byte) error {
	from, to, two := strings.Cut(string(b), "-")
	if !two {
		to = from
	}
	var err error
	if s.From, err = strconv.Atoi(strings.TrimSpace(from)); err == nil {
		s.To, err = strconv.Atoi(strings.TrimSpace(to))
	}
	if err != nil {
		return fmt.Errorf("%q is neither a number nor a range such as 100-199", b)
	}
	return nil
}

// MarshalText is what UnmarshalText reads.
func (s span) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d-%d", s.From, s.To), nil }

// UnmarshalJSON also takes a plain number.
func (s *span) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		text = string(b)
	}
	return s.UnmarshalText([]byte(text))
}

// vxlanPort is the one that IANA gave to VXLAN (RFC 7348).
const vxlanPort = 4789

func networks(g *Registry) {
	vxlanPools(g)
	l2s(g)
	l3s(g)
}

func vxlanPools(g *Registry) {
	readable(g, resource.KindVXLANPool, "zone.name=z1",
		Column{Title: "NAME", Path: "name"}, Column{Title: "ZONE", Path: "names.zone_id"}, Column{Title: "VNIS", Path: "status.total"}, Column{Title: "USED", Path: "status.used"},
		Column{Title: "CLUSTERS", Path: "names.clusters"}, Column{Title: "PORT", Path: "port", Wide: true}, age(), idColumn())
	type poolCreate struct {
		meta
		Zone   string `json:"zone" ref:"zone" required:"true" help:"zone that it is in"`
		Ranges []span `json:"ranges" flag:"range" required:"true" help:"range of VNIs within 1-16777214, such as 100-199"`
		Port   int    `json:"port,omitempty" help:"UDP port of the tunnels (4789)"`
	}
	writes(g, Operation{
		Kind: resource.KindVXLANPool, Verb: "create", Summary: "Create a VXLAN pool", Help: "The VXLAN network identifiers that L2 networks of type vxlan get.",
		Example: "shoalctl vxlanpool create vx --zone z1 --range 100-199",
	}, func(tx resource.Tx, p *poolCreate) (Outcome, error) {
		pool := &resource.VXLANPool{Meta: p.base(tx), ZoneID: p.Zone, Port: vxlanPort}
		if p.Port != 0 {
			pool.Port = p.Port
		}
		for _, r := range p.Ranges {
			pool.Ranges = append(pool.Ranges, resource.VNIRange(r))
		}
		return create(tx, pool)
	})
	type poolUpdate struct {
		getParams
		metaChange
		Ranges *[]span `json:"ranges,omitempty" flag:"range" help:"ranges of VNIs, which replace the old ones"`
	}
	updatable(g, "vx --range 100-299", "", func(p *poolUpdate) (string, metaChange) { return p.ID, p.metaChange },
		func(tx resource.Tx, p *poolUpdate, pool *resource.VXLANPool) error {
			if p.Ranges == nil {
				return nil
			}
			pool.Ranges = nil
			for _, r := range *p.Ranges {
				pool.Ranges = append(pool.Ranges, resource.VNIRange(r))
			}
			for l2 := range resource.Referrers[*resource.L2](tx, resource.KindVXLANPool, pool.ID) {
				if !slices.ContainsFunc(pool.Ranges, func(r resource.VNIRange) bool { return r.From <= l2.VNI && l2.VNI <= r.To }) {
					return resource.Conflict("ranges", "L2 network %s has the VNI %d, which would be in none of them", l2.Name, l2.VNI)
				}
			}
			return nil
		})
	type poolAttach struct {
		ID      string       `json:"id" arg:"1" required:"true" help:"id or unique name"`
		Cluster string       `json:"cluster" ref:"cluster" required:"true" help:"cluster"`
		CIDR    netip.Prefix `json:"cidr" required:"true" help:"network in which the cluster's hosts have their tunnel addresses, such as 10.0.0.0/24"`
	}
	writes(g, Operation{
		Kind: resource.KindVXLANPool, Verb: "attach", Task: true, Summary: "Attach a VXLAN pool to a cluster",
		Help:    "Each host uses its own address in that network for the tunnels.",
		Example: "shoalctl vxlanpool attach vx --cluster c1 --cidr 10.0.0.0/24",
	}, func(tx resource.Tx, p *poolAttach) (Outcome, error) {
		id, err := lookup(tx, "id", resource.KindVXLANPool, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		return did(plan.AttachVXLANPool(tx, id, p.Cluster, p.CIDR))
	})
	attachable(g, resource.KindVXLANPool, "", nil,
		func(tx resource.Tx, id, cluster string) (Outcome, error) {
			return did(plan.DetachVXLANPool(tx, id, cluster))
		})
	deletable(g, resource.KindVXLANPool, "")
}

func l2s(g *Registry) {
	readable(g, resource.KindL2, "type=vxlan",
		Column{Title: "NAME", Path: "name"}, Column{Title: "TYPE", Path: "type"}, Column{Title: "ZONE", Path: "names.zone_id"}, Column{Title: "VLAN", Path: "vlan"},
		Column{Title: "VNI", Path: "vni"}, Column{Title: "DEVICE", Path: "device"}, Column{Title: "CLUSTERS", Path: "names.cluster_ids", Wide: true},
		Column{Title: "POOL", Path: "names.pool_id", Wide: true}, age(), idColumn())
	type l2Create struct {
		meta
		Zone     string   `json:"zone,omitempty" ref:"zone" use:"true" help:"zone that it is in; with type vxlan the pool's"`
		Type     string   `json:"type" required:"true" enum:"novlan|vlan|vxlan" help:"novlan: on a device as it is; vlan: tagged on a device; vxlan: tunnels between the hosts"`
		Device   string   `json:"device,omitempty" admin:"true" help:"network device of the hosts, with types novlan and vlan"`
		Bridge   string   `json:"bridge,omitempty" admin:"true" help:"existing bridge of the hosts, used as it is, with type novlan"`
		VLAN     int      `json:"vlan,omitempty" admin:"true" help:"VLAN id within 1-4094, with type vlan"`
		Pool     string   `json:"pool,omitempty" ref:"vxlanpool" use:"true" help:"VXLAN pool, with type vxlan"`
		VNI      int      `json:"vni,omitempty" help:"VXLAN network identifier, with type vxlan; chosen from the pool where not given"`
		Clusters []string `json:"clusters,omitempty" flag:"cluster" ref:"cluster" use:"true" help:"cluster to attach it to; with type vxlan they are the pool's"`
	}
	writes(g, Operation{
		Kind: resource.KindL2, Verb: "create", Task: true, Summary: "Create an L2 network", Help: "A bridge on every host that needs it.",
		Example: "shoalctl l2 create l2a --zone z1 --type vxlan --pool vx\nshoalctl l2 create office --zone z1 --type vlan --device eth1 --vlan 10 --cluster c1",
	}, func(tx resource.Tx, p *l2Create) (Outcome, error) {
		if p.VNI < 0 {
			return Outcome{}, resource.Invalid("vni", "%d is not within 1..%d", p.VNI, resource.MaxVNI)
		}
		if p.Zone == "" {
			pool, ok := resource.Find[*resource.VXLANPool](tx, p.Pool)
			if !ok {
				return Outcome{}, resource.Invalid("zone", "must be given")
			}
			p.Zone = pool.ZoneID
		}
		out, err := did(plan.CreateL2(tx, &resource.L2{
			Meta: p.base(tx), ZoneID: p.Zone, Type: resource.L2Type(p.Type), Device: p.Device, Bridge: p.Bridge, VLAN: p.VLAN, PoolID: p.Pool, VNI: p.VNI,
		}))
		if err != nil {
			return out, err
		}
		id := out.Resources[0].Base().ID
		for _, c := range p.Clusters {
			if out, err = did(plan.AttachL2(tx, id, c)); err != nil {
				return out, err
			}
		}
		return out, nil
	})
	updatable[*resource.L2](g, "l2a --name backbone", "", metaUpdateParts, nil)
	attachable(g, resource.KindL2, "Its hosts must have the device. Both must be of one zone.",
		func(tx resource.Tx, id, cluster string) (Outcome, error) { return did(plan.AttachL2(tx, id, cluster)) },
		func(tx resource.Tx, id, cluster string) (Outcome, error) { return did(plan.DetachL2(tx, id, cluster)) })
	deletable(g, resource.KindL2, "")
}

func l3s(g *Registry) {
	readable(g, resource.KindL3, "category=private",
		Column{Title: "NAME", Path: "name"}, Column{Title: "L2", Path: "names.l2_id"}, Column{Title: "CATEGORY", Path: "category"},
		Column{Title: "ADDRESSES", Path: "status.total"}, Column{Title: "USED", Path: "status.used"}, Column{Title: "DNS", Path: "dns", Wide: true},
		Column{Title: "DOMAIN", Path: "domain", Wide: true}, Column{Title: "DHCP SERVER", Path: "dhcp_server", Wide: true}, age(), idColumn())
	type l3Create struct {
		meta
		L2       string       `json:"l2" ref:"l2" use:"true" required:"true" help:"L2 network that it is on"`
		Category string       `json:"category,omitempty" enum:"public|private|system" help:"what it is for (private)"`
		DNS      []netip.Addr `json:"dns,omitempty" help:"DNS server that guests are told"`
		Domain   string       `json:"domain,omitempty" help:"domain that guests are told"`
		MTU      int          `json:"mtu,omitempty" help:"MTU that guests are told; the L2 network decides where not given"`
		NoDHCP   bool         `json:"no_dhcp,omitempty" help:"leave addresses to the guests"`
	}
	writes(g, Operation{
		Kind: resource.KindL3, Verb: "create", Summary: "Create an L3 network",
		Help:    "A flat network with DHCP on every host. Add at least one IP range before VMs use it.",
		Example: "shoalctl l3 create net1 --l2 l2a --dns 9.9.9.9 --domain example.org",
	}, func(tx resource.Tx, p *l3Create) (Outcome, error) {
		l3 := &resource.L3{Meta: p.base(tx), L2ID: p.L2, Category: resource.CategoryPrivate, DNS: p.DNS, Domain: p.Domain, MTU: p.MTU, NoDHCP: p.NoDHCP}
		if p.Category != "" && p.Category != string(resource.CategoryPrivate) && !tx.Request().Admin {
			e := resource.Invalid("category", "only the admin account may make networks that are not private")
			e.Code = resource.CodeForbidden
			return Outcome{}, e
		}
		if p.Category != "" {
			l3.Category = resource.Category(p.Category)
		}
		return create(tx, l3)
	})
	type l3Update struct {
		getParams
		metaChange
		DNS    *[]netip.Addr `json:"dns,omitempty" help:"DNS servers, which replace the old ones; an empty text for none"`
		Domain *string       `json:"domain,omitempty" help:"domain that guests are told"`
		MTU    *int          `json:"mtu,omitempty" help:"MTU that guests are told; 0 lets the L2 network decide"`
	}
	updatable(g, "net1 --dns 9.9.9.9 --dns 149.112.112.112", "Guests learn it when they renew their lease.", func(p *l3Update) (string, metaChange) { return p.ID, p.metaChange },
		func(_ resource.Tx, p *l3Update, l *resource.L3) error {
			set(&l.DNS, p.DNS)
			set(&l.Domain, p.Domain)
			set(&l.MTU, p.MTU)
			return nil
		})
	deletable(g, resource.KindL3, "")

	readable(g, resource.KindIPRange, "l3.name=net1",
		Column{Title: "NAME", Path: "name"}, Column{Title: "NETWORK", Path: "names.l3_id"}, Column{Title: "START", Path: "start"}, Column{Title: "END", Path: "end"},
		Column{Title: "PREFIX", Path: "bits"}, Column{Title: "GATEWAY", Path: "gateway"}, Column{Title: "TOTAL", Path: "status.total"}, Column{Title: "USED", Path: "status.used"}, age(), idColumn())
	type rangeCreate struct {
		meta
		Network string       `json:"network" ref:"l3" required:"true" help:"L3 network"`
		Start   netip.Addr   `json:"start,omitzero" help:"first address"`
		End     netip.Addr   `json:"end,omitzero" help:"last address"`
		Prefix  int          `json:"prefix,omitempty" help:"prefix length of the network"`
		Gateway netip.Addr   `json:"gateway,omitzero" help:"gateway that guests are told; with --cidr the first address where not given"`
		CIDR    netip.Prefix `json:"cidr,omitzero" help:"network, all of whose addresses but the gateway's are used; instead of --start, --end and --prefix"`
	}
	writes(g, Operation{
		Kind: resource.KindIPRange, Verb: "create", Aliases: []string{"add"}, Task: true, Summary: "Add an IP range to an L3 network",
		Help:    "All ranges of a network have the same prefix and gateway, and do not overlap.",
		Example: "shoalctl iprange create r1 --network net1 --start 10.1.0.10 --end 10.1.0.200 --prefix 24 --gateway 10.1.0.1\nshoalctl iprange create r1 --network net1 --cidr 10.1.0.0/24",
	}, func(tx resource.Tx, p *rangeCreate) (Outcome, error) {
		r := &resource.IPRange{Meta: p.base(tx), L3ID: p.Network, Start: p.Start, End: p.End, Bits: p.Prefix, Gateway: p.Gateway}
		if p.CIDR.IsValid() {
			if p.Start.IsValid() || p.End.IsValid() || p.Prefix != 0 {
				return Outcome{}, resource.Invalid("cidr", "must not be given together with start, end or prefix")
			}
			if err := fillRange(r, p.CIDR); err != nil {
				return Outcome{}, err
			}
		}
		for field, a := range map[string]netip.Addr{"start": r.Start, "end": r.End, "gateway": r.Gateway} {
			if !a.IsValid() {
				return Outcome{}, resource.Invalid(field, "must be given").WithRemedy("give start, end, prefix and gateway, or cidr")
			}
		}
		return did(plan.AddIPRange(tx, r))
	})
	updatable[*resource.IPRange](g, "r1 --name office", "", metaUpdateParts, nil)
	deletable(g, resource.KindIPRange, "Refused while a NIC has an address of it.")
}

// fillRange makes a range of all addresses of a network but its own, the gateway's (the first) and broadcast.
func fillRange(r *resource.IPRange, cidr netip.Prefix) error {
	if !cidr.Addr().Is4() || cidr.Bits() < 8 || cidr.Bits() > 29 {
		return resource.Invalid("cidr", "%s is not an IPv4 network with a prefix length within 8..29", cidr)
	}
	if cidr != cidr.Masked() {
		return resource.Invalid("cidr", "%s has bits beyond its prefix length: did you mean %s?", cidr, cidr.Masked())
	}
	b := cidr.Addr().As4()
	for i := range b {
		host := max(0, min(8, 8*(i+1)-cidr.Bits()))
		b[i] |= byte(1<<host - 1)
	}
	first := cidr.Addr().Next()
	r.Bits, r.Start, r.End = cidr.Bits(), first.Next(), netip.AddrFrom4(b).Prev()
	switch r.Gateway {
	case netip.Addr{}:
		r.Gateway = first
	case first:
	case r.End:
		r.Start, r.End = first, r.End.Prev()
	default:
		return resource.Invalid("gateway", "with cidr it must be the first or the last address, %s or %s", first, r.End).WithRemedy("give start and end instead of cidr")
	}
	return nil
}

func groups(g *Registry) {
	readable(g, resource.KindSecGroup, "state=enabled",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STATE", Path: "state"}, Column{Title: "RULES", Path: "status.rules"}, Column{Title: "MEMBERS", Path: "status.members"},
		Column{Title: "APPLIED", Path: "status.applied"}, age(), idColumn())
	type groupCreate struct {
		meta
		NoDefaultRules bool `json:"no_default_rules,omitempty" help:"make no rules; otherwise members may reach each other"`
	}
	writes(g, Operation{
		Kind: resource.KindSecGroup, Verb: "create", Summary: "Create a security group",
		Help: "What is addressed to its members is dropped but for what a rule lets in; what they send may go anywhere until there is an egress rule. Answers always pass. " +
			"Members may reach each other unless --no-default-rules is given.",
		Example: "shoalctl secgroup create web",
	}, func(tx resource.Tx, p *groupCreate) (Outcome, error) {
		return did(plan.CreateSecGroup(tx, &resource.SecGroup{Meta: p.base(tx), State: resource.Enabled}, p.NoDefaultRules))
	})
	updatable[*resource.SecGroup](g, "web --description 'front ends'", "", metaUpdateParts, nil)
	switchable(g, "The rules of a disabled group let nothing pass.", func(s *resource.SecGroup) *resource.State { return &s.State }, nil)
	deletable(g, resource.KindSecGroup, "")

	readable(g, resource.KindSecRule, "group.name=web",
		Column{Title: "NAME", Path: "name"}, Column{Title: "GROUP", Path: "names.group_id"}, Column{Title: "DIRECTION", Path: "direction"}, Column{Title: "PROTOCOL", Path: "protocol"},
		Column{Title: "FROM", Path: "from_port"}, Column{Title: "TO", Path: "to_port"}, Column{Title: "CIDR", Path: "cidr"}, Column{Title: "REMOTE", Path: "names.remote_group_id"}, Column{Title: "ID", Path: "id"})
	type ruleCreate struct {
		Name        string       `json:"name,omitempty" help:"name; made from the rule where not given"`
		Description string       `json:"description,omitempty" help:"free text, up to 2048 bytes"`
		Tags        []string     `json:"tags,omitempty" flag:"tag" help:"tag, free text or namespace::key::value"`
		SecGroup    string       `json:"secgroup" ref:"secgroup" required:"true" help:"security group whose rule it is"`
		Direction   string       `json:"direction" required:"true" enum:"ingress|egress" help:"ingress: towards the guests; egress: from them"`
		Protocol    string       `json:"protocol" required:"true" enum:"all|tcp|udp|icmp" help:"protocol"`
		Port        span         `json:"port,omitzero" help:"destination port or range of them, such as 80 or 8000-8099, with tcp and udp; all where not given"`
		CIDR        netip.Prefix `json:"cidr,omitzero" help:"addresses of the other side; any where not given"`
		Remote      string       `json:"remote,omitempty" ref:"secgroup" use:"true" help:"security group that the other side must be in"`
	}
	writes(g, Operation{
		Kind: resource.KindSecRule, Verb: "create", Aliases: []string{"add"}, Task: true, Summary: "Add a rule to a security group",
		Help:    "It lets traffic pass, at once on running VMs. With --cidr and --remote the other side must be in both.",
		Example: "shoalctl secrule create --secgroup web --direction ingress --protocol tcp --port 80 --cidr 0.0.0.0/0 --wait",
	}, func(tx resource.Tx, p *ruleCreate) (Outcome, error) {
		name := p.Name
		if name == "" {
			name = p.Direction + "-" + p.Protocol
			if p.Port != (span{}) {
				name += fmt.Sprintf("-%d", p.Port.From)
			}
			if p.Port.To != p.Port.From {
				name += fmt.Sprintf("-%d", p.Port.To)
			}
		}
		return create(tx, &resource.SecRule{
			Meta:    meta{Name: name, Description: p.Description, Tags: p.Tags}.base(tx),
			GroupID: p.SecGroup, Direction: resource.Direction(p.Direction), Protocol: desired.Protocol(p.Protocol),
			FromPort: p.Port.From, ToPort: p.Port.To, CIDR: p.CIDR, RemoteGroupID: p.Remote,
		})
	})
	updatable[*resource.SecRule](g, "RULE --description 'health checks'", "To change what it lets pass, make a new one and delete this.", metaUpdateParts, nil)
	deletable(g, resource.KindSecRule, "It acts at once on running VMs.")
}
