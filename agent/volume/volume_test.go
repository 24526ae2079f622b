package volume_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/sim"
	"shoal/agent/volume"
	"shoal/desired"
)

const poolID = "pool-1"

// bed is a file system with a pool, and the hands of those who are not the agent.
type bed struct {
	files volume.Files
	run   host.Runner
	dir   string // the pool
	put   func(t *testing.T, path string, content []byte)
	drop  func(t *testing.T, path string)
	use   func(t *testing.T, path string) (release func())
	hang  func(t *testing.T) (release func())
}

func simBed() (*bed, *sim.Storage) {
	s := sim.NewStorage(1 << 30)
	b := &bed{
		files: s, run: s, dir: "/pool",
		put:  func(_ *testing.T, path string, content []byte) { s.Put(path, content) },
		drop: func(_ *testing.T, path string) { s.Drop(path) },
		use: func(_ *testing.T, path string) func() {
			s.SetUsed(path, true)
			return func() { s.SetUsed(path, false) }
		},
		hang: func(*testing.T) func() {
			s.Hang("/pool", true)
			return func() { s.Hang("/pool", false) }
		},
	}
	s.Put("/pool/"+desired.PoolMarker, []byte(poolID+"\n"))
	return b, s
}

func realBed(t *testing.T) *bed {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("NOT TESTED on real files: needs qemu-img: run scripts/setup")
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	marker := filepath.Join(dir, desired.PoolMarker)
	must(t, os.WriteFile(marker, []byte(poolID+"\n"), 0o644))
	return &bed{
		files: volume.Disk{}, run: host.Machine{}, dir: dir,
		put: func(t *testing.T, path string, content []byte) {
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			_ = os.Remove(path)
			must(t, os.WriteFile(path, content, 0o644))
		},
		drop: func(t *testing.T, path string) { must(t, os.Remove(path)) },
		use: func(t *testing.T, path string) func() {
			ctx, cancel := context.WithCancel(context.Background())
			cmd := exec.CommandContext(ctx, "qemu-io", "-c", "sleep 600000", path)
			must(t, cmd.Start())
			eventually(t, "QEMU has it open", func() bool {
				used, err := volume.Disk{}.InUse(path)
				return used && err == nil
			})
			return func() {
				cancel()
				_ = cmd.Wait()
			}
		},
		hang: func(t *testing.T) func() {
			// Opening a FIFO that nobody writes to waits for ever.
			must(t, os.Remove(marker))
			must(t, syscall.Mkfifo(marker, 0o644))
			return func() {
				w, err := os.OpenFile(marker, os.O_WRONLY, 0)
				must(t, err)
				must(t, w.Close())
				must(t, os.Remove(marker))
				must(t, os.WriteFile(marker, []byte(poolID+"\n"), 0o644))
			}
		},
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type agent struct {
	*volume.Kind
	t   *testing.T
	bed *bed
	cfg volume.Config
}

func newAgent(t *testing.T, b *bed, data, name string) *agent {
	t.Helper()
	cfg := volume.Config{Data: data, Host: name, Run: b.run, Files: b.files, Patience: &host.Patience{}, Log: zerolog.Nop()}
	k, err := volume.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &agent{k, t, b, cfg}
}

func (a *agent) vol(name string) desired.Volume {
	return desired.Volume{Pool: poolID, Path: a.bed.dir + "/volumes/" + name + ".qcow2", Format: desired.FormatQCOW2, Bytes: 8 << 20}
}

// want checks the fault of Ensure, and that a success leaves nothing to do.
func (a *agent) want(id string, spec desired.Volume, code desired.Code) desired.VolumeFacts {
	a.t.Helper()
	h, err := a.Ensure(context.Background(), id, spec, nil)
	var got desired.Code
	if err != nil {
		got = engine.FaultOf(err).Code
	}
	if got != code {
		a.t.Fatalf("ensure: %q (%v), want %q", got, err, code)
	}
	if err != nil {
		return desired.VolumeFacts{}
	}
	if d := a.Diff(id, spec, h); d != "" {
		a.t.Fatalf("Ensure succeeded and left: %s", d)
	}
	a.wantDiff(id, spec, "")
	return a.Facts(id, h).(desired.VolumeFacts)
}

func (a *agent) wantDiff(id string, spec desired.Volume, diff string) {
	a.t.Helper()
	all, err := a.Observe(context.Background())
	if err != nil {
		a.t.Fatal(err)
	}
	got := "absent"
	if h, ok := all[id]; ok {
		got = a.Diff(id, spec, h)
	}
	if got != diff {
		a.t.Fatalf("diff is %q, want %q", got, diff)
	}
}

func (a *agent) exists(path string) bool {
	_, err := a.bed.files.Stat(path)
	return err == nil
}

func TestConformance(t *testing.T) {
	beds := map[string]func(t *testing.T) *bed{
		"sim":  func(*testing.T) *bed { b, _ := simBed(); return b },
		"real": realBed,
	}
	for name, newBed := range beds {
		for _, c := range conformance() {
			t.Run(name+"/"+c.name, func(t *testing.T) { c.run(t, newAgent(t, newBed(t), t.TempDir(), "h1")) })
		}
	}
}

type conformanceTest struct {
	name string
	run  func(t *testing.T, a *agent)
}

func conformance() []conformanceTest {
	return []conformanceTest{
		{"create, grow, remove by tombstone", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.wantDiff("v", spec, "absent")
			if f := a.want("v", spec, ""); f.VirtualBytes != 8<<20 || f.Absent {
				t.Errorf("facts: %+v", f)
			}
			a.want("v", spec, "")
			spec.Bytes = 16 << 20
			a.wantDiff("v", spec, "smaller than wanted")
			if f := a.want("v", spec, ""); f.VirtualBytes != 16<<20 {
				t.Errorf("facts: %+v", f)
			}
			spec.Absent = true
			a.wantDiff("v", spec, "not removed yet")
			if f := a.want("v", spec, ""); !f.Absent {
				t.Errorf("facts: %+v", f)
			}
			if a.exists(spec.Path) {
				t.Error("file is still there")
			}
			if err := a.Remove(t.Context(), "v", volume.Have{}); err != nil {
				t.Error(err)
			}
			a.wantDiff("v", spec, "absent")
		}},
		{"raw", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			spec.Format, spec.Path = desired.FormatRaw, a.bed.dir+"/volumes/v.raw"
			if f := a.want("v", spec, ""); f.VirtualBytes != 8<<20 {
				t.Errorf("facts: %+v", f)
			}
			spec.Bytes *= 2
			if f := a.want("v", spec, ""); f.VirtualBytes != 16<<20 {
				t.Errorf("facts: %+v", f)
			}
		}},
		{"overlay", func(t *testing.T, a *agent) {
			base := a.vol("base")
			a.want("base", base, "")
			spec := a.vol("v")
			spec.Backing = &desired.Backing{Path: base.Path, Format: desired.FormatQCOW2}
			a.want("v", spec, "")
			other := spec
			other.Backing = nil
			a.wantDiff("v", other, fmt.Sprintf("based on %q", base.Path))
			a.want("v", other, desired.CodeConflict)
			missing := a.vol("w")
			missing.Backing = &desired.Backing{Path: a.bed.dir + "/images/none", Format: desired.FormatRaw}
			a.want("w", missing, desired.CodeMissing)
			if a.exists(missing.Path) {
				t.Error("a failed create left a file")
			}
		}},
		{"leaving the document removes nothing", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			if err := a.Remove(t.Context(), "v", volume.Have{}); err != nil {
				t.Fatal(err)
			}
			a.wantDiff("v", spec, "absent")
			if !a.exists(spec.Path) {
				t.Fatal("file is gone")
			}
			a.want("v", spec, "")
		}},
		{"a lost volume is not made anew", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			a.bed.drop(t, spec.Path)
			a.wantDiff("v", spec, "missing")
			b := newAgent(t, a.bed, a.cfg.Data, "h1")
			b.want("v", spec, desired.CodeMissing)
			if err := b.Remove(t.Context(), "v", volume.Have{}); err != nil {
				t.Fatal(err)
			}
			b.want("v", spec, desired.CodeMissing)
			if b.exists(spec.Path) {
				t.Error("an empty volume stands in for the lost one")
			}
			spec.Absent = true
			b.want("v", spec, "")
		}},
		{"a volume that another host had and that is lost is not made anew", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			kept, err := a.bed.files.Head(spec.Path, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			a.bed.drop(t, spec.Path)
			spec.Exists = true
			b := newAgent(t, a.bed, t.TempDir(), "h2") // it has no record
			_, err = b.Ensure(t.Context(), "v", spec, nil)
			if f := engine.FaultOf(err); f.Code != desired.CodeMissing || !strings.Contains(f.Remedy, "backup") {
				t.Fatalf("ensure: %+v (%v)", f, err)
			}
			if b.exists(spec.Path) {
				t.Error("an empty volume stands in for the lost one")
			}
			// It is looked for until it is back, also by an agent that was restarted.
			b = newAgent(t, a.bed, b.cfg.Data, "h2")
			b.wantDiff("v", spec, "missing")
			a.bed.put(t, spec.Path, kept)
			b.wantDiff("v", spec, "")
			// That it exists is no work to do for the host that made it.
			a.wantDiff("v", spec, "")
			a.want("v", spec, "")
		}},
		{"foreign files are not touched", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			foreign := []byte(strings.Repeat("precious ", 100))
			a.bed.put(t, spec.Path, foreign)
			a.want("v", spec, desired.CodeConflict)
			if b, err := a.bed.files.Head(spec.Path, 2000); err != nil || !cmp.Equal(b, foreign) {
				t.Errorf("foreign file changed: %v", err)
			}
		}},
		{"another host's volume is adopted", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			newAgent(t, a.bed, t.TempDir(), "h2").want("v", spec, "")
		}},
		{"a volume in use", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			release := a.bed.use(t, spec.Path)
			defer release()
			grown, gone := spec, spec
			grown.Bytes *= 2
			gone.Absent = true
			a.want("v", grown, desired.CodeInUse)
			a.want("v", gone, desired.CodeInUse)
			if !a.exists(spec.Path) {
				t.Fatal("removed while in use")
			}
			release()
			a.want("v", grown, "")
			a.want("v", gone, "")
		}},
		{"a pool that is not mounted", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			marker := a.bed.dir + "/" + desired.PoolMarker
			a.bed.drop(t, marker)
			other, gone := a.vol("w"), spec
			gone.Absent = true
			a.want("v", spec, desired.CodeStorageUnreachable)
			a.want("w", other, desired.CodeStorageUnreachable)
			a.want("v", gone, desired.CodeStorageUnreachable)
			if a.exists(other.Path) {
				t.Error("made a volume in a pool that is not there")
			}
			a.bed.put(t, marker, []byte(poolID+"\n"))
			a.want("v", spec, "")
		}},
		{"a storage that hangs", func(t *testing.T, a *agent) {
			spec := a.vol("v")
			a.want("v", spec, "")
			release := a.bed.hang(t)
			a.want("v", spec, desired.CodeStorageUnreachable)
			all, err := a.Observe(t.Context())
			if err != nil || all["v"].Err == nil || engine.FaultOf(all["v"].Err).Code != desired.CodeStorageUnreachable {
				t.Errorf("observe: %+v, %v", all["v"], err)
			}
			release()
			eventually(t, "it comes back", func() bool {
				h, err := a.ObserveOne(t.Context(), "v")
				return err == nil && a.Diff("v", spec, *h) == ""
			})
		}},
	}
}

