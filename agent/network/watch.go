package network

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// settled is how long after a change an answer of the controller counts: networkd goes on after it was told, and what came in before that
// says nothing.
const settled = 5 * time.Second

// Watch is the agent's part: it confirms a change when reach, which asks the controller for a sign of life and names it, gets one after the change,
// and is a second guard. It returns when ctx ends.
func (n *Network) Watch(ctx context.Context, log zerolog.Logger, reach func(ctx context.Context) (string, error)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		if err := n.look(ctx, reach); err != nil && ctx.Err() == nil {
			log.Warn().Err(err).Msg("change of the host's network")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (n *Network) look(ctx context.Context, reach func(ctx context.Context) (string, error)) error {
	p, err := n.Pending()
	if err != nil || p == nil {
		return err
	}
	left, err := n.due(p)
	if err != nil {
		return err
	}
	if left == 0 {
		return n.overdue(ctx, p.ID, n.overdueText(p))
	}
	up, err := n.cfg.Machine.Uptime()
	if err != nil || p.Applied == 0 || up < p.Applied+settled {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	who, err := reach(ctx)
	if err != nil {
		// Its time is not over; that the controller is away is told elsewhere.
		return nil
	}
	return n.Confirm(p.ID, "the agent reached "+who)
}
