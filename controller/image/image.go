package image

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"shoal/controller/file"
	"shoal/controller/resource"
	"shoal/controller/store"
	"shoal/subjects"
)

// Store is what the service needs of the store.
type Store interface {
	View() resource.Reader
	Commit(ctx context.Context, req resource.Request, fn func(tx resource.Tx) error) (uint64, error)
	Changes(ctx context.Context, from uint64, fn func(store.Committed) error) error
}

// Config is what a service is made of. Zero limits get their defaults.
type Config struct {
	// Dir is where the files are: <id>, <id>.part, <id>.part.json.
	Dir string
	// Base is the address under which agents and other controllers reach Handler, "https://10.0.0.1:8480".
	Base string
	// Key signs URLs. All controllers of an installation have the same.
	Key   []byte
	Store Store
	Log   zerolog.Logger

	// MaxBytes is the largest image (4 TiB); KeepFree is what an image must leave free (1 GiB).
	MaxBytes, KeepFree int64
	// Parallel is how many downloads run at once (2).
	Parallel int
	// Attempts is how often a download may break off without getting any further (4), Backoff the wait after the first
	// time (1 s), Stall how long a server may be silent (60 s).
	Attempts       int
	Backoff, Stall time.Duration
	// Client is how images of the admin account are downloaded, Tenants those of the others; nil for what connects to every
	// server, and to what Sources allow.
	Client, Tenants *http.Client
	Sources         Sources
	// Peers is how other controllers are asked; nil for Client.
	Peers *http.Client
	Now   func() time.Time
}

// Service downloads and serves images.
type Service struct {
	cfg Config

	mu      sync.Mutex
	running map[string]*download
}

type download struct {
	progress progress
	cancel   context.CancelCauseFunc
}

// errGone ends the download of an image whose record has gone.
var errGone = errors.New("the image was deleted")

// errNowhere says that no other controller has an image.
var errNowhere = errors.New("no other controller has it")

// New makes a service, and its directory.
func New(cfg Config) (*Service, error) {
	def := func(n *int64, d int64) {
		if *n == 0 {
			*n = d
		}
	}
	def(&cfg.MaxBytes, 4<<40)
	def(&cfg.KeepFree, 1<<30)
	def((*int64)(&cfg.Backoff), int64(time.Second))
	def((*int64)(&cfg.Stall), int64(time.Minute))
	if cfg.Parallel == 0 {
		cfg.Parallel = 2
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 4
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Client == nil {
		cfg.Client = free()
	}
	if cfg.Tenants == nil {
		cfg.Tenants = cfg.Sources.guarded(http.ProxyFromEnvironment)
	}
	if cfg.Peers == nil {
		cfg.Peers = cfg.Client
	}
	if len(cfg.Key) < 16 {
		return nil, errors.New("key: must have at least 16 bytes")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create image directory: %w", err)
	}
	return &Service{cfg: cfg, running: map[string]*download{}}, nil
}

func (s *Service) path(id string) string { return filepath.Join(s.cfg.Dir, id) }

// Run downloads what is to be downloaded until ctx ends. It is called while the controller leads.
func (s *Service) Run(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, s.cfg.Parallel)
	start := func(r resource.Reader) {
		for img := range resource.All[*resource.Image](r) {
			if work := s.wanted(img); work != nil {
				s.launch(gctx, group, slots, img, work)
			}
		}
	}
	group.Go(func() error {
		for {
			r := s.cfg.Store.View()
			if err := s.collect(r); err != nil {
				s.cfg.Log.Warn().Err(err).Msg("orphan image files were not collected")
			}
			start(r)
			err := s.cfg.Store.Changes(gctx, r.Seq(), func(c store.Committed) error {
				touched, removed := false, false
				for _, e := range c.Entries {
					for _, ch := range e.Changes {
						if ch.Kind != resource.KindImage {
							continue
						}
						touched = true
						removed = removed || ch.New == nil
						if ch.New == nil {
							s.stop(ch.ID)
						}
					}
				}
				if touched {
					start(c.After)
				}
				if removed {
					return s.collect(c.After)
				}
				return nil
			})
			if gctx.Err() != nil {
				return nil //nolint:nilerr // it ends because it is to end
			}
			if !errors.Is(err, store.ErrGone) {
				return fmt.Errorf("follow images: %w", err)
			}
		}
	})
	err := group.Wait()
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it ends because it is to end
	}
	return err
}

