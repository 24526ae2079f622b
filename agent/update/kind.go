package update

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// Config is what an Updater needs.
type Config struct {
	// Data is the agent's directory.
	Data string
	// Key is the key that releases are signed by.
	Key func() (ed25519.PublicKey, error)
	// Part gives the bytes of a release from offset on, as many as it likes.
	Part func(ctx context.Context, release string, offset uint64) ([]byte, error)
	// Health is asked how the agent does.
	Health Health
	// Restart ends the agent, so that the launcher runs what the state says. It returns at once.
	Restart func()
	// Run runs a new binary to ask for its version.
	Run host.Runner
	Log zerolog.Logger
}

// Health is how an agent does.
type Health interface {
	// Heard says what keeps the controller from being heard, and us from being heard by it; "" for nothing.
	Heard() string
	// Document is the document in force.
	Document() (desired.Document, bool)
	// Statuses are those of its items.
	Statuses() map[desired.Ref]desired.Status
}

// Have is the binary that runs, and what became of others.
type Have struct {
	SHA256 string
	Trial  bool
	Failed *failed
}

// Updater is the kind.
type Updater struct {
	cfg   Config
	store store
	// changed wakes Watch.
	changed chan struct{}

	// editing is held while the state is read, changed and written.
	editing sync.Mutex

	mu         sync.Mutex
	running    string // this process' digest, once it is known
	restarting bool
}

// New makes the kind.
func New(cfg Config) *Updater {
	return &Updater{cfg: cfg, store: open(cfg.Data), changed: make(chan struct{}, 1)}
}

// edit changes the state, and gives what it is then.
func (u *Updater) edit(change func(*state)) (state, error) {
	u.editing.Lock()
	defer u.editing.Unlock()
	st, err := u.store.read()
	if err != nil {
		return state{}, err
	}
	change(&st)
	return st, u.store.write(st)
}

// own is this process' digest. A launched release is told it; that of the base is found out once, when it is of use.
func (u *Updater) own() (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.running != "" {
		return u.running, nil
	}
	if sha := os.Getenv(envRelease); desired.CheckSHA256(sha) == nil {
		u.running = sha
		return sha, nil
	}
	sha, _, err := digest("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("look at this program: %w", err)
	}
	u.running = sha
	return u.running, nil
}

// Observe implements engine.Kind. Until a release was wanted there is nothing of ours.
func (u *Updater) Observe(context.Context) (map[string]Have, error) {
	st, err := u.store.read()
	if err != nil {
		return nil, err
	}
	if st.Wanted == "" {
		return map[string]Have{}, nil
	}
	h, err := u.have(st)
	if err != nil {
		return nil, err
	}
	return map[string]Have{desired.AgentItemID: h}, nil
}

func (u *Updater) have(st state) (Have, error) {
	sha, err := u.own()
	if err != nil {
		return Have{}, err
	}
	return Have{SHA256: sha, Trial: st.Trial != nil && st.Trial.SHA256 == sha, Failed: st.Failed}, nil
}

// Diff implements engine.Kind.
func (u *Updater) Diff(_ string, want desired.Agent, have Have) string {
	switch {
	case have.SHA256 != want.SHA256:
		return "another release runs"
	case have.Trial:
		return "on trial"
	default:
		return ""
	}
}

// Facts implements engine.Facter.
func (u *Updater) Facts(_ string, have Have) any {
	f := desired.AgentFacts{SHA256: have.SHA256, Trial: have.Trial}
	if have.Failed != nil {
		f.RolledBack, f.Why = have.Failed.SHA256, have.Failed.Why
	}
	return f
}

// Timeout implements engine.Timeouter: it is how long a part may take.
func (u *Updater) Timeout() time.Duration { return 2 * time.Minute }

// Watch implements engine.Watcher: a trial that ends well is a change.
func (u *Updater) Watch(ctx context.Context, changed func(id string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.changed:
			changed(desired.AgentItemID)
		}
	}
}

