package volume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// Fetcher knows where images can be had now.
type Fetcher interface {
	// URLs are http or https addresses of an image, best first. They may be short-lived.
	URLs(ctx context.Context, image string) ([]string, error)
}

// imageRecord is what this host knows of an image in a pool.
type imageRecord struct {
	Spec desired.Image `json:"spec"`
	// Verified is set once the digest of the file of this size and time was right.
	Verified bool      `json:"verified,omitempty"`
	Size     uint64    `json:"size,omitempty"`
	Modified time.Time `json:"modified,omitzero"`
}

// Images implements engine.Kind for desired.Image.
type Images struct {
	cfg     Config
	fetch   Fetcher
	client  *http.Client
	log     zerolog.Logger
	records records[imageRecord]
	volumes records[record]
}

// HaveImage is an image in a pool's cache as it is.
type HaveImage struct {
	Spec     desired.Image
	Exists   bool
	Bytes    uint64
	Verified bool
	// Err is set when the storage can't be looked at; then only Spec holds.
	Err error
}

// NewImages makes the kind of images. A nil client is one with sane limits.
func NewImages(cfg Config, fetch Fetcher, client *http.Client) (*Images, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if fetch == nil {
		return nil, errors.New("make image kind: the Fetcher must be set")
	}
	if client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = 30 * time.Second
		client = &http.Client{Transport: t}
	}
	return &Images{
		cfg: cfg, fetch: fetch, client: client, log: cfg.Log.With().Str("kind", string(desired.KindImage)).Logger(),
		records: records[imageRecord]{filepath.Join(cfg.Data, "images")},
		volumes: records[record]{filepath.Join(cfg.Data, "volumes")},
	}, nil
}

// Parallel implements engine.Sizer: more downloads at once only compete.
func (k *Images) Parallel() int { return 2 }

// Observe implements engine.Kind.
func (k *Images) Observe(ctx context.Context) (map[string]HaveImage, error) {
	all, err := k.records.all()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	found := lookByPool(all, func(r imageRecord) string { return r.Spec.Pool }, func(r imageRecord) HaveImage { return k.look(ctx, r) })
	return found, ctx.Err()
}

// ObserveOne implements engine.OneObserver.
func (k *Images) ObserveOne(ctx context.Context, id string) (*HaveImage, error) {
	r, err := k.records.load(id)
	if err != nil || r == nil {
		return nil, err
	}
	h := k.look(ctx, *r)
	return &h, h.Err
}

func (k *Images) look(ctx context.Context, r imageRecord) HaveImage {
	h := HaveImage{Spec: r.Spec}
	info, exists, err := k.stat(ctx, r.Spec)
	if err != nil {
		h.Err = fault(fmt.Errorf("look at %s: %w", r.Spec.Path, err))
		return h
	}
	h.Exists, h.Bytes = exists, info.Size
	h.Verified = exists && r.Verified && info.Size == r.Size && info.Modified.Equal(r.Modified)
	return h
}

func (k *Images) stat(ctx context.Context, spec desired.Image) (FileInfo, bool, error) {
	type stat struct {
		info   FileInfo
		exists bool
	}
	s, err := host.Touch(ctx, k.cfg.Patience, spec.Pool, lookLimit, func() (stat, error) {
		if err := checkMarker(k.cfg.Files, spec.Pool, spec.Path); err != nil {
			return stat{}, err
		}
		info, err := k.cfg.Files.Stat(spec.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return stat{}, nil
		}
		if err == nil && !info.Regular {
			err = engine.Fault(desired.CodeConflict, "", errors.New("it is not a regular file"))
		}
		return stat{info, err == nil}, err
	})
	return s.info, s.exists, err
}

// Diff implements engine.Kind.
func (k *Images) Diff(_ string, want desired.Image, h HaveImage) string {
	switch {
	case h.Err != nil:
		return "can't be looked at: " + h.Err.Error()
	case want.Path != h.Spec.Path || want.SHA256 != h.Spec.SHA256 || want.Pool != h.Spec.Pool:
		return "another image"
	case !h.Exists:
		return "missing"
	case h.Bytes != want.Bytes:
		return fmt.Sprintf("has %d bytes, not %d", h.Bytes, want.Bytes)
	case !h.Verified:
		return "not verified"
	default:
		return ""
	}
}

