package resource_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/resource"
	"shoal/desired"
)

const key = "UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func meta(name string) resource.Meta { return resource.Meta{ID: "id-1", Name: name} }

// valid has one acceptable resource of each kind.
func valid() map[resource.Kind]resource.Resource {
	ip := netip.MustParseAddr
	return map[resource.Kind]resource.Resource{
		resource.KindZone:         &resource.Zone{Meta: meta("z"), State: resource.Enabled},
		resource.KindCluster:      &resource.Cluster{Meta: meta("c"), ZoneID: "z", State: resource.Enabled, Arch: "arm64"},
		resource.KindHost:         &resource.Host{Meta: meta("h"), ClusterID: "c", PublicKey: key, State: resource.Disabled},
		resource.KindStorage:      &resource.Storage{Meta: meta("s"), ZoneID: "z", Type: resource.StorageNFS, Path: "/srv/x", Source: "nas:/x", Overprovision: 1, State: resource.Enabled, ClusterIDs: []string{"c"}},
		resource.KindImage:        &resource.Image{Meta: meta("i"), State: resource.Enabled, Stage: resource.ImageAdding},
		resource.KindOffering:     &resource.Offering{Meta: meta("o"), State: resource.Enabled, CPUs: 1, MemoryMiB: 64, Strategy: resource.MostFree},
		resource.KindDiskOffering: &resource.DiskOffering{Meta: meta("d"), State: resource.Enabled, Bytes: 1 << 30},
		resource.KindVXLANPool:    &resource.VXLANPool{Meta: meta("p"), ZoneID: "z", Ranges: []resource.VNIRange{{From: 1, To: 9}}, Port: 4789, Clusters: []resource.ClusterVTEP{{ClusterID: "c", CIDR: netip.MustParsePrefix("10.0.0.0/8")}}},
		resource.KindL2:           &resource.L2{Meta: meta("l2"), ZoneID: "z", Type: resource.L2VLAN, Device: "eth0", VLAN: 7, ClusterIDs: []string{"c"}},
		resource.KindL3:           &resource.L3{Meta: meta("l3"), L2ID: "l2", Category: resource.CategoryPrivate, DNS: []netip.Addr{ip("1.1.1.1")}, DHCPServer: ip("10.0.0.2")},
		resource.KindIPRange:      &resource.IPRange{Meta: meta("r"), L3ID: "l3", Start: ip("10.0.0.10"), End: ip("10.0.0.20"), Bits: 24, Gateway: ip("10.0.0.1")},
		resource.KindSecGroup:     &resource.SecGroup{Meta: meta("g"), State: resource.Enabled},
		resource.KindSecRule:      &resource.SecRule{Meta: meta("sr"), GroupID: "g", Direction: resource.Egress, Protocol: desired.ProtoTCP, FromPort: 1, ToPort: 2, CIDR: netip.MustParsePrefix("10.0.0.0/8")},
		resource.KindVM:           &resource.VM{Meta: meta("v"), ZoneID: "z", ClusterID: "c", HostID: "h", CPUs: 1, MemoryMiB: 64, Machine: "pc", Power: desired.PowerOn, Act: &desired.Act{Seq: 1, Verb: desired.VerbReset}, ActSeq: 1, Ran: true},
		resource.KindNIC:          &resource.NIC{Meta: meta("n"), VMID: "v", L3ID: "l3", IP: ip("10.0.0.11"), MAC: "fa:00:00:00:00:01", Model: "virtio", SecGroupIDs: []string{"g"}},
		resource.KindVolume: &resource.Volume{
			Meta: meta("vol"), Type: resource.VolumeRoot, ZoneID: "z", StorageID: "s", Path: "/srv/x/volumes/v.qcow2", HostID: "h", VMID: "v", Target: "vda", Bytes: 1 << 30, Format: desired.FormatQCOW2,
			State: resource.Enabled, Backing: &resource.Backing{SHA256: strings.Repeat("a", 64), Bytes: 1, Format: desired.FormatRaw},
		},
		resource.KindTask:    &resource.Task{Meta: meta("t"), State: resource.TaskRunning, RequestID: "r"},
		resource.KindAccount: &resource.Account{Meta: meta("a"), State: resource.Enabled, Password: "sealed", Quotas: map[resource.Quota]uint64{resource.QuotaVMs: 3}},
		resource.KindPolicy:  &resource.Policy{Meta: meta("p"), AccountID: "a", Statements: []resource.Statement{{Effect: resource.Allow, Actions: []string{"vm.*"}, Tags: []string{"test"}}}},
		resource.KindGroup:   &resource.Group{Meta: meta("gr"), AccountID: "a", PolicyIDs: []string{"p"}},
		resource.KindUser:    &resource.User{Meta: meta("u"), AccountID: "a", State: resource.Enabled, Password: "sealed", GroupIDs: []string{"gr"}, PolicyIDs: []string{"p"}},
		resource.KindSession: &resource.Session{Meta: meta("se"), AccountID: "a", UserID: "u", PublicKey: key, Expires: time.Unix(9, 0)},
		resource.KindShare:   &resource.Share{Meta: meta("sh"), ResourceKind: resource.KindL3, ResourceID: "l3", AccountID: "a"},
		resource.KindHostToken: &resource.HostToken{
			Meta: meta("ht"), ClusterID: "c", SecretHash: strings.Repeat("ab", 32), Uses: 1, Expires: time.Unix(9, 0), Approval: resource.ApproveAuto, ReplaceID: "h",
		},
		resource.KindRevocation: &resource.Revocation{Meta: meta("rv"), PublicKey: key, Role: resource.RevokedHost, Until: time.Unix(9, 0)},
		resource.KindEnrolment:  &resource.Enrolment{Meta: meta("e"), State: resource.EnrolmentPending, ClusterID: "c", TokenID: "ht", PublicKey: key},
		resource.KindRelease: &resource.Release{
			Meta: meta("re"), Version: "1.2", Arch: "amd64", SHA256: strings.Repeat("ab", 32), Bytes: 1, Signature: strings.Repeat("A", 86) + "==",
		},
		resource.KindRollout: &resource.Rollout{
			Meta: meta("ro"), Version: "1.2", State: resource.RolloutRunning, ClusterIDs: []string{"c"}, Clusters: 1, Hosts: 2, SoakSeconds: 1, WithinSeconds: 60, TrialSeconds: 10,
			Wave: 1, WaveHostIDs: []string{"h"}, WaveAt: time.Unix(9, 0),
		},
		resource.KindPlan: &resource.Plan{Meta: meta("pl"), State: resource.PlanOpen, Changes: []resource.PlannedCall{{Op: "zone.create"}}, Seed: make([]byte, 32)},
	}
}

