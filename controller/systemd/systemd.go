package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"shoal/controller"
	"shoal/controller/file"
	"shoal/desired/layout"
)

// Config is what to put on this machine.
type Config struct {
	// Program and Shoalctl are the files that become shoal-controller and shoalctl.
	Program, Shoalctl string
	// Args are the controller's flags.
	Args []string
	// Clock has this machine serve the time to hosts.
	Clock bool
	// Healthy asks the controller that leads at the addresses of plan what version it has.
	Healthy func(ctx context.Context, plan controller.Plan) (version string, err error)
	// Patience is how long a controller may take from its start until it answers: it reads the whole journal first.
	Patience time.Duration
	// Say is told of each step.
	Say func(format string, args ...any)
}

var (
	program  = filepath.Join(layout.BinDir, layout.Controller)
	shoalctl = filepath.Join(layout.BinDir, layout.Shoalctl)
)

// ErrNotInstalled says that there is no controller's unit here.
var ErrNotInstalled = errors.New("there is no controller here that was installed: no " + layout.ControllerUnitPath)

// installed says whether there is a unit.
func installed() bool {
	_, err := os.Stat(layout.ControllerUnitPath)
	return err == nil
}

// run runs a command of the system; the error has what it said.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		if said := strings.TrimSpace(errOut.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said[max(0, len(said)-2000):])
		}
		return out.Bytes(), err
	}
	return out.Bytes(), nil
}

func systemctl(ctx context.Context, args ...string) error {
	_, err := run(ctx, "systemctl", args...)
	return err
}

// here refuses machines that nothing can be done on.
func here() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("units are root's, and the user is %d: run it as root, such as with sudo", uid)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return errors.New("systemd does not run this machine: start shoal-controller by what there is instead, see shoal-controller --help")
	}
	return nil
}

// check has a program say what it would do with these flags; it is refused here if it would be refused at the start.
func check(ctx context.Context, program string, args []string) (controller.Plan, error) {
	var plan controller.Plan
	out, err := run(ctx, program, append([]string{"--check", "--data", layout.ControllerData}, args...)...)
	if err == nil {
		err = json.Unmarshal(out, &plan)
	}
	if err != nil {
		return plan, fmt.Errorf("%s does not take flags and keys: %w", program, err)
	}
	return plan, nil
}

// argsLine is the content of layout.ControllerArgs. systemd splits the value at white space.
func argsLine(args []string) (string, error) {
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$%") {
			return "", fmt.Errorf("the flag %q holds what systemd would not pass on as it is: white space, quotes, $, %% or a backslash", a)
		}
		if name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "="); slices.Contains([]string{"data", "first-password-file", "check"}, name) && strings.HasPrefix(a, "-") {
			return "", fmt.Errorf("the flag %s is the unit's own", a)
		}
	}
	return "# Flags of shoal-controller; after a change: systemctl restart " + layout.ControllerUnit + "\n" + layout.ControllerArgsVar + "=" + strings.Join(args, " ") + "\n", nil
}

// readArgs are the flags that the installed controller is started with.
func readArgs(content string) []string {
	var args []string
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), layout.ControllerArgsVar+"="); ok {
			args = strings.Fields(strings.Trim(value, `"'`))
		}
	}
	return args
}

func installedArgs() ([]string, error) {
	b, err := os.ReadFile(layout.ControllerArgs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the controller's flags: %w", err)
	}
	return readArgs(string(b)), nil
}

// free refuses addresses that something listens at.
func free(ctx context.Context, plan controller.Plan) error {
	for flag, addr := range map[string]string{"--listen": plan.Listen, "--http": plan.HTTP} {
		if addr == "" {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("%s: %w; find what listens there with ss -tlnp, or give another address", flag, err)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// write puts a file in place, with its directory, and reports whether it was another before.
func write(f layout.File) (bool, error) {
	old, err := os.ReadFile(f.Path)
	if err == nil && bytes.Equal(old, []byte(f.Content)) {
		return false, nil
	}
	err = os.MkdirAll(filepath.Dir(f.Path), 0o755)
	if err == nil {
		err = file.Write(f.Path, f.Mode, []byte(f.Content))
	}
	if err != nil {
		return false, fmt.Errorf("write %s: %w", f.Path, err)
	}
	return true, nil
}

// programs are the two programs as files.
func (c Config) programs() ([]layout.File, error) {
	var files []layout.File
	for path, from := range map[string]string{program: c.Program, shoalctl: c.Shoalctl} {
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("read the program: %w", err)
		}
		files = append(files, layout.File{Path: path, Content: string(b), Mode: 0o755})
	}
	return files, nil
}

// start starts the unit and waits until its controller answers with this version; with an external NATS, where another may lead, until it says that it is ready.
func (c Config) start(ctx context.Context, verb string, plan controller.Plan) error {
	if err := systemctl(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("tell systemd of the unit: %w", err)
	}
	// An earlier failure is not one of this start. That there was none is no error to tell.
	_ = systemctl(ctx, "reset-failed", layout.ControllerUnit)
	// Not to be waited for: systemd has more patience.
	if err := systemctl(ctx, "--no-block", verb, layout.ControllerUnit); err != nil {
		return fmt.Errorf("start the controller: %w", err)
	}
	deadline := time.Now().Add(c.Patience)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := unitState(ctx)
		switch {
		case err != nil:
		case state == "auto-restart" || state == "failed":
			return fmt.Errorf("the controller ended at its start; %s", lastWords(ctx))
		case state != "running":
			err = fmt.Errorf("the unit is %s", state)
		case plan.NATSURL == "":
			ask, cancel := context.WithTimeout(ctx, 10*time.Second)
			var version string
			version, err = c.Healthy(ask, plan)
			cancel()
			if err == nil && version != plan.Version {
				err = fmt.Errorf("the controller that answers has version %s, not %s", version, plan.Version)
			}
		}
		switch {
		case err == nil:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("not healthy after %s: %w; %s", c.Patience, err, lastWords(ctx))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// unitState is what systemd says of the unit: running, dead, start, auto-restart, failed and more.
func unitState(ctx context.Context) (string, error) {
	out, err := run(ctx, "systemctl", "show", "--property=SubState", "--value", layout.ControllerUnit)
	return strings.TrimSpace(string(out)), err
}

// lastWords are the end of what the unit logged.
func lastWords(ctx context.Context) string {
	out, err := run(ctx, "journalctl", "--unit", layout.ControllerUnit, "--no-pager", "--lines", "5", "--output", "cat")
	if err != nil {
		return "see journalctl -u " + layout.ControllerUnit
	}
	return "it said last:\n" + strings.TrimSpace(string(out))
}

// space refuses to copy where there is no room.
func space(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look for space: %w", err)
	}
	if have := int64(st.Bavail) * st.Bsize; have < need+need/10+64<<20 { //nolint:gosec // sizes of disks fit
		return fmt.Errorf("a copy of keys and journal takes %d MiB, and %d MiB are free in %s: free some", need>>20, have>>20, dir)
	}
	return nil
}
