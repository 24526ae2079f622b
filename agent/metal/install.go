package metal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"shoal/agent/host"
	"shoal/agent/metal/plan"
	"shoal/desired"
	"shoal/desired/kickstart"
	"shoal/desired/layout"
)

// carrierWait is how long a network interface may take to see its cable.
const carrierWait = 3 * time.Second

// Config is where Run finds things.
type Config struct {
	// Medium is the mounted medium, Host the directory of what is to be installed, Target where the new system is mounted.
	Medium, Host, Target string
	// Args are the words of the kernel's command line.
	Args    []string
	Runner  host.Runner
	Console *Console
}

// Defaults is the Config of an installer that Boot has started.
func Defaults() (Config, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Config{}, fmt.Errorf("read the kernel's command line: %w", err)
	}
	return Config{Medium: MediumDir, Host: HostDir, Target: TargetDir, Args: strings.Fields(string(b)), Runner: host.Machine{}, Console: NewConsole(Consoles()...)}, nil
}

type installer struct {
	cfg     Config
	console *Console
	args    []string
	host    desired.HostMedium
	image   image
	ks      *kickstart.Kickstart
	plan    *plan.Plan
	// mounted: the target is there, and scripts can run in it.
	mounted bool
}

// Run installs, and says how the machine is to go on. After an error nobody can tell what state the disks are in, but starting the medium again
// takes them up, unless the error came before the first step: then nothing was changed, and it says so.
func Run(ctx context.Context, cfg Config) (kickstart.End, error) {
	i := &installer{cfg: cfg, console: cfg.Console, args: cfg.Args}
	if err := i.prepare(ctx); err != nil {
		return "", fmt.Errorf("%w\nnothing was changed on the disks of this machine", err)
	}
	if err := i.install(ctx); err != nil {
		// Their failure is said by scripts itself, and the first error is the one that counts.
		_ = i.scripts(ctx, kickstart.OnError)
		return "", fmt.Errorf("%w\nstart the medium again to begin anew", err)
	}
	return i.ks.End, nil
}

// run runs a command of the installer's own environment.
func (i *installer) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return i.command(ctx, host.Command{Name: name, Args: args})
}

func (i *installer) command(ctx context.Context, c host.Command) ([]byte, error) {
	start := time.Now()
	out, err := i.cfg.Runner.Run(ctx, c)
	i.console.Note("  %5.1fs %s", time.Since(start).Seconds(), c.Name+" "+strings.Join(c.Args, " "))
	if len(out) > 0 && len(out) < 2000 {
		i.console.Note("%s", out)
	}
	return out, err
}

// prepare does all that changes nothing.
func (i *installer) prepare(ctx context.Context) error {
	say := i.console.Say
	say("Shoal installer")
	var err error
	if i.host, err = readHost(i.cfg.Host); err != nil {
		return err
	}
	if i.ks, err = i.parse(true); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(i.cfg.Medium, "shoal", "image.json"))
	if err == nil {
		err = json.Unmarshal(b, &i.image)
	}
	if err != nil {
		return damaged(err)
	}
	say("checking the medium")
	if err := verify(ctx, filepath.Join(i.cfg.Medium, "shoal"), say); err != nil {
		return err
	}
	say("looking at the machine")
	if err := i.devices(ctx); err != nil {
		return err
	}
	machine, err := i.look(ctx)
	if err != nil {
		return err
	}
	for n := range machine.Disks {
		say("  disk %s", &machine.Disks[n])
	}
	for _, n := range machine.NICs {
		say("  network interface %s %s, cable: %v", n.Name, n.MAC, n.Carrier)
	}
	if err := i.scripts(ctx, kickstart.Pre); err != nil {
		return err
	}
	if i.ks, err = i.parse(false); err != nil {
		return err
	}
	seed := make([]byte, 16)
	if _, err := rand.Read(seed); err != nil {
		return fmt.Errorf("make the identity of the new system: %w", err)
	}
	i.plan, err = plan.Make(i.ks, machine, plan.Options{
		ID: i.host.ID, Seed: hex.EncodeToString(seed), Reinstall: slices.Contains(i.args, "shoal.reinstall"),
		Consoles: slices.DeleteFunc(slices.Clone(i.args), func(a string) bool { return !strings.HasPrefix(a, "console=") }),
	})
	if err != nil {
		return err
	}
	for _, n := range i.plan.Notes {
		say("note: %s", n)
	}
	say("this machine becomes a Shoal host, mode %s:", i.host.Mode)
	for _, line := range i.plan.Summary {
		say("  %s", line)
	}
	return nil
}

