// Package domain is the kind for libvirt domains: it defines, starts, stops and changes virtual machines through libvirt,
// and keeps them as their document says.
//
// # What it guarantees
//
//   - Only domains with our element in their metadata, naming their own UUID, are listed, changed or removed.
//   - A machine that stopped by any hand but its guest's is started again; one that its guest shut down stays off and says
//     so (DomainFacts.ByGuest), until somebody asks for it anew (Domain.Wish). Which of the two it was, and against which
//     wish, survives restarts of agent, libvirtd and host: it is in our element.
//   - An act is begun in a durable place before its verb, and is never done twice. One that was cut off is reported as of
//     unknown outcome.
//   - What a running machine can't take is put into the definition of its next start and listed as pending.
//   - Devices keep their PCI addresses as others come and go.
//   - Disks are never removed, and no guest is touched when agent or libvirtd restart.
//
// Volumes, bridges and packet filters must be there before: the document's Needs see to that. Whether a guest that shut
// itself down is wanted off is the controller's to decide.
package domain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/agent/engine"
	"shoal/desired"
)

// Acts is the durable memory of acts. It holds the last one of each domain.
type Acts interface {
	// Last is the last act that was begun; seq is 0 when there was none.
	Last(id string) (seq uint64, done bool, errText string)
	// Begin is durable when it returns: only then the verb may be carried out.
	Begin(id string, seq uint64) error
	End(id string, seq uint64, errText string) error
}

// Machine is what the kind needs of the host beside libvirt.
type Machine interface {
	// Bridge is the bridge that a device is a port of, empty for none; exists is false when there is no such device.
	Bridge(dev string) (bridge string, exists bool, err error)
	// SetBridge makes a device a port of a bridge.
	SetBridge(dev, bridge string) error
	// WatchPorts tells of devices that stopped being ports of a bridge, until ctx ends.
	WatchPorts(ctx context.Context, lost func(dev string)) error
	MkdirAll(dir string) error
	// RemoveLog removes a console log and what virtlogd rotated it to.
	RemoveLog(path string) error
}

// Config is what New needs.
type Config struct {
	Libvirt Libvirt
	// Virt is the domain type that works on this host, "kvm" or "qemu"; it may take a while to find out.
	Virt    func(ctx context.Context) (string, error)
	Acts    Acts
	Machine Machine
	Log     zerolog.Logger
}

// Kind implements engine.Kind for desired.Domain.
type Kind struct {
	cfg Config
	log zerolog.Logger

	mu sync.Mutex
	// seen holds what is remembered of domains of ours between looks.
	seen map[string]*memory
}

// memory is what can be forgotten: it makes looks cheap and answers kind.
type memory struct {
	config, live *parsed
	started      time.Time
	starts       []time.Time // the newest ones, to notice a machine that dies again and again
	ioError      string
	act          *running
	actedAt      time.Time
	// stopping is when the guest was first asked to stop, asked when last.
	stopping, asked time.Time
	// calledOff is until when a guest that goes off may be obeying a request that no longer stands.
	calledOff time.Time
	// changed is closed at the next event.
	changed chan struct{}
}

// running is an act that this process has begun.
type running struct {
	seq     uint64
	started bool // of a reboot: the machine was started again
}

// Have is a domain of ours as it is.
type Have struct {
	Info Info
	// ByGuest is true when the domain is off because its guest wanted so.
	ByGuest bool
	Started time.Time
	// Loose are the MACs of running NICs that are not ports of their bridges; Gone those whose device on the host is missing.
	Loose, Gone []string
	// IOError is why a disk stopped the machine.
	IOError string
	Acted   *desired.Acted
	// actOpen is set when the last act was begun and has not ended.
	actOpen bool
	// Err is set when the domain is there and can't be looked at; then only Info.ID and Acted hold.
	Err error

	config, live *parsed
}

// New makes the kind.
func New(cfg Config) (*Kind, error) {
	if cfg.Libvirt == nil || cfg.Virt == nil || cfg.Acts == nil || cfg.Machine == nil {
		return nil, errors.New("make domain kind: Libvirt, Virt, Acts and Machine must be set")
	}
	return &Kind{cfg: cfg, log: cfg.Log.With().Str("kind", string(desired.KindDomain)).Logger(), seen: map[string]*memory{}}, nil
}

// Parallel implements engine.Sizer. A start is a third of a second of CPU; more at once than this only delays each.
func (k *Kind) Parallel() int { return min(max(2*runtime.NumCPU(), 4), 16) }

// Counts implements engine.Guarded.
func (k *Kind) Counts(h Have) bool { return h.Info.Active() || h.Err != nil }

// remember is the memory of a domain, under k.mu.
func (k *Kind) remember(id string) *memory {
	m := k.seen[id]
	if m == nil {
		m = &memory{changed: make(chan struct{})}
		k.seen[id] = m
	}
	return m
}

