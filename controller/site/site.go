package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"shoal/controller/identity"
	"shoal/subjects"
)

const (
	// minAPILevel is JetStream's with NATS 2.14: message TTLs, direct batches, persist_mode.
	minAPILevel = 4

	startTime    = 60 * time.Second
	pingInterval = 10 * time.Second
	maxPingsOut  = 2
	maxPayload   = 1 << 20
	maxPending   = 64 << 20

	// streamMemory bounds what streams in memory may take; only the lease is one.
	streamMemory = 64 << 20

	// startRetry is how often an external server is tried that is not up yet.
	startRetry = time.Second

	// asyncPending is how many writes may be under way at once.
	asyncPending = 4096
)

// Config says where NATS is.
type Config struct {
	// Name is the controller's; it is the embedded server's name, too.
	Name string
	// Identity signs all credentials.
	Identity *identity.Identity

	// URL is an external NATS; empty for the embedded server.
	URL string
	// Creds is a file with the credentials of the account CTL to use with URL; empty to make them from Identity.
	Creds string
	// Options are added to those of every connection to URL, for tests.
	Options []nats.Option
	// Replicas of the precious streams with URL, 1, 3 or 5; 0 means 1.
	Replicas int

	// Dir is where the embedded server keeps its streams.
	Dir string
	// Listen is the embedded server's "host:port", with port 0 for any free one; empty for none: only this process can
	// connect then.
	Listen string
	// TLS is how the embedded server serves Listen; it must be given with that. Nothing is served without TLS.
	TLS *tls.Config
	// Roots are the certificates to trust at URL, asked for with each attempt to connect.
	Roots func() *x509.CertPool
	// Advertise is the "host:port" or "host" that clients are told; empty for Listen.
	Advertise string
	// MaxStore bounds what streams may take on the disk, in bytes; 0 takes 80 % of what is free or theirs already.
	MaxStore int64
	// MaxHistory bounds HISTORY, in bytes; 0 takes 8 GiB, at most a quarter of the embedded server's MaxStore.
	MaxHistory int64

	// Restore is a directory with copies of streams, as Snapshot makes it, that are made before all others; "" for none. It is for
	// a NATS that has none of them.
	Restore string
	// NoSync leaves writing to the disk to the kernel: for a server that is thrown away, or whose directory is synced afterwards.
	NoSync bool

	Log zerolog.Logger
}

// Site is NATS as a controller uses it.
type Site struct {
	cfg    Config
	server *server.Server
	conn   *nats.Conn
	system *nats.Conn
	js     jetstream.JetStream
	log    zerolog.Logger
	// table is every stream but those of the hosts.
	table []jetstream.StreamConfig
	// hostKeys are the agents' public keys by host: see HostKey.
	hostKeys sync.Map
}

