package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// RolloutKept is how long a rollout that is over is still shown.
const RolloutKept = 90 * 24 * time.Hour

// AddRelease adds a release, or gives the one that is there where it is the same.
func AddRelease(tx resource.Tx, l *resource.Release) (*resource.Release, error) {
	if old, ok := tx.Holder(resource.ReleaseKey(l.Version, l.Arch)).(*resource.Release); ok {
		if old.SHA256 != l.SHA256 {
			return nil, resource.Conflict("version", "there is a release %s for %s, with other content (sha256:%s)", l.Version, l.Arch, old.SHA256).
				WithRemedy("give the new one a version of its own, or delete the old one first")
		}
		if old.Signature == l.Signature {
			return old, nil
		}
		// The installation's keys are others now.
		c := resource.Copy(old)
		c.Signature = l.Signature
		return c, tx.Put(c)
	}
	l.ID = tx.NewID()
	return l, tx.Put(l)
}

// StartRollout starts one. One that is paused or was stopped makes way for it.
func StartRollout(tx resource.Tx, o *resource.Rollout) (*resource.Rollout, error) {
	known := false
	for range tx.HoldersFrom(resource.ReleaseKeys(o.Version), "") {
		known = true
		break
	}
	if !known {
		return nil, resource.NotFound(resource.KindRelease, o.Version).WithRemedy("add it first: shoalctl agent release add FILE")
	}
	if old, ok := tx.Holder(resource.RolloutKey).(*resource.Rollout); ok {
		if old.State == resource.RolloutRunning {
			return nil, resource.Conflict("version", "the rollout of %s is running", old.Version).WithRemedy("wait for its end, or pause it first: shoalctl agent rollout pause %s", old.ID)
		}
		c := resource.Copy(old)
		c.State, c.Ended = resource.RolloutSuperseded, tx.Now()
		if err := tx.Put(c); err != nil {
			return nil, err
		}
	}
	o.State = resource.RolloutRunning
	o.ID = tx.NewID()
	slices.Sort(o.ClusterIDs)
	o.ClusterIDs = slices.Compact(o.ClusterIDs)
	return o, tx.Put(o)
}

// PauseRollout lets the hosts that were told finish, and tells no more.
func PauseRollout(tx resource.Tx, id string) (*resource.Rollout, error) {
	o, err := resource.Get[*resource.Rollout](tx, id)
	if err != nil {
		return nil, err
	}
	if o.State != resource.RolloutRunning {
		return nil, resource.Conflict("id", "the rollout is %s", o.State)
	}
	c := resource.Copy(o)
	c.State = resource.RolloutPaused
	return c, tx.Put(c)
}

// ResumeRollout goes on with one that is paused or was stopped. Hosts that could not have the release are told again, in a wave of their own.
func ResumeRollout(tx resource.Tx, id string) (*resource.Rollout, error) {
	o, err := resource.Get[*resource.Rollout](tx, id)
	if err != nil {
		return nil, err
	}
	if o.State != resource.RolloutPaused && o.State != resource.RolloutStopped {
		return nil, resource.Conflict("id", "the rollout is %s", o.State)
	}
	c := resource.Copy(o)
	c.State, c.Why, c.WellAt = resource.RolloutRunning, "", time.Time{}
	if o.State == resource.RolloutStopped {
		c.WaveHostIDs = nil
	} else if len(c.WaveHostIDs) > 0 {
		c.WaveAt = tx.Now()
	}
	return c, tx.Put(c)
}

// decideRollout is the next step of a rollout: the end of a wave, the next one, a stop, the end of all. It looks at the hosts of the
// wave only while there is one.
func decideRollout(r resource.Reader, now time.Time, o *resource.Rollout) decision {
	if o.State.Over() {
		if now.Before(o.Ended.Add(RolloutKept)) {
			return nil
		}
		return func(tx resource.Tx) error { return tx.Delete(resource.KindRollout, o.ID) }
	}
	if o.State != resource.RolloutRunning {
		return nil
	}
	set := func(change func(o *resource.Rollout, at time.Time)) decision {
		return func(tx resource.Tx) error {
			c := resource.Copy(o)
			change(c, tx.Now())
			return tx.Put(c)
		}
	}
	stop := func(why string) decision {
		return set(func(o *resource.Rollout, _ time.Time) { o.State, o.Why = resource.RolloutStopped, why })
	}
	if len(o.WaveHostIDs) > 0 {
		waits, failure := wave(r, o)
		switch {
		case failure != "":
			return stop(failure)
		case waits != "" && !now.Before(o.WaveAt.Add(time.Duration(o.WithinSeconds)*time.Second)):
			return stop(fmt.Sprintf("wave %d was not done within %v: %s", o.Wave, time.Duration(o.WithinSeconds)*time.Second, waits))
		case waits != "" && !o.WellAt.IsZero():
			return set(func(o *resource.Rollout, _ time.Time) { o.WellAt = time.Time{} })
		case waits != "":
			return nil
		case o.WellAt.IsZero():
			return set(func(o *resource.Rollout, at time.Time) { o.WellAt = at })
		case now.Before(o.WellAt.Add(time.Duration(o.SoakSeconds) * time.Second)):
			return nil
		}
	}
	next, left := nextWave(r, o)
	switch {
	case len(next) > 0:
		return func(tx resource.Tx) error { return tellWave(tx, o, next) }
	case left == 0:
		return set(func(o *resource.Rollout, at time.Time) {
			o.State, o.Ended, o.WaveHostIDs, o.WellAt = resource.RolloutDone, at, nil, time.Time{}
		})
	case len(o.WaveHostIDs) > 0:
		// The wave is done, and the rest is not there: whoever returns begins a wave.
		return set(func(o *resource.Rollout, _ time.Time) { o.WaveHostIDs, o.WellAt = nil, time.Time{} })
	default:
		return nil
	}
}