func (k *Kind) with(id string, f func(*memory)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k.remember(id))
}

// Observe implements engine.Kind.
func (k *Kind) Observe(ctx context.Context) (map[string]Have, error) {
	infos, err := k.list(ctx)
	if err != nil {
		return nil, k.fault(fmt.Errorf("list domains: %w", err))
	}
	var mu sync.Mutex
	all := map[string]Have{}
	var g errgroup.Group
	g.SetLimit(perConn)
	for _, info := range infos {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			h, err := k.inspect(ctx, info)
			if err != nil {
				if !k.known(info.ID) {
					return nil // If it is ours after all, Ensure meets the same error and says it.
				}
				h = &Have{Info: info, Acted: k.acted(info.ID), Err: err}
			}
			if h != nil {
				mu.Lock()
				all[info.ID] = *h
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	k.forgetExcept(infos)
	return all, ctx.Err()
}

// list is every domain. libvirt's own list waits for every domain's lock, and a machine that hangs with its storage holds
// its own; then those that we know are asked for one by one.
func (k *Kind) list(ctx context.Context) ([]Info, error) {
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	infos, err := k.cfg.Libvirt.List(short)
	if err == nil || !errors.Is(err, ErrBusy) {
		return infos, err
	}
	k.mu.Lock()
	var ids []string
	for id, m := range k.seen {
		if m.config != nil {
			ids = append(ids, id)
		}
	}
	k.mu.Unlock()
	if len(ids) == 0 {
		return nil, err
	}
	found := make([]*Info, len(ids))
	var answered bool
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			one, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			info, err := k.cfg.Libvirt.Lookup(one, id)
			mu.Lock()
			defer mu.Unlock()
			answered = answered || err == nil || errors.Is(err, ErrNotFound)
			if !errors.Is(err, ErrNotFound) {
				info.ID = id
				found[i] = &info
			}
		})
	}
	wg.Wait()
	if !answered {
		return nil, err
	}
	for _, info := range found {
		if info != nil {
			infos = append(infos, *info)
		}
	}
	return infos, nil
}

func (k *Kind) known(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.seen[id]
	return m != nil && m.config != nil
}

// forgetExcept drops the memory of domains that are gone and that nothing goes on with.
func (k *Kind) forgetExcept(infos []Info) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, m := range k.seen {
		if m.act == nil && m.stopping.IsZero() && !slices.ContainsFunc(infos, func(i Info) bool { return i.ID == id }) {
			m.config, m.live = nil, nil
			if m.starts == nil {
				delete(k.seen, id)
			}
		}
	}
}

// ObserveOne implements engine.OneObserver.
func (k *Kind) ObserveOne(ctx context.Context, id string) (*Have, error) {
	h, _, err := k.look(ctx, id)
	return h, k.fault(err)
}

// look finds one domain: nil when there is none of ours; foreign says that there is another's.
func (k *Kind) look(ctx context.Context, id string) (h *Have, foreign bool, err error) {
	info, err := k.cfg.Libvirt.Lookup(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up domain %s: %w", id, err)
	}
	h, err = k.inspect(ctx, info)
	return h, h == nil && err == nil, err
}

// inspect reads a domain that is there; nil when it is not ours or has gone meanwhile.
func (k *Kind) inspect(ctx context.Context, info Info) (*Have, error) {
	id := info.ID
	var oldConfig, oldLive *parsed
	k.mu.Lock()
	if m := k.seen[id]; m != nil {
		oldConfig, oldLive = m.config, m.live
	}
	k.mu.Unlock()

	h := &Have{Info: info}
	var err error
	if h.config, err = k.definition(ctx, id, false, oldConfig); err != nil || h.config == nil {
		return nil, err
	}
	if info.Active() {
		if h.live, err = k.definition(ctx, id, true, oldLive); err != nil {
			// It stopped between the two questions: its event makes us look again.
			if !errors.Is(err, ErrState) {
				return nil, err
			}
			h.live = nil
		}
	}
	if !h.config.marked {
		if h.live == nil || !h.live.marked {
			return nil, nil
		}
		// Not in place: what is remembered is shared.
		config := *h.config
		config.mark = h.live.mark
		h.config = &config
	}

	now := time.Now()
	k.mu.Lock()
	m := k.remember(id)
	m.config, m.live = h.config, h.live
	if !info.Active() {
		m.started, m.ioError = time.Time{}, ""
	}
	if info.State != Paused {
		m.ioError = ""
	}
	h.Started, h.IOError = m.started, m.ioError
	excused := now.Before(m.calledOff) || m.act != nil
	k.mu.Unlock()
	if info.State == Paused && info.Reason == PausedIOError && h.IOError == "" {
		h.IOError = "unknown"
	}

	if !info.Active() {
		h.ByGuest = h.config.mark.Power == powerGuest
		if h.config.mark.Power == powerOn && info.Reason == ShutoffShutdown && !excused {
			// What was listed may be older than the mark, which says "on" of a machine that runs only: off after it, it is off again.
			now, err := k.cfg.Libvirt.Lookup(ctx, id)
			if err != nil || now.State != info.State || now.Reason != info.Reason {
				return nil, cmp.Or(err, fmt.Errorf("look up domain %s: %w: it changed meanwhile", id, ErrBusy))
			}
			h.ByGuest = true
			// libvirt forgets its reason when it restarts; our element does not.
			config := *h.config
			config.mark.Power = powerGuest
			h.config = &config
			if err := k.setMark(ctx, id, config.mark); err != nil {
				return nil, err
			}
			k.log.Info().Str("id", id).Msg("guest shut itself down")
		}
	}
	h.Acted = k.acted(id)
	_, done, _ := k.cfg.Acts.Last(id)
	h.actOpen = h.Acted != nil && !done
	if h.live != nil {
		for _, nic := range h.live.view.NICs {
			bridge, exists, err := k.cfg.Machine.Bridge(nic.Tap)
			switch {
			case err != nil:
				return nil, fmt.Errorf("look up device %s: %w", nic.Tap, err)
			case !exists:
				h.Gone = append(h.Gone, nic.MAC)
			case bridge != nic.Bridge:
				h.Loose = append(h.Loose, nic.MAC)
			}
		}
	}
	return h, nil
}