// Ensure implements engine.Kind.
func (k *Images) Ensure(ctx context.Context, id string, want desired.Image, _ *HaveImage) (HaveImage, error) {
	if err := k.bring(ctx, id, want); err != nil {
		return HaveImage{}, fault(err)
	}
	h, err := k.ObserveOne(ctx, id)
	if err == nil && h == nil {
		err = fmt.Errorf("image %s: its record is gone", id)
	}
	if err != nil {
		return HaveImage{}, fault(err)
	}
	return *h, nil
}

func (k *Images) bring(ctx context.Context, id string, want desired.Image) error {
	r, err := k.records.load(id)
	if err != nil {
		return err
	}
	info, exists, err := k.stat(ctx, want)
	if err != nil {
		return fmt.Errorf("look at %s: %w", want.Path, err)
	}
	if !exists {
		// The record comes first, so that whatever is left of this is known as ours.
		if err := k.records.save(id, imageRecord{Spec: want}); err != nil {
			return err
		}
		if err := k.download(ctx, want); err != nil {
			return err
		}
		if info, exists, err = k.stat(ctx, want); err != nil || !exists {
			return errors.Join(err, fmt.Errorf("look at %s: it is gone right after it was put there", want.Path))
		}
		k.log.Info().Str("id", id).Uint64("bytes", want.Bytes).Msg("image fetched")
		return k.records.save(id, imageRecord{Spec: want, Verified: true, Size: info.Size, Modified: info.Modified})
	}
	known := r != nil && r.Verified && r.Spec.SHA256 == want.SHA256 && r.Size == info.Size && r.Modified.Equal(info.Modified)
	if !known {
		// Another host put it into a shared pool, or somebody changed it.
		sum := ""
		if info.Size == want.Bytes {
			h := sha256.New()
			if err := k.digest(ctx, want.Pool, want.Path, want.Bytes, h); err != nil {
				return fmt.Errorf("verify %s: %w", want.Path, err)
			}
			sum = hex.EncodeToString(h.Sum(nil))
		}
		if sum != want.SHA256 {
			return engine.After(time.Minute, engine.Fault(desired.CodeChecksum, "remove the file if no volume is based on it: it is fetched anew",
				fmt.Errorf("verify %s: it has %d bytes with SHA-256 %q, want %d with %q", want.Path, info.Size, sum, want.Bytes, want.SHA256)))
		}
	}
	return k.records.save(id, imageRecord{Spec: want, Verified: true, Size: info.Size, Modified: info.Modified})
}

const chunk = 1 << 20

// digest reads the first n bytes of a file into h, a storage's hanging apart from its slowness.
func (k *Images) digest(ctx context.Context, pool, path string, n uint64, h hash.Hash) error {
	f, err := host.Touch(ctx, k.cfg.Patience, pool, lookLimit, func() (io.ReadCloser, error) { return k.cfg.Files.Open(path) })
	if err != nil {
		return err
	}
	defer func() { go f.Close() }() // closing can hang, too
	var done uint64
	for done < n {
		b, err := host.Touch(ctx, k.cfg.Patience, pool, writeLimit, func() ([]byte, error) {
			b := make([]byte, min(chunk, n-done))
			got, err := io.ReadFull(f, b)
			return b[:got], err
		})
		if err != nil {
			return err
		}
		h.Write(b)
		done += uint64(len(b))
		engine.Progress(ctx, int(100*done/n))
	}
	return nil
}

// Downloads are given up after this many tries in a row that brought nothing; the engine tries again later and goes on
// with what is there.
const fruitless = 4

// stall is how long a server may send nothing.
const stall = 30 * time.Second