// wave is what the last wave of a rollout waits for, and what it has failed of; "" for nothing.
func wave(r resource.Reader, o *resource.Rollout) (waits, failure string) {
	for _, id := range o.WaveHostIDs {
		h, ok := resource.Find[*resource.Host](r, id)
		if !ok {
			continue
		}
		if fault := resource.RefusesRelease(r, h); fault != nil {
			return "", fmt.Sprintf("host %s: %s", h.Name, fault.Message)
		}
		l := resource.ReleaseOf(r, o.Version, h)
		switch {
		case waits != "":
		case !r.Observed().Host(id).Connected:
			waits = fmt.Sprintf("host %s is not connected", h.Name)
		case l == nil || !resource.HasRelease(r, h, l):
			waits = fmt.Sprintf("host %s does not run it yet", h.Name)
			if st, ok := r.Observed().Status(id, resource.AgentRef()); ok && st.Fault != nil {
				waits += ": " + st.Fault.Message
			}
		}
	}
	return waits, ""
}

// nextWave are the hosts of the next wave, and how many are left for later. Clusters are taken in the order of their names, so that few are
// in the middle of it at any time.
func nextWave(r resource.Reader, o *resource.Rollout) (next []*resource.Host, left int) {
	clusters := map[string][]*resource.Host{}
	for _, h := range resource.RolloutTargets(r, o) {
		ob := r.Observed().Host(h.ID)
		l := resource.ReleaseOf(r, o.Version, h)
		switch {
		case l != nil && resource.HasRelease(r, h, l):
		case l == nil && ob.Reported:
			// There is none for its architecture. Its status says so; nobody waits for one.
		case l == nil || !ob.Connected || h.Hold != nil:
			left++
		default:
			clusters[h.ClusterID] = append(clusters[h.ClusterID], h)
		}
	}
	name := func(id string) string {
		if c, ok := resource.Find[*resource.Cluster](r, id); ok {
			return c.Name
		}
		return ""
	}
	ids := make([]string, 0, len(clusters))
	for id := range clusters {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(strings.Compare(name(a), name(b)), strings.Compare(a, b)) })
	for i, id := range ids {
		hosts := clusters[id]
		slices.SortFunc(hosts, resource.ByName)
		if i >= o.Clusters {
			left += len(hosts)
			continue
		}
		n := min(o.Hosts, len(hosts))
		next = append(next, hosts[:n]...)
		left += len(hosts) - n
	}
	return next, left + len(next)
}

// tellWave tells the hosts of a wave what to run. A host that was told the same before is told to try again.
func tellWave(tx resource.Tx, o *resource.Rollout, hosts []*resource.Host) error {
	c := resource.Copy(o)
	c.Wave++
	c.WaveAt, c.WellAt, c.WaveHostIDs = tx.Now(), time.Time{}, nil
	for _, was := range hosts {
		h, ok := resource.Find[*resource.Host](tx, was.ID)
		if !ok {
			continue
		}
		l := resource.ReleaseOf(tx, o.Version, h)
		if l == nil {
			continue
		}
		h = resource.Copy(h)
		if h.ReleaseID == l.ID {
			h.ReleaseTry++
		} else {
			h.ReleaseTry = 0
		}
		h.ReleaseID, h.TrialSeconds = l.ID, o.TrialSeconds
		if err := tx.Put(h); err != nil {
			return err
		}
		c.WaveHostIDs = append(c.WaveHostIDs, h.ID)
	}
	slices.Sort(c.WaveHostIDs)
	return tx.Put(c)
}

// agent is the item of the release that the host is to run, if it is to run any in particular.
func (d *document) agent() error {
	if d.host.ReleaseID == "" {
		return nil
	}
	l, err := resource.Get[*resource.Release](d.r, d.host.ReleaseID)
	if err != nil {
		return err
	}
	// The name and other things of the host are no part of it, but its cause is: whoever told it to run this.
	return d.add(resource.AgentRef(), &desired.Agent{
		Version: l.Version, Arch: l.Arch, SHA256: l.SHA256, Bytes: l.Bytes, Signature: l.Signature, Release: l.ID,
		TrialSeconds: d.host.TrialSeconds, Try: d.host.ReleaseTry,
	}, nil, l, d.host)
}
