package sim

import (
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"shoal/agent/domain"
)

// Libvirt is a model of libvirtd and its guests. It implements domain.Libvirt; its other methods are what guests,
// operators and accidents do. Guests obey ACPI and let go of devices unless told otherwise.
type Libvirt struct {
	mu      sync.Mutex
	domains map[string]*simDomain
	deaf    bool // guests ignore ACPI
	gripped bool // guests keep their devices
	down    bool
	fail    map[string]error
	calls   []string
	watch   map[int]watcher
	next    int
	ports   int
	devices Devices

	// active has a lock of its own: what is asked before a start may look at other hosts.
	activeMu sync.Mutex
	active   map[string]struct{}
}

// Devices are what guests are connected with: the bridges and the files of their host.
type Devices interface {
	// Plug connects the devices in a piece of domain XML, all or none.
	Plug(devices string) error
	Unplug(devices string)
}

type watcher struct {
	changed func(domain.Event)
	lost    chan struct{}
}

type simDomain struct {
	info         domain.Info
	config, live string
}

// NewLibvirt is a libvirtd without domains.
func NewLibvirt() *Libvirt {
	return &Libvirt{domains: map[string]*simDomain{}, fail: map[string]error{}, watch: map[int]watcher{}, active: map[string]struct{}{}}
}

// Connect makes guests need what their host has: a start or a plug fails where a bridge or a file is missing. It is to be
// called before anything else.
func (l *Libvirt) Connect(d Devices) { l.devices = d }

func (l *Libvirt) plug(devices string) error {
	if l.devices == nil {
		return nil
	}
	return l.devices.Plug(devices)
}

func (l *Libvirt) unplug(devices string) {
	if l.devices != nil {
		l.devices.Unplug(devices)
	}
}

// Active is the ids of the domains that run or are paused.
func (l *Libvirt) Active() []string {
	l.activeMu.Lock()
	defer l.activeMu.Unlock()
	return slices.Sorted(maps.Keys(l.active))
}

func (l *Libvirt) setActive(id string, active bool) {
	l.activeMu.Lock()
	defer l.activeMu.Unlock()
	if active {
		l.active[id] = struct{}{}
	} else {
		delete(l.active, id)
	}
}

// Deaf makes guests ignore requests to stop, or hear them again.
func (l *Libvirt) Deaf(deaf bool) { l.locked(func() { l.deaf = deaf }) }

// Gripped makes guests keep devices that are unplugged, or let go of them.
func (l *Libvirt) Gripped(gripped bool) { l.locked(func() { l.gripped = gripped }) }

// Fail makes a verb ("start", "define", ...) fail until err is nil.
func (l *Libvirt) Fail(verb string, err error) { l.locked(func() { l.fail[verb] = err }) }

// Calls is what changed something since the last call: "<verb> <id>".
func (l *Libvirt) Calls() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

// SetDown stops libvirtd, or starts it. Guests run on; why one is off is forgotten.
func (l *Libvirt) SetDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	if !down {
		return
	}
	for id, w := range l.watch {
		close(w.lost)
		delete(l.watch, id)
	}
	for _, d := range l.domains {
		if !d.info.Active() {
			d.info.Reason = domain.ShutoffUnknown
		}
	}
}

// PowerCut ends every guest without a trace, as a restart of the host does.
func (l *Libvirt) PowerCut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, d := range l.domains {
		if d.info.Active() {
			l.end(id, domain.ShutoffUnknown)
		}
	}
}

// GuestShutdown is a guest that turns itself off.
func (l *Libvirt) GuestShutdown(id string) { l.locked(func() { l.end(id, domain.ShutoffShutdown) }) }

// Kill is kill -9 of a guest's QEMU.
func (l *Libvirt) Kill(id string) { l.locked(func() { l.end(id, domain.ShutoffCrashed) }) }

// PauseByError is a disk's error that stops a guest.
func (l *Libvirt) PauseByError(id, reason string) {
	l.locked(func() {
		if d := l.domains[id]; d != nil && d.info.Active() {
			d.info.State, d.info.Reason = domain.Paused, domain.PausedIOError
			l.tell(domain.Event{ID: id, IOError: reason})
		}
	})
}

