// Package volume is the kinds for volumes and for the image cache: files in pools.
//
// # What it guarantees
//
//   - A file is in its place whole or not at all, also after a crash or a cut download.
//   - Data is removed by a tombstone only, and only while no QEMU of this host has it open.
//   - A volume that was there once, on this host or by its document on any, and that is gone is reported, never made anew: an
//     empty disk in place of a lost one would hide the loss.
//   - A file that is there and is not what the document says is never overwritten.
//   - Nothing is made or missed in a pool whose marker is not there: an unmounted storage looks empty.
//   - Images are checked by digest before they are used; downloads go on where they were cut off.
//   - A storage that hangs blocks the items in it and nothing else.
//
// Mounting and the health of pools are agent/pool's, and where images come from is the Fetcher's.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// How long a storage may take for one look, and for making or growing a file.
const (
	lookLimit  = 5 * time.Second
	writeLimit = 2 * time.Minute
)

// Config is what New and NewImages need.
type Config struct {
	// Data is the agent's data directory: records are kept below it.
	Data string
	// Host is the host's id. It tells apart the unfinished files of hosts that share a pool.
	Host string
	// Run runs qemu-img.
	Run   host.Runner
	Files Files
	// Patience should be the one that agent/pool uses.
	Patience *host.Patience
	Log      zerolog.Logger
}

func (c Config) check() error {
	if c.Data == "" || c.Host == "" || c.Run == nil || c.Files == nil || c.Patience == nil {
		return errors.New("make volume kind: Data, Host, Run, Files and Patience must be set")
	}
	return nil
}

// record is what this host knows of a volume.
type record struct {
	Spec desired.Volume `json:"spec"`
	// Created is set once the file has been in its place.
	Created bool `json:"created,omitempty"`
	// Absent is set once a tombstone has done its work.
	Absent bool `json:"absent,omitempty"`
	// Left is set when the volume left this host's document. The record stays, since what was here must not be made anew.
	Left bool `json:"left,omitempty"`
}

// Kind implements engine.Kind for desired.Volume.
type Kind struct {
	cfg     Config
	log     zerolog.Logger
	records records[record]
}

// Have is a volume as it is.
type Have struct {
	Spec desired.Volume
	// Exists is whether the file is there, Created whether it ever was, Absent whether a tombstone removed it.
	Exists, Created, Absent bool
	VirtualBytes            uint64
	ActualBytes             uint64
	Backing                 string
	// Wrong says why the file is not a volume of the wanted format.
	Wrong string
	// Err is set when the storage can't be looked at; then only Spec, Created and Absent hold.
	Err error
}

// New makes the kind of volumes.
func New(cfg Config) (*Kind, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Kind{
		cfg: cfg, log: cfg.Log.With().Str("kind", string(desired.KindVolume)).Logger(),
		records: records[record]{filepath.Join(cfg.Data, "volumes")},
	}, nil
}

// Observe implements engine.Kind.
func (k *Kind) Observe(ctx context.Context) (map[string]Have, error) {
	all, err := k.records.all()
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	maps.DeleteFunc(all, func(_ string, r record) bool { return r.Left })
	found := lookByPool(all, func(r record) string { return r.Spec.Pool }, func(r record) Have { return k.look(ctx, r) })
	return found, ctx.Err()
}

// ObserveOne implements engine.OneObserver.
func (k *Kind) ObserveOne(ctx context.Context, id string) (*Have, error) {
	r, err := k.records.load(id)
	if err != nil || r == nil || r.Left {
		return nil, err
	}
	h := k.look(ctx, *r)
	return &h, h.Err
}