// download brings an image to its place.
func (k *Images) download(ctx context.Context, want desired.Image) error {
	d := &download{k: k, want: want, part: unfinished(want.Path, k.cfg.Host, ".part"), sum: sha256.New()}
	if err := d.prepare(ctx); err != nil {
		return fmt.Errorf("prepare %s: %w", d.part, err)
	}
	var last error
	for tries := 0; d.have < want.Bytes; {
		urls, err := k.fetch.URLs(ctx, want.Image)
		if err == nil && len(urls) == 0 {
			err = errors.New("nobody offers it")
		}
		before := d.have
		if err != nil {
			urls, last = nil, fmt.Errorf("find image %s: %w", want.Image, err)
		}
		for _, url := range urls {
			if err := d.get(ctx, url); err != nil {
				var f *desired.Fault
				if errors.As(err, &f) || ctx.Err() != nil {
					return d.spoiled(ctx, err)
				}
				last = err
			}
			if d.have == want.Bytes {
				break
			}
		}
		if d.have > before {
			tries = 0
			continue
		}
		if tries++; tries == fruitless {
			return engine.Fault(desired.CodeDownload, "", last)
		}
		select {
		case <-time.After(100 * time.Millisecond << tries):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if sum := hex.EncodeToString(d.sum.Sum(nil)); sum != want.SHA256 {
		return d.spoiled(ctx, engine.After(time.Minute, engine.Fault(desired.CodeChecksum, "",
			fmt.Errorf("download image %s: it has SHA-256 %s, want %s", want.Image, sum, want.SHA256))))
	}
	_, err := host.Touch(ctx, k.cfg.Patience, want.Pool, writeLimit, func() (struct{}, error) {
		return struct{}{}, k.cfg.Files.Publish(d.part, want.Path, 0o444)
	})
	if err != nil {
		return fmt.Errorf("put %s in place: %w", want.Path, err)
	}
	return nil
}

// download is a download under way. have bytes are in part, and in sum.
type download struct {
	k    *Images
	want desired.Image
	part string
	have uint64
	sum  hash.Hash
}

// touch runs f against the pool.
func (d *download) touch(ctx context.Context, f func() error) error {
	_, err := host.Touch(ctx, d.k.cfg.Patience, d.want.Pool, writeLimit, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// prepare finds what an earlier download left.
func (d *download) prepare(ctx context.Context) error {
	type state struct{ have, free uint64 }
	files, dir := d.k.cfg.Files, filepath.Dir(d.want.Path)
	s, err := host.Touch(ctx, d.k.cfg.Patience, d.want.Pool, writeLimit, func() (s state, err error) {
		if err := files.MkdirAll(dir); err != nil {
			return s, err
		}
		info, err := files.Stat(d.part)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			f, err := files.Append(d.part)
			if err != nil {
				return s, err
			}
			if err := f.Close(); err != nil {
				return s, err
			}
		case err != nil:
			return s, err
		}
		s.have = info.Size
		s.free, err = files.Free(dir)
		return s, err
	})
	if err != nil {
		return err
	}
	if s.have > d.want.Bytes {
		return d.restart(ctx)
	}
	if need := d.want.Bytes - s.have; s.free < need {
		return d.spoiled(ctx, engine.Fault(desired.CodeNoSpace, "",
			fmt.Errorf("image %s needs %d more bytes, %d are free", d.want.Image, need, s.free)))
	}
	if err := d.k.digest(ctx, d.want.Pool, d.part, s.have, d.sum); err != nil {
		return err
	}
	d.have = s.have
	return nil
}

// restart forgets what is there.
func (d *download) restart(ctx context.Context) error {
	d.have = 0
	d.sum.Reset()
	return d.touch(ctx, func() error { return d.k.cfg.Files.Remove(d.part) })
}

// spoiled removes the part where going on with it is no use, and gives err.
func (d *download) spoiled(ctx context.Context, err error) error {
	switch engine.FaultOf(fault(err)).Code {
	case desired.CodeChecksum, desired.CodeNoSpace:
		return errors.Join(err, d.restart(ctx))
	default:
		return err
	}
}

// get asks one server for what is missing.
func (d *download) get(ctx context.Context, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(stall, cancel)
	defer watchdog.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	shown := req.URL.Redacted() // without the signature
	if i := strings.IndexByte(shown, '?'); i >= 0 {
		shown = shown[:i]
	}
	if d.have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.have))
	}
	res, err := d.k.client.Do(req)
	if err != nil {
		var inner interface{ Unwrap() error }
		if errors.As(err, &inner) { // http's own text has the signature in it
			err = inner.Unwrap()
		}
		return fmt.Errorf("download %s: %w", shown, err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		if d.have > 0 {
			if err := d.restart(ctx); err != nil {
				return err
			}
		}
	case http.StatusPartialContent:
		if got := res.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", d.have)) {
			return fmt.Errorf("download %s: asked for bytes from %d, got %q", shown, d.have, got)
		}
	default:
		return fmt.Errorf("download %s: the server says %s", shown, res.Status)
	}
	var f File
	if err := d.touch(ctx, func() (err error) { f, err = d.k.cfg.Files.Append(d.part); return err }); err != nil {
		return fault(err)
	}
	defer func() { go f.Close() }()
	for {
		b := make([]byte, chunk)
		n, readErr := readFull(res.Body, b, watchdog)
		if d.have+uint64(n) > d.want.Bytes {
			return engine.After(time.Minute, engine.Fault(desired.CodeChecksum, "",
				fmt.Errorf("download %s: it is longer than %d bytes", shown, d.want.Bytes)))
		}
		if n > 0 {
			err := d.touch(ctx, func() error {
				_, err := f.Write(b[:n])
				if err == nil {
					// Bounded dirty memory, and an error as early as it can be known.
					err = f.Sync()
				}
				return err
			})
			if err != nil {
				return diskError(fmt.Errorf("write %s: %w", d.part, err))
			}
			d.sum.Write(b[:n])
			d.have += uint64(n)
			engine.Progress(ctx, int(100*d.have/max(d.want.Bytes, 1)))
		}
		switch {
		case errors.Is(readErr, io.EOF) && d.have < d.want.Bytes:
			return fmt.Errorf("download %s: it ends after %d of %d bytes", shown, d.have, d.want.Bytes)
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil:
			return fmt.Errorf("download %s: cut off after %d of %d bytes: %w", shown, d.have, d.want.Bytes, readErr)
		}
	}
}

