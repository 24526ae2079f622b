package controller

import (
	"context"
	"time"

	"shoal/controller/identity"
)

const (
	// lookEvery is how often an external server's certificate is looked at.
	lookEvery = 5 * time.Minute
	// warnBefore is how long before its end it is warned of, warnEvery how often: everything stops on that day.
	warnBefore = 30 * 24 * time.Hour
	warnEvery  = 24 * time.Hour
)

// external is what is known of an external server's certificate. It need not be signed by whom the controller's own is.
type external struct {
	warned time.Time
}

// lookAtServer looks at it: hosts that join must find the pin that their token has, and only the operator can renew it.
func (c *controller) lookAtServer(seen *external) {
	if c.cfg.NATSURL == "" {
		return
	}
	chain, err := c.site.Presented()
	if err != nil {
		c.log.Warn().Err(err).Msg("certificate of the nats server not looked at")
		return
	}
	pin := identity.Pin(chain[len(chain)-1])
	c.serverPin.Store(&pin)
	if now := time.Now(); chain[0].NotAfter.Sub(now) < warnBefore && now.Sub(seen.warned) >= warnEvery {
		seen.warned = now
		c.log.Warn().Time("until", chain[0].NotAfter).
			Msg("the certificate of the nats server runs out: give shoal-controller nats-config again, then nats-server --signal reload")
	}
}

// watchServer goes on looking until ctx ends.
func (c *controller) watchServer(ctx context.Context, seen *external) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		c.lookAtServer(seen)
	}
}
