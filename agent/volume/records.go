package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"shoal/agent/host"
)

// records are small JSON files in the agent's data directory, one an item: what this host knows of files that may be out
// of reach or gone.
type records[T any] struct{ dir string }

func (r records[T]) path(id string) string { return filepath.Join(r.dir, id+".json") }

// load gives nil where there is no record.
func (r records[T]) load(id string) (*T, error) {
	b, err := os.ReadFile(r.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read record %s: %w", r.path(id), err)
	}
	return &v, nil
}

func (r records[T]) save(id string, v T) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := host.WriteFile(r.path(id), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write record of %s: %w", id, err)
	}
	return nil
}

func (r records[T]) remove(id string) error {
	err := os.Remove(r.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (r records[T]) all() (map[string]T, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string]T{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(id, ".") {
			continue
		}
		v, err := r.load(id)
		if err != nil {
			return nil, err
		}
		if v != nil {
			all[id] = *v
		}
	}
	return all, nil
}

// lookByPool looks at everything that there are records of: storages at the same time, since one may hang, and what
// lies on one storage in turn.
func lookByPool[T, H any](all map[string]T, pool func(T) string, look func(T) H) map[string]H {
	pools := map[string][]string{}
	for id, r := range all {
		pools[pool(r)] = append(pools[pool(r)], id)
	}
	found := map[string]H{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, ids := range pools {
		wg.Go(func() {
			for _, id := range ids {
				h := look(all[id])
				mu.Lock()
				found[id] = h
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return found
}
