package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/agent/engine"
	"shoal/agent/install"
	"shoal/agent/ledger"
	"shoal/agent/link"
	"shoal/agent/probe"
	"shoal/agent/update"
	"shoal/desired"
)

// LibvirtSocket is where libvirtd listens by itself.
const LibvirtSocket = "/run/libvirt/libvirt-sock"

// Config is what an agent needs.
type Config struct {
	// Creds is the host's credentials file, for a host that has not joined; its user name is the host's id. It is replaced by newer
	// ones. Without it, the agent is who the host is since it joined, and waits until it has.
	Creds string
	// NATSURL is the controllers' NATS that goes with Creds, one server or several, separated by commas, and CA the file with the
	// authorities that sign the servers' certificates, "" for the system's.
	NATSURL, CA string
	// TokenFile is a file with a join token, for a host that has not joined. It is removed afterwards. See install.Await.
	TokenFile string
	// Data is the agent's directory, which is made if it is not there. One agent at a time has it.
	Data string
	// Libvirt is libvirtd's socket.
	Libvirt string
	// Archives is where the console puts logs and backups.
	Archives string
	// Version is told to the controller.
	Version string
	Log     zerolog.Logger

	// Machine is what the agent drives, nil for the machine that it runs on; Connection changes how it connects, nil for not
	// at all. Both are for agents of models: see agent/sim/fleet.
	Machine    *Machine
	Connection func(*link.Config)
}

// ErrReplaced ends an agent that is to be replaced by another release; see update.Relaunch.
var ErrReplaced = errors.New("another release of the agent is to run")

// Run is an agent. It returns nil when ctx ends, and leaves everything on the host as it is.
func Run(ctx context.Context, cfg Config) error {
	ctx, replace := context.WithCancelCause(ctx)
	defer replace(nil)
	who, lock, err := identity(ctx, cfg)
	if err != nil || who == nil {
		return err
	}
	defer lock.Close()
	hostID := who.Host()
	log := cfg.Log.With().Str("host", hostID).Logger()
	book, err := ledger.Open(filepath.Join(cfg.Data, "ledger"))
	if err != nil {
		return err
	}
	defer func() {
		if err := book.Close(); err != nil {
			log.Error().Err(err).Msg("ledger not closed")
		}
	}()
	if err := book.Damage(); err != nil {
		log.Error().Err(err).Msg("ledger was damaged; the last whole document in it is in force")
	}

	a := &agent{book: book, log: log, self: desired.HostFacts{Version: cfg.Version, Started: time.Now().UTC()}, offline: "not connected to the controller"}
	if err := a.connect(cfg, who); err != nil {
		return err
	}
	machine := cfg.Machine
	if machine == nil {
		m, libvirt, err := a.real(cfg, who)
		if err != nil {
			return err
		}
		defer libvirt.Close()
		machine = &m
	}
	marks, err := ledger.OpenMarks(filepath.Join(cfg.Data, "ledger"), machine.Boot, log)
	if err != nil {
		return err
	}
	a.engine = engine.New(engine.Config{Reporter: a.link, Memory: marks, Log: log})
	if err := a.addKinds(cfg, hostID, *machine); err != nil {
		return err
	}
	updater := update.New(update.Config{
		Data: cfg.Data, Key: who.ReleaseKey, Part: a.link.ReleasePart, Health: a, Run: machine.Run, Log: log,
		Restart: func() { replace(ErrReplaced) },
	})
	engine.Add(a.engine, engine.StageBase, desired.KindAgent, updater)

	if doc, ok := book.Document(); ok {
		if doc.Head.Host != hostID {
			return fmt.Errorf("the ledger in %s is host %s's and the credentials are host %s's: what runs here is the former's, and nothing of it is touched; "+
				"go back to that host's credentials or use another --data, or, if it is to be given up, move %s away", cfg.Data, doc.Head.Host, hostID, filepath.Join(cfg.Data, "ledger"))
		}
		log.Info().Uint64("gen", doc.Head.Gen).Msg("document in force from the ledger")
		a.self.Gen = doc.Head.Gen
		a.link.Accepted(doc.Head)
		a.engine.Set(doc)
	}
	own, err := Network(cfg)
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return a.engine.Run(running) })
	group.Go(func() error { return a.link.Run(running) })
	group.Go(func() error { return a.renewer.Run(running) })
	group.Go(func() error { return marks.Run(running) })
	group.Go(func() error { return machine.Sensor.Run(running, a.inventory) })
	clock := &probe.Clock{Ask: a.link.Time, Log: log}
	group.Go(func() error {
		return clock.Run(running, func(c desired.Clock) { a.tell(func(f *desired.HostFacts) { f.Clock = &c }) })
	})
	group.Go(func() error { own.Watch(running, log, a.link.Reach); return nil })
	group.Go(func() error { return updater.Run(running) })
	err = group.Wait()
	if flushErr := marks.Flush(); flushErr != nil {
		log.Error().Err(flushErr).Msg("what is held by drift policy is not on disk")
	}
	switch {
	case ctx.Err() == nil:
		return err
	case errors.Is(context.Cause(ctx), ErrReplaced):
		return ErrReplaced
	default:
		return nil
	}
}

// agent is what Run wires together.
type agent struct {
	book   *ledger.Ledger
	engine *engine.Engine
	link   *link.Link
	// renewer keeps what the link connects with fresh.
	renewer *install.Renewer
	log     zerolog.Logger

	mu   sync.Mutex
	self desired.HostFacts
	// offline says why there is no connection; "" where there is one.
	offline string
	// counted is set once the inventory is known; there is nothing to tell of the host before.
	counted bool
}

