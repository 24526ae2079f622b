package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"shoal/controller/identity"
	"shoal/controller/image"
	"shoal/controller/journal"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/controller/store"
	"shoal/desired"
)

// leading is a real store that leads, on a NATS server of its own.
func leading(t *testing.T) *store.Store {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	id, err := identity.Open(filepath.Join(dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := site.Open(ctx, site.Config{Name: "test", Identity: id, Dir: filepath.Join(dir, "nats"), MaxStore: 256 << 20, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	j, err := journal.Open(ctx, s.JetStream(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.New(store.Config{Journal: j, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Load(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = db.Lead(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for !db.Leading() {
		time.Sleep(time.Millisecond)
	}
	return db
}

// bench is a service with its store.
type bench struct {
	t   *testing.T
	db  *store.Store
	cfg image.Config
	svc *image.Service
}

func newBench(t *testing.T, edit func(*image.Config)) *bench {
	t.Helper()
	b := &bench{t: t, db: leading(t)}
	b.cfg = image.Config{
		Dir: filepath.Join(t.TempDir(), "images"), Base: "http://a.test", Key: bytes.Repeat([]byte("k"), 32), Store: b.db, Log: zerolog.Nop(),
		KeepFree: 1, Attempts: 2, Backoff: time.Millisecond, Stall: 5 * time.Second,
	}
	if edit != nil {
		edit(&b.cfg)
	}
	b.svc = b.service(b.cfg)
	return b
}

func (b *bench) service(cfg image.Config) *image.Service {
	b.t.Helper()
	s, err := image.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// run runs a service until the returned function is called.
func (b *bench) run(s *image.Service) (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run: %v", err)
		}
	}
	b.t.Cleanup(stop)
	return stop
}

// add commits an image of the admin account that is to be added, with its task.
func (b *bench) add(url, checksum string) string {
	b.t.Helper()
	return b.addFor(resource.AdminAccount, url, checksum)
}

func (b *bench) addFor(account, url, checksum string) string {
	b.t.Helper()
	var id string
	_, err := b.db.Commit(b.t.Context(), resource.Request{ID: uuid.NewString(), Caller: "test", Op: "image.create"}, func(tx resource.Tx) error {
		id = tx.NewID()
		img := &resource.Image{Meta: resource.Meta{ID: id, Name: "img", Owner: account}, State: resource.Enabled, URL: url, Checksum: checksum, Stage: resource.ImageAdding}
		if err := tx.Put(img); err != nil {
			return err
		}
		return tx.Put(&resource.Task{
			Meta: resource.Meta{ID: tx.NewID(), Name: "image.create"}, State: resource.TaskRunning, Op: "image.create", RequestID: tx.Request().ID,
			ResourceKind: resource.KindImage, ResourceID: id,
		})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// ended waits until an image is ready or gone, and gives it and its task.
func (b *bench) ended(id string) (*resource.Image, *resource.Task) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	err := b.db.Await(ctx, func(r resource.Reader) bool {
		img, ok := resource.Find[*resource.Image](r, id)
		return !ok || img.Stage == resource.ImageReady
	})
	if err != nil {
		b.t.Fatalf("image %s did not end: %v", id, err)
	}
	img, _ := resource.Find[*resource.Image](b.db.View(), id)
	for t := range resource.All[*resource.Task](b.db.View()) {
		if t.ResourceID == id {
			return img, t
		}
	}
	return img, nil
}

func (b *bench) files() []string {
	b.t.Helper()
	entries, err := os.ReadDir(b.cfg.Dir)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// qcow2 is a version 3 image of 64 MiB without data, whose header an edit may spoil.
func qcow2(edit func(h []byte)) []byte {
	b := make([]byte, 4<<16)
	copy(b, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 64<<20)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3<<16)
	be.PutUint64(b[48:], 1<<16)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	if edit != nil {
		edit(b)
	}
	return b
}

func raw(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

func TestAdd_Good(t *testing.T) {
	iso := raw(1 << 20)
	copy(iso[16*2048+1:], "CD001")
	content := map[string][]byte{"/raw": raw(2 << 20), "/qcow2": qcow2(nil), "/iso": iso}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[r.URL.Path]))
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, content["/raw"], 0o644); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, nil)
	b.run(b.svc)
	for _, c := range []struct {
		url, checksum string
		content       []byte
		format        desired.Format
		virtual       uint64
	}{
		{srv.URL + "/raw", "sha256:" + sum(content["/raw"]), content["/raw"], desired.FormatRaw, 2 << 20},
		{srv.URL + "/qcow2", "", content["/qcow2"], desired.FormatQCOW2, 64 << 20},
		{srv.URL + "/iso", "", iso, desired.FormatISO, 1 << 20},
		{"file://" + file, "sha256:" + strings.ToUpper(sum(content["/raw"])), content["/raw"], desired.FormatRaw, 2 << 20},
	} {
		id := b.add(c.url, c.checksum)
		img, task := b.ended(id)
		if img == nil {
			t.Errorf("%s: refused: %v", c.url, task.Error)
			continue
		}
		if img.SHA256 != sum(c.content) || img.Bytes != uint64(len(c.content)) || img.Format != c.format || img.VirtualBytes != c.virtual || len(img.Servers) != 1 {
			t.Errorf("%s: got %+v", c.url, img)
		}
		got, err := os.ReadFile(filepath.Join(b.cfg.Dir, id))
		if err != nil || !bytes.Equal(got, c.content) {
			t.Errorf("%s: the file differs (%v)", c.url, err)
		}
	}
	for _, f := range b.files() {
		if strings.Contains(f, ".part") {
			t.Errorf("%s is left", f)
		}
	}
}

// TestAdd_Bad: the record goes, its task says why and what to do, nothing is left on the disk.
func TestAdd_Bad(t *testing.T) {
	content := map[string][]byte{
		"/good": raw(2 << 20), "/empty": {}, "/odd": raw(2<<20 + 1), "/gzip": append([]byte("\x1f\x8b"), raw(1<<20)...),
		"/page": []byte("<!DOCTYPE html><html>sign in</html>"), "/small": raw(512),
		"/backing": qcow2(func(h []byte) {
			copy(h[200:], "/etc/shadow")
			binary.BigEndian.PutUint64(h[8:], 200)
			binary.BigEndian.PutUint32(h[16:], 11)
		}),
		"/datafile":  qcow2(func(h []byte) { h[79] = 4 }),
		"/dataext":   qcow2(func(h []byte) { copy(h[104:], "DATA\x00\x00\x00\x0b/etc/shadow") }),
		"/corrupt":   qcow2(func(h []byte) { h[79] = 2 }),
		"/feature":   qcow2(func(h []byte) { h[72] = 1 }),
		"/encrypted": qcow2(func(h []byte) { h[35] = 1 }),
		"/version":   qcow2(func(h []byte) { h[7] = 9 }),
		"/huge":      qcow2(func(h []byte) { h[24] = 0x7f }),
		"/cutqcow2":  qcow2(nil)[:1<<16], "/header": qcow2(nil)[:40],
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cut":
			w.Header().Set("Content-Length", "2097152")
			_, _ = w.Write(content["/good"][:1<<20])
		case "/broken":
			w.WriteHeader(http.StatusBadGateway)
		case "/endless":
			for range 100 {
				if _, err := w.Write(raw(1 << 20)); err != nil {
					return
				}
			}
		default:
			b, ok := content[r.URL.Path]
			if !ok {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write(b)
		}
	}))
	defer srv.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	dir := t.TempDir()
	secret, link := filepath.Join(dir, "secret"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(secret, raw(1<<20), 0o600), os.Symlink("/dev/zero", link)); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *image.Config) { c.MaxBytes = 16 << 20 })
	b.run(b.svc)
	for _, c := range []struct{ url, checksum, field, says string }{
		{srv.URL + "/nonesuch", "", "url", "404"},
		{srv.URL + "/broken", "", "url", "502"},
		{srv.URL + "/cut", "", "url", "cut off"},
		{srv.URL + "/endless", "", "url", "more than 16777216 bytes"},
		{srv.URL + "/good", "sha256:" + strings.Repeat("0", 64), "checksum", sum(content["/good"])},
		{srv.URL + "/empty", "", "url", "empty"},
		{srv.URL + "/odd", "", "url", "sectors"},
		{srv.URL + "/gzip", "", "url", "gzip"},
		{srv.URL + "/page", "", "url", "HTML"},
		{srv.URL + "/small", "", "url", "within"},
		{srv.URL + "/backing", "", "url", "backing file"},
		{srv.URL + "/datafile", "", "url", "external file"},
		{srv.URL + "/dataext", "", "url", "external data file"},
		{srv.URL + "/corrupt", "", "url", "corrupt"},
		{srv.URL + "/feature", "", "url", "feature"},
		{srv.URL + "/encrypted", "", "url", "encrypted"},
		{srv.URL + "/version", "", "url", "version 9"},
		{srv.URL + "/huge", "", "url", "virtual size"},
		{srv.URL + "/cutqcow2", "", "url", "cut"},
		{srv.URL + "/header", "", "url", "header"},
		{closed.URL, "", "url", "refused"},
		{"file:///nonesuch/disk", "", "url", "no such file"},
		{"file://" + dir, "", "url", "regular file"},
		{"file://" + link, "", "url", "symbolic"},
		{"file:///dev/zero", "", "url", "regular file"},
		{"file://" + secret, "", "url", "everybody"},
	} {
		img, task := b.ended(b.add(c.url, c.checksum))
		if img != nil {
			t.Errorf("%s was added", c.url)
			continue
		}
		if task == nil || task.State != resource.TaskFailed || task.Error == nil || task.Finished.IsZero() {
			t.Errorf("%s: the task is %+v", c.url, task)
			continue
		}
		if e := task.Error; e.Field != c.field || !strings.Contains(e.Message, c.says) || e.Remedy == "" {
			t.Errorf("%s: %s: %s (remedy %q), want field %s and %q", c.url, e.Field, e.Message, e.Remedy, c.field, c.says)
		}
		if f := b.files(); len(f) > 0 {
			t.Fatalf("%s: left behind: %v", c.url, f)
		}
	}
}

func TestAdd_NoRoom(t *testing.T) {
	b := newBench(t, func(c *image.Config) { c.KeepFree = 1 << 60 })
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw(1 << 20)) }))
	defer srv.Close()
	b.run(b.svc)
	if img, task := b.ended(b.add(srv.URL, "")); img != nil || !strings.Contains(task.Error.Message, "free") || len(b.files()) > 0 {
		t.Errorf("got %v, %+v, files %v", img, task, b.files())
	}
}

