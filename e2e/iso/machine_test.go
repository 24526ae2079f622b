package iso

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"shoal/desired"
)

// What the installer says when it is done or has given up, and what the agent of an installed host says while it is not let in.
const (
	done      = `SHOAL-INSTALL-DONE`
	failed    = `SHOAL-INSTALL-FAILED`
	notJoined = `not joined yet`
)

// token is one that no controller knows; its address is one that nobody has (RFC 5737).
func token() string {
	return desired.JoinToken{ID: "id", Secret: "secret", URLs: []string{"tls://192.0.2.1:4222"}}.Text()
}

// root is the source tree.
const root = "../.."

// need skips unless the task that makes the image has asked for these tests.
func need(t *testing.T) string {
	t.Helper()
	if os.Getenv("SHOAL_E2E_ISO") == "" {
		t.Skip("SKIPPED: it needs the installation image and minutes; run ./scripts/task e2e-iso")
	}
	image, err := filepath.Abs(filepath.Join(root, ".cache/iso/install.iso"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image); err != nil {
		t.Fatalf("%v: run ./scripts/task iso-image", err)
	}
	return image
}

// thorough skips what test-iso has no time for.
func thorough(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: too long for test-iso; run ./scripts/task e2e-iso")
	}
}

// medium makes an installation medium with shoalctl.
func medium(t *testing.T, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "host.iso")
	shoalctl(t, append([]string{"-o", out}, args...)...)
	return out
}

func shoalctl(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root, "bin/shoalctl"), append([]string{"iso", "build", "--image", need(t), "--menu-seconds", "1"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// disk makes a blank raw disk.
func disk(t *testing.T, gib int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(gib << 30); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyOf makes a disk that begins as another one is; what is written to it leaves that one alone.
func copyOf(t *testing.T, disk string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img create: %v\n%s", err, out)
	}
	return path
}

// machine is a machine that is on.
type machine struct {
	t    *testing.T
	log  string
	cmd  *exec.Cmd
	gone chan error
	out  bytes.Buffer
}

// hardware is what a machine has.
type hardware struct {
	uefi string // the variables of its firmware, empty for BIOS
	// cd is a medium in its drive, stick one in its USB port.
	cd, stick string
	// cpu is QEMU's name of it; empty is one without virtualization, which is emulated faster.
	cpu   string
	disks []string
	nics  int
	// way lets it reach something from the first interface; without, it reaches nobody.
	way string
	// ssh is the port of this machine that leads to its SSH server.
	ssh string
	// tftp is the directory that it can be started from over the network, by the file boot.
	tftp, boot string
	memory     int // MiB, 0 for 2048
}

// vars makes the variables of a UEFI firmware that starts only what Microsoft has signed, as servers are delivered.
func vars(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "vars.fd", string(b))
}

// power switches a machine on. It is off again at the end of the test.
func power(t *testing.T, h hardware) *machine {
	t.Helper()
	m := &machine{t: t, log: filepath.Join(t.TempDir(), "serial.log"), gone: make(chan error, 1)}
	args := []string{
		"-n", "5", "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", cmp.Or(h.cpu, "Nehalem"), "-smp", "2", "-m", fmt.Sprint(cmp.Or(h.memory, 2048)), "-display", "none", "-monitor", "none",
		"-serial", "file:" + m.log, "-no-reboot", "-device", "virtio-rng-pci",
	}
	if h.uefi == "" {
		args = append(args, "-machine", "pc")
	} else {
		// Secure Boot needs variables that only the firmware, in system management mode, can write.
		args = append(args, "-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on", "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
			"-drive", "if=pflash,format=raw,unit=1,file="+h.uefi)
	}
	for i, d := range h.disks {
		format := strings.TrimPrefix(filepath.Ext(d), ".")
		args = append(args, "-drive", fmt.Sprintf("file=%s,if=none,id=d%d,format=%s,cache=unsafe", d, i, format), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=DISK%d,bootindex=%d", i, i, i+5))
	}
	if h.cd != "" {
		args = append(args, "-drive", "file="+h.cd+",media=cdrom,if=none,id=cd,readonly=on", "-device", "ide-cd,drive=cd,bootindex=1")
	}
	if h.stick != "" {
		// snapshot: what is written to it is forgotten.
		args = append(args, "-drive", "file="+h.stick+",format=raw,if=none,id=stick,snapshot=on", "-device", "qemu-xhci", "-device", "usb-storage,drive=stick,removable=on,bootindex=1")
	}
	for i := range max(1, h.nics) {
		// restrict: a machine under test reaches nobody else.
		net, device := fmt.Sprintf("user,id=n%d,restrict=on", i), fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=52:54:00:00:00:0%d", i, i+1)
		if i == 0 && h.tftp != "" {
			// After the disks: a blank one is passed over, and the installed one is started.
			net += ",tftp=" + h.tftp + ",bootfile=" + h.boot
			device += ",bootindex=9"
		}
		if h.tftp == "" || h.uefi != "" {
			// Without iPXE: BIOS would wait for it, and UEFI has its own.
			device += ",romfile="
		}
		if i == 0 && h.way != "" {
			net += "," + h.way
		}
		if i == 0 && h.ssh != "" {
			net += ",hostfwd=tcp:127.0.0.1:" + h.ssh + "-:22"
		}
		args = append(args, "-netdev", net, "-device", device)
	}
	m.cmd = exec.CommandContext(context.Background(), "nice", args...)
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.gone <- m.cmd.Wait() }()
	t.Cleanup(m.off)
	return m
}

// off cuts the power.
func (m *machine) off() {
	if m.cmd.Process != nil {
		if err := m.cmd.Process.Kill(); err == nil || errors.Is(err, os.ErrProcessDone) {
			m.gone <- <-m.gone
		}
	}
}

// says waits until the console shows one of these, and gives all that it has shown.
func (m *machine) says(limit time.Duration, patterns ...string) string {
	m.t.Helper()
	form := regexp.MustCompile(strings.Join(patterns, "|"))
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(m.log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			m.t.Fatal(err)
		}
		if form.Match(b) {
			return string(b)
		}
		select {
		case err := <-m.gone:
			m.gone <- err
			// What it wrote last is looked at once more.
			if b, _ := os.ReadFile(m.log); form.Match(b) {
				return string(b)
			}
			m.t.Fatalf("the machine went off (%v, %s) without saying %s:\n%s", err, m.out.String(), form, tail(string(b)))
		case <-tick.C:
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the machine does not say %s within %s:\n%s", form, limit, tail(string(b)))
		}
	}
}

var control = regexp.MustCompile(`\x1b\[[0-9;?]*[a-zA-Z]|\r`)

func tail(s string) string {
	lines := strings.Split(control.ReplaceAllString(s, ""), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// refuses waits until the installer gives up, and checks why.
func (m *machine) refuses(whys ...string) {
	m.t.Helper()
	log := m.says(8*time.Minute, failed, done)
	for _, want := range append(whys, "nothing was changed") {
		if !strings.Contains(log, want) {
			m.t.Errorf("the installer does not say %q:\n%s", want, tail(log))
		}
	}
	m.off()
}

// installs waits until the installer is done and the machine has gone off.
func (m *machine) installs() string {
	m.t.Helper()
	log := m.says(12*time.Minute, done, failed)
	if !strings.Contains(log, done) {
		m.t.Fatalf("the installation failed:\n%s", tail(log))
	}
	select {
	case err := <-m.gone:
		m.gone <- err
	case <-time.After(time.Minute):
		m.t.Fatal("the machine does not start anew")
	}
	return log
}