// definition reads and parses XML; the parse is saved where the text is as it was. Nil when the domain is gone.
func (k *Kind) definition(ctx context.Context, id string, live bool, old *parsed) (*parsed, error) {
	text, err := k.cfg.Libvirt.XML(ctx, id, live)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read definition of domain %s: %w", id, err)
	}
	if old != nil && old.xml == text {
		return old, nil
	}
	p, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("read definition of domain %s: %w", id, err)
	}
	return p, nil
}

// acted is the last act as facts tell it.
func (k *Kind) acted(id string) *desired.Acted {
	seq, done, errText := k.cfg.Acts.Last(id)
	if seq == 0 {
		return nil
	}
	a := &desired.Acted{Seq: seq, Error: errText}
	k.mu.Lock()
	defer k.mu.Unlock()
	if m := k.seen[id]; m != nil {
		a.At = m.actedAt
	}
	if !done {
		a.Error = "it has not ended"
	}
	return a
}

// Facts implements engine.Facter.
func (k *Kind) Facts(id string, h Have) any {
	f := desired.DomainFacts{State: desired.StateShutoff, ByGuest: h.ByGuest, Started: h.Started}
	if !h.actOpen {
		f.Acted = h.Acted
	}
	switch h.Info.State {
	case Running, Blocked, ShuttingOff:
		f.State = desired.StateRunning
	case Paused, PMSuspended:
		f.State = desired.StatePaused
	case Crashed:
		f.State = desired.StateCrashed
	case Shutoff:
		// A crash while it was being stopped: it is off, as it was to be, and nothing is amiss any more.
		if h.Info.Reason == ShutoffCrashed && (h.config == nil || h.config.mark.Power != powerOff) {
			f.State = desired.StateCrashed
		}
	case NoState:
	}
	if h.live != nil {
		f.VNC = h.live.vnc
		f.Pending = h.live.view.differences(h.config.view, h.live.emulated())
	}
	return f
}

// Diff implements engine.Kind.
func (k *Kind) Diff(_ string, want desired.Domain, h Have) string {
	if h.Err != nil {
		return "can't be looked at: " + h.Err.Error()
	}
	var what []string
	what = append(what, definitionDiff(want, h)...)
	if s := powerDiff(want, h); s != "" {
		what = append(what, s)
	}
	what = append(what, plugDiff(want, h)...)
	if actDue(want, h) {
		what = append(what, "act due")
	}
	return strings.Join(what, ", ")
}

// Adopt implements engine.Adopter. Whether a guest runs is taken over, and of its definition what a VM has a word for and no other
// item stands behind: processors, memory, the CPU's model. They come into force at its next start, here as there. A crash
// is nobody's wish. Disks and NICs stay held: files, addresses and filters belong to them.
func (k *Kind) Adopt(_ string, want desired.Domain, h Have) (desired.Domain, bool) {
	if h.Err != nil {
		return want, false
	}
	found := want
	switch {
	case h.Info.State == Running, h.Info.State == Blocked:
		found.Power = desired.PowerOn
	case h.Info.State == Paused && h.Info.Reason != PausedIOError && !passing(h.Info.Reason):
		found.Power = desired.PowerPaused
	case h.Info.State == Shutoff && h.Info.Reason != ShutoffCrashed && !h.ByGuest:
		found.Power = desired.PowerOff
	default:
		return want, false
	}
	has := h.config.view
	found.CPUs, found.MemoryMiB = has.CPUs, has.MemoryMiB
	if !h.config.emulated() && has.CPUMode != viewOf(want).CPUMode {
		found.CPUMode = cmp.Or(has.CPUMode, "none")
	}
	sized := found.CPUs != want.CPUs || found.MemoryMiB != want.MemoryMiB || found.CPUMode != want.CPUMode
	diff := definitionDiff(found, h)
	if sized && len(diff) == 1 && diff[0] == rewrite {
		diff = nil // ours again once it is wanted
	}
	more := len(diff) > 0 || len(plugDiff(found, h)) > 0 || actDue(found, h)
	return found, (sized || found.Power != want.Power) && !more && found.Validate() == nil
}

