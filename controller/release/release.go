// Package release keeps the binaries of agents: it takes them in, looks into them, signs them, and hands them to hosts in parts.
//
// # What it guarantees
//
// What is signed is a Go program for Linux that was built from this repository's command shoal-agent, for the architecture that the
// release is for, with the digest that the administrator's own machine computed. It is whole in the bucket of artifacts before the release is recorded, so that
// every controller has it, and is not taken out of there while a release names it.
//
// Parts of an upload are gathered in the memory of the controller that leads, a few uploads at a time. One that is not finished is forgotten
// after a while, or with the controller: it is sent anew then.
//
// # What it leaves to others
//
// Who may add releases is decided by package api, who gets which by controller/plan. A host checks digest and signature itself. What is
// asked for by hosts comes from here and not from the bucket by themselves, because nobody in their account may read streams of others, and since
// a host is to get what its document names and nothing else.
package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal/controller/resource"
	"shoal/desired"
)

// Objects are the contents that releases name, by digest.
type Objects interface {
	// Put keeps a content; it is whole in there, or not at all.
	Put(ctx context.Context, name string, content []byte) error
	// Get gives one; the error is ErrMissing where there is none.
	Get(ctx context.Context, name string) ([]byte, error)
	// Names gives the names of all, and when they were put there.
	Names(ctx context.Context) (map[string]time.Time, error)
	Delete(ctx context.Context, name string) error
}

// ErrMissing says that there is no content of that name.
var ErrMissing = errors.New("there is no such content")

// Config is what a Service is made of.
type Config struct {
	Objects Objects
	// View is the newest state.
	View func() resource.Reader
	// Sign signs with the key that signs the credentials of hosts; the signature is in base64.
	Sign func(what []byte) (string, error)
	Now  func() time.Time
	Log  zerolog.Logger
}

// Limits.
const (
	// maxUploads is how many binaries are sent at a time, forgetAfter how long an upload may pause.
	maxUploads  = 4
	forgetAfter = 5 * time.Minute
	// cached is how many contents are kept in memory for hosts that ask.
	cached = 2
	// tidyEvery is how often contents are removed that no release names; graceTime is how long they are kept, as their release may be about to be recorded.
	tidyEvery = 10 * time.Minute
	graceTime = time.Hour
	// command is what a release must be built from.
	command = "shoal/cmd/shoal-agent"
)

// Service is all of that.
type Service struct {
	cfg Config

	mu      sync.Mutex
	uploads map[string]*upload

	loading sync.Mutex
	cache   []content // the newest last
}

type upload struct {
	data    []byte
	touched time.Time
}

type content struct {
	sha256 string
	data   []byte
}

// New makes a Service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, uploads: map[string]*upload{}}
}

// Upload takes the bytes of a binary from offset on, and gives how many are there now. Parts come in order; one that is there already is
// taken as said again.
func (s *Service) Upload(sha256 string, offset uint64, part []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for name, u := range s.uploads {
		if now.Sub(u.touched) > forgetAfter {
			delete(s.uploads, name)
		}
	}
	u := s.uploads[sha256]
	switch {
	case u == nil && offset > 0:
		return 0, resource.Conflict("offset", "the upload is not known (any more): another controller leads, or it paused for too long").WithRemedy("add the release again")
	case u == nil && len(s.uploads) >= maxUploads:
		return 0, resource.Conflict("sha256", "%d binaries are being sent already", len(s.uploads)).WithRemedy("try again when they are there, or in %v", forgetAfter)
	case u == nil:
		u = &upload{}
		s.uploads[sha256] = u
	}
	u.touched = now
	have := uint64(len(u.data))
	switch {
	case offset > have:
		return have, resource.Conflict("offset", "%d bytes are there, and %d is not where they end", have, offset)
	case offset+uint64(len(part)) > desired.MaxRelease:
		delete(s.uploads, sha256)
		return 0, resource.Invalid("bytes", "the binary is larger than %d bytes", desired.MaxRelease)
	}
	u.data = append(u.data[:offset], part...)
	return uint64(len(u.data)), nil
}

// Signed is a binary that was found good.
type Signed struct {
	Arch      string
	Signature string
}

