package pool_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/pool"
	"shoal/agent/sim"
	"shoal/desired"
)

// bed is a machine and the hands of those who are not the agent.
type bed struct {
	machine pool.Machine
	dir     string
	put     func(t *testing.T, path, content string)
	drop    func(t *testing.T, path string)
	mount   func(t *testing.T, source, path string)
	unmount func(t *testing.T, path string)
	export  func(source string, up bool)
	hang    func(t *testing.T, dir string) (release func())
}

func simBed() *bed {
	s := sim.NewStorage(1 << 30)
	return &bed{
		machine: s, dir: "/pools",
		put:     func(_ *testing.T, path, content string) { s.Put(path, []byte(content)) },
		drop:    func(_ *testing.T, path string) { s.Drop(path) },
		mount:   func(_ *testing.T, source, path string) { s.MountForeign(source, path) },
		unmount: func(_ *testing.T, path string) { s.UnmountForeign(path) },
		export:  s.Export,
		hang: func(_ *testing.T, dir string) func() {
			s.Hang(dir, true)
			return func() { s.Hang(dir, false) }
		},
	}
}

// tmpfs mounts a tmpfs in place of each NFS export: to the kernel's tables it looks the same.
type tmpfs struct {
	pool.Host
	up map[string]bool
}

func (m *tmpfs) Mount(ctx context.Context, _, source, path, _ string) error {
	if !m.up[source] {
		return context.DeadlineExceeded
	}
	return m.Host.Mount(ctx, "tmpfs", source, path, "size=16m")
}

func realBed(t *testing.T) *bed {
	m := &tmpfs{Host: pool.Host{Run: host.Machine{}}, up: map[string]bool{}}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return &bed{
		machine: m, dir: t.TempDir(),
		put:  func(t *testing.T, path, content string) { must(t, os.WriteFile(path, []byte(content), 0o644)) },
		drop: func(t *testing.T, path string) { must(t, os.RemoveAll(path)) },
		mount: func(t *testing.T, source, path string) {
			must(t, os.MkdirAll(path, 0o755))
			must(t, m.Host.Mount(t.Context(), "tmpfs", source, path, "size=16m"))
		},
		unmount: func(t *testing.T, path string) { must(t, m.Unmount(t.Context(), path)) },
		export:  func(source string, up bool) { m.up[source] = up },
		hang: func(t *testing.T, dir string) func() {
			// Opening a FIFO that nobody writes to waits for ever, and no signal of ours ends it.
			marker := filepath.Join(dir, desired.PoolMarker)
			content, err := os.ReadFile(marker)
			must(t, err)
			must(t, os.Remove(marker))
			must(t, syscall.Mkfifo(marker, 0o644))
			return func() {
				w, err := os.OpenFile(marker, os.O_WRONLY, 0)
				must(t, err)
				_, err = w.Write(content)
				must(t, err)
				must(t, w.Close())
				must(t, os.Remove(marker))
				must(t, os.WriteFile(marker, content, 0o644))
			}
		},
	}
}

const insideEnv = "SHOAL_POOL_TEST_INSIDE"

// TestReal runs the conformance suite again in a mount namespace of its own, on the real file system and mounts.
func TestReal(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		t.Skip("is inside already")
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED on real mounts: needs root")
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `mount --make-rprivate / && exec "$@"`, "sh",
		os.Args[0], "-test.v=true", "-test.count=1", "-test.run=^TestConformance$")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a mount namespace of its own: %v\n%s", err, out)
	}
}

type agent struct {
	*pool.Kind
	t    *testing.T
	bed  *bed
	data string
}

