package site

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Refusal is a connection that a server did not let in.
type Refusal struct {
	At time.Time
	// From is the client's address, Reason what the server says.
	From, Reason string
	// Name and PublicKey are what the credentials say, and Expires until when they were good. Nothing of it is proved; it is empty for a
	// client without credentials that can be read.
	Name, PublicKey string
	Expires         time.Time
}

// Refusals tells of every connection that a server of the site does not let in, until ctx ends.
func (s *Site) Refusals(ctx context.Context, tell func(Refusal)) error {
	events := make(chan *nats.Msg, 1024) // those that don't find room are lost: whoever knocks that often is known already
	sub, err := s.system.ChanSubscribe("$SYS.SERVER.*.CLIENT.AUTH.ERR", events)
	if err != nil {
		return fmt.Errorf("subscribe to refused connections: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m := <-events:
			var e server.DisconnectEventMsg
			if json.Unmarshal(m.Data, &e) != nil {
				continue
			}
			r := Refusal{At: e.Time, From: e.Client.Host, Reason: e.Reason}
			if c, err := jwt.DecodeUserClaims(e.Client.Jwt); err == nil {
				r.Name, r.PublicKey = c.Name, c.Subject
				if c.Expires > 0 {
					r.Expires = time.Unix(c.Expires, 0).UTC()
				}
			}
			tell(r)
		}
	}
}
