// Package pool is the kind for primary storages on a host: directories, mount points that the operator made, and NFS
// exports that the agent mounts.
//
// # What it guarantees
//
//   - A pool that is Ready is there, writable, and bears this storage's marker; one that has lost its marker is reported
//     and never marked anew, since what looks like an empty pool may be an unmounted one.
//   - A storage that hangs is reported within seconds, is not waited for, and costs one waiting thread at a time.
//   - Nothing is mounted over a foreign mount, and nothing but our own mount is unmounted. No data is ever removed.
//   - Capacity is told in steps, so that a busy storage does not make a busy bus.
//
// What is in a pool is agent/volume's.
package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// Config is what New needs.
type Config struct {
	// Data is the agent's data directory.
	Data    string
	Machine Machine
	// Patience is shared with who else touches pools.
	Patience *host.Patience
	Log      zerolog.Logger
	// Probe is how often pools are looked at for hanging; 10 s when zero.
	Probe time.Duration
}

// Kind implements engine.Kind for desired.Pool.
type Kind struct {
	cfg Config
	log zerolog.Logger
	dir string

	mu sync.Mutex
	// told is what was last found of each pool.
	told map[string]Have
}

// record is what this host knows of a pool.
type record struct {
	Spec desired.Pool `json:"spec"`
	// Marked is set once the marker was seen here.
	Marked bool `json:"marked,omitempty"`
	// Mounted is set once the agent mounted it.
	Mounted bool `json:"mounted,omitempty"`
}

// Have is a pool as it is.
type Have struct {
	Spec desired.Pool
	// Mounted is what is mounted at the path, "" for nothing.
	Mounted string
	// Marker is the storage that the marker names.
	Marker string
	Total  uint64
	Free   uint64
	// Err is why the pool can't be used.
	Err error
}

// New makes the kind.
func New(cfg Config) (*Kind, error) {
	if cfg.Data == "" || cfg.Machine == nil || cfg.Patience == nil {
		return nil, errors.New("make pool kind: Data, Machine and Patience must be set")
	}
	if cfg.Probe == 0 {
		cfg.Probe = 10 * time.Second
	}
	return &Kind{
		cfg: cfg, log: cfg.Log.With().Str("kind", string(desired.KindPool)).Logger(), dir: filepath.Join(cfg.Data, "pools"),
		told: map[string]Have{},
	}, nil
}

// How long a storage may take to answer, and to be mounted.
const (
	touchLimit = 4 * time.Second
	mountLimit = 45 * time.Second
)

// defaultNFSOptions: hard, since a soft mount turns a server's pause into errors that guests' file systems remember. What
// hangs with it is Patience's to bound.
const defaultNFSOptions = "hard,timeo=150,retrans=3"

func (k *Kind) recordPath(id string) string { return filepath.Join(k.dir, id+".json") }

func (k *Kind) load(id string) (*record, error) {
	b, err := os.ReadFile(k.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read record %s: %w", k.recordPath(id), err)
	}
	return &r, nil
}

func (k *Kind) save(id string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := host.WriteFile(k.recordPath(id), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write record of pool %s: %w", id, err)
	}
	return nil
}

func (k *Kind) ids() ([]string, error) {
	entries, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Observe implements engine.Kind.
func (k *Kind) Observe(ctx context.Context) (map[string]Have, error) {
	ids, err := k.ids()
	if err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	found := map[string]Have{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			r, err := k.load(id)
			if r == nil && err == nil {
				return
			}
			h := Have{Err: err}
			if err == nil {
				h = k.look(ctx, id, *r)
			}
			mu.Lock()
			found[id] = h
			mu.Unlock()
		})
	}
	wg.Wait()
	return found, ctx.Err()
}

// ObserveOne implements engine.OneObserver.
func (k *Kind) ObserveOne(ctx context.Context, id string) (*Have, error) {
	r, err := k.load(id)
	if err != nil || r == nil {
		return nil, err
	}
	h := k.look(ctx, id, *r)
	return &h, ctx.Err()
}

// mountedAt is what covers a path, and what kind it is.
func (k *Kind) mountedAt(path string) (Mount, bool, error) {
	mounts, err := k.cfg.Machine.Mounts()
	if err != nil {
		return Mount{}, false, fmt.Errorf("list mounts: %w", err)
	}
	// The last one is on top.
	for _, m := range slices.Backward(mounts) {
		if m.Path == path {
			return m, true, nil
		}
	}
	return Mount{}, false, nil
}

