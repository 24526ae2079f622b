package install

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"shoal/desired"
	"shoal/subjects"
)

// How long one server has to let a guest in, and the controller to answer.
const (
	connectPatience = 10 * time.Second
	answerPatience  = 15 * time.Second
)

// RefusalError is what a controller says no with.
type RefusalError struct {
	Code    string `json:"code"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	// Number is the code as a number, 400 and up.
	Number int `json:"-"`
}

// Error is the message, and what to do.
func (r *RefusalError) Error() string {
	var b strings.Builder
	if r.Field != "" {
		b.WriteString(r.Field + ": ")
	}
	b.WriteString(r.Message)
	if r.Remedy != "" {
		b.WriteString("; " + r.Remedy)
	}
	return b.String()
}

// Final reports whether asking again in the same way is of no use. Asking too often, no leader, and faults of the
// controller's own pass.
func (r *RefusalError) Final() bool {
	return r.Number >= 400 && r.Number < 500 && r.Number != 429 && r.Number != 408
}

// Removed reports whether the host is none any more: it was removed, or its key is not the one that it has now.
func (r *RefusalError) Removed() bool { return r.Number == 403 || r.Number == 404 || r.Number == 410 }

// The headers of a refusal, as package micro writes them.
const (
	errorCodeHeader = "Nats-Service-Error-Code"
	errorHeader     = "Nats-Service-Error"
)

// readRefusal reads the body of a refusal, whose number is in its header.
func readRefusal(number string, body []byte) *RefusalError {
	r := &RefusalError{}
	if err := json.Unmarshal(body, r); err != nil || r.Message == "" {
		r = &RefusalError{Message: "the controller refuses and does not say why"}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 400 || n > 599 {
		n = 500
	}
	r.Number = n
	return r
}

// Refused is the refusal in an answer, nil if it is none. It is for answers that came over a connection of the host's own.
func Refused(m *nats.Msg) error {
	if n := m.Header.Get(errorCodeHeader); n != "" || m.Header.Get(errorHeader) != "" {
		return readRefusal(n, m.Data)
	}
	return nil
}

// guest asks as somebody without credentials.
type guest struct {
	name string
	urls []string
	// secure is how a server must prove itself, nil where its URL says whether it must.
	secure func(server, name string) (*tls.Config, error)
}

// ask makes a request of one of the servers and opens the answer. A final refusal ends it, anything else has the
// next server asked. build makes the request for the key that the answer is to be sealed to.
func (g guest) ask(ctx context.Context, subject string, build func(box string) ([]byte, error)) ([]byte, error) {
	var errs []error
	for _, n := range rand.Perm(len(g.urls)) {
		answer, err := g.askOne(ctx, g.urls[n], subject, build)
		if err == nil {
			return answer, nil
		}
		if r, ok := errors.AsType[*RefusalError](err); ok && r.Final() || ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("ask the controller: no server is known")
	}
	return nil, errors.Join(errs...)
}

func (g guest) askOne(ctx context.Context, server, subject string, build func(box string) ([]byte, error)) ([]byte, error) {
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a key for the answer: %w", err)
	}
	defer key.Wipe()
	box, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("make a key for the answer: %w", err)
	}
	nc, err := g.connect(ctx, server)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	body, err := build(box)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subject, body)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("ask %s: no controller works there right now", server)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	plain, err := unseal(m, key)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	return plain, nil
}

// unseal opens an answer. What is not sealed is not believed: the bus may refuse, the controller never does so openly.
func unseal(m *nats.Msg, key nkeys.KeyPair) ([]byte, error) {
	by := m.Header.Get(desired.SealedBy)
	if by == "" {
		return nil, fmt.Errorf("the answer is not sealed (code %q)", m.Header.Get(errorCodeHeader))
	}
	plain, err := key.Open(m.Data, by)
	if err != nil {
		return nil, fmt.Errorf("open the answer: %w", err)
	}
	if n := m.Header.Get(errorCodeHeader); n != "" {
		return nil, readRefusal(n, plain)
	}
	return plain, nil
}

// dialer lets a context end a connection attempt.
type dialer func(network, address string) (net.Conn, error)

// Dial implements nats.CustomDialer.
func (d dialer) Dial(network, address string) (net.Conn, error) { return d(network, address) }

// connect connects to one server without credentials.
func (g guest) connect(ctx context.Context, server string) (*nats.Conn, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("connect: %q is no URL", server)
	}
	// Once connected, the connection ends by Close.
	dialing, dialed := context.WithCancel(ctx)
	defer dialed()
	done := make(chan struct{})
	defer close(done)
	options := []nats.Option{
		nats.Name(g.name), nats.CustomInboxPrefix(subjects.Inbox(subjects.GuestName)), nats.NoReconnect(), nats.IgnoreDiscoveredServers(),
		nats.Timeout(connectPatience),
		nats.SetCustomDialer(dialer(func(network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: connectPatience}).DialContext(dialing, network, address)
			if err == nil {
				// A server that says nothing must not outlast the context.
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				go func() {
					<-done
					stop()
				}()
			}
			return conn, err
		})),
		func(o *nats.Options) error {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13}
			return nil
		},
	}
	if g.secure != nil {
		cfg, err := g.secure(server, u.Hostname())
		if err != nil {
			return nil, err
		}
		options = append(options, nats.Secure(cfg))
	}
	nc, err := nats.Connect(server, options...)
	switch {
	case err == nil:
		return nc, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("connect to %s: %w", server, ctx.Err())
	case errors.Is(err, nats.ErrSecureConnWanted):
		return nil, fmt.Errorf("connect to %s: it offers no TLS, and nothing is sent to a server that can't prove who it is; "+
			"give the controller a certificate, or check that this is its address", server)
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("connect to %s: it lets nobody in without credentials; is it the controller's NATS, and does the controller run?", server)
	}
	if pin, ok := errors.AsType[*PinError](err); ok {
		return nil, pin
	}
	return nil, fmt.Errorf("connect to %s: %w", server, err)
}
