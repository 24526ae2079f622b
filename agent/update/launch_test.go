package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// The test's own program plays an agent that is launched, when this says how.
const actEnv = "SHOAL_TEST_ACT"

func TestMain(m *testing.M) {
	if act := os.Getenv(actEnv); act != "" {
		os.Exit(play(act, os.Getenv("SHOAL_TEST_DATA")))
	}
	os.Exit(m.Run())
}

// play is an agent of some sort.
func play(act, data string) int {
	forever := func() int {
		if err := os.WriteFile(filepath.Join(data, "runs"), nil, 0o600); err != nil {
			return 9
		}
		time.Sleep(time.Hour)
		return 0
	}
	switch act {
	case "launch":
		_, code, err := Launch(context.Background(), LaunchConfig{Data: data, Args: []string{"shoal-agent"}, Log: zerolog.Nop()})
		if err != nil {
			return 8
		}
		return code
	case "crash":
		return 7
	case "say":
		Say(data, errors.New("no libvirt\nfor me"))
		return 1
	case "panic":
		u := New(Config{Data: data, Health: well{}, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if u.Run(ctx) != nil {
			return 9
		}
		panic("kaboom")
	case "hang":
		u := New(Config{Data: data, Health: well{why: "not connected to the controller: refused"}, Log: zerolog.Nop()})
		_ = u.Run(context.Background())
		return 9
	case "deaf": // not even to a signal
		_ = exec.Command("true").Run()
		ignoreTerm()
		return forever()
	case "well", "well-then-9":
		u := New(Config{Data: data, Health: well{}, Log: zerolog.Nop()})
		if err := u.Run(context.Background()); err != nil {
			return 9
		}
		if act == "well-then-9" {
			return 9
		}
		return 0
	case "second": // is well, and then puts a third on trial, as Ensure does
		u := New(Config{Data: data, Health: well{}, Log: zerolog.Nop()})
		if u.Run(context.Background()) != nil || os.Rename(filepath.Join(data, "third"), filepath.Dir(open(data).program(other))) != nil {
			return 9
		}
		if _, err := u.edit(func(st *state) { st.Trial = &trial{SHA256: other, Version: "3", Seconds: 60} }); err != nil {
			return 9
		}
		return 0
	case "run":
		return forever()
	default:
		return 9
	}
}

func ignoreTerm() {
	// Not by signal.Ignore, which a child would inherit: by reading and dropping.
	c := make(chan os.Signal, 1)
	notify(c)
	go func() {
		for range c {
			// dropped
		}
	}()
}

var (
	first = strings.Repeat("a1", 32)
	this  = strings.Repeat("b2", 32)
	other = strings.Repeat("c3", 32)
)

// lab is a data directory with releases in it.
type lab struct {
	t     *testing.T
	data  string
	store store
	execs []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, data: t.TempDir()}
	l.store = open(l.data)
	t.Setenv("SHOAL_TEST_DATA", l.data)
	if err := l.store.make(); err != nil {
		t.Fatal(err)
	}
	return l
}

// put makes a release: a script that plays an act, or some text.
func (l *lab) put(sha256, act string) {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", actEnv, act, self)
	if strings.HasPrefix(act, "=") {
		text = act[1:]
	}
	if err := os.MkdirAll(filepath.Dir(l.store.program(sha256)), 0o700); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.store.program(sha256), []byte(text), 0o700); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) set(st state) {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	st.Base = baseOf(self)
	if err := l.store.write(st); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.store.path(readyFile), []byte("[]"), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) state() state {
	l.t.Helper()
	st, err := l.store.read()
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// launch is Launch, with a process that says what it would become.
func (l *lab) launch(ctx context.Context) (bool, int) {
	l.t.Helper()
	ran, code, err := Launch(ctx, LaunchConfig{
		Data: l.data, Args: []string{"shoal-agent", "--data", l.data}, Log: zerolog.New(zerolog.NewTestWriter(l.t)), patience: time.Second,
		exec: func(program string, args, env []string) error {
			if err := syscall.Access(program, 1); err != nil {
				return err
			}
			l.execs = append(l.execs, program)
			return nil
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return ran, code
}

// TestLaunch_NothingToDo: a host that was never told about releases runs what was installed.
func TestLaunch_NothingToDo(t *testing.T) {
	l := newLab(t)
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("something ran")
	}
	if err := os.WriteFile(l.store.path(stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("something ran by a damaged state")
	}
}

func TestLaunch_Current(t *testing.T) {
	l := newLab(t)
	l.put(first, "run")
	l.put(this, "run")
	l.set(state{Current: this, Previous: first})
	if ran, _ := l.launch(t.Context()); !ran || len(l.execs) != 1 || l.execs[0] != l.store.program(this) {
		t.Fatalf("ran %v: %v", ran, l.execs)
	}
	// One that can't be executed any more gives way to the one before, and that to the base.
	if err := os.Remove(l.store.program(this)); err != nil {
		t.Fatal(err)
	}
	if ran, _ := l.launch(t.Context()); !ran || l.execs[1] != l.store.program(first) {
		t.Fatalf("ran %v: %v", ran, l.execs)
	}
	if err := os.Remove(l.store.program(first)); err != nil {
		t.Fatal(err)
	}
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("something ran where nothing is left")
	}
	// A launched release does not launch.
	l.put(this, "run")
	l.set(state{Current: this})
	t.Setenv(envRelease, this)
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("a release has launched itself")
	}
}

// TestLaunch_BaseReplaced: whoever installs another agent by hand gets that one.
func TestLaunch_BaseReplaced(t *testing.T) {
	l := newLab(t)
	l.put(this, "run")
	if err := l.store.write(state{Wanted: this, Current: this, Base: "1-2", Trial: &trial{SHA256: other, Seconds: 9}}); err != nil {
		t.Fatal(err)
	}
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("a release ran")
	}
	if st := l.state(); st.Current != "" || st.Trial != nil || st.Wanted != this {
		t.Errorf("state %+v", st)
	}
}

// TestLaunch_RollsBack: every way not to be well ends with the one before, and with the reason.
func TestLaunch_RollsBack(t *testing.T) {
	for _, c := range []struct {
		name, act, why string
		starts         int // after which it is given up
		seconds        int
	}{
		{"wrong architecture", "=\x7fELF\x02\x01\x01 and so on", "it can't be executed: ", 1, 60},
		{"no program", "=hello", "it can't be executed: ", 1, 60},
		{"crashes", "crash", "it ended by itself: exit status 7", maxStarts, 60},
		{"says why", "say", "it ended by itself: exit status 1: no libvirt for me", maxStarts, 60},
		{"panics", "panic", "it ended by itself: exit status 2: panic: kaboom", maxStarts, 60},
		{"is never well", "hang", "it was not well within 10s: not connected to the controller: refused", 1, 10},
		{"says nothing", "run", "it was not well within 1s: it said nothing", 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.put(first, "run")
			l.put(this, c.act)
			l.set(state{Wanted: this, Current: first, Trial: &trial{SHA256: this, Version: "2", Try: 4, Seconds: c.seconds}})
			if ran, _ := l.launch(t.Context()); !ran || len(l.execs) != 1 || l.execs[0] != l.store.program(first) {
				t.Fatalf("ran %v: %v, want the one before", ran, l.execs)
			}
			st := l.state()
			if st.Failed == nil || !strings.HasPrefix(st.Failed.Why, c.why) || st.Failed.SHA256 != this || st.Failed.Version != "2" || st.Failed.Try != 4 {
				t.Errorf("given up: %+v, want the reason %q", st.Failed, c.why)
			}
			if s, err := Look(l.data); err != nil || s.RolledBack != "2" || !strings.HasPrefix(s.Why, c.why) || s.Current != first || s.Trial != "" {
				t.Errorf("for people it is %+v (%v)", s, err)
			}
			if st.Trial != nil || st.Current != first || st.Wanted != this {
				t.Errorf("state %+v", st)
			}
		})
	}
}