// plugDiff is how the devices of a running domain differ.
func plugDiff(want desired.Domain, h Have) []string {
	if !h.Info.Active() || want.Power == desired.PowerOff || h.live == nil {
		return nil
	}
	var what []string
	p := plugsOf(viewOf(want), h)
	for _, d := range p.outDisks {
		what = append(what, "disk "+d.Target+" still plugged in")
	}
	for _, d := range p.inDisks {
		what = append(what, "disk "+d.Target+" not plugged in")
	}
	for _, n := range p.outNICs {
		what = append(what, "nic "+n.MAC+" still plugged in")
	}
	for _, n := range p.inNICs {
		what = append(what, "nic "+n.MAC+" not plugged in")
	}
	for _, mac := range h.Loose {
		what = append(what, "nic "+mac+" is not on its bridge")
	}
	return what
}

// rewrite is how a definition differs that says what is wanted and is not the one that we wrote for it.
const rewrite = "definition"

// definitionDiff is how the definition of the next start differs.
func definitionDiff(want desired.Domain, h Have) []string {
	var what []string
	if !h.Info.Persistent {
		what = append(what, "not defined")
	}
	v := viewOf(want)
	what = append(what, h.config.view.differences(v, h.config.emulated())...)
	if len(what) == 0 {
		if hash, err := v.hash(want); err != nil || hash != h.config.mark.Hash || !h.config.marked {
			what = append(what, rewrite)
		}
	}
	return what
}

// passing are reasons for a pause that somebody's operation causes and ends.
func passing(reason int) bool {
	switch reason {
	case PausedMigration, PausedSave, PausedDump, PausedSnapshot, PausedStartingUp, PausedPostcopy, 13:
		return true
	default:
		return false
	}
}

// powerDiff is how the domain's state differs.
func powerDiff(want desired.Domain, h Have) string {
	if want.Power == desired.PowerOff {
		switch {
		case h.Info.Active():
			return "running"
		case h.config.mark.Power != powerOff:
			return "off without being stopped"
		default:
			return ""
		}
	}
	switch {
	case askedAgain(want, h):
		return "off by its guest and asked to run again"
	case !h.Info.Active() && h.ByGuest && h.config.mark.Wish != want.Wish:
		return "wish not noted"
	case !h.Info.Active() && h.ByGuest:
		return ""
	case !h.Info.Active() && h.Info.Reason == ShutoffCrashed, h.Info.State == Crashed:
		return "crashed"
	case !h.Info.Active():
		return "stopped"
	case h.config.mark.Power != powerOn:
		return "being stopped"
	case want.Power == desired.PowerPaused && (h.Info.State == Running || h.Info.State == Blocked):
		return "running"
	case want.Power == desired.PowerOn && h.Info.State == Paused && h.Info.Reason == PausedIOError:
		return "paused by a disk's error"
	case want.Power == desired.PowerOn && h.Info.State == Paused && !passing(h.Info.Reason):
		return "paused"
	case h.config.mark.Wish != want.Wish:
		return "wish not noted"
	default:
		return ""
	}
}

// askedAgain reports whether somebody has asked for a machine since its guest shut it down.
func askedAgain(want desired.Domain, h Have) bool {
	return !h.Info.Active() && h.ByGuest && want.Power != desired.PowerOff && want.Wish > h.config.mark.Wish
}

func actDue(want desired.Domain, h Have) bool {
	if h.actOpen {
		return true
	}
	return want.Act != nil && (h.Acted == nil || want.Act.Seq > h.Acted.Seq)
}

// Ensure implements engine.Kind. It looks for itself: what the engine saw may be old.
func (k *Kind) Ensure(ctx context.Context, id string, want desired.Domain, _ *Have) (Have, error) {
	h, foreign, err := k.look(ctx, id)
	if err != nil {
		return Have{}, k.fault(err)
	}
	if foreign {
		return Have{}, conflict(fmt.Errorf("define domain %s: a domain with this UUID is there and does not bear our mark", id))
	}
	err = k.bring(ctx, id, want, h)
	// What was reached is reported even where something is left.
	now, _, lookErr := k.look(ctx, id)
	if err == nil {
		err = lookErr
	}
	if now == nil {
		if err == nil {
			err = engine.Fault(desired.CodeConflict, "find out what removes or edits it",
				fmt.Errorf("define domain %s: it is gone, or has lost our mark, right after it was defined", id))
		}
		return Have{}, k.fault(err)
	}
	return *now, k.fault(err)
}

