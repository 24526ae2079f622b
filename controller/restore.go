package controller

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"shoal/controller/backup"
	"shoal/controller/identity"
	"shoal/controller/journal"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/controller/store"
	"shoal/subjects"
)

// Leaps of the journal's sequences. A document's generation is a sequence, and agents refuse older ones: what a restored
// controller tells hosts must be newer than all that they were told since the backup.
const (
	// DefaultAdvance is by how much a restored journal goes on further at least, and advanceRate by how much more for each second of the
	// backup's age: more messages than were written since, also by a controller that another restore has left in between.
	DefaultAdvance = 1_000_000
	advanceRate    = 20
	// MaxAdvance bounds it: the server keeps note of every sequence in the gap.
	MaxAdvance = 50_000_000
	// rebuiltFirst is the first sequence of a journal that begins anew under hosts that have been told something.
	rebuiltFirst = 1_000_000_000
)

// RestoreConfig says what to restore, and where to.
type RestoreConfig struct {
	// From is the backup's file, or "sftp://user@host/directory/file".
	From string
	SFTP backup.SFTPConfig
	Seal backup.SealConfig
	// Data is the directory of the controller that will run; it must be missing or empty. Identity is where the keys go, "" for
	// <Data>/identity; keys that are there already must be the backup's.
	Data, Identity string
	// NATSURL is an external NATS that gets the streams, and must have none of them. It must know the backup's accounts: see KeysOnly.
	NATSURL  string
	Replicas int
	// CA is a file with further certificates (PEM) that those of NATSURL may be signed by, beside the installation's own authority.
	CA string
	// KeysOnly restores nothing but the keys.
	KeysOnly bool
	// Advance is by how much the journal's sequences go on further; 0 for what is enough for a backup of that age.
	Advance uint64
	Log     zerolog.Logger
}

// Restored is what a restore has brought about.
type Restored struct {
	Manifest backup.Manifest
	Contents backup.Contents
	// Held is how many hosts are held until it is known what they have.
	Held int
}

// fetchBackup opens a backup's file, wherever it lies.
func fetchBackup(ctx context.Context, from string, cfg backup.SFTPConfig) (io.ReadCloser, error) {
	dir, name := filepath.Split(from)
	if strings.HasPrefix(from, "sftp://") {
		u, err := url.Parse(from)
		if err != nil {
			return nil, fmt.Errorf("backup: %q is not a file or sftp://user@host/directory/file", from)
		}
		name = path.Base(u.Path)
		u.Path = path.Dir(u.Path)
		dir = u.String()
	}
	if dir == "" {
		dir = "."
	}
	t, err := backup.NewTarget(dir, cfg)
	if err != nil {
		return nil, err
	}
	return t.Open(ctx, name)
}