// TestLaunch_BackToTheBase: where no release was current before, it is the installed agent that goes on.
func TestLaunch_BackToTheBase(t *testing.T) {
	l := newLab(t)
	l.put(this, "crash")
	l.set(state{Trial: &trial{SHA256: this, Version: "2", Seconds: 60}})
	if ran, _ := l.launch(t.Context()); ran {
		t.Error("something else than the base is to run")
	}
	if st := l.state(); st.Failed == nil || st.Trial != nil {
		t.Errorf("state %+v", st)
	}
}

func TestLaunch_Well(t *testing.T) {
	l := newLab(t)
	l.put(strings.Repeat("00", 32), "run")
	l.put(first, "run")
	l.put(this, "well-then-9")
	l.set(state{Wanted: this, Current: first, Failed: &failed{SHA256: this}, Trial: &trial{SHA256: this, Version: "2", Seconds: 60}})
	if ran, code := l.launch(t.Context()); !ran || code != 9 || len(l.execs) > 0 {
		t.Fatalf("ran %v, exit code %d, then %v: want its own exit code and no other", ran, code, l.execs)
	}
	want := state{Wanted: this, Current: this, Previous: first, Version: "2", Base: l.state().Base}
	if d := cmp.Diff(want, l.state()); d != "" {
		t.Error(d)
	}
	entries, err := filepath.Glob(filepath.Join(l.store.dir, "*", program))
	if err != nil || len(entries) != 2 {
		t.Errorf("left are %v (%v), want the current and the previous release", entries, err)
	}
}