func TestFullAndReadOnly(t *testing.T) {
	b, s := simBed()
	a := newAgent(t, b, t.TempDir(), "h1")
	spec := a.vol("v")
	s.SetFree(0)
	a.want("v", spec, desired.CodeNoSpace)
	s.SetFree(1 << 30)
	s.SetReadOnly(true)
	a.want("v", spec, desired.CodeReadOnly)
	s.SetReadOnly(false)
	a.want("v", spec, "")
	if d := cmp.Diff([]string{"/pool/" + desired.PoolMarker, spec.Path}, s.Files()); d != "" {
		t.Errorf("files: %s", d)
	}
}

// server serves one image in every bad way.
type server struct {
	content  []byte
	cut      atomic.Int64 // ends each answer after so many bytes; 0 never
	status   atomic.Int64 // answers with it; 0 for what is right
	noRange  atomic.Bool
	requests atomic.Int64
	served   atomic.Int64 // bytes
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if status := s.status.Load(); status != 0 {
		w.WriteHeader(int(status))
		return
	}
	if s.noRange.Load() {
		r.Header.Del("Range")
	}
	http.ServeContent(&cutter{w, s}, r, "", time.Time{}, strings.NewReader(string(s.content)))
}

type cutter struct {
	http.ResponseWriter
	s *server
}

