package image

import (
	"net/http"
	"net/netip"
	"net/url"
)

func Allow(s Sources, a netip.Addr, own []netip.Addr) bool { return s.allow(a, own) }

func Guarded(s Sources, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	return s.guarded(proxy)
}
