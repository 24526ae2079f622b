package backup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/subjects"
)

// Store is what the service needs of the store: calls of people are tasks in it.
type Store interface {
	View() resource.Reader
	Commit(ctx context.Context, req resource.Request, fn func(tx resource.Tx) error) (uint64, error)
}

// The operations that make tasks for the service.
const (
	OpCreate = "backup.create"
	OpVerify = "backup.verify"
)

// Contents is what a check has found in a backup.
type Contents struct {
	Seq       uint64                `json:"seq"`
	Resources map[resource.Kind]int `json:"resources"`
}

// Config is what a service is made of.
type Config struct {
	// Target is where backups are kept; nil where none are made.
	Target Target
	Seal   *Seal
	// Every is how often a backup is made; 0 for only when it is asked for. Keep is how many stay; 0 for all.
	Every time.Duration
	Keep  int
	// Installation is the operator's public key.
	Installation, Controller, Version string
	// Identity is the directory of the keys, Scratch one in which the service may put copies for a while.
	Identity, Scratch string
	// Snapshot copies the precious streams into directories below dir.
	Snapshot func(ctx context.Context, dir string) ([]Stream, error)
	// Check rebuilds the state of a backup that is unpacked in dir, without leaving a trace.
	Check func(ctx context.Context, dir string) (Contents, error)
	// Absent lists what belongs to the installation and is not backed up.
	Absent func() []Absent
	Store  Store
	// Asked says that there may be a task; it is looked for once at the start, too.
	Asked <-chan struct{}
	Log   zerolog.Logger
	Now   func() time.Time
}

// Info is a backup as people see it.
type Info struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	// Created is when it was begun, Seq the journal's last sequence in it.
	Created   time.Time `json:"created"`
	Seq       uint64    `json:"seq,omitempty"`
	Bytes     int64     `json:"bytes,omitempty"`
	Encrypted bool      `json:"encrypted"`
	Target    string    `json:"target"`
	// Verified is when it was last restored as a test, by the controller that leads now.
	Verified time.Time `json:"verified,omitzero"`
	Contents *Contents `json:"contents,omitempty"`
	Error    string    `json:"error,omitempty"`
	// Restore is the command that restores it on an empty machine.
	Restore string `json:"restore,omitempty"`
}

// The states of a backup.
const (
	StateMaking = "making"
	StateDone   = "done"
	StateFailed = "failed"
)

// Service makes backups, on a timer and when it is asked to. It works while its controller leads.
type Service struct {
	cfg Config

	mu       sync.Mutex
	files    []Info
	listed   time.Time
	listErr  error
	making   *Info
	failed   *Info
	verified map[string]Info
}

// New makes a service.
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Target != nil && !cfg.Seal.Writes() {
		return nil, errors.New("backups hold all private keys: say how to encrypt them with --backup-recipient or --backup-passphrase-file, " +
			"or that they are not to be with --backup-unencrypted")
	}
	if cfg.Target != nil && !cfg.Seal.Encrypts() {
		cfg.Log.Warn().Str("target", cfg.Target.String()).Msg("backups are not encrypted: who reads one has every private key of this installation")
	}
	return &Service{cfg: cfg, verified: map[string]Info{}}, nil
}

// errNoTarget says that there is nowhere to put backups.
func errNoTarget() error {
	return &resource.Error{
		Code: resource.CodeConflict, Message: "this installation has no place for backups",
		Remedy: "start its controllers with --backup-to DIRECTORY or --backup-to sftp://user@host/directory",
	}
}

const (
	// lookEvery is how often it is looked whether the timer is due, listEvery how often the target is listed.
	lookEvery = time.Second
	listEvery = time.Minute
	// listTimeout bounds a look into the target; retryMin and retryMax the wait after a backup of the timer that failed.
	listTimeout = 30 * time.Second
	retryMin    = time.Minute
	retryMax    = time.Hour
	// partialAge is how old a file must be that was left behind half written.
	partialAge = 24 * time.Hour
)

