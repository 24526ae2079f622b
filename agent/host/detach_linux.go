package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Detach starts a program that outlives this process, its terminal and its service: by systemd where that runs, as a unit of that name, and
// otherwise in a session of its own. It returns once the program runs. A program of systemd's that does not end with 0 is started again.
func Detach(ctx context.Context, unit string, c Command) error {
	// sd_booted(3)
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		args := []string{"--quiet", "--collect", "--unit=" + unit, "--property=Type=exec", "--property=Restart=on-failure", "--property=RestartSec=1", "--", c.Name}
		_, err := Machine{}.Run(ctx, Command{Name: "systemd-run", Args: append(args, c.Args...)})
		return err
	}
	//nolint:noctx // it must outlive every context of ours
	cmd := exec.Command(c.Name, c.Args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c, err)
	}
	return cmd.Process.Release()
}
