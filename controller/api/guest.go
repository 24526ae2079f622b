package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nkeys"

	"shoal/controller/history"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/desired"
	"shoal/subjects"
)

// LoginRequest asks for a session. Its answer is sealed like that of desired.EnrolRequest.
type LoginRequest struct {
	Account string `json:"account"`
	// User is empty where the account itself logs in.
	User     string `json:"user,omitempty"`
	Password string `json:"password"`
	// NewPassword takes the place of a one-time password.
	NewPassword string `json:"new_password,omitempty"`
	// PublicKey is the session's nkey, "U…", made by the client.
	PublicKey string `json:"public_key"`
	// Box is the curve key, "X…", that the answer is sealed to.
	Box string `json:"box"`
}

// LoginReply is a session, or that the password must be changed first.
type LoginReply struct {
	// MustChange says that the password is right and good for this once: ask again with NewPassword.
	MustChange bool      `json:"must_change,omitempty"`
	Session    string    `json:"session,omitempty"`
	Name       string    `json:"name,omitempty"`
	Account    string    `json:"account,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
	// JWT is signed for the session's key.
	JWT string `json:"jwt,omitempty"`
	// CA are the certificates (PEM) that the servers' must be signed by.
	CA string `json:"ca,omitempty"`
}

// maxGuestRequest is the largest request of a guest that is looked at.
const maxGuestRequest = 16 << 10

// guestWait is how long a guest's answer may take: hashing a password waits for its turn.
const guestWait = 8 * time.Second

// enrolRetry is how soon a machine that waits for an administrator asks again.
const enrolRetry = 3 * time.Second

// guests registers what those without credentials may ask for, and what agents ask about themselves.
func (s *Service) guests(ctx context.Context, svc micro.Service, spawn func(func(micro.Request)) micro.Handler) error {
	for verb, g := range map[string]guestOp{
		subjects.GuestLogin: {"session.login", s.login}, subjects.GuestEnrol: {"host.enrol", s.enrol}, subjects.GuestRenew: {"host.renew", s.guestRenew},
		subjects.GuestTime: {"host.time", s.guestTime},
	} {
		h := spawn(func(req micro.Request) { s.answerGuest(ctx, verb, g, req) })
		if err := svc.AddEndpoint("guest-"+verb, h, micro.WithEndpointSubject(subjects.Guest(verb)), micro.WithEndpointPendingLimits(1024, 16<<20),
			micro.WithEndpointMetadata(map[string]string{"class": string(Write), "summary": "for those without credentials"})); err != nil {
			return err
		}
	}
	if err := svc.AddEndpoint("agent-"+desired.TimeVerb, spawn(s.forAgents(ctx, s.answerTime)), micro.WithEndpointSubject(subjects.AgentAPIEndpoint(desired.TimeVerb)),
		micro.WithEndpointMetadata(map[string]string{"class": string(Read), "summary": "for agents: what time it is"})); err != nil {
		return err
	}
	return svc.AddEndpoint("agent-"+desired.RenewVerb, spawn(s.forAgents(ctx, s.answerRenew)), micro.WithEndpointSubject(subjects.AgentAPIEndpoint(desired.RenewVerb)),
		micro.WithEndpointMetadata(map[string]string{"class": string(Read), "summary": "for agents: credentials anew"}))
}

// guestOp is what guests may ask for: how the journal calls it, and who answers.
type guestOp struct {
	name   string
	handle guestHandler
}

// guestHandler answers a guest. It fills in what the request says of who asks, without secrets: a refused one is recorded as far as that
// went. Box is the curve key that the answer is sealed to.
type guestHandler func(ctx context.Context, info requestInfo, req *resource.Request, body []byte) (answer any, box string, err error)

// guestError is a refusal whose reason is recorded, and not told.
type guestError struct {
	told error
	why  string
}

func (e *guestError) Error() string { return e.told.Error() }

func (e *guestError) Unwrap() error { return e.told }

// answerGuest handles one request of a guest. What it answers, also a refusal, is sealed to the guest's curve key.
func (s *Service) answerGuest(ctx context.Context, verb string, g guestOp, req micro.Request) {
	if req.Reply() == "" {
		return
	}
	defer s.recovered(req, "guest."+verb, subjects.GuestName)
	ctx, cancel := context.WithTimeout(ctx, guestWait)
	defer cancel()
	about := resource.Request{ID: uuid.NewString(), Caller: subjects.GuestName, Op: g.name, Started: s.now()}
	info, err := admit(req, s.cfg.GuestAccount)
	about.From = info.Host
	if err == nil && len(req.Data()) > maxGuestRequest {
		err = resource.Invalid("request", "is longer than %d bytes", maxGuestRequest)
	}
	if err != nil {
		s.noteGuest(ctx, about, err)
		s.refuse(req, "guest."+verb, subjects.GuestName, err)
		return
	}
	answer, box, err := g.handle(ctx, info, &about, req.Data())
	if box == "" {
		// Nothing can be sealed, so that nothing of value may be said.
		e := resource.Invalid("box", "is not a curve key")
		s.noteGuest(ctx, about, e)
		s.refuse(req, "guest."+verb, subjects.GuestName, e)
		return
	}
	m := &nats.Msg{Header: nats.Header{}}
	if err != nil {
		s.noteGuest(ctx, about, err)
		e := s.refusal("guest."+verb, info.Host, err)
		m.Header.Set(micro.ErrorCodeHeader, strconv.Itoa(e.Code.Number()))
		m.Header.Set(micro.ErrorHeader, "refused")
		answer = e
	}
	plain, err := json.Marshal(answer)
	if err == nil {
		var by string
		m.Data, by, err = s.cfg.SealTo(box, plain)
		m.Header.Set(desired.SealedBy, by)
	}
	if err != nil {
		s.refuse(req, "guest."+verb, subjects.GuestName, err)
		return
	}
	s.send(req, m)
}

// noteGuest records a guest's request that was refused.
func (s *Service) noteGuest(ctx context.Context, req resource.Request, err error) {
	if !errors.Is(err, store.ErrNotLeading) { // asked again, the leader records it
		s.note(ctx, history.Note{Request: req, Guest: true, Durable: true}, err)
	}
}

// claimed are the parameters of a guest's request as they are recorded: nothing of it is believed, or secret.
func claimed(params map[string]string) json.RawMessage {
	for name, value := range params {
		if len(value) > resource.MaxName {
			value = strings.ToValidUTF8(value[:resource.MaxName], "") + "..."
		}
		if params[name] = value; value == "" {
			delete(params, name)
		}
	}
	b, err := desired.Canonical(params)
	if err != nil {
		return nil
	}
	return b
}

// guestRequest reads a request strictly, and the curve key in it.
func guestRequest[T any](body []byte, box func(T) string) (T, string, error) {
	var p T
	if err := json.Unmarshal(body, &p); err != nil {
		return p, "", resource.Invalid("request", "is not what is expected here: %v", err)
	}
	b := box(p)
	if !nkeys.IsValidPublicCurveKey(b) {
		return p, "", resource.Invalid("box", "is not a curve key")
	}
	return p, b, nil
}

// wrongLogin is one answer for every login that fails, so that it tells nothing of which accounts and users there are.
func wrongLogin(why string) error {
	return &guestError{&resource.Error{
		Code: resource.CodeLogin, Message: "account, user or password is wrong", Remedy: "check the names, and whether the keyboard types what you think",
	}, why}
}

func (s *Service) login(ctx context.Context, info requestInfo, about *resource.Request, body []byte) (any, string, error) {
	p, box, err := guestRequest(body, func(p LoginRequest) string { return p.Box })
	if err != nil {
		return nil, box, err
	}
	about.Params = claimed(map[string]string{"account": p.Account, "user": p.User})
	if !nkeys.IsValidPublicUserKey(p.PublicKey) {
		return nil, box, resource.Invalid("public_key", "is not a user nkey (56 characters, starting with U)")
	}
	if len(p.Account) > resource.MaxName || len(p.User) > resource.MaxName || len(p.Password) > maxPassword {
		return nil, box, wrongLogin("the names or the password are longer than any can be")
	}
	who := resource.AccountKey(p.Account) + "/" + p.User
	r := s.cfg.Store.View()
	account, _ := r.Holder(resource.AccountKey(p.Account)).(*resource.Account)
	if account != nil {
		about.Account = account.ID // which is to know who tries
	}
	if err := s.logins.admit(info.Host, who, s.cfg.Env.Now()); err != nil {
		return nil, box, err
	}
	spec := plan.SessionSpec{PublicKey: p.PublicKey, From: info.Host, For: s.cfg.Env.SessionTime}
	sealed, oneTime := "", false
	kind, id := resource.KindAccount, ""
	if account != nil {
		sealed, oneTime, id = account.Password, account.OneTime, account.ID
		spec.AccountID = account.ID
		if p.User != "" {
			user, _ := r.Holder(resource.UserKey(account.ID, p.User)).(*resource.User)
			sealed, oneTime, kind, id = "", false, resource.KindUser, ""
			if user != nil {
				sealed, oneTime, id = user.Password, user.OneTime, user.ID
				spec.UserID = user.ID
			}
		}
	}
	// Without a password to check, one is checked all the same, for as long.
	ok, err := s.cfg.Env.Passwords.Check(ctx, sealed, p.Password)
	if err != nil {
		return nil, box, err
	}
	if !ok || id == "" {
		s.logins.failed(who, s.cfg.Env.Now())
		s.cfg.Log.Warn().Str("from", info.Host).Msg("login refused")
		switch {
		case account == nil:
			return nil, box, wrongLogin("there is no such account")
		case id == "":
			return nil, box, wrongLogin("the account has no such user")
		case sealed == "":
			return nil, box, wrongLogin("there is no password to log in with")
		default:
			return nil, box, wrongLogin("the password is wrong")
		}
	}
	newHash := ""
	switch {
	case oneTime && p.NewPassword == "":
		return LoginReply{MustChange: true}, box, nil
	case p.NewPassword != "":
		if err := checkPassword("new_password", p.NewPassword); err != nil {
			return nil, box, err
		}
		if p.NewPassword == p.Password {
			return nil, box, resource.Invalid("new_password", "is the old one")
		}
		if newHash, err = s.cfg.Env.Passwords.Hash(ctx, p.NewPassword); err != nil {
			return nil, box, err
		}
	}
	s.logins.succeeded(who)
	var session *resource.Session
	req := *about
	req.Caller, req.Account = id, spec.AccountID
	_, err = s.cfg.Store.Commit(ctx, req, func(tx resource.Tx) (err error) {
		if sealedPassword(tx, kind, id) != sealed {
			return wrongLogin("the password was changed just now")
		}
		if newHash != "" {
			if _, err := plan.SetPassword(tx, kind, id, newHash, false, ""); err != nil {
				return err
			}
		}
		if session, err = plan.OpenSession(tx, spec); err == nil {
			answered(tx, Outcome{Resources: []resource.Resource{session}}, nil)
		}
		return err
	})
	if err != nil {
		return nil, box, err
	}
	jwt, err := s.cfg.Env.SessionJWT(session)
	if err != nil {
		return nil, box, err
	}
	_, _, ca := s.cfg.Env.Door()
	return LoginReply{Session: session.ID, Name: session.Name, Account: session.AccountID, Expires: session.Expires, JWT: jwt, CA: ca}, box, nil
}

func (s *Service) enrol(ctx context.Context, info requestInfo, about *resource.Request, body []byte) (any, string, error) {
	p, box, err := guestRequest(body, func(p desired.EnrolRequest) string { return p.Box })
	if err != nil {
		return nil, box, err
	}
	about.Params = claimed(map[string]string{"token": p.Token, "public_key": p.PublicKey, "name": p.Name})
	if !nkeys.IsValidPublicUserKey(p.PublicKey) {
		return nil, box, resource.Invalid("public_key", "is not a user nkey (56 characters, starting with U)")
	}
	if err := s.enrols.admit(info.Host, p.Token, s.cfg.Env.Now()); err != nil {
		return nil, box, err
	}
	r := s.cfg.Store.View()
	if h, ok := r.Holder(plan.HostKey(p.PublicKey)).(*resource.Host); ok {
		answer, err := s.approved(h)
		return answer, box, err
	}
	// A request that waits is asked after every few seconds: that takes no transaction.
	if e, ok := r.Holder(resource.EnrolmentKey(p.PublicKey)).(*resource.Enrolment); ok && e.State == resource.EnrolmentPending {
		return desired.EnrolReply{State: desired.EnrolPending, RetrySeconds: int(enrolRetry / time.Second)}, box, nil
	}
	var host *resource.Host
	req := *about
	req.Account = resource.AdminAccount
	_, err = s.cfg.Store.Commit(ctx, req, func(tx resource.Tx) (err error) {
		var waits *resource.Enrolment
		if host, waits, err = plan.Enrol(tx, p, info.Host); err != nil {
			return err
		}
		out := Outcome{Resources: []resource.Resource{host}}
		if host == nil {
			out.Resources[0] = waits
		}
		answered(tx, out, nil)
		return nil
	})
	switch {
	case err != nil:
		s.enrols.failed(p.Token, s.cfg.Env.Now())
		s.cfg.Log.Warn().Str("from", info.Host).Err(err).Msg("enrolment refused")
		return nil, box, s.refusedToken(p, err)
	case host == nil:
		s.cfg.Log.Info().Str("from", info.Host).Str("fingerprint", desired.Fingerprint(p.PublicKey)).Msg("a machine waits for approval")
		return desired.EnrolReply{State: desired.EnrolPending, RetrySeconds: int(enrolRetry / time.Second)}, box, nil
	}
	s.cfg.Log.Info().Str("host", host.ID).Str("from", info.Host).Msg("host enrolled")
	answer, err := s.approved(host)
	return answer, box, err
}

// refusedToken adds to a refused enrolment what the journal is to say of the token.
func (s *Service) refusedToken(p desired.EnrolRequest, err error) error {
	if e, ok := errors.AsType[*resource.Error](err); !ok || e.Field != "token" {
		return err
	}
	t, ok := resource.Find[*resource.HostToken](s.cfg.Store.View(), p.Token)
	switch {
	case !ok:
		return &guestError{err, "there is no such token"}
	case t.SecretHash != plan.SecretHash(p.Secret):
		return &guestError{err, "the token's secret is wrong"}
	case !t.Expires.After(s.cfg.Env.Now()):
		return &guestError{err, "the token has run out"}
	default:
		return &guestError{err, "the token was used up"}
	}
}

func (s *Service) approved(h *resource.Host) (desired.EnrolReply, error) {
	c, err := s.credentials(h)
	return desired.EnrolReply{State: desired.EnrolApproved, Credentials: c}, err
}

// credentials are a host's, signed anew.
func (s *Service) credentials(h *resource.Host) (*desired.Credentials, error) {
	jwt, expires, err := s.cfg.Env.HostJWT(h.ID, h.PublicKey)
	if err != nil {
		return nil, err
	}
	urls, _, ca := s.cfg.Env.Door()
	return &desired.Credentials{Host: h.ID, Name: h.Name, JWT: jwt, Expires: expires, URLs: urls, CA: ca}, nil
}

// removedHost is the answer to a host that is none any more.
func removedHost() error {
	return &resource.Error{
		Code: resource.CodeForbidden, Field: "host", Message: "this host was removed, or got another key", Remedy: "have it join again: shoalctl host token create --replace HOST, or as a new host",
	}
}

func (s *Service) guestRenew(_ context.Context, info requestInfo, about *resource.Request, body []byte) (any, string, error) {
	p, box, err := guestRequest(body, func(p desired.RenewRequest) string { return p.Box })
	if err != nil {
		return nil, box, err
	}
	about.Params = claimed(map[string]string{"host": p.Host, "public_key": p.PublicKey})
	if err := s.enrols.admit(info.Host, p.Host, s.cfg.Env.Now()); err != nil {
		return nil, box, err
	}
	h, ok := resource.Find[*resource.Host](s.cfg.Store.View(), p.Host)
	if !ok || h.PublicKey != p.PublicKey {
		return nil, box, removedHost()
	}
	if err := proves(p); err != nil {
		return nil, box, err
	}
	c, err := s.credentials(h)
	return c, box, err
}

// guestTime tells a machine that may have a wrong clock, and could not connect as a host with it.
func (s *Service) guestTime(_ context.Context, info requestInfo, _ *resource.Request, body []byte) (any, string, error) {
	_, box, err := guestRequest(body, func(p desired.TimeRequest) string { return p.Box })
	if err == nil {
		err = s.enrols.admit(info.Host, "", s.cfg.Env.Now())
	}
	return desired.TimeReply{Now: s.cfg.Env.Now()}, box, err
}

// answerTime tells a connected agent.
func (s *Service) answerTime(context.Context, string, requestInfo, []byte) ([]byte, error) {
	return json.Marshal(desired.TimeReply{Now: s.cfg.Env.Now()})
}

// proves checks a guest's proof that a host's key is its own.
func proves(p desired.RenewRequest) error {
	refuse := func() error {
		e := resource.Invalid("signature", "does not prove that the key is yours")
		e.Code = resource.CodeForbidden
		return e
	}
	sig, err := base64.StdEncoding.DecodeString(p.Signature)
	if err != nil {
		return refuse()
	}
	key, err := nkeys.FromPublicKey(p.PublicKey)
	if err != nil || key.Verify(desired.RenewProof(p.Host, p.Box), sig) != nil {
		return refuse()
	}
	return nil
}

// answerRenew gives a connected agent credentials anew. The server vouches for its id, and for its key.
func (s *Service) answerRenew(_ context.Context, host string, info requestInfo, _ []byte) ([]byte, error) {
	h, ok := resource.Find[*resource.Host](s.cfg.Store.View(), host)
	if !ok || h.PublicKey != info.User {
		return nil, removedHost()
	}
	c, err := s.credentials(h)
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// refusal makes an error one that can be told, and logs what nobody foresaw.
func (s *Service) refusal(op, caller string, err error) *resource.Error {
	if e, ok := errors.AsType[*resource.Error](err); ok {
		return e
	}
	remedy := "repeat it with the same request id; if it happens again, read the controller's log"
	if errors.Is(err, context.DeadlineExceeded) {
		remedy = "the controller is busy: repeat it, with the same request id where there is one"
	}
	if errors.Is(err, store.ErrNotLeading) {
		remedy = "ask again; the leading controller will answer"
	}
	s.cfg.Log.Error().Err(err).Str("op", op).Str("caller", caller).Msg("request failed")
	return &resource.Error{Code: resource.CodeInternal, Message: err.Error(), Remedy: remedy}
}