// Run works until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := s.clean(); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("scratch directory of backups not emptied")
	}
	if s.cfg.Target != nil {
		s.list(ctx)
		if err := s.cfg.Target.Tidy(ctx, partialAge); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Msg("left-over parts of backups not removed")
		}
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	retry, notBefore := retryMin, time.Time{}
	s.tasks(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.cfg.Asked:
			s.tasks(ctx)
			continue
		case <-look.C:
		}
		if s.cfg.Target == nil {
			continue
		}
		s.mu.Lock()
		stale := s.cfg.Now().Sub(s.listed) >= listEvery
		s.mu.Unlock()
		if stale {
			s.list(ctx)
		}
		now := s.cfg.Now()
		if !s.due(now) || now.Before(notBefore) {
			continue
		}
		if err := s.create(ctx, ID(now)); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error().Err(err).Str("target", s.cfg.Target.String()).Dur("again", retry).Msg("backup failed")
			notBefore, retry = now.Add(retry), min(2*retry, retryMax)
			continue
		}
		retry, notBefore = retryMin, time.Time{}
	}
}

// due reports whether the timer's next backup is to be made: the newest that is there is too old. A target that can't be listed
// makes none due: nobody knows what is there.
func (s *Service) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Every <= 0 || s.listErr != nil || s.listed.IsZero() {
		return false
	}
	return len(s.files) == 0 || now.Sub(s.files[0].Created) >= s.cfg.Every
}

// clean removes what a controller that died has left in the scratch directory.
func (s *Service) clean() error {
	entries, err := os.ReadDir(s.cfg.Scratch)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(s.cfg.Scratch, e.Name())))
	}
	return errors.Join(errs...)
}

// scratch makes a directory for copies.
func (s *Service) scratch() (string, func(), error) {
	if err := os.MkdirAll(s.cfg.Scratch, 0o700); err != nil {
		return "", nil, fmt.Errorf("make scratch directory: %w", err)
	}
	dir, err := os.MkdirTemp(s.cfg.Scratch, "")
	if err != nil {
		return "", nil, fmt.Errorf("make scratch directory: %w", err)
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Log.Warn().Err(err).Msg("scratch directory not removed")
		}
	}, nil
}

// tasks does what people have asked for, one after the other.
func (s *Service) tasks(ctx context.Context) {
	var work []*resource.Task
	for t := range resource.All[*resource.Task](s.cfg.Store.View()) {
		if t.State == resource.TaskRunning && (t.Op == OpCreate || t.Op == OpVerify) {
			work = append(work, t)
		}
	}
	slices.SortFunc(work, func(a, b *resource.Task) int { return a.Created.Compare(b.Created) })
	for _, t := range work {
		var err error
		switch {
		case s.cfg.Target == nil:
			err = errNoTarget()
		case t.Op == OpCreate:
			err = s.create(ctx, t.ResourceID)
		default:
			_, err = s.Verify(ctx, t.ResourceID)
		}
		if ctx.Err() != nil {
			return // the next leader does it
		}
		if err != nil {
			s.cfg.Log.Error().Err(err).Str("op", t.Op).Str("id", t.ResourceID).Msg("task of backups failed")
		}
		if err := s.end(ctx, t.ID, err); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Msg("end of a task not recorded")
		}
	}
}

// end records how a task came out.
func (s *Service) end(ctx context.Context, id string, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var e *resource.Error
	if failure != nil && !errors.As(failure, &e) {
		e = &resource.Error{Code: resource.CodeInternal, Message: failure.Error(), Remedy: "see shoalctl backup list and the controller's log"}
	}
	_, err := s.cfg.Store.Commit(ctx, resource.Request{ID: uuid.NewString(), Caller: resource.CallerController, Op: "backup.done"},
		func(tx resource.Tx) error { return plan.EndTask(tx, id, e) })
	return err
}

// List is every backup of this installation in the target, newest first, and what is being made or has failed.
func (s *Service) List() ([]Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Target == nil {
		return nil, errNoTarget()
	}
	if s.listErr != nil && s.listed.IsZero() {
		return nil, &resource.Error{Code: resource.CodeInternal, Message: s.listErr.Error(), Remedy: "look at the target of backups, " + s.cfg.Target.String()}
	}
	var out []Info
	for _, x := range []*Info{s.making, s.failed} {
		if x != nil {
			out = append(out, *x)
		}
	}
	for _, f := range s.files {
		if v, ok := s.verified[f.ID]; ok {
			f.Verified, f.Contents, f.Error = v.Verified, v.Contents, v.Error
		}
		out = append(out, f)
	}
	return out, nil
}

