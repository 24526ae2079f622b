package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"shoal/controller/history"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/subjects"
)

// agentHandler answers an agent. The server vouches for the host's id, and for what info says of the connection.
type agentHandler func(ctx context.Context, host string, info requestInfo, body []byte) (answer []byte, err error)

// forAgents handles requests of agents by a handler. What it refuses is recorded.
func (s *Service) forAgents(ctx context.Context, handle agentHandler) func(micro.Request) {
	return func(req micro.Request) {
		if req.Reply() == "" {
			return
		}
		host, verb, err := subjects.ParseAgentAPI(req.Subject())
		defer s.recovered(req, "agent."+verb, host)
		var info requestInfo
		if err == nil {
			info, err = admit(req, s.cfg.AgentAccount)
		}
		var answer []byte
		if err == nil {
			answer, err = handle(ctx, host, info, req.Data())
		}
		if err != nil {
			s.refuseAgent(ctx, req, host, verb, info, err)
			return
		}
		s.send(req, &nats.Msg{Data: answer})
	}
}

// agentRequest reads what an agent asks. Fields that are not known are a newer agent's.
func agentRequest[T any](body []byte) (p T, err error) {
	if len(body) > MaxRequestBytes {
		return p, resource.Invalid("request", "is too long")
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return p, resource.Invalid("request", "is not JSON: %v", err)
	}
	return p, nil
}

// refuseAgent refuses a request of an agent, for which the server vouches where it has said from where it comes.
func (s *Service) refuseAgent(ctx context.Context, req micro.Request, host, verb string, info requestInfo, err error) {
	n := history.Note{Request: resource.Request{ID: uuid.NewString(), Caller: host, From: info.Host, Op: "agent." + verb, Started: s.now()}}
	if info.User == "" {
		n.Caller, n.Guest = unverified, true
	}
	if !errors.Is(err, store.ErrNotLeading) {
		s.note(ctx, n, err)
	}
	s.refuse(req, n.Op, host, err)
}