// parse reads the kickstart; early: what %pre will write may be absent.
func (i *installer) parse(early bool) (*kickstart.Kickstart, error) {
	name := filepath.Join(i.cfg.Host, desired.HostMediumKickstart)
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the kickstart: %w", err)
	}
	ks, err := kickstart.Parse(kickstart.Source{Name: name, Text: b, Open: os.ReadFile, Early: early})
	if err != nil {
		return nil, fmt.Errorf("the kickstart is wrong:\n%w", err)
	}
	return ks, nil
}

// devices starts what names devices and loads their drivers.
func (i *installer) devices(ctx context.Context) error {
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		// Without it no boot entry can be made; the machine then starts from the path for removable media.
		if _, err := i.run(ctx, "mount", "-t", "efivarfs", "efivarfs", "/sys/firmware/efi/efivars"); err != nil {
			i.console.Note("%v", err)
		}
	}
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"mount", "-t", "devpts", "devpts", "/dev/pts"},
		{"/lib/systemd/systemd-udevd", "--daemon"},
		{"udevadm", "trigger", "--type=subsystems", "--action=add"},
		{"udevadm", "trigger", "--type=devices", "--action=add"},
		{"udevadm", "settle", "--timeout=120"},
	} {
		if _, err := i.run(ctx, c[0], c[1:]...); err != nil {
			return fmt.Errorf("find the devices of this machine: %w", err)
		}
	}
	// Not every machine's hardware asks for these.
	for _, m := range []string{"dm-mod", "md-mod", "raid1", "vfat", "nls_ascii", "nls_cp437", "ext4", "xfs"} {
		if _, err := i.run(ctx, "modprobe", "-q", m); err != nil {
			i.console.Note("%v", err)
		}
	}
	return nil
}

// install carries the plan out.
func (i *installer) install(ctx context.Context) error {
	if err := i.scripts(ctx, kickstart.PreInstall); err != nil {
		return err
	}
	for n, s := range i.plan.Steps {
		i.console.Say("disks %d/%d: %s", n+1, len(i.plan.Steps), s.Say)
		if err := i.step(ctx, s); err != nil {
			return err
		}
	}
	if err := i.mount(ctx); err != nil {
		return err
	}
	i.console.Say("unpacking the system: %d MiB", i.image.SizeMiB)
	if err := i.unpack(ctx); err != nil {
		return err
	}
	i.console.Say("configuring the system")
	if err := i.configure(ctx); err != nil {
		return err
	}
	if err := i.loader(ctx); err != nil {
		return err
	}
	if err := i.scripts(ctx, kickstart.Post); err != nil {
		return err
	}
	return i.finish(ctx)
}

// step runs a command and waits for the devices that it makes.
func (i *installer) step(ctx context.Context, s plan.Step) error {
	if _, err := i.command(ctx, s.Command); err != nil {
		return fmt.Errorf("%s: %w", s.Say, err)
	}
	if len(s.Nodes) == 0 {
		return nil
	}
	if _, err := i.run(ctx, "udevadm", "settle", "--timeout=60"); err != nil {
		i.console.Note("%v", err)
	}
	for _, node := range s.Nodes {
		if err := appears(ctx, node, 30*time.Second); err != nil {
			return fmt.Errorf("%s: %w", s.Say, err)
		}
	}
	return nil
}

