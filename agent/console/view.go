package console

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"shoal/agent/network"
)

// The styles work on the kernel's own console, which has 16 colours.
var (
	bold    = lipgloss.NewStyle().Bold(true)
	reverse = lipgloss.NewStyle().Reverse(true)
	alarm   = lipgloss.NewStyle().Foreground(lipgloss.Yellow).Bold(true)
	bad     = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
)

// View implements tea.Model.
func (c *console) View() tea.View {
	v := tea.NewView(c.text())
	v.AltScreen = true
	return v
}

// text is the whole screen: head, body cut to what fits, and a line of keys.
func (c *console) text() string {
	head := c.head()
	body, keys := c.body()
	room := max(1, c.height-len(head)-2)
	if len(body) > room {
		hidden := len(body) - room + 1
		body = append(body[:room-1:room-1], fmt.Sprintf("… %d lines more: this screen is too small", hidden))
	}
	for len(body) < room {
		body = append(body, "")
	}
	lines := append(append(head, body...), "", reverse.Render(pad(" "+keys, c.width)))
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, c.width, "…")
	}
	return strings.Join(lines, "\n")
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

func (c *console) head() []string {
	left := " Shoal  " + c.node.Hostname
	if name := c.node.Status.Name; name != "" && name != c.node.Hostname {
		left += "  host " + name
	}
	right := c.now.Format("2006-01-02 15:04:05 MST") + " "
	gap := max(1, c.width-ansi.StringWidth(left)-ansi.StringWidth(right))
	lines := []string{reverse.Render(left + strings.Repeat(" ", gap) + right)}
	if p := c.node.Pending; p != nil {
		left := max(0, c.node.Left-max(0, c.now.Sub(c.node.At))).Round(time.Second)
		lines = append(lines, alarm.Render(fmt.Sprintf(" %s: rolled back in %d s unless it is confirmed from the network, or here", p.Change, int(left.Seconds()))))
	}
	return lines
}

func (c *console) body() (lines []string, keys string) {
	switch c.page {
	case pageStatus:
		if c.node.At.IsZero() {
			return []string{"", " looking at this machine …"}, "q leave"
		}
		return c.status(), "enter menu   q leave"
	case pageMenu:
		m := c.menus[len(c.menus)-1]
		lines = []string{"", " " + bold.Render(m.title), ""}
		for i, it := range m.items {
			text := fmt.Sprintf(" %d  %s ", i+1, it.label)
			if i > 8 {
				text = "    " + it.label + " "
			}
			if i == m.at {
				text = reverse.Render(text)
			}
			lines = append(lines, "  "+text)
		}
		return lines, "↑ ↓ enter or a digit: choose   esc back"
	case pageForm:
		f := c.form
		lines = []string{"", " " + bold.Render(f.title), ""}
		lines = append(lines, c.wrap(f.help)...)
		for _, fd := range f.fields {
			lines = append(lines, fmt.Sprintf("  %-16s %s", fd.label, fd.input.View()))
		}
		if f.problem != "" {
			lines = append(append(lines, ""), c.paint(bad, f.problem)...)
		}
		return lines, "enter next, at the end: do it   ↑ ↓ field   esc back"
	case pageBusy:
		return []string{"", " " + c.doing + " …"}, "please wait"
	case pageResult:
		if err := c.result.err; err != nil {
			lines = append([]string{""}, c.paint(bad, err.Error())...)
			if c.result.next != nil {
				return lines, "enter go on   any other key: back"
			}
			return lines, "any key: back"
		}
		return append([]string{""}, c.wrap(c.result.text)...), "any key: back"
	}
	return nil, ""
}

// wrap breaks a text into lines that fit, with a blank one behind.
func (c *console) wrap(s string) []string {
	if s == "" {
		return nil
	}
	var out []string
	for line := range strings.SplitSeq(ansi.Wrap(s, max(20, c.width-4), ""), "\n") {
		out = append(out, "  "+line)
	}
	return append(out, "")
}

func (c *console) paint(style lipgloss.Style, s string) []string {
	lines := c.wrap(s)
	for i := range lines {
		lines[i] = style.Render(lines[i])
	}
	return lines
}

