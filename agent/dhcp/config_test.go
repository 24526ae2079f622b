package dhcp_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/agent/dhcp"
	"shoal/desired"
)

var update = flag.Bool("update", false, "write golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func TestConfig(t *testing.T) {
	served := wanted()
	served.DNS, served.Gateway, served.MTU = nil, netip.Addr{}, 0
	six := wanted()
	six.Server, six.Gateway, six.Routes = netip.MustParsePrefix("fd00:5::2/64"), netip.Addr{}, nil
	six.DNS = []netip.Addr{netip.MustParseAddr("fd00::53")}
	six.Entries = []desired.DHCPEntry{{MAC: mac(1), IP: netip.MustParseAddr("fd00:5::11"), Hostname: "vm-1"}, {MAC: mac(2), IP: netip.MustParseAddr("fd00:5::12"), NoGateway: true}}
	full := wanted()
	full.Entries = append(full.Entries, desired.DHCPEntry{MAC: mac(2), IP: netip.MustParseAddr("10.5.0.12"), NoGateway: true})
	for name, w := range map[string]desired.DHCP{"full": full, "served": served, "ipv6": six} {
		t.Run(name, func(t *testing.T) {
			golden(t, name+".golden", string(dhcp.Config(w, "/d", "nobody"))+"-- hosts\n"+string(dhcp.Hosts(w))+"-- names\n"+string(dhcp.Names(w)))
		})
	}
}

func TestIsolationRules(t *testing.T) {
	places := map[string]dhcp.Place{
		"a": {Bridge: "br0", Port: "shda", Server: netip.MustParsePrefix("10.0.0.2/24")},
		"b": {Bridge: "br0", Port: "shdb", Server: netip.MustParsePrefix("10.1.0.2/24")},
		"c": {Bridge: "br1", Port: "shdc", Server: netip.MustParsePrefix("fd00::2/64")},
	}
	links := []dhcp.Link{
		{Name: "eth0", Master: "br0"},
		{Name: "vnet3", Master: "br0"},
		{Name: "sht1", Master: "br0"},
		{Name: "shda", Master: "br0"},
		{Name: "eth1", Master: "br1"},
		{Name: "eth2", Master: "br2"},
		{Name: "eth3"},
	}
	golden(t, "isolation.golden", strings.Join(dhcp.Isolation(places, links), "\n")+"\n")
}

func FuzzParseLeases(f *testing.F) {
	f.Add([]byte("1795518000 52:54:00:05:00:01 10.5.0.11 vm-1 01:52:54:00:05:00:01\n0 52:54:00:05:00:02 10.5.0.12 * *\n"))
	f.Add([]byte("duid 00:01:00:01\n1795518000 1234 fd00:5::11 vm-1 00:01:00:01\n"))
	f.Add([]byte("179551800"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range dhcp.ParseLeases(b) {
			if !l.IP.IsValid() || l.IP.Is4() == (l.MAC == "") {
				t.Errorf("lease %+v", l)
			}
		}
	})
}
