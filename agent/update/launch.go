package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/host"
)

const (
	// maxStarts is how often a release on trial may end by itself.
	maxStarts = 3
	// startGap is how long to wait between two of its starts.
	startGap = time.Second
	// endPatience is how long a release may take to end when it is told to. An agent ends its calls within 10 s.
	endPatience = 20 * time.Second
)

// LaunchConfig is what a launcher needs.
type LaunchConfig struct {
	// Data is the agent's directory.
	Data string
	// Args are the process' arguments, its name first. A release gets the same.
	Args []string
	Log  zerolog.Logger

	// exec replaces the process; syscall.Exec outside of tests. It returns only if it fails.
	exec func(program string, args, env []string) error
	// patience is how long a release may take to end when it is told to; endPatience outside of tests.
	patience time.Duration
}

// Launch runs the release that is to run, if one is. ran is false where this process itself is what is to run: it is a release that
// was launched, or the base is current. Otherwise the release has run to its end, which is code and err, or ctx has ended; or this process has
// become the release, and Launch does not return.
func Launch(ctx context.Context, cfg LaunchConfig) (ran bool, code int, err error) {
	if cfg.exec == nil {
		cfg.exec = syscall.Exec
	}
	if cfg.patience == 0 {
		cfg.patience = endPatience
	}
	if os.Getenv(envRelease) != "" {
		return false, 0, nil
	}
	l := &launcher{cfg: cfg, store: open(cfg.Data)}
	if l.base, err = os.Executable(); err != nil {
		return false, 0, fmt.Errorf("find this program: %w", err)
	}
	st, err := l.store.read()
	if err != nil {
		// The base is known to work, and the document says what is wanted.
		cfg.Log.Error().Err(err).Msg("state of releases is not to be used; the agent runs as it was installed")
		return false, 0, nil
	}
	if st.Current == "" && st.Trial == nil {
		return false, 0, nil
	}
	lock, err := l.lock()
	if err != nil {
		return false, 0, err
	}
	defer lock.Close()
	return l.run(ctx, st)
}

type launcher struct {
	cfg   LaunchConfig
	store store
	base  string
}

// lock keeps a second launcher from counting starts, and from starting what runs.
func (l *launcher) lock() (*os.File, error) {
	f, err := os.OpenFile(l.store.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the releases: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another shoal-agent works with %s", l.cfg.Data)
		}
		return nil, fmt.Errorf("lock the releases: %w", err)
	}
	return f, nil
}

func (l *launcher) run(ctx context.Context, st state) (ran bool, code int, err error) {
	log := l.cfg.Log
	if now := baseOf(l.base); st.Base != now {
		log.Warn().Str("base", l.base).Msg("the installed agent was replaced; it runs instead of what was current")
		st.Base, st.Current, st.Previous, st.Version, st.Trial, st.Failed = now, "", "", "", nil, nil
		if err := l.store.write(st); err != nil {
			log.Error().Err(err).Msg("state of releases not kept")
		}
		return false, 0, nil
	}
	for {
		switch {
		case st.Trial != nil:
			if !l.count(st) {
				st.Trial = nil
				continue
			}
			ended := l.try(ctx, st.Trial)
			stopped := ctx.Err() != nil
			var whole bool
			if st, whole = l.reread(); !whole {
				return true, 1, nil
			}
			switch {
			case st.Trial == nil, st.Trial.Starts == 0 && stopped:
				return true, ended.code, nil //nolint:nilerr // it was well, and has ended since
			case st.Trial.Starts == 0:
				continue // it was well, and has put another on trial
			case stopped:
				st.Trial.Starts-- // it was ended by whoever ends us
				return true, ended.code, l.store.write(st)
			case !ended.final && st.Trial.Starts < maxStarts:
				log.Warn().Str("version", st.Trial.Version).Int("attempt", st.Trial.Starts).Str("err", ended.why).Msg("release on trial has ended")
				sleep(ctx, startGap)
				continue
			}
			st = l.giveUp(st, ended.why)
		case st.Current != "":
			err := l.cfg.exec(l.store.program(st.Current), l.cfg.Args, l.environ(st.Current, false))
			if err == nil {
				return true, 0, nil // in tests
			}
			log.Error().Err(err).Str("release", st.Current).Msg("current release can't be executed; the one before runs")
			// It is damaged, and nothing against the release: it will be fetched anew.
			st.Current, st.Previous, st.Version = st.Previous, "", ""
			if err := l.store.write(st); err != nil {
				log.Error().Err(err).Msg("state of releases not kept")
			}
		default:
			return false, 0, nil
		}
	}
}

// count counts a start. What can't be counted is not started.
func (l *launcher) count(st state) bool {
	st.Trial.Starts++
	err := l.store.write(st)
	if err != nil {
		l.cfg.Log.Error().Err(err).Msg("release on trial not started")
	}
	return err == nil
}

// reread reads the state that a release has left. Where that is damaged, the next launcher runs the base.
func (l *launcher) reread() (state, bool) {
	st, err := l.store.read()
	if err != nil {
		l.cfg.Log.Error().Err(err).Msg("state of releases is not to be used any more")
	}
	return st, err == nil
}

