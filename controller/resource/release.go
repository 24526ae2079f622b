package resource

import (
	"encoding/base64"
	"slices"
	"time"

	"shoal/desired"
)

// The kinds of agents' releases.
const (
	KindRelease Kind = "release"
	KindRollout Kind = "rollout"
)

// Release is a binary of the agent for one architecture. Its content is in the bucket of artifacts, and never changes.
type Release struct {
	Meta
	// Version is what the binary says of itself, Arch what it runs on, GOARCH style.
	Version string `json:"version"`
	Arch    string `json:"arch"`
	// SHA256 is the content's digest in hex, Bytes its length.
	SHA256 string `json:"sha256"`
	Bytes  uint64 `json:"bytes"`
	// Signature is that of desired.ReleaseProof, in base64.
	Signature string `json:"signature"`
}

// Kind implements Resource.
func (*Release) Kind() Kind { return KindRelease }

// Clone implements Resource.
func (l *Release) Clone() Resource { c := *l; return &c }

// Unique implements Resource.
func (l *Release) Unique() []string { return []string{ReleaseKey(l.Version, l.Arch)} }

// ReleaseKey is the unique key of a release.
func ReleaseKey(version, arch string) string { return ReleaseKeys(version) + arch }

// ReleaseKeys begins the keys of the releases of a version.
func ReleaseKeys(version string) string { return "release/" + version + "/" }

// Arches are the architectures that hosts may have.
func Arches() []string { return []string{"amd64", "arm64"} }

// Validate implements Resource.
func (l *Release) Validate() error {
	if err := l.validateMeta(); err != nil {
		return err
	}
	if err := desired.CheckVersion(l.Version); err != nil {
		return Invalid("version", "%v", err)
	}
	if !slices.Contains(Arches(), l.Arch) {
		return Invalid("arch", "%q is not one of amd64, arm64", l.Arch)
	}
	if err := desired.CheckSHA256(l.SHA256); err != nil {
		return Invalid("sha256", "%v", err)
	}
	if l.Bytes == 0 || l.Bytes > desired.MaxRelease {
		return Invalid("bytes", "%d is not within 1..%d", l.Bytes, desired.MaxRelease)
	}
	if b, err := base64.StdEncoding.DecodeString(l.Signature); err != nil || len(b) != 64 {
		return Invalid("signature", "is not an ed25519 signature in base64")
	}
	return nil
}

// RolloutState is how a rollout stands.
type RolloutState string

// The states. A rollout that is not over goes on by itself in RolloutRunning only.
const (
	RolloutRunning    RolloutState = "running"
	RolloutPaused     RolloutState = "paused"     // by an administrator
	RolloutStopped    RolloutState = "stopped"    // by the gate; Why says what for
	RolloutDone       RolloutState = "done"       // every host has it
	RolloutSuperseded RolloutState = "superseded" // another one was started
)

// Over reports whether nothing more comes of it.
func (s RolloutState) Over() bool { return s == RolloutDone || s == RolloutSuperseded }

// The defaults of a rollout.
const (
	RolloutClusters = 2
	RolloutHosts    = 2
	RolloutSoak     = time.Minute
	RolloutWithin   = 15 * time.Minute
	RolloutTrial    = 3 * time.Minute
)

