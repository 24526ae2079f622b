package controller

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/controller/backup"
	"shoal/controller/certificate"
	"shoal/controller/history"
	"shoal/controller/identity"
	"shoal/controller/image"
	"shoal/controller/journal"
	"shoal/controller/site"
	"shoal/controller/store"
)

// Config is what a controller needs.
type Config struct {
	// Data is the controller's directory: streams of the embedded NATS, images, identity.
	Data string
	// Name tells controllers of one installation apart.
	Name string
	// Identity is the directory with the keys; "" for <Data>/identity. Controllers of one installation share its content.
	Identity string
	// Listen is the embedded NATS's "host:port".
	Listen string
	// NATSURL is an external NATS, which replaces the embedded one; Creds its credentials, made from the identity where "".
	NATSURL, Creds string
	// Replicas of the precious streams, with an external NATS.
	Replicas int
	// Options are added to those of the connections to NATSURL, and Listener is used instead of HTTP, for tests.
	Options  []nats.Option
	Listener net.Listener
	// HTTP is where images are served, "host:port"; Advertise is the host that agents are told to fetch them from, "" for
	// HTTP's.
	HTTP, Advertise string
	// TLSCert and TLSKey are the files of a certificate to present instead of one of the installation's own authority.
	TLSCert, TLSKey string
	// TLSNames are further host names and addresses that a certificate of our own is for.
	TLSNames []string
	// SessionTime is how long a session of a person or program lasts without being renewed; DefaultSessionTime where it is 0.
	SessionTime time.Duration
	// Backup says where backups go and how; see backup.Config.
	Backup BackupConfig
	// JournalKeep is how much history the journal keeps at least, JournalMaxBytes how large it may become; 0 for no limit.
	JournalKeep     time.Duration
	JournalMaxBytes uint64
	// ImageSources are the servers inside the site that images of all accounts may come from.
	ImageSources image.Sources
	// AuditReads records calls that only read, too.
	AuditReads bool
	Version    string
	Log        zerolog.Logger
	// FirstPassword is called with the one-time password of the admin account when that is made, which is at the first start of an
	// installation. Nobody is told it again. May be nil: then only a credentials file leads in.
	FirstPassword func(password string)
	// Ready is called once with the URL of NATS, when the controller has started; it may lead a moment later. May be nil.
	Ready func(natsURL string)
}

// CABundle is the file in the data directory with the certificates that clients must trust. It holds no secret.
const CABundle = "ca.pem"

// AdminCreds is the file in the data directory with the first administrator's credentials.
const AdminCreds = "admin.creds"

// adminName is the first administrator's name.
const adminName = "admin"

// controller is what Run wires together.
type controller struct {
	cfg    Config
	log    zerolog.Logger
	id     *identity.Identity
	certs  *certificate.Service
	site   *site.Site
	book   *journal.Journal
	store  *store.Store
	images *image.Service
	past   *history.History
	// calls are those that changed nothing and are to be recorded; what one term could not write, the next may.
	calls *history.Recorder

	passwords *passwords
	// serverPin is the pin of what an external server presents.
	serverPin atomic.Pointer[string]
	roster    roster
	// target and seal are of backups; target is nil where none are made.
	target backup.Target
	seal   *backup.Seal
}

// Run is a controller. It returns nil when ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Identity == "" {
		cfg.Identity = filepath.Join(cfg.Data, "identity")
	}
	c := &controller{cfg: cfg, log: cfg.Log.With().Str("controller", cfg.Name).Logger()}
	var err error
	if c.id, err = identity.Open(cfg.Identity); err != nil {
		return err
	}
	c.passwords = &passwords{id: c.id}
	if c.cfg.SessionTime == 0 {
		c.cfg.SessionTime = DefaultSessionTime
	}
	if err := c.prepareBackups(); err != nil {
		return err
	}
	if err := c.adminCreds(); err != nil {
		return err
	}
	if c.certs, err = c.certificate(); err != nil {
		return err
	}
	listener := cfg.Listener
	if listener == nil {
		if listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTP); err != nil {
			return fmt.Errorf("listen for images (--http): %w", err)
		}
	}
	defer func() { _ = listener.Close() }()

	c.site, err = site.Open(ctx, site.Config{
		Name: cfg.Name, Identity: c.id, URL: cfg.NATSURL, Creds: cfg.Creds, Options: cfg.Options, Replicas: cfg.Replicas,
		Dir: filepath.Join(cfg.Data, "nats"), Listen: cfg.Listen, TLS: c.certs.Server(), Roots: c.certs.Roots, Log: c.log,
	})
	if err != nil {
		return err
	}
	defer c.site.Close()
	seen := &external{}
	c.lookAtServer(seen)
	if c.book, err = journal.Open(ctx, c.site.JetStream(), c.log); err != nil {
		return err
	}
	if c.store, err = store.New(store.Config{Journal: c.book, JS: c.site.JetStream(), Log: c.log}); err != nil {
		return err
	}
	if err := c.store.Load(ctx); err != nil {
		return err
	}
	if c.past, err = history.New(history.Config{
		Dir: filepath.Join(cfg.Data, "history"), Journal: c.book, Store: c.store, JS: c.site.JetStream(), Log: c.log,
	}); err != nil {
		return err
	}
	c.calls = history.NewRecorder(c.store.Note, c.log)
	if c.images, err = c.imageService(listener.Addr()); err != nil {
		return err
	}

	c.log.Info().Str("nats", c.site.ClientURL()).Str("http", listener.Addr().String()).Str("version", cfg.Version).Msg("controller runs")
	if cfg.Ready != nil {
		cfg.Ready(c.site.ClientURL())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.certs.Run(ctx) })
	group.Go(func() error { return c.watchServer(ctx, seen) })
	group.Go(func() error { return c.store.Watch(ctx, c.site.JetStream()) })
	group.Go(func() error { return c.site.Presence(ctx, c.connected) })
	group.Go(func() error { return c.past.Run(ctx) })
	group.Go(func() error { return c.serveHTTP(ctx, listener) })
	group.Go(func() error { return c.run(ctx) })
	if err := group.Wait(); ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// certificate is what the controller's ports present.
