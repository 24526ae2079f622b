package domain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Host is the machine that the agent runs on.
type Host struct{}

// Bridge implements Machine.
func (Host) Bridge(dev string) (string, bool, error) {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return "", false, nil
		}
		return "", false, err
	}
	index := link.Attrs().MasterIndex
	if index == 0 {
		return "", true, nil
	}
	master, err := netlink.LinkByIndex(index)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return "", true, nil
		}
		return "", true, err
	}
	return master.Attrs().Name, true, nil
}

// SetBridge implements Machine.
func (Host) SetBridge(dev, bridge string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find %s: %w", dev, err)
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridge, err)
	}
	return netlink.LinkSetMaster(link, master)
}

// WatchPorts implements Machine.
func (Host) WatchPorts(ctx context.Context, lost func(dev string)) error {
	updates := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	var failed error
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: func(err error) { failed = err }})
	if err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-updates:
			if !ok {
				return fmt.Errorf("read links: %w", failed)
			}
			if u.Link.Attrs().MasterIndex == 0 || u.Header.Type == syscall.RTM_DELLINK {
				lost(u.Link.Attrs().Name)
			}
		}
	}
}

// MkdirAll implements Machine.
func (Host) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o755) }

// RemoveLog implements Machine.
func (Host) RemoveLog(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	rotated, _ := filepath.Glob(path + ".[0-9]")
	for _, p := range rotated {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}
