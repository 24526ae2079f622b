package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/controller/file"
	"shoal/controller/identity"
)

const (
	// life is how long a certificate of our own is good. It is replaced at half of that.
	life = 90 * 24 * time.Hour
	// lookEvery is how often files and addresses are looked at.
	lookEvery = 10 * time.Second
	// warnBefore is how long before its end a given certificate is warned of, warnEvery how often.
	warnBefore = 14 * 24 * time.Hour
	warnEvery  = 24 * time.Hour

	ownFile = "server.pem"
	// maxFile bounds files that others give.
	maxFile = 1 << 20
)

// Config says which certificate to present.
type Config struct {
	Identity *identity.Identity
	// Dir is where a certificate of our own is kept.
	Dir string
	// Bundle is the file to write to what clients must trust; "" for none.
	Bundle string
	// Names are the host names and addresses that a certificate of our own is for. It is asked again and again.
	Names func() ([]string, error)
	// Cert and Key are the files of a given certificate's chain and key; "" for one of our own.
	Cert, Key string
	Log       zerolog.Logger
}

// Service is the certificate of a controller. Its methods may be called at once.
type Service struct {
	cfg   Config
	state atomic.Pointer[state]

	mu     sync.Mutex // one refresh at a time
	failed string     // what was last said of files that can't be used
	warned time.Time
}

// state is what is presented, and what is to be trusted.
type state struct {
	cert *tls.Certificate
	// chain and key are what cert was read from.
	chain, key []byte
	bundle     string
	pool       *x509.CertPool
	pin        string
}

// New loads or makes the certificate.
func New(cfg Config) (*Service, error) {
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, errors.New("give both or none of --tls-cert and --tls-key")
	}
	s := &Service{cfg: cfg}
	if err := s.Refresh(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run keeps the certificate up to date until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err := s.Refresh()
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != s.failed && err != nil {
			s.cfg.Log.Warn().Err(err).Msg("certificate not brought up to date")
		}
		s.failed = text
	}
}

// Refresh looks at the files, the authority and the machine's names, and takes over what has changed. On an error
// everything stays as it was.
func (s *Service) Refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ca, err := s.cfg.Identity.CA()
	if err != nil {
		return err
	}
	old := s.state.Load()
	var next *state
	if s.cfg.Cert != "" {
		next, err = s.given(old)
	} else {
		next, err = s.own(old, ca)
	}
	if err != nil {
		return err
	}
	trust := ca.Certificates()
	last := trust[0]
	if s.cfg.Cert != "" {
		if last, err = lastOf(next.cert); err != nil {
			return err
		}
		trust = slices.Concat([]*x509.Certificate{last}, trust)
	}
	var bundle strings.Builder
	next.pool, next.pin = x509.NewCertPool(), identity.Pin(last)
	for _, c := range trust {
		next.pool.AddCert(c)
		bundle.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	next.bundle = bundle.String()
	if s.cfg.Bundle != "" && (old == nil || old.bundle != next.bundle) {
		if err := WriteFile(s.cfg.Bundle, []byte(next.bundle), 0o644); err != nil {
			return fmt.Errorf("write certificates to trust: %w", err)
		}
	}
	s.state.Store(next)
	if old != nil && !bytes.Equal(old.chain, next.chain) {
		s.cfg.Log.Info().Time("until", next.cert.Leaf.NotAfter).Msg("certificate replaced")
	}
	if s.cfg.Cert != "" {
		s.warn(next.cert)
	}
	return nil
}

// own is the certificate of our own: the one in use or on the disk, or a new one.
func (s *Service) own(old *state, ca identity.CA) (*state, error) {
	names, err := s.cfg.Names()
	if err != nil {
		return nil, fmt.Errorf("names of this machine: %w", err)
	}
	now := time.Now()
	path := filepath.Join(s.cfg.Dir, ownFile)
	if old == nil {
		old = readOwn(path)
	}
	if old != nil && fit(old.cert, ca, names, now) {
		return &state{cert: old.cert, chain: old.chain, key: old.key}, nil
	}
	chain, key, err := ca.Issue(names, now, life)
	if err != nil {
		return nil, err
	}
	next, err := parsePair(chain, key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep certificate: %w", err)
	}
	if err := WriteFile(path, slices.Concat(chain, key), 0o600); err != nil {
		return nil, fmt.Errorf("keep certificate: %w", err)
	}
	return next, nil
}

