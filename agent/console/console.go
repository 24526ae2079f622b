// Package console is what people see on the screen of a host, without the controller: how the machine is, and the few things that
// must work when nothing else does - password, network, services, logs, a backup, joining anew, switching off.
//
// Console is a pure view: it turns messages into a state and a state into text. All that touches the machine is behind Actions, of which
// Machine is the real one.
//
// On tty1 nobody has logged in. There the screen shows and every action asks for root's password first (Config.Login), again after some minutes
// without a key. What ends the machine's work wants a word typed besides.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"shoal/agent/network"
)

// Config is what Run needs.
type Config struct {
	Actions Actions
	// Login asks for root's password before anything is done.
	Login bool
	// Version is shown.
	Version string
	// Input, Output and Environment, if they are set, are not the process's.
	Input       io.Reader
	Output      io.Writer
	Environment []string
}

// Run shows the console until somebody leaves it, or ctx ends.
func Run(ctx context.Context, cfg Config) error {
	options := []tea.ProgramOption{tea.WithContext(ctx)}
	if cfg.Input != nil {
		options = append(options, tea.WithInput(cfg.Input))
	}
	if cfg.Output != nil {
		options = append(options, tea.WithOutput(cfg.Output))
	}
	if cfg.Environment != nil {
		options = append(options, tea.WithEnvironment(cfg.Environment))
	}
	_, err := tea.NewProgram(newConsole(ctx, cfg), options...).Run()
	if ctx.Err() == nil || !errors.Is(err, tea.ErrProgramKilled) {
		return err
	}
	return nil
}

const (
	// refresh is how often the machine is looked at.
	refresh = 2 * time.Second
	// lockAfter is how long a password holds without a key.
	lockAfter = 5 * time.Minute
)

// page is what the screen shows below its head.
type page int

const (
	pageStatus page = iota
	pageMenu
	pageForm
	pageBusy
	pageResult
)

// console is the state of the screen.
type console struct {
	cfg Config
	// run starts an action; it is the only thing here that knows a context.
	run func(func(context.Context) tea.Msg) tea.Cmd

	node          Node
	width, height int
	now           time.Time
	touched       time.Time
	trusted       bool

	page   page
	menus  []menu
	form   *form
	result result
	// doing says what is under way.
	doing string
}

// menu is a list to choose from.
type menu struct {
	title string
	items []item
	at    int
}

// item is a line of a menu. Choose gives what comes next.
type item struct {
	label  string
	choose func(*console) tea.Cmd
}

// form is questions. Submit checks the answers; an error keeps the form.
type form struct {
	title, help string
	fields      []field
	at          int
	problem     string
	submit      func(*console, []string) (tea.Cmd, error)
}

type field struct {
	label string
	input textinput.Model
}

// result is how an action ended. Next, if it is set, is offered.
type result struct {
	text string
	err  error
	next *form
}

// Messages.
type (
	nodeMsg   struct{ node Node }
	tickMsg   time.Time
	resultMsg struct {
		text string
		err  error
		next *form
	}
	loginMsg struct {
		err  error
		then func(*console) tea.Cmd
	}
)

func newConsole(ctx context.Context, cfg Config) *console {
	return &console{
		cfg: cfg, trusted: !cfg.Login, width: 80, height: 25, now: time.Now(), touched: time.Now(),
		run: func(f func(context.Context) tea.Msg) tea.Cmd { return func() tea.Msg { return f(ctx) } },
	}
}

// Init implements tea.Model.
func (c *console) Init() tea.Cmd { return tea.Batch(c.look(), tick()) }

func tick() tea.Cmd { return tea.Tick(refresh, func(t time.Time) tea.Msg { return tickMsg(t) }) }

func (c *console) look() tea.Cmd {
	return c.run(func(ctx context.Context) tea.Msg { return nodeMsg{c.cfg.Actions.Look(ctx)} })
}

// Update implements tea.Model.
func (c *console) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		c.width, c.height = msg.Width, msg.Height
	case nodeMsg:
		c.node = msg.node
	case tickMsg:
		c.now = time.Time(msg)
		if c.cfg.Login && c.now.Sub(c.touched) > lockAfter && c.page != pageBusy {
			c.trusted = false
			c.home()
		}
		return c, tea.Batch(c.look(), tick())
	case resultMsg:
		c.page, c.result = pageResult, result(msg)
		return c, c.look()
	case loginMsg:
		if msg.err != nil {
			c.page, c.result = pageResult, result{err: msg.err}
			return c, nil
		}
		c.trusted = true
		c.page = pageMenu
		return c, msg.then(c)
	case tea.KeyPressMsg:
		c.touched = c.now
		return c, c.key(msg)
	case tea.PasteMsg:
		if c.page == pageForm {
			return c, c.typed(msg)
		}
	}
	return c, nil
}

