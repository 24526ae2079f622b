// Package network changes the host's own network - names of interfaces, bonds, bridges, VLANs, addresses - for an operator at the machine,
// and takes a change back that was not seen to work. Networks of guests are the controller's, and agent/netdev's.
//
// # What it guarantees
//
//   - A change is checked whole against the units and the machine before anything is written. What is refused leaves nothing behind.
//   - What was there before is on the disk, synced, before the first thing is changed. From then on the change is pending until Confirm, or
//     it is rolled back: on RollBack, by the guard when its time is over, or, after a loss of power, at the next start of the machine before
//     the network comes up. The guard is a process of its own that needs no terminal; time is the machine's since its start, so
//     that a clock that is set meanwhile changes nothing.
//   - Rolling back is repeated until it was done, and does nothing the second time.
//   - One change at a time, also between processes.
//   - Confirm takes word from the network only: the agent that reached its controller after the change, or a login over SSH that was made
//     after it; or, said explicitly, somebody who stands at the machine.
//
// # What it leaves to others
//
// The form of units is agent/networkd's, making them so systemd-networkd's. A host whose network another tool keeps (netplan,
// NetworkManager, ifupdown) is refused.
//
// # Files
//
// Below the agent's data directory, in network/, which is 0700:
//
//	pending.json  a change that is not confirmed, with all that was before
//	last.json     how the last change ended
//	lock          held while something is changed
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"shoal/agent/host"
	"shoal/agent/networkd"
)

// Patience is how long a change waits to be confirmed.
const Patience = 60 * time.Second

// Machine is the network of the machine, as far as a change needs it.
type Machine interface {
	// Ready says why changes can't be made here.
	Ready(ctx context.Context) error
	Devices(ctx context.Context) ([]Device, error)
	// Rename calls a device otherwise. It is done when there is no device from, and one to; the error is ErrNoDevice where there is neither.
	Rename(ctx context.Context, from, to string) error
	// Release takes a device out of its bond or bridge.
	Release(ctx context.Context, name string) error
	// Clear takes all addresses off a device.
	Clear(ctx context.Context, name string) error
	// Delete removes a device. Absent is success.
	Delete(ctx context.Context, name string) error
	// Reload has the units read anew, and devices whose units differ configured anew. It does not wait for that.
	Reload(ctx context.Context) error
	// Reconfigure has one device configured anew, which is how networkd gets over a failure.
	Reconfigure(ctx context.Context, name string) error
	// Uptime is the time since the machine's start, and Boot names that start.
	Uptime() (time.Duration, error)
	Boot() (string, error)
}

// Config is what New needs.
type Config struct {
	// Data is the agent's directory.
	Data string
	// Units is networkd.Dir, but in tests.
	Units   string
	Machine Machine
	// Guard starts a process that calls Guard and outlives this one.
	Guard func(ctx context.Context) error
	// Patience is how long a change waits to be confirmed.
	Patience time.Duration
}

// Network is the host's own network.
type Network struct{ cfg Config }

// New makes one. It looks at nothing yet.
func New(cfg Config) (*Network, error) {
	if cfg.Data == "" || cfg.Units == "" || cfg.Machine == nil {
		return nil, errors.New("open network: Data, Units and Machine must be set")
	}
	if cfg.Patience <= 0 {
		cfg.Patience = Patience
	}
	return &Network{cfg}, nil
}

// Pending is a change that was made and is not confirmed.
type Pending struct {
	ID     string    `json:"id"`
	Change string    `json:"change"`
	At     time.Time `json:"at"`
	// Boot and Applied are when it was done, by the machine's time since that start; Deadline is when it is rolled back. Applied is 0
	// while it is being done.
	Boot     string        `json:"boot"`
	Applied  time.Duration `json:"applied_ns"`
	Deadline time.Duration `json:"deadline_ns"`

	// Before are the files that it changed, nil for those that were not there, and After what it made of them.
	Before  map[string]*string `json:"before"`
	After   map[string]*string `json:"after"`
	Renames []rename           `json:"renames,omitempty"`
	// Made are devices that it added.
	Made []string `json:"made,omitempty"`
}

