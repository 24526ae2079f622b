package plan

import (
	"time"

	"shoal/controller/resource"
)

// HostCredentials is how long the credentials of a host are good; they are renewed at half of that.
const HostCredentials = 30 * 24 * time.Hour

// revokeHost takes a host's credentials away with the same transaction that ends their use.
func revokeHost(tx resource.Tx, h *resource.Host) error {
	return revoke(tx, &resource.Revocation{Meta: resource.Meta{Name: h.Name}, PublicKey: h.PublicKey, Role: resource.RevokedHost, Until: tx.Now().Add(HostCredentials)})
}

// endSession takes a session out, and its credentials away where they would be good for longer.
func endSession(tx resource.Tx, s *resource.Session) error {
	if err := tx.Delete(resource.KindSession, s.ID); err != nil || !s.Expires.After(tx.Now()) {
		return err
	}
	return revoke(tx, &resource.Revocation{
		Meta: resource.Meta{Name: s.Name}, PublicKey: s.PublicKey, Role: resource.RevokedSession, Ordinary: s.AccountID != resource.AdminAccount, Until: s.Expires,
	})
}

func revoke(tx resource.Tx, r *resource.Revocation) error {
	r.ID, r.Owner = tx.NewID(), resource.AdminAccount
	return tx.Put(r)
}

// RekeyHost gives a host another key. The old one is good no longer.
func RekeyHost(tx resource.Tx, id, publicKey string) (*resource.Host, error) {
	old, err := resource.Get[*resource.Host](tx, id)
	if err != nil {
		return nil, err
	}
	if old.PublicKey != publicKey {
		if err := revokeHost(tx, old); err != nil {
			return nil, err
		}
	}
	h := resource.Copy(old)
	h.PublicKey = publicKey
	if err := tx.Put(h); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Host](tx, id)
}
