package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"shoal/agent/networkd"
)

// settle has networkd read its units, and does what it leaves undone: it takes nothing out of a bond or bridge, and leaves addresses on
// what it has no unit for any more.
func (n *Network) settle(ctx context.Context, from, to networkd.Config) error {
	devices, err := n.cfg.Machine.Devices(ctx)
	if err != nil {
		return err
	}
	made := slices.Concat(from.NetDevs(), to.NetDevs())
	for _, d := range devices {
		was, err := from.NetworkOf(d.match())
		if err != nil {
			return err
		}
		is, err := to.NetworkOf(d.match())
		if err != nil {
			return err
		}
		if d.Master != masterIn(to, is) && slices.Contains(made, d.Master) {
			if err := n.cfg.Machine.Release(ctx, d.Name); err != nil {
				return err
			}
		}
		if was != "" && is == "" {
			if err := n.cfg.Machine.Clear(ctx, d.Name); err != nil {
				return err
			}
		}
	}
	if err := n.cfg.Machine.Reload(ctx); err != nil {
		return err
	}
	return n.await(ctx, from, to)
}

// masterIn is the bond or bridge that a .network file, "" for none, puts its device into.
func masterIn(c networkd.Config, file string) string {
	if file == "" {
		return ""
	}
	for _, key := range masterKeys() {
		if m := c[file].Value("Network", key); m != "" {
			return m
		}
	}
	return ""
}

// How long networkd may take for a change, how long the machine must be as it should before that counts, and how often to look. A failure
// of networkd's comes late: in reply to a request that it made when a bridge was still there, say.
const (
	settleTimeout = 20 * time.Second
	settleStable  = time.Second
	settleEvery   = 200 * time.Millisecond
)

var errNotDone = errors.New("systemd-networkd did not do it")

// await waits until networkd has done what differs, as far as it does not depend on others. It fails over a bridge or bond that comes or
// goes while it puts a device into it, and stays so until it is told to try again; and it may still put a device where earlier units had it.
func (n *Network) await(ctx context.Context, from, to networkd.Config) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	good, bad := 0, 0
	for {
		devices, err := n.cfg.Machine.Devices(ctx)
		if err != nil {
			return err
		}
		missing, err := lacks(devices, from, to)
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			bad = 0
			if good++; time.Duration(good)*settleEvery >= settleStable {
				return nil
			}
		} else {
			good = 0
			bad++
		}
		for _, m := range missing {
			switch {
			case m.release:
				err = n.cfg.Machine.Release(ctx, m.device)
			case m.failed, m.device != "" && bad%10 == 0:
				err = n.cfg.Machine.Reconfigure(ctx, m.device)
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			if len(missing) == 0 {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %s; see journalctl -u systemd-networkd", errNotDone, missing[0].what)
		case <-ticker.C:
		}
	}
}

// lack is something that is not yet as units have it.
type lack struct {
	device, what string
	// What helps: to have networkd try again, or to take the device out of what it is in.
	failed, release bool
}

// lacks compares the machine with units, where they differ from earlier ones.
func lacks(devices []Device, from, to networkd.Config) ([]lack, error) {
	var out []lack
	there := map[string]bool{}
	made := slices.Concat(from.NetDevs(), to.NetDevs())
	for _, d := range devices {
		there[d.Name] = true
		was, err := from.NetworkOf(d.match())
		if err != nil {
			return nil, err
		}
		is, err := to.NetworkOf(d.match())
		if err != nil {
			return nil, err
		}
		if was == is && (is == "" || from[was].String() == to[is].String()) {
			continue
		}
		master := masterIn(to, is)
		switch {
		case master != d.Master && slices.Contains(made, d.Master):
			out = append(out, lack{device: d.Name, what: d.Name + " is still in " + d.Master, release: true})
		case is == "":
		case d.Failed:
			out = append(out, lack{device: d.Name, what: d.Name + " failed", failed: true})
		case master != "" && d.Master != master:
			out = append(out, lack{device: d.Name, what: d.Name + " is not in " + master})
		case d.Carrier:
			for _, a := range to[is].Addresses() {
				if !slices.Contains(d.Addresses, a) {
					out = append(out, lack{device: d.Name, what: fmt.Sprintf("%s has not %s", d.Name, a)})
				}
			}
		}
	}
	for _, name := range to.NetDevs() {
		if from.NetDevOf(name) == "" && !there[name] {
			out = append(out, lack{what: name + " was not made"})
		}
	}
	return out, nil
}
