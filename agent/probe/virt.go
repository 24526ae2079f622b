package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"shoal/agent/host"
)

// The domain types.
const (
	virtKVM  = "kvm"
	virtQEMU = "qemu"
)

// virt is a verdict, and what it was reached on.
type virt struct {
	Boot    string `json:"boot"` // the kernel's boot id
	Version string `json:"version"`
	Virt    string `json:"virt"`
	Note    string `json:"note,omitempty"`
}

// How long the payload may take: firmware, two ticks of the timer. Emulated it takes 0.2 s, and with KVM as long or less. A
// KVM that needs a multiple of emulation's time is one in name only, such as that of a virtual machine whose host does not
// pass virtualization on: there Linux guests were seen to hang although the payload came to its end.
const (
	tryLimit = 20 * time.Second
	patience = 1500 * time.Millisecond
	multiple = 4
)

// disk is what the machine boots: it waits for two interrupts and writes 0x31 to port 0xf4, where QEMU's isa-debug-exit
// device makes an exit status of 0x31*2+1 of it.
func disk() []byte {
	b := make([]byte, 64<<10)
	copy(b, []byte{
		0xFB,       // sti
		0xF4,       // hlt, until the timer ticks
		0xF4,       // hlt
		0xB0, 0x31, // mov al, 0x31
		0xE6, 0xF4, // out 0xf4, al
		0xF4, // hlt
	})
	b[510], b[511] = 0x55, 0xAA
	return b
}

const payloadExit = 0x31*2 + 1

// tryVirt runs the payload and tells how long it took, or why it did not come to its end.
func tryVirt(ctx context.Context, run host.Runner, accel, dir string, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	image := filepath.Join(dir, "virt-probe.img")
	if err := host.WriteFile(image, disk(), 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(image)
	start := time.Now()
	_, err := run.Run(ctx, host.Command{Name: "qemu-system-x86_64", Args: []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=" + accel, "-m", "16",
		"-drive", "file=" + image + ",format=raw,if=ide", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
	}})
	var exit *host.ExitError
	switch {
	case err == nil:
		return 0, errors.New("the machine ended without having run")
	case ctx.Err() != nil:
		return 0, fmt.Errorf("a machine that should end at once did not within %s", limit.Round(time.Millisecond))
	case errors.As(err, &exit) && exit.Code == payloadExit:
		return time.Since(start), nil
	default:
		return 0, err
	}
}

// tryKVM says why KVM can't be used, "" when it can. An error is no verdict.
func tryKVM(ctx context.Context, run host.Runner, dir string) (why string, err error) {
	emulated, err := tryVirt(ctx, run, "tcg", dir, tryLimit)
	if err != nil {
		return "", fmt.Errorf("boot a machine without KVM, to compare with: %w", err)
	}
	_, err = tryVirt(ctx, run, "kvm", dir, max(patience, multiple*emulated))
	if err == nil || ctx.Err() != nil {
		return "", ctx.Err()
	}
	return fmt.Sprintf("%v; emulation took %s", err, emulated.Round(time.Millisecond)), nil
}

// findVirt decides between KVM and emulation, from the cache where host and QEMU are as they were.
func findVirt(ctx context.Context, run host.Runner, data string) (virt, error) {
	boot, err := host.Boot()
	if err != nil {
		return virt{}, err
	}
	version, err := qemuVersion(ctx, run)
	if err != nil {
		return virt{}, err
	}
	cache := filepath.Join(data, "virt.json")
	now := virt{Boot: boot, Version: version}
	var old virt
	if b, err := os.ReadFile(cache); err == nil && json.Unmarshal(b, &old) == nil && old.Boot == now.Boot && old.Version == now.Version {
		return old, nil
	}
	now.Virt, now.Note = virtQEMU, ""
	switch _, err := os.Stat("/dev/kvm"); {
	case runtime.GOARCH != "amd64":
		now.Note = "hosts of this architecture only emulate x86"
	case err != nil:
		now.Note = "/dev/kvm is not there: load the kvm module, or switch virtualization on in the firmware"
	default:
		why, err := tryKVM(ctx, run, data)
		if err != nil {
			return virt{}, err
		}
		if why == "" {
			now.Virt = virtKVM
		} else {
			now.Note = "/dev/kvm is there and does not work: " + why
		}
	}
	b, err := json.Marshal(now)
	if err != nil {
		return now, err
	}
	if err := host.WriteFile(cache, append(b, '\n'), 0o600); err != nil {
		return now, fmt.Errorf("write %s: %w", cache, err)
	}
	return now, nil
}

// qemuVersion is QEMU's first line about itself.
func qemuVersion(ctx context.Context, run host.Runner) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := run.Run(ctx, host.Command{Name: "qemu-system-x86_64", Args: []string{"--version"}})
	if err != nil {
		return "", fmt.Errorf("find QEMU's version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}

// shortVersion is "7.2.22" of "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)".
func shortVersion(line string) string {
	_, rest, ok := strings.Cut(line, "version ")
	if !ok {
		return ""
	}
	version, _, _ := strings.Cut(rest, " ")
	return version
}
