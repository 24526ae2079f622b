package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"shoal/controller/file"
)

// Revocation takes credentials away.
type Revocation struct {
	Role      Role
	PublicKey string
	// At is up to when they were issued: newer ones for the same key are good.
	At time.Time
	// Until is when they would have run out by themselves, after which the revocation is forgotten; zero for credentials that
	// don't run out.
	Until time.Time
}

// revoked is a revocation as it is kept.
type revoked struct {
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"`
}

// UnmarshalJSON also takes the form of older controllers, which was the time alone.
func (r *revoked) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*r = revoked{}
		return json.Unmarshal(b, &r.At)
	}
	type plain revoked
	return json.Unmarshal(b, (*plain)(r))
}

// revocations are the users that lost their credentials, by account and public key.
type revocations map[Account]map[string]revoked

// revocationSlack is how much longer than needed a revocation is kept: the servers' clocks may be late.
const revocationSlack = time.Hour

func loadRevocations(path string) (revocations, error) {
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return revocations{}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseRevocations(b)
	if err != nil {
		return nil, fmt.Errorf("read revocations %s: %w", path, err)
	}
	return r, nil
}

func parseRevocations(b []byte) (revocations, error) {
	r := revocations{}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r == nil {
		return nil, errors.New("it holds nothing")
	}
	for a, users := range r {
		if !slices.Contains(Accounts(), a) {
			return nil, fmt.Errorf("%q is not an account", string(a))
		}
		for user, u := range users {
			if err := checkUserKey(user); err != nil {
				return nil, err
			}
			if u.At.IsZero() {
				return nil, fmt.Errorf("%s has no time", user)
			}
		}
	}
	return r, nil
}

// forget drops the revocations of what has run out.
func (r revocations) forget(now time.Time) {
	for _, users := range r {
		for user, u := range users {
			if !u.Until.IsZero() && now.After(u.Until.Add(revocationSlack)) {
				delete(users, user)
			}
		}
	}
}

// add takes a revocation in. One that was there takes nothing back: the later times hold.
func (r revocations) add(a Account, user string, u revoked) {
	if r[a] == nil {
		r[a] = map[string]revoked{}
	}
	if old, ok := r[a][user]; ok {
		if old.At.After(u.At) {
			u.At = old.At
		}
		if old.Until.IsZero() || !u.Until.IsZero() && old.Until.After(u.Until) {
			u.Until = old.Until
		}
	}
	r[a][user] = u
}

// Revoke takes the credentials of a role's user away that were issued up to at and would have been good until then. It
// returns once that can't be forgotten any more; site.UpdateAccount makes the servers act on it.
func (id *Identity) Revoke(r Role, publicKey string, at, until time.Time) (Account, error) {
	accounts, err := id.RevokeAll([]Revocation{{Role: r, PublicKey: publicKey, At: at, Until: until}})
	if err != nil {
		return "", err
	}
	return accounts[0], nil
}

// RevokeAll is Revoke for several at once, all or none. It gives the accounts that are concerned, each of which needs an
// update.
func (id *Identity) RevokeAll(list []Revocation) ([]Account, error) {
	if len(list) == 0 {
		return nil, nil
	}
	unlock, err := lock(id.dir)
	if err != nil {
		return nil, fmt.Errorf("keep revocations: %w", err)
	}
	defer unlock()
	path := filepath.Join(id.dir, revokedFile)
	all, err := loadRevocations(path)
	if err != nil {
		return nil, err
	}
	var accounts []Account
	for _, r := range list {
		a, _, err := r.Role.account()
		if err != nil {
			return nil, err
		}
		if err := checkUserKey(r.PublicKey); err != nil {
			return nil, err
		}
		if r.At.IsZero() {
			return nil, fmt.Errorf("at: the time up to which %s is revoked must be given", r.PublicKey)
		}
		u := revoked{At: r.At.UTC().Truncate(time.Second)}
		// Older controllers issued agents' credentials that never run out.
		if !r.Until.IsZero() && (r.Role != RoleAgent || id.layout.Since >= layoutSessions) {
			u.Until = r.Until.UTC()
		}
		all.add(a, r.PublicKey, u)
		if !slices.Contains(accounts, a) {
			accounts = append(accounts, a)
		}
	}
	all.forget(time.Now())
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode revocations: %w", err)
	}
	if err := file.Write(path, 0o600, append(b, '\n')); err != nil {
		return nil, fmt.Errorf("keep revocations: %w", err)
	}
	return accounts, nil
}