// diskError makes sure that an error of the storage is not taken for one of the server.
func diskError(err error) error {
	if err = fault(err); engine.FaultOf(err).Code == desired.CodeInternal {
		if errors.Is(err, syscall.EINTR) {
			return err
		}
		return engine.Fault(desired.CodeInternal, "", err)
	}
	return err
}

// readFull fills b as far as it goes; every byte that comes feeds the watchdog.
func readFull(r io.Reader, b []byte, watchdog *time.Timer) (int, error) {
	n := 0
	for n < len(b) {
		got, err := r.Read(b[n:])
		n += got
		if got > 0 {
			watchdog.Reset(stall)
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Remove implements engine.Kind. In a pool that hosts share the file may be what another host's volumes stand on: then it
// stays, and is no longer ours to remove.
func (k *Images) Remove(ctx context.Context, id string, _ HaveImage) error {
	r, err := k.records.load(id)
	if err != nil || r == nil {
		return err
	}
	volumes, err := k.volumes.all()
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	used := false
	for _, v := range volumes {
		used = used || !v.Absent && v.Spec.Backing != nil && v.Spec.Backing.Path == r.Spec.Path
	}
	_, err = host.Touch(ctx, k.cfg.Patience, r.Spec.Pool, writeLimit, func() (struct{}, error) {
		var none struct{}
		files := k.cfg.Files
		if err := checkMarker(files, r.Spec.Pool, r.Spec.Path); err != nil {
			return none, err
		}
		if err := files.Remove(unfinished(r.Spec.Path, k.cfg.Host, ".part")); err != nil {
			return none, err
		}
		if used {
			return none, nil
		}
		dir := filepath.Join(filepath.Dir(filepath.Dir(r.Spec.Path)), "volumes")
		names, err := files.List(dir)
		if err != nil {
			return none, err
		}
		for _, name := range names {
			b, err := files.Head(filepath.Join(dir, name), headBytes)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return none, err
			}
			if head, err := parseHeader(b); err == nil && head.backing == r.Spec.Path {
				return none, nil
			}
		}
		return none, files.Remove(r.Spec.Path)
	})
	// A storage that is no longer here takes its cache with it.
	if err != nil && !errors.Is(err, errNoMarker) {
		return fault(fmt.Errorf("remove image %s: %w", r.Spec.Path, err))
	}
	return k.records.remove(id)
}
