package install

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/desired"
)

// dmi is where Linux shows what the firmware says of the machine.
const dmi = "/sys/class/dmi/id"

// maxFacts is how many addresses of a sort are told. Nobody compares more, and the request must stay small.
const maxFacts = 32

// Facts is what this machine is, as far as it can be seen. What can't be is left out.
func Facts() desired.MachineFacts { return facts(dmi) }

func facts(dmi string) desired.MachineFacts {
	f := desired.MachineFacts{
		Vendor: line(dmi, "sys_vendor"), Product: line(dmi, "product_name"), Serial: line(dmi, "product_serial"), UUID: line(dmi, "product_uuid"),
		Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
	}
	if name, err := os.Hostname(); err == nil {
		f.Hostname = name
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		f.MemoryMiB = uint64(info.Totalram) * uint64(info.Unit) >> 20 //nolint:unconvert // its size depends on the architecture
	}
	links, err := net.Interfaces()
	if err != nil {
		return f
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 {
			continue
		}
		if mac := l.HardwareAddr.String(); mac != "" && !slices.Contains(f.MACs, mac) && len(f.MACs) < maxFacts {
			f.MACs = append(f.MACs, mac)
		}
		addrs, err := l.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && len(f.Addresses) < maxFacts {
				f.Addresses = append(f.Addresses, n.IP.String())
			}
		}
	}
	return f
}

// line is a short text that the firmware gave, which may hold anything.
func line(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), ""))
	s = strings.TrimSpace(s)
	for len(s) > 128 {
		s = strings.ToValidUTF8(s[:128], "")
	}
	return s
}
