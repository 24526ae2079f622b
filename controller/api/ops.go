package api

import (
	"fmt"
	"strings"

	"shoal/controller/plan"
	"shoal/controller/resource"
)

// one names the resource that an operation is about.
func article(kind resource.Kind) string {
	noun := noun(kind)
	if strings.ContainsRune("aeio", rune(noun[0])) || noun == "L2 network" || noun == "L3 network" || noun == "NIC" {
		return "an " + noun
	}
	return "a " + noun
}

// noun is what texts call a kind.
func noun(kind resource.Kind) string {
	switch kind {
	case resource.KindStorage:
		return "primary storage"
	case resource.KindOffering:
		return "instance offering"
	case resource.KindDiskOffering:
		return "disk offering"
	case resource.KindVXLANPool:
		return "VXLAN pool"
	case resource.KindL2:
		return "L2 network"
	case resource.KindL3:
		return "L3 network"
	case resource.KindIPRange:
		return "IP range"
	case resource.KindHostToken:
		return "join token"
	case resource.KindSecGroup:
		return "security group"
	case resource.KindSecRule:
		return "security group rule"
	case resource.KindVM:
		return "VM"
	case resource.KindNIC:
		return "NIC"
	default:
		return string(kind)
	}
}

// getParams name one resource.
type getParams struct {
	ID string `json:"id" arg:"1" required:"true" help:"id or unique name"`
}

// listParams select, sort and page resources.
type listParams struct {
	Where    []string `json:"where,omitempty" short:"w" help:"condition <field><op><value>; several must all hold. Fields may be dotted over relations, such as nic.ip=10.0.0.5; operators are = != > >= < <= ~= !~= in not-in is-null not-null"`
	Selector []string `json:"selector,omitempty" short:"l" help:"tag that it must have"`
	Sort     []string `json:"sort,omitempty" split:"true" help:"field to sort by; -field for descending"`
	Fields   []string `json:"fields,omitempty" split:"true" help:"field to show, dotted over relations; all where none is given"`
	Limit    int      `json:"limit,omitempty" help:"at most that many; 0 for all"`
	Offset   int      `json:"offset,omitempty" help:"leave out that many from the start"`
	Count    bool     `json:"count,omitempty" help:"count only"`
}

// readable declares get and list of a kind.
func readable(g *Registry, kind resource.Kind, where string, columns ...Column) {
	reads(g, Operation{
		Kind: kind, Verb: "get", Aliases: []string{"show"}, Result: ResultOne, Columns: columns,
		Summary: "Show " + article(kind),
		Help:    "Its fields, its status as it stands now, and the names of what it refers to.",
		Example: fmt.Sprintf("shoalctl %s get NAME -o yaml", Command(kind)),
	}, func(env *Env, r resource.Reader, p *getParams) (any, error) {
		id, err := lookup(r, "id", kind, p.ID)
		if err != nil {
			return nil, err
		}
		return view(env, r, r.Get(kind, id))
	})
	reads(g, Operation{
		Kind: kind, Verb: "list", Aliases: []string{"ls", "query"}, Result: ResultList, Columns: columns,
		Summary: fmt.Sprintf("List and query %s", plural(noun(kind))),
		Help: "Conditions may name any field, also those of the status (status.state=Running) and of related resources (host.name=h1, nic.ip=10.0.0.5); " +
			"relations follow a field like host_id as host, and lead back as the kind of those that refer to it.",
		Example: fmt.Sprintf("shoalctl %s list\nshoalctl %s list --where %s --sort name -o wide", Command(kind), Command(kind), where),
	}, func(env *Env, r resource.Reader, p *listParams) (any, error) { return list(env, r, kind, p) })
}

func plural(noun string) string {
	if before, ok := strings.CutSuffix(noun, "y"); ok {
		return before + "ies"
	}
	return noun + "s"
}

type deleteParams struct {
	ID      string `json:"id" arg:"1" required:"true" help:"id or unique name"`
	Cascade bool   `json:"cascade,omitempty" help:"also delete everything that belongs to it; see first with --dry-run"`
}

