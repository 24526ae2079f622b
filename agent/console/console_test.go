package console

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/google/go-cmp/cmp"

	"shoal/agent/install"
	"shoal/agent/network"
)

// actions notes what is asked for.
type actions struct {
	node     Node
	password string
	cut      bool // changes interrupt the controller
	fail     error
	done     []string
}

func (a *actions) did(what string) (string, error) {
	a.done = append(a.done, what)
	return what + " is done", a.fail
}

func (a *actions) Look(context.Context) Node { return a.node }
func (a *actions) Authenticate(_ context.Context, p string) error {
	a.done = append(a.done, "authenticate")
	if p != a.password {
		return ErrPassword
	}
	return nil
}

func (a *actions) SetPassword(_ context.Context, p string) (string, error) {
	return a.did("password " + p)
}

func (a *actions) Change(_ context.Context, c network.Change, cut network.Cut) (string, error) {
	if a.cut && !cut.Controller {
		return "", fmt.Errorf("%w: the controller is reached over eno1", network.ErrCut)
	}
	return a.did(c.String())
}
func (a *actions) Confirm(context.Context) (string, error)             { return a.did("confirm") }
func (a *actions) Revert(context.Context) (string, error)              { return a.did("revert") }
func (a *actions) Restart(_ context.Context, s string) (string, error) { return a.did("restart " + s) }
func (a *actions) Bundle(context.Context) (string, error)              { return a.did("bundle") }
func (a *actions) Backup(context.Context) (string, error)              { return a.did("backup") }
func (a *actions) Enrol(_ context.Context, t string) (string, error)   { return a.did("enrol " + t) }
func (a *actions) Reboot(context.Context) (string, error)              { return a.did("reboot") }
func (a *actions) PowerOff(context.Context) (string, error)            { return a.did("poweroff") }

// hand drives a console without a terminal: it sends messages, and those that their commands lead to.
type hand struct {
	t *testing.T
	c *console
	a *actions
}

func newHand(t *testing.T, a *actions, login bool) *hand {
	h := &hand{t, newConsole(t.Context(), Config{Actions: a, Login: login, Version: "v1"}), a}
	h.send(nodeMsg{a.node})
	return h
}

func (h *hand) send(msg tea.Msg) {
	_, cmd := h.c.Update(msg)
	h.follow(cmd)
}

// follow runs a command. Ticks would take their time, and are left out.
func (h *hand) follow(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	got := make(chan tea.Msg, 1)
	go func() { got <- cmd() }()
	select {
	case msg := <-got:
		switch msg := msg.(type) {
		case tea.BatchMsg:
			for _, c := range msg {
				h.follow(c)
			}
		case nodeMsg, resultMsg, loginMsg:
			h.send(msg)
		}
	case <-time.After(100 * time.Millisecond):
	}
}

// keys types: names of keys in <>, everything else letter for letter.
func (h *hand) keys(s string) {
	h.t.Helper()
	codes := map[string]tea.KeyPressMsg{
		"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "down": {Code: tea.KeyDown}, "up": {Code: tea.KeyUp}, "tab": {Code: tea.KeyTab},
		"clear": {Code: 'u', Mod: tea.ModCtrl},
	}
	for s != "" {
		if name, rest, ok := strings.Cut(strings.TrimPrefix(s, "<"), ">"); s[0] == '<' && ok {
			h.send(codes[name])
			s = rest
			continue
		}
		h.send(tea.KeyPressMsg{Code: rune(s[0]), Text: s[:1]})
		s = s[1:]
	}
}

func (h *hand) screen() string { return ansi.Strip(h.c.text()) }

func (h *hand) shows(want ...string) {
	h.t.Helper()
	for _, w := range want {
		if !strings.Contains(h.screen(), w) {
			h.t.Errorf("the screen has no %q:\n%s", w, h.screen())
		}
	}
}

func (h *hand) did(want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.a.done); diff != "" {
		h.t.Errorf("done (-want +got):\n%s", diff)
	}
	h.a.done = nil
}

