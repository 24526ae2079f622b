package resource

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"shoal/desired"
)

func validateDrift(policies map[desired.Kind]desired.Policy) error {
	for _, kind := range slices.Sorted(maps.Keys(policies)) {
		if !slices.Contains(desired.Kinds(), kind) {
			return Invalid("drift", "%q is no kind of item", kind).WithRemedy("known are %s", kindNames())
		}
		if !policies[kind].Valid() {
			return Invalid("drift", "%q is not one of heal, hold, adopt", policies[kind])
		}
	}
	return nil
}

func kindNames() string {
	var names []string
	for _, k := range desired.Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// DriftPolicy is what a host does about foreign changes of items of a kind.
func DriftPolicy(r Reader, h *Host, kind desired.Kind) desired.Policy {
	var of desired.Policy
	if c, ok := Find[*Cluster](r, h.ClusterID); ok {
		of = c.Drift[kind]
	}
	return cmp.Or(h.Drift[kind], of, desired.PolicyHeal)
}

// DriftPolicies are those of a host that are not to heal; nil for none.
func DriftPolicies(r Reader, h *Host) map[desired.Kind]desired.Policy {
	var out map[desired.Kind]desired.Policy
	for _, k := range desired.Kinds() {
		if p := DriftPolicy(r, h, k); p != desired.PolicyHeal {
			if out == nil {
				out = map[desired.Kind]desired.Policy{}
			}
			out[k] = p
		}
	}
	return out
}

// HasDrifted reports whether a status tells of a foreign change.
func HasDrifted(s desired.Status) bool { return s.Phase == desired.PhaseDrifted || s.Drifts > 0 }

// DriftState is what has become of a foreign change.
type DriftState string

// The states.
const (
	DriftHeld     DriftState = "held"     // left as it is
	DriftAdopting DriftState = "adopting" // about to be taken over
	DriftHealing  DriftState = "healing"  // being put right
	DriftHealed   DriftState = "healed"   // put right, or undone by whoever did it
)

// Drift is a foreign change of an item on a host.
type Drift struct {
	HostID string `json:"host_id"`
	Host   string `json:"host"`
	// Connected says whether the host is heard of; otherwise this is what it said last.
	Connected bool           `json:"connected"`
	Ref       desired.Ref    `json:"ref"`
	Kind      desired.Kind   `json:"kind"`
	State     DriftState     `json:"state"`
	Policy    desired.Policy `json:"policy"`
	// What differs, or differed, and since when.
	What  string    `json:"what"`
	Since time.Time `json:"since"`
	// Count is how many were found since the host's agent started, or since it holds this one.
	Count int `json:"count"`
	// Note says why it is held where the policy is to adopt.
	Note string `json:"note,omitempty"`
	// ResourceKind and Resource name what the item belongs to, where that is one thing.
	ResourceKind Kind   `json:"resource_kind,omitempty"`
	ResourceID   string `json:"resource_id,omitempty"`
	Resource     string `json:"resource,omitempty"`
	// Cause is the request that last changed the item before.
	Cause string `json:"cause,omitempty"`
}

// Drifts are all foreign changes that hosts tell of, ordered by host, kind and id. A drift of a host that is not there any more is
// left out.
func Drifts(r Reader) []Drift {
	var out []Drift
	for it, st := range r.Observed().Drifted() {
		h, ok := Find[*Host](r, it.Host)
		if !ok {
			continue
		}
		d := Drift{
			HostID: h.ID, Host: h.Name, Connected: r.Observed().Host(h.ID).Connected, Ref: it.Ref, Kind: it.Ref.Kind, Policy: DriftPolicy(r, h, it.Ref.Kind),
			Since: st.Since, Count: st.Drifts, Cause: st.Cause,
		}
		if st.LastDrift != nil {
			d.What, d.Since = st.LastDrift.What, st.LastDrift.At
		}
		switch {
		case st.Phase == desired.PhaseDrifted && len(st.Found) > 0:
			d.State = DriftAdopting
			if vm, ok := Find[*VM](r, it.Ref.ID); ok && it.Ref.Kind == desired.KindDomain {
				if found, ok := FoundDomain(r, vm); ok {
					d.Note = Untakeable(r, vm, found)
				}
			}
			if d.Note != "" {
				d.State = DriftHeld
			}
		case st.Phase == desired.PhaseDrifted:
			d.State = DriftHeld
			if st.Fault != nil && d.Policy == desired.PolicyAdopt {
				d.Note = st.Fault.Message
			}
		case st.Phase == desired.PhaseReady:
			d.State = DriftHealed
		default:
			d.State = DriftHealing
		}
		if kind, id := ItemResource(it.Ref); kind != "" {
			d.ResourceKind, d.ResourceID, d.Resource = kind, id, id
			if res := r.Get(kind, id); res != nil {
				d.Resource = res.Base().Name
			}
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b Drift) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// ItemResource is the resource that an item belongs to; "" where it is not one.
func ItemResource(ref desired.Ref) (Kind, string) {
	switch ref.Kind {
	case desired.KindDomain:
		return KindVM, ref.ID
	case desired.KindVolume:
		return KindVolume, ref.ID
	case desired.KindPool:
		return KindStorage, ref.ID
	case desired.KindSecGroup:
		return KindNIC, ref.ID
	case desired.KindAddrSet:
		return KindSecGroup, ref.ID
	case desired.KindDHCP:
		return KindL3, ref.ID
	case desired.KindNetDev:
		return KindL2, ref.ID
	case desired.KindImage:
		if _, image, ok := strings.Cut(ref.ID, "-"); ok {
			return KindImage, image
		}
		return "", ""
	default:
		return "", ""
	}
}

// FoundDomain is what a host found in place of a VM's domain, if that is to be taken over and about the VM as it stands.
func FoundDomain(r Reader, vm *VM) (desired.Domain, bool) {
	ref := DomainRef(vm.ID)
	var d desired.Domain
	if st, ok := r.Observed().Status(vm.HostID, ref); !ok || st.Phase != desired.PhaseDrifted || len(st.Found) == 0 {
		return d, false
	}
	h, ok := Find[*Host](r, vm.HostID)
	if !ok || DriftPolicy(r, h, ref.Kind) != desired.PolicyAdopt {
		return d, false
	}
	st, ok := Current(r, vm.HostID, ref, vm.Rev)
	if p, _ := r.Observed().Published(vm.HostID, ref); !ok || st.Rev != p.Rev {
		return d, false
	}
	if json.Unmarshal(st.Found, &d) != nil || d.Validate() != nil {
		return d, false
	}
	return d, true
}

// Untakeable says why what a host found in place of a VM's domain can't become what is wanted; "" where it can.
func Untakeable(r Reader, vm *VM, found desired.Domain) string {
	changed := *vm
	changed.Power, changed.CPUs, changed.MemoryMiB, changed.CPUMode = found.Power, found.CPUs, found.MemoryMiB, found.CPUMode
	if err := changed.Validate(); err != nil {
		return err.Error()
	}
	h, ok := Find[*Host](r, vm.HostID)
	ob := r.Observed().Host(vm.HostID)
	if !ok || !ob.Reported {
		return "its host has not reported what it is"
	}
	if changed.CPUs <= vm.CPUs && changed.MemoryMiB <= vm.MemoryMiB || changed.Power == desired.PowerOff {
		return "" // what is off takes no room before it is started, and is placed then
	}
	use := UseOfHost(r, vm.HostID)
	if vm.Power != desired.PowerOff {
		use.CPUs -= vm.CPUs
		use.MemoryMiB -= uint64(vm.MemoryMiB) //nolint:gosec // validated
	}
	cpus, memory := HostRoom(r, h, ob.Facts.Inventory, use)
	if changed.CPUs > vm.CPUs && changed.CPUs > cpus {
		return fmt.Sprintf("the host has no room for %d virtual CPUs: %d are free", changed.CPUs, max(cpus, 0))
	}
	if changed.MemoryMiB > vm.MemoryMiB && int64(changed.MemoryMiB) > memory {
		return fmt.Sprintf("the host has no room for %d MiB of memory: %d MiB are free", changed.MemoryMiB, max(memory, 0))
	}
	return ""
}