func (l *Libvirt) locked(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// tell sends an event; l.mu is held, as libvirt's own order of events demands.
func (l *Libvirt) tell(e domain.Event) {
	for _, w := range l.watch {
		go w.changed(e)
	}
}

// end makes a domain inactive.
func (l *Libvirt) end(id string, reason int) {
	d := l.domains[id]
	if d == nil || !d.info.Active() {
		return
	}
	l.unplug(d.live)
	l.setActive(id, false)
	d.info.State, d.info.Reason, d.live = domain.Shutoff, reason, ""
	if !d.info.Persistent {
		delete(l.domains, id)
	}
	l.tell(domain.Event{ID: id})
}

// begin is the start of every request that is about one domain.
func (l *Libvirt) begin(ctx context.Context, verb, id string) (*simDomain, error) {
	if err := l.up(ctx, verb); err != nil {
		return nil, err
	}
	d := l.domains[id]
	if d == nil {
		return nil, fmt.Errorf("%w: no domain with matching uuid '%s'", domain.ErrNotFound, id)
	}
	return d, nil
}

func (l *Libvirt) up(ctx context.Context, verb string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.down {
		return fmt.Errorf("%w: connection refused", domain.ErrUnreachable)
	}
	return l.fail[verb]
}

// change runs a request that changes an active or inactive domain.
func (l *Libvirt) change(ctx context.Context, verb, id string, active bool, f func(*simDomain) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.begin(ctx, verb, id)
	if err != nil {
		return err
	}
	if d.info.Active() != active {
		return fmt.Errorf("%w: %s", domain.ErrState, verb)
	}
	l.calls = append(l.calls, verb+" "+id)
	if err := f(d); err != nil {
		return err
	}
	l.tell(domain.Event{ID: id})
	return nil
}

// List implements domain.Libvirt.
func (l *Libvirt) List(ctx context.Context) ([]domain.Info, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.up(ctx, "list"); err != nil {
		return nil, err
	}
	var infos []domain.Info
	for _, d := range l.domains {
		infos = append(infos, d.info)
	}
	slices.SortFunc(infos, func(a, b domain.Info) int { return strings.Compare(a.ID, b.ID) })
	return infos, nil
}

// Lookup implements domain.Libvirt.
func (l *Libvirt) Lookup(ctx context.Context, id string) (domain.Info, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.begin(ctx, "lookup", id)
	if err != nil {
		return domain.Info{}, err
	}
	return d.info, nil
}

// XML implements domain.Libvirt.
func (l *Libvirt) XML(ctx context.Context, id string, live bool) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.begin(ctx, "xml", id)
	if err != nil {
		return "", err
	}
	if live && d.live != "" {
		return d.live, nil
	}
	if d.config == "" {
		return d.live, nil
	}
	return d.config, nil
}

// Define implements domain.Libvirt.
func (l *Libvirt) Define(ctx context.Context, text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.up(ctx, "define"); err != nil {
		return err
	}
	var def struct {
		Name string `xml:"name"`
		UUID string `xml:"uuid"`
	}
	if err := xml.Unmarshal([]byte(text), &def); err != nil || def.UUID == "" || def.Name == "" {
		return fmt.Errorf("XML error: %w", err)
	}
	for id, d := range l.domains {
		if (id == def.UUID) != (d.info.Name == def.Name) {
			return fmt.Errorf("%w: operation failed: domain '%s' already exists with uuid %s", domain.ErrExists, d.info.Name, id)
		}
	}
	d := l.domains[def.UUID]
	if d == nil {
		d = &simDomain{info: domain.Info{ID: def.UUID, Name: def.Name, State: domain.Shutoff}}
		l.domains[def.UUID] = d
	}
	d.config, d.info.Persistent = text, true
	l.calls = append(l.calls, "define "+def.UUID)
	l.tell(domain.Event{ID: def.UUID})
	return nil
}

var metadata = regexp.MustCompile(`(?s)<metadata>.*?</metadata>`)

// SetMark implements domain.Libvirt.
func (l *Libvirt) SetMark(ctx context.Context, id, element string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.begin(ctx, "mark", id)
	if err != nil {
		return err
	}
	if !d.info.Persistent {
		return fmt.Errorf("%w: transient domain", domain.ErrState)
	}
	rest, ok := strings.CutPrefix(element, "<domain ")
	if !ok {
		return fmt.Errorf("XML error: %s", element)
	}
	d.config = metadata.ReplaceAllLiteralString(d.config,
		`<metadata><shoal:domain xmlns:shoal="urn:shoal:domain:1" `+rest+`</metadata>`)
	return nil
}

// Undefine implements domain.Libvirt.
func (l *Libvirt) Undefine(ctx context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.begin(ctx, "undefine", id)
	if err != nil {
		return err
	}
	l.calls = append(l.calls, "undefine "+id)
	d.info.Persistent, d.config = false, ""
	if !d.info.Active() {
		delete(l.domains, id)
	}
	l.tell(domain.Event{ID: id})
	return nil
}

// Start implements domain.Libvirt.
func (l *Libvirt) Start(ctx context.Context, id string, paused bool) error {
	return l.change(ctx, "start", id, false, func(d *simDomain) error {
		if err := l.plug(d.config); err != nil {
			return err
		}
		l.ports++
		d.live = strings.ReplaceAll(d.config, `port="-1"`, fmt.Sprintf(`port="%d"`, 5899+l.ports))
		d.live = strings.ReplaceAll(d.live, `<graphics type="vnc"`, `<graphics type="vnc" listen="127.0.0.1"`)
		l.setActive(id, true)
		d.info.State, d.info.Reason = domain.Running, 1
		if paused {
			d.info.State, d.info.Reason = domain.Paused, domain.PausedUser
		}
		return nil
	})
}

// Shutdown implements domain.Libvirt.
func (l *Libvirt) Shutdown(ctx context.Context, id string) error {
	return l.change(ctx, "shutdown", id, true, func(d *simDomain) error {
		if !l.deaf && d.info.State == domain.Running {
			l.end(id, domain.ShutoffShutdown)
		}
		return nil
	})
}

