package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"shoal/controller/resource"
	"shoal/subjects"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// entry is a group of one transaction.
func entry(id string) Group {
	return Group{Entries: []Entry{{
		Request: resource.Request{ID: id, Caller: "ann", Op: "zone.create", Params: json.RawMessage(`{"name":"<a&b>"}`)},
		At:      time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Changes: []Change{
			{Kind: resource.KindZone, ID: "z-" + id, Value: json.RawMessage(`{"id":"z-` + id + `"}`)},
			{Kind: resource.KindZone, ID: "gone"},
		},
	}}}
}

func encode(t testing.TB, g Group) []byte {
	t.Helper()
	b, err := g.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGroupEncoding(t *testing.T) {
	g := Group{Entries: append(entry("a").Entries, Entry{
		Request: resource.Request{ID: "b \"quoted\""}, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Error: "refused: \"x\"\n",
	})}
	b := encode(t, g)
	got, err := Decode(b)
	if err != nil {
		t.Fatalf("decode %s: %v", b, err)
	}
	if diff := cmp.Diff(g, got); diff != "" {
		t.Errorf("a group changes by encoding (-want +got):\n%s", diff)
	}
	// The hand-made encoding must be what encoding/json would make of the same, whatever the escaping.
	std, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var x, y any
	if err := errors.Join(json.Unmarshal(b, &x), json.Unmarshal(std, &y)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(y, x); diff != "" {
		t.Errorf("differs from encoding/json (-json +ours):\n%s", diff)
	}
	for _, bad := range []string{`{`, `{"entries":[{"changes":[{"kind":"zone"}]}]}`, `[]`} {
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("Decode(%s) finds nothing wrong", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"entries":[{"request":{"id":"a"},"at":"2026-01-02T03:04:05Z","changes":[{"kind":"zone","id":"z","value":{"id":"z"}}]}]}`))
	f.Add([]byte(`{"entries":[{"changes":[{"kind":"zone","id":"z","value":null}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := Decode(b)
		if err != nil {
			return
		}
		for _, e := range g.Entries {
			for _, c := range e.Changes {
				if !subjects.ValidToken(string(c.Kind)) || !subjects.ValidToken(c.ID) {
					return // never written
				}
			}
		}
		out, err := g.Encode()
		if err != nil {
			return // a time that JSON can't hold
		}
		again, err := Decode(out)
		if err != nil {
			t.Fatalf("decode %s, which was made from %s: %v", out, b, err)
		}
		if len(again.Entries) != len(g.Entries) {
			t.Fatalf("%d entries became %d", len(g.Entries), len(again.Entries))
		}
	})
}

// read collects the ids of the requests from a sequence on.
func read(t testing.TB, j *Journal, from uint64) []string {
	t.Helper()
	var ids []string
	next := max(from, 1)
	if err := j.Replay(testContext(t), from, func(m Message) error {
		if m.Seq != next {
			t.Errorf("message %d comes instead of %d", m.Seq, next)
		}
		next++
		for _, e := range m.Group.Entries {
			ids = append(ids, e.Request.ID)
		}
		return nil
	}); err != nil {
		t.Fatalf("replay: %v", err)
	}
	return ids
}

func TestAppendAndReplay(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	j := b.journal(ctx, b.connect())
	if at, err := j.Last(ctx); err != nil || at != (Position{}) {
		t.Fatalf("Last of an empty journal = %v, %v", at, err)
	}
	if got := read(t, j, 0); got != nil {
		t.Fatalf("an empty journal holds %v", got)
	}
	var at Position
	var want []string
	for i := range 1500 { // more than a session holds ahead
		var err error
		id := fmt.Sprintf("r%d", i)
		if at, err = j.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		if at.Seq != uint64(i+1) {
			t.Fatalf("append %d is stored as %d", i, at.Seq)
		}
		want = append(want, id)
	}
	if last, err := j.Last(ctx); err != nil || last != at {
		t.Errorf("Last = %v, %v, want %v", last, err, at)
	}
	if diff := cmp.Diff(want, read(t, j, 0)); diff != "" {
		t.Errorf("replay (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1000:], read(t, j, 1001)); diff != "" {
		t.Errorf("replay from 1001 (-want +got):\n%s", diff)
	}
	if got := read(t, j, 1501); got != nil {
		t.Errorf("replay behind the end = %v", got)
	}
	if seq, err := j.FirstSince(ctx, time.Now().Add(-time.Hour)); err != nil || seq != 1 {
		t.Errorf("FirstSince an hour ago = %d, %v, want 1", seq, err)
	}
	if seq, err := j.FirstSince(ctx, time.Now().Add(time.Hour)); err != nil || seq != 1501 {
		t.Errorf("FirstSince the future = %d, %v, want 1501", seq, err)
	}
	stop := errors.New("enough")
	if err := j.Replay(ctx, 0, func(Message) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Replay returns %v, not its function's error", err)
	}
}

func TestAppendIsFenced(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	one, two := b.journal(ctx, b.connect()), b.journal(ctx, b.connect())
	first, err := one.Append(ctx, Position{}, encode(t, entry("one")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Append(ctx, Position{}, encode(t, entry("two"))); !errors.Is(err, ErrFenced) {
		t.Fatalf("append at the beginning of a journal that has begun: %v, want ErrFenced", err)
	}
	if _, err := two.Append(ctx, first, encode(t, entry("two"))); err != nil {
		t.Fatalf("append behind the other's: %v", err)
	}
	if _, err := one.Append(ctx, first, encode(t, entry("late"))); !errors.Is(err, ErrFenced) {
		t.Fatalf("append of the one who is behind: %v, want ErrFenced", err)
	}
	if _, err := one.Append(ctx, Position{Seq: 7, ID: "x"}, encode(t, entry("ahead"))); !errors.Is(err, ErrDiverged) {
		t.Fatalf("append ahead of the end: %v, want ErrDiverged", err)
	}
	if diff := cmp.Diff([]string{"one", "two"}, read(t, one, 0)); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// The stream has the expected length, but what is there is not what the writer's state was built from.
func TestAppendSeesAnotherPast(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	j := b.journal(ctx, js)
	at, err := j.Append(ctx, Position{}, encode(t, entry("mine")))
	if err != nil {
		t.Fatal(err)
	}
	replaceJournal(t, ctx, js, "other")
	if _, err := j.Append(ctx, at, encode(t, entry("next"))); !errors.Is(err, ErrDiverged) {
		t.Fatalf("append behind another past: %v, want ErrDiverged", err)
	}
	if diff := cmp.Diff([]string{"other"}, read(t, j, 0)); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// replaceJournal makes the stream anew, as an older backup would.
func replaceJournal(t testing.TB, ctx context.Context, js jetstream.JetStream, ids ...string) {
	t.Helper()
	if err := js.DeleteStream(ctx, subjects.JournalStream); err != nil {
		t.Fatal(err)
	}
	// The server answers before the files of the old stream are gone, and may refuse a new one until then ("error creating store").
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := js.CreateStream(ctx, Config())
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("make stream anew: %v", err)
		}
	}
	j := (&bus{t: t}).journal(ctx, js)
	var at Position
	for _, id := range ids {
		var err error
		if at, err = j.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendTooLarge(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	j := b.journal(ctx, b.connect())
	at, err := j.Append(ctx, Position{}, []byte(`{"entries":[],"x":"`+strings.Repeat("x", j.MaxMessage()-30)+`"}`))
	if err != nil {
		t.Fatalf("append the largest message: %v", err)
	}
	if _, err := j.Append(ctx, at, make([]byte, j.MaxMessage()+1)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("append one byte more: %v, want ErrTooLarge", err)
	}
}

func TestAppendRefusedByAFullStream(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	cfg := Config()
	cfg.MaxMsgs = 1
	if _, err := js.CreateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	j, err := Open(ctx, js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	at, err := j.Append(ctx, Position{}, encode(t, entry("a")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = j.Append(ctx, at, encode(t, entry("b")))
	if err == nil || errors.Is(err, ErrUnknown) || errors.Is(err, ErrFenced) || errors.Is(err, ErrDiverged) {
		t.Fatalf("append to a full stream: %v, want a plain refusal", err)
	}
}

// Whatever the server does while messages are appended: what was acknowledged is there once, and nothing else is.
func TestAppendWhileTheServerRestarts(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	j := b.journal(ctx, b.connect())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			time.Sleep(30 * time.Millisecond)
			b.stop()
			b.start()
		}
	}()
	var at Position
	var want []string
	for i := 0; ; i++ {
		id := fmt.Sprintf("r%d", i)
		var err error
		if at, err = j.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		want = append(want, id)
		select {
		case <-done:
			if diff := cmp.Diff(want, read(t, j, 0)); diff != "" {
				t.Errorf("journal (-want +got):\n%s", diff)
			}
			return
		default:
		}
	}
}

// The answer to a publish gets lost: the message must not be stored twice, nor be taken for somebody else's.
func TestAppendWhoseAnswerIsLost(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	p := newLossyProxy(t, fmt.Sprintf("127.0.0.1:%d", b.port))
	js := b.connectTo(p.url())
	j := b.journal(ctx, js)
	at, err := j.Append(ctx, Position{}, encode(t, entry("a")))
	if err != nil {
		t.Fatal(err)
	}
	p.cutAnswers() // the next bytes from the server vanish, and the connection with them
	if at, err = j.Append(ctx, at, encode(t, entry("b"))); err != nil {
		t.Fatalf("append whose answer is lost: %v", err)
	}
	if at.Seq != 2 {
		t.Errorf("it is stored as %d, want 2", at.Seq)
	}
	if _, err = j.Append(ctx, at, encode(t, entry("c"))); err != nil {
		t.Fatalf("append afterwards: %v", err)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, read(t, j, 0)); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	if p.cuts() == 0 {
		t.Error("no answer was lost: the test has shown nothing")
	}
}

func TestAppendGivesUpAsUnknown(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	j := b.journal(ctx, b.connect())
	b.stop()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := j.Append(short, Position{}, encode(t, entry("a")))
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, ErrDiverged) {
		t.Fatalf("append without a server: %v", err)
	}
	b.start()
}

// tail follows a journal and tells each request's id.
func tail(ctx context.Context, j *Journal, after Position) (ids chan string, ended chan error) {
	ids, ended = make(chan string, 10_000), make(chan error, 1)
	go func() {
		ended <- j.Tail(ctx, after, func(m Message) error {
			for _, e := range m.Group.Entries {
				ids <- e.Request.ID
			}
			return nil
		})
	}()
	return ids, ended
}

func TestTailSurvivesRestarts(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	w, r := b.journal(ctx, b.connect()), b.journal(ctx, b.connect())
	tctx, cancel := context.WithCancel(ctx)
	ids, ended := tail(tctx, r, Position{})
	var at Position
	for i := range 60 {
		if i%20 == 10 {
			b.stop()
			b.start()
		}
		id := fmt.Sprintf("r%d", i)
		var err error
		if at, err = w.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		select {
		case got := <-ids:
			if got != id {
				t.Fatalf("the tail tells %s instead of %s", got, id)
			}
		case err := <-ended:
			t.Fatalf("the tail ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("the tail does not tell %s", id)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the tail ends with %v, want its context's error", err)
	}
}

// The stream is made anew while somebody follows, and overtakes the old sequence before the follower looks again.
func TestTailSeesRecreation(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	j := b.journal(ctx, js)
	at, err := j.Append(ctx, Position{}, encode(t, entry("a")))
	if err != nil {
		t.Fatal(err)
	}
	ids, ended := tail(ctx, j, Position{})
	if got := <-ids; got != "a" {
		t.Fatalf("the tail tells %s", got)
	}
	replaceJournal(t, ctx, js, "x", "y", "z")
	if err := <-ended; !errors.Is(err, ErrDiverged) {
		t.Fatalf("the tail of a stream that was made anew ends with %v, want ErrDiverged", err)
	}
	if err := j.Verify(ctx, at); !errors.Is(err, ErrDiverged) {
		t.Errorf("Verify = %v, want ErrDiverged", err)
	}
}

// The server's directory is put back to an older state while it is stopped, as after a lost tail or a restored backup,
// and new messages take the place of the lost ones.
func TestTailSeesRollback(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	w := b.journal(ctx, b.connect())
	var at Position
	var err error
	for _, id := range []string{"a", "b"} {
		if at, err = w.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	backup := t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	b.start()
	common := at
	ids, ended := tail(ctx, b.journal(ctx, b.connect()), Position{})
	for _, id := range []string{"c", "d"} {
		if at, err = w.Append(ctx, at, encode(t, entry(id))); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		<-ids
	}
	b.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(b.dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	b.start()
	if _, err := w.Append(ctx, at, encode(t, entry("e"))); !errors.Is(err, ErrDiverged) {
		t.Fatalf("append of a writer that knows more than the stream: %v, want ErrDiverged", err)
	}
	again := b.journal(ctx, b.connect())
	for at, i := common, 0; i < 3; i++ {
		if at, err = again.Append(ctx, at, encode(t, entry("new"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; !errors.Is(err, ErrDiverged) {
		t.Fatalf("the tail of a stream that went back ends with %v, want ErrDiverged", err)
	}
}

func TestDamagedMessageIsAnError(t *testing.T) {
	ctx, b := testContext(t), newBus(t)
	js := b.connect()
	j := b.journal(ctx, js)
	if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: subjects.JournalSubject, Data: []byte("rubbish")}); err != nil {
		t.Fatal(err)
	}
	if err := j.Replay(ctx, 0, func(Message) error { return nil }); err == nil || errors.Is(err, ErrDiverged) {
		t.Fatalf("replay of a damaged journal: %v", err)
	}
}