// sameSource compares what was to be mounted with what the kernel says, which drops trailing slashes.
func sameSource(want, have string) bool {
	return strings.TrimRight(want, "/") == strings.TrimRight(have, "/")
}

// look finds what is there of a pool.
func (k *Kind) look(ctx context.Context, id string, r record) (h Have) {
	h = Have{Spec: r.Spec}
	defer func() {
		h.Err = fault(h.Err)
		k.mu.Lock()
		k.told[id] = h
		k.mu.Unlock()
	}()
	m, mounted, err := k.mountedAt(r.Spec.Path)
	if err != nil {
		h.Err = err
		return h
	}
	h.Mounted = m.Source
	if h.Err = checkMount(r.Spec, m, mounted); h.Err != nil {
		return h
	}
	type answer struct {
		marker string
		space  Space
	}
	a, err := host.Touch(ctx, k.cfg.Patience, id, touchLimit, func() (a answer, err error) {
		if a.space, err = k.cfg.Machine.Space(r.Spec.Path); err != nil {
			return a, err
		}
		a.marker, err = k.cfg.Machine.ReadMarker(filepath.Join(r.Spec.Path, desired.PoolMarker))
		return a, err
	})
	h.Marker, h.Total, h.Free = strings.TrimSpace(a.marker), a.space.Total, a.space.Free
	switch {
	case err != nil && notExist(err) && r.Marked:
		h.Err = engine.Fault(desired.CodeMissing, "mount the storage again; if it was emptied on purpose, delete it and add it anew",
			fmt.Errorf("%s has lost its marker %s", r.Spec.Path, desired.PoolMarker))
	case err != nil:
		h.Err = fmt.Errorf("look at %s: %w", r.Spec.Path, err)
	case h.Marker != id:
		h.Err = engine.Fault(desired.CodeConflict, "use another directory for this storage",
			fmt.Errorf("%s belongs to storage %q by its marker %s", r.Spec.Path, h.Marker, desired.PoolMarker))
	case a.space.ReadOnly:
		h.Err = engine.Fault(desired.CodeReadOnly, "", fmt.Errorf("%s is mounted read-only", r.Spec.Path))
	}
	return h
}

// checkMount compares what is mounted with what must be.
func checkMount(spec desired.Pool, m Mount, mounted bool) error {
	switch spec.Type {
	case desired.PoolSharedMount:
		if !mounted {
			return engine.Fault(desired.CodeMissing, "mount the shared storage there on this host",
				fmt.Errorf("%s is not a mount point", spec.Path))
		}
	case desired.PoolNFS:
		if !mounted {
			return engine.Fault(desired.CodeMissing, "check the storage server and the network to it",
				fmt.Errorf("%s is not mounted at %s", spec.Source, spec.Path))
		}
		// The type is nfs or nfs4, or fuse.* where the kernel has no client.
		if !sameSource(spec.Source, m.Source) {
			return engine.Fault(desired.CodeConflict, "unmount it, or use another path for this storage",
				fmt.Errorf("%s is mounted at %s, not %s", m.Source, spec.Path, spec.Source))
		}
	case desired.PoolLocal:
	}
	return nil
}

// Diff implements engine.Kind.
func (k *Kind) Diff(_ string, want desired.Pool, h Have) string {
	switch {
	case want != h.Spec:
		return "of another type, path, source or options"
	case h.Err != nil:
		return h.Err.Error()
	default:
		return ""
	}
}

// Facts implements engine.Facter. Free space is told in steps of 1/256 of the whole, at most 256 MiB, rounded down.
func (k *Kind) Facts(_ string, h Have) any {
	step := min(max(h.Total/256, 1<<20), 256<<20)
	return desired.PoolFacts{TotalBytes: h.Total, FreeBytes: h.Free / step * step}
}

// Ensure implements engine.Kind.
func (k *Kind) Ensure(ctx context.Context, id string, want desired.Pool, _ *Have) (Have, error) {
	if err := checkPath(want.Path); err != nil {
		return Have{}, engine.Final(err)
	}
	r, err := k.load(id)
	if err != nil {
		return Have{}, err
	}
	if r != nil && (r.Spec.Path != want.Path || r.Spec.Type != want.Type || r.Spec.Source != want.Source) {
		return Have{}, engine.Final(engine.Fault(desired.CodeInvalid, "delete the storage and add it anew",
			fmt.Errorf("pool %s is %s and can't become %s", id, describe(r.Spec), describe(want))))
	}
	if r == nil {
		if err := k.checkOverlap(id, want.Path); err != nil {
			return Have{}, err
		}
		r = &record{}
	}
	if r.Spec != want {
		r.Spec = want
		if err := k.save(id, *r); err != nil {
			return Have{}, err
		}
	}
	if err := k.bring(ctx, id, r); err != nil {
		return Have{}, fault(fmt.Errorf("bring up pool %s: %w", id, err))
	}
	h := k.look(ctx, id, *r)
	return h, h.Err
}

