package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"shoal/desired"
	"shoal/subjects"
)

// as connects with somebody's credentials file.
func (b *bed) as(t *testing.T, user string, creds []byte) *nats.Conn {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("tls://"+b.net+".1:4222", nats.RootCAs(b.ca()), nats.UserCredentials(file), nats.CustomInboxPrefix(subjects.Inbox(user)),
		nats.SetCustomDialer(dialer{b}), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// host is what tests read of a host.
type host struct {
	ID, Name string
	Status   struct{ State string }
}

// TestHost_JoinsIsApprovedAndRemoved: a machine waits for an administrator, is compared by its fingerprint, comes in, is removed and cut
// off at once, with its guests untouched.
func TestHost_JoinsIsApprovedAndRemoved(t *testing.T) {
	b := theBed(t)
	if err := b.startBox("h9", 9); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.box("off", "h9"); err != nil {
			t.Error(err)
		}
	})
	token := strings.TrimSpace(b.ctl(t, "host token create --cluster c1 --approve manual -q"))
	if out := b.in(t, "h9", "/shared/bin/shoal-agent join %s --no-wait", token); !strings.Contains(out, "host approve h9") {
		t.Errorf("join says\n%s", out)
	}
	fingerprint := ""
	for line := range strings.Lines(b.in(t, "h9", "/shared/bin/shoal-agent status || true")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "fingerprint" {
			fingerprint = f[1]
		}
	}
	if out := b.ctl(t, "host pending"); fingerprint == "" || !strings.Contains(out, fingerprint) {
		t.Fatalf("the host shows the fingerprint %q, and pending are\n%s", fingerprint, out)
	}
	// The token is used up: whoever has found it gets nowhere, with another key.
	out, err := b.tryIn("h1", "/shared/bin/shoal-agent", "join", token, "--data", "/tmp/thief")
	if err == nil || !strings.Contains(err.Error(), "not known here") {
		t.Errorf("a token that is used up: %v\n%s", err, out)
	}
	b.ctl(t, "host approve h9")
	if err := b.connected("h9"); err != nil {
		t.Fatal(err)
	}
	var h host
	b.get(t, &h, "host get h9")

	creds := b.in(t, "h9", "cat /var/lib/shoal-agent/identity/host.creds")
	thief := b.as(t, h.ID, []byte(creds+"\n"))
	b.ctl(t, "host disable h9")
	b.ctl(t, "host remove h9")
	removed := time.Now()
	eventually(t, 10*time.Second, func() error {
		if thief.IsConnected() {
			return errors.New("credentials of a removed host are still connected")
		}
		return nil
	})
	if took := time.Since(removed); took > time.Second {
		t.Logf("a removed host was cut off after %s", took)
	}
	eventually(t, 30*time.Second, func() error {
		if log := b.in(t, "h9", "tail -n 20 /var/log/shoal-agent.log"); !strings.Contains(log, "removed") {
			return fmt.Errorf("the agent does not say that its host was removed:\n%s", log)
		}
		return nil
	})
	if b.in(t, "h9", "pgrep -c -x shoal-agent") == "0" {
		t.Error("the agent of a removed host has ended")
	}
}

// TestHost_CredentialsOpenNothingElse: with a host's real credentials and the plain client, nothing of another host can be read,
// written, or made to be written by those who may.
func TestHost_CredentialsOpenNothingElse(t *testing.T) {
	b := theBed(t)
	me, other := b.hosts["h1"], b.hosts["h2"]
	nc := b.as(t, me, []byte(b.in(t, "h1", "cat /var/lib/shoal-agent/identity/host.creds")+"\n"))
	admin := b.api(t).nc
	last := func(subject string) string {
		t.Helper()
		stream := subjects.BucketStream(subjects.DesiredBucket(other))
		if strings.Contains(subject, subjects.ObservedBucket) {
			stream = subjects.BucketStream(subjects.ObservedBucket)
		}
		m, err := admin.Request("$JS.API.DIRECT.GET."+stream, fmt.Appendf(nil, `{"last_by_subj":%q}`, subject), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return m.Header.Get("Nats-Sequence") + " " + string(m.Data)
	}
	head := subjects.BucketSubject(subjects.DesiredBucket(other), subjects.HeadKey)
	self := subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(other, "host", "self"))
	before, hello := last(head), last(self)
	for _, c := range []struct{ what, subject, reply, body string }{
		{"write another's document", head, "", `{"gen":9999999}`},
		{"write another's status", self, "", `{"rev":1}`},
		{"aim a stream's answer at another's document", subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(me, "volume", "x")), head, `{}`},
		{"aim its own document at another's", subjects.DirectGet(subjects.DesiredBucket(me)), head, `{"last_by_subj":"` + subjects.BucketSubject(subjects.DesiredBucket(me), subjects.HeadKey) + `"}`},
		{"aim its own document at another's status", subjects.DirectGet(subjects.DesiredBucket(me)), self, `{"last_by_subj":"` + subjects.BucketSubject(subjects.DesiredBucket(me), subjects.HeadKey) + `"}`},
		{"aim the controller's answer at another's document", subjects.AgentAPI(me, desired.RenewVerb), head, `{}`},
		{"aim the controller's answer at another's status", subjects.AgentAPI(me, "image-url"), self, `{"image":"x"}`},
		{"ask the API", subjects.API("admin", "vm", "list"), "", `{}`},
		{"ask as another host", subjects.AgentAPI(other, desired.RenewVerb), "", `{}`},
		{"make a consumer that writes", "$JS.API.CONSUMER.CREATE.KV_desired_" + me, "", `{"stream_name":"KV_desired_` + me + `","config":{"deliver_subject":"` + head + `"}}`},
	} {
		m := nats.NewMsg(c.subject)
		m.Reply, m.Data = c.reply, []byte(c.body)
		if err := nc.PublishMsg(m); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	// What was sent before this answer has been dealt with when it is here.
	if _, err := nc.Request(subjects.AgentAPI(me, desired.RenewVerb), []byte(`{}`), 5*time.Second); err != nil {
		t.Fatalf("the credentials don't work at all: %v", err)
	}
	if now := last(head); now != before {
		t.Errorf("another's document has changed to %.300s", now)
	}
	if now := last(self); now != hello && strings.Contains(now, `"rev":1}`) {
		t.Errorf("another's status has changed to %.300s, was %.300s", now, hello)
	}
	if _, err := nc.Request(subjects.DirectGet(subjects.DesiredBucket(other)), []byte(`{"last_by_subj":"`+head+`"}`), time.Second); err == nil {
		t.Error("another's document can be read")
	}
	purge := subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(me, "volume", "x"))
	m := nats.NewMsg(purge)
	m.Header.Set("KV-Operation", "PURGE")
	m.Header.Set("Nats-Rollup", "sub")
	if err := nc.PublishMsg(m); err != nil {
		t.Error(err)
	}
}

