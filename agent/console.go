package agent

import (
	"shoal/agent/console"
	"shoal/agent/host"
)

// Console is this machine, for its screen. It needs no running agent.
func Console(cfg Config) (*console.Machine, error) {
	own, err := Network(cfg)
	if err != nil {
		return nil, err
	}
	return &console.Machine{Data: cfg.Data, Libvirt: cfg.Libvirt, Archives: cfg.Archives, Run: host.Machine{}, Network: own}, nil
}
