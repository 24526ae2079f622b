package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nkeys"

	"shoal/controller/resource"
	"shoal/subjects"
)

// ErrNoLeader says that no controller answered.
var ErrNoLeader = errors.New("no controller leads")

// ErrUntrusted says that the server could not prove that it is one of the installation's.
var ErrUntrusted = errors.New("server is not to be trusted")

// ErrUnreachable says that the NATS server can't be reached.
var ErrUnreachable = errors.New("server can't be reached")

// ClientConfig is how a client connects.
type ClientConfig struct {
	// Server is the URL of a NATS server, or several with commas between.
	Server string
	// Creds is the path of the credentials file.
	Creds string
	// CA is a file with the certificates (PEM) that the server's must be signed by; "" for the system's authorities.
	CA string
	// Timeout bounds connecting.
	Timeout time.Duration
}

// Client makes requests. It may be used by several goroutines.
type Client struct {
	conn   *nats.Conn
	user   string
	server string
	// account is whose hints it hears, "*" for everybody's.
	account string
}

// Dial connects.
func Dial(ctx context.Context, cfg ClientConfig) (*Client, error) {
	claims, err := credsClaims(cfg.Creds)
	if err != nil {
		return nil, err
	}
	user, account := claims.Name, accountOfClaims(claims)
	if deadline, ok := ctx.Deadline(); ok {
		cfg.Timeout = min(cfg.Timeout, time.Until(deadline))
	}
	roots, err := ReadCA(cfg.CA)
	if err != nil {
		return nil, err
	}
	// Never without TLS, whatever the server says of itself.
	secure := nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})
	conn, err := nats.Connect(cfg.Server, secure, nats.Name("shoalctl"), nats.UserCredentials(cfg.Creds), nats.CustomInboxPrefix(subjects.Inbox(user)),
		nats.Timeout(max(cfg.Timeout, time.Millisecond)), nats.ReconnectWait(200*time.Millisecond), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		// What the server refuses is told where it was asked for: see request.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if e := distrust(err, cfg); e != nil {
		return nil, e
	}
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return nil, &resource.Error{
			Code: resource.CodeForbidden, Message: fmt.Sprintf("the server at %s does not accept the credentials of user %s in %s", cfg.Server, user, cfg.Creds),
			Remedy: "a session has ended: log in (shoalctl login); else use credentials that this installation has issued: its administrator's are in admin.creds in the controller's data directory",
		}
	case err != nil:
		return nil, fmt.Errorf("connect to %s: %w: %w", cfg.Server, ErrUnreachable, err)
	}
	return &Client{conn: conn, user: user, account: account, server: cfg.Server}, nil
}

// distrust explains a server that could not prove who it is; nil for other errors.
func distrust(err error, cfg ClientConfig) error {
	trusted := "the system's authorities"
	if cfg.CA != "" {
		trusted = cfg.CA
	}
	refused := func(remedy, format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrUntrusted, &resource.Error{
			Code: resource.CodeForbidden, Message: fmt.Sprintf("connect to %s: %s", cfg.Server, fmt.Sprintf(format, args...)), Remedy: remedy,
		})
	}
	const copyCA = "copy ca.pem from the controller's data directory, over a way that you trust, and give it with --ca, or put it beside the credentials file"
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &unknown):
		return refused(copyCA, "its certificate is signed by none of the authorities in %s", trusted)
	case errors.As(err, &name):
		return refused("use a name or address of the controller that its certificate has, or start it with --tls-name", "its certificate is for another name: %v", name)
	case errors.As(err, &invalid):
		return refused("check the clocks of both machines, and whether the controller runs, which renews its certificate", "its certificate is not good: %v", invalid)
	case errors.Is(err, nats.ErrSecureConnWanted):
		return refused("check --server: every controller serves TLS", "it has no TLS, so that anybody could be listening")
	}
	return nil
}

// ReadCA reads a file of certificates to trust; nil, which stands for the system's, for no file.
func ReadCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("read authorities %s: it holds no certificate in PEM", file)
	}
	return pool, nil
}

// Close ends the connection.
func (c *Client) Close() { c.conn.Close() }

// User is the name in the credentials.
func (c *Client) User() string { return c.user }

// CredsUser is the name of the user of a credentials file.
func CredsUser(file string) (string, error) {
	claims, err := credsClaims(file)
	if err != nil {
		return "", err
	}
	return claims.Name, nil
}

// accountOfClaims is the account whose hints a user may hear: its own, or everybody's.
func accountOfClaims(claims *jwt.UserClaims) string {
	for _, t := range claims.Tags {
		if a, ok := strings.CutPrefix(t, subjects.AccountTag); ok && a != resource.AdminAccount {
			return a
		}
	}
	return "*"
}

