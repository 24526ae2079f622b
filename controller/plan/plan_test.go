package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/plan"
	"shoal/controller/plan/plantest"
	"shoal/controller/resource"
	"shoal/desired"
)

var update = flag.Bool("update", false, "write golden files")

// text is a document for people.
func text(t *testing.T, items []desired.Item) string {
	t.Helper()
	var b strings.Builder
	for _, it := range items {
		fmt.Fprintf(&b, "%s (cause %s)\n", it.Ref(), it.Cause)
		for _, n := range it.Needs {
			fmt.Fprintf(&b, "  needs %s\n", n)
		}
		var spec bytes.Buffer
		if err := json.Indent(&spec, it.Spec, "  ", "  "); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  %s\n\n", spec.String())
	}
	return b.String()
}

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
		t.Fatalf("%v (run with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, diff)
	}
}

func mustVM(t *testing.T, e *plantest.Example, spec plan.VMSpec) *resource.VM {
	t.Helper()
	vm, err := e.CreateVM(spec)
	if err != nil {
		t.Fatalf("create VM %s: %v", spec.Name, err)
	}
	return vm
}

func settle(t *testing.T, e *plantest.Example) {
	t.Helper()
	if err := e.Settle(); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, e *plantest.Example, op string, fn func(tx resource.Tx) error) {
	t.Helper()
	if err := e.Do(op, fn); err != nil {
		t.Fatalf("%s: %v", op, err)
	}
}

func vmOf(t *testing.T, e *plantest.Example, id string) *resource.VM {
	t.Helper()
	vm, err := resource.Get[*resource.VM](e.View(), id)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func state(t *testing.T, e *plantest.Example, id string) resource.VMState {
	t.Helper()
	return resource.Derive(e.View(), vmOf(t, e, id)).(resource.VMStatus).State
}

func wantState(t *testing.T, e *plantest.Example, id string, want resource.VMState) {
	t.Helper()
	if got := state(t, e, id); got != want {
		t.Errorf("state of the VM is %s, want %s", got, want)
	}
}

func wantError(t *testing.T, err error, code resource.ErrorCode, contains ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s %q", code, contains)
	}
	if !resource.HasCode(err, code) {
		t.Errorf("error %v, want code %s", err, code)
	}
	for _, c := range contains {
		if !strings.Contains(err.Error(), c) {
			t.Errorf("error %q does not say %q", err, c)
		}
	}
}

func TestRenderGolden(t *testing.T) {
	e := plantest.NewExample(1, 3)
	web := e.VMSpec("web1")
	web.HostID = e.IDs["h1"]
	web.DataVolumes = []plan.VolumeSpec{{Name: "logs", Bytes: 1 << 30}}
	mustVM(t, e, web)
	db := e.VMSpec("db1")
	db.HostID, db.Hostname = e.IDs["h2"], "database"
	db.NICs = []plan.NICSpec{
		{L3ID: e.IDs["inner"], SecGroupIDs: []string{e.IDs["db"], e.IDs["web"]}, AntiSpoof: true, MAC: "52:54:00:00:00:01"},
		{L3ID: e.IDs["outer"], IP: netip.MustParseAddr("172.16.0.250")},
	}
	mustVM(t, e, db)
	off := e.VMSpec("off1")
	off.HostID, off.Stopped = e.IDs["h2"], true
	mustVM(t, e, off)
	for _, h := range []string{"h1", "h2", "h3"} {
		items, _, err := plan.Render(e.View(), e.IDs[h])
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			checkItem(t, it)
		}
		golden(t, h+".txt", text(t, items))
	}
}

// checkItem holds an item to what an agent accepts.
func checkItem(t interface {
	Helper()
	Errorf(string, ...any)
}, it desired.Item,
) {
	t.Helper()
	var err error
	switch it.Kind {
	case desired.KindNetDev:
		_, err = desired.DecodeSpec[desired.NetDev](it)
	case desired.KindPool:
		_, err = desired.DecodeSpec[desired.Pool](it)
	case desired.KindImage:
		_, err = desired.DecodeSpec[desired.Image](it)
	case desired.KindDHCP:
		_, err = desired.DecodeSpec[desired.DHCP](it)
	case desired.KindAddrSet:
		_, err = desired.DecodeSpec[desired.AddrSet](it)
	case desired.KindSecGroup:
		_, err = desired.DecodeSpec[desired.SecGroup](it)
	case desired.KindVolume:
		_, err = desired.DecodeSpec[desired.Volume](it)
	case desired.KindDomain:
		_, err = desired.DecodeSpec[desired.Domain](it)
	case desired.KindOrigin:
		_, err = desired.DecodeSpec[desired.Origin](it)
	default:
		err = fmt.Errorf("kind %s", it.Kind)
	}
	if err != nil {
		t.Errorf("an agent would refuse %s: %v", it.Ref(), err)
	}
}

func TestCreateVMIsWholeOrRefusedWithReasons(t *testing.T) {
	e := plantest.NewExample(1, 3)
	before := e.View()
	spec := e.VMSpec("big")
	spec.MemoryMiB = 1 << 20
	_, err := e.CreateVM(spec)
	wantError(t, err, resource.CodeCapacity, "host h1: 1048576 MiB of memory are wanted, 15360 MiB of 16384 MiB are free", "host h2:", "host h3:")
	spec = e.VMSpec("fat")
	spec.RootBytes = 2 << 40
	_, err = e.CreateVM(spec)
	wantError(t, err, resource.CodeCapacity, "no room for the root volume: storage local has", "storage nfs has")
	if e.View() != before {
		t.Error("a refused create left something behind")
	}

	e.SetConnected(e.IDs["h1"], false)
	do(t, e, "host.update", func(tx resource.Tx) error {
		h := resource.Copy(tx.Get(resource.KindHost, e.IDs["h2"]).(*resource.Host))
		h.State = resource.Disabled
		_, err := plan.Update(tx, h)
		return err
	})
	spec = e.VMSpec("x")
	spec.ClusterID = e.IDs["c1"]
	_, err = e.CreateVM(spec)
	wantError(t, err, resource.CodeCapacity, "host h1: it is not connected", "host h2: it is disabled", "host h3: it is in another cluster, c2")

	for name, c := range map[string]struct {
		change func(*plan.VMSpec)
		field  string
	}{
		"no name":      {func(s *plan.VMSpec) { s.Name = "" }, "name"},
		"no image":     {func(s *plan.VMSpec) { s.ImageID = "nope" }, "image_id"},
		"no offering":  {func(s *plan.VMSpec) { s.OfferingID = "" }, "cpus"},
		"no network":   {func(s *plan.VMSpec) { s.NICs[0].L3ID = "nope" }, "nics[0].l3_id"},
		"foreign ip":   {func(s *plan.VMSpec) { s.NICs[0].IP = netip.MustParseAddr("10.0.0.1") }, "nics[0].ip"},
		"gateway":      {func(s *plan.VMSpec) { s.NICs[0].IP = netip.MustParseAddr("192.168.0.1") }, "nics[0].ip"},
		"dhcp server":  {func(s *plan.VMSpec) { s.NICs[0].IP = netip.MustParseAddr("192.168.0.10") }, "nics[0].ip"},
		"broadcast":    {func(s *plan.VMSpec) { s.NICs[0].IP = netip.MustParseAddr("192.168.0.255") }, "nics[0].ip"},
		"bad mac":      {func(s *plan.VMSpec) { s.NICs[0].MAC = "52-54-00-00-00-01" }, "nics[0].mac"},
		"no group":     {func(s *plan.VMSpec) { s.NICs[0].SecGroupIDs = []string{"nope"} }, "nics[0].secgroup_ids"},
		"small root":   {func(s *plan.VMSpec) { s.RootBytes = 1 << 30 }, "root_bytes"},
		"odd data":     {func(s *plan.VMSpec) { s.DataVolumes = []plan.VolumeSpec{{Bytes: 1<<30 + 1}} }, "data_volumes[0].bytes"},
		"data size":    {func(s *plan.VMSpec) { s.DataVolumes = []plan.VolumeSpec{{}} }, "data_volumes[0].bytes"},
		"hostname":     {func(s *plan.VMSpec) { s.Hostname = "a_b" }, "hostname"},
		"machine":      {func(s *plan.VMSpec) { s.Machine = "vax" }, "machine"},
		"strategy":     {func(s *plan.VMSpec) { s.Strategy = "luck" }, "strategy"},
		"long name":    {func(s *plan.VMSpec) { s.Name = strings.Repeat("x", 200) }, "name"},
		"host/cluster": {func(s *plan.VMSpec) { s.HostID, s.ClusterID = e.IDs["h3"], e.IDs["c1"] }, "host_id"},
		"two defaults": {func(s *plan.VMSpec) {
			s.NICs = append(s.NICs, s.NICs[0])
			s.NICs[0].Default, s.NICs[1].Default = true, true
		}, "nics"},
		"unknown model": {func(s *plan.VMSpec) { s.NICs[0].Model = "ne2000" }, "model"},
	} {
		t.Run(name, func(t *testing.T) {
			before := e.View()
			spec := e.VMSpec("v")
			c.change(&spec)
			_, err := e.CreateVM(spec)
			var re *resource.Error
			if !errors.As(err, &re) {
				t.Fatalf("error %v, want a *resource.Error", err)
			}
			if re.Field != c.field && re.Field != "nics[0]."+c.field {
				t.Errorf("field %q (%v), want %q", re.Field, err, c.field)
			}
			if e.View() != before {
				t.Error("a refused create left something behind")
			}
		})
	}
}

