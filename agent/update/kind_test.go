package update

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

func notify(c chan os.Signal) { signal.Notify(c, syscall.SIGTERM) }

// well is an agent whose health is as said.
type well struct {
	why      string
	doc      desired.Document
	statuses map[desired.Ref]desired.Status
}

func (w well) Heard() string                            { return w.why }
func (w well) Document() (desired.Document, bool)       { return w.doc, true }
func (w well) Statuses() map[desired.Ref]desired.Status { return w.statuses }

// source is a controller that hands out a binary.
type source struct {
	data []byte
	key  ed25519.PrivateKey
	// fails is how many answers fail before one is good.
	fails int
	asked []uint64
}

func (s *source) part(_ context.Context, _ string, offset uint64) ([]byte, error) {
	s.asked = append(s.asked, offset)
	if s.fails > 0 {
		s.fails--
		return nil, errors.New("the controller is away")
	}
	return s.data[offset:min(offset+8, uint64(len(s.data)))], nil
}

func (s *source) spec(version string) desired.Agent {
	sum := sha256.Sum256(s.data)
	a := desired.Agent{Version: version, Arch: runtime.GOARCH, SHA256: hex.EncodeToString(sum[:]), Bytes: uint64(len(s.data)), Release: "r", TrialSeconds: 60}
	a.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, desired.ReleaseProof(a.Version, a.Arch, a.SHA256, a.Bytes)))
	return a
}

func newUpdater(t *testing.T, data, text string, h Health) (*Updater, *source, *int) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, restarts := &source{data: []byte(text), key: private}, new(int)
	return New(Config{
		Data: data, Key: func() (ed25519.PublicKey, error) { return private.Public().(ed25519.PublicKey), nil }, Part: s.part, Health: h,
		Restart: func() { *restarts++ }, Run: host.Machine{}, Log: zerolog.Nop(),
	}), s, restarts
}

const agent12 = "#!/bin/sh\necho shoal-agent version 1.2 0a117c0\n"

func code(err error) desired.Code {
	if err == nil {
		return ""
	}
	return engine.FaultOf(err).Code
}

// TestEnsure_PutsOnTrial: the binary is fetched from where it was cut off, checked, and put on trial; what is Ready is remembered.
func TestEnsure_PutsOnTrial(t *testing.T) {
	d1 := desired.Ref{Kind: desired.KindDomain, ID: "d1"}
	u, s, restarts := newUpdater(t, t.TempDir(), agent12, well{statuses: map[desired.Ref]desired.Status{
		d1: {Rev: 7, Phase: desired.PhaseReady}, {Kind: desired.KindDomain, ID: "d2"}: {Rev: 7, Phase: desired.PhaseRetrying}, {Kind: desired.KindAgent, ID: "self"}: {Phase: desired.PhaseReady},
	}})
	want := s.spec("1.2")
	if all, err := u.Observe(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("before anything was wanted there is %v (%v)", all, err)
	}
	s.fails = 1
	s.asked = nil
	if _, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil); code(err) != desired.CodeDownload {
		t.Fatalf("with the controller away: %v", err)
	}
	// Somebody's rest of an earlier try.
	if err := os.WriteFile(u.store.path(want.SHA256+".part"), s.data[:8], 0o700); err != nil {
		t.Fatal(err)
	}
	s.asked = nil
	if _, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil); !engine.IsBusy(err) {
		t.Fatalf("want a step under way, got %v", err)
	}
	if s.asked[0] != 8 || *restarts != 1 {
		t.Errorf("asked from %v, %d restarts", s.asked, *restarts)
	}
	st, err := u.store.read()
	if err != nil || st.Wanted != want.SHA256 || st.Trial == nil || st.Trial.SHA256 != want.SHA256 || st.Trial.Starts != 0 || st.Trial.Seconds != 60 || st.Current != "" {
		t.Errorf("state %+v %+v (%v)", st, st.Trial, err)
	}
	ready, err := u.readReady()
	if err != nil || len(ready) != 1 || ready[0] != (readyItem{d1, 7}) {
		t.Errorf("ready are %v (%v)", ready, err)
	}
	if _, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil); !engine.IsBusy(err) || *restarts != 1 {
		t.Errorf("asked again while it ends: %v, %d restarts", err, *restarts)
	}
}