// home goes back to the status.
func (c *console) home() {
	c.page, c.menus, c.form, c.result = pageStatus, nil, nil, result{}
}

// back goes one step back.
func (c *console) back() {
	c.form, c.result = nil, result{}
	if c.page == pageMenu {
		c.menus = c.menus[:len(c.menus)-1]
	}
	if c.page = pageMenu; len(c.menus) == 0 {
		c.home()
	}
}

func (c *console) key(msg tea.KeyPressMsg) tea.Cmd {
	key := msg.String()
	if key == "ctrl+c" {
		// On tty1 the service starts it again at once.
		return tea.Quit
	}
	if key == "ctrl+l" {
		// What the kernel wrote over the screen goes.
		return tea.ClearScreen
	}
	switch c.page {
	case pageStatus:
		switch key {
		case "q":
			return tea.Quit
		case "enter", "m", "f2":
			c.open(c.mainMenu())
		}
	case pageMenu:
		return c.menuKey(key)
	case pageForm:
		return c.formKey(msg)
	case pageResult:
		if next := c.result.next; next != nil && key == "enter" {
			c.ask(next)
			return nil
		}
		c.back()
	case pageBusy:
	}
	return nil
}

func (c *console) menuKey(key string) tea.Cmd {
	m := &c.menus[len(c.menus)-1]
	switch key {
	case "up", "k", "shift+tab":
		m.at = (m.at + len(m.items) - 1) % len(m.items)
	case "down", "j", "tab":
		m.at = (m.at + 1) % len(m.items)
	case "esc", "q", "left", "backspace":
		c.back()
	case "enter", "right":
		return m.items[m.at].choose(c)
	default:
		// The digit before an item chooses it.
		if n := strings.Index("123456789", key); len(key) == 1 && n >= 0 && n < len(m.items) {
			m.at = n
			return m.items[n].choose(c)
		}
	}
	return nil
}

func (c *console) formKey(msg tea.KeyPressMsg) tea.Cmd {
	f := c.form
	move := func(by int) {
		f.fields[f.at].input.Blur()
		f.at = (f.at + by + len(f.fields)) % len(f.fields)
		f.fields[f.at].input.Focus()
	}
	switch msg.String() {
	case "esc":
		c.back()
		return nil
	case "up", "shift+tab":
		move(-1)
		return nil
	case "down", "tab":
		move(1)
		return nil
	case "enter":
		if f.at < len(f.fields)-1 {
			move(1)
			return nil
		}
		values := make([]string, len(f.fields))
		for i := range f.fields {
			values[i] = strings.TrimSpace(f.fields[i].input.Value())
			if f.fields[i].input.EchoMode == textinput.EchoPassword {
				values[i] = f.fields[i].input.Value()
			}
		}
		cmd, err := f.submit(c, values)
		if err != nil {
			f.problem = err.Error()
		}
		return cmd
	}
	return c.typed(msg)
}

// typed gives a message to the field that is being filled in.
func (c *console) typed(msg tea.Msg) tea.Cmd {
	f := c.form
	f.problem = ""
	var cmd tea.Cmd
	f.fields[f.at].input, cmd = f.fields[f.at].input.Update(msg)
	return cmd
}

func (c *console) open(m menu) {
	c.page = pageMenu
	c.menus = append(c.menus, m)
}

func (c *console) ask(f *form) {
	c.page, c.form, c.result = pageForm, f, result{}
	if len(f.fields) > 0 {
		f.fields[0].input.Focus()
	}
}

// act runs an action and shows how it ended.
func (c *console) act(doing string, f func(context.Context) (string, error)) tea.Cmd {
	c.page, c.doing, c.form = pageBusy, doing, nil
	return c.run(func(ctx context.Context) tea.Msg {
		text, err := f(ctx)
		return resultMsg{text: text, err: err}
	})
}

// guarded is a choice that asks for root's password first, where nobody has logged in.
func guarded(then func(*console) tea.Cmd) func(*console) tea.Cmd {
	return func(c *console) tea.Cmd {
		if c.trusted {
			return then(c)
		}
		c.ask(&form{title: "Root's password", fields: []field{secret("Password")}, submit: func(c *console, v []string) (tea.Cmd, error) {
			c.page, c.doing, c.form = pageBusy, "checking", nil
			return c.run(func(ctx context.Context) tea.Msg { return loginMsg{c.cfg.Actions.Authenticate(ctx, v[0]), then} }), nil
		}})
		return nil
	}
}