// identity is who the host is, and the lock on that. It is nil when ctx ends while the host has not joined.
func identity(ctx context.Context, cfg Config) (*install.Identity, io.Closer, error) {
	if cfg.Creds == "" {
		return install.Await(ctx, install.AwaitConfig{Data: cfg.Data, Token: cfg.TokenFile, Version: cfg.Version, Log: cfg.Log})
	}
	if err := install.MakeData(cfg.Data); err != nil {
		return nil, nil, err
	}
	lock, err := install.Lock(cfg.Data)
	if err != nil {
		return nil, nil, err
	}
	who, err := install.Given(install.GivenConfig{Creds: cfg.Creds, CA: cfg.CA, URLs: cfg.NATSURL, Data: cfg.Data})
	if err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return who, lock, nil
}

// connect makes the link and what renews its credentials, which need each other.
func (a *agent) connect(cfg Config, who *install.Identity) error {
	var err error
	a.renewer, err = install.NewRenewer(install.RenewConfig{
		Identity: who, Log: a.log,
		Ask: func(ctx context.Context, verb string, body []byte) ([]byte, error) {
			return a.link.Ask(ctx, verb, body)
		},
		Renewed: func(servers, expired bool) {
			if servers {
				if err := a.link.SetServers(who.URLs()); err != nil {
					a.log.Warn().Err(err).Msg("other servers not taken over")
				}
			}
			if expired {
				a.link.Redial()
			}
		},
	})
	if err != nil {
		return err
	}
	since := time.Now().UTC()
	note := func(c install.Connection) {
		c.Host, c.Since = who.Host(), since
		if err := install.WriteConnection(cfg.Data, c); err != nil {
			a.log.Warn().Err(err).Msg("state of the connection not kept")
		}
	}
	note(install.Connection{})
	last := link.State{}
	linked := link.Config{
		URL: strings.Join(who.URLs(), ","), Creds: who.Creds(), Host: who.Host(), Names: filepath.Join(cfg.Data, "reported.json"),
		OnDocument: a.accept, OnAhead: a.ahead, OnTooNew: a.tooNew, Document: a.book.Document, Log: a.log,
		OnState: func(s link.State) {
			a.noteState(s)
			if s.Connected {
				a.renewer.Connected()
			} else {
				a.renewer.Disconnected(s.Refused)
			}
			if s.Connected == last.Connected && s.Server == last.Server && fmt.Sprint(s.Err) == fmt.Sprint(last.Err) {
				return
			}
			if s.Connected != last.Connected {
				since = time.Now().UTC()
			}
			last = s
			c := install.Connection{Connected: s.Connected, Server: s.Server}
			if s.Err != nil {
				c.Error = s.Err.Error()
			}
			note(c)
		},
	}
	if who.Private() {
		linked.Roots = who.Roots
	}
	if cfg.Connection != nil {
		cfg.Connection(&linked)
	}
	a.link, err = link.New(linked)
	return err
}

func (a *agent) noteState(s link.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offline = ""
	if !s.Connected {
		a.offline = "not connected to the controller"
		if s.Err != nil {
			a.offline += ": " + s.Err.Error()
		}
	}
}

// Heard implements update.Health.
func (a *agent) Heard() string {
	a.mu.Lock()
	offline := a.offline
	a.mu.Unlock()
	read, heard := a.link.Exchanged()
	switch {
	case offline != "":
		return offline
	case !read:
		return "the controller's document was not read"
	case !heard:
		return "the controller has acknowledged no status"
	default:
		return ""
	}
}

// Document implements update.Health.
func (a *agent) Document() (desired.Document, bool) { return a.book.Document() }

// Statuses implements update.Health.
func (a *agent) Statuses() map[desired.Ref]desired.Status { return a.engine.Statuses() }

// accept takes a document that came from the controller: first onto the disk, then into force.
func (a *agent) accept(doc desired.Document) error {
	start := time.Now()
	if err := a.book.Accept(doc); err != nil {
		return err
	}
	a.log.Info().Uint64("gen", doc.Head.Gen).Dur("took", time.Since(start)).Msg("document accepted")
	a.engine.Set(doc)
	a.tell(func(f *desired.HostFacts) { f.Gen = doc.Head.Gen })
	return nil
}

func (a *agent) ahead(ahead bool) {
	a.mu.Lock()
	same := a.self.Ahead == ahead
	a.mu.Unlock()
	if same {
		return
	}
	if ahead {
		a.log.Warn().Msg("the controller's document is older than the ledger's, which stays in force")
	}
	a.tell(func(f *desired.HostFacts) { f.Ahead = ahead })
}

// tooNew takes why the newest document is not in force, nil where it may be.
func (a *agent) tooNew(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.mu.Lock()
	same := a.self.TooNew == text
	a.mu.Unlock()
	if same {
		return
	}
	if err != nil {
		a.log.Error().Err(err).Msg("the controller's document can't be understood; the ledger's stays in force")
	}
	a.tell(func(f *desired.HostFacts) { f.TooNew = text })
}

func (a *agent) inventory(inv desired.Inventory) {
	a.mu.Lock()
	a.counted = true
	a.mu.Unlock()
	a.tell(func(f *desired.HostFacts) { f.Inventory = inv })
}

// tell changes what is said of the host as a whole, and says it.
func (a *agent) tell(change func(*desired.HostFacts)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.self)
	if !a.counted {
		return
	}
	facts, err := desired.Canonical(a.self)
	if err != nil {
		a.log.Error().Err(err).Msg("facts of the host can't be encoded")
		return
	}
	a.link.Report(desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, &desired.Status{
		Rev: a.self.Gen, Phase: desired.PhaseReady, Facts: facts, Since: a.self.Started,
	})
}