func TestNeverPlacedOnMissingData(t *testing.T) {
	e := plantest.NewExample(1, 1)
	h := e.IDs["h1"]
	inv := plantest.Machine(1)
	inv.Virt, inv.VirtNote = "", "libvirtd does not answer"
	e.Connect(h, inv)
	_, err := e.CreateVM(e.VMSpec("a"))
	wantError(t, err, resource.CodeCapacity, "how it can run VMs: libvirtd does not answer")
	e.Connect(h, plantest.Machine(1))
	e.Report(h, resource.PoolRef(e.IDs["local"]), desired.Status{Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeReadOnly, Message: "it is read-only"}}, nil)
	e.Report(h, resource.PoolRef(e.IDs["nfs"]), desired.Status{Phase: desired.PhaseReady}, nil)
	_, err = e.CreateVM(e.VMSpec("a"))
	wantError(t, err, resource.CodeCapacity, "storage local is not ready there: it is read-only", "storage nfs is not known to work there yet")
	e.Report(h, resource.PoolRef(e.IDs["nfs"]), desired.Status{Phase: desired.PhaseReady}, desired.PoolFacts{TotalBytes: 100 << 30, FreeBytes: 9 << 30})
	_, err = e.CreateVM(e.VMSpec("a"))
	wantError(t, err, resource.CodeCapacity, "storage nfs is filled to 91 % of 100 GiB, the limit is 90 %")
	e.Report(h, resource.PoolRef(e.IDs["nfs"]), desired.Status{Phase: desired.PhaseReady}, desired.PoolFacts{TotalBytes: 100 << 30, FreeBytes: 50 << 30})
	inv = plantest.Machine(1)
	inv.Addresses = map[string][]string{"eth0": {"10.1.1.1/24"}}
	inv.Devices = []string{"eth7"}
	e.Connect(h, inv)
	spec := e.VMSpec("a")
	spec.NICs[0].L3ID = e.IDs["outer"]
	_, err = e.CreateVM(spec)
	wantError(t, err, resource.CodeCapacity, "no network device eth1")
}

func TestStorageChoice(t *testing.T) {
	e := plantest.NewExample(1, 1)
	spec := e.VMSpec("a")
	spec.DataVolumes = []plan.VolumeSpec{{Bytes: 1 << 30}, {Bytes: 1 << 30, StorageID: e.IDs["local"]}}
	vm := mustVM(t, e, spec)
	got := map[string]string{}
	for v := range resource.Referrers[*resource.Volume](e.View(), resource.KindVM, vm.ID) {
		s, _ := resource.Find[*resource.Storage](e.View(), v.StorageID)
		got[v.Target] = s.Name
	}
	if diff := cmp.Diff(map[string]string{"vda": "local", "vdb": "nfs", "vdc": "local"}, got); diff != "" {
		t.Errorf("storages (-want +got):\n%s", diff)
	}
}

func TestStrategies(t *testing.T) {
	e := plantest.NewExample(1, 6)
	seen := map[string]int{}
	for i := range 12 {
		seen[mustVM(t, e, e.VMSpec(fmt.Sprintf("v%d", i))).HostID]++
	}
	for h, n := range seen {
		if n != 2 {
			t.Errorf("host %s has %d VMs, want 2", h, n)
		}
	}
	big := e.VMSpec("big")
	big.MemoryMiB, big.HostID = 10000, e.IDs["h1"]
	mustVM(t, e, big)
	for i := range 5 {
		spec := e.VMSpec(fmt.Sprintf("m%d", i))
		spec.Strategy = resource.MostFree
		if vm := mustVM(t, e, spec); vm.HostID == e.IDs["h1"] {
			t.Error("most-free chose the fullest host")
		}
	}
}