// giveUp ends a trial. Where that can't be kept, it is ended in this process all the same, and found again by the next.
func (l *launcher) giveUp(st state, why string) state {
	t := st.Trial
	l.cfg.Log.Error().Str("version", t.Version).Int("attempt", t.Starts).Str("err", why).Msg("release is given up; the one before runs again")
	st.Failed = &failed{SHA256: t.SHA256, Version: t.Version, Try: t.Try, Why: why, At: time.Now().UTC()}
	st.Trial = nil
	if err := l.store.write(st); err != nil {
		l.cfg.Log.Error().Err(err).Msg("state of releases not kept")
	}
	return st
}

// environ is what a release is started with.
func (l *launcher) environ(sha256 string, wait bool) []string {
	env := append(cleanEnv(), envRelease+"="+sha256, envBase+"="+l.base)
	if wait {
		env = append(env, envLauncher+"="+strconv.Itoa(os.Getpid()))
	}
	return env
}

// cleanEnv is the environment without what a launcher says.
func cleanEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case envRelease, envBase, envLauncher:
		default:
			env = append(env, e)
		}
	}
	return env
}

// end is how a release on trial ended. A final one is not started again.
type end struct {
	code  int
	why   string
	final bool
}

// try runs a release on trial until it ends, its time is over, or ctx ends.
func (l *launcher) try(ctx context.Context, t *trial) end {
	_ = os.Remove(l.store.path(crashFile))
	// It must not outlive us, for the next launcher would start another. The kernel means the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	process, err := os.StartProcess(l.store.program(t.SHA256), l.cfg.Args, &os.ProcAttr{
		Env: l.environ(t.SHA256, true), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return end{code: 1, why: one(fmt.Sprintf("it can't be executed: %v", err)), final: true}
	}
	l.cfg.Log.Info().Str("version", t.Version).Str("release", t.SHA256).Int("attempt", t.Starts).Msg("release is on trial")
	ended := make(chan *os.ProcessState, 1)
	go func() {
		how, _ := process.Wait() // it fails for what is no child of ours
		ended <- how
	}()
	over := time.NewTimer(time.Duration(t.Seconds) * time.Second)
	defer over.Stop()
	stopping := ctx.Done()
	kill := time.NewTimer(time.Hour)
	kill.Stop()
	defer kill.Stop()
	late := false
	stop := func() {
		_ = process.Signal(syscall.SIGTERM) // it may have ended
		kill.Reset(l.cfg.patience)
	}
	for {
		select {
		case how := <-ended:
			if late {
				return end{code: 1, why: l.lateness(t), final: true}
			}
			if how == nil {
				return end{code: 1, why: "nobody knows how it ended"}
			}
			return end{code: max(how.ExitCode(), 0), why: l.lastWords(how)}
		case <-over.C:
			if st, err := l.store.read(); err == nil && (st.Trial == nil || st.Trial.SHA256 != t.SHA256) {
				continue // it is well
			}
			late = true
			stop()
		case <-stopping:
			stopping = nil
			stop()
		case <-kill.C:
			_ = process.Kill()
		}
	}
}

// lateness is why a release was not well in time, by its own words.
func (l *launcher) lateness(t *trial) string {
	why := fmt.Sprintf("it was not well within %v", time.Duration(t.Seconds)*time.Second)
	if st, err := l.store.read(); err == nil && st.Trial != nil && st.Trial.Note != "" {
		return one(why + ": " + st.Trial.Note)
	}
	return why + ": it said nothing"
}

// lastWords is why a release ended.
func (l *launcher) lastWords(how *os.ProcessState) string {
	why := "it ended by itself"
	if !how.Success() {
		why += ": " + how.String()
	}
	if b, readErr := os.ReadFile(l.store.path(crashFile)); readErr == nil && len(b) > 0 {
		first, _, _ := strings.Cut(string(b), "\n\n")
		return one(why + ": " + first)
	}
	if st, readErr := l.store.read(); readErr == nil && st.Trial != nil && st.Trial.Note != "" {
		return one(why + ": " + st.Trial.Note)
	}
	return one(why)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Relaunch makes this process the base again, which then runs what is to run. It returns where a launcher waits for this process, or where
// that fails: whoever started the process is to start it again.
func Relaunch(args []string) error {
	if waiting() {
		return nil
	}
	base := os.Getenv(envBase)
	if base == "" {
		var err error
		if base, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	return fmt.Errorf("start %s: %w", base, syscall.Exec(base, args, cleanEnv()))
}

// waiting reports whether a launcher waits for this process.
func waiting() bool {
	pid, err := strconv.Atoi(os.Getenv(envLauncher))
	return err == nil && pid == os.Getppid()
}

// onTrial is the release that this process is, if it is on trial.
func onTrial(s store) (state, bool) {
	sha := os.Getenv(envRelease)
	if sha == "" || !waiting() {
		return state{}, false
	}
	st, err := s.read()
	return st, err == nil && st.Trial != nil && st.Trial.SHA256 == sha
}

// Say keeps why this process ends, where it is on trial.
func Say(data string, cause error) {
	s := open(data)
	st, trying := onTrial(s)
	if !trying || cause == nil {
		return
	}
	st.Trial.Note = one(cause.Error())
	_ = s.write(st) // the launcher knows the rest
}

// baseProgram is the installed binary.
func baseProgram() (string, error) {
	if base := os.Getenv(envBase); base != "" {
		return base, nil
	}
	return os.Executable()
}

// putProgram puts a release in place once it is whole: part becomes it.
func (s store) putProgram(part, sha256 string) error {
	path := s.program(sha256)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	if err := host.SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return host.SyncDir(s.dir)
}