func describe(p desired.Pool) string {
	return strings.TrimSpace(string(p.Type) + " " + p.Path + " " + p.Source)
}

// checkOverlap keeps two storages of one host out of each other's directories.
func (k *Kind) checkOverlap(id, path string) error {
	ids, err := k.ids()
	if err != nil {
		return err
	}
	for _, other := range ids {
		r, err := k.load(other)
		if err != nil || r == nil || other == id {
			continue
		}
		if within(path, r.Spec.Path) || within(r.Spec.Path, path) {
			return engine.Fault(desired.CodeConflict, "use another directory for this storage",
				fmt.Errorf("path %s of pool %s overlaps %s of pool %s", path, id, r.Spec.Path, other))
		}
	}
	return nil
}

// within reports whether a path is the directory or in it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// forbidden are the directories that no pool may be, or be in. roots only may not be one.
func forbidden() (trees, roots []string) {
	trees = []string{"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot", "/dev", "/proc", "/sys", "/run", "/var/run", "/var/lock"}
	roots = []string{
		"/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/cache", "/var/lib", "/var/log", "/var/spool", "/var/tmp",
		"/var/lib/dpkg", "/var/lib/libvirt",
	}
	return trees, roots
}

// checkPath refuses the system's own directories.
func checkPath(path string) error {
	trees, roots := forbidden()
	if slices.Contains(roots, path) || slices.ContainsFunc(trees, func(t string) bool { return within(path, t) }) {
		return engine.Fault(desired.CodeInvalid, "use a directory of its own, such as /var/lib/shoal/NAME",
			fmt.Errorf("path: %s belongs to the system", path))
	}
	return nil
}

// bring mounts and marks.
func (k *Kind) bring(ctx context.Context, id string, r *record) error {
	want := r.Spec
	m, mounted, err := k.mountedAt(want.Path)
	if err != nil {
		return err
	}
	if want.Type != desired.PoolNFS || mounted {
		if err := checkMount(want, m, mounted); err != nil && (want.Type != desired.PoolLocal) {
			return err
		}
	}
	if want.Type != desired.PoolSharedMount && !mounted {
		// A local path, or an NFS mount's that is not mounted, hangs only with something else.
		_, err := host.Touch(ctx, k.cfg.Patience, id, touchLimit, func() (struct{}, error) {
			var none struct{}
			if r.Marked && want.Type == desired.PoolLocal {
				return none, nil // It was made long ago: whether it is still there is look's question.
			}
			if err := k.cfg.Machine.MkdirAll(want.Path); err != nil {
				return none, err
			}
			resolved, err := k.cfg.Machine.Resolve(want.Path)
			if err != nil {
				return none, err
			}
			return none, checkPath(resolved)
		})
		if err != nil {
			return err
		}
	}
	if want.Type == desired.PoolNFS && !mounted {
		if err := k.mount(ctx, id, r); err != nil {
			return err
		}
	}
	if r.Marked {
		return nil
	}
	return k.mark(ctx, id, r)
}

