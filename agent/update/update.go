// Package update replaces the agent by another release of itself, and takes that back when it is not well.
//
// # How it goes
//
// The binary that the host was installed with, the base, is what a supervisor starts, and is never touched. It runs itself, or, by [Launch],
// the release that the state file names. The kind ([Updater]) fetches the release that the document wants, checks its digest, its
// signature and what it says of itself, writes down in one step that it is on trial, and ends the agent. The launcher then counts the start on the
// disk, starts the release as a child, and keeps watch. The release has so many seconds to be well: connected, having read the document and
// been heard, with everything Ready that was Ready before. It then says so itself, in the state file, and is current from then on.
//
// # What it guarantees
//
//   - A release that can't be executed, ends by itself maxStarts times, or is not well in time, is given up, and the one before runs again,
//     whatever state the new one is in: only the launcher, which is the old base, decides. The reason is kept and reported.
//   - A loss of power at any moment leaves the old release, the new one on trial, or the new one. A trial is never started uncounted.
//   - A release is on the disk, whole and synced, before anything names it. The current and the one before are kept, others removed.
//   - What was given up is not tried again until the document says so (Try).
//   - A base that was replaced by hand goes before every release, once: that is the way out of everything else.
//   - Guests, DHCP servers, rules and mounts are not touched: all that an agent is goes on without one.
//
// Whoever starts an agent must start it again when it ends (systemd: Restart=always, StartLimitIntervalSec=0), and must end the one
// process only (KillMode=process).
//
// # Files
//
// Below <data>/release, which is for root only:
//
//	state.json           what is current, on trial, given up; see state. Launchers older than what wrote it must understand it
//	ready.json           what was Ready when the trial began
//	crash                what the Go runtime said when a release on trial crashed
//	<sha256>/shoal-agent a release
//	lock                 locked by the launcher while it has a child
//
// Which host gets which release, and when, is the controller's decision.
package update

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/agent/host"
	"shoal/desired"
)

// Names below the data directory.
const (
	dirName   = "release"
	stateFile = "state.json"
	readyFile = "ready.json"
	crashFile = "crash"
	lockFile  = "lock"
	program   = "shoal-agent"
)

// What a launcher tells the release that it starts.
const (
	envRelease  = "SHOAL_AGENT_RELEASE"  // the release's digest
	envBase     = "SHOAL_AGENT_BASE"     // the launcher's own binary
	envLauncher = "SHOAL_AGENT_LAUNCHER" // the launcher's process id, where that waits for the release
)

// state is what the launcher and the agent tell each other. Fields are added only, and never needed: the launcher may be older than the agent.
// One of them writes at a time: the launcher before it starts a release and after that has ended, the agent in between.
type state struct {
	// Wanted is the digest that the document asked for last, "" for none.
	Wanted string `json:"wanted,omitempty"`
	// Current is the release that runs, "" for the base; Previous the one before.
	Current  string `json:"current,omitempty"`
	Previous string `json:"previous,omitempty"`
	// Version is that of the current one, for people.
	Version string `json:"version,omitempty"`
	// Base tells the base that this was decided beside from one that was put in its place.
	Base   string  `json:"base,omitempty"`
	Trial  *trial  `json:"trial,omitempty"`
	Failed *failed `json:"failed,omitempty"`
}

// trial is a release that may be well or not.
type trial struct {
	SHA256  string `json:"sha256"`
	Version string `json:"version"`
	Try     int    `json:"try"`
	Seconds int    `json:"seconds"`
	// Starts is how often it was started.
	Starts int `json:"starts"`
	// Note is what it says is not well yet.
	Note string `json:"note,omitempty"`
}

// failed is a release that was given up.
type failed struct {
	SHA256  string    `json:"sha256"`
	Version string    `json:"version"`
	Try     int       `json:"try"`
	Why     string    `json:"why"`
	At      time.Time `json:"at"`
}

// store is the directory of releases.
type store struct{ dir string }

func open(data string) store { return store{filepath.Join(data, dirName)} }

func (s store) path(name string) string      { return filepath.Join(s.dir, name) }
func (s store) program(sha256 string) string { return filepath.Join(s.dir, sha256, program) }

// read reads the state; the zero state where there is none. What is damaged is an error, and nothing of it holds.
func (s store) read() (state, error) {
	b, err := os.ReadFile(s.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read the state of releases: %w", err)
	}
	st, err := parseState(b)
	if err != nil {
		return state{}, fmt.Errorf("read %s: %w", s.path(stateFile), err)
	}
	return st, nil
}

func parseState(b []byte) (state, error) {
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return state{}, err
	}
	digests := map[string]string{"wanted": st.Wanted, "current": st.Current, "previous": st.Previous}
	if st.Trial != nil {
		digests["trial"] = st.Trial.SHA256
		if st.Trial.SHA256 == "" || st.Trial.Seconds <= 0 || st.Trial.Starts < 0 {
			return state{}, errors.New("trial: is not whole")
		}
	}
	for field, d := range digests {
		if d == "" {
			continue
		}
		// They are parts of paths.
		if err := desired.CheckSHA256(d); err != nil {
			return state{}, fmt.Errorf("%s: %w", field, err)
		}
	}
	return st, nil
}

func (s store) write(st state) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the state of releases: %w", err)
	}
	if err := host.WriteFile(s.path(stateFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the state of releases: %w", err)
	}
	return nil
}

// Status is what is known of releases on a host, for people.
type Status struct {
	// Current is the version of the release that is started, "" for the agent that was installed.
	Current string
	// Trial is the version of one that is on trial, "" for none; Note what is not well with it yet.
	Trial, Note string
	// RolledBack is the version of the one that was given up last, Why the reason; "" for none.
	RolledBack, Why string
}

// Look reads the status below an agent's data directory. It asks nobody and changes nothing.
func Look(data string) (Status, error) {
	st, err := open(data).read()
	if err != nil {
		return Status{}, err
	}
	var s Status
	if st.Current != "" {
		s.Current = cmp.Or(st.Version, st.Current)
	}
	if st.Trial != nil {
		s.Trial, s.Note = st.Trial.Version, st.Trial.Note
	}
	if st.Failed != nil {
		s.RolledBack, s.Why = st.Failed.Version, st.Failed.Why
	}
	return s, nil
}

// make makes the directory, if it is not there.
func (s store) make() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of releases: %w", err)
	}
	return nil
}

// tidy removes the releases that are no more of use.
func (s store) tidy(st state) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("look at the releases: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if desired.CheckSHA256(name) != nil || name == st.Current || name == st.Previous || st.Trial != nil && name == st.Trial.SHA256 {
			continue
		}
		if err := os.RemoveAll(s.path(name)); err != nil {
			return fmt.Errorf("remove a release: %w", err)
		}
	}
	return nil
}

// baseOf tells a binary from another that is put in its place. It is "" for one that can't be looked at.
func baseOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano())
}

// one makes a text of several lines one line that is not too long to be shown.
func one(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}