// bring does what is to be done, in the order in which a failure of a later step leaves the earlier ones useful.
func (k *Kind) bring(ctx context.Context, id string, want desired.Domain, h *Have) error {
	unknown, err := k.settleActs(id, want, h)
	if err != nil {
		return err
	}
	if h == nil {
		if err := k.define(ctx, id, want, nil, markOf(want)); err != nil {
			return err
		}
		if want.Power != desired.PowerOff {
			return errors.Join(k.start(ctx, id, want), unknown)
		}
		return unknown
	}

	if want.Power == desired.PowerOff {
		if err := k.bringOff(ctx, id, want, h); err != nil {
			return err
		}
		return unknown
	}

	if h.Info.Active() {
		if h, err = k.act(ctx, id, want, h); err != nil {
			return err
		}
	}
	var plugErr error
	if h.Info.Active() {
		if h, plugErr = k.plug(ctx, id, want, h); h == nil {
			return plugErr
		}
		power := h.config.mark.Power
		if power != powerOn {
			// A stop that was under way is called off. The guest may have got the request all the same.
			k.with(id, func(m *memory) {
				m.stopping, m.asked = time.Time{}, time.Time{}
				m.calledOff = time.Now().Add(max(time.Duration(want.StopSeconds)*time.Second, time.Minute))
			})
			power = powerOn
		}
		if err := k.redefine(ctx, id, want, h, mark{Power: power, Wish: want.Wish}); err != nil {
			return errors.Join(err, plugErr)
		}
		return errors.Join(k.bringRunning(ctx, id, want, h), plugErr, unknown)
	}

	if h.ByGuest && !askedAgain(want, *h) {
		return errors.Join(k.redefine(ctx, id, want, h, mark{Power: powerGuest, Wish: want.Wish}), unknown)
	}
	if h.Info.Reason == ShutoffMigrated {
		return engine.Fault(desired.CodeHeld, "take it off this host's document, or undefine it here",
			fmt.Errorf("start domain %s: somebody migrated it away, and it must not run twice", id))
	}
	// It is marked as on once it runs: libvirt still says that its guest shut it down the last time, and that, seen with such a
	// mark after a start that failed or was cut off, would be taken for the answer to this one.
	if err := k.redefine(ctx, id, want, h, h.config.mark); err != nil {
		return err
	}
	if err := k.start(ctx, id, want); err != nil {
		return err
	}
	if h.config.mark.Power != powerOn || h.config.mark.Wish != want.Wish {
		hash, err := viewOf(want).hash(want)
		if err != nil {
			return err
		}
		if err := k.setMark(ctx, id, mark{ID: id, Hash: hash, Power: powerOn, Wish: want.Wish}); err != nil {
			return err
		}
	}
	return errors.Join(k.endAct(id, true, ""), unknown)
}

// markOf is the mark of a domain that is as wanted.
func markOf(want desired.Domain) mark {
	if want.Power == desired.PowerOff {
		return mark{Power: powerOff, Wish: want.Wish}
	}
	return mark{Power: powerOn, Wish: want.Wish}
}

// bringOff stops the domain and keeps its definition current.
func (k *Kind) bringOff(ctx context.Context, id string, want desired.Domain, h *Have) error {
	if err := k.redefine(ctx, id, want, h, markOf(want)); err != nil {
		return err
	}
	if h.Info.Active() {
		if err := k.stop(ctx, id, want.Force, want.StopSeconds, h); err != nil {
			return err
		}
	}
	return k.endAct(id, false, "the VM was stopped instead")
}

// bringRunning pauses or resumes, and puts devices back on their bridges.
func (k *Kind) bringRunning(ctx context.Context, id string, want desired.Domain, h *Have) error {
	var errs []error
	for _, nic := range h.live.view.NICs {
		if slices.Contains(h.Loose, nic.MAC) {
			if err := k.cfg.Machine.SetBridge(nic.Tap, nic.Bridge); err != nil {
				errs = append(errs, engine.Fault(desired.CodeMissing, "", fmt.Errorf("put %s on bridge %s: %w", nic.Tap, nic.Bridge, err)))
			}
		}
	}
	var err error
	switch powerDiff(want, *h) {
	case "running":
		err = k.cfg.Libvirt.Suspend(ctx, id)
	case "paused":
		err = k.cfg.Libvirt.Resume(ctx, id)
	case "paused by a disk's error":
		err = k.resumeAfterError(ctx, id, h)
	}
	if err != nil && !errors.Is(err, ErrState) {
		errs = append(errs, fmt.Errorf("bring domain %s to %s: %w", id, want.Power, err))
	}
	return errors.Join(errs...)
}