// look finds what is there of a volume.
func (k *Kind) look(ctx context.Context, r record) Have {
	known := Have{Spec: r.Spec, Created: r.Created, Absent: r.Absent}
	if r.Absent {
		return known
	}
	start := known // the function below may outlive this call
	h, err := host.Touch(ctx, k.cfg.Patience, r.Spec.Pool, lookLimit, func() (Have, error) {
		h := start
		if err := checkMarker(k.cfg.Files, r.Spec.Pool, r.Spec.Path); err != nil {
			return h, err
		}
		info, err := k.cfg.Files.Stat(r.Spec.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		h.Exists, h.VirtualBytes, h.ActualBytes = true, info.Size, info.Allocated
		if !info.Regular {
			h.Wrong = "it is not a regular file"
			return h, nil
		}
		if r.Spec.Format != desired.FormatQCOW2 {
			return h, nil
		}
		b, err := k.cfg.Files.Head(r.Spec.Path, headBytes)
		if err != nil {
			return h, err
		}
		head, err := parseHeader(b)
		switch {
		case err != nil:
			h.Wrong = err.Error()
		case head.corrupt:
			h.Wrong = "QEMU has marked it as corrupt"
		default:
			h.VirtualBytes, h.Backing = head.size, head.backing
		}
		return h, nil
	})
	if err != nil {
		known.Err = fault(fmt.Errorf("look at %s: %w", r.Spec.Path, err))
		return known
	}
	return h
}

// errNoMarker is a pool that is not there.
var errNoMarker = errors.New("the pool's marker is not there: it is not mounted, or not ready yet")

// checkMarker makes sure that a file's pool is there. Files are two levels below their pool.
func checkMarker(files Files, pool, path string) error {
	marker := filepath.Join(filepath.Dir(filepath.Dir(path)), desired.PoolMarker)
	b, err := files.Head(marker, 256)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (%s)", errNoMarker, marker)
	}
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(b)); got != pool {
		return fmt.Errorf("%w: %s names storage %q, not %s", errNoMarker, marker, got, pool)
	}
	return nil
}

// Facts implements engine.Facter. What the file takes is told in steps, since it changes with every write of the guest.
func (k *Kind) Facts(_ string, h Have) any {
	if h.Absent {
		return desired.VolumeFacts{Absent: true}
	}
	step := uint64(64 << 20)
	if h.ActualBytes < step {
		step = 1 << 20
	}
	return desired.VolumeFacts{VirtualBytes: h.VirtualBytes, ActualBytes: (h.ActualBytes + step - 1) / step * step}
}

// Diff implements engine.Kind.
func (k *Kind) Diff(_ string, want desired.Volume, h Have) string {
	backing := ""
	if want.Backing != nil {
		backing = want.Backing.Path
	}
	switch {
	case h.Err != nil:
		return "can't be looked at: " + h.Err.Error()
	case want.Absent && h.Absent:
		return ""
	case want.Absent:
		return "not removed yet"
	case h.Absent:
		return "removed"
	case want.Path != h.Spec.Path || want.Format != h.Spec.Format || want.Pool != h.Spec.Pool:
		return "elsewhere or of another format"
	case !h.Exists:
		return "missing"
	case h.Wrong != "":
		return h.Wrong
	case want.Format == desired.FormatQCOW2 && h.Backing != backing:
		return fmt.Sprintf("based on %q", h.Backing)
	case h.VirtualBytes < want.Bytes:
		return "smaller than wanted"
	case !h.Created:
		return "not recorded"
	default:
		return ""
	}
}

// Ensure implements engine.Kind.
func (k *Kind) Ensure(ctx context.Context, id string, want desired.Volume, _ *Have) (Have, error) {
	r, err := k.records.load(id)
	if err != nil {
		return Have{}, err
	}
	if want.Absent {
		err = k.destroy(ctx, id, want, r)
	} else {
		err = k.bring(ctx, id, want, r)
	}
	if err != nil {
		return Have{}, fault(err)
	}
	h, err := k.ObserveOne(ctx, id)
	if err == nil && h == nil {
		err = fmt.Errorf("volume %s: its record is gone", id)
	}
	if err != nil {
		return Have{}, fault(err)
	}
	return *h, nil
}

