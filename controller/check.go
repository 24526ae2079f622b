package controller

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"shoal/controller/identity"
)

// Plan is what a controller would do with its configuration, as far as others on the machine must know.
type Plan struct {
	Version string `json:"version"`
	// Data is its directory.
	Data string `json:"data"`
	// Listen is where its NATS would listen, "" with an external one, whose URL is NATSURL; HTTP is where images would be served.
	Listen  string `json:"listen,omitempty"`
	NATSURL string `json:"nats_url,omitempty"`
	HTTP    string `json:"http"`
}

// Check tells what Run would do, or what it would refuse before it does anything. It changes nothing and asks nobody. Whether addresses are free is not
// looked at: a controller that this one is to replace may have them.
func Check(cfg Config) (Plan, error) {
	if cfg.Identity == "" {
		cfg.Identity = filepath.Join(cfg.Data, "identity")
	}
	p := Plan{Version: cfg.Version, Data: cfg.Data, NATSURL: cfg.NATSURL, HTTP: cfg.HTTP}
	if cfg.NATSURL == "" {
		p.Listen = cfg.Listen
	}
	for flag, addr := range map[string]string{"--listen": p.Listen, "--http": p.HTTP} {
		if addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return Plan{}, fmt.Errorf("%s: %w", flag, err)
		}
	}
	if (cfg.TLSCert == "") != (cfg.TLSKey == "") {
		return Plan{}, errors.New("--tls-cert and --tls-key go together")
	}
	if cfg.TLSCert != "" {
		if _, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey); err != nil {
			return Plan{}, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
	}
	if err := (&controller{cfg: cfg}).prepareBackups(); err != nil {
		return Plan{}, err
	}
	if err := identity.Check(cfg.Identity); err != nil {
		return Plan{}, err
	}
	return p, nil
}