func asks(f func(*console) *form) func(*console) tea.Cmd {
	return guarded(func(c *console) tea.Cmd {
		c.ask(f(c))
		return nil
	})
}

func line(label, value string) field {
	in := textinput.New()
	in.Prompt = ""
	in.SetWidth(44)
	// A cursor that blinks would draw the screen anew all the time, on a serial line too.
	styles := in.Styles()
	styles.Cursor.Blink = false
	in.SetStyles(styles)
	in.SetValue(value)
	return field{label, in}
}

func secret(label string) field {
	f := line(label, "")
	f.input.EchoMode = textinput.EchoPassword
	return f
}

func (c *console) mainMenu() menu {
	a := c.cfg.Actions
	m := menu{title: "What to do", items: []item{
		{"Network", func(c *console) tea.Cmd { c.open(c.networkMenu()); return nil }},
		{"Restart a service", func(c *console) tea.Cmd { c.open(c.serviceMenu()); return nil }},
		{"Set root's password", asks(passwordForm)},
		{"Collect logs", guarded(func(c *console) tea.Cmd { return c.act("collecting logs", a.Bundle) })},
		{"Back up this host", guarded(func(c *console) tea.Cmd { return c.act("backing up", a.Backup) })},
		{"Join a controller", asks(enrolForm)},
		{"Reboot", asks(func(*console) *form { return wordForm("Reboot: guests are stopped", "reboot", "rebooting", a.Reboot) })},
		{"Power off", asks(func(*console) *form {
			return wordForm("Power off: guests are stopped", "poweroff", "switching off", a.PowerOff)
		})},
	}}
	if c.cfg.Login && c.trusted {
		m.items = append(m.items, item{"Log out", func(c *console) tea.Cmd { c.trusted = false; c.home(); return nil }})
	}
	return m
}

func (c *console) serviceMenu() menu {
	m := menu{title: "Restart a service"}
	for _, s := range c.node.Services {
		m.items = append(m.items, item{s.Name + " (" + s.State + ")", guarded(func(c *console) tea.Cmd {
			return c.act("restarting "+s.Name, func(ctx context.Context) (string, error) { return c.cfg.Actions.Restart(ctx, s.Name) })
		})})
	}
	if len(m.items) == 0 {
		m.items = []item{{"none: systemd does not answer here", func(c *console) tea.Cmd { c.back(); return nil }}}
	}
	return m
}

func passwordForm(*console) *form {
	return &form{title: "Root's password", fields: []field{secret("New password"), secret("Once more")}, submit: func(c *console, v []string) (tea.Cmd, error) {
		if v[0] != v[1] {
			return nil, errors.New("the two are not the same")
		}
		return c.act("setting the password", func(ctx context.Context) (string, error) { return c.cfg.Actions.SetPassword(ctx, v[0]) }), nil
	}}
}

func enrolForm(c *console) *form {
	help := "The token is from shoalctl host token create."
	if c.node.Status.Joined {
		help = "This machine is host " + c.node.Status.Host + ". It asks to be another one, or with a token of --replace the same, and its guests run on. " + help
	}
	return &form{title: "Join a controller", help: help, fields: []field{secret("Join token")}, submit: func(c *console, v []string) (tea.Cmd, error) {
		if v[0] == "" {
			return nil, errors.New("token: give one")
		}
		return c.act("joining", func(ctx context.Context) (string, error) { return c.cfg.Actions.Enrol(ctx, strings.TrimSpace(v[0])) }), nil
	}}
}

// wordForm does something once a word was typed, letter for letter.
func wordForm(title, word, doing string, f func(context.Context) (string, error)) *form {
	return &form{title: title, help: "Type " + word + " to do it.", fields: []field{line("Word", "")}, submit: func(c *console, v []string) (tea.Cmd, error) {
		if v[0] != word {
			return nil, fmt.Errorf("that is not %s: nothing is done", word)
		}
		return c.act(doing, f), nil
	}}
}