// Rollout brings a version of the agent to hosts, in waves. The hosts of a wave are told together, and the next wave begins when all of
// them have had the release for SoakSeconds without a fault. It stops when one can't have it.
type Rollout struct {
	Meta
	Version string       `json:"version"`
	State   RolloutState `json:"state"`
	// Why is why it was stopped.
	Why string `json:"why,omitempty"`
	// ClusterIDs are the clusters that it is for; empty for all. Sorted.
	ClusterIDs []string `json:"cluster_ids,omitempty"`
	// Clusters is in how many clusters a wave has hosts at most, Hosts how many in each.
	Clusters int `json:"clusters"`
	Hosts    int `json:"hosts"`
	// SoakSeconds is how long all hosts of a wave must be well before the next; WithinSeconds is how long a wave may take to be so;
	// TrialSeconds is how long a new agent may take to be well on its host, which goes back to the one before then.
	SoakSeconds   int `json:"soak_seconds"`
	WithinSeconds int `json:"within_seconds"`
	TrialSeconds  int `json:"trial_seconds"`
	// Wave counts the waves. WaveHostIDs are the hosts of the last one, told at WaveAt, all well since WellAt. Sorted.
	Wave        int       `json:"wave,omitempty"`
	WaveHostIDs []string  `json:"wave_host_ids,omitempty"`
	WaveAt      time.Time `json:"wave_at,omitzero"`
	WellAt      time.Time `json:"well_at,omitzero"`
	// Ended is when it was over.
	Ended time.Time `json:"ended,omitzero"`
}

// Kind implements Resource.
func (*Rollout) Kind() Kind { return KindRollout }

// Clone implements Resource.
func (o *Rollout) Clone() Resource { c := *o; return &c }

// Refs implements Resource.
func (o *Rollout) Refs() []Ref {
	return append(linkAll(KindCluster, "cluster_ids", o.ClusterIDs), linkAll(KindHost, "wave_host_ids", o.WaveHostIDs)...)
}

// Unlink implements Unlinker. A rollout that has lost all its clusters is none for all clusters.
func (o *Rollout) Unlink(kind Kind, id string) Resource {
	c := *o
	if kind == KindHost {
		c.WaveHostIDs = without(o.WaveHostIDs, id)
		return &c
	}
	c.ClusterIDs = without(o.ClusterIDs, id)
	if len(c.ClusterIDs) == 0 && !c.State.Over() {
		c.State, c.Why = RolloutStopped, "the clusters that it was for are gone"
	}
	return &c
}

// Unique implements Resource: there is one at a time.
func (o *Rollout) Unique() []string {
	if o.State.Over() {
		return nil
	}
	return []string{RolloutKey}
}

// RolloutKey is the unique key of the rollout that is not over.
const RolloutKey = "rollout/open"

// Limits of a rollout.
const maxWave = 1000