// record keeps what shoalctl has said, for leaks.
func (b *bed) record(texts ...[]byte) {
	f, err := os.OpenFile(filepath.Join(b.dir, "shoalctl.out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	for _, t := range texts {
		_, _ = f.Write(t)
	}
}

// leaks looks for every secret of the bed in every log, stream, bucket and answer.
func (b *bed) leaks() error {
	secrets := map[string][]byte{}
	// The installation's keys, and those of hosts: the longest line of each file that holds one.
	add := func(name string, content []byte) {
		for line := range bytes.Lines(content) {
			if line = bytes.TrimSpace(line); len(line) >= 40 && !bytes.Contains(line, []byte("---")) && !bytes.Contains(line, []byte("***")) && len(line) > len(secrets[name]) {
				secrets[name] = bytes.Clone(line)
			}
		}
	}
	for _, pattern := range []string{"controller/identity/*.seed", "controller/identity/*.key", "controller/tls/*.key"} {
		files, err := filepath.Glob(filepath.Join(b.dir, pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			add(f, content)
		}
	}
	creds, err := os.ReadFile(filepath.Join(b.dir, "controller/admin.creds"))
	if err != nil {
		return err
	}
	_, seed, _ := bytes.Cut(creds, []byte("BEGIN USER NKEY SEED"))
	add("admin.creds", seed)
	places := map[string][]byte{}
	for name := range b.hosts {
		seed, err := b.tryIn(name, "cat", "/var/lib/shoal-agent/identity/host.seed")
		if err != nil {
			continue // a test has left it without power
		}
		add("host.seed of "+name, []byte(seed))
		log, err := b.tryIn(name, "sh", "-c", "cat /var/log/shoal-agent.log; ps axww")
		if err != nil {
			return err
		}
		places["log of "+name] = []byte(log)
	}
	if len(secrets) < 10 {
		return fmt.Errorf("look for leaks: only %d secrets are known", len(secrets))
	}
	for _, dir := range []string{"controller/nats", "controller.log", "shoalctl.out"} {
		err := filepath.WalkDir(filepath.Join(b.dir, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			places[path], err = os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("look for leaks: %w", err)
		}
	}
	// HISTORY is compressed on the disk.
	history, err := b.stream(subjects.HistoryStream)
	if err != nil {
		return fmt.Errorf("look for leaks: %w", err)
	}
	places[subjects.HistoryStream] = history
	for place, content := range places {
		for name, secret := range secrets {
			if bytes.Contains(content, secret) {
				return fmt.Errorf("%s holds the secret of %s", place, name)
			}
		}
	}
	return nil
}

// stream is everything in a stream, one after the other.
func (b *bed) stream(name string) ([]byte, error) {
	nc, err := nats.Connect("tls://"+b.net+".1:4222", nats.RootCAs(b.ca()), nats.UserCredentials(filepath.Join(b.dir, "controller/admin.creds")),
		nats.CustomInboxPrefix(subjects.Inbox("admin")), nats.SetCustomDialer(dialer{b}))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	var out []byte
	for seq := 1; ; {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			return nil, err
		}
		body, err := json.Marshal(map[string]any{"seq": seq, "next_by_subj": ">", "batch": 1000})
		if err != nil {
			return nil, err
		}
		if err := nc.PublishRequest("$JS.API.DIRECT.GET."+name, inbox, body); err != nil {
			return nil, err
		}
		var more bool
		for {
			m, err := sub.NextMsg(10 * time.Second)
			if err != nil {
				return nil, err
			}
			if status := m.Header.Get("Status"); status != "" {
				more = status == "204" && m.Header.Get("Nats-Num-Pending") != "0"
				break
			}
			out = append(append(out, m.Data...), '\n')
			var n int
			if _, err := fmt.Sscan(m.Header.Get("Nats-Sequence"), &n); err != nil {
				return nil, err
			}
			seq = n + 1
		}
		_ = sub.Unsubscribe()
		if !more {
			return out, nil
		}
	}
}
