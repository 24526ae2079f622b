package site_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"shoal/controller/identity"
	"shoal/controller/site"
)

// TestRefusals: whoever is not let in is told of, with what the credentials say, as far as they can be read.
func TestRefusals(t *testing.T) {
	id := keys(t)
	certs := trust(t, id)
	s := open(t, site.Config{Identity: id, Listen: "127.0.0.1:0", TLS: certs.Server()})
	ctx, stop := context.WithCancel(t.Context())
	told, ended := make(chan site.Refusal, 8), make(chan error, 1)
	go func() { ended <- s.Refusals(ctx, func(r site.Refusal) { told <- r }) }()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(2 * time.Second)
	token, err := id.IssueSession(identity.RoleUser, "late", "acc-a", public, expires)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(expires) + time.Second) // JWTs count in seconds
	elsewhere, err := keys(t).IssueSession(identity.RoleUser, "stranger", "acc-a", public, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, token string
		late        bool
	}{{"late", token, true}, {"stranger", elsewhere, false}} {
		// The subscription may come later than the first try.
		deadline := time.After(patience)
	tries:
		for {
			nc, err := nats.Connect(s.ClientURL(), nats.Secure(certs.Client()), nats.UserJWT(func() (string, error) { return c.token, nil }, key.Sign))
			if err == nil {
				nc.Close()
				t.Fatalf("%q is let in", c.name)
			}
			for {
				select {
				case r := <-told:
					if r.Name != c.name {
						continue // of an earlier try
					}
					if r.From != "127.0.0.1" || r.PublicKey != public || r.Reason == "" || r.Expires.Before(r.At) != c.late {
						t.Errorf("told of %q: %+v", c.name, r)
					}
					break tries
				case <-time.After(100 * time.Millisecond):
					continue tries
				case <-deadline:
					t.Fatalf("nothing is told of %q", c.name)
				}
			}
		}
	}
	stop()
	<-ended
}