// resumeAfterError lets a machine go on that a disk's error stopped. If it stops again at once, the cause is still there.
func (k *Kind) resumeAfterError(ctx context.Context, id string, h *Have) error {
	reason := h.IOError
	if err := k.cfg.Libvirt.Resume(ctx, id); err != nil {
		return err
	}
	again := k.await(ctx, id, 500*time.Millisecond, func(i Info) bool { return i.State == Paused })
	if !again {
		return nil
	}
	k.with(id, func(m *memory) {
		if m.ioError != "" {
			reason = m.ioError
		}
	})
	if reason == "enospc" {
		return engine.Fault(desired.CodeNoSpace, "", fmt.Errorf("resume domain %s: a disk's storage has no space left", id))
	}
	return engine.Fault(desired.CodeStorageUnreachable, "", fmt.Errorf("resume domain %s: a disk can't be read or written", id))
}

// redefine brings the definition up to date, and what the mark says of power and wish, if they are not.
func (k *Kind) redefine(ctx context.Context, id string, want desired.Domain, h *Have, m mark) error {
	stale := len(definitionDiff(want, *h)) > 0
	if !stale && !h.Info.Active() {
		virt, err := k.cfg.Virt(ctx)
		if err != nil {
			return err
		}
		stale = h.config.domain.Type != virt
	}
	if stale {
		return k.define(ctx, id, want, h, m)
	}
	if now := h.config.mark; now.Power != m.Power || now.Wish != m.Wish {
		now.Power, now.Wish = m.Power, m.Wish
		return k.setMark(ctx, id, now)
	}
	return nil
}

func (k *Kind) setMark(ctx context.Context, id string, m mark) error {
	if err := k.cfg.Libvirt.SetMark(ctx, id, m.element()); err != nil {
		return fmt.Errorf("mark domain %s: %w", id, err)
	}
	return nil
}

// define writes the definition of the next start, with the power and wish of m. h is nil when there is none.
func (k *Kind) define(ctx context.Context, id string, want desired.Domain, h *Have, m mark) error {
	virt, err := k.cfg.Virt(ctx)
	if err != nil {
		return err
	}
	hash, err := viewOf(want).hash(want)
	if err != nil {
		return err
	}
	var old *parsed
	if h != nil {
		if old = h.live; old == nil {
			old = h.config
		}
	}
	text, err := build(id, want, virt, mark{ID: id, Hash: hash, Power: m.Power, Wish: m.Wish}, old)
	if err != nil {
		return err
	}
	if want.ConsoleLog != "" {
		if err := k.cfg.Machine.MkdirAll(filepath.Dir(want.ConsoleLog)); err != nil {
			return fmt.Errorf("make directory of console log: %w", err)
		}
	}
	if err := k.cfg.Libvirt.Define(ctx, text); err != nil {
		err = fmt.Errorf("define domain %s as %s: %w", id, want.Name, err)
		if errors.Is(err, ErrExists) {
			return conflict(err)
		}
		return err
	}
	return nil
}

// A machine that ended this often within this time is not started again right away.
const (
	crashLoop       = 5
	crashLoopWindow = time.Minute
)

// start starts a domain that is off.
func (k *Kind) start(ctx context.Context, id string, want desired.Domain) error {
	now := time.Now()
	looping := false
	k.with(id, func(m *memory) {
		m.starts = slices.DeleteFunc(m.starts, func(t time.Time) bool { return now.Sub(t) > crashLoopWindow })
		looping = len(m.starts) >= crashLoop
		m.stopping, m.asked, m.calledOff, m.ioError = time.Time{}, time.Time{}, time.Time{}, ""
	})
	if looping {
		return engine.After(crashLoopWindow/2, engine.Fault(desired.CodeLibvirt, "read /var/log/libvirt/qemu/"+want.Name+".log on the host",
			fmt.Errorf("start domain %s: it ended %d times within %s of its start", id, crashLoop, crashLoopWindow)))
	}
	err := k.cfg.Libvirt.Start(ctx, id, want.Power == desired.PowerPaused)
	if errors.Is(err, ErrState) {
		// Somebody was faster.
		if info, lookErr := k.cfg.Libvirt.Lookup(ctx, id); lookErr == nil && info.Active() {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("start domain %s: %w", id, err)
	}
	k.with(id, func(m *memory) {
		m.started = time.Now()
		m.starts = append(m.starts, m.started)
	})
	return nil
}

// How a guest is asked to stop: again after askAgain, since one that was booting did not hear the first time. Ensure
// comes back to the engine after slice, so that a new wish is heard.
const (
	askAgain = 5 * time.Second
	slice    = time.Second
)

// stop brings the domain off, or one step nearer to it: then the error says that it goes on.
func (k *Kind) stop(ctx context.Context, id string, force bool, seconds int, h *Have) error {
	now := time.Now()
	var since, asked time.Time
	k.with(id, func(m *memory) {
		if m.stopping.IsZero() {
			m.stopping = now
		}
		since, asked = m.stopping, m.asked
		if now.Sub(asked) >= askAgain {
			m.asked = now
		}
	})
	limit := time.Duration(seconds) * time.Second
	left := limit - now.Sub(since)
	if !force && left > 0 {
		if h.Info.State == Paused {
			// A paused guest can't obey. Not every pause can be ended; then the time runs out.
			if err := k.cfg.Libvirt.Resume(ctx, id); err != nil && !errors.Is(err, ErrState) {
				k.log.Debug().Str("id", id).Err(err).Msg("resume before stopping")
			}
		}
		if now.Sub(asked) >= askAgain {
			if err := k.cfg.Libvirt.Shutdown(ctx, id); err != nil && !errors.Is(err, ErrState) && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("ask domain %s to stop: %w", id, err)
			}
		}
		if !k.await(ctx, id, min(left, slice), func(i Info) bool { return !i.Active() }) {
			percent := int(100 * now.Sub(since) / limit)
			engine.Progress(ctx, percent)
			if time.Since(since) < limit {
				return engine.Busy(50*time.Millisecond, fmt.Sprintf("the guest has %s left to stop", (limit-time.Since(since)).Round(time.Second)))
			}
			force = true
		}
	} else {
		force = true
	}
	if force {
		if err := k.cfg.Libvirt.Destroy(ctx, id); err != nil && !errors.Is(err, ErrState) && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("destroy domain %s: %w", id, err)
		}
	}
	k.with(id, func(m *memory) { m.stopping, m.asked = time.Time{}, time.Time{} })
	return nil
}