func TestLifeCycle(t *testing.T) {
	e := plantest.NewExample(1, 2)
	spec := e.VMSpec("a")
	spec.DataVolumes = []plan.VolumeSpec{{Name: "d", Bytes: 1 << 30}}
	id := mustVM(t, e, spec).ID
	wantState(t, e, id, resource.VMStarting)
	settle(t, e)
	wantState(t, e, id, resource.VMRunning)

	step := func(op string, fn func(resource.Tx) error, during, then resource.VMState) {
		t.Helper()
		do(t, e, op, fn)
		wantState(t, e, id, during)
		settle(t, e)
		wantState(t, e, id, then)
	}
	vmStep := func(fn func(resource.Tx, string) (*resource.VM, error)) func(resource.Tx) error {
		return func(tx resource.Tx) error { _, err := fn(tx, id); return err }
	}
	step("vm.reboot", vmStep(plan.RebootVM), resource.VMRebooting, resource.VMRunning)
	step("vm.reset", vmStep(plan.ResetVM), resource.VMRebooting, resource.VMRunning)
	if got := vmOf(t, e, id).ActSeq; got != 2 {
		t.Errorf("act_seq is %d, want 2", got)
	}
	step("vm.pause", vmStep(plan.PauseVM), resource.VMPausing, resource.VMPaused)
	wantError(t, e.Do("vm.reboot", vmStep(plan.RebootVM)), resource.CodeConflict, "is paused")
	wantError(t, e.Do("vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, id, ""); return err }), resource.CodeConflict, "is paused")
	step("vm.resume", vmStep(plan.ResumeVM), resource.VMResuming, resource.VMRunning)
	step("vm.stop", func(tx resource.Tx) error { _, err := plan.StopVM(tx, id, plan.StopOptions{Seconds: 5}); return err }, resource.VMStopping, resource.VMStopped)
	wantError(t, e.Do("vm.reset", vmStep(plan.ResetVM)), resource.CodeConflict, "is off")
	step("vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, id, ""); return err }, resource.VMStarting, resource.VMRunning)

	e.SetConnected(vmOf(t, e, id).HostID, false)
	wantState(t, e, id, resource.VMUnknown)
	e.SetConnected(vmOf(t, e, id).HostID, true)

	step("vm.destroy", vmStep(plan.DestroyVM), resource.VMStopping, resource.VMDestroyed)
	wantError(t, e.Do("vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, id, ""); return err }), resource.CodeConflict, "recycle bin")
	for v := range resource.All[*resource.Volume](e.View()) {
		if attached := v.VMID != ""; attached != (v.Type == resource.VolumeRoot) || v.LeavingVMID != "" {
			t.Errorf("%s volume after destroy: vm %q leaving %q", v.Type, v.VMID, v.LeavingVMID)
		}
	}
	step("vm.recover", vmStep(plan.RecoverVM), resource.VMStopped, resource.VMStopped)
	wantError(t, e.Do("vm.expunge", vmStep(plan.ExpungeVM)), resource.CodeConflict, "not in the recycle bin")
	do(t, e, "vm.destroy", vmStep(plan.DestroyVM))
	do(t, e, "vm.expunge", vmStep(plan.ExpungeVM))
	wantState(t, e, id, resource.VMExpunging)
	settle(t, e)
	if e.View().Get(resource.KindVM, id) != nil {
		t.Error("the VM's record is still there")
	}
	for n := range resource.All[*resource.NIC](e.View()) {
		t.Errorf("NIC %s is left", n.ID)
	}
	left := 0
	for v := range resource.All[*resource.Volume](e.View()) {
		left++
		if v.Type != resource.VolumeData {
			t.Errorf("volume %s is left", v.Name)
		}
	}
	if left != 1 {
		t.Errorf("%d volumes are left, want the data volume", left)
	}
}

func TestExpungeTakesOneConfirmedStepAtATime(t *testing.T) {
	e := plantest.NewExample(1, 1)
	vm := mustVM(t, e, e.VMSpec("a"))
	settle(t, e)
	do(t, e, "vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, vm.ID); return err })
	do(t, e, "vm.expunge", func(tx resource.Tx) error { _, err := plan.ExpungeVM(tx, vm.ID); return err })
	has := func(kind desired.Kind) bool {
		items, _, err := plan.Render(e.View(), vm.HostID)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			if it.Kind == kind {
				return true
			}
		}
		return false
	}
	tick := func(want bool) {
		t.Helper()
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
		got, err := e.Tick()
		if err != nil || got != want {
			t.Fatalf("tick: %v, %v, want %v", got, err, want)
		}
	}
	tick(false) // the host has not said that it is off
	if !has(desired.KindDomain) {
		t.Fatal("the domain is taken off before it is known to be off")
	}
	e.Work()
	tick(true)
	if has(desired.KindDomain) || !has(desired.KindSecGroup) || !has(desired.KindVolume) {
		t.Fatal("want the domain off the document, filter and volume still on it")
	}
	tick(false) // the host has not confirmed that the domain is gone
	e.Work()
	tick(true)
	if e.View().Get(resource.KindVM, vm.ID) != nil {
		t.Fatal("the VM's record is still there")
	}
	tick(true) // the tasks of the VM end with it
	tick(false)
	if !has(desired.KindVolume) {
		t.Fatal("want a tombstone on the document")
	}
	e.Work()
	tick(true)
	if has(desired.KindVolume) {
		t.Fatal("the tombstone is left")
	}
	settle(t, e)
}

func TestRecycleBinEnds(t *testing.T) {
	e := plantest.NewExample(1, 1)
	spec := e.VMSpec("a")
	spec.DataVolumes = []plan.VolumeSpec{{Name: "d", Bytes: 1 << 30}}
	vm := mustVM(t, e, spec)
	settle(t, e)
	do(t, e, "vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, vm.ID); return err })
	settle(t, e)
	var data *resource.Volume
	for v := range resource.All[*resource.Volume](e.View()) {
		if v.Type == resource.VolumeData {
			data = v
		}
	}
	do(t, e, "volume.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVolume(tx, data.ID); return err })
	e.Now = e.Now.Add(plan.VMKept - time.Second)
	settle(t, e)
	wantState(t, e, vm.ID, resource.VMDestroyed)
	e.Now = e.Now.Add(time.Second)
	settle(t, e)
	if e.View().Get(resource.KindVM, vm.ID) != nil {
		t.Error("the VM outlived the recycle bin")
	}
	if e.View().Get(resource.KindVolume, data.ID) == nil {
		t.Fatal("the data volume went with the VM's delay")
	}
	e.Now = e.Now.Add(plan.VolumeKept)
	settle(t, e)
	if e.View().Get(resource.KindVolume, data.ID) != nil {
		t.Error("the volume outlived the recycle bin")
	}
	for task := range resource.All[*resource.Task](e.View()) {
		t.Errorf("task %s of %s is left", task.Op, task.Created)
	}
}

func TestVMMovesOnlyWhenOff(t *testing.T) {
	e := plantest.NewExample(1, 2)
	spec := e.VMSpec("a")
	spec.RootStorageID, spec.HostID = e.IDs["nfs"], e.IDs["h1"]
	vm := mustVM(t, e, spec)
	settle(t, e)
	stop := func(tx resource.Tx) error { _, err := plan.StopVM(tx, vm.ID, plan.StopOptions{}); return err }
	start := func(host string) func(resource.Tx) error {
		return func(tx resource.Tx) error { _, err := plan.StartVM(tx, vm.ID, host); return err }
	}
	do(t, e, "vm.stop", stop)
	wantError(t, e.Do("vm.start", start(e.IDs["h2"])), resource.CodeCapacity, "host h2: the VM may still run on host h1, which has not confirmed that it is off")
	e.SetConnected(e.IDs["h1"], false)
	if err := e.Publish(); err != nil {
		t.Fatal(err)
	}
	wantError(t, e.Do("vm.start", start("")), resource.CodeCapacity, "host h1: it is not connected", "host h2: the VM may still run")
	e.SetConnected(e.IDs["h1"], true)
	e.Work()
	e.SetConnected(e.IDs["h1"], false)
	do(t, e, "vm.start", start(""))
	if got := vmOf(t, e, vm.ID).HostID; got != e.IDs["h2"] {
		t.Errorf("it is on %s, want h2", got)
	}
	checkInvariants(t, e)

	local := e.VMSpec("b")
	local.HostID = e.IDs["h2"]
	vm = mustVM(t, e, local)
	settle(t, e)
	do(t, e, "vm.stop", stop)
	settle(t, e)
	e.SetConnected(e.IDs["h1"], true)
	wantError(t, e.Do("vm.start", start(e.IDs["h1"])), resource.CodeCapacity, "host h1: volume b-root lies on host h2")
}

func TestVolumeIsGivenAwayOnlyWhenLetGo(t *testing.T) {
	e := plantest.NewExample(1, 2)
	a, b := mustVM(t, e, e.VMSpec("a")), mustVM(t, e, e.VMSpec("b"))
	var vol *resource.Volume
	do(t, e, "volume.create", func(tx resource.Tx) (err error) {
		vol, err = plan.CreateVolume(tx, plan.VolumeSpec{Name: "d", Bytes: 1 << 30})
		return err
	})
	status := func() resource.VolumeState {
		v, _ := resource.Find[*resource.Volume](e.View(), vol.ID)
		return resource.Derive(e.View(), v).(resource.VolumeStatus).State
	}
	if got := status(); got != resource.VolumeNotInstantiated {
		t.Errorf("state %s", got)
	}
	attach := func(vm string) func(resource.Tx) error {
		return func(tx resource.Tx) error { _, err := plan.AttachVolume(tx, vol.ID, vm); return err }
	}
	do(t, e, "volume.attach", attach(a.ID))
	settle(t, e)
	if got := status(); got != resource.VolumeReady {
		t.Errorf("state %s", got)
	}
	wantError(t, e.Do("volume.attach", attach(b.ID)), resource.CodeConflict, "attached to VM a")
	wantError(t, e.Do("volume.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVolume(tx, vol.ID); return err }), resource.CodeInUse)
	do(t, e, "volume.detach", func(tx resource.Tx) error { _, err := plan.DetachVolume(tx, vol.ID); return err })
	if got := status(); got != resource.VolumeDetaching {
		t.Errorf("state %s", got)
	}
	wantError(t, e.Do("volume.attach", attach(b.ID)), resource.CodeConflict, "still being detached from VM a")
	settle(t, e)
	do(t, e, "volume.attach", attach(b.ID))
	settle(t, e)
	do(t, e, "volume.resize", func(tx resource.Tx) error { _, err := plan.ResizeVolume(tx, vol.ID, 2<<30); return err })
	wantError(t, e.Do("volume.resize", func(tx resource.Tx) error { _, err := plan.ResizeVolume(tx, vol.ID, 1<<30); return err }), resource.CodeInvalid, "only ever grows")
	wantError(t, e.Do("volume.resize", func(tx resource.Tx) error { _, err := plan.ResizeVolume(tx, vol.ID, 5<<40); return err }), resource.CodeCapacity, "storage nfs")
}

// A volume that a host has reported is told to hosts as one that exists, for the rest of its life, and nobody waits for that.
func TestVolumeThatWasMadeExists(t *testing.T) {
	exists := func(e *plantest.Example, host, id string) bool {
		t.Helper()
		for _, it := range e.Items(host) {
			if it.Ref() == resource.VolumeRef(id) {
				v, err := desired.DecodeSpec[desired.Volume](it)
				if err != nil {
					t.Fatal(err)
				}
				return v.Exists
			}
		}
		t.Fatalf("volume %s is not in the document of %s", id, host)
		return false
	}
	publish := func(e *plantest.Example) {
		t.Helper()
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
	}
	rootOf := func(e *plantest.Example, vm string) *resource.Volume {
		return slices.Collect(resource.Referrers[*resource.Volume](e.View(), resource.KindVM, vm))[0]
	}

	e := plantest.NewExample(1, 2)
	spec := e.VMSpec("a")
	spec.RootStorageID, spec.HostID = e.IDs["nfs"], e.IDs["h1"]
	vm := mustVM(t, e, spec)
	root := rootOf(e, vm.ID)
	publish(e)
	e.Report(vm.HostID, resource.VolumeRef(root.ID), desired.Status{Phase: desired.PhaseRetrying}, desired.VolumeFacts{})
	if changed, err := e.Tick(); err != nil || changed || exists(e, vm.HostID, root.ID) {
		t.Fatalf("a volume that is not made exists: %v %v", changed, err)
	}
	e.Work()
	if changed, err := e.Tick(); err != nil || !changed {
		t.Fatalf("tick: %v %v", changed, err)
	}
	before := e.Items(vm.HostID)
	publish(e)
	if !exists(e, vm.HostID, root.ID) {
		t.Fatal("a volume that was made does not exist")
	}
	for i, it := range e.Items(vm.HostID) {
		if changed := it.Rev != before[i].Rev; changed != (it.Ref() == resource.VolumeRef(root.ID)) {
			t.Errorf("%s changed: %v", it.Ref(), changed)
		}
	}
	// The host has not seen the item as it is now: the create is done all the same.
	for task := range resource.All[*resource.Task](e.View()) {
		if c := resource.Converge(e.View(), task); task.ResourceID == vm.ID && !c.Done {
			t.Errorf("%s waits: %+v", task.Op, c.Waiting)
		}
	}
	settle(t, e)

	// On another host it is still known, also when it moves before anybody took note of the report.
	b := mustVM(t, e, func() plan.VMSpec { s := spec; s.Name = "b"; return s }())
	broot := rootOf(e, b.ID)
	publish(e)
	do(t, e, "vm.stop", func(tx resource.Tx) error { _, err := plan.StopVM(tx, b.ID, plan.StopOptions{}); return err })
	publish(e)
	e.Work()
	do(t, e, "vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, b.ID, e.IDs["h2"]); return err })
	publish(e)
	if !exists(e, e.IDs["h2"], broot.ID) {
		t.Error("a volume is forgotten when it moves")
	}
	// The same for a volume that is taken from its VM.
	var data *resource.Volume
	do(t, e, "volume.create", func(tx resource.Tx) (err error) {
		if data, err = plan.CreateVolume(tx, plan.VolumeSpec{Name: "d", Bytes: 1 << 30, StorageID: e.IDs["nfs"]}); err == nil {
			_, err = plan.AttachVolume(tx, data.ID, vm.ID)
		}
		return err
	})
	publish(e)
	e.Work()
	do(t, e, "volume.detach", func(tx resource.Tx) error { _, err := plan.DetachVolume(tx, data.ID); return err })
	settle(t, e)
	do(t, e, "volume.attach", func(tx resource.Tx) error { _, err := plan.AttachVolume(tx, data.ID, b.ID); return err })
	publish(e)
	if !exists(e, e.IDs["h2"], data.ID) {
		t.Error("a volume is forgotten when it is detached")
	}
}

func TestGuestShutDown(t *testing.T) {
	e := plantest.NewExample(1, 1)
	vm := mustVM(t, e, e.VMSpec("a"))
	settle(t, e)
	e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: desired.PhaseReady}, desired.DomainFacts{State: desired.StateShutoff, ByGuest: true})
	wantState(t, e, vm.ID, resource.VMStopped)
	if changed, err := e.Tick(); err != nil || !changed {
		t.Fatalf("tick: %v %v", changed, err)
	}
	if got := vmOf(t, e, vm.ID).Power; got != desired.PowerOff {
		t.Errorf("power %s", got)
	}
}

// Whatever a host reports of a guest's shutdown, and whenever, a start that was asked for after it stands.
func TestStartAfterGuestShutDown(t *testing.T) {
	byGuest := desired.DomainFacts{State: desired.StateShutoff, ByGuest: true}
	setUp := func(t *testing.T) (e *plantest.Example, vm *resource.VM, report func(phase desired.Phase, rev uint64), start func()) {
		e = plantest.NewExample(1, 1)
		vm = mustVM(t, e, e.VMSpec("a"))
		settle(t, e)
		return e, vm, func(phase desired.Phase, rev uint64) {
				e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{Phase: phase, Rev: rev}, byGuest)
			}, func() {
				t.Helper()
				do(t, e, "vm.start", func(tx resource.Tx) error { _, err := plan.StartVM(tx, vm.ID, ""); return err })
			}
	}
	revOf := func(e *plantest.Example, vm *resource.VM) uint64 {
		p, _ := e.View().Observed().Published(vm.HostID, resource.DomainRef(vm.ID))
		return p.Rev
	}
	stands := func(t *testing.T, e *plantest.Example, vm *resource.VM, after string) {
		t.Helper()
		if _, err := e.Tick(); err != nil {
			t.Fatal(err)
		}
		if got := vmOf(t, e, vm.ID).Power; got != desired.PowerOn {
			t.Fatalf("%s: power %s, the start is undone", after, got)
		}
	}
	wish := func(e *plantest.Example, vm *resource.VM) uint64 {
		for _, it := range e.Items(vm.HostID) {
			if it.Ref() == resource.DomainRef(vm.ID) {
				d, err := desired.DecodeSpec[desired.Domain](it)
				if err != nil {
					t.Fatal(err)
				}
				return d.Wish
			}
		}
		return 0
	}

	t.Run("report before start", func(t *testing.T) {
		e, vm, report, start := setUp(t)
		before, old := wish(e, vm), revOf(e, vm)
		report(desired.PhaseReady, 0)
		if _, err := e.Tick(); err != nil {
			t.Fatal(err)
		}
		if got := vmOf(t, e, vm.ID).Power; got != desired.PowerOff {
			t.Fatalf("power %s", got)
		}
		// The host is away, and gets the document after the start only.
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
		start()
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
		if got := wish(e, vm); got <= before {
			t.Errorf("wish is %d after %d", got, before)
		}
		report(desired.PhaseReady, old)
		stands(t, e, vm, "a report of an older document")
		report(desired.PhaseWorking, 0)
		stands(t, e, vm, "a report of a host that is starting it")
		wantState(t, e, vm.ID, resource.VMStarting)
	})
	t.Run("start before report", func(t *testing.T) {
		e, vm, report, start := setUp(t)
		old := revOf(e, vm)
		start()
		report(desired.PhaseReady, old)
		stands(t, e, vm, "a report before the start is published")
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
		report(desired.PhaseReady, old)
		stands(t, e, vm, "a report that was on its way")
		wantState(t, e, vm.ID, resource.VMStarting)
		e.Work()
		wantState(t, e, vm.ID, resource.VMRunning)
		// The guest does it again.
		report(desired.PhaseReady, 0)
		if _, err := e.Tick(); err != nil {
			t.Fatal(err)
		}
		if got := vmOf(t, e, vm.ID).Power; got != desired.PowerOff {
			t.Errorf("power %s", got)
		}
	})
	t.Run("who asks", func(t *testing.T) {
		e, vm, _, _ := setUp(t)
		last := vmOf(t, e, vm.ID).Wish
		for _, step := range []struct {
			op   string
			asks bool
			fn   func(resource.Tx) (*resource.VM, error)
		}{
			{"vm.start", true, func(tx resource.Tx) (*resource.VM, error) { return plan.StartVM(tx, vm.ID, "") }},
			{"vm.reboot", true, func(tx resource.Tx) (*resource.VM, error) { return plan.RebootVM(tx, vm.ID) }},
			{"vm.reset", true, func(tx resource.Tx) (*resource.VM, error) { return plan.ResetVM(tx, vm.ID) }},
			{"vm.pause", false, func(tx resource.Tx) (*resource.VM, error) { return plan.PauseVM(tx, vm.ID) }},
			{"vm.resume", true, func(tx resource.Tx) (*resource.VM, error) { return plan.ResumeVM(tx, vm.ID) }},
			{"vm.stop", false, func(tx resource.Tx) (*resource.VM, error) { return plan.StopVM(tx, vm.ID, plan.StopOptions{}) }},
			{"vm.start", true, func(tx resource.Tx) (*resource.VM, error) { return plan.StartVM(tx, vm.ID, "") }},
			{"vm.destroy", false, func(tx resource.Tx) (*resource.VM, error) { return plan.DestroyVM(tx, vm.ID) }},
			{"vm.recover", false, func(tx resource.Tx) (*resource.VM, error) { return plan.RecoverVM(tx, vm.ID) }},
		} {
			do(t, e, step.op, func(tx resource.Tx) error { _, err := step.fn(tx); return err })
			settle(t, e)
			now := vmOf(t, e, vm.ID).Wish
			if grew := now > last; grew != step.asks || now < last {
				t.Errorf("%s: wish %d after %d", step.op, now, last)
			}
			last = now
		}
	})
}

func TestAddresses(t *testing.T) {
	e := plantest.NewExample(1, 1)
	l3 := e.IDs["inner"]
	add := func(start, end string) error {
		return e.Do("iprange.create", func(tx resource.Tx) error {
			_, err := plan.AddIPRange(tx, &resource.IPRange{
				L3ID: l3, Start: netip.MustParseAddr(start), End: netip.MustParseAddr(end), Bits: 24, Gateway: netip.MustParseAddr("192.168.0.1"),
			})
			return err
		})
	}
	wantError(t, add("192.168.0.200", "192.168.0.210"), resource.CodeConflict, "start: 192.168.0.200-192.168.0.210 overlaps 192.168.0.10-192.168.0.200")
	wantError(t, add("192.168.1.2", "192.168.1.210"), resource.CodeInvalid, "gateway")
	if err := add("192.168.0.201", "192.168.0.210"); err != nil {
		t.Error(err)
	}
	// A second layer 3 network on the same wire.
	var other string
	do(t, e, "l3.create", func(tx resource.Tx) error {
		r, err := plan.Create(tx, &resource.L3{Meta: resource.Meta{Name: "tiny"}, L2ID: e.IDs["vx"]})
		if err == nil {
			other = r.Base().ID
		}
		return err
	})
	l3 = other
	wantError(t, add("192.168.0.5", "192.168.0.12"), resource.CodeConflict, "of network inner")
	if err := add("192.168.0.2", "192.168.0.4"); err != nil {
		t.Fatal(err)
	}
	// One of three is the DHCP server's.
	got := map[string]bool{}
	for i := range 2 {
		spec := e.VMSpec(fmt.Sprintf("t%d", i))
		spec.NICs[0].L3ID = other
		vm := mustVM(t, e, spec)
		for n := range resource.Referrers[*resource.NIC](e.View(), resource.KindVM, vm.ID) {
			got[n.IP.String()] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{"192.168.0.3": true, "192.168.0.4": true}, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	spec := e.VMSpec("t3")
	spec.NICs[0].L3ID = other
	_, err := e.CreateVM(spec)
	wantError(t, err, resource.CodeCapacity, "network tiny has no free address", "3 of 3 addresses are taken")
	spec = e.VMSpec("t4")
	spec.NICs[0].IP = netip.MustParseAddr("192.168.0.3")
	_, err = e.CreateVM(spec)
	wantError(t, err, resource.CodeConflict, "VM t0 has it")
	st := resource.Derive(e.View(), e.View().Get(resource.KindL3, other)).(resource.L3Status)
	if st.Total != 3 || st.Used != 3 || st.Free != 0 {
		t.Errorf("use %+v", st.AddressUse)
	}
}

func TestVNIs(t *testing.T) {
	e := plantest.NewExample(1, 0)
	create := func(vni int) (got int, err error) {
		err = e.Do("l2.create", func(tx resource.Tx) error {
			l, err := plan.CreateL2(tx, &resource.L2{Meta: resource.Meta{Name: "n"}, Type: resource.L2VXLAN, PoolID: e.IDs["pool"], VNI: vni})
			if err == nil {
				got = l.VNI
			}
			return err
		})
		return got, err
	}
	if got, err := create(102); err != nil || got != 102 {
		t.Fatal(got, err)
	}
	for _, want := range []int{101, 103, 104} {
		if got, err := create(0); err != nil || got != want {
			t.Errorf("got VNI %d %v, want %d", got, err, want)
		}
	}
	_, err := create(102)
	wantError(t, err, resource.CodeConflict, "102 is taken")
	_, err = create(500)
	wantError(t, err, resource.CodeInvalid, "not in a range")
	for range 95 {
		if _, err := create(0); err != nil {
			t.Fatal(err)
		}
	}
	_, err = create(0)
	wantError(t, err, resource.CodeCapacity, "all 100 identifiers")
}

func TestDelete(t *testing.T) {
	e := plantest.NewExample(1, 2)
	spec := e.VMSpec("a")
	spec.HostID = e.IDs["h1"]
	spec.DataVolumes = []plan.VolumeSpec{{Name: "data", Bytes: 1 << 30}}
	vm := mustVM(t, e, spec)
	settle(t, e)
	del := func(kind resource.Kind, id string, cascade bool) ([]plan.Deleted, error) {
		var out []plan.Deleted
		err := e.Do(string(kind)+".delete", func(tx resource.Tx) (err error) {
			out, err = plan.Delete(tx, kind, id, plan.DeleteOptions{Cascade: cascade})
			return err
		})
		return out, err
	}
	_, err := del(resource.KindL3, e.IDs["inner"], true)
	wantError(t, err, resource.CodeInUse, "nic nic0")
	_, err = del(resource.KindZone, e.IDs["zone"], true)
	wantError(t, err, resource.CodeInUse, "vm a")
	_, err = del(resource.KindStorage, e.IDs["local"], true)
	wantError(t, err, resource.CodeInUse, "volume a-root")
	_, err = del(resource.KindIPRange, e.IDs["r1"], true)
	wantError(t, err, resource.CodeInUse, "VM a")
	_, err = del(resource.KindSecGroup, e.IDs["web"], false)
	wantError(t, err, resource.CodeInUse, "it is a member: VM a")
	out, err := del(resource.KindSecGroup, e.IDs["web"], true)
	if err != nil {
		t.Fatal(err)
	}
	count := map[plan.DeleteAction]int{}
	for _, d := range out {
		count[d.Action]++
	}
	// The group, its two rules and the rule of the other group that names it; the NIC stays.
	if diff := cmp.Diff(map[plan.DeleteAction]int{plan.ActionDelete: 4, plan.ActionUnlink: 1}, count); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
	_, err = del(resource.KindHost, e.IDs["h1"], true)
	wantError(t, err, resource.CodeConflict, "is connected and enabled")
	e.SetConnected(e.IDs["h1"], false)
	_, err = del(resource.KindHost, e.IDs["h1"], false)
	wantError(t, err, resource.CodeInUse, "vm a")
	out, err = del(resource.KindHost, e.IDs["h1"], true)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]plan.DeleteAction{}
	for _, d := range out {
		got[d.Name] = d.Action
	}
	want := map[string]plan.DeleteAction{"a-root": plan.ActionForget, "nic0": plan.ActionDelete, "a": plan.ActionForget, "h1": plan.ActionDelete, "data": plan.ActionUnlink}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	if e.View().Get(resource.KindVM, vm.ID) != nil {
		t.Error("the VM is left")
	}
	settle(t, e)
	if _, err := del(resource.KindL2, e.IDs["vx"], true); err != nil {
		t.Error(err)
	}
}

func TestSecurityGroupSemantics(t *testing.T) {
	e := plantest.NewExample(1, 1)
	spec := e.VMSpec("a")
	spec.NICs = append(spec.NICs, plan.NICSpec{L3ID: e.IDs["outer"]})
	vm := mustVM(t, e, spec)
	filters := func() map[string]desired.SecGroup {
		t.Helper()
		items, _, err := plan.Render(e.View(), vm.HostID)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]desired.SecGroup{}
		for _, it := range items {
			if it.Kind == desired.KindSecGroup {
				s, err := desired.DecodeSpec[desired.SecGroup](it)
				if err != nil {
					t.Fatal(err)
				}
				out[it.ID] = s
			}
		}
		return out
	}
	got := filters()
	if len(got) != 1 {
		t.Fatalf("%d filters, want one: a NIC without groups has none", len(got))
	}
	for _, f := range got {
		if f.IngressPolicy != desired.Drop || f.EgressPolicy != desired.Accept || len(f.Ingress) != 2 {
			t.Errorf("filter %+v", f)
		}
	}
	do(t, e, "secrule.create", func(tx resource.Tx) error {
		_, err := plan.Create(tx, &resource.SecRule{GroupID: e.IDs["web"], Direction: resource.Egress, Protocol: desired.ProtoUDP, FromPort: 53, ToPort: 53})
		return err
	})
	for _, f := range filters() {
		if f.EgressPolicy != desired.Drop || len(f.Egress) != 1 {
			t.Errorf("with an egress rule: %+v", f)
		}
	}
	do(t, e, "secgroup.update", func(tx resource.Tx) error {
		g := resource.Copy(tx.Get(resource.KindSecGroup, e.IDs["web"]).(*resource.SecGroup))
		g.State = resource.Disabled
		_, err := plan.Update(tx, g)
		return err
	})
	if got := filters(); len(got) != 0 {
		t.Errorf("a disabled group filters: %+v", got)
	}
}

func TestTasksEnd(t *testing.T) {
	e := plantest.NewExample(1, 1)
	for task := range resource.All[*resource.Task](e.View()) {
		if task.State != resource.TaskDone {
			t.Errorf("task %s is %s", task.Op, task.State)
		}
	}
	vm := mustVM(t, e, e.VMSpec("a"))
	task := plan.TaskOf(e.View(), vm.Cause)
	if task == nil {
		t.Fatal("no task")
	}
	if c := plan.Converge(e.View(), task); c.Done || len(c.Waiting) != 1 {
		t.Errorf("before it is published: %+v", c)
	}
	if err := e.Publish(); err != nil {
		t.Fatal(err)
	}
	c := plan.Converge(e.View(), task)
	if c.Done || c.Failed || len(c.Waiting) == 0 || c.Percent > 10 {
		t.Errorf("before the host has done it: %+v", c)
	}
	fault := &desired.Fault{Code: desired.CodeChecksum, Message: "the image is not what it should be"}
	e.Report(vm.HostID, resource.ImageRef(e.IDs["local"], e.IDs["image"]), desired.Status{Phase: desired.PhaseRefused, Fault: fault}, nil)
	c = plan.Converge(e.View(), task)
	if !c.Failed || c.Error == nil || !strings.Contains(c.Error.Message, fault.Message) {
		t.Errorf("with a refused item: %+v", c)
	}
	settle(t, e)
	done, _ := resource.Find[*resource.Task](e.View(), task.ID)
	if done.State != resource.TaskDone || done.Finished.IsZero() {
		t.Errorf("task %+v", done)
	}
}

func TestDocumentDiff(t *testing.T) {
	e := plantest.NewExample(1, 3)
	vm := mustVM(t, e, e.VMSpec("a"))
	settle(t, e)
	diff := func(fn func(resource.Tx) error) []plan.HostDiff {
		t.Helper()
		before, after, err := e.DryRun(e.Request("dry"), fn)
		if err != nil {
			t.Fatal(err)
		}
		d, err := plan.DocumentDiff(before, after)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := diff(func(tx resource.Tx) error { return nil }); len(d) != 0 {
		t.Errorf("nothing changed: %+v", d)
	}
	d := diff(func(tx resource.Tx) error { _, err := plan.StopVM(tx, vm.ID, plan.StopOptions{}); return err })
	if len(d) != 1 || len(d[0].Items) != 1 || d[0].Items[0].Change != plan.ItemChanged || !cmp.Equal(d[0].Stops, []string{"a"}) {
		t.Errorf("stop: %+v", d)
	}
	d = diff(func(tx resource.Tx) error { _, err := plan.ResetVM(tx, vm.ID); return err })
	if len(d) != 1 || !cmp.Equal(d[0].Restarts, []string{"a"}) {
		t.Errorf("reset: %+v", d)
	}
	d = diff(func(tx resource.Tx) error { _, err := plan.CreateVM(tx, e.VMSpec("b")); return err })
	starts := 0
	for _, h := range d {
		starts += len(h.Starts)
	}
	// The new VM's host, and the other's, which now has a peer in the network and a member in the group.
	if len(d) != 2 || starts != 1 {
		t.Errorf("create: %d hosts, %d starts", len(d), starts)
	}
}

func TestHostTombstoneMovesOn(t *testing.T) {
	e := plantest.NewExample(1, 2)
	spec := e.VMSpec("a")
	spec.RootStorageID, spec.HostID = e.IDs["nfs"], e.IDs["h1"]
	vm := mustVM(t, e, spec)
	settle(t, e)
	do(t, e, "vm.destroy", func(tx resource.Tx) error { _, err := plan.DestroyVM(tx, vm.ID); return err })
	do(t, e, "vm.expunge", func(tx resource.Tx) error { _, err := plan.ExpungeVM(tx, vm.ID); return err })
	for range 2 {
		if err := e.Publish(); err != nil {
			t.Fatal(err)
		}
		e.Work()
		if _, err := e.Tick(); err != nil {
			t.Fatal(err)
		}
	}
	var tomb *resource.Volume
	for v := range resource.All[*resource.Volume](e.View()) {
		tomb = v
	}
	if tomb == nil || tomb.TombstoneHostID != e.IDs["h1"] {
		t.Fatalf("tombstone %+v", tomb)
	}
	e.SetConnected(e.IDs["h1"], false)
	settle(t, e)
	if e.View().Get(resource.KindVolume, tomb.ID) != nil {
		t.Error("another host that sees the storage did not take the tombstone over")
	}
}

func TestAttachAndDetach(t *testing.T) {
	e := plantest.NewExample(1, 3)
	vm := e.VMSpec("a")
	vm.ClusterID = e.IDs["c1"]
	mustVM(t, e, vm)
	storage := func(fn func(resource.Tx, string, string) (*resource.Storage, error), cluster string) error {
		return e.Do("storage.attach", func(tx resource.Tx) error { _, err := fn(tx, e.IDs["local"], e.IDs[cluster]); return err })
	}
	if err := storage(plan.AttachStorage, "c1"); err != nil {
		t.Errorf("attach again: %v", err)
	}
	wantError(t, storage(plan.DetachStorage, "c1"), resource.CodeInUse, "volume a-root")
	if err := storage(plan.DetachStorage, "c2"); err != nil {
		t.Error(err)
	}
	wantError(t, storage(plan.DetachStorage, "c2"), resource.CodeConflict, "not attached")
	if err := storage(plan.AttachStorage, "c2"); err != nil {
		t.Error(err)
	}
	pool := func(cluster string) error {
		return e.Do("vxlanpool.detach", func(tx resource.Tx) error {
			_, err := plan.DetachVXLANPool(tx, e.IDs["pool"], e.IDs[cluster])
			return err
		})
	}
	wantError(t, pool("c1"), resource.CodeInUse, "vm a")
	if err := pool("c2"); err != nil {
		t.Error(err)
	}
	h, _ := resource.Find[*resource.Host](e.View(), e.IDs["h3"])
	if len(h.VTEPs) != 0 {
		t.Errorf("h3 keeps tunnel addresses %v", h.VTEPs)
	}
	l2 := func(fn func(resource.Tx, string, string) (*resource.L2, error), name, cluster string) error {
		return e.Do("l2.attach", func(tx resource.Tx) error { _, err := fn(tx, e.IDs[name], e.IDs[cluster]); return err })
	}
	wantError(t, l2(plan.AttachL2, "vx", "c1"), resource.CodeInvalid, "attach its pool")
	if err := l2(plan.DetachL2, "lan", "c1"); err != nil {
		t.Error(err)
	}
	if err := l2(plan.AttachL2, "lan", "c1"); err != nil {
		t.Error(err)
	}
	err := e.Do("l2.create", func(tx resource.Tx) error {
		_, err := plan.CreateL2(tx, &resource.L2{Meta: resource.Meta{Name: "lan2"}, ZoneID: e.IDs["zone"], Type: resource.L2NoVLAN, Device: "eth1", ClusterIDs: []string{e.IDs["c1"]}})
		return err
	})
	wantError(t, err, resource.CodeConflict, "device: network lan of cluster c1 has it already")
	err = e.Do("storage.create", func(tx resource.Tx) error {
		_, err := plan.Create(tx, &resource.Storage{Meta: resource.Meta{Name: "in"}, ZoneID: e.IDs["zone"], Type: resource.StorageLocal, Path: "/srv/local/in", ClusterIDs: []string{e.IDs["c1"]}})
		return err
	})
	wantError(t, err, resource.CodeConflict, "path: ", "storage local")
}

// Of a VM's networks one gives the default route, whatever NICs come and go.
func TestOneDefaultRoute(t *testing.T) {
	e := plantest.NewExample(1, 1)
	spec := e.VMSpec("a")
	spec.NICs = []plan.NICSpec{{L3ID: e.IDs["inner"]}, {L3ID: e.IDs["outer"]}}
	vm := mustVM(t, e, spec)
	want := func(after string, networks ...string) {
		t.Helper()
		settle(t, e)
		var got []string
		for _, it := range e.Items(vm.HostID) {
			if it.Kind != desired.KindDHCP {
				continue
			}
			d, err := desired.DecodeSpec[desired.DHCP](it)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range d.Entries {
				if entry.NoGateway != (entry.Hostname == "") {
					t.Errorf("%s: entry %+v", after, entry)
				}
				if !entry.NoGateway {
					got = append(got, it.ID)
				}
			}
		}
		for i, n := range networks {
			networks[i] = e.IDs[n]
		}
		if d := cmp.Diff(networks, got); d != "" {
			t.Errorf("%s: networks with a default route: %s", after, d)
		}
	}
	want("create", "inner")
	nics := slices.Collect(resource.Referrers[*resource.NIC](e.View(), resource.KindVM, vm.ID))
	slices.SortFunc(nics, func(a, b *resource.NIC) int { return a.Index - b.Index })
	do(t, e, "nic.update", func(tx resource.Tx) error {
		n := resource.Copy(nics[1])
		n.Default = true
		_, err := plan.UpdateNIC(tx, n)
		return err
	})
	want("another default", "outer")
	do(t, e, "nic.detach", func(tx resource.Tx) error { return plan.DetachNIC(tx, nics[1].ID) })
	want("the default detached", "inner")
}

func TestUpdateRefusesWhatCantChange(t *testing.T) {
	e := plantest.NewExample(1, 2)
	vm := mustVM(t, e, e.VMSpec("a"))
	for name, c := range map[string]struct {
		kind   resource.Kind
		id     string
		change func(resource.Resource)
		field  string
	}{
		"cluster zone":  {resource.KindCluster, e.IDs["c1"], func(r resource.Resource) { r.(*resource.Cluster).ZoneID = "other" }, "zone_id"},
		"host cluster":  {resource.KindHost, e.IDs["h1"], func(r resource.Resource) { r.(*resource.Host).ClusterID = e.IDs["c2"] }, "cluster_id"},
		"host name":     {resource.KindHost, e.IDs["h1"], func(r resource.Resource) { r.Base().Name = "h2" }, "name"},
		"storage path":  {resource.KindStorage, e.IDs["local"], func(r resource.Resource) { r.(*resource.Storage).Path = "/srv/x" }, "path"},
		"overprovision": {resource.KindStorage, e.IDs["local"], func(r resource.Resource) { r.(*resource.Storage).Overprovision = 0.5 }, "overprovision"},
		"pool ranges":   {resource.KindVXLANPool, e.IDs["pool"], func(r resource.Resource) { r.(*resource.VXLANPool).Ranges = []resource.VNIRange{{From: 150, To: 160}} }, "ranges"},
		"vni":           {resource.KindL2, e.IDs["vx"], func(r resource.Resource) { r.(*resource.L2).VNI = 150 }, "vni"},
		"range":         {resource.KindIPRange, e.IDs["r1"], func(r resource.Resource) { r.(*resource.IPRange).End = netip.MustParseAddr("192.168.0.100") }, "end"},
		"rule":          {resource.KindSecRule, e.IDs["web-http"], func(r resource.Resource) { r.(*resource.SecRule).FromPort = 79 }, "from_port"},
		"power":         {resource.KindVM, vm.ID, func(r resource.Resource) { r.(*resource.VM).Power = desired.PowerOff }, "power"},
		"host of VM":    {resource.KindVM, vm.ID, func(r resource.Resource) { r.(*resource.VM).HostID = "other" }, "host_id"},
		"memory":        {resource.KindVM, vm.ID, func(r resource.Resource) { r.(*resource.VM).MemoryMiB = 1 << 20 }, "memory_mib"},
		"empty name":    {resource.KindZone, e.IDs["zone"], func(r resource.Resource) { r.Base().Name = "" }, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			before := e.View()
			err := e.Do("update", func(tx resource.Tx) error {
				r := tx.Get(c.kind, c.id).Clone()
				c.change(r)
				_, err := plan.Update(tx, r)
				return err
			})
			var re *resource.Error
			if !errors.As(err, &re) || re.Field != c.field {
				t.Errorf("error %v, want one of field %s", err, c.field)
			}
			if e.View() != before {
				t.Error("a refused change left something behind")
			}
		})
	}
	do(t, e, "vm.update", func(tx resource.Tx) error {
		v := resource.Copy(tx.Get(resource.KindVM, vm.ID).(*resource.VM))
		v.Name, v.MemoryMiB, v.CPUs = "b", 1024, 2
		_, err := plan.Update(tx, v)
		return err
	})
	if got := vmOf(t, e, vm.ID); got.Name != "b" || got.MemoryMiB != 1024 || got.CPUs != 2 {
		t.Errorf("VM %+v", got)
	}
}

// TestStatusGolden shows the status of everything in a site with a host away, a wrong clock, a fault and a VM that is being made.
func TestStatusGolden(t *testing.T) {
	e := plantest.NewExample(1, 3)
	for i, h := range []string{"h1", "h2", "h3"} {
		spec := e.VMSpec(fmt.Sprintf("v%d", i+1))
		spec.HostID = e.IDs[h]
		spec.DataVolumes = []plan.VolumeSpec{{Name: fmt.Sprintf("d%d", i+1), Bytes: 1 << 30}}
		mustVM(t, e, spec)
	}
	settle(t, e)
	e.SetConnected(e.IDs["h2"], false)
	e.SetClock(e.IDs["h1"], desired.Clock{OffsetMS: -900, ErrorMS: 2})
	e.SetClock(e.IDs["h3"], desired.Clock{OffsetMS: 3200, ErrorMS: 4})
	for vm := range resource.All[*resource.VM](e.View()) {
		if vm.HostID == e.IDs["h3"] {
			e.Report(vm.HostID, resource.DomainRef(vm.ID), desired.Status{
				Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeLibvirt, Message: "libvirt does not answer"},
			}, desired.DomainFacts{State: desired.StateShutoff})
		}
	}
	e.Report(e.IDs["h3"], resource.PoolRef(e.IDs["nfs"]), desired.Status{Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeStorageUnreachable, Message: "10.77.0.1 does not answer"}}, nil)
	spec := e.VMSpec("new")
	spec.HostID = e.IDs["h1"]
	mustVM(t, e, spec)
	if err := e.Publish(); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kind := range resource.Kinds() {
		for r := range e.View().All(kind) {
			if task, ok := r.(*resource.Task); ok && task.State != resource.TaskRunning {
				continue
			}
			st := resource.Derive(e.View(), r)
			if st == nil {
				continue
			}
			j, err := json.MarshalIndent(st, "  ", "  ")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %s\n  %s\n\n", kind, r.Base().Name, j)
		}
	}
	golden(t, "status.txt", b.String())
}

func TestFaultOfWhatIsWaitedFor(t *testing.T) {
	e := plantest.NewExample(1, 1)
	vm := mustVM(t, e, e.VMSpec("a"))
	if err := e.Publish(); err != nil {
		t.Fatal(err)
	}
	var root *resource.Volume
	for v := range resource.Referrers[*resource.Volume](e.View(), resource.KindVM, vm.ID) {
		root = v
	}
	waits := func(on desired.Ref) desired.Status {
		return desired.Status{Phase: desired.PhaseWaiting, Fault: &desired.Fault{Code: desired.CodeWaiting, Message: "wait for " + on.String(), Ref: &on}}
	}
	img := resource.ImageRef(root.StorageID, root.ImageID)
	e.Report(vm.HostID, resource.DomainRef(vm.ID), waits(resource.VolumeRef(root.ID)), nil)
	e.Report(vm.HostID, resource.VolumeRef(root.ID), waits(img), nil)
	e.Report(vm.HostID, img, desired.Status{Phase: desired.PhaseRetrying, Fault: &desired.Fault{Code: desired.CodeDownload, Message: "404"}}, nil)
	st := resource.Derive(e.View(), vm).(resource.VMStatus)
	want := &resource.ItemFault{Host: "h1", Item: img.String(), Code: desired.CodeDownload, Message: "404", Remedy: desired.CodeDownload.Remedy()}
	if diff := cmp.Diff(want, st.Fault); diff != "" {
		t.Errorf("fault (-want +got):\n%s", diff)
	}
}

func TestFollowTakesOneDecision(t *testing.T) {
	e := plantest.NewExample(1, 1)
	vm := mustVM(t, e, e.VMSpec("a"))
	settle(t, e)
	do(t, e, "vm.stop", func(tx resource.Tx) error { _, err := plan.StopVM(tx, vm.ID, plan.StopOptions{}); return err })
	if err := e.Publish(); err != nil {
		t.Fatal(err)
	}
	e.Work()
	pending := plan.Pending(e.View(), e.Now)
	if len(pending) != 2 || pending[0].Kind != resource.KindVM || pending[1].Kind != resource.KindTask {
		t.Fatalf("pending %+v, want the VM and its task", pending)
	}
	for range 2 {
		do(t, e, "follow", func(tx resource.Tx) error { _, err := plan.Follow(tx, resource.KindVM, vm.ID); return err })
	}
	if vmOf(t, e, vm.ID).Ran {
		t.Error("that it is off is not kept")
	}
}