// flaky serves content, breaks the first answers off, and notes the ranges that it was asked for.
type flaky struct {
	content []byte
	etag    atomic.Value
	breaks  atomic.Int32
	ranges  chan string
	hold    chan struct{}
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.ranges <- r.Header.Get("Range")
	if tag, _ := f.etag.Load().(string); tag != "" {
		w.Header().Set("ETag", tag)
	}
	if f.breaks.Add(-1) < 0 {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(f.content)))
	_, _ = w.Write(f.content[:len(f.content)/2])
	if f.hold != nil {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-f.hold:
		case <-r.Context().Done():
		}
	}
	panic(http.ErrAbortHandler)
}

func TestAdd_ResumesAfterABreak(t *testing.T) {
	f := &flaky{content: raw(2 << 20), ranges: make(chan string, 16)}
	f.etag.Store(`"v1"`)
	f.breaks.Store(1)
	srv := httptest.NewServer(f)
	defer srv.Close()
	b := newBench(t, nil)
	b.run(b.svc)
	img, task := b.ended(b.add(srv.URL, ""))
	if img == nil {
		t.Fatal(task.Error)
	}
	if img.SHA256 != sum(f.content) {
		t.Error("the content differs")
	}
	if first, second := <-f.ranges, <-f.ranges; first != "" || !strings.HasPrefix(second, "bytes=") || second == "bytes=0-" {
		t.Errorf("asked for %q, then %q; want all, then the rest", first, second)
	}
}