// await waits until the domain's state satisfies ok, at most d. A domain that is gone is off.
func (k *Kind) await(ctx context.Context, id string, d time.Duration, ok func(Info) bool) bool {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for {
		var changed chan struct{}
		k.with(id, func(m *memory) { changed = m.changed })
		info, err := k.cfg.Libvirt.Lookup(ctx, id)
		if errors.Is(err, ErrNotFound) {
			info, err = Info{ID: id, State: Shutoff}, nil
		}
		if err == nil && ok(info) {
			return true
		}
		// Events may be lost.
		poll := time.NewTimer(250 * time.Millisecond)
		select {
		case <-changed:
		case <-poll.C:
		case <-deadline.C:
			poll.Stop()
			return false
		case <-ctx.Done():
			poll.Stop()
			return false
		}
		poll.Stop()
	}
}

// settleActs ends acts that an earlier process left open, and takes note of those that are not to be done. unknown is the
// fault of an act that may or may not have happened.
func (k *Kind) settleActs(id string, want desired.Domain, h *Have) (unknown, err error) {
	last, done, _ := k.cfg.Acts.Last(id)
	var mine *running
	k.with(id, func(m *memory) { mine = m.act })
	if last > 0 && !done && (mine == nil || mine.seq != last) {
		text := "UnknownOutcome: the agent ended in the middle of it"
		if err := k.cfg.Acts.End(id, last, text); err != nil {
			return nil, fmt.Errorf("record act %d of domain %s: %w", last, id, err)
		}
		unknown = engine.Fault(desired.CodeUnknownOutcome, "", fmt.Errorf("act %d on domain %s: the agent ended in the middle of it", last, id))
	}
	if want.Act == nil || want.Act.Seq <= last {
		return unknown, nil
	}
	if mine != nil {
		if err := k.endAct(id, false, fmt.Sprintf("overtaken by act %d", want.Act.Seq)); err != nil {
			return unknown, err
		}
	}
	skip := ""
	switch {
	case h == nil: // It has never been here: what it was asked to do before is not to be done now.
	case askedAgain(want, *h):
		// The start that follows is what is asked for, and ends it.
		return unknown, k.beginAct(id, want.Act.Seq)
	case want.Power == desired.PowerOff, !h.Info.Active():
		skip = "the VM was not running"
	default:
		return unknown, nil
	}
	if err := k.beginAct(id, want.Act.Seq); err != nil {
		return unknown, err
	}
	return unknown, k.endAct(id, false, skip)
}

func (k *Kind) beginAct(id string, seq uint64) error {
	if err := k.cfg.Acts.Begin(id, seq); err != nil {
		return fmt.Errorf("record act %d of domain %s: %w", seq, id, err)
	}
	k.with(id, func(m *memory) { m.act = &running{seq: seq} })
	return nil
}

// endAct ends the act that is under way, if one is.
func (k *Kind) endAct(id string, started bool, errText string) error {
	var seq uint64
	k.with(id, func(m *memory) {
		if m.act != nil {
			seq = m.act.seq
			m.act.started = m.act.started || started
		}
	})
	if seq == 0 {
		return nil
	}
	if err := k.cfg.Acts.End(id, seq, errText); err != nil {
		return fmt.Errorf("record act %d of domain %s: %w", seq, id, err)
	}
	k.with(id, func(m *memory) { m.act, m.actedAt = nil, time.Now() })
	return nil
}