// Validate implements Resource.
func (o *Rollout) Validate() error {
	if err := o.validateMeta(); err != nil {
		return err
	}
	if err := desired.CheckVersion(o.Version); err != nil {
		return Invalid("version", "%v", err)
	}
	switch o.State {
	case RolloutRunning, RolloutPaused, RolloutStopped, RolloutDone, RolloutSuperseded:
	default:
		return Invalid("state", "%q is not the state of a rollout", o.State)
	}
	for field, n := range map[string]int{"clusters": o.Clusters, "hosts": o.Hosts} {
		if n < 1 || n > maxWave {
			return Invalid(field, "%d is not within 1..%d", n, maxWave)
		}
	}
	const day = 24 * 60 * 60
	if o.SoakSeconds < 0 || o.SoakSeconds > 7*day {
		return Invalid("soak", "%v is not within 0s..168h", seconds(o.SoakSeconds))
	}
	if d := seconds(o.TrialSeconds); d < desired.MinTrial || d > desired.MaxTrial {
		return Invalid("trial", "%v is not within %v..%v", d, desired.MinTrial, desired.MaxTrial)
	}
	if o.WithinSeconds <= o.SoakSeconds+o.TrialSeconds || o.WithinSeconds > 14*day {
		return Invalid("within", "%v is not more than trial and soak together (%v), or more than 336h", seconds(o.WithinSeconds), seconds(o.SoakSeconds+o.TrialSeconds))
	}
	return nil
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// AgentRef is the item of a host's agent.
func AgentRef() desired.Ref { return desired.Ref{Kind: desired.KindAgent, ID: desired.AgentItemID} }

// ReleaseOf is the release of a version for a host; nil where there is none or the host has never told what it is.
func ReleaseOf(r Reader, version string, h *Host) *Release {
	ob := r.Observed().Host(h.ID)
	if !ob.Reported {
		return nil
	}
	l, _ := r.Holder(ReleaseKey(version, ob.Facts.Inventory.Arch)).(*Release)
	return l
}

// HasRelease reports whether a host says that it runs a release which it was told to, and is well with it.
func HasRelease(r Reader, h *Host, l *Release) bool {
	if h.ReleaseID != l.ID {
		return false
	}
	st, ok := Current(r, h.ID, AgentRef(), h.Rev)
	return ok && st.Phase == desired.PhaseReady
}

// RefusesRelease is why a host can't have the release that it was told to; nil where it can, or is still at it.
func RefusesRelease(r Reader, h *Host) *desired.Fault {
	st, ok := Current(r, h.ID, AgentRef(), h.Rev)
	if !ok || st.Phase != desired.PhaseRefused {
		return nil
	}
	return st.Fault
}

// RolloutTargets are the hosts that a rollout is for, ordered by id.
func RolloutTargets(r Reader, o *Rollout) []*Host {
	var out []*Host
	for h := range All[*Host](r) {
		if len(o.ClusterIDs) == 0 || slices.Contains(o.ClusterIDs, h.ClusterID) {
			out = append(out, h)
		}
	}
	return out
}

// RolloutStatus is the derived state of a rollout.
type RolloutStatus struct {
	// Targets are the hosts that it is for; Done of them have the release, Failed can't have it, Working are told and not there yet.
	Targets int `json:"targets"`
	Done    int `json:"done"`
	Failed  int `json:"failed"`
	Working int `json:"working"`
	// Offline are those that are waited for, Unsupported those whose architecture has no such release.
	Offline     int `json:"offline"`
	Unsupported int `json:"unsupported"`
	// Faults say why hosts can't have it, or not yet.
	Faults []ItemFault `json:"faults,omitempty"`
	// Wave are the names of the hosts of the last wave.
	Wave []string `json:"wave,omitempty"`
}

func rolloutStatus(r Reader, o *Rollout) RolloutStatus {
	s := RolloutStatus{}
	for _, id := range o.WaveHostIDs {
		s.Wave = append(s.Wave, hostName(r, id))
	}
	slices.Sort(s.Wave)
	if o.State == RolloutSuperseded {
		return s
	}
	for _, h := range RolloutTargets(r, o) {
		s.Targets++
		l := ReleaseOf(r, o.Version, h)
		connected := r.Observed().Host(h.ID).Connected
		switch {
		case l != nil && HasRelease(r, h, l):
			s.Done++
			continue
		case !connected:
			s.Offline++
			continue
		case l == nil:
			s.Unsupported++
			continue
		case h.ReleaseID != l.ID:
			continue
		case RefusesRelease(r, h) != nil:
			s.Failed++
		default:
			s.Working++
		}
		if st, ok := r.Observed().Status(h.ID, AgentRef()); ok {
			if f := itemFault(r, h.ID, AgentRef(), st); f != nil {
				s.Faults = append(s.Faults, *f)
			}
		}
	}
	return s
}

// ReleaseStatus is the derived state of a release.
type ReleaseStatus struct {
	// Hosts are told to run it, Running of them do, Failed can't.
	Hosts   int `json:"hosts"`
	Running int `json:"running"`
	Failed  int `json:"failed"`
	// Rollout is the state of the newest rollout of its version, Why why that was stopped.
	Rollout RolloutState `json:"rollout,omitempty"`
	Why     string       `json:"why,omitempty"`
}

func releaseStatus(r Reader, l *Release) ReleaseStatus {
	s := ReleaseStatus{}
	for h := range Referrers[*Host](r, KindRelease, l.ID) {
		s.Hosts++
		switch {
		case HasRelease(r, h, l):
			s.Running++
		case RefusesRelease(r, h) != nil:
			s.Failed++
		}
	}
	var newest time.Time
	for o := range All[*Rollout](r) {
		if o.Version == l.Version && !o.Created.Before(newest) {
			newest, s.Rollout, s.Why = o.Created, o.State, o.Why
		}
	}
	return s
}