// Open starts or connects to NATS and makes the streams.
func Open(ctx context.Context, cfg Config) (_ *Site, err error) {
	if !subjects.ValidToken(cfg.Name) {
		return nil, fmt.Errorf("name: %q is not 1 to 64 bytes of [A-Za-z0-9_-]", cfg.Name)
	}
	if cfg.URL != "" && cfg.Roots == nil {
		return nil, errors.New("roots: must be given with an external server")
	}
	s := &Site{cfg: cfg, log: cfg.Log}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if cfg.URL == "" {
		if err := s.start(ctx); err != nil {
			return nil, fmt.Errorf("start nats server: %w", err)
		}
	}
	if s.system, err = s.reach(ctx, identity.RoleSystem, ""); err != nil {
		return nil, fmt.Errorf("connect to %s as system: %w", s.where(), err)
	}
	if cfg.URL != "" {
		s.pushAccounts(ctx)
	}
	if s.conn, err = s.reach(ctx, identity.RoleController, cfg.Creds); err != nil {
		return nil, fmt.Errorf("connect to %s as controller: %w", s.where(), err)
	}
	if s.js, err = jetstream.New(s.conn, jetstream.WithPublishAsyncMaxPending(asyncPending), jetstream.WithPublishAsyncTimeout(10*time.Second)); err != nil {
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	if err := s.checkLevel(ctx); err != nil {
		return nil, fmt.Errorf("check %s: %w", s.where(), err)
	}
	replicas, history := max(cfg.Replicas, 1), cfg.MaxHistory
	if history == 0 {
		history = historyDefault
	}
	if s.server != nil {
		replicas = 1
		history = min(history, s.server.JetStreamConfig().MaxStore/4)
	}
	if cfg.Restore != "" {
		if err := s.restoreStreams(ctx, cfg.Restore, replicas); err != nil {
			return nil, err
		}
	}
	s.table = table(replicas, history)
	for _, c := range s.table {
		err := makeStreams(ctx, s.js, []jetstream.StreamConfig{c})
		if s.server == nil && c.Replicas == 1 && rebuilt(c.Name) && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// The one server of a cluster that has it is away. Nothing needs it that could not do without; whoever leads sees to it.
			s.log.Warn().Err(err).Str("stream", c.Name).Msg("stream does not answer; it is done without")
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// where names the NATS in use.
func (s *Site) where() string {
	if s.server != nil {
		return "the embedded nats server"
	}
	return s.cfg.URL
}

// start runs the embedded server.
func (s *Site) start(ctx context.Context) error {
	o := &server.Options{
		ServerName: s.cfg.Name, NoSigs: true, JetStream: true, StoreDir: s.cfg.Dir, SyncAlways: !s.cfg.NoSync,
		PingInterval: pingInterval, MaxPingsOut: maxPingsOut, MaxPayload: maxPayload, MaxPending: maxPending, WriteDeadline: 10 * time.Second,
		TLSTimeout: 10, AuthTimeout: 12,
		JetStreamMaxStore: s.cfg.MaxStore, JetStreamMaxMemory: streamMemory, DisableJetStreamBanner: true,
		NoLog: true, MaxTracedMsgLen: 1024,
	}
	if s.cfg.Listen == "" {
		o.DontListen = true
	} else {
		host, port, err := net.SplitHostPort(s.cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		p, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("listen: %q is not a port", port)
		}
		o.Host, o.Port = host, int(p)
		if p == 0 {
			o.Port = server.RANDOM_PORT
		}
		o.ClientAdvertise = s.cfg.Advertise
		if s.cfg.TLS == nil {
			return errors.New("listen: nothing is served without TLS")
		}
		o.TLS, o.TLSConfig = true, s.cfg.TLS
	}
	if o.JetStreamMaxStore == 0 {
		free, err := usable(s.cfg.Dir)
		if err != nil {
			return fmt.Errorf("size of %s: %w", s.cfg.Dir, err)
		}
		o.JetStreamMaxStore = free
	}
	if err := s.cfg.Identity.Configure(o); err != nil {
		return err
	}
	srv, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.server = srv
	srv.SetLoggerV2(serverLog{s.log}, s.log.GetLevel() <= zerolog.TraceLevel, false, false)
	go srv.Start()
	deadline := time.Now().Add(startTime)
	if !srv.ReadyForConnections(startTime) {
		return errors.New("it does not accept connections; its own words are in the log above (is the port taken?)")
	}
	for {
		h := srv.Healthz(nil)
		if h.Status == "ok" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("its streams are not healthy after %s: %s", startTime, h.Error)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// reach connects, and waits for an external server that is not up yet: after a power cut everything starts at once.
func (s *Site) reach(ctx context.Context, role identity.Role, file string) (*nats.Conn, error) {
	for tries := 0; ; tries++ {
		c, err := s.connect(role, file)
		if s.server != nil || !errors.Is(err, nats.ErrNoServers) {
			return c, err
		}
		if tries%30 == 0 {
			s.log.Warn().Err(err).Str("url", s.cfg.URL).Msg("nats is not reached yet")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(startRetry):
		}
	}
}

// connect opens a connection that never gives up.
func (s *Site) connect(role identity.Role, file string) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name("shoal-controller " + s.cfg.Name),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(200*time.Millisecond, time.Second),
		nats.Timeout(10 * time.Second), nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(maxPingsOut),
		nats.ReconnectBufSize(-1), // what could not be sent is decided again, not replayed
		nats.CustomInboxPrefix(subjects.Inbox(s.cfg.Name)),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			e := s.log.Warn().Err(err)
			if sub != nil {
				e = e.Str("subject", sub.Subject)
			}
			e.Msg("nats client")
		}),
	}
	if role == identity.RoleController {
		opts = append(opts,
			nats.DisconnectErrHandler(func(c *nats.Conn, err error) {
				if !c.IsClosed() {
					s.log.Warn().Err(err).Msg("nats connection lost")
				}
			}),
			nats.ReconnectHandler(func(*nats.Conn) { s.log.Info().Msg("nats connection restored") }))
	}
	url := s.cfg.URL
	switch {
	case file != "":
		opts = append(opts, nats.UserCredentials(file))
	default:
		c, err := s.cfg.Identity.Creds(role, s.cfg.Name, 0)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserJWTAndSeed(c.JWT, string(c.Seed)))
	}
	if s.server != nil {
		url = "" // with a scheme the in-process connection would try TLS
		opts = append(opts, nats.InProcessServer(s.server))
	} else {
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13}), func(o *nats.Options) error {
			o.RootCAsCB = func() (*x509.CertPool, error) { return s.cfg.Roots(), nil }
			return nil
		})
	}
	c, err := nats.Connect(url, append(opts, s.cfg.Options...)...)
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.Is(err, nats.ErrSecureConnWanted):
		return nil, fmt.Errorf("%w: the server has no TLS; take over what shoal-controller nats-config --tls-dir prints", err)
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("%w: the server's certificate is not from this installation; make it with shoal-controller nats-config --tls-dir", err)
	}
	return c, err
}

