package desired

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// samples is one spec of each kind with every field set, so that a renamed or forgotten field shows in the golden file.
func samples() map[Kind]Spec {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return map[Kind]Spec{
		KindAgent: &Agent{
			Version: "1.2.3", Arch: "amd64", SHA256: strings.Repeat("ab", 32), Bytes: 30 << 20, Signature: base64.StdEncoding.EncodeToString(make([]byte, 64)), Release: "r1",
			TrialSeconds: 180, Try: 1,
		},
		KindNetDev: &NetDev{Type: NetDevVXLAN, Bridge: "shb0123456789ab", Uplink: "shx0123456789ab", MTU: 1450, VXLAN: &VXLAN{
			VNI: 100, Local: addr("10.77.0.11"), Port: 4789, Remotes: []netip.Addr{addr("10.77.0.12")},
		}},
		KindPool: &Pool{Type: PoolNFS, Path: "/var/lib/shoal/nfs/s1", Source: "10.77.0.1:/p1", Options: "vers=4.1"},
		KindImage: &Image{
			Pool: "s1", Image: "i1", Path: "/srv/images/i1", SHA256: strings.Repeat("ab", 32), Bytes: 16 << 20, Format: FormatQCOW2,
		},
		KindDHCP: &DHCP{
			Bridge: "shb0123456789ab", Namespace: "shoal-l3", Port: "shd0123456789ab", Server: prefix("10.1.0.2/24"), Gateway: addr("10.1.0.1"),
			DNS: []netip.Addr{addr("9.9.9.9")}, Domain: "example.org", MTU: 1450, Routes: []Route{{To: prefix("10.2.0.0/24"), Via: addr("10.1.0.9")}},
			Entries: []DHCPEntry{{MAC: "52:54:00:00:00:01", IP: addr("10.1.0.10"), Hostname: "web"}},
		},
		KindAddrSet: &AddrSet{Name: "shs-0123456789ab", Addrs: []netip.Addr{addr("10.1.0.10"), addr("fd00::1")}},
		KindSecGroup: &SecGroup{
			Tap: "sht0123456789ab", Chain: "shc-0123456789ab", MAC: "52:54:00:00:00:01", IPs: []netip.Addr{addr("10.1.0.10")}, AntiSpoof: true,
			Ingress:       []Rule{{Protocol: ProtoTCP, FromPort: 22, ToPort: 23, CIDR: prefix("10.0.0.0/8"), Set: "shs-0123456789ab"}},
			Egress:        []Rule{{Protocol: ProtoAll}},
			IngressPolicy: Drop, EgressPolicy: Accept,
		},
		KindVolume: &Volume{
			Pool: "s1", Path: "/srv/volumes/v1.qcow2", Format: FormatQCOW2, Bytes: 32 << 20, Backing: &Backing{Path: "/srv/images/i1", Format: FormatQCOW2},
		},
		KindDomain: &Domain{
			Name: "shoal-d1", Title: "web & <co>", Power: PowerOn, StopSeconds: 60, CPUs: 1, MemoryMiB: 128, Machine: "pc", CPUMode: "host-model",
			Disks: []Disk{{
				Volume: "v1", Path: "/srv/volumes/v1.qcow2", Format: FormatQCOW2, Target: "vda", Bus: "virtio", Serial: "v1", Boot: 1, Cache: "none",
			}},
			NICs:       []DomainNIC{{ID: "n1", MAC: "52:54:00:00:00:01", Tap: "sht0123456789ab", Bridge: "shb0123456789ab", Model: "virtio", MTU: 1450, Boot: 2}},
			ConsoleLog: "/var/log/shoal/console/d1.log", Act: &Act{Seq: 3, Verb: VerbReboot},
		},
		KindOrigin: &Origin{Resources: []OriginResource{{Kind: "vm", Record: json.RawMessage(`{"id":"d1","name":"web & <co>"}`)}}},
	}
}

