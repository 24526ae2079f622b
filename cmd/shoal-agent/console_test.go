package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"

	"shoal/agent/sim/netbox"
)

// asProgram has this binary be shoal-agent itself, with its own arguments.
const asProgram = "SHOAL_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	netbox.Main(m)
}

// terminal is shoal-agent on a terminal of its own, as the kernel's console is one.
type terminal struct {
	t      *testing.T
	pty    *os.File
	screen *vt.SafeEmulator
	ended  chan error
}

func newTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "TERM=linux")
	w := &terminal{t: t, screen: vt.NewSafeEmulator(100, 30), ended: make(chan error, 1)}
	if w.pty, err = pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(w.screen, w.pty) }()
	go func() { _, _ = io.Copy(w.pty, w.screen) }() // what a terminal answers when it is asked
	go func() { w.ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		w.pty.Close()
		// Its own Close races with the reader of what it answers.
		if in, ok := w.screen.InputPipe().(io.Closer); ok {
			in.Close()
		}
	})
	return w
}

// text is what can be read.
func (w *terminal) text() string { return ansi.Strip(w.screen.Render()) }

// shows waits until the screen matches.
func (w *terminal) shows(pattern string) []string {
	w.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text := w.text()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		if time.Now().After(end) {
			w.t.Fatalf("the screen never has %q:\n%s", pattern, text)
		}
	}
}

func (w *terminal) keys(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w.pty, s); err != nil {
		w.t.Fatal(err)
	}
}

// TestConsole runs the program on a terminal in a machine of namespaces, reads its screen, and works its menu.
func TestConsole(t *testing.T) {
	netbox.Need(t, "ip", "unix_chkpwd")
	netbox.Run(t, "ip link add lan1 type veth peer name lan2\nip link set lan1 up\nip link set lan2 up\nip address add 10.5.0.7/24 dev lan1")
	t.Cleanup(func() { netbox.Run(t, "ip link delete lan1") })
	data, archives := t.TempDir(), t.TempDir()
	w := newTerminal(t, "console", "--data", data, "--archives", archives)
	w.shows(`(?s)Host +has not joined a controller.*Agent +does not run.*CPU .* of \d+, load.*Memory .* of .*iB.*lan1 +nic +up .*10\.5\.0\.7/24.*VMS \(0\)`)
	netbox.Run(t, "ip address add 10.5.0.8/24 dev lan1")
	w.shows(`10\.5\.0\.7/24, 10\.5\.0\.8/24`) // it looks again by itself

	w.keys("\r")
	w.shows("What to do")
	w.keys("4")
	archive := w.shows(`(` + regexp.QuoteMeta(archives) + `/shoal-logs-\S+\.tar\.gz)`)[1]
	if info, err := os.Stat(archive); err != nil || info.Size() == 0 {
		t.Errorf("the bundle: %v", err)
	}
	w.keys("\r8")
	w.shows("Type poweroff to do it")
	w.keys("off\r")
	w.shows("that is not poweroff: nothing is done")
	// Nobody's network is kept by systemd-networkd here, and the screen says what to do.
	w.keys("\x1b")
	w.shows("What to do")
	w.keys("1")
	w.shows("Set an address")
	w.keys("1")
	w.shows("Name servers")
	w.keys("lan1\rdhcp\r\r\r")
	w.shows("systemd-networkd does not answer here")
	w.keys("\x03")
	if err := <-w.ended; err != nil {
		t.Errorf("it ends with %v:\n%s", err, w.text())
	}

	// Where nobody has logged in.
	w = newTerminal(t, "console", "--data", data, "--archives", archives, "--login")
	w.shows(`10\.5\.0\.7/24`)
	w.keys("\r4")
	w.shows("Root's password")
	w.keys("surely not this\r")
	w.shows("that is not root's password")
	if strings.Contains(w.text(), "surely") {
		t.Error("a password is on the screen")
	}
	made, err := filepath.Glob(filepath.Join(archives, "*"))
	if err != nil || len(made) != 1 {
		t.Errorf("archives: %v, %v", made, err)
	}
}