// Take takes in what was uploaded: it looks into it, keeps it, and signs it under a version. An upload that is refused is forgotten. Where
// nothing was uploaded, and the content is there from before, it is that.
func (s *Service) Take(ctx context.Context, version, digest string, size uint64) (Signed, error) {
	s.mu.Lock()
	u := s.uploads[digest]
	delete(s.uploads, digest)
	s.mu.Unlock()
	var data []byte
	if u != nil {
		data = u.data
	} else {
		var err error
		if data, err = s.cfg.Objects.Get(ctx, digest); errors.Is(err, ErrMissing) {
			return Signed{}, resource.Conflict("sha256", "the binary was not uploaded").WithRemedy("use shoalctl agent release add FILE")
		} else if err != nil {
			return Signed{}, fmt.Errorf("look for the binary: %w", err)
		}
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest || uint64(len(data)) != size {
		return Signed{}, resource.Invalid("sha256", "what was uploaded has %d bytes and the checksum %x, not %d and %s", len(data), sum, size, digest).WithRemedy("add the release again")
	}
	arch, err := inspect(data)
	if err != nil {
		return Signed{}, err
	}
	if says := VersionOf(bytes.NewReader(data)); says != "" && says != version {
		return Signed{}, resource.Invalid("version", "the binary says that it is %q, not %q", says, version).WithRemedy("hosts would refuse it: leave out --version")
	}
	if u != nil {
		if err := s.cfg.Objects.Put(ctx, digest, data); err != nil {
			return Signed{}, fmt.Errorf("keep the binary: %w", err)
		}
	}
	sig, err := s.cfg.Sign(desired.ReleaseProof(version, arch, digest, size))
	if err != nil {
		return Signed{}, fmt.Errorf("sign the release: %w", err)
	}
	return Signed{Arch: arch, Signature: sig}, nil
}

// inspect finds out what a binary is by what the Go tool writes into it. It is never run here.
func inspect(data []byte) (arch string, err error) {
	const field = "binary"
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return "", resource.Invalid(field, "is no program that was built by Go").WithRemedy("give the file bin/shoal-agent of a build")
	}
	if info.Path != command {
		return "", resource.Invalid(field, "is the program %s, not %s", info.Path, command).WithRemedy("give the file bin/shoal-agent of a build")
	}
	settings := map[string]string{}
	for _, set := range info.Settings {
		settings[set.Key] = set.Value
	}
	arch = settings["GOARCH"]
	if settings["GOOS"] != "linux" || !slices.Contains(resource.Arches(), arch) {
		return "", resource.Invalid(field, "is for %s on %s; hosts are Linux on one of %v", settings["GOOS"], arch, resource.Arches())
	}
	return arch, nil
}

// VersionOf finds the version that the linker has set in an agent (-X main.version), without running it; "" where that can't be seen.
func VersionOf(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	symbols, err := f.Symbols()
	if err != nil {
		return "" // it was stripped
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "main.version" && s.Size == 16 })
	if i < 0 || f.Class != elf.ELFCLASS64 {
		return ""
	}
	// A string is where its bytes are, and how many.
	head := memory(f, symbols[i].Value, 16)
	if head == nil {
		return ""
	}
	text := string(memory(f, f.ByteOrder.Uint64(head), f.ByteOrder.Uint64(head[8:])))
	if desired.CheckVersion(text) != nil {
		return ""
	}
	return text
}

// memory is what a program has at an address when it starts; nil where that is not in its file.
func memory(f *elf.File, at, n uint64) []byte {
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || at < p.Vaddr || at-p.Vaddr > p.Filesz || n > min(p.Filesz-(at-p.Vaddr), 256) {
			continue
		}
		b := make([]byte, n)
		if _, err := p.ReadAt(b, int64(at-p.Vaddr)); err != nil {
			return nil
		}
		return b
	}
	return nil
}

// Part gives the bytes of the release that a host is to run, from an offset on.
func (s *Service) Part(ctx context.Context, host string, req desired.ReleaseRequest) ([]byte, error) {
	view := s.cfg.View()
	h, err := resource.Get[*resource.Host](view, host)
	if err != nil {
		return nil, err
	}
	if h.ReleaseID == "" || h.ReleaseID != req.Release {
		return nil, &resource.Error{Code: resource.CodeForbidden, Field: "release", Message: "the host is not to run this release"}
	}
	l, err := resource.Get[*resource.Release](view, req.Release)
	if err != nil {
		return nil, err
	}
	data, err := s.load(ctx, l.SHA256)
	if errors.Is(err, ErrMissing) {
		return nil, resource.Conflict("release", "the binary of release %s for %s is not in the bucket of artifacts", l.Version, l.Arch).
			WithRemedy("after a restore the binaries are to be added again: shoalctl agent release add FILE --version %s", l.Version)
	}
	if err != nil {
		return nil, err
	}
	from := min(req.Offset, uint64(len(data)))
	return data[from:min(from+desired.MaxReleasePart, uint64(len(data)))], nil
}

// load gives a content from memory, or gets it there. Hosts of a wave ask at the same time, for the same.
func (s *Service) load(ctx context.Context, digest string) ([]byte, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	for _, c := range s.cache {
		if c.sha256 == digest {
			return c.data, nil
		}
	}
	data, err := s.cfg.Objects.Get(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("read the binary: what the bucket of artifacts holds as %s is something else", digest)
	}
	if s.cache = append(s.cache, content{digest, data}); len(s.cache) > cached {
		s.cache = slices.Delete(s.cache, 0, 1)
	}
	return data, nil
}

// forget empties the memory: nobody is being updated.
func (s *Service) forget() {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.cache = nil
}

// Run removes what is no more named, until ctx ends. It is called while the controller leads.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		if err := s.tidy(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Msg("old binaries of agents not removed")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) tidy(ctx context.Context) error {
	// What was there before the view is named by it, or was named by nothing for as long as the grace time.
	names, err := s.cfg.Objects.Names(ctx)
	if err != nil {
		return fmt.Errorf("list the binaries: %w", err)
	}
	view := s.cfg.View()
	named := map[string]bool{}
	for l := range resource.All[*resource.Release](view) {
		named[l.SHA256] = true
	}
	if o, ok := view.Holder(resource.RolloutKey).(*resource.Rollout); !ok || o.State != resource.RolloutRunning {
		s.forget()
	}
	for name, at := range names {
		if named[name] || desired.CheckSHA256(name) != nil || s.cfg.Now().Sub(at) < graceTime {
			continue
		}
		if err := s.cfg.Objects.Delete(ctx, name); err != nil {
			return fmt.Errorf("remove a binary: %w", err)
		}
		s.cfg.Log.Info().Str("id", name).Msg("binary that no release names is removed")
	}
	return nil
}
