package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"shoal/controller/identity"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/store"
)

// DefaultSessionTime is how long a session lasts without being renewed (catalogue row I5).
const DefaultSessionTime = 7200 * time.Second

// passwords hashes passwords, and seals the hashes with the installation's key, so that whoever may read the journal learns nothing to
// try passwords on.
type passwords struct {
	id *identity.Identity
	// nobody is the hash that is checked where there is none: a login takes as long for an account that is not there.
	nobody sync.Once
	dummy  string
}

// Hash implements api.Passwords.
func (p *passwords) Hash(ctx context.Context, plain string) (string, error) {
	hash, err := p.id.HashPassword(ctx, plain)
	if err != nil {
		return "", err
	}
	return p.id.Seal([]byte(hash))
}

// Check implements api.Passwords.
func (p *passwords) Check(ctx context.Context, sealed, plain string) (bool, error) {
	if sealed == "" {
		p.nobody.Do(func() { p.dummy, _ = p.id.HashPassword(context.WithoutCancel(ctx), rand.Text()) })
		if _, err := p.id.CheckPassword(ctx, p.dummy, plain); err != nil {
			return false, err
		}
		return false, nil
	}
	hash, err := p.id.Open(sealed)
	if err != nil {
		return false, fmt.Errorf("read a password's hash: %w (was the identity restored from another installation?)", err)
	}
	return p.id.CheckPassword(ctx, string(hash), plain)
}

// firstAdmin makes the admin account where there is none yet, and tells its one-time password.
func (c *controller) firstAdmin(ctx context.Context) error {
	if c.store.View().Get(resource.KindAccount, resource.AdminAccount) != nil {
		return nil
	}
	password := rand.Text()
	sealed, err := c.passwords.Hash(ctx, password)
	if err != nil {
		return fmt.Errorf("make the admin account: %w", err)
	}
	made := false
	err = c.commit(ctx, "account.create", func(tx resource.Tx) (err error) {
		made, err = plan.EnsureAdmin(tx, sealed)
		return err
	})
	if err != nil {
		return fmt.Errorf("make the admin account: %w", err)
	}
	if made && c.cfg.FirstPassword != nil {
		c.cfg.FirstPassword(password)
	}
	return nil
}

// sessionJWT signs the credentials of a session. Those of the admin account may look into streams, which hold everybody's.
func (c *controller) sessionJWT(s *resource.Session) (string, error) {
	role := identity.RoleUser
	if s.AccountID == resource.AdminAccount {
		role = identity.RoleManager
	}
	return c.id.IssueSession(role, s.Principal(), s.AccountID, s.PublicKey, s.Expires)
}

// door is where hosts and people reach NATS, and what they can tell it by.
func (c *controller) door() (urls []string, pin, ca string) {
	pin, ca = c.certs.Pin(), c.certs.CABundle()
	if p := c.serverPin.Load(); p != nil {
		pin = *p
	}
	for u := range strings.SplitSeq(c.site.ClientURL(), ",") {
		parsed, err := url.Parse(strings.TrimSpace(u))
		if err != nil || parsed.Host == "" {
			continue
		}
		host, port := parsed.Hostname(), parsed.Port()
		if c.cfg.NATSURL == "" {
			host = c.reachable(host)
		}
		if port == "" {
			port = "4222"
		}
		urls = append(urls, "tls://"+net.JoinHostPort(host, port))
	}
	return urls, pin, ca
}

// reachable is an address that others reach this machine by, where it listens on host.
func (c *controller) reachable(host string) string {
	switch ip := net.ParseIP(host); {
	case c.cfg.Advertise != "":
		return c.cfg.Advertise
	case ip == nil || !ip.IsUnspecified():
		return host
	}
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return host
}

// revokeAhead is how much later than the change that ended them credentials may have been signed that are revoked, too: an answer
// that was on its way holds some.
const revokeAhead = 2 * time.Second

// revokeRetry is how soon servers are told again that were not reached.
const revokeRetry = time.Second

// revoke makes the servers refuse, and cut off, whom the journal says to have lost its credentials: all of them when this controller
// comes to lead, since another may have died before it did, and then each as it is committed.
func (c *controller) revoke(ctx context.Context) error {
	for {
		view := c.store.View()
		var all []identity.Revocation
		for r := range resource.All[*resource.Revocation](view) {
			all = append(all, revocation(r))
		}
		if err := c.takeAway(ctx, all); err != nil {
			return err
		}
		err := c.store.Changes(ctx, view.Seq(), func(done store.Committed) error {
			var list []identity.Revocation
			for _, e := range done.Entries {
				for _, ch := range e.Changes {
					if r, ok := ch.New.(*resource.Revocation); ok && ch.Old == nil {
						list = append(list, revocation(r))
					}
				}
			}
			return c.takeAway(ctx, list)
		})
		if !errors.Is(err, store.ErrGone) {
			return err
		}
	}
}

func revocation(r *resource.Revocation) identity.Revocation {
	role := identity.RoleAgent
	switch {
	case r.Role == resource.RevokedSession && r.Ordinary:
		role = identity.RoleUser
	case r.Role == resource.RevokedSession:
		role = identity.RoleManager
	}
	return identity.Revocation{Role: role, PublicKey: r.PublicKey, At: r.Created.Add(revokeAhead), Until: r.Until}
}

// takeAway keeps revocations with the identity and tells the servers, for as long as it takes.
func (c *controller) takeAway(ctx context.Context, list []identity.Revocation) error {
	if len(list) == 0 {
		return nil
	}
	accounts, err := c.id.RevokeAll(list)
	if err != nil {
		return fmt.Errorf("revoke credentials: %w", err)
	}
	for _, a := range accounts {
		for {
			err := c.site.UpdateAccount(ctx, a)
			if err == nil {
				break
			}
			c.log.Warn().Err(err).Str("account", string(a)).Msg("servers were not told of revoked credentials yet")
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(revokeRetry):
			}
		}
	}
	c.log.Info().Int("keys", len(list)).Msg("credentials are revoked")
	return nil
}
