package metal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"shoal/desired"
)

// Where things are for Run, and for the scripts of a kickstart: the names are those that Anaconda has.
const (
	// MediumDir is the medium, TargetDir the system that is being installed.
	MediumDir = "/run/install/repo"
	TargetDir = "/mnt/sysroot"
	// HostDir is what makes the medium that of certain hosts: kickstart and host.json.
	HostDir = "/run/shoal/host"
)

// Boot is the first process of the installation: from the initramfs it finds the medium, mounts what is on it, and goes on as program, the
// installer's own path in the root file system, in there. It returns only when that is impossible.
func Boot(program string) error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m[0], m[1], m[0], 0, ""); err != nil {
			return err
		}
	}
	out := NewConsole(Consoles()...)
	out.Say("Shoal installer: looking for the installation medium")
	if err := loadModules("/modules"); err != nil {
		return err
	}
	for _, d := range []string{"/medium", "/ro", "/rw", "/root"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	device, err := findMedium(out, 90*time.Second)
	if err != nil {
		return err
	}
	if device == "" {
		// Started over the network: the medium came as a second initramfs.
		err = mount("/payload", "/medium", "", unix.MS_BIND, "")
	} else {
		out.Say("medium found on %s", device)
		err = mount(device, "/medium", "iso9660", unix.MS_RDONLY, "")
	}
	if err != nil {
		return err
	}
	loop, err := loopDevice("/medium/shoal/rootfs.squashfs")
	if err != nil {
		return fmt.Errorf("the medium is damaged or incomplete: %w", err)
	}
	if err := mount(loop, "/ro", "squashfs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("the medium is damaged; write it again: %w", err)
	}
	if err := mount("tmpfs", "/rw", "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/root", "overlay", 0, "lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work"); err != nil {
		return err
	}
	if err := furnish("/root"); err != nil {
		return err
	}
	return enter("/root", program)
}

// furnish mounts below root what the installer needs there.
func furnish(root string) error {
	for _, m := range [][2]string{{"tmpfs", "/run"}, {"tmpfs", "/tmp"}} {
		if err := mount(m[0], root+m[1], m[0], unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(root+MediumDir, 0o755); err != nil {
		return err
	}
	if err := mount("/medium", root+MediumDir, "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if _, err := os.Stat("/host"); err == nil {
		if err := os.MkdirAll(root+HostDir, 0o700); err != nil {
			return err
		}
		if err := mount("/host", root+HostDir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if err := mount(d, root+d, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	// The installer itself comes from the initramfs, so that it is always the one that this medium was made with.
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	return os.WriteFile(root+"/run/shoal-installer", self, 0o755)
}

// enter makes root the root file system and becomes the installer in it.
func enter(root, program string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the root file system: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux", "LC_ALL=C"}
	return fmt.Errorf("start the installer: %w", unix.Exec(program, []string{program, "run"}, env))
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// loadModules loads what dir/order lists. A module that the machine has no use for refuses itself, and one that is needed is missed soon enough.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
		_ = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
	}
	return nil
}

// findMedium waits for a block device with our volume label; empty is the medium that came with the initramfs.
func findMedium(out *Console, limit time.Duration) (string, error) {
	if _, err := os.Stat("/payload/shoal/rootfs.squashfs"); err == nil {
		return "", nil
	}
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	told := time.Now()
	for {
		nodes, err := filepath.Glob("/sys/class/block/*")
		if err != nil {
			return "", err
		}
		var seen []string
		for _, n := range nodes {
			name := filepath.Base(n)
			if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
				continue
			}
			seen = append(seen, name)
			if volumeLabel("/dev/"+name) == desired.MediumLabel {
				return "/dev/" + name, nil
			}
		}
		if time.Now().After(deadline) {
			if len(seen) == 0 {
				seen = []string{"none at all"}
			}
			return "", fmt.Errorf("no medium with the label %s was found within %s; block devices that are there: %s; try another port or drive, or write the medium again",
				desired.MediumLabel, limit, strings.Join(seen, ", "))
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			out.Say("still looking for the medium")
		}
		<-tick.C
	}
}

// volumeLabel is the label in the primary volume descriptor (ECMA-119, 8.4), or nothing.
func volumeLabel(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 72)
	if _, err := f.ReadAt(b, 16*2048); err != nil || !bytes.Equal(b[1:6], []byte("CD001")) {
		return ""
	}
	return strings.TrimRight(string(b[40:72]), " \x00")
}

// loopDevice makes a block device of a file.
func loopDevice(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return "", fmt.Errorf("find a free loop device: %w", err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var l *os.File
	for try := 0; ; try++ {
		// devtmpfs makes the node a moment after the device.
		if l, err = os.OpenFile(path, os.O_RDONLY, 0); err == nil {
			break
		}
		if try > 200 || !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		<-tick.C
	}
	defer l.Close()
	if err := unix.IoctlSetInt(int(l.Fd()), unix.LOOP_SET_FD, int(f.Fd())); err != nil {
		return "", fmt.Errorf("attach %s to %s: %w", file, path, err)
	}
	return path, nil
}