// VerifyBackup checks a backup without a controller, in a scratch directory that it makes below dir and removes.
func VerifyBackup(ctx context.Context, cfg RestoreConfig, dir string) (Restored, error) {
	seal, err := backup.NewSeal(cfg.Seal)
	if err != nil {
		return Restored{}, err
	}
	f, err := fetchBackup(ctx, cfg.From, cfg.SFTP)
	if err != nil {
		return Restored{}, err
	}
	defer f.Close()
	tmp, err := os.MkdirTemp(dir, "shoal-verify-")
	if err != nil {
		return Restored{}, fmt.Errorf("make scratch directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	m, c, err := backup.Check(ctx, f, seal, tmp, func(ctx context.Context, dir string) (backup.Contents, error) { return checkState(ctx, dir, cfg.Log) })
	return Restored{Manifest: m, Contents: c}, err
}

// checkState restores an unpacked backup into a server of its own and rebuilds the state from its journal.
func checkState(ctx context.Context, dir string, log zerolog.Logger) (backup.Contents, error) {
	log = log.Level(zerolog.WarnLevel)
	id, err := identity.Open(filepath.Join(dir, backup.IdentityDir))
	if err != nil {
		return backup.Contents{}, err
	}
	s, err := site.Open(ctx, site.Config{
		Name: "verify", Identity: id, Dir: filepath.Join(dir, "check"), Restore: filepath.Join(dir, backup.StreamsDir), NoSync: true, Log: log,
	})
	if err != nil {
		return backup.Contents{}, err
	}
	defer s.Close()
	return contents(ctx, s, log)
}

// contents rebuilds the state from the journal alone, which finds whatever contradicts itself.
func contents(ctx context.Context, s *site.Site, log zerolog.Logger) (backup.Contents, error) {
	book, err := journal.Open(ctx, s.JetStream(), log)
	if err != nil {
		return backup.Contents{}, err
	}
	db, err := store.New(store.Config{Journal: book, Log: log})
	if err != nil {
		return backup.Contents{}, err
	}
	if err := db.Load(ctx); err != nil {
		return backup.Contents{}, err
	}
	view := db.View()
	c := backup.Contents{Seq: view.Seq(), Resources: map[resource.Kind]int{}}
	for _, k := range resource.Kinds() {
		for range view.All(k) {
			c.Resources[k]++
		}
	}
	return c, nil
}

// Restore makes a controller's directory from a backup. It is there whole or not at all. Every host is held: see resource.HostHold.
func Restore(ctx context.Context, cfg RestoreConfig) (Restored, error) {
	if cfg.Advance > MaxAdvance {
		return Restored{}, fmt.Errorf("advance: %d is more than %d", cfg.Advance, MaxAdvance)
	}
	seal, err := backup.NewSeal(cfg.Seal)
	if err != nil {
		return Restored{}, err
	}
	if err := mustBeEmpty(cfg.Data); err != nil {
		return Restored{}, err
	}
	f, err := fetchBackup(ctx, cfg.From, cfg.SFTP)
	if err != nil {
		return Restored{}, err
	}
	defer f.Close()
	plain, err := seal.Open(f)
	if err != nil {
		return Restored{}, err
	}
	w, err := newWork(cfg.Data)
	if err != nil {
		return Restored{}, err
	}
	defer w.remove()
	out := Restored{}
	if out.Manifest, err = backup.Extract(plain, w.dir); err != nil {
		return out, err
	}
	cfg.Log.Info().Str("version", out.Manifest.Version).Time("at", out.Manifest.Created).Uint64("seq", out.Manifest.Seq).Msg("backup unpacked; every member is as its manifest says")
	if err := w.placeKeys(cfg.Identity, out.Manifest); err != nil || cfg.KeysOnly {
		if err == nil {
			err = w.finish()
		}
		return out, err
	}
	streams := filepath.Join(w.dir, backup.StreamsDir)
	if cfg.Advance == 0 {
		age := max(time.Since(out.Manifest.Created), 0)
		cfg.Advance = min(DefaultAdvance+advanceRate*uint64(age/time.Second), MaxAdvance)
	}
	held, err := leap(streams, out.Manifest, cfg.Advance)
	if err != nil {
		return out, err
	}
	out.Held = held
	if out.Contents, err = w.open(ctx, cfg, streams); err != nil {
		return out, err
	}
	return out, w.finish()
}

// Rebuild makes a controller's directory for an installation that has lost its journal and every backup of it, with the keys
// that survived in identity (or new ones, where there is nothing). The journal begins above all that hosts were told; they are
// taken over one by one with shoalctl ahead adopt.
func Rebuild(ctx context.Context, cfg RestoreConfig) error {
	if err := mustBeEmpty(cfg.Data); err != nil {
		return err
	}
	w, err := newWork(cfg.Data)
	if err != nil {
		return err
	}
	defer w.remove()
	w.identity = cfg.Identity
	if w.identity == "" {
		w.identity = filepath.Join(w.data, "identity")
	}
	if _, err := identity.Open(w.identity); err != nil {
		return err
	}
	streams := filepath.Join(w.dir, backup.StreamsDir)
	data, err := journal.Group{Mark: &journal.Mark{From: rebuiltFirst}}.Encode()
	if err != nil {
		return err
	}
	c := journal.Config()
	if err := site.NewCopy(filepath.Join(streams, subjects.JournalStream), c, site.CopiedMessage{
		Subject: subjects.JournalMarkSubject, Seq: rebuiltFirst, At: time.Now().UTC(), Header: nats.Header{jetstream.MsgIDHeader: {rand.Text()}}, Data: data,
	}); err != nil {
		return err
	}
	if _, err := w.open(ctx, cfg, streams); err != nil {
		return err
	}
	return w.finish()
}

// mustBeEmpty refuses a directory that holds anything.
func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("data: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("data: %s is not empty (%s is there): restore into an empty directory; nothing is ever overwritten", dir, entries[0].Name())
	}
	return nil
}

// work is a directory in the making, beside the one that it becomes.
type work struct {
	final string
	// dir has what was unpacked, data what becomes the data directory.
	dir, data string
	// identity is where the keys are.
	identity string
}

func newWork(final string) (*work, error) {
	final = filepath.Clean(final)
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(final), "."+filepath.Base(final)+"-restoring-")
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	w := &work{final: final, dir: dir, data: filepath.Join(dir, "data")}
	return w, os.Mkdir(w.data, 0o700)
}

