package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/controller/resource"
	"shoal/controller/store"
)

func meta(id, name string, tags ...string) resource.Meta {
	return resource.Meta{ID: id, Name: name, Tags: tags}
}

// world is a reader with n VMs, each with one NIC; the first few are special.
func world(t testing.TB, n int) resource.Reader {
	t.Helper()
	s, err := store.New(store.Config{Log: zerolog.Nop(), Clock: func() time.Time { return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	_, after, err := s.DryRun(t.Context(), resource.Request{ID: "r"}, func(tx resource.Tx) error {
		all := []resource.Resource{
			&resource.Zone{Meta: meta("z1", "north"), State: resource.Enabled},
			&resource.Zone{Meta: meta("z2", "south"), State: resource.Disabled},
			&resource.Cluster{Meta: meta("c1", "rack"), ZoneID: "z1", State: resource.Enabled},
			&resource.Host{
				Meta: meta("h1", "host-1"), ClusterID: "c1", State: resource.Enabled, PublicKey: "U" + strings.Repeat("A", 55),
				VTEPs: map[string]netip.Addr{"pool": netip.MustParseAddr("192.0.2.1")},
			},
			&resource.Host{Meta: meta("h2", "host-2"), ClusterID: "c1", State: resource.Disabled, PublicKey: "U" + strings.Repeat("B", 55)},
			&resource.Storage{
				Meta: meta("s1", "local"), ZoneID: "z1", Type: resource.StorageLocal, Path: "/srv/shoal", State: resource.Enabled, Overprovision: 1.5, ClusterIDs: []string{"c1"},
			},
			&resource.L2{Meta: meta("l2", "wire"), ZoneID: "z1", Type: resource.L2NoVLAN, Device: "eth0", ClusterIDs: []string{"c1"}},
			&resource.L3{Meta: meta("l3", "lan"), L2ID: "l2", Category: resource.CategoryPrivate, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}},
			&resource.SecGroup{Meta: meta("g1", "web"), State: resource.Enabled},
			&resource.SecRule{Meta: meta("r1", "in"), GroupID: "g1", Direction: resource.Ingress, Protocol: "tcp", FromPort: 80, ToPort: 80, CIDR: netip.MustParsePrefix("10.0.0.0/8")},
		}
		for i := range n {
			id := fmt.Sprintf("vm%05d", i)
			vm := &resource.VM{
				Meta: meta(id, fmt.Sprintf("web-%d", i), "all"), ZoneID: "z1", ClusterID: "c1", HostID: fmt.Sprintf("h%d", i%2+1), CPUs: i%8 + 1, MemoryMiB: 512 * (i%4 + 1),
				Strategy: resource.FewestVMs, Machine: "q35", Power: "on", StopSeconds: 60,
			}
			if i == 0 {
				vm.Name, vm.Hostname, vm.Power, vm.Description, vm.Tags = "DB", "db.example.org", "off", "the, data base", []string{"all", "old", "a,b"}
				vm.Destroyed = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
			}
			nic := &resource.NIC{
				Meta: meta("nic"+id, "nic0"), VMID: id, L3ID: "l3", IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), MAC: fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&255), Model: "virtio",
				AntiSpoof: i%2 == 0,
			}
			if i < 2 {
				nic.SecGroupIDs = []string{"g1"}
			}
			all = append(all, vm, nic)
		}
		for i := range min(n, 2) {
			all = append(all, &resource.Volume{
				Meta: meta(fmt.Sprintf("vol%d", i), fmt.Sprintf("root-%d", i)), Type: resource.VolumeRoot, ZoneID: "z1", StorageID: "s1", HostID: "h1", Path: fmt.Sprintf("/srv/shoal/%d", i),
				VMID: fmt.Sprintf("vm%05d", i), Target: "vda", Bytes: uint64(1+i) << 30, Format: "qcow2", State: resource.Enabled,
			})
		}
		for _, r := range all {
			if err := tx.Put(r); err != nil {
				return fmt.Errorf("put %s %s: %w", r.Kind(), r.Base().ID, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return after
}

func find(t testing.TB, r resource.Reader, kind resource.Kind, conditions ...string) []string {
	t.Helper()
	q, err := Parse(kind, Spec{Conditions: conditions, Sort: []string{"id"}})
	if err != nil {
		t.Fatalf("parse %q: %v", conditions, err)
	}
	var ids []string
	for _, row := range q.Run(r).Rows {
		ids = append(ids, row.Resource.Base().ID)
	}
	return ids
}

func TestConditions(t *testing.T) {
	r := world(t, 6)
	vm := func(ns ...int) (ids []string) {
		for _, n := range ns {
			ids = append(ids, fmt.Sprintf("vm%05d", n))
		}
		return ids
	}
	for _, c := range []struct {
		kind       resource.Kind
		conditions string // separated by " & "
		want       []string
	}{
		// Each operator on each sort of value.
		{"vm", "", vm(0, 1, 2, 3, 4, 5)},
		{"vm", "name=DB", vm(0)},
		{"vm", "name = DB", vm(0)},
		{"vm", "name=db", nil},
		{"vm", "name!=DB", vm(1, 2, 3, 4, 5)},
		{"vm", "name>web-3", vm(4, 5)},
		{"vm", "name<=web-1", vm(0, 1)},
		{"vm", "name~=web-*", vm(1, 2, 3, 4, 5)},
		{"vm", "name~=WEB-?", vm(1, 2, 3, 4, 5)},
		{"vm", "name~=%-3", vm(3)},
		{"vm", "name~=eb-4", vm(4)},
		{"vm", "name!~=web-*", vm(0)},
		{"vm", "name in web-1,web-2,none", vm(1, 2)},
		{"vm", "name not-in web-1,web-2", vm(0, 3, 4, 5)},
		{"vm", "cpus=3", vm(2)},
		{"vm", "cpus!=3", vm(0, 1, 3, 4, 5)},
		{"vm", "cpus>3", vm(3, 4, 5)},
		{"vm", "cpus>=3", vm(2, 3, 4, 5)},
		{"vm", "cpus<3", vm(0, 1)},
		{"vm", "cpus<=3", vm(0, 1, 2)},
		{"vm", "cpus in 1,2", vm(0, 1)},
		{"vm", "cpus not-in 1,2", vm(2, 3, 4, 5)},
		{"vm", "cpus~=1", vm(0)},
		{"vm", "cpus>1 & cpus<4", vm(1, 2)},
		{"volume", "bytes>1073741824", []string{"vol1"}},
		{"volume", "bytes=1073741824", []string{"vol0"}},
		{"storage", "overprovision>=1.5", []string{"s1"}},
		{"storage", "overprovision<1.5", nil},
		{"nic", "anti_spoof=true & vm.name~=web", []string{"nicvm00002", "nicvm00004"}},
		{"nic", "anti_spoof=false", []string{"nicvm00001", "nicvm00003", "nicvm00005"}},
		{"nic", "anti_spoof!=false & ip=10.0.0.0", []string{"nicvm00000"}},
		{"nic", "ip>10.0.0.3", []string{"nicvm00004", "nicvm00005"}},
		{"nic", "ip in 10.0.0.1,10.0.0.2", []string{"nicvm00001", "nicvm00002"}},
		{"nic", "mac=52:54:00:00:00:03", []string{"nicvm00003"}},
		{"secrule", "cidr=10.0.0.0/8", []string{"r1"}},
		{"secrule", "cidr~=10.*", []string{"r1"}},
		{"secrule", "from_port<=80 & to_port>=80", []string{"r1"}},
		{"vm", "created>2026-04-01", vm(0, 1, 2, 3, 4, 5)},
		{"vm", "created<2026-05-01T12:00:00Z", nil},
		{"vm", "created>=2026-05-01 12:00", vm(0, 1, 2, 3, 4, 5)},
		{"vm", "destroyed=2026-03-01", vm(0)},
		// Null.
		{"vm", "hostname is-null", vm(1, 2, 3, 4, 5)},
		{"vm", "hostname not-null", vm(0)},
		{"vm", "hostname=", vm(1, 2, 3, 4, 5)},
		{"vm", "hostname!=", vm(0)},
		{"vm", "hostname!=db.example.org", vm(1, 2, 3, 4, 5)},
		{"vm", "hostname in ,x", vm(1, 2, 3, 4, 5)},
		{"vm", "hostname>", nil},
		{"vm", "destroyed is-null", vm(1, 2, 3, 4, 5)},
		{"vm", "destroyed>2020-01-01", vm(0)},
		{"vm", "destroyed!=2026-03-01", vm(1, 2, 3, 4, 5)},
		{"vm", "act is-null", vm(0, 1, 2, 3, 4, 5)},
		{"vm", "act.seq not-null", nil},
		{"vm", "expunging=false", vm(0, 1, 2, 3, 4, 5)},
		// Lists and maps.
		{"vm", "tags=old", vm(0)},
		{"vm", "tags!=old", vm(1, 2, 3, 4, 5)},
		{"vm", "tags in old,none", vm(0)},
		{"vm", `tags in a\,b`, vm(0)},
		{"vm", "tags not-in old", vm(1, 2, 3, 4, 5)},
		{"vm", "description=the, data base", vm(0)},
		{"l3", "dns=192.0.2.53", []string{"l3"}},
		{"host", "vteps.pool=192.0.2.1", []string{"h1"}},
		{"host", "vteps.other is-null", []string{"h1", "h2"}},
		{"host", "vteps not-null", []string{"h1"}},
		// Relations.
		{"vm", "host_id=h2", vm(1, 3, 5)},
		{"vm", "host.id=h2", vm(1, 3, 5)},
		{"vm", "host.name=host-1", vm(0, 2, 4)},
		{"vm", "host.name in host-1,host-2 & cpus=1", vm(0)},
		{"vm", "host.name!=host-1", vm(1, 3, 5)},
		{"vm", "host.state=disabled", vm(1, 3, 5)},
		{"vm", "host.cluster.zone.name=north & cpus=2", vm(1)},
		{"vm", "image.name is-null & cpus=1", vm(0)},
		{"vm", "nic.ip=10.0.0.4", vm(4)},
		{"vm", "nic.ip!=10.0.0.4", vm(0, 1, 2, 3, 5)},
		{"vm", "nic.l3.name=lan & cpus=6", vm(5)},
		{"vm", "nic.secgroup.name=web", vm(0, 1)},
		{"vm", "nic.secgroup.secrule.to_port=80", vm(0, 1)},
		{"vm", "nic.secgroup_ids=g1", vm(0, 1)},
		{"vm", "volume.id not-null", vm(0, 1)},
		{"vm", "volume.id is-null", vm(2, 3, 4, 5)},
		{"vm", "volume.storage.name=local", vm(0, 1)},
		{"volume", "vm.nic.ip=10.0.0.1", []string{"vol1"}},
		{"nic", "secgroup.name=web", []string{"nicvm00000", "nicvm00001"}},
		{"nic", "secgroup_ids=g1", []string{"nicvm00000", "nicvm00001"}},
		{"zone", "vm.name=web-3", []string{"z1"}},
		{"zone", "vm.name is-null", []string{"z2"}},
		{"cluster", "host.name=host-2", []string{"c1"}},
		{"cluster", "storage.name=local", []string{"c1"}},
		{"secgroup", "secrule.protocol=tcp", []string{"g1"}},
		{"vm", "id=vm00002", vm(2)},
		{"vm", "id in vm00002,vm00002,none", vm(2)},
	} {
		t.Run(string(c.kind)+" "+c.conditions, func(t *testing.T) {
			conditions := strings.Split(c.conditions, " & ")
			if c.conditions == "" {
				conditions = nil
			}
			if diff := cmp.Diff(c.want, find(t, r, c.kind, conditions...)); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			// The same without indexes.
			q, err := Parse(c.kind, Spec{Conditions: conditions})
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for res := range r.All(c.kind) {
				if q.Matches(r, res) {
					all = append(all, res.Base().ID)
				}
			}
			if diff := cmp.Diff(c.want, all); diff != "" {
				t.Errorf("found by reading everything (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIndexesAreUsed(t *testing.T) {
	r := world(t, 4)
	for condition, want := range map[string]bool{
		"id=vm00001": true, "id in vm00001,vm00002": true, "name=web-1": true, "host_id=h1": true, "host.id=h1": true, "host.name=host-1": true,
		"cpus=1": false, "name!=web-1": false, "host.state=enabled": false, "nic.name=nic0": false, "host.cluster.name=rack": false, "name~=web": false,
	} {
		q, err := Parse(resource.KindVM, Spec{Conditions: []string{condition}})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(slices.Collect(q.candidates(r))); (n < 4) != want {
			t.Errorf("%s looks at %d of 4 VMs", condition, n)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		kind        resource.Kind
		spec        Spec
		field, want string
	}{
		{"nonsense", Spec{}, "kind", "is not one of account"},
		{"vm", Spec{Conditions: []string{"colour=red"}}, "colour", "cpus"},
		{"vm", Spec{Conditions: []string{"nic.colour=red"}}, "nic.colour", "anti_spoof"},
		{"vm", Spec{Conditions: []string{"status.colour=red"}}, "status.colour", "there are"},
		{"vm", Spec{Conditions: []string{"iprange.start=1"}}, "iprange", "no such field"},
		{"vm", Spec{Conditions: []string{"cpus=many"}}, "cpus", "not a whole number"},
		{"vm", Spec{Conditions: []string{"cpus in 1,x"}}, "cpus", "not a whole number"},
		{"volume", Spec{Conditions: []string{"bytes>-1"}}, "bytes", "whole number of 0 or more"},
		{"storage", Spec{Conditions: []string{"overprovision>x"}}, "overprovision", "not a number"},
		{"nic", Spec{Conditions: []string{"ip=10.0.0"}}, "ip", "not an IP address"},
		{"nic", Spec{Conditions: []string{"anti_spoof=yes"}}, "anti_spoof", "neither true nor false"},
		{"nic", Spec{Conditions: []string{"anti_spoof>false"}}, "anti_spoof", "does not apply"},
		{"vm", Spec{Conditions: []string{"created>yesterday"}}, "created", "not a time"},
		{"vm", Spec{Conditions: []string{"host=h1"}}, "host", "host.name"},
		{"vm", Spec{Conditions: []string{"act=x"}}, "act", "name one of its fields"},
		{"host", Spec{Conditions: []string{"vteps=x"}}, "vteps", "name one of its keys"},
		{"vm", Spec{Conditions: []string{"name.first=x"}}, "name.first", "single value"},
		{"vm", Spec{Conditions: []string{"created.year=1"}}, "created.year", "single value"},
		{"vm", Spec{Conditions: []string{"name"}}, "condition", "name=web"},
		{"vm", Spec{Conditions: []string{""}}, "condition", "operator"},
		{"vm", Spec{Conditions: []string{"=x"}}, "condition", "operator"},
		{"vm", Spec{Conditions: []string{"name is-null x"}}, "condition", "operator"},
		{"vm", Spec{Conditions: []string{"name near x"}}, "condition", "operator"},
		{"vm", Spec{Conditions: []string{"name=" + strings.Repeat("x", MaxValue)}}, "condition", "bytes long"},
		{"vm", Spec{Conditions: []string{strings.Repeat("host.vm.", 9) + "name=x"}}, "path", "names with dots"},
		{"vm", Spec{Conditions: []string{"nic..ip=x"}}, "path", "names with dots"},
		{"vm", Spec{Conditions: make([]string, MaxConditions+1)}, "conditions", "at most"},
		{"vm", Spec{Sort: []string{"-colour"}}, "colour", "no such field"},
		{"vm", Spec{Sort: []string{"act"}}, "sort", "single value"},
		{"vm", Spec{Fields: []string{"colour"}}, "colour", "no such field"},
		{"vm", Spec{Fields: []string{"nic"}}, "nic", "nic.name"},
		{"vm", Spec{Limit: -1}, "limit", "negative"},
		{"vm", Spec{Offset: -1}, "offset", "negative"},
	} {
		_, err := Parse(c.kind, c.spec)
		var e *resource.Error
		if !errors.As(err, &e) || e.Code != resource.CodeInvalid || e.Field != c.field || !strings.Contains(e.Message, c.want) {
			t.Errorf("%s %+v: got %v, want field %s and %q", c.kind, c.spec, err, c.field, c.want)
		}
	}
}

func TestSortFieldsLimit(t *testing.T) {
	r := world(t, 6)
	run := func(spec Spec) (Result, string) {
		t.Helper()
		q, err := Parse(resource.KindVM, spec)
		if err != nil {
			t.Fatal(err)
		}
		res := q.Run(r)
		b, err := json.Marshal(res.Rows)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{Fields: []string{"name"}, Limit: 2}, `[{"name":"DB"},{"name":"web-1"}]`},
		{Spec{Fields: []string{"name", "cpus"}, Sort: []string{"-cpus"}, Limit: 2}, `[{"name":"web-5","cpus":6},{"name":"web-4","cpus":5}]`},
		{Spec{Fields: []string{"name"}, Sort: []string{"-host.name", "memory_mib"}, Limit: 3}, `[{"name":"web-1"},{"name":"web-5"},{"name":"web-3"}]`},
		{Spec{Fields: []string{"name"}, Sort: []string{"hostname"}, Limit: 1}, `[{"name":"DB"}]`},
		{Spec{Fields: []string{"name"}, Sort: []string{"-hostname"}, Limit: 1}, `[{"name":"DB"}]`},
		{Spec{Fields: []string{"name"}, Offset: 4}, `[{"name":"web-4"},{"name":"web-5"}]`},
		{Spec{Fields: []string{"name"}, Offset: 40}, `[]`},
		{
			Spec{Fields: []string{"nic.ip", "hostname", "tags", "host.name", "volume.id"}, Conditions: []string{"cpus<=2"}},
			`[{"nic.ip":["10.0.0.0"],"hostname":"db.example.org","tags":["all","old","a,b"],"host.name":"host-1","volume.id":["vol0"]},` +
				`{"nic.ip":["10.0.0.1"],"hostname":null,"tags":["all"],"host.name":"host-2","volume.id":["vol1"]}]`,
		},
	} {
		res, got := run(c.spec)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.spec, diff)
		}
		if res.Total != 6 && len(c.spec.Conditions) == 0 {
			t.Errorf("%+v: total %d, want 6", c.spec, res.Total)
		}
	}
	if res, _ := run(Spec{Count: true}); res.Total != 6 || len(res.Rows) != 0 {
		t.Errorf("count: %+v", res)
	}
	_, whole := run(Spec{Conditions: []string{"cpus=1"}})
	var rows []map[string]any
	if err := json.Unmarshal([]byte(whole), &rows); err != nil {
		t.Fatalf("%v in %s", err, whole)
	}
	if rows[0]["name"] != "DB" || rows[0]["status"] == nil {
		t.Errorf("a whole row is %s", whole)
	}
}

// Every kind can be queried by every field that is offered, and by its status.
func TestEveryFieldOfEveryKind(t *testing.T) {
	r := world(t, 3)
	for _, kind := range resource.Kinds() {
		for _, f := range Fields(kind) {
			q, err := Parse(kind, Spec{Fields: []string{f}, Conditions: []string{f + " not-null"}})
			if err != nil {
				t.Errorf("%s: %v", kind, err)
				continue
			}
			if _, err := json.Marshal(q.Run(r)); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		for _, rel := range Relations(kind) {
			if _, err := Parse(kind, Spec{Conditions: []string{rel + ".name is-null"}}); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
	if got := Relations(resource.KindVM); !slices.Contains(got, "nic") || !slices.Contains(got, "host") || !slices.Contains(got, "volume") {
		t.Errorf("relations of a VM: %v", got)
	}
	if got := Fields(resource.KindHost); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "status.") }) {
		t.Errorf("fields of a host: %v", got)
	}
	if got := find(t, r, resource.KindHost, "status.state=Disconnected"); len(got) != 2 {
		t.Errorf("hosts that are away: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"name=web", "nic.ip=10.0.0.5", "cpus>=2", "tags in a,b", "tags not-in a\\,b", "hostname is-null", "act.seq not-null", "name!~=x*", "status.phase=Ready", "created>2026-01-01"} {
		for _, k := range []string{"vm", "nic", "host"} {
			f.Add(k, s)
		}
	}
	r := world(f, 3)
	f.Fuzz(func(t *testing.T, kind, condition string) {
		q, err := Parse(resource.Kind(kind), Spec{Conditions: []string{condition}, Sort: []string{"name"}})
		if err != nil {
			var e *resource.Error
			if !errors.As(err, &e) || e.Field == "" {
				t.Fatalf("%q is refused without a field: %v", condition, err)
			}
			return
		}
		res := q.Run(r)
		n := 0
		for x := range r.All(resource.Kind(kind)) {
			if q.Matches(r, x) {
				n++
			}
		}
		if n != res.Total {
			t.Fatalf("%s %q finds %d, reading everything finds %d", kind, condition, res.Total, n)
		}
	})
}

func FuzzPattern(f *testing.F) {
	f.Add("a*b?c", "aXXbYc")
	f.Add("***", "")
	f.Fuzz(func(t *testing.T, p, s string) {
		newPattern(p).matches(s) // ends, without a panic
		if !strings.ContainsAny(p, "*?%") && strings.Contains(strings.ToLower(s), strings.ToLower(p)) && !newPattern(p).matches(s) {
			t.Errorf("%q does not match %q", p, s)
		}
	})
}

func BenchmarkQuery(b *testing.B) {
	r := world(b, 10_000)
	for name, spec := range map[string]Spec{
		"all with status as JSON": {},
		"page of 100":             {Sort: []string{"-created"}, Limit: 100},
		"field":                   {Conditions: []string{"cpus>=7"}, Limit: 100},
		"status":                  {Conditions: []string{"status.state=Running"}, Limit: 100},
		"relation":                {Conditions: []string{"nic.ip=10.0.9.9"}},
		"host name":               {Conditions: []string{"host.name=host-1"}, Limit: 100},
		"id":                      {Conditions: []string{"id=vm05000"}},
		"name":                    {Conditions: []string{"name=web-5000"}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				q, err := Parse(resource.KindVM, spec)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := json.Marshal(q.Run(r)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
