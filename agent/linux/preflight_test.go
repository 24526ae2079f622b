package linux

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestReadRelease(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		release release
		debian  bool
	}{
		"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n":       {release{"debian", "", "12", "Debian GNU/Linux 12 (bookworm)"}, true},
		"ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\nPRETTY_NAME='Ubuntu 24.04 LTS'\n":    {release{"ubuntu", "debian", "24.04", "Ubuntu 24.04 LTS"}, true},
		"ID=mint\nID_LIKE=\"ubuntu debian\"\n":                                                 {release{id: "mint", like: "ubuntu debian"}, true},
		"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.5\"\n# a line\nnonsense": {release{"rocky", "rhel centos fedora", "9.5", ""}, false},
	} {
		got := readRelease(strings.NewReader(text))
		if got != want.release || got.debian() != want.debian {
			t.Errorf("%q: %+v, Debian's packages %v; want %+v, %v", text, got, got.debian(), want.release, want.debian)
		}
	}
}

// TestBound: what the kernel says of a socket that is there, and of one that is not.
func TestBound(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(conn.LocalAddr().(*net.UDPAddr).Port)
	is := func(want bool) {
		t.Helper()
		f, err := os.Open("/proc/net/udp")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := bound(f, port); got != want {
			t.Errorf("port %d bound: %v, want %v", port, got, want)
		}
	}
	is(true)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	is(false)
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := Report{Checks: []Check{ok("a", "fine %d", 1), note("b", "odd", "slow", "wait")}}
	if !r.Ready() || r.Failures() != 0 {
		t.Error("notes stand in the way")
	}
	r.Checks = append(r.Checks, failed("c", "bad", "", "mend it"))
	if r.Ready() || r.Failures() != 1 {
		t.Error("a failure does not")
	}
	want := "ok      a           fine 1\n" +
		"note    b           odd\n                    why: slow\n                    remedy: wait\n" +
		"FAILED  c           bad\n                    remedy: mend it\n"
	if r.Text() != want {
		t.Errorf("text:\n%swant:\n%s", r.Text(), want)
	}
}

// TestPackages: a host that is installed from a medium has what one gets that was there already.
func TestPackages(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../scripts/iso/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	wanted := []string{libvirtDriver, "chrony"}
	for _, p := range programs() {
		wanted = append(wanted, p.pkg)
	}
	for _, name := range wanted {
		switch name {
		case "util-linux", "qemu-system-arm": // essential; of another architecture
			continue
		}
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^\t(.* )?%s( |$)`, regexp.QuoteMeta(name))).Match(b) {
			t.Errorf("scripts/iso/rootfs has no package %s", name)
		}
	}
}
