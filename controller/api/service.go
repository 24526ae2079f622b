package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/subjects"
)

// Store is what the service needs of the store.
type Store interface {
	View() resource.Reader
	Commit(ctx context.Context, req resource.Request, fn func(tx resource.Tx) error) (uint64, error)
	DryRun(ctx context.Context, req resource.Request, fn func(tx resource.Tx) error) (before, after resource.Reader, err error)
}

// Config is what a service is made of.
type Config struct {
	Store Store
	Conn  *nats.Conn
	Env   Env
	// ImageURLs are the addresses at which a host may fetch an image, and until when.
	ImageURLs func(id string) (urls []string, expires time.Time, err error)
	Log       zerolog.Logger
}

// Limits of the service.
const (
	// maxInFlight is how many requests are worked on at once. They wait for the journal together, so that many of them
	// share one write.
	maxInFlight = 512
	// writeTimeout bounds the wait for the journal. An answer that comes later is of no use to a caller; a repetition
	// with the same request id finds out what became of it.
	writeTimeout = 5 * time.Second
	// maxAnswer keeps an answer below the server's limit of 1 MiB for messages, headers included.
	maxAnswer = 960 << 10
)

// HeaderRequestID is the header that may hold the id of a request instead of its body.
const HeaderRequestID = "Shoal-Request-Id"

// headerRequestInfo is stamped by the server onto requests that come through an import with "share".
const headerRequestInfo = "Nats-Request-Info"

// Service answers requests.
type Service struct {
	cfg      Config
	registry *Registry
	slots    chan struct{}
}

// New makes a service.
func New(cfg Config) *Service {
	if cfg.Env.Registry == nil {
		cfg.Env.Registry = NewRegistry()
	}
	if cfg.Env.Now == nil {
		cfg.Env.Now = time.Now
	}
	return &Service{cfg: cfg, registry: cfg.Env.Registry, slots: make(chan struct{}, maxInFlight)}
}

// Run serves until ctx ends, then lets the requests that it has taken finish.
func (s *Service) Run(ctx context.Context) error {
	// Requests that were taken are finished when the service stops, within their own time.
	work := context.WithoutCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	svc, err := micro.AddService(s.cfg.Conn, micro.Config{
		Name: "shoal", Version: "1.0.0", Description: "Shoal controller " + s.cfg.Env.Name + " " + s.cfg.Env.Version,
		Metadata: map[string]string{"schema": subjects.API("<you>", string(KindSchema), "get")},
	})
	if err != nil {
		return fmt.Errorf("register service: %w", err)
	}
	defer func() {
		if err := svc.Stop(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			s.cfg.Log.Warn().Err(err).Msg("service did not stop cleanly")
		}
	}()
	for _, op := range s.registry.Operations() {
		err := svc.AddEndpoint(string(op.Kind)+"-"+op.Verb, s.concurrent(&wg, func(req micro.Request) { s.answer(work, op, req) }),
			micro.WithEndpointSubject(subjects.APIEndpoint(string(op.Kind), op.Verb)), micro.WithEndpointPendingLimits(8192, 64<<20),
			micro.WithEndpointMetadata(map[string]string{
				"class": string(op.Class), "summary": op.Summary, "schema": fmt.Sprintf(`%s {"kind":%q,"verb":%q}`, subjects.API("<you>", string(KindSchema), "get"), op.Kind, op.Verb),
			}))
		if err != nil {
			return fmt.Errorf("register operation %s: %w", op.Name(), err)
		}
	}
	if s.cfg.ImageURLs != nil {
		err := svc.AddEndpoint("agent-image-url", s.concurrent(&wg, s.answerImageURL), micro.WithEndpointSubject(subjects.AgentAPIEndpoint("image-url")),
			micro.WithEndpointMetadata(map[string]string{"class": string(Read), "summary": "for agents: where to fetch an image"}))
		if err != nil {
			return fmt.Errorf("register image-url: %w", err)
		}
	}
	if err := s.cfg.Conn.FlushTimeout(writeTimeout); err != nil && ctx.Err() == nil {
		return fmt.Errorf("register service: %w", err)
	}
	s.cfg.Log.Info().Int("operations", len(s.registry.Operations())).Msg("api is served")
	<-ctx.Done()
	return nil
}

