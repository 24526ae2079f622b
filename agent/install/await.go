package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"github.com/rs/zerolog"

	"shoal/desired"
)

// lookEvery is how often an agent that has no identity looks for one.
const lookEvery = 2 * time.Second

// Bounds of how long an agent waits before it asks again to be let in: after something that passes by itself, and after a refusal
// that somebody must do something about.
const (
	passingMin, passingMax = 2 * time.Second, 5 * time.Minute
	refusedMin, refusedMax = time.Minute, 10 * time.Minute
)

// AwaitConfig is what an agent waits with.
type AwaitConfig struct {
	Data string
	// Token is a file with a join token, which may come later, "" for none. Once the host has joined it is overwritten and
	// removed. TokenFile(Data) is looked at in any case.
	Token   string
	Version string
	Log     zerolog.Logger
}

// Await returns who the host is once it has joined, and the lock on that. Where there is a join token, it joins by itself,
// and tries for as long as it takes. It returns nil when ctx ends.
func Await(ctx context.Context, cfg AwaitConfig) (*Identity, io.Closer, error) {
	if err := MakeData(cfg.Data); err != nil {
		return nil, nil, err
	}
	w := &await{cfg: cfg, log: cfg.Log, ask: askOnce}
	for {
		i, lock, err := w.look(ctx)
		if err != nil || i != nil {
			return i, lock, err
		}
		if !sleep(ctx, lookEvery) {
			return nil, nil, nil
		}
	}
}

// await is an agent that has no identity.
type await struct {
	cfg AwaitConfig
	log zerolog.Logger
	// ask asks once, with a token that is there.
	ask func(ctx context.Context, cfg AwaitConfig, token string) (Pending, error)

	said     string    // the line that was logged last: each state is logged once
	tried    string    // the token that was asked with last
	failures int       // with it
	next     time.Time // not to ask before, with it
}

// look is one look at what is there. It has the lock meanwhile only, so that shoal-agent join gets its turn.
func (w *await) look(ctx context.Context) (*Identity, io.Closer, error) {
	lock, err := Lock(w.cfg.Data)
	if errors.Is(err, ErrLocked) {
		w.say("waiting for another process: shoal-agent join, or another agent with this data directory", err)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	i, err := w.lookLocked(ctx)
	if i == nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return i, lock, nil
}

func (w *await) lookLocked(ctx context.Context) (*Identity, error) {
	i, err := w.open()
	if err != nil || i != nil {
		return i, err
	}
	token := w.token()
	if token == "" {
		return nil, nil
	}
	if token != w.tried {
		w.tried, w.failures, w.next = token, 0, time.Time{}
	}
	if time.Now().Before(w.next) {
		return nil, nil
	}
	if !w.try(ctx, token) {
		return nil, nil
	}
	return w.open()
}

// try asks once, and reports whether this host was let in.
func (w *await) try(ctx context.Context, token string) bool {
	pending, err := w.ask(ctx, w.cfg, token)
	if err != nil {
		if ctx.Err() == nil {
			w.failed(err)
		}
		return false
	}
	if pending.Again == 0 {
		return true
	}
	w.failures, w.next = 0, time.Now().Add(pending.Again)
	if w.said != pending.Fingerprint {
		w.said = pending.Fingerprint
		w.log.Info().Str("name", pending.Name).Str("fingerprint", pending.Fingerprint).
			Msg("an administrator must let this host in: see shoalctl host pending")
	}
	return false
}

// open opens the identity, if there is one, and destroys the token that it came by.
func (w *await) open() (*Identity, error) {
	if err := settle(w.cfg.Data, never); err != nil {
		return nil, err
	}
	i, err := Open(w.cfg.Data)
	if errors.Is(err, ErrNotJoined) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if w.cfg.Token != "" {
		if err := shred(w.cfg.Token, never); err != nil {
			w.log.Warn().Err(err).Msg("join token not removed: remove it by hand")
		}
	}
	return i, nil
}

// token is the text of the token that there is; without one it says what to do, and is "".
func (w *await) token() string {
	for _, path := range []string{w.cfg.Token, TokenFile(w.cfg.Data)} {
		if path == "" {
			continue
		}
		b, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			// Nobody else has to read it, whatever it was put there with; where it can't be changed, it is not ours to.
			_ = os.Chmod(path, 0o600)
			_, err = desired.ParseJoinToken(string(b))
		}
		if err != nil {
			w.say("join token not readable", fmt.Errorf("%s: %w", path, err))
			return ""
		}
		return string(b)
	}
	w.say("this host has not joined: run shoal-agent join TOKEN on it, with a token from shoalctl host token create", nil)
	return ""
}

// askOnce asks once. A pending answer has a time; without one the host was let in.
func askOnce(ctx context.Context, cfg AwaitConfig, token string) (Pending, error) {
	tok, err := desired.ParseJoinToken(token)
	if err != nil {
		return Pending{}, err
	}
	a, err := begin(JoinConfig{Data: cfg.Data, Token: token, Version: cfg.Version, crash: never})
	if err != nil {
		return Pending{}, err
	}
	defer a.key.Wipe()
	reply, err := a.ask(ctx, tok)
	if err != nil {
		return Pending{}, err
	}
	if reply.State == desired.EnrolPending {
		return Pending{Name: a.name, Fingerprint: desired.Fingerprint(a.public), Again: askAgain(reply.RetrySeconds)}, nil
	}
	j, err := a.admitted(reply.Credentials, tok)
	if err != nil {
		return Pending{}, err
	}
	cfg.Log.Info().Str("host", j.Host).Str("name", j.Name).Str("fingerprint", j.Fingerprint).Msg("this host has joined")
	return Pending{}, nil
}

// failed decides when to ask again. Each attempt is worth a line: they get rare soon.
func (w *await) failed(err error) {
	low, high := passingMin, passingMax
	if r, ok := errors.AsType[*RefusalError](err); ok && r.Final() {
		low, high = refusedMin, refusedMax
	}
	again := backoff(low, high, w.failures)
	w.failures++
	w.next = time.Now().Add(again)
	w.said = ""
	w.log.Error().Err(err).Dur("again", again.Round(time.Second)).Msg("not joined yet")
}

// say logs a state when it begins.
func (w *await) say(msg string, err error) {
	said := msg
	if err != nil {
		said += err.Error()
	}
	if w.said != said {
		w.said = said
		w.log.Warn().Err(err).Msg(msg)
	}
}

// backoff doubles from low to high, and varies so that a fleet does not act in step.
func backoff(low, high time.Duration, failures int) time.Duration {
	d := low
	for range failures {
		if d *= 2; d >= high {
			d = high
			break
		}
	}
	return jitter(d)
}

// jitter varies a time by a quarter each way.
func jitter(d time.Duration) time.Duration { return d - d/4 + rand.N(d/2+1) }
