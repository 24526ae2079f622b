package api

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nkeys"

	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// LoginConfig is where somebody logs in.
type LoginConfig struct {
	// Server is the URL of a NATS server, or several with commas between.
	Server string
	// CA is a file with the certificates (PEM) that the server's must be signed by; "" for the system's authorities.
	CA string
	// Pin, instead of CA, is the hex SHA-256 of the public key of a certificate in the server's chain.
	Pin string
	// Timeout bounds the whole of it.
	Timeout time.Duration
}

// Login is a session as its owner keeps it.
type Login struct {
	LoginReply
	// Creds is the text of a credentials file, which holds the session's key.
	Creds []byte
}

// LogIn asks for a session, with a key that it makes. The answer may be that the password must be changed first.
func LogIn(ctx context.Context, cfg LoginConfig, account, user, password, newPassword string) (Login, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	key, err := nkeys.CreateUser()
	if err != nil {
		return Login{}, fmt.Errorf("make the session's key: %w", err)
	}
	defer key.Wipe()
	public, err := key.PublicKey()
	if err != nil {
		return Login{}, fmt.Errorf("make the session's key: %w", err)
	}
	req := LoginRequest{Account: account, User: user, Password: password, NewPassword: newPassword, PublicKey: public}
	var reply LoginReply
	if err := askAsGuest(ctx, cfg, subjects.GuestLogin, func(box string) any { req.Box = box; return req }, &reply); err != nil {
		return Login{}, err
	}
	if reply.MustChange {
		return Login{LoginReply: reply}, nil
	}
	seed, err := key.Seed()
	if err != nil {
		return Login{}, fmt.Errorf("keep the session's key: %w", err)
	}
	creds, err := jwt.FormatUserConfig(reply.JWT, seed)
	if err != nil {
		return Login{}, fmt.Errorf("keep the session's credentials: %w", err)
	}
	return Login{LoginReply: reply, Creds: creds}, nil
}

// askAsGuest makes a request without credentials, whose answer is sealed to a key that is good for this once.
func askAsGuest(ctx context.Context, cfg LoginConfig, verb string, request func(box string) any, into any) error {
	box, err := nkeys.CreateCurveKeys()
	if err != nil {
		return fmt.Errorf("make a key for the answer: %w", err)
	}
	defer box.Wipe()
	public, err := box.PublicKey()
	if err != nil {
		return fmt.Errorf("make a key for the answer: %w", err)
	}
	body, err := json.Marshal(request(public))
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	secure, err := guestTLS(cfg)
	if err != nil {
		return err
	}
	conn, err := nats.Connect(cfg.Server, nats.Secure(secure), nats.Name("shoalctl login"), nats.CustomInboxPrefix(subjects.Inbox(subjects.GuestName)),
		nats.Timeout(max(cfg.Timeout, time.Millisecond)), nats.MaxReconnects(0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if e := distrust(err, ClientConfig{Server: cfg.Server, CA: cfg.CA}); e != nil {
		return e
	}
	if e, ok := errors.AsType[*resource.Error](err); ok {
		return fmt.Errorf("%w: %w", ErrUntrusted, e)
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w: %w", cfg.Server, ErrUnreachable, err)
	}
	defer conn.Close()
	var m *nats.Msg
	for {
		m, err = conn.RequestWithContext(ctx, subjects.Guest(verb), body)
		if !errors.Is(err, nats.ErrNoResponders) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w at %s", ErrNoLeader, cfg.Server)
		case <-time.After(retryWait):
		}
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w: no answer in time", cfg.Server, ErrNoLeader)
	}
	plain := m.Data
	if by := m.Header.Get(desired.SealedBy); by != "" {
		if plain, err = box.Open(m.Data, by); err != nil {
			return fmt.Errorf("open the answer of %s: %w", cfg.Server, err)
		}
	} else if m.Header.Get(micro.ErrorHeader) == "" {
		return fmt.Errorf("ask %s: the answer is not sealed", cfg.Server)
	}
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		e := &resource.Error{}
		if err := json.Unmarshal(plain, e); err != nil || e.Code == "" {
			return fmt.Errorf("the controller answers %s: %s", code, m.Header.Get(micro.ErrorHeader))
		}
		return e
	}
	if err := json.Unmarshal(plain, into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", cfg.Server, err)
	}
	return nil
}

// guestTLS is never without a check of who the server is.
func guestTLS(cfg LoginConfig) (*tls.Config, error) {
	if cfg.Pin == "" {
		roots, err := ReadCA(cfg.CA)
		return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, err
	}
	if b, err := hex.DecodeString(cfg.Pin); err != nil || len(b) != sha256.Size {
		return nil, resource.Invalid("pin", "is not 64 hex digits")
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks more than the standard does
		VerifyConnection:   func(s tls.ConnectionState) error { return checkPin(s, cfg.Pin) },
	}, nil
}

// checkPin holds a server to a pin: its chain must have the pinned certificate, and lead to it.
func checkPin(s tls.ConnectionState, pin string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for i, c := range s.PeerCertificates {
		if PinOf(c) == pin {
			roots.AddCert(c)
			found = true
		} else if i > 0 {
			between.AddCert(c)
		}
	}
	if !found {
		return &resource.Error{
			Code: resource.CodeForbidden, Field: "pin", Message: "no certificate of the server has the pinned key",
			Remedy: "is this the right server? Its own word is in ca.pem in the controller's data directory: shoal-controller ca list",
		}
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: s.ServerName})
	return err
}

// PinOf is the hex SHA-256 of a certificate's public key.
func PinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// ServerPin asks a server for its certificates and gives the pin of the last of its chain, which nothing vouches for yet: somebody
// has to compare it with what the controller's machine says.
func ServerPin(ctx context.Context, server string, timeout time.Duration) (string, error) {
	pin := ""
	errSeen := errors.New("seen")
	conn, err := nats.Connect(server, nats.Timeout(max(timeout, time.Millisecond)), nats.MaxReconnects(0), nats.Secure(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // nothing is sent: the connection ends here
		VerifyConnection: func(s tls.ConnectionState) error {
			if n := len(s.PeerCertificates); n > 0 {
				pin = PinOf(s.PeerCertificates[n-1])
			}
			return errSeen
		},
	}))
	if err == nil {
		conn.Close()
	}
	if pin == "" {
		return "", fmt.Errorf("connect to %s: %w: %w", server, ErrUnreachable, err)
	}
	return pin, ctx.Err()
}