func TestEveryKind(t *testing.T) {
	all := valid()
	for _, kind := range resource.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			r := all[kind]
			if r == nil {
				t.Fatal("no example of this kind")
			}
			if r.Kind() != kind || resource.New(kind).Kind() != kind {
				t.Errorf("kind is %s", r.Kind())
			}
			if err := r.Validate(); err != nil {
				t.Fatalf("validate: %v", err)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			back, err := resource.Decode(kind, b)
			if err != nil {
				t.Fatal(err)
			}
			opt := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			opt2 := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if diff := cmp.Diff(r, back, opt, opt2); diff != "" {
				t.Errorf("it came back differently (-want +got):\n%s", diff)
			}
			c := r.Clone()
			c.Base().Name = "other"
			if r.Base().Name == "other" {
				t.Error("a clone shares its fields")
			}
			for _, ref := range r.Refs() {
				if ref.ID == "" || ref.Field == "" || ref.Mode == "" || resource.New(ref.Kind) == nil {
					t.Errorf("reference %+v", ref)
				}
				if ref.Mode != resource.Link {
					continue
				}
				u, ok := r.(resource.Unlinker)
				if !ok {
					t.Fatalf("%s has links and no Unlink", kind)
				}
				for _, left := range u.Unlink(ref.Kind, ref.ID).Refs() {
					if left.Kind == ref.Kind && left.ID == ref.ID && left.Mode == resource.Link {
						t.Errorf("%s still has its link %+v", kind, left)
					}
				}
			}
			c = r.Clone()
			c.Base().Name = strings.Repeat("n", resource.MaxName+1)
			wantField(t, c.Validate(), "name")
		})
	}
}