// list looks into the target.
func (s *Service) list(ctx context.Context) {
	short, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	files, err := s.cfg.Target.List(short)
	var out []Info
	for _, f := range files {
		n, ok := parseName(f.Name)
		if !ok || n.installation != s.installation() {
			continue
		}
		out = append(out, s.info(n, f.Bytes))
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Or(b.Created.Compare(a.Created), strings.Compare(b.Name, a.Name)) })
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.listErr
	s.listErr = err
	if err != nil {
		if before == nil && ctx.Err() == nil {
			s.cfg.Log.Error().Err(err).Str("target", s.cfg.Target.String()).Msg("backups can't be listed")
		}
		return
	}
	s.files, s.listed = out, s.cfg.Now()
}

func (s *Service) installation() string {
	return s.cfg.Installation[:min(len(s.cfg.Installation), installationPart)]
}

func (s *Service) info(n name, bytes int64) Info {
	command := "shoal-controller restore --data /var/lib/shoal-controller "
	if n.encrypted {
		command += s.cfg.Seal.opener() + " "
	}
	if _, ok := s.cfg.Target.(*sftpTarget); ok {
		command += "--backup-sftp-key FILE --backup-sftp-known-hosts FILE "
	}
	return Info{
		ID: n.id(), Name: n.String(), State: StateDone, Created: n.at, Seq: n.seq, Bytes: bytes, Encrypted: n.encrypted, Target: s.cfg.Target.String(),
		Restore: command + strings.TrimSuffix(s.cfg.Target.String(), "/") + "/" + n.String(),
	}
}

// find is the backup with that id; "latest" is the newest.
func (s *Service) find(id string) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		if f.ID == id || f.Name == id || id == "latest" {
			return f, nil
		}
	}
	return Info{}, resource.NotFound(resource.KindBackup, id)
}

