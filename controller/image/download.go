package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shoal/controller/resource"
)

// progress is how far a download is. It is read while the download runs.
type progress struct {
	done, total atomic.Int64
}

// percent is the share that is there, 0 where the length is not known.
func (p *progress) percent() int {
	total := p.total.Load()
	if total <= 0 {
		return 0
	}
	return int(min(p.done.Load()*100/total, 100))
}

// partState is what must be known to go on with a part file after a restart: which URL it comes from, and by what the
// server tells that the content is still the same.
type partState struct {
	URL       string `json:"url"`
	Validator string `json:"validator"`
	Total     int64  `json:"total"`
}

// fetcher downloads one image into a part file.
type fetcher struct {
	cfg      *Config
	client   *http.Client
	url      string
	path     string
	progress *progress
	// total is the length that the server has announced, -1 where it has not; validator is its strong ETag.
	total     int64
	validator string
}

// permanent marks an error that another attempt would not change.
type permanent struct{ err error }

func (p permanent) Error() string { return p.err.Error() }
func (p permanent) Unwrap() error { return p.err }

func final(format string, args ...any) error {
	return permanent{resource.Invalid("url", format, args...)}
}

// fetch gives the length and SHA-256 of what it has written to the part file, which is synced.
func (f *fetcher) fetch(ctx context.Context) (int64, string, error) {
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, "", fmt.Errorf("open part file: %w", err)
	}
	defer func() { _ = file.Close() }()
	h := sha256.New()
	f.total = -1
	var n int64
	if strings.HasPrefix(f.url, "file:") {
		n, err = f.copyFile(ctx, file, h)
	} else {
		n, err = f.copyHTTP(ctx, file, h)
	}
	if err != nil {
		return n, "", explain(err)
	}
	if err := file.Sync(); err != nil {
		return n, "", explain(fmt.Errorf("sync part file: %w", err))
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}

// explain turns what the system says into what an operator can act on.
func explain(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return permanent{resource.Invalid("url", "the controller has no space left for the image").WithRemedy("free space in the controller's data directory")}
	}
	return err
}

func (f *fetcher) copyFile(ctx context.Context, to *os.File, h hash.Hash) (int64, error) {
	u, err := url.Parse(f.url)
	if err != nil {
		return 0, final("is not a URL: %v", err)
	}
	// Not blocking, so that a FIFO can't hang us before it is seen to be none of ours.
	from, err := os.OpenFile(u.Path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return 0, final("can't be opened on the controller: %v", err)
	}
	defer func() { _ = from.Close() }()
	info, err := from.Stat()
	if err != nil {
		return 0, final("can't be looked at on the controller: %v", err)
	}
	if !info.Mode().IsRegular() {
		return 0, final("%s is not a regular file", u.Path)
	}
	if info.Mode().Perm()&0o004 == 0 {
		e := resource.Invalid("url", "%s may not be read by everybody on the controller, and whoever has an image can read all of it", u.Path)
		return 0, permanent{e.WithRemedy("chmod o+r the file if it holds no secret")}
	}
	f.setTotal(info.Size())
	if err := f.room(info.Size()); err != nil {
		return 0, err
	}
	if err := to.Truncate(0); err != nil {
		return 0, fmt.Errorf("empty part file: %w", err)
	}
	n, err := f.copy(ctx, to, h, from, 0, nil)
	if err != nil {
		return n, err
	}
	if n != info.Size() {
		return n, final("%s changed its length from %d to %d while it was read", u.Path, info.Size(), n)
	}
	return n, nil
}

func (f *fetcher) setTotal(n int64) {
	f.total = n
	f.progress.total.Store(n)
}