// readOwn reads a certificate that was kept; nil when there is none that is of use.
func readOwn(path string) *state {
	b, err := readFile(path)
	if err != nil {
		return nil
	}
	s, err := parsePair(b, b)
	if err != nil {
		return nil
	}
	return s
}

// fit tells whether a certificate of our own still does.
func fit(c *tls.Certificate, ca identity.CA, names []string, now time.Time) bool {
	if len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], ca.Active().Raw) || c.Leaf.CheckSignatureFrom(ca.Active()) != nil {
		return false
	}
	if half := c.Leaf.NotBefore.Add(c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) / 2); now.After(half) || now.Before(c.Leaf.NotBefore) {
		return false
	}
	for _, n := range names {
		if c.Leaf.VerifyHostname(n) != nil {
			return false
		}
	}
	return true
}

// given is the certificate in the given files, which is read anew when they have changed.
func (s *Service) given(old *state) (*state, error) {
	chain, err := readFile(s.cfg.Cert)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert: %w", err)
	}
	key, err := readFile(s.cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("--tls-key: %w", err)
	}
	if old != nil && bytes.Equal(old.chain, chain) && bytes.Equal(old.key, key) {
		return &state{cert: old.cert, chain: chain, key: key}, nil
	}
	next, err := parsePair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert %s: %w", s.cfg.Cert, err)
	}
	if now := time.Now(); now.After(next.cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("--tls-cert %s: it has run out at %s", s.cfg.Cert, next.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	last, err := lastOf(next.cert)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert %s: %w", s.cfg.Cert, err)
	}
	if len(next.cert.Certificate) > 1 && (!last.IsCA || last.CheckSignatureFrom(last) != nil) {
		s.cfg.Log.Warn().Str("file", s.cfg.Cert).Str("last", last.Subject.String()).
			Msg("the given certificate's chain does not end in its root: hosts will not trust a certificate by another issuer of the same root; add the root to the file")
	}
	return next, nil
}

// warn tells in time that a given certificate runs out, which nobody but the operator can mend.
func (s *Service) warn(c *tls.Certificate) {
	now := time.Now()
	if c.Leaf.NotAfter.Sub(now) < warnBefore && now.Sub(s.warned) >= warnEvery {
		s.warned = now
		s.cfg.Log.Warn().Time("until", c.Leaf.NotAfter).Str("file", s.cfg.Cert).Msg("the given certificate runs out: replace its files")
	}
}

// parsePair reads a chain and the key of its first certificate from PEM, and checks that each certificate is signed by the
// next.
func parsePair(chain, key []byte) (*state, error) {
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err // it never holds a part of the key
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	for cert, rest := c.Leaf, c.Certificate[1:]; len(rest) > 0; rest = rest[1:] {
		issuer, err := x509.ParseCertificate(rest[0])
		if err != nil {
			return nil, err
		}
		if err := cert.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("%q is not signed by %q, which follows it: %w", cert.Subject, issuer.Subject, err)
		}
		cert = issuer
	}
	return &state{cert: &c, chain: chain, key: key}, nil
}

func lastOf(c *tls.Certificate) (*x509.Certificate, error) {
	return x509.ParseCertificate(c.Certificate[len(c.Certificate)-1])
}

// Server is how ports are to be served. It stays good: connections get the certificate that there is when they begin.
func (s *Service) Server() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.state.Load().cert, nil },
	}
}

// Client is how to connect now to another server of this installation.
func (s *Service) Client() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.state.Load().pool}
}

// Roots are the certificates to trust now.
func (s *Service) Roots() *x509.CertPool { return s.state.Load().pool }

// Pin is the hex SHA-256 of the public key (SPKI, DER) of the last certificate of the chain that is presented.
func (s *Service) Pin() string { return s.state.Load().pin }

// CABundle is the certificates in PEM that clients must trust.
func (s *Service) CABundle() string { return s.state.Load().bundle }

func readFile(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is no regular file of at most 1 MiB")}
	}
	return os.ReadFile(path)
}

// WriteFile puts a file in place in one step, with the owner that it had before.
func WriteFile(path string, b []byte, mode fs.FileMode) error {
	return file.Replace(path, mode, func(f *os.File) error {
		if old, err := os.Stat(path); err == nil {
			if st, ok := old.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
				if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
					return err
				}
			}
		}
		_, err := f.Write(b)
		return err
	})
}
