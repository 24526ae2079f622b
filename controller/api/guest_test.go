package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"shoal/controller/resource"
)

// TestLogin: who is not there, has no password or gives a wrong one gets one and the same answer.
func TestLogin(t *testing.T) {
	b := newBench(t)
	_, _, acmes, _ := b.two()
	box, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := box.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	key, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	var about resource.Request
	login := func(from string, r LoginRequest) (LoginReply, error) {
		about = resource.Request{}
		r.Box, r.PublicKey = public, key
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		answer, to, err := b.s.login(t.Context(), requestInfo{Host: from}, &about, body)
		if to != public {
			t.Fatalf("the answer goes to %q", to)
		}
		if err != nil {
			return LoginReply{}, err
		}
		return answer.(LoginReply), nil
	}
	b.do(adminCaller, "account.create", map[string]any{"name": "silent"})
	var refusals []string
	for i, c := range []struct {
		LoginRequest
		why, params string
	}{
		{LoginRequest{Account: "hush-acme", Password: "wrong"}, "the password is wrong", `{"account":"hush-acme"}`},
		{LoginRequest{Account: "nobody", Password: "wrong"}, "there is no such account", `{"account":"nobody"}`},
		{LoginRequest{Account: "silent", Password: ""}, "there is no password to log in with", `{"account":"silent"}`},
		{LoginRequest{Account: "silent", Password: "wrong"}, "there is no password to log in with", `{"account":"silent"}`},
		{LoginRequest{Account: "hush-acme", User: "nobody", Password: "password of hush-acme"}, "the account has no such user", `{"account":"hush-acme","user":"nobody"}`},
		{LoginRequest{Account: "hush-acme", User: "hush-user", Password: "wrong"}, "the password is wrong", `{"account":"hush-acme","user":"hush-user"}`},
		{LoginRequest{Account: strings.Repeat("x", 500), Password: "x"}, "the names or the password are longer than any can be", `{"account":"` + strings.Repeat("x", 128) + `..."}`},
	} {
		r := c.LoginRequest
		_, err := login(string(rune('a'+i)), r)
		// What is recorded says more than what is told, and no secret.
		if why, ok := errors.AsType[*guestError](err); !ok || why.why != c.why || string(about.Params) != c.params {
			t.Errorf("%+v is recorded as %+v, %s", r, why, about.Params)
		}
		if !resource.HasCode(err, resource.CodeLogin) {
			t.Errorf("%+v: %v", r, err)
			continue
		}
		refusals = append(refusals, err.Error())
	}
	for _, text := range refusals {
		if text != refusals[0] {
			t.Errorf("refusals differ: %q and %q", text, refusals[0])
		}
	}
	got, err := login("x", LoginRequest{Account: "HUSH-acme", User: "hush-user", Password: "hush-password"})
	if err != nil || got.Session == "" || got.Name != "hush-acme/hush-user" {
		t.Fatalf("a user: %+v, %v", got, err)
	}
	s, err := resource.Get[*resource.Session](b.s.cfg.Store.View(), got.Session)
	if err != nil || s.UserID != acmes[resource.KindUser] || s.From != "x" || s.PublicKey != key {
		t.Errorf("the session is %+v, %v", s, err)
	}
	// The first password of the administrator is good for another one, once.
	if got, err := login("y", LoginRequest{Account: "admin", Password: "first"}); err != nil || !got.MustChange || got.Session != "" {
		t.Errorf("a one-time password: %+v, %v", got, err)
	}
	if _, err := login("y", LoginRequest{Account: "admin", Password: "first", NewPassword: "first"}); !resource.HasCode(err, resource.CodeInvalid) {
		t.Errorf("the same password again: %v", err)
	}
}

// FuzzGuests: whatever comes is answered, sealed or with a refusal that says nothing, and changes nothing.
func FuzzGuests(f *testing.F) {
	const box = "XAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, s := range []string{``, `{}`, `null`, `[]`, `{"box":1}`, `{"account":"admin","password":"first","box":"` + box + `"}`, `{"host":"h1","public_key":"U","signature":"!!","box":"` + box + `"}`, "{\"account\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	b := newBench(&testing.T{})
	f.Fuzz(func(t *testing.T, body []byte) {
		seq := b.s.cfg.Store.View().Seq()
		for name, handle := range map[string]func() (any, string, error){
			"login": func() (any, string, error) { return b.s.login(t.Context(), requestInfo{}, &resource.Request{}, body) },
			"enrol": func() (any, string, error) { return b.s.enrol(t.Context(), requestInfo{}, &resource.Request{}, body) },
			"renew": func() (any, string, error) {
				return b.s.guestRenew(t.Context(), requestInfo{}, &resource.Request{}, body)
			},
			"time": func() (any, string, error) {
				return b.s.guestTime(t.Context(), requestInfo{}, &resource.Request{}, body)
			},
		} {
			_, to, err := handle()
			var e *resource.Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("%s: %v is no refusal", name, err)
			}
			if to != "" && !nkeys.IsValidPublicCurveKey(to) {
				t.Errorf("%s: answers are sealed to %q", name, to)
			}
		}
		if b.s.cfg.Store.View().Seq() != seq {
			t.Error("something was changed")
		}
	})
}
