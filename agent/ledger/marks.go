package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// marksFile lies beside the log, which has another rhythm: marks are written a moment after they change, whole, and only where
// a drift policy asks for them.
const marksFile = "drift.json"

// marksRetry is the wait before marks are written again that could not be written.
const marksRetry = 5 * time.Second

// Marks keeps what the engine must remember of foreign changes that are not to be healed. It is an engine.Memory.
type Marks struct {
	path string
	boot string
	log  zerolog.Logger

	recalled map[desired.Ref]engine.Mark
	rebooted bool

	mu    sync.Mutex
	next  map[desired.Ref]engine.Mark
	dirty bool
	wake  chan struct{}
}

// marksOnDisk is the file.
type marksOnDisk struct {
	// Boot tells starts of the machine apart.
	Boot  string                      `json:"boot"`
	Marks map[desired.Ref]engine.Mark `json:"marks"`
}

// OpenMarks reads what an earlier agent left in dir, the ledger's directory. boot is the id of the machine's present start.
func OpenMarks(dir, boot string, log zerolog.Logger) (*Marks, error) {
	m := &Marks{path: filepath.Join(dir, marksFile), boot: boot, log: log, wake: make(chan struct{}, 1)}
	b, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is held: %w", err)
	}
	var kept marksOnDisk
	if err := json.Unmarshal(b, &kept); err != nil {
		// The file is replaced as a whole, so this is no crash of ours. An agent must not stay away for it.
		log.Error().Err(err).Str("file", m.path).Msg("what is held by drift policy can't be read; foreign changes from before are healed")
		return m, nil
	}
	m.recalled, m.rebooted = kept.Marks, kept.Boot != boot
	return m, nil
}

// Recall implements engine.Memory.
func (m *Marks) Recall() (map[desired.Ref]engine.Mark, bool) { return m.recalled, m.rebooted }

// Keep implements engine.Memory.
func (m *Marks) Keep(marks map[desired.Ref]engine.Mark) {
	m.mu.Lock()
	m.next, m.dirty = marks, true
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (m *Marks) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
		for {
			err := m.Flush()
			if err == nil {
				break
			}
			m.log.Error().Err(err).Msg("what is held by drift policy can't be written")
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(marksRetry):
			}
		}
	}
}

// Flush writes what is not on disk yet.
func (m *Marks) Flush() error {
	m.mu.Lock()
	next, dirty := m.next, m.dirty
	m.dirty = false
	m.mu.Unlock()
	if !dirty {
		return nil
	}
	b, err := json.Marshal(marksOnDisk{Boot: m.boot, Marks: next})
	if err == nil {
		err = host.WriteFile(m.path, b, 0o600)
	}
	if err != nil {
		m.mu.Lock()
		if !m.dirty {
			m.next, m.dirty = next, true
		}
		m.mu.Unlock()
		return fmt.Errorf("write what is held: %w", err)
	}
	return nil
}