// create makes a backup and removes those that are too many.
func (s *Service) create(ctx context.Context, id string) error {
	at, err := time.Parse(idTime, id)
	if err != nil {
		return resource.Invalid("id", "%q is not the time of a backup", id)
	}
	s.list(ctx)
	if done, err := s.find(id); err == nil && done.ID == id {
		return nil // by a leader that died before it could say so
	}
	started := s.cfg.Now()
	s.mu.Lock()
	s.making = &Info{ID: id, State: StateMaking, Created: at, Encrypted: s.cfg.Seal.Encrypts(), Target: s.cfg.Target.String()}
	s.mu.Unlock()
	n, size, err := s.make(ctx, at)
	s.mu.Lock()
	if s.making, s.failed = nil, nil; err != nil {
		s.failed = &Info{
			ID: id, State: StateFailed, Created: at, Encrypted: s.cfg.Seal.Encrypts(), Target: s.cfg.Target.String(), Error: err.Error(),
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.cfg.Log.Info().Str("id", n.String()).Uint64("seq", n.seq).Int64("bytes", size).Bool("encrypted", n.encrypted).Str("target", s.cfg.Target.String()).
		Dur("took", s.cfg.Now().Sub(started)).Msg("backup made")
	if !n.encrypted {
		s.cfg.Log.Warn().Str("id", n.String()).Msg("this backup is not encrypted and holds every private key")
	}
	s.list(ctx)
	s.prune(ctx)
	return nil
}

// make writes a backup and reads it back.
func (s *Service) make(ctx context.Context, at time.Time) (n name, size int64, err error) {
	dir, remove, err := s.scratch()
	if err != nil {
		return n, 0, err
	}
	defer remove()
	streams, err := s.cfg.Snapshot(ctx, filepath.Join(dir, StreamsDir))
	if err != nil {
		return n, 0, err
	}
	// The keys after the journal: what it revokes is in them.
	files, keys, err := gather(dir, s.cfg.Identity)
	if err != nil {
		return n, 0, err
	}
	m := Manifest{
		Format: Format, Installation: s.cfg.Installation, Controller: s.cfg.Controller, Version: s.cfg.Version, Created: s.cfg.Now().UTC(), Streams: streams,
	}
	for _, st := range streams {
		if st.Name == subjects.JournalStream {
			m.Seq = st.Last
		}
	}
	if s.cfg.Absent != nil {
		m.Absent = s.cfg.Absent()
	}
	n = name{installation: s.installation(), at: at, seq: m.Seq, encrypted: s.cfg.Seal.Encrypts()}
	sum := sha256.New()
	err = s.cfg.Target.Write(ctx, n.String(), func(w io.Writer) error {
		count := &counter{}
		sealed, err := s.cfg.Seal.wrap(io.MultiWriter(&guarded{ctx: ctx.Err, w: w}, sum, count))
		if err != nil {
			return err
		}
		err = errors.Join(write(sealed, m, slices.Concat(files, keys)), sealed.Close())
		size = count.n
		return err
	})
	if err != nil {
		return n, 0, err
	}
	if err := s.readBack(ctx, n.String(), sum.Sum(nil)); err != nil {
		return n, 0, errors.Join(err, s.cfg.Target.Remove(context.WithoutCancel(ctx), n.String()))
	}
	return n, size, nil
}

// counter counts what is written.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// guarded ends with a context.
type guarded struct {
	ctx func() error
	w   io.Writer
}

func (g *guarded) Write(p []byte) (int, error) {
	if err := g.ctx(); err != nil {
		return 0, err
	}
	return g.w.Write(p)
}

// readBack compares what the target has with what it was given.
func (s *Service) readBack(ctx context.Context, file string, want []byte) error {
	r, err := s.cfg.Target.Open(ctx, file)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer r.Close()
	got := sha256.New()
	if _, err := io.Copy(got, r); err != nil {
		return fmt.Errorf("read back %s: %w", file, err)
	}
	if !slices.Equal(got.Sum(nil), want) {
		return fmt.Errorf("read back %s: the target has other bytes than were written", file)
	}
	return nil
}

// prune removes the oldest backups that are more than are to be kept. It is called after one was made and read back, so the
// newest that stay are good.
func (s *Service) prune(ctx context.Context) {
	s.mu.Lock()
	var old []Info
	if s.cfg.Keep > 0 && len(s.files) > s.cfg.Keep && s.listErr == nil {
		old = slices.Clone(s.files[s.cfg.Keep:])
	}
	s.mu.Unlock()
	for _, f := range old {
		if err := s.cfg.Target.Remove(ctx, f.Name); err != nil {
			s.cfg.Log.Warn().Err(err).Msg("old backup not removed")
			continue
		}
		s.cfg.Log.Info().Str("id", f.Name).Msg("old backup removed")
	}
	if len(old) > 0 {
		s.list(ctx)
	}
}

// Verify restores a backup into a scratch directory and tells what is in it.
func (s *Service) Verify(ctx context.Context, id string) (Contents, error) {
	if s.cfg.Target == nil {
		return Contents{}, errNoTarget()
	}
	s.list(ctx)
	f, err := s.find(id)
	if err != nil {
		return Contents{}, err
	}
	c, err := s.verify(ctx, f)
	v := Info{Verified: s.cfg.Now().UTC(), Contents: &c}
	if err != nil {
		v = Info{Error: err.Error()}
	}
	s.mu.Lock()
	s.verified[f.ID] = v
	s.mu.Unlock()
	if err == nil {
		s.cfg.Log.Info().Str("id", f.Name).Uint64("seq", c.Seq).Msg("backup verified")
	}
	return c, err
}

func (s *Service) verify(ctx context.Context, f Info) (Contents, error) {
	r, err := s.cfg.Target.Open(ctx, f.Name)
	if err != nil {
		return Contents{}, err
	}
	defer r.Close()
	dir, remove, err := s.scratch()
	if err != nil {
		return Contents{}, err
	}
	defer remove()
	_, c, err := Check(ctx, r, s.cfg.Seal, dir, s.cfg.Check)
	if errors.Is(err, ErrSealed) {
		return c, &resource.Error{
			Code: resource.CodeConflict, Message: "backup " + f.ID + " can't be opened here: " + err.Error(),
			Remedy: "where the key is: shoal-controller verify-backup --backup-key-file FILE " + strings.TrimSuffix(f.Target, "/") + "/" + f.Name,
		}
	}
	return c, err
}

// Check unpacks a backup into an empty directory, holds every byte against its manifest, and rebuilds the state from it.
func Check(ctx context.Context, r io.Reader, seal *Seal, dir string, check func(ctx context.Context, dir string) (Contents, error)) (Manifest, Contents, error) {
	plain, err := seal.Open(r)
	if err != nil {
		return Manifest{}, Contents{}, err
	}
	m, err := Extract(plain, dir)
	if err != nil {
		return m, Contents{}, err
	}
	c, err := check(ctx, dir)
	if err == nil && c.Seq != m.Seq {
		err = fmt.Errorf("the state is of message %d, the manifest says %d", c.Seq, m.Seq)
	}
	if err != nil {
		return m, c, fmt.Errorf("rebuild the state of the backup: %w", err)
	}
	return m, c, nil
}