// TestWireFormat holds the JSON of every kind to its golden file: agents of another version read it.
func TestWireFormat(t *testing.T) {
	all := samples()
	for _, kind := range append(Kinds(), KindOrigin) {
		spec, ok := all[kind]
		if !ok {
			t.Errorf("kind %s has no sample", kind)
			continue
		}
		if err := spec.Validate(); err != nil {
			t.Errorf("validate the sample of %s: %v", kind, err)
		}
		it, err := NewItem(kind, "id-1", spec, Ref{KindVolume, "b"}, Ref{KindPool, "a"}, Ref{KindVolume, "b"})
		if err != nil {
			t.Fatal(err)
		}
		it.Rev, it.Cause = 7, "request-1"
		b, err := it.Encode()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, string(kind)+".json", b)
		back, err := DecodeItem(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(it, back); diff != "" {
			t.Errorf("item of %s after a round trip (-want +got):\n%s", kind, diff)
		}
	}
	head := Head{
		Host: "h1", Gen: 9, Shrink: true, Policy: map[Kind]Policy{KindDomain: PolicyHold},
		Items: map[Ref]string{{KindVolume, "v1"}: "aa", {KindDomain, "d1"}: "bb"},
	}
	b, err := head.Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "head.json", b)
	back, err := DecodeHead(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(head, back); diff != "" {
		t.Errorf("head after a round trip (-want +got):\n%s", diff)
	}
	status := Status{
		Rev: 7, Phase: PhaseRetrying, Fault: &Fault{Code: CodeNoSpace, Message: "full", Remedy: "free space", Ref: &Ref{KindPool, "s1"}},
		Facts: json.RawMessage(`{"state":"running"}`), Progress: 40, Since: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Cause: "request-1",
		Drifts: 2, LastDrift: &Drift{At: time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC), What: "stopped"},
	}
	b, err = status.Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", b)
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSuffix(string(want), "\n"), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestRefInJSON(t *testing.T) {
	for _, want := range []Ref{{}, {KindVolume, "v1"}} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Ref
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("%s reads as %v (%v), want %v", b, got, err, want)
		}
	}
	for _, in := range []string{`"."`, `"a"`, `"a."`, `".b"`, `1`} {
		if err := json.Unmarshal([]byte(in), new(Ref)); err == nil {
			t.Errorf("%s was read as a ref", in)
		}
	}
	if _, err := DecodeHead([]byte(`{"host":"h1","gen":1,"items":{"":"aa"}}`)); err == nil {
		t.Error("a head with an item that has no name was accepted")
	}
}

func TestDecodeSpecRefuses(t *testing.T) {
	var fault *Fault
	_, err := DecodeSpec[Pool](Item{Kind: KindPool, ID: "a", Spec: json.RawMessage(`{"type":"local","path":"/srv/a","colour":"red"}`)})
	if !errors.As(err, &fault) || fault.Code != CodeTooNew || !strings.Contains(fault.Message, "colour") {
		t.Errorf("an unknown field: %v, want a fault TooNew that names it", err)
	}
	_, err = DecodeSpec[Pool](Item{Kind: KindPool, ID: "a", Spec: json.RawMessage(`{"type":"local","path":"srv"}`)})
	if !errors.As(err, &fault) || fault.Code != CodeInvalid || !strings.Contains(fault.Message, "path") {
		t.Errorf("a bad path: %v, want a fault Invalid that names it", err)
	}
	if _, err = DecodeSpec[Pool](Item{Kind: KindPool, ID: "a", Spec: json.RawMessage(`{"type":"local","path":"/srv/a"} x`)}); err == nil {
		t.Error("data after the value was accepted")
	}
}