// Remove implements engine.Kind: no release is wanted any more, so what runs goes on running.
func (u *Updater) Remove(context.Context, string, Have) error {
	st, err := u.store.read()
	if err != nil || st.Wanted == "" {
		return err
	}
	_, err = u.edit(func(st *state) { st.Wanted = "" })
	return err
}

// Ensure implements engine.Kind.
func (u *Updater) Ensure(ctx context.Context, id string, want desired.Agent, _ *Have) (Have, error) {
	if id != desired.AgentItemID {
		return Have{}, engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("a host has one agent, whose id is %s", desired.AgentItemID)))
	}
	st, err := u.store.read()
	if err != nil {
		return Have{}, err
	}
	if err := u.store.make(); err != nil {
		return Have{}, space(err)
	}
	if st.Wanted != want.SHA256 {
		if st, err = u.edit(func(st *state) { st.Wanted = want.SHA256 }); err != nil {
			return Have{}, space(err)
		}
	}
	have, err := u.have(st)
	if err != nil {
		return Have{}, err
	}
	u.mu.Lock()
	restarting := u.restarting
	u.mu.Unlock()
	switch {
	case restarting:
		return Have{}, engine.Busy(endPatience, "about to be replaced")
	case have.Trial:
		return Have{}, engine.Busy(time.Second, "on trial")
	case have.SHA256 == want.SHA256:
		return have, nil
	case st.Failed != nil && st.Failed.SHA256 == want.SHA256 && st.Failed.Try >= want.Try:
		return Have{}, engine.Final(engine.Fault(desired.CodeRolledBack, "", fmt.Errorf("release %s was rolled back: %s", want.Version, st.Failed.Why)))
	}
	if err := u.get(ctx, want); err != nil {
		return Have{}, space(err)
	}
	return Have{}, u.begin(want)
}

// begin puts a release on trial.
func (u *Updater) begin(want desired.Agent) error {
	base, err := baseProgram()
	if err != nil {
		return fmt.Errorf("find the installed agent: %w", err)
	}
	if err := u.noteReady(); err != nil {
		return space(err)
	}
	if _, err := u.edit(func(st *state) {
		st.Base = baseOf(base)
		st.Trial = &trial{SHA256: want.SHA256, Version: want.Version, Try: want.Try, Seconds: want.TrialSeconds}
	}); err != nil {
		return space(err)
	}
	u.cfg.Log.Info().Str("version", want.Version).Str("release", want.SHA256).Msg("agent makes way for a release on trial")
	u.mu.Lock()
	u.restarting = true
	u.mu.Unlock()
	u.cfg.Restart()
	return engine.Busy(endPatience, "about to be replaced")
}

// get has the release on the disk, whole, and known to be what the item says.
func (u *Updater) get(ctx context.Context, want desired.Agent) error {
	key, err := u.cfg.Key()
	if err != nil {
		return fmt.Errorf("find the key of releases: %w", err)
	}
	switch {
	case want.Arch != runtime.GOARCH:
		return engine.Final(engine.Fault(desired.CodeInvalid, "add the release for this architecture", fmt.Errorf("release %s is for %s, and this host is %s", want.Version, want.Arch, runtime.GOARCH)))
	case !want.SignedBy(key):
		return engine.Final(engine.Fault(desired.CodeInvalid, "add the release anew; the installation's keys are others than those that signed it, or somebody forged it",
			fmt.Errorf("release %s is not signed by the key that signs this host's credentials", want.Version)))
	}
	path := u.store.program(want.SHA256)
	if sum, n, err := digest(path); err != nil || sum != want.SHA256 || n != want.Bytes {
		if err := u.fetch(ctx, want); err != nil {
			return err
		}
	}
	return u.ask(ctx, path, want)
}

