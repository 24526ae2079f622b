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

	"shoal/controller/access"
	"shoal/controller/history"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
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
	// Roles tell who signed a caller's credentials, by the public key of the signer.
	Roles map[string]Role
	// UserAccount is the NATS account of people and programs, AgentAccount that of agents, GuestAccount that of those without
	// credentials: a request must come from the right one.
	UserAccount, AgentAccount, GuestAccount string
	// SealTo encrypts an answer to a guest's curve key, and says by which key.
	SealTo func(box string, plain []byte) (sealed []byte, by string, err error)
	// ImageURLs are the addresses at which a host may fetch an image, and until when.
	ImageURLs func(id string) (urls []string, expires time.Time, err error)
	// Record records a call that changed nothing: one that was refused, with why, and where AuditReads is set one that read. Nil for no
	// record.
	Record     func(context.Context, history.Note)
	AuditReads bool
	Log        zerolog.Logger
}

// Limits of the service.
const (
	// maxInFlight is how many requests are worked on at once. They wait for the journal together, so that many of them
	// share one write.
	maxInFlight = 512
	// writeTimeout bounds the wait for the journal. An answer that comes later is of no use to a caller; a repetition
	// with the same request id finds out what became of it.
	writeTimeout = 5 * time.Second
	// readTimeout bounds the work for a read of the past.
	readTimeout = 30 * time.Second
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
	// logins and enrols slow down those who guess passwords and tokens.
	logins, enrols *throttle
}