// room checks that so many more bytes are allowed and fit.
func (f *fetcher) room(more int64) error {
	if more > f.cfg.MaxBytes {
		return final("the image has %d bytes; at most %d are allowed", more, f.cfg.MaxBytes)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.cfg.Dir, &fs); err != nil {
		return fmt.Errorf("look at free space: %w", err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	if more+f.cfg.KeepFree > free {
		e := resource.Invalid("url", "the image needs %d bytes, and the controller has %d free, of which %d stay free", more, free, f.cfg.KeepFree)
		return permanent{e.WithRemedy("free space in the controller's data directory")}
	}
	return nil
}

// copy reads to the end, hashes, and looks after limits as it goes: not every server tells a length.
func (f *fetcher) copy(ctx context.Context, to io.Writer, h hash.Hash, from io.Reader, at int64, alive func()) (int64, error) {
	buf := make([]byte, 256<<10)
	checked := at
	for {
		if err := context.Cause(ctx); err != nil {
			return at, err
		}
		n, err := from.Read(buf)
		if n > 0 {
			if alive != nil {
				alive()
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return at, permanent{fmt.Errorf("write part file: %w", err)}
			}
			h.Write(buf[:n])
			at += int64(n)
			f.progress.done.Store(at)
			if at > f.cfg.MaxBytes {
				return at, final("the image has more than %d bytes, which are allowed", f.cfg.MaxBytes)
			}
			if f.total < 0 && at-checked > 64<<20 {
				checked = at
				if err := f.room(0); err != nil {
					return at, err
				}
			}
		}
		if err == io.EOF {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}

// copyHTTP downloads with as many attempts as it takes, as long as each gets further.
func (f *fetcher) copyHTTP(ctx context.Context, to *os.File, h hash.Hash) (int64, error) {
	at := f.resumePoint(ctx, to, h)
	for failures := 0; ; {
		n, err := f.attempt(ctx, to, h, at)
		if err == nil {
			return n, nil
		}
		var p permanent
		if errors.As(err, &p) || ctx.Err() != nil {
			return n, err
		}
		if n > at {
			failures = 0
		}
		if failures++; failures >= f.cfg.Attempts {
			return n, final("the download broke off %d times: %v", failures, err)
		}
		f.cfg.Log.Info().Err(err).Int64("at", n).Int("attempt", failures).Msg("image download broke off")
		timer := time.NewTimer(f.cfg.Backoff << min(failures-1, 6))
		select {
		case <-ctx.Done():
			timer.Stop()
			return n, context.Cause(ctx)
		case <-timer.C:
		}
		at = n
	}
}

// resumePoint takes up what an earlier process has left, if the server has given it a mark by which the content can be
// told to be the same.
func (f *fetcher) resumePoint(ctx context.Context, to *os.File, h hash.Hash) int64 {
	b, err := os.ReadFile(f.path + ".json")
	var s partState
	if err != nil || json.Unmarshal(b, &s) != nil || s.URL != f.url || s.Validator == "" {
		return 0
	}
	f.validator = s.Validator
	f.setTotal(s.Total)
	n, err := f.copy(ctx, io.Discard, h, to, 0, nil)
	if err != nil {
		h.Reset()
		return 0
	}
	return n
}

func (f *fetcher) saveState() {
	b, err := json.Marshal(partState{f.url, f.validator, f.total})
	if err == nil {
		// Without it a restart begins anew, which is no harm.
		_ = os.WriteFile(f.path+".json", b, 0o600)
	}
}

// attempt makes one request and reads its answer. It gives how far the file is good.
func (f *fetcher) attempt(ctx context.Context, to *os.File, h hash.Hash, at int64) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A server that has gone silent is given up; no limit on the whole, for images may be large and links slow.
	stall := time.AfterFunc(f.cfg.Stall, func() { cancel(fmt.Errorf("the server sent nothing for %s", f.cfg.Stall)) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return at, final("is not a URL: %v", err)
	}
	// A transparent compression would make lengths and ranges meaningless.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "shoal-controller")
	if at > 0 && f.validator != "" {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", at))
		req.Header.Set("If-Range", f.validator)
	}
	res, err := f.client.Do(req)
	if err != nil {
		return at, classify(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	switch {
	case res.StatusCode == http.StatusPartialContent && at > 0 && f.validator != "":
		if start, ok := rangeStart(res.Header.Get("Content-Range")); !ok || start != at {
			return at, final("the server answers a request for the bytes from %d with %q", at, res.Header.Get("Content-Range"))
		}
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable && at > 0 && at == f.total:
		return at, nil // it was all there
	case res.StatusCode == http.StatusOK:
		at = 0
		h.Reset()
		f.validator = ""
		if tag := res.Header.Get("ETag"); strings.HasPrefix(tag, `"`) {
			f.validator = tag
		}
		f.setTotal(res.ContentLength)
		if err := f.room(max(res.ContentLength, 0)); err != nil {
			return 0, err
		}
		if err := to.Truncate(0); err != nil {
			return 0, permanent{fmt.Errorf("empty part file: %w", err)}
		}
		f.saveState()
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout:
		return at, fmt.Errorf("the server answers %s", res.Status)
	default:
		return at, final("the server answers %s", res.Status)
	}
	if _, err := to.Seek(at, io.SeekStart); err != nil {
		return at, permanent{fmt.Errorf("seek in part file: %w", err)}
	}
	n, err := f.copy(ctx, to, h, res.Body, at, func() { stall.Reset(f.cfg.Stall) })
	if err == nil && f.total >= 0 && n != f.total {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("cut off after %d of %d bytes", n, f.total)
	}
	if err != nil {
		err = classify(ctx, err)
		if f.validator == "" && n > 0 {
			// It can't be resumed: what follows would have to be believed to belong to what is there.
			if _, ok := errors.AsType[permanent](err); !ok {
				return 0, fmt.Errorf("%w (the server has no ETag, so that it can't be resumed)", err)
			}
		}
	}
	return n, err
}

func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	first, _, dash := strings.Cut(s, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, ok && dash && err == nil
}

// classify tells errors that stay from those that may pass.
func classify(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return final("the server's name %q does not exist", dns.Name)
	}
	if p, ok := errors.AsType[permanent](err); ok {
		return p
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err // the rest is the request, which the reader knows
	}
	return err
}
