// Package host is the agent's seam to the machine: commands, files and network namespaces. Kinds touch the machine through
// it or through a backend of their own that they name as an interface, so that agent/sim can stand in for either.
//
// It guarantees that a command ends with its context, that a failed command's error says what the command printed, and that
// WriteFile leaves either the old content or the new one, also after a crash.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Command is a program to run.
type Command struct {
	Name  string
	Args  []string
	Stdin []byte
	// Netns is the name of a network namespace under /run/netns to run in; empty for the agent's own.
	Netns string
}

// String is the command as one would type it, without its input.
func (c Command) String() string {
	s := strings.Join(append([]string{c.Name}, c.Args...), " ")
	if c.Netns != "" {
		return "ip netns exec " + c.Netns + " " + s
	}
	return s
}

// Runner runs programs.
type Runner interface {
	// Run gives the standard output of a program that exited with 0, else an error that holds an *ExitError.
	Run(ctx context.Context, c Command) ([]byte, error)
}

// ErrNotInstalled is in the error of a program that is not there.
var ErrNotInstalled = exec.ErrNotFound

// ExitError is a program that could not be run or did not exit with 0.
type ExitError struct {
	Command string
	// Code is the exit status, -1 when it was killed or could not be started.
	Code int
	// Stderr is what it said, trimmed, at most 4 KiB of its end.
	Stderr string
	Err    error
}

// Error names the command, how it ended and what it said.
func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("run %s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("run %s: %v: %s", e.Command, e.Err, e.Stderr)
}

// Unwrap is the cause: a context's error when it ended the program.
func (e *ExitError) Unwrap() error { return e.Err }

// Machine is the machine that the agent runs on.
type Machine struct{}

// Run implements Runner. The program gets a C locale, no other input than Stdin, and is killed with its process group when ctx ends.
func (Machine) Run(ctx context.Context, c Command) ([]byte, error) {
	name, args := c.Name, c.Args
	if c.Netns != "" {
		// nsenter and not "ip netns exec": that remounts /sys, which hides the cgroups.
		name, args = "nsenter", append([]string{"--net=/run/netns/" + c.Netns, "--", c.Name}, c.Args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LANG=C")
	cmd.Stdin = bytes.NewReader(c.Stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	killGroup(cmd)
	// A grandchild that keeps the pipes open must not keep us.
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	e := &ExitError{Command: c.String(), Code: -1, Err: err, Stderr: tail(errOut.String(), 4096)}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		e.Code = exit.ExitCode()
	}
	if ctx.Err() != nil {
		e.Err = ctx.Err()
	}
	return out.Bytes(), e
}

// tail is the end of s, trimmed.
func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = s[len(s)-n:]
	}
	return s
}

// Boot is the id of this start of the machine: another one after every start.
func Boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the id of this start of the machine: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// WriteFile puts content at path at once: readers and crashes see the old file or the new one. Missing parents are made.
func WriteFile(path string, content []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes a rename or removal in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
