package secgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"shoal/agent/host"
	"shoal/agent/xtables"
)

// Machine is the kernel of the machine that the agent runs on, in the agent's own network namespace.
type Machine struct {
	// Run loads the kernel module that is needed where it is not there.
	Run host.Runner
}

// bridgeSettings decide, per network namespace, whether bridged packets pass iptables.
var bridgeSettings = [...]string{"/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"}

// Generation implements Kernel.
func (Machine) Generation() (uint32, error) { return xtables.Generation() }

// BridgeFiltering implements Kernel.
func (Machine) BridgeFiltering() (bool, error) {
	for _, file := range bridgeSettings {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // br_netfilter is not loaded
		}
		if err != nil {
			return false, err
		}
		if strings.TrimSpace(string(b)) != "1" {
			return false, nil
		}
	}
	return true, nil
}

// FilterBridges implements Kernel.
func (m Machine) FilterBridges() error {
	if _, err := os.Stat(bridgeSettings[0]); errors.Is(err, fs.ErrNotExist) && m.Run != nil {
		if _, err := m.Run.Run(context.Background(), host.Command{Name: "modprobe", Args: []string{"br_netfilter"}}); err != nil {
			return err
		}
	}
	for _, file := range bridgeSettings {
		if err := os.WriteFile(file, []byte("1\n"), 0o644); err != nil {
			return fmt.Errorf("turn on %s: %w", file, err)
		}
	}
	return nil
}

// isNFT reads a tool's --version.
func isNFT(version []byte) bool { return bytes.Contains(version, []byte("nf_tables")) }

// listChain prints one chain, which is much cheaper than a whole table.
func listChain(tool xtables.Tool, chain string) host.Command {
	return host.Command{Name: string(tool), Args: []string{"--wait", "2", "-S", chain}}
}

// dropPolicies takes the "-P" lines out of a listing.
func dropPolicies(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(line, "-P ") {
			b.WriteString(line)
		}
	}
	return b.String()
}