// fetch gets the binary, from where an earlier try was cut off.
func (u *Updater) fetch(ctx context.Context, want desired.Agent) (err error) {
	part := u.store.path(want.SHA256 + ".part")
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o700)
	if err != nil {
		return fmt.Errorf("fetch release %s: %w", want.Version, err)
	}
	defer f.Close()
	sum := sha256.New()
	at, err := resume(f, sum, want.Bytes)
	if err != nil {
		return fmt.Errorf("fetch release %s: %w", want.Version, err)
	}
	for at < want.Bytes {
		b, err := u.cfg.Part(ctx, want.Release, at)
		if err != nil {
			return engine.Fault(desired.CodeDownload, "it is tried again; see that the release is still there: shoalctl agent release list", fmt.Errorf("fetch release %s: %w", want.Version, err))
		}
		if len(b) == 0 || uint64(len(b)) > want.Bytes-at {
			break
		}
		if _, err := f.Write(b); err != nil {
			return fmt.Errorf("fetch release %s: %w", want.Version, err)
		}
		sum.Write(b)
		at += uint64(len(b))
		engine.Progress(ctx, int(at*100/want.Bytes))
	}
	if got := hex.EncodeToString(sum.Sum(nil)); at != want.Bytes || got != want.SHA256 {
		_ = os.Remove(part)
		return engine.Fault(desired.CodeChecksum, "add the release anew", fmt.Errorf("what was fetched as release %s has the checksum sha256:%s, not sha256:%s", want.Version, got, want.SHA256))
	}
	if err := f.Chmod(0o700); err != nil {
		return fmt.Errorf("fetch release %s: %w", want.Version, err)
	}
	// Closed before it is executed: the kernel refuses a file that somebody may write.
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("fetch release %s: %w", want.Version, err)
	}
	if err := u.store.putProgram(part, want.SHA256); err != nil {
		return fmt.Errorf("fetch release %s: %w", want.Version, err)
	}
	return nil
}

// resume takes what is there of a part into the digest, and says how much that is.
func resume(f *os.File, sum hash.Hash, limit uint64) (uint64, error) {
	n, err := io.Copy(sum, f)
	if err == nil && uint64(n) > limit {
		sum.Reset()
		if n, err = 0, f.Truncate(0); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	return uint64(n), err
}

// digest is that of a file, and its length.
func digest(path string) (string, uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), uint64(n), err
}

// ask asks a new binary what it is, before anything depends on it.
func (u *Updater) ask(ctx context.Context, path string, want desired.Agent) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := u.cfg.Run.Run(ctx, host.Command{Name: path, Args: []string{"--version"}})
	if err == nil {
		if got := VersionOf(out); got != want.Version {
			err = fmt.Errorf("it says %q", one(string(out)))
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("ask release %s what it is: %w", want.Version, err)
		}
		return engine.Final(engine.Fault(desired.CodeInvalid, "add a release that is a shoal-agent of this version for this architecture",
			fmt.Errorf("what came as release %s is no shoal-agent of that version: %s", want.Version, one(err.Error()))))
	}
	return nil
}

// VersionOf is the version in what a shoal-agent prints with --version: "shoal-agent version 1.2 4f0c…"; "" where there is none.
func VersionOf(out []byte) string {
	rest, ok := bytes.CutPrefix(out, []byte(program+" version "))
	words := strings.Fields(string(rest))
	if !ok || len(words) == 0 {
		return ""
	}
	return words[0]
}

// space gives an error for lack of space its code.
func space(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return engine.Fault(desired.CodeNoSpace, "free space in the agent's data directory", err)
	}
	return err
}

// readyItem is an item that was as it should be before a trial.
type readyItem struct {
	Ref desired.Ref `json:"ref"`
	Rev uint64      `json:"rev"`
}

// noteReady keeps what is as it should be now: a new agent has to do as well.
func (u *Updater) noteReady() error {
	ready := []readyItem{}
	for ref, s := range u.cfg.Health.Statuses() {
		if s.Phase == desired.PhaseReady && ref.Kind != desired.KindAgent {
			ready = append(ready, readyItem{ref, s.Rev})
		}
	}
	b, err := json.Marshal(ready)
	if err != nil {
		return fmt.Errorf("encode what is ready: %w", err)
	}
	if err := host.WriteFile(u.store.path(readyFile), b, 0o600); err != nil {
		return fmt.Errorf("keep what is ready: %w", err)
	}
	return nil
}
