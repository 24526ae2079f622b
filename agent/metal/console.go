package metal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Marks are what programs, such as tests and baseboard controllers, can look for on the serial console.
const (
	MarkDone   = "SHOAL-INSTALL-DONE"
	MarkFailed = "SHOAL-INSTALL-FAILED"
)

// Console tells people what happens: on each of the machine's consoles, and in the log.
type Console struct {
	mu    sync.Mutex
	start time.Time
	outs  []io.Writer
	log   bytes.Buffer
}

// NewConsole writes to these, besides the log.
func NewConsole(outs ...io.Writer) *Console { return &Console{start: time.Now(), outs: outs} }

// Consoles opens all consoles that the kernel writes to; /dev/console is only one of them.
func Consoles() []io.Writer {
	names := []string{"console"}
	if b, err := os.ReadFile("/sys/class/tty/console/active"); err == nil && len(b) > 1 {
		names = strings.Fields(string(b))
	}
	var outs []io.Writer
	for _, n := range names {
		if f, err := os.OpenFile("/dev/"+n, os.O_WRONLY, 0); err == nil {
			outs = append(outs, f)
		}
	}
	return outs
}

// Say writes a line.
func (c *Console) Say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	head := fmt.Sprintf("[%4ds] ", int(time.Since(c.start).Seconds()))
	for line := range strings.SplitSeq(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
		c.put(head + line)
		head = "        "
	}
}

// put writes a line to all. A console that can't be written to does not stop an installation.
func (c *Console) put(line string) {
	fmt.Fprintln(&c.log, line)
	for _, w := range c.outs {
		_, _ = io.WriteString(w, line+"\r\n")
	}
}

// Note writes only to the log.
func (c *Console) Note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(&c.log, format+"\n", args...)
}

// Log is all that was said.
func (c *Console) Log() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.log.Bytes())
}
