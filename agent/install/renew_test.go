package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/desired"
)

// renewing has an identity, a controller that is a function, and a Renewer, in a bubble of time.
type renewing struct {
	t       *testing.T
	id      *Identity
	r       *Renewer
	account nkeys.KeyPair
	life    time.Duration
	log     bytes.Buffer

	mu     sync.Mutex
	asked  []time.Duration // since the start, over the host's own connection
	guest  []time.Duration
	err    error
	urls   []string
	begun  time.Time
	events []string
	stop   func()
}

func newRenewing(t *testing.T) *renewing {
	t.Helper()
	w := &renewing{t: t, life: 30 * 24 * time.Hour, begun: time.Now(), urls: []string{"tls://127.0.0.1:4222"}}
	data := t.TempDir()
	key, err := nkeys.CreateUser()
	check(t, err)
	public, err := key.PublicKey()
	check(t, err)
	seed, err := key.Seed()
	check(t, err)
	w.account, err = nkeys.CreateAccount()
	check(t, err)
	dir := filepath.Join(data, identityDir)
	check(t, makePrivate(dir, never))
	i := &Identity{
		creds: filepath.Join(dir, credsFile), ca: []string{filepath.Join(dir, caFile)}, about: filepath.Join(dir, hostFile), crash: never, key: public,
	}
	var c desired.Credentials
	check(t, json.Unmarshal(w.issue(public), &c))
	check(t, i.write(c, seed))
	w.id, err = Open(data)
	check(t, err)
	w.r, err = NewRenewer(RenewConfig{
		Identity: w.id, Log: zerolog.New(&w.log),
		Ask:      func(context.Context, string, []byte) ([]byte, error) { return w.ask(&w.asked) },
		askGuest: func(context.Context) ([]byte, error) { return w.ask(&w.guest) },
		Renewed: func(servers, expired bool) {
			w.change(func() { w.events = append(w.events, fmt.Sprintf("servers %t expired %t", servers, expired)) })
		},
	})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.r.Run(ctx) }()
	w.stop = func() {
		cancel()
		check(t, <-done)
	}
	return w
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *renewing) issue(public string) []byte {
	c := jwt.NewUserClaims(public)
	c.Name = "h1"
	if w.life > 0 {
		c.Expires = time.Now().Add(w.life).Unix()
	}
	token, err := c.Encode(w.account)
	check(w.t, err)
	b, err := json.Marshal(desired.Credentials{Host: "h1", Name: "one", JWT: token, URLs: w.urls})
	check(w.t, err)
	return b
}

func (w *renewing) ask(asked *[]time.Duration) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*asked = append(*asked, time.Since(w.begun))
	if w.err != nil {
		return nil, w.err
	}
	return w.issue(w.id.key), nil
}

func (w *renewing) change(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *renewing) set(err error) { w.change(func() { w.err = err }) }

// told is what Renewed was called with.
func (w *renewing) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

func (w *renewing) times(guest bool) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if guest {
		return slices.Clone(w.guest)
	}
	return slices.Clone(w.asked)
}

const day = 24 * time.Hour

// TestRenewer_HalfLife asks soon after the connection is there, and then each time that half of a life is over.
func TestRenewer_HalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		time.Sleep(day)
		if n := len(w.times(false)); n != 0 {
			t.Errorf("asked %d times without a connection", n)
		}
		w.r.Connected()
		time.Sleep(time.Minute)
		if n := len(w.times(false)); n != 1 {
			t.Errorf("asked %d times within a minute, want once", n)
		}
		time.Sleep(100 * day)
		asked := w.times(false)
		if n := len(asked); n < 7 || n > 8 {
			t.Errorf("asked %d times in 100 days", n)
		}
		for n := 1; n < len(asked); n++ {
			if apart := asked[n] - asked[n-1]; apart < 14*day || apart > 16*day {
				t.Errorf("asked %s after the last time", apart)
			}
		}
	})
}

// TestRenewer_OnceAnHour lets connections come and go.
func TestRenewer_OnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		for range 600 {
			w.r.Connected()
			time.Sleep(50 * time.Second)
			w.r.Disconnected(false)
			time.Sleep(10 * time.Second)
		}
		if n := len(w.times(false)); n < 5 || n > 11 {
			t.Errorf("asked %d times in 10 hours", n)
		}
	})
}

