package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNotFromNetwork refuses a confirmation that does not show that the network works.
var ErrNotFromNetwork = errors.New("this shell did not come over the network after the change")

// tick is the unit of start times in /proc: USER_HZ is 100 on all architectures that Go's agent is built for.
const tick = 10 * time.Millisecond

// FromNetwork says whether a process was started from a login over SSH that was made after a change, by when the SSH server's process for that
// login was started. Proc is /proc but in tests.
func FromNetwork(proc string, pid int, p *Pending) error {
	for range 64 {
		name, parent, started, err := process(proc, pid)
		if err != nil {
			return err
		}
		if name == "sshd" || strings.HasPrefix(name, "sshd-") {
			if started > p.Applied && p.Applied > 0 {
				return nil
			}
			return fmt.Errorf("%w: its SSH connection is older, and may live on by what is gone: log in anew, then shoal-agent net confirm", ErrNotFromNetwork)
		}
		if parent <= 1 {
			break
		}
		pid = parent
	}
	return fmt.Errorf("%w: log in by SSH, then shoal-agent net confirm; or, standing at the machine, shoal-agent net confirm --local", ErrNotFromNetwork)
}

// process reads name, parent and start since the machine's start: fields 2, 4 and 22 of proc_pid_stat(5).
func process(proc string, pid int) (name string, parent int, started time.Duration, err error) {
	file := filepath.Join(proc, strconv.Itoa(pid), "stat")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", 0, 0, err
	}
	// The name is in parentheses and may hold any of them itself.
	open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
	if open < 0 || end < open {
		return "", 0, 0, fmt.Errorf("read %s: no name", file)
	}
	rest := strings.Fields(string(b[end+1:]))
	if len(rest) < 20 {
		return "", 0, 0, fmt.Errorf("read %s: %d fields", file, len(rest)+2)
	}
	if parent, err = strconv.Atoi(rest[1]); err != nil {
		return "", 0, 0, fmt.Errorf("read %s: %w", file, err)
	}
	ticks, err := strconv.ParseInt(rest[19], 10, 64)
	if err != nil {
		return "", 0, 0, fmt.Errorf("read %s: %w", file, err)
	}
	return string(b[open+1 : end]), parent, time.Duration(ticks) * tick, nil
}
