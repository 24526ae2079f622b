package iso

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestVendor repacks media with the layouts of the RHEL family and starts machines from them, as a CD and as a stick: the vendor's own menu entry, which is
// taken by itself, must lead to the kickstart, by the label, and the programs must be there. No vendor's medium is at hand, so what starts is
// scripts/iso/witness in the place of Anaconda; see scripts/iso/vendor for what is real. No CD by UEFI: the guests' kernel can't read the drive that such machines have.
func TestVendor(t *testing.T) {
	need(t)
	thorough(t)
	guest := filepath.Join(root, ".cache/guest")
	if _, err := os.Stat(filepath.Join(guest, "vmlinuz")); err != nil {
		t.Fatalf("%v: run ./scripts/task guest", err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	run(t, filepath.Join(root, "scripts/iso/witness"), guest, initrd)
	ks := write(t, "my.ks", "lang en_US.UTF-8\nkeyboard us\ntimezone Etc/UTC\ntimesource --ntp-server=192.0.2.1\nrootpw --lock\nautopart\n%packages\n@^minimal-environment\n%end\nreboot\n")
	for name, test := range map[string]struct {
		release     string
		uefi, stick bool
	}{
		"7 BIOS CD": {release: "7"}, "9 BIOS stick": {release: "9", stick: true}, "9 UEFI stick": {"9", true, true},
		"10 BIOS CD": {release: "10"}, "10 UEFI stick": {"10", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			base, out := filepath.Join(dir, "vendor.iso"), filepath.Join(dir, "host.raw")
			run(t, filepath.Join(root, "scripts/iso/vendor"), test.release, filepath.Join(guest, "vmlinuz"), initrd, base)
			run(t, filepath.Join(root, "bin/shoalctl"), "iso", "build", "--base", base, "--mode", "compute", "--token-file", write(t, "token", token()), "--kickstart", ks,
				"--menu-seconds", "1", "--boot-arg", "console=ttyS0", "-o", out)
			if check := run(t, "checkisomd5", out); !strings.Contains(check, "PASS") {
				t.Errorf("the medium's checksum of itself: %s", check)
			}
			for _, name := range []string{"ks.cfg", "shoal/host.tar"} {
				run(t, "xorriso", "-osirrox", "on", "-indev", out, "-extract", "/"+name, filepath.Join(dir, filepath.Base(name)))
			}

			h := hardware{cd: out}
			if test.stick {
				h = hardware{disks: []string{out}}
			}
			if test.uefi {
				// Without keys in its variables the firmware starts what is not signed.
				b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
				if err != nil {
					t.Fatal(err)
				}
				h.uefi = write(t, "vars.fd", string(b))
			}
			log := power(t, h).says(5*time.Minute, "WITNESS done")
			for _, want := range []string{
				map[bool]string{true: "WITNESS UEFI ", false: "WITNESS BIOS "}[test.uefi], ":/ks.cfg console=ttyS0", "rd.live.check", "WITNESS installer is there",
				"WITNESS kickstart " + sum(t, filepath.Join(dir, "ks.cfg")), "WITNESS host.tar " + sum(t, filepath.Join(dir, "host.tar")),
			} {
				if !strings.Contains(log, want) {
					t.Errorf("the machine does not say %q:\n%s", want, tail(log))
				}
			}
		})
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func sum(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