// Destroy implements domain.Libvirt.
func (l *Libvirt) Destroy(ctx context.Context, id string) error {
	return l.change(ctx, "destroy", id, true, func(*simDomain) error {
		l.end(id, domain.ShutoffDestroyed)
		return nil
	})
}

// Suspend implements domain.Libvirt.
func (l *Libvirt) Suspend(ctx context.Context, id string) error {
	return l.change(ctx, "suspend", id, true, func(d *simDomain) error {
		d.info.State, d.info.Reason = domain.Paused, domain.PausedUser
		return nil
	})
}

// Resume implements domain.Libvirt.
func (l *Libvirt) Resume(ctx context.Context, id string) error {
	return l.change(ctx, "resume", id, true, func(d *simDomain) error {
		d.info.State, d.info.Reason = domain.Running, 1
		return nil
	})
}

// Reset implements domain.Libvirt.
func (l *Libvirt) Reset(ctx context.Context, id string) error {
	return l.change(ctx, "reset", id, true, func(*simDomain) error { return nil })
}

// Attach implements domain.Libvirt.
func (l *Libvirt) Attach(ctx context.Context, id, device string) error {
	return l.change(ctx, "attach", id, true, func(d *simDomain) error {
		head, tail, ok := strings.Cut(d.live, "</devices>")
		if !ok {
			return fmt.Errorf("XML error: no devices")
		}
		if err := l.plug(device); err != nil {
			return err
		}
		d.live = head + device + "</devices>" + tail
		return nil
	})
}

var (
	plugged  = regexp.MustCompile(`(?s)<disk[ >].*?</disk>|<interface[ >].*?</interface>`)
	deviceOf = regexp.MustCompile(`<mac address="[^"]*"|<target dev="[^"]*"`)
)

// Detach implements domain.Libvirt.
func (l *Libvirt) Detach(ctx context.Context, id, device string) error {
	return l.change(ctx, "detach", id, true, func(d *simDomain) error {
		name, whole, found := deviceOf.FindString(device), "", false
		live := plugged.ReplaceAllStringFunc(d.live, func(have string) string {
			if name == "" || !strings.Contains(have, name) {
				return have
			}
			found, whole = true, have
			return ""
		})
		if !found {
			return fmt.Errorf("device not found: %s", device)
		}
		if !l.gripped {
			l.unplug(whole)
			d.live = live
		}
		return nil
	})
}

// Events implements domain.Libvirt.
func (l *Libvirt) Events(ctx context.Context, ready func(), changed func(domain.Event)) error {
	l.mu.Lock()
	if err := l.up(ctx, "events"); err != nil {
		l.mu.Unlock()
		return err
	}
	l.next++
	n, w := l.next, watcher{changed, make(chan struct{})}
	l.watch[n] = w
	l.mu.Unlock()
	ready()
	select {
	case <-ctx.Done():
		l.locked(func() { delete(l.watch, n) })
		return ctx.Err()
	case <-w.lost:
		return fmt.Errorf("%w: connection lost", domain.ErrUnreachable)
	}
}

// Ports is a model of the host's bridges as the domain kind sees them: every tap is a port of the bridge that it was last
// put on, or else of the one its domain names.
type Ports struct {
	mu    sync.Mutex
	at    map[string]string
	lost  chan string
	dirs  []string
	logs  []string
	hosts *Libvirt
}

// NewPorts is the model that goes with a Libvirt.
func NewPorts(l *Libvirt) *Ports {
	return &Ports{at: map[string]string{}, lost: make(chan string, 64), hosts: l}
}

// Move puts a device on another bridge, or on none.
func (p *Ports) Move(dev, bridge string) {
	p.mu.Lock()
	p.at[dev] = bridge
	p.mu.Unlock()
	p.lost <- dev
}

var tapAndBridge = regexp.MustCompile(`(?s)<source bridge="([^"]*)".*?<target dev="([^"]*)"`)

// Bridge implements domain.Machine.
func (p *Ports) Bridge(dev string) (string, bool, error) {
	p.mu.Lock()
	bridge, moved := p.at[dev]
	p.mu.Unlock()
	if moved {
		return bridge, true, nil
	}
	p.hosts.mu.Lock()
	defer p.hosts.mu.Unlock()
	for _, d := range p.hosts.domains {
		for _, nic := range plugged.FindAllString(d.live, -1) {
			if m := tapAndBridge.FindStringSubmatch(nic); m != nil && m[2] == dev {
				return m[1], true, nil
			}
		}
	}
	return "", false, nil
}

// SetBridge implements domain.Machine.
func (p *Ports) SetBridge(dev, bridge string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[dev] = bridge
	return nil
}

// WatchPorts implements domain.Machine.
func (p *Ports) WatchPorts(ctx context.Context, lost func(string)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case dev := <-p.lost:
			lost(dev)
		}
	}
}

// MkdirAll implements domain.Machine.
func (p *Ports) MkdirAll(dir string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirs = append(p.dirs, dir)
	return nil
}

// RemoveLog implements domain.Machine.
func (p *Ports) RemoveLog(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.logs = append(p.logs, path)
	return nil
}