func someNode() Node {
	return Node{
		At: time.Now(), Hostname: "kvm01", Kernel: "6.1.0", Uptime: 51*time.Hour + 3*time.Minute, CPUs: 8, Busy: 0.25, Load: [3]string{"0.10", "0.20", "0.30"},
		Memory: 32 << 30, MemoryUsed: 8 << 30,
		Status: install.Status{Joined: true, Host: "id-of-h1", Name: "h1", Agent: 7, Connection: &install.Connection{Error: "no route to host", Since: time.Now()}},
		Disks:  []Disk{{"nvme0n1", "Fast One", 2 << 40}}, FileSystems: []FileSystem{{"/", 100 << 30, 50 << 30}},
		NICs: []network.Device{
			{Name: "eno1", NIC: true, Up: true, Carrier: true, Speed: 10000, Controller: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.11/24")}},
			{Name: "eno2", NIC: true, Up: true, Master: "bond0"},
			{Name: "shb0123", Kind: "bridge", Shoal: "netdev x"},
		},
		VMs: []VM{{"web1", "running", 2, 2048}}, Services: []Service{{"shoal-agent", "active"}, {"libvirtd", "failed"}},
		Notes: []string{"mounts: permission denied"},
	}
}

// TestStatus: everything that is known of a machine is on the screen, and the screen is never larger than the terminal.
func TestStatus(t *testing.T) {
	t.Parallel()
	h := newHand(t, &actions{node: someNode()}, false)
	h.send(tea.WindowSizeMsg{Width: 100, Height: 30})
	h.shows("kvm01", "host h1", "h1 id-of-h1", "not connected since", "no route to host", "up 2 days 3:03", "Linux 6.1.0", "Shoal v1", "[###-------]  25 % of 8", "load 0.10 0.20 0.30",
		"25 % of 32 GiB", "50 % of 100 GiB", "nvme0n1 2.0 TiB Fast One", "shoal-agent active", "libvirtd failed", "10.0.0.11/24 (to the controller)", "up 10000 Mbit/s",
		"in bond0", "no cable", "VMS (1)", "web1", "running", "2.0 GiB", "mounts: permission denied", "enter menu")
	if strings.Contains(h.screen(), "shb0123") {
		t.Error("a device of Shoal's is shown as the machine's own")
	}
	for _, size := range [][2]int{{80, 25}, {40, 12}, {20, 5}, {1, 1}, {200, 60}} {
		h.send(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		for _, keys := range []string{"", "<enter>", "1", "1", "<esc><esc><esc>"} {
			h.keys(keys)
			lines := strings.Split(h.screen(), "\n")
			if size[1] >= 5 && len(lines) > size[1] {
				t.Errorf("%d lines on a screen of %d", len(lines), size[1])
			}
			for _, l := range lines {
				if ansi.StringWidth(l) > size[0] {
					t.Errorf("%q is wider than %d", l, size[0])
				}
			}
		}
	}
	p := &network.Pending{Change: "make bond bond1"}
	n := someNode()
	n.Pending, n.Left = p, 42*time.Second
	h.send(tea.WindowSizeMsg{Width: 100, Height: 30})
	h.c.now = n.At
	h.send(nodeMsg{n})
	h.shows("make bond bond1: rolled back in 42 s")
}

// TestLogin: where nobody has logged in, nothing is done before root's password was given, and again after a while.
func TestLogin(t *testing.T) {
	t.Parallel()
	h := newHand(t, &actions{node: someNode(), password: "right"}, true)
	h.keys("<enter>4")
	h.shows("Root's password", "Password")
	h.keys("wrong<enter>")
	h.shows("that is not root's password")
	h.did("authenticate")
	h.keys("<enter>4right")
	if strings.Contains(h.screen(), "right") {
		t.Errorf("the password is on the screen:\n%s", h.screen())
	}
	h.keys("<enter>")
	h.shows("bundle is done")
	h.did("authenticate", "bundle")
	h.keys("<enter>5")
	h.did("backup")
	h.send(tickMsg(h.c.touched.Add(lockAfter + time.Second)))
	h.shows("VMS (1)")
	h.keys("<enter>5")
	h.shows("Root's password")
	h.keys("<esc><esc>")
	h.did()
	// Every item of every menu but those that only lead to another asks first.
	for n := range len(h.c.mainMenu().items) {
		h.c.home()
		h.keys(fmt.Sprintf("<enter>%d", n+1))
		if n < 2 {
			h.keys("1")
		}
		if h.c.page != pageForm || h.c.form.title != "Root's password" {
			t.Errorf("item %d does not ask for the password:\n%s", n+1, h.screen())
		}
	}
	h.did()
}

// TestWord: what ends the machine's work wants the word, letter for letter.
func TestWord(t *testing.T) {
	t.Parallel()
	h := newHand(t, &actions{node: someNode()}, false)
	for item, word := range map[string]string{"7": "reboot", "8": "poweroff"} {
		h.keys("<enter>" + item + "<enter>")
		h.shows("that is not "+word, "nothing is done")
		h.keys("yes<enter>")
		h.shows("that is not " + word)
		h.did()
		h.keys("<clear>" + word + "<enter>")
		h.shows(word + " is done")
		h.did(word)
		h.keys("<esc><esc>")
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	a := &actions{node: someNode()}
	h := newHand(t, a, false)
	h.keys("<enter>3secret-1<enter>secret-2<enter>")
	h.shows("not the same")
	h.keys("<clear>secret-1<enter>")
	h.did("password secret-1")
	h.keys("<esc>21<esc><esc>22<esc>")
	h.did("restart shoal-agent", "restart libvirtd")
	h.keys("<esc>6")
	h.shows("This machine is host id-of-h1")
	h.keys("<enter>")
	h.shows("token: give one")
	h.send(tea.PasteMsg{Content: "shoal1.a.b.c.d"})
	if strings.Contains(h.screen(), "shoal1.a") {
		t.Error("the token is on the screen")
	}
	h.keys("<enter>")
	h.did("enrol shoal1.a.b.c.d")

	h.keys("<esc>11eno2<enter>10.0.0.300/24<enter><enter><enter>")
	h.shows("10.0.0.300/24", "is none of dhcp")
	h.did()
	h.keys("<up><up><clear>10.0.0.30/24<enter>10.0.0.1<enter><enter>")
	h.did("give eno2 10.0.0.30/24, gateway 10.0.0.1")
	h.keys("<esc>2<enter>eno1, eno2<enter><clear>lacp<enter><enter><enter><enter>")
	h.did("make bond bond0 (lacp) of eno1, eno2")
	h.keys("<esc>3bond0<enter>x<enter><enter><enter><enter>")
	h.shows(`id: "x" is not a number`)
	h.keys("<up><up><up><clear>120<enter>dhcp<enter><enter><enter>")
	h.did("make VLAN 120 on bond0, called bond0.120")
	h.keys("<esc>4<enter>eno2 eno3<enter><enter><enter><enter>")
	h.did("make bridge br0 of eno2, eno3")
	h.keys("<esc>5bond0<enter>eno2<enter><esc>6bond0<enter>eno2<enter><esc>752:54:00:00:00:01<enter>lan0<enter><esc>8br0<enter>")
	h.did("add eno2 to bond0", "remove eno2 from bond0", "rename 52:54:00:00:00:01 to lan0", "delete br0")

	// What fails says so, and the menu is there again.
	a.fail = errors.New("no space left on device")
	h.keys("<esc><esc>4")
	h.shows("no space left on device")
	h.keys("<esc>")
	h.shows("What to do")
	h.did("bundle")
}

// TestCut: a change that interrupts something is offered again, for a word.
func TestCut(t *testing.T) {
	t.Parallel()
	h := newHand(t, &actions{node: someNode(), cut: true}, false)
	h.keys("<enter>11eno1<enter>dhcp<enter><enter><enter>")
	h.shows("the controller is reached over eno1", "enter go on")
	h.did()
	h.keys("<enter>yes<enter>")
	h.shows("that is not cut")
	h.did()
	h.keys("<clear>cut<enter>")
	h.did("give eno1 DHCP")
}

// TestPendingMenu: while a change is pending, it can be kept or taken back here.
func TestPendingMenu(t *testing.T) {
	t.Parallel()
	n := someNode()
	n.Pending = &network.Pending{Change: "x"}
	h := newHand(t, &actions{node: n}, false)
	h.keys("<enter>11<esc>2")
	h.did("confirm", "revert")
}

func TestLeave(t *testing.T) {
	t.Parallel()
	h := newHand(t, &actions{node: someNode()}, false)
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: 'c', Mod: tea.ModCtrl}} {
		_, cmd := h.c.Update(key)
		if cmd == nil {
			t.Fatalf("%s does not leave", key)
		}
		if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%s does not leave", key)
		}
	}
	if !slices.Contains(strings.Fields(h.screen()), "kvm01") {
		t.Error("the screen is gone")
	}
}