// concurrent gets a request off the endpoint's own goroutine: micro handles those of one endpoint one after the other,
// and a write waits for the disk.
func (s *Service) concurrent(wg *sync.WaitGroup, handle func(micro.Request)) micro.Handler {
	return micro.HandlerFunc(func(req micro.Request) {
		s.slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-s.slots }()
			handle(req)
		})
	})
}

// requestInfo is what the server tells of a requester (nats-server, ClientInfo).
type requestInfo struct {
	Account string `json:"acc"`
	User    string `json:"user"`
}

// admit checks that a request came through the users' (or agents') import and that its answer goes to a requester. Without
// that check somebody inside could aim our answer at a subject that only we may write.
func admit(req micro.Request) error {
	reply := req.Reply()
	if !strings.HasPrefix(reply, "_R_.") && !strings.HasPrefix(reply, "_INBOX") {
		return &resource.Error{Code: resource.CodeForbidden, Message: "the reply subject is not an inbox", Remedy: "make requests with a NATS client's request function"}
	}
	var info requestInfo
	if err := json.Unmarshal([]byte(req.Headers().Get(headerRequestInfo)), &info); err != nil || info.Account == "" {
		return &resource.Error{
			Code: resource.CodeForbidden, Message: "the server does not vouch for the caller",
			Remedy: "connect with the credentials of a user (account USR), not with those of the controllers",
		}
	}
	return nil
}

func (s *Service) answer(ctx context.Context, op *Operation, req micro.Request) {
	if req.Reply() == "" {
		return // nobody waits for the answer, so nobody knows what was done: not a way to change anything
	}
	started := s.cfg.Env.Now()
	caller, _, _, err := subjects.ParseAPI(req.Subject())
	var answer any
	// A mistake in one operation must not take down the controller and all that it answers for.
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.Error().Str("op", op.Name()).Str("caller", caller).Interface("panic", r).Bytes("stack", debug.Stack()).Msg("operation panicked")
			s.refuse(req, op.Name(), caller, &resource.Error{
				Code: resource.CodeInternal, Message: "the controller made a mistake with this request", Remedy: "report it with the controller's log",
			})
		}
	}()
	if err == nil {
		err = admit(req)
	}
	if err == nil {
		answer, err = s.Call(ctx, op, caller, req.Headers().Get(HeaderRequestID), req.Data())
	}
	if err != nil {
		s.refuse(req, op.Name(), caller, err)
		return
	}
	body, err := json.Marshal(answer)
	if err != nil {
		s.refuse(req, op.Name(), caller, fmt.Errorf("encode answer: %w", err))
		return
	}
	if len(body) > maxAnswer {
		s.refuse(req, op.Name(), caller, resource.Invalid("limit", "the answer is %d bytes long, which is too much for one message", len(body)).WithRemedy("ask for less"))
		return
	}
	s.send(req, &nats.Msg{Data: body})
	if took := s.cfg.Env.Now().Sub(started); took > time.Second {
		s.cfg.Log.Warn().Str("op", op.Name()).Str("caller", caller).Dur("took", took).Msg("answer took long")
	}
}

// send publishes an answer. It does not go through micro.Request, which may be used on micro's own goroutine only.
func (s *Service) send(req micro.Request, m *nats.Msg) {
	m.Subject = req.Reply()
	if err := s.cfg.Conn.PublishMsg(m); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("answer could not be sent")
	}
}

