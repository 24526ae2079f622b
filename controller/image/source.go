package image

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/controller/resource"
)

// Sources are servers inside the site that images of every account may be downloaded from. Without any, accounts other than
// admin reach public addresses only: the controller stands in the management network, and what it downloads can be read by
// whoever had it download it.
type Sources struct {
	nets  []netip.Prefix
	names []string
}

// ParseSources reads addresses, CIDR prefixes and host names, such as 10.2.0.0/16 and mirror.example.org. A name is trusted
// with whatever it resolves to.
func ParseSources(list []string) (Sources, error) {
	var s Sources
	for _, one := range list {
		if p, err := netip.ParsePrefix(one); err == nil {
			s.nets = append(s.nets, p.Masked())
		} else if a, err := netip.ParseAddr(one); err == nil {
			s.nets = append(s.nets, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
		} else if name := canonical(one); name != "" && !strings.ContainsAny(name, "/:@ *") {
			s.names = append(s.names, name)
		} else {
			return Sources{}, fmt.Errorf("%q is no address, prefix (10.2.0.0/16) or host name", one)
		}
	}
	return s, nil
}

func canonical(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// notPublic are the special-purpose ranges (RFC 6890 and its registry) that netip has no word for. Those of IPv6 at the end
// carry an IPv4 address, which a gateway of the site may take to the inside.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2002::/16"),
}

// allow reports whether an address may be connected to for an account other than admin. own are this machine's addresses:
// what listens on them may trust them, however public they are.
func (s Sources) allow(a netip.Addr, own []netip.Addr) bool {
	a = a.Unmap().WithZone("")
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case slices.ContainsFunc(s.nets, within):
		return true
	case !a.IsGlobalUnicast() || a.IsPrivate() || slices.ContainsFunc(notPublic, within):
		return false
	default:
		return !slices.Contains(own, a)
	}
}

// transport connects by dial; proxy finds the proxy of a request, if any.
func transport(proxy func(*http.Request) (*url.URL, error), dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		Proxy: proxy, DialContext: dial,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}
}

func dialer() *net.Dialer { return &net.Dialer{Timeout: 10 * time.Second} }

// free is the client for the admin account.
func free() *http.Client {
	return &http.Client{Transport: transport(http.ProxyFromEnvironment, dialer().DialContext)}
}

// guarded is the client for other accounts. The check is of the address that is being connected to, after names were
// resolved and redirects followed, so that neither leads around it. Where proxy names one, what that reaches is for it to
// limit.
func (s Sources) guarded(proxy func(*http.Request) (*url.URL, error)) *http.Client {
	var proxies sync.Map // host:port → struct{}
	find := func(r *http.Request) (*url.URL, error) {
		u, err := proxy(r)
		if u != nil {
			proxies.Store(hostPort(u), struct{}{})
		}
		return u, err
	}
	return &http.Client{Transport: transport(find, func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
		d := dialer()
		if _, ok := proxies.Load(addr); ok || slices.Contains(s.names, canonical(host)) {
			return d.DialContext(ctx, network, addr)
		}
		own, err := ownAddrs()
		if err != nil {
			return nil, err
		}
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, err)
			}
			if s.allow(to.Addr(), own) {
				return nil
			}
			// What a name resolves to is not told: it would map the inside for whoever asks.
			e := resource.Invalid("url", "%s is not on the public Internet, and images of accounts other than admin come from there only", host)
			return permanent{e.WithRemedy("have an administrator add the image and share it, or allow the server by shoal-controller --image-source %s", host)}
		}
		return d.DialContext(ctx, network, addr)
	})}
}

// hostPort is what is dialled to reach a proxy.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(port, "80"))
}

// ownAddrs are the addresses of this machine.
func ownAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("look up the addresses of this machine: %w", err)
	}
	var own []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own, nil
}