func (k *Kind) bring(ctx context.Context, id string, want desired.Volume, r *record) error {
	if r != nil && r.Absent {
		return engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("volume %s was removed by a tombstone and is wanted again", id)))
	}
	if r != nil && r.Created && (r.Spec.Path != want.Path || r.Spec.Pool != want.Pool || r.Spec.Format != want.Format) {
		return engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("volume %s is %s (%s) and can't become %s (%s)",
			id, r.Spec.Path, r.Spec.Format, want.Path, want.Format)))
	}
	created := want.Exists || r != nil && r.Created
	h := k.look(ctx, record{Spec: want, Created: created})
	if h.Err != nil {
		return h.Err
	}
	if !h.Exists {
		if created {
			if r == nil || !r.Created || r.Left {
				// With a record it is looked at again and again, and found when it comes back.
				if err := k.records.save(id, record{Spec: want, Created: true}); err != nil {
					return err
				}
			}
			return engine.Final(engine.Fault(desired.CodeMissing, "put the file back from a backup, or delete the volume",
				fmt.Errorf("volume %s: %s was there and is gone; it is not made anew", id, want.Path)))
		}
		// The record comes first: a file that a crash left is then known as ours.
		if err := k.records.save(id, record{Spec: want}); err != nil {
			return err
		}
		if err := k.create(ctx, want); err != nil {
			return err
		}
		k.log.Info().Str("id", id).Msg("volume created")
		return k.records.save(id, record{Spec: want, Created: true})
	}
	backing := ""
	if want.Backing != nil {
		backing = want.Backing.Path
	}
	switch {
	case h.Wrong != "" && created:
		return engine.Fault(desired.CodeChecksum, "repair it with qemu-img check, or restore it from a backup",
			fmt.Errorf("volume %s: %s is damaged: %s", id, want.Path, h.Wrong))
	case h.Wrong != "":
		return engine.Fault(desired.CodeConflict, "", fmt.Errorf("create volume %s: %s is there already: %s", id, want.Path, h.Wrong))
	case want.Format == desired.FormatQCOW2 && h.Backing != backing:
		return engine.Fault(desired.CodeConflict, "", fmt.Errorf("create volume %s: %s is there already, based on %q and not on %q",
			id, want.Path, h.Backing, backing))
	}
	if h.VirtualBytes < want.Bytes {
		if err := k.grow(ctx, id, want); err != nil {
			return err
		}
	}
	if r != nil && *r == (record{Spec: want, Created: true}) {
		return nil
	}
	return k.records.save(id, record{Spec: want, Created: true})
}

// unfinished is the name of a file that is being made.
func unfinished(path, host, what string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+host+what)
}