// Presented is the chain that an external server presents to who connects now; nil for the embedded one.
func (s *Site) Presented() ([]*x509.Certificate, error) {
	if s.server != nil {
		return nil, nil
	}
	// A connection of its own: the others may be older than the server's certificate.
	c, err := s.connect(identity.RoleSystem, "")
	if err != nil {
		return nil, fmt.Errorf("look at the certificate of %s: %w", s.where(), err)
	}
	defer c.Close()
	state, err := c.TLSConnectionState()
	if err != nil {
		return nil, fmt.Errorf("look at the certificate of %s: %w", s.where(), err)
	}
	return state.PeerCertificates, nil
}

// checkLevel refuses a server that is too old, or has no JetStream for us. A server that has just started accepts
// connections before it knows our account's JetStream, so that is asked for a while.
func (s *Site) checkLevel(ctx context.Context) error {
	info, err := s.js.AccountInfo(ctx)
	for deadline := time.Now().Add(startTime); s.server == nil && err != nil && time.Now().Before(deadline); info, err = s.js.AccountInfo(ctx) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(startRetry):
		}
	}
	if err != nil {
		return fmt.Errorf("ask for jetstream: %w (is it enabled, and is the account CTL preloaded? see shoal-controller nats-config)", err)
	}
	if info.API.Level < minAPILevel {
		return fmt.Errorf("its JetStream API has level %d, %d is needed: upgrade it to NATS 2.14 or newer", info.API.Level, minAPILevel)
	}
	return nil
}

// pushAccounts brings the accounts of an external server up to date. A server whose resolver can't be written keeps what
// it was started with.
func (s *Site) pushAccounts(ctx context.Context) {
	for _, a := range identity.Accounts() {
		if err := s.UpdateAccount(ctx, a); err != nil {
			s.log.Warn().Err(err).Str("account", string(a)).Msg("account not updated")
		}
	}
}