func (w *work) remove() { _ = os.RemoveAll(w.dir) }

// placeKeys brings the keys to where the controller will look for them.
func (w *work) placeKeys(to string, m backup.Manifest) error {
	from := filepath.Join(w.dir, backup.IdentityDir)
	id, err := identity.Open(from)
	if err != nil {
		return fmt.Errorf("keys of the backup: %w", err)
	}
	if id.Installation() != m.Installation {
		return fmt.Errorf("keys of the backup: they are of installation %s, the manifest says %s", id.Installation(), m.Installation)
	}
	if to == "" {
		w.identity = filepath.Join(w.data, "identity")
		return os.Rename(from, w.identity)
	}
	w.identity = filepath.Clean(to)
	entries, err := os.ReadDir(w.identity)
	switch {
	case err == nil && len(entries) > 0:
		there, err := identity.Open(w.identity)
		if err != nil {
			return err
		}
		if there.Installation() != m.Installation {
			return fmt.Errorf("identity: %s holds the keys of another installation (%s), the backup is of %s", w.identity, there.Installation(), m.Installation)
		}
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("identity: %w", err)
	}
	// Beside its place first, and then in one step: it may be on another file system than the data.
	parent := filepath.Dir(w.identity)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	tmp, err := os.MkdirTemp(parent, ".identity-")
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.CopyFS(tmp, os.DirFS(from)); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if err := tighten(tmp); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if err := unix.Rename(tmp, w.identity); err != nil {
		return fmt.Errorf("identity: %w", &os.LinkError{Op: "rename", Old: tmp, New: w.identity, Err: err})
	}
	return syncTree(w.identity)
}

// tighten takes from a tree what others may do with it.
func tighten(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return os.Chmod(p, 0o600)
	})
}

// open restores the streams into the data directory's server, or the external one, and rebuilds the state from them.
func (w *work) open(ctx context.Context, cfg RestoreConfig, streams string) (backup.Contents, error) {
	id, err := identity.Open(w.identity)
	if err != nil {
		return backup.Contents{}, err
	}
	roots, err := restoreRoots(id, cfg.CA)
	if err != nil {
		return backup.Contents{}, err
	}
	s, err := site.Open(ctx, site.Config{
		Name: "restore", Identity: id, URL: cfg.NATSURL, Roots: func() *x509.CertPool { return roots }, Replicas: cfg.Replicas,
		Dir: filepath.Join(w.data, "nats"), Restore: streams, NoSync: true, Log: cfg.Log,
	})
	if err != nil {
		return backup.Contents{}, err
	}
	defer s.Close()
	return contents(ctx, s, cfg.Log)
}

// restoreRoots are the certificates to trust at an external NATS.
func restoreRoots(id *identity.Identity, more string) (*x509.CertPool, error) {
	ca, err := id.CA()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.Bundle()))
	if more != "" {
		b, err := os.ReadFile(more)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca: %s holds no certificate", more)
		}
	}
	return roots, nil
}

