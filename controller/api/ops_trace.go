package api

import (
	"context"
	"fmt"
	"slices"

	"shoal/controller/resource"
)

// Kinds of what is asked about causes.
const (
	KindTrace resource.Kind = "trace"
	KindWhy   resource.Kind = "why"
)

// traces declares what follows a call to its effects, and the other way.
func traces(g *Registry) {
	type traceParams struct {
		Request string `json:"request" arg:"1" required:"true" help:"id of the request"`
	}
	asks(g, Operation{
		Kind: KindTrace, Verb: "get", Result: ResultOne, Command: "trace", Scope: ScopeAdmin,
		Summary: "Follow a call to all that it caused",
		Help: "The call, its transaction, what it changed, every item of every host's document that changed with it, what hosts did about that and when, and how it ended. Hosts' " +
			"times are by their own clocks. The id of a request is shown by --output json of any call, by the tasks and as the cause of every resource.",
		Example: "shoalctl trace 6f1f7a0e-9a3b-4f4c-8b3c-0a5f5f1f2b3c\nshoalctl trace REQUEST -o json",
		Columns: []Column{
			{Title: "REQUEST", Path: "request"}, {Title: "OP", Path: "op"}, {Title: "BY", Path: "caller"}, {Title: "AT", Path: "at"}, {Title: "STATE", Path: "state"}, {Title: "TOOK MS", Path: "took_ms"},
		},
	}, func(ctx context.Context, env *Env, r resource.Reader, p *traceParams) (any, error) {
		if env.Tracer == nil {
			return nil, noStreams()
		}
		t, err := env.Tracer.Trace(ctx, r, p.Request)
		if err != nil {
			return nil, timely(ctx, err)
		}
		return t, nil
	})
	type whyParams struct {
		About string `json:"about" arg:"1" required:"true" help:"vm, or a host by id or unique name"`
		Name  string `json:"name" arg:"2" required:"true" help:"the VM by id or unique name, or an item of the host: KIND.NAME or KIND.ID, such as domain.web1"`
	}
	asks(g, Operation{
		Kind: KindWhy, Verb: "get", Result: ResultOne, Command: "why", Scope: ScopeAdmin,
		Summary: "Say why a VM runs or doesn't, or which call made an item of a host what it is",
		Help: "For a VM one answer is made from what it was asked to be, where it was put, whether its host is heard of, what the host has got to, what it needs there, and what is " +
			"the matter with that. For an item of a host the answer goes back from what the host reports to the call that caused it.",
		Example: "shoalctl why vm web1\nshoalctl why h1 domain.web1\nshoalctl why h1 pool.local",
		Columns: []Column{{Title: "ANSWER", Path: "answer"}, {Title: "STATE", Path: "state"}, {Title: "REMEDY", Path: "remedy"}, {Title: "REQUEST", Path: "call.request"}},
	}, func(ctx context.Context, env *Env, r resource.Reader, p *whyParams) (any, error) {
		if env.Tracer == nil {
			return nil, noStreams()
		}
		if p.About == string(resource.KindVM) {
			id, err := lookup(r, "name", resource.KindVM, p.Name)
			if err != nil {
				return nil, err
			}
			vm, err := resource.Get[*resource.VM](r, id)
			if err != nil {
				return nil, err
			}
			answer, err := env.Tracer.VM(ctx, r, vm)
			return answer, timely(ctx, err)
		}
		if slices.Contains(resource.Kinds(), resource.Kind(p.About)) {
			return nil, resource.Invalid("about", "only a VM can be asked about by itself, not a %s", p.About).
				WithRemedy("ask about its item on a host: shoalctl why HOST %s.%s", p.About, p.Name)
		}
		id, err := lookup(r, "about", resource.KindHost, p.About)
		if err != nil {
			return nil, err
		}
		h, err := resource.Get[*resource.Host](r, id)
		if err != nil {
			return nil, err
		}
		answer, err := env.Tracer.Item(ctx, r, h, p.Name)
		return answer, timely(ctx, err)
	})
}

func noStreams() error {
	return &resource.Error{Code: resource.CodeInternal, Message: "this controller has no streams to read", Remedy: "ask a controller that leads"}
}

// timely says what to do where reading the streams took too long.
func timely(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return &resource.Error{
		Code: resource.CodeInternal, Message: fmt.Sprintf("reading the streams took longer than %s", readTimeout), Remedy: "ask again",
	}
}