// TestRenewer_WrongClock has credentials that look as if half of their life were over although they are new.
func TestRenewer_WrongClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		w.change(func() { w.life = time.Second })
		w.r.Connected()
		time.Sleep(day)
		if n := len(w.times(false)); n < 2 || n > 25 {
			t.Errorf("asked %d times in a day", n)
		}
	})
}

// TestRenewer_Refused asks as a guest at once, and less and less often while that does not help.
func TestRenewer_Refused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		w.set(errors.New("no controller"))
		w.r.Disconnected(true)
		synctest.Wait()
		if n := len(w.times(true)); n != 1 {
			t.Errorf("asked %d times at once", n)
		}
		for range 60 * 60 {
			w.r.Disconnected(true)
			time.Sleep(time.Second)
		}
		if n := len(w.times(true)); n < 8 || n > 20 {
			t.Errorf("asked %d times in an hour", n)
		}
		// New credentials that a server refuses all the same make nobody ask without end.
		w.set(nil)
		before := len(w.times(true))
		time.Sleep(day)
		if n := len(w.times(true)) - before; n < 100 || n > 250 {
			t.Errorf("asked %d times in a day", n)
		}
		w.r.Connected()
		time.Sleep(time.Minute)
		w.r.Disconnected(false)
		guest := len(w.times(true))
		time.Sleep(day)
		if n := len(w.times(true)); n != guest {
			t.Errorf("asked as a guest because the server was away")
		}
		if told := w.told(); len(told) == 0 || told[0] != "servers false expired true" {
			t.Errorf("told %q", told)
		}
	})
}

// TestRenewer_Removed says so once in a few hours, and comes back when the controller has changed its mind.
func TestRenewer_Removed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		w.set(&RefusalError{Number: 404, Message: "the host was removed"})
		w.r.Disconnected(true)
		time.Sleep(10 * day)
		if n := len(w.times(true)); n < 24*10/4 || n > 24*10/2+1 {
			t.Errorf("asked %d times in 10 days", n)
		}
		w.set(nil)
		before := len(w.times(true))
		time.Sleep(5 * time.Hour)
		if n := len(w.times(true)); n == before || len(w.told()) == 0 {
			t.Errorf("asked %d times, told %q", n-before, w.told())
		}
		w.stop()
		if s := w.log.String(); !strings.Contains(s, `"level":"error"`) || !strings.Contains(s, "no longer one of the controller's") || !strings.Contains(s, "the host was removed") {
			t.Errorf("log\n%s", s)
		}
	})
}

// TestRenewer_DiskFull keeps the old credentials and asks again.
func TestRenewer_DiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		synctest.Wait() // the Renewer sleeps
		before, err := os.ReadFile(w.id.creds)
		check(t, err)
		var full atomic.Bool
		full.Store(true)
		w.id.crash = func(string) error {
			if full.Load() {
				return errors.New("no space left on device")
			}
			return nil
		}
		w.r.Connected()
		time.Sleep(2 * time.Hour)
		if now, err := os.ReadFile(w.id.creds); err != nil || !bytes.Equal(before, now) {
			t.Errorf("the credentials are not the old ones: %v", err)
		}
		if n := len(w.times(false)); n < 10 || n > 40 {
			t.Errorf("asked %d times in 2 hours", n)
		}
		full.Store(false)
		w.change(func() { w.urls = []string{"tls://127.0.0.1:4223"} })
		time.Sleep(20 * time.Minute)
		if now, err := os.ReadFile(w.id.creds); err != nil || bytes.Equal(before, now) {
			t.Errorf("the credentials are the old ones: %v", err)
		}
		if told := w.told(); len(told) != 1 || told[0] != "servers true expired false" {
			t.Errorf("told %q", told)
		}
	})
}

// TestRenewer_ForEver does not renew credentials that don't expire, but for what comes with them.
func TestRenewer_ForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRenewing(t)
		defer w.stop()
		w.change(func() { w.life = 0 })
		w.r.Connected()
		time.Sleep(100 * day)
		if n := len(w.times(false)); n != 1 {
			t.Errorf("asked %d times in 100 days", n)
		}
	})
}