// finish puts the data directory into place, once it is on the disk.
func (w *work) finish() error {
	if err := syncTree(w.data); err != nil {
		return fmt.Errorf("sync %s: %w", w.data, err)
	}
	// Unlike os.Rename this replaces an empty directory, and fails on one that has been filled meanwhile.
	if err := unix.Rename(w.data, w.final); err != nil {
		return fmt.Errorf("data: %w", &os.LinkError{Op: "rename", Old: w.data, New: w.final, Err: err})
	}
	return syncPath(filepath.Dir(w.final))
}

// syncTree waits until a tree is on the disk.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(p)
	})
}

func syncPath(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// leapHosts is how many hosts one message of a leap holds.
const leapHosts = 200

// heldHost is the change that holds a host.
func heldHost(id string, raw json.RawMessage, hold resource.HostHold, stamp resource.Meta) (journal.Change, error) {
	r, err := resource.Decode(resource.KindHost, raw)
	if err != nil {
		return journal.Change{}, err
	}
	h, ok := r.(*resource.Host)
	if !ok {
		return journal.Change{}, fmt.Errorf("it is a %s", r.Kind())
	}
	if h.Hold != nil {
		hold = *h.Hold // from an earlier restore that it has not been decided about: it may be ahead of that
	}
	h = plan.Hold(h, hold)
	h.Rev, h.Cause, h.Updated = stamp.Rev, stamp.Cause, stamp.Updated
	b, err := json.Marshal(h)
	return journal.Change{Kind: resource.KindHost, ID: id, Value: b}, err
}

// leap adds to a copied journal the messages that say that it was restored: they hold every host, and their sequences are so much
// higher that what follows is newer than anything that hosts were told. It gives how many hosts are held.
func leap(streams string, m backup.Manifest, advance uint64) (int, error) {
	dir := filepath.Join(streams, subjects.JournalStream)
	var last journal.Position
	hosts := map[string]json.RawMessage{}
	look := func(c site.CopiedMessage) error {
		g, err := journal.Decode(c.Data)
		if err != nil {
			return fmt.Errorf("message %d: %w", c.Seq, err)
		}
		last = journal.Position{Seq: c.Seq, ID: c.Header.Get(jetstream.MsgIDHeader)}
		for _, e := range g.Entries {
			for _, ch := range e.Changes {
				switch {
				case ch.Kind != resource.KindHost:
				case ch.Value == nil:
					delete(hosts, ch.ID)
				default:
					hosts[ch.ID] = ch.Value
				}
			}
		}
		return nil
	}
	more := func() ([]site.CopiedMessage, error) {
		now := time.Now().UTC().Round(0)
		params, err := json.Marshal(map[string]any{"created": m.Created, "controller": m.Controller, "version": m.Version, "seq": last.Seq})
		if err != nil {
			return nil, err
		}
		req := resource.Request{ID: rand.Text(), Caller: resource.CallerController, Op: "site.restore", Params: params}
		hold := resource.HostHold{Since: now, Seq: last.Seq, Why: "the backup of " + m.Created.UTC().Format("2006-01-02 15:04:05") + " UTC was restored"}
		var out []site.CopiedMessage
		ids := slices.Sorted(maps.Keys(hosts))
		for n := 0; n == 0 || len(ids) > 0; n++ {
			part := ids[:min(len(ids), leapHosts)]
			ids = ids[len(part):]
			seq := last.Seq + advance + uint64(n)
			e := journal.Entry{Request: req, At: now}
			for _, id := range part {
				c, err := heldHost(id, hosts[id], hold, resource.Meta{Rev: seq, Cause: req.ID, Updated: now})
				if err != nil {
					return nil, fmt.Errorf("host %s: %w", id, err)
				}
				e.Changes = append(e.Changes, c)
			}
			g := journal.Group{Entries: []journal.Entry{e}}
			if n == 0 && last.Seq > 0 {
				g.After = &last
			}
			data, err := g.Encode()
			if err != nil {
				return nil, err
			}
			out = append(out, site.CopiedMessage{
				Subject: subjects.JournalSubject, Seq: seq, At: now, Header: nats.Header{jetstream.MsgIDHeader: {rand.Text()}}, Data: data,
			})
		}
		return out, nil
	}
	to := dir + ".leap"
	if err := site.Extend(dir, to, look, more); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return 0, err
	}
	return len(hosts), os.Rename(to, dir)
}
