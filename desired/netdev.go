package desired

import (
	"fmt"
	"net/netip"
)

// NetDevType says how a layer 2 network reaches other hosts.
type NetDevType string

// The types.
const (
	NetDevExisting NetDevType = "existing" // a bridge that the operator made: checked, never changed
	NetDevNoVLAN   NetDevType = "novlan"   // a bridge of ours with Device as its port
	NetDevVLAN     NetDevType = "vlan"     // a bridge of ours with Device's VLAN sub-device as its port
	NetDevVXLAN    NetDevType = "vxlan"    // a bridge of ours with a VXLAN device as its port
)

// NetDev is a layer 2 network on a host. Its item's id is the network's.
type NetDev struct {
	Type NetDevType `json:"type"`
	// Bridge is the bridge's name, at most 15 bytes.
	Bridge string `json:"bridge"`
	// Device is the physical device, with types novlan and vlan.
	Device string `json:"device,omitempty"`
	// VLAN is the VLAN id 1-4094, with type vlan; its device is named Uplink.
	VLAN int `json:"vlan,omitempty"`
	// VXLAN holds what type vxlan needs.
	VXLAN *VXLAN `json:"vxlan,omitempty"`
	// Uplink is the name of the device that we make as the bridge's port, with types vlan and vxlan.
	Uplink string `json:"uplink,omitempty"`
	// MTU of bridge and uplink; 0 leaves the kernel's.
	MTU int `json:"mtu,omitempty"`
}

// VXLAN is a tunnel with head-end replication: unknown and broadcast frames go to each of Remotes.
type VXLAN struct {
	VNI int `json:"vni"`
	// Local is this host's tunnel address.
	Local netip.Addr `json:"local"`
	// Port is the UDP port, 4789 by default.
	Port int `json:"port"`
	// Remotes are the tunnel addresses of the other hosts that have the network now, sorted.
	Remotes []netip.Addr `json:"remotes,omitempty"`
}

// Validate names the first field that is wrong.
func (n *NetDev) Validate() error {
	if err := checkLinkName("bridge", n.Bridge); err != nil {
		return err
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		return fmt.Errorf("mtu: %d is not within 68..65535", n.MTU)
	}
	switch n.Type {
	case NetDevExisting:
	case NetDevNoVLAN:
		return checkLinkName("device", n.Device)
	case NetDevVLAN:
		if n.VLAN < 1 || n.VLAN > 4094 {
			return fmt.Errorf("vlan: %d is not within 1..4094", n.VLAN)
		}
		if err := checkLinkName("device", n.Device); err != nil {
			return err
		}
		return checkLinkName("uplink", n.Uplink)
	case NetDevVXLAN:
		if n.VXLAN == nil {
			return fmt.Errorf("vxlan: must be set with type %s", n.Type)
		}
		if n.VXLAN.VNI < 1 || n.VXLAN.VNI > 16777214 {
			return fmt.Errorf("vxlan.vni: %d is not within 1..16777214", n.VXLAN.VNI)
		}
		if !n.VXLAN.Local.IsValid() {
			return fmt.Errorf("vxlan.local: must be set")
		}
		if n.VXLAN.Port < 1 || n.VXLAN.Port > 65535 {
			return fmt.Errorf("vxlan.port: %d is not within 1..65535", n.VXLAN.Port)
		}
		return checkLinkName("uplink", n.Uplink)
	default:
		return fmt.Errorf("type: %q is not one of existing, novlan, vlan, vxlan", n.Type)
	}
	return nil
}

// checkLinkName holds a name to what the kernel accepts for a network device (IFNAMSIZ, no slash, no white space).
func checkLinkName(field, s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return fmt.Errorf("%s: %q is not a device name of 1 to 15 bytes", field, s)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c == '/' || c == ':' || c > '~' {
			return fmt.Errorf("%s: %q holds a byte that a device name can't have", field, s)
		}
	}
	return nil
}
