package api

import (
	"encoding/json"
	"fmt"
	"time"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/subjects"
)

// AllHosts is what a decision about every held host is about.
const AllHosts = "all"

// The operations that decide about held hosts.
const (
	OpAdopt         = "ahead.adopt"
	OpOverride      = "ahead.override"
	OpOverrideForce = "ahead.override-force"
)

// AheadInfo is a host that is held, or that the state does not know.
type AheadInfo struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Known says that the state has the host.
	Known     bool `json:"known"`
	Connected bool `json:"connected"`
	// State is absent, asking, silent, unreadable, same or ahead.
	State string `json:"state"`
	// Gen is the generation that the host was told last, Seq the journal's sequence that the state stems from.
	Gen   uint64    `json:"gen"`
	Seq   uint64    `json:"seq,omitempty"`
	Since time.Time `json:"since,omitzero"`
	Why   string    `json:"why"`
	// OnlyHost are VMs and volumes that only the host has, OnlyState VMs that only the state has, Elsewhere VMs that the state puts on
	// another host, Differs all items that differ.
	OnlyHost  int    `json:"only_host"`
	OnlyState int    `json:"only_state"`
	Elsewhere int    `json:"elsewhere"`
	Differs   int    `json:"differs"`
	Key       string `json:"key,omitempty"`
	Error     string `json:"error,omitempty"`
	Remedy    string `json:"remedy,omitempty"`
	// Compared is all that differs.
	Compared *plan.Ahead `json:"compared,omitempty"`
}