// appears waits until a device node is there.
func appears(ctx context.Context, node string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		if _, err := os.Stat(node); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the device %s did not appear within %s", node, limit)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *installer) mount(ctx context.Context) error {
	for _, m := range i.plan.Mounts {
		target := filepath.Join(i.cfg.Target, m.Path)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("make the mount point %s: %w", m.Path, err)
		}
		args := []string{"-t", m.Type}
		if m.Options != "" {
			args = append(args, "-o", m.Options)
		}
		if _, err := i.run(ctx, "mount", append(args, m.Device, target)...); err != nil {
			return fmt.Errorf("mount %s: %w", m.Path, err)
		}
	}
	// Anaconda's other name of it.
	if err := os.Symlink(i.cfg.Target, "/mnt/sysimage"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// unpack writes the image, and says now and then how far it is.
func (i *installer) unpack(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		_, err := i.run(ctx, "unsquashfs", "-force", "-no-progress", "-quiet", "-dest", i.cfg.Target, filepath.Join(i.cfg.Medium, "shoal", "rootfs.squashfs"))
		done <- err
	}()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	var start unix.Statfs_t
	if err := unix.Statfs(i.cfg.Target, &start); err != nil {
		return fmt.Errorf("look at the new root file system: %w", err)
	}
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("unpack the system: %w", err)
			}
			return nil
		case <-tick.C:
			var now unix.Statfs_t
			if err := unix.Statfs(i.cfg.Target, &now); err == nil && start.Bfree > now.Bfree {
				i.console.Say("unpacking the system: %d of %d MiB", (start.Bfree-now.Bfree)*uint64(now.Bsize)>>20, i.image.SizeMiB) //nolint:gosec // a block size is positive
			}
		}
	}
}

// configure writes files, adds Shoal, and runs what must run inside the new system.
func (i *installer) configure(ctx context.Context) error {
	t := i.cfg.Target
	for _, m := range []string{"proc", "sys", "dev"} {
		if _, err := i.run(ctx, "mount", "--rbind", "--make-rslave", "/"+m, filepath.Join(t, m)); err != nil {
			return fmt.Errorf("mount /%s in the new system: %w", m, err)
		}
	}
	if _, err := i.run(ctx, "mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", filepath.Join(t, "run")); err != nil {
		return fmt.Errorf("mount /run in the new system: %w", err)
	}
	// grub-install asks udev which device is what; %post may want the medium.
	for from, to := range map[string]string{"/run/udev": "run/udev", i.cfg.Medium: strings.TrimPrefix(MediumDir, "/")} {
		if err := os.MkdirAll(filepath.Join(t, to), 0o755); err != nil {
			return err
		}
		if _, err := i.run(ctx, "mount", "--bind", from, filepath.Join(t, to)); err != nil {
			return fmt.Errorf("mount %s in the new system: %w", from, err)
		}
	}
	i.mounted = true
	for _, f := range i.plan.Files {
		path := filepath.Join(t, f.Path)
		if f.Link != "" {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("replace %s: %w", f.Path, err)
			}
			if err := os.Symlink(f.Link, path); err != nil {
				return fmt.Errorf("link %s: %w", f.Path, err)
			}
			continue
		}
		if err := host.WriteFile(path, []byte(f.Content), os.FileMode(f.Mode)); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	units, err := i.shoal(t)
	if err != nil {
		return err
	}
	if slices.Contains(units, layout.ControllerUnit) {
		if err := i.inside(ctx, host.Command{Name: "systemd-sysusers", Args: []string{layout.SysUsers}}); err != nil {
			return fmt.Errorf("make the controller's user: %w", err)
		}
	}
	if len(units) > 0 {
		if err := i.inside(ctx, host.Command{Name: "systemctl", Args: append([]string{"enable", "--quiet"}, units...)}); err != nil {
			return fmt.Errorf("enable Shoal's services: %w", err)
		}
	}
	for _, s := range i.plan.Inside {
		i.console.Say("  %s", s.Say)
		if err := i.inside(ctx, s.Command); err != nil {
			return fmt.Errorf("%s: %w", s.Say, err)
		}
	}
	return nil
}

// inside runs a command in the new system.
func (i *installer) inside(ctx context.Context, c host.Command) error {
	c.Args = append([]string{i.cfg.Target, c.Name}, c.Args...)
	c.Name = "chroot"
	_, err := i.command(ctx, c)
	return err
}