func credsClaims(file string) (*jwt.UserClaims, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	token, err := nkeys.ParseDecoratedJWT(b)
	if err != nil {
		return nil, fmt.Errorf("read credentials %s: it holds no user JWT: %w", file, err)
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return nil, fmt.Errorf("read credentials %s: %w", file, err)
	}
	if !subjects.ValidToken(claims.Name) {
		return nil, fmt.Errorf("read credentials %s: the user's name %q can't stand in a subject", file, claims.Name)
	}
	return claims, nil
}

// How a client repeats.
const (
	attemptTimeout = 6 * time.Second
	retryWait      = 150 * time.Millisecond
)

// Call makes a request and gives the answer's JSON; a refusal is a *resource.Error. It repeats the request until ctx ends
// while no controller leads or answers, which is safe: reads change nothing, and a write has the same request id each time.
func (c *Client) Call(ctx context.Context, op *Operation, body []byte) (json.RawMessage, error) {
	m := nats.NewMsg(subjects.API(c.user, string(op.Kind), op.Verb))
	m.Data = body
	m.Header.Set(HeaderRequestID, uuid.NewString())
	for {
		answer, err := c.attempt(ctx, m)
		var e *resource.Error
		again := errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
			errors.Is(err, nats.ErrDisconnected) || errors.As(err, &e) && e.Code == resource.CodeNotLeader
		if !again {
			if e == nil && errors.Is(err, nats.ErrMaxPayload) {
				return nil, resource.Invalid("request", "is too long for one message")
			}
			return answer, err
		}
		select {
		case <-time.After(retryWait):
			continue
		case <-ctx.Done():
		}
		if errors.Is(err, nats.ErrNoResponders) || e != nil {
			return nil, fmt.Errorf("%w at %s", ErrNoLeader, c.server)
		}
		return nil, fmt.Errorf("ask %s: %w: no answer in time", c.server, ErrNoLeader)
	}
}

func (c *Client) attempt(ctx context.Context, m *nats.Msg) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	answer, err := c.request(ctx, m)
	if err != nil {
		return nil, err
	}
	if text := answer.Header.Get(micro.ErrorHeader); text != "" {
		e := &resource.Error{}
		if err := json.Unmarshal(answer.Data, e); err != nil || e.Code == "" {
			return nil, fmt.Errorf("the controller answers %s: %s", answer.Header.Get(micro.ErrorCodeHeader), text)
		}
		return nil, e
	}
	return answer.Data, nil
}

// request is a request that ends at once when the server refuses it: a refused publication has no answer, only an error
// of the connection.
func (c *Client) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	type result struct {
		m   *nats.Msg
		err error
	}
	done := make(chan result, 1)
	go func() {
		answer, err := c.conn.RequestMsgWithContext(ctx, m)
		done <- result{answer, err}
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case r := <-done:
			return r.m, r.err
		case <-tick.C:
			if denied := c.conn.LastError(); errors.Is(denied, nats.ErrPermissionViolation) && strings.Contains(denied.Error(), m.Subject) {
				return nil, &resource.Error{
					Code: resource.CodeForbidden, Message: fmt.Sprintf("user %s may not publish to %s", c.user, m.Subject),
					Remedy: "use credentials of a role that may, such as admin",
				}
			}
		}
	}
}

// Hints calls fn, on another goroutine, whenever something of a kind may have changed; id may be "*". The returned
// function ends it.
func (c *Client) Hints(kind resource.Kind, id string, fn func()) (func(), error) {
	sub, err := c.conn.Subscribe(subjects.Event(c.account, string(kind), id), func(*nats.Msg) { fn() })
	if err != nil {
		return nil, fmt.Errorf("subscribe to hints: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// TaskView is a task as the API shows it.
type TaskView struct {
	resource.Task
	Status resource.Convergence `json:"status"`
}

// waitPoll is how often a task is looked at while no hint comes.
const waitPoll = time.Second

// Wait follows a task until it has ended, well or not. Report is called with each change of what is seen.
func (c *Client) Wait(ctx context.Context, g *Registry, task string, report func(TaskView)) (TaskView, error) {
	hint := make(chan struct{}, 1)
	stop, err := c.Hints(resource.KindTask, task, func() {
		select {
		case hint <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return TaskView{}, err
	}
	defer stop()
	body, err := json.Marshal(getParams{ID: task})
	if err != nil {
		return TaskView{}, fmt.Errorf("encode request: %w", err)
	}
	var last TaskView
	for wait := 20 * time.Millisecond; ; wait = min(wait*2, waitPoll) {
		raw, err := c.Call(ctx, g.Find(resource.KindTask, "get"), body)
		if err != nil {
			return last, err
		}
		last = TaskView{}
		if err := json.Unmarshal(raw, &last); err != nil {
			return last, fmt.Errorf("read task: %w", err)
		}
		if report != nil {
			report(last)
		}
		if last.Status.Done || last.Status.Failed || last.State != resource.TaskRunning {
			return last, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return last, context.Cause(ctx)
		case <-timer.C:
		case <-hint:
			timer.Stop()
		}
	}
}