// Outcome is how a change ended.
type Outcome struct {
	ID        string    `json:"id"`
	Change    string    `json:"change"`
	At        time.Time `json:"at"`
	Confirmed bool      `json:"confirmed"`
	// Why is what confirmed it, or why it was rolled back.
	Why string `json:"why"`
}

var (
	// ErrPending refuses a change while another one is not confirmed.
	ErrPending = errors.New("a change is pending")
	// ErrNoDevice says that a device is not there.
	ErrNoDevice = errors.New("no such device")
	// ErrNothing says that no change is pending.
	ErrNothing = errors.New("no change is pending")
)

func (n *Network) path(name string) string { return filepath.Join(n.cfg.Data, "network", name) }

// lock waits for the lock.
func (n *Network) lock() (*os.File, error) {
	if err := os.MkdirAll(n.path(""), 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	f, err := os.OpenFile(n.path("lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("take lock: %w", err)
	}
	return f, nil
}

// Pending is the pending change, nil for none.
func (n *Network) Pending() (*Pending, error) { return read[Pending](n.path("pending.json")) }

// Last is how the last change ended, nil for none.
func (n *Network) Last() (*Outcome, error) { return read[Outcome](n.path("last.json")) }

func read[T any](path string) (*T, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing there is no error
	}
	if err != nil {
		return nil, err
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &v, nil
}

func write(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return host.WriteFile(path, append(b, '\n'), 0o600)
}

// config reads the units.
func (n *Network) config() (networkd.Config, error) {
	entries, err := os.ReadDir(n.cfg.Units)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read units: %w", err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if !networkd.IsUnit(entry.Name()) || entry.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(n.cfg.Units, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read units: %w", err)
		}
		files[entry.Name()] = string(b)
	}
	return networkd.ParseConfig(files)
}

// Devices is the machine's network, with the units that are in force.
func (n *Network) Devices(ctx context.Context) ([]Device, error) {
	devices, err := n.cfg.Machine.Devices(ctx)
	if err != nil {
		return nil, err
	}
	config, err := n.config()
	if err != nil {
		return nil, err
	}
	for i, d := range devices {
		if devices[i].File, err = config.NetworkOf(d.match()); err != nil {
			return nil, err
		}
	}
	return devices, nil
}

// Check says what stands against a change, and does nothing.
func (n *Network) Check(ctx context.Context, c Change, cut Cut) error {
	_, err := n.edit(ctx, c, cut)
	return err
}

func (n *Network) edit(ctx context.Context, c Change, cut Cut) (*edit, error) {
	if err := n.cfg.Machine.Ready(ctx); err != nil {
		return nil, err
	}
	config, err := n.config()
	if err != nil {
		return nil, err
	}
	devices, err := n.cfg.Machine.Devices(ctx)
	if err != nil {
		return nil, err
	}
	e, err := makeEdit(c, config, devices)
	if err != nil {
		return nil, err
	}
	return e, cut.check(e)
}

