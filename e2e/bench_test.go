package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"shoal/subjects"
)

// benchBed is the shared bed for a benchmark.
func benchBed(b *testing.B) *bed {
	b.Helper()
	shared.once.Do(func() { shared.bed, shared.err = newBed(bedPrefix, bedNet) })
	if shared.err != nil {
		b.Fatalf("set up the bed: %v", shared.err)
	}
	return shared.bed
}

// dialer connects from the fabric.
type dialer struct{ bed *bed }

// Dial implements nats.CustomDialer.
func (d dialer) Dial(network, address string) (conn net.Conn, err error) {
	err = d.bed.inFabric(func() (err error) {
		conn, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	return conn, err
}

// api is a client of the API without a command's start in between.
type api struct{ nc *nats.Conn }

func (b *bed) api(t testing.TB) api {
	t.Helper()
	nc, err := nats.Connect("tls://"+b.net+".1:4222", nats.RootCAs(b.ca()), nats.UserCredentials(filepath.Join(b.dir, "controller/admin.creds")),
		nats.CustomInboxPrefix(subjects.Inbox("admin")), nats.SetCustomDialer(dialer{b}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return api{nc}
}

func (a api) call(kind, verb string, params, into any) error {
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	m, err := a.nc.Request(subjects.API("admin", kind, verb), body, 10*time.Second)
	if err != nil {
		return err
	}
	if code := m.Header.Get("Nats-Service-Error-Code"); code != "" {
		return fmt.Errorf("%s.%s: %s: %s", kind, verb, code, m.Data)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(m.Data, into)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkCreateToRunning: from the acknowledged create of a diskless VM to libvirt's event that it runs, beside define
// and create of the same XML by bare libvirt on the same host, in turn.
func BenchmarkCreateToRunning(b *testing.B) {
	bed := benchBed(b)
	client := bed.api(b)
	conn, err := dialer{bed}.Dial("tcp", bed.net+".11:16509")
	if err != nil {
		b.Fatal(err)
	}
	l := libvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	if err := l.Connect(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Disconnect() }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := l.LifecycleEvents(ctx)
	if err != nil {
		b.Fatal(err)
	}
	started := func(id libvirt.UUID) error {
		timeout := time.After(time.Minute)
		for {
			select {
			case e, ok := <-events:
				if !ok {
					return errors.New("libvirt has hung up")
				}
				if e.Dom.UUID == id && e.Event == int32(libvirt.DomainEventStarted) {
					return nil
				}
			case <-timeout:
				return errors.New("no event after a minute")
			}
		}
	}
	var ours, bare []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("bench-%d-%d", b.N, i)
		var created struct{ Resource struct{ ID string } }
		if err := client.call("vm", "create", map[string]any{"name": name, "diskless": true, "offering": "micro", "host": "h1"}, &created); err != nil {
			b.Fatal(err)
		}
		acknowledged := time.Now()
		id := libvirt.UUID(uuid.MustParse(created.Resource.ID))
		if err := started(id); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(acknowledged))

		dom, err := l.DomainLookupByUUID(id)
		if err != nil {
			b.Fatal(err)
		}
		xml, err := l.DomainGetXMLDesc(dom, libvirt.DomainXMLInactive)
		if err != nil {
			b.Fatal(err)
		}
		if err := client.call("vm", "destroy", map[string]any{"id": name, "force": true}, nil); err != nil {
			b.Fatal(err)
		}
		if err := within(30*time.Second, func() error {
			if err := client.call("vm", "expunge", map[string]any{"id": name}, nil); err != nil {
				return err
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		if err := within(30*time.Second, func() error {
			if _, err := l.DomainLookupByUUID(id); err == nil {
				return errors.New("the domain is still there")
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}

		// The same machine, without the mark that makes it the agent's.
		other := uuid.New()
		xml = strings.ReplaceAll(xml, created.Resource.ID, other.String())
		if from, to := strings.Index(xml, "<metadata>"), strings.Index(xml, "</metadata>"); from >= 0 && to > from {
			xml = xml[:from] + xml[to+len("</metadata>"):]
		}
		start := time.Now()
		dom, err = l.DomainDefineXML(xml)
		if err != nil {
			b.Fatalf("define by bare libvirt: %v\n%s", err, xml)
		}
		if err := l.DomainCreate(dom); err != nil {
			b.Fatal(err)
		}
		if err := started(libvirt.UUID(other)); err != nil {
			b.Fatal(err)
		}
		bare = append(bare, time.Since(start))
		if err := l.DomainDestroy(dom); err != nil {
			b.Fatal(err)
		}
		if err := l.DomainUndefine(dom); err != nil {
			b.Fatal(err)
		}
	}
	mo, mb := median(ours), median(bare)
	b.ReportMetric(float64(mo.Microseconds())/1000, "ms-shoal")
	b.ReportMetric(float64(mb.Microseconds())/1000, "ms-libvirt")
	b.ReportMetric(float64((mo-mb).Microseconds())/1000, "ms-over")
	b.ReportMetric(float64(mo)/float64(mb), "ratio")
}

// BenchmarkIdleAgent (with -benchtime 1x, a repetition tells nothing new): what the agent costs on a host with 50 domains where nothing happens, beside libvirtd.
func BenchmarkIdleAgent(b *testing.B) {
	bed := benchBed(b)
	client := bed.api(b)
	const n = 50
	// Diskless guests in the firmware's prompt: QEMU costs something, agent and libvirtd are measured by themselves.
	if err := client.call("vm", "create", map[string]any{"name": "idle", "diskless": true, "offering": "micro", "networks": []map[string]any{{"l3": "net1"}}, "host": "h2", "count": n}, nil); err != nil {
		b.Fatal(err)
	}
	defer func() {
		for i := range n {
			name := fmt.Sprintf("idle-%d", i+1)
			_ = client.call("vm", "destroy", map[string]any{"id": name, "force": true}, nil)
			_ = within(time.Minute, func() error { return client.call("vm", "expunge", map[string]any{"id": name}, nil) })
		}
	}()
	if err := within(4*time.Minute, func() error {
		out, err := bed.try("vm", "list", "--where", "name~=idle-%", "--where", "status.state=Running", "--count")
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) != strconv.Itoa(n) {
			return fmt.Errorf("%s of %d run", strings.TrimSpace(out), n)
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	cpu := func(name string) (ticks, rssKiB float64) {
		out, err := bed.tryIn("h2", "sh", "-c", "p=$(pgrep -o -x "+name+"); awk '{print $14+$15}' /proc/$p/stat; awk '/VmRSS/{print $2}' /proc/$p/status")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fmt.Sscan(out, &ticks, &rssKiB); err != nil {
			b.Fatal(err)
		}
		return ticks, rssKiB
	}
	time.Sleep(20 * time.Second) // let the creates' own work settle
	// One long sample, however often the benchmark is to be repeated.
	const span = 60 * time.Second
	agent0, _ := cpu("shoal-agent")
	libvirtd0, _ := cpu("libvirtd")
	time.Sleep(span)
	agent1, agentRSS := cpu("shoal-agent")
	libvirtd1, libvirtdRSS := cpu("libvirtd")
	// USER_HZ is 100.
	b.ReportMetric((agent1-agent0)/span.Seconds(), "%core-agent")
	b.ReportMetric((libvirtd1-libvirtd0)/span.Seconds(), "%core-libvirtd")
	b.ReportMetric(agentRSS/1024, "MiB-agent")
	b.ReportMetric(libvirtdRSS/1024, "MiB-libvirtd")
	b.ReportMetric(agentRSS/libvirtdRSS, "ratio-memory")
	b.ReportMetric(0, "ns/op")
}
