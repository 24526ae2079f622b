package api

import (
	"cmp"
	"slices"
	"time"

	"shoal/controller/resource"
)

// system declares what is asked of the service itself.
func system(g *Registry) {
	reads(g, Operation{
		Kind: KindSystem, Verb: "get", Result: ResultOne, Summary: "Show the controller that leads",
		Help: "Its name and version, and how far journal and documents are.", Example: "shoalctl system get",
		Columns: []Column{{Title: "NAME", Path: "name"}, {Title: "VERSION", Path: "version"}, {Title: "SEQ", Path: "seq"}, {Title: "PUBLISHED", Path: "published_seq"}},
	}, func(env *Env, r resource.Reader, _ *struct{}) (any, error) {
		counts := map[resource.Kind]int{}
		for _, k := range resource.Kinds() {
			for range r.All(k) {
				counts[k]++
			}
		}
		var at *time.Time
		if !env.moment.Time.IsZero() {
			at = &env.moment.Time
		}
		return struct {
			At           *time.Time            `json:"at,omitempty"`
			Name         string                `json:"name"`
			Version      string                `json:"version"`
			Seq          uint64                `json:"seq"`
			PublishedSeq uint64                `json:"published_seq"`
			Resources    map[resource.Kind]int `json:"resources"`
		}{at, env.Name, env.Version, r.Seq(), env.whole.Observed().PublishedSeq(), counts}, nil
	})
	type schemaParams struct {
		Kind string `json:"kind,omitempty" arg:"1" help:"kind whose operations to show; all where not given"`
		Verb string `json:"verb,omitempty" arg:"2" help:"verb of the operation"`
	}
	reads(g, Operation{
		Kind: KindSchema, Verb: "get", Result: ResultOne, Summary: "Show the JSON schema of operations",
		Help:    "With kind and verb the schema of the parameters and of the answer; with less the list of what there is.",
		Example: "shoalctl schema get vm create -o json", Columns: []Column{{Title: "OPERATIONS", Path: "operations"}},
	}, func(env *Env, _ resource.Reader, p *schemaParams) (any, error) {
		if p.Kind != "" && p.Verb != "" {
			op := env.Registry.Find(resource.Kind(p.Kind), p.Verb)
			if op == nil {
				return nil, (&resource.Error{Code: resource.CodeNotFound, Field: "verb", Message: "there is no operation " + p.Kind + "." + p.Verb}).
					WithRemedy("see shoalctl schema get")
			}
			return op.Schema(), nil
		}
		type entry struct {
			Operation string `json:"operation"`
			Class     Class  `json:"class"`
			Summary   string `json:"summary"`
		}
		var out struct {
			Operations []entry `json:"operations"`
		}
		for _, op := range env.Registry.Operations() {
			if p.Kind == "" || string(op.Kind) == p.Kind {
				out.Operations = append(out.Operations, entry{op.Name(), op.Class, op.Summary})
			}
		}
		if len(out.Operations) == 0 {
			return nil, resource.Invalid("kind", "%q has no operations", p.Kind).WithRemedy("see shoalctl schema get")
		}
		slices.SortFunc(out.Operations, func(a, b entry) int { return cmp.Compare(a.Operation, b.Operation) })
		return out, nil
	})
}
