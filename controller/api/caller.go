package api

import (
	"time"

	"shoal/controller/access"
	"shoal/controller/resource"
)

// Caller is who asks, as the NATS server vouches for it.
type Caller struct {
	// Token is the caller's part of the subject, which the signer of its credentials pins.
	Token string
	// Key is the public key of its credentials, Issuer that of who signed them.
	Key, Issuer string
	// From is its address, Started when the controller got the call.
	From    string
	Started time.Time
}

// Role is what a signer of credentials stands for.
type Role string

// The roles.
const (
	// RoleAdmin and RoleViewer sign files that were made beside the installation's keys: whoever has one needs no account.
	RoleAdmin  Role = "admin"
	RoleViewer Role = "viewer"
	// RoleSession signs sessions, of which there must be a record.
	RoleSession Role = "session"
)

// principal finds out who a caller is.
func (s *Service) principal(r resource.Reader, c Caller) (access.Principal, error) {
	p := access.Principal{ID: c.Token, Name: c.Token, From: c.From, Account: resource.AdminAccount}
	switch s.cfg.Roles[c.Issuer] {
	case RoleAdmin:
		p.Admin = true
		return p, nil
	case RoleViewer:
		p.ReadOnly = true
		return p, nil
	case RoleSession:
	default:
		return p, notLoggedIn("it is not known who signed your credentials")
	}
	session, ok := r.Holder(resource.SessionKey(c.Key)).(*resource.Session)
	if !ok || session.Principal() != c.Token {
		return p, notLoggedIn("your session has ended")
	}
	if !session.Expires.After(s.cfg.Env.Now()) {
		return p, notLoggedIn("your session has run out")
	}
	account, ok := resource.Find[*resource.Account](r, session.AccountID)
	if !ok || account.State != resource.Enabled {
		return p, notLoggedIn("your account is disabled")
	}
	if session.UserID != "" {
		user, ok := resource.Find[*resource.User](r, session.UserID)
		if !ok || user.State != resource.Enabled || user.AccountID != account.ID {
			return p, notLoggedIn("your user is disabled")
		}
	}
	p.Name, p.Account, p.User, p.Session = session.Name, session.AccountID, session.UserID, session.ID
	p.Admin = account.ID == resource.AdminAccount
	return p, nil
}

func notLoggedIn(why string) error {
	return &resource.Error{Code: resource.CodeLogin, Message: why, Remedy: "log in: shoalctl login"}
}
