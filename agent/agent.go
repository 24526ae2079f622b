package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/agent/dhcp"
	"shoal/agent/domain"
	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/ledger"
	"shoal/agent/link"
	"shoal/agent/netdev"
	"shoal/agent/pool"
	"shoal/agent/probe"
	"shoal/agent/secgroup"
	"shoal/agent/volume"
	"shoal/desired"
)

// Config is what an agent needs.
type Config struct {
	// NATSURL is the controllers' NATS, one server or several, separated by commas.
	NATSURL string
	// Creds is the host's credentials file; its user name is the host's id.
	Creds string
	// Data is the agent's directory, which is made if it is not there. One agent at a time has it.
	Data string
	// Libvirt is libvirtd's socket.
	Libvirt string
	// Version is told to the controller.
	Version string
	Log     zerolog.Logger
}

// Run is an agent. It returns nil when ctx ends, and leaves everything on the host as it is.
func Run(ctx context.Context, cfg Config) error {
	hostID, err := link.HostOf(cfg.Creds)
	if err != nil {
		return err
	}
	log := cfg.Log.With().Str("host", hostID).Logger()
	if err := makeData(cfg.Data); err != nil {
		return err
	}
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

	a := &agent{book: book, log: log, self: desired.HostFacts{Version: cfg.Version, Started: time.Now().UTC()}}
	a.link, err = link.New(link.Config{
		URL: cfg.NATSURL, Creds: cfg.Creds, Host: hostID, Names: filepath.Join(cfg.Data, "reported.json"),
		OnDocument: a.accept, OnAhead: a.ahead, Log: log,
	})
	if err != nil {
		return err
	}
	a.engine = engine.New(engine.Config{Reporter: a.link, Log: log})
	libvirt := domain.NewSocket(cfg.Libvirt)
	defer libvirt.Close()
	sensor, err := probe.New(probe.Config{Data: cfg.Data, Run: host.Machine{}, Versions: libvirt.Versions, Log: log})
	if err != nil {
		return err
	}
	if err := a.addKinds(cfg, hostID, libvirt, sensor); err != nil {
		return err
	}

	if doc, ok := book.Document(); ok {
		if doc.Head.Host != hostID {
			return fmt.Errorf("the ledger in %s is host %s's and the credentials are host %s's: use another --data, or the right credentials", cfg.Data, doc.Head.Host, hostID)
		}
		log.Info().Uint64("gen", doc.Head.Gen).Msg("document in force from the ledger")
		a.self.Gen = doc.Head.Gen
		a.link.Accepted(doc.Head.Gen)
		a.engine.Set(doc)
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return a.engine.Run(running) })
	group.Go(func() error { return a.link.Run(running) })
	group.Go(func() error { return sensor.Run(running, a.inventory) })
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// makeData makes the agent's directory, if it is not there. Others may go through it and not look into it: DHCP servers, which
// are nobody, get at their files below it. One that is there is the operator's, and stays as it is.
func makeData(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	err := os.Mkdir(dir, 0o711)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o711) // whatever the umask
	}
	if err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	return nil
}

// agent is what Run wires together.
type agent struct {
	book   *ledger.Ledger
	engine *engine.Engine
	link   *link.Link
	log    zerolog.Logger

	mu   sync.Mutex
	self desired.HostFacts
	// counted is set once the inventory is known; there is nothing to tell of the host before.
	counted bool
}

// addKinds gives the engine everything that it can drive.
func (a *agent) addKinds(cfg Config, hostID string, libvirt *domain.Socket, sensor *probe.Probe) error {
	machine := host.Machine{}
	patience := &host.Patience{}

	pools, err := pool.New(pool.Config{Data: cfg.Data, Machine: pool.Host{Run: machine}, Patience: patience, Log: a.log})
	if err != nil {
		return err
	}
	files := volume.Config{Data: cfg.Data, Host: hostID, Run: machine, Files: volume.Disk{}, Patience: patience, Log: a.log}
	volumes, err := volume.New(files)
	if err != nil {
		return err
	}
	images, err := volume.NewImages(files, a.link, nil)
	if err != nil {
		return err
	}
	filter, err := secgroup.New(machine, secgroup.Machine{Run: machine}, filepath.Join(cfg.Data, "secgroup"), a.log)
	if err != nil {
		return err
	}
	domains, err := domain.New(domain.Config{Libvirt: libvirt, Virt: sensor.Virt, Acts: a.book, Machine: domain.Host{}, Log: a.log})
	if err != nil {
		return err
	}
	servers, err := dhcp.New(machine, dhcp.Linux{Run: machine}, filepath.Join(cfg.Data, "dhcp"), a.log)
	if err != nil {
		return err
	}
	engine.Add(a.engine, engine.StageBase, desired.KindNetDev, netdev.New(netdev.Kernel{}, a.log))
	engine.Add(a.engine, engine.StageBase, desired.KindPool, pools)
	engine.Add(a.engine, engine.StageShared, desired.KindImage, images)
	engine.Add(a.engine, engine.StageShared, desired.KindAddrSet, filter.Sets())
	engine.Add(a.engine, engine.StageItem, desired.KindDHCP, servers)
	engine.Add(a.engine, engine.StageItem, desired.KindSecGroup, filter.Chains())
	engine.Add(a.engine, engine.StageItem, desired.KindVolume, volumes)
	engine.Add(a.engine, engine.StageDomain, desired.KindDomain, domains)
	return nil
}

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
