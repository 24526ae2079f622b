package install

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// PinError says that a server is not the one that a join token pins.
type PinError struct {
	Server string
	// Want is what the token pins, Got what the server has: of each certificate, the hex SHA-256 of its public key.
	Want string
	Got  []string
	// Err is why a chain with the right key was not taken, nil if there was none.
	Err error
}

// Error names both values and what to do.
func (e *PinError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s has a certificate under the key that the join token pins (%s), and it does not hold: %v; "+
			"check this machine's clock and the name or address in the token's servers, or have the controller's certificate made anew", e.Server, e.Want, e.Err)
	}
	return fmt.Sprintf("%s is not the controller that the join token is for: the token pins the key %s and the server has %s; nothing was sent to it. "+
		"If the controller's certificates were made anew, get a new token from shoalctl host token create; if not, somebody else answers at this address",
		e.Server, e.Want, strings.Join(e.Got, ", "))
}

// Unwrap is why the chain was not taken.
func (e *PinError) Unwrap() error { return e.Err }

// checkPin takes a chain that leads from the server's own certificate to one with the pinned key and bears the name that was
// dialled. A zero time is now.
func checkPin(server, name, pin string, chain []*x509.Certificate, now time.Time) error {
	refused := &PinError{Server: server, Want: strings.ToLower(pin)}
	if len(chain) == 0 {
		refused.Err = errors.New("there is no certificate")
		return refused
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		got := hex.EncodeToString(sum[:])
		refused.Got = append(refused.Got, got)
		if got == refused.Want {
			roots.AddCert(c)
			found = true
		} else {
			others.AddCert(c)
		}
	}
	if !found {
		return refused
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: others, CurrentTime: now}); err != nil {
		refused.Err = err
		return refused
	}
	return nil
}

// pinned is a configuration that takes only the server that is pinned; with no pin, one that the system's authorities vouch for.
func pinned(server, name, pin string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name}
	if pin == "" {
		return cfg
	}
	// The library's own check knows no pins. Ours, in its place, checks the chain and the name as well. It must know the name from
	// here: the connection's state leaves it out when it is an address.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return checkPin(server, name, pin, s.PeerCertificates, time.Time{}) }
	return cfg
}

// HTTPClient is a client for what controllers serve, with sane limits. It trusts what roots gives, which is asked for each
// connection, so that a rotated bundle holds at once.
func HTTPClient(roots func() (*x509.CertPool, error)) *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	dial := t.DialContext
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		name, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		pool, err := roots()
		if err != nil {
			return nil, err
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
		conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: pool})
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return conn, nil
	}
	return &http.Client{Transport: t}
}