func (c *controller) certificate() (*certificate.Service, error) {
	addrs := map[string]string{"--http": c.cfg.HTTP}
	if c.cfg.NATSURL == "" {
		addrs["--listen"] = c.cfg.Listen
	}
	var listen []string
	for flag, addr := range addrs {
		if addr == "" { // the built-in NATS serves this process only
			continue
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		listen = append(listen, host)
	}
	extra := c.cfg.TLSNames
	if c.cfg.Advertise != "" {
		extra = append(slices.Clone(extra), c.cfg.Advertise)
	}
	names := func() ([]string, error) { return certificate.Names(listen, extra) }
	return certificate.New(certificate.Config{
		Identity: c.id, Dir: filepath.Join(c.cfg.Data, "tls"), Bundle: filepath.Join(c.cfg.Data, CABundle), Names: names,
		Cert: c.cfg.TLSCert, Key: c.cfg.TLSKey, Log: c.log,
	})
}

// adminCreds makes the first administrator's credentials at the first start.
func (c *controller) adminCreds() error {
	path := filepath.Join(c.cfg.Data, AdminCreds)
	_, err := os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	creds, err := c.id.Creds(identity.RoleAdmin, adminName, 0)
	if err != nil {
		return err
	}
	if err := creds.WriteFile(path); err != nil {
		return err
	}
	c.log.Info().Str("file", path).Msg("credentials of the administrator written")
	return nil
}

// imageService serves images at the address that agents reach.
func (c *controller) imageService(addr net.Addr) (*image.Service, error) {
	key, err := imageKey(filepath.Join(c.cfg.Identity, "image.key"))
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return nil, fmt.Errorf("address of images: %w", err)
	}
	if c.cfg.Advertise != "" {
		host = c.cfg.Advertise
	} else if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("address of images: %w", err)
		}
		c.log.Warn().Str("address", host).Msg("hosts are told to fetch images from this machine's name; set --advertise where they can't resolve it")
	}
	return image.New(image.Config{
		Dir: filepath.Join(c.cfg.Data, "images"), Base: "https://" + net.JoinHostPort(host, port), Key: key, Store: c.store, Peers: c.peers(), Log: c.log,
		Sources: c.cfg.ImageSources,
	})
}

// peers is how another controller is asked for images. Which authorities are good is looked up with each connection.
func (c *controller) peers() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: c.certs.Client()}
			return d.DialContext(ctx, network, addr)
		},
		ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}
}

// imageKey is the key that signs the addresses of images; it is made at the first start.
func imageKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if err == nil {
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read image key: %w", err)
	}
	key = make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make image key: %w", err)
	}
	// Of two controllers that start at once on a shared identity, the second takes the first one's, and takes it whole.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // 0600
	if err != nil {
		return nil, fmt.Errorf("make image key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write image key: %w", err)
	}
	err = os.Link(f.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("make image key: %w", err)
	}
	return key, nil
}

// httpLog passes on what the HTTP server says, which is of clients that it could not understand: anybody can be one.
type httpLog struct{ log zerolog.Logger }

// Write implements io.Writer.
func (l httpLog) Write(b []byte) (int, error) {
	l.log.Debug().Str("text", strings.TrimSpace(string(b))).Msg("http server")
	return len(b), nil
}

// serveHTTP serves images, and whether the controller is well and leads.
func (c *controller) serveHTTP(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/v1/images/", c.images.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		role := "stand-by"
		if c.store.Leading() {
			role = "leading"
		}
		_, _ = fmt.Fprintf(w, "%s at %d\n", role, c.store.Seq())
	})
	server := &http.Server{Handler: mux, TLSConfig: c.certs.Server(), ErrorLog: log.New(httpLog{c.log}, "", 0), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
	}()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve images: %w", err)
	}
	return nil
}