// wanted is what is to be done about an image here: to add it, to get a copy of it, or nothing.
func (s *Service) wanted(img *resource.Image) func(ctx context.Context, img *resource.Image, p *progress) error {
	if img.Stage == resource.ImageAdding {
		return s.addImage
	}
	if slices.Contains(img.Servers, s.cfg.Base) && s.has(img) {
		return nil
	}
	return s.copyImage
}

// has reports whether the file of a ready image is here.
func (s *Service) has(img *resource.Image) bool {
	info, err := os.Stat(s.path(img.ID))
	return err == nil && info.Mode().IsRegular() && uint64(info.Size()) == img.Bytes
}

func (s *Service) launch(ctx context.Context, group *errgroup.Group, slots chan struct{}, img *resource.Image, work func(context.Context, *resource.Image, *progress) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[img.ID] != nil {
		return
	}
	dctx, cancel := context.WithCancelCause(ctx)
	d := &download{cancel: cancel}
	s.running[img.ID] = d
	group.Go(func() error {
		defer func() {
			cancel(nil)
			s.mu.Lock()
			delete(s.running, img.ID)
			s.mu.Unlock()
		}()
		select {
		case slots <- struct{}{}:
		case <-dctx.Done():
			return nil
		}
		defer func() { <-slots }()
		err := work(dctx, img, &d.progress)
		if errors.Is(context.Cause(dctx), errGone) {
			s.remove(img.ID)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func (s *Service) stop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.running[id]; d != nil {
		d.cancel(errGone)
	}
}

// Progress is how far an image's download is, in percent, if one runs.
func (s *Service) Progress(id string) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.running[id]
	if d == nil {
		return 0, false
	}
	return d.progress.percent(), true
}

// client is how an image is downloaded from where it was added from.
func (s *Service) client(img *resource.Image) *http.Client {
	if img.Owner == resource.AdminAccount {
		return s.cfg.Client
	}
	return s.cfg.Tenants
}

// addImage downloads a new image and commits what became of it.
func (s *Service) addImage(ctx context.Context, img *resource.Image, p *progress) error {
	log := s.cfg.Log.With().Str("kind", "image").Str("id", img.ID).Str("cause", img.Cause).Logger()
	started := s.cfg.Now()
	log.Info().Str("phase", "adding").Msg("image download starts")
	ready, err := s.get(ctx, s.client(img), img.ID, img.URL, p, func(n int64, digest string) error {
		if want := strings.TrimPrefix(img.Checksum, "sha256:"); want != "" && !strings.EqualFold(want, digest) {
			return resource.Invalid("checksum", "the content has the checksum sha256:%s, not %s", digest, img.Checksum).
				WithRemedy("check the address and the checksum, and add the image again")
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the controller stops leading, or the image has gone: nothing to say
	}
	if err != nil {
		s.remove(img.ID)
		log.Warn().Err(err).Str("phase", "failed").Dur("took", s.cfg.Now().Sub(started)).Msg("image download failed")
		return s.commitFailure(ctx, img.ID, err)
	}
	_, err = s.cfg.Store.Commit(ctx, request("image.ready"), func(tx resource.Tx) error {
		cur, ok := resource.Find[*resource.Image](tx, img.ID)
		if !ok || cur.Stage != resource.ImageAdding {
			return nil
		}
		c := resource.Copy(cur)
		c.Stage, c.SHA256, c.Bytes, c.VirtualBytes, c.Format = resource.ImageReady, ready.digest, uint64(ready.bytes), ready.VirtualBytes, ready.Format
		c.Servers = []string{s.cfg.Base}
		return tx.Put(c)
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it ends because it is to end
		}
		return fmt.Errorf("record image %s: %w", img.ID, err)
	}
	log.Info().Str("phase", "ready").Dur("took", s.cfg.Now().Sub(started)).Msg("image is ready")
	return nil
}

func request(op string) resource.Request {
	return resource.Request{ID: uuid.NewString(), Caller: resource.CallerController, Op: op}
}

// commitFailure takes the image out and tells its tasks why, in one transaction.
func (s *Service) commitFailure(ctx context.Context, id string, cause error) error {
	var why *resource.Error
	if !errors.As(cause, &why) {
		why = resource.Invalid("url", "%v", cause).WithRemedy("check that the controller reaches the address, and add the image again")
	}
	if why.Remedy == "" {
		why = why.WithRemedy("correct what the message says, and add the image again")
	}
	_, err := s.cfg.Store.Commit(ctx, request("image.failed"), func(tx resource.Tx) error {
		cur, ok := resource.Find[*resource.Image](tx, id)
		if !ok || cur.Stage != resource.ImageAdding {
			return nil
		}
		for t := range resource.All[*resource.Task](tx) {
			if t.ResourceID != id || t.State != resource.TaskRunning {
				continue
			}
			c := resource.Copy(t)
			c.State, c.Error, c.Finished = resource.TaskFailed, why, tx.Now()
			if err := tx.Put(c); err != nil {
				return err
			}
		}
		return tx.Delete(resource.KindImage, id)
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("record failure of image %s: %w", id, err)
	}
	return nil
}

// copyImage gets a ready image from a controller that has it or, where none has it (any more), from where it was added from: after a
// restore on an empty machine. It is no failure of the image if that does not work out.
func (s *Service) copyImage(ctx context.Context, img *resource.Image, p *progress) error {
	if !s.has(img) {
		same := func(_ int64, digest string) error {
			if digest != img.SHA256 {
				return resource.Invalid("url", "the content has the checksum sha256:%s, not sha256:%s", digest, img.SHA256)
			}
			return nil
		}
		err := errNowhere
		for _, base := range img.Servers {
			if base == s.cfg.Base {
				continue
			}
			if _, err = s.get(ctx, s.cfg.Peers, img.ID, s.sign(base, img.ID, s.cfg.Now().Add(urlTTL)), p, same); err == nil {
				break
			}
		}
		if err != nil && ctx.Err() == nil && img.URL != "" {
			_, err = s.get(ctx, s.client(img), img.ID, img.URL, p, same)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it ends because it is to end
		}
		if !s.has(img) {
			s.cfg.Log.Warn().Err(err).Str("kind", "image").Str("id", img.ID).Msg("image could not be had from another controller, nor from where it was added from")
			return nil
		}
	}
	_, err := s.cfg.Store.Commit(ctx, request("image.copied"), func(tx resource.Tx) error {
		cur, ok := resource.Find[*resource.Image](tx, img.ID)
		if !ok || slices.Contains(cur.Servers, s.cfg.Base) {
			return nil
		}
		c := resource.Copy(cur)
		c.Servers = append(slices.Clone(cur.Servers), s.cfg.Base)
		return tx.Put(c)
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("record copy of image %s: %w", img.ID, err)
	}
	return nil
}

type fetched struct {
	Content
	digest string
	bytes  int64
}

// get downloads, checks and moves into place. When it fails for good, nothing is left on the disk; when ctx ends, the part
// stays for the next time.
func (s *Service) get(ctx context.Context, client *http.Client, id, from string, p *progress, check func(n int64, digest string) error) (fetched, error) {
	part := s.path(id) + ".part"
	f := &fetcher{cfg: &s.cfg, client: client, url: from, path: part, progress: p}
	n, digest, err := f.fetch(ctx)
	if ctx.Err() != nil {
		return fetched{}, context.Cause(ctx)
	}
	if err == nil {
		err = check(n, digest)
	}
	var c Content
	if err == nil {
		c, err = inspectFile(part, n)
	}
	if err == nil {
		err = os.Rename(part, s.path(id))
	}
	_ = os.Remove(part + ".json")
	if err != nil {
		_ = os.Remove(part)
		return fetched{}, err
	}
	return fetched{c, digest, n}, file.SyncDir(s.cfg.Dir)
}

func inspectFile(path string, size int64) (Content, error) {
	f, err := os.Open(path)
	if err != nil {
		return Content{}, fmt.Errorf("open image: %w", err)
	}
	defer func() { _ = f.Close() }()
	return Inspect(f, size)
}

func (s *Service) remove(id string) {
	for _, suffix := range []string{"", ".part", ".part.json"} {
		if err := os.Remove(s.path(id) + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Log.Warn().Err(err).Str("kind", "image").Str("id", id).Msg("image file could not be removed")
		}
	}
}

// collect removes the files of images that are no more. Files that are not named like ours are left alone.
func (s *Service) collect(r resource.Reader) error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("read image directory: %w", err)
	}
	for _, e := range entries {
		id, suffix, _ := strings.Cut(e.Name(), ".")
		if uuid.Validate(id) != nil || suffix != "" && suffix != "part" && suffix != "part.json" || !e.Type().IsRegular() {
			continue
		}
		img, ok := resource.Find[*resource.Image](r, id)
		s.mu.Lock()
		busy := s.running[id] != nil
		s.mu.Unlock()
		if busy || ok && (suffix == "" || img.Stage == resource.ImageAdding) {
			continue
		}
		if err := os.Remove(filepath.Join(s.cfg.Dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove orphan: %w", err)
		}
		s.cfg.Log.Info().Str("kind", "image").Str("id", id).Msg("orphan image file is removed")
	}
	return nil
}

// urlTTL is how long a signed URL is good for starting a download.
const urlTTL = 15 * time.Minute

const pathPrefix = "/v1/images/"

// URLs are the addresses at which a ready image can be fetched, this controller's first.
func (s *Service) URLs(id string) ([]string, time.Time, error) {
	img, ok := resource.Find[*resource.Image](s.cfg.Store.View(), id)
	if !ok {
		return nil, time.Time{}, resource.NotFound(resource.KindImage, id)
	}
	if img.Stage != resource.ImageReady {
		return nil, time.Time{}, resource.Conflict("image", "image %s is still being added", img.Name)
	}
	expires := s.cfg.Now().Add(urlTTL)
	var out []string
	if s.has(img) {
		out = append(out, s.sign(s.cfg.Base, id, expires))
	}
	for _, base := range img.Servers {
		if base != s.cfg.Base {
			out = append(out, s.sign(base, id, expires))
		}
	}
	if len(out) == 0 {
		return nil, time.Time{}, resource.Conflict("image", "no controller has the file of image %s", img.Name).WithRemedy("put the file back into the data directory of a controller, or add the image again")
	}
	return out, expires, nil
}

func (s *Service) sign(base, id string, expires time.Time) string {
	at := strconv.FormatInt(expires.Unix(), 10)
	return base + pathPrefix + id + "?" + url.Values{"expires": {at}, "sig": {s.signature(id, at)}}.Encode()
}

func (s *Service) signature(id, expires string) string {
	m := hmac.New(sha256.New, s.cfg.Key)
	m.Write([]byte("image\n" + id + "\n" + expires))
	return hex.EncodeToString(m.Sum(nil))
}

// Handler serves GET and HEAD of <Base>/v1/images/<id>?expires&sig, with ranges. Whether the signature is wrong or the
// image unknown is not told apart.
func (s *Service) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := strings.CutPrefix(r.URL.Path, pathPrefix)
		if !ok || !subjects.ValidToken(id) || uuid.Validate(id) != nil {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		q := r.URL.Query()
		expires := q.Get("expires")
		at, err := strconv.ParseInt(expires, 10, 64)
		if err != nil || !hmac.Equal([]byte(q.Get("sig")), []byte(s.signature(id, expires))) {
			http.Error(w, "the signature is wrong", http.StatusForbidden)
			return
		}
		if s.cfg.Now().Unix() > at {
			http.Error(w, "the address has expired: ask for a new one", http.StatusForbidden)
			return
		}
		f, err := os.Open(s.path(id))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		// The content of an id never changes, so the id is a strong validator, on every controller the same.
		w.Header().Set("ETag", `"`+id+`"`)
		http.ServeContent(w, r, "", time.Time{}, f)
	})
}
