// Package gate is a NATS server with a controller's door: it lets hosts in and renews their credentials as package desired says,
// over TLS 1.3, and has an agent's buckets, empty. Tests of agents ask it, make it fail, and look at what it was asked.
package gate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"shoal/desired"
	"shoal/subjects"
)

// Secret is the secret of every token, so that tests can look for it where it must not be.
const Secret = "s3cr3t-of-the-token"

// Authority signs servers' certificates.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	// PEM is its certificate, Pin the hex SHA-256 of its public key.
	PEM, Pin string
}

// NewAuthority makes one.
func NewAuthority(t *testing.T) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	cert := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Shoal"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, key, key)
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return &Authority{key: key, cert: cert, Pin: hex.EncodeToString(sum[:]), PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))}
}

func sign(t *testing.T, c, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	c.SerialNumber = n
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

// Certificate is one for a server at addr, with the authority's in its chain.
func (a *Authority) Certificate(t *testing.T, addr string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	cert := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.ParseIP(addr)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, key, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key}
}

// Token is a join token as the gate knows it.
type Token struct {
	Uses   int
	Manual bool
}

// Gate is the server.
type Gate struct {
	t         *testing.T
	Authority *Authority
	srv       *server.Server
	dir       string
	port      int
	tlsCfg    *tls.Config
	keys      map[string]nkeys.KeyPair
	agt       *jwt.AccountClaims

	mu       sync.Mutex
	cert     tls.Certificate
	bundle   string
	urls     []string
	ttl      time.Duration
	tokens   map[string]Token
	hosts    map[string]string // public key to host id
	used     map[string]string // public key to token
	approved map[string]bool
	removed  map[string]bool
	refuse   *Refusal
	drop     int
	ahead    time.Duration
	enrols   []desired.EnrolRequest
	renewals []Renewal
	nc       *nats.Conn
}