// TestAdd_ResumesAfterARestart: the second process asks for the rest only, if the server can tell that it is the same
// content, and starts over where that changed.
func TestAdd_ResumesAfterARestart(t *testing.T) {
	for _, c := range []struct {
		name, tag  string
		wantResume bool
	}{{"same", `"v1"`, true}, {"changed", `"v2"`, false}, {"unknown", "", false}} {
		t.Run(c.name, func(t *testing.T) {
			f := &flaky{content: raw(2 << 20), ranges: make(chan string, 16), hold: make(chan struct{})}
			defer close(f.hold)
			if c.tag != "" {
				f.etag.Store(`"v1"`)
			}
			f.breaks.Store(1)
			srv := httptest.NewServer(f)
			defer srv.Close()
			b := newBench(t, nil)
			stop := b.run(b.svc)
			id := b.add(srv.URL, "")
			<-f.ranges
			waitFor(t, func() bool {
				info, err := os.Stat(filepath.Join(b.cfg.Dir, id+".part"))
				return err == nil && info.Size() >= 1<<20-256<<10
			})
			stop()
			if img, ok := resource.Find[*resource.Image](b.db.View(), id); !ok || img.Stage != resource.ImageAdding {
				t.Fatal("the end of the process ended the image")
			}
			f.etag.Store(c.tag)
			if c.name == "changed" {
				f.content = append(raw(1<<20), bytes.Repeat([]byte("x"), 1<<20)...)
			}
			b.run(b.service(b.cfg))
			img, task := b.ended(id)
			if img == nil {
				t.Fatal(task.Error)
			}
			if img.SHA256 != sum(f.content) {
				t.Error("the content differs")
			}
			asked := <-f.ranges
			if c.wantResume && (asked == "" || asked == "bytes=0-") || c.name == "unknown" && asked != "" {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("it did not come to be")
}

func TestDelete_EndsTheDownloadAndCollectsFiles(t *testing.T) {
	f := &flaky{content: raw(2 << 20), ranges: make(chan string, 16), hold: make(chan struct{})}
	defer close(f.hold)
	f.breaks.Store(100)
	srv := httptest.NewServer(f)
	defer srv.Close()
	b := newBench(t, nil)
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// Orphans of ours go; what is not named like ours stays.
	for _, name := range []string{uuid.NewString(), uuid.NewString() + ".part", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(b.cfg.Dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.run(b.svc)
	id := b.add(srv.URL, "")
	<-f.ranges
	waitFor(t, func() bool { p, ok := b.svc.Progress(id); return ok && p > 0 })
	_, err := b.db.Commit(t.Context(), resource.Request{Caller: "test"}, func(tx resource.Tx) error { return tx.Delete(resource.KindImage, id) })
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { f := b.files(); return len(f) == 1 && f[0] == "notes.txt" })
}

// TestServe: agents get what was added by a signed address, in parts, and nothing by any other; another controller copies it.
func TestServe(t *testing.T) {
	content := raw(2 << 20)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	defer origin.Close()
	var handler atomic.Value
	a := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.Load().(http.Handler).ServeHTTP(w, r) }))
	defer a.Close()
	now := time.Now()
	var ahead atomic.Int64
	b := newBench(t, func(c *image.Config) {
		c.Base = a.URL
		c.Now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	})
	handler.Store(b.svc.Handler())
	stop := b.run(b.svc)
	id := b.add(origin.URL, "")
	if img, task := b.ended(id); img == nil {
		t.Fatal(task.Error)
	}
	urls, expires, err := b.svc.URLs(id)
	if err != nil || len(urls) != 1 || !expires.After(now) {
		t.Fatalf("got %v, %s, %v", urls, expires, err)
	}
	if code, body := get(t, urls[0], ""); code != 200 || !bytes.Equal(body, content) {
		t.Errorf("got %d and %d bytes", code, len(body))
	}
	if code, body := get(t, urls[0], "bytes=1000-1999"); code != 206 || !bytes.Equal(body, content[1000:2000]) {
		t.Errorf("a part: got %d and %d bytes", code, len(body))
	}
	for what, u := range map[string]string{
		"no signature":    strings.Split(urls[0], "?")[0],
		"another image":   strings.Replace(urls[0], id, uuid.NewString(), 1),
		"a longer time":   strings.Replace(urls[0], "expires=", "expires=9", 1),
		"a wrong one":     urls[0] + "0",
		"outside of ours": a.URL + "/v1/images/..%2f..%2fetc%2fpasswd",
	} {
		if code, _ := get(t, u, ""); code != 403 && code != 404 {
			t.Errorf("%s: got %d", what, code)
		}
	}
	ahead.Store(int64(time.Hour))
	if code, _ := get(t, urls[0], ""); code != 403 {
		t.Errorf("expired: got %d", code)
	}
	ahead.Store(0)
	stop()

	// Another controller takes over: it has no file and gives out the first one's address until it has its copy.
	other := b.cfg
	other.Dir, other.Base = filepath.Join(t.TempDir(), "images"), "http://b.test"
	second := b.service(other)
	if urls, _, err := second.URLs(id); err != nil || len(urls) != 1 || !strings.HasPrefix(urls[0], a.URL) {
		t.Errorf("before the copy: %v, %v", urls, err)
	}
	b.run(second)
	waitFor(t, func() bool {
		urls, _, err := second.URLs(id)
		return err == nil && len(urls) == 2 && strings.HasPrefix(urls[0], other.Base)
	})
	if got, err := os.ReadFile(filepath.Join(other.Dir, id)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs (%v)", err)
	}
	if _, _, err := second.URLs(uuid.NewString()); !resource.HasCode(err, resource.CodeNotFound) {
		t.Errorf("an unknown image: %v", err)
	}
}

func get(t *testing.T, url, rng string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

// FuzzInspect: no content makes it panic, read beyond the end, or accept a backing file.
func FuzzInspect(f *testing.F) {
	f.Add(qcow2(nil)[:4096])
	f.Add(qcow2(func(h []byte) { h[15] = 200 })[:4096])
	f.Add([]byte("QFI\xfb"))
	f.Add(raw(1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := image.Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			var e *resource.Error
			if !errors.As(err, &e) || e.Field == "" {
				t.Fatalf("%v names no field", err)
			}
			return
		}
		if c.Format == desired.FormatQCOW2 && binary.BigEndian.Uint64(b[8:]) != 0 {
			t.Fatal("a backing file was accepted")
		}
		if c.VirtualBytes == 0 {
			t.Fatal("without a size")
		}
	})
}

// TestLost_IsFetchedAgain: a controller that lost its files, as after a restore on an empty machine, gets them from where they were
// added from, and takes nothing else under their names.
func TestLost_IsFetchedAgain(t *testing.T) {
	content := raw(2 << 20)
	var served atomic.Pointer[[]byte]
	served.Store(&content)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*served.Load()) }))
	defer srv.Close()
	b := newBench(t, nil)
	stop := b.run(b.svc)
	id := b.add(srv.URL+"/x.raw", "")
	if img, _ := b.ended(id); img == nil {
		t.Fatal("the image was not added")
	}
	stop()
	file := filepath.Join(b.cfg.Dir, id)
	for _, c := range []struct {
		content []byte
		back    bool
	}{{raw(1 << 20), false}, {content, true}} {
		if err := os.RemoveAll(b.cfg.Dir); err != nil {
			t.Fatal(err)
		}
		served.Store(&c.content)
		log := &syncBuffer{}
		cfg := b.cfg
		cfg.Log = zerolog.New(log)
		s := b.service(cfg)
		stop := b.run(s)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			got, err := os.ReadFile(file)
			if c.back && err == nil && bytes.Equal(got, content) || !c.back && strings.Contains(log.String(), "could not be had") {
				if !c.back && err == nil {
					t.Error("other content was taken")
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("want back %t: %v\n%s", c.back, err, log.String())
			}
		}
		stop()
	}
}

// syncBuffer is written by one goroutine and read by another.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
