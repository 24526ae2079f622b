package plan_test

import (
	"encoding/json"
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

// fleet is an example on which releases are rolled out.
type fleet struct {
	*plantest.Example
	t *testing.T
	// bad are the hosts on which the release is no good before that try.
	bad map[string]int
	id  string
}

func newFleet(t *testing.T, hosts int) *fleet {
	f := &fleet{Example: plantest.NewExample(1, hosts), t: t, bad: map[string]int{}}
	f.release("1.2", "amd64")
	return f
}

func (f *fleet) release(version, arch string) {
	f.t.Helper()
	do(f.t, f.Example, "release.create", func(tx resource.Tx) error {
		_, err := plan.AddRelease(tx, &resource.Release{
			Meta: resource.Meta{Name: version}, Version: version, Arch: arch, SHA256: strings.Repeat("ab", 32), Bytes: 9, Signature: strings.Repeat("A", 86) + "==",
		})
		return err
	})
}

func (f *fleet) start(change func(*resource.Rollout)) {
	f.t.Helper()
	o := &resource.Rollout{Meta: resource.Meta{Name: "1.2"}, Version: "1.2", Clusters: 2, Hosts: 2, SoakSeconds: 60, WithinSeconds: 600, TrialSeconds: 100}
	change(o)
	do(f.t, f.Example, "rollout.create", func(tx resource.Tx) error {
		o, err := plan.StartRollout(tx, o)
		if err == nil {
			f.id = o.ID
		}
		return err
	})
	f.step()
}

func (f *fleet) rollout() *resource.Rollout {
	f.t.Helper()
	o, err := resource.Get[*resource.Rollout](f.View(), f.id)
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

func (f *fleet) status() resource.RolloutStatus {
	return resource.Derive(f.View(), f.rollout()).(resource.RolloutStatus)
}

// step publishes, has hosts work, and takes decisions, until all rests at this moment.
func (f *fleet) step() {
	f.t.Helper()
	for range 20 {
		if err := f.Publish(); err != nil {
			f.t.Fatal(err)
		}
		f.Work()
		for name, until := range f.bad {
			if it := f.item(name); it.Rev > 0 && host(f.t, f, name).ReleaseTry < until {
				f.Report(f.IDs[name], resource.AgentRef(), desired.Status{
					Rev: it.Rev, Phase: desired.PhaseRefused, Fault: &desired.Fault{Code: desired.CodeRolledBack, Message: "release 1.2 was rolled back: it crashed"},
				}, nil)
			}
		}
		if changed, err := f.Tick(); err != nil {
			f.t.Fatal(err)
		} else if !changed {
			return
		}
	}
	f.t.Fatal("the fleet does not come to rest")
}

func (f *fleet) item(host string) desired.Item {
	for _, it := range f.Items(f.IDs[host]) {
		if it.Kind == desired.KindAgent {
			return it
		}
	}
	return desired.Item{}
}

func (f *fleet) pass(d time.Duration) {
	f.t.Helper()
	f.Now = f.Now.Add(d)
	f.step()
}

// told are the names of the hosts whose documents name a release.
func (f *fleet) told() string {
	var out []string
	for name := range f.IDs {
		if strings.HasPrefix(name, "h") && f.item(name).Rev > 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (f *fleet) want(state resource.RolloutState, told string) {
	f.t.Helper()
	o := f.rollout()
	if got := f.told(); got != told || o.State != state {
		f.t.Fatalf("told %q in state %s (%s), want %q and %s", got, o.State, o.Why, told, state)
	}
}

// TestRollout_Waves: two hosts of each of two clusters at a time, the next ones only after the soak. h3 and h6 are in cluster c2.
func TestRollout_Waves(t *testing.T) {
	f := newFleet(t, 8)
	f.start(func(*resource.Rollout) {})
	f.want(resource.RolloutRunning, "h1 h2 h3 h6")
	var spec desired.Agent
	if err := json.Unmarshal(f.item("h1").Spec, &spec); err != nil || spec.Validate() != nil || spec.Version != "1.2" || spec.TrialSeconds != 100 {
		t.Fatalf("the host is told %s (%v, %v)", f.item("h1").Spec, err, spec.Validate())
	}
	f.pass(59 * time.Second)
	f.want(resource.RolloutRunning, "h1 h2 h3 h6")
	f.pass(time.Second)
	f.want(resource.RolloutRunning, "h1 h2 h3 h4 h5 h6")
	if d := cmp.Diff(resource.RolloutStatus{Targets: 8, Done: 6, Wave: []string{"h4", "h5"}}, f.status()); d != "" {
		t.Error(d)
	}
	f.pass(time.Minute)
	f.pass(time.Minute)
	f.want(resource.RolloutDone, "h1 h2 h3 h4 h5 h6 h7 h8")
	before := f.View()
	f.pass(time.Hour)
	if f.View() != before && f.rollout().State != resource.RolloutDone {
		t.Error("a rollout that is over went on")
	}
	f.pass(plan.RolloutKept)
	if f.View().Get(resource.KindRollout, f.id) != nil {
		t.Error("it is kept for ever")
	}
}

func TestRollout_OneClusterAtATime(t *testing.T) {
	f := newFleet(t, 4)
	f.start(func(o *resource.Rollout) { o.Clusters, o.Hosts, o.SoakSeconds = 1, 1, 0 })
	// Without a soak the waves follow each other at once.
	f.want(resource.RolloutDone, "h1 h2 h3 h4")
	if n := f.rollout().Wave; n != 4 {
		t.Errorf("%d waves, want 4", n)
	}
	f = newFleet(t, 4)
	f.start(func(o *resource.Rollout) { o.ClusterIDs, o.SoakSeconds = []string{f.IDs["c2"]}, 0 })
	f.want(resource.RolloutDone, "h3")
}

// TestRollout_Stops: one host rolls back; nobody else is told, the reason is there, and resuming has the host try again.
func TestRollout_Stops(t *testing.T) {
	f := newFleet(t, 8)
	f.bad["h2"] = 1
	f.start(func(*resource.Rollout) {})
	f.want(resource.RolloutStopped, "h1 h2 h3 h6")
	if why := f.rollout().Why; why != "host h2: release 1.2 was rolled back: it crashed" {
		t.Errorf("why: %s", why)
	}
	s := f.status()
	if s.Done != 3 || s.Failed != 1 || len(s.Faults) != 1 || s.Faults[0].Host != "h2" {
		t.Errorf("status %+v", s)
	}
	l := resource.Derive(f.View(), resource.ReleaseOf(f.View(), "1.2", host(t, f, "h1"))).(resource.ReleaseStatus)
	if d := cmp.Diff(resource.ReleaseStatus{Hosts: 4, Running: 3, Failed: 1, Rollout: resource.RolloutStopped, Why: f.rollout().Why}, l); d != "" {
		t.Error(d)
	}
	if hs := resource.Derive(f.View(), host(t, f, "h2")).(resource.HostStatus); hs.Agent == nil || hs.Agent.Code != desired.CodeRolledBack {
		t.Errorf("the host's own status says %+v", hs.Agent)
	}
	f.pass(time.Hour)
	f.want(resource.RolloutStopped, "h1 h2 h3 h6")

	do(t, f.Example, "rollout.resume", func(tx resource.Tx) error { _, err := plan.ResumeRollout(tx, f.id); return err })
	f.step()
	if h := host(t, f, "h2"); h.ReleaseTry != 1 {
		t.Errorf("h2 is at try %d, want 1", h.ReleaseTry)
	}
	if h := host(t, f, "h1"); h.ReleaseTry != 0 {
		t.Errorf("h1, which is well, is at try %d", h.ReleaseTry)
	}
	for range 3 {
		f.pass(time.Minute)
	}
	f.want(resource.RolloutDone, "h1 h2 h3 h4 h5 h6 h7 h8")
}

// TestRollout_Gate: a host that is not heard of any more, or not done in time, stops it too.
func TestRollout_Gate(t *testing.T) {
	f := newFleet(t, 8)
	f.start(func(*resource.Rollout) {})
	f.SetConnected(f.IDs["h1"], false)
	f.pass(2 * time.Minute)
	f.want(resource.RolloutRunning, "h1 h2 h3 h6")
	if !f.rollout().WellAt.IsZero() {
		t.Error("the wave counts as well without h1")
	}
	f.SetConnected(f.IDs["h1"], true)
	f.pass(time.Second)
	f.pass(59 * time.Second)
	f.want(resource.RolloutRunning, "h1 h2 h3 h6") // it must be well for a whole minute again
	f.SetConnected(f.IDs["h1"], false)
	f.pass(10 * time.Minute)
	f.want(resource.RolloutStopped, "h1 h2 h3 h6")
	if why := f.rollout().Why; why != "wave 1 was not done within 10m0s: host h1 is not connected" {
		t.Errorf("why: %s", why)
	}
}

// TestRollout_OfflineHostsFollow: a host that is away does not hold the others up, and gets its turn when it is back.
func TestRollout_OfflineHostsFollow(t *testing.T) {
	f := newFleet(t, 4)
	f.SetConnected(f.IDs["h2"], false)
	f.start(func(*resource.Rollout) {})
	f.want(resource.RolloutRunning, "h1 h3 h4")
	f.pass(time.Hour)
	f.want(resource.RolloutRunning, "h1 h3 h4")
	if s := f.status(); s.Done != 3 || s.Offline != 1 {
		t.Errorf("status %+v", s)
	}
	f.SetConnected(f.IDs["h2"], true)
	f.step()
	f.want(resource.RolloutRunning, "h1 h2 h3 h4")
	f.pass(time.Minute)
	f.want(resource.RolloutDone, "h1 h2 h3 h4")
}

func TestRollout_PauseAndResume(t *testing.T) {
	f := newFleet(t, 8)
	f.start(func(*resource.Rollout) {})
	do(t, f.Example, "rollout.pause", func(tx resource.Tx) error { _, err := plan.PauseRollout(tx, f.id); return err })
	f.pass(time.Hour)
	f.want(resource.RolloutPaused, "h1 h2 h3 h6")
	if err := f.Do("rollout.pause", func(tx resource.Tx) error { _, err := plan.PauseRollout(tx, f.id); return err }); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("pausing it twice: %v", err)
	}
	do(t, f.Example, "rollout.resume", func(tx resource.Tx) error { _, err := plan.ResumeRollout(tx, f.id); return err })
	f.step()
	f.want(resource.RolloutRunning, "h1 h2 h3 h6") // the wave is looked at again, and must be well for a while
	f.pass(time.Minute)
	f.want(resource.RolloutRunning, "h1 h2 h3 h4 h5 h6")
}

// TestRollout_Another: one at a time; a stopped one makes way, and hosts go to whatever the new one says.
func TestRollout_Another(t *testing.T) {
	f := newFleet(t, 3)
	again := func() error {
		return f.Do("rollout.create", func(tx resource.Tx) error {
			o := *f.rollout()
			o.Meta, o.Wave, o.WaveHostIDs, o.WaveAt, o.WellAt = resource.Meta{Name: o.Version}, 0, nil, time.Time{}, time.Time{}
			_, err := plan.StartRollout(tx, &o)
			return err
		})
	}
	if err := f.Do("rollout.create", func(tx resource.Tx) error {
		_, err := plan.StartRollout(tx, &resource.Rollout{Meta: resource.Meta{Name: "9"}, Version: "9", Clusters: 1, Hosts: 1, WithinSeconds: 60, TrialSeconds: 10})
		return err
	}); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("a rollout of a release that is not there: %v", err)
	}
	f.bad["h1"] = 9
	f.start(func(*resource.Rollout) {})
	first := f.id
	if err := again(); err != nil {
		t.Fatal(err)
	}
	if o, _ := resource.Get[*resource.Rollout](f.View(), first); o.State != resource.RolloutSuperseded {
		t.Errorf("the first one is %s", o.State)
	}
	if err := again(); !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("a second one beside it: %v", err)
	}
	// A release that hosts are to run can't go; one that nobody runs can.
	l := resource.ReleaseOf(f.View(), "1.2", host(t, f, "h1"))
	if err := f.Do("release.delete", func(tx resource.Tx) error {
		_, err := plan.Delete(tx, resource.KindRelease, l.ID, plan.DeleteOptions{})
		return err
	}); !resource.HasCode(err, resource.CodeInUse) {
		t.Errorf("deleting a release that runs: %v", err)
	}
	if err := f.Do("host.delete", func(tx resource.Tx) error {
		h := resource.Copy(host(t, f, "h3"))
		h.State = resource.Disabled
		if err := tx.Put(h); err != nil {
			return err
		}
		_, err := plan.Delete(tx, resource.KindHost, f.IDs["h3"], plan.DeleteOptions{Cascade: true})
		return err
	}); err != nil {
		t.Errorf("deleting a host of a wave: %v", err)
	}
	f.step()
}

// TestRollout_Arch: a host gets the release for its architecture; one whose architecture has none is left out and does not hold it up.
func TestRollout_Arch(t *testing.T) {
	f := newFleet(t, 3)
	arm := plantest.Machine(2)
	arm.Arch = "arm64"
	f.Connect(f.IDs["h2"], arm)
	f.start(func(*resource.Rollout) {})
	f.want(resource.RolloutRunning, "h1 h3")
	if s := f.status(); s.Unsupported != 1 {
		t.Errorf("status %+v", s)
	}
	f.release("1.2", "arm64")
	f.pass(time.Minute)
	f.want(resource.RolloutRunning, "h1 h2 h3")
	if it := f.item("h2"); !strings.Contains(string(it.Spec), `"arch":"arm64"`) {
		t.Errorf("h2 is told %s", it.Spec)
	}
}

func TestAddRelease_SameAndOther(t *testing.T) {
	f := newFleet(t, 1)
	f.release("1.2", "amd64") // said again
	err := f.Do("release.create", func(tx resource.Tx) error {
		_, err := plan.AddRelease(tx, &resource.Release{
			Meta: resource.Meta{Name: "1.2"}, Version: "1.2", Arch: "amd64", SHA256: strings.Repeat("cd", 32), Bytes: 9, Signature: strings.Repeat("A", 86) + "==",
		})
		return err
	})
	if !resource.HasCode(err, resource.CodeConflict) {
		t.Errorf("other content under the same version: %v", err)
	}
}

// TestRollout_Affected: telling a host what to run changes its document and no other's.
func TestRollout_Affected(t *testing.T) {
	f := newFleet(t, 4)
	before := f.View()
	f.start(func(o *resource.Rollout) { o.Hosts, o.Clusters = 1, 1 })
	hosts := affectedBy(before, f.View())
	if d := cmp.Diff(map[string]struct{}{f.IDs["h1"]: {}}, hosts); d != "" {
		t.Error(d)
	}
}

func host(t *testing.T, f *fleet, name string) *resource.Host {
	t.Helper()
	h, err := resource.Get[*resource.Host](f.View(), f.IDs[name])
	if err != nil {
		t.Fatal(err)
	}
	return h
}
