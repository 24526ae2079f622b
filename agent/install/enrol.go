package install

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/agent/host"
	"shoal/desired"
	"shoal/subjects"
)

// ErrJoined refuses to join a host that has joined.
var ErrJoined = errors.New("this host has joined already")

// JoinConfig is what a host asks to be admitted with.
type JoinConfig struct {
	// Data is the agent's directory.
	Data string
	// Token is a join token's text.
	Token string
	// Name is the name that the host wants; "" stands for the one that was asked for before, or the host name.
	Name string
	// Cluster is the name or id of the cluster that the host insists on; a token for another is refused then.
	Cluster string
	Version string
	// Force has a host that has joined do so again. Until it is admitted, it stays who it is.
	Force bool
	// NoWait returns when an administrator must approve. An agent that is started then goes on asking.
	NoWait bool
	// Pending is called whenever the controller says that an administrator must approve.
	Pending func(Pending)
	Log     zerolog.Logger

	// crash, in tests, ends the process's life before a step.
	crash func(step string) error
}

// Pending is an admission that an administrator must approve.
type Pending struct {
	// Name is what was asked for, Fingerprint that of the host's key, which the administrator sees, too.
	Name, Fingerprint string
	// Again is when the controller is asked again.
	Again time.Duration
}

// Joined is what became of a request.
type Joined struct {
	State desired.EnrolState
	// Host and Name are those that the controller gave, once admitted.
	Host, Name  string
	Fingerprint string
	Servers     []string
	Expires     time.Time
	// Replaced is where the identity is that the host had before, "" if it had none.
	Replaced string
}

// Join has this host admitted. The error is a *RefusalError or a *PinError where the controller, or who answered in its place, is the
// reason; the token is forgotten then, unless the refusal passes. After any other error it stays for the agent, which goes on.
func Join(ctx context.Context, cfg JoinConfig) (Joined, error) {
	tok, err := desired.ParseJoinToken(cfg.Token)
	if err != nil {
		return Joined{}, err
	}
	if cfg.Name != "" && !subjects.ValidToken(cfg.Name) {
		return Joined{}, fmt.Errorf("name: %q is not 1 to 64 letters, digits, _ and -", cfg.Name)
	}
	if err := MakeData(cfg.Data); err != nil {
		return Joined{}, err
	}
	lock, err := lockSoon(ctx, cfg.Data)
	if err != nil {
		return Joined{}, err
	}
	defer lock.Close()
	if cfg.crash == nil {
		cfg.crash = never
	}
	a, err := begin(cfg)
	if err != nil {
		return Joined{}, err
	}
	defer a.key.Wipe()
	waiting := false
	for {
		reply, err := a.ask(ctx, tok)
		again := askAgain(0)
		switch {
		case err == nil && reply.State == desired.EnrolApproved:
			return a.admitted(reply.Credentials, tok)
		case err == nil:
			waiting = true
			again = askAgain(reply.RetrySeconds)
			p := Pending{Name: a.name, Fingerprint: desired.Fingerprint(a.public), Again: again}
			if cfg.Pending != nil {
				cfg.Pending(p)
			}
			if cfg.NoWait {
				return Joined{State: desired.EnrolPending, Name: p.Name, Fingerprint: p.Fingerprint, Servers: tok.URLs}, nil
			}
		default:
			if useless(err) {
				return Joined{}, errors.Join(err, a.forget())
			}
			// Whoever waits for an administrator waits for a controller that is started anew, too.
			if !waiting || ctx.Err() != nil {
				return Joined{}, err
			}
			cfg.Log.Warn().Err(err).Msg("controller not asked")
		}
		if !sleep(ctx, again) {
			return Joined{}, fmt.Errorf("wait for an administrator: %w", ctx.Err())
		}
	}
}

// useless reports whether the token can't be of use any more: it was refused, or each server is another than the one that it is for.
func useless(err error) bool {
	if r, ok := errors.AsType[*RefusalError](err); ok {
		return r.Final()
	}
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		return !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !useless(err) })
	}
	pin, ok := errors.AsType[*PinError](err)
	return ok && pin.Err == nil
}