func (k *Kind) create(ctx context.Context, want desired.Volume) error {
	temp := unfinished(want.Path, k.cfg.Host, ".new")
	format := want.Format
	if format == desired.FormatISO {
		format = desired.FormatRaw
	}
	args := []string{"create", "-q", "-f", string(format)}
	if want.Backing != nil {
		backing := want.Backing.Format
		if backing == desired.FormatISO {
			backing = desired.FormatRaw
		}
		args = append(args, "-b", want.Backing.Path, "-F", string(backing))
	}
	args = append(args, temp, fmt.Sprint(want.Bytes))
	_, err := host.Touch(ctx, k.cfg.Patience, want.Pool, writeLimit, func() (struct{}, error) {
		if err := k.cfg.Files.MkdirAll(filepath.Dir(want.Path)); err != nil {
			return struct{}{}, err
		}
		if err := k.cfg.Files.Remove(temp); err != nil {
			return struct{}{}, err
		}
		if _, err := k.cfg.Run.Run(ctx, host.Command{Name: "qemu-img", Args: args}); err != nil {
			return struct{}{}, errors.Join(err, k.cfg.Files.Remove(temp))
		}
		return struct{}{}, k.cfg.Files.Publish(temp, want.Path, 0o644)
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", want.Path, err)
	}
	return nil
}

// grow makes a volume larger that no QEMU uses.
func (k *Kind) grow(ctx context.Context, id string, want desired.Volume) error {
	used, err := host.Touch(ctx, k.cfg.Patience, want.Pool, lookLimit, func() (bool, error) { return k.cfg.Files.InUse(want.Path) })
	if err != nil {
		return fmt.Errorf("look who uses %s: %w", want.Path, err)
	}
	if used {
		return engine.After(30*time.Second, engine.Fault(desired.CodeInUse, "stop the VM; the volume grows then",
			fmt.Errorf("grow volume %s: a running VM has it open", id)))
	}
	_, err = host.Touch(ctx, k.cfg.Patience, want.Pool, writeLimit, func() (struct{}, error) {
		_, err := k.cfg.Run.Run(ctx, host.Command{
			Name: "qemu-img", Args: []string{"resize", "-q", "-f", string(want.Format), want.Path, fmt.Sprint(want.Bytes)},
		})
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("grow %s: %w", want.Path, err)
	}
	return nil
}

// destroy does what a tombstone says.
func (k *Kind) destroy(ctx context.Context, id string, want desired.Volume, r *record) error {
	if r != nil && r.Absent {
		if r.Left {
			r.Left = false
			return k.records.save(id, *r)
		}
		return nil
	}
	if r != nil && r.Created && r.Spec.Path != want.Path {
		return engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("remove volume %s: it is %s and not %s", id, r.Spec.Path, want.Path)))
	}
	_, err := host.Touch(ctx, k.cfg.Patience, want.Pool, writeLimit, func() (struct{}, error) {
		var none struct{}
		if err := checkMarker(k.cfg.Files, want.Pool, want.Path); err != nil {
			return none, err
		}
		if info, err := k.cfg.Files.Stat(want.Path); err == nil {
			if !info.Regular {
				return none, engine.Fault(desired.CodeConflict, "", errors.New("it is not a regular file"))
			}
			used, err := k.cfg.Files.InUse(want.Path)
			if err != nil {
				return none, err
			}
			if used {
				return none, engine.Fault(desired.CodeInUse, "", errors.New("a running VM has it open"))
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return none, err
		}
		return none, errors.Join(k.cfg.Files.Remove(want.Path), k.cfg.Files.Remove(unfinished(want.Path, k.cfg.Host, ".new")))
	})
	if err != nil {
		return fmt.Errorf("remove volume %s, %s: %w", id, want.Path, err)
	}
	k.log.Info().Str("id", id).Msg("volume removed")
	return k.records.save(id, record{Spec: want, Absent: true})
}

// Remove implements engine.Kind. A volume that only left the document keeps its file.
func (k *Kind) Remove(_ context.Context, id string, _ Have) error {
	r, err := k.records.load(id)
	if err != nil || r == nil {
		return err
	}
	if r.Absent {
		return k.records.remove(id)
	}
	r.Left = true
	return k.records.save(id, *r)
}

// fault gives an error that carries none the code a user can act on.
func fault(err error) error {
	var f *desired.Fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	text := err.Error()
	switch {
	case errors.Is(err, host.ErrHung), errors.Is(err, errNoMarker), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.EIO),
		errors.Is(err, syscall.ENOTCONN), strings.Contains(text, "Stale file handle"), strings.Contains(text, "Input/output error"):
		return engine.Fault(desired.CodeStorageUnreachable, "", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), strings.Contains(text, "No space left on device"),
		strings.Contains(text, "Disk quota exceeded"):
		return engine.Fault(desired.CodeNoSpace, "", err)
	case errors.Is(err, syscall.EROFS), strings.Contains(text, "Read-only file system"):
		return engine.Fault(desired.CodeReadOnly, "", err)
	case strings.Contains(text, "lock") && strings.Contains(text, "another process"):
		return engine.Fault(desired.CodeInUse, "", err)
	case errors.Is(err, fs.ErrNotExist), strings.Contains(text, "No such file or directory"), strings.Contains(text, "executable file not found"):
		return engine.Fault(desired.CodeMissing, "", err)
	}
	return err
}