// Refusal is what the gate says no with.
type Refusal struct {
	Code    string `json:"code"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	Number  int    `json:"-"`
}

// Renewal is one that the gate was asked for.
type Renewal struct {
	Host  string
	Guest bool
}

// Option changes how the gate listens.
type Option func(*server.Options)

// New starts a gate on a port of 127.0.0.1, until the test ends.
func New(t *testing.T, opts ...Option) *Gate {
	t.Helper()
	g := &Gate{
		t: t, Authority: NewAuthority(t), dir: t.TempDir(), port: -1, keys: map[string]nkeys.KeyPair{}, ttl: 30 * 24 * time.Hour,
		tokens: map[string]Token{}, hosts: map[string]string{}, used: map[string]string{}, approved: map[string]bool{}, removed: map[string]bool{},
	}
	g.cert, g.bundle = g.Authority.Certificate(t, "127.0.0.1"), g.Authority.PEM
	g.tlsCfg = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		c := g.cert
		return &c, nil
	}}
	for _, name := range []string{"SYS", "CTL", "AGT", "ENROLL", "agent", "guest"} {
		k, err := nkeys.CreateAccount()
		must(t, err)
		g.keys[name] = k
	}
	operator, err := nkeys.CreateOperator()
	must(t, err)
	g.keys["operator"] = operator
	g.start(opts...)
	t.Cleanup(g.Stop)
	return g
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *Gate) public(name string) string {
	p, err := g.keys[name].PublicKey()
	must(g.t, err)
	return p
}

func (g *Gate) scope(name string, p subjects.Permissions) *jwt.UserScope {
	s := jwt.NewUserScope()
	s.Key, s.Role = g.public(name), name
	s.Template.Permissions.Pub.Allow.Add(p.Publish...)
	s.Template.Permissions.Sub.Allow.Add(p.Subscribe...)
	return s
}

// accounts are those of the design that a host has to do with.
func (g *Gate) accounts() map[string]*jwt.AccountClaims {
	ctl, agt, enroll := jwt.NewAccountClaims(g.public("CTL")), jwt.NewAccountClaims(g.public("AGT")), jwt.NewAccountClaims(g.public("ENROLL"))
	ctl.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	for subject, to := range map[string]*jwt.AccountClaims{
		subjects.DirectGetAll: agt, subjects.BucketSubject(subjects.ObservedBucket, ">"): agt, subjects.AgentAPIAll: agt, subjects.GuestAll: enroll,
	} {
		e := &jwt.Export{Name: subject, Subject: jwt.Subject(subject), Type: jwt.Service}
		if subject == subjects.DirectGetAll {
			e.ResponseType = jwt.ResponseTypeStream
		}
		ctl.Exports.Add(e)
		to.Imports.Add(&jwt.Import{Name: subject, Subject: jwt.Subject(subject), Account: g.public("CTL"), Type: jwt.Service})
	}
	agt.SigningKeys.AddScopedSigner(g.scope("agent", subjects.AgentRole()))
	guest := g.scope("guest", subjects.GuestRole())
	guest.Template.BearerToken = true // guests have no key
	enroll.SigningKeys.AddScopedSigner(guest)
	return map[string]*jwt.AccountClaims{"SYS": jwt.NewAccountClaims(g.public("SYS")), "CTL": ctl, "AGT": agt, "ENROLL": enroll}
}

func (g *Gate) start(opts ...Option) {
	t := g.t
	t.Helper()
	oc := jwt.NewOperatorClaims(g.public("operator"))
	text, err := oc.Encode(g.keys["operator"])
	must(t, err)
	oc, err = jwt.DecodeOperatorClaims(text)
	must(t, err)
	res := &server.MemAccResolver{}
	for name, c := range g.accounts() {
		c.Name = name
		text, err := c.Encode(g.keys["operator"])
		must(t, err)
		must(t, res.Store(g.public(name), text))
		if name == "AGT" {
			g.agt = c
		}
	}
	guest, err := nkeys.CreateUser()
	must(t, err)
	pub, err := guest.PublicKey()
	must(t, err)
	sentinel := jwt.NewUserClaims(pub)
	sentinel.Name, sentinel.IssuerAccount = subjects.GuestName, g.public("ENROLL")
	sentinel.SetScoped(true)
	sentinelJWT, err := sentinel.Encode(g.keys["guest"])
	must(t, err)

	o := &server.Options{
		Host: "127.0.0.1", Port: g.port, JetStream: true, StoreDir: g.dir, NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
		TrustedOperators: []*jwt.OperatorClaims{oc}, AccountResolver: res, SystemAccount: g.public("SYS"), DefaultSentinel: sentinelJWT,
		TLS: true, TLSConfig: g.tlsCfg, TLSTimeout: 10, AuthTimeout: 10,
	}
	for _, opt := range opts {
		opt(o)
	}
	g.srv, err = server.NewServer(o)
	must(t, err)
	g.srv.Start()
	if !g.srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	g.port = g.srv.Addr().(*net.TCPAddr).Port
	user, err := nkeys.CreateUser()
	must(t, err)
	pub, err = user.PublicKey()
	must(t, err)
	claims := jwt.NewUserClaims(pub)
	claims.Name = "controller"
	token, err := claims.Encode(g.keys["CTL"])
	must(t, err)
	seed, err := user.Seed()
	must(t, err)
	g.nc, err = nats.Connect("", nats.InProcessServer(g.srv), nats.UserJWTAndSeed(token, string(seed)))
	must(t, err)
	for subject, answer := range map[string]nats.MsgHandler{
		subjects.Guest(subjects.GuestEnrol): g.enrol, subjects.Guest(subjects.GuestRenew): g.guestRenew,
		subjects.AgentAPIEndpoint(desired.RenewVerb): g.renew, subjects.Guest(subjects.GuestTime): g.time, subjects.AgentAPIEndpoint(desired.TimeVerb): g.time,
	} {
		_, err := g.nc.Subscribe(subject, answer)
		must(t, err)
	}
	must(t, g.nc.Flush())
}

// Stop stops the server; Start starts it again on the same port.
func (g *Gate) Stop() {
	g.nc.Close()
	g.srv.Shutdown()
	g.srv.WaitForShutdown()
}

// Start starts the server again.
func (g *Gate) Start() { g.start() }

// URL is the server's.
func (g *Gate) URL() string { return "tls://127.0.0.1:" + strconv.Itoa(g.port) }

// Token adds a join token and gives its text.
func (g *Gate) Token(id string, tok Token) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens[id] = tok
	return g.TokenFor(id, g.Authority.Pin)
}

// TokenFor is a token's text with any pin.
func (g *Gate) TokenFor(id, pin string) string {
	return desired.JoinToken{ID: id, Secret: Secret, Pin: pin, URLs: []string{g.URL()}}.Text()
}

// set changes something under the lock.
func (g *Gate) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// SetTTL is how long credentials live that are issued from now on.
func (g *Gate) SetTTL(d time.Duration) { g.set(func() { g.ttl = d }) }

// SetCertificate is what the server shows to new connections.
func (g *Gate) SetCertificate(c tls.Certificate) { g.set(func() { g.cert = c }) }

// SetBundle is the certificates that hosts are told, and the servers.
func (g *Gate) SetBundle(bundle string, urls ...string) {
	g.set(func() { g.bundle, g.urls = bundle, urls })
}

// Refuse has every request refused; nil ends that.
func (g *Gate) Refuse(r *Refusal) { g.set(func() { g.refuse = r }) }

// Drop has the next n admissions worked off and not answered.
func (g *Gate) Drop(n int) { g.set(func() { g.drop = n }) }

// Approve lets a key in.
func (g *Gate) Approve(public string) { g.set(func() { g.approved[public] = true }) }

// Enrols are the admissions that were asked for.
func (g *Gate) Enrols() []desired.EnrolRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.enrols)
}

// Renewals are those that were asked for.
func (g *Gate) Renewals() []Renewal {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.renewals)
}

// Hosts are the ids of the hosts by their keys.
func (g *Gate) Hosts() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.hosts)
}

// Remove takes a host's credentials away at once.
func (g *Gate) Remove(public string) {
	g.t.Helper()
	g.set(func() {
		g.removed[public] = true
		g.agt.RevokeAt(public, time.Now().Add(time.Hour))
	})
	acc, err := g.srv.LookupAccount(g.public("AGT"))
	must(g.t, err)
	g.srv.UpdateAccountClaims(acc, g.agt)
}

// Credentials are new ones for a host.
func (g *Gate) Credentials(public string) *desired.Credentials {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.credentials(public)
}

// credentials are a host's; with the lock.
func (g *Gate) credentials(public string) *desired.Credentials {
	host := g.hosts[public]
	if host == "" {
		host = fmt.Sprintf("h%d", len(g.hosts)+1)
		g.hosts[public] = host
	}
	c := jwt.NewUserClaims(public)
	c.Name, c.IssuerAccount = host, g.public("AGT")
	c.SetScoped(true)
	expires := time.Now().Add(g.ttl)
	c.Expires = expires.Unix()
	token, err := c.Encode(g.keys["agent"])
	if err != nil {
		panic(err)
	}
	urls := g.urls
	if len(urls) == 0 {
		urls = []string{g.URL()}
	}
	return &desired.Credentials{Host: host, Name: "name-of-" + host, JWT: token, Expires: expires.UTC().Truncate(time.Second), URLs: urls, CA: g.bundle}
}

func (g *Gate) enrol(m *nats.Msg) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var req desired.EnrolRequest
	if err := json.Unmarshal(m.Data, &req); err != nil {
		g.t.Errorf("enrol: %v", err)
		return
	}
	g.enrols = append(g.enrols, req)
	tok, known := g.tokens[req.Token]
	switch {
	case g.refuse != nil:
		g.answer(m, req.Box, g.refuse)
		return
	case !known || req.Secret != Secret:
		g.answer(m, req.Box, &Refusal{Number: 403, Code: "forbidden", Field: "token", Message: "the token is not known or has expired", Remedy: "make another with shoalctl host token create"})
		return
	}
	if g.used[req.PublicKey] != req.Token {
		if tok.Uses == 0 {
			g.answer(m, req.Box, &Refusal{Number: 403, Code: "forbidden", Field: "token", Message: "the token is used up", Remedy: "make another with shoalctl host token create"})
			return
		}
		tok.Uses--
		g.tokens[req.Token] = tok
		g.used[req.PublicKey] = req.Token
	}
	if tok.Manual && !g.approved[req.PublicKey] {
		g.answer(m, req.Box, &desired.EnrolReply{State: desired.EnrolPending, RetrySeconds: 1})
		return
	}
	reply := &desired.EnrolReply{State: desired.EnrolApproved, Credentials: g.credentials(req.PublicKey)}
	if g.drop > 0 {
		g.drop--
		return
	}
	g.answer(m, req.Box, reply)
}

func (g *Gate) guestRenew(m *nats.Msg) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var req desired.RenewRequest
	if err := json.Unmarshal(m.Data, &req); err != nil {
		g.t.Errorf("renew: %v", err)
		return
	}
	g.renewals = append(g.renewals, Renewal{Host: req.Host, Guest: true})
	sig, err := base64.StdEncoding.DecodeString(req.Signature)
	if err == nil {
		var key nkeys.KeyPair
		if key, err = nkeys.FromPublicKey(req.PublicKey); err == nil {
			err = key.Verify(desired.RenewProof(req.Host, req.Box), sig)
		}
	}
	if err != nil {
		g.t.Errorf("renew: the proof does not hold: %v", err)
		return
	}
	g.answer(m, req.Box, g.renewed(req))
}

func (g *Gate) renew(m *nats.Msg) {
	g.mu.Lock()
	defer g.mu.Unlock()
	host, _, err := subjects.ParseAgentAPI(m.Subject)
	var req desired.RenewRequest
	if err == nil {
		err = json.Unmarshal(m.Data, &req)
	}
	if err != nil || host != req.Host {
		g.t.Errorf("renew of %s on %s: %v", req.Host, m.Subject, err)
		return
	}
	g.renewals = append(g.renewals, Renewal{Host: req.Host})
	g.answer(m, "", g.renewed(req))
}

// SetClock sets how far the controller's clock is ahead.
func (g *Gate) SetClock(ahead time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ahead = ahead
}

func (g *Gate) time(m *nats.Msg) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var req desired.TimeRequest
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &req); err != nil {
			g.t.Errorf("time: %v", err)
			return
		}
	}
	g.answer(m, req.Box, desired.TimeReply{Now: time.Now().Add(g.ahead)})
}

func (g *Gate) renewed(req desired.RenewRequest) any {
	switch {
	case g.refuse != nil:
		return g.refuse
	case g.removed[req.PublicKey] || g.hosts[req.PublicKey] != req.Host:
		return &Refusal{Number: 404, Code: "not-found", Field: "host", Message: "the host was removed"}
	}
	return g.credentials(req.PublicKey)
}

// answer answers, sealed to box if there is one.
func (g *Gate) answer(m *nats.Msg, box string, what any) {
	out := nats.NewMsg(m.Reply)
	if r, ok := what.(*Refusal); ok {
		out.Header.Set("Nats-Service-Error-Code", strconv.Itoa(r.Number))
		out.Header.Set("Nats-Service-Error", r.Message)
	}
	b, err := json.Marshal(what)
	if err == nil && box != "" {
		var key nkeys.KeyPair
		if key, err = nkeys.CreateCurveKeys(); err == nil {
			var pub string
			pub, err = key.PublicKey()
			out.Header.Set(desired.SealedBy, pub)
			if err == nil {
				b, err = key.Seal(b, box)
			}
		}
	}
	out.Data = b
	if err == nil {
		err = g.nc.PublishMsg(out)
	}
	// The test may end while an agent still asks.
	if err != nil && !strings.Contains(err.Error(), "closed") {
		g.t.Errorf("answer: %v", err)
	}
}
