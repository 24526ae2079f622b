package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"shoal/desired"
)

// leaseTime is how long a guest keeps its address without asking again; it asks at half of it. Addresses are reserved, so
// this only sets how soon a guest learns of changed options.
const leaseTime = "86400"

// plain is the tag of guests that are told neither a default route nor DNS. It is not set by their reservations, although these
// are read without a restart: dnsmasq (2.90) aborts when it reads them again after it has served one with a tag.
const plain = "plain"

// Config is dnsmasq's configuration, without what can be read again while it runs. See dnsmasq(8).
func Config(w desired.DHCP, dir, user string) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by shoal-agent, which overwrites it.")
	line("user=%s", user)
	line("pid-file=%s", filepath.Join(dir, "pid"))
	line("interface=%s", Inner)
	line("except-interface=lo")
	line("bind-interfaces")
	line("no-hosts")
	line("no-resolv")
	line("quiet-dhcp")
	line("quiet-dhcp6")
	// Without: 3 s of ping before each offer. Addresses are the controller's, nobody else gives them.
	line("no-ping")
	line("dhcp-authoritative")
	line("dhcp-lease-max=65535")
	line("dhcp-leasefile=%s", filepath.Join(dir, "leases"))
	line("dhcp-hostsfile=%s", filepath.Join(dir, "hosts"))
	// Reservations only.
	line("dhcp-ignore=tag:!known")
	// The names are those of the reservations, whatever guests call themselves.
	line("dhcp-ignore-names")
	network := w.Server.Masked()
	if network.Addr().Is4() {
		line("dhcp-range=%s,static,%s,%s", network.Addr(), net.IP(net.CIDRMask(network.Bits(), 32)), leaseTime)
	} else {
		line("dhcp-range=%s,static,%d,%s", network.Addr(), network.Bits(), leaseTime)
		// Announce that addresses come by DHCP, and be no router.
		line("enable-ra")
		line("ra-param=%s,0,0", Inner)
	}
	if w.Domain != "" {
		line("domain=%s", w.Domain)
		line("local=/%s/", w.Domain)
	}
	if len(w.DNS) == 0 {
		// The network's names are served here, and no others.
		line("addn-hosts=%s", filepath.Join(dir, "names"))
	} else {
		line("port=0")
	}
	for _, e := range w.Entries {
		if e.NoGateway {
			line("dhcp-mac=set:%s,%s", plain, e.MAC)
		}
	}
	options(w, line)
	return b.Bytes()
}

func options(w desired.DHCP, line func(string, ...any)) {
	v4 := w.Server.Addr().Is4()
	var servers []string
	for _, d := range w.DNS {
		switch {
		case d.Is4() && v4:
			servers = append(servers, d.String())
		case !d.Is4() && !v4:
			servers = append(servers, "["+d.String()+"]")
		}
	}
	if !v4 {
		if len(servers) > 0 {
			line("dhcp-option=option6:dns-server,%s", strings.Join(servers, ","))
		}
		line("dhcp-option=tag:%s,option6:dns-server", plain)
		return
	}
	if len(servers) > 0 {
		line("dhcp-option=option:dns-server,%s", strings.Join(servers, ","))
	} else if len(w.DNS) > 0 {
		line("dhcp-option=option:dns-server")
	}
	if w.Gateway.IsValid() {
		line("dhcp-option=option:router,%s", w.Gateway)
	} else {
		// Empty: otherwise dnsmasq names itself.
		line("dhcp-option=option:router")
	}
	for _, o := range []string{"dns-server", "router", "domain-name"} {
		line("dhcp-option=tag:%s,option:%s", plain, o)
	}
	if w.MTU != 0 {
		line("dhcp-option=option:mtu,%d", w.MTU)
	}
	var routes []string
	for _, r := range w.Routes {
		if r.To.Addr().Is4() {
			routes = append(routes, r.To.Masked().String(), r.Via.String())
		}
	}
	if len(routes) == 0 {
		return
	}
	all := strings.Join(routes, ",")
	if w.Gateway.IsValid() {
		// Who takes option 121 ignores the router's (RFC 3442).
		all = "0.0.0.0/0," + w.Gateway.String() + "," + all
	}
	for _, code := range []int{121, 249} { // 249 is for Windows before 2008
		line("dhcp-option=%d,%s", code, all)
		line("dhcp-option=tag:%s,%d,%s", plain, code, strings.Join(routes, ","))
	}
}

// Hosts are the reservations.
func Hosts(w desired.DHCP) []byte {
	var b bytes.Buffer
	for _, e := range w.Entries {
		ip := e.IP.String()
		if !e.IP.Is4() {
			ip = "[" + ip + "]"
		}
		b.WriteString(e.MAC + "," + ip)
		if e.Hostname != "" {
			b.WriteString("," + e.Hostname)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Names are the names that the server answers for, in the form of hosts(5).
func Names(w desired.DHCP) []byte {
	var b bytes.Buffer
	for _, e := range w.Entries {
		if e.Hostname == "" {
			continue
		}
		b.WriteString(e.IP.String())
		if w.Domain != "" && !strings.HasSuffix(e.Hostname, "."+w.Domain) {
			b.WriteString(" " + e.Hostname + "." + w.Domain)
		}
		b.WriteString(" " + e.Hostname + "\n")
	}
	return b.Bytes()
}

// hostMACs reads what Hosts wrote.
func hostMACs(hosts []byte) map[netip.Addr]string {
	macs := map[netip.Addr]string{}
	for line := range strings.Lines(string(hosts)) {
		w := strings.Split(strings.TrimSpace(line), ",")
		if len(w) < 2 {
			continue
		}
		if ip, err := netip.ParseAddr(strings.Trim(w[1], "[]")); err == nil {
			macs[ip] = w[0]
		}
	}
	return macs
}

// Lease is a line of dnsmasq's lease file.
type Lease struct {
	// Expires is zero for never.
	Expires time.Time
	// MAC is empty for IPv6, where the file has none.
	MAC  string
	IP   netip.Addr
	line string
}

// ParseLeases reads a lease file: "<expiry> <MAC> <address> <name> <client>". It is read while dnsmasq writes it, so
// lines that are not whole are skipped.
func ParseLeases(b []byte) []Lease {
	var leases []Lease
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line)
		if len(w) < 5 || !strings.HasSuffix(line, "\n") {
			continue
		}
		expires, err := strconv.ParseInt(w[0], 10, 64)
		if err != nil {
			continue
		}
		ip, err := netip.ParseAddr(w[2])
		if err != nil || ip.Zone() != "" {
			continue
		}
		l := Lease{IP: ip, line: line}
		if expires > 0 {
			l.Expires = time.Unix(expires, 0)
		}
		if ip.Is4() {
			mac, err := net.ParseMAC(w[1])
			if err != nil || len(mac) != 6 {
				continue
			}
			l.MAC = mac.String()
		}
		leases = append(leases, l)
	}
	return leases
}

// pruneLeases takes out the leases on addresses that are reserved for another MAC now. stale says that there were some.
func pruneLeases(b, hosts []byte) (kept []byte, stale bool) {
	macs := hostMACs(hosts)
	drop := map[string]bool{}
	for _, l := range ParseLeases(b) {
		if mac, ok := macs[l.IP]; ok && l.MAC != "" && mac != l.MAC {
			drop[l.line] = true
		}
	}
	for line := range strings.Lines(string(b)) {
		if !drop[line] {
			kept = append(kept, line...)
		}
	}
	return kept, len(drop) > 0
}
