package networkd

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnit(t *testing.T) {
	t.Parallel()
	const text = "# head\n\n[Match]\nName=eno1 \\\n  eno2\n\n[Network]\n; a comment\nDNS=1.1.1.1\nDNS=\nDNS=2.2.2.2\nUnheard=of = it\n\n[Route]\nGateway=10.0.0.1\n\n[Route]\nDestination=10.9.0.0/16\n"
	u, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := u.String(); got != text {
		t.Errorf("what was not touched has changed:\n%s", cmp.Diff(text, got))
	}
	for _, c := range []struct {
		got, want any
	}{
		{u.Words("Match", "Name"), []string{"eno1", "eno2"}},
		{u.Values("Network", "DNS"), []string{"2.2.2.2"}},
		{u.Value("Network", "Unheard"), "of = it"},
		{u.Value("Network", "None"), ""},
		{u.Keys("Route"), []string{"Gateway", "Destination"}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	u.Set("Network", "DNS", "3.3.3.3")
	u.Add("Link", "MTUBytes", "9000")
	taken := u.TakeAddressing()
	const left = "# head\n\n[Match]\nName=eno1 \\\n  eno2\n\n[Network]\n; a comment\nUnheard=of = it\n\n[Link]\nMTUBytes=9000\n"
	if got := u.String(); got != left {
		t.Errorf("without addresses (-want +got):\n%s", cmp.Diff(left, got))
	}
	other := Network([]string{"Name=bond0"})
	other.PutAddressing(taken)
	const moved = "[Match]\nName=bond0\n\n[Network]\nDNS=3.3.3.3\n\n[Route]\nGateway=10.0.0.1\n\n[Route]\nDestination=10.9.0.0/16\n"
	if got := other.String(); got != moved {
		t.Errorf("the addresses elsewhere (-want +got):\n%s", cmp.Diff(moved, got))
	}
	for _, bad := range []string{"a=b\n", "[Match\n", "[]\n", "[Match]\nnothing\n", "[Match]\n=x\n"} {
		if _, err := Parse(bad); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig(map[string]string{
		"10-a.network": "[Match]\nName=eno1 lan*\n", "20-b.network": "[Match]\nPermanentMACAddress=52:54:00:AA:00:01\n", "30-c.network": "[Match]\nName=!veth* docker*\nKind=!*\nType=ether\n",
		"40-d.network": "[Match]\nKind=bridge\n", "15-x.netdev": "[NetDev]\nName=br0\nKind=bridge\n", "15-x.link": "[Match]\nPermanentMACAddress=52:54:00:aa:00:09\n[Link]\nName=lan9\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	for want, d := range map[string]Device{
		"10-a.network": {Name: "lan7"}, "20-b.network": {Name: "eno2", PermanentMAC: "52:54:00:aa:00:01"}, "30-c.network": {Name: "eno3"}, "40-d.network": {Name: "br0", Kind: "bridge"},
		"": {Name: "docker0", Kind: "veth"},
	} {
		if got, err := c.NetworkOf(d); got != want || err != nil {
			t.Errorf("%+v: %q, %v, want %q", d, got, err, want)
		}
	}
	if got, err := c.NetworkOf(Device{Name: "x", AltNames: []string{"lan1"}}); got != "10-a.network" || err != nil {
		t.Errorf("by an alternative name: %q, %v", got, err)
	}
	if c.NetDevOf("br0") != "15-x.netdev" || c.NetDevOf("br1") != "" || c.LinkOf("52:54:00:AA:00:09") != "15-x.link" {
		t.Error("files are not found")
	}
	c["05-y.network"], _ = Parse("[Match]\nDriver=e1000\n")
	if got, err := c.NetworkOf(Device{Name: "eno1"}); err == nil || !strings.Contains(err.Error(), "05-y.network: whether it is eno1's can't be told, since it matches by Driver") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestBond(t *testing.T) {
	t.Parallel()
	const want = "[NetDev]\nName=b\nKind=bond\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=50ms\nLACPTransmitRate=slow\n"
	if got := Bond("b", map[string]string{"mode": "4", "miimon": "50", "lacp_rate": "0", "unheard": "of"}).String(); got != want {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"[Match]\nName=x\n", "# c\n[A]\nb=c\\\nd\n\n[A]\n", "[Network]\nAddress=10.0.0.1/8\nDHCP=yes\n", "[", "\\\n", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := Parse(text)
		if err != nil {
			return
		}
		// What is written reads back the same, with every value, and once more.
		again, err := Parse(u.String())
		if err != nil {
			t.Fatalf("%v\n%q became %q", err, text, u)
		}
		if again.String() != u.String() {
			t.Fatalf("%q became %q", u, again)
		}
		for _, s := range u.Sections {
			for _, k := range u.Keys(s.Name) {
				if diff := cmp.Diff(u.Values(s.Name, k), again.Values(s.Name, k)); diff != "" {
					t.Fatalf("%q: %s of %s: %s", text, k, s.Name, diff)
				}
			}
		}
		again.PutAddressing(Addressing{Static: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}.Sections())
		if got := again.Addresses(); len(got) != 1 || again.Value("Network", "Gateway") != "" {
			t.Fatalf("%q has %v after one address was set", text, got)
		}
	})
}