// loader makes the machine start the new system, by BIOS and by UEFI, whichever it was installed by.
func (i *installer) loader(ctx context.Context) error {
	l := i.plan.Loader
	if l.None {
		return nil
	}
	i.console.Say("installing the boot loader")
	grub := func(what string, args ...string) error {
		if err := i.inside(ctx, host.Command{Name: "grub-install", Args: args}); err != nil {
			return fmt.Errorf("install the boot loader %s: %w", what, err)
		}
		return nil
	}
	for _, d := range l.Disks {
		if err := grub("for BIOS on "+d, "--target=i386-pc", "--no-floppy", d); err != nil {
			return err
		}
	}
	for n, esp := range l.ESPs {
		dir := "/boot/efi"
		if n > 0 {
			dir = "/run/esp" + strconv.Itoa(n)
			at := filepath.Join(i.cfg.Target, dir)
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if _, err := i.run(ctx, "mount", "-t", "vfat", esp, at); err != nil {
				return fmt.Errorf("mount %s: %w", esp, err)
			}
		}
		efi := []string{"--target=x86_64-efi", "--efi-directory=" + dir, "--uefi-secure-boot"}
		if err := grub("for UEFI on "+esp, append(efi, "--removable", "--no-nvram")...); err != nil {
			return err
		}
		if _, err := os.Stat("/sys/firmware/efi/efivars"); n > 0 || err != nil || l.KeepOrder {
			continue
		}
		// A firmware that refuses a new entry still starts the disk by the path for removable media.
		if err := grub("in the firmware", append(efi, "--bootloader-id=debian")...); err != nil {
			i.console.Say("warning: %v; the machine starts by the path for removable media", err)
		}
	}
	return nil
}

// scripts runs the scripts of a stage. Those of %onerror run whatever happens to them.
func (i *installer) scripts(ctx context.Context, stage kickstart.Stage) error {
	for n, s := range i.ks.ScriptsOf(stage) {
		i.console.Say("running %%%s of line %d", stage, s.At.Line)
		err := i.script(ctx, s, fmt.Sprintf("/tmp/shoal-%s-%d", stage, n))
		if err != nil && s.StopOnError && stage != kickstart.OnError {
			return fmt.Errorf("%%%s of line %d: %w", stage, s.At.Line, err)
		}
		if err != nil {
			i.console.Say("warning: %%%s of line %d: %v", stage, s.At.Line, err)
		}
	}
	return nil
}

func (i *installer) script(ctx context.Context, s kickstart.Script, name string) error {
	root := ""
	if s.Stage == kickstart.Post && !s.NoChroot {
		root = i.cfg.Target
	}
	file := filepath.Join("/", root, name)
	if err := os.WriteFile(file, []byte(s.Body), 0o700); err != nil {
		return fmt.Errorf("write the script: %w", err)
	}
	defer os.Remove(file)
	log := s.Log
	if log == "" {
		log = name + ".log"
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join("/", root, log)), 0o755); err != nil {
		return fmt.Errorf("make the directory of the log: %w", err)
	}
	c := host.Command{Name: "sh", Args: []string{"-c", `exec "$1" "$2" >"$3" 2>&1 </dev/null`, "sh", s.Interpreter, name, log}}
	var err error
	if root != "" {
		err = i.inside(ctx, c)
	} else {
		_, err = i.command(ctx, c)
	}
	out, readErr := os.ReadFile(filepath.Join("/", root, log))
	if readErr == nil {
		i.console.Note("%s", out)
	}
	if s.Log == "" {
		defer os.Remove(filepath.Join("/", root, log))
	}
	if err != nil {
		if exit, ok := errors.AsType[*host.ExitError](err); ok {
			err = exit.Err
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%w: %s", err, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	return nil
}

// finish makes all durable, and only then marks the machine as installed.
func (i *installer) finish(ctx context.Context) error {
	t := i.cfg.Target
	i.console.Say("writing everything to the disks")
	if err := host.WriteFile(filepath.Join(t, "var/log/shoal-install.log"), i.console.Log(), 0o600); err != nil {
		return fmt.Errorf("keep the log: %w", err)
	}
	unix.Sync()
	if !i.plan.Loader.None {
		if err := host.WriteFile(filepath.Join(t, "boot/efi/shoal/installed-"+i.host.ID), nil, 0o600); err != nil {
			return fmt.Errorf("mark the machine as installed: %w", err)
		}
	}
	if _, err := i.run(ctx, "umount", "--recursive", t); err != nil {
		return fmt.Errorf("unmount the new system: %w", err)
	}
	for _, s := range i.plan.Finish {
		if err := i.step(ctx, s); err != nil {
			return err
		}
	}
	unix.Sync()
	if slices.ContainsFunc(i.plan.Steps, func(s plan.Step) bool { return s.Command.Name == "mdadm" }) {
		if _, err := i.run(ctx, "mdadm", "--wait-clean", "--scan"); err != nil {
			i.console.Note("%v", err)
		}
	}
	return nil
}