// TestLaunch_AnotherAfterIt: a release that was well makes way for the next, with the same launcher.
func TestLaunch_AnotherAfterIt(t *testing.T) {
	l := newLab(t)
	l.put(this, "second")
	l.put(other, "well")
	if err := os.Rename(filepath.Dir(l.store.program(other)), filepath.Join(l.data, "third")); err != nil {
		t.Fatal(err)
	}
	l.set(state{Trial: &trial{SHA256: this, Version: "2", Seconds: 60}})
	if ran, code := l.launch(t.Context()); !ran || code != 0 {
		t.Fatalf("ran %v, exit code %d", ran, code)
	}
	if st := l.state(); st.Current != other || st.Previous != this || st.Trial != nil {
		t.Errorf("state %+v", st)
	}
}

// TestLaunch_Ended: an operator who stops the service in the middle of a trial counts against nobody.
func TestLaunch_Ended(t *testing.T) {
	for _, act := range []string{"run", "deaf"} {
		t.Run(act, func(t *testing.T) {
			l := newLab(t)
			l.put(this, act)
			l.set(state{Trial: &trial{SHA256: this, Version: "2", Seconds: 300}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for range 600 {
					if _, err := os.Stat(filepath.Join(l.data, "runs")); err == nil {
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				cancel()
			}()
			if ran, _ := l.launch(ctx); !ran {
				t.Error("it did not run")
			}
			if st := l.state(); st.Trial == nil || st.Trial.Starts != 0 || st.Failed != nil {
				t.Errorf("state %+v", st)
			}
		})
	}
}

// TestLaunch_Killed: neither a launcher that is killed leaves its release behind, nor is the start forgotten.
func TestLaunch_Killed(t *testing.T) {
	l := newLab(t)
	l.put(this, "run")
	l.set(state{Trial: &trial{SHA256: this, Version: "2", Seconds: 300}})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), actEnv+"=launch")
	out, err := cmd.StdoutPipe() // the release inherits it: it ends when both have
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 600 {
		if _, err := os.Stat(filepath.Join(l.data, "runs")); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Meanwhile another launcher keeps its hands off.
	if _, _, err := Launch(t.Context(), LaunchConfig{Data: l.data, Args: []string{"x"}, Log: zerolog.Nop()}); err == nil || !strings.Contains(err.Error(), "another shoal-agent") {
		t.Errorf("a second launcher: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err == nil {
		t.Error("the release has said something")
	}
	_ = cmd.Wait()
	if st := l.state(); st.Trial == nil || st.Trial.Starts != 1 {
		t.Errorf("state %+v, want one start", st)
	}
}

func FuzzParseState(f *testing.F) {
	st := state{Wanted: this, Current: this, Previous: first, Base: "1-2", Trial: &trial{SHA256: other, Seconds: 1}, Failed: &failed{SHA256: first, Why: "x"}}
	b, err := json.Marshal(st)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"current":"../../etc"}`))
	f.Add([]byte(`{"trial":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState(b)
		if err != nil {
			return
		}
		for _, d := range []string{st.Wanted, st.Current, st.Previous} {
			if d != "" && (len(d) != 64 || strings.ContainsAny(d, "/.")) {
				t.Fatalf("%q names a path", d)
			}
		}
		if st.Trial != nil && (len(st.Trial.SHA256) != 64 || st.Trial.Seconds <= 0 || st.Trial.Starts < 0) {
			t.Fatalf("trial %+v", st.Trial)
		}
		again, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseState(again); err != nil || !cmp.Equal(st, back) {
			t.Fatalf("%+v came back as %+v (%v)", st, back, err)
		}
	})
}

func FuzzVersionOf(f *testing.F) {
	f.Add([]byte("shoal-agent version 1.2 0a117c0\n"))
	f.Add([]byte("shoal-agent version \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v := VersionOf(b); strings.ContainsAny(v, " \n") {
			t.Fatalf("version %q", v)
		}
	})
}