// status tells how the machine is.
func (c *console) status() []string {
	n := c.node
	var out []string
	row := func(name, format string, args ...any) {
		out = append(out, fmt.Sprintf(" %s %s", bold.Render(fmt.Sprintf("%-9s", name)), fmt.Sprintf(format, args...)))
	}
	out = append(out, "")
	row("Host", "%s", hostText(n))
	row("Agent", "%s", agentText(n))
	row("System", "up %s, Linux %s, Shoal %s", uptime(n.Uptime), n.Kernel, c.cfg.Version)
	busy := "        "
	if n.Busy >= 0 {
		busy = fmt.Sprintf("%s %3.0f %%", bar(n.Busy), n.Busy*100)
	}
	row("CPU", "%s of %d, load %s", busy, n.CPUs, strings.Join(n.Load[:], " "))
	if n.Memory > 0 {
		part := float64(n.MemoryUsed) / float64(n.Memory)
		row("Memory", "%s %3.0f %% of %s", bar(part), part*100, size(n.Memory))
	}
	for i, f := range n.FileSystems {
		name := ""
		if i == 0 {
			name = "Disk use"
		}
		part := float64(f.Used) / float64(f.Bytes)
		row(name, "%s %3.0f %% of %-9s %s", bar(part), part*100, size(f.Bytes), f.Path)
	}
	var disks []string
	for _, d := range n.Disks {
		disks = append(disks, strings.TrimSpace(fmt.Sprintf("%s %s %s", d.Name, size(d.Bytes), d.Model)))
	}
	if len(disks) > 0 {
		row("Disks", "%s", strings.Join(disks, ", "))
	}
	var states []string
	for _, s := range n.Services {
		text := s.Name + " " + s.State
		if s.State != "active" {
			text = bad.Render(text)
		}
		states = append(states, text)
	}
	if len(states) > 0 {
		row("Services", "%s", strings.Join(states, ", "))
	}
	out = append(out, "", " "+bold.Render(fmt.Sprintf("%-16s %-18s %-15s %s", "NETWORK", "KIND", "LINK", "ADDRESSES")))
	for _, d := range n.NICs {
		if d.Shoal == "" {
			out = append(out, nicText(d))
		}
	}
	out = append(out, "", " "+bold.Render(fmt.Sprintf("%-32s %-14s %5s %10s", fmt.Sprintf("VMS (%d)", len(n.VMs)), "STATE", "CPUS", "MEMORY")))
	for _, vm := range n.VMs {
		out = append(out, fmt.Sprintf(" %-32s %-14s %5d %10s", ansi.Truncate(vm.Name, 32, "…"), vm.State, vm.CPUs, size(uint64(max(0, vm.MemoryMiB))<<20)))
	}
	for _, note := range n.Notes {
		out = append(out, alarm.Render(" "+note))
	}
	return out
}

func nicText(d network.Device) string {
	var addresses []string
	for _, a := range d.Addresses {
		addresses = append(addresses, a.String())
	}
	text := strings.Join(addresses, ", ")
	switch {
	case d.Master != "":
		text = strings.TrimSpace("in " + d.Master + " " + text)
	case d.Controller:
		text += " (to the controller)"
	}
	return fmt.Sprintf(" %-16s %-18s %-15s %s", d.Name, d.What(), d.Link(), text)
}

func hostText(n Node) string {
	switch {
	case n.Status.Joined:
		return strings.TrimSpace(n.Status.Name + " " + n.Status.Host)
	case n.Status.Joining:
		return "joining: a token is there"
	default:
		return "has not joined a controller"
	}
}

func agentText(n Node) string {
	switch s := n.Status; {
	case s.Agent == 0:
		return bad.Render("does not run")
	case s.Connection == nil:
		return "runs"
	case s.Connection.Connected:
		return "connected to " + s.Connection.Server + " since " + s.Connection.Since.Local().Format(time.DateTime)
	default:
		return alarm.Render(strings.TrimSuffix("not connected since "+s.Connection.Since.Local().Format(time.DateTime)+": "+s.Connection.Error, ": "))
	}
}

// bar is a part of 1 as ten cells.
func bar(part float64) string {
	n := min(10, max(0, int(part*10+0.5)))
	return "[" + strings.Repeat("#", n) + strings.Repeat("-", 10-n) + "]"
}

// size is a number of bytes in the unit that people read.
func size(b uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(b), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if v < 10 && i > 0 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

func uptime(d time.Duration) string {
	days, rest := int(d.Hours())/24, int(d.Minutes())
	if days > 0 {
		return fmt.Sprintf("%d days %d:%02d", days, rest/60%24, rest%60)
	}
	return fmt.Sprintf("%d:%02d", rest/60, rest%60)
}
