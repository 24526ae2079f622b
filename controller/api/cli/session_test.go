package cli_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/resource"
	"shoal/subjects"
)

// TestSession_ByThePlainClient: with the real credentials of an ordinary account's session and the plain client, nothing is open
// but the API under the own name and the own hints; and it is over at once when the session is ended.
func TestSession_ByThePlainClient(t *testing.T) {
	r := start(t, t.TempDir(), "127.0.0.1:0")
	defer r.stop()
	root := dial(t, r, filepath.Join(r.data, controller.AdminCreds), "admin")
	call := func(nc *nats.Conn, subject, body string, into any) error {
		t.Helper()
		var m *nats.Msg
		var err error
		// The controller has started, and leads a moment later.
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if m, err = nc.Request(subject, []byte(body), 10*time.Second); !errors.Is(err, nats.ErrNoResponders) {
				break
			}
		}
		if err != nil {
			return err
		}
		if code := m.Header.Get("Nats-Service-Error-Code"); code != "" {
			e := &resource.Error{}
			if err := json.Unmarshal(m.Data, e); err != nil {
				return fmt.Errorf("%s: %s", code, m.Data)
			}
			return e
		}
		if into == nil {
			return nil
		}
		return json.Unmarshal(m.Data, into)
	}
	var made struct{ Resource struct{ ID string } }
	accounts := map[string]string{}
	for _, name := range []string{"acme", "rival"} {
		if err := call(root, subjects.API("admin", "account", "create"), fmt.Sprintf(`{"name":%q,"password":"battery staple"}`, name), &made); err != nil {
			t.Fatal(err)
		}
		accounts[name] = made.Resource.ID
	}
	logIn := func(account string) (api.Login, string) {
		t.Helper()
		l, err := api.LogIn(t.Context(), api.LoginConfig{Server: r.url, CA: r.ca(), Timeout: 20 * time.Second}, account, "", "battery staple", "")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), account+".creds")
		if err := os.WriteFile(file, l.Creds, 0o600); err != nil {
			t.Fatal(err)
		}
		return l, file
	}
	login, file := logIn("acme")
	me, other := accounts["acme"], accounts["rival"]
	denied := make(chan string, 100)
	ended := make(chan struct{}, 1)
	nc, err := nats.Connect(r.url, nats.RootCAs(r.ca()), nats.UserCredentials(file), nats.CustomInboxPrefix(subjects.Inbox(me)), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err.Error() }), nats.ClosedHandler(func(*nats.Conn) { ended <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := call(nc, subjects.API(me, "vm", "list"), `{}`, nil); err != nil {
		t.Fatalf("its own API: %v", err)
	}
	var who struct{ Account, Session string }
	forged := nats.NewMsg(subjects.API(me, "identity", "get"))
	forged.Data = []byte(`{}`)
	forged.Header.Set("Nats-Request-Info", `{"acc":"X","user":"UX","issuer_key":"AX"}`)
	if m, err := nc.RequestMsg(forged, 10*time.Second); err != nil || json.Unmarshal(m.Data, &who) != nil || who.Account != me || who.Session != login.Session {
		t.Errorf("with a forged header it is %+v, %v", who, err)
	}
	for _, subject := range []string{
		subjects.API("admin", "vm", "list"), subjects.API(other, "vm", "list"), "$JS.API.STREAM.INFO.JOURNAL", "$JS.API.DIRECT.GET.JOURNAL", "$JS.API.STREAM.MSG.GET.JOURNAL",
		"$JS.API.DIRECT.GET.KV_resources.$KV.resources.account.admin", "$JS.API.CONSUMER.CREATE.JOURNAL", subjects.JournalSubject, subjects.BucketSubject("observed", "h1.host.self"),
		subjects.Guest(subjects.GuestLogin), subjects.AgentAPI("h1", "renew"),
	} {
		if err := nc.Publish(subject, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case text := <-denied:
			if !strings.Contains(text, "ermissions") {
				t.Errorf("%s: %s", subject, text)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("it may publish to %s", subject)
		}
	}
	for _, subject := range []string{"shoal.event.>", subjects.EventsOf(other), subjects.Inbox(other) + ".>", "shoal.hint.>", ">"} {
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-denied:
		case <-time.After(10 * time.Second):
			t.Errorf("it may listen to %s", subject)
		}
	}
	hints, err := nc.SubscribeSync(subjects.EventsOf(me))
	if err != nil {
		t.Fatal(err)
	}
	if err := call(nc, subjects.API(me, "secgroup", "create"), `{"name":"g"}`, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := hints.NextMsg(10 * time.Second); err != nil || !strings.HasPrefix(m.Subject, "shoal.event."+me+".") {
		t.Errorf("its own hints: %v, %v", m, err)
	}
	// An answer that is aimed at somebody else reaches nobody.
	_, theirs := logIn("rival")
	rival := dial(t, r, theirs, other)
	box, err := rival.SubscribeSync(subjects.Inbox(other) + ".>")
	if err != nil {
		t.Fatal(err)
	}
	if err := rival.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest(subjects.API(me, "vm", "list"), subjects.JournalSubject, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	var page api.Page
	if err := call(nc, subjects.API(me, "secgroup", "list"), `{}`, &page); err != nil || page.Total != 1 {
		t.Errorf("after a request whose answer was aimed at the journal: %v, %+v", err, page)
	}
	if m, err := box.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("another account got %s", m.Data)
	}
	// A session that is ended is over, for the connection and for the credentials.
	if err := call(root, subjects.API("admin", "session", "delete"), fmt.Sprintf(`{"id":%q}`, login.Session), nil); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection of an ended session goes on")
	}
	if took := time.Since(since); took > time.Second {
		t.Logf("the connection of an ended session went on for %s", took)
	}
	if c, err := nats.Connect(r.url, nats.RootCAs(r.ca()), nats.UserCredentials(file), nats.NoReconnect()); err == nil {
		c.Close()
		t.Error("the credentials of an ended session are good for another connection")
	}
}
