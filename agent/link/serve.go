package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"shoal/desired"
	"shoal/subjects"
)

// maxRequest bounds what the controller may ask with, maxAnswer what it gets.
const (
	maxRequest = 64 << 10
	maxAnswer  = 960 << 10
)

// Headers of an answer that is a refusal: those of a NATS service.
const (
	errorHeader     = "Nats-Service-Error"
	errorCodeHeader = "Nats-Service-Error-Code"
)

// serve answers the controller's requests to this host. Nobody else can make any: what is under this subject comes from the
// controllers' account or from nowhere (identity.links), and agents may not publish to it.
func (l *Link) serve(nc *nats.Conn) (*nats.Subscription, error) {
	sub, err := nc.Subscribe(subjects.Agent(l.cfg.Host, subjects.AgentVerbDocument), func(m *nats.Msg) { l.answer(m) })
	if err != nil {
		return nil, fmt.Errorf("serve requests: %w", err)
	}
	// Answers are large; a flood of requests is dropped.
	if err := sub.SetPendingLimits(16, 16*maxRequest); err != nil {
		return nil, fmt.Errorf("serve requests: %w", err)
	}
	return sub, nil
}

func (l *Link) answer(m *nats.Msg) {
	if m.Reply == "" {
		return
	}
	out := &nats.Msg{Subject: m.Reply, Header: nats.Header{}}
	b, err := l.document(m.Data)
	if err != nil {
		out.Header.Set(errorCodeHeader, "409")
		out.Header.Set(errorHeader, strings.Map(func(r rune) rune {
			if r < ' ' {
				return ' '
			}
			return r
		}, err.Error()))
	}
	out.Data = b
	if err := m.RespondMsg(out); err != nil {
		l.log.Warn().Err(err).Msg("request not answered")
	}
}

// document is a page of the document in the ledger.
func (l *Link) document(body []byte) ([]byte, error) {
	if len(body) > maxRequest {
		return nil, errors.New("the request is too long")
	}
	var req desired.DocumentRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, fmt.Errorf("the request can't be read: %w", err)
	}
	if l.cfg.Document == nil {
		return nil, errors.New("this agent hands out no document")
	}
	doc, ok := l.cfg.Document()
	if !ok {
		return nil, errors.New("this host was never told anything")
	}
	page, err := doc.Page(req)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(page)
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("a page of the document has %d bytes, at most %d fit", len(b), maxAnswer)
	}
	return b, err
}
