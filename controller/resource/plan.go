package resource

import (
	"encoding/json"
	"time"

	"shoal/desired"
)

// KindPlan is the kind of plans.
const KindPlan Kind = "plan"

// PlanKept is how long a plan is kept, applied or not.
const PlanKept = 7 * 24 * time.Hour

// PlanState is how a plan stands.
type PlanState string

// The states.
const (
	PlanOpen    PlanState = "open"
	PlanApplied PlanState = "applied"
)

// Plan is a set of changes that were tried on the state of a moment, with all that they would do, to be done just so or not at
// all. It is a resource, and no file or bucket of its own, because whether its base has moved must be decided in the
// transaction that applies it, by whichever controller leads then; the journal also says who planned what.
type Plan struct {
	Meta
	State PlanState `json:"state"`
	// Changes are the calls, in order.
	Changes []PlannedCall `json:"changes"`
	// BaseSeq is the journal sequence that they were tried on. Seed gives the ids and choices of the trial, so that applying it makes
	// the same.
	BaseSeq uint64 `json:"base_seq"`
	Seed    []byte `json:"seed"`
	// Touched are the resources that change, in the order of their first change.
	Touched []PlannedResource `json:"touched"`
	// Hosts are the documents that change, Placements where VMs go and why.
	Hosts      []PlannedHost `json:"hosts,omitempty"`
	Placements []Placement   `json:"placements,omitempty"`
	// AppliedBy is the request that applied it, at AppliedAt.
	AppliedBy string    `json:"applied_by,omitempty"`
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// PlannedCall is a call of a plan.
type PlannedCall struct {
	Op     string          `json:"op"`
	Params json.RawMessage `json:"params,omitempty"`
}

// PlannedChange is what becomes of a resource.
type PlannedChange string

// The changes.
const (
	PlannedCreate PlannedChange = "create"
	PlannedUpdate PlannedChange = "update"
	PlannedDelete PlannedChange = "delete"
)

// PlannedResource is a resource that a plan changes.
type PlannedResource struct {
	Kind   Kind          `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Change PlannedChange `json:"change"`
	// Rev is the journal sequence of the last change before; 0 for what is created.
	Rev uint64 `json:"rev,omitempty"`
	// Sum stands for what becomes of it, without times and sequences.
	Sum string `json:"sum,omitempty"`
}

// PlannedHost is how a plan changes the document of a host.
type PlannedHost struct {
	HostID  string        `json:"host_id"`
	Host    string        `json:"host"`
	Added   []desired.Ref `json:"added,omitempty"`
	Changed []desired.Ref `json:"changed,omitempty"`
	Removed []desired.Ref `json:"removed,omitempty"`
	// Stops, Restarts and Starts name VMs, Erases volumes.
	Stops    []string `json:"stops,omitempty"`
	Restarts []string `json:"restarts,omitempty"`
	Starts   []string `json:"starts,omitempty"`
	Erases   []string `json:"erases,omitempty"`
}

// Placement says where a VM goes and why.
type Placement struct {
	VMID   string `json:"vm_id"`
	VM     string `json:"vm"`
	HostID string `json:"host_id"`
	Host   string `json:"host"`
	// Why it is this host, and why none of the others.
	Why    string   `json:"why"`
	Others []Reason `json:"others,omitempty"`
}

// Kind implements Resource.
func (*Plan) Kind() Kind { return KindPlan }

// Clone implements Resource.
func (p *Plan) Clone() Resource { c := *p; return &c }

// Validate implements Resource.
func (p *Plan) Validate() error {
	if err := p.validateMeta(); err != nil {
		return err
	}
	if p.State != PlanOpen && p.State != PlanApplied {
		return Invalid("state", "%q is not the state of a plan", p.State)
	}
	if len(p.Changes) == 0 {
		return Invalid("changes", "must not be empty")
	}
	return nil
}
