package e2e

import (
	"os"

	"golang.org/x/sys/unix"
)

// setns moves the calling thread into a network namespace.
func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
