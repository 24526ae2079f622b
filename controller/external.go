package controller

import (
	"context"
	"time"
)

const (
	// lookAtServer is how often an external server's certificate is looked at, warnBefore how long before its end it is
	// warned of: everything stops on that day.
	lookAtServer = 24 * time.Hour
	warnBefore   = 30 * 24 * time.Hour
)

// watchServer warns of an external server's certificate that runs out, which only the operator can renew.
func (c *controller) watchServer(ctx context.Context) error {
	if c.cfg.NATSURL == "" {
		return nil
	}
	tick := time.NewTicker(lookAtServer)
	defer tick.Stop()
	for {
		chain, err := c.site.Presented()
		switch {
		case err != nil:
			c.log.Warn().Err(err).Msg("certificate of the nats server not looked at")
		case time.Until(chain[0].NotAfter) < warnBefore:
			c.log.Warn().Time("until", chain[0].NotAfter).
				Msg("the certificate of the nats server runs out: give shoal-controller nats-config again, then nats-server --signal reload")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
