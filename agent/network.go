package agent

import (
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"

	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/agent/network"
	"shoal/agent/networkd"
)

// Network is the host's own network, for an operator at the machine. It needs no running agent.
func Network(cfg Config) (*network.Network, error) {
	return network.New(network.Config{
		Data: cfg.Data, Units: networkd.Dir,
		Machine: network.Kernel{Run: host.Machine{}, Servers: func() []string {
			who, err := install.Open(cfg.Data)
			if err != nil {
				return nil
			}
			return who.URLs()
		}},
		Guard: func(ctx context.Context) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			return host.Detach(ctx, "shoal-network-guard-"+uuid.NewString()[:8], host.Command{Name: self, Args: []string{"net", "guard", "--data", cfg.Data}})
		},
	})
}
