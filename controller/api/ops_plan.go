package api

import (
	"bytes"
	"encoding/json"
	"errors"

	"shoal/controller/plan"
	"shoal/controller/resource"
)

// object is a JSON object whose fields depend on something else in the request.
type object json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (o *object) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '{' {
		return errors.New("must be a JSON object")
	}
	*o = bytes.Clone(b)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	if len(o) == 0 {
		return []byte("{}"), nil
	}
	return o, nil
}

// UnmarshalText reads it from a command line.
func (o *object) UnmarshalText(b []byte) error {
	if !json.Valid(b) {
		return errors.New("is not JSON")
	}
	return o.UnmarshalJSON(b)
}

// maxPlanBytes is how long the request for a plan may be: a plan is one resource.
const maxPlanBytes = 160 << 10

type plannedChange struct {
	Op     string `json:"op" required:"true" help:"operation, KIND.VERB, such as vm.create; see shoalctl schema get"`
	Params object `json:"params,omitempty" help:"its parameters"`
}

type planParams struct {
	Name        string          `json:"name,omitempty" help:"name of the plan; the first operation's where not given"`
	Description string          `json:"description,omitempty" help:"free text, up to 2048 bytes"`
	Changes     []plannedChange `json:"changes" required:"true" help:"what to do, in this order; a later change may name what an earlier one makes"`
}

// plans declares what is done with plans.
func plans(g *Registry) {
	readable(g, resource.KindPlan, "state=open",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STATE", Path: "state"}, Column{Title: "BY", Path: "owner"}, Column{Title: "BASE", Path: "base_seq"},
		Column{Title: "APPLIED", Path: "applied_at", As: "age"}, Column{Title: "REQUEST", Path: "applied_by", Wide: true}, age(), Column{Title: "ID", Path: "id"})
	serves(g, Operation{
		Kind: resource.KindPlan, Verb: "create", Summary: "Plan changes",
		Help: "The changes are tried together, in order, on the state as it is, and nothing is done. What they would do is kept under the plan's id for a week: what each host " +
			"would get, lose and change, which VMs would stop, restart or start, where VMs would be put and why. Applying it does just that, or refuses.",
		Example: "shoalctl plan -f changes.yaml", maxBytes: maxPlanBytes,
	}, (*Service).planCreate)
	serves(g, Operation{
		Kind: resource.KindPlan, Verb: "apply", Class: Dangerous, Task: true, Summary: "Do what a plan says",
		Help: "All of it in one transaction, with the ids, addresses and places that the plan shows. It is refused where anything that the plan changes has changed since, or " +
			"where the outcome would be another one; the answer names what.",
		Example: "shoalctl apply --plan ID\nshoalctl plan apply ID",
	}, (*Service).planApply)
	writes(g, Operation{
		Kind: resource.KindPlan, Verb: "delete", Aliases: []string{"rm"}, Summary: "Delete a plan", Help: "What it has done stays.", Example: "shoalctl plan delete ID",
	}, func(tx resource.Tx, p *getParams) (Outcome, error) {
		pl, err := resource.Get[*resource.Plan](tx, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		return Outcome{Deleted: []plan.Deleted{{Kind: resource.KindPlan, ID: pl.ID, Name: pl.Name, Action: plan.ActionDelete}}}, tx.Delete(resource.KindPlan, pl.ID)
	})
}