func (c *cutter) Write(b []byte) (int, error) {
	if cut := c.s.cut.Load(); cut > 0 && int64(len(b)) > cut {
		n, _ := c.ResponseWriter.Write(b[:cut])
		c.s.served.Add(int64(n))
		return n, errors.New("cut")
	}
	n, err := c.ResponseWriter.Write(b)
	c.s.served.Add(int64(n))
	return n, err
}

type fetcher struct {
	urls []string
	err  error
}

func (f *fetcher) URLs(context.Context, string) ([]string, error) { return f.urls, f.err }

func TestImages(t *testing.T) {
	content := make([]byte, 3<<20+17)
	for i := range content {
		content[i] = byte(i * 7)
	}
	sum := sha256.Sum256(content)
	for name, newBed := range map[string]func(t *testing.T) *bed{
		"sim": func(*testing.T) *bed { b, _ := simBed(); return b }, "real": realBed,
	} {
		type world struct {
			*bed
			srv    *server
			fetch  *fetcher
			images *volume.Images
			vols   *agent
			spec   desired.Image
		}
		setup := func(t *testing.T) *world {
			w := &world{bed: newBed(t), srv: &server{content: content}}
			ts := httptest.NewServer(w.srv)
			t.Cleanup(ts.Close)
			w.fetch = &fetcher{urls: []string{ts.URL + "/image?signature=secret"}}
			w.vols = newAgent(t, w.bed, t.TempDir(), "h1")
			var err error
			if w.images, err = volume.NewImages(w.vols.cfg, w.fetch, ts.Client()); err != nil {
				t.Fatal(err)
			}
			w.spec = desired.Image{
				Pool: poolID, Image: "img", Path: w.dir + "/images/img", SHA256: hex.EncodeToString(sum[:]),
				Bytes: uint64(len(content)), Format: desired.FormatRaw,
			}
			return w
		}
		want := func(t *testing.T, w *world, code desired.Code) {
			t.Helper()
			h, err := w.images.Ensure(t.Context(), "i", w.spec, nil)
			var got desired.Code
			if err != nil {
				got = engine.FaultOf(err).Code
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the signature is in the error: %v", err)
				}
			}
			if got != code {
				t.Fatalf("ensure: %q (%v), want %q", got, err, code)
			}
			if err == nil && w.images.Diff("i", w.spec, h) != "" {
				t.Fatalf("Ensure succeeded and left: %s", w.images.Diff("i", w.spec, h))
			}
		}
		names := func(t *testing.T, w *world) []string {
			t.Helper()
			list, err := w.files.List(w.dir + "/images")
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		t.Run(name+"/fetched once", func(t *testing.T) {
			w := setup(t)
			want(t, w, "")
			want(t, w, "")
			if n := w.srv.requests.Load(); n != 1 {
				t.Errorf("%d requests", n)
			}
			if d := cmp.Diff([]string{"img"}, names(t, w)); d != "" {
				t.Errorf("files: %s", d)
			}
		})
		t.Run(name+"/cut off and resumed", func(t *testing.T) {
			w := setup(t)
			w.srv.cut.Store(20000)
			want(t, w, "")
			if n := w.srv.served.Load(); n != int64(len(content)) {
				t.Errorf("%d bytes served for %d", n, len(content))
			}
		})
		t.Run(name+"/resumed after the agent's death, without ranges", func(t *testing.T) {
			w := setup(t)
			w.put(t, w.dir+"/images/.img.h1.part", content[:1000])
			w.srv.noRange.Store(true)
			want(t, w, "")
		})
		t.Run(name+"/resumed after the agent's death", func(t *testing.T) {
			w := setup(t)
			w.put(t, w.dir+"/images/.img.h1.part", content[:1<<20])
			want(t, w, "")
			if n := w.srv.served.Load(); n != int64(len(content))-1<<20 {
				t.Errorf("%d bytes served", n)
			}
		})
		t.Run(name+"/wrong digest", func(t *testing.T) {
			w := setup(t)
			w.spec.SHA256 = strings.Repeat("ab", 32)
			want(t, w, desired.CodeChecksum)
			if n := names(t, w); len(n) != 0 {
				t.Errorf("files: %v", n)
			}
		})
		t.Run(name+"/longer than said", func(t *testing.T) {
			w := setup(t)
			w.spec.Bytes -= 5
			want(t, w, desired.CodeChecksum)
			if n := names(t, w); len(n) != 0 {
				t.Errorf("files: %v", n)
			}
		})
		t.Run(name+"/server says no", func(t *testing.T) {
			w := setup(t)
			w.srv.status.Store(403)
			want(t, w, desired.CodeDownload)
			w.srv.status.Store(0)
			w.fetch.err = errors.New("no controller")
			want(t, w, desired.CodeDownload)
			w.fetch.err = nil
			want(t, w, "")
		})
		t.Run(name+"/found in a shared pool", func(t *testing.T) {
			w := setup(t)
			w.put(t, w.spec.Path, content)
			want(t, w, "")
			if n := w.srv.requests.Load(); n != 0 {
				t.Errorf("%d requests", n)
			}
			changed := append([]byte{}, content...)
			changed[5]++
			w.put(t, w.spec.Path, changed)
			want(t, w, desired.CodeChecksum)
		})
		t.Run(name+"/removed when unused only", func(t *testing.T) {
			w := setup(t)
			want(t, w, "")
			v := w.vols.vol("v")
			v.Backing = &desired.Backing{Path: w.spec.Path, Format: desired.FormatRaw}
			// Another host's volume: this host has no record of it.
			other := newAgent(t, w.bed, t.TempDir(), "h2")
			other.want("v", v, "")
			if err := w.images.Remove(t.Context(), "i", volume.HaveImage{}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]string{"img"}, names(t, w)); d != "" {
				t.Errorf("files: %s", d)
			}
			if all, err := w.images.Observe(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("observe: %v, %v", all, err)
			}
			want(t, w, "")
			v.Absent = true
			other.want("v", v, "")
			if err := w.images.Remove(t.Context(), "i", volume.HaveImage{}); err != nil {
				t.Fatal(err)
			}
			if n := names(t, w); len(n) != 0 {
				t.Errorf("files: %v", n)
			}
		})
	}
}

func TestImageWithoutSpace(t *testing.T) {
	b, s := simBed()
	a := newAgent(t, b, t.TempDir(), "h1")
	srv := httptest.NewServer(&server{content: make([]byte, 5000)})
	defer srv.Close()
	images, err := volume.NewImages(a.cfg, &fetcher{urls: []string{srv.URL}}, srv.Client())
	if err != nil {
		t.Fatal(err)
	}
	s.SetFree(4000)
	spec := desired.Image{Pool: poolID, Image: "img", Path: "/pool/images/img", SHA256: strings.Repeat("00", 32), Bytes: 5000, Format: desired.FormatRaw}
	_, err = images.Ensure(t.Context(), "i", spec, nil)
	if engine.FaultOf(err).Code != desired.CodeNoSpace {
		t.Errorf("ensure: %v", err)
	}
	if d := cmp.Diff([]string{"/pool/" + desired.PoolMarker}, s.Files()); d != "" {
		t.Errorf("files: %s", d)
	}
}