func (k *Kind) mount(ctx context.Context, id string, r *record) error {
	options := r.Spec.Options
	if options == "" {
		options = defaultNFSOptions
	}
	if !r.Mounted {
		// First, so that a mount that outlives us is known as ours.
		r.Mounted = true
		if err := k.save(id, *r); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	_, err := host.Touch(ctx, k.cfg.Patience, id, mountLimit+5*time.Second, func() (struct{}, error) {
		return struct{}{}, k.cfg.Machine.Mount(bounded, "nfs", r.Spec.Source, r.Spec.Path, options)
	})
	if err != nil {
		// Too late is as good as in time.
		if m, mounted, lookErr := k.mountedAt(r.Spec.Path); lookErr == nil && mounted && sameSource(r.Spec.Source, m.Source) {
			return nil
		}
		return engine.Fault(desired.CodeStorageUnreachable, "", fmt.Errorf("mount %s at %s: %w", r.Spec.Source, r.Spec.Path, err))
	}
	k.log.Info().Str("id", id).Msg("storage mounted")
	return nil
}

// mark writes the marker, or finds it there.
func (k *Kind) mark(ctx context.Context, id string, r *record) error {
	path := filepath.Join(r.Spec.Path, desired.PoolMarker)
	marker, err := host.Touch(ctx, k.cfg.Patience, id, touchLimit, func() (string, error) {
		marker, err := k.cfg.Machine.ReadMarker(path)
		if err != nil && !notExist(err) {
			return "", err
		}
		// Empty is what a crash of another host may have left.
		if strings.TrimSpace(marker) == "" {
			if err := k.cfg.Machine.WriteMarker(path, id+"\n"); err != nil {
				return "", err
			}
			// Two storages may have been given the same directory at the same time: one of them reads the other's id.
			if marker, err = k.cfg.Machine.ReadMarker(path); err != nil {
				return "", err
			}
		}
		return strings.TrimSpace(marker), nil
	})
	if err != nil {
		return err
	}
	if marker != id {
		return nil // look says whose it is
	}
	r.Marked = true
	return k.save(id, *r)
}

// Remove implements engine.Kind: it unmounts what the agent mounted. Data and marker stay.
func (k *Kind) Remove(ctx context.Context, id string, _ Have) error {
	r, err := k.load(id)
	if err != nil || r == nil {
		return err
	}
	if r.Mounted {
		m, mounted, err := k.mountedAt(r.Spec.Path)
		if err != nil {
			return err
		}
		if mounted && sameSource(r.Spec.Source, m.Source) {
			bounded, cancel := context.WithTimeout(ctx, mountLimit)
			defer cancel()
			_, err := host.Touch(ctx, k.cfg.Patience, id, mountLimit+5*time.Second, func() (struct{}, error) {
				return struct{}{}, k.cfg.Machine.Unmount(bounded, r.Spec.Path)
			})
			if err != nil {
				err = fmt.Errorf("unmount pool %s: %w", id, err)
				if strings.Contains(err.Error(), "busy") {
					return engine.Fault(desired.CodeInUse, "end what uses the storage on this host", err)
				}
				return engine.Fault(desired.CodeStorageUnreachable, "", err)
			}
			k.log.Info().Str("id", id).Msg("storage unmounted")
		}
	}
	k.mu.Lock()
	delete(k.told, id)
	k.mu.Unlock()
	err = os.Remove(k.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Watch implements engine.Watcher: it tells of mounts that come and go, and of storages that begin or end to hang.
func (k *Kind) Watch(ctx context.Context, changed func(id string)) error {
	mounts := make(chan struct{}, 1)
	var failed error
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		failed = k.cfg.Machine.WatchMounts(ctx, func() {
			select {
			case mounts <- struct{}{}:
			default:
			}
		})
		cancel()
	})
	ticker := time.NewTicker(k.cfg.Probe)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return failed
		case <-mounts:
			changed("")
		case <-ticker.C:
			k.probe(ctx, changed)
		}
	}
}

// probe tells of pools whose health is not what was last found.
func (k *Kind) probe(ctx context.Context, changed func(id string)) {
	k.mu.Lock()
	before := make(map[string]Have, len(k.told))
	maps.Copy(before, k.told)
	k.mu.Unlock()
	now, err := k.Observe(ctx)
	if err != nil {
		return
	}
	for id, h := range now {
		if b, ok := before[id]; !ok || health(b) != health(h) || b.Mounted != h.Mounted {
			changed(id)
		}
	}
}

// health is how a pool does, in a word.
func health(h Have) desired.Code {
	if h.Err == nil {
		return ""
	}
	return engine.FaultOf(h.Err).Code
}

// fault gives an error that carries none the code a user can act on.
func fault(err error) error {
	var f *desired.Fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	switch {
	case errors.Is(err, host.ErrHung), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENOTCONN),
		errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ETIMEDOUT):
		return engine.Fault(desired.CodeStorageUnreachable, "", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return engine.Fault(desired.CodeNoSpace, "", err)
	case errors.Is(err, syscall.EROFS):
		return engine.Fault(desired.CodeReadOnly, "", err)
	case errors.Is(err, fs.ErrNotExist):
		return engine.Fault(desired.CodeMissing, "", err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EEXIST):
		return engine.Fault(desired.CodeConflict, "", err)
	}
	return err
}