func newAgent(t *testing.T, b *bed, data string) *agent {
	t.Helper()
	k, err := pool.New(pool.Config{
		Data: data, Machine: b.machine, Patience: &host.Patience{}, Log: zerolog.Nop(), Probe: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &agent{k, t, b, data}
}

// ensure gives the fault of Ensure, and checks that Diff agrees with it.
func (a *agent) ensure(id string, want desired.Pool) desired.Code {
	a.t.Helper()
	h, err := a.Ensure(context.Background(), id, want, nil)
	if err != nil {
		return engine.FaultOf(err).Code
	}
	if d := a.Diff(id, want, h); d != "" {
		a.t.Fatalf("Ensure succeeded and left: %s", d)
	}
	return ""
}

func (a *agent) want(id string, spec desired.Pool, code desired.Code) {
	a.t.Helper()
	if got := a.ensure(id, spec); got != code {
		a.t.Fatalf("ensure %s: fault %q, want %q", spec.Path, got, code)
	}
}

// health is the fault that Observe finds; "absent" when the pool is not listed.
func (a *agent) health(id string) desired.Code {
	a.t.Helper()
	all, err := a.Observe(context.Background())
	if err != nil {
		a.t.Fatal(err)
	}
	h, ok := all[id]
	switch {
	case !ok:
		return "absent"
	case h.Err != nil:
		return engine.FaultOf(h.Err).Code
	default:
		return ""
	}
}

func (a *agent) wantHealth(id string, code desired.Code) {
	a.t.Helper()
	if got := a.health(id); got != code {
		a.t.Fatalf("health of %s is %q, want %q", id, got, code)
	}
}

func (a *agent) remove(id string) {
	a.t.Helper()
	if err := a.Remove(context.Background(), id, pool.Have{}); err != nil {
		a.t.Fatalf("remove: %v", err)
	}
	a.wantHealth(id, "absent")
}

func TestConformance(t *testing.T) {
	name, newBed := "sim", func(*testing.T) *bed { return simBed() }
	if os.Getenv(insideEnv) != "" {
		name, newBed = "real", realBed
	}
	for _, c := range conformance() {
		t.Run(name+"/"+c.name, func(t *testing.T) { c.run(t, newAgent(t, newBed(t), t.TempDir())) })
	}
}

type conformanceTest struct {
	name string
	run  func(t *testing.T, a *agent)
}

func conformance() []conformanceTest {
	return []conformanceTest{
		{"local", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/a/b"}
			a.wantHealth("one", "absent")
			a.want("one", spec, "")
			a.want("one", spec, "")
			a.wantHealth("one", "")
			all, _ := a.Observe(t.Context())
			if f := a.Facts("one", all["one"]).(desired.PoolFacts); f.TotalBytes == 0 || f.FreeBytes == 0 || f.FreeBytes > f.TotalBytes {
				t.Errorf("facts: %+v", f)
			}
			// Its own marker lets it come back; data and marker outlive it.
			a.remove("one")
			a.want("two", spec, desired.CodeConflict)
			a.remove("two")
			a.want("one", spec, "")
		}},
		{"a lost marker is not replaced", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/a"}
			a.want("one", spec, "")
			a.bed.drop(t, spec.Path+"/"+desired.PoolMarker)
			a.wantHealth("one", desired.CodeMissing)
			b := newAgent(t, a.bed, a.data)
			b.want("one", spec, desired.CodeMissing)
			b.wantHealth("one", desired.CodeMissing)
			b.bed.put(t, spec.Path+"/"+desired.PoolMarker, "one\n")
			b.want("one", spec, "")
		}},
		{"pools don't overlap", func(t *testing.T, a *agent) {
			a.want("one", desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/a"}, "")
			a.want("two", desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/a/b"}, desired.CodeConflict)
			a.want("two", desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/ab"}, "")
			a.want("two", desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/c"}, desired.CodeInvalid)
		}},
		{"system directories are refused", func(t *testing.T, a *agent) {
			for _, path := range []string{"/etc", "/etc/x", "/usr/lib/x", "/bin", "/boot", "/dev/shm/x", "/proc/1", "/sys", "/run/x", "/var", "/home", "/var/lib"} {
				a.want("one", desired.Pool{Type: desired.PoolLocal, Path: path}, desired.CodeInvalid)
			}
			a.wantHealth("one", "absent")
		}},
		{"shared mount", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolSharedMount, Path: a.bed.dir + "/shared"}
			a.want("one", spec, desired.CodeMissing)
			a.bed.mount(t, "/dev/sdz", spec.Path)
			a.want("one", spec, "")
			a.bed.unmount(t, spec.Path)
			a.wantHealth("one", desired.CodeMissing)
			a.want("one", spec, desired.CodeMissing)
			a.bed.mount(t, "/dev/sdy", spec.Path) // another file system, which is empty
			a.want("one", spec, desired.CodeMissing)
			a.remove("one")
			a.bed.unmount(t, spec.Path)
		}},
		{"nfs", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolNFS, Path: a.bed.dir + "/nfs", Source: "server:/export"}
			a.want("one", spec, desired.CodeStorageUnreachable)
			a.bed.export(spec.Source, true)
			a.want("one", spec, "")
			// An agent that starts anew finds it mounted.
			b := newAgent(t, a.bed, a.data)
			b.wantHealth("one", "")
			b.want("one", spec, "")
			b.remove("one")
			mounts, err := a.bed.machine.Mounts()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range mounts {
				if m.Path == spec.Path {
					t.Errorf("still mounted: %+v", m)
				}
			}
		}},
		{"nfs over a foreign mount", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolNFS, Path: a.bed.dir + "/nfs", Source: "server:/export"}
			a.bed.export(spec.Source, true)
			a.bed.mount(t, "other:/export", spec.Path)
			a.want("one", spec, desired.CodeConflict)
			a.remove("one")
			a.bed.unmount(t, spec.Path) // which fails if Remove had done it
		}},
		{"a storage that hangs", func(t *testing.T, a *agent) {
			good := desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/good"}
			bad := desired.Pool{Type: desired.PoolLocal, Path: a.bed.dir + "/bad"}
			a.want("good", good, "")
			a.want("bad", bad, "")
			release := a.bed.hang(t, bad.Path)
			a.wantHealth("bad", desired.CodeStorageUnreachable)
			a.wantHealth("good", "")
			a.want("bad", bad, desired.CodeStorageUnreachable)
			a.want("good", good, "")
			release()
			eventually(t, "it comes back", func() bool { return a.health("bad") == "" })
		}},
		{"changes are told", func(t *testing.T, a *agent) {
			spec := desired.Pool{Type: desired.PoolSharedMount, Path: a.bed.dir + "/shared"}
			a.bed.mount(t, "/dev/sdz", spec.Path)
			a.want("one", spec, "")
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan string, 1000)
			done := make(chan error, 1)
			go func() { done <- a.Watch(ctx, func(id string) { seen <- id }) }()
			await := func(want ...string) {
				t.Helper()
				for limit := time.After(30 * time.Second); ; {
					select {
					case got := <-seen:
						if slices.Contains(want, got) {
							return
						}
					case <-limit:
						t.Fatalf("no word of %q", want)
					}
				}
			}
			await("") // it listens
			a.bed.drop(t, spec.Path+"/"+desired.PoolMarker)
			await("one")
			a.bed.unmount(t, spec.Path)
			await("", "one")
			cancel()
			<-done
		}},
	}
}

// eventually waits for a value. The limit is for failures only.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
