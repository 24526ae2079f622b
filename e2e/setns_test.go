package e2e

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The main thread stays with the main goroutine: a goroutine that moved it into a namespace, and ended there, would make this process
// one of the namespace's, which are killed when the bed is torn down.
func init() { runtime.LockOSThread() } //nolint:gochecknoinits // later the main goroutine may be on another thread

// setns moves the calling thread into a network namespace.
func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