// act does what is due of the document's act on an active domain, and gives the domain as it is then. A reboot leaves it
// off: starting is the next step's, as is the end of the act.
func (k *Kind) act(ctx context.Context, id string, want desired.Domain, h *Have) (*Have, error) {
	last, _, _ := k.cfg.Acts.Last(id)
	if want.Act != nil && want.Act.Seq > last {
		if err := k.beginAct(id, want.Act.Seq); err != nil {
			return h, err
		}
		k.log.Info().Str("id", id).Uint64("seq", want.Act.Seq).Str("verb", string(want.Act.Verb)).Msg("act begun")
	}
	var mine running
	k.with(id, func(m *memory) {
		if m.act != nil {
			mine = *m.act
		}
	})
	switch {
	case mine.seq == 0:
		return h, nil
	case mine.started:
		// The reboot is over; only its record was not written.
		return h, k.endAct(id, true, "")
	case want.Act == nil || want.Act.Seq != mine.seq:
		return h, k.endAct(id, false, "it was withdrawn")
	case want.Act.Verb == desired.VerbReset:
		err := k.cfg.Libvirt.Reset(ctx, id)
		text := ""
		switch {
		case errors.Is(err, ErrBusy), errors.Is(err, ErrUnreachable):
			text = "UnknownOutcome: " + err.Error()
		case err != nil:
			text = err.Error()
		}
		return h, k.endAct(id, false, text)
	}
	// The mark keeps the guest's obedience from being taken for its own will.
	if h.config.mark.Power != powerOff {
		m := h.config.mark
		m.Power = powerOff
		if err := k.setMark(ctx, id, m); err != nil {
			return h, err
		}
	}
	if err := k.stop(ctx, id, false, want.StopSeconds, h); err != nil {
		return h, err
	}
	now, _, err := k.look(ctx, id)
	if err == nil && now == nil {
		err = fmt.Errorf("reboot domain %s: it is gone", id)
	}
	if err != nil {
		return h, err
	}
	return now, nil
}

// Remove implements engine.Kind. The guest is not asked: who removes a VM has stopped it before if that matters.
func (k *Kind) Remove(ctx context.Context, id string, _ Have) error {
	h, _, err := k.look(ctx, id)
	if err != nil {
		return k.fault(err)
	}
	if h == nil {
		return nil
	}
	if h.Info.Active() {
		if err := k.cfg.Libvirt.Destroy(ctx, id); err != nil && !errors.Is(err, ErrState) && !errors.Is(err, ErrNotFound) {
			return k.fault(fmt.Errorf("destroy domain %s: %w", id, err))
		}
	}
	if h.Info.Persistent {
		if err := k.cfg.Libvirt.Undefine(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
			return k.fault(fmt.Errorf("undefine domain %s: %w", id, err))
		}
	}
	if log := h.config.view.ConsoleLog; log != "" {
		if err := k.cfg.Machine.RemoveLog(log); err != nil {
			k.log.Warn().Str("id", id).Err(err).Msg("remove console log")
		}
	}
	k.mu.Lock()
	delete(k.seen, id)
	k.mu.Unlock()
	return nil
}

// Watch implements engine.Watcher. It comes back by itself after libvirtd went away.
func (k *Kind) Watch(ctx context.Context, changed func(id string)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.watchPorts(ctx, changed) })
	backoff := 100 * time.Millisecond
	connected := true
	for {
		err := k.cfg.Libvirt.Events(ctx, func() {
			backoff, connected = 100*time.Millisecond, true
			changed("")
		}, func(e Event) {
			k.mu.Lock()
			// Events of others' domains leave no trace here.
			if m := k.seen[e.ID]; m != nil {
				if e.IOError != "" {
					m.ioError = e.IOError
				}
				close(m.changed)
				m.changed = make(chan struct{})
			}
			k.mu.Unlock()
			changed(e.ID)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if connected {
			k.log.Warn().Err(err).Msg("libvirt events lost")
			connected = false
			changed("") // So that statuses say it.
		}
		select {
		case <-time.After(backoff + rand.N(backoff)):
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, 2*time.Second)
	}
}

// watchPorts finds domains whose devices fell off their bridges.
func (k *Kind) watchPorts(ctx context.Context, changed func(id string)) {
	for ctx.Err() == nil {
		err := k.cfg.Machine.WatchPorts(ctx, func(dev string) {
			k.mu.Lock()
			var owner string
			for id, m := range k.seen {
				if m.live != nil && slices.ContainsFunc(m.live.view.NICs, func(n nicView) bool { return n.Tap == dev }) {
					owner = id
				}
			}
			k.mu.Unlock()
			if owner != "" {
				changed(owner)
			}
		})
		if ctx.Err() != nil {
			return
		}
		k.log.Warn().Err(err).Msg("network events lost")
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}