func (s *Service) refuse(req micro.Request, op, caller string, err error) {
	var e *resource.Error
	if !errors.As(err, &e) {
		code := resource.CodeInternal
		remedy := "repeat it with the same request id; if it happens again, read the controller's log"
		if errors.Is(err, context.DeadlineExceeded) {
			remedy = "the journal did not answer in time; repeat it with the same request id"
		}
		e = &resource.Error{Code: code, Message: err.Error(), Remedy: remedy}
		s.cfg.Log.Error().Err(err).Str("op", op).Str("caller", caller).Msg("request failed")
	}
	body, encodeErr := json.Marshal(e)
	if encodeErr != nil {
		body = []byte(`{"code":"internal","message":"the error could not be encoded"}`)
	}
	text := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, e.Error())
	if len(text) > 1024 {
		text = text[:1024]
	}
	s.send(req, &nats.Msg{Data: body, Header: nats.Header{
		micro.ErrorCodeHeader: []string{strconv.Itoa(e.Code.Number())}, micro.ErrorHeader: []string{text},
	}})
}

// Call does what a request asks for. It is what the endpoints call, without NATS.
func (s *Service) Call(ctx context.Context, op *Operation, caller, requestID string, body []byte) (any, error) {
	// Decoded here once, so that a wrong request costs nothing; and again in every run of the transaction, which
	// resolves names in place.
	params, common, err := op.Decode(body)
	if err != nil {
		return nil, err
	}
	if op.read != nil {
		r := s.cfg.Store.View()
		if err := op.resolve(r, params); err != nil {
			return nil, err
		}
		return op.read(&s.cfg.Env, r, params)
	}
	if common.Request != "" {
		requestID = common.Request
	}
	if requestID == "" {
		requestID = uuid.NewString()
	}
	if !subjects.ValidToken(requestID) {
		return nil, resource.Invalid("request", "%q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", requestID)
	}
	return s.write(ctx, op, resource.Request{ID: requestID, Caller: caller, Op: op.Name(), Params: params0(body)}, body, common.DryRun)
}

// params0 is what the journal keeps of a request's body. No parameter is a secret: see checkImageURL.
func params0(body []byte) json.RawMessage {
	if len(strings.TrimSpace(string(body))) == 0 {
		return nil
	}
	return json.RawMessage(body)
}

func (s *Service) write(ctx context.Context, op *Operation, req resource.Request, body []byte, dry bool) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var out Outcome
	var tasks []string
	var params any
	run := func(tx resource.Tx) (err error) {
		out, tasks = Outcome{}, nil
		if params, _, err = op.Decode(body); err != nil {
			return err
		}
		if err := op.resolve(tx, params); err != nil {
			return err
		}
		if out, err = op.write(tx, params); err != nil {
			return err
		}
		if op.Task {
			tasks, err = makeTasks(tx, out)
		}
		return err
	}
	reply := &Reply{Request: req.ID, DryRun: dry}
	var r resource.Reader
	if dry {
		before, after, err := s.cfg.Store.DryRun(ctx, req, run)
		if err != nil {
			return nil, err
		}
		if reply.Documents, err = plan.DocumentDiff(before, after); err != nil {
			return nil, fmt.Errorf("compare documents: %w", err)
		}
		r, tasks = after, nil
	} else {
		seq, err := s.cfg.Store.Commit(ctx, req, run)
		r = s.cfg.Store.View()
		switch {
		case errors.Is(err, store.ErrRepeated):
			out, tasks = repeated(r, op, req.ID)
			reply.Repeated = true
		case err != nil:
			return nil, err
		}
		reply.Seq = seq
	}
	reply.Deleted = out.Deleted
	if len(tasks) > 0 {
		reply.Task = tasks[0]
	}
	if len(tasks) > 1 {
		reply.Tasks = tasks
	}
	for i, res := range out.Resources {
		if now := r.Get(res.Kind(), res.Base().ID); now != nil {
			res = now
		}
		v, err := view(&s.cfg.Env, r, res)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			reply.Resource, reply.main = v, res
		}
		if len(out.Resources) > 1 {
			reply.Resources = append(reply.Resources, v)
		}
	}
	if op.after != nil {
		if err := op.after(&s.cfg.Env, r, params, reply); err != nil {
			return nil, fmt.Errorf("finish %s: %w", op.Name(), err)
		}
	}
	return reply, nil
}

