package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"shoal/controller/resource"
	"shoal/desired"
)

// KindDrift has the operations on foreign changes, which are no resources: hosts report them.
const KindDrift resource.Kind = "drift"

// driftChange is the parameter of hosts and clusters.
type driftChange struct {
	Drift []string `json:"drift,omitempty" split:"true" help:"what hosts do about foreign changes of items of a kind, KIND=POLICY: kinds are agent, netdev, pool, image, dhcp, addrset, secgroup, volume, domain, and all for each of them; policies are heal, hold, adopt, and default for what applies without it"`
}

// driftHelp explains the policies where they can be set.
const driftHelp = "Drift policies: heal puts foreign changes right (as hosts do unless told otherwise), hold reports and touches nothing, adopt takes them over as the new " +
	"wish where a wish can express them (a VM that was started, stopped or paused on the host, or got other CPUs, memory or CPU model there) and holds them otherwise. A new wish is always brought about. See shoalctl drift."

func (d driftChange) apply(into *map[desired.Kind]desired.Policy) error {
	if len(d.Drift) == 0 {
		return nil
	}
	out := maps.Clone(*into)
	if out == nil {
		out = map[desired.Kind]desired.Policy{}
	}
	for i, entry := range d.Drift {
		field := fmt.Sprintf("drift[%d]", i)
		name, policy, ok := strings.Cut(entry, "=")
		kinds := []desired.Kind{desired.Kind(name)}
		switch {
		case !ok:
			return resource.Invalid(field, "%q is not KIND=POLICY", entry).WithRemedy("such as domain=hold")
		case name == "all":
			kinds = desired.Kinds()
		case !slices.Contains(desired.Kinds(), kinds[0]):
			return resource.Invalid(field, "%q is no kind of item", name).WithRemedy("known are all, %s", kindNames(desired.Kinds()))
		}
		if policy != "default" && !desired.Policy(policy).Valid() {
			return resource.Invalid(field, "%q is not one of heal, hold, adopt, default", policy)
		}
		for _, k := range kinds {
			if delete(out, k); policy != "default" {
				out[k] = desired.Policy(policy)
			}
		}
	}
	if len(out) == 0 {
		out = nil
	}
	*into = out
	return nil
}

func kindNames(kinds []desired.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

// drifts declares what is asked about foreign changes.
func drifts(g *Registry) {
	type driftList struct {
		Host   string `json:"host,omitempty" ref:"host" help:"of that host only"`
		Kind   string `json:"kind,omitempty" enum:"agent|netdev|pool|image|dhcp|addrset|secgroup|volume|domain" help:"of items of that kind only"`
		State  string `json:"state,omitempty" enum:"held|adopting|healing|healed" help:"in that state only"`
		Limit  int    `json:"limit,omitempty" help:"at most that many; 0 for all"`
		Offset int    `json:"offset,omitempty" help:"leave out that many from the start"`
	}
	reads(g, Operation{
		Kind: KindDrift, Verb: "list", Aliases: []string{"ls"}, Result: ResultList, Command: "drift", Scope: ScopeAdmin,
		Summary: "List what others have changed on hosts",
		Help: "Every item of a host that was changed behind Shoal's back since the host's agent started: what differs or differed, since when, how often, and what " +
			"has become of it. " + driftHelp + " Policies are set with shoalctl host update and shoalctl cluster update.",
		Example: "shoalctl drift\nshoalctl drift --state held --host h1\nshoalctl host update h1 --drift domain=hold",
		Columns: []Column{
			{Title: "HOST", Path: "host"},
			{Title: "ITEM", Path: "kind"},
			{Title: "OF", Path: "resource"},
			{Title: "STATE", Path: "state"},
			{Title: "SINCE", Path: "since", As: "age"},
			{Title: "COUNT", Path: "count"},
			{Title: "POLICY", Path: "policy"},
			{Title: "WHAT", Path: "what"},
			{Title: "NOTE", Path: "note", Wide: true},
			{Title: "CONNECTED", Path: "connected", Wide: true},
			{Title: "ID", Path: "ref", Wide: true},
		},
	}, func(_ *Env, r resource.Reader, p *driftList) (any, error) {
		if p.Limit < 0 || p.Offset < 0 {
			return nil, resource.Invalid("limit", "limit and offset must not be negative")
		}
		all := slices.DeleteFunc(resource.Drifts(r), func(d resource.Drift) bool {
			return p.Host != "" && d.HostID != p.Host || p.Kind != "" && string(d.Kind) != p.Kind || p.State != "" && string(d.State) != p.State
		})
		page := Page{Items: []json.RawMessage{}, Total: len(all), Seq: r.Seq()}
		all = all[min(p.Offset, len(all)):]
		if p.Limit > 0 {
			all = all[:min(p.Limit, len(all))]
		}
		size := 0
		for i, d := range all {
			raw, err := json.Marshal(d)
			if err != nil {
				return nil, fmt.Errorf("encode drift of %s: %w", d.Ref, err)
			}
			if size += len(raw) + 1; size > maxPage && i > 0 {
				page.Next = p.Offset + i
				break
			}
			page.Items = append(page.Items, raw)
		}
		return page, nil
	})
}
