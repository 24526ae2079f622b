package install

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"shoal/desired"
	"shoal/subjects"
)

// CompareClock asks a controller what time it is, before this machine is a host. The server must have the token's pinned key, in a certificate that
// holds at the time that the certificate says: ours may be wrong, and nothing secret is sent.
func CompareClock(ctx context.Context, tok desired.JoinToken) (desired.Clock, error) {
	var asked time.Time
	g := guest{
		name: "shoal-agent, for the time", urls: tok.URLs,
		secure: func(server, name string) (*tls.Config, error) {
			cfg := pinned(server, name, tok.Pin)
			if tok.Pin != "" {
				cfg.VerifyConnection = func(s tls.ConnectionState) error {
					var valid time.Time
					for _, c := range s.PeerCertificates { // the newest of the chain: all hold then
						if c.NotBefore.After(valid) {
							valid = c.NotBefore
						}
					}
					return checkPin(server, name, tok.Pin, s.PeerCertificates, valid)
				}
			}
			return cfg, nil
		},
	}
	b, err := g.ask(ctx, subjects.Guest(subjects.GuestTime), func(box string) ([]byte, error) {
		asked = time.Now()
		return json.Marshal(desired.TimeRequest{Box: box})
	})
	took := time.Since(asked)
	var answer desired.TimeReply
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err == nil && answer.Now.IsZero() {
		err = errors.New("there is no time in the answer")
	}
	if err != nil {
		return desired.Clock{}, fmt.Errorf("ask the controller for the time: %w", err)
	}
	return desired.CompareClocks(asked, took, answer.Now), nil
}