func wantField(t *testing.T, err error, field string) {
	t.Helper()
	var e *resource.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want one of field %s", err, field)
	}
	if e.Field != field || e.Code != resource.CodeInvalid {
		t.Errorf("error %s of field %q: %v; want field %q", e.Code, e.Field, e, field)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	ip := netip.MustParseAddr
	storage := func(r resource.Resource) *resource.Storage { return r.(*resource.Storage) }
	rng := func(r resource.Resource) *resource.IPRange { return r.(*resource.IPRange) }
	for name, c := range map[string]struct {
		kind   resource.Kind
		change func(resource.Resource)
		field  string
	}{
		"empty name":        {resource.KindZone, func(r resource.Resource) { r.Base().Name = "" }, "name"},
		"name with newline": {resource.KindZone, func(r resource.Resource) { r.Base().Name = "a\nb" }, "name"},
		"name with space":   {resource.KindZone, func(r resource.Resource) { r.Base().Name = " a" }, "name"},
		"name not UTF-8":    {resource.KindZone, func(r resource.Resource) { r.Base().Name = "\xff" }, "name"},
		"long description":  {resource.KindZone, func(r resource.Resource) { r.Base().Description = strings.Repeat("x", 3000) }, "description"},
		"empty tag":         {resource.KindZone, func(r resource.Resource) { r.Base().Tags = []string{"a", ""} }, "tags[1]"},
		"many tags":         {resource.KindZone, func(r resource.Resource) { r.Base().Tags = make([]string, 65) }, "tags"},
		"state":             {resource.KindZone, func(r resource.Resource) { r.(*resource.Zone).State = "on" }, "state"},
		"arch":              {resource.KindCluster, func(r resource.Resource) { r.(*resource.Cluster).Arch = "x86" }, "arch"},
		"key":               {resource.KindHost, func(r resource.Resource) { r.(*resource.Host).PublicKey = "nkey" }, "public_key"},
		"storage type":      {resource.KindStorage, func(r resource.Resource) { storage(r).Type = "tape" }, "type"},
		"system path":       {resource.KindStorage, func(r resource.Resource) { storage(r).Path = "/etc/x" }, "path"},
		"relative path":     {resource.KindStorage, func(r resource.Resource) { storage(r).Path = "srv" }, "path"},
		"unclean path":      {resource.KindStorage, func(r resource.Resource) { storage(r).Path = "/srv/../etc" }, "path"},
		"path with comma":   {resource.KindStorage, func(r resource.Resource) { storage(r).Path = "/srv/a,b" }, "path"},
		"nfs source":        {resource.KindStorage, func(r resource.Resource) { storage(r).Source = "-o:/x" }, "source"},
		"local source":      {resource.KindStorage, func(r resource.Resource) { storage(r).Type = resource.StorageLocal }, "source"},
		"overprovision":     {resource.KindStorage, func(r resource.Resource) { storage(r).Overprovision = 0.5 }, "overprovision"},
		"ready image":       {resource.KindImage, func(r resource.Resource) { r.(*resource.Image).Stage = resource.ImageReady }, "stage"},
		"no cpus":           {resource.KindOffering, func(r resource.Resource) { r.(*resource.Offering).CPUs = 0 }, "cpus"},
		"little memory":     {resource.KindOffering, func(r resource.Resource) { r.(*resource.Offering).MemoryMiB = 15 }, "memory_mib"},
		"odd bytes":         {resource.KindDiskOffering, func(r resource.Resource) { r.(*resource.DiskOffering).Bytes = 1<<30 + 1 }, "bytes"},
		"huge disk":         {resource.KindDiskOffering, func(r resource.Resource) { r.(*resource.DiskOffering).Bytes = 1 << 60 }, "bytes"},
		"overlapping VNIs":  {resource.KindVXLANPool, func(r resource.Resource) { r.(*resource.VXLANPool).Ranges = []resource.VNIRange{{1, 5}, {5, 9}} }, "ranges[1]"},
		"reserved VNI":      {resource.KindVXLANPool, func(r resource.Resource) { r.(*resource.VXLANPool).Ranges = []resource.VNIRange{{1, 16777215}} }, "ranges[0]"},
		"vlan 0":            {resource.KindL2, func(r resource.Resource) { r.(*resource.L2).VLAN = 0 }, "vlan"},
		"vlan 4095":         {resource.KindL2, func(r resource.Resource) { r.(*resource.L2).VLAN = 4095 }, "vlan"},
		"long device":       {resource.KindL2, func(r resource.Resource) { r.(*resource.L2).Device = "abcdefghijklmnop" }, "device"},
		"device and bridge": {resource.KindL2, func(r resource.Resource) {
			l := r.(*resource.L2)
			l.Type, l.VLAN, l.Bridge = resource.L2NoVLAN, 0, "br0"
		}, "device"},
		"mtu":                  {resource.KindL3, func(r resource.Resource) { r.(*resource.L3).MTU = 100 }, "mtu"},
		"domain":               {resource.KindL3, func(r resource.Resource) { r.(*resource.L3).Domain = "a..b" }, "domain"},
		"multicast dns":        {resource.KindL3, func(r resource.Resource) { r.(*resource.L3).DNS = []netip.Addr{ip("224.0.0.1")} }, "dns[0]"},
		"range backwards":      {resource.KindIPRange, func(r resource.Resource) { rng(r).End = ip("10.0.0.5") }, "end"},
		"range leaves net":     {resource.KindIPRange, func(r resource.Resource) { rng(r).End = ip("10.0.1.5") }, "end"},
		"range has broadcast":  {resource.KindIPRange, func(r resource.Resource) { rng(r).End = ip("10.0.0.255") }, "end"},
		"range has network":    {resource.KindIPRange, func(r resource.Resource) { rng(r).Start, rng(r).Gateway = ip("10.0.0.0"), ip("10.0.0.99") }, "start"},
		"gateway in range":     {resource.KindIPRange, func(r resource.Resource) { rng(r).Gateway = ip("10.0.0.15") }, "gateway"},
		"gateway elsewhere":    {resource.KindIPRange, func(r resource.Resource) { rng(r).Gateway = ip("10.0.9.1") }, "gateway"},
		"ipv6 range":           {resource.KindIPRange, func(r resource.Resource) { rng(r).Start = ip("fd00::1") }, "start"},
		"bits":                 {resource.KindIPRange, func(r resource.Resource) { rng(r).Bits = 31 }, "bits"},
		"rule direction":       {resource.KindSecRule, func(r resource.Resource) { r.(*resource.SecRule).Direction = "in" }, "direction"},
		"rule protocol":        {resource.KindSecRule, func(r resource.Resource) { r.(*resource.SecRule).Protocol = "sctp" }, "protocol"},
		"rule ports backwards": {resource.KindSecRule, func(r resource.Resource) { r.(*resource.SecRule).FromPort = 9 }, "from_port"},
		"icmp ports":           {resource.KindSecRule, func(r resource.Resource) { r.(*resource.SecRule).Protocol = desired.ProtoICMP }, "from_port"},
		"rule cidr":            {resource.KindSecRule, func(r resource.Resource) { r.(*resource.SecRule).CIDR = netip.MustParsePrefix("10.0.0.1/8") }, "cidr"},
		"vm without host":      {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).HostID = "" }, "host_id"},
		"vm power":             {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).Power = "maybe" }, "power"},
		"vm hostname":          {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).Hostname = "-a" }, "hostname"},
		"vm stop seconds":      {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).StopSeconds = -1 }, "stop_seconds"},
		"vm machine":           {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).Machine = "" }, "machine"},
		"vm cpu mode":          {resource.KindVM, func(r resource.Resource) { r.(*resource.VM).CPUMode = "turbo" }, "cpu_mode"},
		"multicast mac":        {resource.KindNIC, func(r resource.Resource) { r.(*resource.NIC).MAC = "01:00:00:00:00:01" }, "mac"},
		"upper-case mac":       {resource.KindNIC, func(r resource.Resource) { r.(*resource.NIC).MAC = "FA:00:00:00:00:01" }, "mac"},
		"nic model":            {resource.KindNIC, func(r resource.Resource) { r.(*resource.NIC).Model = "ne2k" }, "model"},
		"volume type":          {resource.KindVolume, func(r resource.Resource) { r.(*resource.Volume).Type = "swap" }, "type"},
		"volume path":          {resource.KindVolume, func(r resource.Resource) { r.(*resource.Volume).Path = "" }, "storage_id"},
		"volume target":        {resource.KindVolume, func(r resource.Resource) { r.(*resource.Volume).Target = "" }, "vm_id"},
		"volume format":        {resource.KindVolume, func(r resource.Resource) { r.(*resource.Volume).Format = desired.FormatISO }, "format"},
		"task state":           {resource.KindTask, func(r resource.Resource) { r.(*resource.Task).State = "soon" }, "state"},
	} {
		t.Run(name, func(t *testing.T) {
			r := valid()[c.kind].Clone()
			c.change(r)
			wantField(t, r.Validate(), c.field)
		})
	}
}