// ahead declares what is asked and decided about hosts that know more than the journal.
func ahead(g *Registry) {
	columns := []Column{
		{Title: "HOST", Path: "name"},
		{Title: "STATE", Path: "state"},
		{Title: "KNOWN", Path: "known"},
		{Title: "CONNECTED", Path: "connected"},
		{Title: "ONLY HOST", Path: "only_host"},
		{Title: "ONLY STATE", Path: "only_state"},
		{Title: "ELSEWHERE", Path: "elsewhere"},
		{Title: "DIFFERS", Path: "differs"},
		{Title: "WHY", Path: "why"},
		{Title: "GEN", Path: "gen", Wide: true},
		{Title: "SEQ", Path: "seq", Wide: true},
		{Title: "ERROR", Path: "error", Wide: true},
		{Title: "ID", Path: "id"},
	}
	infos := func(env *Env) ([]AheadInfo, error) {
		if env.Ahead == nil {
			return nil, &resource.Error{Code: resource.CodeNotLeader, Message: "this controller does not lead"}
		}
		return env.Ahead(), nil
	}
	reads(g, Operation{
		Kind: resource.KindAhead, Scope: ScopeAdmin, Verb: "list", Aliases: []string{"ls"}, Result: ResultList, Columns: columns, Summary: "List hosts that know more than the journal",
		Help: "After an old backup was restored, hosts hold documents that the journal does not know. Nothing is written for them until they turn out to be no " +
			"newer than it, or somebody decides: adopt what the host has, or override it with the state. They go on as they are meanwhile. Hosts that the state does " +
			"not know at all are listed, too.",
		Example: "shoalctl ahead list -o wide",
	}, func(env *Env, r resource.Reader, _ *struct{}) (any, error) {
		all, err := infos(env)
		if err != nil {
			return nil, err
		}
		p := Page{Total: len(all), Seq: r.Seq(), Items: []json.RawMessage{}}
		for _, i := range all {
			i.Compared = nil
			b, err := json.Marshal(i)
			if err != nil {
				return nil, fmt.Errorf("encode host: %w", err)
			}
			p.Items = append(p.Items, b)
		}
		return p, nil
	})
	type aheadGet struct {
		Host string `json:"host" arg:"1" required:"true" help:"id or name of the host"`
	}
	reads(g, Operation{
		Kind: resource.KindAhead, Scope: ScopeAdmin, Verb: "get", Aliases: []string{"show"}, Result: ResultOne, Columns: columns, Summary: "Show what differs between a host and the journal",
		Help:    "VMs and volumes that only one of both knows, and what would become of each item if the state's document were written.",
		Example: "shoalctl ahead get h1 -o yaml",
	}, func(env *Env, _ resource.Reader, p *aheadGet) (any, error) {
		all, err := infos(env)
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			if i.ID == p.Host || i.Name == p.Host {
				return i, nil
			}
		}
		return nil, resource.NotFound(resource.KindAhead, p.Host)
	})
	type aheadAdopt struct {
		Host    string `json:"host,omitempty" arg:"1" help:"id or name of the host"`
		All     bool   `json:"all,omitempty" help:"every host that is connected and held, or not known"`
		Cluster string `json:"cluster,omitempty" ref:"cluster" help:"cluster of a host that the state does not know"`
		Name    string `json:"name,omitempty" help:"name of a host that the state does not know"`
		Key     string `json:"key,omitempty" help:"public key (U...) of a host that the state does not know; see ahead list -o wide"`
	}
	writes(g, Operation{
		Kind: resource.KindAhead, Scope: ScopeAdmin, Verb: "adopt", Class: Dangerous, Task: true, Summary: "Take over what a host has",
		Help: "What the host was told counts: VMs, volumes, NICs and networks that the state does not know are taken over, those that differ are changed, and VMs that the " +
			"state puts on the host and the host does not have go to the recycle bin. No guest is touched by it. A host that the state does not know is added first, with the " +
			"cluster and zone that its document names; where an older controller wrote that, say which cluster it is in by --cluster, --name and --key.",
		Example: "shoalctl ahead adopt h1 --wait\nshoalctl ahead adopt --all --wait",
	}, func(tx resource.Tx, p *aheadAdopt) (Outcome, error) {
		if p.All || p.Cluster == "" {
			if _, err := lookup(tx, "host", resource.KindHost, p.Host); !p.All && err != nil && subjects.ValidToken(p.Host) {
				// Whether it is connected, and says where it belongs, is for the task to find.
				return Outcome{Subject: resource.Ref{Kind: resource.KindAhead, ID: p.Host}}, nil
			}
			return decideAhead(tx, p.Host, p.All)
		}
		if tx.Get(resource.KindHost, p.Host) != nil {
			return Outcome{}, resource.Conflict("cluster", "host %s is known: adopt it without --cluster", p.Host)
		}
		if p.Name == "" || p.Key == "" {
			return Outcome{}, resource.Invalid("name", "name and key must be given for a host that the state does not know").WithRemedy("shoalctl ahead list -o yaml has the whole command")
		}
		h := &resource.Host{ClusterID: p.Cluster, State: resource.Enabled, PublicKey: p.Key}
		h.ID, h.Name, h.Owner = p.Host, p.Name, tx.Request().Owner()
		h = plan.Hold(h, resource.HostHold{Since: tx.Now(), Why: "it was not known; what it has is being taken over"})
		if err := tx.Put(h); err != nil {
			return Outcome{}, err
		}
		return Outcome{Subject: resource.Ref{Kind: resource.KindAhead, ID: p.Host}}, nil
	})
	type aheadOverride struct {
		Host string `json:"host,omitempty" arg:"1" help:"id or name of the host"`
		All  bool   `json:"all,omitempty" help:"every host that is held and connected"`
	}
	const help = "What the state knows counts: guests are stopped, started and changed to be as it says. What only the host has, VMs and volumes made since, is taken over " +
		"all the same and never removed. See first what would change: shoalctl ahead get HOST."
	for _, o := range []struct{ verb, summary, more string }{
		{"override", "Bring a host back to the state", " It is refused where a guest could then run on two hosts."},
		{"override-force", "Bring a host back to the state although a guest may run elsewhere", " Only if you know that the hosts which are away are off: a guest that runs twice destroys its disks."},
	} {
		writes(g, Operation{
			Kind: resource.KindAhead, Scope: ScopeAdmin, Verb: o.verb, Class: Dangerous, Task: true, Summary: o.summary, Help: help + o.more,
			Example: "shoalctl ahead " + o.verb + " h1 --wait",
		}, func(tx resource.Tx, p *aheadOverride) (Outcome, error) { return decideAhead(tx, p.Host, p.All) })
	}
}

// decideAhead makes the subject of a decision.
func decideAhead(tx resource.Tx, host string, all bool) (Outcome, error) {
	if all == (host != "") {
		return Outcome{}, resource.Invalid("host", "give a host or --all")
	}
	if all {
		return Outcome{Subject: resource.Ref{Kind: resource.KindAhead, ID: AllHosts}}, nil
	}
	id, err := lookup(tx, "host", resource.KindHost, host)
	if err != nil {
		return Outcome{}, err
	}
	h, err := resource.Get[*resource.Host](tx, id)
	if err != nil {
		return Outcome{}, err
	}
	if h.Hold == nil {
		return Outcome{}, resource.Conflict("host", "host %s is not held: there is nothing to decide", h.Name)
	}
	return Outcome{Subject: resource.Ref{Kind: resource.KindAhead, ID: id}}, nil
}
