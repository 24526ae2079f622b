package metal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shoal/desired/kickstart"
)

// Main is all of the installer: what the initramfs starts, and what that starts in the root file system of the medium. It never returns, as it
// is the first process of the machine.
func Main(args []string) {
	if len(args) < 2 || args[1] != "run" {
		err := Boot("/run/shoal-installer")
		NewConsole(Consoles()...).Say("ERROR: %v\n%s\nnothing was changed; the machine stops here: switch it off", err, MarkFailed)
		forever()
	}
	cfg, err := Defaults()
	if err == nil {
		for _, a := range cfg.Args {
			if a == "shoal.rescue" {
				cfg.Console.Say("rescue shell; the machine starts anew when you leave the last one with: reboot -f")
				shells(cfg.Console)
			}
		}
		var end kickstart.End
		if end, err = Run(context.Background(), cfg); err == nil {
			over(cfg.Console, end)
		}
	} else {
		cfg.Console = NewConsole(Consoles()...)
	}
	cfg.Console.Say("ERROR: %v\n%s", err, MarkFailed)
	if err := os.WriteFile("/run/shoal-install.log", cfg.Console.Log(), 0o600); err == nil {
		cfg.Console.Say("all that was done is in /run/shoal-install.log")
	}
	shells(cfg.Console)
}

// over ends a successful installation.
func over(console *Console, end kickstart.End) {
	how, word := unix.LINUX_REBOOT_CMD_RESTART, "the machine starts anew"
	switch end {
	case kickstart.PowerOff:
		how, word = unix.LINUX_REBOOT_CMD_POWER_OFF, "the machine is switched off"
	case kickstart.Halt:
		how, word = unix.LINUX_REBOOT_CMD_HALT, "the machine stops"
	case kickstart.Reboot:
	}
	console.Say("installed; %s\n%s", word, MarkDone)
	unix.Sync()
	// The last lines must leave the serial port before the machine goes.
	for _, w := range console.outs {
		if f, ok := w.(*os.File); ok {
			_ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
		}
	}
	if err := unix.Reboot(how); err != nil {
		console.Say("ERROR: the machine does not start anew by itself: %v; switch it off and on", err)
	}
	forever()
}

// shells offers a shell on every console, for ever.
func shells(console *Console) {
	names := []string{"console"}
	if b, err := os.ReadFile("/sys/class/tty/console/active"); err == nil {
		names = strings.Fields(strings.ReplaceAll(string(b), "tty0", "tty1"))
	}
	console.Say("press Enter for a shell")
	for _, n := range names {
		go func() {
			for {
				if err := shell(filepath.Join("/dev", n)); err != nil {
					fmt.Fprintln(os.Stderr, "shell:", err)
					return
				}
			}
		}()
	}
	forever()
}

// shell waits for Enter on a console and runs a shell on it.
func shell(tty string) error {
	f, err := os.OpenFile(tty, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 256)); n == 0 || err != nil {
		return fmt.Errorf("nobody is at %s: %w", tty, err)
	}
	p, err := os.StartProcess("/bin/bash", []string{"bash", "--login"}, &os.ProcAttr{
		Dir: "/root", Env: os.Environ(), Files: []*os.File{f, f, f}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}

// forever does nothing for ever: the first process must not end.
func forever() {
	for range time.NewTicker(time.Hour).C {
	}
}