// Apply makes a change, which is pending then. When it can't be made it is taken back, and the error says why.
func (n *Network) Apply(ctx context.Context, c Change, cut Cut) (*Pending, error) {
	lock, err := n.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if p, err := n.Pending(); err != nil {
		return nil, err
	} else if p != nil {
		return nil, fmt.Errorf("%w: %s: wait for its end, or shoal-agent net revert", ErrPending, p.Change)
	}
	e, err := n.edit(ctx, c, cut)
	if err != nil {
		return nil, err
	}
	p := &Pending{ID: uuid.NewString(), Change: c.String(), At: time.Now().UTC(), Before: map[string]*string{}, After: e.files(), Renames: e.renames}
	if len(p.After) == 0 && len(p.Renames) == 0 {
		return nil, errors.New("nothing would change")
	}
	for name := range p.After {
		b, err := os.ReadFile(filepath.Join(n.cfg.Units, name))
		switch {
		case err == nil:
			text := string(b)
			p.Before[name] = &text
		case errors.Is(err, fs.ErrNotExist):
			p.Before[name] = nil
		default:
			return nil, fmt.Errorf("read units: %w", err)
		}
	}
	for _, d := range e.after.NetDevs() {
		if e.before.NetDevOf(d) == "" {
			p.Made = append(p.Made, d)
		}
	}
	if p.Boot, err = n.cfg.Machine.Boot(); err != nil {
		return nil, err
	}
	up, err := n.cfg.Machine.Uptime()
	if err != nil {
		return nil, err
	}
	p.Deadline = up + n.cfg.Patience
	if err := write(n.path("pending.json"), p); err != nil {
		return nil, fmt.Errorf("keep what was before: %w", err)
	}
	// From here on there is something to take back, and somebody who does it must be there first.
	if err := n.cfg.Guard(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the guard that would roll back: %w", err), n.end(p, false, "the guard did not start"))
	}
	if err := n.do(ctx, e, p); err != nil {
		// Whatever ended ctx, things must be put back.
		return nil, errors.Join(fmt.Errorf("%s: %w", p.Change, err), n.rollBack(context.WithoutCancel(ctx), p, "it could not be made: "+err.Error()))
	}
	return p, nil
}

// do makes the change, for which everything was checked and kept.
func (n *Network) do(ctx context.Context, e *edit, p *Pending) error {
	if err := n.put(p.After); err != nil {
		return err
	}
	for _, r := range p.Renames {
		if err := n.cfg.Machine.Rename(ctx, r.From, r.To); err != nil {
			return err
		}
	}
	for _, d := range e.deletes {
		if err := n.cfg.Machine.Delete(ctx, d); err != nil {
			return err
		}
	}
	if err := n.settle(ctx, e.before, e.after); err != nil {
		return err
	}
	up, err := n.cfg.Machine.Uptime()
	if err != nil {
		return err
	}
	// The operator has the whole time, however long networkd took.
	p.Applied, p.Deadline = up, up+n.cfg.Patience
	return write(n.path("pending.json"), p)
}

// put writes units, or removes those that are nil.
func (n *Network) put(files map[string]*string) error {
	for name, text := range files {
		path := filepath.Join(n.cfg.Units, name)
		if text == nil {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove unit: %w", err)
			}
			continue
		}
		// networkd is not root.
		if err := host.WriteFile(path, []byte(*text), 0o644); err != nil {
			return fmt.Errorf("write unit: %w", err)
		}
	}
	if len(files) == 0 {
		return nil
	}
	return host.SyncDir(n.cfg.Units)
}

// Confirm ends the pending change: it stays. Why says who saw that it works. With an id only that change is meant.
func (n *Network) Confirm(id, why string) error {
	lock, err := n.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	p, err := n.Pending()
	switch {
	case err != nil:
		return err
	case p == nil || id != "" && p.ID != id:
		return ErrNothing
	case p.Applied == 0:
		return fmt.Errorf("%s: it is being made, or was not made whole", p.Change)
	}
	return n.end(p, true, why)
}

// RollBack takes the pending change back now.
func (n *Network) RollBack(ctx context.Context, why string) error {
	lock, err := n.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	p, err := n.Pending()
	if err != nil {
		return err
	}
	if p == nil {
		return ErrNothing
	}
	return n.rollBack(ctx, p, why)
}

// rollBack brings back what was before. What fails leaves the change pending, so that it is tried again.
func (n *Network) rollBack(ctx context.Context, p *Pending, why string) error {
	err := n.back(ctx, p)
	if errors.Is(err, errNotDone) {
		// The units are as they were; more can't be done, and would not be by doing it again.
		return n.end(p, false, why+"; but "+err.Error())
	}
	if err != nil {
		return fmt.Errorf("roll back (%s): %w", p.Change, err)
	}
	return n.end(p, false, why)
}