// New makes a service.
func New(cfg Config) *Service {
	if cfg.Env.Registry == nil {
		cfg.Env.Registry = NewRegistry()
	}
	if cfg.Env.Now == nil {
		cfg.Env.Now = time.Now
	}
	return &Service{
		cfg: cfg, registry: cfg.Env.Registry, slots: make(chan struct{}, maxInFlight),
		// A person mistypes a few times; a rack of machines may come from one address, and each asks every few seconds.
		logins: newThrottle(time.Second, 20, 5), enrols: newThrottle(50*time.Millisecond, 200, 20),
	}
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
	if err := s.guests(work, svc, func(handle func(micro.Request)) micro.Handler { return s.concurrent(&wg, handle) }); err != nil {
		return fmt.Errorf("register requests of guests: %w", err)
	}
	if s.cfg.ImageURLs != nil {
		err := svc.AddEndpoint("agent-image-url", s.concurrent(&wg, s.forAgents(work, s.answerImageURL)), micro.WithEndpointSubject(subjects.AgentAPIEndpoint("image-url")),
			micro.WithEndpointMetadata(map[string]string{"class": string(Read), "summary": "for agents: where to fetch an image"}))
		if err != nil {
			return fmt.Errorf("register image-url: %w", err)
		}
	}
	if s.cfg.Env.Releases != nil {
		err := svc.AddEndpoint("agent-"+desired.ReleaseVerb, s.concurrent(&wg, s.forAgents(work, s.answerRelease)),
			micro.WithEndpointSubject(subjects.AgentAPIEndpoint(desired.ReleaseVerb)),
			micro.WithEndpointMetadata(map[string]string{"class": string(Read), "summary": "for agents: a part of the release to run"}))
		if err != nil {
			return fmt.Errorf("register %s: %w", desired.ReleaseVerb, err)
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

// requestInfo is what the server tells of a requester (nats-server, ClientInfo). The requester can't forge it.
type requestInfo struct {
	Account string `json:"acc"`
	// User is the requester's public key, Issuer that of who signed its credentials.
	User   string `json:"user"`
	Issuer string `json:"issuer_key"`
	Host   string `json:"host"`
}

// admit checks that a request came through the import of the account that it must come from, and that its answer goes to a
// requester. Without that check somebody inside could aim our answer at a subject that only we may write.
func admit(req micro.Request, account string) (requestInfo, error) {
	reply := req.Reply()
	if !strings.HasPrefix(reply, "_R_.") && !strings.HasPrefix(reply, "_INBOX") {
		return requestInfo{}, &resource.Error{Code: resource.CodeForbidden, Message: "the reply subject is not an inbox", Remedy: "make requests with a NATS client's request function"}
	}
	var info requestInfo
	if err := json.Unmarshal([]byte(req.Headers().Get(headerRequestInfo)), &info); err != nil || info.Account == "" || info.Account != account {
		return requestInfo{}, &resource.Error{
			Code: resource.CodeForbidden, Message: "the server does not vouch for the caller",
			Remedy: "connect with the credentials of a user (account USR), not with those of the controllers",
		}
	}
	return info, nil
}

func (s *Service) answer(ctx context.Context, op *Operation, req micro.Request) {
	if req.Reply() == "" {
		return // nobody waits for the answer, so nobody knows what was done: not a way to change anything
	}
	started := s.cfg.Env.Now()
	caller, _, _, err := subjects.ParseAPI(req.Subject())
	var answer any
	defer s.recovered(req, op.Name(), caller)
	var info requestInfo
	if err == nil {
		if info, err = admit(req, s.cfg.UserAccount); err != nil {
			req := resource.Request{ID: uuid.NewString(), Caller: unverified, From: info.Host, Op: op.Name(), Started: started.UTC().Round(0)}
			s.note(ctx, history.Note{Request: req, Guest: true, Durable: op.Class != Read}, err)
		}
	}
	if err == nil {
		who := Caller{Token: caller, Key: info.User, Issuer: info.Issuer, From: info.Host, Started: started.UTC().Round(0)}
		answer, err = s.Call(ctx, op, who, req.Headers().Get(HeaderRequestID), req.Data())
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

// recovered answers a request that the controller panicked at: a mistake in one operation must not take down the controller and all
// that it answers for. It is to be deferred.
func (s *Service) recovered(req micro.Request, op, caller string) {
	r := recover()
	if r == nil {
		return
	}
	s.cfg.Log.Error().Str("op", op).Str("caller", caller).Interface("panic", r).Bytes("stack", debug.Stack()).Msg("operation panicked")
	s.refuse(req, op, caller, &resource.Error{
		Code: resource.CodeInternal, Message: "the controller made a mistake with this request", Remedy: "report it with the controller's log",
	})
}

// send publishes an answer. It does not go through micro.Request, which may be used on micro's own goroutine only.
func (s *Service) send(req micro.Request, m *nats.Msg) {
	m.Subject = req.Reply()
	if err := s.cfg.Conn.PublishMsg(m); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("answer could not be sent")
	}
}

func (s *Service) refuse(req micro.Request, op, caller string, err error) {
	e := s.refusal(op, caller, err)
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
func (s *Service) Call(ctx context.Context, op *Operation, caller Caller, requestID string, body []byte) (any, error) {
	// Whose it is, is not known yet, and a stranger's id of a request must not pass for somebody else's.
	req := resource.Request{ID: uuid.NewString(), Caller: caller.Token, From: caller.From, Op: op.Name(), Started: caller.Started}
	answer, dry, err := s.call(ctx, op, caller, requestID, &req, body)
	if errors.Is(err, store.ErrNotLeading) {
		return nil, err // asked again, the leader answers, and records it
	}
	if e, ok := errors.AsType[*resource.Error](err); ok {
		// An error names nothing that the caller does not see, either; nor does the record of it, which the caller may read.
		view := s.cfg.Store.View()
		if who, unknown := s.principal(view, caller); unknown == nil {
			answer, err = nil, access.Hide(view, who, e)
		}
	}
	switch {
	case err != nil:
		s.note(ctx, history.Note{Request: req, Durable: op.Class != Read && !dry}, err)
	case s.cfg.AuditReads && (op.read != nil || dry):
		s.note(ctx, history.Note{Request: req, Reply: kept(answer)}, nil)
	}
	return answer, err
}

// unverified is who called where no server vouches for a name.
const unverified = "unverified"

// note records a call that changed nothing. The others are in the journal by what they changed.
func (s *Service) note(ctx context.Context, n history.Note, err error) {
	if s.cfg.Record == nil {
		return
	}
	if err != nil {
		n.Refusal = err.Error()
		if why, ok := errors.AsType[*guestError](err); ok {
			n.Refusal = why.why
		}
		if e, ok := errors.AsType[*resource.Error](err); ok {
			n.Reply = kept(e)
		}
	}
	s.cfg.Record(ctx, n)
}

// call does a request, and fills in what is found out about it on the way: it is recorded as far as that went.
func (s *Service) call(ctx context.Context, op *Operation, caller Caller, requestID string, req *resource.Request, body []byte) (answer any, dry bool, err error) {
	full := s.cfg.Store.View()
	who, err := s.principal(full, caller)
	if err != nil {
		return nil, false, err
	}
	req.Caller, req.Account, req.Session, req.From, req.Admin = who.ID, who.Account, who.Session, who.From, who.Admin
	// Decoded here once, so that a wrong request costs nothing; and again in every run of the transaction, which
	// resolves names in place.
	params, common, err := op.Decode(body)
	if common.Request != "" {
		requestID = common.Request
	}
	valid := subjects.ValidToken(requestID)
	if valid {
		req.ID = scopedRequest(who, requestID)
	} else if requestID == "" {
		req.ID, valid = scopedRequest(who, req.ID), true
	}
	if err != nil {
		return nil, false, err
	}
	// Not before it was decoded: what can't be read can't be masked either.
	req.Params = s.recorded(op, body)
	if op.read != nil {
		answer, err = s.read(ctx, op, full, who, params, common.At)
		return answer, false, err
	}
	if err := op.authorise(full, access.View(full, who), who, params); err != nil {
		return nil, common.DryRun, err
	}
	if !valid {
		return nil, common.DryRun, resource.Invalid("request", "%q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", requestID)
	}
	var prepared any
	if op.prepare != nil {
		if prepared, err = op.prepare(ctx, s.env(full, who), full, who, params); err != nil {
			return nil, common.DryRun, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if op.serve != nil {
		answer, err = op.serve(ctx, s, served{op, *req, caller, who, params, common.DryRun})
		return answer, common.DryRun, err
	}
	reply, err := s.write(ctx, op, caller, *req, body, prepared, common.DryRun)
	if err != nil {
		return nil, common.DryRun, err // not a nil pointer in an interface
	}
	return reply, common.DryRun, nil
}

// read answers a read, of now or of a moment of the past.
func (s *Service) read(ctx context.Context, op *Operation, full resource.Reader, who access.Principal, params any, at string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	env := s.env(full, who)
	if at != "" {
		if err := s.turnBack(ctx, op, env, at); err != nil {
			return nil, err
		}
	}
	seen := access.Past(env.whole, full, who)
	if err := op.authorise(env.whole, seen, who, params); err != nil {
		return nil, err
	}
	return op.read(ctx, env, seen, params)
}

// turnBack makes what an operation sees that of a moment of the past.
func (s *Service) turnBack(ctx context.Context, op *Operation, env *Env, at string) (err error) {
	switch {
	case env.History == nil:
		return noHistory()
	case env.caller.User != "" && !env.caller.Everything():
		// Its policies were others then, or none.
		return (&resource.Error{Code: resource.CodeForbidden, Field: "at", Message: "the past is shown to accounts, not to their users"}).
			WithRemedy("ask your account's administrator")
	}
	if env.moment, err = env.History.Parse(ctx, at); err != nil || op.streams {
		return err
	}
	env.ImageProgress = nil // that of now
	env.whole, err = env.History.At(ctx, env.moment)
	return err
}

func noHistory() error {
	return &resource.Error{Code: resource.CodeInternal, Message: "this controller keeps no history", Remedy: "ask one that was started with a data directory"}
}

// served is a call as operations get it that work in a Service.
type served struct {
	op     *Operation
	req    resource.Request
	caller Caller
	who    access.Principal
	params any
	dry    bool
}

// env is what an operation of a caller needs beside the store.
func (s *Service) env(full resource.Reader, who access.Principal) *Env {
	e := s.cfg.Env
	e.caller, e.whole = who, full
	return &e
}

// scopedRequest makes request ids of one account its own, whatever ids others use.
func scopedRequest(who access.Principal, id string) string {
	if who.Everything() || strings.HasSuffix(id, "@"+who.Account) {
		return id
	}
	return id + "@" + who.Account
}

func (s *Service) write(ctx context.Context, op *Operation, caller Caller, req resource.Request, body []byte, prepared any, dry bool) (*Reply, error) {
	var out Outcome
	var tasks []string
	var who access.Principal
	run := func(tx resource.Tx) (err error) {
		tasks = nil
		if out, who, err = s.one(tx, op, caller, body, prepared); err != nil {
			return err
		}
		if op.Task {
			if tasks, err = makeTasks(tx, out); err != nil {
				return err
			}
		}
		answered(tx, out, tasks)
		return nil
	}
	reply := &Reply{Request: req.ID, DryRun: dry}
	var full resource.Reader
	if dry {
		before, after, err := s.cfg.Store.DryRun(ctx, req, run)
		if err != nil {
			return nil, err
		}
		// Documents show what hosts and networks are made of.
		if who.Everything() {
			if reply.Documents, err = plan.DocumentDiff(before, after); err != nil {
				return nil, fmt.Errorf("compare documents: %w", err)
			}
		}
		full, tasks = after, nil
	} else {
		seq, err := s.cfg.Store.Commit(ctx, req, run)
		full = s.cfg.Store.View()
		switch {
		case errors.Is(err, store.ErrRepeated):
			var unknown error
			if who, unknown = s.principal(full, caller); unknown != nil {
				return nil, unknown
			}
			out, tasks = repeated(access.View(full, who), op, req.ID)
			reply.Repeated = true
		case err != nil:
			return nil, err
		}
		reply.Seq = seq
	}
	env, err := s.finish(reply, full, who, out, tasks)
	if err != nil {
		return nil, err
	}
	if op.after != nil {
		if err := op.after(env, full, prepared, reply); err != nil {
			return nil, fmt.Errorf("finish %s: %w", op.Name(), err)
		}
	}
	return reply, nil
}

// one runs one operation in a transaction: every change of resources that anybody asks for, alone or in a plan, comes through here.
func (s *Service) one(tx resource.Tx, op *Operation, caller Caller, body []byte, prepared any) (out Outcome, who access.Principal, err error) {
	params, _, err := op.Decode(body)
	if err != nil {
		return out, who, err
	}
	// What the caller may do is decided again where it is done: it may have changed since.
	if who, err = s.principal(tx, caller); err != nil {
		return out, who, err
	}
	if err := op.authorise(tx, access.View(tx, who), who, params); err != nil {
		return out, who, err
	}
	var before access.Use
	if !who.Admin {
		before = access.Usage(tx, who.Account)
	}
	if out, err = op.write(tx, params, prepared); err != nil {
		return out, who, err
	}
	if !who.Admin {
		err = access.CheckQuota(tx, who.Account, before)
	}
	return out, who, err
}

// still decides in a transaction whether the caller may do it, as it was decided before.
func (s *Service) still(tx resource.Tx, in served) error {
	who, err := s.principal(tx, in.caller)
	if err != nil {
		return err
	}
	return in.op.authorise(tx, access.View(tx, who), who, in.params)
}

// finish puts what was done into the answer, as the caller sees it now.
func (s *Service) finish(reply *Reply, full resource.Reader, who access.Principal, out Outcome, tasks []string) (*Env, error) {
	reply.Deleted = out.Deleted
	if len(tasks) > 0 {
		reply.Task = tasks[0]
	}
	if len(tasks) > 1 {
		reply.Tasks = tasks
	}
	env, seen := s.env(full, who), access.View(full, who)
	for i, res := range out.Resources {
		if reply.main == nil {
			reply.main = res
		}
		now := seen.Get(res.Kind(), res.Base().ID)
		if now == nil {
			continue // it is gone again, or no longer the caller's
		}
		v, err := view(env, seen, now)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			reply.Resource = v
		}
		if len(out.Resources) > 1 {
			reply.Resources = append(reply.Resources, v)
		}
	}
	return env, nil
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
		id, err := furtherTask(tx, ref, i)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// furtherTask makes the i-th further task of a call.
func furtherTask(tx resource.Tx, ref resource.Ref, i int) (string, error) {
	req := tx.Request()
	t := &resource.Task{
		State: resource.TaskRunning, Op: req.Op, RequestID: fmt.Sprintf("%s.%d", req.ID, i), Caller: req.Caller, ResourceKind: ref.Kind, ResourceID: ref.ID,
	}
	t.ID, t.Name, t.Owner = tx.NewID(), req.Op, req.Owner()
	return t.ID, tx.Put(t)
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

// now is the time as the journal has it.
func (s *Service) now() time.Time { return s.cfg.Env.Now().UTC().Round(0) }

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

func (s *Service) answerImageURL(_ context.Context, host string, _ requestInfo, body []byte) ([]byte, error) {
	p, err := agentRequest[ImageURLRequest](body)
	if err != nil {
		return nil, err
	}
	if s.cfg.Store.View().Get(resource.KindHost, host) == nil {
		return nil, resource.NotFound(resource.KindHost, host)
	}
	var answer ImageURLReply
	if answer.URLs, answer.Expires, err = s.cfg.ImageURLs(p.Image); err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}
