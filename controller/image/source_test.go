package image_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"shoal/controller/image"
)

func TestParseSources(t *testing.T) {
	if _, err := image.ParseSources([]string{"10.2.0.0/16", "2001:db8::7", "10.1.1.1", "Mirror.example.org."}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "10.2.0.0/33", "http://mirror", "mirror:80", "*.example.org", "a b", "x@y"} {
		if _, err := image.ParseSources([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSources(t *testing.T) {
	some, err := image.ParseSources([]string{"10.2.0.0/16", "fd00::7", "127.0.0.9"})
	if err != nil {
		t.Fatal(err)
	}
	own := []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}
	for addr, want := range map[string][2]bool{ // without and with sources
		"8.8.8.8": {true, true}, "2606:4700::1": {true, true}, "::ffff:8.8.8.8": {true, true},
		"10.2.3.4": {false, true}, "::ffff:10.2.3.4": {false, true}, "fd00::7": {false, true}, "127.0.0.9": {false, true},
		"10.3.0.1": {}, "172.16.0.1": {}, "192.168.1.1": {}, "fd00::8": {}, "100.64.0.1": {}, "127.0.0.1": {}, "::1": {}, "0.0.0.0": {}, "::": {}, "0.1.2.3": {},
		"169.254.169.254": {}, "fe80::1": {}, "fe80::1%eth0": {}, "224.0.0.1": {}, "ff02::1": {}, "255.255.255.255": {}, "240.0.0.1": {}, "198.18.0.1": {},
		"::ffff:127.0.0.1": {}, "::127.0.0.1": {}, "64:ff9b::7f00:1": {}, "2002:7f00:1::": {}, "9.9.9.9": {}, "2620:fe::fe": {}, "::ffff:9.9.9.9": {},
	} {
		a := netip.MustParseAddr(addr)
		if got := [2]bool{image.Allow(image.Sources{}, a, own), image.Allow(some, a, own)}; got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
}

// A tenant's image never makes the controller talk to the inside, neither by address, nor by name, nor by a redirect.
func TestAdd_FromInside(t *testing.T) {
	var asked atomic.Int32
	content := raw(1 << 20)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer srv.Close()
	named := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	// A server that is allowed by its name sends on to one that is not.
	outside := httptest.NewServer(http.RedirectHandler(srv.URL, http.StatusFound))
	defer outside.Close()
	sources := func(list ...string) func(*image.Config) {
		return func(c *image.Config) {
			var err error
			if c.Sources, err = image.ParseSources(list); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, url, host string
		edit            func(*image.Config)
	}{
		{"address", srv.URL, "127.0.0.1", nil},
		{"name", named, "localhost", nil},
		{"redirect", strings.Replace(outside.URL, "127.0.0.1", "localhost", 1), "127.0.0.1", sources("localhost")},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.edit)
			b.run(b.svc)
			img, task := b.ended(b.addFor("acme", c.url, ""))
			if img != nil || task.Error == nil || task.Error.Field != "url" || !strings.Contains(task.Error.Message, c.host+" is not on the public Internet") || task.Error.Remedy == "" {
				t.Errorf("got %v, %+v", img, task.Error)
			}
			if n, f := asked.Load(), b.files(); n > 0 || len(f) > 0 {
				t.Errorf("the server was asked %d times, files %v", n, f)
			}
		})
	}
	t.Run("allowed", func(t *testing.T) {
		b := newBench(t, sources("127.0.0.0/8"))
		b.run(b.svc)
		if img, task := b.ended(b.addFor("acme", srv.URL, "")); img == nil {
			t.Errorf("got %+v", task.Error)
		}
	})
}

// A proxy may stand inside; what it reaches is for it to limit.
func TestAdd_ThroughProxy(t *testing.T) {
	content := raw(1 << 20)
	var target atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		target.Store(r.URL.Host)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *image.Config) { c.Tenants = image.Guarded(c.Sources, http.ProxyURL(at)) })
	b.run(b.svc)
	if img, task := b.ended(b.addFor("acme", "http://images.example.org/a", "")); img == nil || target.Load() != "images.example.org" {
		t.Errorf("got %v, %+v, the proxy was asked for %v", img, task.Error, target.Load())
	}
}