// TestEnsure_Refuses: what must not run never gets as far as a trial, and leaves nothing behind that could.
func TestEnsure_Refuses(t *testing.T) {
	for _, c := range []struct {
		name, text string
		change     func(*desired.Agent, *source)
		code       desired.Code
		message    string
	}{
		{"arch", agent12, func(a *desired.Agent, _ *source) { a.Arch = "s390x" }, desired.CodeInvalid, "is for s390x"},
		{"signature", agent12, func(a *desired.Agent, _ *source) { a.Signature = base64.StdEncoding.EncodeToString(make([]byte, 64)) }, desired.CodeInvalid, "is not signed by"},
		{"signed for another version", agent12, func(a *desired.Agent, _ *source) { a.Version = "1.3" }, desired.CodeInvalid, "is not signed by"},
		{"other content", agent12, func(_ *desired.Agent, s *source) { s.data = []byte(strings.Replace(agent12, "1.2", "6.6", 1)) }, desired.CodeChecksum, "has the checksum"},
		{"short content", agent12, func(_ *desired.Agent, s *source) { s.data = s.data[:20] }, desired.CodeChecksum, "has the checksum"},
		{"not an agent", "#!/bin/sh\necho hello\n", nil, desired.CodeInvalid, `no shoal-agent of that version: it says "hello"`},
		{"another version", "#!/bin/sh\necho shoal-agent version 1.1\n", nil, desired.CodeInvalid, "no shoal-agent of that version"},
		{"not a program", "hello", nil, desired.CodeInvalid, "exec format error"},
		{"fails", "#!/bin/sh\necho oops >&2; exit 3\n", nil, desired.CodeInvalid, "oops"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, s, restarts := newUpdater(t, t.TempDir(), c.text, well{})
			want := s.spec("1.2")
			if c.change != nil {
				c.change(&want, s)
			}
			_, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil)
			if code(err) != c.code || !strings.Contains(err.Error(), c.message) {
				t.Errorf("%v, want %s with %q", err, c.code, c.message)
			}
			if st, err := u.store.read(); err != nil || st.Trial != nil || *restarts != 0 {
				t.Errorf("state %+v (%v), %d restarts", st, err, *restarts)
			}
		})
	}
}

// TestEnsure_RolledBackStaysSo until the document says to try again.
func TestEnsure_RolledBackStaysSo(t *testing.T) {
	u, s, restarts := newUpdater(t, t.TempDir(), agent12, well{})
	want := s.spec("1.2")
	if err := u.store.make(); err != nil {
		t.Fatal(err)
	}
	if err := u.store.write(state{Wanted: want.SHA256, Failed: &failed{SHA256: want.SHA256, Version: "1.2", Try: 1, Why: "it crashed"}}); err != nil {
		t.Fatal(err)
	}
	want.Try = 1
	if _, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil); code(err) != desired.CodeRolledBack || !strings.Contains(err.Error(), "it crashed") {
		t.Errorf("asked for the same: %v", err)
	}
	all, err := u.Observe(t.Context())
	if f, ok := u.Facts("", all[desired.AgentItemID]).(desired.AgentFacts); err != nil || !ok || f.RolledBack != want.SHA256 || f.Why != "it crashed" {
		t.Errorf("facts %+v (%v)", f, err)
	}
	want.Try = 2
	if _, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil); !engine.IsBusy(err) || *restarts != 1 {
		t.Errorf("asked to try again: %v", err)
	}
}

// TestEnsure_RunsAlready: the release may be the very binary that was installed.
func TestEnsure_RunsAlready(t *testing.T) {
	u, s, restarts := newUpdater(t, t.TempDir(), agent12, well{})
	own, err := u.own()
	if err != nil {
		t.Fatal(err)
	}
	want := s.spec("1.2")
	want.SHA256 = own
	have, err := u.Ensure(t.Context(), desired.AgentItemID, want, nil)
	if err != nil || u.Diff("", want, have) != "" || *restarts != 0 || len(s.asked) != 0 {
		t.Errorf("%+v, %v, %d restarts, asked for %v", have, err, *restarts, s.asked)
	}
	// When nothing is wanted any more, there is nothing of ours, and what runs goes on.
	if err := u.Remove(t.Context(), desired.AgentItemID, have); err != nil {
		t.Fatal(err)
	}
	if all, err := u.Observe(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left is %v (%v)", all, err)
	}
}

// TestUnwell: what was Ready and is wanted as it was must be Ready again; nothing else counts.
func TestUnwell(t *testing.T) {
	ref := func(id string) desired.Ref { return desired.Ref{Kind: desired.KindDomain, ID: id} }
	before := []readyItem{{ref("same"), 1}, {ref("gone"), 1}, {ref("changed"), 1}}
	doc := desired.Document{Items: map[desired.Ref]desired.Item{ref("same"): {Rev: 1}, ref("changed"): {Rev: 2}, ref("new"): {Rev: 2}}}
	good := map[desired.Ref]desired.Status{
		ref("same"): {Rev: 1, Phase: desired.PhaseReady}, ref("changed"): {Rev: 2, Phase: desired.PhaseRetrying}, ref("new"): {Rev: 2, Phase: desired.PhaseRefused},
	}
	for want, h := range map[string]well{
		"":                              {doc: doc, statuses: good},
		"not connected":                 {doc: doc, statuses: good, why: "not connected"},
		"domain.same was not looked at": {doc: doc},
		"domain.same was Ready and is Retrying: no libvirt": {doc: doc, statuses: map[desired.Ref]desired.Status{ref("same"): {Rev: 1, Phase: desired.PhaseRetrying, Fault: &desired.Fault{Message: "no\nlibvirt"}}}},
	} {
		u, _, _ := newUpdater(t, t.TempDir(), "", h)
		if got := u.unwell(before); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