func TestAddressKeysSortAsAddresses(t *testing.T) {
	for _, pair := range [][2]string{{"9.255.255.255", "10.0.0.0"}, {"10.0.0.2", "10.0.0.10"}, {"255.1.1.1", "fd00::1"}} {
		a, b := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		if resource.AddressKey("n", a) >= resource.AddressKey("n", b) {
			t.Errorf("the key of %s is not before that of %s", a, b)
		}
	}
}

// FuzzDecode: what was decoded and is valid comes back the same from its JSON, and nothing makes Decode, Validate, Refs,
// Unique or Clone panic.
func FuzzDecode(f *testing.F) {
	for kind, r := range valid() {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(kind), b)
	}
	f.Add("vm", []byte(`{"act":{}}`))
	f.Add("iprange", []byte(`{"start":"::","end":"1.2.3.4","bits":-1}`))
	f.Add("nope", []byte(`{}`))
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		r, err := resource.Decode(resource.Kind(kind), b)
		if err != nil {
			return
		}
		r.Refs()
		r.Unique()
		r.Clone()
		if r.Validate() != nil {
			return
		}
		one, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("a valid %s can't be encoded: %v", kind, err)
		}
		again, err := resource.Decode(resource.Kind(kind), one)
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		two, err := json.Marshal(again)
		if err != nil || string(one) != string(two) {
			t.Fatalf("it came back differently:\n%s\n%s (%v)", one, two, err)
		}
	})
}
