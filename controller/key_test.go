package controller

import (
	"bytes"
	"path/filepath"
	"sync"
	"testing"
)

// TestImageKeyOfControllersThatStartAtOnce: all of them have the same whole key. Fleet tests found one that read it half written.
func TestImageKeyOfControllersThatStartAtOnce(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "image.key")
		keys := make([][]byte, 4)
		var wg sync.WaitGroup
		for i := range keys {
			wg.Go(func() {
				var err error
				if keys[i], err = imageKey(path); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, k := range keys {
			if len(k) != 32 || !bytes.Equal(k, keys[0]) {
				t.Fatalf("keys differ: %x and %x", keys[0], k)
			}
		}
	}
}
