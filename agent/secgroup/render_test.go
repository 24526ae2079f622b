package secgroup

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/desired"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestRender(t *testing.T) {
	w := desired.SecGroup{
		Tap: "sht0123456789ab", Chain: "shc-0123456789ab", MAC: "52:54:00:00:00:0a",
		IPs:       []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
		AntiSpoof: true, IngressPolicy: desired.Drop, EgressPolicy: desired.Accept,
		Ingress: []desired.Rule{
			{Protocol: desired.ProtoAll, Set: "shs-0123456789ab"},
			{Protocol: desired.ProtoAll, CIDR: netip.MustParsePrefix("::/0")},
			{Protocol: desired.ProtoICMP, CIDR: netip.MustParsePrefix("10.9.9.9/8")},
			{Protocol: desired.ProtoTCP, FromPort: 22, ToPort: 22, CIDR: netip.MustParsePrefix("0.0.0.0/0")},
			{Protocol: desired.ProtoUDP, FromPort: 1000, ToPort: 2000, CIDR: netip.MustParsePrefix("fd01::/64"), Set: "shs-0123456789ab"},
		},
		Egress: []desired.Rule{{Protocol: desired.ProtoTCP}, {Protocol: desired.ProtoUDP, FromPort: 0, ToPort: 65535}},
	}
	var b strings.Builder
	c := render("nic-1", w)
	for _, tool := range tools {
		for _, part := range []content{c, lines(w.Tap, w.Chain, c)} {
			for _, chain := range slices.Sorted(maps.Keys(part[tool])) {
				fmt.Fprintf(&b, "%s %s\n", tool, chain)
				for _, r := range part[tool][chain] {
					fmt.Fprintf(&b, "    %s\n", r)
				}
			}
		}
	}
	b.WriteString("SHOAL-FWD\n    " + strings.Join(forwardRules([]string{"sht0", "shta"}), "\n    ") + "\n")
	b.WriteString("SHOAL-HOST\n    " + strings.Join(hostRules([]string{"sht0", "shta"}), "\n    ") + "\n")
	file := filepath.Join("testdata", "rules.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

// TestDelta: what is taken away and added leads from one set to the other, and is the least that does.
func TestDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) []netip.Addr {
			var all []netip.Addr
			for _, b := range rapid.SliceOf(rapid.Byte()).Draw(t, "bytes") {
				a := netip.AddrFrom4([4]byte{10, 0, 0, b})
				if b%3 == 0 {
					a = netip.AddrFrom16([16]byte{0: 0xfd, 15: b})
				}
				all = append(all, a)
			}
			return sorted(all)
		})
		have, want := gen.Draw(t, "have"), gen.Draw(t, "want")
		add, del := delta(have, want)
		set := map[netip.Addr]bool{}
		for _, a := range have {
			set[a] = true
		}
		for _, a := range del {
			if !set[a] {
				t.Fatalf("%s is taken away and was not there", a)
			}
			delete(set, a)
		}
		for _, a := range add {
			if set[a] {
				t.Fatalf("%s is added and was there", a)
			}
			set[a] = true
		}
		if got := sorted(slices.Collect(maps.Keys(set))); !slices.Equal(got, want) {
			t.Fatalf("from %v to %v by +%v -%v came %v", have, want, add, del, got)
		}
	})
}

func TestFillSet(t *testing.T) {
	addr := netip.MustParseAddr
	var many []netip.Addr
	for i := range 1500 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	there := Header{Exists: true, Type: "hash:ip", Family: "inet", MaxElem: minElem}
	for _, c := range []struct {
		name       string
		now        Header
		have, want []netip.Addr
		head, size string
	}{
		{"new", Header{}, nil, many[:2], "create s hash:ip family inet maxelem 65536\nadd s 10.0.0.0\nadd s 10.0.0.1\n", ""},
		{"one more", with(there, 1), many[:1], many[:2], "add s 10.0.0.1\n", ""},
		{"one less", with(there, 2), many[:2], many[1:2], "del s 10.0.0.0\n", ""},
		{"same", with(there, 2), many[:2], many[:2], "", ""},
		{"large", with(there, 1), []netip.Addr{addr("10.9.9.9")}, many, "create st hash:ip family inet maxelem 65536\nflush st\nadd st", "swap st s\ndestroy st\n"},
		{"another kind", Header{Exists: true, Type: "hash:net", Family: "inet"}, nil, many[:1], "destroy s\ncreate s hash:ip", ""},
	} {
		var b strings.Builder
		var result Header
		fill(&b, "s", "inet", c.now, c.have, c.want, &result)
		if !strings.HasPrefix(b.String(), c.head) || !strings.HasSuffix(b.String(), c.size) || c.size == "" && c.name != "another kind" && b.String() != c.head {
			t.Errorf("%s:\n%s", c.name, b.String())
		}
		if result.Entries != len(c.want) || !result.Exists {
			t.Errorf("%s: result %+v", c.name, result)
		}
	}
}

func with(h Header, entries int) Header {
	h.Entries = entries
	return h
}

func FuzzParseSets(f *testing.F) {
	f.Add([]byte("create s-4 hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x9\nadd s-4 10.0.0.1\nadd other x\n"))
	f.Add([]byte("add s-4 10.0.0.1 timeout 5 comment \"x\"\ncreate s-4 bitmap:port range 0-1\nadd s-4 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		heads, members, err := ParseSets(b, func(s string) bool { return s == "s-4" })
		if err != nil {
			return
		}
		for name := range heads {
			if name != "s-4" {
				t.Errorf("read %q", name)
			}
		}
		for _, a := range members["s-4"] {
			if !a.IsValid() {
				t.Error("invalid member")
			}
		}
	})
}

func FuzzParseHeaders(f *testing.F) {
	f.Add([]byte("Name: s-4\nType: hash:ip\nHeader: family inet hashsize 1024 maxelem 65536\nReferences: 0\nNumber of entries: 1\n\nName: t\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if heads, err := ParseHeaders(b); err == nil {
			for _, h := range heads {
				if !h.Exists {
					t.Error("a set that is not there")
				}
			}
		}
	})
}