// deletable declares delete of a kind.
func deletable(g *Registry, kind resource.Kind, help string, paths ...string) {
	writes(g, Operation{
		Kind: kind, Verb: "delete", Aliases: []string{"rm"}, Class: Dangerous, Task: kindOnHosts(kind) || kind == resource.KindAccount, Paths: paths,
		Summary: "Delete " + article(kind),
		Help:    strings.TrimSpace("Refused while anything belongs to it, unless --cascade is given; --dry-run shows all that would go. " + help),
		Example: fmt.Sprintf("shoalctl %s delete NAME --dry-run", Command(kind)),
	}, func(tx resource.Tx, p *deleteParams) (Outcome, error) {
		id, err := lookup(tx, "id", kind, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		deleted, err := plan.Delete(tx, kind, id, plan.DeleteOptions{Cascade: p.Cascade})
		return Outcome{Deleted: deleted, Subject: resource.Ref{Kind: kind, ID: id}}, err
	})
}

// kindOnHosts reports whether changes of resources of a kind show on hosts.
func kindOnHosts(kind resource.Kind) bool {
	switch kind {
	case resource.KindZone, resource.KindOffering, resource.KindDiskOffering, resource.KindHost, resource.KindImage,
		resource.KindAccount, resource.KindPolicy, resource.KindGroup, resource.KindUser, resource.KindSession, resource.KindHostToken, resource.KindEnrolment,
		resource.KindRelease, resource.KindRollout:
		return false
	default:
		return true
	}
}

// switchable declares enable and disable of a kind. State gives the place of the switch; also lists what is switched
// with it.
func switchable[T resource.Resource](g *Registry, help string, state func(T) *resource.State, also func(tx resource.Tx, id string, to resource.State) error) {
	var zero T
	kind := zero.Kind()
	for _, s := range []struct {
		verb, summary string
		to            resource.State
	}{
		{"enable", "Enable " + article(kind), resource.Enabled},
		{"disable", "Disable " + article(kind), resource.Disabled},
	} {
		writes(g, Operation{
			Kind: kind, Verb: s.verb, Summary: s.summary, Help: "What is there goes on working; nothing new is put on what is disabled. " + help,
			Example: fmt.Sprintf("shoalctl %s %s NAME", kind, s.verb),
		}, func(tx resource.Tx, p *getParams) (Outcome, error) {
			return change(tx, p.ID, func(x T) error {
				*state(x) = s.to
				if also != nil {
					return also(tx, x.Base().ID, s.to)
				}
				return nil
			})
		})
	}
}

// change edits a copy of a resource and puts it back.
func change[T resource.Resource](tx resource.Tx, ref string, edit func(T) error) (Outcome, error) {
	var zero T
	id, err := lookup(tx, "id", zero.Kind(), ref)
	if err != nil {
		return Outcome{}, err
	}
	old, err := resource.Get[T](tx, id)
	if err != nil {
		return Outcome{}, err
	}
	c := resource.Copy(old)
	if err := edit(c); err != nil {
		return Outcome{}, err
	}
	return did(plan.Update(tx, c))
}

// updatable declares update of a kind; P embeds getParams and metaChange.
func updatable[T resource.Resource, P any](g *Registry, example, help string, parts func(*P) (string, metaChange), edit func(tx resource.Tx, p *P, x T) error) {
	var zero T
	kind := zero.Kind()
	writes(g, Operation{
		Kind: kind, Verb: "update", Aliases: []string{"set"}, Task: kindOnHosts(kind),
		Summary: "Change " + article(kind), Help: strings.TrimSpace("What is not given stays as it is. " + help), Example: "shoalctl " + string(kind) + " update " + example,
	}, func(tx resource.Tx, p *P) (Outcome, error) {
		id, m := parts(p)
		return change(tx, id, func(x T) error {
			m.apply(x.Base())
			if edit == nil {
				return nil
			}
			return edit(tx, p, x)
		})
	})
}

// metaUpdate are the parameters of kinds of which only the common fields can change.
type metaUpdate struct {
	getParams
	metaChange
}

func metaUpdateParts(p *metaUpdate) (string, metaChange) { return p.ID, p.metaChange }

func create[T resource.Resource](tx resource.Tx, r T) (Outcome, error) {
	return did(plan.Create(tx, r))
}

// age is the last column of most tables.
func age() Column { return Column{Title: "AGE", Path: "created", As: "age"} }

func idColumn() Column { return Column{Title: "ID", Path: "id", Wide: true} }
