package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/controller/api"
	"shoal/controller/resource"
)

// wait follows the tasks of a reply to their ends.
func (a *App) wait(ctx context.Context, client *api.Client, reply api.Reply) error {
	tasks := reply.Tasks
	if len(tasks) == 0 {
		tasks = []string{reply.Task}
	}
	wctx, cancel := context.WithTimeout(ctx, a.waitTimeout)
	defer cancel()
	p := &progress{w: a.Err, live: isTerminal(a.Err)}
	defer p.end()
	for i, id := range tasks {
		t, err := client.Wait(wctx, a.registry, id, func(t api.TaskView) { p.show(t, i+1, len(tasks)) })
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil, err != nil && wctx.Err() != nil && ctx.Err() == nil:
			p.end()
			return waitTimeoutError{fmt.Errorf("task %s is at %d%% after %s: %s", id, t.Status.Percent, a.waitTimeout, waitsFor(t))}
		case err != nil:
			return err
		}
		if t.Status.Failed || t.State == resource.TaskFailed || t.State == resource.TaskCancelled {
			e := t.Error
			if e == nil {
				e = t.Status.Error
			}
			if e == nil {
				e = &resource.Error{Code: resource.CodeInternal, Message: fmt.Sprintf("task %s has %s", id, t.State)}
			}
			p.end()
			return taskError{e}
		}
	}
	return nil
}

// waitsFor says in a few words what a task waits for.
func waitsFor(t api.TaskView) string {
	if len(t.Status.Waiting) == 0 {
		return "no more is known"
	}
	w := t.Status.Waiting[0]
	text := w.Why
	if w.Host != "" {
		text = fmt.Sprintf("%s on host %s: %s", w.Ref, w.Host, w.Why)
	}
	if more := len(t.Status.Waiting) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// progress is a line that is written over on a terminal; elsewhere nothing is shown before the end.
type progress struct {
	w    io.Writer
	live bool
	last string
}

func (p *progress) show(t api.TaskView, i, n int) {
	if !p.live {
		return
	}
	line := fmt.Sprintf("%3d%%  %s", t.Status.Percent, t.Op)
	if n > 1 {
		line = fmt.Sprintf("[%d/%d] %s", i, n, line)
	}
	if len(t.Status.Waiting) > 0 {
		line += "  " + waitsFor(t)
	}
	line = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, line)
	if r := []rune(line); len(r) > 110 {
		line = string(r[:109]) + "…"
	}
	if line != p.last {
		_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s", line)
		p.last = line
	}
}

func (p *progress) end() {
	if p.last != "" {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		p.last = ""
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
