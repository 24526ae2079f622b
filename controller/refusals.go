package controller

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"

	"shoal/controller/history"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/subjects"
)

// opConnect is how the journal calls a connection that a server did not let in.
const opConnect = "nats.connect"

// refusedConnection records a connection that was not let in. Nothing of what it says of itself is proved.
func (c *controller) refusedConnection(ctx context.Context, r site.Refusal) {
	why := r.Reason
	switch {
	case r.PublicKey == "":
		why = "it has no credentials of this installation"
	case !r.Expires.IsZero() && r.Expires.Before(r.At):
		why = "its credentials have run out"
	case c.revoked(r.PublicKey):
		why = "its credentials were taken back"
	}
	n := history.Note{
		Request: resource.Request{ID: uuid.NewString(), Caller: subjects.GuestName, From: r.From, Op: opConnect, Started: r.At.UTC().Round(0)},
		Refusal: why, Guest: true,
	}
	if r.PublicKey != "" {
		b, err := json.Marshal(map[string]string{"name": r.Name, "public_key": r.PublicKey})
		if err == nil {
			n.Params = b
		}
	}
	c.calls.Record(ctx, n)
}

// revoked reports whether credentials for a key were taken back.
func (c *controller) revoked(key string) bool {
	for r := range resource.All[*resource.Revocation](c.store.View()) {
		if r.PublicKey == key {
			return true
		}
	}
	return false
}
