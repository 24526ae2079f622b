package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/agent/networkd"
)

// machine is a host as the installer leaves it: an interface with an address, a bond of two with a VLAN, and interfaces that nothing is said of.
// A guest network is on eno6.
func machine(t *testing.T) (networkd.Config, []Device) {
	t.Helper()
	c, err := networkd.ParseConfig(map[string]string{
		"20-eno1.network":      "[Match]\nName=eno1\n\n[Link]\nMTUBytes=9000\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nAddress=10.0.0.11/24\nGateway=10.0.0.1\nDNS=10.0.0.1\n",
		"10-bond0.netdev":      "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\n",
		"20-bond0.network":     "[Match]\nName=bond0\n\n[Network]\nVLAN=bond0.120\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		"20-eno2.network":      "[Match]\nName=eno2\n\n[Network]\nBond=bond0\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		"20-eno3.network":      "[Match]\nPermanentMACAddress=52:54:00:00:00:03\n\n[Network]\nBond=bond0\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		"10-bond0.120.netdev":  "[NetDev]\nName=bond0.120\nKind=vlan\n\n[VLAN]\nId=120\n",
		"20-bond0.120.network": "[Match]\nName=bond0.120\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n\n[DHCPv4]\nClientIdentifier=mac\n",
		"30-rest.network":      "# by hand\n[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	nic := func(n int, more func(*Device)) Device {
		d := Device{Name: fmt.Sprintf("eno%d", n), NIC: true, MAC: fmt.Sprintf("52:54:00:00:00:%02d", n), PermanentMAC: fmt.Sprintf("52:54:00:00:00:%02d", n), Up: true, Carrier: true}
		if more != nil {
			more(&d)
		}
		return d
	}
	in := func(d *Device) { d.Master, d.MAC = "bond0", "52:54:00:00:00:02" }
	return c, []Device{
		nic(1, func(d *Device) {
			d.Addresses, d.Controller = []netip.Prefix{netip.MustParsePrefix("10.0.0.11/24")}, true
		}),
		nic(2, in), nic(3, in), nic(4, nil), nic(5, func(d *Device) { d.AltNames = []string{"enp5s0"} }),
		nic(6, func(d *Device) { d.Master = "shb0123456789ab" }),
		{Name: "bond0", Kind: "bond", MAC: "52:54:00:00:00:02", Up: true, Carrier: true},
		{Name: "bond0.120", Kind: "vlan", Parent: "bond0", VLAN: 120, MAC: "52:54:00:00:00:02", Addresses: []netip.Prefix{netip.MustParsePrefix("10.20.0.11/24")}},
		{Name: "shb0123456789ab", Kind: "bridge", Shoal: "netdev 0123"},
	}
}

// TestChanges shows what each change makes of the units: those that differ, with what goes as "gone".
func TestChanges(t *testing.T) {
	t.Parallel()
	addressing := func(list ...string) *Addressing {
		a, err := ParseAddressing(list, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &a
	}
	for name, c := range map[string]struct {
		change Change
		want   map[string]string
		cut    []string
	}{
		"rename": {Rename{MAC: "52-54-00-00-00-01", Name: "lan0"}, map[string]string{
			"20-eno1.network": "gone",
			"20-lan0.network": "[Match]\nName=lan0\n\n[Link]\nMTUBytes=9000\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nAddress=10.0.0.11/24\nGateway=10.0.0.1\nDNS=10.0.0.1\n",
			"10-lan0.link":    "[Match]\nPermanentMACAddress=52:54:00:00:00:01\n\n[Link]\nAlternativeNamesPolicy=database onboard slot path\nName=lan0\n",
		}, []string{"eno1"}},
		"rename what is in a bond, by the MAC that it has itself": {Rename{MAC: "52:54:00:00:00:03", Name: "lan3"}, map[string]string{
			"20-eno3.network": "gone",
			"20-lan3.network": "[Match]\nPermanentMACAddress=52:54:00:00:00:03\n\n[Network]\nBond=bond0\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
			"10-lan3.link":    "[Match]\nPermanentMACAddress=52:54:00:00:00:03\n\n[Link]\nAlternativeNamesPolicy=database onboard slot path\nName=lan3\n",
		}, []string{"eno3"}},
		"rename what has no unit of its own": {Rename{MAC: "52:54:00:00:00:05", Name: "enp5s0"}, map[string]string{
			"10-enp5s0.link": "[Match]\nPermanentMACAddress=52:54:00:00:00:05\n\n[Link]\nAlternativeNamesPolicy=database onboard slot path\nName=enp5s0\n",
		}, []string{"eno5"}},
		"bond takes over the address": {MakeBond{Name: "bond1", Mode: "lacp", NICs: []string{"eno1", "eno4"}, Address: nil}, map[string]string{
			"10-bond1.netdev":  "[NetDev]\nName=bond1\nKind=bond\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\nTransmitHashPolicy=layer3+4\nLACPTransmitRate=fast\n",
			"20-bond1.network": "[Match]\nName=bond1\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nAddress=10.0.0.11/24\nGateway=10.0.0.1\nDNS=10.0.0.1\n",
			"20-eno1.network":  "[Match]\nName=eno1\n\n[Link]\nMTUBytes=9000\n\n[Network]\nBond=bond1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
			"20-eno4.network":  "[Match]\nName=eno4\n\n[Network]\nBond=bond1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"eno1", "eno4"}},
		"active-backup with an address": {MakeBond{Name: "bond1", Mode: "active-backup", NICs: []string{"eno4", "eno5"}, Address: addressing("10.1.0.2/24")}, map[string]string{
			"10-bond1.netdev":  "[NetDev]\nName=bond1\nKind=bond\n\n[Bond]\nMode=active-backup\nMIIMonitorSec=100ms\n",
			"20-bond1.network": "[Match]\nName=bond1\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nAddress=10.1.0.2/24\n",
			"20-eno4.network":  "[Match]\nName=eno4\n\n[Network]\nBond=bond1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
			"20-eno5.network":  "[Match]\nName=eno5\n\n[Network]\nBond=bond1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"eno4", "eno5"}},
		"add an interface": {AddNIC{To: "bond0", NICs: []string{"eno4"}}, map[string]string{
			"20-eno4.network": "[Match]\nName=eno4\n\n[Network]\nBond=bond0\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"eno4"}},
		"remove one of two": {RemoveNIC{From: "bond0", NICs: []string{"eno3"}}, map[string]string{
			"20-eno3.network": "[Match]\nPermanentMACAddress=52:54:00:00:00:03\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, nil},
		"bridge over a bond keeps its VLAN": {MakeBridge{Name: "br0", Ports: []string{"bond0"}}, map[string]string{
			"10-br0.netdev":    "[NetDev]\nName=br0\nKind=bridge\n\n[Bridge]\nSTP=no\n",
			"20-br0.network":   "[Match]\nName=br0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
			"20-bond0.network": "[Match]\nName=bond0\n\n[Network]\nVLAN=bond0.120\nBridge=br0\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"bond0"}},
		"VLAN": {MakeVLAN{Device: "eno1", ID: 7, Address: addressing("dhcp")}, map[string]string{
			"20-eno1.network":   "[Match]\nName=eno1\n\n[Link]\nMTUBytes=9000\n\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nAddress=10.0.0.11/24\nGateway=10.0.0.1\nDNS=10.0.0.1\nVLAN=eno1.7\n",
			"10-eno1.7.netdev":  "[NetDev]\nName=eno1.7\nKind=vlan\n\n[VLAN]\nId=7\n",
			"20-eno1.7.network": "[Match]\nName=eno1.7\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n\n[DHCPv4]\nClientIdentifier=mac\n",
		}, nil},
		"address": {SetAddress{Device: "eno1", Addressing: Addressing{
			Static: []netip.Prefix{netip.MustParsePrefix("10.0.0.12/24"), netip.MustParsePrefix("2001:db8::2/64")}, Gateway: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		}}, map[string]string{
			"20-eno1.network": "[Match]\nName=eno1\n\n[Link]\nMTUBytes=9000\n\n[Network]\nIPv6AcceptRA=no\nAddress=10.0.0.12/24\nAddress=2001:db8::2/64\nGateway=10.0.0.1\n",
		}, []string{"eno1"}},
		"no address": {SetAddress{Device: "bond0.120"}, map[string]string{
			"20-bond0.120.network": "[Match]\nName=bond0.120\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"bond0.120"}},
		"delete a VLAN": {Delete{Name: "bond0.120"}, map[string]string{
			"10-bond0.120.netdev": "gone", "20-bond0.120.network": "gone",
			"20-bond0.network": "[Match]\nName=bond0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		}, []string{"bond0.120"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, devices := machine(t)
			e, err := makeEdit(c.change, config, devices)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for file, text := range e.files() {
				got[file] = "gone"
				if text != nil {
					got[file] = *text
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("units (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.cut, e.touched); diff != "" {
				t.Errorf("interrupts (-want +got):\n%s", diff)
			}
			fresh, _ := machine(t)
			if diff := cmp.Diff(fresh, config); diff != "" {
				t.Errorf("the units that were given have changed: %s", diff)
			}
		})
	}
}

// TestChanges_Refused: each field is refused by its name.
func TestChanges_Refused(t *testing.T) {
	t.Parallel()
	with := func(list []string, gateway ...string) error {
		_, err := ParseAddressing(list, gateway, nil)
		return err
	}
	for want, c := range map[string]Change{
		"mac: \"52:54\" is not one":                             Rename{MAC: "52:54", Name: "lan0"},
		"mac: no interface has 52:54:00:00:00:99":               Rename{MAC: "52:54:00:00:00:99", Name: "lan0"},
		"name: eno2 is there already":                           Rename{MAC: "52:54:00:00:00:01", Name: "eno2"},
		"name: enp5s0 is there already":                         Rename{MAC: "52:54:00:00:00:01", Name: "enp5s0"},
		"name: eno1 is its name":                                Rename{MAC: "52:54:00:00:00:01", Name: "eno1"},
		"name: the kernel gives eth0":                           Rename{MAC: "52:54:00:00:00:01", Name: "eth0"},
		"has not 1 to 15":                                       Rename{MAC: "52:54:00:00:00:01", Name: "abcdefghijklmnop"},
		"name: \"a b\"":                                         Rename{MAC: "52:54:00:00:00:01", Name: "a b"},
		"name: \"../x\"":                                        Rename{MAC: "52:54:00:00:00:01", Name: "../x"},
		"name: what begins with shb":                            MakeBridge{Name: "shb1"},
		"name: bond0 is there":                                  MakeBond{Name: "bond0", Mode: "lacp", NICs: []string{"eno4"}},
		"mode: \"fast\"":                                        MakeBond{Name: "bond1", Mode: "fast", NICs: []string{"eno4"}},
		"nic: a bond needs":                                     MakeBond{Name: "bond1", Mode: "lacp"},
		"nic: eno4 is there twice":                              MakeBond{Name: "bond1", Mode: "lacp", NICs: []string{"eno4", "eno4"}, Address: &Addressing{}},
		"nic: eno2 is in bond bond0":                            MakeBond{Name: "bond1", Mode: "lacp", NICs: []string{"eno4", "eno2"}},
		"nic: there is no device \"eno9\"":                      MakeBond{Name: "bond1", Mode: "lacp", NICs: []string{"eno9"}},
		"nic: bond0.120 is a vlan":                              MakeBond{Name: "bond1", Mode: "lacp", NICs: []string{"bond0.120"}},
		"nic: eno6 is in shb0123456789ab, a network of Shoal's": AddNIC{To: "bond0", NICs: []string{"eno6"}},
		"address: eno1 and bond0.120 both have one":             MakeBridge{Name: "br0", Ports: []string{"eno1", "bond0.120"}},
		"to: eno1 is neither":                                   AddNIC{To: "eno1", NICs: []string{"eno4"}},
		"to: there is no device \"br9\"":                        AddNIC{To: "br9", NICs: []string{"eno4"}},
		"nic: eno2 is in bond0 already":                         AddNIC{To: "bond0", NICs: []string{"eno2"}},
		"nic: eno4 is not in bond0, which has eno2, eno3":       RemoveNIC{From: "bond0", NICs: []string{"eno4"}},
		"nic: nothing would be left of bond bond0":              RemoveNIC{From: "bond0", NICs: []string{"eno2", "eno3"}},
		"id: 4095 is not within":                                MakeVLAN{Device: "eno1", ID: 4095},
		"id: bond0.120 is VLAN 120 on bond0 already":            MakeVLAN{Device: "bond0", ID: 120, Name: "other"},
		"device: eno2 is in bond bond0: make the VLAN":          MakeVLAN{Device: "eno2", ID: 5},
		"device: eno2 is in bond bond0, and addresses":          SetAddress{Device: "eno2", Addressing: Addressing{DHCP: true}},
		"device: shb0123456789ab is the agent's":                SetAddress{Device: "shb0123456789ab"},
		"address: 10.0.0.11 is eno1's already":                  SetAddress{Device: "eno4", Addressing: Addressing{Static: []netip.Prefix{netip.MustParsePrefix("10.0.0.11/16")}}},
		"name: eno1 is not made by a unit":                      Delete{Name: "eno1"},
		"name: bond0 has bond0.120 on it":                       Delete{Name: "bond0"},
		"name: there is no br9":                                 Delete{Name: "br9"},
	} {
		config, devices := machine(t)
		_, err := makeEdit(c, config, devices)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", c, err, want)
		}
	}
	for want, err := range map[string]error{
		"address: \"10.0.0.5\" is none of":      with([]string{"10.0.0.5"}),
		"address: 10.0.0.0/24 is the network's": with([]string{"10.0.0.0/24"}),
		"10.0.0.255/24 is the network's":        with([]string{"10.0.0.255/24"}),
		"127.0.0.1/8 is not":                    with([]string{"127.0.0.1/8"}),
		"224.0.0.1/8 is not":                    with([]string{"224.0.0.1/8"}),
		"dhcp and 10.0.0.5/24 are two ways":     with([]string{"dhcp", "10.0.0.5/24"}),
		"none goes with nothing else":           with([]string{"none", "dhcp"}),
		"10.0.0.5 is there twice":               with([]string{"10.0.0.5/24", "10.0.0.5/16"}),
		"gateway: 10.1.0.1 is in the network":   with([]string{"10.0.0.5/24"}, "10.1.0.1"),
		"gateway: 10.0.0.5 is the device's own": with([]string{"10.0.0.5/24"}, "10.0.0.5"),
		"gateway: 10.0.0.2 is a second":         with([]string{"10.0.0.5/24"}, "10.0.0.1", "10.0.0.2"),
		"gateway: dhcp brings its own":          with([]string{"dhcp"}, "10.0.0.1"),
		"gateway: \"gw\" is not":                with([]string{"10.0.0.5/24"}, "gw"),
		"address: give dhcp":                    with(nil),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestLoop: a bridge can't have a port that lies on it.
func TestLoop(t *testing.T) {
	t.Parallel()
	config, devices := machine(t)
	e, err := makeEdit(MakeBridge{Name: "br0", Ports: []string{"bond0"}}, config, devices)
	if err != nil {
		t.Fatal(err)
	}
	devices[6].Master = "br0"
	devices = append(devices, Device{Name: "br0", Kind: "bridge"}, Device{Name: "br0.5", Kind: "vlan", Parent: "br0", VLAN: 5})
	if _, err := makeEdit(AddNIC{To: "br0", NICs: []string{"br0.5"}}, e.after, devices); err == nil || !strings.Contains(err.Error(), "nic: br0.5 lies on br0: that would be a loop") {
		t.Errorf("a VLAN on a bridge is made its port: %v", err)
	}
	if _, err := makeEdit(AddNIC{To: "br0", NICs: []string{"eno4"}}, e.after, devices); err != nil {
		t.Errorf("an interface is refused: %v", err)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	config, devices := machine(t)
	for _, c := range []struct {
		change Change
		cut    Cut
		ok     bool
	}{
		{SetAddress{Device: "eno1", Addressing: Addressing{DHCP: true}}, Cut{}, false},
		{SetAddress{Device: "eno1", Addressing: Addressing{DHCP: true}}, Cut{Guests: true}, false},
		{SetAddress{Device: "eno1", Addressing: Addressing{DHCP: true}}, Cut{Controller: true}, true},
		{SetAddress{Device: "eno4", Addressing: Addressing{DHCP: true}}, Cut{}, true},
		{Rename{MAC: "52:54:00:00:00:06", Name: "lan6"}, Cut{Controller: true}, false},
		{Rename{MAC: "52:54:00:00:00:06", Name: "lan6"}, Cut{Guests: true}, true},
	} {
		e, err := makeEdit(c.change, config, devices)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.cut.check(e); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCut) {
			t.Errorf("%s with %+v: %v", c.change, c.cut, err)
		}
	}
	// The last of a bond that has a cable.
	devices[1].Carrier = false
	for i := range devices {
		devices[i].Controller = slices.Contains([]string{"eno2", "eno3", "bond0"}, devices[i].Name)
	}
	e, err := makeEdit(RemoveNIC{From: "bond0", NICs: []string{"eno3"}}, config, devices)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Cut{}).check(e); !errors.Is(err, ErrCut) {
		t.Errorf("the last interface with a cable is taken without a word: %v", err)
	}
}

// TestMark: all that the way to the controller is made of.
func TestMark(t *testing.T) {
	t.Parallel()
	devices := []Device{
		{Name: "br0", Kind: "bridge"},
		{Name: "bond0.5", Kind: "vlan", Parent: "bond0", Master: "br0"},
		{Name: "bond0", Kind: "bond"},
		{Name: "eno1", NIC: true, Master: "bond0"},
		{Name: "eno2", NIC: true, Master: "bond0"},
		{Name: "eno3", NIC: true},
	}
	mark(devices, "br0", 0)
	var got []string
	for _, d := range devices {
		if d.Controller {
			got = append(got, d.Name)
		}
	}
	if diff := cmp.Diff([]string{"br0", "bond0.5", "bond0", "eno1", "eno2"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParseAddressing(f *testing.F) {
	for _, s := range []string{"dhcp", "none", "10.0.0.5/24", "2001:db8::1/64", "10.0.0.5/24 10.0.0.1"} {
		f.Add(s, "10.0.0.1")
	}
	f.Fuzz(func(t *testing.T, address, gateway string) {
		a, err := ParseAddressing(strings.Fields(address), strings.Fields(gateway), nil)
		if err != nil {
			return
		}
		// What is accepted reads back from the unit that it makes, line by line.
		u := networkd.Network([]string{"Name=x"}, a.sections()...)
		back, err := networkd.Parse(u.String())
		if err != nil {
			t.Fatalf("%v\n%s", err, u)
		}
		if got := back.Addresses(); len(got) != len(a.Static) || !slices.Equal(got, a.Static) {
			t.Fatalf("%v became %v", a.Static, got)
		}
	})
}