// TestValidateNamesTheField breaks one field at a time and wants its name in the error.
func TestValidateNamesTheField(t *testing.T) {
	for _, c := range []struct {
		kind  Kind
		path  []string
		value any
		field string
	}{
		{KindNetDev, []string{"bridge"}, "a-name-that-is-too-long", "bridge"},
		{KindNetDev, []string{"bridge"}, "a/b", "bridge"},
		{KindNetDev, []string{"type"}, "magic", "type"},
		{KindNetDev, []string{"mtu"}, 9, "mtu"},
		{KindNetDev, []string{"vxlan", "vni"}, 16777215, "vxlan.vni"},
		{KindNetDev, []string{"vxlan", "port"}, 0, "vxlan.port"},
		{KindPool, []string{"path"}, "/srv/../etc", "path"},
		{KindPool, []string{"source"}, "server", "source"},
		{KindPool, []string{"source"}, "-o:/x", "source"},
		{KindImage, []string{"sha256"}, "zz", "sha256"},
		{KindImage, []string{"format"}, "vmdk", "format"},
		{KindDHCP, []string{"namespace"}, "../x", "namespace"},
		{KindDHCP, []string{"domain"}, "a b", "domain"},
		{KindDHCP, []string{"entries", "0", "mac"}, "52:54:00:00:00:0G", "entries[0].mac"},
		{KindDHCP, []string{"entries", "0", "mac"}, "53:54:00:00:00:01", "entries[0].mac"},
		{KindDHCP, []string{"entries", "0", "hostname"}, "a\nb", "entries[0].hostname"},
		{KindAddrSet, []string{"name"}, strings.Repeat("s", 28), "name"},
		{KindSecGroup, []string{"tap"}, "", "tap"},
		{KindSecGroup, []string{"ingress_policy"}, "maybe", "ingress_policy"},
		{KindSecGroup, []string{"ingress", "0", "from_port"}, 65536, "ingress[0].from_port"},
		{KindSecGroup, []string{"egress", "0", "protocol"}, "sctp", "egress[0].protocol"},
		{KindVolume, []string{"bytes"}, 0, "bytes"},
		{KindVolume, []string{"backing", "path"}, "x", "backing.path"},
		{KindDomain, []string{"power"}, "up", "power"},
		{KindDomain, []string{"cpus"}, 0, "cpus"},
		{KindDomain, []string{"memory_mib"}, 15, "memory_mib"},
		{KindDomain, []string{"machine"}, "virt", "machine"},
		{KindDomain, []string{"disks", "0", "bus"}, "floppy", "disks[0].bus"},
		{KindDomain, []string{"nics", "0", "model"}, "ne2k", "nics[0].model"},
		{KindDomain, []string{"act", "verb"}, "dance", "act"},
	} {
		spec := samples()[c.kind]
		b, err := Canonical(spec)
		if err != nil {
			t.Fatal(err)
		}
		var tree any
		if err := json.Unmarshal(b, &tree); err != nil {
			t.Fatal(err)
		}
		b, err = json.Marshal(set(t, tree, c.path, c.value))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, spec); err != nil {
			t.Fatal(err)
		}
		err = spec.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), c.field) {
			t.Errorf("%s with %s = %v: %v, want an error that starts with %s", c.kind, strings.Join(c.path, "."), c.value, err, c.field)
		}
	}
}

// set replaces the value at a path in decoded JSON.
func set(t *testing.T, tree any, path []string, value any) any {
	t.Helper()
	if len(path) == 0 {
		return value
	}
	switch v := tree.(type) {
	case map[string]any:
		v[path[0]] = set(t, v[path[0]], path[1:], value)
	case []any:
		v[0] = set(t, v[0], path[1:], value)
	default:
		t.Fatalf("no %s in %v", path[0], tree)
	}
	return tree
}

func TestEveryCodeHasARemedy(t *testing.T) {
	seen := map[string]Code{}
	for _, c := range Codes() {
		remedy := c.Remedy()
		if remedy == "" || remedy == Code("").Remedy() {
			t.Errorf("code %s has no remedy of its own", c)
		}
		if other, ok := seen[remedy]; ok {
			t.Errorf("codes %s and %s have the same remedy", c, other)
		}
		seen[remedy] = c
	}
}

func FuzzDecodeItem(f *testing.F) {
	for kind, spec := range samples() {
		it, err := NewItem(kind, "id-1", spec)
		if err != nil {
			f.Fatal(err)
		}
		b, err := it.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		it, err := DecodeItem(b)
		if err != nil {
			return
		}
		again, err := it.Encode()
		if err != nil {
			t.Fatalf("encode what was decoded from %q: %v", b, err)
		}
		back, err := DecodeItem(again)
		if err != nil {
			t.Fatalf("decode %q: %v", again, err)
		}
		third, err := back.Encode()
		if err != nil || string(third) != string(again) {
			t.Fatalf("canonical bytes are not stable: %q, then %q (%v)", again, third, err)
		}
		// Decoding a spec must never panic, whatever it says.
		switch it.Kind {
		case KindAgent:
			if a, err := DecodeSpec[Agent](it); err == nil && a.SignedBy(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)) {
				t.Fatalf("%q is signed by a key that has signed nothing", b)
			}
		case KindNetDev:
			_, _ = DecodeSpec[NetDev](it)
		case KindDHCP:
			_, _ = DecodeSpec[DHCP](it)
		case KindSecGroup:
			_, _ = DecodeSpec[SecGroup](it)
		case KindDomain:
			_, _ = DecodeSpec[Domain](it)
		case KindOrigin:
			_, _ = DecodeSpec[Origin](it)
		default:
			_, _ = DecodeSpec[Volume](it)
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	f.Add([]byte(`{"host":"h1","gen":1,"items":{"vm.1":"aa"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHead(b)
		if err != nil {
			return
		}
		again, err := h.Encode()
		if err != nil {
			t.Fatalf("encode what was decoded from %q: %v", b, err)
		}
		back, err := DecodeHead(again)
		if err != nil {
			t.Fatalf("decode %q: %v", again, err)
		}
		if diff := cmp.Diff(h, back, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("head after a round trip (-want +got):\n%s", diff)
		}
	})
}