// UpdateAccount makes the servers take over an account as the identity has it now, for instance after a revocation.
// Users that lost their credentials are cut off at once.
func (s *Site) UpdateAccount(ctx context.Context, a identity.Account) error {
	token, err := s.cfg.Identity.AccountJWT(a)
	if err != nil {
		return err
	}
	if s.server != nil {
		c, err := jwt.DecodeAccountClaims(token)
		if err != nil {
			return fmt.Errorf("update account %s: %w", a, err)
		}
		if err := s.server.AccountResolver().Store(s.cfg.Identity.AccountID(a), token); err != nil {
			return fmt.Errorf("update account %s: %w", a, err)
		}
		acc, err := s.server.LookupAccount(s.cfg.Identity.AccountID(a))
		if err != nil {
			return fmt.Errorf("update account %s: %w", a, err)
		}
		s.server.UpdateAccountClaims(acc, c)
		return nil
	}
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m, err := s.system.RequestWithContext(call, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if err != nil {
		return fmt.Errorf("update account %s at %s: %w", a, s.where(), err)
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err == nil && answer.Error != nil {
		return fmt.Errorf("update account %s at %s: %s", a, s.where(), answer.Error.Description)
	}
	return nil
}

// Conn is the controller's connection.
func (s *Site) Conn() *nats.Conn { return s.conn }

// JetStream is the controller's JetStream.
func (s *Site) JetStream() jetstream.JetStream { return s.js }

// ClientURL is where clients reach the embedded server, or the external URL.
func (s *Site) ClientURL() string {
	if s.server != nil {
		return s.server.ClientURL()
	}
	return s.cfg.URL
}

// Server is the embedded server, for in-process clients and its own HTTP handlers; nil with an external one.
func (s *Site) Server() *server.Server { return s.server }

// NewLease makes this controller a candidate for leading.
func (s *Site) NewLease() *Lease {
	l := NewLease(s.js, s.cfg.Name, s.log)
	l.remake = func(ctx context.Context) error {
		return makeStreams(ctx, s.js, s.only(func(name string) bool { return name == subjects.BucketStream(subjects.LeaseBucket) }))
	}
	return l
}

// only is a part of the table.
func (s *Site) only(which func(name string) bool) []jetstream.StreamConfig {
	var out []jetstream.StreamConfig
	for _, c := range s.table {
		if which(c.Name) {
			out = append(out, c)
		}
	}
	return out
}

// keepEvery is how often it is looked whether the streams are there.
const keepEvery = time.Minute

// rebuilt reports whether the content of a stream can be made again, or has to be done without.
func rebuilt(name string) bool {
	switch name {
	case subjects.BucketStream(subjects.ResourcesBucket), subjects.BucketStream(subjects.ObservedBucket), subjects.HistoryStream:
		return true
	default:
		return false
	}
}

// Keep makes streams anew that are gone and whose content can be made again, until ctx ends. The journal is not one of them: an
// empty one in its place would be taken for an installation without anything in it.
func (s *Site) Keep(ctx context.Context) error {
	table := s.only(rebuilt)
	silent := map[string]int{} // how often in a row a stream gave no answer
	reconnected := s.conn.StatusChanged(nats.CONNECTED)
	defer s.conn.RemoveStatusListener(reconnected)
	timer := time.NewTicker(keepEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-reconnected:
		}
		for _, c := range table {
			err := s.keep(ctx, c, silent)
			if err != nil && ctx.Err() == nil && s.conn.IsConnected() {
				s.log.Warn().Err(err).Str("stream", c.Name).Msg("stream not looked at")
			}
		}
	}
}

// keepWait bounds each request for a stream.
const keepWait = 5 * time.Second

// keep makes one stream anew where it is gone, or where the one server of a cluster that has it is gone for good: twice in a row it gave no
// answer then. The majority of the servers can give it up; the one that would acknowledge that is the one that is gone.
func (s *Site) keep(ctx context.Context, c jetstream.StreamConfig, silent map[string]int) error {
	request := func(f func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, keepWait)
		defer cancel()
		return f(ctx)
	}
	err := request(func(ctx context.Context) error {
		_, err := s.js.Stream(ctx, c.Name)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) || c.Replicas > 1 || s.conn.ConnectedClusterName() == "" {
		silent[c.Name] = 0
	} else if silent[c.Name]++; silent[c.Name] > 1 {
		err = request(func(ctx context.Context) error { return s.js.DeleteStream(ctx, c.Name) })
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			err = jetstream.ErrStreamNotFound
		}
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	if err := request(func(ctx context.Context) error { return makeStreams(ctx, s.js, []jetstream.StreamConfig{c}) }); err != nil {
		return err
	}
	silent[c.Name] = 0
	s.log.Warn().Str("stream", c.Name).Msg("stream was gone and is made anew")
	return nil
}

// Close ends the connections and the embedded server, in this order.
func (s *Site) Close() {
	for _, c := range []*nats.Conn{s.conn, s.system} {
		if c != nil {
			c.Close()
		}
	}
	if s.server != nil {
		s.server.Shutdown() // a lame duck would stop JetStream first and keep its clients
		s.server.WaitForShutdown()
	}
}

// usable is 80 % of what a directory's file system has free, plus what the streams there take already.
func usable(dir string) (int64, error) {
	probe := filepath.Clean(dir)
	for {
		var st unix.Statfs_t
		err := unix.Statfs(probe, &st)
		if errors.Is(err, unix.ENOENT) && probe != filepath.Dir(probe) {
			probe = filepath.Dir(probe)
			continue
		}
		if err != nil {
			return 0, err
		}
		used, err := size(dir)
		if err != nil {
			return 0, err
		}
		return (int64(st.Bavail)*st.Bsize + used) / 5 * 4, nil
	}
}
