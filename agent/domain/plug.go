package domain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	libvirtxml "github.com/libvirt/libvirt-go-xml"

	"shoal/agent/engine"
	"shoal/desired"
)

// plugs are the devices of a running machine that must come and go.
type plugs struct {
	outDisks, inDisks []diskView
	outNICs, inNICs   []nicView
}

func (p plugs) none() bool {
	return len(p.outDisks)+len(p.inDisks)+len(p.outNICs)+len(p.inNICs) == 0
}

// plugsOf compares a running machine with what is wanted. Devices that differ in what only a start can change, and those
// that can't be plugged, are left alone: they are pending.
func plugsOf(want view, h Have) plugs {
	var p plugs
	live := h.live.view
	for _, d := range live.Disks {
		if d.plugs() && !slices.ContainsFunc(want.Disks, d.same) {
			p.outDisks = append(p.outDisks, d)
		}
	}
	for _, d := range want.Disks {
		blocked := slices.ContainsFunc(live.Disks, func(l diskView) bool { return l.Target == d.Target && !l.plugs() })
		if d.plugs() && !blocked && !slices.ContainsFunc(live.Disks, d.same) {
			p.inDisks = append(p.inDisks, d)
		}
	}
	for _, n := range live.NICs {
		if slices.Contains(h.Gone, n.MAC) || !slices.ContainsFunc(want.NICs, n.same) {
			p.outNICs = append(p.outNICs, n)
		}
	}
	for _, n := range want.NICs {
		if slices.Contains(h.Gone, n.MAC) || !slices.ContainsFunc(live.NICs, n.same) {
			p.inNICs = append(p.inNICs, n)
		}
	}
	return p
}

// How long a guest may take to let go of a device before Ensure gives up for now.
const unplugWait = 5 * time.Second

// plug brings the running machine's devices to what is wanted, as far as the guest plays along, and gives the domain as
// it is then; nil only with an error.
func (k *Kind) plug(ctx context.Context, id string, want desired.Domain, h *Have) (*Have, error) {
	wanted := viewOf(want)
	if h.live == nil {
		return h, nil
	}
	p := plugsOf(wanted, *h)
	if p.none() {
		return h, nil
	}
	var errs []error
	var out []string
	for _, d := range p.outDisks {
		device, err := liveDevice(h, func(x *libvirtxml.DomainDisk) bool { return viewDisk(x).same(d) }, nil)
		if err == nil {
			err = k.detach(ctx, id, device)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unplug disk %s of domain %s: %w", d.Target, id, err))
		}
		out = append(out, "disk "+d.Target)
	}
	for _, n := range p.outNICs {
		device, err := liveDevice(h, nil, func(x *libvirtxml.DomainInterface) bool { return viewNIC(x).same(n) })
		if err == nil {
			err = k.detach(ctx, id, device)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unplug nic %s of domain %s: %w", n.MAC, id, err))
		}
		out = append(out, "nic "+n.MAC)
	}
	if len(out) > 0 {
		left := func(h *Have) bool {
			now := plugsOf(wanted, *h)
			return h.live != nil && len(now.outDisks)+len(now.outNICs) > 0
		}
		now, err := k.awaitUnplugged(ctx, id, left)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		h = now
		if left(h) {
			errs = append(errs, engine.After(unplugWait, engine.Fault(desired.CodeTimeout,
				"the guest must support hot-unplug and not use the device; otherwise stop the VM",
				fmt.Errorf("unplug %v of domain %s: the guest has not let go of it yet", out, id))))
		}
		if h.live == nil {
			return h, errors.Join(errs...)
		}
		p = plugsOf(wanted, *h)
	}

	plugged := false
	for _, d := range p.inDisks {
		if slices.ContainsFunc(h.live.view.Disks, func(l diskView) bool { return l.Target == d.Target }) {
			continue // Its predecessor is still there.
		}
		d.Boot = 0 // The order is that of the next start.
		disk := buildDisk(d)
		if err := k.attach(ctx, id, &disk); err != nil {
			errs = append(errs, fmt.Errorf("plug disk %s into domain %s: %w", d.Target, id, err))
			continue
		}
		plugged = true
	}
	for _, n := range p.inNICs {
		if slices.ContainsFunc(h.live.view.NICs, func(l nicView) bool { return l.MAC == n.MAC || l.Tap == n.Tap }) {
			continue
		}
		n.Boot = 0
		nic := buildNIC(n)
		if err := k.attach(ctx, id, &nic); err != nil {
			errs = append(errs, fmt.Errorf("plug nic %s into domain %s: %w", n.MAC, id, err))
			continue
		}
		plugged = true
	}
	if plugged {
		// The new devices' addresses must go into the definition.
		now, _, err := k.look(ctx, id)
		if err == nil && now == nil {
			err = fmt.Errorf("plug devices into domain %s: it is gone", id)
		}
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		h = now
	}
	return h, errors.Join(errs...)
}

// device is a libvirtxml device.
type device interface{ Marshal() (string, error) }

// liveDevice is the XML of the first device of the running machine that matches.
func liveDevice(h *Have, disk func(*libvirtxml.DomainDisk) bool, nic func(*libvirtxml.DomainInterface) bool) (string, error) {
	devices := h.live.domain.Devices
	for i := range devices.Disks {
		if disk != nil && disk(&devices.Disks[i]) {
			return devices.Disks[i].Marshal()
		}
	}
	for i := range devices.Interfaces {
		if nic != nil && nic(&devices.Interfaces[i]) {
			return devices.Interfaces[i].Marshal()
		}
	}
	return "", errors.New("the device is gone")
}

func (k *Kind) attach(ctx context.Context, id string, d device) error {
	text, err := d.Marshal()
	if err != nil {
		return err
	}
	return k.cfg.Libvirt.Attach(ctx, id, text)
}

// detach asks the guest to let go. That it was asked before is no error.
func (k *Kind) detach(ctx context.Context, id, device string) error {
	err := k.cfg.Libvirt.Detach(ctx, id, device)
	if err != nil && (errors.Is(err, ErrState) || errors.Is(err, ErrBusy) || isUnplugging(err)) {
		return nil
	}
	return err
}

// awaitUnplugged waits until left says no.
func (k *Kind) awaitUnplugged(ctx context.Context, id string, left func(*Have) bool) (*Have, error) {
	deadline := time.NewTimer(unplugWait)
	defer deadline.Stop()
	for {
		var changed chan struct{}
		k.with(id, func(m *memory) { changed = m.changed })
		h, _, err := k.look(ctx, id)
		if err == nil && h == nil {
			err = fmt.Errorf("unplug devices of domain %s: it is gone", id)
		}
		if err != nil {
			return nil, err
		}
		if !left(h) {
			return h, nil
		}
		poll := time.NewTimer(500 * time.Millisecond)
		select {
		case <-changed:
		case <-poll.C:
		case <-deadline.C:
			poll.Stop()
			return h, nil
		case <-ctx.Done():
			poll.Stop()
			return nil, ctx.Err()
		}
		poll.Stop()
	}
}
