package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"shoal/agent/domain"
	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/ledger"
	"shoal/desired"
)

// Leaver takes everything off a machine that an agent has built there: guests, DHCP servers, packet filters, networks, mounts. Volumes
// and images stay, and so does what is in the agent's directory, so that an agent that is started again builds everything anew.
type Leaver struct {
	cfg     Config
	libvirt *domain.Socket
	guests  *domain.Kind
}

// NewLeaver changes nothing yet; the agent may run.
func NewLeaver(cfg Config) (*Leaver, error) {
	l := &Leaver{cfg: cfg, libvirt: domain.NewSocket(cfg.Libvirt)}
	var err error
	l.guests, err = domain.New(domain.Config{Libvirt: l.libvirt, Virt: noVirt, Acts: noActs{}, Machine: domain.Host{}, Log: cfg.Log})
	return l, err
}

// Close ends the connections to libvirt.
func (l *Leaver) Close() error { return l.libvirt.Close() }

// noVirt is never asked for: nothing is started.
func noVirt(context.Context) (string, error) {
	return "", errors.New("no guest is started by what takes them off")
}

// noActs is the memory of somebody who only looks.
type noActs struct{}

func (noActs) Last(string) (uint64, bool, string) { return 0, false, "" }
func (noActs) Begin(string, uint64) error         { return errors.New("nothing is begun by who only looks") }
func (noActs) End(string, uint64, string) error   { return nil }

// Running are the ids of the guests of ours that run, sorted.
func (l *Leaver) Running(ctx context.Context) ([]string, error) {
	found, err := l.guests.Observe(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for running guests: %w", err)
	}
	var ids []string
	for id, h := range found {
		if l.guests.Counts(h) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Stop asks running guests to shut down, and waits until they have, at most for patience. Those that have not are for Leave, which ends them.
func (l *Leaver) Stop(ctx context.Context, patience time.Duration) error {
	ids, err := l.Running(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := l.libvirt.Shutdown(ctx, id); err != nil && !errors.Is(err, domain.ErrState) && !errors.Is(err, domain.ErrNotFound) {
			return fmt.Errorf("shut guest %s down: %w", id, err)
		}
	}
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for len(ids) > 0 && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if ids, err = l.Running(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Leave takes everything off, guests that run as well. The error is an install.ErrLocked where an agent runs, else it names what could not be taken
// off within patience, and why.
func (l *Leaver) Leave(ctx context.Context, patience time.Duration) (err error) {
	lock, err := install.Lock(l.cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	book, err := ledger.Open(filepath.Join(l.cfg.Data, "ledger"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, book.Close()) }()
	e := engine.New(engine.Config{Log: l.cfg.Log})
	if err := addBuilt(e, l.cfg, built{machine: hands(l.libvirt), virt: noVirt, acts: book, patience: &host.Patience{}, log: l.cfg.Log}); err != nil {
		return err
	}
	e.Set(desired.Document{Head: desired.Head{Gen: math.MaxUint64, Shrink: true}})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(running) }()
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = e.Settled(waiting, math.MaxUint64)
	stop()
	err = errors.Join(err, <-ended)
	var left []string
	for ref, st := range e.Statuses() {
		why := string(st.Phase)
		if st.Fault != nil {
			why = st.Fault.Error()
		}
		left = append(left, ref.String()+": "+why)
	}
	if err == nil && len(left) == 0 {
		return nil
	}
	slices.Sort(left)
	return fmt.Errorf("take off what the agent has built: still there:\n  %s\n%w", strings.Join(left, "\n  "), cmp.Or(err, errors.New("that is not going to change")))
}