// words splits a list that was typed, by commas and spaces.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func (c *console) networkMenu() menu {
	m := menu{title: "Network"}
	if c.node.Pending != nil {
		m.items = append(m.items,
			item{"Keep the change that is pending", guarded(func(c *console) tea.Cmd { return c.act("confirming", c.cfg.Actions.Confirm) })},
			item{"Roll it back now", guarded(func(c *console) tea.Cmd { return c.act("rolling back", c.cfg.Actions.Revert) })})
	}
	address := func() []field {
		return []field{line("Address", ""), line("Gateway", ""), line("Name servers", "")}
	}
	given := func(v []string) (*network.Addressing, error) {
		if strings.Join(v, "") == "" {
			return nil, nil //nolint:nilnil // nothing was given
		}
		a, err := network.ParseAddressing(words(v[0]), words(v[1]), words(v[2]))
		return &a, err
	}
	const moves = " An empty address takes over the one that a member has."
	for _, f := range []struct {
		label, help string
		fields      func() []field
		change      func([]string) (network.Change, error)
	}{
		{"Set an address", "Address: dhcp, none, or such as 10.0.0.5/24.", func() []field { return append([]field{line("Device", "")}, address()...) }, func(v []string) (network.Change, error) {
			a, err := network.ParseAddressing(words(v[1]), words(v[2]), words(v[3]))
			return network.SetAddress{Device: v[0], Addressing: a}, err
		}},
		{"Make a bond", "Mode: lacp or active-backup." + moves, func() []field {
			return append([]field{line("Name", "bond0"), line("Interfaces", ""), line("Mode", "active-backup")}, address()...)
		}, func(v []string) (network.Change, error) {
			a, err := given(v[3:])
			return network.MakeBond{Name: v[0], NICs: words(v[1]), Mode: v[2], Address: a}, err
		}},
		{"Make a VLAN", "", func() []field { return append([]field{line("Device", ""), line("VLAN id", "")}, address()...) }, func(v []string) (network.Change, error) {
			a, err := given(v[2:])
			var id int
			if _, scanErr := fmt.Sscanf(v[1], "%d", &id); scanErr != nil || fmt.Sprint(id) != v[1] {
				return nil, fmt.Errorf("id: %q is not a number", v[1])
			}
			return network.MakeVLAN{Device: v[0], ID: id, Address: a}, err
		}},
		{"Make a bridge", strings.TrimSpace(moves), func() []field { return append([]field{line("Name", "br0"), line("Ports", "")}, address()...) }, func(v []string) (network.Change, error) {
			a, err := given(v[2:])
			return network.MakeBridge{Name: v[0], Ports: words(v[1]), Address: a}, err
		}},
		{"Add to a bond or bridge", "", func() []field { return []field{line("Bond or bridge", ""), line("Interfaces", "")} }, func(v []string) (network.Change, error) {
			return network.AddNIC{To: v[0], NICs: words(v[1])}, nil
		}},
		{"Remove from a bond or bridge", "", func() []field { return []field{line("Bond or bridge", ""), line("Interfaces", "")} }, func(v []string) (network.Change, error) {
			return network.RemoveNIC{From: v[0], NICs: words(v[1])}, nil
		}},
		{"Rename an interface", "The MAC is the permanent one, as shoal-agent net show tells.", func() []field { return []field{line("MAC", ""), line("New name", "")} }, func(v []string) (network.Change, error) {
			return network.Rename{MAC: v[0], Name: v[1]}, nil
		}},
		{"Delete a bond, bridge or VLAN", "", func() []field { return []field{line("Name", "")} }, func(v []string) (network.Change, error) {
			return network.Delete{Name: v[0]}, nil
		}},
	} {
		m.items = append(m.items, item{f.label, asks(func(*console) *form {
			return &form{title: f.label, help: f.help, fields: f.fields(), submit: func(c *console, v []string) (tea.Cmd, error) {
				change, err := f.change(v)
				if err != nil {
					return nil, err
				}
				return c.change(change, network.Cut{}), nil
			}}
		})})
	}
	return m
}

// cutWord is what must be typed to interrupt what is in use.
const cutWord = "cut"

// change makes a change of the network. One that would interrupt something is offered again, for a word.
func (c *console) change(change network.Change, cut network.Cut) tea.Cmd {
	c.page, c.doing, c.form = pageBusy, change.String(), nil
	return c.run(func(ctx context.Context) tea.Msg {
		text, err := c.cfg.Actions.Change(ctx, change, cut)
		msg := resultMsg{text: text, err: err}
		if errors.Is(err, network.ErrCut) {
			msg.next = &form{
				title: change.String(), help: err.Error() + ". Type " + cutWord + " to do it all the same.", fields: []field{line("Word", "")},
				submit: func(c *console, v []string) (tea.Cmd, error) {
					if v[0] != cutWord {
						return nil, fmt.Errorf("that is not %s: nothing is done", cutWord)
					}
					return c.change(change, network.Cut{Controller: true, Guests: true}), nil
				},
			}
		}
		return msg
	})
}