// makeTasks makes one task for each resource of a call. The call's own is the first; the others' request ids have a
// number, since a request has one task.
func makeTasks(tx resource.Tx, out Outcome) ([]string, error) {
	about := []resource.Ref{out.Subject}
	if len(out.Resources) > 0 {
		about = about[:0]
		for _, r := range out.Resources {
			about = append(about, resource.Ref{Kind: r.Kind(), ID: r.Base().ID})
		}
	}
	var ids []string
	for i, ref := range about {
		if i == 0 {
			t, err := plan.NewTask(tx, ref.Kind, ref.ID)
			if err != nil {
				return nil, err
			}
			ids = append(ids, t.ID)
			continue
		}
		req := tx.Request()
		t := &resource.Task{
			State: resource.TaskRunning, Op: req.Op, RequestID: fmt.Sprintf("%s.%d", req.ID, i), Caller: req.Caller, ResourceKind: ref.Kind, ResourceID: ref.ID,
		}
		t.ID, t.Name, t.Owner = tx.NewID(), req.Op, req.Caller
		if err := tx.Put(t); err != nil {
			return nil, err
		}
		ids = append(ids, t.ID)
	}
	return ids, nil
}

// repeated finds what an earlier call with the same request id has made.
func repeated(r resource.Reader, op *Operation, requestID string) (Outcome, []string) {
	var out Outcome
	var tasks []string
	for i := 0; ; i++ {
		id := requestID
		if i > 0 {
			id = fmt.Sprintf("%s.%d", requestID, i)
		}
		t := plan.TaskOf(r, id)
		if t == nil {
			break
		}
		tasks = append(tasks, t.ID)
		if res := r.Get(t.ResourceKind, t.ResourceID); res != nil {
			out.Resources = append(out.Resources, res)
		}
	}
	if len(tasks) > 0 {
		return out, tasks
	}
	for res := range r.All(op.Kind) {
		if res.Base().Cause == requestID {
			out.Resources = append(out.Resources, res)
		}
	}
	return out, nil
}

// ImageURLRequest is what an agent asks; ImageURLReply is the answer.
type (
	ImageURLRequest struct {
		Image string `json:"image"`
	}
	ImageURLReply struct {
		URLs    []string  `json:"urls"`
		Expires time.Time `json:"expires"`
	}
)

func (s *Service) answerImageURL(req micro.Request) {
	if req.Reply() == "" {
		return
	}
	host, verb, err := subjects.ParseAgentAPI(req.Subject())
	if err == nil {
		err = admit(req)
	}
	var p ImageURLRequest
	if err == nil {
		if len(req.Data()) > MaxRequestBytes {
			err = resource.Invalid("request", "is too long")
		} else if jsonErr := json.Unmarshal(req.Data(), &p); jsonErr != nil {
			err = resource.Invalid("request", "is not JSON: %v", jsonErr)
		}
	}
	if err == nil && s.cfg.Store.View().Get(resource.KindHost, host) == nil {
		err = resource.NotFound(resource.KindHost, host)
	}
	var answer ImageURLReply
	if err == nil {
		answer.URLs, answer.Expires, err = s.cfg.ImageURLs(p.Image)
	}
	if err != nil {
		s.refuse(req, "agent."+verb, host, err)
		return
	}
	body, err := json.Marshal(answer)
	if err != nil {
		s.refuse(req, "agent."+verb, host, err)
		return
	}
	s.send(req, &nats.Msg{Data: body})
}