// lockSoon takes the lock; an agent that only looks has it for a moment.
func lockSoon(ctx context.Context, data string) (*os.File, error) {
	for tries := 0; ; tries++ {
		lock, err := Lock(data)
		if !errors.Is(err, ErrLocked) || tries == 20 {
			return lock, err
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// askAgain is when to ask again after the controller said how many seconds to wait.
func askAgain(seconds int) time.Duration {
	if seconds <= 0 {
		seconds = 10
	}
	return jitter(time.Duration(min(seconds, 3600)) * time.Second)
}

// sleep reports whether the context still holds afterwards.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// admission is a request to be let in, whose token and key are on the disk.
type admission struct {
	cfg    JoinConfig
	dir    string
	anew   bool // there is an identity, which dir is going to replace
	name   string
	key    nkeys.KeyPair
	public string
	seed   []byte
}

// begin puts everything that a repetition needs on the disk.
func begin(cfg JoinConfig) (*admission, error) {
	if err := settle(cfg.Data, cfg.crash); err != nil {
		return nil, err
	}
	a := &admission{cfg: cfg, dir: filepath.Join(cfg.Data, identityDir)}
	if _, err := os.Lstat(filepath.Join(a.dir, credsFile)); err == nil {
		if !cfg.Force {
			return nil, ErrJoined
		}
		a.anew, a.dir = true, filepath.Join(cfg.Data, joiningDir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for an identity: %w", err)
	}
	if err := makePrivate(a.dir, cfg.crash); err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	if err := a.prepare(); err != nil {
		return nil, fmt.Errorf("prepare to join: %w", err)
	}
	return a, nil
}

// makePrivate makes a directory for secrets, or makes one that is there private, without what a crash left behind in it.
func makePrivate(dir string, crash func(string) error) error {
	if err := crash("directory"); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	if err := host.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// host.WriteFile writes beside, under such a name.
		if strings.HasPrefix(e.Name(), ".") && e.Type().IsRegular() {
			if err := shred(filepath.Join(dir, e.Name()), never); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *admission) prepare() error {
	token := filepath.Join(a.dir, tokenFile)
	if err := os.Chmod(token, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := strings.TrimSpace(a.cfg.Token) + "\n"
	if old, err := readFile(token); err != nil || string(old) != text {
		if err := put(a.cfg.crash, "token", token, []byte(text)); err != nil {
			return err
		}
	}
	wanted := filepath.Join(a.dir, nameFile)
	if a.cfg.Name != "" {
		if err := put(a.cfg.crash, "name", wanted, []byte(a.cfg.Name+"\n")); err != nil {
			return err
		}
	}
	b, err := readFile(wanted)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if a.name = strings.TrimSpace(string(b)); a.name == "" {
		if a.name, err = os.Hostname(); err != nil {
			return err
		}
	}
	return a.takeKey()
}

// takeKey reads the host's key, or makes it, once and for all.
func (a *admission) takeKey() error {
	path := filepath.Join(a.dir, seedFile)
	seed, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := nkeys.CreateUser()
		if err != nil {
			return fmt.Errorf("make key: %w", err)
		}
		if seed, err = key.Seed(); err != nil {
			return fmt.Errorf("make key: %w", err)
		}
		if err := put(a.cfg.crash, "key", path, append(seed, '\n')); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if a.key, a.public, err = parseSeed(seed); err != nil {
		return fmt.Errorf("read %s: %w; move it away to have a new key made", path, err)
	}
	a.seed = []byte(strings.TrimSpace(string(seed)))
	return nil
}

// parseSeed reads a user's seed.
func parseSeed(b []byte) (nkeys.KeyPair, string, error) {
	key, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(b))))
	if err != nil {
		return nil, "", errors.New("it holds no key")
	}
	public, err := key.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return nil, "", errors.New("it does not hold a user's key")
	}
	return key, public, nil
}

// ask asks once.
func (a *admission) ask(ctx context.Context, tok desired.JoinToken) (desired.EnrolReply, error) {
	if err := a.cfg.crash("ask"); err != nil {
		return desired.EnrolReply{}, err
	}
	g := guest{
		name: "shoal-agent, to join", urls: tok.URLs,
		secure: func(server, name string) (*tls.Config, error) { return pinned(server, name, tok.Pin), nil },
	}
	b, err := g.ask(ctx, subjects.Guest(subjects.GuestEnrol), func(box string) ([]byte, error) {
		return json.Marshal(desired.EnrolRequest{
			Token: tok.ID, Secret: tok.Secret, PublicKey: a.public, Name: a.name, Cluster: a.cfg.Cluster, Version: a.cfg.Version, Machine: Facts(), Box: box,
		})
	})
	if err != nil {
		return desired.EnrolReply{}, fmt.Errorf("ask to be let in: %w", err)
	}
	reply, err := readEnrolReply(b, a.public)
	if err != nil {
		return desired.EnrolReply{}, fmt.Errorf("ask to be let in: %w", err)
	}
	return reply, nil
}

// readEnrolReply reads an answer; credentials in it are for this key.
func readEnrolReply(b []byte, public string) (desired.EnrolReply, error) {
	var r desired.EnrolReply
	if err := json.Unmarshal(b, &r); err != nil {
		return desired.EnrolReply{}, errors.New("the controller's answer can't be read; are its version and the agent's far apart?")
	}
	switch r.State {
	case desired.EnrolPending:
		return r, nil
	case desired.EnrolApproved:
		if r.Credentials == nil {
			return desired.EnrolReply{}, errors.New("the controller's answer lets the host in and holds no credentials")
		}
		return r, checkCredentials(*r.Credentials, public)
	default:
		return desired.EnrolReply{}, fmt.Errorf("the controller's answer is %q, which this agent does not know: install a newer agent", r.State)
	}
}

// admitted makes the credentials durable, then forgets the token, then replaces who the host was.
func (a *admission) admitted(c *desired.Credentials, tok desired.JoinToken) (Joined, error) {
	if len(c.URLs) == 0 {
		c.URLs = tok.URLs
	}
	i := &Identity{
		creds: filepath.Join(a.dir, credsFile), ca: []string{filepath.Join(a.dir, caFile)}, about: filepath.Join(a.dir, hostFile), crash: a.cfg.crash,
	}
	if err := i.write(*c, a.seed); err != nil {
		return Joined{}, fmt.Errorf("keep credentials: %w", err)
	}
	if err := a.forget(); err != nil {
		return Joined{}, err
	}
	j := Joined{
		State: desired.EnrolApproved, Host: c.Host, Name: c.Name, Fingerprint: desired.Fingerprint(a.public), Servers: c.URLs, Expires: c.Expires,
	}
	if a.anew {
		var err error
		if j.Replaced, err = replace(a.cfg.Data, a.cfg.crash); err != nil {
			return Joined{}, err
		}
	}
	return j, nil
}

// forget destroys the token.
func (a *admission) forget() error {
	if err := shred(filepath.Join(a.dir, tokenFile), a.cfg.crash); err != nil {
		return fmt.Errorf("forget the join token: %w", err)
	}
	if err := a.cfg.crash("forget name"); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(a.dir, nameFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the name: %w", err)
	}
	return nil
}

// shred overwrites a file with noise and removes it. A file that is not there is no error.
func shred(path string, crash func(string) error) error {
	if err := crash("overwrite"); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && info.Size() <= maxFile {
		noise := make([]byte, info.Size())
		_, _ = rand.Read(noise) // it never returns an error
		_, err = f.Write(noise)
		err = errors.Join(err, f.Sync())
	}
	if err := errors.Join(err, f.Close(), crash("unlink")); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return host.SyncDir(filepath.Dir(path))
}

// replace puts the identity that is complete in the place of the one before, which stays beside. Cut between, settle ends it.
func replace(data string, crash func(string) error) (old string, err error) {
	current, next := filepath.Join(data, identityDir), filepath.Join(data, joiningDir)
	if err := crash("set aside"); err != nil {
		return "", err
	}
	if _, err := os.Lstat(current); err == nil {
		old = filepath.Join(data, replacedDir+time.Now().UTC().Format("20060102T150405.000000000Z"))
		if err := os.Rename(current, old); err != nil {
			return "", fmt.Errorf("set the old identity aside: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("set the old identity aside: %w", err)
	}
	if err := crash("put in place"); err != nil {
		return "", err
	}
	if err := os.Rename(next, current); err != nil {
		return "", fmt.Errorf("put the new identity in place: %w", err)
	}
	if err := host.SyncDir(data); err != nil {
		return "", fmt.Errorf("put the new identity in place: %w", err)
	}
	return old, nil
}

// settle ends what a loss of power cut: an identity that is complete and not in its place is put there, and what is in force
// has no token. It wants the lock.
func settle(data string, crash func(string) error) error {
	next := filepath.Join(data, joiningDir)
	if _, err := os.Lstat(filepath.Join(next, credsFile)); err == nil {
		if err := (&admission{cfg: JoinConfig{crash: crash}, dir: next}).forget(); err != nil {
			return err
		}
		if _, err := replace(data, crash); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for an identity: %w", err)
	}
	current := filepath.Join(data, identityDir)
	if _, err := os.Lstat(filepath.Join(current, credsFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for an identity: %w", err)
	}
	return (&admission{cfg: JoinConfig{crash: crash}, dir: current}).forget()
}