func (n *Network) back(ctx context.Context, p *Pending) error {
	from, err := n.config()
	if err != nil {
		return err
	}
	if err := n.put(p.Before); err != nil {
		return err
	}
	to, err := n.config()
	if err != nil {
		return err
	}
	// At the start of the machine networkd is still to come, and finds the units as they were.
	booted := false
	if boot, err := n.cfg.Machine.Boot(); err != nil {
		return err
	} else if boot != p.Boot {
		booted = true
	}
	for _, r := range slices.Backward(p.Renames) {
		// What is not there, or not yet, comes by the name that the units give it.
		if err := n.cfg.Machine.Rename(ctx, r.To, r.From); err != nil && !errors.Is(err, ErrNoDevice) {
			return err
		}
	}
	for _, d := range p.Made {
		if err := n.cfg.Machine.Delete(ctx, d); err != nil {
			return err
		}
	}
	if booted && n.cfg.Machine.Ready(ctx) != nil {
		return nil
	}
	return n.settle(ctx, from, to)
}

// end notes how the pending change ended.
func (n *Network) end(p *Pending, confirmed bool, why string) error {
	if err := write(n.path("last.json"), Outcome{ID: p.ID, Change: p.Change, At: time.Now().UTC(), Confirmed: confirmed, Why: why}); err != nil {
		return fmt.Errorf("note how it ended: %w", err)
	}
	if err := os.Remove(n.path("pending.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the change: %w", err)
	}
	return host.SyncDir(n.path(""))
}

// due is how long the pending change may still be so; 0 when its time is over, or the machine has been started since.
func (n *Network) due(p *Pending) (time.Duration, error) {
	boot, err := n.cfg.Machine.Boot()
	if err != nil {
		return 0, err
	}
	if boot != p.Boot {
		return 0, nil
	}
	up, err := n.cfg.Machine.Uptime()
	if err != nil {
		return 0, err
	}
	return max(0, p.Deadline-up), nil
}

// Left is how long the pending change waits still.
func (n *Network) Left(p *Pending) time.Duration {
	d, err := n.due(p)
	if err != nil {
		return 0
	}
	return d
}

// Guard waits until the pending change has ended, and rolls it back when its time is over. A roll-back that fails is tried again until it
// works. It returns when nothing is pending, or ctx ends.
func (n *Network) Guard(ctx context.Context) error {
	for {
		p, err := n.Pending()
		if err != nil || p == nil {
			return err
		}
		left, err := n.due(p)
		if err != nil {
			return err
		}
		if left == 0 {
			// It may have been confirmed, or another process have rolled it back, while the lock was awaited.
			if err = n.overdue(ctx, p.ID, n.overdueText(p)); err == nil {
				continue
			}
			if ctx.Err() != nil {
				return err
			}
		}
		t := time.NewTimer(min(max(left, 10*time.Millisecond), time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// overdue rolls a change back if it is still pending.
func (n *Network) overdue(ctx context.Context, id, why string) error {
	lock, err := n.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	p, err := n.Pending()
	if err != nil || p == nil || p.ID != id {
		return err
	}
	// It may have been given more time meanwhile.
	if left, err := n.due(p); err != nil || left > 0 {
		return err
	}
	return n.rollBack(ctx, p, why)
}

// Recover is for the start of the machine: what is pending from before it is rolled back.
func (n *Network) Recover(ctx context.Context) error {
	p, err := n.Pending()
	if err != nil || p == nil {
		return err
	}
	return n.overdue(ctx, p.ID, n.overdueText(p))
}

// overdueText says why the time of a change is over.
func (n *Network) overdueText(p *Pending) string {
	if boot, err := n.cfg.Machine.Boot(); err == nil && boot != p.Boot {
		return "the machine was started before anybody had confirmed it"
	}
	return fmt.Sprintf("nobody confirmed it from the network within %s", n.cfg.Patience)
}

// Wait waits until a change has ended.
func (n *Network) Wait(ctx context.Context, id string) (*Outcome, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if last, err := n.Last(); err != nil || last != nil && last.ID == id {
			return last, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// Text tells an outcome to people.
func (o Outcome) Text() string {
	verb := "rolled back"
	if o.Confirmed {
		verb = "confirmed"
	}
	return fmt.Sprintf("%s: %s (%s)", strings.TrimSpace(o.Change), verb, o.Why)
}
