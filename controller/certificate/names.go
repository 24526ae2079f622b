package certificate

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// maxAddresses bounds how many of the machine's own addresses are taken: on a host there may be one for each network.
const maxAddresses = 128

// Names gives the names by which a machine is reached that listens on these hosts: them, all its addresses if one of them
// means all, its host name, the loopback, and the extra ones.
func Names(listen []string, extra []string) ([]string, error) {
	for _, n := range extra {
		if net.ParseIP(n) == nil && !validName(n) {
			return nil, fmt.Errorf("--tls-name: %q is neither a host name nor an address", n)
		}
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	add := func(n string) {
		if ip := net.ParseIP(n); ip != nil {
			n = ip.String()
		} else if n = strings.ToLower(n); !validName(n) {
			return
		}
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	all := false
	for _, h := range slices.Concat(listen, extra) {
		if ip := net.ParseIP(h); h == "" || ip != nil && ip.IsUnspecified() {
			all = all || slices.Contains(listen, h)
			continue
		}
		add(h)
	}
	if host, err := os.Hostname(); err == nil {
		add(host)
		short, _, _ := strings.Cut(host, ".")
		add(short)
	}
	if !all {
		return names, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for i, a := range addrs {
		// Link-local addresses need a zone, which no certificate can name.
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() && i < maxAddresses {
			add(n.IP.String())
		}
	}
	return names, nil
}

// validName tells whether a certificate can be for a host name.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}
